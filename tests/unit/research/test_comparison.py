"""The comparison with other ways to relax: its sample, its errors, and that it goes on where it was."""

from __future__ import annotations

import json
from typing import ClassVar

import numpy as np
import pytest
from ase.calculators.calculator import Calculator, all_changes

from ase_definet.data import PackedDataset, find_pairs, pack_pairs
from ase_definet.errors import CalculatorError
from ase_definet.evaluation.scores import score_pairs
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from research.experiments import comparison
from research.pages import comparison as page
from research.pages.stored import result, results
from tests.conftest import REPO


@pytest.fixture(scope="module")
def pack(tmp_path_factory) -> PackedDataset:
    """Return the pairs that ship with the tests, packed."""
    packed, problems = pack_pairs(
        find_pairs(REPO / "tests" / "data" / "2dmd" / "pairs.extxyz"),
        tmp_path_factory.mktemp("pairs") / "pairs.pack",
        workers=1,
    )
    assert not problems
    return packed


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setattr(comparison, "OUT", tmp_path)
    return tmp_path


def rows(out, name):
    return json.loads((out / f"{name}.json").read_text(encoding="utf-8"))["rows"]


@pytest.mark.parametrize("most", [1, 2, 6])
def test_the_sample_is_of_the_validation_split_and_has_every_structure_once(pack, most, monkeypatch):
    monkeypatch.setattr(comparison, "PER_SUBSET", most)
    for group in pack.groups:
        found = comparison.sample(group)
        assert len(found) == len(set(found)) == min(most, len(group.indices("val")))
        assert set(found) <= set(map(int, group.indices("val")))


def test_errors_are_those_of_evaluate(pack, out):
    """For every structure; the host is taken by its name here, there by its cell, which has fewer digits."""
    for name in ("network", "ideal_sites"):
        comparison.measure(name, pack, pack.sha256)
    scores, _ = score_pairs(DefiNetRelaxer(device="cpu"), pack, superposition=False)
    assert set(rows(out, "network")) == {score.id for score in scores}
    for score in scores:
        for name, method in (("network", "model"), ("ideal_sites", "ideal_sites")):
            row = rows(out, name)[score.id]
            assert row["coordinate_mae"] == pytest.approx(score.maes[method]["coordinate_mae"], abs=2e-5)
            assert row["a3"] == pytest.approx(score.maes[method]["a3"], abs=2e-5)


def test_it_goes_on_where_it_was(pack, out, monkeypatch):
    seen: list[str] = []

    def method(structure):
        if len(seen) == 3:
            raise KeyboardInterrupt
        seen.append(structure.id)
        return comparison.still(structure)

    monkeypatch.setattr(comparison, "method_of", lambda _: method)
    with pytest.raises(KeyboardInterrupt):
        comparison.measure("ideal_sites", pack, "")
    assert list(rows(out, "ideal_sites")) == seen
    assert len({row["subset"] for row in rows(out, "ideal_sites").values()}) == 3  # one of each subset first
    before, seen[:] = list(seen), []
    monkeypatch.setattr(comparison, "method_of", lambda _: comparison.still)
    comparison.measure("ideal_sites", pack, "")
    assert list(rows(out, "ideal_sites"))[:3] == before
    assert len(rows(out, "ideal_sites")) == sum(len(group.indices("val")) for group in pack.groups)


class Still(Calculator):
    """No forces: everything is relaxed where it is."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces"]

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        self.results = {"energy": 0.0, "forces": np.zeros((len(atoms), 3))}


def test_a_potential_relaxes_from_the_host_sites(pack, monkeypatch):
    monkeypatch.setattr(comparison, "get_calculator", lambda _: Still())
    group = pack.groups[0]
    structure = comparison.matched(DefiNetRelaxer(device="cpu"), group, int(group.indices("val")[0]))
    atoms, row = comparison.potential("chgnet")(structure)
    assert (row["steps"], row["converged"], row["last_fmax"]) == (1, True, 0.0)
    assert np.array_equal(atoms.positions, structure.matched.unrelaxed.positions)


def test_what_cannot_be_made_leaves_its_reason(pack, out, monkeypatch):
    def fail(name):
        raise CalculatorError(f"the calculator {name} cannot be made: no weights")

    monkeypatch.setattr(comparison, "get_calculator", fail)
    monkeypatch.setattr(comparison, "version", lambda _: "1")
    comparison.measure("chgnet", pack, "")
    found = json.loads((out / "chgnet.json").read_text(encoding="utf-8"))
    assert found["reason"] == "the calculator chgnet cannot be made: no weights"
    assert found["rows"] == {}


def test_the_page_compares_the_same_structures_and_as_many_of_each_subset():
    found = results("comparison")
    found["sevennet"]["rows"] = dict(list(found["sevennet"]["rows"].items())[:-1])  # as if it was cut off
    ids = page.common(found)
    subsets = [found["network"]["rows"][name]["subset"] for name in ids]
    assert len({subsets.count(subset) for subset in subsets}) == 1
    assert all(name in found[method]["rows"] for method in page.NAMES for name in ids)
    assert ids


def test_published_figures_are_of_the_split_they_are_said_to_be_of():
    known = result("published_potentials")
    assert len(known["commit"]) == 40
    own = set(results("comparison")["network"]["rows"])
    assert set(known["of_our_sample"]) <= own
    assert not own & {name for host in known["other_hosts"]["hosts"].values() for name in host}
    phosphorus = known["black_phosphorus"]
    assert set(phosphorus["unconverged"]) <= set(phosphorus["ids"])
    for tuned in phosphorus["models"].values():
        assert all(len(values) == len(phosphorus["ids"]) for values in tuned.values())
