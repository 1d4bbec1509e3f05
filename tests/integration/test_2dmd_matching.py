"""The densest structures of 2DMD: the defects found are those the file name implies."""

import io
import re
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.io import read

from ase_definet.matching.site_map import MIN_MARGIN, match_sites

REPO = Path(__file__).resolve().parents[2]
ARCHIVE = REPO.parent / "shared" / "data" / "2dmd.tar.xz"
PER_HOST = 10
MEMBER = re.compile(r"high_density_defects/[^/]+/CIF/(\w+?)_(\w+)_[0-9a-f-]{36}_unrelaxed\.cif$")
LOW_MEMBER = re.compile(r"low_density_defects/(MoS2|WSe2)/CIF_POSCAR/.*_unrelaxed\.cif$")
SITE_TOLERANCE = 2e-3  # Å, coordinates are written with few decimals
THICKNESS_TOLERANCE = 0.12  # Å, low-density WSe2 cells carry the layer thickness of MoS2

# host: composition of the pristine supercell, and which element each foreign one replaces
HOSTS = {
    "MoS2": ({"Mo": 64, "S": 128}, {"W": "Mo", "Se": "S"}),
    "WSe2": ({"W": 64, "Se": 128}, {"Mo": "W", "S": "Se"}),
    "BN": ({"B": 64, "N": 64}, {"C": None}),
    "GaSe": ({"Ga": 72, "Se": 72}, {"In": "Ga", "S": "Se"}),
    "InSe": ({"In": 72, "Se": 72}, {"Ga": "In", "S": "Se"}),
    "P": ({"P": 144}, {"N": "P"}),
}

pytestmark = pytest.mark.skipif(not ARCHIVE.is_file(), reason=f"{ARCHIVE} is not here")


def composition(formula):
    return {element: int(count) for element, count in re.findall(r"([A-Z][a-z]?)(\d+)", formula)}


@pytest.fixture(scope="module")
def members():
    """The first densest structures of each host and a few of low density, as text, in one pass of the archive."""
    dense = {"MoS2": "Mo56W4Se8S112", "WSe2": "Mo4W56Se112S8", "BN": "B56C8N56", "P": "P126N9"}
    found = {}
    with tarfile.open(ARCHIVE, "r|xz") as archive:
        for member in archive:
            match = MEMBER.search(member.name)
            low = LOW_MEMBER.search(member.name)
            if match:
                host, formula = match.groups()
                atoms, pristine = (sum(c.values()) for c in (composition(formula), HOSTS[host][0]))
                if dense.get(host, formula) != formula or (host not in dense and atoms > 0.95 * pristine):
                    continue
                key = (host, "high")
            elif low:
                key, formula = (low[1], "low"), None
            else:
                continue
            if len(found.setdefault(key, [])) < PER_HOST:
                found[key].append((formula, archive.extractfile(member).read()))
    return found


def structure(content):
    return read(io.StringIO(content.decode()), format="cif")


def implied(host, formula):
    """Return the numbers of substitutions by element pair and of vacancies by element that a formula implies."""
    full, replaces = HOSTS[host]
    there = composition(formula)
    counts = Counter()
    missing = Counter(full)
    for element, n in there.items():
        if element in full:
            missing[element] -= n
        else:
            counts[f"{element}_{replaces[element]}"] += n
            missing[replaces[element]] -= n
    counts.update({f"v_{element}": n for element, n in missing.items()})
    return {name: n for name, n in counts.items() if n}


@pytest.mark.parametrize("host", [name for name in HOSTS if name != "BN"])
def test_densest_structures(members, host):
    chosen = members[host, "high"]
    assert len(chosen) == PER_HOST
    for formula, content in chosen:
        atoms = structure(content)
        site_map = match_sites(atoms, host)
        assert site_map.defect_counts == implied(host, formula)
        assert len(site_map.kinds) == sum(HOSTS[host][0].values())
        assert np.linalg.norm(site_map.offsets, axis=1).max() < SITE_TOLERANCE
        assert site_map.margin >= MIN_MARGIN
        assert site_map.warnings == ()


def test_densest_structures_of_bn(members):
    """Carbon sits on either sublattice, so a formula implies sums only."""
    chosen = members["BN", "high"]
    assert len(chosen) == PER_HOST
    for formula, content in chosen:
        site_map = match_sites(structure(content), "BN")
        there, counts = composition(formula), site_map.defect_counts
        assert set(counts) <= {"C_B", "C_N", "v_B", "v_N"}
        assert counts.get("C_B", 0) + counts.get("C_N", 0) == there["C"]
        for element in "BN":
            assert counts.get(f"C_{element}", 0) + counts.get(f"v_{element}", 0) == 64 - there[element]
        assert np.linalg.norm(site_map.offsets, axis=1).max() < SITE_TOLERANCE
        assert not site_map.ambiguous


@pytest.mark.parametrize("host", ["MoS2", "WSe2"])
def test_low_density_structures(members, host):
    """One to three defects in a cell of another height."""
    chosen = members[host, "low"]
    assert len(chosen) == PER_HOST
    for _, content in chosen:
        atoms = structure(content)
        site_map = match_sites(atoms, host)
        full, replaces = HOSTS[host]
        assert set(site_map.defect_counts) <= {*(f"v_{e}" for e in full), *(f"{e}_{r}" for e, r in replaces.items())}
        assert 1 <= len(site_map.defects) <= 3
        assert len(site_map.kinds) == 192
        assert np.linalg.norm(site_map.offsets, axis=1).max() < THICKNESS_TOLERANCE
        assert not site_map.ambiguous
