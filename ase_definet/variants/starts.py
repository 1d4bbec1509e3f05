"""Starts of a search: bond distortions by ShakeNBreak, rattles, the network from noisy positions, spin states."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.errors import DefiNetError, VariantsError
from ase_definet.matching.extra_atoms import ExtraAtom
from ase_definet.matching.site_map import Defect, SiteMap
from ase_definet.relaxation.calculators import CALCULATORS, with_moments
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.metrics import minimum_image, near_sites
from ase_definet.structures.state import said_of

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

FACTORS = (0.4, 0.6, 1.4, 0.5, 1.2, 0.7, 0.8, 1.6, 1.1, 0.9, 1.3)
"""What the distances of the distorted neighbours from a defect are multiplied with, after ShakeNBreak's dimer."""

RATTLES = (0.15, 0.3)
"""Standard deviations of rattles around the defects, in Å, in turn."""

RATTLE_REACH = 5.0
"""Atoms this close to a defect are rattled, in Å."""

NOISE = 0.15
"""Standard deviation of the positions from which the network starts, in Å."""

CLOSEST = 0.75
"""No two atoms of a rattled start are closer than this share of the shortest distance before."""

_TRIES = 50
_ORDER = ("distortion", "distortion", "rattle", "distortion", "network", "spin")


@dataclass(frozen=True, eq=False)
class Start:
    """One start of a search.

    Attributes:
        name: Fit for the name of a file, such as ``dimer-v_Cd`` or ``bonds-0.40-v_Cd``.
        atoms: The structure.
        spin_multiplicity: The one that the calculator is to hold; None for any.
    """

    name: str
    atoms: Atoms
    spin_multiplicity: int | None = None


