"""How many ionic steps does a prediction save in CP2K? The input sets of the package, run as they are written.

Run as ``python -m research.experiments.ionic_steps FOLDER [--jobs N] [NAME...]``, which goes on where it was: FOLDER
keeps the runs, ``results/ionic_steps/cp2k/`` what came of them, a file per case. For each host the lattice constant and
the thickness are fitted first, in the same code with the same settings; the k-points of its primitive cell are those
that fold to Γ in the supercell. A run that was cut off goes on from CP2K's own restart file.

Every case is relaxed twice, from the sites of the fitted host and from the prediction on them. Steps are evaluations of
the forces: until no force is longer than 0.05 eV/Å, and until CP2K ends because no component is larger than 0.01 eV/Å.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers

from ase_definet import DefiNetRelaxer
from ase_definet.dft.codes import write_inputs
from ase_definet.dft.collect import collect
from ase_definet.dft.cp2k import read_input
from ase_definet.dft.input_set import FORCE
from ase_definet.dft.ionic_steps import IonicSteps, read_steps
from ase_definet.errors import StructureError
from ase_definet.evaluation.compare_steps import SAME_MINIMUM
from ase_definet.matching.library import get_host
from ase_definet.structures.files import replacing
from ase_definet.structures.metrics import minimum_image
from research.paths import RESULTS

OUT = RESULTS / "ionic_steps" / "cp2k"
CELL = 6
VACUUM = 16.0
"""Length of the flat layer's cell across it, in Å; for the others beside their thickness."""

STRAINS = (1.0, 1.002)
"""Where the stress is calculated to find the lattice constant at which it vanishes."""

ROUGH = 0.05
"""Largest force, in eV/Å, to which the steps are counted too; the runs end at 0.01 in every component."""

STEPS = 120
"""In place of the input set's 30, so that the runs from the host's sites end by themselves."""

OF_ONE_CASE = {f"FORCE_EVAL/DFT/{key}" for key in ("CHARGE", "UKS", "MULTIPLICITY")}
ENDED = "PROGRAM ENDED AT"
POLL = 20.0
"""Seconds between looks at a run."""

STARTS = ("sites", "predicted")
CP2K = shutil.which("cp2k.psmp") or "cp2k.psmp"


@dataclass(frozen=True)
class Case:
    """One structure: defects on sites of a host's 6x6 cell that a seed chooses.

    Attributes:
        name: Its name, and that of its file.
        host: Name of the host in the library.
        defects: As ``v_S`` or ``C_B``.
        seed: Which sites.
        charge: Net charge, in e.
    """

    name: str
    host: str
    defects: tuple[str, ...]
    seed: int = 0
    charge: int = 0


CASES = (
    Case("BN-C_B-plus", "BN", ("C_B",), charge=1),
    Case("BN-dense", "BN", ("C_B", "C_B", "C_N", "v_N")),
    Case("MoS2-one-a", "MoS2", ("v_S",)),
    Case("BN-C_N-minus", "BN", ("C_N",), charge=-1),
    Case("WSe2-one-a", "WSe2", ("v_Se",)),
    Case("MoS2-two-a", "MoS2", ("v_S", "W_Mo")),
    Case("MoS2-three-a", "MoS2", ("v_S", "v_S", "Se_S")),
    Case("WSe2-two-a", "WSe2", ("v_Se", "Mo_W")),
    Case("WSe2-three-a", "WSe2", ("v_Se", "v_Se", "S_Se")),
    Case("MoS2-one-b", "MoS2", ("v_Mo",)),
    Case("MoS2-two-b", "MoS2", ("v_S", "v_S")),
    Case("MoS2-three-b", "MoS2", ("v_Mo", "v_S", "v_S")),
    Case("WSe2-one-b", "WSe2", ("v_W",)),
    Case("WSe2-two-b", "WSe2", ("v_Se", "v_Se")),
    Case("WSe2-three-b", "WSe2", ("v_W", "v_Se", "v_Se")),
)
"""Cheap ones and those that say most first."""


