"""Screens of enumerations: no matching, the results of the written structures, and resumption after any kill."""

from __future__ import annotations

import numpy as np
import pytest
from ase.constraints import FixAtoms
from ase.io import read
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.matching import site_map
from ase_definet.matching.library import get_host
from ase_definet.matching.shared_sites import Placed
from ase_definet.matching.site_map import match_sites
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.screening import screen as screening
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from ase_definet.screening.screen import COLUMNS, TABLE, Results, read_rows, screen
from ase_definet.screening.structures_file import ARROW, STRUCTURES, ArrowFile, read_structures
from tests.conftest import pristine
from tests.unit.matching.test_shared_sites import same_match

SETTINGS = {"model": "default", "device": "cpu", "host": "MoS2", "max_strain": 0.06}
SAME = 1e-5


def source(host="MoS2", supercell=((4, 0, 0), (0, 4, 0), (0, 0, 1)), defects="v_S*2 + W_Mo", limit=30):
    space = DefectSpace(get_host(host), np.array(supercell))
    return [one for _, one in zip(range(limit), space.enumerate(parse_defects(defects)), strict=False)]


@pytest.mark.parametrize(
    ("host", "supercell", "defects"),
    [
        ("MoS2", [[4, 0, 0], [0, 4, 0], [0, 0, 1]], "v_S*2 + W_Mo"),
        ("WSe2", [[3, 1, 0], [-1, 4, 0], [0, 0, 1]], "v_Se + S_Se"),
        ("BN", [[5, 0, 0], [0, 4, 0], [0, 0, 1]], "v_B + C_N"),
    ],
)
def test_sites_of_an_enumeration_are_those_of_a_match(host, supercell, defects):
    for one in source(host, supercell, defects):
        placed = one.space.placed(one)
        assert isinstance(placed, Placed)
        same_match(placed.site_map, match_sites(placed.atoms, get_host(host)))


def test_nothing_is_matched_after_the_host(monkeypatch):
    found = source(limit=8)
    calls = []
    real = site_map._match
    monkeypatch.setattr(site_map, "_match", lambda *given: calls.append(1) or real(*given))
    placed = [one.space.placed(one) for one in found]
    records = list(DefiNetRelaxer(host="MoS2", device="cpu", properties=None).relax_many(placed))
    assert len(records) == 8
    assert len(calls) <= 1


def same_results(one, other) -> None:
    first, second = list(read_structures(one)), list(read_structures(other))
    for a, b in zip(first, second, strict=True):
        assert a.info["name"] == b.info["name"]
        assert (a.numbers == b.numbers).all()
        assert np.abs(a.positions - b.positions).max() < SAME
        assert np.abs(a.arrays["definet_displacement"] - b.arrays["definet_displacement"]).max() < SAME
        assert a.arrays["definet_expected_error"] == pytest.approx(b.arrays["definet_expected_error"], abs=SAME)
        assert a.info["definet_defects"] == b.info["definet_defects"]
    rows = [read_rows(folder / TABLE, COLUMNS) for folder in (one, other)]
    for a, b in zip(*rows, strict=True):
        assert (a["name"], a["trust"], a["defects"], a["multiplicity"]) == (
            b["name"],
            b["trust"],
            b["defects"],
            b["multiplicity"],
        )
        assert a["mean_displacement"] == pytest.approx(b["mean_displacement"], abs=2 * SAME)


def invoke(*arguments, text=None):
    done = CliRunner().invoke(cli, list(map(str, arguments)), input=text)
    assert done.exit_code == 0, done.output
    return done


def test_an_enumeration_gives_what_its_file_gives_in_both_formats(tmp_path):
    asked = ["--host", "MoS2", "--supercell", "4x4", "--defects", "v_S*2 + W_Mo"]
    invoke("enumerate", *asked, "-o", tmp_path / "in.extxyz")
    invoke("screen", *asked, "-o", tmp_path / "direct", "--format", "arrow", "--block", 16)
    invoke("screen", tmp_path / "in.extxyz", "--host", "MoS2", "-o", tmp_path / "file")
    invoke("screen", "-", "--host", "MoS2", "-o", tmp_path / "piped", text=(tmp_path / "in.extxyz").read_text())
    assert (tmp_path / "direct" / ARROW).exists()
    assert not (tmp_path / "direct" / STRUCTURES).exists()
    assert len(read(tmp_path / "file" / STRUCTURES, ":")) == len(list(read_structures(tmp_path / "direct")))
    same_results(tmp_path / "direct", tmp_path / "file")
    same_results(tmp_path / "direct", tmp_path / "piped")
    invoke("report", tmp_path / "direct", "-o", tmp_path / "report.html")
    assert ARROW in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("structures", ["extxyz", "arrow"])
def test_a_killed_screen_of_an_enumeration_goes_on_exactly(tmp_path, structures):
    settings, asked = SETTINGS | {"structures": structures}, {"structures": structures}
    found = source(limit=30)

    def run(folder, progress=lambda _: None, block=4):
        results = Results(folder, asked)
        try:
            return screen(((one.name, one) for one in found), results, settings, block=block, progress=progress)
        finally:
            results.close()

    def die(progress):
        if progress.done >= 12:
            raise KeyboardInterrupt

    run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out", die)
    name = FORMAT_FILES[structures]
    with (tmp_path / "out" / name).open("ab") as stream:  # half a block that the journal knows nothing of
        stream.write(b"\xff" * 999)
    assert run(tmp_path / "out", block=5).resumed == 12
    same_results(tmp_path / "out", tmp_path / "whole")
    found[3] = found[4]
    with pytest.raises(screening.ScreeningError, match="structure 4 was"):
        run(tmp_path / "out")


FORMAT_FILES = {"extxyz": STRUCTURES, "arrow": ARROW}


def test_an_arrow_stream_keeps_what_extended_xyz_keeps(tmp_path):
    atoms = pristine("MoS2", 3)
    atoms.set_constraint(FixAtoms([1, 2]))
    atoms.info |= {"name": "a", "number": 3, "list": [1, 2], "array": np.eye(2), "object": object()}
    atoms.set_initial_magnetic_moments(np.arange(len(atoms)))
    form = ArrowFile()
    row, left_out = form.prepared(atoms)
    assert left_out == ["object"]
    path = tmp_path / ARROW
    path.write_bytes(form.header() + form.content([row]) + form.content([]) + form.content([row, row]))
    back = list(read_structures(path))
    assert len(back) == 3
    for one in back:
        assert (one.numbers == atoms.numbers).all()
        assert (one.positions == atoms.positions).all()
        assert (one.cell.array == atoms.cell.array).all()
        assert (one.pbc == atoms.pbc).all()
        assert one.constraints[0].index.tolist() == [1, 2]
        assert one.info["number"] == 3
        assert one.info["list"] == [1, 2]
        assert (one.info["array"] == np.eye(2)).all()
        assert (one.get_initial_magnetic_moments() == np.arange(len(atoms))).all()
        assert "definet_expected_error" not in one.arrays
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(screening.ScreeningError, match="damaged"):
        list(read_structures(path))