def check_shakenbreak() -> None:
    """Make sure that ShakeNBreak is there.

    Raises:
        VariantsError: It is not.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import shakenbreak.distortions  # noqa: F401, PLC0415 - an extra, and slow to import
    except ImportError as error:
        raise VariantsError(
            f"bond distortions need {error.name}: pip install 'ase-definet[variants]', or leave them out with "
            "--without-distortions"
        ) from error


def starts(
    given: Atoms, relaxer: DefiNetRelaxer, n: int, *, seed: int = 0, distortions: bool = True
) -> tuple[SiteMap, list[Start]]:
    """Return the starts of a search, the same ones every time; more of them begin with the same ones.

    The first is the undistorted structure, on the host's sites, the second the network's answer, if it is expected to
    beat them. Then come, in turn, bond distortions around each defect, rattles, the network from noisy positions, and
    spin states, as far as there are any.

    Args:
        given: The structure.
        relaxer: With a host and a calculator.
        n: Number of starts, at most.
        seed: Of all random numbers.
        distortions: Whether there are bond distortions, which need ShakeNBreak.

    Returns:
        The match of the structure, and the starts.

    Raises:
        DefiNetError: The structure does not match the host.
    """
    first = relaxer.predict(given, calculate=False)
    site_map = first.site_map
    if not site_map.all_defects:
        raise VariantsError(f"the structure is the pristine host {site_map.host.name}: there is no defect to vary")
    ideal = first.unrelaxed
    kinds: dict[str, Iterator[Start]] = {
        "distortion": _distorted(ideal, site_map, seed) if distortions else iter(()),
        "rattle": _rattled(ideal, site_map, seed),
        "network": _from_network(ideal, relaxer, seed) if first.method == "network" else iter(()),
        "spin": _spins(ideal, site_map, relaxer),
    }
    return site_map, list(islice(_in_turn(ideal, first.atoms if first.method == "network" else None, kinds), n))


def _in_turn(ideal: Atoms, predicted: Atoms | None, kinds: dict[str, Iterator[Start]]) -> Iterator[Start]:
    """Yield the undistorted structure, the prediction, then starts of each kind in turn."""
    yield Start("undistorted", ideal)
    if predicted is not None:
        yield Start("network", predicted)
    ended: set[str] = set()
    for kind in cycle(_ORDER):
        if kind in ended:
            continue
        found = next(kinds[kind], None)
        if found is not None:
            yield found
            continue
        ended.add(kind)
        if len(ended) == len(set(_ORDER)):  # pragma: no cover - rattles never end
            return


def positions_of(atoms: Atoms, site_map: SiteMap, defect: Defect | ExtraAtom) -> Array:
    """Return where a defect is in a structure, which may have drifted against the sites of its host, in Å.

    Args:
        atoms: The structure, its atoms in the order of the one that was matched.
        site_map: The match.
        defect: One of its defects.
    """
    if defect.atom_index is not None:
        return np.asarray(atoms.positions[defect.atom_index])
    on = np.flatnonzero(site_map.atom_index >= 0)
    drift = minimum_image(atoms.positions[site_map.atom_index[on]] - site_map.positions[on], site_map.cell)
    return np.asarray(defect.position + np.median(drift, axis=0))


def neighbours_to_distort(site_map: SiteMap, defect: Defect | ExtraAtom, charge: int) -> int:
    """Return how many neighbours of a defect ShakeNBreak's rule distorts: one for each electron missing or extra.

    Args:
        site_map: The match of the structure.
        defect: The defect.
        charge: Net charge of the cell, in e.
    """
    before = oxidation_state(site_map, defect.host_element) if isinstance(defect, Defect) else 0
    after = oxidation_state(site_map, defect.element) if defect.element else 0
    electrons = abs(after - before - charge)
    return max(1, abs(8 - electrons) if electrons > 4 else electrons)  # noqa: PLR2004 - the octet rule


def oxidation_state(site_map: SiteMap, element: str) -> int:
    """Return the oxidation state of an element in the host, or its most common one.

    Args:
        site_map: The match of the structure.
        element: Its symbol.
    """
    from pymatgen.core import Composition, Element  # noqa: PLC0415 - slow to import

    guesses = Composition(site_map.host.formula).oxi_state_guesses()
    if guesses and element in guesses[0]:
        state: int = round(guesses[0][element])
        return state
    common = Element(element).common_oxidation_states
    return int(common[0]) if common else 0


def _distorted(ideal: Atoms, site_map: SiteMap, seed: int) -> Iterator[Start]:
    """Yield ShakeNBreak's distortions: for each defect the dimer, then the neighbours closer and further away."""
    from pymatgen.io.ase import AseAtomsAdaptor  # noqa: PLC0415 - slow to import

    bare = ideal.copy()
    bare.set_constraint()
    bare.info, bare.pbc = {}, True
    bare.set_cell(completed_cell(ideal.cell.array, ideal.positions, ideal.pbc))
    structure = AseAtomsAdaptor.get_structure(bare)
    charge = said_of(ideal).charge or 0
    defects = _one_of_each(site_map)
    for factor in ("Dimer", *FACTORS):
        for defect in defects:
            where: dict[str, Any] = {"site_index": defect.atom_index}
            if defect.atom_index is None:
                where = {"frac_coords": bare.cell.scaled_positions(positions_of(ideal, site_map, defect))}
            n = neighbours_to_distort(site_map, defect, charge)
            positions = _shaken(structure, factor, n, where, seed)
            if positions is not None:
                word = "dimer" if factor == "Dimer" else f"bonds-{factor:.2f}"
                yield Start(f"{word}-{_plain(defect.name)}", _moved(ideal, positions))


def _shaken(structure: Any, factor: float | str, n: int, where: dict[str, Any], seed: int) -> Array | None:
    """Return the positions of one of ShakeNBreak's distortions, None where it cannot make it."""
    from shakenbreak.distortions import distort_and_rattle  # noqa: PLC0415 - an extra

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = distort_and_rattle(structure, factor, n, seed=seed, **where)
    except Exception:  # noqa: BLE001 - a dimer of one neighbour, say: there are other starts
        return None
    positions = np.asarray(made["distorted_structure"].cart_coords)
    return positions if np.isfinite(positions).all() else None


