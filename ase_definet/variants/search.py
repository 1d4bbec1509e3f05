"""Relax all starts of a defect, resumably, and rank the distinct minima among their ends by energy."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.io import read

from ase_definet.errors import MatchError, OtherRequestError, VariantsError
from ase_definet.matching.site_map import SiteMap, match_sites
from ase_definet.matching.symmetry import point_group
from ase_definet.relaxation.calculation import IDEAL, CalculatorStage, unbound_atoms
from ase_definet.relaxation.calculators import tell_state
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import Calculation
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.extxyz import frame_text
from ase_definet.structures.files import is_vacant, replacing
from ase_definet.structures.run_folder import HOLDER, LOCK, RunFolder
from ase_definet.structures.state import said_of
from ase_definet.variants.distinct import SAME_DISTANCE, SAME_ENERGY, HostSymmetry, changed_pair
from ase_definet.variants.starts import Start, positions_of, starts

if TYPE_CHECKING:
    from ase import Atoms

Say: TypeAlias = Callable[[str], object]

RUN, TABLE, STRUCTURES = "run.json", "table.csv", "variants.extxyz"
ENDS, UNRELAXED = "starts", "unrelaxed"
"""Folders with where each start ended, and with the starts themselves."""
COLUMNS = (
    *("rank", "name", "energy", "above", "found", "starts", "changed", "symmetry", "defects"),
    *("converged", "fmax", "steps", "spin_multiplicity", "calculator"),
)


@dataclass(frozen=True, eq=False)
class End:
    """Where the relaxation of one start ended.

    Attributes:
        name: That of the start.
        atoms: The relaxed structure, or what was best where the calculator failed.
        calculation: What the calculator did.
        spin_multiplicity: The one that the calculator held, None if any.
    """

    name: str
    atoms: Atoms
    calculation: Calculation
    spin_multiplicity: int | None = None

    @property
    def energy(self) -> float:
        """Energy in eV, infinite where there is none."""
        return np.inf if self.calculation.energy is None else self.calculation.energy


@dataclass(frozen=True, eq=False)
class Variant:
    """One distinct minimum.

    Attributes:
        end: Of the ends in it, that of the first start.
        found_by: Names of the starts that ended in it, in order.
        above: Energy above the lowest minimum, in eV.
        changed: What changed most near the defects: ``Te-Te 2.78 Å (was 4.68)``.
        symmetry: Point group.
        defects: Its defects as they are matched now; atoms may have changed places.
    """

    end: End
    found_by: tuple[str, ...]
    above: float
    changed: str
    symmetry: str
    defects: str

    @property
    def name(self) -> str:
        """Name of the first start that ended in it: more starts leave it as it is."""
        return self.end.name


@dataclass(frozen=True, eq=False)
class Search:
    """The result of a search.

    Attributes:
        variants: The distinct minima, lowest first.
        failed: Ends that are none: the calculator failed, or did not converge.
        ends: The ends of all starts, in order.
        undistorted: The structure on the host's sites, in the order of the given one.
        site_map: The match of the given structure.
        resumed: Number of ends that were there already.
        notes: What else to know.
    """

    variants: tuple[Variant, ...]
    failed: tuple[End, ...]
    ends: tuple[End, ...]
    undistorted: Atoms
    site_map: SiteMap
    resumed: int
    notes: tuple[str, ...] = ()


def search(
    given: Atoms,
    relaxer: DefiNetRelaxer,
    folder: Path,
    n: int = 12,
    *,
    seed: int = 0,
    distortions: bool = True,
    asked: dict[str, Any] | None = None,
    progress: Say = lambda _: None,
    done: Callable[[End], object] = lambda _: None,
) -> Search:
    """Relax the starts of a defect and rank what they end in.

    Every end is a file of the folder, from which the same search resumes; a larger ``n`` adds starts.

    Args:
        given: The structure.
        relaxer: With a host and a calculator.
        folder: Where to write; a folder of another search is refused.
        n: Number of starts, at most.
        seed: Of all random numbers.
        distortions: Whether there are bond distortions, which need ShakeNBreak.
        asked: What else distinguishes this search from others.
        progress: Called at every start and every step of the calculator with what is being done.
        done: Called with every end.

    Raises:
        VariantsError: There is no defect, no calculator, or the folder is that of another search.
        DefiNetError: The structure does not match the host.
    """
    stage = relaxer.calculator
    if stage is None:
        raise VariantsError("variants are minima of a calculator: give one")
    site_map, all_starts = starts(given, relaxer, n, seed=seed, distortions=distortions)
    request = _request(given, site_map, relaxer, stage, seed=seed, distortions=distortions) | (asked or {})
    with ExitStack() as held:
        held.enter_context(
            RunFolder(folder, "search", VariantsError, otherwise="give another folder", goes_on="where its files are")
        )
        _claim(folder, request)
        ends, resumed = [], 0
        for k, start in enumerate(all_starts):
            path = folder / ENDS / f"{k:02d}-{start.name}.extxyz"
            progress(f"{k + 1} of {len(all_starts)}, {start.name}")
            if path.exists():
                ends.append(_read(path, start))
                resumed += 1
            else:
                _write_start(folder / UNRELAXED / path.name, start)
                ends.append(_relaxed(start, site_map, stage, progress, f"{k + 1} of {len(all_starts)}, {start.name}"))
                _write(path, ends[-1])
            done(ends[-1])
        ideal = all_starts[0].atoms
        variants, failed = ranked(ends, site_map, ideal)
        _summarise(folder, variants)
    said = said_of(given)
    ignored = tell_state(stage.calculator, said.charge or 0, said.spin_multiplicity)
    return Search(variants, failed, tuple(ends), ideal, site_map, resumed, tuple(filter(None, [ignored])))


def _relaxed(start: Start, site_map: SiteMap, stage: CalculatorStage, progress: Say, label: str) -> End:
    """Relax one start; where the calculator fails, the end says so."""
    state = said_of(start.atoms)
    tell_state(stage.calculator, state.charge or 0, start.spin_multiplicity or state.spin_multiplicity)
    stepwise = replace(stage, progress=lambda steps, fmax: progress(f"{label}: step {steps}, {fmax:.2f} eV/Å"))
    run, displaced = stepwise.run(start.atoms, site_map)
    useful = run.best >= 0
    unbound = unbound_atoms(run.atoms)
    calculation = Calculation(
        calculator=stage.name,
        start=start.name if start.name != "undistorted" else IDEAL,
        steps=run.steps,
        converged=run.converged and not unbound,
        fmax=float(run.fmax[run.best]) if useful else None,
        fmax_limit=stage.fmax,
        energy=float(run.energies[run.best]) if useful else None,
        displaced=displaced,
        seed=stage.seed,
        seconds=run.seconds,
        error=run.error,
        unbound=unbound,
    )
    return End(start.name, run.atoms, calculation, start.spin_multiplicity)


def ranked(ends: list[End], site_map: SiteMap, ideal: Atoms) -> tuple[tuple[Variant, ...], tuple[End, ...]]:
    """Return the distinct minima among converged ends, lowest first, and the ends that are none.

    Args:
        ends: All ends.
        site_map: The match of the structure that they were made from.
        ideal: That structure on the host's sites.
    """
    symmetry = HostSymmetry.of(site_map)
    groups: list[list[End]] = []
    for end in sorted((one for one in ends if one.calculation.converged), key=lambda one: one.energy):
        for group in groups:
            close = end.energy - group[0].energy < SAME_ENERGY and end.spin_multiplicity == group[0].spin_multiplicity
            if close and symmetry.distance(end.atoms, group[0].atoms) < SAME_DISTANCE:
                group.append(end)
                break
        else:
            groups.append([end])
    where = np.array([positions_of(ideal, site_map, defect) for defect in site_map.all_defects])
    for group in groups:
        group.sort(key=ends.index)
    groups.sort(key=lambda group: group[0].energy)
    variants = tuple(
        Variant(
            end=group[0],
            found_by=tuple(one.name for one in group),
            above=group[0].energy - groups[0][0].energy,
            changed=changed_pair(ideal, group[0].atoms, where),
            symmetry=_symmetry(group[0].atoms),
            defects=_defects(group[0].atoms, site_map),
        )
        for group in groups
    )
    return variants, tuple(one for one in ends if not one.calculation.converged)


def _symmetry(atoms: Atoms) -> str:
    cell = completed_cell(atoms.cell.array, atoms.positions, atoms.pbc)
    return point_group(cell, atoms.positions, atoms.numbers)


def _defects(atoms: Atoms, site_map: SiteMap) -> str:
    """Return the defects of a relaxed structure, as they are matched now."""
    try:
        counts = match_sites(atoms, site_map.host).defect_counts
    except MatchError:
        return "no longer matched"
    return ", ".join(f"{name} x{n}" for name, n in counts.items())


def _request(
    given: Atoms,
    site_map: SiteMap,
    relaxer: DefiNetRelaxer,
    stage: CalculatorStage,
    *,
    seed: int,
    distortions: bool,
) -> dict[str, Any]:
    """Return what a search is recognised by when it is resumed."""
    return {
        "numbers": given.numbers.tolist(),
        "positions": np.round(given.positions, 5).tolist(),
        "cell": np.round(given.cell.array, 5).tolist(),
        "state": str(said_of(given)),
        "host": site_map.host.name,
        "sites": len(site_map.kinds),
        "weights": relaxer.sha256,
        "extrapolate": relaxer.extrapolate,
        "calculator": stage.name,
        "fmax": stage.fmax,
        "max_steps": stage.max_steps,
        "seed": seed,
        "distortions": distortions,
    }


def _claim(folder: Path, request: dict[str, Any]) -> None:
    """Begin a search in an empty folder, or go on with the same one.

    Raises:
        OtherRequestError: The folder holds something else.
        VariantsError: What it holds is damaged.
    """
    run = folder / RUN
    if run.exists():
        try:
            before = json.loads(run.read_text(encoding="utf-8"))
        except ValueError as error:
            raise VariantsError(f"{run}: damaged ({error}); give another folder") from error
        differ = sorted(k for k in request.keys() | before.keys() if before.get(k) != request.get(k))
        if differ:
            raise OtherRequestError(
                f"{folder} holds another search (other {', '.join(differ)}); give another folder, or the same "
                "request to go on with it"
            )
    elif not is_vacant(folder, LOCK, HOLDER):
        raise OtherRequestError(f"{folder} is not empty and holds no search; give another folder")
    else:
        with replacing(run) as fresh:
            fresh.write_text(json.dumps(request) + "\n", encoding="utf-8")
    for name in (ENDS, UNRELAXED):
        (folder / name).mkdir(exist_ok=True)


def _write_start(path: Path, start: Start) -> None:
    """Write a start as it is, for DFT where the calculator lacks a minimum; what is there stays."""
    if path.exists():
        return
    atoms = start.atoms.copy()
    atoms.calc = None
    atoms.info = {"name": start.name} | {k: v for k, v in atoms.info.items() if not str(k).startswith("definet_")}
    if start.spin_multiplicity is not None:
        atoms.info["spin_multiplicity"] = start.spin_multiplicity
    with replacing(path) as fresh:
        fresh.write_text(frame_text(atoms)[0], encoding="utf-8")


def _write(path: Path, end: End) -> None:
    atoms = end.atoms.copy()
    atoms.calc = None
    atoms.info = {
        "name": end.name,
        "variant_spin_multiplicity": end.spin_multiplicity or 0,
        "variant_calculation": json.dumps(asdict(end.calculation)),
    } | {key: value for key, value in atoms.info.items() if not str(key).startswith("definet_")}
    text, _ = frame_text(atoms)
    with replacing(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def _read(path: Path, start: Start) -> End:
    """Read an end that was written before.

    Raises:
        VariantsError: The file is not what a search wrote.
    """
    try:
        atoms = read(path, format="extxyz")
        said = atoms.info.pop("variant_calculation")
        calculation = Calculation(**(json.loads(said) if isinstance(said, str) else said))
        multiplicity = int(atoms.info.pop("variant_spin_multiplicity")) or None
    except Exception as error:
        raise VariantsError(
            f"{path}: damaged ({error}); remove it, and the same command relaxes this start again"
        ) from error
    same = len(atoms) == len(start.atoms) and np.array_equal(atoms.numbers, start.atoms.numbers)
    if not same or atoms.info.get("name") != start.name:
        raise VariantsError(f"{path}: not the end of {start.name}; remove it, and the same command relaxes it again")
    out = start.atoms.copy()
    out.positions = atoms.positions
    return End(start.name, out, calculation, multiplicity)


def table_rows(variants: tuple[Variant, ...]) -> Iterator[dict[str, Any]]:
    """Yield the rows of the table, under :data:`COLUMNS`."""
    for rank, variant in enumerate(variants, start=1):
        done = variant.end.calculation
        yield {
            "rank": rank,
            "name": variant.name,
            "energy": round(variant.end.energy, 5),
            "above": round(variant.above, 5),
            "found": len(variant.found_by),
            "starts": " ".join(variant.found_by),
            "changed": variant.changed,
            "symmetry": variant.symmetry,
            "defects": variant.defects,
            "converged": "yes" if done.converged else "no",
            "fmax": None if done.fmax is None else round(done.fmax, 5),
            "steps": done.steps,
            "spin_multiplicity": variant.end.spin_multiplicity,
            "calculator": done.calculator,
        }


def _summarise(folder: Path, variants: tuple[Variant, ...]) -> None:
    """Write the table and the distinct minima; both follow from the ends, and are written anew."""
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, COLUMNS, restval="")
    writer.writeheader()
    writer.writerows(table_rows(variants))
    with replacing(folder / TABLE) as fresh:
        fresh.write_bytes(out.getvalue().encode())
    frames = []
    for rank, variant in enumerate(variants, start=1):
        atoms = variant.end.atoms.copy()
        atoms.info |= {
            "name": variant.name,
            "rank": rank,
            "above": variant.above,
            "definet_method": "calculator",
            "definet_calculation": str(variant.end.calculation),
            "definet_energy": variant.end.energy,
            "definet_defects": variant.defects,
        }
        if variant.end.spin_multiplicity is not None:
            atoms.info["spin_multiplicity"] = variant.end.spin_multiplicity
        frames.append(frame_text(atoms)[0])
    with replacing(folder / STRUCTURES) as fresh:
        fresh.write_text("".join(frames), encoding="utf-8")
