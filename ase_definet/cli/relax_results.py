"""Write the results of ``ase-definet relax``: structures, input sets, the report. Whole files or none."""

from __future__ import annotations

import errno
import json
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ase_definet.cli.common import finite, image_notes, match_record
from ase_definet.cli.property_text import property_record
from ase_definet.cli.relax_plan import Job, output_format
from ase_definet.cli.states import state_record
from ase_definet.errors import DefiNetWarning
from ase_definet.structures.files import replacing

if TYPE_CHECKING:
    from ase import Atoms

    from ase_definet.relaxation.result import RelaxResult


_WITH_INFO = ("extxyz", "db", "json", "traj")
"""Formats that keep the info of a structure."""


def make_folders(jobs: Iterable[Job], report: Path | None) -> None:
    """Create the output folders, once: a folder that is removed later is not recreated.

    Folders of input sets are made when those are written, in folders that exist.
    """
    for folder in {path.parent for job in jobs for path in (job.output, job.inputs, job.control, report) if path}:
        folder.mkdir(parents=True, exist_ok=True)


def deliver(
    job: Job, result: RelaxResult, input_set: dict[str, Any], notes: Sequence[str] = (), *, overwrite: bool
) -> dict[str, Any]:
    """Write the structure and the input set, both or neither; return the report's record.

    Args:
        job: Where they go.
        result: What is written.
        input_set: Keyword arguments of :func:`~ase_definet.dft.vasp.write_vasp_inputs`.
        notes: What else to warn of.
        overwrite: Whether files in the way may be replaced.

    Raises:
        DefiNetError: The structure cannot be written in this format, or the DFT code cannot use it.
        OSError: The file system refuses.
    """
    import numpy as np

    length = np.linalg.norm(result.displacement, axis=1)
    largest = int(length.argmax())
    record: dict[str, Any] = {
        "file": str(job.source),
        "output": str(job.output),
        **match_record(result.site_map),
        **state_record(result.atoms),
        "n_atoms": len(length),
        "largest_displacement": finite(length[largest]),
        "largest_displacement_atom": largest,
        "mean_displacement": finite(length.mean()),
        "model": result.model,
        "timings": dict(result.timings),
        "trust": result.trust,
        "method": result.method,
        "calculation": None if result.calculation is None else asdict(result.calculation),
        "outside": list(result.outside),
        "warnings": [*notes, *result.warnings, *image_notes(job.source)],
        "properties": property_record(result.properties),
        "chemical_potentials": dict(result.chemical_potentials),
    }
    record |= dict.fromkeys(("mean_expected_error", "largest_expected_error", "largest_expected_error_atom"))
    if result.expected_error is not None:
        doubtful = int(result.expected_error.argmax())
        record |= {
            "mean_expected_error": finite(result.expected_error.mean()),
            "largest_expected_error": finite(result.expected_error[doubtful]),
            "largest_expected_error_atom": doubtful,
        }
    atoms, lost = writable(result.atoms, output_format(job))
    record["warnings"] += [*lost, *_state_lost(record, output_format(job))]
    with staged(job.output, atoms, output_format(job)):
        if job.inputs is not None:
            record[job.code] = _write_input_set(job.inputs, result, input_set, overwrite=overwrite)
        if job.control is not None:
            record["control"] = _write_input_set(job.control, result, input_set, overwrite=overwrite, predicted=False)
    return record


def write_report(path: Path, records: list[dict[str, Any]]) -> None:
    """Write what was found and done as JSON."""
    text = json.dumps(records, indent=1, allow_nan=False) + "\n"
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def writable(atoms: Atoms, fmt: str) -> tuple[Atoms, list[str]]:
    """Return atoms whose constraints ASE can write, and name those that none can hold.

    ASE's writer of POSCAR drops FixCartesian, takes the last of several constraints on one atom, and refuses other
    planes. That of extended XYZ knows FixAtoms and FixCartesian.
    """
    from ase_definet.structures.constraints import held_axes, held_directions, hold, hold_axes

    if fmt not in {"vasp", "extxyz"} or not atoms.constraints:
        return atoms, []
    held, lost = held_directions(atoms) if fmt == "vasp" else held_axes(atoms)
    out = atoms.copy()
    out.calc = atoms.calc
    (hold if fmt == "vasp" else hold_axes)(out, held)
    return out, lost


def _state_lost(record: dict[str, Any], fmt: str) -> list[str]:
    """Remind the user to give the state again when reading a format that does not store it, such as POSCAR."""
    if fmt in _WITH_INFO:
        return []
    options = {"--charge": record["charge"] or None, "--spin": record["spin_multiplicity"]}
    options |= {"--functional": record["functional"] if record["functional"] != "PBE" else None}
    said = " ".join(f"{option} {value}" for option, value in options.items() if value is not None)
    return [f"a file of the format {fmt} holds no state: give {said} again where it is read"] if said else []


@contextmanager
def staged(path: Path, atoms: Atoms, fmt: str) -> Iterator[None]:
    """Write a structure aside, and put it in its place if the block succeeds."""
    from ase_definet.structures.writing import write_structure

    with replacing(path) as fresh:
        write_structure(fresh, atoms, fmt, name=path)
        yield


def _write_input_set(
    directory: Path, result: RelaxResult, input_set: dict[str, Any], *, overwrite: bool, predicted: bool = True
) -> dict[str, Any]:
    """Write the input set of the prediction, or that of the control run from the host's sites."""
    from ase_definet.dft.codes import write_inputs

    if not directory.parent.is_dir():
        raise FileNotFoundError(
            errno.ENOENT, "no such folder; was it removed in the meantime?", str(directory.parent)
        )
    info = result.atoms.info
    provenance = {"host": f"{result.site_map.host.name} {result.site_map.supercell_name}"}
    if predicted:
        provenance |= {
            "model": result.model,
            "defects": info["definet_defects"],
            "trust": result.trust,
            "method": result.method,
            "version": info["definet_version"],
        }
        if result.calculation is not None:
            provenance["calculation"] = str(result.calculation)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DefiNetWarning)  # the report has them too
        written = write_inputs(
            result.atoms if predicted else result.unrelaxed,
            directory,
            notes=result.warnings if predicted else (),
            provenance=provenance,
            predicted=predicted,
            overwrite=overwrite,
            **input_set,
        )
    return {
        "directory": str(written.directory),
        "files": list(written.files),
        "overridden": {tag: list(values) for tag, values in written.overridden.items()},
        "warnings": list(written.warnings),
    }
