"""Put the h-BN database into the form that ``ase-definet data pack --relaxed-only`` reads.

``python -m research.recipes.hbn_database FOLDER OUT.extxyz``, FOLDER with ``train.extxyz`` and ``val.extxyz`` of
QCS-Theory/hBN-database (MIT, (c) 2024 QCS-TUM) as shared/data/README.md describes them. Defects off the sites of the
host are left out. Charges come as they are, words of the state as spin multiplicity and excitation.
"""

from __future__ import annotations

import sys
from pathlib import Path

from ase import Atoms
from ase.io import iread, write

MULTIPLICITIES = {"singlet": 1, "doublet": 2, "triplet": 3}
HOSTS = {"hBN-bulk": ("BN-bulk", "bulk"), "hBN-monolayer": ("BN", "monolayer")}


def converted(atoms: Atoms, split: str) -> Atoms:
    """Return a structure of the database with the keys of a pack."""
    info = atoms.info
    host, place = HOSTS[info["host"]]
    words = str(info["state"]).removeprefix("excited_").partition("/")[0]
    subset = f"hbn/{place}-{'charged' if info['charge'] else 'neutral'}{'-excited' if info['excited'] else ''}"
    out = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    out.info = {
        "id": info["id"],
        "split": split,
        "subset": subset,
        "host": host,
        "charge": int(info["charge"]),
        "functional": "HSE06",
        "excited": bool(info["excited"]),
    }
    multiplicity = next((m for name, m in MULTIPLICITIES.items() if words.startswith(name)), None)
    if multiplicity:
        out.info["spin_multiplicity"] = multiplicity
    return out


def main(folder: Path, out: Path) -> None:
    """Convert all structures on sites, training before validation."""
    frames = [
        converted(atoms, split)
        for split in ("train", "val")
        for atoms in iread(folder / f"{split}.extxyz", ":")
        if atoms.info["on_sites"]
    ]
    write(out, frames, format="extxyz")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
