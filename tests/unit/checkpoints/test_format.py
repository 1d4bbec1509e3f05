import dataclasses
import hashlib
import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from ase_definet.checkpoints import bundled
from ase_definet.checkpoints.authors import import_authors_checkpoint
from ase_definet.checkpoints.bundled import bundled_models, resolve_model
from ase_definet.checkpoints.format import (
    _content_sha256,
    holds_properties,
    load_checkpoint,
    load_properties,
    save_checkpoint,
    write_card,
)
from ase_definet.checkpoints.upgrade import upgrade_checkpoint
from ase_definet.cli import cli
from ase_definet.errors import CheckpointError, OutputExistsError
from ase_definet.model.architectures import ARCHITECTURES, build_model
from ase_definet.model.config import (
    DefiNetConfig,
    HostRoutedConfig,
    PropertyEnsembleConfig,
    RoutedConfig,
    SiteNetworkConfig,
    SparseNetworkConfig,
)
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.site_network import SiteNetwork

CONFIGS = {
    "site": SiteNetworkConfig(features=8, layers=2, n_radial=6, embedding=4, cutoff=5.5),
    "definet": DefiNetConfig(features=8, layers=2, n_radial=12, cutoff=5.0, max_neighbors=30, n_elements=90),
}
CONFIGS["host_routed"] = HostRoutedConfig(
    general=CONFIGS["site"],
    routed=(
        RoutedConfig(hosts=((31, 34), (34, 49)), model=dataclasses.replace(CONFIGS["site"], features=4)),
        RoutedConfig(hosts=((15,),), model=CONFIGS["site"]),
    ),
)
CONFIGS["sparse"] = SparseNetworkConfig(
    targets=("formation_energy", "gap"),
    additive=("formation_energy",),
    hosts=((16, 16, 42),),
    kinds=((0, 16, 0), (74, 42, 0)),
    features=8,
    pair_features=4,
    heads=2,
    n_radial=5,
)
CONFIGS["property_ensemble"] = PropertyEnsembleConfig(
    members=(CONFIGS["sparse"], dataclasses.replace(CONFIGS["sparse"], targets=("gap",), additive=()))
)
CARD = {"trained_on": ["MoS2", "WSe2"], "mae": 0.02, "note": "Ångström"}


def network(architecture="site", seed=0):
    torch.manual_seed(seed)
    return build_model(CONFIGS[architecture])


def assert_same_weights(model, other):
    ours, theirs = model.state_dict(), other.state_dict()
    assert list(ours) == list(theirs)
    for name, value in ours.items():
        assert value.dtype == theirs[name].dtype
        assert torch.equal(value, theirs[name]), name


def metadata_of(path):
    with path.open("rb") as file:
        return json.loads(file.read(int.from_bytes(file.read(8), "little")))["__metadata__"]


def resave(path, tensors=None, **changes):
    """Write a checkpoint again with other metadata or tensors; None drops an entry."""
    metadata = {k: v for k, v in (metadata_of(path) | changes).items() if v is not None}
    tensors = load_file(path) if tensors is None else tensors
    save_file(tensors, path, metadata | {"content_sha256": _content_sha256(metadata, tensors)})
    return path


@pytest.fixture
def saved(tmp_path):
    return save_checkpoint(tmp_path / "model.safetensors", network(), CARD)


