"""The search for minima of one defect: its starts, what counts as one minimum, how it resumes."""

from __future__ import annotations

import builtins
import csv
import json
import sys

import numpy as np
import pytest
from ase import Atom, Atoms
from ase.build import bulk
from ase.calculators.calculator import Calculator
from ase.geometry import get_distances
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import VariantsError
from ase_definet.matching.library import get_host
from ase_definet.matching.site_map import match_sites
from ase_definet.relaxation.calculators import CALCULATORS
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.variants import starts as starts_module
from ase_definet.variants.distinct import HostSymmetry, changed_pair
from ase_definet.variants.search import ranked, search
from ase_definet.variants.starts import neighbours_to_distort, rattled, starts
from tests.conftest import mos2_with_defects

A = 6.62


def telluride() -> Atoms:
    return bulk("CdTe", "zincblende", a=A, cubic=True) * (2, 2, 2)


def v_cd() -> Atoms:
    atoms = telluride()
    del atoms[0]
    return atoms


def shell(atoms: Atoms, point: np.ndarray, element: str, n: int) -> np.ndarray:
    of = np.flatnonzero(atoms.symbols == element)
    return of[np.argsort(get_distances(point[None], atoms.positions[of], cell=atoms.cell, pbc=True)[1][0])[:n]]


def with_dimer(first: int, second: int, length: float = 2.8) -> Atoms:
    """Return v_Cd with two of its four Te close to one another."""
    atoms = v_cd()
    around = shell(atoms, np.zeros(3), "Te", 4)
    a, b = around[first], around[second]
    vector = atoms.get_distance(a, b, mic=True, vector=True)
    step = (1 - length / np.linalg.norm(vector)) / 2 * vector
    atoms.positions[a] += step
    atoms.positions[b] -= step
    return atoms


class Springs(Calculator):
    """Springs to the sites of CdTe, and two wells for any two Te around the vacancy: apart, and as a dimer."""

    implemented_properties = ("energy", "forces")

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        ideal = v_cd().positions
        away = atoms.positions - ideal
        away -= atoms.cell.cartesian_positions(np.round(atoms.cell.scaled_positions(away)))
        energy, forces = 0.5 * (away**2).sum(), -away
        around = shell(v_cd(), np.zeros(3), "Te", 4)
        for k, i in enumerate(around):
            for j in around[k + 1 :]:
                vector = atoms.get_distance(i, j, mic=True, vector=True)
                length = np.linalg.norm(vector)
                bond = 2.6 * np.exp(-((length - 2.75) ** 2) / 0.5)
                energy -= bond
                pull = bond * 2 * (length - 2.75) / 0.5 * vector / length
                forces[i] += pull
                forces[j] -= pull
        self.results = {"energy": energy, "forces": forces}


def telluride_relaxer(calculator=None, **options) -> DefiNetRelaxer:
    return DefiNetRelaxer(host="CdTe", device="cpu", calculator=calculator or Springs(), fmax=0.01, **options)


# starts


def test_starts_are_the_same_every_time_and_more_begin_with_the_same():
    pytest.importorskip("shakenbreak")
    site_map, few = starts(v_cd(), telluride_relaxer(), 5)
    _, more = starts(v_cd(), telluride_relaxer(), 9)
    assert site_map.defect_counts == {"v_Cd": 1}
    assert [one.name for one in few] == [one.name for one in more][:5]
    assert few[0].name == "undistorted"
    assert len({one.name for one in more}) == 9
    for one, other in zip(few, more, strict=False):
        np.testing.assert_array_equal(one.atoms.positions, other.atoms.positions)
    dimer = next(one for one in few if one.name == "dimer-v_Cd").atoms
    around = shell(dimer, np.zeros(3), "Te", 4)
    between = get_distances(dimer.positions[around], cell=dimer.cell, pbc=True)[1]
    assert between[np.triu_indices(4, 1)].min() == pytest.approx(2.76, abs=0.1)


