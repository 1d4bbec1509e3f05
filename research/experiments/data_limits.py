"""Measure what the data allow: broken symmetries, defects of one kind that relax differently, long waves, density.

Run as ``python -m research.experiments.data_limits PACK``; writes research/results/data_limits.json. Four measurements on every subset:

- Structures that some symmetry of the host maps onto themselves: how far their relaxed positions are from keeping it.
- Defects without another one within ``ALONE``: how far the nearest atoms move out, its spread over the structures, and
  which share of the variance the bundled weights explain on validation pairs, and how often they predict the right
  direction where these atoms leave the symmetry of the site.
- Which share of the squared error on validation pairs lies in the longest waves that fit into the cell, and which share
  of its out-of-plane part a single factor per structure explains: the right shape with another amplitude.
- The error on validation pairs by the share of sites that are defective, and the correlation of the errors of the host's
  network with those of the general one in the same file, trained apart from it: what both get wrong.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import spglib
import torch

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.data import PackedDataset, PairGroup
from ase_definet.matching.naming import defect_name
from ase_definet.structures.metrics import minimum_image
from ase_definet.training.batches import SiteBatches
from ase_definet.training.loss import mean_over_sites
from research.paths import RESULTS

ALONE = 4.5
LOPSIDED = 0.1
BATCH = 32
DENSITIES = (0.04, 0.07, 0.1, 1.0)
FEWEST = 10
ZERO = 1e-6
OUT = RESULTS / "data_limits.json"


def operations(group: PairGroup) -> tuple[np.ndarray, np.ndarray]:
    """Return what the symmetries of the pristine supercell make of its sites, and of vectors.

    Returns:
        The site that each site is moved to, shape ``(n_operations, n_sites)``, and Cartesian rotations
        ``(n_operations, 3, 3)`` of column vectors.
    """
    fractions = group.sites @ np.linalg.inv(group.cell)
    found = spglib.get_symmetry((group.cell, fractions, group.host_numbers), symprec=1e-3)
    images = []
    for rotation, shift in zip(found["rotations"], found["translations"], strict=True):
        apart = (fractions @ rotation.T + shift)[:, None] - fractions[None]
        images.append(np.abs(apart - np.round(apart)).max(-1).argmin(1))
    turned = [group.cell.T @ rotation @ np.linalg.inv(group.cell.T) for rotation in found["rotations"]]
    return np.array(images), np.array(turned)


class Part(NamedTuple):
    """Some validation pairs and what a network predicts for them, sites first, in Å."""

    pairs: np.ndarray
    numbers: torch.Tensor
    kinds: torch.Tensor
    target: torch.Tensor
    real: torch.Tensor
    guess: torch.Tensor


@torch.no_grad()
def predicted_parts(group: PairGroup, batches: SiteBatches, network: torch.nn.Module) -> list[Part]:
    """Return all validation pairs with the displacements that a network predicts."""
    chosen = group.indices("val")
    parts = []
    for start in range(0, len(chosen), BATCH):
        pairs = chosen[start : start + BATCH]
        numbers, kinds, target, real = batches.batch(pairs)
        parts.append(
            Part(
                pairs,
                numbers,
                kinds,
                target,
                real,
                batches.predict(network, numbers, kinds, state=batches.states(pairs))[-1],
            )
        )
    return parts


def moves(batches: SiteBatches, pair: int) -> np.ndarray:
    """Return the relaxed displacements from the host's sites, without their mean over atoms, in Å."""
    _, _, target, _ = batches.batch(np.array([pair]))
    return target[:, 0].double().numpy()


def broken(group: PairGroup, batches: SiteBatches) -> dict:
    """Return how far symmetric structures are from symmetric after relaxation: coordinate MAE, in Å."""
    images, turned = operations(group)
    tags = np.random.default_rng(0).integers(1, 2**52, (len(group.sites), 120))
    pairs = np.concatenate([group.indices("train"), group.indices("val")])
    apart = []
    for pair in pairs:
        numbers = group.numbers[pair]
        at = np.flatnonzero(numbers != group.host_numbers)
        same = np.flatnonzero(tags[images[:, at], numbers[at]].sum(1) == tags[at, numbers[at]].sum())
        moved = moves(batches, pair)
        if len(same) == 1 or not np.any(moved):
            continue
        mean = np.zeros_like(moved)
        for k in same:
            mean[images[k]] += moved @ turned[k].T / len(same)
        apart.append(float(np.abs(moved - mean)[numbers > 0].mean()))
    return {"pairs": len(pairs), "symmetric": len(apart), "largest": max(apart, default=0.0)}