def test_a_training_run_is_no_weights_yet(tmp_path):
    (tmp_path / "last.pt").write_bytes(b"")
    for name in (tmp_path, tmp_path / "last.pt"):
        with pytest.raises(CheckpointError, match="ase-definet weights export"):
            resolve_model(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_round_trip(tmp_path, architecture, dtype):
    model = network(architecture).to(dtype)
    path = save_checkpoint(tmp_path / "model.safetensors", model, CARD)
    right, wrong = (load_properties, load_checkpoint)[:: 1 if ARCHITECTURES[architecture].properties else -1]
    loaded = right(str(path))
    assert holds_properties(path) == ARCHITECTURES[architecture].properties
    with pytest.raises(CheckpointError, match=r"which predicts (properties|displacements)"):
        wrong(path)
    assert type(loaded.model) is type(model)
    assert_same_weights(loaded.model, model)
    assert not loaded.model.training
    assert loaded.architecture == architecture
    assert loaded.config == loaded.model.config == CONFIGS[architecture]
    assert loaded.card.plain() == CARD
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert [p.name for p in tmp_path.iterdir()] == ["model.safetensors"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        loaded.architecture = "other"


def test_metadata_says_what_it_is(saved):
    metadata = metadata_of(saved)
    assert metadata["format"] == "ase-definet"
    assert metadata["format_version"] == "2"
    assert metadata["architecture"] == "site"
    assert json.loads(metadata["config"]) == dataclasses.asdict(CONFIGS["site"])
    assert json.loads(metadata["card"]) == CARD


def test_loading_leaves_random_numbers_alone(saved):
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    load_checkpoint(saved)
    assert torch.equal(torch.rand(3), expected)


def test_an_existing_file_is_kept_unless_told_otherwise(saved):
    before = saved.read_bytes()
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        save_checkpoint(saved, network(seed=1), CARD)
    assert saved.read_bytes() == before
    save_checkpoint(saved, network(seed=1), CARD, overwrite=True)
    assert_same_weights(load_checkpoint(saved).model, network(seed=1))


def test_a_write_that_fails_leaves_nothing_behind(saved, monkeypatch):
    before = saved.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(saved, network(seed=1), CARD, overwrite=True)
    assert [p.name for p in saved.parent.iterdir()] == [saved.name]
    assert saved.read_bytes() == before


@pytest.mark.parametrize("card", [{"path": Path()}, {"mae": float("nan")}])
def test_a_card_is_plain_json(tmp_path, card):
    with pytest.raises(CheckpointError, match="plain JSON"):
        save_checkpoint(tmp_path / "model.safetensors", network(), card)
    assert not list(tmp_path.iterdir())


def test_only_known_networks_are_saved(tmp_path):
    with pytest.raises(CheckpointError, match="cannot save a Linear"):
        save_checkpoint(tmp_path / "model.safetensors", torch.nn.Linear(1, 1), {})
    with pytest.raises(CheckpointError, match="create it first"):
        save_checkpoint(tmp_path / "nowhere" / "model.safetensors", network(), {})


def test_write_card(saved):
    beside = write_card(saved)
    assert beside == saved.with_suffix(".json")
    loaded = load_checkpoint(saved)
    assert json.loads(beside.read_text(encoding="utf-8")) == {
        "architecture": "site",
        "config": dataclasses.asdict(loaded.config),
        "sha256": loaded.sha256,
        "card": CARD,
    }
    with pytest.raises(OutputExistsError):
        write_card(saved)
    assert write_card(saved, overwrite=True) == beside


def assert_refused(path, message, read=load_checkpoint):
    with pytest.raises(CheckpointError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_missing_files(tmp_path):
    for read in (load_checkpoint, import_authors_checkpoint):
        assert_refused(tmp_path / "none.safetensors", "found nothing", read)
        assert_refused(tmp_path, "found a directory", read)


@pytest.mark.parametrize("keep", [0, 4, 100, 2000, -1])
def test_truncated(saved, keep):
    saved.write_bytes(saved.read_bytes()[:keep])
    assert_refused(saved, "damaged or truncated")


@pytest.mark.parametrize("content", [b"hello world, this is text", b"\xff" * 64, b"\x10" + bytes(7) + b"{" * 16])
def test_not_safetensors(tmp_path, content):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    assert_refused(path, "not a safetensors file")


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_foreign_safetensors(tmp_path, metadata):
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(2)}, path, metadata)
    assert_refused(path, "another program")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format_version": "3"}, "version 3, expected 2; upgrade"),
        ({"format_version": "1"}, "version 1, expected 2; convert it with `ase-definet weights upgrade"),
        ({"format_version": "one"}, "format_version is 'one'"),
        ({"format_version": None}, "format_version is ''"),
        ({"architecture": "mace"}, "unknown architecture 'mace', expected one of site, definet"),
        ({"architecture": None}, "unknown architecture ''"),
        ({"architecture": "definet"}, r"unknown settings .*embedding"),
        ({"config": None}, "config is not JSON"),
        ({"config": "[]"}, "config must be a JSON object, found list"),
        ({"config": '{"width": 3}'}, "unknown settings width; a newer ase-definet"),
        ({"config": '{"features": "8"}'}, "features must be a whole number, found '8'"),
        ({"config": '{"features": true}'}, "features must be a whole number"),
        ({"config": '{"cutoff": null}'}, "cutoff must be a number"),
        ({"config": '{"cutoff": NaN}'}, "cutoff must be between 1 and 50, found nan"),
        ({"config": '{"layers": 0}'}, "layers must be between 1 and 1000, found 0"),
        ({"config": '{"layers": 1000000000}'}, "layers must be between 1 and 1000, found 1000000000"),
        ({"config": '{"layers": 999}'}, "tensors for 999 layers"),
        ({"config": '{"features": 1000000000000000}'}, "does not fit|damaged"),
        ({"config": "{}"}, "does not fit site: missing layers.2"),
        ({"card": "{"}, "card is not JSON"),
    ],
)
def test_damaged_metadata(saved, changes, message):
    assert_refused(resave(saved, **changes), message)


