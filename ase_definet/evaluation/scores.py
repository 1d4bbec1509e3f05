"""Score weights on pairs that DFT has relaxed, beside what needs no network."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.geometry import get_distances
from numpy.typing import NDArray

from ase_definet.data import PackedDataset, PairGroup
from ase_definet.errors import StructureError
from ase_definet.evaluation.superposition import LinearSuperposition
from ase_definet.matching.host import Host
from ase_definet.matching.library import get_host, library
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import SiteMap
from ase_definet.relaxation.domain import SEEN_OFFSET, TRUST, Trust, known_host
from ase_definet.relaxation.inputs import displaced
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure, RelaxResult
from ase_definet.structures.cell import completed_cell
from ase_definet.structures.metrics import minimum_image, near_sites, rank_correlation, reliability_bins
from ase_definet.structures.state import State, state_of

Array: TypeAlias = NDArray[Any]

RADII = (3, 4, 5, 6)
"""Of the published metrics A3 to A6, in Å."""
QUANTILES = (0.5, 0.9, 0.99)
N_WORST = 5


@dataclass(frozen=True, eq=False)
class Score:
    """How one structure was predicted.

    Attributes:
        id: Its name.
        subset: What it belongs to.
        maes: Coordinate MAE by method (``model``; ``ideal_sites``, see :func:`ideal_sites`; ``unrelaxed``, the
            structure as given; ``superposition``) and region (``coordinate_mae``, ``a3`` to ``a6``), in Å.
        error: Length of the error of every atom, shape ``(n_atoms,)``, in Å.
        distance: Of every atom from the nearest defect site, shape ``(n_atoms,)``, in Å.
        predicted: Displacement of every atom from its host site, mean removed, shape ``(n_atoms, 3)``, in Å.
        true: The same as DFT found it, shape ``(n_atoms, 3)``, in Å.
        expected_error: Estimated length of the error of every atom, shape ``(n_atoms,)``, in Å; None where the
            weights have no such estimate, and where nothing supports one.
        seconds: Spent on matching, graph and network.
        warnings: Reasons to distrust the prediction.
        trust: Trust level of the prediction.
    """

    id: str
    subset: str
    maes: dict[str, dict[str, float]]
    error: Array
    distance: Array
    predicted: Array
    true: Array
    expected_error: Array | None
    seconds: float
    warnings: tuple[str, ...]
    trust: Trust = "inside"


def score_pairs(
    relaxer: DefiNetRelaxer,
    pack: PackedDataset,
    split: str = "val",
    *,
    superposition: bool = True,
    with_state: bool = True,
    limit: int | None = None,
    progress: Callable[[Score], object] = lambda _: None,
) -> tuple[list[Score], list[str]]:
    """Predict every pair of a split and compare with DFT, apart from a rigid shift of all atoms.

    Args:
        relaxer: With the weights to score.
        pack: The pairs.
        split: ``train``, ``val`` or ``test``.
        superposition: Whether to fit the superposition of single-defect fields to the training pairs, and score it
            (with the split ``train`` on what it was fitted to).
        with_state: Whether the relaxer is told charge, spin multiplicity and excitation of each pair; without it they
            are unknown, which shows what knowing them is worth. The functional is told in any case.
        limit: Most pairs on the same sites, evenly spread; all by default.
        progress: Called with every score.

    Returns:
        The scores, and ids with reasons for those that could not be scored.

    Raises:
        StructureError: No pair of this split has a relaxed structure.
    """
    scores: list[Score] = []
    left_out: list[str] = []
    for group in pack.groups:
        everything, chosen = group.indices(split, relaxed=False), group.indices(split)
        left_out += [f"{group.subset} {group.ids[i]}: no relaxed structure" for i in np.setdiff1d(everything, chosen)]
        if limit and len(chosen) > limit:
            chosen = chosen[np.linspace(0, len(chosen) - 1, limit).astype(int)]
        fitted = None
        train = group.indices("train")
        if superposition and len(chosen) and len(train):
            fitted = LinearSuperposition(group, train)
        for score in _score_group(relaxer, group, chosen, fitted, left_out, with_state=with_state):
            scores.append(score)
            progress(score)
    if not scores:
        shown = "; ".join(left_out[:5]) or "none is there"
        more = f" and {len(left_out) - 5} more" if len(left_out) > 5 else ""  # noqa: PLR2004
        raise StructureError(f"no pair of the {split} split can be scored: {shown}{more}")
    return scores, left_out


def _score_group(
    relaxer: DefiNetRelaxer,
    group: PairGroup,
    chosen: Array,
    fitted: LinearSuperposition | None,
    left_out: list[str],
    *,
    with_state: bool,
) -> Iterator[Score]:
    pairs = [group.atoms(int(i)) for i in chosen]
    if not with_state:
        for unrelaxed, _ in pairs:
            known = State(charge=None, functional=state_of(unrelaxed).functional, excited=None)
            unrelaxed.info.pop("spin_multiplicity", None)
            unrelaxed.info |= known.info
    host = _host_of(group)
    results = relaxer.relax_many((unrelaxed for unrelaxed, _ in pairs), host=host)
    for index, (unrelaxed, relaxed), result in zip(chosen, pairs, results, strict=True):
        if isinstance(result, RelaxFailure) or relaxed is None:
            reason = result.error if isinstance(result, RelaxFailure) else "no relaxed structure"
            left_out.append(f"{group.subset} {group.ids[index]}: {reason}")
            continue
        others = {"ideal_sites": ideal_sites(unrelaxed, result.site_map), "unrelaxed": unrelaxed.positions}
        if fitted is not None:
            numbers = group.numbers[[index]]
            others["superposition"] = (group.sites + fitted.predict(numbers)[0])[numbers[0] > 0]
        yield _score(group, int(index), unrelaxed, relaxed, result, others)


def ideal_sites(unrelaxed: Atoms, site_map: SiteMap) -> Array:
    """Return the prediction that moves nothing: every atom on its ideal host site.

    It is placed as a network's prediction of zero displacement would be, at the mean position of the atoms given, and
    is scored by the same formula. It differs from the unrelaxed structure where that is not on the host's sites: the
    unrelaxed low-density WSe2 cells of 2DMD have the layer thickness of MoS2.

    Args:
        unrelaxed: The structure that was matched.
        site_map: Its match.

    Returns:
        Positions in the order of the atoms, shape ``(n_atoms, 3)``, in Å.
    """
    return np.asarray(displaced(unrelaxed, site_map, np.zeros_like(site_map.positions)).positions)


def _host_of(group: PairGroup) -> Host:
    """Return the library's host where the group's is the same crystal, whatever its name, else the group's own."""
    pbc = [True, True, bool(group.pbc[2])]
    own = get_host(Atoms(group.unit_numbers, group.unit_positions, cell=group.unit_cell, pbc=pbc), group.host)
    name, _, offset = known_host(own)
    return library()[name] if name is not None and offset < SEEN_OFFSET else own


