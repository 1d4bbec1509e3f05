"""Calculators by name, and the stage of the relaxer that uses them where the network knows nothing."""

from __future__ import annotations

import csv
import json
import re
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atom, Atoms
from ase.build import bulk, mx2
from ase.calculators.calculator import Calculator
from ase.calculators.emt import EMT
from ase.constraints import FixAtoms
from ase.geometry import get_distances
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import CalculatorError, DefiNetWarning, MatchError, StrictError
from ase_definet.matching.library import library
from ase_definet.matching.site_map import match_sites
from ase_definet.relaxation import calculators as table
from ase_definet.relaxation.calculation import break_symmetry, is_symmetric, unbound_atoms
from ase_definet.relaxation.calculators import CALCULATORS, Entry, check_elements, get_calculator, parse_values
from ase_definet.relaxation.inputs import given_beside_extra_atoms
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure
from ase_definet.relaxation.stepping import LARGEST_MOVE, relax_with
from tests.conftest import mos2_with_defects

COPPER = bulk("Cu", "fcc", a=3.61)
EMT_COPPER = 3.59


def copper(n: int = 3) -> Atoms:
    return bulk("Cu", "fcc", a=EMT_COPPER, cubic=True) * (n, n, n)


def with_vacancy() -> Atoms:
    atoms = copper()
    del atoms[13]
    return atoms


def with_interstitial() -> Atoms:
    atoms = copper()
    atoms.append(Atom("Cu", atoms.positions[0] + np.full(3, EMT_COPPER / 2)))
    return atoms


def with_dumbbell() -> Atoms:
    atoms = copper()
    atoms.append(Atom("Cu", atoms.positions[40] - np.array([0, 0, 0.95])))
    atoms.positions[40, 2] += 0.95
    return atoms


def with_adatom() -> Atoms:
    atoms = mx2("MoS2", a=3.19, size=(4, 4, 1), vacuum=10)
    atoms.append(Atom("Li", (*atoms.positions[0, :2], atoms.positions[:, 2].max() + 1.6)))
    return atoms


def distances(atoms: Atoms, point: np.ndarray) -> np.ndarray:
    """Distances of all atoms from a point, the nearest images."""
    return get_distances(point[None], atoms.positions, cell=atoms.cell, pbc=True)[1][0]


def relaxer(calculator=None, **options) -> DefiNetRelaxer:
    return DefiNetRelaxer(host=COPPER, device="cpu", calculator=calculator, **options)


# the table


@pytest.mark.parametrize("name", CALCULATORS)
def test_every_calculator_is_made_or_says_what_it_needs(name):
    lacking = table.lacking_of(name)
    if not lacking:
        assert callable(get_calculator(name).get_forces)
        return
    with pytest.raises(CalculatorError, match=f"the calculator {name} needs ") as caught:
        get_calculator(name)
    assert CALCULATORS[name].install in str(caught.value)
    assert "\n" not in str(caught.value)


def test_extras_of_the_table_are_those_of_the_package():
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    extras = set(project["optional-dependencies"])
    for entry in CALCULATORS.values():
        if "ase-definet[" in entry.install:
            assert entry.install.split("[")[1].split("]")[0] in extras


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("vasp6", {}, "unknown calculator 'vasp6': expected emt, lj, .* package.module:callable"),
        ("emt", {"cutoff": 3}, "emt has no setting cutoff; it has asap_cutoff"),
        ("lj", {"mass": 3}, "lj has no setting mass"),
        ("no_such_package:Thing", {}, "no_such_package cannot be imported"),
        ("ase.calculators.emt:Nothing", {}, "has nothing to call that is named 'Nothing'"),
        ("ase.calculators.lj:LennardJones.fail", {}, "nothing to call"),
        ("fractions:Fraction", {"mass": 3}, "cannot be made from {'mass': 3}"),
        ("builtins:dict", {}, "returned dict, expected an ASE calculator"),
    ],
)
def test_what_cannot_be_made_says_why(name, settings, reason):
    with pytest.raises(CalculatorError, match=reason):
        get_calculator(name, **settings)


