"""The whole path on real validation pairs: CIF in, relaxed atoms out, compared with DFT."""

from __future__ import annotations

import io
import tarfile

import numpy as np
import pytest
from ase.io.cif import parse_cif

from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.structures.metrics import minimum_image, near_sites
from tests.conftest import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the 2DMD data is not here (../shared/data)")

SUBSETS = {
    "high_density_defects/MoS2_500": ("MoS2", 0.5),
    "high_density_defects/WSe2_500": ("WSe2", 0.5),
    "high_density_defects/hBN_spin_500": ("BN", 0.95),
    "high_density_defects/GaSe_spin_500": ("GaSe", 0.7),
    "high_density_defects/InSe_spin_500": ("InSe", 0.7),
    "high_density_defects/BP_spin_500": ("P", 0.7),
    "low_density_defects/MoS2": ("MoS2", 0.4),
    "low_density_defects/WSe2": ("WSe2", 0.3),
}
"""Host, and the share of the unrelaxed structure's error that may be left on a sample of the validation set."""
SAMPLE = 8


def read_cif(stream):
    (block,) = parse_cif(io.StringIO(stream.decode()))
    atoms = block.get_unsymmetrized_structure()
    atoms.pbc = True
    return atoms


@pytest.fixture(scope="module")
def pairs():
    """Read every eighth of the validation ids, in one pass over the archive."""
    unrelaxed, relaxed, wanted = {}, {}, {}
    with tarfile.open(DATA, "r:xz") as archive:
        files = {m.name: m for m in archive if m.isfile()}
        for member in files.values():
            name = member.name.partition("/")[2]
            if name.endswith("/val.csv"):
                ids = archive.extractfile(member).read().decode().split()[1:]
                folder = name.removesuffix("/val.csv")
                wanted |= {f"{folder}/{i}": folder for i in ids[:: max(1, len(ids) // SAMPLE)][:SAMPLE]}
        for path, member in files.items():
            name = path.partition("/")[2]
            key = name.replace("/CIF_POSCAR/", "/").replace("/CIF/", "/")
            for ending, store in (("_unrelaxed.cif", unrelaxed), ("_relaxed.cif", relaxed)):
                if key.removesuffix(ending) in wanted and key.endswith(ending):
                    store[key.removesuffix(ending)] = read_cif(archive.extractfile(member).read())
    return {folder: [(unrelaxed[k], relaxed[k]) for k, f in wanted.items() if f == folder] for folder in SUBSETS}


@pytest.mark.parametrize("folder", SUBSETS)
def test_predictions_are_nearer_to_dft_than_the_guess(pairs, folder):
    host, share = SUBSETS[folder]
    relaxer = DefiNetRelaxer(host=host, device="cpu")
    before, after, near_before, near_after = [], [], [], []
    assert len(pairs[folder]) == SAMPLE
    for unrelaxed, relaxed in pairs[folder]:
        result = relaxer.predict(unrelaxed)
        assert result.site_map.density > 0
        cell = unrelaxed.cell.array
        guessed = np.abs(minimum_image(unrelaxed.positions - relaxed.positions, cell))
        predicted = np.abs(minimum_image(result.atoms.positions - relaxed.positions, cell))
        before.append(guessed.mean())
        after.append(predicted.mean())
        near = near_sites(unrelaxed.positions, np.array([d.position for d in result.site_map.defects]), cell, 3.0)
        near_before.append(guessed[near].mean())
        near_after.append(predicted[near].mean())
    assert np.mean(after) < share * np.mean(before)
    assert np.mean(near_after) < share * np.mean(near_before)
