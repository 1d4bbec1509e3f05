"""The report of a screen: what is in it, and that a browser shows it."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import numpy as np
import pytest
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import OutputExistsError, ScreeningError
from ase_definet.report import write_report
from tests.conftest import pristine

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--virtual-time-budget=5000",
]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Screen all pairs of v_Se in 6x6 WSe2, and one structure that fails."""
    folder = tmp_path_factory.mktemp("screen")
    base = [
        "enumerate",
        "--host",
        "WSe2",
        "--supercell",
        "6x6",
        "--defects",
        "v_Se*2",
        "-o",
        str(folder / "in.extxyz"),
    ]
    assert CliRunner().invoke(cli, base).exit_code == 0
    (folder / "odd & <b>.cif").write_text("none")
    unseen = pristine("WSe2", 6)
    unseen.numbers[np.flatnonzero(unseen.numbers == 74)[3]] = 24
    write(folder / "unseen.vasp", unseen)
    inputs = [str(folder / name) for name in ("in.extxyz", "odd & <b>.cif", "unseen.vasp")]
    command = ["screen", *inputs, "--host", "WSe2"]
    done = CliRunner().invoke(cli, [*command, "-o", str(folder / "results"), "--device", "cpu"])
    assert done.exit_code == 0, done.output
    return folder / "results"


def embedded(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    return json.loads(found[1])


def test_everything_is_in_the_page(results, tmp_path):
    done = CliRunner().invoke(cli, ["report", str(results), "-o", str(tmp_path / "report.html"), "--pictures", "5"])
    assert done.exit_code == 0, done.output
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert not re.search(r"(src|href)=.?https?:", page)
    data = embedded(page)
    relaxed = read(results / "structures.extxyz", ":")
    assert data["total"] == len(data["rows"]) == len(relaxed)
    assert (data["failed"], data["failures"][0]["name"]) == (1, "odd & <b>.cif")
    assert len(data["pictures"]) == 5
    assert "<b>" not in page.split("<main>")[0]
    index, picture = next(iter(data["pictures"].items()))
    own = relaxed[int(index)]
    assert picture["symbols"] == own.get_chemical_symbols()
    assert [v / 100 for v in picture["after"][7]] == pytest.approx(own.positions[7], abs=0.006)
    before = own.positions[7] - own.arrays["definet_displacement"][7]
    assert [v / 100 for v in picture["before"][7]] == pytest.approx(before, abs=0.006)
    assert [defect[0] for defect in picture["defects"]] == ["v_Se", "v_Se"]


def test_most_uncertain_first(results, tmp_path):
    data = embedded(write_report(results, tmp_path / "r.html", rows=4).read_text(encoding="utf-8"))
    assert data["rows"][0]["name"] == "unseen.vasp"  # of which nothing is known
    values = [row["mean_uncertainty_near"] for row in data["rows"]]
    assert values[0] == ""
    assert values[1:] == sorted(values[1:], reverse=True)
    assert all(value > 0 for value in values[1:])
    assert len(values) == 4


def test_nothing_there_or_in_the_way(results, tmp_path):
    with pytest.raises(ScreeningError, match="ase-definet screen"):
        write_report(tmp_path, tmp_path / "r.html")
    (tmp_path / "r.html").write_text("mine")
    with pytest.raises(OutputExistsError):
        write_report(results, tmp_path / "r.html")
    assert CliRunner().invoke(cli, ["report", str(results), "-o", str(tmp_path / "r.html")]).exit_code == 2
    assert (tmp_path / "r.html").read_text() == "mine"


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_shows_it(results, tmp_path):
    page = write_report(results, tmp_path / "report.html")
    arguments = [BROWSER, *QUIET, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", page.as_uri()]
    done = subprocess.run(arguments, capture_output=True, text=True, check=True, timeout=120)
    relaxed = read(results / "structures.extxyz", ":")
    body = done.stdout.split('id="body"')[1].split("</tbody>")[0]
    assert body.count("<tr") == len(relaxed)
    assert 'class="chosen"' in body
    assert "odd &amp; &lt;b&gt;.cif" in done.stdout
    assert f"{len(relaxed)} relaxed, 1 failed" in done.stdout
    data = embedded(page.read_text(encoding="utf-8"))
    top = data["pictures"][str(int(data["rows"][0]["index"]))]
    drawn = rf'id="top"[^>]*data-atoms="{len(top["symbols"])}"[^>]*data-defects="{len(top["defects"])}"'
    assert re.search(drawn, done.stdout)
    assert re.findall(r'class="badge" title="outside the training data: (\w+)"', done.stdout) == [
        "species",
        "defects",
    ]
    assert "aria-sort" in done.stdout