def test_any_other_calculator_is_a_callable():
    made = get_calculator("ase.calculators.lj:LennardJones", sigma=2.3, rc=6.0)
    assert made.parameters["sigma"] == 2.3


def test_a_potential_that_downloads_says_so_first_and_what_to_do_without_network(monkeypatch, tmp_path):
    def fetch(**_):
        raise OSError("Name or service not known")

    entry = Entry(fetch, "ase", "pip install x", "x", "downloaded", lambda _: ("weights", tmp_path), "copy x to y")
    monkeypatch.setattr(table, "CALCULATORS", {**CALCULATORS, "far": entry})
    said = pytest.warns(DefiNetWarning, match=r"far downloads weights, and keeps it in .*: copy x to y")
    reason = r"could not be downloaded .*not known.*without network: copy x to y"
    with said, pytest.raises(CalculatorError, match=reason):
        get_calculator("far")


@pytest.mark.parametrize(
    ("message", "brief"),
    [
        (
            "HTTPSConnectionPool(host='files.org', port=443): Max retries exceeded with url: /a (Caused by ...)",
            "(no connection to files.org)",
        ),
        (
            "HTTPConnectionPool(host='10.0.0.1', port=80): Read timed out. (read timeout=5)",
            "(no connection to 10.0.0.1)",
        ),
        ("word " * 60, r"\((word )+\.\.\.\)"),
        ("403 Forbidden", "(403 Forbidden)"),
    ],
)
def test_why_a_download_failed_is_said_in_a_few_words(message, brief, monkeypatch, tmp_path):
    def fetch(**_):
        raise OSError(message)

    entry = Entry(fetch, "ase", "pip install x", "x", "downloaded", lambda _: ("weights", tmp_path), "copy x to y")
    monkeypatch.setattr(table, "CALCULATORS", {**CALCULATORS, "far": entry})
    said = pytest.warns(DefiNetWarning)
    with said, pytest.raises(CalculatorError, match=brief if "word" in message else re.escape(brief)) as caught:
        get_calculator("far")
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("name", ["mattersim", "mace", "orb", "uma", "sevennet"])
def test_weights_that_are_here_are_not_downloaded(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    model = tmp_path / "model.pth"
    model.touch()
    key = {"mattersim": "load_path", "orb": "weights_path"}.get(name, "model")
    assert CALCULATORS[name].downloads({key: str(model)}) is None
    far = CALCULATORS[name].downloads({"model": "7net-omni"} if name == "sevennet" else {})
    assert far is not None
    what, kept = far
    assert what
    kept.mkdir(parents=True)
    (kept / "mattersim-v1.0.0-1M.pth").touch()
    assert CALCULATORS[name].downloads({}) is None


def test_elements_that_a_calculator_does_not_know():
    with pytest.raises(CalculatorError, match=r"emt does not know S, Mo \(it has H, C, .*: choose another one"):
        check_elements(EMT(), [42, 16, 29])
    check_elements(EMT(), [29])
    check_elements(get_calculator("lj"), [42])


@pytest.mark.parametrize("text", ["asap_cutoff", "=3", "a b=3"])
def test_settings_are_assignments(text):
    with pytest.raises(CalculatorError, match="expected KEY=VALUE"):
        parse_values([text])


# the stage


def test_what_is_outside_is_relaxed_and_says_how():
    given = with_vacancy()
    plain = relaxer().predict(given)
    assert (plain.method, plain.trust, plain.calculation) == ("none", "outside", None)
    found = relaxer("emt").predict(given)
    assert (found.method, found.trust) == ("calculator", "outside")
    done = found.calculation
    assert done.converged
    assert done.fmax < done.fmax_limit == 0.05
    assert done.start == "the host's ideal sites"
    assert done.displaced > 0
    atoms = found.atoms.copy()
    atoms.calc = EMT()
    assert atoms.get_potential_energy() == pytest.approx(done.energy)
    assert np.linalg.norm(atoms.get_forces(), axis=1).max() == pytest.approx(done.fmax)
    assert not any("left on them" in text for text in found.warnings)
    hole = copper().positions[13]
    shell = np.argsort(distances(given, hole))[:12]
    assert (
        distances(found.atoms, hole)[shell] < EMT_COPPER / 2**0.5
    ).all()  # around a vacancy of copper, neighbours move inwards


def test_what_the_network_knows_is_left_to_it_unless_refined():
    atoms = mos2_with_defects(4)
    plain = DefiNetRelaxer(host="MoS2", device="cpu").predict(atoms)

    class Forbidden(EMT):
        def calculate(self, *_args, **_kwargs):
            raise AssertionError

    found = DefiNetRelaxer(host="MoS2", device="cpu", calculator=Forbidden()).predict(atoms)
    assert found.method == "network"
    assert found.calculation is None
    np.testing.assert_array_equal(found.atoms.positions, plain.atoms.positions)


@pytest.mark.parametrize("make", [with_interstitial, with_dumbbell])
def test_atoms_on_no_site_need_a_calculator(make):
    given = make()
    with pytest.raises(MatchError, match="relax it with a calculator"):
        relaxer().predict(given)
    found = relaxer("emt").predict(given)
    assert "extra" in found.outside
    assert found.calculation.converged
    assert len(found.atoms) == len(given)
    assert found.atom_trust.shape == (len(given),)
    assert found.atom_trust[-1] == 2
    start = given.copy()
    start.calc = EMT()
    assert found.calculation.energy < start.get_potential_energy()


def test_the_other_half_of_a_dumbbell_stays_where_it_is_given():
    given = with_dumbbell()
    site_map = match_sites(given, COPPER)
    (extra,) = site_map.extra
    assert given_beside_extra_atoms(site_map).tolist() == list(extra.sites)
    start = relaxer("emt", max_steps=1, symmetry_breaking=0).predict(given)
    apart = np.linalg.norm(start.atoms.positions[40] - start.atoms.positions[-1])
    assert apart == pytest.approx(1.9, abs=1e-6)
    control = start.unrelaxed
    assert np.linalg.norm(control.positions[40] - control.positions[-1]) == pytest.approx(1.9, abs=1e-6)


def test_a_symmetric_start_is_displaced_the_same_way_every_time():
    given = with_vacancy()
    site_map = match_sites(given, COPPER)
    assert is_symmetric(given)
    one, size = break_symmetry(given, site_map, 0.02, 0)
    other, _ = break_symmetry(given, site_map, 0.02, 0)
    third, _ = break_symmetry(given, site_map, 0.02, 1)
    np.testing.assert_array_equal(one.positions, other.positions)
    assert np.abs(one.positions - third.positions).max() > 1e-3
    moved = np.linalg.norm(one.positions - given.positions, axis=1)
    assert moved.max() == pytest.approx(size)
    assert 0 < size < 0.08
    hole = copper().positions[13]
    assert not moved[distances(given, hole) > 4.1].any()
    assert not is_symmetric(one)
    assert break_symmetry(one, site_map, 0.02, 0)[1] == 0
    assert break_symmetry(given, site_map, 0, 0)[1] == 0
    held = given.copy()
    held.set_constraint(FixAtoms(range(20)))
    kept, _ = break_symmetry(held, site_map, 0.02, 0)
    np.testing.assert_array_equal(kept.positions[:20], held.positions[:20])


def test_a_symmetric_saddle_point_is_left():
    """Two wells beside the site of an atom: without the displacement it would stay between them."""

    atoms = copper()[:-1]
    (beside,) = np.argsort(distances(atoms, copper().positions[-1]))[:1]

    class Wells(Calculator):
        implemented_properties = ("energy", "forces")

        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            away = atoms.positions - copper().positions[:-1]
            energy, forces = 0.5 * (away**2).sum(), -away.copy()
            x = away[beside, 2]
            energy += -2 * x**2 + 4 * x**4
            forces[beside, 2] += 4 * x - 16 * x**3
            self.results = {"energy": energy, "forces": forces}

    still = relaxer(Wells(), symmetry_breaking=0, fmax=1e-3).predict(atoms)
    assert still.calculation.steps == 1
    found = relaxer(Wells(), fmax=1e-3).predict(atoms)
    assert found.calculation.energy < still.calculation.energy - 0.1


def test_a_structure_that_explodes_keeps_its_best_geometry():
    class Exploding(EMT):
        calls = 0

        def calculate(self, *args, **kwargs):
            super().calculate(*args, **kwargs)
            self.calls += 1
            if self.calls == 5:
                self.results["forces"] = np.full_like(self.results["forces"], 1e5)

    found = relaxer(Exploding(), fmax=1e-4).predict(with_vacancy())
    assert "a force of 1.73e+05 eV/Å" in found.calculation.error
    assert found.method == "calculator"
    assert found.calculation.steps == 4
    assert "its best geometry (step 4" in found.warnings[-1]


def test_a_structure_that_flies_apart_is_stopped():
    class Repelled(Calculator):
        implemented_properties = ("energy", "forces")

        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            away = atoms.positions - copper().get_center_of_mass()
            self.results = {"energy": -0.5 * float((away**2).sum()), "forces": away}

    given = with_vacancy()
    run = relax_with(given, Repelled(), max_steps=300)
    assert "the structure falls apart" in run.error
    assert not run.converged
    assert np.linalg.norm(run.atoms.positions - given.positions, axis=1).max() <= LARGEST_MOVE
    assert run.energies[run.best] == run.energies.min()


@pytest.mark.parametrize("name", sorted(library()))
def test_no_atom_of_a_host_is_bonded_to_nothing(name):
    host = library()[name]
    atoms = Atoms(host.numbers, host.positions, cell=host.cell, pbc=host.periodic)
    assert unbound_atoms(atoms) == ()
    assert unbound_atoms(Atoms("ArAr", [[0, 0, 0], [0, 0, 8]], cell=[20, 20, 0], pbc=True)) == (0, 1)


@pytest.mark.parametrize("element", ["C", "Li", "Mo"])
@pytest.mark.parametrize(("height", "bound"), [(1.6, True), (6.0, False), (8.0, False)])
def test_an_atom_that_nothing_holds_is_no_minimum(element, height, bound):
    atoms = with_adatom()
    atoms.symbols[-1] = element
    atoms.positions[-1, 2] += height - 1.6

    class Still(Calculator):
        implemented_properties = ("energy", "forces")

        def calculate(self, atoms=None, properties=("energy",), system_changes=()):
            super().calculate(atoms, properties, system_changes)
            self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}

    options = {"host": "MoS2", "device": "cpu", "calculator": Still(), "symmetry_breaking": 0}
    found = DefiNetRelaxer(**options).predict(atoms)
    last = len(atoms) - 1
    said = [text for text in found.warnings if text.startswith(f"atoms bonded to nothing: {last} ({element});")]
    assert (found.calculation.converged, bool(said)) == (bound, not bound)
    assert found.calculation.unbound == (() if bound else (last,))
    assert ("no minimum: 1 atoms bonded to nothing" in str(found.calculation)) != bound
    if not bound:
        with pytest.raises(StrictError):
            DefiNetRelaxer(**options, strict=True).predict(atoms)