def test_known_hosts_also_start_from_the_network():
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu", calculator="lj")
    _, found = starts(mos2_with_defects(4), relaxer, 8, distortions=False)
    names = [one.name for one in found]
    assert names[:2] == ["undistorted", "network"]
    assert any(name.startswith("network-noisy") for name in names)
    assert any(name.startswith("rattle") for name in names)
    plain = DefiNetRelaxer(host="MoS2", device="cpu").predict(mos2_with_defects(4))
    np.testing.assert_array_equal(found[1].atoms.positions, plain.atoms.positions)
    assert relaxer.initial_positions == "ideal"


def test_spin_states_are_those_of_the_right_parity(monkeypatch):
    relaxer = telluride_relaxer()
    entry = CALCULATORS["gpaw"]
    monkeypatch.setattr(starts_module, "CALCULATORS", {"Springs": entry})
    relaxer.calculator.name = "Springs"
    _, found = starts(v_cd(), relaxer, 12, distortions=False)
    spins = [one for one in found if one.spin_multiplicity]
    assert [one.spin_multiplicity for one in spins] == [1, 3, 5]  # an even number of electrons
    moments = [one.atoms.get_initial_magnetic_moments().sum() for one in spins]
    assert moments == pytest.approx([0, 2, 4])
    charged = v_cd()
    charged.info["charge"] = -1
    _, found = starts(charged, relaxer, 12, distortions=False)
    assert [one.spin_multiplicity for one in found if one.spin_multiplicity] == [2, 4, 6]


@pytest.mark.parametrize(
    ("element", "to", "charge", "n"),
    [("Cd", None, 0, 2), ("Cd", None, -2, 1), ("Te", None, 0, 2), ("Te", "Cd", 0, 4), ("Cd", "In", 0, 1)],
)
def test_as_many_neighbours_as_electrons_are_distorted(element, to, charge, n):
    atoms = telluride()
    index = np.flatnonzero(atoms.symbols == element)[0]
    if to is None:
        del atoms[index]
    else:
        atoms.symbols[index] = to
    site_map = match_sites(atoms, "CdTe")
    assert neighbours_to_distort(site_map, site_map.defects[0], charge) == n


def test_rattles_put_no_atom_on_another():
    atoms = v_cd()
    for seed in range(5):
        moved = rattled(atoms, np.arange(63), 0.8, seed)
        distances = moved.get_all_distances(mic=True) + 9 * np.eye(63)
        assert distances.min() > 0.7 * A * 3**0.5 / 4


# what is distinct


def test_equivalent_dimers_are_one_minimum_and_other_structures_are_not():
    symmetry = HostSymmetry.of(match_sites(v_cd(), "CdTe"))
    assert len(symmetry.rotations) == 24  # Td, of a vacancy in zinc blende
    dimers = [with_dimer(i, j) for i in range(4) for j in range(i)]
    for one in dimers[1:]:
        assert symmetry.distance(one, dimers[0]) < 1e-6
        drifted = one.copy()
        drifted.positions += [0.3, -0.2, 0.1]
        assert symmetry.distance(drifted, dimers[0]) < 1e-6
    assert symmetry.distance(dimers[0], v_cd()) > 0.5
    assert symmetry.distance(with_dimer(0, 1, 3.6), dimers[0]) > 0.25


def test_atoms_of_one_element_may_have_changed_places():
    symmetry = HostSymmetry.of(match_sites(v_cd(), "CdTe"))
    swapped = with_dimer(0, 1)
    first, second = np.flatnonzero(swapped.symbols == "Cd")[[3, 9]]
    swapped.positions[[first, second]] = swapped.positions[[second, first]]
    assert symmetry.distance(swapped, with_dimer(0, 1)) < 1e-6


def test_the_symmetry_of_a_layer_does_not_turn_it_into_its_normal():
    atoms = mos2_with_defects(4)
    site_map = match_sites(atoms, "MoS2")
    symmetry = HostSymmetry.of(site_map)
    for rotation in symmetry.rotations:
        assert not rotation[2, :2].any()
        assert not rotation[:2, 2].any()


