"""The report of a screen: what is in it, and that a browser shows it."""

from __future__ import annotations

import csv
import html
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from ase import Atoms
from ase.io import read, write
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import OutputExistsError, ScreeningError
from ase_definet.screening.html_report import write_report
from ase_definet.screening.screen import COLUMNS, FAILURE_COLUMNS, FAILURES, TABLE
from ase_definet.screening.structures_file import STRUCTURES
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


def test_largest_expected_error_first(results, tmp_path):
    data = embedded(write_report(results, tmp_path / "r.html", rows=4).read_text(encoding="utf-8"))
    assert data["rows"][0]["name"] == "unseen.vasp"  # of which nothing is known
    values = [row["mean_expected_error_near"] for row in data["rows"]]
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


PWNED = "document.title='pwned'"
HOSTILE = [
    *("{{data}}", "{{title}}", "{{about}}", "{{table}}", "{{", "}}", "\\g<0> \\1 $& $1"),
    *(f"</script><script>{PWNED}</script>", f"<!--<script>{PWNED}", "<!--<script>", "-->", "]]>", "<![CDATA["),
    *(f'"><img src=x onerror="{PWNED}">', f"'><svg onload={PWNED}>", f"<b onclick={PWNED}>b</b>", "</title></h1>"),
    *("${document.title='pwned'}", f"`;{PWNED};`", f"javascript:{PWNED}", "&lt;script&gt; &amp; &", "%3Cscript%3E"),
    *(
        "\u2028\u2029",
        "line\nbreak\rand\ttab",
        "\x01\x7f\x1b[31m",
        "\u202egnp.exe",
        "\ufeff\u200b",
        "é 漢字 \U0001f4a5",
    ),
    *("", " ", "__proto__", "constructor", "toString", "12", "1e5", "NaN", 'a;b,c"d', "x" * 20_000),
]


def hostile_folder(folder):
    """Write what a screen of structures with hostile names would, in every column that holds text."""
    folder.mkdir(parents=True)
    number = {key: 0.01 for key in COLUMNS if re.match("largest|mean|strain|seconds|density", key)}
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        for k, name in enumerate(HOSTILE):
            text = dict.fromkeys(("name", "formula", "host", "supercell", "defects", "outside", "warnings"), name)
            # every other one is inside the training data, else all would be unknown
            expected = {"outside": ""} if k % 2 else {key: "" for key in number if key.startswith("mean_expected")}
            table.writerow({"index": k, "sites": 3, **number, **text} | expected)
    with (folder / FAILURES).open("w", newline="", encoding="utf-8") as stream:
        failures = csv.DictWriter(stream, FAILURE_COLUMNS)
        failures.writeheader()
        failures.writerows(
            {"index": len(HOSTILE) + k, "name": name, "reason": f"because {name}"} for k, name in enumerate(HOSTILE)
        )
    for k in range(len(HOSTILE)):
        atoms = Atoms("MoS2", positions=[[0, 0, 5], [1.6, 0, 6.5], [1.6, 0, 3.5]], cell=[3.2, 5.5, 20], pbc=True)
        atoms.info["defect_sites"] = f"</script><script>{PWNED}</script> 0 0 5; <!--<script> 1 1 5".replace("</", "<")
        write(folder / STRUCTURES, atoms, format="extxyz", append=k > 0)
    (folder / "run.json").write_text(json.dumps({"inputs": HOSTILE, "host": "\udce9", "more": HOSTILE[7:9]}))
    return folder


def browsed(page, profile):
    """Return the page as a browser left it, and what it complained of."""
    arguments = [
        BROWSER,
        *QUIET,
        f"--user-data-dir={profile}",
        "--enable-logging=stderr",
        "--dump-dom",
        page.as_uri(),
    ]
    done = subprocess.run(arguments, capture_output=True, check=True, timeout=120)
    complaints = [line for line in done.stderr.decode("utf-8", "replace").splitlines() if "CONSOLE" in line]
    return done.stdout.decode("utf-8"), complaints


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize(
    "folder", ["results", "{{data}}", "javascript:alert(1)", "<!--<script>", 'a"b&c#d?e%f', "é 漢"]
)
def test_hostile_names_are_shown_and_nothing_else(tmp_path, folder):
    results = hostile_folder(tmp_path / folder)
    page, complaints = browsed(write_report(results, tmp_path / "report.html"), tmp_path / "profile")
    assert complaints == []
    title = f"{folder}: {len(HOSTILE)} structures relaxed"
    assert html.unescape(re.search("<title>(.*?)</title>", page)[1]) == title
    assert html.unescape(re.search("<h1>(.*?)</h1>", page)[1]) == title
    assert len(re.findall("<script", page.split('id="data"')[0])) == 1
    assert len(re.findall("<script", page.split("</script>", 1)[1])) == 1
    assert not re.search("<(img|svg|b|iframe)[ >]", page.split("</header>")[1].split("</main>")[0])
    body = page.split('id="body"')[1].split("</tbody>")[0]
    lines = re.findall(r'<tr data-index="(\d+)".*?</tr>', body, re.DOTALL)
    assert sorted(map(int, lines)) == list(range(len(HOSTILE)))
    named = {
        int(k): html.unescape(name)
        for k, name in re.findall(r'<tr data-index="(\d+)"[^>]*>(?:<td[^>]*>[^<]*</td>)<td[^>]*>([^<]*)<', body)
    }
    listed = [html.unescape(name) for name in re.findall("<li><bdi>([^<]*)</bdi>", page)]
    for k, name in enumerate(HOSTILE):
        # the parser of the dump turns carriage returns into line feeds, as all parsers of HTML do
        shown = (name if name.strip() else "(no name)").replace("\r", "\n")
        assert named[k].replace("\r", "\n") == shown
        assert listed[k].replace("\r", "\n") == shown
    unknown = sum(1 for k, name in enumerate(HOSTILE) if not k % 2 and name.split())
    assert f"the expected error of {unknown} is unknown" in page
    assert body.count('<td class="unknown">unknown</td>') == 3 * unknown
    order = [int(k) for k in lines]
    assert all(HOSTILE[k].split() and not k % 2 for k in order[:unknown])
    links = re.findall('<a href="([^"]*)"', page)
    assert len(links) == 3
    for link, name in zip(links, (STRUCTURES, TABLE, FAILURES), strict=True):
        assert html.unescape(link).startswith("./")
        assert (tmp_path / unquote(html.unescape(link))).samefile(results / name)


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_browser_does_complain_where_there_is_reason(tmp_path):
    page = tmp_path / "bad.html"
    page.write_text("<script>throw new Error('there is reason')</script>")
    assert "there is reason" in browsed(page, tmp_path / "profile")[1][0]