def test_chgnet_leaves_it_to_others_to_name_isolated_atoms(capfd):
    pytest.importorskip("chgnet")
    calculator = get_calculator("chgnet")
    atoms = with_adatom()
    atoms.positions[-1, 2] += 6
    atoms.calc = calculator
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # CHGNet's, about tensors
        atoms.get_potential_energy()
    assert "isolated" not in "".join(capfd.readouterr())


def test_a_calculator_that_fails_costs_its_own_structure_only():
    strange = with_vacancy()
    strange.symbols[5] = "W"
    (one, bad, two) = relaxer("emt").relax_many([with_vacancy(), strange, with_vacancy()])
    assert isinstance(bad, RelaxFailure)
    assert "emt does not know W" in str(bad.error)
    np.testing.assert_array_equal(one.atoms.positions, two.atoms.positions)


def test_too_few_steps_are_said_and_strict_minds():
    found = relaxer("emt", max_steps=2).predict(with_vacancy())
    assert not found.calculation.converged
    assert any("emt did not reach 0.05 eV/Å in 2 steps" in text for text in found.warnings)
    with pytest.raises(StrictError, match="did not reach"):
        relaxer("emt", max_steps=2, strict=True).predict(with_vacancy())
    assert relaxer("emt", strict=True).predict(with_vacancy()).method == "calculator"
    with pytest.raises(StrictError):
        relaxer(strict=True).predict(with_vacancy())


