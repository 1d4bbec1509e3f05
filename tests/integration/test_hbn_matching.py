"""The relaxed defects of the h-BN database: atoms above the sheet are described, those on their sites as labelled."""

import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from ase_definet.errors import MatchError
from ase_definet.matching.extra_atoms import ExtraKind
from ase_definet.matching.library import get_host
from ase_definet.matching.site_map import match_sites

REPO = Path(__file__).resolve().parents[2]
ARCHIVE = REPO.parent / "shared" / "data" / "hbn.tar.xz"
ABOVE = 1.0
"""Å: what is further from the sheet is on no site of it."""
BONDED = 1.6
"""Å: two N atoms this near to one another share a site."""

pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"{ARCHIVE} is not here")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("hbn")
    with tarfile.open(ARCHIVE, "r:xz") as archive:
        archive.extractall(path, filter="data")
    return path / "hbn"


@pytest.fixture(scope="module")
def frames(folder):
    return [atoms for name in ("train", "val") for atoms in read(folder / f"{name}.extxyz", ":")]


@pytest.fixture(scope="module")
def hosts(folder):
    return {f"hBN-{name}": get_host(folder / f"host_{name}.vasp") for name in ("bulk", "monolayer")}


def labelled(atoms):
    """Return how often each defect occurs, as the database says: ``V_B*2 C_N*1``."""
    counts = (part.split("*") for part in atoms.info["defects"].split())
    return {name.replace("V_", "v_"): int(n) for name, n in counts}


def count_atoms(site_map):
    return int((site_map.atom_index >= 0).sum()) + len(site_map.extra)


def test_what_is_on_its_sites_is_named_as_labelled(frames, hosts):
    chosen = [atoms for atoms in frames if atoms.info["on_sites"]]
    assert len(chosen) == 981
    for atoms in chosen:
        site_map = match_sites(atoms, hosts[atoms.info["host"]])
        assert site_map.extra == ()
        assert site_map.defect_counts == labelled(atoms), atoms.info["id"]
        site_map.require_sites_only()


def test_what_is_on_no_site_is_described(frames, hosts):
    chosen = [atoms for atoms in frames if not atoms.info["on_sites"]]
    assert len(chosen) == 89
    kinds = Counter()
    for atoms in chosen:
        site_map = match_sites(atoms, hosts[atoms.info["host"]])
        named = atoms.info["id"]
        assert count_atoms(site_map) == len(atoms), named
        with pytest.raises(MatchError, match="no kind of site"):
            site_map.require_sites_only()
        # what the sheet itself says, whatever the matching does: the atom furthest from it is an adatom
        height = atoms.positions[:, 2] - np.median(atoms.positions[:, 2])
        height -= atoms.cell[2, 2] * np.round(height / atoms.cell[2, 2])
        far = int(np.abs(height).argmax())
        extra = {atom.atom_index: atom for atom in site_map.extra}
        kinds.update(atom.kind for atom in site_map.extra)
        if abs(height[far]) > ABOVE:
            atom = extra[far]
            assert (atom.kind, atom.name) == (ExtraKind.ADATOM, f"{atoms.symbols[far]}_ads"), named
            assert atom.height == pytest.approx(abs(height[far]), abs=0.1), named
            assert atom.side == ("above" if height[far] > 0 else "below"), named
        else:  # in one, two N share a site in the sheet
            (atom,) = extra.values()
            assert (atom.kind, atom.name) == (ExtraKind.SPLIT_INTERSTITIAL, "N_i"), named
            assert atoms.get_distance(atom.atom_index, atom.partner, mic=True) < BONDED
        # whatever lies far off the sheet and is on a site is said to be uncertain
        for k in np.flatnonzero(np.abs(height) > ABOVE).tolist():
            assert k in extra or site_map.ambiguous, named
    assert kinds[ExtraKind.ADATOM] >= len(chosen) - 1
    assert set(kinds) == {ExtraKind.ADATOM, ExtraKind.SPLIT_INTERSTITIAL}


def test_adatoms_are_too_few_for_a_marker_of_their_own(frames, hosts):
    """What docs/calculators.md says of them."""
    ground, compositions = [], set()
    for atoms in frames:
        if atoms.info["on_sites"] or atoms.info["excited"]:
            continue
        site_map = match_sites(atoms, hosts[atoms.info["host"]])
        impurity = [extra for extra in site_map.extra if extra.kind is ExtraKind.ADATOM]
        impurity = [extra for extra in impurity if extra.element not in {"B", "N"}]
        if impurity:
            name = atoms.info["id"].split("-q")[0]
            ground.append((name, impurity[0].element, impurity[0].height))
            compositions.add(name)
    assert (len(ground), len(compositions)) == (49, 28)
    each = Counter(element for _, element in {(name, element) for name, element, _ in ground})
    assert (len(each), max(each.values()), min(each.values())) == (11, 5, 1)
    errors = {"element": [], "any": []}
    for name, element, height in ground:
        others = [one for one in ground if one[0] != name]
        like = [h for _, e, h in others if e == element]
        if like:
            errors["element"].append(abs(height - np.mean(like)))
        errors["any"].append(abs(height - np.mean([h for *_, h in others])))
    assert np.mean(errors["element"]) == pytest.approx(0.44, abs=0.005)
    assert np.mean(errors["any"]) == pytest.approx(0.32, abs=0.005)
