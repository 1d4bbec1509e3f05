"""Rank any number of structures by a property of their defects and keep the best: the first stage of a large screen.

The networks for properties need the sites of the defects only. An enumeration knows them, and of other structures
only the first is matched in full: those that lie on the same sites are recognised. The best are held in a heap, so
that memory does not grow with the number of structures. ``ranking.json`` records how far a ranking is; a ranking that
was killed goes on from there, after the inputs before it have been compared with those of the first run.
"""

from __future__ import annotations

import csv
import hashlib
import heapq
import io
import json
import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from ase import Atoms
from numpy.typing import NDArray

from ase_definet.errors import DefiNetError, ScreeningError
from ase_definet.matching.library import get_host
from ase_definet.matching.shared_sites import SharedSites
from ase_definet.matching.site_map import SiteMap, match_sites
from ase_definet.properties.asked_potentials import AskedPotentials
from ase_definet.properties.predictor import PropertyPredictor
from ase_definet.relaxation.domain import TRUST
from ase_definet.screening.screen import Named, digest_of, read_json
from ase_definet.structures.extxyz import printable
from ase_definet.structures.files import replacing
from ase_definet.structures.state import excited_of, said_of

if TYPE_CHECKING:
    from ase_definet.screening.enumeration import Configuration, DefectSpace

Array: TypeAlias = NDArray[Any]
T = TypeVar("T")

RANKING, STATE, UNRANKED = "ranking.csv", "ranking.json", "unranked.csv"
RANKING_COLUMNS = ("rank", "index", "name", "value", "expected_error", "trust")
UNRANKED_COLUMNS = ("index", "name", "reason")

_CHECKPOINT = 10.0
"""Seconds between two entries in the state of a ranking."""
_DIGITS = 5
"""Digits after the point by which values differ: less is noise of single precision, and a tie."""


@dataclass(frozen=True)
class Values:
    """The property of a block of structures.

    Attributes:
        value: Shape ``(n,)``, NaN where nothing supports one.
        error: Expected error, shape ``(n,)``, NaN where unknown.
        trust: Indices into :data:`~ase_definet.relaxation.domain.TRUST`, shape ``(n,)``.
        reasons: Why there is no value, by index in the block.
    """

    value: Array
    error: Array
    trust: Array
    reasons: dict[int, str] = field(default_factory=dict)


class Candidates(Protocol[T]):
    """What can be ranked: a stream of candidates, and what to do with them."""

    block: int
    """Number of candidates that are ranked together: always the same ones, so that a ranking is reproducible."""

    def __iter__(self) -> Iterator[T]:
        """Yield the candidates, in the same order every time."""

    def values(self, block: Sequence[T]) -> Values:
        """Return the property of some of them."""

    def digest(self, block: Sequence[T]) -> bytes:
        """Return a digest of some of them."""

    def named(self, one: T) -> Named:
        """Return a candidate as a name and a structure."""


class Configurations:
    """Enumerated configurations, ranked without any matching.

    Args:
        space: The sites.
        configurations: The configurations.
        predictor: Predicts the property.
        rank: Name of the property.
        potentials: Chemical potentials.
    """

    block = 4096

    def __init__(
        self,
        space: DefectSpace,
        configurations: Iterable[Configuration],
        predictor: PropertyPredictor,
        rank: str,
        potentials: AskedPotentials,
    ) -> None:
        self._space, self._source = space, configurations
        self._predictor, self._rank = predictor, rank
        self._potentials = potentials.in_host(space.host) if potentials.texts else None

    def __iter__(self) -> Iterator[Configuration]:
        """Yield the configurations."""
        return iter(self._source)

    def values(self, block: Sequence[Configuration]) -> Values:
        """Return the property of some configurations."""
        occupations = np.tile(self._space.numbers, (len(block), 1))
        counts = [len(one.sites) for one in block]
        rows = np.repeat(np.arange(len(block)), counts)
        sites = np.fromiter((site for one in block for site in one.sites), int, len(rows))
        occupations[rows, sites] = np.fromiter((k.element for one in block for k in one.kinds), int, len(rows))
        found = self._predictor.predict_occupations(
            self._space.host, self._space.supercell, occupations, self._potentials, [self._rank]
        )
        space, why = self._space, self._predictor.why_no_value
        return _values(found, self._rank, lambda k: why(space.host, occupations[k], self._rank))

    def digest(self, block: Sequence[Configuration]) -> bytes:
        """Return a digest of some configurations."""
        text = repr([(one.sites, [kind.element for kind in one.kinds]) for one in block])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def named(self, one: Configuration) -> Named:
        """Return a configuration as its name and structure."""
        return one.name, one


