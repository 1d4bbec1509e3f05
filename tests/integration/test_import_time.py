"""What is imported when: the heavy libraries wait until a command needs them."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from ase.io import write

from tests.conftest import mos2_with_defects

COMMAND = """
import sys
from ase_definet.cli import main
sys.argv[0] = "ase-definet"
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
"""
LIST = """
import json
print()
print(json.dumps(sorted(sys.modules)))
"""


def modules_after(code: str, *args: str) -> set[str]:
    """Return the modules loaded by a fresh interpreter that ran the code."""
    done = subprocess.run([sys.executable, "-c", code + LIST, *args], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_package_is_light():
    loaded = modules_after("import sys, ase_definet")
    assert "ase_definet" in loaded
    assert loaded.isdisjoint({"torch", "pymatgen", "torch_geometric"})


def test_the_vasp_input_set_waits_for_pymatgen():
    loaded = modules_after("import sys, ase_definet.dft.vasp; ase_definet.dft.vasp.write_vasp_inputs")
    assert loaded.isdisjoint({"torch", "pymatgen"})
    assert "pymatgen" in modules_after("import sys; from ase_definet.dft.vasp import DefiNetRelaxSet")


@pytest.mark.parametrize("args", [["--help"], ["relax", "--help"], ["--version"], ["hosts"], ["weights", "list"]])
def test_help_and_lists_need_no_torch(args):
    assert modules_after(COMMAND, *args).isdisjoint({"torch", "pymatgen"})


def test_match_needs_no_torch(tmp_path):
    write(tmp_path / "a.vasp", mos2_with_defects())
    loaded = modules_after(COMMAND, "match", str(tmp_path / "a.vasp"), "--host", "auto")
    assert "ase_definet.matching.site_map" in loaded
    assert loaded.isdisjoint({"torch", "pymatgen"})


def test_vasp_needs_no_torch(tmp_path):
    write(tmp_path / "a.vasp", mos2_with_defects())
    loaded = modules_after(COMMAND, "vasp", str(tmp_path / "a.vasp"), "-o", str(tmp_path / "run"))
    assert "ase_definet.dft.vasp" in loaded
    assert "torch" not in loaded


def test_relax_needs_torch_but_no_torch_geometric(tmp_path):
    write(tmp_path / "a.vasp", mos2_with_defects())
    loaded = modules_after(COMMAND, "relax", str(tmp_path / "a.vasp"), "--host", "MoS2", "--device", "cpu")
    assert (tmp_path / "a_relaxed.vasp").is_file()
    assert "torch" in loaded
    assert loaded.isdisjoint({"torch_geometric", "pymatgen"})
