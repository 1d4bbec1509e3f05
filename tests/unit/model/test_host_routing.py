"""Several networks in one: every host gets the one that is its own."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ase_definet.checkpoints.combine import combine, combine_weights
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.cli import cli
from ase_definet.errors import CheckpointError, OutputExistsError
from ase_definet.model.config import DefiNetConfig, SiteNetworkConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.batching import alike
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from tests.conftest import mos2_with_defects, pristine

SIZES = SiteNetworkConfig(
    features=8, layers=2, n_radial=6, embedding=4, short_range_cutoff=4.0, error_head_features=4
)
FLOAT32 = 1e-5
VACANCIES = {"MoS2": ("v_Mo", "v_S"), "GaSe": ("v_Ga", "v_Se")}


def network(seed: int, **changes) -> SiteNetwork:
    torch.manual_seed(seed)
    made = SiteNetwork(replace(SIZES, **changes)).eval()
    torch.nn.init.normal_(made.read_out.weight)
    return made


def card_of(name: str, hosts: tuple[str, ...]) -> dict:
    row = {"mae": float(len(name)), "a3": 0.1, "ideal_sites": 0.2, "ideal_sites_a3": 0.3}
    return {
        "name": name,
        "version": "1",
        "parameters": 1,
        "validation": {f"high/{host}": row for host in hosts},
        "expected_error": {f"high/{host}": {"mean_error": float(len(name))} for host in hosts},
        "training": {
            "elements": sorted({"Mo", "S"} if name == "general" else {"Ga", "Se"}),
            "hosts": {
                host: {
                    "sites": 9,
                    "density": [0.01, 0.1],
                    "defects": [name, *VACANCIES.get(host, ())],
                    "training_pairs": 5,
                }
                for host in hosts
            },
        },
    }


@pytest.fixture
def files(tmp_path):
    save_checkpoint(tmp_path / "general.safetensors", network(0), card_of("general", ("MoS2", "WSe2", "GaSe")))
    save_checkpoint(tmp_path / "own.safetensors", network(1, features=4), card_of("own", ("GaSe", "P")))
    return tmp_path


@pytest.fixture
def combined(files):
    return combine_weights(
        files / "both.safetensors",
        files / "general.safetensors",
        {("GaSe", "InSe"): files / "own.safetensors"},
        name="both",
        version="2",
    )


def vacancy(host: str, n: int = 4):
    atoms = pristine(host, n)
    del atoms[len(atoms) // 2]
    return atoms


@pytest.mark.parametrize(("host", "own"), [("MoS2", "general"), ("GaSe", "own"), ("InSe", "own"), ("BN", "general")])
@pytest.mark.parametrize("initial_positions", ["ideal", "given"])
def test_every_host_gets_its_network(combined, files, host, own, initial_positions):
    atoms = vacancy(host)
    options = {"device": "cpu", "initial_positions": initial_positions, "extrapolate": True}
    both = DefiNetRelaxer(str(combined), host, **options).predict(atoms)
    alone = DefiNetRelaxer(str(files / f"{own}.safetensors"), host, **options).predict(atoms)
    assert np.abs(alone.site_displacement).max() > FLOAT32
    np.testing.assert_array_equal(both.site_displacement, alone.site_displacement)
    np.testing.assert_array_equal(both.expected_error, alone.expected_error)
    assert (both.expected_error is not None) == (host in VACANCIES)


def test_hosts_may_share_a_batch(combined):
    relaxer = DefiNetRelaxer(str(combined), "auto", "cpu", initial_positions="given", extrapolate=True)
    structures = [vacancy("GaSe"), vacancy("MoS2"), mos2_with_defects(4), vacancy("InSe"), vacancy("P")]
    together = list(relaxer.relax_many(structures))
    for found, atoms in zip(together, structures, strict=True):
        one = relaxer.predict(atoms)
        np.testing.assert_allclose(found.site_displacement, one.site_displacement, atol=FLOAT32)
    # results show the estimates of hosts that the weights know; those of the others must be right no less
    assert [found.expected_error is not None for found in together] == [True, True, False, False, False]
    items = [relaxer._prepare(atoms, None) for atoms in structures]
    with torch.inference_mode():
        for part in alike(items, 10**6):
            _, errors = relaxer._predict([items[k] for k in part])
            singles = np.concatenate([relaxer._predict([items[k]])[1] for k in part])
            np.testing.assert_allclose(errors, singles, atol=FLOAT32)


def test_the_card_says_of_every_host_what_its_network_does(combined):
    card = load_checkpoint(combined).card
    assert (card.name, card.version) == ("both", "2")
    assert {k: row.mae for k, row in card.validation.items()} == {
        "high/MoS2": 7.0,
        "high/WSe2": 7.0,
        "high/GaSe": 3.0,
    }
    assert card.expected_error["high/GaSe"] == {"mean_error": 3.0}
    hosts = {host: row.defects for host, row in card.training.hosts.items()}
    assert hosts == {"MoS2": ["general", "v_Mo", "v_S"], "WSe2": ["general"], "GaSe": ["own", "v_Ga", "v_Se"]}
    assert card.training.elements == ["Ga", "Mo", "S", "Se"]
    assert [(one.hosts, one.name) for one in card.routed] == [(["GaSe", "InSe"], "own")]
    assert card.parameters == sum(p.numel() for p in load_checkpoint(combined).model.parameters())
    assert json.loads(combined.with_suffix(".json").read_text())["architecture"] == "host_routed"


def test_only_site_networks_of_one_cutoff_go_together(files):
    def refused(general, routed):
        with pytest.raises(CheckpointError) as caught:
            combine_weights(files / "x.safetensors", general, routed, name="x", version="1")
        return str(caught.value)

    general = files / "general.safetensors"
    published = DefiNet(DefiNetConfig(features=8, layers=1, n_radial=12))
    save_checkpoint(files / "definet.safetensors", published, {})
    assert "expected weights of a site network, found definet" in refused(
        general, {("P",): files / "definet.safetensors"}
    )
    save_checkpoint(files / "short.safetensors", network(2, cutoff=5.0), {})
    assert "cutoff" in refused(general, {("P",): files / "short.safetensors"})
    save_checkpoint(files / "sure.safetensors", network(2, error_head_features=0), {})
    assert "estimate of the error" in refused(general, {("P",): files / "sure.safetensors"})
    own = files / "own.safetensors"
    assert "two weights for P" in refused(general, {("P",): own, ("P", "P"): general})
    assert "each of one network" in refused(general, {("P",): own, ("GaSe", "P"): general})


def test_combined_weights_may_be_combined_again(combined, files):
    save_checkpoint(files / "third.safetensors", network(2, layers=1), card_of("third", ("InSe",)))
    out = combine_weights(
        files / "more.safetensors", combined, {("InSe",): files / "third.safetensors"}, name="more", version="3"
    )
    for host, own in {"MoS2": "general", "GaSe": "own", "InSe": "third"}.items():
        atoms = vacancy(host)
        more = DefiNetRelaxer(str(out), host, "cpu").predict(atoms)
        alone = DefiNetRelaxer(str(files / f"{own}.safetensors"), host, "cpu").predict(atoms)
        np.testing.assert_array_equal(more.site_displacement, alone.site_displacement)
    card = load_checkpoint(out).card
    assert [(one.hosts, one.name) for one in card.routed] == [(["InSe"], "third"), (["GaSe"], "own")]
    assert card.training.hosts["GaSe"].defects == ["own", "v_Ga", "v_Se"]
    last = combine_weights(files / "last.safetensors", out, {("InSe", "GaSe"): combined}, name="last", version="4")
    assert [(one.hosts, one.name) for one in load_checkpoint(last).card.routed] == [(["InSe", "GaSe"], "both")]
    with pytest.raises(CheckpointError, match="several networks for MoS2, GaSe"):
        combine_weights(files / "x.safetensors", out, {("MoS2", "GaSe"): combined}, name="x", version="1")


def test_command(files):
    out = files / "deep" / "both.safetensors"
    arguments = [
        str(files / "general.safetensors"),
        str(out),
        "--host-weights",
        "GaSe,InSe",
        str(files / "own.safetensors"),
    ]
    done = CliRunner().invoke(cli, ["weights", "combine", *arguments])
    assert done.exit_code == 0, done.output
    assert "GaSe, InSe by" in done.output
    assert load_checkpoint(out).card.name == "both"
    again = CliRunner().invoke(cli, ["weights", "combine", *arguments])
    assert again.exit_code == 2
    assert "--overwrite" in again.output
    twice = CliRunner().invoke(cli, ["weights", "combine", *arguments, *arguments[2:], "--overwrite"])
    assert twice.exit_code == 2
    assert "the same hosts twice" in twice.output
    assert CliRunner().invoke(cli, ["weights", "combine", arguments[0], "x.pt", *arguments[2:]]).exit_code == 2
    wrong = CliRunner().invoke(cli, ["weights", "combine", *arguments[:3], "GaSi", arguments[4], "--overwrite"])
    assert wrong.exit_code == 1
    assert "GaSi" in wrong.output


def test_nothing_is_overwritten(combined, files):
    with pytest.raises(OutputExistsError):
        combine_weights(
            combined, files / "general.safetensors", {("P",): files / "own.safetensors"}, name="x", version="1"
        )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "does not name general and routed"),
        ({"general": {}, "routed": [{"hosts": [[1]]}]}, "does not name general and routed"),
        ({"general": {}, "routed": [{"hosts": [[float("inf")]], "model": {}}]}, "does not name general and routed"),
        ({"general": 3, "routed": []}, "settings under general and routed"),
        ({"general": {"features": -1}, "routed": []}, "features must be between 1 and 100000, found -1"),
        ({"general": {}, "routed": [], "more": 1}, "under general and routed only"),
    ],
)
def test_damaged_files_are_refused(combined, config, message):
    tensors = load_file(combined)
    metadata = {"format": "ase-definet", "format_version": "2", "architecture": "host_routed", "card": "{}"}
    save_file(tensors, combined, metadata | {"config": json.dumps(config)})
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(combined)


def test_foreign_tensors_are_refused(combined):
    loaded = load_checkpoint(combined)
    tensors = load_file(combined) | {"other.weight": torch.zeros(1)}
    with combined.open("rb") as file:
        metadata = json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]
    save_file(tensors, combined, metadata)
    with pytest.raises(CheckpointError, match=r"unexpected other\.weight"):
        load_checkpoint(combined)
    assert isinstance(loaded.model, HostRoutedModel)


def test_weights_are_copied():
    general, own = network(0), network(1)
    both = combine(general, {((15,),): own})
    before = both.network_for(torch.tensor([15])).read_out.weight.clone()
    with torch.no_grad():
        own.read_out.weight += 1
    assert torch.equal(both.network_for(torch.tensor([15])).read_out.weight, before)
    assert both.network_for(torch.tensor([15, 15, 16])) is both.general