class Structures:
    """Structures of any source.

    Those on the sites of the structure that was matched last are not matched again.

    Args:
        source: Names and structures.
        host: The host, or ``auto``.
        predictor: Predicts the property.
        rank: Name of the property.
        potentials: Chemical potentials.
        max_strain: As in :func:`~ase_definet.matching.site_map.match_sites`.
    """

    block = 256

    def __init__(
        self,
        source: Iterable[Named],
        host: Any,
        predictor: PropertyPredictor,
        rank: str,
        potentials: AskedPotentials,
        max_strain: float,
    ) -> None:
        self._source, self._max_strain = source, max_strain
        self._host = host if isinstance(host, str) and host.lower() == "auto" else get_host(host)
        self._predictor, self._rank, self._potentials = predictor, rank, potentials
        self._known: SharedSites | None = None

    def __iter__(self) -> Iterator[Named]:
        """Yield names and structures."""
        return iter(self._source)

    def values(self, block: Sequence[Named]) -> Values:
        """Return the property of some structures."""
        n = len(block)
        out = Values(np.full(n, np.nan), np.full(n, np.nan), np.full(n, TRUST.index("outside")))
        alike: dict[int, tuple[SharedSites, list[int], list[Array]]] = {}
        for row, (_, given) in enumerate(block):
            try:
                if isinstance(given, Exception):
                    raise given  # noqa: TRY301 - one way for all that fails
                found = self._recognised(given)
                if self._known is not None and found is not None:
                    group = alike.setdefault(id(self._known), (self._known, [], []))
                    group[1].append(row)
                    group[2].append(found.numbers)
                else:
                    self._matched(given, row, out)
            except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
                said = str(error) if isinstance(error, DefiNetError) else f"{type(error).__name__}: {error}"
                out.reasons[row] = printable(" ".join(said.split()))
        for known, rows, occupations in alike.values():
            potentials = self._potentials.in_host(known.sites.host) if self._potentials.texts else None
            values = self._predictor.predict_alike(known.known, np.stack(occupations), potentials, [self._rank])
            part = _values(values, self._rank, partial(self._why, known.known, occupations))
            out.value[rows], out.error[rows], out.trust[rows] = part.value, part.error, part.trust
            out.reasons.update({rows[k]: reason for k, reason in part.reasons.items()})
        return out

    def _why(self, site_map: SiteMap, occupations: Sequence[Array], row: int) -> str:
        """Say why a structure on the sites of another has no value."""
        host, strain = site_map.host, site_map.max_strain
        return self._predictor.why_no_value(host, occupations[row], self._rank, strain)

    def _recognised(self, given: Atoms) -> SiteMap | None:
        """Return the match of a structure on known sites; None if its state needs a closer look."""
        if self._known is None or not said_of(given).ordinary or excited_of(given) is not False:
            return None
        return self._known.match(given)

    def _matched(self, given: Atoms, row: int, out: Values) -> None:
        """Match a structure, predict its property, and remember its sites."""
        site_map = match_sites(given, self._host, max_strain=self._max_strain)
        potentials = self._potentials.in_host(site_map.host) if self._potentials.texts else None
        (found,) = self._predictor.predict([site_map], [given], potentials)
        one = found[self._rank]
        out.trust[row] = TRUST.index(one.trust)
        if one.value is None:
            out.reasons[row] = printable("; ".join(one.reasons)) or f"no {self._rank} is known"
            return
        out.value[row] = one.value
        out.error[row] = np.nan if one.expected_error is None else one.expected_error
        if not isinstance(self._host, str) and SharedSites.serves(site_map):
            self._known = SharedSites(site_map, given)

    def digest(self, block: Sequence[Named]) -> bytes:
        """Return a digest of some structures and their names."""
        text = json.dumps([(printable(name), digest_of(given)) for name, given in block])
        return hashlib.blake2b(text.encode(), digest_size=16).digest()

    def named(self, one: Named) -> Named:
        """Return it as it is."""
        return one


def _values(found: dict[str, Array], rank: str, why: Callable[[int], str]) -> Values:
    """Return the values of one property among arrays of a predictor, with reasons where there is none."""
    value, error, trust = found[rank], found[f"{rank}_error"], found["trust"]
    return Values(value, error, trust, {int(k): printable(why(int(k))) for k in np.flatnonzero(~np.isfinite(value))})