def test_what_changed_is_named():
    assert changed_pair(v_cd(), with_dimer(0, 1), np.zeros((1, 3))) == "Te-Te 2.80 Å (was 4.68)"


# the search


def test_the_dimer_is_found_beside_the_symmetric_minimum(tmp_path):
    pytest.importorskip("shakenbreak")
    found = search(v_cd(), telluride_relaxer(), tmp_path / "out", 8)
    bonds = sorted(variant.changed for variant in found.variants)
    assert any(text.startswith("Te-Te 2.") for text in bonds)
    symmetric = next(variant for variant in found.variants if "undistorted" in variant.found_by)
    assert symmetric.symmetry == "-43m"
    assert [v.above for v in found.variants] == sorted(v.above for v in found.variants)
    assert sum(len(v.found_by) for v in found.variants) + len(found.failed) == 8
    frames = read(tmp_path / "out/variants.extxyz", ":")
    assert [frame.info["rank"] for frame in frames] == list(range(1, len(found.variants) + 1))
    with (tmp_path / "out/table.csv").open(newline="", encoding="utf-8") as stream:
        assert [row["name"] for row in csv.DictReader(stream)] == [v.name for v in found.variants]


def test_a_search_resumes_and_grows(tmp_path, monkeypatch):
    first = search(v_cd(), telluride_relaxer(), tmp_path / "out", 3, distortions=False)
    files = {path: path.read_bytes() for path in (tmp_path / "out/starts").iterdir()}
    assert len(files) == 3
    calls = []
    real = Springs.calculate
    monkeypatch.setattr(Springs, "calculate", lambda self, *a, **k: (calls.append(1), real(self, *a, **k))[1])
    again = search(v_cd(), telluride_relaxer(), tmp_path / "out", 3, distortions=False)
    assert not calls
    assert again.resumed == 3
    assert [v.end.energy for v in again.variants] == pytest.approx([v.end.energy for v in first.variants])
    (tmp_path / "out/starts/01-rattle-0.15-1.extxyz").unlink()
    search(v_cd(), telluride_relaxer(), tmp_path / "out", 4, distortions=False)
    assert calls
    for path, content in files.items():  # one was relaxed once more, in its own time
        assert path.read_bytes() == content or path.name.startswith("01-")
    assert len(list((tmp_path / "out/starts").iterdir())) == 4
    _, given = starts(v_cd(), telluride_relaxer(), 4, distortions=False)
    for k, start in enumerate(given):
        written = read(tmp_path / f"out/unrelaxed/{k:02d}-{start.name}.extxyz")
        np.testing.assert_allclose(written.positions, start.atoms.positions, atol=1e-7)
    with pytest.raises(VariantsError, match=r"holds another search \(other seed"):
        search(v_cd(), telluride_relaxer(), tmp_path / "out", 4, seed=1, distortions=False)
    (tmp_path / "out/starts/00-undistorted.extxyz").write_text("nonsense")
    with pytest.raises(VariantsError, match="damaged"):
        search(v_cd(), telluride_relaxer(), tmp_path / "out", 4, distortions=False)


def test_a_folder_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    with pytest.raises(VariantsError, match="is not empty and holds no search"):
        search(v_cd(), telluride_relaxer(), tmp_path / "out", 2, distortions=False)
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."] == ["notes.txt"]


def test_a_start_whose_calculator_fails_costs_no_other(tmp_path):
    class Failing(Springs):
        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            if np.abs(atoms.positions - v_cd().positions).max() > 0.45:
                raise RuntimeError("SCF did not converge")

    found = search(v_cd(), telluride_relaxer(Failing()), tmp_path / "out", 3, distortions=False)
    assert found.variants
    assert [end.name for end in found.failed] == ["rattle-0.30-2"]
    assert "SCF did not converge" in found.failed[0].calculation.error