def test_the_data_are_ascii_that_no_script_element_ends_at(tmp_path):
    page = write_report(hostile_folder(tmp_path / "r"), tmp_path / "report.html").read_text(encoding="utf-8")
    text = page.split('id="data">')[1].split("</script>")[0]
    assert text.isascii()
    assert not set(text) & set("<>&")
    data = json.loads(text)
    assert {row["name"] for row in data["rows"]} == set(HOSTILE)
    assert [failure["name"] for failure in data["failures"]] == HOSTILE
    assert "{{" not in page.split('id="data">')[0].replace(html.escape(HOSTILE[0]), "").replace(HOSTILE[1], "")


@pytest.mark.skipif(os.name != "posix" or sys.platform == "darwin", reason="names of files are text there")
def test_a_folder_whose_name_is_not_utf8(tmp_path):
    results = hostile_folder(tmp_path / os.fsdecode(b"r\xe9sultats"))
    page = write_report(results, tmp_path / "report.html").read_text(encoding="utf-8")
    assert "r\\udce9sultats" in page
    assert embedded(page)["folder"] == "./r%E9sultats"


def test_the_folder_one_is_in(results, tmp_path, monkeypatch):
    monkeypatch.chdir(results)
    page = write_report(Path(), tmp_path / "report.html").read_text(encoding="utf-8")
    assert f"<title>{results.name}: " in page


def test_what_is_unknown_comes_first_and_is_counted(tmp_path):
    results = hostile_folder(tmp_path / "r")
    data = embedded(write_report(results, tmp_path / "report.html", rows=5).read_text(encoding="utf-8"))
    outside = [name for k, name in enumerate(HOSTILE) if not k % 2 and name.split()]
    assert data["unknown"] == len(outside)
    assert all(row["outside"] for row in data["rows"])
    assert data["unsupported"] == {str(int(row["index"])): row["outside"].split() for row in data["rows"]}


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
@pytest.mark.parametrize("every", [True, False])
def test_a_browser_shows_the_unknown_first(tmp_path, every):
    folder = hostile_folder(tmp_path / "r")
    with (folder / TABLE).open("w", newline="", encoding="utf-8") as stream:
        table = csv.DictWriter(stream, COLUMNS)
        table.writeheader()
        for k in range(6):
            row = {"index": k, "name": f"n{k}", "sites": 3, "largest_displacement": 0.1}
            if every or k in {2, 5}:
                row["outside"] = "species defects"
            else:
                row |= {"mean_expected_error_near": 0.01 * (k + 1), "outside": "pristine" if k == 1 else ""}
            table.writerow(row)
    page, complaints = browsed(write_report(folder, tmp_path / "report.html"), tmp_path / "profile")
    assert complaints == []
    body = page.split('id="body"')[1].split("</tbody>")[0]
    order = [int(k) for k in re.findall(r'data-index="(\d+)"', body)]
    assert order == ([0, 1, 2, 3, 4, 5] if every else [2, 5, 4, 3, 1, 0])
    unknown = re.findall(r'data-index="(\d+)".*?<td class="unknown">unknown</td>', body)
    assert [int(k) for k in unknown] == (order if every else [2, 5])
    assert f"the expected error of {6 if every else 2} is unknown" in page


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here")
def test_a_screen_in_which_all_failed(tmp_path):
    folder = hostile_folder(tmp_path / "r")
    (folder / TABLE).write_text(",".join(COLUMNS) + "\n")
    page, complaints = browsed(write_report(folder, tmp_path / "report.html"), tmp_path / "profile")
    assert complaints == []
    assert f"0 relaxed, {len(HOSTILE)} failed" in page
    assert page.count("<li><bdi>") == len(HOSTILE)
