"""Chemical potentials before the host is known."""

from __future__ import annotations

import pytest

from ase_definet.errors import DefiNetError
from ase_definet.matching.library import library
from ase_definet.properties.asked_potentials import AskedPotentials


@pytest.mark.parametrize("given", [{"S": -4.5}, ["S=-4.5"], "S=-4.5", AskedPotentials(("S=-4.5",))])
def test_one_meaning_of_all_forms(given):
    asked = AskedPotentials.of(given)
    assert asked.elements == ("S",)
    assert asked.in_host(library()["MoS2"]).of("S") == -4.5


def test_nothing_asked_is_the_reference():
    asked = AskedPotentials.of(None)
    assert asked.elements == ()
    assert dict(asked.in_host(library()["MoS2"]).values) == {}


@pytest.mark.parametrize("text", ["", "S", "S:-4.5", "lean:S", "rich:Xx", "=3", "S=", "S=inf", "X=-1"])
def test_what_cannot_be_read_is_refused_at_once(text):
    with pytest.raises(DefiNetError):
        AskedPotentials.of([text])


@pytest.mark.parametrize("texts", [["S=-4", "S=-5"], ["rich:S", "Mo=-11"], ["rich:S", "poor:S"], ["S=-4", "rich:Mo"]])
def test_an_element_has_one_potential(texts):
    with pytest.raises(DefiNetError, match="given twice"):
        AskedPotentials.of(texts).in_host(library()["MoS2"])


def test_elements_that_change_nothing():
    asked = AskedPotentials.of(["rich:S", "Te=-3", "Se=-3.5"])
    host = library()["MoS2"]
    assert asked.useless(host, ["Mo", "S", "Se"]) == ("Te",)
    assert asked.in_host(host).warnings == (
        "no reference energy is known for Te: its chemical potential is not used",
    )
    assert any("changes nothing" in text for text in asked.in_host(host, ["Mo", "S"]).warnings)


def test_a_limit_needs_a_host_of_known_energy():
    with pytest.raises(DefiNetError, match="no energy of host WS2 is known"):
        AskedPotentials.of(["rich:S"]).in_host(library()["WS2"])
