"""Enumeration of all symmetry-distinct configurations of defects in a supercell, or a random sample.

One defect of one kind is fixed on a representative site, and the others are placed on all other sites. A
configuration is yielded if it is the smallest among its images, under the symmetry of the supercell, with a defect of
that kind on that site. No earlier configurations have to be stored, so any number can be streamed.

Primitive cells are added and subtracted modulo the supercell through its Hermite normal form, so that time and memory
scale with the configurations examined, not with the pairs of sites.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import numpy as np
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from numpy.typing import NDArray

from ase_definet.errors import EnumerationError
from ase_definet.matching.host import Host
from ase_definet.matching.naming import VACANCY_PREFIX, defect_name
from ase_definet.matching.shared_sites import Placed, SharedSites
from ase_definet.matching.site_map import match_sites
from ase_definet.matching.supercell import cells_of
from ase_definet.matching.symmetry import space_group_operations
from ase_definet.structures.neighbors import pairs_within

Array: TypeAlias = NDArray[Any]

_BLOCK = 20_000
_LONGEST_NAME = 200
"""Longest name of a configuration, in characters: file systems allow 255 bytes including the extension."""
_MANY = 32
"""From this number of defects, the shortest distance is searched among neighbours instead of all pairs."""
_REMEMBERED = 4_096
"""Largest number of neighbouring sites whose distances are cached."""
_ENDLESS = 69.0
"""Random configurations are not checked for repetition if there are more than e to the power of this."""
_VANADIUM = 23
_SITE_TOLERANCE = 0.05
_NAME = re.compile(r"^\s*(?P<what>v|[A-Z][a-z]?|\d+)_(?P<host>[A-Z][a-z]?)\s*(?:[*x]\s*(?P<count>\d+))?\s*$")


@dataclass(frozen=True, order=True)
class DefectKind:
    """One kind of point defect.

    Attributes:
        host: Atomic number of the host on the site.
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
        text: Such as ``"v_S*2 + W_Mo"``. ``v`` is a vacancy and ``V`` vanadium; elements may also be given by their
            numbers (``23_Mo``).

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
        count = int(found["count"] or 1)
        if not count:
            raise EnumerationError(
                f"{part.strip()!r} is no defect at all; expected a count of at least 1: leave it out"
            )
        out[kind] = out.get(kind, 0) + count
    return out


