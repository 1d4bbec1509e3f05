"""The loop on data made here: it learns, and a killed run goes on exactly where it was."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.io import write

from ase_definet.checkpoint import load_checkpoint
from ase_definet.errors import StructureError
from ase_definet.host import library
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.train.card import export_weights
from ase_definet.train.loop import Run, TrainConfig, rate_at, train
from ase_definet.train.pack import pack as pack_2dmd
from tests.conftest import DEVICES, pristine

MODEL = SiteNetworkConfig(cutoff=4.0, features=8, layers=1, radial=6, embedding=4)


def pack(path: Path, n: int = 4, pairs: int = 24) -> None:
    """Write pairs whose atoms move radially away from vacancies: a field an equivariant network can learn."""
    unit, atoms = pristine("MoS2", 1), pristine("MoS2", n)
    rng = np.random.default_rng(0)
    numbers = np.tile(atoms.numbers, (pairs, 1))
    move = np.zeros((pairs, len(atoms), 3), dtype=np.float32)
    for k in range(pairs):
        gone = int(rng.integers(len(atoms)))
        numbers[k, gone] = 0
        delta = -atoms.get_distances(gone, range(len(atoms)), mic=True, vector=True)
        length = np.linalg.norm(delta, axis=1, keepdims=True)
        move[k] = np.where(length > 0, -0.3 * delta / np.maximum(length, 1) ** 3, 0)
        move[k, gone] = 0
    np.savez(
        path,
        ids=np.array([f"pair{k}" for k in range(pairs)]),
        split=np.array(["train"] * (pairs - 6) + ["val"] * 6),
        numbers=numbers.astype(np.uint8),
        start=np.zeros_like(move),
        move=move,
        unit_numbers=unit.numbers,
        unit_positions=unit.positions,
        unit_cell=unit.cell.array,
        n=n,
    )


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    pack(tmp_path / "high-MoS2.npz")
    return TrainConfig(
        data=str(tmp_path),
        out=str(tmp_path / "run"),
        weights={"high-MoS2": 1.0},
        model=MODEL,
        steps=60,
        batch=4,
        rate=1e-2,
        warmup=5,
        ema=0.9,
        check=20,
        save=10,
    )


@pytest.mark.parametrize("device", DEVICES)
def test_it_learns(config, device):
    run = Run(replace(config, device=device))
    before = run.validate()["high-MoS2"]
    after = train(replace(config, device=device, steps=150)).validate()["high-MoS2"]
    assert after["mae"] < 0.5 * before["mae"]
    assert after["mae"] < 0.5 * after["dummy"]
    assert after["a3"] < before["a3"]


def test_a_killed_run_goes_on_exactly(config, tmp_path):
    whole = train(replace(config, out=str(tmp_path / "whole")))
    killed = Run(config)
    for _ in range(37):
        killed.advance()
        if killed.step % config.save == 0:
            killed.save()
    resumed = train(config)
    assert resumed.step == whole.step == 60
    for a, b in zip(whole.average.parameters(), resumed.average.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(whole.net.parameters(), resumed.net.parameters(), strict=True):
        assert torch.equal(a, b)


def test_a_kill_while_saving_leaves_the_last_checkpoint(config, monkeypatch):
    run = Run(config)
    run.advance()
    run.save()
    run.advance()

    def full(*args, **kwargs):
        del args, kwargs
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space"):
        run.save()
    again = Run(config)
    assert again.resume()
    assert again.step == 1


def test_every_pair_is_seen_once_an_epoch(config):
    run = Run(config)
    seen = []
    for _ in range(9):
        seen.extend(run._next_batch("high-MoS2"))
        run.drawn["high-MoS2"] += 1
    train_pairs = run.sets["high-MoS2"].indices("train")
    assert sorted(seen[:18]) == sorted(seen[18:36]) == sorted(train_pairs)
    assert seen[:18] != seen[18:36]


def test_subsets_get_their_share(config, tmp_path):
    pack(tmp_path / "low-MoS2.npz")
    run = Run(replace(config, weights={"high-MoS2": 3.0, "low-MoS2": 1.0}))
    for _ in range(40):
        run.drawn[run._next_subset()] += 1
        run.step += 1
    assert run.drawn == {"high-MoS2": 30, "low-MoS2": 10}


def test_rate(config):
    config = replace(config, steps=1000, warmup=100, decay=0.5, rate=1.0)
    assert rate_at(config, 49) == pytest.approx(0.5)
    assert rate_at(config, 300) == 1.0
    assert rate_at(config, 750) == pytest.approx(0.5)
    assert rate_at(config, 1000) == pytest.approx(0.0)


def test_exported_weights_carry_their_card(config, tmp_path):
    run = train(config)
    path = export_weights(run, tmp_path, "tiny", "1.2")
    loaded = load_checkpoint(path)
    assert loaded.card["training"]["hosts"]["MoS2"]["defects"] == ["V_Mo", "V_S"]
    assert loaded.card["training"]["elements"] == ["Mo", "S"]
    assert "Zenodo 14027373" in loaded.card["attribution"]
    assert loaded.card["validation"]["high-MoS2"]["mae"] > 0
    for a, b in zip(loaded.model.parameters(), run.average.parameters(), strict=True):
        assert torch.equal(a, b)


def test_runaway_gradients_stop_the_run(config):
    run = Run(config)
    with torch.no_grad():
        run.net.read_out.weight.fill_(torch.inf)
    run.skipped = 20
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        run.advance()


def test_packing_the_published_layout(tmp_path):
    """Sites, splits and displacements come back; a test id without its relaxed structure is kept for prediction."""
    folder = tmp_path / "high_density_defects" / "MoS2_500"
    (folder / "CIF").mkdir(parents=True)
    rng = np.random.default_rng(0)
    planted = {}
    for split, name in (("train", "one"), ("val", "two"), ("test", "three")):
        (folder / f"{split}.csv").write_text(f"atoms_id\n{name}\n")
        unrelaxed = pristine("MoS2", 8)
        unrelaxed.positions[:, 2] += library()["MoS2"].positions[0, 2] - unrelaxed.positions[0, 2]  # as in 2DMD
        gone = int(rng.integers(192))
        del unrelaxed[gone]
        unrelaxed.wrap()
        moves = rng.normal(scale=0.05, size=(191, 3))
        relaxed = unrelaxed.copy()
        relaxed.positions += moves - moves.mean(axis=0)
        write(folder / "CIF" / f"{name}_unrelaxed.cif", unrelaxed)
        if split != "test":
            write(folder / "CIF" / f"{name}_relaxed.cif", relaxed)
        planted[name] = moves - moves.mean(axis=0)
    pack_2dmd(tmp_path, tmp_path / "packed")
    with np.load(tmp_path / "packed" / "high-MoS2.npz") as z:
        assert z["split"].tolist() == ["train", "val", "test"]
        for k, name in enumerate(z["ids"]):
            moves = planted[name]
            assert len(np.flatnonzero(z["numbers"][k] == 0)) == 1
            real = z["numbers"][k] > 0
            if name == "three":
                assert np.isnan(z["move"][k]).all()
            else:
                length = np.linalg.norm(z["move"][k][real], axis=1)
                assert np.abs(np.sort(length) - np.sort(np.linalg.norm(moves, axis=1))).max() < 1e-4
    with pytest.raises(StructureError, match="expected folders"):
        pack_2dmd(tmp_path / "packed", tmp_path / "again")
