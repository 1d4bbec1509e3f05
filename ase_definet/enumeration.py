"""All symmetry-distinct ways to put defects into a supercell, one after the other, or a random sample.

One defect of a kind is put on a representative site; the others are tried everywhere else. A configuration is given
out if it is the smallest of all its images, under the symmetry of the supercell, that put a defect of that kind
there: nothing has to be remembered, so any number can be streamed.
"""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from ase_definet.errors import EnumerationError
from ase_definet.host import SYMMETRY_PRECISION, Host
from ase_definet.naming import VACANCY_PREFIX, defect_name
from ase_definet.supercell import cells_of

if TYPE_CHECKING:
    from ase import Atoms

Array: TypeAlias = NDArray[Any]

_BLOCK = 20_000
_SITE_TOLERANCE = 0.05
_NAME = re.compile(r"^\s*(?P<what>v|[A-Z][a-z]?|\d+)_(?P<host>[A-Z][a-z]?)\s*(?:[*x]\s*(?P<count>\d+))?\s*$")


@dataclass(frozen=True, order=True)
class DefectKind:
    """One kind of point defect.

    Attributes:
        host: Atomic number of the host there.
        element: Atomic number found there, 0 for a vacancy.
    """

    host: int
    element: int

    @property
    def name(self) -> str:
        """``v_S``, ``W_Mo``."""
        return defect_name(self.element, self.host)


def parse_defects(text: str) -> dict[DefectKind, int]:
    """Read a list of defects.

    Args:
        text: Such as ``"v_S*2 + W_Mo"``. ``v`` is a vacancy and ``V`` vanadium; any element may be given by its
            number too (``23_Mo``).

    Returns:
        Number of each kind.

    Raises:
        EnumerationError: The text cannot be understood.

    Examples:
        >>> {kind.name: n for kind, n in parse_defects("v_S*2 + W_Mo").items()}
        {'v_S': 2, 'W_Mo': 1}
    """
    out: dict[DefectKind, int] = {}
    for part in text.split("+"):
        found = _NAME.match(part)
        if not found:
            raise EnumerationError(f"cannot read the defect {part.strip()!r}; expected v_S, W_Mo, v_S*2, joined by +")
        known = {str(z): z for z in range(1, len(chemical_symbols))} | atomic_numbers | {VACANCY_PREFIX: 0}
        if found["what"] not in known or found["host"] not in atomic_numbers:
            wrong = found["what"] if found["what"] not in known else found["host"]
            raise EnumerationError(f"{part.strip()!r}: {wrong} is no element")
        kind = DefectKind(atomic_numbers[found["host"]], known[found["what"]])
        if kind.host == kind.element:
            raise EnumerationError(f"{part.strip()!r} is no defect: {found['host']} belongs there")
        out[kind] = out.get(kind, 0) + int(found["count"] or 1)
    if not sum(out.values()):
        raise EnumerationError(f"{text!r}: no defect at all")
    return out