def _score(
    group: PairGroup, index: int, unrelaxed: Atoms, relaxed: Atoms, result: RelaxResult, others: dict[str, Array]
) -> Score:
    cell = completed_cell(unrelaxed.cell.array, unrelaxed.positions, unrelaxed.pbc)
    site_map = result.site_map
    defects = site_map.positions[site_map.kinds != SiteKind.PRISTINE]
    regions = {"coordinate_mae": np.ones(len(unrelaxed), dtype=bool)}
    regions |= {f"a{r}": near_sites(unrelaxed.positions, defects, cell, r) for r in RADII}
    sites = np.empty_like(unrelaxed.positions)
    real = site_map.atom_index >= 0
    sites[site_map.atom_index[real]] = site_map.positions[real]
    true = minimum_image(relaxed.positions - sites, cell)
    errors = {
        method: _without_shift(minimum_image(positions - relaxed.positions, cell))
        for method, positions in {"model": result.atoms.positions, **others}.items()
    }
    maes = {
        method: {name: float(np.abs(error)[mask].mean()) for name, mask in regions.items() if mask.any()}
        for method, error in errors.items()
    }
    difference = errors["model"]
    return Score(
        id=group.ids[index],
        subset=group.subset,
        maes=maes,
        error=np.linalg.norm(difference, axis=1),
        distance=_distance_to(unrelaxed.positions, defects, cell),
        predicted=_without_shift(true) + difference,
        true=_without_shift(true),
        expected_error=result.expected_error,
        seconds=sum(result.timings.values()),
        warnings=result.warnings,
        trust=result.trust,
    )


def _without_shift(vectors: Array) -> Array:
    """Remove the mean: DFT codes conserve the mean position or let it drift, and a rigid shift costs no energy."""
    return np.asarray(vectors - vectors.mean(axis=0))


