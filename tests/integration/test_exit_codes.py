"""The table of exit codes in docs/cli.md, for every command: 1 for an input or a job that failed, 2 for bad usage."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from ase.io import write
from click.testing import CliRunner, Result

from ase_definet.cli import cli
from tests.conftest import mos2_with_defects

HOST = "--host MoS2"
UNUSABLE = {
    "relax": f"{{input}} {HOST} --device cpu",
    "match": f"{{input}} {HOST}",
    "properties": f"{{input}} {HOST}",
    "inputs": "{input} --code gpaw -o new",
    "vasp": "{input} -o new",
    "plot": "{input} good.vasp -o new.png",
    "plot, relaxed": "good.vasp {input} -o new.png",
    "compare-steps": f"{{input}} {HOST} --calculator emt",
    "count-steps": "{input}",
    "count-steps, control": "--control {input} good.vasp",
    "collect": "{input} -o new.vasp",
    "screen": f"{{input}} {HOST} -o new --device cpu",
    "variants": f"{{input}} {HOST} -o new --device cpu --calculator lj --without-distortions",
    "report": "{input} -o new.html",
    "data pack": f"{{input}} new.pack {HOST}",
    "data check": f"{{input}} {HOST}",
    "data info": "{input}",
    "train": "{input}",
    "train, data": "--preset small --data {input} -o new",
    "evaluate": f"--data {{input}} {HOST} --device cpu",
    "weights import": "{input} new.safetensors",
    "weights upgrade": "{input} new.safetensors",
    "weights export": "{input} new.safetensors",
    "weights combine": "{input} new.safetensors --host-weights BN default",
    "weights ensemble": "new.safetensors {input} --data good.vasp",
}
"""How every command that reads is given an input."""
READ_NOTHING = {"hosts", "calculators", "weights list", "enumerate"}
USAGE = {
    "relax": [
        f"good.vasp {HOST} --model nonsense",
        f"good.vasp {HOST} --device nonsense",
        f"good.vasp {HOST} --max-strain nan",
        f"good.vasp {HOST} -o good.vasp --overwrite",
        "good.vasp --host MoS3",
        "good.vasp",
        f"good.vasp {HOST} --calculator nonsense",
        f"good.vasp {HOST} --calculator no_such_package:Thing",
        f"good.vasp {HOST} --calculator emt --set nonsense",
        f"good.vasp {HOST} --calculator emt --set mass=3",
        f"good.vasp {HOST} --calculator emt --fmax nan",
        f"good.vasp {HOST} --calculator emt --max-steps 0",
        f"good.vasp {HOST} --calculator emt --set asap_cutoff=true --dft gpaw new",
        f"good.vasp {HOST} --refine",
        f"good.vasp {HOST} --properties nonsense",
        f"good.vasp {HOST} --mu S=low",
        f"good.vasp {HOST} --mu S=-4 --properties none",
    ],
    "match": ["good.vasp --host MoS3", f"good.vasp {HOST} --max-strain nan"],
    "properties": [
        "good.vasp --host MoS3",
        "good.vasp",
        f"good.vasp {HOST} --max-strain nan",
        f"good.vasp {HOST} --model nonsense",
        f"good.vasp {HOST} --model good.safetensors",
        f"good.vasp {HOST} --device nonsense",
        f"good.vasp {HOST} --rank colour",
        f"good.vasp {HOST} --highest",
        f"good.vasp {HOST} --charge half",
        f"good.vasp {HOST} --spin 0",
        f"good.vasp {HOST} --functional nonsense",
        f"good.vasp {HOST} --mu S",
        f"good.vasp {HOST} --mu Xx=-3",
        "good.vasp --host WS2 --mu rich:S",
    ],
    "inputs": [
        "good.vasp --code siesta -o new",
        "good.vasp --code gpaw -o good.vasp",
        "good.vasp --code gpaw -o new --kpoints dense",
        "good.vasp --code gpaw -o new --set nonsense",
        "good.vasp --code gpaw",
    ],
    "vasp": ["good.vasp -o good.vasp", "good.vasp -o new --kpoints dense", "good.vasp"],
    "plot": ["good.vasp good.vasp -o good.vasp", "good.vasp good.vasp -o new.gif", "good.vasp -o new.png"],
    "compare-steps": [
        f"good.vasp {HOST} --calculator nonsense",
        f"good.vasp {HOST} --calculator emt --model nonsense",
        f"good.vasp {HOST} --calculator emt --fmax nan",
        f"good.vasp {HOST} --calculator emt --json good.vasp",
    ],
    "count-steps": [""],
    "collect": ["other -o new.pwi", "other -o good.vasp", ""],
    "screen": [
        f"good.vasp {HOST} -o new --model nonsense",
        f"good.vasp {HOST} -o new --device nonsense",
        f"good.vasp {HOST} -o new --max-strain nan",
        f"good.vasp {HOST} -o good.vasp",
        "good.vasp --host MoS3 -o new",
        f"good.vasp {HOST} -o new --calculator nonsense",
        f"good.vasp {HOST} -o new --set rc=3",
        f"good.vasp {HOST} -o new --fmax 0.1",
        f"good.vasp {HOST} -o new --keep 3",
        f"good.vasp {HOST} -o new --rank formation_energy",
        f"good.vasp {HOST} -o new --rank colour --keep 3",
        f"good.vasp {HOST} -o new --mu S=low",
        f"good.vasp {HOST} -o new --defects v_S",
        f"{HOST} -o new",
        f"{HOST} -o new --defects v_Xx --supercell 4x4",
    ],
    "variants": [
        f"good.vasp {HOST} -o new",
        f"good.vasp {HOST} -o new --calculator nonsense",
        f"good.vasp {HOST} -o new --calculator lj --without-distortions -n 0",
        f"good.vasp {HOST} -o new --calculator lj --without-distortions --charge -1:1",
        f"good.vasp {HOST} -o good.vasp --calculator lj --without-distortions",
        "good.vasp --host MoS3 -o new --calculator lj --without-distortions",
    ],
    "report": [". -o good.vasp", ".", "other -o new.html --rank colour", "other -o new.html --highest"],
    "enumerate": ["--host MoS2 --supercell 4 --defects v_S", "--host MoS3 --supercell 4x4 --defects v_S"],
    "data pack": [f"good.vasp good.vasp {HOST}", "good.vasp new.pack --host MoS3"],
    "data check": ["good.vasp --host MoS3"],
    "data info": [""],
    "train": ["", "--preset small", "--preset nonsense --data good.vasp -o new"],
    "evaluate": [
        "--data good.vasp --model nonsense",
        "--data good.vasp --device nonsense",
        "--data good.vasp --json good.vasp",
    ],
    "weights import": ["good.vasp good.vasp", "good.vasp"],
    "weights upgrade": ["good.vasp good.vasp", "good.vasp"],
    "weights export": [". new.txt", ". good.safetensors", "."],
    "weights combine": ["default new.txt --host-weights BN default", "default new.safetensors"],
    "weights ensemble": ["new.safetensors", "--data good.vasp"],
    "weights list": ["extra"],
    "hosts": ["extra"],
    "calculators": ["extra"],
}
"""What every command is asked and cannot mean."""


def leaves(group: click.Group = cli, path: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from leaves(command, f"{path}{name} ")
        else:
            yield f"{path}{name}"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write("good.vasp", mos2_with_defects(4), sort=True)
    Path("good.safetensors").touch()
    Path("broken").write_text("what is this?\n")
    Path("broken.vasp").write_text("what is this?\n")
    Path("empty").mkdir()
    Path("other").mkdir()
    Path("other/table.csv").write_text("a,b\n1,2\n")
    return tmp_path


def run(command: str, line: str) -> Result:
    result = CliRunner().invoke(cli, [*command.split(), *line.split()])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "this is a bug" not in result.output
    return result


def contents() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in Path().rglob("*") if p.is_file() and p.parts[0] != "cache"}


def test_every_command_is_here():
    assert {name.split(",")[0] for name in UNUSABLE} | READ_NOTHING == set(leaves())
    assert set(USAGE) == set(leaves())


@pytest.mark.parametrize("given", ["missing", "broken", "broken.vasp", "empty", "other"])
@pytest.mark.parametrize("name", UNUSABLE)
def test_an_input_that_cannot_be_used_is_1(name, given):
    result = run(name.split(",")[0], UNUSABLE[name].format(input=given))
    if (name, given) in {("train", "broken"), ("train", "broken.vasp")}:
        assert result.exit_code == 2, result.output  # a configuration is read as if it were typed
    else:
        assert result.exit_code == 1, result.output
    assert given in result.output
    assert not list(Path().glob("new*.*"))


@pytest.mark.parametrize(("name", "line"), [(name, line) for name, lines in USAGE.items() for line in lines])
def test_what_cannot_be_meant_is_2(name, line):
    before = contents()
    result = run(name, line)
    assert result.exit_code == 2, result.output
    assert result.output.startswith("Error: ")
    assert contents() == before


@pytest.mark.parametrize("name", list(leaves()))
def test_options_that_do_not_exist_are_2(name):
    assert run(name, "--no-such-option").exit_code == 2
    assert run(name, "--help").exit_code == 0


@pytest.mark.parametrize("bad", ["missing", "broken.vasp", "empty", "."])
@pytest.mark.parametrize("where", [0, 1])
def test_a_bad_file_costs_the_others_nothing(bad, where):
    files = ["good.vasp"]
    files.insert(where, bad)
    result = run("relax", f"{' '.join(files)} {HOST} --device cpu --output-dir out --report new.json --vasp run")
    assert result.exit_code == 1, result.output
    assert f"Error: {bad}: " in result.output
    assert "1 of 2 structures relaxed, 1 failed" in result.output
    assert [path.name for path in Path("out").iterdir()] == ["good_relaxed.vasp"]
    assert Path("run/good/POSCAR").exists()
    assert [path.name for path in Path("run").iterdir()] == ["good"]


def test_a_folder_that_is_no_screen_is_not_called_damaged():
    for name in ("other", "empty"):
        said = run("report", f"{name} -o new.html").output
        assert "not the results of a screen" in said
        assert "damaged" not in said


def test_the_documentation_has_the_table():
    from tests.conftest import REPO  # noqa: PLC0415

    text = (REPO / "docs" / "cli.md").read_text(encoding="utf-8")
    for code in (0, 1, 2, 130):
        assert f"\n| {code} | " in text
