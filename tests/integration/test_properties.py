"""From labels to an evaluated ensemble, with the commands of docs/properties.md."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ase.io import write
from click.testing import CliRunner, Result

from ase_definet.cli import cli
from tests.labelled import labelled_sources

CONFIG = """preset = "properties"
data = "energies.pack"
out = "runs/SEED"
seed = SEED
targets = ["formation_energy", "gap"]
steps = 8
optimizer = "adamw"
[model]
architecture = "sparse"
features = 16
pair_features = 8
layers = 1
"""


def run(*words: str) -> Result:
    result = CliRunner().invoke(cli, list(words))
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    frames, rows = [], ["id,formation_energy_eV,gap_meV"]
    for one in labelled_sources(24, 12):
        atoms = one.unrelaxed.copy()
        atoms.info |= {"id": one.id, "host": "MoS2", "split": one.split, "subset": "own/MoS2"}
        atoms.set_array("relaxed_positions", atoms.positions.copy())
        frames.append(atoms)
        rows.append(f"{one.id},{one.labels['formation_energy']},{1000 * one.labels['gap_min']}")
    write("own.extxyz", frames)
    Path("labels.csv").write_text("\n".join([*rows, "nobody,1,1000"]) + "\n", encoding="utf-8")
    return tmp_path


@pytest.mark.usefixtures("folder")
def test_labels_to_an_evaluated_ensemble():
    packed = run("data", "pack", "own.extxyz", "energies.pack", "--labels", "labels.csv", "--workers", "1")
    assert "warning   1 of 37 labelled ids are not in the data: nobody" in packed.output
    assert "gap, eV: 36 labels" in run("data", "info", "energies.pack").output
    for seed in ("0", "1"):
        Path(f"{seed}.toml").write_text(CONFIG.replace("SEED", seed), encoding="utf-8")
        trained = run("train", f"{seed}.toml")
        assert "own/MoS2  mae" in trained.output
        run("weights", "export", f"runs/{seed}", f"{seed}.safetensors", "--version", "1")
    joined = run(
        "weights", "ensemble", "own.safetensors", "0.safetensors", "1.safetensors", "--data", "energies.pack"
    )
    assert "formation_energy own/MoS2: mean error" in joined.output
    for chosen in (("--properties", "own.safetensors"), ("--model", "own.safetensors")):
        scored = run(
            *("evaluate", "--data", "energies.pack", *chosen, "--json", "scores.json", "--plot", "plots"),
            *("--pair-additive", "--overwrite"),
        )
        assert "formation_energy, val, eV per defect site" in scored.output
    found = json.loads(Path("scores.json").read_text(encoding="utf-8"))
    row = found["properties"]["formation_energy"]["subsets"]["own/MoS2"]
    assert row["n"] == 12
    assert {"mae", "rmse", "r2", "rank_correlation", "baseline_mae", "expected_error"} <= set(row)
    assert Path("plots/parity_gap.png").stat().st_size > 1000


@pytest.mark.usefixtures("folder")
def test_displacements_cannot_be_predicted_by_them():
    run("data", "pack", "own.extxyz", "energies.pack", "--labels", "labels.csv", "--workers", "1")
    Path("0.toml").write_text(CONFIG.replace("SEED", "0"), encoding="utf-8")
    run("train", "0.toml")
    run("weights", "export", "runs/0", "0.safetensors")
    atoms = next(iter(labelled_sources(1, 0))).unrelaxed
    write("POSCAR", atoms, format="vasp")
    result = CliRunner().invoke(cli, ["relax", "POSCAR", "--host", "MoS2", "--model", "0.safetensors"])
    assert result.exit_code != 0
    assert "predicts properties: it cannot relax" in result.output


@pytest.mark.usefixtures("folder")
def test_a_pack_is_labelled_anew_and_only_with_a_table():
    run("data", "pack", "own.extxyz", "plain.pack", "--workers", "1")
    assert "labels" not in run("data", "info", "plain.pack").output
    made = run("data", "pack", "plain.pack", "energies.pack", "--labels", "labels.csv", "--label", "gap")
    assert "labels gap" in made.output
    result = CliRunner().invoke(cli, ["data", "pack", "plain.pack", "other.pack"])
    assert result.exit_code == 2
    assert "is packed already; give --labels" in result.output


@pytest.mark.usefixtures("folder")
def test_a_label_that_no_structure_has_is_a_warning():
    result = run("data", "pack", "own.extxyz", "energies.pack", "--label", "energy", "--workers", "1")
    assert "warning   no structure has a label energy" in result.output