def test_a_setting_added_later_keeps_its_default(saved):
    config = json.loads(metadata_of(saved)["config"])
    del config["avg_num_neighbors"]
    assert load_checkpoint(resave(saved, config=json.dumps(config))).config == CONFIGS["site"]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("embed.weight", None, "does not fit site: missing embed.weight"),
        ("finish.weight", torch.zeros(2), "does not fit site: unexpected finish.weight"),
        ("embed.weight", torch.zeros(8, 5), r"embed.weight must be \(8, 12\), found \(8, 5\)"),
        ("embed.weight", torch.full((8, 12), torch.nan), "not finite numbers, first in embed.weight"),
        ("embed.weight", torch.zeros(8, 12, dtype=torch.int32), "not finite numbers, first in embed.weight"),
        ("embed.weight", torch.zeros(8, 12).double(), "mixes precisions torch.float32, torch.float64"),
    ],
)
def test_tensors_that_do_not_fit(saved, name, value, message):
    tensors = load_file(saved)
    tensors.pop(name, None)
    if value is not None:
        tensors[name] = value
    assert_refused(resave(saved, tensors), message)


def test_many_missing_tensors_are_counted(saved):
    assert_refused(resave(saved, {"embed.weight": torch.zeros(8, 12)}, config='{"layers": 1}'), "and [0-9]+ more")


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "model.module."])
@pytest.mark.parametrize("legacy", [False, True])
def test_authors_layout(tmp_path, wrapper, prefix, legacy):
    model = network("definet")
    content = {prefix + name: value for name, value in model.state_dict().items()}
    path = tmp_path / "best.pt"
    wrapped = content if wrapper is None else {wrapper: content, "epoch": 3}
    torch.save(wrapped, path, _use_new_zipfile_serialization=not legacy)
    loaded = import_authors_checkpoint(path, cutoff=5.0, max_neighbors=30)
    assert loaded.config == CONFIGS["definet"]
    assert loaded.architecture == "definet"
    assert not loaded.model.training
    assert loaded.card.source == "best.pt"
    assert loaded.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert_same_weights(loaded.model, model)
    kept = load_checkpoint(save_checkpoint(tmp_path / "kept.safetensors", loaded.model, loaded.card))
    assert_same_weights(kept.model, model)
    assert kept.config == loaded.config


