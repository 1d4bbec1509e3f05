"""``ase-definet evaluate`` on a corner of 2DMD, unpacked as published."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ase_definet.cli import cli
from ase_definet.data import Pack
from tests.conftest import DATA

pytestmark = pytest.mark.skipif(not DATA.exists(), reason="the 2DMD data is not here (../shared/data)")

FOLDER = "high_density_defects/MoS2_500"
SUBSET = "high/MoS2"
SIZES = {"train": 24, "val": 6, "test": 3}
LEFT = 0.6
"""The share of the unrelaxed structure's error that may be left."""


@pytest.fixture(scope="module")
def ids() -> dict[str, list[str]]:
    """Return some ids of every split."""
    out = {}
    with tarfile.open(DATA, "r:xz") as archive:
        for member in archive:
            folder, _, name = member.name.partition("/")[2].rpartition("/")
            if folder == FOLDER and name.endswith(".csv"):
                listed = archive.extractfile(member).read().decode().split()[1:]
                split = name.removesuffix(".csv")
                out[split] = listed[:: len(listed) // SIZES[split]][: SIZES[split]]
    return out


@pytest.fixture(scope="module")
def source(ids, tmp_path_factory) -> Path:
    """Write these pairs in the published layout."""
    root = tmp_path_factory.mktemp("2dmd")
    wanted = {key for keys in ids.values() for key in keys}
    with tarfile.open(DATA, "r:xz") as archive:
        for member in archive:
            path = Path(member.name.partition("/")[2])
            if path.parent == Path(FOLDER, "CIF") and path.stem.rpartition("_")[0] in wanted:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(archive.extractfile(member).read())
    for split, keys in ids.items():
        (root / FOLDER / f"{split}.csv").write_text("\n".join(["atoms_id", *keys]) + "\n")
    return root


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ase-definet"


def evaluate(source: Path, *args: object) -> Result:
    return CliRunner().invoke(cli, ["evaluate", "--data", str(source), "--device", "cpu", *map(str, args)])


def test_the_model_beats_what_needs_no_network(source, ids, cache, tmp_path):
    out = tmp_path / "val.json"
    done = evaluate(source, "--split", "val", "--json", out)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert list(result["subsets"]) == [SUBSET]
    assert result["left_out"] == []
    row = result["subsets"][SUBSET]
    assert row["n"] == SIZES["val"] == len(ids["val"])
    assert set(row["worst"]) <= set(ids["val"])
    for key, low, high in (("coordinate_mae", 0.02, 0.1), ("a3", 0.03, 0.15)):
        assert low < row["ideal_sites"][key] < high  # as the data set's own table has it
        assert row[key] < LEFT * row["ideal_sites"][key]
        assert row[key] < row["superposition"][key] < 1.1 * row["ideal_sites"][key]
    assert row["a3"] > row["a6"] > row["coordinate_mae"]
    assert 0 < row["error_quantiles"]["0.5"] < row["error_quantiles"]["0.99"] < row["error_quantiles"]["max"] < 5
    assert result["overall"]["a3"] == pytest.approx(row["a3"])
    line = next(line for line in done.output.splitlines() if line.startswith(SUBSET))
    assert f"{row['coordinate_mae']:.4f}" in line
    assert f"{row['ideal_sites']['a3']:.4f}" in line

    (packed,) = cache.iterdir()
    assert result["data_sha256"] == Pack.open(packed).sha256
    stamp = packed.stat().st_mtime_ns
    assert "packing" in done.output
    again = evaluate(source, "--split", "val", "--limit", 2, "--no-superposition")
    assert again.exit_code == 0, again.output
    assert "packing" not in again.output
    assert [path.stat().st_mtime_ns for path in cache.iterdir()] == [stamp]


def test_withheld_structures_are_named(source, ids, cache, tmp_path):
    out = tmp_path / "test.json"
    refused = evaluate(source, "--split", "test", "--json", out)
    assert refused.exit_code == 1
    assert isinstance(refused.exception, SystemExit)
    assert "no pair of the test split can be scored" in refused.output
    for key in ids["test"]:
        assert f"{SUBSET} {key}: no relaxed structure" in refused.output
    assert not out.exists()
    assert cache.is_dir()  # what was packed serves the next split
