"""What a screen notices on the way and when it goes on: its folder, its files, its inputs, host and weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.cli import cli
from ase_definet.errors import ScreeningError
from ase_definet.matching.library import get_host
from ase_definet.screening import screen as screening
from ase_definet.screening.screen import (
    FAILURES,
    INPUTS,
    JOURNAL,
    RUN,
    TABLE,
    Results,
    digest_of,
    host_digest,
    relax_block,
    screen,
)
from ase_definet.screening.structures_file import STRUCTURES
from tests.conftest import pristine
from tests.integration.test_screen_faults import ASKED, SETTINGS, run, vacancy

FILES = (STRUCTURES, TABLE, FAILURES, INPUTS)


def source():
    return [(f"cell {k}", vacancy(k)) for k in range(4)] + [("bad", ValueError("no structure"))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("screen") / "out"
    run(source(), out, block=2)
    return out


@pytest.fixture
def out(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "out"))


# the folder


def removed(out: Path) -> None:
    shutil.rmtree(out)


def moved(out: Path) -> None:
    out.rename(out.with_name("elsewhere"))


def another_there(out: Path) -> None:
    moved(out)
    shutil.copytree(out.with_name("elsewhere"), out)


def file_removed(out: Path) -> None:
    (out / TABLE).unlink()


def file_replaced(out: Path) -> None:
    shutil.copy(out / STRUCTURES, out / "copy")
    (out / "copy").replace(out / STRUCTURES)


@pytest.mark.parametrize("fault", [removed, moved, another_there, file_removed, file_replaced])
def test_a_screen_notices_that_its_place_is_gone(tmp_path, fault):
    out, blocks = tmp_path / "out", []

    def disturb(_):
        blocks.append(1)
        if len(blocks) == 2:
            fault(out)

    with pytest.raises(ScreeningError, match="was moved or removed while this screen wrote to it; put it back"):
        run(source(), out, block=1, progress=disturb)
    assert len(blocks) == 2
    assert out.exists() == (fault not in {removed, moved})
    if fault in {moved, another_there}:
        shutil.rmtree(out, ignore_errors=True)
        out.with_name("elsewhere").rename(out)
        assert run(source(), out).resumed == 2


def test_the_command_says_so(tmp_path, monkeypatch):
    write(tmp_path / "in.extxyz", [vacancy(k) for k in range(3)])
    out = tmp_path / "out"
    monkeypatch.setattr("ase_definet.cli.screen._Meter.__call__", lambda *_: shutil.rmtree(out, ignore_errors=True))
    command = ["screen", str(tmp_path / "in.extxyz"), "--host", "MoS2", "-o", str(out), "--device", "cpu"]
    done = CliRunner().invoke(cli, [*command, "--block", "1"])
    assert done.exit_code == 1
    assert "removed while this screen wrote to it" in done.output
    assert "relaxed" not in done.output
    assert not out.exists()


# its files


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("change", ["a digit", "longer line", "cut off"])
def test_a_change_of_what_was_written_is_refused(out, name, change):
    content = (out / name).read_bytes()
    middle = content.index(b"\n") // 2
    new = {
        "a digit": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
        "longer line": content[:middle] + b"7" + content[middle:],
        "cut off": content[: len(content) // 2],
    }[change]
    if new == content:
        pytest.skip("nothing in it")
    (out / name).write_bytes(new)
    with pytest.raises(ScreeningError, match=rf"{name} (was changed|is shorter than its journal says)"):
        run(source(), out)
    assert (out / name).read_bytes() == new
    (out / name).write_bytes(content)
    assert run(source(), out).resumed == 5


def test_what_a_killed_run_left_behind_its_journal_goes(out):
    whole = {name: (out / name).read_bytes() for name in FILES}
    journal = json.loads((out / JOURNAL).read_text())
    (out / JOURNAL).write_text(json.dumps(journal | {"complete": False}))
    for name in FILES:
        with (out / name).open("ab") as stream:
            stream.write(b"half a blo")
    assert run(source(), out).resumed == 5
    assert {name: (out / name).read_bytes() for name in FILES} == whole


def test_results_without_their_journal_are_not_thrown_away(out):
    (out / JOURNAL).unlink()
    before = (out / TABLE).read_bytes()
    with pytest.raises(ScreeningError, match=r"journal\.json is gone, and .* holds results"):
        run(source(), out)
    assert (out / TABLE).read_bytes() == before


@pytest.mark.parametrize("left", [(), (RUN,), (RUN, STRUCTURES), (RUN, *FILES)])
def test_killed_before_its_first_journal_it_begins(tmp_path, left):
    out = tmp_path / "out"
    out.mkdir()
    for name in left:
        (out / name).write_text(json.dumps(ASKED) if name == RUN else "")
    (out / ".lock").touch()
    assert run(source(), out).done == 5


@pytest.mark.parametrize("content", ["{}", "[]", "", "\xff", '{"done": 5, "failed": 1, "sizes": {}}', "{" * 9999])
def test_a_damaged_journal_is_refused(out, content):
    (out / JOURNAL).write_text(content, encoding="latin-1")
    with pytest.raises(ScreeningError, match=r"journal\.json: damaged"):
        run(source(), out)


# the input


def turned(atoms: Atoms) -> None:
    atoms.positions[0, 0] += 1e-6


def another_element(atoms: Atoms) -> None:
    atoms.numbers[3] = 74


def another_cell(atoms: Atoms) -> None:
    atoms.cell[0, 0] += 1e-3


def charged(atoms: Atoms) -> None:
    atoms.info["charge"] = -1


def held(atoms: Atoms) -> None:
    atoms.set_constraint(FixAtoms([0]))


def magnetic(atoms: Atoms) -> None:
    atoms.set_initial_magnetic_moments(np.ones(len(atoms)))


def open_axis(atoms: Atoms) -> None:
    atoms.pbc = False


@pytest.mark.parametrize("place", [0, 1, 3])
@pytest.mark.parametrize("change", [turned, another_element, another_cell, charged, held, magnetic, open_axis])
def test_changed_input_is_refused_by_name(out, place, change):
    given = source()
    change(given[place][1])
    before = (out / TABLE).read_bytes()
    text = f"structure {place + 1} was cell {place} when this screen began, and holds another structure now"
    with pytest.raises(ScreeningError, match=text):
        run(given, out)
    assert (out / TABLE).read_bytes() == before


def test_other_changes_of_the_input_are_told_apart(out):
    given = source()
    with pytest.raises(
        ScreeningError, match=r"structure 5 was bad \(unreadable\) .*, and holds another structure now"
    ):
        run([*given[:4], ("bad", vacancy())], out)
    with pytest.raises(ScreeningError, match=r"structure 2 was cell 1 .*, and cannot be read now"):
        run([given[0], ("cell 1", ValueError()), *given[2:]], out)
    with pytest.raises(ScreeningError, match=r"structure 5 was bad .*, and is nothing now"):
        run(given[:4], out)
    with pytest.raises(ScreeningError, match=r"structure 2 was cell 1 .*, and is cell 2 now"):
        run([given[0], *given[2:]], out)
    assert run([*given, ("more", vacancy(9))], out).done == 6


def test_a_file_that_grew_goes_on_and_one_that_was_mended_does_not(tmp_path):
    many = [vacancy(k) for k in range(6)]
    path, out = tmp_path / "in.extxyz", tmp_path / "out"
    command = ["screen", str(path), "--host", "MoS2", "-o", str(out), "--device", "cpu"]
    write(path, many)
    whole = path.read_text().splitlines(keepends=True)
    size = len(many[0]) + 2
    path.write_text("".join(whole[: 3 * size]))
    assert CliRunner().invoke(cli, command).exit_code == 0
    path.write_text("".join(whole[: 5 * size + 7]))
    done = CliRunner().invoke(cli, command)
    assert "6 structures" in done.output
    assert "1 failed" in done.output
    path.write_text("".join(whole))
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 1
    assert "structure 6 was in.extxyz#5 (unreadable) when this screen began, and holds another" in done.output
    assert "screen into another folder" in done.output


@pytest.mark.parametrize("suffix", ["extxyz", "vasp", "cif", "traj", "json", "db"])
def test_digests_are_the_same_every_time_a_file_is_read(tmp_path, suffix):
    from ase_definet.structures.reading import read_structure  # noqa: PLC0415

    atoms = vacancy()
    atoms.set_constraint(FixAtoms([0]))
    write(tmp_path / f"a.{suffix}", atoms)
    assert len({digest_of(read_structure(tmp_path / f"a.{suffix}")) for _ in range(2)}) == 1


# the host and the weights


def test_another_host_under_the_same_path_is_refused(tmp_path):
    cell = get_host("MoS2")
    path, out = tmp_path / "host.vasp", tmp_path / "out"
    write(tmp_path / "in.extxyz", [vacancy(k) for k in range(2)])
    command = ["screen", str(tmp_path / "in.extxyz"), "--host", str(path), "-o", str(out), "--device", "cpu"]
    atoms = Atoms(cell.numbers, cell.positions, cell=cell.cell, pbc=True)
    write(path, atoms)
    assert CliRunner().invoke(cli, command).exit_code == 0
    atoms.write(tmp_path / "same.cif")
    shutil.copy(path, tmp_path / "kept")
    atoms.set_cell(atoms.cell.array * 1.002, scale_atoms=True)
    write(path, atoms)
    done = CliRunner().invoke(cli, command)
    assert done.exit_code == 2
    assert "other host_digest" in done.output
    shutil.copy(tmp_path / "kept", path)
    assert CliRunner().invoke(cli, command).exit_code == 0


def test_a_host_is_known_by_what_it_is():
    host = get_host("MoS2")
    assert host_digest(host) == host_digest(get_host("mos2"))
    assert len({host_digest(get_host(name)) for name in ("MoS2", "WSe2", "BN", "P")}) == 4
    bulk = get_host(pristine("MoS2", 3))
    assert host_digest(bulk) == host_digest(get_host(pristine("MoS2", 3)))


def test_weights_replaced_under_their_path(tmp_path):
    """Neither kept in memory under their old name, nor mixed with the old ones in one screen."""
    default = Path(resolve_model("default"))
    loaded = load_checkpoint(default)
    with torch.no_grad():
        for values in loaded.model.parameters():
            values.mul_(1.01)
    models = default, save_checkpoint(tmp_path / "other.safetensors", loaded.model, loaded.card)
    path = tmp_path / "w.safetensors"
    texts = []
    for model in models:
        shutil.copy(model, path)
        texts.append(relax_block(("a",), [vacancy()], 0, SETTINGS | {"model": str(path)}).structures)
    assert texts[0] != texts[1]
    wanted = SETTINGS | {"model": str(path), "sha256": loaded.sha256}
    assert relax_block(("a",), [vacancy()], 0, wanted).structures == texts[0]  # a worker that has them goes on
    for _ in range(2):
        screening._kept_relaxer.cache_clear()  # and one that starts now does not
        with pytest.raises(ScreeningError, match="the weights were replaced since this screen began"):
            relax_block(("a",), [vacancy()], 0, wanted)
    shutil.copy(models[0], path)
    assert relax_block(("a",), [vacancy()], 0, wanted).structures == texts[0]


def test_a_second_screen_is_told_who_holds_the_folder(out):
    results = Results(out, ASKED)
    with pytest.raises(
        ScreeningError, match=r"another screen is writing there \(\d+@.*\); wait for it, or give another"
    ):
        Results(out, ASKED)
    results.close()
    results = Results(out, ASKED)
    assert screen(source(), results, SETTINGS).done == 5
    results.close()
    assert len(read(out / STRUCTURES, ":")) == 4