def _distance_to(positions: Array, sites: Array, cell: Array) -> Array:
    if not len(sites):
        return np.full(len(positions), np.inf)
    _, distances = get_distances(positions, sites, cell=cell, pbc=True)
    return np.asarray(distances.min(axis=1))


def summarise(scores: list[Score]) -> dict[str, Any]:
    """Return the table of a list of scores, ready for JSON.

    Args:
        scores: Of any subsets.

    Returns:
        ``subsets.NAME`` and ``overall`` (their mean; ``n`` is the sum), with ``n``, ``coordinate_mae``, ``a3`` to
        ``a6``, the same under ``ideal_sites``, ``unrelaxed`` and, where it could be fitted for all,
        ``superposition``, ``error_quantiles`` of the atoms, ``worst`` structures, ``seconds_per_structure``,
        ``trust`` (numbers of structures by trust level) and, where structures have an expected error,
        ``expected_error`` of those (``n``); lengths in Å.
    """
    names = sorted({score.subset for score in scores})
    subsets = {name: _table([score for score in scores if score.subset == name]) for name in names}
    return {"subsets": subsets, "overall": _mean_of(list(subsets.values()))}


def _table(scores: list[Score]) -> dict[str, Any]:
    methods = {}
    for method in (name for name in scores[0].maes if all(name in score.maes for score in scores)):
        keys = sorted({key for score in scores for key in score.maes[method]})
        methods[method] = {
            key: float(np.mean([s.maes[method][key] for s in scores if key in s.maes[method]])) for key in keys
        }
    error = np.concatenate([score.error for score in scores])
    worst = sorted(scores, key=lambda s: -s.maes["model"]["coordinate_mae"])[:N_WORST]
    table: dict[str, Any] = {"n": len(scores)} | methods.pop("model") | methods
    table["error_quantiles"] = {f"{q:g}": float(np.quantile(error, q)) for q in QUANTILES}
    table["error_quantiles"]["max"] = float(error.max())
    table["worst"] = {score.id: score.maes["model"]["coordinate_mae"] for score in worst}
    table["seconds_per_structure"] = float(np.mean([score.seconds for score in scores]))
    table["trust"] = {level: sum(score.trust == level for score in scores) for level in TRUST}
    known = [(score.expected_error, score.error) for score in scores if score.expected_error is not None]
    if known:
        estimate, error = (np.concatenate(values) for values in zip(*known, strict=True))
        by_structure = [(expected.mean(), found.mean()) for expected, found in known]
        table["expected_error"] = {
            "n": len(known),
            "rank_correlation": rank_correlation(estimate, error),
            "rank_correlation_of_structures": rank_correlation(*np.transpose(by_structure)),
            "mean_estimate": float(estimate.mean()),
            "mean_error": float(error.mean()),
            "within_twice": float((error <= 2 * estimate).mean()),
        }
    return table


def _mean_of(tables: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the mean over subsets of everything that is a number in all of them."""
    out: dict[str, Any] = {}
    for key, first in tables[0].items():
        if not all(key in table for table in tables) or key == "worst":
            continue
        if isinstance(first, dict) and key != "trust":
            out[key] = _mean_of([table[key] for table in tables])
        elif key == "trust":
            out[key] = {level: sum(table[key][level] for table in tables) for level in first}
        else:
            out[key] = float(np.mean([table[key] for table in tables])) if key != "n" else sum(t["n"] for t in tables)
    return out


def states_matter(relaxer: DefiNetRelaxer, pack: PackedDataset, split: str) -> bool:
    """Return whether the network knows states, and some pair of a split has one that is not the default."""
    usual = np.array(State().codes)
    chosen = (group.state[group.indices(split)] for group in pack.groups)
    said = np.array([0, 1, 3])  # charge, multiplicity, excitation: what is withheld
    return relaxer.network.config.states and any((codes[:, said] != usual[said]).any() for codes in chosen)


def reliability(scores: list[Score], bins: int = 10) -> list[dict[str, float]]:
    """Return mean estimated and mean true error of the atoms, in bins of equal numbers of atoms, in Å.

    Args:
        scores: With expected errors.
        bins: How many.
    """
    estimate = np.concatenate([s.expected_error for s in scores if s.expected_error is not None])
    error = np.concatenate([s.error for s in scores if s.expected_error is not None])
    return [{"estimate": e, "error": found, "n": n} for e, found, n in reliability_bins(estimate, error, bins)]
