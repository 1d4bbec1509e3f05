"""Ranking: the best of any stream, in a fixed order, however often it is killed."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_definet.errors import ScreeningError, StructureError
from ase_definet.matching.library import library
from ase_definet.matching.site_map import match_sites
from ase_definet.properties.asked_potentials import AskedPotentials
from ase_definet.properties.predictor import FORMATION_ENERGY, PropertyPredictor
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from ase_definet.screening.ranking import (
    RANKING,
    STATE,
    UNRANKED,
    Configurations,
    Ranking,
    Structures,
    Values,
)
from tests.conftest import pristine

SAME = 2e-5
BLOCK = 7


class Numbers:
    """Numbers that are ranked by themselves; NaN has no value."""

    block = BLOCK

    def __init__(self, values, stop: int | None = None) -> None:
        self.given, self.stop = list(values), stop
        self.asked: list[int] = []

    def __iter__(self):
        for place, value in enumerate(self.given):
            if place == self.stop:
                raise KeyboardInterrupt
            yield place, value

    def values(self, block):
        self.asked += [place for place, _ in block]
        value = np.array([one for _, one in block], dtype=float)
        missing = {int(k): "nothing" for k in np.flatnonzero(~np.isfinite(value))}
        return Values(value, np.full(len(block), np.nan), np.zeros(len(block), int), missing)

    def digest(self, block):
        return repr(block).encode()

    def named(self, one):
        place, value = one
        return f"{place}", StructureError(str(value))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


def names(found) -> list[str]:
    return [name for name, _ in found]


def expected(values, keep: int, *, highest: bool) -> list[str]:
    sign = -1 if highest else 1
    order = sorted((round(sign * v, 5), k) for k, v in enumerate(values) if math.isfinite(v))
    return [str(k) for _, k in order[:keep]]


some_numbers = st.lists(
    st.one_of(st.integers(-4, 4).map(float), st.floats(-5, 5), st.just(math.nan)), min_size=1, max_size=60
)


@settings(deadline=None, max_examples=40)
@given(some_numbers, st.integers(1, 20), st.booleans())
def test_the_best_are_kept_in_order(tmp_path_factory, values, keep, highest):
    folder = tmp_path_factory.mktemp("ranking")
    ranking = Ranking(folder, Numbers(values), keep, highest=highest)
    best = ranking.run()
    assert names(best) == expected(values, keep, highest=highest)
    table = rows(folder / RANKING)
    assert [row["name"] for row in table] == names(best)
    assert [float(row["value"]) for row in table] == [
        pytest.approx(values[int(name)], abs=1e-6) for name in names(best)
    ]
    missing = [str(k) for k, value in enumerate(values) if math.isnan(value)]
    assert [row["index"] for row in rows(folder / UNRANKED)] == missing
    assert (ranking.done, ranking.unranked) == (len(values), len(missing))


@settings(deadline=None, max_examples=40)
@given(some_numbers, st.integers(1, 20), st.lists(st.integers(0, 60), max_size=4), st.booleans())
def test_a_killed_ranking_goes_on_exactly(tmp_path_factory, values, keep, stops, highest):
    folder = tmp_path_factory.mktemp("ranking")
    for stop in sorted(stops):
        if stop < len(values):
            with pytest.raises(KeyboardInterrupt):
                Ranking(folder, Numbers(values, stop), keep, highest=highest, checkpoint=0).run()
            with (folder / UNRANKED).open("a") as stream:
                stream.write("3,half a li")
    last = Numbers(values)
    ranking = Ranking(folder, last, keep, highest=highest, checkpoint=0)
    best = ranking.run()
    assert names(best) == expected(values, keep, highest=highest)
    assert last.asked == list(range(ranking.resumed, len(values)))
    assert [row["name"] for row in rows(folder / UNRANKED)] == [
        str(k) for k, value in enumerate(values) if math.isnan(value)
    ]
    again = Numbers(values)
    assert names(Ranking(folder, again, keep, highest=highest).run()) == names(best)
    assert again.asked == []


@settings(deadline=None, max_examples=40)
@given(some_numbers, st.integers(1, 10), st.integers(1, 10), st.integers(0, 60), st.booleans())
def test_more_can_be_kept_later(tmp_path_factory, values, keep, more, stop, highest):
    """Whether the first ranking ended or was killed; the first of the larger one are those of the smaller."""
    folder = tmp_path_factory.mktemp("ranking")
    if stop < len(values):
        with pytest.raises(KeyboardInterrupt):
            Ranking(folder, Numbers(values, stop), keep, highest=highest, checkpoint=0).run()
        few = []
    else:
        few = names(Ranking(folder, Numbers(values), keep, highest=highest).run())
    ranking = Ranking(folder, Numbers(values), keep + more, highest=highest, checkpoint=0)
    best = names(ranking.run())
    assert best == expected(values, keep + more, highest=highest)
    assert best[: len(few)] == few
    assert [row["index"] for row in rows(folder / UNRANKED)] == [
        str(k) for k, v in enumerate(values) if math.isnan(v)
    ]
    assert names(Ranking(folder, Numbers(values), keep, highest=highest).run()) == best[:keep]


def test_memory_holds_the_best_only(tmp_path):
    ranking = Ranking(tmp_path, Numbers(np.random.default_rng(0).normal(size=3000)), 5)
    ranking.run()
    assert len(ranking._heap) == len(ranking._best) == 5


@pytest.mark.parametrize("keep", [3, 5])
@pytest.mark.parametrize("change", ["other", "shorter", "longer", "shuffled"])
def test_other_inputs_are_refused(tmp_path, change, keep):
    values = [float(k) for k in range(20)]
    Ranking(tmp_path, Numbers(values), 3).run()
    changed = {
        "other": [9.0, *values[1:]],
        "shorter": values[:-1],
        "longer": [*values, 1.0],
        "shuffled": values[::-1],
    }[change]
    with pytest.raises(ScreeningError, match="same input"):
        Ranking(tmp_path, Numbers(changed), keep).run()


@pytest.mark.parametrize("content", ["{}", "[]", "what?", '{"done": 3}', '{"kept": [[1]], "done": 1}'])
def test_a_damaged_state_is_refused(tmp_path, content):
    (tmp_path / STATE).write_text(content)
    with pytest.raises(ScreeningError, match="damaged"):
        Ranking(tmp_path, Numbers([1.0]), 3).run()


def test_a_shortened_list_is_refused(tmp_path):
    Ranking(tmp_path, Numbers([math.nan] * 5), 3).run()
    (tmp_path / UNRANKED).write_text("index")
    with pytest.raises(ScreeningError, match="shorter"):
        Ranking(tmp_path, Numbers([math.nan] * 5), 3).run()


@pytest.fixture(scope="module")
def predictor() -> PropertyPredictor:
    return PropertyPredictor()


@pytest.fixture(scope="module")
def space() -> DefectSpace:
    return DefectSpace(library()["WSe2"], np.diag([8, 8, 1]))


def configurations(space, text="v_Se*2"):
    return list(space.enumerate(parse_defects(text)))


def structures(source, predictor, host="WSe2", mu=()):
    return Structures(source, host, predictor, FORMATION_ENERGY, AskedPotentials.of(mu), 0.06)


def test_enumerations_and_their_structures_rank_alike(predictor, space, tmp_path):
    found = configurations(space)
    direct = Configurations(space, found, predictor, FORMATION_ENERGY, AskedPotentials.of(["rich:W"]))
    named = [(one.name, space.atoms(one)) for one in found]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    one = Ranking(tmp_path / "a", direct, 6).run()
    other = Ranking(tmp_path / "b", structures(named, predictor, mu=["rich:W"]), 6).run()
    assert names(one) == names(other)
    for a, b in zip(rows(tmp_path / "a" / RANKING), rows(tmp_path / "b" / RANKING), strict=True):
        assert float(a["value"]) == pytest.approx(float(b["value"]), abs=1e-3)
        assert (a["index"], a["trust"]) == (b["index"], b["trust"])
    for (_, a), (_, b) in zip(one, other, strict=True):
        assert np.abs(space.atoms(a).positions - b.positions).max() < SAME


def test_structures_on_known_sites_are_as_if_matched(predictor, space):
    rng = np.random.default_rng(0)
    found = configurations(space, "v_Se + v_W + S_Se")[:40]
    atoms = [space.atoms(one)[rng.permutation(190)] for one in found]
    for k, one in enumerate(atoms):  # any origin among the images
        one.translate(one.cell[0] * (k % 2))
        one.wrap()
    together = structures([], predictor).values([("", one) for one in atoms])
    for k, one in enumerate(atoms):
        alone = structures([], predictor).values([("", one)])
        assert together.value[k] == pytest.approx(alone.value[0], abs=1e-4)
        assert together.error[k] == pytest.approx(alone.error[0], rel=1e-3)
        assert together.trust[k] == alone.trust[0]


def altered(what: str):
    atoms = pristine("WSe2", 8)
    del atoms[[1, 20]]
    if what == "charge":
        atoms.info["charge"] = 1
    elif what == "moved":
        atoms.positions[5] += [0.3, 0, 0]
    elif what == "cell":
        atoms.set_cell(atoms.cell * [[1.001], [1], [1]], scale_atoms=True)
    elif what == "pbc":
        atoms.pbc = not atoms.pbc[2]
    elif what == "adatom":
        atoms.append("Se")
        atoms.positions[-1] = atoms.positions[0] + [0, 0, 3.0]
    elif what == "two on a site":
        atoms.append(atoms[3])
    elif what == "little left":
        del atoms[40:]
    elif what == "nan":
        atoms.positions[0] = np.nan
    return atoms


@pytest.mark.parametrize("what", ["charge", "moved", "cell", "pbc", "adatom", "two on a site", "little left", "nan"])
def test_what_is_not_on_known_sites_is_matched(what, predictor):
    plain = altered("")
    stream = structures([("plain", plain), (what, altered(what))], predictor)
    first, second = stream
    stream.values([first])
    recognised = stream._recognised(first[1])
    assert recognised is not None
    assert (recognised.numbers == match_sites(plain, "WSe2").numbers).all()
    assert stream._recognised(second[1]) is None


def test_each_reason_is_listed(predictor, tmp_path):
    rhenium, charged, good = pristine("WSe2", 8), pristine("WSe2", 8), pristine("WSe2", 8)
    rhenium.symbols[0] = "Re"
    del charged[1], good[1]
    charged.info["charge"] = 1
    source = [("broken", StructureError("cannot be read")), ("Re", rhenium), ("q", charged), ("good", good)]
    source += [("other", pristine("BN", 5)), ("twin", good)]
    best = Ranking(tmp_path, structures(source, predictor), 5).run()
    assert names(best) == ["good", "twin"]
    reasons = {row["name"]: row["reason"] for row in rows(tmp_path / UNRANKED)}
    assert set(reasons) == {"broken", "Re", "q", "other"}
    assert reasons["broken"] == "cannot be read"
    assert "Re" in reasons["Re"]
    assert "charge" in reasons["q"]
    assert json.loads((tmp_path / STATE).read_text())["unranked"] == 4
