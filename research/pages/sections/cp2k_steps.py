"""Ionic steps saved in CP2K, with the input sets of the package."""

from collections.abc import Sequence
from typing import Any

from ase.optimize import BFGS

from research.pages.markdown import host_name, length, listed, percent, span, table
from research.pages.stored import result, results

HEAD = (
    "structure",
    "defects",
    "charge",
    "steps to {rough} eV/Å: sites",
    "predicted",
    "steps to the end: sites",
    "predicted",
    "saved",
    "first largest force: sites",
    "predicted, eV/Å",
    "core hours: sites",
    "predicted",
    "MAE to the end: sites",
    "predicted, Å",
)
CUTOFF = "FORCE_EVAL/DFT/MGRID/CUTOFF"


def finished() -> dict[str, Any]:
    """Return the cases both of whose runs ended, by name."""
    found = results("ionic_steps/cp2k")
    return {name: case for name, case in found.items() if "distance" in case}


def saved(case: dict[str, Any], key: str) -> float | None:
    """Return the share of the steps that the prediction saved, None where one of the runs did not come so far."""
    sites, predicted = (case["runs"][start][key] for start in ("sites", "predicted"))
    return None if sites is None or predicted is None else 1 - predicted / sites


def described(case: dict[str, Any]) -> str:
    """Return host, defects and charge of a case in a few words."""
    charge = f", charge {case['charge']:+d}" if case["charge"] else ""
    return f"{host_name(case['host'])}, {listed(case['defects'])}{charge}"


def section() -> list[str]:
    """Return the section."""
    about = result("ionic_steps/cp2k/setup/about")
    cases = finished()
    lacking = [name for name in about["cases"] if name not in cases]
    lines = [
        "## Ionic steps in CP2K",
        "",
        "`python -m research.experiments.ionic_steps FOLDER` writes the input sets with",
        '`write_inputs(atoms, folder, code="cp2k")` and runs them as they are, but for a limit of',
        f"{about['steps']} steps: {about['version']}, PBE, DZVP-MOLOPT-SR-GTH, {about['settings'][CUTOFF]} Ry, Γ, one",
        f"{about['cell']} cell each, one thread. CP2K relaxes with its BFGS,",
        f"which starts from a model Hessian, until no component of a force is larger than {about['force']:g} eV/Å",
        f"(the end); the steps until no force is longer than {about['rough']} eV/Å are counted on the way. A step is an",
        "evaluation of the forces. Defects sit on sites that a seed chose, at the lattice constant and thickness of the host",
        "in the same code and settings, its k-points those that fold to Γ:",
        "",
        *hosts(),
        *rows(cases, about),
    ]
    if lacking:
        lines += [f"Not finished yet: {listed(lacking)}. The command goes on with them.", ""]
    return [*lines, *optimizers()]


def optimizers() -> list[str]:
    """Return what the optimizers need from starts with the network's errors."""
    found = result("optimizers")
    structures = found["structures"]
    rough, end = found["forces"]
    names = list(next(iter(structures.values()))["from_prediction"])
    head = ("structure", "MAE of the start, Å", "largest force, eV/Å", "sites: BFGS", *names)
    return [
        "### Does the optimizer cost the steps?",
        "",
        "`python -m research.experiments.optimizers PACK` relaxes with CHGNet from its own minimum plus what the prediction is",
        f"off from DFT in that structure of 2DMD. Steps to {rough:g} and to {end:g} eV/Å:",
        "",
        *table(
            head,
            [
                [
                    name.rpartition("/")[0] + f" {number}",
                    length(row["error"]),
                    f"{row['first_force']:.3f}",
                    " / ".join(map(shown, row["sites"])),
                    *(" / ".join(map(shown, row["from_prediction"][one])) for one in names),
                ]
                for number, (name, row) in enumerate(structures.items(), 1)
            ],
        ),
        f"In sum to {end:g} eV/Å: {in_sum(list(structures.values()), names)}. ASE's BFGS starts from a multiple of the unit matrix,",
        f"{BFGS.defaults['alpha']:g} eV/Å² by default; CP2K's from a model Hessian. The input sets leave both as they are.",
        "",
    ]


def in_sum(rows: Sequence[dict[str, Any]], names: Sequence[str]) -> str:
    """Return the steps to the end over all structures for each optimizer."""
    totals = {name: [row["from_prediction"][name][-1] for row in rows] for name in names}
    return "; ".join(f"{name} {sum(steps) if None not in steps else '-'}" for name, steps in totals.items())


def shown(steps: int | None) -> str:
    """Return a number of steps, or a dash where it was not reached."""
    return "-" if steps is None else str(steps)


def hosts() -> list[str]:
    """Return the table of fitted hosts."""
    head = ("host", "lattice constant of the library, Å", "in CP2K", "thickness of the library", "in CP2K")
    return table(
        head,
        [
            [
                host_name(name),
                *(length(host[key]) for key in ("library_a", "a", "library_thickness", "thickness")),
            ]
            for name, host in results("ionic_steps/cp2k/hosts").items()
        ],
    )


def rows(cases: dict[str, Any], about: dict[str, Any]) -> list[str]:
    """Return the table of finished cases, and what they say together."""
    if not cases:
        return []
    head = [word.format(rough=about["rough"]) for word in HEAD]
    shares = [share for case in cases.values() if (share := saved(case, "steps")) is not None]
    rough = [share for case in cases.values() if (share := saved(case, "steps_to_rough")) is not None]
    hours = [sum(case["runs"][start]["core_hours"] for case in cases.values()) for start in ("sites", "predicted")]
    return [
        *table(head, [cells(name, case) for name, case in cases.items()]),
        f"Steps saved to the end: {span(shares)}; to {about['rough']} eV/Å: {span(rough)}. Core hours saved over all:",
        f"{percent(1 - hours[1] / hours[0])}. The {percent(result('unlogged')['literature']['steps_saved'])} of the paper are",
        "steps of VASP on structures of 2DMD, with its own optimizer and from the unrelaxed structures of that database: they",
        "are not repeated here, and shares of steps of different optimizers cannot be compared. The figures below are of other",
        "codes and cells, end at a larger force, and their optimizer starts without force constants.",
        "",
    ]


def cells(name: str, case: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    runs = [case["runs"][start] for start in ("sites", "predicted")]
    other = "" if case["same_minimum"] else " (another minimum)"
    again = " (restarted)" if any(run["restarts"] for run in runs) else ""
    return [
        f"{name}{again}",
        listed(case["defects"]),
        f"{case['charge']:+d}" if case["charge"] else "0",
        *(str(run["steps_to_rough"] or "-") for run in runs),
        *(f"{run['steps']}" + ("" if run["converged"] else " (not converged)") for run in runs),
        f"{percent(saved(case, 'steps'))}{other}",
        *(f"{run['largest_forces'][0]:.2f}" for run in runs),
        *(f"{run['core_hours']:.2f}" for run in runs),
        *(length(case[f"{start}_error"]) for start in ("sites", "predicted")),
    ]