@dataclass(frozen=True)
class Kept:
    """One of the best.

    Attributes:
        key: Its value, rounded; with the opposite sign if the highest are kept.
        index: Its position in the input, by which ties are decided.
        value: Its value.
        error: Expected error; None if unknown.
        trust: Index into :data:`~ase_definet.relaxation.domain.TRUST`.
    """

    key: float
    index: int
    value: float
    error: float | None
    trust: int


@dataclass(frozen=True)
class _Before:
    """What was ranked before, with fewer of the best.

    Attributes:
        done: How many structures; 0 for no such ranking.
        digest: Their digest.
        complete: Whether there were no more.
    """

    done: int = 0
    digest: bytes = b""
    complete: bool = False


class Ranking(Generic[T]):
    """A ranking in the folder of a screen, which resumes after a kill.

    If more of the best are asked for than before, everything is ranked anew, because only so many were remembered;
    the inputs must be the same.

    Args:
        folder: The folder; nobody else may write to it.
        candidates: What is ranked.
        keep: How many of the best are kept.
        highest: Whether the highest are the best, instead of the lowest.
        checkpoint: Seconds between two entries in its state.

    Raises:
        ScreeningError: The state in the folder is damaged.
    """

    def __init__(
        self,
        folder: Path,
        candidates: Candidates[T],
        keep: int,
        *,
        highest: bool = False,
        checkpoint: float = _CHECKPOINT,
    ) -> None:
        self.folder, self.keep = folder, keep
        self._candidates, self._sign, self._every = candidates, -1.0 if highest else 1.0, checkpoint
        self._heap: list[tuple[float, int]] = []
        self._best: dict[int, tuple[Kept, T]] = {}
        self._digest = b""
        self._before = _Before()
        self.done, self.unranked, self.complete = 0, 0, False
        self.resumed = 0

    def run(self, progress: Callable[[int], object] = lambda _: None) -> list[Named]:
        """Rank everything that is not ranked yet.

        Args:
            progress: Called after every block with the number of structures so far.

        Returns:
            Names and structures of the best, the best first.

        Raises:
            ScreeningError: The inputs are not those that the ranking began with, or none of them can be ranked.
        """
        state = self._state()
        stream = iter(self._candidates)
        self._catch_up(stream, state)
        with self._unranked_file(state.get("unranked_size", 0)) as unranked:
            if not self.complete:
                self._rank(stream, unranked, progress)
            elif next(stream, None) is not None:
                raise ScreeningError(
                    f"the input is longer than the {self.done} structures that were ranked in {self.folder}; give "
                    "the same input, or rank into another folder"
                )
        best = sorted(self._best.values(), key=lambda pair: (pair[0].key, pair[0].index))
        named = [self._candidates.named(one) for _, one in best]
        self._write_table([kept for kept, _ in best], named)
        return named

    def _rank(self, stream: Iterator[T], unranked: io.BufferedWriter, progress: Callable[[int], object]) -> None:
        last = time.monotonic()
        while block := list(islice(stream, self._candidates.block)):
            self._add(block, self._candidates.values(block), unranked)
            self._digest = _chained(self._digest, self._candidates.digest(block))
            self._compare_with_before()
            progress(self.done)
            now = time.monotonic()
            if now - last >= self._every and len(block) == self._candidates.block:
                self._record(unranked)
                last = now
        self._compare_with_before(ended=True)
        self.complete = True
        self._record(unranked)

    def _compare_with_before(self, *, ended: bool = False) -> None:
        """Refuse other inputs than those that were ranked before, with fewer of the best."""
        before = self._before
        shorter = ended and self.done < before.done
        longer = before.complete and self.done > before.done
        if shorter or longer or (self.done == before.done and self._digest != before.digest):
            raise self._other_inputs(before.done)

    def _other_inputs(self, done: int) -> ScreeningError:
        return ScreeningError(
            f"the {done} structures that were ranked in {self.folder} are not those that the input holds now; give "
            "the same input in the same order, or rank into another folder"
        )

    def _add(self, block: list[T], found: Values, unranked: io.BufferedWriter) -> None:
        """Put the best of a block into the heap."""
        keys = np.round(self._sign * found.value, _DIGITS) + 0.0
        worst = -self._heap[0][0] if len(self._heap) == self.keep else math.inf
        for row in np.flatnonzero(keys <= worst).tolist():
            key, index = float(keys[row]), self.done + row
            error = float(found.error[row]) if math.isfinite(found.error[row]) else None
            kept = Kept(key, index, float(found.value[row]), error, int(found.trust[row]))
            if len(self._heap) < self.keep:
                heapq.heappush(self._heap, (-key, -index))
            elif (-key, -index) > self._heap[0]:
                gone = heapq.heapreplace(self._heap, (-key, -index))
                del self._best[-gone[1]]
            else:
                continue
            self._best[index] = (kept, block[row])
        rows = []
        for row in np.flatnonzero(~np.isfinite(keys)).tolist():
            name, _ = self._candidates.named(block[row])
            reason = found.reasons.get(row, "")
            rows.append({"index": self.done + row, "name": printable(name), "reason": reason})
        unranked.write(_csv(rows, UNRANKED_COLUMNS))
        self.unranked += len(rows)
        self.done += len(block)

    def _state(self) -> dict[str, Any]:
        path = self.folder / STATE
        if not path.exists():
            return {}
        state = read_json(path)
        try:
            kept = sorted((Kept(*row) for row in state["kept"]), key=lambda one: (one.key, one.index))[: self.keep]
            done, digest = int(state["done"]), bytes.fromhex(state["digest"])
            if int(state["keep"]) < self.keep:
                self._before = _Before(done, digest, bool(state["complete"]))
                return {}
            self.done, self.unranked = done, int(state["unranked"])
            self.complete = bool(state["complete"])
            self._digest = digest
            state["kept"] = {one.index: one for one in kept}
            int(state["unranked_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise ScreeningError(f"{path}: damaged ({error!r}); begin again in another folder") from error
        self.resumed = self.done
        return state

    def _catch_up(self, stream: Iterator[T], state: dict[str, Any]) -> None:
        """Read again what was ranked before, compare it, and pick up the best."""
        kept: dict[int, Kept] = state.get("kept", {})
        digest, start = b"", 0
        while start < self.done:
            block = list(islice(stream, min(self._candidates.block, self.done - start)))
            for index in range(start, start + len(block)):
                if index in kept:
                    self._best[index] = (kept[index], block[index - start])
            if not block:
                break
            digest = _chained(digest, self._candidates.digest(block))
            start += len(block)
        if digest != self._digest:
            raise self._other_inputs(self.done)
        self._heap = [(-one.key, -index) for index, one in kept.items()]
        heapq.heapify(self._heap)

    def _unranked_file(self, size: int) -> io.BufferedWriter:
        """Open the list of what could not be ranked, without what a killed run wrote after its last entry."""
        path = self.folder / UNRANKED
        header = _csv([dict(zip(UNRANKED_COLUMNS, UNRANKED_COLUMNS, strict=True))], UNRANKED_COLUMNS)
        there = path.stat().st_size if path.exists() else 0
        if there < size:
            raise ScreeningError(
                f"{path} is shorter than {STATE} says: it was changed; begin again in another folder"
            )
        stream = path.open("r+b" if path.exists() else "w+b")
        stream.truncate(size)
        stream.seek(size)
        if not size:
            stream.write(header)
        return stream  # type: ignore[return-value]

    def _record(self, unranked: io.BufferedWriter) -> None:
        """Write the state, after what it counts is on the disk."""
        unranked.flush()
        os.fsync(unranked.fileno())
        kept = [pair[0] for _, pair in sorted(self._best.items())]
        state = {
            "keep": self.keep,
            "done": self.done,
            "complete": self.complete,
            "digest": self._digest.hex(),
            "unranked": self.unranked,
            "unranked_size": unranked.tell(),
            "kept": [[one.key, one.index, one.value, one.error, one.trust] for one in kept],
        }
        with replacing(self.folder / STATE) as fresh:
            fresh.write_text(json.dumps(state) + "\n", encoding="utf-8")

    def _write_table(self, best: list[Kept], named: list[Named]) -> None:
        rows = [
            {
                "rank": rank,
                "index": kept.index,
                "name": printable(name),
                "value": round(kept.value, 6),
                "expected_error": "" if kept.error is None else round(kept.error, 6),
                "trust": TRUST[kept.trust],
            }
            for rank, (kept, (name, _)) in enumerate(zip(best, named, strict=True))
        ]
        head = dict(zip(RANKING_COLUMNS, RANKING_COLUMNS, strict=True))
        with replacing(self.folder / RANKING) as fresh:
            fresh.write_bytes(_csv([head, *rows], RANKING_COLUMNS))


def _chained(before: bytes, more: bytes) -> bytes:
    return hashlib.blake2b(before + more, digest_size=16).digest()


def _csv(rows: list[dict[str, Any]], columns: tuple[str, ...]) -> bytes:
    out = io.StringIO(newline="")
    csv.DictWriter(out, columns).writerows(rows)
    return out.getvalue().encode()