def test_a_charge_that_a_potential_does_not_know_is_said():
    atoms = with_vacancy()
    atoms.info["charge"] = -1
    found = relaxer("emt").predict(atoms)
    assert any("emt knows nothing of charge -1" in text for text in found.warnings)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"refine": True}, "refine without a calculator"),
        ({"calculator_settings": {"a": 1}}, "calculator_settings without a calculator"),
        ({"calculator": "emt", "fmax": 0}, "fmax must be positive"),
        ({"calculator": "emt", "max_steps": 0}, "max_steps must be at least 1"),
        ({"calculator": "emt", "symmetry_breaking": 3}, "symmetry_breaking must lie between"),
        ({"calculator": EMT(), "calculator_settings": {"a": 1}}, "settings are for a calculator given by name"),
    ],
)
def test_options_that_make_no_sense(options, reason):
    with pytest.raises(CalculatorError, match=reason):
        DefiNetRelaxer(host=COPPER, device="cpu", **options)


def test_crystals_that_are_in_the_library_for_calculators_count_as_no_trained_hosts():
    """Predictions for them are relative to the pristine host, as for a host from a file."""
    atoms = bulk("MgO", "rocksalt", a=4.25, cubic=True) * (2, 2, 2)
    del atoms[1]
    named, given = (
        DefiNetRelaxer(host=host, device="cpu", extrapolate=True).predict(atoms)
        for host in ("MgO", bulk("MgO", "rocksalt", a=4.25))
    )
    assert named.trust == given.trust == "outside"
    np.testing.assert_allclose(named.displacement, given.displacement, atol=1e-6)