@dataclass(frozen=True, eq=False)
class Configuration:
    """One configuration of defects.

    Attributes:
        sites: The defect sites, shape ``(n,)``.
        kinds: What is on each of them.
        multiplicity: Number of symmetry-equivalent configurations; 0 if unknown.
        space: The sites of the supercell.
        labels: Name of each kind in :attr:`name`.
    """

    sites: tuple[int, ...]
    kinds: tuple[DefectKind, ...]
    multiplicity: int
    space: DefectSpace = field(repr=False)
    labels: Mapping[DefectKind, str] = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Number of each kind of defect, by name."""
        return Counter(kind.name for kind in self.kinds)

    @property
    def name(self) -> str:
        """Defects, then their sites by kind: ``v_Sx2+W_Mo-0-4-17``, with tungsten on site 17.

        Names are unique within an enumeration, even if case is ignored: vanadium is written with its atomic number
        (``23_Mo``) if vacancies of the same element may occur too. Very long lists of sites are
        replaced by a digest of them.
        """
        places: dict[str, list[int]] = {}
        for site, kind in zip(self.sites, self.kinds, strict=True):
            places.setdefault(self.labels[kind], []).append(site)
        what = "+".join(label if len(own) == 1 else f"{label}x{len(own)}" for label, own in places.items())
        whole = f"{what}-{'-'.join(str(site) for own in places.values() for site in own)}"
        if len(whole) <= _LONGEST_NAME:
            return whole
        short = what if len(what) <= _LONGEST_NAME // 2 else f"{len(self.sites)}_defects"
        return f"{short}-sites-{hashlib.blake2b(whole.encode(), digest_size=12).hexdigest()}"

    @cached_property
    def distances(self) -> tuple[float, ...]:
        """Between all pairs of defects, nearest images, ascending, in Å."""
        pairs = np.array(list(itertools.combinations(self.sites, 2)), dtype=int).reshape(-1, 2)
        lengths = self.space.distances(pairs[:, 0], pairs[:, 1])
        return tuple(sorted(round(float(d), 4) for d in lengths))

    @cached_property
    def shortest_distance(self) -> float | None:
        """Between two defects, in Å; None for a single one."""
        if len(self.sites) <= _MANY:
            return self.distances[0] if self.distances else None
        host = self.space.host
        positions, radius = self.space.positions[list(self.sites)], 1.01 * host.nearest_neighbor
        while True:
            one, other, vector = pairs_within(positions, self.space.cell, host.periodic, radius)
            lengths = np.linalg.norm(vector[one != other], axis=1)
            if len(lengths):
                return round(float(lengths.min()), 4)
            radius *= 1.5


class DefectSpace:
    """The sites of a host's supercell and the symmetry between them.

    Args:
        host: The host.
        supercell: Integer matrix, rows in the host's primitive vectors, shape ``(3, 3)``.

    Raises:
        EnumerationError: The supercell has no volume, or contains more than one image of a layer.
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
        self._form = _hermite_normal_form(supercell)
        self._index = np.empty(len(self.cells), dtype=int)
        self._index[self._key(self.cells)] = np.arange(len(self.cells))
        self._written: dict[tuple[int, int], list[str]] = {}

    def _key(self, cell: Array) -> Array:
        """Return unique indices of primitive cells, shape ``(..., 3)``, modulo the supercell, starting from 0."""
        form = self._form
        a, b, c = cell[..., 0], cell[..., 1], cell[..., 2]
        whole, a = np.divmod(a, form[0, 0])
        if form[0, 1]:
            b = b - whole * form[0, 1]
        if form[0, 2]:
            c = c - whole * form[0, 2]
        whole, b = np.divmod(b, form[1, 1])
        if form[1, 2]:
            c = c - whole * form[1, 2]
        return np.asarray((a * form[1, 1] + b) * form[2, 2] + c % form[2, 2])

    @cached_property
    def operations(self) -> Array:
        """Image of each site under each point operation, up to translations, shape ``(n_operations, n_sites)``."""
        host = self.host
        scaled = np.linalg.solve(host.cell.T, host.positions.T).T
        turns, shifts = space_group_operations(host.cell, host.positions, host.numbers, layered=host.layered)
        distinct: dict[bytes, tuple[Array, Array, Array]] = {}
        for turn, shift in zip(turns, shifts, strict=True):
            action = self._action(turn, shift, scaled)
            if action is not None:
                # in a small supercell several operations may do the same, or differ by a translation only
                target, jump = action
                does = np.concatenate([target, self._key(turn.T), self._key(jump)])
                distinct.setdefault(does.astype(np.int64).tobytes(), (turn, target, jump))
        out = np.empty((len(distinct), len(self.cells), len(scaled)), dtype=np.int32)
        for row, (turn, target, jump) in zip(out, distinct.values(), strict=True):
            for b in range(len(scaled)):
                row[:, b] = self._index[self._key(self.cells @ turn.T + jump[b])] * len(scaled) + target[b]
        return out.reshape(len(distinct), -1)

    def _action(self, turn: Array, shift: Array, scaled: Array) -> tuple[Array, Array] | None:
        """Return the images of the sites of a primitive cell; None if an operation does not preserve the supercell.

        Returns:
            Their indices in the basis, shape ``(n_basis,)``, and their cells, shape ``(n_basis, 3)``, translated such
            that the first site stays in its cell.
        """
        if self._key(self.supercell @ turn.T).any():
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
        return target, jump - jump[0]

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what another process makes the same space of, once for all configurations that are sent there."""
        return _space_of, (self.host, tuple(map(tuple, self.supercell.tolist())))

    @cached_property
    def _shared(self) -> tuple[SharedSites, Array] | None:
        """The sites as a match has them, and the site of a match for each of ours; None if a match is in doubt."""
        pristine = Atoms(self.numbers, self.positions, cell=self.cell, pbc=self.host.periodic)
        site_map = match_sites(pristine, self.host)
        if not SharedSites.serves(site_map) or len(site_map.kinds) != len(self.numbers):
            return None
        return SharedSites(site_map, pristine), np.argsort(site_map.atom_index)

    def placed(self, configuration: Configuration) -> Placed | Atoms:
        """Return the unrelaxed structure of a configuration, with its sites, which are known without matching it.

        Args:
            configuration: One of this space.
        """
        atoms = self.atoms(configuration)
        if self._shared is None:
            return atoms
        shared, site = self._shared
        empty = [at for at, kind in zip(configuration.sites, configuration.kinds, strict=True) if not kind.element]
        site = np.delete(site, empty)
        site_map = shared.occupied(atoms.numbers, site, shared.known.offsets[site])
        return atoms if site_map is None else Placed(atoms, site_map)

    @property
    def order(self) -> int:
        """Number of symmetry operations of the supercell, translations included."""
        return len(self.operations) * len(self.cells)

    @cached_property
    def _basis_orbits(self) -> Array:
        """First symmetry-equivalent site of the basis for each one, shape ``(n_basis,)``."""
        basis = len(self.host.numbers)
        return np.asarray((self.operations[:, :basis] % basis).min(axis=0))

    @property
    def orbits(self) -> Array:
        """First symmetry-equivalent site of each site, shape ``(n_sites,)``."""
        return np.tile(self._basis_orbits, len(self.cells))

    def distances(self, one: Array, other: Array) -> Array:
        """Return the nearest-image distances between sites, both of shape ``(n,)``, in Å."""
        from ase.geometry import find_mic  # noqa: PLC0415

        out = np.empty(len(one))
        for start in range(0, len(one), _BLOCK):  # ASE holds all neighbouring images at once
            part = slice(start, start + _BLOCK)
            vectors = self.positions[other[part]] - self.positions[one[part]]
            out[part] = find_mic(vectors, self.cell, self.host.periodic)[1]
        return out

    def enumerate(self, defects: dict[DefectKind, int], max_distance: float | None = None) -> Iterator[Configuration]:
        """Yield all symmetry-distinct configurations.

        Args:
            defects: Number of defects of each kind.
            max_distance: Largest distance between any two defects, in Å.

        Raises:
            EnumerationError: The host has no such sites, or too few of them.
        """
        self._check(defects)
        if max_distance is not None and not max_distance > 0:
            raise EnumerationError(f"a largest distance is a positive length in Å, found {max_distance:g}")
        first = min(defects, key=lambda kind: (defects[kind], int((self.numbers == kind.host).sum()), kind))
        rest = dict(defects)
        rest[first] -= 1
        kinds = (first, *(kind for kind in sorted(rest) for _ in range(rest[kind])))
        labels = _labels(defects)
        orbits = self._basis_orbits[self.host.numbers == first.host]
        for site in sorted(set(orbits.tolist())):
            for block in _in_blocks(self._candidates(site, rest, max_distance)):
                for sites, multiplicity in self._distinct(kinds, site, block):
                    yield Configuration(sites, kinds, multiplicity, self, labels)

    def sample(self, density: float, kinds: list[DefectKind], seed: int = 0) -> Iterator[Configuration]:
        """Yield random configurations without repetition, as long as there are any, reproducibly for a seed.

        Args:
            density: Share of the sites that are defective.
            kinds: Allowed kinds, with equal probability on each suitable site.
            seed: Seed of the random numbers.

        Raises:
            EnumerationError: The density is not between 0 and 1, or no site is suitable.
        """
        count = round(density * len(self.numbers)) if math.isfinite(density) else 0
        kinds = list(dict.fromkeys(kinds))
        by_host = {h: [k for k in kinds if k.host == h] for h in {kind.host for kind in kinds}}
        allowed = np.flatnonzero(np.isin(self.numbers, list(by_host)))
        if not 0 < count <= len(allowed):
            raise EnumerationError(
                f"a density of {density:g} makes {count} defects on {len(self.numbers)} sites, of which "
                f"{len(allowed)} may be defective; expected at least one and at most that many"
            )
        labels, rng = _labels(kinds), np.random.default_rng(seed)
        places = math.lgamma(len(allowed) + 1) - math.lgamma(count + 1) - math.lgamma(len(allowed) - count + 1)
        rarest = places + count * math.log(max(map(len, by_host.values())))  # minus the logarithm of its probability
        patience = 30 * math.exp(min(rarest, _ENDLESS))
        seen: set[bytes] = set()
        repeated = 0
        while repeated <= patience:  # the probability to miss a remaining one is exp(-30)
            sites = np.sort(rng.choice(allowed, count, replace=False))
            chosen = [by_host[h][int(rng.integers(len(by_host[h])))] for h in self.numbers[sites].tolist()]
            if places < _ENDLESS:
                content = repr((sites.tolist(), [kind.element for kind in chosen])).encode()
                digest = hashlib.blake2b(content, digest_size=16).digest()
                if digest in seen:
                    repeated += 1
                    continue
                seen.add(digest)
                repeated = 0
            yield Configuration(tuple(sites.tolist()), tuple(chosen), 0, self, labels)

    def atoms(self, configuration: Configuration) -> Atoms:
        """Return the unrelaxed structure of a configuration."""
        numbers = self.numbers.copy()
        for site, kind in zip(configuration.sites, configuration.kinds, strict=True):
            numbers[site] = kind.element
        real = numbers > 0
        atoms = Atoms(numbers[real], self.positions[real], cell=self.cell, pbc=self.host.periodic)
        atoms.info |= {
            "name": configuration.name,
            "defects": ", ".join(f"{name} x{n}" for name, n in configuration.counts.items()),
            "host": " ".join(self.host.name.encode("utf-8", "replace").decode().split()),  # the host may be any file
        }
        if configuration.multiplicity:
            atoms.info["multiplicity"] = configuration.multiplicity
        if configuration.shortest_distance is not None:
            atoms.info["shortest_defect_distance"] = configuration.shortest_distance
        return atoms

    def extxyz(self, configuration: Configuration) -> str:
        """Return the unrelaxed structure of a configuration as extended XYZ, to the byte as ASE writes it.

        The lines of the atoms are the same in all configurations: ASE writes them once for each element.
        """
        atoms = self.atoms(configuration)
        numbers = self.numbers.tolist()
        for site, kind in zip(configuration.sites, configuration.kinds, strict=True):
            numbers[site] = kind.element
        there = {number for number in numbers if number}
        if not there:
            return _ase_text(atoms)
        wide = max(len(chemical_symbols[number]) for number in there)
        lines = {number: self._lines(number, wide) for number in there}
        head = _ase_text(atoms[:1]).split("\n", 2)[1]
        body = "".join([lines[number][site] for site, number in enumerate(numbers) if number])
        return f"{len(atoms)}\n{head}\n{body}"

    def _lines(self, number: int, wide: int) -> list[str]:
        """Return the lines of an element on every site, with symbols in a column of this width."""
        key = (number, wide)
        if key not in self._written:
            filler = next(z for z in range(1, len(chemical_symbols)) if len(chemical_symbols[z]) == wide)
            text = _ase_text(Atoms([*[number] * len(self.numbers), filler], [*self.positions, (0, 0, 0)]))
            self._written[key] = text.splitlines(keepends=True)[2:-1]
        return self._written[key]

    def _check(self, defects: dict[DefectKind, int]) -> None:
        if not defects:
            raise EnumerationError("no defect at all; expected at least one kind")
        wanted: dict[int, int] = {}
        for kind, count in defects.items():
            if count < 1:
                raise EnumerationError(f"{kind.name}: expected a count of at least 1, found {count}; leave it out")
            wanted[kind.host] = wanted.get(kind.host, 0) + count
        for number, count in wanted.items():
            there = int((self.numbers == number).sum())
            if count > there:
                have = ", ".join(chemical_symbols[z] for z in dict.fromkeys(self.host.numbers.tolist()))
                raise EnumerationError(
                    f"{count} defects on {chemical_symbols[number]} sites, of which this supercell of "
                    f"{self.host.name} ({have}) has {there}"
                )

    def _candidates(self, site: int, rest: dict[DefectKind, int], max_distance: float | None) -> Iterator[Array]:
        """Yield the sites of all other defects, by kind and without repetition, in arrays of ``(n, n_rest)``."""
        around = _Surroundings(self, site, max_distance)
        hosts = self.numbers[around.sites]
        pools = [around.sites[hosts == kind.host] for kind in sorted(rest) for _ in range(rest[kind])]
        begins = [n == 0 for kind in sorted(rest) for n in range(rest[kind])]

        def extend(taken: tuple[int, ...], options: Array) -> Iterator[Array]:
            slot = len(taken)
            if begins[slot]:
                options = pools[slot][~np.isin(pools[slot], taken)]
                for chosen in taken:
                    options = around.near(chosen, options)
            if slot == len(pools) - 1:
                out = np.empty((len(options), len(pools)), dtype=int)
                out[:, :slot] = taken
                out[:, slot] = options
                yield out
                return
            for k, chosen in enumerate(options.tolist()):
                later = options[k + 1 :]
                yield from extend((*taken, chosen), later if begins[slot + 1] else around.near(chosen, later))

        return extend((), around.sites) if pools else iter([np.empty((1, 0), dtype=int)])

    def _distinct(
        self, kinds: tuple[DefectKind, ...], site: int, others: Array
    ) -> Iterator[tuple[tuple[int, ...], int]]:
        """Yield the configurations of a block that are the smallest of their images, and their multiplicities.

        Args:
            kinds: Kinds of the site and of the others, shape ``(n,)``.
            site: The first site of all of them.
            others: Their other sites, shape ``(n_configurations, n - 1)``.
        """
        order = sorted(set(kinds))
        labels = np.array([order.index(kind) for kind in kinds])
        whole = np.concatenate([np.full((len(others), 1), site), others], axis=1)
        basis = len(self.host.numbers)
        ours = np.flatnonzero(labels == labels[0])
        # a configuration with one of its first kind on an earlier orbit of sites was yielded there
        whole = whole[(self._basis_orbits[whole[:, ours] % basis] >= self._basis_orbits[site]).all(axis=1)]
        same = np.zeros(len(whole), dtype=int)
        for column in ours:
            rows = [c for c in range(whole.shape[1]) if c != column]
            for operation in self.operations:
                onto = np.flatnonzero(operation[whole[:, column]] % basis == site % basis)
                if not len(onto):
                    continue
                image = self._shifted(operation[whole[onto]], int(column), site)[:, rows]
                difference = _compare(_sorted_by(image, labels[rows]), whole[onto, 1:])
                same[onto[difference == 0]] += 1
                larger = onto[difference < 0]
                if len(larger):
                    whole, same = np.delete(whole, larger, axis=0), np.delete(same, larger)
        for sites, fixed in zip(whole.tolist(), same.tolist(), strict=True):
            yield tuple(sites), self.order // fixed

    def _shifted(self, sites: Array, column: int, site: int) -> Array:
        """Translate configurations so that one of their columns lies on a given site."""
        basis = len(self.host.numbers)
        cells = self.cells[sites // basis]
        by = self.cells[site // basis] - cells[:, column]
        return np.asarray(self._index[self._key(cells + by[:, None])] * basis + sites % basis)


@lru_cache(maxsize=2)
def _space_of(host: Host, supercell: tuple[tuple[int, ...], ...]) -> DefectSpace:
    """Return the space of a supercell, the same one for all configurations that come to a process."""
    return DefectSpace(host, np.array(supercell))


class _Surroundings:
    """The sites within a distance of a given one, and which of these are within that distance of each other.

    Args:
        space: The sites of the supercell.
        site: The given site.
        limit: The distance, in Å; by default all other sites are included.
    """

    def __init__(self, space: DefectSpace, site: int, limit: float | None) -> None:
        self.space, self.limit = space, limit
        self.known: dict[int, Array] = {}
        self.sites = np.arange(len(space.numbers))
        if limit is not None:
            self.sites = self.sites[self._within(site, self.sites, limit)]
        self.sites = self.sites[self.sites != site]

    def near(self, site: int, sites: Array) -> Array:
        """Return those of the given sites, in ascending order, that are near one of them."""
        if self.limit is None or not len(sites):
            return sites
        if len(self.sites) > _REMEMBERED:
            return np.asarray(sites[self._within(site, sites, self.limit)])
        if site not in self.known:
            self.known[site] = self._within(site, self.sites, self.limit)
        return np.asarray(sites[self.known[site][np.searchsorted(self.sites, sites)]])

    def _within(self, site: int, sites: Array, limit: float) -> Array:
        """Return which sites are near a given one, based on the reported distances, so that symmetry is preserved."""
        return np.asarray(np.round(self.space.distances(np.full(len(sites), site), sites), 4) <= limit)


def _ase_text(atoms: Atoms) -> str:
    """Return atoms as extended XYZ."""
    from ase.io import write  # noqa: PLC0415

    stream = io.StringIO()
    write(stream, atoms, format="extxyz")
    return stream.getvalue()


def _hermite_normal_form(matrix: Array) -> Array:
    """Return an upper triangular matrix, positive on its diagonal, whose rows span the same lattice of integers.

    >>> _hermite_normal_form(np.array([[3, 1, 0], [-1, 2, 0], [0, 0, 1]])).tolist()
    [[1, 5, 0], [0, 7, 0], [0, 0, 1]]
    """
    rows = np.array(matrix, dtype=int)
    for k in range(len(rows)):
        while True:  # Euclid's algorithm on the remaining rows
            below = [i for i in range(k, len(rows)) if rows[i, k]]
            smallest = min(below, key=lambda i: abs(int(rows[i, k])))
            rows[[k, smallest]] = rows[[smallest, k]]
            if len(below) == 1:
                break
            rows[k + 1 :] -= np.outer(rows[k + 1 :, k] // rows[k, k], rows[k])
        if rows[k, k] < 0:
            rows[k] *= -1
        rows[:k] -= np.outer(rows[:k, k] // rows[k, k], rows[k])
    return rows


def _labels(kinds: Iterable[DefectKind]) -> dict[DefectKind, str]:
    """Return the names of defects, distinct even if case is ignored."""
    kinds = set(kinds)
    return {
        kind: f"{_VANADIUM}_{chemical_symbols[kind.host]}"
        if kind.element == _VANADIUM and DefectKind(kind.host, 0) in kinds
        else kind.name
        for kind in kinds
    }


def _in_blocks(arrays: Iterable[Array]) -> Iterator[Array]:
    """Join small arrays and split large ones into blocks of about equal numbers of rows, preserving their order."""
    waiting: list[Array] = []
    count = 0
    for array in arrays:
        for start in range(0, max(len(array), 1), _BLOCK):
            part = array[start : start + _BLOCK]
            waiting.append(part)
            count += len(part)
            if count >= _BLOCK:
                yield np.concatenate(waiting)
                waiting, count = [], 0
    if count:
        yield np.concatenate(waiting)


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
