"""Labels: planted values come back, and each kind of bad input is one warning while the good rows are used."""

from __future__ import annotations

import gzip
import lzma
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from safetensors import safe_open
from safetensors.numpy import save_file

from ase_definet.data import PackedDataset, find_pairs, label_pack, pack_pairs, read_labels, with_labels
from ase_definet.data.labels import property_of
from ase_definet.data.packed import UNLABELLED, _digest
from ase_definet.errors import StructureError
from tests.labelled import labelled_pack, labelled_sources


def table(folder: Path, text: str, name: str = "labels.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_labels_survive_packing(tmp_path):
    sources = list(labelled_sources(8, 4))
    pack, _ = pack_pairs(sources, tmp_path / "pack", workers=1)
    assert dict(pack.labels) == {"formation_energy": "eV", "gap_min": "eV"}
    (group,) = pack.groups
    expected = {one.id: list(one.labels.values()) for one in sources}
    assert {key: row.tolist() for key, row in zip(group.ids, group.labels, strict=True)} == expected
    assert group.in_memory().labels.shape == (12, 2)
    assert len(group.labelled("val", 0)) == 4


@pytest.mark.parametrize("opener", [open, gzip.open, lzma.open])
def test_tables_join_by_id(tmp_path, opener):
    path = tmp_path / ("t.csv" + {open: "", gzip.open: ".gz", lzma.open: ".xz"}[opener])
    with opener(path, "wt", encoding="utf-8") as stream:
        stream.write("id,subset,gap_meV,n\nown-0-1,x,1500,3\nown-0-0,x,nan,2\n")
    found = read_labels(path)
    assert found.rows == {"own-0-1": {"gap": 1.5, "n": 3.0}, "own-0-0": {"n": 2.0}}
    assert found.units == {"gap": "eV", "n": ""}
    pairs, warnings = with_labels(list(labelled_sources(2, 0)), read_labels(path, ["gap"]))
    assert [one.labels.get("gap") for one in pairs] == [None, 1.5]
    assert warnings == []


@pytest.mark.parametrize(
    ("text", "words", "kept"),
    [
        ("id,gap_eV\nown-0-0,1.0\nnobody,2.0\nown-0-1,1.2\n", "1 of 3 labelled ids are not in the data: nobody", 2),
        ("id,gap_eV\nown-0-0,1.0\n", "1 of 2 structures have no labels in the table: own-0-1", 1),
        ("id,gap_eV\nown-0-0,1.0\nown-0-0,1.1\nown-0-1,1.2\n", "1 ids have several rows that differ", 1),
        ("id,gap_eV\nown-0-0,1.0\nown-0-0,1.0\nown-0-1,1.2\n", "1 rows repeat an id with the same labels", 2),
        (
            "id,gap_eV\nown-0-0,wide\nown-0-1,1.2\n",
            "1 labels are no numbers and are left out: own-0-0: gap_eV is 'wide'",
            1,
        ),
    ],
)
def test_bad_rows_are_one_warning_and_the_others_are_used(tmp_path, text, words, kept):
    pairs, warnings = with_labels(list(labelled_sources(2, 0)), read_labels(table(tmp_path, text)))
    assert [warning for warning in warnings if words in warning]
    assert sum("gap" in one.labels for one in pairs) == kept


@pytest.mark.parametrize(
    ("column", "factor", "words"),
    [
        ("gap_eV", 1000.0, "gap: 2 of 2 labels"),
        ("formation_energy_eV", 96485.0, "per defect site, expected -30 to 60"),
    ],
)
def test_labels_that_cannot_be_in_ev_are_left_out(tmp_path, column, factor, words):
    text = f"id,{column}\nown-0-0,{factor * 1.5}\nown-0-1,{factor * 1.2}\n"
    pairs, _ = with_labels(list(labelled_sources(3, 0)), read_labels(table(tmp_path, text)))
    warnings: list[str] = []
    pack, _ = pack_pairs(pairs, tmp_path / "pack", workers=1, warn=warnings.append)
    name = property_of(column)[0]
    (text,) = (warning for warning in warnings if warning.startswith(name))
    assert words in text
    assert np.isfinite(pack.groups[0].labels[:, list(pack.labels).index(name)]).sum() == (name == "formation_energy")


@pytest.mark.parametrize(
    ("text", "words"),
    [("name,gap_eV\na,1\n", "column `id`"), ("id,gap_eV\na,1\n", "has no column energy"), ("", "nothing")],
)
def test_tables_that_cannot_be_used_are_errors(tmp_path, text, words):
    with pytest.raises(StructureError, match=words):
        read_labels(table(tmp_path, text), ["energy"])


def test_info_keys_and_calculator_results_are_labels(tmp_path):
    frames = []
    for k, one in enumerate(labelled_sources(3, 0)):
        atoms = one.unrelaxed.copy()
        atoms.info |= {"id": one.id, "host": "MoS2", "gap_meV": 1000.0 + k}
        atoms.set_array("relaxed_positions", atoms.positions.copy())
        atoms.calc = SinglePointCalculator(atoms, energy=-5.0 - k)
        frames.append(atoms)
    write(tmp_path / "own.extxyz", frames)
    pairs = [replace(one, label_names=("energy", "gap_meV")) for one in find_pairs(tmp_path / "own.extxyz")]
    pack, problems = pack_pairs(pairs, tmp_path / "pack", workers=1)
    assert problems == []
    rows = np.concatenate([group.labels for group in pack.groups])
    names = list(pack.labels)
    assert sorted(rows[:, names.index("gap")].tolist()) == pytest.approx([1.0, 1.001, 1.002])
    assert sorted(rows[:, names.index("energy")].tolist()) == pytest.approx([-7.0, -6.0, -5.0])


def test_a_pack_takes_new_labels(tmp_path):
    pack = labelled_pack(tmp_path / "pack", n_train=3, n_val=1)
    path = table(tmp_path, "id,gap_eV\nown-0-0,1.0\nown-0-1,1.5\n")
    warnings: list[str] = []
    new = label_pack(pack, read_labels(path), tmp_path / "new", warn=warnings.append)
    assert dict(new.labels) == {"gap": "eV"}
    assert np.nansum(new.groups[0].labels) == 2.5
    assert any("2 of 4 structures have no labels" in text for text in warnings)
    assert np.array_equal(new.groups[0].numbers, pack.groups[0].numbers)


def test_packs_of_the_version_before_labels_are_read(tmp_path):
    path = labelled_pack(tmp_path / "pack", n_train=3, n_val=1).path
    with safe_open(path, framework="np") as file:
        metadata = {"format": UNLABELLED, "groups": file.metadata()["groups"]}
        arrays = {key: file.get_tensor(key) for key in file.keys() if not key.endswith(".labels")}  # noqa: SIM118
    save_file(arrays, tmp_path / "old", metadata | {"sha256": _digest(metadata, arrays)})
    old = PackedDataset.open(tmp_path / "old")
    assert not old.labels
    assert old.groups[0].labels.shape == (4, 0)
