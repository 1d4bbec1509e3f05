"""Recipes and experiments name settings that a training run has."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import click
import numpy as np
import pytest
import torch

from ase_definet.checkpoints.format import save_checkpoint
from ase_definet.cli import cli
from ase_definet.data import PackedDataset, PairSource, pack_pairs
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.training.config import make_config, read_config
from research import distill
from research.experiments import (
    broken_symmetry,
    cell_size,
    comparisons,
    data_limits,
    data_summary,
    error_vs_pairs,
    generalization_gap,
)
from research.paths import RECIPES
from tests.conftest import pristine

SCRIPT = (RECIPES / "make.sh").read_text(encoding="utf-8")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_are_runs(path):
    config = read_config(path)
    assert config.out == f"runs/{path.stem}"
    assert config.data.startswith(".data/")
    assert config.attribution


def test_what_the_script_runs_is_there_and_what_is_there_is_run_or_said_not_to_be_used():
    scripts = "".join(path.read_text(encoding="utf-8") for path in sorted(RECIPES.glob("*.sh")))
    run = set(re.findall(r"^run ([\w-]+)", scripts, re.MULTILINE)) | set(
        re.findall(r"recipes/([\w-]+)\.toml", scripts)
    )
    recipes = {path.stem: path.read_text(encoding="utf-8") for path in RECIPES.glob("*.toml")}
    assert run <= set(recipes)
    assert all("not used" in recipes[name] for name in set(recipes) - run)


@pytest.mark.parametrize(("name", "options"), comparisons.experiments().items(), ids=str)
def test_comparisons_are_runs(name, options):
    wanted = {key: value for key, value in options.items() if key != "score"}
    assert make_config(comparisons.BUDGET | {"data": "2dmd.pack", "out": "run"} | wanted).steps > 0
    assert (comparisons.OUT / f"{comparisons.stem(name)}.json").exists()


def test_error_vs_pairs_are_runs():
    config = make_config(error_vs_pairs.options("2dmd.pack", "high/P", "half", 0.5, 1))
    assert config.training_fraction == 0.5
    assert config.sampling_weights == {"high/P": 1.0}


def pretend(line: list[str]) -> None:
    """Do as a command of make.sh would, with empty files: fail where a file that it reads has not been made yet."""
    program, *args = line
    words = [word for word in args if word not in {"weights", "data"}]
    if program == "python":
        assert args[0] == "-m"
        importlib.import_module(args[1])
        words = [args[1].rsplit(".", maxsplit=1)[-1], *args[2:]]
    files = [word.split("=")[-1] for word in words if re.search(r"\.(safetensors|pack|toml)$", word)]
    if words[0] == "pack":
        made, read = [words[2]], [words[1]]
    elif words[0] == "train":
        config = read_config(Path(files[0]))
        made = [f"{config.out}/last.pt"]
        read = [files[0], config.data, *([config.initial_weights] if config.initial_weights else [])]
    elif words[0] == "export":
        made, read = [words[2]], [f"{words[1]}/last.pt"]
    elif words[0] == "distill":
        made, read = [words[2]], [file for file in files if file != words[2]]
    elif words[0] == "comparisons":
        (name,) = (name for name in comparisons.experiments() if words[2] in name)
        made, read = [str(comparisons.RUNS / comparisons.stem(name) / "weights.safetensors")], [words[1]]
    else:
        assert words[0] == "combine"
        made, read = [words[2]], [file for file in files if file != words[2]]
    assert all(Path(file).exists() for file in read), f"{words[0]} reads {read}"
    for file in made:
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        Path(file).touch()


def known(args: list[str]) -> bool:
    """Return whether the command line has a command, or one in a group, with these options."""
    command: click.Command = cli
    while isinstance(command, click.Group):
        command = command.commands[args[0]]
        args = args[1:]
    options = {name for parameter in command.params for name in parameter.opts}
    return all(word in options for word in args if word.startswith("--"))


@pytest.mark.skipif(
    os.name != "posix" or not shutil.which("bash"), reason="bash; that of Windows starts another system"
)
def test_the_script_makes_every_file_before_it_is_read(tmp_path, monkeypatch):
    """With programs that log their arguments only; what they would read and write is followed afterwards."""
    shutil.copytree(RECIPES, tmp_path / "research" / "recipes")
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    for program in ("ase-definet", "python"):
        (programs / program).write_text(f'#!/bin/sh\n(echo {program}; printf "%s\\n" "$@"; echo) >> "{log}"\n')
        (programs / program).chmod(0o755)
    (tmp_path / "2dmd").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    for first in (True, False):  # the second time everything is there
        log.write_text("")
        subprocess.run(["bash", "research/recipes/make.sh"], check=True)
        lines = [line.split("\n") for line in log.read_text().strip().split("\n\n")]
        assert [line for line in lines if line[0] == "ase-definet" and not known(line[1:])] == []
        assert any("train" in line for line in lines) == first
        for line in lines:
            pretend(line)
    assert (tmp_path / "ase_definet" / "weights" / "default.safetensors").exists()


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    """Return a pack of a few pairs of MoS2, two of them for training."""
    references = []
    for k, split in enumerate(("train", "train", "val")):
        unrelaxed = pristine("MoS2", 5)
        unrelaxed.numbers[3 * k] = 74
        del unrelaxed[[3 * k + 7]]
        relaxed = unrelaxed.copy()
        relaxed.positions[0, 2] += 0.1
        references.append(PairSource(f"pair{k}", "high/MoS2", split, "MoS2", unrelaxed, relaxed))
    path = tmp_path_factory.mktemp("tiny") / "tiny.pack"
    assert pack_pairs(references, path, workers=1)[1] == []
    return path


def run_distill(monkeypatch, *args: object) -> None:
    monkeypatch.setattr("sys.argv", ["distill", *map(str, args)])
    distill.main()


def test_labels_are_the_mean_of_the_networks_for_the_host(tiny, tmp_path, monkeypatch):
    run_distill(monkeypatch, tiny, tmp_path / "out.pack", 4, "default", "MoS2=default", "BN=no such file")
    pack = PackedDataset.open(tmp_path / "out.pack")
    assert [path.name for path in tmp_path.iterdir()] == ["out.pack"]
    (given,) = pack.subsets["high/MoS2"]
    (group,) = pack.subsets["labelled/MoS2"]
    assert len(given) == 3
    assert len(group.indices("train")) == len(group) == 4
    for index in range(4):
        defects = group.numbers[index] != group.host_numbers
        assert sorted(group.numbers[index][defects]) == [0, 74]  # as in the training pairs
        atoms, labelled = group.atoms(index)
        expected = DefiNetRelaxer("default", "MoS2", "cpu").predict(atoms).atoms.positions - atoms.positions
        found = labelled.positions - atoms.positions
        assert np.abs(found).max() > 0.01
        np.testing.assert_allclose(found - found.mean(axis=0), expected - expected.mean(axis=0), atol=1e-4)


def test_networks_without_noisy_starts_do_not_predict_again(tiny, tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match="its training ended without noisy starts"):
        run_distill(monkeypatch, tiny, tmp_path / "out.pack", 2, "default", "--repeat", "default")
    assert not (tmp_path / "out.pack").exists()


def test_repeated_predictions_are_drawn_as_often_as_asked_for(tiny, tmp_path, monkeypatch):
    torch.manual_seed(3)
    net = SiteNetwork(SiteNetworkConfig(features=8, layers=2, noisy_starts=True))
    card = {"training": {"config": {"noisy_start_fraction": 0.5}}}
    noisy = save_checkpoint(tmp_path / "noisy.safetensors", net, card)
    calls = []
    predict = distill.Teacher.__call__
    monkeypatch.setattr(
        distill.Teacher,
        "__call__",
        lambda self, numbers, starts=None: calls.append(starts) or predict(self, numbers, starts),
    )
    run_distill(monkeypatch, tiny, tmp_path / "out.pack", 2, noisy, "--repeat", f"MoS2={noisy}", "--draws", 3)
    assert [starts is None for starts in calls] == [True] + [False] * 6
    assert len({starts.tobytes() for starts in calls[1:]}) == 6  # each with noise of its own


@pytest.mark.parametrize(
    "module",
    [data_limits, data_summary, generalization_gap],
    ids=lambda module: module.__name__.rsplit(".", maxsplit=1)[-1],
)
def test_experiments_write_what_the_pages_read(tiny, tmp_path, monkeypatch, module):
    committed = json.loads(module.OUT.read_text(encoding="utf-8"))
    monkeypatch.setattr(module, "OUT", tmp_path / "out.json")
    monkeypatch.setattr("sys.argv", ["experiment", str(tiny)])
    module.main()
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert set(found) == set(committed)
    assert list(found["subsets"]) == ["high/MoS2"]
    assert set(found["subsets"]["high/MoS2"]) == set(committed["subsets"]["high/MoS2"])


def test_cells_of_every_size_are_relaxed(tmp_path, monkeypatch):
    committed = json.loads(cell_size.OUT.read_text(encoding="utf-8"))
    monkeypatch.setattr(cell_size, "OUT", tmp_path / "out.json")
    monkeypatch.setattr(cell_size, "SIZES", (4,))
    cell_size.main()
    found = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    for name, (row,) in found["cases"].items():
        first = committed["cases"][name][0]
        assert set(row) == set(first)
        for key in ("sites", "largest", "near_mean"):
            assert row[key] == pytest.approx(first[key], rel=1e-3)


@pytest.mark.parametrize("vacancy", [None, 0, 4])
def test_a_field_is_split_into_what_the_ideal_sites_allow_and_the_rest(vacancy):
    atoms = pristine("BN", 4)
    if vacancy is not None:
        del atoms[vacancy]
    cell, sites, numbers = atoms.cell.complete().array, atoms.positions, atoms.numbers
    field = np.random.default_rng(1).normal(size=sites.shape)
    part = broken_symmetry.symmetric_part(cell, sites, numbers, field)
    again = broken_symmetry.symmetric_part(cell, sites, numbers, part)
    np.testing.assert_allclose(again, part, atol=1e-9)
    np.testing.assert_allclose(part[:, 2], 0, atol=1e-9)  # a flat layer is its own mirror image
    apart = sites[:, None] - sites
    apart -= np.round(apart @ np.linalg.inv(cell)) @ cell
    near = np.linalg.norm(apart, axis=2) < 3
    towards = (near[..., None] * apart).sum(axis=1)  # as symmetric as the sites
    same = broken_symmetry.symmetric_part(cell, sites, numbers, towards)
    np.testing.assert_allclose(same, towards, atol=1e-6)
    assert (np.abs(towards).max() > 1) == (vacancy is not None)
