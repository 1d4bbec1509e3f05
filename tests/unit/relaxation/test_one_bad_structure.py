"""Whatever one structure raises, wherever: it is its own record, and the others are as they are without it."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import Calculator
from ase.constraints import FixInternals
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import DefiNetError, HostError, StrictError, StructureError
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure, RelaxResult
from tests.conftest import pristine

MARK = "bad"
"""Key in ``info`` of the structure that is to fail."""


def good(k: int) -> Atoms:
    """Return a structure with the vacancy elsewhere, on the lattice of all the others."""
    atoms = pristine("MoS2", 4)
    del atoms[3 * k + 1]
    return atoms


def conflicting(atoms: Atoms) -> Atoms:
    """Ask of one bond to have two lengths."""
    pair = [0, int(np.argsort(atoms.get_distances(0, range(len(atoms)), mic=False))[1])]
    atoms.set_constraint(FixInternals(bonds=[[2.0, pair], [3.0, pair]]))
    return atoms


class Refusing:
    """A constraint of the user's own, which raises what a user's code may raise."""

    index = (0,)

    def adjust_positions(self, _atoms, _new):
        raise ZeroDivisionError("division by zero")

    def adjust_forces(self, _atoms, _forces):
        raise ZeroDivisionError("division by zero")

    def todict(self):
        return {"name": "Refusing", "kwargs": {}}

    def copy(self):
        return self


class Losing(Refusing):
    """One that loses the positions without a word."""

    def adjust_positions(self, _atoms, new):
        new[0] = np.nan


class Stubborn(Atoms):
    """Atoms of the user's own class."""

    def copy(self):
        raise TypeError("this cannot be copied")


def constrained(constraint) -> Callable[[Atoms], Atoms]:
    def change(atoms: Atoms) -> Atoms:
        atoms.set_constraint(constraint)
        return atoms

    return change


def lost(atoms: Atoms) -> Atoms:
    atoms.positions[3] = np.nan
    return atoms


BAD: dict[str, tuple[Callable[[Atoms], object], type[Exception], str]] = {
    "positions": (lost, StructureError, "not a number"),
    "nonsense": (lambda _: 7, StructureError, "int"),
    "an exception": (lambda _: OSError("no such file"), OSError, "no such file"),
    "internals that conflict": (
        conflicting,
        StructureError,
        "cannot be placed within their constraints .FixInternals",
    ),
    "a constraint that raises": (constrained(Refusing()), StructureError, "division by zero; check"),
    "a constraint that loses": (constrained(Losing()), StructureError, "not finite"),
    "a class that cannot be copied": (Stubborn, TypeError, "cannot be copied"),
}


