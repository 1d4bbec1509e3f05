"""README.txt of an input set: where it is from, what to check, how to take the result back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ase_definet.dft.incar import FUNCTIONAL, FUNCTIONAL_TAGS
from ase_definet.dft.input_plan import ORDER_FILE, InputPlan
from ase_definet.dft.input_set import FORCE, Files, InputSet
from ase_definet.structures.state import multiplicity_name

FORCE_LIMIT = 0.5
"""Largest force at the first step above which IBRION = 1 is unreliable, in eV/Å."""

_METHODS = {
    "calculator": "Geometry relaxed with the calculator named below; {code} is to finish it.",
    "none": "Geometry not relaxed: the atoms are on the host's ideal sites, and {code} is to relax them.",
}
_ORIGINS: dict[bool | None, str] = {
    True: "Geometry predicted by DefiNet in one forward pass; {code} is to finish it.",
    False: "Control run: atoms on the host's sites, nothing predicted. Count its steps beside the prediction's.",
    None: "Input set for the structure as given; nothing says that it was predicted.",
}
_PROVENANCE = {
    "model": "weights",
    "model_hash": "hash",
    "host": "host",
    "defects": "defects",
    "version": "ase-definet",
}


def readme(
    plan: InputPlan,
    profile: str,
    *,
    notes: Sequence[str],
    provenance: Mapping[str, str],
    predicted: bool | None,
) -> str:
    """Return the text of README.txt.

    Args:
        plan: What the other files hold.
        profile: Key of :data:`~ase_definet.dft.incar.PROFILES`.
        notes: Lines to add.
        provenance: What made the prediction.
        predicted: Whether the structure is a prediction (True), the control run from the host's sites (False) or
            neither is known (None).
    """
    lines = [_origin(predicted, provenance).format(code="VASP"), *_provenance(provenance)]
    lines.append(f"Profile {profile}." + (" Overridden:" if plan.overridden else ""))
    lines += [
        f"  {tag} = {new} (was {'unset' if old is None else old})" for tag, (old, new) in plan.overridden.items()
    ]
    lines += _state(plan)
    lines.append(f"POTCAR: {' '.join(plan.potcar_symbols)}, release {FUNCTIONAL}, in this order.")
    if not plan.potcars:
        lines.append("  Not included (licence): build it from your library as POTCAR.spec lists it.")
    lines += _how_to_run(profile, predicted) + _way_back(reordered=plan.sites.reordered)
    lines += [f"Note: {note}" for note in notes] + [f"Warning: {warning}" for warning in plan.warnings]
    return "\n".join(lines) + "\n"


def code_readme(
    title: str,
    plan: InputSet,
    files: Files,
    *,
    notes: Sequence[str],
    provenance: Mapping[str, str],
    predicted: bool | None,
) -> str:
    """Return the text of README.txt for any code but VASP.

    Args:
        title: Name of the code in prose.
        plan: What it is told.
        files: What was written, and what to know about it.
        notes: Lines to add.
        provenance: What made the prediction.
        predicted: As of :func:`readme`.
    """
    lines = [_origin(predicted, provenance).format(code=title), *_provenance(provenance)]
    held = files.multiplicity or plan.multiplicity
    spin = f"spin multiplicity {held}" if held else "total moment free" if plan.spin else "spins paired"
    lines.append(
        f"{title}: PBE, fixed cell, charge {plan.charge:+d}, {spin}, k-points "
        f"{'x'.join(map(str, plan.grid))}, forces to {FORCE:g} eV/Å."
    )
    lines.append(f"Profile {plan.profile}." + (" Overridden:" if files.overridden else ""))
    lines += [
        f"  {key} = {new} (was {'unset' if old is None else old})" for key, (old, new) in files.overridden.items()
    ]
    lines += [f"Run it: {files.run}", *files.notes]
    if predicted:
        worse = "distrust the prediction" if plan.profile == "robust" else "write the set again with profile robust"
        lines.append(f"Check after step 1 (count-steps): if the largest force exceeds {FORCE_LIMIT} eV/Å, {worse}.")
    runs = "." if predicted is None else "--control CONTROL PREDICTION"
    lines += [
        f"Count the ionic steps: ase-definet count-steps {runs}",
        "Take the result back, in your own order: ase-definet collect . -o relaxed.extxyz",
    ]
    lines += [f"Note: {note}" for note in notes]
    lines += [f"Warning: {warning}" for warning in (*plan.warnings, *files.warnings)]
    return "\n".join(lines) + "\n"


def _origin(predicted: bool | None, provenance: Mapping[str, str]) -> str:  # noqa: FBT001
    """Return the first line: what made the geometry."""
    method = provenance.get("method", "") if predicted else ""
    return _METHODS.get(method, _ORIGINS[predicted])


def _provenance(provenance: Mapping[str, str]) -> list[str]:
    lines = [f"  {name}: {provenance[key]}" for key, name in _PROVENANCE.items() if key in provenance]
    return lines + [f"  {key}: {value}" for key, value in provenance.items() if key not in _PROVENANCE]


def _state(plan: InputPlan) -> list[str]:
    """Say what VASP is to compute: charge, spin and functional."""
    charge = f"{plan.charge.value:+d}" if plan.charge.value else "0"
    multiplicity = plan.spin_multiplicity
    spin = "not fixed"
    if multiplicity is not None:
        fixed = f"NUPDOWN = {plan.incar['NUPDOWN']:g}" if "NUPDOWN" in plan.incar else "not fixed"
        spin = f"{multiplicity} ({multiplicity_name(multiplicity)}, {fixed})"
    written = plan.written_functional
    tags = ", ".join(f"{tag} = {plan.incar[tag]}" for tag in FUNCTIONAL_TAGS[written] if tag in plan.incar)
    lines = [f"Charge {charge}, spin multiplicity {spin}, functional {written}{f' ({tags})' if tags else ''}."]
    if written != "PBE":
        lines.append(
            "  The POTCARs are those of PBE, and the cell is as given: a lattice constant of PBE is strained."
        )
    if "LHFCALC" in FUNCTIONAL_TAGS[written]:
        lines.append("  A hybrid is slow: begin with the WAVECAR of a PBE run (the same INCAR without these tags).")
    return lines


def _how_to_run(profile: str, predicted: bool | None) -> list[str]:  # noqa: FBT001
    """Say what to check and to count."""
    lines = []
    if predicted is None and profile == "few-steps":
        lines.append("Profile few-steps is for a start close to the minimum; from anywhere else take robust.")
    if predicted:
        worse = "write the set again with profile robust" if profile == "few-steps" else "distrust the prediction"
        lines += [
            f"Check after step 1: if the largest force exceeds {FORCE_LIMIT} eV/Å, {worse}:",
            "  from ase.io import read; print((read('OUTCAR', index=0).get_forces() ** 2).sum(axis=1).max() ** 0.5)",
        ]
    runs = "." if predicted is None else "--control CONTROL PREDICTION"
    return [
        *lines,
        f"Count the ionic steps: ase-definet count-steps {runs}",
        "If NSW steps do not suffice: cp CONTCAR POSCAR and run again.",
    ]


def _way_back(*, reordered: bool) -> list[str]:
    """Say how to read the result in the caller's order."""
    if not reordered:
        return ["Take the result back, in your own order: from ase.io import read; relaxed = read('CONTCAR')"]
    return [
        f"The sites were sorted by species ({ORDER_FILE}). Take the result back in your own order:",
        "  from ase.io import read; from ase_definet.dft.vasp import restore_order",
        "  relaxed = restore_order(read('CONTCAR'), '.')",
    ]