# the commands


def invoke(*line: object) -> object:
    return CliRunner().invoke(cli, [str(part) for part in line])


def test_relax_with_a_calculator_writes_method_and_steps_everywhere(tmp_path):
    write(tmp_path / "v.vasp", with_vacancy())
    write(tmp_path / "host.vasp", COPPER)
    done = invoke(
        *("relax", tmp_path / "v.vasp", "--host", tmp_path / "host.vasp", "--calculator", "emt", "--fmax", 0.02),
        *(
            "--set",
            "asap_cutoff=true",
            "--report",
            tmp_path / "r.json",
            "--vasp",
            tmp_path / "run",
            "--device",
            "cpu",
        ),
    )
    assert done.exit_code == 0, done.output
    assert "trust     outside of the training data (species, host); emt relaxed it" in done.output
    assert "method    calculator: emt, " in done.output
    (record,) = json.loads((tmp_path / "r.json").read_text())
    assert record["method"] == "calculator"
    assert record["calculation"]["converged"] is True
    assert record["calculation"]["fmax"] < 0.02
    readme = (tmp_path / "run/README.txt").read_text()
    assert readme.startswith("Geometry relaxed with the calculator named below; VASP is to finish it.")
    assert f"calculation: {_words(record)}" in readme
    plain = invoke(
        *("relax", tmp_path / "v.vasp", "--host", tmp_path / "host.vasp", "--vasp", tmp_path / "plain"),
        *("-o", tmp_path / "p.vasp", "--device", "cpu"),
    )
    assert plain.exit_code == 0, plain.output
    assert (tmp_path / "plain/README.txt").read_text().startswith("Geometry not relaxed: the atoms are on the host's")


def _words(record: dict) -> str:
    from ase_definet.relaxation.result import Calculation  # noqa: PLC0415

    return str(Calculation(**record["calculation"]))


