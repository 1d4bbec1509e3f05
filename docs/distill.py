"""Label new random structures with the mean of several trained networks, to train one network that is as good as all.

Run as ``python docs/distill.py PACK OUT N [HOST=]WEIGHTS...``: for every high-density subset of PACK, N structures with the
defects of a random training structure on random sites, and the mean of the predictions as their relaxed positions, are
added to the groups of PACK as ``labelled/HOST`` and written to OUT. Only training pairs lend their compositions. Weights
given as ``BN=FILE`` know one host only; hosts that nothing knows get no labels.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ase_definet.checkpoint import load_checkpoint, resolve_model
from ase_definet.convert import build_lattice
from ase_definet.data import Group, Pack, Row, pack_rows, save_groups
from ase_definet.train.card import LABELLED

BATCH = 16


def shuffled(group: Group, n: int, rng: np.random.Generator) -> np.ndarray:
    """Return occupations with the defects of training pairs on random sites, shape ``(n, n_sites)``."""
    host = group.host_numbers
    out = np.tile(host, (n, 1))
    for k, pair in enumerate(rng.choice(group.indices("train"), n)):
        found = group.numbers[pair]
        for element in np.unique(host):
            guests = found[(host == element) & (found != host)]
            out[k, rng.choice(np.flatnonzero(host == element), len(guests), replace=False)] = guests
    return out


@torch.inference_mode()
def labels(group: Group, numbers: np.ndarray, paths: list[str]) -> np.ndarray:
    """Return the mean prediction of some weights, shape ``(n, n_sites, 3)``, in Å."""
    total = np.zeros((*numbers.shape, 3))
    host = torch.as_tensor(group.host_numbers)
    for path in paths:
        loaded = load_checkpoint(resolve_model(path))
        lattice = build_lattice(
            group.unit_numbers,
            group.unit_positions,
            group.unit_cell,
            group.pbc,
            group.supercell,
            loaded.config.cutoff,
            frozen=True,
        )
        for start in range(0, len(numbers), BATCH):
            part = torch.as_tensor(numbers[start : start + BATCH].T.astype(np.int64))
            kinds = torch.where(part == 0, 2, (part != host[:, None]).long())
            moved = loaded.model(lattice, part, host, kinds)
            total[start : start + BATCH] += moved.permute(1, 0, 2).double().numpy() / len(paths)
    return total


def labelled(group: Group, n: int, paths: list[str], rng: np.random.Generator) -> Iterator[Row]:
    """Yield labelled structures."""
    numbers = shuffled(group, n, rng)
    moves = labels(group, numbers, paths)
    for k in range(n):
        yield Row(
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
    source, out, n, *paths = sys.argv[1:]
    pack = Pack.open(source)
    rng = np.random.default_rng(0)
    groups = list(pack.groups)
    for group in pack.groups:
        if group.subset.startswith("high/"):
            own = [path.split("=")[-1] for path in paths if path.split("=")[0] in {path, group.host}]
            if not own:
                continue
            new, _ = pack_rows(labelled(group, int(n), own, rng), Path(f"{out}.part"))
            groups += [part.in_memory() for part in new.groups]
            print(f"{group.subset}: {n} labelled by {len(own)} networks", flush=True)
    save_groups(groups, Path(out))
    Path(f"{out}.part").unlink()


if __name__ == "__main__":
    main()