def records_equal(found: list[RelaxResult], expected: list[RelaxResult]) -> None:
    """Assert that two lists of results are the same to the bit."""
    for a, b in zip(found, expected, strict=True):
        assert isinstance(a, RelaxResult)
        assert isinstance(b, RelaxResult)
        for name in ("site_displacement", "displacement", "expected_error"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
        np.testing.assert_array_equal(a.atoms.positions, b.atoms.positions)
        assert (a.warnings, a.outside) == (b.warnings, b.outside)


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("place", [0, 3, 6])
@pytest.mark.parametrize("batch_sites", [20_000, 96, 1])
def test_one_bad_structure_costs_the_others_nothing(relaxer, case, place, batch_sites):
    change, kind, text = BAD[case]
    others = [good(k) for k in range(6)]
    expected = list(relaxer.relax_many(others, batch_sites=batch_sites))
    found = list(relaxer.relax_many([*others[:place], change(good(7)), *others[place:]], batch_sites=batch_sites))
    failure = found.pop(place)
    assert isinstance(failure, RelaxFailure)
    assert failure.index == place
    with pytest.raises(kind, match=text):
        raise failure.error
    records_equal(found, expected)


@pytest.mark.parametrize(
    "error", [ValueError("shape"), RuntimeError("CUDA error: device-side assert"), DefiNetError("no")]
)
def test_a_network_that_raises_of_one(error, monkeypatch):
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    structures = [good(k) for k in range(5)]
    expected = list(relaxer.relax_many(structures[:2] + structures[3:]))
    real = relaxer._predict

    def choosy(items):
        if any(item.atoms.info.get(MARK) for item in items):
            raise error
        return real(items)

    monkeypatch.setattr(relaxer, "_predict", choosy)
    structures[2].info[MARK] = True
    found = list(relaxer.relax_many(structures))
    assert found.pop(2).error is error
    records_equal(found, expected)


def test_several_kinds_at_once_and_nothing_but_failures(relaxer):
    bad = [change(good(7)) for change, _, _ in BAD.values()]
    others = [good(k) for k in range(len(bad))]
    expected = list(relaxer.relax_many(others))
    mixed = list(relaxer.relax_many([one for pair in zip(bad, others, strict=True) for one in pair]))
    assert [isinstance(one, RelaxFailure) for one in mixed] == [True, False] * len(bad)
    assert [one.index for one in mixed[::2]] == list(range(0, 2 * len(bad), 2))
    records_equal(mixed[1::2], expected)
    assert all(isinstance(one, RelaxFailure) for one in relaxer.relax_many(bad))
    assert list(relaxer.relax_many([])) == []


def test_a_host_that_is_none_is_every_records_error(relaxer):
    for host in (7, "no_such_host", object()):
        found = list(relaxer.relax_many([good(0), good(1)], host=host))
        assert [type(one) for one in found] == [RelaxFailure] * 2
        with pytest.raises((HostError, StructureError)):
            raise found[0].error


def test_a_batch_is_filled_with_those_that_follow_a_failure(relaxer, monkeypatch):
    """As if it had not been there: else the last bits of their results would say that it was."""
    sizes = []
    real = relaxer._predict

    def counted(items):
        sizes.append([item.index for item in items])
        return real(items)

    monkeypatch.setattr(relaxer, "_predict", counted)
    structures = [good(0), conflicting(good(7)), good(1), good(2), good(3)]
    assert len(list(relaxer.relax_many(structures, batch_sites=2 * 48))) == 5
    assert sizes == [[0, 1], [0, 2], [3, 4]]


def test_an_interrupt_is_no_failure(relaxer, monkeypatch):
    def interrupted(_items):
        raise KeyboardInterrupt

    monkeypatch.setattr(relaxer, "_predict", interrupted)
    with pytest.raises(KeyboardInterrupt):
        list(relaxer.relax_many([good(0)]))


def test_a_record_keeps_no_batch_alive(relaxer, monkeypatch):
    """The traceback of a failure would hold the arrays of all that were with it."""
    seen = []
    real = relaxer._predict

    def watched(items):
        moved, errors = real(items)
        seen.append(weakref.ref(moved))
        return moved, errors

    monkeypatch.setattr(relaxer, "_predict", watched)
    records = list(relaxer.relax_many([conflicting(good(7)), conflicting(good(6))]))
    assert all(isinstance(one, RelaxFailure) for one in records)
    gc.collect()
    assert [one() for one in seen] == [None]


def test_the_command_says_what_is_wrong_with_the_constraints(tmp_path, monkeypatch):
    """A user's error is no bug of ours."""
    import ase_definet.structures.reading as reading_module  # noqa: PLC0415

    real = reading_module.read_structure
    monkeypatch.setattr(
        reading_module,
        "read_structure",
        lambda path: conflicting(real(path)) if path.name == "b.vasp" else real(path),
    )
    for name in "abc":
        good(1).write(tmp_path / f"{name}.vasp")
    files = [str(tmp_path / f"{name}.vasp") for name in "abc"]
    done = CliRunner().invoke(cli, ["relax", *files, "--host", "MoS2", "--device", "cpu"])
    assert done.exit_code == 1
    assert "2 of 3 structures relaxed, 1 failed" in done.output
    assert "b.vasp: the atoms cannot be placed within their constraints (FixInternals)" in done.output
    assert "this is a bug" not in done.output


# refinement


class Springs(Calculator):
    """Pull every atom to where it was first seen, by autograd; give nonsense after some calls."""

    implemented_properties = ("energy", "forces")

    def __init__(self, spoil: Callable[[int, np.ndarray, float], tuple[np.ndarray, float]] | None = None) -> None:
        super().__init__()
        self.spoil, self.calls = spoil, 0

    def calculate(self, atoms=None, properties=("energy",), system_changes=()):
        super().calculate(atoms, properties, system_changes)
        self.calls += 1
        positions = torch.tensor(atoms.positions, requires_grad=True)
        energy = 0.5 * (positions - positions.detach().round(decimals=1)).square().sum()
        (slope,) = torch.autograd.grad(energy, positions)
        forces, value = -slope.numpy(), float(energy.detach())
        if self.spoil is not None:
            forces, value = self.spoil(self.calls, forces, value)
        self.results = {"energy": value, "forces": forces}


def raising(calls, forces, energy):
    if calls > 1:
        raise RuntimeError("SCF did not converge")
    return forces, energy


SPOILED = {
    "nan": (lambda _, f, e: (np.full_like(f, np.nan), e), "not finite"),
    "one nan": (lambda _, f, e: (np.where(np.arange(len(f))[:, None] == 3, np.nan, f), e), "forces on 1 of 47"),
    "nan later": (lambda calls, f, e: (f if calls < 3 else f * np.nan, e), "not finite"),
    "infinite": (lambda _, f, e: (np.full_like(f, np.inf), e), "not finite"),
    "energy": (lambda _, f, __: (f, np.nan), "energy of nan"),
    "constant": (lambda _, f, e: (np.ones_like(f), e), "do the forces depend on the positions"),
    "shape": (lambda _, f, e: (f[:-1], e), ""),
    "raises": (raising, "SCF did not converge"),
}


def refining(calculator, **options):
    return DefiNetRelaxer(host="MoS2", device="cpu", calculator=calculator, refine=True, **options)


def test_refinement_moves_and_may_use_gradients():
    """A calculator that is a network itself needs them: the refinement runs outside of inference mode."""
    plain = DefiNetRelaxer(host="MoS2", device="cpu").predict(good(0))
    refined = refining(Springs(), max_steps=3).predict(good(0))
    assert refined.calculation.steps == 3
    assert refined.calculation.converged
    assert refined.atoms.info["definet_calculation"] == str(refined.calculation)
    assert refined.warnings == plain.warnings
    assert refined.expected_error is None  # it was that of the prediction
    assert np.abs(refined.atoms.positions - plain.atoms.positions).max() > 1e-3
    np.testing.assert_array_equal(refined.displacement, refined.atoms.positions - good(0).positions)


@pytest.mark.parametrize("case", SPOILED)
def test_a_refinement_that_fails_reaches_the_result_and_what_was_best_stays(case):
    spoil, text = SPOILED[case]
    plain = DefiNetRelaxer(host="MoS2", device="cpu").predict(good(0))
    (found,) = refining(Springs(spoil), max_steps=6).relax_many([good(0)])
    later = case in {"nan later", "constant"}  # after a step to a lower energy
    assert (found.method == "calculator") is later
    assert np.array_equal(found.atoms.positions, plain.atoms.positions) is not later
    np.testing.assert_array_equal(found.displacement, found.atoms.positions - good(0).positions)
    (warning,) = found.warnings
    assert warning.startswith("Springs failed after ")
    assert ("the result is its best geometry (step" if later else "the result is the prediction alone") in warning
    assert text in warning
    assert warning in found.atoms.info["definet_warnings"]
    assert found.calculation.error
    assert not found.calculation.converged
    assert (found.expected_error is None) is later


@pytest.mark.parametrize("case", SPOILED)
def test_strict_wants_the_refinement_it_asked_for(case):
    relaxer = refining(Springs(SPOILED[case][0]), strict=True)
    with pytest.raises(StrictError, match="Springs failed"):
        relaxer.predict(good(0))
    (found,) = relaxer.relax_many([good(0)])
    assert isinstance(found.error, StrictError)