class Sites:
    """Distances between the sites of a group, and what keeps each of them in place."""

    def __init__(self, group: PairGroup) -> None:
        n = len(group.sites)
        apart = (group.sites[None] - group.sites[:, None]).reshape(-1, 3)
        self.group = group
        self.vectors = minimum_image(apart, group.cell).reshape(n, n, 3)
        self.distances = np.linalg.norm(self.vectors, axis=2)
        self.images, self.turned = operations(group)

    def lone(self, pair: int) -> Iterator[tuple[str, int, np.ndarray]]:
        """Yield name and site of each defect without another within ``ALONE``, and the atoms nearest to it."""
        numbers = self.group.numbers[pair]
        at = np.flatnonzero(numbers != self.group.host_numbers)
        for site in at:
            if np.any(self.distances[site, at[at != site]] < ALONE):
                continue
            shell = np.where(self.distances[site] > 0, self.distances[site], np.inf)
            name = defect_name(numbers[site], self.group.host_numbers[site])
            yield name, site, np.flatnonzero((shell < shell.min() + 0.15) & (numbers > 0))

    def outward(self, site: int, near: np.ndarray, moved: np.ndarray) -> float:
        """Return how far some atoms move away from a site, their mean, in Å."""
        along = (moved[near] * self.vectors[site, near]).sum(1) / self.distances[site, near]
        return float(along.mean())

    def lopsided(self, site: int, near: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return what of the displacements of some atoms lacks the symmetry of the site, shape ``(n, 3)``, in Å."""
        keeping = np.flatnonzero(self.images[:, site] == site)
        mean = np.zeros_like(moved)
        for k in keeping:
            mean[self.images[k]] += moved @ self.turned[k].T / len(keeping)
        return np.asarray((moved - mean)[near])


def lone(group: PairGroup, batches: SiteBatches, parts: list[Part]) -> dict:
    """Return how lone defects relax and what a network knows of it on validation pairs.

    The spread of how far their nearest atoms move out and the share of its variance that the network explains; and of
    those whose nearest atoms leave the symmetry of the site by ``LOPSIDED`` or more, how many the network sends the
    right way.
    """
    sites = Sites(group)
    found, true, predicted, ways = (defaultdict(list) for _ in range(4))
    for pair in np.concatenate([group.indices("train"), group.indices("val")]):
        moved = moves(batches, pair)
        for name, site, near in sites.lone(pair):
            found[name].append(sites.outward(site, near, moved))
    for part in parts:
        for k, pair in enumerate(part.pairs):
            target, guess = part.target[:, k].numpy(), part.guess[:, k].numpy()
            for name, site, near in sites.lone(pair):
                true[name].append(sites.outward(site, near, target))
                predicted[name].append(sites.outward(site, near, guess))
                side = sites.lopsided(site, near, target)
                if np.linalg.norm(side, axis=1).mean() >= LOPSIDED:
                    ways[name].append(float((side * sites.lopsided(site, near, guess)).sum()) > 0)
    table = {}
    for name, values in sorted(found.items()):
        t, p = np.array(true[name]), np.array(predicted[name])
        explained = float(1 - np.mean((t - p) ** 2) / t.var()) if len(t) >= FEWEST else None
        low, middle, high = (float(x) for x in np.quantile(values, [0.1, 0.5, 0.9]))
        table[name] = {
            "n": len(values),
            "10%": low,
            "50%": middle,
            "90%": high,
            "val": len(t),
            "explained": explained,
            "lopsided": len(ways[name]),
            "right_way": sum(ways[name]),
        }
    return table


def longest_waves(group: PairGroup) -> np.ndarray:
    """Return the longest waves of the supercell that move each primitive cell as a whole, shape ``(n_sites, n_waves)``."""
    reciprocal = 2 * np.pi * np.linalg.inv(group.unit_cell).T
    shifts = np.stack(np.meshgrid(*[[-1, 0, 1]] * 3), axis=-1).reshape(-1, 3)
    numbers = np.linalg.norm((group.waves[:, None] + shifts) @ reciprocal, axis=-1).min(1)
    longest = np.isclose(numbers, numbers[numbers > ZERO].min(), rtol=0.01)
    phase = 2 * np.pi * np.repeat(group.cells, len(group.sites) // len(group.cells), axis=0) @ group.waves[longest].T
    found, size, _ = np.linalg.svd(np.concatenate([np.cos(phase), np.sin(phase)], axis=1), full_matrices=False)
    return found[:, size > ZERO]


def reach(group: PairGroup, parts: list[Part]) -> dict:
    """Return what share of squared displacements and errors on validation pairs the longest waves have.

    Besides, for the displacements along z in these waves: how often over the predicted amplitude the true one is, one
    factor per structure by least squares, and which share of the squared error these factors explain.
    """
    waves = torch.as_tensor(longest_waves(group), dtype=torch.float32)
    squares = torch.zeros(2, 2)
    left = torch.zeros(2)
    bent: list[list[torch.Tensor]] = [[], []]
    for part in parts:
        error = part.guess - part.target
        for k, field in enumerate((part.target, error)):
            amplitudes = torch.einsum("nw,nbx->wbx", waves, field)
            squares[k] += torch.stack([amplitudes.square().sum(), field.square().sum()])
        smooth = torch.einsum("nw,wbx->nbx", waves, amplitudes)
        for k, field in enumerate((error, error - smooth)):
            left[k] += mean_over_sites(field.abs().mean(-1), part.real).sum()
        for k, field in enumerate((part.target, part.guess)):
            bent[k].append(waves.T @ field[..., 2])
    share = squares[:, 0] / squares[:, 1]
    true, predicted = (torch.cat(each, dim=1) for each in bent)
    n = sum(len(part.pairs) for part in parts)
    factors = (true * predicted).sum(0) / predicted.square().sum(0).clamp_min(ZERO**2)
    unexplained = (true - factors * predicted).square().sum() / (true - predicted).square().sum()
    return {
        "waves": waves.shape[1],
        "of": len(group.sites),
        "displacement": float(share[0]),
        "error": float(share[1]),
        "mae": float(left[0]) / n,
        "mae_without": float(left[1]) / n,
        "factors": [float(x) for x in torch.quantile(factors, torch.tensor([0.1, 0.5, 0.9]))],
        "explained": 1 - float(unexplained) if true.abs().max() > ZERO else None,
    }


def alike(parts: list[Part], others: list[Part]) -> float:
    """Return the correlation of the errors that two networks make on the same pairs."""
    products = torch.zeros(3)
    for part, other in zip(parts, others, strict=True):
        one, two = part.guess - part.target, other.guess - other.target
        products += torch.stack([(one * two).sum(), one.square().sum(), two.square().sum()])
    return float(products[0] / (products[1] * products[2]).sqrt())


def sizes(parts: list[Part]) -> torch.Tensor:
    """Return the coordinate MAE of every structure, in Å."""
    return torch.cat([mean_over_sites((part.guess - part.target).abs().mean(-1), part.real) for part in parts])


def dense(parts: list[Part], general: list[Part]) -> dict:
    """Return the coordinate MAE by density of defects, and how the errors correlate with those of the general network."""
    size = sizes(parts)
    share = torch.cat([(part.kinds > 0).float().mean(0) for part in parts])
    rows, least = [], 0.0
    for most in DENSITIES:
        here = (share > least) & (share <= most)
        rows.append({"n": int(here.sum()), "mae": float(size[here].mean()) if bool(here.any()) else None})
        least = most
    return {"by": rows, "correlation": alike(parts, general)}


def main() -> None:
    """Measure and write."""
    model = load_checkpoint(resolve_model("default")).model
    table = {}
    for group in PackedDataset.open(Path(sys.argv[1])).groups:
        row = table.setdefault(group.subset, {})
        network = model.network_for(torch.as_tensor(group.host_numbers))
        batches = SiteBatches(group, network.config, torch.device("cpu"))
        parts, general = (predicted_parts(group, batches, each) for each in (network, model.general))
        row["symmetry"], row["lone"] = broken(group, batches), lone(group, batches, parts)
        row["waves"], row["density"] = reach(group, parts), dense(parts, general)
        print(group.subset, row["symmetry"], row["waves"], flush=True)
    OUT.write_text(
        json.dumps(
            {"weights": "default", "alone": ALONE, "lopsided": LOPSIDED, "densities": DENSITIES, "subsets": table},
            indent=1,
        )
        + "\n"
    )


if __name__ == "__main__":
    main()
