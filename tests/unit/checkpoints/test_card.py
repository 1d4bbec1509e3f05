"""Model cards: what may stand in them, what is refused, and what is kept without being read."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ase_definet.checkpoints.bundled import bundled_cards
from ase_definet.checkpoints.card import CARD_VERSION, ModelCard
from ase_definet.checkpoints.combine import combined_card
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.errors import CheckpointError
from ase_definet.model.architectures import build_network
from ase_definet.model.config import SiteNetworkConfig
from tests.unit.checkpoints.test_format import resave

SMALL = SiteNetworkConfig(cutoff=4.0, features=4, layers=1, n_radial=4, embedding=2)
HOST = {"defects": ["v_S"], "density": [0.01, 0.1], "sites": 48, "training_pairs": 3}
FULL = {
    "name": "a",
    "version": "1",
    "parameters": 5,
    "training": {"elements": ["Mo", "S"], "hosts": {"MoS2": HOST}, "steps": 10, "batch_size": 4},
    "validation": {"high/MoS2": {"mae": 0.1, "a3": 0.2}},
    "routed": [{"hosts": ["BN"], "name": "own", "training": {"elements": ["B"], "hosts": {}}}],
}
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def test_every_part_is_read():
    card = ModelCard.read(FULL)
    assert card.training.hosts["MoS2"].density == [0.01, 0.1]
    assert card.validation["high/MoS2"].mae == 0.1
    assert card.routed[0].training.elements == ["B"]
    assert card.card_version == CARD_VERSION
    assert card.plain() == FULL
    assert ModelCard.read({}).plain() == {}


@given(extra=st.dictionaries(st.text(max_size=5).map("own {}".format), json_values, max_size=4))
def test_keys_that_nothing_reads_are_kept_at_any_depth(extra):
    host = HOST | extra
    values = FULL | extra | {"training": {"elements": [], "hosts": {"MoS2": host}} | extra}
    card = ModelCard.read(values)
    assert card.plain() == values
    assert ModelCard.read(json.loads(json.dumps(card.plain()))) == card
    assert card.changed(name="b").plain() == values | {"name": "b"}


WRONG = [
    ({"name": 3}, "name: .*string, found 3"),
    ({"parameters": -1}, "parameters"),
    ({"parameters": "many"}, "parameters: .*integer, found 'many'"),
    ({"training": []}, "training"),
    ({"training": {"elements": "Mo"}}, r"training\.elements"),
    ({"training": {"elements": ["Mo", 16]}}, r"training\.elements\.1"),
    ({"training": {"hosts": {"MoS2": {}}}}, r"training\.hosts\.MoS2\.defects"),
    ({"training": {"hosts": {"MoS2": HOST | {"density": [0.1]}}}}, r"density"),
    ({"training": {"hosts": {"MoS2": HOST | {"density": [0.1, 7.0]}}}}, r"density\.1"),
    ({"validation": {"a": {"mae": "small"}}}, r"validation\.a\.mae"),
    ({"routed": [{"name": "a"}]}, r"routed\.0\.hosts"),
    ({"card_version": CARD_VERSION + 1}, "card has version 2, expected at most 1; upgrade ase-definet"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_no_card_is_refused_by_its_key(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        ModelCard.read(FULL | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_weights_with_such_a_card_are_not_read_and_not_written(tmp_path, change, message):
    torch.manual_seed(0)
    path = save_checkpoint(tmp_path / "a.safetensors", build_network(SMALL), FULL)
    assert load_checkpoint(path).card == ModelCard.read(FULL)
    with pytest.raises(CheckpointError, match=message):
        save_checkpoint(tmp_path / "b.safetensors", build_network(SMALL), FULL | change)
    assert not (tmp_path / "b.safetensors").exists()
    with pytest.raises(CheckpointError, match=rf"a\.safetensors is damaged.*{message}"):
        load_checkpoint(resave(path, card=json.dumps(FULL | change)))


def test_bundled_cards_leave_nothing_out():
    for bundled in bundled_cards().values():
        card = bundled.card
        assert card.name
        assert card.version
        assert card.training.hosts
        assert all(row.mae < row.ideal_sites for row in card.validation.values())
        assert len(bundled.sha256) == 64


def test_a_combined_card_says_of_each_host_what_its_own_does():
    other = ModelCard.read(
        {
            "name": "own",
            "validation": {"high/BN": {"mae": 0.3}},
            "training": {"hosts": {"BN": HOST}, "elements": ["N"]},
        }
    )
    card = combined_card(ModelCard.read(FULL), [(["BN"], other)])
    assert set(card.validation) == {"high/MoS2", "high/BN"}
    assert set(card.training.hosts) == {"MoS2", "BN"}
    assert card.training.elements == ["Mo", "N", "S"]
    assert card.training.steps == 10
    assert [(one.hosts, one.name) for one in card.routed] == [(["BN"], "own")]
