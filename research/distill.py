"""Label random structures with the mean of several trained networks, to train one network that is as good as all.

Run as ``python -m research.distill PACK OUT N [HOST=]WEIGHTS... [--repeat [HOST=]WEIGHTS...] [--draws K]``. For every
high-density subset of PACK, it makes N structures with the defects of a random training pair on random sites, takes the mean
of the predictions as their relaxed positions, and writes them to OUT as the subset ``labelled/HOST``, beside all groups of
PACK. Only training pairs lend their compositions. Weights given as ``BN=FILE`` are used for one host only; hosts without
weights get no labels.

Networks after ``--repeat``, whose training must have had noisy starts to its end, predict again from positions half-way to
that mean, with noise added; and once more from half-way to these second predictions. The labels are then the mean of all
three rounds. All random numbers come from the seed 0.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.data import MatchedPair, PackedDataset, PairGroup, pack_rows, save_groups
from ase_definet.relaxation.lattices import build_lattice
from ase_definet.structures.state import State
from ase_definet.training.batches import lattice_of_group
from ase_definet.training.card import LABELLED

BATCH = 16
STATE = State()
"""Of labelled structures: neutral, in the ground state, PBE, as 2DMD is."""
INTERPOLATION = 0.5
"""How far towards the prediction so far a repeated prediction starts."""
NOISE = 0.1
"""Standard deviation of the noise on the positions from which it starts, in Å."""


def shuffled(group: PairGroup, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return occupations with the defects of training pairs on random sites, shape ``(n, n_sites)``."""
    host = group.host_numbers
    out = np.tile(host, (n, 1))
    for k, pair in enumerate(rng.choice(group.indices("train"), n)):
        found = group.numbers[pair]
        for element in np.unique(host):
            guests = found[(host == element) & (found != host)]
            out[k, rng.choice(np.flatnonzero(host == element), len(guests), replace=False)] = guests
    return out


class Teacher:
    """One network on the sites of one group."""

    def __init__(self, group: PairGroup, path: str) -> None:
        loaded = load_checkpoint(resolve_model(path))
        self.card = next((own for own in loaded.card.routed if group.host in own.hosts), loaded.card)
        self.host = torch.as_tensor(group.host_numbers)
        model: Any = loaded.model
        self.network = model.network_for(self.host)
        self.lattice = build_lattice(lattice_of_group(group), loaded.config.cutoff, keep_kernels=True)

    @torch.inference_mode()
    def __call__(self, numbers: np.ndarray, starts: np.ndarray | None = None) -> np.ndarray:
        """Return predicted displacements, shape ``(n, n_sites, 3)``, in Å, from the sites or from displaced ``starts``."""
        out = []
        for start in range(0, len(numbers), BATCH):
            part = torch.as_tensor(numbers[start : start + BATCH].T.astype(np.int64))
            kinds = torch.where(part == 0, 2, (part != self.host[:, None]).long())
            begun = None
            if starts is not None:
                some = torch.as_tensor(starts[start : start + BATCH].transpose(1, 0, 2), dtype=torch.float32)
                begun = some * (part > 0)[..., None]
            state = torch.tensor(STATE.codes).expand(1, part.shape[1], -1)
            stages = self.network.stages(self.lattice, part, self.host, kinds, begun, state)
            out.append(stages[-1].permute(1, 0, 2).numpy())
        return np.concatenate(out).astype(np.float64)


def labels(
    group: PairGroup, numbers: np.ndarray, paths: list[str], repeat: list[str], draws: int, rng: np.random.Generator
) -> np.ndarray:
    """Return the mean of what networks predict, shape ``(n, n_sites, 3)``, in Å.

    Args:
        group: The sites.
        numbers: What is on them, shape ``(n, n_sites)``.
        paths: Weights that predict from the host's sites.
        repeat: Weights that predict again, from noisy interpolated positions.
        draws: Repeated predictions of each of these in a round, each with noise of its own.
        rng: Of the noise.
    """
    teachers = {path: Teacher(group, path) for path in {*paths, *repeat}}
    rounds = [np.mean([teachers[path](numbers) for path in paths], axis=0)]
    for path in repeat:
        if not teachers[path].card.training.config["noisy_start_fraction"]:
            raise SystemExit(
                f"{path}: its training ended without noisy starts (noisy_start_fraction = 0), which makes repeated "
                f"predictions for {group.host} worse; leave it out of --repeat"
            )
    for _ in range(2 if repeat else 0):
        starts = INTERPOLATION * rounds[-1]
        networks = [teachers[path] for path in repeat for _ in range(draws)]
        found = [predict(numbers, starts + NOISE * rng.standard_normal(starts.shape)) for predict in networks]
        rounds.append(np.mean(found, axis=0))
    return np.asarray(np.mean(rounds, axis=0))


def labelled(
    group: PairGroup, n: int, paths: list[str], repeat: list[str], draws: int, rng: np.random.Generator
) -> Iterator[MatchedPair]:
    """Yield labelled structures; see :func:`labels`."""
    numbers = shuffled(group, n, rng)
    moves = labels(group, numbers, paths, repeat, draws, rng)
    for k in range(n):
        yield MatchedPair(
            id=f"labelled-{k}",
            subset=LABELLED + group.host,
            split="train",
            host=group.host,
            unit_numbers=group.unit_numbers,
            unit_positions=group.unit_positions,
            unit_cell=group.unit_cell,
            pbc=group.pbc,
            supercell=group.supercell,
            numbers=numbers[k],
            offset=np.zeros_like(moves[k]),
            move=moves[k] * (numbers[k] > 0)[:, None],
            state=STATE,
            warnings=(),
        )


def for_host(given: list[str], host: str) -> list[str]:
    """Return the files of those weights that are to be used for a host."""
    parts = [weights.rpartition("=") for weights in given]
    return [path for name, _, path in parts if name in {"", host}]


def main() -> None:
    """Write the pack."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pack", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("n", type=int)
    parser.add_argument("weights", nargs="+", metavar="[HOST=]WEIGHTS")
    parser.add_argument("--repeat", nargs="+", default=[], metavar="[HOST=]WEIGHTS")
    parser.add_argument("--draws", type=int, default=1, help="repeated predictions of each network in a round")
    options = parser.parse_args()
    pack = PackedDataset.open(options.pack)
    rng = np.random.default_rng(0)
    groups = list(pack.groups)
    part = options.out.with_name(f"{options.out.name}.part")
    for group in pack.groups:
        if group.subset.startswith("high/"):
            own, repeat = for_host(options.weights, group.host), for_host(options.repeat, group.host)
            if not own:
                continue
            new, _ = pack_rows(labelled(group, options.n, own, repeat, options.draws, rng), part)
            groups += [made.in_memory() for made in new.groups]
            print(f"{group.subset}: {options.n} labelled by {len(own)} networks, {len(repeat)} repeated", flush=True)
    save_groups(groups, options.out)
    part.unlink(missing_ok=True)


if __name__ == "__main__":
    main()