@dataclass(frozen=True, eq=False)
class Configuration:
    """One configuration of defects.

    Attributes:
        sites: The defect sites, shape ``(n,)``.
        kinds: What is on each of them.
        multiplicity: Number of configurations of the supercell that symmetry makes of this one.
        distances: Between all pairs of defects, nearest images, ascending, in Å.
    """

    sites: tuple[int, ...]
    kinds: tuple[DefectKind, ...]
    multiplicity: int
    distances: tuple[float, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Number of each kind of defect, by name."""
        return Counter(kind.name for kind in self.kinds)

    @property
    def name(self) -> str:
        """Defects, then where they are: ``v_S+W_Mo-0-17``."""
        what = "+".join(name if n == 1 else f"{name}x{n}" for name, n in self.counts.items())
        return f"{what}-{'-'.join(map(str, self.sites))}"


class DefectSpace:
    """The sites of a host's supercell and the symmetry between them.

    Args:
        host: The host.
        supercell: Integer matrix, rows in the host's primitive vectors, shape ``(3, 3)``.

    Raises:
        EnumerationError: The supercell has no volume, or stacks a layer upon itself.
    """

    def __init__(self, host: Host, supercell: Array) -> None:
        supercell = np.asarray(supercell, dtype=int)
        if supercell.shape != (3, 3) or round(abs(float(np.linalg.det(supercell)))) == 0:
            raise EnumerationError(f"a supercell is a 3x3 integer matrix with a volume, found {supercell.tolist()}")
        if host.layered and not np.array_equal(supercell[2], [0, 0, 1]):
            raise EnumerationError(f"{host.name} is one layer: the last row of the supercell must be 0 0 1")
        self.host, self.supercell = host, supercell
        self.cells = cells_of(supercell)
        self.numbers = np.tile(host.numbers, len(self.cells))
        self.cell = supercell @ host.cell
        self.positions = ((self.cells @ host.cell)[:, None] + host.positions).reshape(-1, 3)
        self._inverse = np.linalg.inv(supercell)
        self._index = {self._key(cell): i for i, cell in enumerate(self.cells)}

    def _key(self, cell: Array) -> tuple[int, ...]:
        """Name a primitive cell modulo the supercell."""
        fraction = cell @ self._inverse
        inside = np.round((fraction - np.floor(fraction + 1e-9)) @ self.supercell).astype(int)
        return tuple(int(v) for v in inside)

    @cached_property
    def _sums(self) -> Array:
        """Index of the sum of two primitive cells, shape ``(n_cells, n_cells)``."""
        return np.array([[self._index[self._key(a + b)] for b in self.cells] for a in self.cells])

    @cached_property
    def operations(self) -> Array:
        """Where each point operation takes each site, up to translations, shape ``(n_operations, n_sites)``."""
        import spglib  # noqa: PLC0415

        host = self.host
        scaled = np.linalg.solve(host.cell.T, host.positions.T).T
        with warnings.catch_warnings():  # spglib announces a change of its error handling at every call
            warnings.simplefilter("ignore", DeprecationWarning)
            found = spglib.get_symmetry((host.cell, scaled, host.numbers), symprec=SYMMETRY_PRECISION)
        identity = (np.eye(3, dtype=int)[None], np.zeros((1, 3)))
        turns, shifts = identity if found is None else (found["rotations"], found["translations"])
        out = [self._permutation(turn, shift, scaled) for turn, shift in zip(turns, shifts, strict=True)]
        return np.unique(np.array([p for p in out if p is not None]), axis=0)

    def _permutation(self, turn: Array, shift: Array, scaled: Array) -> Array | None:
        """Return where an operation takes the sites; None if it does not keep the supercell."""
        turned = np.linalg.solve(self.supercell.T.astype(float), (self.supercell @ turn.T).T)
        if np.abs(turned - np.round(turned)).max() > 1e-6:  # noqa: PLR2004 - integers up to rounding
            return None
        if self.host.layered and (turn[2, :2].any() or turn[:2, 2].any()):
            return None
        basis = len(scaled)
        moved = scaled @ turn.T + shift
        target, jump = np.empty(basis, dtype=int), np.empty((basis, 3), dtype=int)
        for b in range(basis):
            away = moved[b] - scaled
            whole = np.round(away)
            off = np.linalg.norm((away - whole) @ self.host.cell, axis=1)
            target[b] = int(np.where(self.host.numbers == self.host.numbers[b], off, np.inf).argmin())
            if off[target[b]] > _SITE_TOLERANCE:
                return None
            jump[b] = whole[target[b]]
        out = np.empty(len(self.numbers), dtype=int)
        for c, cell in enumerate(self.cells):
            for b in range(basis):
                out[c * basis + b] = self._index[self._key(cell @ turn.T + jump[b])] * basis + target[b]
        return out

    @property
    def order(self) -> int:
        """Number of symmetry operations of the supercell, translations included."""
        return len(self.operations) * len(self.cells)

    @property
    def orbits(self) -> Array:
        """The first site that symmetry makes of each site, shape ``(n_sites,)``."""
        basis = len(self.host.numbers)
        return np.asarray((self.operations % basis).min(axis=0)[np.arange(len(self.numbers)) % basis])

    def enumerate(self, defects: dict[DefectKind, int], max_distance: float | None = None) -> Iterator[Configuration]:
        """Give out all symmetry-distinct configurations, one after the other.

        Args:
            defects: How many of each kind.
            max_distance: Leave out those with two defects further apart, in Å.

        Raises:
            EnumerationError: The host has no such sites, or too few.
        """
        self._check(defects)
        first = min(defects, key=lambda kind: (defects[kind], int((self.numbers == kind.host).sum()), kind))
        rest = dict(defects)
        rest[first] -= 1
        kinds = [kind for kind in sorted(rest) for _ in range(rest[kind])]
        allowed = np.flatnonzero(self.numbers == first.host)
        orbits = self.orbits
        for site in sorted(set(orbits[allowed].tolist())):
            candidates = self._candidates(site, rest, max_distance)
            while block := list(itertools.islice(candidates, _BLOCK)):
                yield from self._distinct(first, site, kinds, np.array(block, dtype=int).reshape(len(block), -1))

    def sample(self, density: float, kinds: list[DefectKind], seed: int = 0) -> Iterator[Configuration]:
        """Give out random configurations without end: the same ones for the same seed.

        Args:
            density: Share of the sites that are defective.
            kinds: What may be there, with equal probability where the host has the site.
            seed: Of the random numbers.

        Raises:
            EnumerationError: The density is no share, or no site is allowed.
        """
        count = round(density * len(self.numbers))
        by_host = {h: [k for k in kinds if k.host == h] for h in {kind.host for kind in kinds}}
        allowed = np.flatnonzero(np.isin(self.numbers, list(by_host)))
        if not 0 < count <= len(allowed):
            raise EnumerationError(
                f"a density of {density:g} makes {count} defects on {len(self.numbers)} sites, of which "
                f"{len(allowed)} may be defective; expected at least one and at most that many"
            )
        rng = np.random.default_rng(seed)
        while True:
            sites = np.sort(rng.choice(allowed, count, replace=False))
            chosen = [by_host[h][int(rng.integers(len(by_host[h])))] for h in self.numbers[sites].tolist()]
            yield self._configuration(tuple(sites.tolist()), tuple(chosen), 0)

    def atoms(self, configuration: Configuration) -> Atoms:
        """Return the unrelaxed structure of a configuration."""
        from ase import Atoms  # noqa: PLC0415

        numbers = self.numbers.copy()
        for site, kind in zip(configuration.sites, configuration.kinds, strict=True):
            numbers[site] = kind.element
        real = numbers > 0
        atoms = Atoms(numbers[real], self.positions[real], cell=self.cell, pbc=self.host.periodic)
        atoms.info |= {
            "name": configuration.name,
            "defects": ", ".join(f"{name} x{n}" for name, n in configuration.counts.items()),
            "host": self.host.name,
        }
        if configuration.multiplicity:
            atoms.info["multiplicity"] = configuration.multiplicity
        if configuration.distances:
            atoms.info["shortest_defect_distance"] = configuration.distances[0]
        return atoms

    def _check(self, defects: dict[DefectKind, int]) -> None:
        wanted: dict[int, int] = {}
        for kind, count in defects.items():
            wanted[kind.host] = wanted.get(kind.host, 0) + count
        for number, count in wanted.items():
            there = int((self.numbers == number).sum())
            if count > there:
                have = ", ".join(chemical_symbols[z] for z in dict.fromkeys(self.host.numbers.tolist()))
                raise EnumerationError(
                    f"{count} defects on {chemical_symbols[number]} sites, of which this supercell of "
                    f"{self.host.name} ({have}) has {there}"
                )

    def _candidates(
        self, site: int, rest: dict[DefectKind, int], max_distance: float | None
    ) -> Iterator[tuple[int, ...]]:
        """Yield the sites of all other defects, kind by kind in order, none twice."""
        near = np.ones(len(self.numbers), dtype=bool)
        if max_distance is not None:
            near = self._distances[site] <= max_distance
        pools = [
            (kind, [int(s) for s in np.flatnonzero((self.numbers == kind.host) & near) if s != site])
            for kind in sorted(rest)
            if rest[kind]
        ]

        def extend(k: int, taken: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
            if k == len(pools):
                yield taken
                return
            kind, pool = pools[k]
            for chosen in itertools.combinations([s for s in pool if s not in taken], rest[kind]):
                if max_distance is None or self._close(taken + chosen, max_distance):
                    yield from extend(k + 1, taken + chosen)

        return extend(0, ())

    def _close(self, sites: tuple[int, ...], limit: float) -> bool:
        return bool((self._distances[np.ix_(sites, sites)] <= limit).all())

    def _distinct(
        self, first: DefectKind, site: int, kinds: list[DefectKind], others: Array
    ) -> Iterator[Configuration]:
        """Give out the configurations of a block that are the smallest of their images."""
        order = sorted({*kinds, first})
        labels = np.array([order.index(kind) for kind in (first, *kinds)])
        whole = np.concatenate([np.full((len(others), 1), site), others], axis=1)
        ours = np.flatnonzero(labels == labels[0])
        # a configuration with one of its first kind on an earlier orbit of sites was given out there
        smallest = (self.orbits[whole[:, ours]] >= self.orbits[site]).all(axis=1)
        same = np.zeros(len(others), dtype=int)
        basis = len(self.host.numbers)
        for column in ours:
            rows = [c for c in range(whole.shape[1]) if c != column]
            for operation in self.operations:
                moved = operation[whole]
                onto = moved[:, column] % basis == site % basis
                if not onto.any():
                    continue
                image = self._shifted(moved[onto], int(column), site)[:, rows]
                difference = _compare(_sorted_by(image, labels[rows]), others[onto])
                index = np.flatnonzero(onto)
                smallest[index[difference < 0]] = False
                same[index[difference == 0]] += 1
        for k in np.flatnonzero(smallest):
            sites = tuple(int(s) for s in whole[k])
            yield self._configuration(sites, (first, *kinds), self.order // int(same[k]))

    def _shifted(self, sites: Array, column: int, site: int) -> Array:
        """Translate configurations so that one of their columns comes to lie on a site."""
        basis = len(self.host.numbers)
        cells = sites // basis
        back = self._differences[site // basis, cells[:, column]]
        return np.asarray(self._sums[cells, back[:, None]] * basis + sites % basis)

    @cached_property
    def _differences(self) -> Array:
        """Index of the first minus the second primitive cell, shape ``(n_cells, n_cells)``."""
        return np.array([[self._index[self._key(a - b)] for b in self.cells] for a in self.cells])

    @cached_property
    def _distances(self) -> Array:
        """Nearest-image distances between all sites, shape ``(n_sites, n_sites)``, in Å."""
        from ase.geometry import get_distances  # noqa: PLC0415

        _, lengths = get_distances(self.positions, cell=self.cell, pbc=self.host.periodic)
        return np.asarray(lengths)

    def _configuration(
        self, sites: tuple[int, ...], kinds: tuple[DefectKind, ...], multiplicity: int
    ) -> Configuration:
        pairs = np.array(list(itertools.combinations(sites, 2)), dtype=int).reshape(-1, 2)
        lengths = tuple(sorted(round(float(d), 4) for d in self._distances[pairs[:, 0], pairs[:, 1]]))
        return Configuration(sites, kinds, multiplicity, lengths)


def count_all(space: DefectSpace, defects: dict[DefectKind, int]) -> int:
    """Return the number of configurations, symmetry ignored: what all multiplicities add up to."""
    total, used = 1, dict.fromkeys({kind.host for kind in defects}, 0)
    for kind, count in defects.items():
        total *= math.comb(int((space.numbers == kind.host).sum()) - used[kind.host], count)
        used[kind.host] += count
    return total


def _sorted_by(sites: Array, labels: Array) -> Array:
    """Sort the sites of each kind, kinds in order."""
    out = sites[:, np.argsort(labels, kind="stable")]
    labels = np.sort(labels, kind="stable")
    for label in np.unique(labels):
        own = labels == label
        out[:, own] = np.sort(out[:, own], axis=1)
    return out


def _compare(one: Array, other: Array) -> Array:
    """Compare rows: -1 where the first is smaller, 0 where equal, 1 where larger."""
    out = np.zeros(len(one), dtype=int)
    for k in range(one.shape[1]):
        out = np.where(out == 0, np.sign(one[:, k] - other[:, k]), out)
    return out