def run_cp2k(folder: Path) -> None:
    """Run the input in a folder unless it ended, or go on with it where it was cut off; add its core time to a file.

    Raises:
        SystemExit: CP2K failed.
    """
    output, record = folder / "cp2k.out", folder / "run.json"
    spent = json.loads(record.read_text()) if record.is_file() else {"core_seconds": 0.0, "restarts": 0}
    source = folder / "cp2k.inp"
    if output.is_file():
        if ENDED in output.read_text(errors="replace"):
            return
        if (folder / "relax-1.restart").is_file():
            source = continued(folder)
            spent["restarts"] += 1
        else:  # cut off before its second step: from the beginning, and with nothing of what it left
            spent["core_seconds"] = 0.0
            for left in (output, *folder.glob("relax*")):
                left.unlink()
    with (folder / "stderr").open("w") as stderr:
        child = subprocess.Popen(
            [CP2K, "-i", source.name, "-o", output.name],
            cwd=folder,
            stdout=stderr,
            stderr=stderr,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        before, ended = spent["core_seconds"], 0
        while not ended:
            ended, status, usage = os.wait4(child.pid, os.WNOHANG)
            seconds = usage.ru_utime + usage.ru_stime if ended else running_seconds(child.pid)
            write_json(record, spent | {"core_seconds": before + seconds})
            time.sleep(0 if ended else POLL)
    if status or ENDED not in output.read_text(errors="replace"):
        raise SystemExit(f"{folder}: CP2K ended with {os.waitstatus_to_exitcode(status)}; see stderr there")


def running_seconds(process: int) -> float:
    """Return the core time of a running process so far: what is lost with this one, if it is killed."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def continued(folder: Path) -> Path:
    """Return CP2K's restart file with the Hessian and the orbitals that it would leave aside."""
    text = (folder / "relax-1.restart").read_text()
    if (folder / "relax-BFGS.Hessian").is_file() and "&BFGS" not in text:
        section = "&BFGS\n RESTART_HESSIAN T\n RESTART_FILE_NAME relax-BFGS.Hessian\n&END BFGS"
        text = re.sub(r"(OPTIMIZER\s+BFGS)", rf"\1\n{section}", text, count=1)
    source = folder / "continued.inp"
    source.write_text(text)
    return source


def primitive(name: str, strain: float = 1.0) -> Atoms:
    """Return the primitive cell of a host of the library, strained along the layer."""
    host = get_host(name)
    atoms = Atoms(host.numbers, host.positions, cell=host.cell, pbc=True)
    cell = atoms.cell.array.copy()
    cell[:2] *= strain
    cell[2] = [0, 0, VACUUM + np.ptp(atoms.positions[:, 2])]
    atoms.set_cell(cell)
    atoms.positions[:, :2] *= strain
    atoms.center(axis=2)
    return atoms


FIT_SETTINGS = {
    "FORCE_EVAL/STRESS_TENSOR": "ANALYTICAL",
    "FORCE_EVAL/PRINT/STRESS_TENSOR/_SECTION_PARAMETERS_": "ON",
    "MOTION/GEO_OPT/MAX_FORCE": "2e-5",
}


def fitted(name: str, folder: Path) -> Atoms:
    """Return a host's primitive cell without stress along the layer, its atoms relaxed; write what it is to a file."""
    stresses, heights = [], []
    for strain in STRAINS:
        place = folder / "hosts" / f"{name}-{strain}"
        if not (place / "cp2k.inp").is_file():
            write_inputs(
                primitive(name, strain),
                place,
                "cp2k",
                magnetic="none",
                kpoints=(CELL, CELL, 1),
                settings=FIT_SETTINGS,
                overwrite=True,
            )
        run_cp2k(place)
        _, atoms = collect(place)
        heights.append(float(np.ptp(atoms.positions[:, 2])))
        stresses.append(stress(place / "cp2k.out"))
    (slope, offset) = np.polyfit(STRAINS, stresses, 1)
    strain = float(-offset / slope)
    height = float(np.polyval(np.polyfit(STRAINS, heights, 1), strain))
    out = primitive(name, strain)
    middle = out.cell[2, 2] / 2
    before = np.ptp(out.positions[:, 2])
    if before:
        out.positions[:, 2] = middle + (out.positions[:, 2] - middle) * height / before
    write_json(
        OUT / "hosts" / f"{name}.json",
        {
            "host": name,
            "a": float(np.linalg.norm(out.cell[0])),
            "thickness": height,
            "library_thickness": float(np.ptp(get_host(name).positions[:, 2])),
            "library_a": float(np.linalg.norm(get_host(name).cell[0])),
            "strains": STRAINS,
            "stresses_GPa": stresses,
            "kpoints": [CELL, CELL, 1],
        },
    )
    return out


def stress(output: Path) -> float:
    """Return the mean stress along the layer of the last geometry, in GPa."""
    last = output.read_text().rpartition("Analytical stress tensor [GPa]")[2]
    xx = re.search(r"STRESS\|\s+x\s+(-?\d\S+)", last)
    yy = re.search(r"STRESS\|\s+y\s+-?\d\S+\s+(-?\d\S+)", last)
    if xx is None or yy is None:
        raise SystemExit(f"{output}: no stress tensor")
    return (float(xx[1]) + float(yy[1])) / 2


def structure(case: Case, unit: Atoms) -> Atoms:
    """Return the defective supercell on the sites of the host."""
    atoms = unit.repeat((CELL, CELL, 1))
    rng = np.random.default_rng(case.seed)
    taken: list[int] = []
    for defect in case.defects:
        new, site = defect.split("_")
        free = [i for i in np.flatnonzero(atoms.numbers == atomic_numbers[site]) if i not in taken]
        index = int(rng.choice(free))
        taken.append(index)
        if new != "v":
            atoms.symbols[index] = new
    empty = [index for index, defect in zip(taken, case.defects, strict=True) if defect.startswith("v_")]
    del atoms[empty]
    if case.charge:
        atoms.info["charge"] = case.charge
    return atoms


def prepare(case: Case, folder: Path) -> None:
    """Write both input sets of a case, unless one of them was run."""
    place = folder / case.name
    if any((place / start / "cp2k.out").is_file() for start in STARTS):
        return
    unit = fitted(case.host, folder)
    relaxer = DefiNetRelaxer(device="cpu")
    result = relaxer.predict(structure(case, unit), host=unit)
    settings = {"MOTION/GEO_OPT/MAX_ITER": STEPS}
    for start, atoms in zip(STARTS, (result.unrelaxed, result.atoms), strict=True):
        write_inputs(atoms, place / start, "cp2k", settings=settings, predicted=start != "sites", overwrite=True)
    moved = result.atoms.positions - result.unrelaxed.positions
    write_json(
        place / "prediction.json",
        {"weights": relaxer.model, "trust": result.trust, "largest_displacement": float(np.abs(moved).max())},
    )


def summary(case: Case, folder: Path) -> None:
    """Write what came of a case so far."""
    place = folder / case.name
    runs, ends = {}, {}
    for start in STARTS:
        if not (place / start / "run.json").is_file() or not (place / start / "cp2k.out").is_file():
            continue
        write_about(place / start)
        try:
            run = read_steps(place / start)
        except StructureError:  # in its first step
            continue
        spent = json.loads((place / start / "run.json").read_text())
        runs[start] = {
            "converged": run.converged is True,
            "steps": run.steps - spent["restarts"],
            "steps_to_rough": steps_to(run, ROUGH),
            "largest_forces": run.fmax.round(4).tolist(),
            "first_energy_above_last_eV": float(run.energies[0] - run.energies[-1]),
            "electronic_steps": [int(number) for number in _ELECTRONIC.findall(run.path.read_text())],
            "core_hours": round(spent["core_seconds"] / 3600, 3),
            "restarts": spent["restarts"],
            "notes": list(run.notes),
        }
        if run.atoms is not None:
            ends[start] = run.atoms
    about = json.loads((place / "prediction.json").read_text())
    out: dict[str, Any] = {"defects": case.defects, "host": case.host, "charge": case.charge, "seed": case.seed}
    out |= about | {"runs": runs}
    if len(ends) == len(STARTS) and all(run["converged"] for run in runs.values()):
        apart = _apart(*(ends[start] for start in STARTS))
        distance = float(np.linalg.norm(apart, axis=1).max())
        out |= {"distance": distance, "same_minimum": distance < SAME_MINIMUM}
        for start in STARTS:
            begun = read_input(place / start / "cp2k.inp")[1][1]
            out[f"{start}_error"] = float(np.abs(_apart(begun, ends[start])).mean())
    write_json(OUT / f"{case.name}.json", out)


def write_about(folder: Path) -> None:
    """Write what holds for all cases: the settings of one of the runs, the code's version, what is counted."""
    version = re.search(r"version string:\s+(.+)", (folder / "cp2k.out").read_text(errors="replace"))
    settings = read_input(folder / "cp2k.inp")[0]
    about = {
        "version": version[1].strip() if version else "CP2K",
        "cases": [case.name for case in CASES],
        "cell": f"{CELL}x{CELL}",
        "rough": ROUGH,
        "force": FORCE,
        "steps": STEPS,
        "settings": {key: settings[key] for key in sorted(settings) if key not in OF_ONE_CASE},
    }
    write_json(OUT / "setup" / "about.json", about)


def steps_to(run: IonicSteps, force: float) -> int | None:
    """Return the steps until no force is longer, None where it never came to that."""
    below = np.flatnonzero(run.fmax <= force)
    return int(below[0]) + 1 if len(below) else None


def _apart(one: Atoms, other: Atoms) -> np.ndarray:
    """Return how two structures differ when their means lie on each other, shape ``(n_atoms, 3)``, in Å."""
    difference = minimum_image(one.positions - other.positions, one.cell.array)
    return np.asarray(difference - difference.mean(axis=0))


def write_json(path: Path, content: Any) -> None:
    """Write a file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as fresh:
        fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def relax(case: Case, start: str, folder: Path) -> None:
    """Relax a case from one of its starts, and say how it went."""
    print(time.strftime("%F %T"), case.name, start, flush=True)
    run_cp2k(folder / case.name / start)
    with _writing:
        summary(case, folder)
    print(time.strftime("%F %T"), case.name, start, "ended", flush=True)


_writing = Lock()
_ELECTRONIC = re.compile(r"outer SCF loop converged in\s+\d+ iterations or\s+(\d+) steps")


def main() -> None:
    """Run what is asked for and has not ended."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", help="cases; all by default")
    parser.add_argument("--jobs", type=int, default=1, help="runs at the same time, each with one thread")
    parser.add_argument("--summary", action="store_true", help="only write what there is so far")
    asked = parser.parse_intermixed_args()
    cases = [case for case in CASES if not asked.names or case.name in asked.names]
    with ThreadPoolExecutor(asked.jobs) as pool:
        runs = []
        for case in cases:
            if asked.summary:
                if (asked.folder / case.name / "prediction.json").is_file():
                    summary(case, asked.folder)
                continue
            prepare(case, asked.folder)
            runs += [pool.submit(relax, case, start, asked.folder) for start in STARTS]
        for run in runs:
            run.result()


if __name__ == "__main__":
    main()
