"""Every format that ASE writes either holds the structure or is refused in one line."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms
from ase.io import read
from ase.io.formats import ioformats
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import StructureError
from ase_definet.structures.writing import KEPT, check_format, write_structure
from tests.conftest import mos2_with_defects

WRITTEN = sorted(name for name, fmt in ioformats.items() if fmt.can_write)


def named(folder, fmt):
    suffix = "db" if fmt == "db" else next(iter(ioformats[fmt].extensions), "dat")
    return folder / f"x_{fmt}.{suffix}"


@pytest.mark.filterwarnings("ignore")  # ASE's own, of many formats
@pytest.mark.parametrize("fmt", WRITTEN)
def test_a_format_holds_the_structure_or_is_refused(fmt, tmp_path):
    atoms = mos2_with_defects()
    atoms = atoms[np.argsort(atoms.numbers, kind="stable")]
    path = named(tmp_path, fmt)
    refusal = None
    try:
        check_format(path, fmt)
        write_structure(path, atoms, fmt)
    except StructureError as error:
        refusal = str(error)
    if refusal is not None:
        assert "\n" not in refusal
        assert refusal.startswith(str(path))
        assert "another format" in refusal
        return
    found = read(path, format=fmt)
    assert found.get_chemical_symbols() == atoms.get_chemical_symbols()
    np.testing.assert_allclose(found.cell.lengths(), atoms.cell.lengths(), atol=KEPT)
    apart = found.get_scaled_positions(wrap=False) - atoms.get_scaled_positions(wrap=False)
    assert np.abs((apart - np.round(apart)) @ np.asarray(atoms.cell)).max() < KEPT


@pytest.mark.parametrize("fmt", ["vasp", "extxyz", "cif", "traj", "json", "db", "xsf", "aims", "lammps-data"])
def test_common_formats_are_not_refused(fmt, tmp_path):
    check_format(named(tmp_path, fmt), fmt)


@pytest.mark.parametrize(
    ("fmt", "why"),
    [
        ("espresso-in", "needs pseudopotentials: write it with --dft espresso"),
        ("mustem", "needs more than a structure"),
        ("png", "cannot read it back"),
        ("xyz", "does not hold the cell"),
        ("postgresql", "a database on a server"),
        ("nonsense", "ASE cannot write the format nonsense"),
    ],
)
def test_why_a_format_is_refused(fmt, why, tmp_path):
    with pytest.raises(StructureError, match=why):
        check_format(tmp_path / "x", fmt)


def test_a_format_that_this_structure_does_not_fit(tmp_path):
    """EON's sorts by element: some structures it keeps, others not."""
    check_format(tmp_path / "x.con", "eon")
    cell = {"cell": [4, 4, 4], "pbc": True}
    write_structure(tmp_path / "a.con", Atoms("BBN", [[0, 0, 0], [1, 1, 1], [2, 2, 2]], **cell), "eon")
    with pytest.raises(StructureError, match="eon does not keep the order of the atoms"):
        write_structure(tmp_path / "b.con", Atoms("BNB", [[0, 0, 0], [1, 1, 1], [2, 2, 2]], **cell), "eon")


@pytest.mark.parametrize("name", ["out.pwi", "out.xtl", "out.vtu"])
def test_relax_refuses_before_any_work(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mos2_with_defects().write("POSCAR", format="vasp")
    result = CliRunner().invoke(cli, ["relax", "POSCAR", "--host", "MoS2", "--model", "no-such-weights", "-o", name])
    assert result.exit_code == 2
    assert len(result.output.splitlines()) == 1
    assert name in result.output
    assert "KeyError" not in result.output
    assert "no-such-weights" not in result.output  # that comes later
