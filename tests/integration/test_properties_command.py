"""Properties as a user sees them: ase-definet properties, relax, ranked screens, reports."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from ase.io import read, write
from click.testing import CliRunner, Result

from ase_definet.checkpoints import bundled
from ase_definet.cli import cli
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from tests.conftest import pristine

MU_W, MU_SE = -13.0106, -3.489
BAD_POTENTIALS = {
    "Xx=-3": "'Xx' is no element",
    "X=-3": "'X' is no element",
    "Se=low": "needs a number in eV",
    "Se=nan": "must be finite",
    "Se": "expected S=-4.5, rich:S or poor:S",
    "rich:S": "holds W and Se, not S",
    "rich:": "is no element",
}


def run(*args: object) -> Result:
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as stream:
        return list(csv.DictReader(stream))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("structures")
    atoms = pristine("WSe2", 8)
    one, other = atoms.copy(), atoms.copy()
    del one[1], other[[1, 2]]
    write(out / "one.vasp", one, sort=True)
    write(out / "other.vasp", other, sort=True)
    foreign = pristine("WS2", 8)
    del foreign[1]
    write(out / "foreign.vasp", foreign, sort=True)
    write(out / "both.extxyz", [one, other])
    return out


def record(*args: object) -> dict:
    done = run("properties", *args, "--json")
    assert done.exit_code == 0, done.output
    (found,) = json.loads(done.stdout)
    return found


def test_one_file(folder):
    done = run("properties", folder / "one.vasp", "--host", "WSe2")
    assert done.exit_code == 0, done.output
    assert "eV to form" in done.stdout
    assert "chemical potentials W -13.011, Se -3.489 eV" in done.stdout
    found = record(folder / "one.vasp", "--host", "WSe2")
    energy = found["properties"]["formation_energy"]
    assert 1 < energy["value"] < 4
    assert 0 < energy["expected_error"] < 0.5
    assert (energy["unit"], energy["trust"], energy["reasons"]) == ("eV", "inside", [])
    assert found["chemical_potentials"] == {"W": MU_W, "Se": MU_SE}


@pytest.mark.parametrize(
    ("mu", "potentials"),
    [
        (["Se=-4.489"], {"W": MU_W, "Se": MU_SE - 1}),
        (["rich:Se"], {"Se": MU_SE}),
        (["rich:W"], {"W": MU_W}),
        (["poor:Se"], {"W": MU_W}),
    ],
)
def test_potentials_shift_the_energy_of_a_vacancy(folder, mu, potentials):
    plain = record(folder / "one.vasp", "--host", "WSe2")
    options = [part for one in mu for part in ("--mu", one)]
    found = record(folder / "one.vasp", "--host", "WSe2", *options)
    assert found["chemical_potentials"] == pytest.approx(found["chemical_potentials"] | potentials)
    shift = found["chemical_potentials"]["Se"] - MU_SE
    before, after = (one["properties"]["formation_energy"]["value"] for one in (plain, found))
    assert after - before == pytest.approx(shift, abs=1e-4)
    relaxed = DefiNetRelaxer(host="WSe2", device="cpu", chemical_potentials=mu).predict(read(folder / "one.vasp"))
    assert relaxed.properties["formation_energy"].value == pytest.approx(after, abs=1e-4)


def test_several_files_become_a_table(folder):
    files = [folder / "other.vasp", folder / "one.vasp", folder / "both.extxyz"]
    done = run("properties", *files, "--host", "WSe2", "--rank", "formation_energy")
    assert done.exit_code == 0, done.output
    named = [line.split()[0] for line in done.stdout.splitlines()[1:]]
    assert len(named) == 4
    assert [Path(one).name for one in named[:2]] == ["one.vasp", "both.extxyz#0"]


def test_a_bad_file_costs_no_other(folder):
    done = run("properties", folder / "one.vasp", folder / "nothing.vasp", "--host", "WSe2")
    assert done.exit_code == 1
    assert "nothing.vasp: no such file" in done.stderr
    assert "one.vasp" in done.stdout


def test_a_host_that_no_weights_know_has_no_number(folder):
    found = record(folder / "foreign.vasp", "--host", "WS2")
    energy = found["properties"]["formation_energy"]
    assert (energy["value"], energy["expected_error"], energy["trust"]) == (None, None, "outside")
    assert "WS2" in " ".join(energy["reasons"])
    done = run("properties", folder / "foreign.vasp", "--host", "WS2")
    assert "unknown   energy, gap, moment (outside: " in done.stdout
    relaxed = DefiNetRelaxer(host="WS2", device="cpu").predict(read(folder / "foreign.vasp"))
    for value in relaxed.properties.values():
        assert (value.value, value.trust) == (None, "outside")
        assert "WS2" in " ".join(value.reasons)
    assert set(relaxed.properties) == set(found["properties"])


def test_useless_potentials_are_named(folder):
    found = record(folder / "one.vasp", "--host", "WSe2", "--mu", "Te=-3")
    assert any("Te changes nothing" in text for text in found["warnings"])
    assert found["properties"] == record(folder / "one.vasp", "--host", "WSe2")["properties"]


@pytest.mark.parametrize(("mu", "said"), BAD_POTENTIALS.items())
@pytest.mark.parametrize("command", ["properties", "relax", "screen"])
def test_bad_potentials_are_one_line(folder, tmp_path, command, mu, said):
    more = ["-o", tmp_path / "out"] if command == "screen" else []
    done = run(command, folder / "one.vasp", "--host", "WSe2", "--mu", mu, *more)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_hosts_without_a_reference_have_no_limits(folder):
    done = run("properties", folder / "foreign.vasp", "--host", "WS2", "--mu", "rich:S")
    assert done.exit_code == 2
    assert "no energy of host WS2 is known" in done.stderr
    assert "as numbers, such as S=-4.5" in done.stderr


@pytest.mark.parametrize("mu", [["Se=-3", "Se=-4"], ["rich:Se", "W=-13"], ["rich:Se", "poor:Se"]])
def test_no_potential_is_given_twice(folder, mu):
    done = run("properties", folder / "one.vasp", "--host", "WSe2", "--mu", mu[0], "--mu", mu[1])
    assert done.exit_code == 2
    assert "is given twice" in done.stderr


def test_relax_prints_and_reports(folder, tmp_path):
    files = [folder / "one.vasp", folder / "other.vasp"]
    report = tmp_path / "report.json"
    done = run("relax", *files, "--host", "WSe2", "--output-dir", tmp_path, "--report", report, "--mu", "Te=-3")
    assert done.exit_code == 0, done.output
    assert done.stdout.count("eV to form") == 2
    assert "Te changes nothing" in done.stdout
    table = [line.split()[0] for line in done.stdout.splitlines() if line.endswith("  inside")]
    assert [Path(title).name for title in table] == ["one.vasp", "other.vasp"]
    for file, one in zip(files, json.loads(report.read_text()), strict=True):
        plain = record(file, "--host", "WSe2")
        assert one["properties"]["formation_energy"]["value"] == pytest.approx(
            plain["properties"]["formation_energy"]["value"], abs=1e-4
        )
        assert one["chemical_potentials"] == plain["chemical_potentials"]


def test_properties_can_be_turned_off(folder, tmp_path):
    done = run("relax", folder / "one.vasp", "--host", "WSe2", "-o", tmp_path / "a.vasp", "--properties", "none")
    assert done.exit_code == 0
    assert "eV to form" not in done.stdout
    result = DefiNetRelaxer(host="WSe2", device="cpu", properties=None).predict(read(folder / "one.vasp"))
    assert result.properties == result.chemical_potentials == {}
    assert "definet_formation_energy" not in result.atoms.info
    done = run("relax", folder / "one.vasp", "--host", "WSe2", "--properties", "none", "--mu", "Se=-3")
    assert done.exit_code == 2
    assert "leave one out" in done.stderr


def test_without_bundled_weights_nothing_changes(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(bundled, "PROPERTIES", tmp_path)
    result = DefiNetRelaxer(host="WSe2", device="cpu").predict(read(folder / "one.vasp"))
    assert result.properties == {}


def test_properties_do_not_cost_a_relaxation(folder, monkeypatch):
    relaxer = DefiNetRelaxer(host="WSe2", device="cpu")

    def fail(*_args, **_options):
        raise RuntimeError("no such luck")

    monkeypatch.setattr(relaxer.properties.predictor, "predict", fail)
    result = relaxer.predict(read(folder / "one.vasp"))
    assert all((one.value, one.trust) == (None, "outside") for one in result.properties.values())
    assert any("properties were not predicted: RuntimeError: no such luck" in text for text in result.warnings)


ENUMERATION = ["--host", "WSe2", "--supercell", "8x8", "--defects", "v_Se*2"]
RANKED = ["--rank", "formation_energy", "--keep", "4"]


@pytest.fixture(scope="module")
def ranked(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("ranked") / "results"
    done = run("screen", *ENUMERATION, *RANKED, "-o", out)
    assert done.exit_code == 0, done.output
    assert "19 structures ranked by formation_energy, the 4 best in" in done.stdout
    return out


def test_a_ranked_enumeration(ranked):
    best = rows(ranked / "ranking.csv")
    table = rows(ranked / "table.csv")
    assert [row["name"] for row in best] == [row["name"] for row in table]
    values = [float(row["value"]) for row in best]
    assert values == sorted(values)
    for one, row in zip(best, table, strict=True):
        assert float(row["formation_energy"]) == pytest.approx(float(one["value"]), abs=2e-3)
        assert float(row["formation_energy_per_defect"]) == pytest.approx(
            float(row["formation_energy"]) / 2, abs=1e-4
        )
        assert row["property_trust"] == "inside"
    relaxed = read(ranked / "structures.extxyz", ":")
    assert [one.info["definet_formation_energy"] for one in relaxed] == pytest.approx(values, abs=2e-3)


def test_pipes_and_folders_rank_alike(ranked, tmp_path):
    done = run("enumerate", *ENUMERATION, "-o", tmp_path / "folder")
    assert done.exit_code == 0, done.output
    text = run("enumerate", *ENUMERATION, "-o", "-").stdout
    piped = CliRunner().invoke(
        cli, ["screen", "-", "--host", "WSe2", *RANKED, "-o", str(tmp_path / "piped")], input=text
    )
    assert piped.exit_code == 0, piped.output
    found = run("screen", tmp_path / "folder", "--host", "WSe2", *RANKED, "-o", tmp_path / "files")
    assert found.exit_code == 0, found.output
    direct = rows(ranked / "ranking.csv")
    for other in ("piped", "files"):
        values = [float(row["value"]) for row in rows(tmp_path / other / "ranking.csv")]
        assert values == pytest.approx([float(row["value"]) for row in direct], abs=2e-3)
    assert [row["name"] for row in rows(tmp_path / "piped" / "ranking.csv")] == [row["name"] for row in direct]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_a_ranked_screen_goes_on(ranked, tmp_path):
    """Kill it while it ranks and while it relaxes; what comes out is the same."""
    out = tmp_path / "results"
    command = [sys.executable, "-c", KILLED, "screen", *ENUMERATION, *RANKED, "-o", str(out), "--block", "1"]
    for stage in ("ranking", "relaxing", "none"):
        done = subprocess.run(
            command, env=os.environ | {"STOP_WHILE": stage}, capture_output=True, text=True, check=False, timeout=300
        )
        assert done.returncode == (0 if stage == "none" else -signal.SIGKILL), done.stderr
    for name in ("ranking.csv", "unranked.csv", "inputs.csv"):
        assert (out / name).read_text() == (ranked / name).read_text()
    assert [row["name"] for row in rows(out / "table.csv")] == [row["name"] for row in rows(ranked / "table.csv")]


KILLED = """
import os, signal, sys
from ase_definet.screening import ranking, screen
ranking._CHECKPOINT = 0
ranking.Configurations.block = 5
ranking.Ranking.__init__.__kwdefaults__["checkpoint"] = 0
stage, seen = os.environ["STOP_WHILE"], []

