"""The loop on data made here: it learns, and a killed run goes on exactly where it was."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from ase_definet.checkpoints.combine import combine
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.data import PackedDataset
from ase_definet.errors import CheckpointError, DefiNetWarning, DeviceError, StructureError, TrainingError
from ase_definet.matching.library import get_host
from ase_definet.model import lattice_convolution as lattice_module
from ase_definet.model.config import DefiNetConfig, SiteNetworkConfig
from ase_definet.model.site_network import SiteNetwork
from ase_definet.training import error_estimate
from ase_definet.training.card import LABELLED, build_card, export_weights
from ase_definet.training.config import TrainConfig
from ase_definet.training.loss import corrupted, loss_of
from ase_definet.training.run import LAST, Run, train
from tests.conftest import DEVICES, REPO, pristine
from tests.pairs import pack_of, radial_pairs

MODEL = SiteNetworkConfig(
    cutoff=4.0,
    features=8,
    layers=2,
    n_radial=6,
    embedding=4,
    short_range_cutoff=3.5,
    short_range_features=4,
    short_range_n_radial=6,
    dropout=0.1,
)
DEFINET = DefiNetConfig(features=8, layers=1, n_radial=8, cutoff=4.0)
NAME = "high/MoS2"
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="torch older than 2.9")
SAME = 1e-5
"""Agreement of sums of floats in another order, in Å."""


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """Pack 18 training and 6 validation pairs."""
    return str(pack_of(tmp_path_factory.mktemp("data") / "pack", radial_pairs()).path)


@pytest.fixture(scope="session")
def several(tmp_path_factory) -> str:
    """Pack two subsets, the first in cells of two sizes."""
    parts = (
        radial_pairs(12, 2),
        radial_pairs(6, 2, seed=1, host=pristine("MoS2", 3)),
        radial_pairs(9, 2, subset="low/MoS2", seed=2),
        radial_pairs(0, 3, subset="held/MoS2", seed=3),
    )
    return str(pack_of(tmp_path_factory.mktemp("data") / "several", *parts).path)


@pytest.fixture
def config(data, tmp_path) -> TrainConfig:
    return TrainConfig(
        data=data,
        out=str(tmp_path / "run"),
        model=MODEL,
        steps=60,
        batch_size=4,
        learning_rate=1e-2,
        warmup_steps=5,
        ema_decay=0.9,
        validate_every=20,
        checkpoint_every=10,
        accelerator="cpu",
    )


class Killed(BaseException):
    """Like a signal: nothing catches it."""


def train_until(config: TrainConfig, step: int) -> None:
    """Train and be killed after a step."""

    def kill(run, loss):
        assert np.isfinite(loss)
        if run.step == step:
            raise Killed

    with pytest.raises(Killed):
        train(config, kill)


def log_of(config: TrainConfig) -> list[dict[str, str]]:
    with (Path(config.out) / "log.csv").open(newline="") as stream:
        return list(csv.DictReader(stream))


def assert_same_run(one: Run, other: Run) -> None:
    assert one.step == other.step
    assert one.drawn == other.drawn
    for name in ("network", "average"):
        pairs = zip(getattr(one, name).state_dict().values(), getattr(other, name).state_dict().values(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    for pair in zip(one.optimizers, other.optimizers, strict=True):
        for a, b in zip(*(optimizer.state_dict()["state"].values() for optimizer in pair), strict=True):
            assert a.keys() == b.keys()
            assert all(torch.equal(a[key], b[key]) for key in a)


# learning


@pytest.mark.parametrize("device", DEVICES)
def test_it_learns(config, device):
    config = replace(config, accelerator=device, steps=150)
    before = Run(config).validate()[NAME]
    run = train(config)
    after = run.table[NAME]
    assert after == run.validate()[NAME]
    assert after["mae"] < 0.5 * before["mae"]
    assert after["mae"] < 0.5 * after["ideal_sites"]
    assert after["a3"] < 0.5 * after["ideal_sites_a3"]


def test_the_published_network_trains_too(config):
    config = replace(config, model=DEFINET, steps=60, learning_rate=3e-3)
    before = Run(config).validate()[NAME]["mae"]
    after = train(config).table[NAME]["mae"]
    assert after < 0.8 * before


@pytest.mark.parametrize("transform", ["dense", "fast"])
def test_mixed_precision_trains_too(config, transform, monkeypatch):
    monkeypatch.setattr(lattice_module, "MOST_DENSE", 10**6 if transform == "dense" else 0)
    run = train(replace(config, precision="bf16-mixed"))
    assert run.table[NAME]["mae"] < 0.7 * run.table[NAME]["ideal_sites"]
    assert all(p.dtype == torch.float32 for p in run.network.parameters())


@needs_muon
def test_muon_learns(config):
    model = replace(MODEL, features=16, vector_norm=True)
    config = replace(config, model=model, optimizer="muon", muon_lr_ratio=4.0, steps=120)
    run = train(config)
    assert run.table[NAME]["mae"] < 0.3 * run.table[NAME]["ideal_sites"]


@needs_muon
def test_muon_takes_the_matrices_between_channels(config):
    """Every weight is in one optimizer: square and oblong matrices of 16 or more in Muon, the rest in AdamW."""
    run = Run(replace(config, model=replace(MODEL, features=16), optimizer="muon", muon_lr_ratio=7.0))
    adamw, muon = ([w for group in o.param_groups for w in group["params"]] for o in run.optimizers)
    assert {id(w) for w in [*adamw, *muon]} == {id(w) for w in run.network.parameters()}
    assert len(adamw) + len(muon) == len(list(run.network.parameters()))
    assert all(w.ndim == 2 and min(w.shape) >= 16 for w in muon)
    embeddings = {id(part.weight) for part in run.network.modules() if isinstance(part, torch.nn.Embedding)}
    assert embeddings <= {id(w) for w in adamw}
    run.advance()
    rates = [optimizer.param_groups[0]["lr"] for optimizer in run.optimizers]
    assert rates == pytest.approx([config.learning_rate / 5, 7 * config.learning_rate / 5])


def test_without_muon_in_torch(config, monkeypatch):
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(TrainingError, match=r"muon needs torch 2\.9 or later, found .*; adamw does not"):
        Run(replace(config, optimizer="muon"))


def test_losses():
    """One atom is off by (3, 0, -4) in one structure, the other structure is right; one of three sites is empty."""
    target = torch.zeros(3, 2, 3)
    predicted = target.clone()
    predicted[0, 0] = torch.tensor([3.0, 0.0, -4.0])
    predicted[2, 0] = 100.0
    real = torch.tensor([[1.0, 1.0], [1.0, 1.0], [0.0, 1.0]])
    assert float(loss_of(predicted, target, real)) == pytest.approx(5 / 2 / 2, abs=1e-3)
    assert float(loss_of(predicted, target, real, "components")) == pytest.approx(7 / 2 / 2, abs=1e-3)


def test_components_score_what_the_mae_scores(config):
    run = train(replace(config, loss="components", steps=100))
    assert run.table[NAME]["mae"] < 0.7 * run.table[NAME]["ideal_sites"]


def test_the_loss_of_early_guesses_counts(config):
    """Without it nothing asks the first guess to be good; with it the guess learns."""
    errors = []
    for share in (0.0, 1.0):
        run = train(replace(config, auxiliary_loss_weight=share, out=f"{config.out}{share}"))
        batches = run.batches[0]
        numbers, kinds, target, real = batches.batch(run.groups[0].indices("val"))
        with torch.no_grad():
            first = batches.predict(run.average, numbers, kinds)[0]
        errors.append(float(((first - target).norm(dim=-1) * real).sum() / real.sum()))
    assert errors[1] < 0.7 * errors[0]


def test_corrupted_starts():
    """Some structures begin on the sites, the others between them and the relaxed places, give or take noise."""
    torch.manual_seed(0)
    target = torch.tensor([1.0, -2.0, 0.5]).expand(5, 4000, 3).clone()
    real = torch.ones(5, 4000)
    real[2] = target[2] = 0
    config = TrainConfig(data="-", out="-", noisy_start_fraction=0.3, noise_std=0.0)
    start = corrupted(target, real, config)
    moved = start.abs().sum((0, 2)) > 0
    assert float(moved.float().mean()) == pytest.approx(0.3, abs=0.03)
    way = start[0, moved] / target[0, moved]
    assert torch.allclose(way[:, 0], way[:, 2], atol=1e-6)  # one share of the way for all of a structure
    assert way.min() >= 0
    assert way.max() <= 1
    assert way.mean() == pytest.approx(0.5, abs=0.03)
    noise = corrupted(torch.zeros_like(target), real, replace(config, noisy_start_fraction=1.0, noise_std=0.2))
    assert noise[2].abs().max() == 0
    widths = noise[[0, 1, 3, 4]].std((0, 2))
    assert widths.mean() == pytest.approx(0.2, abs=0.01)
    assert widths.max() < 1.0


def test_corrupted_starts_help_it_back(config):
    """Trained with them, the network takes noise off; its predictions from the sites are as good as before."""
    run = train(replace(config, noisy_start_fraction=0.5, noise_std=0.1, steps=150))
    assert run.config.model.noisy_starts
    assert run.table[NAME]["mae"] < 0.5 * run.table[NAME]["ideal_sites"]
    batches = run.batches[0]
    numbers, kinds, target, real = batches.batch(run.groups[0].indices("val"))
    torch.manual_seed(1)
    noise = 0.1 * torch.randn_like(target) * real[..., None]
    with torch.no_grad():
        back = batches.predict(run.average, numbers, kinds, target + noise)[-1]
    assert (back - target).norm() < 0.7 * noise.norm()


def test_the_published_network_has_no_other_starts(config):
    with pytest.raises(TrainingError, match="noisy_start_fraction is not known to DefiNet as published"):
        Run(replace(config, model=DEFINET, noisy_start_fraction=0.5))


def test_progress_hears_of_every_step(config):
    heard = []
    train(config, lambda run, loss: heard.append((run.step, loss)))
    assert [step for step, _ in heard] == list(range(1, 61))
    assert np.isfinite([loss for _, loss in heard]).all()
    assert np.mean([loss for _, loss in heard[-10:]]) < np.mean([loss for _, loss in heard[:10]])


def test_the_validation_table_is_the_mean_over_structures(config):
    """Against plain arithmetic on the positions."""
    run = train(config)
    group, batches = run.groups[0], run.batches[0]
    maes, dummies = [], []
    for index in group.indices("val"):
        numbers, kinds, _, _ = batches.batch(np.array([index]))
        real = group.numbers[index] > 0
        with torch.no_grad():
            predicted = batches.predict(run.average, numbers, kinds)[-1][:, 0].numpy()[real]
        true = group.atoms(int(index))[1].positions - group.sites[real]
        true -= true.mean(axis=0)
        maes.append(np.abs(predicted - true).mean())
        dummies.append(np.abs(true).mean())
    assert run.table[NAME]["mae"] == pytest.approx(np.mean(maes), abs=SAME)
    assert run.table[NAME]["ideal_sites"] == pytest.approx(np.mean(dummies), abs=SAME)
    short = run.validate(limit=2)[NAME]["ideal_sites"]
    assert short != pytest.approx(np.mean(dummies), abs=1e-9)


# killed and resumed


@pytest.mark.parametrize(
    ("model", "corrupt"), [(MODEL, 0.0), (MODEL, 0.5), (DEFINET, 0.0)], ids=["site", "corrupted", "definet"]
)
def test_a_killed_run_goes_on_exactly(config, tmp_path, model, corrupt):
    """With dropout, messages at guessed distances, and an epoch that ends between checkpoints."""
    config = replace(
        config, model=model, noisy_start_fraction=corrupt, schedule="plateau", plateau_patience=0, plateau_factor=0.5
    )
    whole = train(replace(config, out=str(tmp_path / "whole")))
    train_until(config, 37)
    train_until(config, 44)
    resumed = train(config)
    assert_same_run(whole, resumed)
    assert whole.table == resumed.table
    assert whole.plateau == resumed.plateau
    differ = {"seconds", "loss"}  # the mean loss is that since the last start
    logs = [[{k: row[k] for k in row.keys() - differ} for row in log_of(one)] for one in (whole.config, config)]
    assert logs[0] == logs[1]


def test_dropout_is_really_on(config, tmp_path):
    """Else the test above shows less than it says."""
    without = replace(config, model=replace(MODEL, dropout=0.0), out=str(tmp_path / "without"), steps=2)
    one, other = train(replace(config, steps=2)), train(without)
    assert not torch.equal(one.network.read_out.weight, other.network.read_out.weight)
    assert one.table == one.validate()  # and off in validation


def test_the_log_has_no_step_twice(config):
    """The run is killed after a validation that no checkpoint holds."""
    config = replace(config, checkpoint_every=15)
    train_until(config, 44)
    assert [row["step"] for row in log_of(config)] == ["20", "40"]
    assert torch.load(Path(config.out) / LAST, weights_only=True)["step"] == 30
    train(config)
    assert [row["step"] for row in log_of(config)] == ["20", "40", "60"]
    assert {"learning_rate", "loss", "seconds", f"{NAME} mae", f"{NAME} a3"} < set(log_of(config)[0])


def test_a_finished_run_is_left_alone_and_may_be_longer(config):
    first = train(config)
    stamp = (Path(config.out) / LAST).stat().st_mtime_ns
    again = train(config)
    assert (Path(config.out) / LAST).stat().st_mtime_ns == stamp
    assert again.table[NAME] == pytest.approx(first.table[NAME])
    assert_same_run(first, again)
    longer = train(replace(config, steps=80, validate_every=40, checkpoint_every=40, validation_size=3))
    assert longer.step == 80
    assert [row["step"] for row in log_of(config)] == ["20", "40", "60", "80"]


@needs_muon
def test_a_killed_run_of_muon_goes_on_exactly(config, tmp_path):
    config = replace(config, model=replace(MODEL, features=16), optimizer="muon", steps=30)
    whole = train(replace(config, out=str(tmp_path / "whole")))
    train_until(config, 17)
    assert_same_run(whole, train(config))


def test_a_kill_while_saving_leaves_the_last_checkpoint(config, monkeypatch):
    run = Run(config)
    run.out.mkdir()
    run.advance()
    run.save()
    run.advance()

    def full(state, stream):
        del state
        stream.write(b"half a checkpoint")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        run.save()
    again = Run(config)
    assert again.resume()
    assert again.step == 1


def test_a_run_without_a_checkpoint_starts_at_the_start(config):
    run = Run(config)
    assert not run.resume()
    assert run.step == 0


@pytest.mark.parametrize("kept", [0, 100, -100])
def test_a_damaged_checkpoint_is_refused(config, kept):
    train(replace(config, steps=2))
    path = Path(config.out) / LAST
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(TrainingError, match=r"last\.pt: cannot be read .* delete it to start anew"):
        train(config)


def test_a_changed_byte_of_a_checkpoint_is_noticed(config):
    """Of the tensors too: torch does not look at the checksums that it writes."""
    train(replace(config, steps=2))
    path = Path(config.out) / LAST
    whole = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        inside = [
            info.header_offset + 30 + len(info.filename) + 64 + int(share * (info.file_size - 64))
            for info in archive.infolist()
            for share in (0.1, 0.9)
            if info.file_size > 500
        ]
    assert len(inside) > 10
    for place in inside:
        flipped = bytearray(whole)
        flipped[place] ^= 16
        path.write_bytes(flipped)
        with pytest.raises(TrainingError, match=r"last\.pt: cannot be read .* is damaged"):
            Run(config).resume()
    path.write_bytes(whole)
    assert Run(config).resume()


@pytest.mark.parametrize(
    "change",
    [
        lambda state: state.pop("data"),
        lambda state: state.pop("drawn"),
        lambda state: state.update(config="[]"),
        lambda state: state.update(config='{"steps": "many"}'),
        lambda state: state.update(plateau=[1.0]),
        lambda state: state.update(network={}),
        lambda state: state.update(optimizers=[]),
        lambda state: state.update(optimizers=[{"state": 3}]),
        lambda state: state.update(lineage="{"),
    ],
)
def test_a_checkpoint_of_other_content_is_refused(config, change):
    train(replace(config, steps=2))
    path = Path(config.out) / LAST
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)
    with pytest.raises(TrainingError, match=r"last\.pt: .*delete it to start anew"):
        train(config)


@pytest.mark.parametrize(
    "content", [b"step,loss\n1\n", b"step,loss\n1,2,3\n", b"a,b\n1,2\n", b"step\n\xff\n", b"step\nx\n"]
)
def test_a_damaged_log_is_refused_before_any_step(config, content):
    out = Path(config.out)
    out.mkdir()
    (out / "log.csv").write_bytes(content)
    with pytest.raises(TrainingError, match=r"log\.csv: damaged .*move it away"):
        train(config, lambda *_: pytest.fail("trained"))
    assert (out / "log.csv").read_bytes() == content


# the folder of a run


def test_two_trainings_in_one_folder(config):
    """The second one is refused by the name of the first, changes nothing, and may begin when that has ended."""
    script = (
        "import sys, time; from pathlib import Path; from ase_definet.structures.run_folder import RunFolder\n"
        "folder = RunFolder(Path(sys.argv[1]), 'training', ValueError, otherwise='', goes_on='')\n"
        "with folder: print('in', flush=True); sys.stdin.read()"
    )
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    with subprocess.Popen(
        [sys.executable, "-c", script, config.out], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        before = sorted(p.name for p in Path(config.out).iterdir())
        holder = re.escape(f"({other.pid}@{socket.gethostname()})")
        with pytest.raises(TrainingError, match=rf"another training is writing there {holder}; wait for it"):
            train(config)
        assert sorted(p.name for p in Path(config.out).iterdir()) == before
        other.kill()  # a dead holder holds nothing
    assert train(replace(config, steps=2)).step == 2


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_is_warned_of(config, monkeypatch, error):
    def acquire(_):
        raise error

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.warns(DefiNetWarning, match=r"run: its file system has no locks; start no second training there"):
        assert train(replace(config, steps=2)).step == 2


def test_a_lock_that_cannot_be_made_is_an_error_of_its_own(config, monkeypatch):
    def acquire(_):
        raise OSError(errno.ENOSPC, "No space left on device", ".lock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with pytest.raises(OSError, match="No space left"):
        train(config)


def move(folder: Path) -> None:
    folder.rename(folder.with_name("elsewhere"))


def put_another(folder: Path) -> None:
    move(folder)
    shutil.copytree(folder.with_name("elsewhere"), folder)


@pytest.mark.skipif(sys.platform == "win32", reason="folders with open files stay where they are")
@pytest.mark.parametrize("change", [shutil.rmtree, move, put_another])
@pytest.mark.parametrize("when", [1, 15, 59])
def test_a_folder_that_is_gone_ends_the_training(config, change, when):
    """And nothing makes it anew, or writes to another one in its place."""
    out = Path(config.out)
    found = {}

    def take_away(run, loss):
        del loss
        if run.step == when:
            change(out)
            found.update({p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()})

    with pytest.raises(TrainingError, match=r"run: the folder was moved or removed"):
        train(config, take_away)
    assert out.exists() == (change is put_another)
    assert found == {p: p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}
    if change is move and when == 15:
        out.with_name("elsewhere").rename(out)
        assert train(config).step == config.steps


def test_a_full_disk_ends_the_training_by_name_and_keeps_the_last_checkpoint(config, full_disk):
    plan = replace(config, out=str(full_disk / "run"), model=replace(MODEL, features=16))
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(plan)
    assert caught.value.errno == errno.ENOSPC
    assert Path(caught.value.filename).parent == full_disk / "run"
    assert not list((full_disk / "run").glob("last.pt*"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"learning_rate": 1e-3}, "learning_rate"),
        ({"batch_size": 8}, "batch_size"),
        ({"seed": 1, "ema_decay": 0.5}, "ema_decay|seed"),
        ({"training_fraction": 0.5}, "training_fraction"),
        ({"sampling_weights": {NAME: 1.0}}, "sampling_weights"),
        ({"model": replace(MODEL, dropout=0.2)}, "model"),
        ({"model": DEFINET}, "model"),
    ],
)
def test_another_run_is_not_resumed(config, changes, named):
    train(replace(config, steps=2))
    before = {p.name: p.read_bytes() for p in Path(config.out).iterdir() if p.is_file()}
    with pytest.raises(TrainingError, match=f"a run with another ({named}).*give another `out`"):
        train(replace(config, **changes))
    assert before == {p.name: p.read_bytes() for p in Path(config.out).iterdir() if p.is_file()}


def test_other_data_are_not_resumed_and_moved_ones_are(config, data, tmp_path):
    train(replace(config, steps=2))
    moved = tmp_path / "moved"
    moved.write_bytes(Path(data).read_bytes())
    assert train(replace(config, steps=3, data=str(moved))).step == 3
    other = pack_of(tmp_path / "other", radial_pairs(seed=5))
    with pytest.raises(TrainingError, match=r"another data set"):
        train(replace(config, data=str(other.path)))


def test_a_checkpoint_from_before_a_setting_existed_is_resumed(config):
    train(replace(config, steps=2))
    path = Path(config.out) / LAST
    state = torch.load(path, weights_only=True)
    values = json.loads(state["config"])
    del values["tf32"], values["model"]["pooling"]
    (state["optimizer"],) = state.pop("optimizers")
    torch.save(state | {"config": json.dumps(values)}, path)
    assert train(replace(config, steps=3)).step == 3


# the order of the data


def test_every_pair_is_seen_once_an_epoch(config):
    run = Run(config)
    seen = []
    for _ in range(9):
        seen.extend(run._next_pairs(0).tolist())
        run.drawn[0] += 1
    train_pairs = run.groups[0].indices("train").tolist()
    assert len(train_pairs) == 18
    assert sorted(seen[:18]) == sorted(seen[18:36]) == train_pairs
    assert seen[:18] != seen[18:36]


def test_the_order_follows_the_seed(config):
    orders = [Run(replace(config, seed=seed))._next_pairs(0).tolist() for seed in (0, 0, 1)]
    assert orders[0] == orders[1] != orders[2]


def test_a_fraction_is_the_same_pairs_every_time(config):
    half = [Run(replace(config, training_fraction=0.5, seed=seed)).train_pairs[0].tolist() for seed in (0, 1)]
    assert half[0] == half[1]
    assert len(half[0]) == 9
    quarter = Run(replace(config, training_fraction=0.25)).train_pairs[0].tolist()
    assert len(quarter) == 4
    assert set(quarter) < set(half[0]) < set(Run(config).train_pairs[0].tolist())
    assert len(Run(replace(config, training_fraction=1e-3)).train_pairs[0]) == 1


def drawn_by_subset(run: Run, steps: int) -> dict[str, list[int]]:
    for _ in range(steps):
        run.drawn[run._next_group()] += 1
        run.step += 1
    out: dict[str, list[int]] = {}
    for group, n in zip(run.groups, run.drawn, strict=True):
        out.setdefault(group.subset, []).append(n)
    return out


def test_subsets_get_their_share(config, several):
    """And within one its groups by their numbers of pairs."""
    config = replace(config, data=several)
    run = Run(replace(config, sampling_weights={NAME: 3.0, "low/MoS2": 1.0}))
    assert drawn_by_subset(run, 40) == {NAME: [20, 10], "low/MoS2": [10]}
    shares = np.sqrt([18, 9]) / np.sqrt([18, 9]).sum()
    drawn = drawn_by_subset(Run(config), 1000)
    assert [sum(drawn[name]) / 1000 for name in (NAME, "low/MoS2")] == pytest.approx(shares, abs=2e-3)


def test_only_subsets_with_a_share_are_trained_on(config, several):
    config = replace(config, data=several, sampling_weights={"low/MoS2": 1.0, NAME: 0.0}, steps=3)
    run = train(config)
    assert list(run.table) == ["low/MoS2"]
    assert run.drawn == [3]
    assert run.step == 3


def test_one_subset_of_cells_of_two_sizes_has_one_row(config, several):
    run = train(replace(config, data=several, steps=6))
    assert sorted(run.table) == [NAME, "low/MoS2"]
    assert min(run.drawn) >= 1


def test_shares_of_unknown_subsets(config, several):
    with pytest.raises(TrainingError, match=f"sampling_weights name low/WSe2; .* has held/MoS2, {NAME}, low/MoS2"):
        Run(replace(config, data=several, sampling_weights={"low/WSe2": 1.0}))


def test_data_without_training_pairs(config, tmp_path, several):
    pack_of(tmp_path / "val", radial_pairs(0, 3))
    with pytest.raises(TrainingError, match=f"no training pairs in {NAME}"):
        Run(replace(config, data=str(tmp_path / "val")))
    with pytest.raises(TrainingError, match="no training pairs in held/MoS2"):
        Run(replace(config, data=several, sampling_weights={"held/MoS2": 1.0}))
    with pytest.raises(StructureError, match="nothing"):
        Run(replace(config, data=str(tmp_path / "nothing")))


def test_data_without_validation_pairs_train_all_the_same(config, tmp_path):
    pack_of(tmp_path / "train", radial_pairs(5, 0))
    run = train(replace(config, data=str(tmp_path / "train"), schedule="plateau", plateau_patience=0))
    assert run.table == {}
    assert run.plateau.scale == 1.0
    assert build_card(run, "a", "1").validation == {}


# learning rate


def test_the_cosine_falls_at_the_end(config):
    run = Run(replace(config, steps=1000, warmup_steps=100, cosine_fraction=0.5, learning_rate=1.0))
    rates = {}
    for run.step in (0, 49, 99, 100, 300, 500, 750, 1000):
        rates[run.step] = run.rate()
    expected = {0: 0.01, 49: 0.5, 99: 1.0, 100: 1.0, 300: 1.0, 500: 1.0, 750: 0.5, 1000: 0.0}
    assert rates == pytest.approx(expected)


def test_the_plateau_falls_where_validation_does_not(config):
    run = Run(
        replace(config, schedule="plateau", warmup_steps=2, learning_rate=1.0, plateau_patience=2, plateau_factor=0.5)
    )
    assert run.rate() == 0.5
    run.step = 10
    rates = []
    for mae in (3.0, 2.0, 2.5, 2.5, 2.5, 2.5, 1.0, 2.0, 2.0, 2.0, 2.0):
        run.plateau.follow({"a": {"mae": mae - 0.5}, "b": {"mae": mae + 0.5}}, run.config)
        rates.append(run.rate())
    assert rates == [1.0, 1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.5, 0.5, 0.25, 0.25]


def test_the_plateau_is_used_in_training(config):
    """A rate of zero never gets better: it is divided at every check after the first, also after a kill."""
    config = replace(config, schedule="plateau", learning_rate=0.0, plateau_patience=0, plateau_factor=0.5)
    train_until(config, 44)
    assert train(config).plateau.scale == 0.25


# gradients


def test_runaway_gradients_stop_the_run(config):
    run = Run(config)
    with torch.no_grad():
        run.network.read_out.weight.fill_(torch.inf)
    before = {name: value.clone() for name, value in run.network.state_dict().items()}
    for _ in range(20):
        run.advance()
    assert all(torch.equal(value, before[name]) for name, value in run.network.state_dict().items())
    with pytest.raises(TrainingError, match="21 steps without a finite gradient by step 20: lower the learning rate"):
        run.advance()


def test_gradients_are_clipped(config):
    run = Run(replace(config, max_grad_norm=1e-3))
    run.advance()
    norm = torch.stack([p.grad.norm() for p in run.network.parameters() if p.grad is not None]).norm()
    assert float(norm) <= 1e-3 * (1 + 1e-3)


# weights


def test_exported_weights_carry_their_card(config, tmp_path, monkeypatch):
    monkeypatch.setattr(error_estimate, "_STEPS", 20)  # the fit is tested on its own
    config = replace(config, attribution="Made here.", license="CC0")
    run = train(config)
    path = export_weights(run, tmp_path / "tiny.safetensors", "tiny", "1.2")
    assert path == tmp_path / "tiny.safetensors"
    loaded = load_checkpoint(path)
    card = loaded.card
    assert (card.name, card.version) == ("tiny", "1.2")
    assert (card.attribution, card.license) == ("Made here.", "CC0")
    assert card.training.elements == ["Mo", "S"]
    host = card.training.hosts["MoS2"]
    assert host.defects == ["v_Mo", "v_S"]
    assert (host.sites, host.training_pairs) == (48, 18)
    assert host.density == pytest.approx([1 / 48, 1 / 48])
    assert (card.training.steps, card.training.batch_size) == (60, 4)
    assert card.training.data_sha256 == PackedDataset.open(config.data).sha256
    assert card.training.config == json.loads(json.dumps(config.plain()))
    assert card.parameters == sum(p.numel() for p in run.network.parameters())
    assert card.validation[NAME].plain() == pytest.approx(run.table[NAME], abs=1e-5)
    assert set(card.expected_error) == {NAME}
    beside = json.loads((tmp_path / "tiny.json").read_text())
    assert beside["card"] == card.plain()
    assert beside["sha256"] == loaded.sha256
    weights = loaded.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in run.average.state_dict().items())
    assert loaded.config == replace(MODEL, error_head_features=loaded.config.error_head_features)
    export_weights(run, path, "tiny", "1.3")
    assert load_checkpoint(path).card.version == "1.3"


def test_cards_tell_hosts_and_sizes_apart(config, several):
    run = Run(replace(config, data=several))
    host = build_card(run, "a", "1").training.hosts["MoS2"]
    assert host.training_pairs == 27
    assert host.density == pytest.approx([1 / 48, 1 / 27])
    assert "several" in build_card(run, "a", "1").attribution


def test_cards_count_what_networks_have_labelled_apart(config, tmp_path):
    pack = pack_of(tmp_path / "pack", radial_pairs(), radial_pairs(7, 0, subset=f"{LABELLED}MoS2", seed=1))
    training = build_card(Run(replace(config, data=str(pack.path))), "a", "1").training
    assert training.hosts["MoS2"].training_pairs == 18
    assert training.labelled_by_networks == {"MoS2": 7}
    assert build_card(Run(config), "a", "1").training.labelled_by_networks is None


def test_cards_know_the_runs_before(config, tmp_path, monkeypatch):
    monkeypatch.setattr(error_estimate, "_STEPS", 2)
    config = replace(config, steps=2)
    for k in range(3):
        own = replace(
            config, out=str(tmp_path / f"run{k}"), initial_weights=str(tmp_path / f"{k - 1}.safetensors") if k else ""
        )
        path = export_weights(train(own), tmp_path / f"{k}.safetensors", f"run{k}", "1")
    training = load_checkpoint(path).card.training
    assert training.initial_weights["name"] == "run1"
    assert training.initial_weights["initial_weights"]["name"] == "run0"
    assert training.initial_weights["initial_weights"]["steps"] == 2
    assert "initial_weights" not in training.initial_weights["initial_weights"]


def test_a_run_remembers_the_weights_it_began_with(config, tmp_path, monkeypatch):
    monkeypatch.setattr(error_estimate, "_STEPS", 2)
    config = replace(config, steps=2)
    first = export_weights(train(config), tmp_path / "first.safetensors", "first", "1")
    own = replace(config, out=str(tmp_path / "second"), initial_weights=str(first))
    train(own)
    first.unlink()
    again = Run(replace(own, initial_weights=""))
    assert again.resume()
    assert build_card(again, "a", "1").training.initial_weights["name"] == "first"


def test_fine_tuning_from_several_networks_takes_the_one_of_the_host(config, several, tmp_path):
    general, own = SiteNetwork(MODEL), SiteNetwork(replace(MODEL, features=4))
    sulfide = tuple(np.unique(get_host("MoS2").numbers).tolist())
    for elements, expected in ((sulfide, own), ((15,), general)):
        card = {"name": "general", "routed": [{"hosts": ["A"], "name": "own"}]}
        path = save_checkpoint(tmp_path / "a.safetensors", combine(general, {(elements,): own}), card, overwrite=True)
        run = Run(replace(config, data=several, initial_weights=str(path)))
        assert run.config.model.features == expected.config.features
        assert torch.equal(run.network.read_out.weight, expected.read_out.weight)
        assert run.lineage["initial_weights"]["name"] == ("own" if expected is own else "general")


def test_the_published_network_is_exported_without_an_estimate(config, tmp_path):
    run = train(replace(config, model=DEFINET, steps=2))
    loaded = load_checkpoint(export_weights(run, tmp_path / "a.safetensors", "a", "1"))
    assert loaded.config == DEFINET
    assert loaded.card.expected_error is None
    assert loaded.card.architecture == "DefiNet as published"


def test_fine_tuning_starts_from_given_weights(config, several, tmp_path, monkeypatch):
    """Their sizes count, their dropout and their estimate of the error do not."""
    monkeypatch.setattr(error_estimate, "_STEPS", 20)
    first = train(config)
    path = export_weights(first, tmp_path / "first.safetensors", "first", "1")
    assert load_checkpoint(path).config.error_head_features > 0
    wanted = replace(
        config,
        data=several,
        out=str(tmp_path / "second"),
        initial_weights=str(path),
        model=SiteNetworkConfig(dropout=0.3),
        sampling_weights={"low/MoS2": 1.0},
        learning_rate=1e-3,
    )
    start = Run(wanted)
    assert start.config.model == replace(MODEL, dropout=0.3)
    for network in (start.network, start.average):
        weights = network.state_dict()
        assert all(torch.equal(value, weights[name]) for name, value in first.average.state_dict().items())
    before = start.validate()["low/MoS2"]
    assert before["mae"] < 0.7 * before["ideal_sites"]  # it knows the field already
    second = train(wanted)
    assert second.table["low/MoS2"]["mae"] < before["mae"]
    assert train(wanted).step == second.step  # and can be resumed
    corrupt = Run(
        replace(wanted, out=str(tmp_path / "third"), noisy_start_fraction=0.5)
    )  # atoms may start off the sites now
    assert corrupt.config.model == replace(MODEL, dropout=0.3, noisy_starts=True)
    assert corrupt.validate()["low/MoS2"] == before
    corrupt.advance()


def test_fine_tuning_the_published_network(config, tmp_path):
    run = train(replace(config, model=DEFINET, steps=2))
    path = export_weights(run, tmp_path / "a.safetensors", "a", "1")
    config = replace(config, initial_weights=str(path), out=str(tmp_path / "b"))
    with pytest.raises(CheckpointError, match="dropout is not known to DefiNet as published"):
        Run(config)
    start = Run(replace(config, model=SiteNetworkConfig()))
    assert start.config.model == DEFINET
    assert all(torch.equal(a, b) for a, b in zip(start.network.parameters(), run.average.parameters(), strict=True))


# devices


def test_devices_that_are_not_there(config):
    kind = "tpu" if torch.cuda.is_available() else "cuda"
    with pytest.raises(DeviceError, match=f"1 device.s. of kind '{kind}' are not here"):
        Run(replace(config, accelerator=kind))


def can_listen() -> bool:
    with socket.socket() as one:
        try:
            one.bind(("127.0.0.1", 0))
        except OSError:
            return False
    return True


@pytest.mark.skipif(not can_listen(), reason="no sockets here")
@pytest.mark.parametrize("architecture", ["site", "definet"])
def test_two_processes_train_like_one(config, tmp_path, architecture):
    """Without dropout the same pairs give the same gradients, however they are shared out."""
    model = replace(MODEL, dropout=0.0) if architecture == "site" else DEFINET
    config = replace(config, model=model, steps=20, learning_rate=3e-3)
    script = tmp_path / "go.py"
    script.write_text(
        "import json, sys\n"
        "from ase_definet.training.config import make_config\n"
        "from ase_definet.training.run import train\n"
        "if __name__ == '__main__':\n"
        "    train(make_config(json.loads(sys.argv[1])))\n"
    )
    one = train(config)
    two = replace(config, devices=2, out=str(tmp_path / "two"))
    environment = os.environ | {"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"}
    arguments = [sys.executable, str(script), json.dumps(two.plain())]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    rows = log_of(two)
    assert [row["step"] for row in rows] == ["20"]
    for key in ("mae", "a3"):
        assert float(rows[0][f"{NAME} {key}"]) == pytest.approx(one.table[NAME][key], abs=10 * SAME)
    resumed = train(replace(two, devices=1, steps=21))  # what two have done, one goes on with
    assert resumed.step == 21
    assert resumed.drawn == [21]