class Trap:
    """Touches a file when its pickle is run."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda content, path: path.write_bytes(pickle.dumps(content))])
def test_pickled_code_is_refused_and_not_run(tmp_path, save):
    mark = tmp_path / "executed"
    path = tmp_path / "best.pt"
    save(dict(network("definet").state_dict()) | {"extra": Trap(mark)}, path)
    assert_refused(path, "pickled code, which is never run", import_authors_checkpoint)
    assert_refused(path, "not a safetensors file", load_checkpoint)
    assert not mark.exists()


@pytest.mark.parametrize("content", [b"", b"hello world", b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00"])
def test_authors_file_is_damaged(tmp_path, content):
    path = tmp_path / "best.pt"
    path.write_bytes(content)
    assert_refused(path, "damaged", import_authors_checkpoint)


@pytest.mark.parametrize("legacy", [False, True])
def test_authors_file_is_truncated(tmp_path, legacy):
    path = tmp_path / "best.pt"
    torch.save(network("definet").state_dict(), path, _use_new_zipfile_serialization=not legacy)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert_refused(path, "damaged", import_authors_checkpoint)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda _: [torch.zeros(1)], "must hold a dictionary of tensors, found list"),
        (lambda w: w | {"epoch": 3}, "found other things under epoch"),
        (lambda _: {}, "missing atom_emb.embeddings.weight"),
        (lambda w: w | {"atom_emb.embeddings.weight": torch.zeros(3)}, "must be a matrix"),
        (lambda w: w | {"extra": torch.zeros(3)}, "does not fit definet: unexpected extra"),
        (
            lambda w: {k: v for k, v in w.items() if k != "lin_comb.bias"},
            "does not fit definet: missing lin_comb.bias",
        ),
        (lambda w: w | {"lin_comb.bias": torch.zeros(3)}, r"lin_comb.bias must be \(8,\), found \(3,\)"),
        (
            lambda w: {k: v for k, v in w.items() if "message_passing_layers.1." not in k},
            r"unexpected virtual_scalar_layers.1.mlp_node.0.weight, .* more",
        ),
    ],
)
def test_authors_tensors_that_do_not_fit(tmp_path, change, message):
    path = tmp_path / "best.pt"
    torch.save(change(dict(network("definet").state_dict())), path)
    assert_refused(path, message, import_authors_checkpoint)


def test_models_are_found_by_name_or_path(saved, monkeypatch):
    monkeypatch.setattr(bundled, "WEIGHTS", saved.parent)
    assert bundled_models() == {"model": saved}
    assert resolve_model("model") == saved
    assert resolve_model(saved) == saved
    with pytest.raises(CheckpointError, match="'modle' is neither a bundled model nor a file; did you mean 'model'"):
        resolve_model("modle")
    with pytest.raises(CheckpointError, match="bundled models: model"):
        resolve_model("xyz/abc.pt")
    monkeypatch.setattr(bundled, "WEIGHTS", saved.parent / "nowhere")
    with pytest.raises(CheckpointError, match="bundled models: none"):
        resolve_model("model")


def test_what_is_bundled_loads():
    for path in bundled_models().values():
        assert load_checkpoint(path).card


VERSION_1 = {"training": {"elements": ["Mo", "S"], "hosts": {"MoS2": {"defects": ["S_Mo", "V_Mo", "V_S"]}}}}


def test_upgrade_of_version_1(saved, tmp_path):
    before = {name: tensor.clone() for name, tensor in load_file(saved).items()}  # safetensors < 0.8 maps the file
    card = VERSION_1 | {"parts": [VERSION_1]}
    resave(saved, format_version="1", card=json.dumps(card), content_sha256=None)
    new = tmp_path / "new.safetensors"
    done = CliRunner().invoke(cli, ["weights", "upgrade", str(saved), str(new)])
    assert done.exit_code == 0, done.output
    loaded = load_checkpoint(new)
    expected = {"training": {"elements": ["Mo", "S"], "hosts": {"MoS2": {"defects": ["S_Mo", "v_Mo", "v_S"]}}}}
    assert loaded.card.plain() == expected | {"parts": [expected]}
    assert json.loads(new.with_suffix(".json").read_text())["card"] == loaded.card.plain()
    after = load_file(new)
    assert all(torch.equal(after[name], before[name]) for name in before)
    with pytest.raises(CheckpointError, match="nothing to upgrade"):
        upgrade_checkpoint(new, tmp_path / "newer.safetensors")
    with pytest.raises(OutputExistsError):
        upgrade_checkpoint(saved, new)


VERSION_1_SIZES = {"cutoff": 5.0, "features": 8, "layers": 2, "radial": 6, "embedding": 4, "near_cutoff": 3.0}


@pytest.mark.parametrize("routed", [False, True])
def test_names_of_version_1_become_the_present_ones(tmp_path, routed):
    """Settings, tensors and card keys: what loads is the same network, whatever the file called its parts."""
    sizes = {"cutoff": 5.0, "features": 8, "layers": 2, "n_radial": 6, "embedding": 4, "short_range_cutoff": 3.0}
    own = SiteNetworkConfig(**sizes, noisy_starts=True)
    config = HostRoutedConfig(general=own, routed=(RoutedConfig(hosts=((5, 7),), model=own),)) if routed else own
    torch.manual_seed(0)
    model = (HostRoutedModel if routed else SiteNetwork)(config)
    old = {}
    for name, value in model.state_dict().items():
        parts = ["experts" if part == "routed" else part for part in name.split(".")]
        at = 2 if parts[0] == "experts" else int(parts[0] == "general")
        earlier = {"short_range": "near", "embed": "start", "noisy_start": "start_in"}
        old[".".join([*parts[:at], earlier.get(parts[at], parts[at]), *parts[at + 1 :]])] = value
    values = VERSION_1_SIZES | {"starts": True}
    if routed:
        values = {"general": values, "experts": [{"hosts": [[5, 7]], "model": values}]}
    run = {"shares": {"high/BN": 1.0}, "rate": 1e-3, "check": 5, "init": "", "model": {"near_cutoff": 3.0}}
    card = {"training": {"config": run, "batch": 4}, "validation": {"high/BN": {"mae": 1.0, "dummy": 2.0}}}
    metadata = {"format": "ase-definet", "format_version": "1", "architecture": "experts" if routed else "site"}
    metadata |= {"config": json.dumps(values), "card": json.dumps(card)}
    save_file(old, tmp_path / "old.safetensors", metadata)
    loaded = load_checkpoint(upgrade_checkpoint(tmp_path / "old.safetensors", tmp_path / "new.safetensors"))
    assert loaded.config == config
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.model.state_dict().items())
    training = loaded.card.training
    assert training.batch_size == 4
    assert training.config == {
        "sampling_weights": {"high/BN": 1.0},
        "learning_rate": 1e-3,
        "validate_every": 5,
        "initial_weights": "",
        "model": {"short_range_cutoff": 3.0},
    }
    assert loaded.card.plain()["validation"] == {"high/BN": {"mae": 1.0, "ideal_sites": 2.0}}


def test_vanadium_of_version_1_is_not_guessed(saved, tmp_path):
    card = {"training": VERSION_1["training"] | {"elements": ["Mo", "S", "V"]}}
    resave(saved, format_version="1", card=json.dumps({"parts": [card]}))
    with pytest.raises(CheckpointError, match="trained on vanadium"):
        upgrade_checkpoint(saved, tmp_path / "new.safetensors")


def test_any_changed_byte_is_noticed(saved):
    """Every byte of the tensors, and of what the metadata says, is covered by the digest."""
    whole = saved.read_bytes()
    length = int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    text = [whole.index(word) + len(word) + 3 for word in (b'"card"', b'"config"')]
    places = [*rng.integers(8 + length, len(whole), 40), *text]
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(0, 7))
        saved.write_bytes(flipped)
        with pytest.raises(CheckpointError):
            load_checkpoint(saved)
    saved.write_bytes(whole)
    load_checkpoint(saved)


def test_any_flipped_bit_of_the_bundled_weights_is_noticed(tmp_path):
    """Sixty trials, a third of them in the header; those of the first audit changed results by up to 1 Å in eight."""
    whole = resolve_model("default").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    rng = np.random.default_rng(0)
    for k in range(60):
        place = int(rng.integers(0, header)) if k % 3 == 0 else int(rng.integers(header, len(whole)))
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(0, 8))
        (tmp_path / "a.safetensors").write_bytes(flipped)
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_checkpoint(tmp_path / "a.safetensors")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONFIGS)
def test_compact_weights_are_rounded_and_computed_with_in_full(name, dtype, tmp_path):
    """Matrices in half precision, vectors as they are; what is loaded has one precision, and can be saved again."""
    model = build_model(CONFIGS[name]).to(dtype)
    small = save_checkpoint(tmp_path / "small.safetensors", model, {"name": "x"}, compact=True)
    full = save_checkpoint(tmp_path / "full.safetensors", model, {"name": "x"})
    assert small.stat().st_size < full.stat().st_size
    load = load_properties if holds_properties(small) else load_checkpoint
    loaded = load(small).model.state_dict()
    for key, value in model.state_dict().items():
        expected = value.half().to(dtype) if value.ndim >= 2 else value
        assert loaded[key].dtype == dtype
        assert torch.equal(loaded[key], expected)
    again = save_checkpoint(tmp_path / "again.safetensors", load(small).model, {"name": "x"}, compact=True)
    assert metadata_of(again) == metadata_of(small)  # the digest of the content among them


def test_what_half_precision_cannot_hold_is_not_saved(tmp_path):
    model = build_model(CONFIGS["site"])
    with torch.no_grad():
        next(value for value in model.parameters() if value.ndim >= 2).view(-1)[0] = 1e5
    with pytest.raises(CheckpointError, match=r"half precision, which ends at 65504: larger weights in .*in full"):
        save_checkpoint(tmp_path / "small.safetensors", model, {"name": "x"}, compact=True)
    assert not list(tmp_path.iterdir())


def test_damage_to_compact_weights_is_found(tmp_path):
    path = save_checkpoint(tmp_path / "w.safetensors", build_model(CONFIGS["site"]), {"name": "x"}, compact=True)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_checkpoint(path)
