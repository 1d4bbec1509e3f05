"""Label new random structures with the mean of several trained networks, to train one network that is as good as all.

Run as ``python -m research.distill PACK OUT N [HOST=]WEIGHTS... [--again [HOST=]WEIGHTS...]``: for every high-density subset
of PACK, N structures with the defects of a random training structure on random sites, and the mean of the predictions as
their relaxed positions, are added to the groups of PACK as ``labelled/HOST`` and written to OUT. Only training pairs lend
their compositions. Weights given as ``BN=FILE`` know one host only; hosts that nothing knows get no labels.

Networks after ``--again``, which must have been trained with ``corrupt`` to the end, answer with the atoms begun half-way to that
mean, with noise; twice, the second time half-way to their first answers. Labels are then the mean of all three.
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint
from ase_definet.data import MatchedPair, PackedDataset, PairGroup, pack_rows, save_groups
from ase_definet.relaxation.lattices import build_lattice
from ase_definet.training.batches import lattice_of_group
from ase_definet.training.card import LABELLED

BATCH = 16
WAY = 0.5
"""How far along the answers so far the atoms begin when networks are asked again."""
NOISE = 0.1
"""Standard deviation of the noise on where they begin, in Å."""
DRAWS = 1
"""Answers of each network a round, each with its own noise."""


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
        """Return predicted moves, shape ``(n, n_sites, 3)``, in Å; ``starts`` are the moves at which atoms begin."""
        out = []
        for start in range(0, len(numbers), BATCH):
            part = torch.as_tensor(numbers[start : start + BATCH].T.astype(np.int64))
            kinds = torch.where(part == 0, 2, (part != self.host[:, None]).long())
            begun = None
            if starts is not None:
                some = torch.as_tensor(starts[start : start + BATCH].transpose(1, 0, 2), dtype=torch.float32)
                begun = some * (part > 0)[..., None]
            out.append(self.network.stages(self.lattice, part, self.host, kinds, begun)[-1].permute(1, 0, 2).numpy())
        return np.concatenate(out).astype(np.float64)


def labels(
    group: PairGroup, numbers: np.ndarray, paths: list[str], again: list[str], rng: np.random.Generator
) -> np.ndarray:
    """Return what networks predict together, shape ``(n, n_sites, 3)``, in Å; see above."""
    teachers = {path: Teacher(group, path) for path in {*paths, *again}}
    rounds = [np.mean([teachers[path](numbers) for path in paths], axis=0)]
    for path in again:
        if not teachers[path].card.training.config["noisy_start_fraction"]:
            raise SystemExit(
                f"{path}: last trained without `corrupt`, its answers for {group.host} get worse if asked again"
            )
    for _ in range(2 if again else 0):
        starts = WAY * rounds[-1]
        askings = [teachers[path] for path in again for _ in range(DRAWS)]
        answers = [asked(numbers, starts + NOISE * rng.standard_normal(starts.shape)) for asked in askings]
        rounds.append(np.mean(answers, axis=0))
    return np.asarray(np.mean(rounds, axis=0))


def labelled(
    group: PairGroup, n: int, paths: list[str], again: list[str], rng: np.random.Generator
) -> Iterator[MatchedPair]:
    """Yield labelled structures."""
    numbers = shuffled(group, n, rng)
    moves = labels(group, numbers, paths, again, rng)
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
            warnings=(),
        )


def main() -> None:
    """Write the pack."""
    source, out, n, *rest = sys.argv[1:]
    split = rest.index("--again") if "--again" in rest else len(rest)
    pack = PackedDataset.open(source)
    rng = np.random.default_rng(0)
    groups = list(pack.groups)
    for group in pack.groups:
        if group.subset.startswith("high/"):
            own, again = (
                [path.split("=")[-1] for path in paths if path.split("=")[0] in {path, group.host}]
                for paths in (rest[:split], rest[split + 1 :])
            )
            if not own:
                continue
            new, _ = pack_rows(labelled(group, int(n), own, again, rng), Path(f"{out}.part"))
            groups += [part.in_memory() for part in new.groups]
            print(f"{group.subset}: {n} labelled by {len(own)} networks, {len(again)} asked again", flush=True)
    save_groups(groups, Path(out))
    Path(f"{out}.part").unlink()


if __name__ == "__main__":
    main()