def test_there_must_be_a_defect_and_a_calculator(tmp_path):
    with pytest.raises(VariantsError, match="pristine host"):
        search(telluride(), telluride_relaxer(), tmp_path / "a", 2, distortions=False)
    with pytest.raises(VariantsError, match="variants are minima of a calculator"):
        search(v_cd(), DefiNetRelaxer(host="CdTe", device="cpu"), tmp_path / "b", 2, distortions=False)


def test_an_interstitial_has_variants_too(tmp_path):
    copper = bulk("Cu", "fcc", a=3.59)
    atoms = bulk("Cu", "fcc", a=3.59, cubic=True) * (3, 3, 3)
    atoms.append(Atom("Cu", np.full(3, 3.59 / 2)))
    relaxer = DefiNetRelaxer(host=copper, device="cpu", calculator="emt", fmax=0.05)
    found = search(atoms, relaxer, tmp_path / "out", 4, distortions=False)
    assert found.site_map.extra
    assert found.variants
    assert found.variants[0].above == 0
    assert ranked([], found.site_map, found.undistorted) == ((), ())


# the command


def invoke(*line: object):
    return CliRunner().invoke(cli, [str(part) for part in line])


def test_the_command_writes_a_table_pictures_and_input_sets_and_overwrites_nothing(tmp_path):
    pytest.importorskip("matplotlib")
    atoms = bulk("Cu", "fcc", a=3.59, cubic=True) * (3, 3, 3)
    del atoms[13]
    write(tmp_path / "v.vasp", atoms)
    write(tmp_path / "host.vasp", bulk("Cu", "fcc", a=3.59))
    line = ("variants", tmp_path / "v.vasp", "--host", tmp_path / "host.vasp", "--calculator", "emt", "-n", 3)
    line += ("--without-distortions", "--dft", "vasp", "--device", "cpu")
    done = invoke(*line, "--json", tmp_path / "t.json")
    assert done.exit_code == 0, done.output
    assert "rank  above (eV)  found" in done.output
    (row,) = json.loads((tmp_path / "t.json").read_text())
    assert row["found"] == 3
    out = tmp_path / "v_variants"
    assert (out / "pictures/undistorted.png").stat().st_size > 1000
    readme = out / "inputs/undistorted/README.txt"
    assert readme.read_text().startswith("Geometry relaxed with the calculator named below")
    assert "above: 0.000 eV above the lowest minimum found" in readme.read_text()
    readme.write_text("mine")
    assert "what changed" in done.output
    assert "method    emt, largest force 0.03 eV/Å, at most 300 steps" in done.output
    other = invoke(*line, "--seed", 1)
    assert (other.exit_code, "holds another search (other seed)" in other.output) == (2, True)
    again = invoke(*line)
    assert again.exit_code == 0, again.output
    assert "resumed   3 starts" in again.output
    assert "kept" in again.output
    assert readme.read_text() == "mine"


def test_bond_distortions_need_shakenbreak_before_anything_is_written(tmp_path, monkeypatch):
    write(tmp_path / "v.vasp", v_cd(), sort=True)
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.startswith("shakenbreak"):
            raise ModuleNotFoundError(f"No module named {name!r}", name="shakenbreak")
        return real(name, *args, **kwargs)

    for name in [name for name in sys.modules if name.startswith("shakenbreak")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    done = invoke("variants", tmp_path / "v.vasp", "--host", "CdTe", "--calculator", "lj")
    assert done.exit_code == 2
    assert "bond distortions need shakenbreak: pip install 'ase-definet[variants]'" in done.output
    assert [path.name for path in tmp_path.iterdir()] == ["v.vasp"]


def test_hosts_of_the_page_are_in_the_library():
    for name, bond in (("MgO", 2.125), ("CdTe", 2.867), ("GaN", 1.969)):
        assert get_host(name).nearest_neighbor == pytest.approx(bond, abs=1e-3)
