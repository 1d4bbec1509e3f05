"""Chemical potentials: definitions, limits and what cannot be read."""

from __future__ import annotations

import numpy as np
import pytest
from ase.data import chemical_symbols

from ase_definet.errors import DefiNetError
from ase_definet.matching.library import library
from ase_definet.properties.chemical_potentials import HOST_ENERGIES, REFERENCES, limit, parse_potentials

MOS2 = library()["MoS2"]
BASE = np.array([42, 16, 16] * 4)


def changed(*changes: tuple[int, int]) -> np.ndarray:
    out = BASE.copy()
    for site, number in changes:
        out[site] = number
    return out[None]


@pytest.mark.parametrize("name", sorted(HOST_ENERGIES))
def test_the_host_costs_nothing_at_any_limit(name):
    host = library()[name]
    symbols = [chemical_symbols[z] for z in host.numbers]
    for element in set(symbols):
        for poor in (False, True):
            found = limit(host, name, element, poor=poor)
            assert sum(found[symbol] for symbol in symbols) == pytest.approx(HOST_ENERGIES[name], abs=2e-3)
            assert all(value <= REFERENCES[symbol] + 1e-3 for symbol, value in found.items())


def test_rich_in_one_is_poor_in_the_other():
    assert limit(MOS2, "MoS2", "S") == limit(MOS2, "MoS2", "Mo", poor=True)
    heat = HOST_ENERGIES["MoS2"] - REFERENCES["Mo"] - 2 * REFERENCES["S"]
    assert limit(MOS2, "MoS2", "Mo")["S"] == pytest.approx(REFERENCES["S"] + heat / 2)


def test_a_vacancy_costs_less_where_its_element_is_poor():
    found = parse_potentials(["S=-5.127"], MOS2, "MoS2", ["S"])
    assert found.shift(changed((1, 0)), BASE) == pytest.approx([-1.0])
    assert found.shift(changed((1, 0), (2, 0)), BASE) == pytest.approx([-2.0])
    assert found.shift(changed((0, 16)), BASE) == pytest.approx([1.0])
    assert found.shift(BASE[None], BASE) == pytest.approx([0.0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("S", "expected S=-4.5"),
        ("Xx=-1", "expected S=-4.5"),
        ("S=low", "needs a number"),
        ("S=nan", "must be finite"),
        ("rich:O", "holds Mo and S, not O"),
    ],
)
def test_what_cannot_be_read_is_an_error(text, words):
    with pytest.raises(DefiNetError, match=words):
        parse_potentials([text], MOS2, "MoS2", ["S"])


def test_hosts_without_an_energy_have_no_limits():
    with pytest.raises(DefiNetError, match="no energy of host WS2 is known"):
        limit(library()["WS2"], "WS2", "S")
    assert limit(library()["P"], "P", "P") == {"P": REFERENCES["P"]}


def test_elements_that_are_not_involved_are_a_warning():
    found = parse_potentials(["C=-9.0", "S=-4.2"], MOS2, "MoS2", ["S", "W"])
    assert len(found.warnings) == 1
    assert "chemical potential of C changes nothing" in found.warnings[0]
    assert found.of("S") == -4.2
    assert found.of("W") == REFERENCES["W"]
    assert parse_potentials(["Re=-12"], MOS2, "MoS2", ["Re"]).warnings[0].startswith("no reference energy")