def counted(what, real):
    def call(*args, **options):
        out = real(*args, **options)
        seen.append(what)
        if stage == what and seen.count(what) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return out
    return call

ranking.Ranking._record = counted("ranking", ranking.Ranking._record)
screen.Results.add = counted("relaxing", screen.Results.add)
from ase_definet.cli import main
sys.argv[0] = "ase-definet"
main()
"""


def test_more_of_a_ranking_go_on_from_those_that_are_there(ranked, tmp_path):
    """A larger --keep relaxes the next best, and leaves what was relaxed as it is."""
    out, whole = tmp_path / "results", tmp_path / "whole"
    shutil.copytree(ranked, out)
    more = [*RANKED[:-1], "7"]
    done = run("screen", *ENUMERATION, *more, "-o", out)
    assert done.exit_code == 0, done.output
    assert "going on after 4 structures" in done.stderr
    assert run("screen", *ENUMERATION, *more, "-o", whole).exit_code == 0
    for name in ("ranking.csv", "unranked.csv", "inputs.csv"):
        assert (out / name).read_text() == (whole / name).read_text()
    assert [row["name"] for row in rows(out / "table.csv")] == [row["name"] for row in rows(whole / "table.csv")]
    assert (out / "table.csv").read_text().startswith((ranked / "table.csv").read_text())
    again = run("screen", *ENUMERATION, *RANKED, "-o", out)
    assert (again.exit_code, "other keep" in again.stderr) == (2, True)


def test_another_ranking_needs_another_folder(ranked):
    for change in (
        ["--keep", "3"],
        ["--keep", "5", "--highest"],
        ["--highest"],
        ["--mu", "Se=-4"],
        ["--rank", "formation_energy_per_defect"],
    ):
        done = run("screen", *ENUMERATION, *RANKED, *change, "-o", ranked)
        assert done.exit_code == 2
        assert "holds the results of another request" in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--keep", "3"], "say by what they are ranked, with --rank"),
        (["--rank", "formation_energy"], "--rank needs --keep N"),
        (["--highest"], "say by what, with --rank"),
        (["--rank", "colour", "--keep", "3"], "predict formation_energy"),
        (["--rank", "formation_energy", "--keep", "3", "--properties", "none"], "needs weights for properties"),
        (["--rank", "formation_energy", "--keep", "0"], "--keep"),
        (["--properties", "nonsense"], "--properties: 'nonsense' is neither"),
        (["--properties", "default.safetensors"], "--properties: "),
        (["--limit", "3"], "--limit is for an enumeration"),
        (["--defects", "v_Se"], "give both --defects and --supercell"),
        (["--defects", "v_Se", "--supercell", "8x8"], "give it without INPUTS"),
    ],
)
def test_half_a_request_is_bad_usage(folder, tmp_path, options, said):
    done = run("screen", folder / "one.vasp", "--host", "WSe2", "-o", tmp_path / "out", *options)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_nothing_that_can_be_ranked_is_an_error(folder, tmp_path):
    done = run("screen", folder / "foreign.vasp", "--host", "WS2", *RANKED, "-o", tmp_path / "out")
    assert done.exit_code == 1
    said = (
        "none of 1 structures could be ranked by formation_energy, the first, foreign.vasp: host WS2 was not in the"
    )
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert "the 0 best" not in done.stdout
    assert rows(tmp_path / "out" / "unranked.csv")[0]["name"] == "foreign.vasp"


@pytest.mark.parametrize(
    ("host", "defects", "rank", "said"),
    [
        ("WS2", "v_S", "formation_energy", "host WS2 was not in the training data"),
        ("WSe2", "Te_Se", "formation_energy", "defects never seen in WSe2: Te_Se"),
        ("WSe2", "v_Se", "total_mag", "the training data have no total_mag of this host"),
        ("BN", "v_B", "gap_min", "gap_min is hardly predicted better than by always saying the mean"),
    ],
)
def test_an_enumeration_says_why_it_cannot_be_ranked(tmp_path, host, defects, rank, said):
    enumeration = ["--host", host, "--supercell", "8x8", "--defects", defects]
    done = run("screen", *enumeration, "--rank", rank, "--keep", "2", "-o", tmp_path / "out")
    assert done.exit_code == 1
    assert said in done.stderr
    assert said in rows(tmp_path / "out" / "unranked.csv")[0]["reason"]
    run("enumerate", *enumeration, "-o", tmp_path / "files.extxyz")
    files = run(
        "screen", tmp_path / "files.extxyz", *enumeration[:2], "--rank", rank, "--keep", "2", "-o", tmp_path / "f"
    )
    assert files.exit_code == 1
    assert said in files.stderr


@pytest.mark.parametrize("options", [[], ["--highest"]])
def test_the_pristine_host_wins_no_ranking(tmp_path, options):
    host, defective = pristine("WSe2", 8), pristine("WSe2", 8)
    del defective[1]
    write(tmp_path / "both.extxyz", [host, defective])
    rank = ["--host", "WSe2", "--rank", "formation_energy", *options]
    done = run("screen", tmp_path / "both.extxyz", *rank, "--keep", "2", "-o", tmp_path / "out")
    assert done.exit_code == 0, done.output
    assert [row["name"] for row in rows(tmp_path / "out" / "ranking.csv")] == ["both.extxyz#1"]
    assert "this is the pristine host" in rows(tmp_path / "out" / "unranked.csv")[0]["reason"]
    done = run("properties", tmp_path / "both.extxyz", *rank)
    assert done.exit_code == 0, done.output
    assert done.stdout.splitlines()[1].split()[0].endswith("#1")
    assert "1 of 2 structures have no formation_energy and come last" in done.stderr
    assert "this is the pristine host" in done.stderr


def test_a_ranking_by_what_nothing_has_is_an_error(folder):
    done = run("properties", folder / "one.vasp", folder / "other.vasp", "--host", "WSe2", "--rank", "total_mag")
    assert done.exit_code == 1
    assert "Error: --rank total_mag: nothing can be ranked: no structure has a total_mag: the training" in done.stderr
    assert "one.vasp" in done.stdout


def test_the_highest_come_first(folder):
    files = [folder / "other.vasp", folder / "one.vasp"]
    up, down = (
        [
            line.split()[0]
            for line in run(
                "properties", *files, "--host", "WSe2", "--rank", "formation_energy", *more
            ).stdout.splitlines()[1:]
        ]
        for more in ([], ["--highest"])
    )
    assert up == down[::-1]
    done = run("properties", *files, "--host", "WSe2", "--highest")
    assert (done.exit_code, "say by what, with --rank" in done.stderr) == (2, True)


@pytest.mark.parametrize(
    ("options", "reason", "value"),
    [
        (["--charge", "-1"], "net charge -1", False),
        (["--functional", "HSE06"], "trained on PBE for this host, not on HSE06", False),
        (["--spin", "3"], "the labels are those of ground states", True),
        (["--functional", "PBE"], "", True),
    ],
)
@pytest.mark.parametrize("given", ["option", "file"])
def test_a_state_counts_however_it_is_given(folder, tmp_path, options, reason, value, given):
    file = folder / "one.vasp"
    if given == "file":
        atoms, key = read(file), {"--charge": "charge", "--spin": "spin_multiplicity"}.get(options[0], "functional")
        atoms.info[key] = options[1] if key == "functional" else int(options[1])
        file = tmp_path / "one.extxyz"
        write(file, atoms)
    found = record(file, "--host", "WSe2", *(options if given == "option" else []))
    energy = found["properties"]["formation_energy"]
    assert (energy["value"] is not None) == value
    assert reason in " ".join(energy["reasons"])


def test_several_charges_have_a_line_each(folder):
    done = run("properties", folder / "one.vasp", "--host", "WSe2", "--charge", "-1:1")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["q-1", "q0", "q+1"]
    assert [line.split()[-1] for line in lines] == ["outside", "inside", "outside"]


@pytest.mark.parametrize("mu", ["Se=3.489", "Se=-0.4", "Se=-34.89"])
@pytest.mark.parametrize("command", ["properties", "relax", "screen"])
def test_potentials_that_cannot_be_meant_are_said_once(folder, tmp_path, command, mu):
    more = {"properties": [], "relax": ["-o", tmp_path / "a.vasp"], "screen": ["-o", tmp_path / "out"]}[command]
    done = run(command, folder / "one.vasp", "--host", "WSe2", "--mu", mu, *more)
    assert done.exit_code == 0, done.output
    assert done.output.count(f"the chemical potential {mu} eV lies") == 1


@pytest.mark.parametrize("mu", ["Se=-3.489", "Se=-5", "rich:Se", "poor:Se"])
def test_potentials_that_can_be_meant_are_not_doubted(folder, mu):
    assert record(folder / "one.vasp", "--host", "WSe2", "--mu", mu)["warnings"] == []


@pytest.mark.parametrize("mu", ["rich:S", "rich:Te"])
def test_a_limit_that_the_found_host_lacks_is_said_once(folder, tmp_path, mu):
    out = tmp_path / "a.vasp"
    done = run("relax", folder / "foreign.vasp", "--host", "auto", "--mu", mu, "-o", out)
    assert done.exit_code == 1
    assert done.stdout.count("no energy of host WS2 is known" if mu == "rich:S" else "holds W and S, not Te") == 1
    assert "Error: --mu cannot be used in the hosts of 1 of 1 structures" in done.stderr
    assert out.exists()


def test_columns_without_a_ranking(folder, tmp_path):
    done = run("screen", folder, "--host", "WSe2", "-o", tmp_path / "out", "--mu", "Te=-3", "--mu", "Se=-4.489")
    assert done.exit_code == 0, done.output
    assert "the chemical potential of Te changes nothing" in done.stderr
    table = {row["name"]: row for row in rows(tmp_path / "out" / "table.csv")}
    plain = record(folder / "one.vasp", "--host", "WSe2")["properties"]["formation_energy"]["value"]
    assert float(table["one.vasp"]["formation_energy"]) == pytest.approx(plain - 1, abs=1e-4)


def data_of(page: Path) -> dict:
    text = page.read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


def test_reports_are_ranked(ranked, tmp_path):
    assert run("report", ranked, "-o", tmp_path / "a.html").exit_code == 0
    data = data_of(tmp_path / "a.html")
    assert data["rank"] == {"column": "formation_energy", "up": True}
    assert [row["name"] for row in data["rows"]] == [row["name"] for row in rows(ranked / "table.csv")]
    assert {"formation_energy", "formation_energy_error", "property_trust"} <= set(data["columns"])
    assert "other_properties" not in data["columns"]  # all empty
    done = run("report", ranked, "-o", tmp_path / "b.html", "--rank", "largest_displacement", "--highest")
    assert done.exit_code == 0, done.output
    moves = [row["largest_displacement"] for row in data_of(tmp_path / "b.html")["rows"]]
    assert moves == sorted(moves, reverse=True)
    for options, code, said in (
        (["--rank", "colour"], 2, "no such column of numbers"),
        (["--highest"], 2, "say by which column"),
        (["--rank", "fmax"], 1, "no structure has a value of fmax"),
    ):
        done = run("report", ranked, "-o", tmp_path / "c.html", *options)
        assert (done.exit_code, said in done.stderr) == (code, True)