def test_a_screen_with_a_calculator_has_its_columns_and_goes_on_only_with_the_same(tmp_path):
    write(tmp_path / "host.vasp", COPPER)
    write(tmp_path / "a.extxyz", [with_vacancy(), with_interstitial()])
    line = ("screen", tmp_path / "a.extxyz", "--host", tmp_path / "host.vasp", "-o", tmp_path / "out")
    line += ("--device", "cpu", "--calculator", "emt")
    done = invoke(*line, "--fmax", 0.1)
    assert done.exit_code == 0, done.output
    with (tmp_path / "out/table.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [row["calculator"] for row in rows] == ["emt", "emt"]
    assert all(row["converged"] == "yes" and float(row["fmax"]) < 0.1 for row in rows)
    assert all(a.info["definet_method"] == "calculator" for a in read(tmp_path / "out/structures.extxyz", ":"))
    assert invoke(*line, "--fmax", 0.1).exit_code == 0
    other = invoke(*line, "--fmax", 0.2)
    assert other.exit_code == 2
    assert "another request (other calculation)" in other.output
    page = invoke("report", tmp_path / "out", "-o", tmp_path / "r.html")
    assert page.exit_code == 0, page.output
    assert '"converged"' in (tmp_path / "r.html").read_text()


@pytest.mark.parametrize("options", [["--refine"], ["--fmax", "0.1"], ["--max-steps", "3"]])
@pytest.mark.parametrize("command", ["relax", "screen"])
def test_options_of_a_calculator_need_one(tmp_path, command, options):
    write(tmp_path / "v.vasp", with_vacancy())
    done = invoke(command, tmp_path / "v.vasp", "--host", "MoS2", "-o", tmp_path / "o", *options)
    assert done.exit_code == 2
    assert f"{options[0]} is for a calculator: name one with --calculator" in done.output


# bad input


def test_bad_structures_are_one_clear_line_each(tmp_path):
    layer = mx2("MoS2", a=3.19, size=(4, 4, 1), vacuum=10)
    on_top = layer.copy()
    on_top.append(Atom("Li", layer.positions[4] + [0, 0, 0.55]))
    close = layer.copy()
    close.append(Atom("Li", layer.positions[4] + [0, 0, 0.3]))
    molecule = Atoms("H2O", positions=[[0, 0, 0], [0, 0.76, 0.59], [0, -0.76, 0.59]], cell=[12, 12, 12], pbc=True)
    for name, atoms in {"top": on_top, "close": close, "molecule": molecule}.items():
        write(tmp_path / f"{name}.vasp", atoms)
    texts = {}
    for name in ("top", "close", "molecule"):
        done = invoke(
            *("relax", tmp_path / f"{name}.vasp", "--host", "MoS2", "--device", "cpu"),
            *("--calculator", "lj", "--max-steps", 2),
        )
        texts[name] = done.output
        assert done.exit_code == (0 if name == "top" else 1), done.output
        assert "bug" not in done.output
    assert "overlap (0.300 Å apart)" in texts["close"]
    assert "on top of atom" in texts["top"]
    assert "the other reading is" in texts["top"]
    assert texts["molecule"].count("Error:") == 1


def test_unknown_elements_fail_their_file_only(tmp_path):
    write(tmp_path / "host.vasp", COPPER)
    write(tmp_path / "good.vasp", with_vacancy())
    strange = with_vacancy()
    strange.symbols[5] = "W"
    write(tmp_path / "strange.vasp", strange, sort=True)
    files = (tmp_path / "good.vasp", tmp_path / "strange.vasp")
    done = invoke("relax", *files, "--host", tmp_path / "host.vasp", "--calculator", "emt", "--device", "cpu")
    assert done.exit_code == 1
    assert "emt does not know W" in done.output
    assert "1 of 2 structures relaxed, 1 failed" in done.output


# a real potential


def test_chgnet_relaxes_an_adatom():
    pytest.importorskip("chgnet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = DefiNetRelaxer(host="MoS2", device="cpu", calculator="chgnet", fmax=0.1).predict(with_adatom())
    assert found.calculation.calculator == "chgnet"
    assert found.calculation.converged
    sulfur = found.atoms[found.atoms.symbols == "S"]
    bonds = np.sort(distances(sulfur, found.atoms.positions[-1]))[:3]
    assert bonds == pytest.approx(2.4, abs=0.2)  # Li sits in the hollow of three S