def _one_of_each(site_map: SiteMap) -> list[Defect | ExtraAtom]:
    """Return the first defect of each name."""
    first: dict[str, Defect | ExtraAtom] = {}
    for defect in site_map.all_defects:
        first.setdefault(defect.name, defect)
    return list(first.values())


def _rattled(ideal: Atoms, site_map: SiteMap, seed: int) -> Iterator[Start]:
    """Yield structures whose atoms around the defects are displaced at random, for ever."""
    where = np.array([positions_of(ideal, site_map, defect) for defect in site_map.all_defects])
    cell = completed_cell(ideal.cell.array, ideal.positions, ideal.pbc)
    near = np.flatnonzero(near_sites(ideal.positions, where, cell, RATTLE_REACH))
    for k, size in enumerate(cycle(RATTLES)):
        yield Start(f"rattle-{size:.2f}-{k + 1}", rattled(ideal, near, size, seed + k))


def rattled(atoms: Atoms, which: Array, size: float, seed: int) -> Atoms:
    """Return a structure with some atoms displaced at random, none of them on top of another.

    Args:
        atoms: The structure.
        which: Indices of the atoms.
        size: Standard deviation along each axis, in Å.
        seed: Of the random numbers.
    """
    rng = np.random.default_rng(seed)
    shortest = _shortest(atoms)
    out = atoms
    for _ in range(_TRIES):
        move = np.zeros((len(atoms), 3))
        move[which] = rng.normal(scale=size, size=(len(which), 3)).clip(-2 * size, 2 * size)
        out = _moved(atoms, atoms.positions + move)
        if _shortest(out) > CLOSEST * shortest:
            break
        size *= 0.95
    return out


def _shortest(atoms: Atoms) -> float:
    from ase_definet.structures.neighbors import pairs_within  # noqa: PLC0415 - with vesin

    cell = completed_cell(atoms.cell.array, atoms.positions, atoms.pbc)
    _, _, vectors = pairs_within(atoms.positions, cell, (True, True, True), 3.5)
    return float(np.linalg.norm(vectors, axis=1).min(initial=3.5))


def _from_network(ideal: Atoms, relaxer: DefiNetRelaxer, seed: int) -> Iterator[Start]:
    """Yield the network's answers from noisy positions, for ever."""
    seeds = np.random.SeedSequence(seed)
    k = 0
    while True:
        k += 1
        noisy = rattled(ideal, np.arange(len(ideal)), NOISE, int(seeds.spawn(1)[0].generate_state(1)[0]))
        try:
            found = relaxer.predict_from(noisy)
        except DefiNetError:  # noise that hides which atom is on which site
            continue
        yield Start(f"network-noisy-{k}", found.atoms)


def _spins(ideal: Atoms, site_map: SiteMap, relaxer: DefiNetRelaxer) -> Iterator[Start]:
    """Yield the spin states that a calculator can hold: the three lowest of the right parity, unless one is given."""
    stage = relaxer.calculator
    entry = CALCULATORS.get(stage.name) if stage is not None else None
    if entry is None or not entry.knows_state or said_of(ideal).spin_multiplicity is not None:
        return
    electrons = int(ideal.numbers.sum()) - (said_of(ideal).charge or 0)
    where = np.array([positions_of(ideal, site_map, defect) for defect in site_map.all_defects])
    cell = completed_cell(ideal.cell.array, ideal.positions, ideal.pbc)
    near = np.flatnonzero(near_sites(ideal.positions, where, cell, 3.0)).tolist() or [0]
    for unpaired in range(electrons % 2, 6, 2):
        yield Start(f"spin-{unpaired + 1}", with_moments(ideal, unpaired + 1, near), unpaired + 1)


def _moved(atoms: Atoms, positions: Array) -> Atoms:
    """Return a structure with other positions, its constraints kept."""
    out = atoms.copy()
    out.set_positions(positions, apply_constraint=True)
    return out


def _plain(name: str) -> str:
    """Return the name of a defect as part of the name of a file."""
    return re.sub(r"[^A-Za-z0-9_+-]", "", name)
