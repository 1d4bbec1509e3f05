"""Batches: grouping and sizes of what the network processes together, and handling of failing structures."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch

from ase_definet.errors import DefiNetWarning, DeviceError
from ase_definet.relaxation.devices import free_memory, is_out_of_memory
from ase_definet.relaxation.inputs import Item
from ase_definet.relaxation.result import RelaxFailure, RelaxResult

Pending: TypeAlias = Item | RelaxFailure
Record: TypeAlias = RelaxResult | RelaxFailure


def alike(items: Sequence[Item], most_sites: int) -> list[list[int]]:
    """Group what can pass the network together, in groups of not more sites than wanted.

    Args:
        items: What is to pass.
        most_sites: Sites in one pass, at most, unless a single structure has more.

    Returns:
        Places in ``items``, each once.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, item in enumerate(items):
        groups.setdefault(item.prepared.key, []).append(i)
    out = []
    for group in groups.values():
        step = max(1, most_sites // max(items[i].n_sites for i in group))
        out += [group[start : start + step] for start in range(0, len(group), step)]
    return out


@dataclass(frozen=True)
class Batches:
    """Relax a stream of structures in batches, one record each, in order.

    Attributes:
        prepare: Prepares a structure, given its position in the stream.
        run: Runs the network on several; what fails of one alone takes the place of its result.
        finish: Has the last word on a result of ``run``.
        device: Where the network is.
        most_sites: Sites that are collected before they are relaxed, at most.
    """

    prepare: Callable[[int, object], Item]
    run: Callable[[list[Item]], list[RelaxResult | Exception]]
    finish: Callable[[RelaxResult, Item], RelaxResult]
    device: torch.device
    most_sites: int

    def records(self, structures: Iterator[object]) -> Iterator[Record]:
        """Yield a record for each structure, in order; the stream is read as far as the next batch only.

        Args:
            structures: What to relax; an exception in place of a structure becomes its record.
        """
        pending: list[Pending] = []
        index = 0
        while True:
            try:
                given = next(structures)
            except StopIteration:
                break
            except Exception:  # what was read before must not be lost
                yield from self._flush(pending)
                raise
            item = self._prepared(index, given)
            index += 1
            while pending and _sites(pending) + _sites([item]) > self.most_sites:
                pending = yield from self._pass(pending)
            pending.append(item)
            while pending and isinstance(first := pending[0], RelaxFailure):
                yield first
                del pending[0]
        yield from self._flush(pending)

    def _prepared(self, index: int, given: object) -> Pending:
        if isinstance(given, Exception):
            return RelaxFailure(index, given)
        try:
            return self.prepare(index, given)
        except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
            return RelaxFailure(index, error)

    def _flush(self, pending: list[Pending]) -> Iterator[Record]:
        """Relax what is pending and yield all records, in order."""
        while pending:
            pending = yield from self._pass(pending)

    def _pass(self, pending: list[Pending]) -> Generator[Record, None, list[Pending]]:
        """Try to relax what is pending; yield all records, in order, if nothing failed that had not failed before.

        The last bits of a result depend on what else was in its pass. What failed in it therefore makes way, and is
        returned as its record among what is then to be passed once more.
        """
        found = iter(self._guarded([item for item in pending if isinstance(item, Item)]))
        outcomes = [next(found) if isinstance(item, Item) else item for item in pending]
        if any(isinstance(outcome, Exception) for outcome in outcomes):
            return [
                RelaxFailure(item.index, outcome) if isinstance(outcome, Exception) else item
                for item, outcome in zip(pending, outcomes, strict=True)
            ]
        for item, outcome in zip(pending, outcomes, strict=True):
            if isinstance(item, Item) and isinstance(outcome, RelaxResult):
                yield self._finished(outcome, item)
            elif isinstance(outcome, RelaxFailure):
                yield outcome
        return []

    def _finished(self, result: RelaxResult, item: Item) -> Record:
        try:
            return self.finish(result, item)
        except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
            return RelaxFailure(item.index, error)

    def _guarded(self, items: list[Item]) -> list[RelaxResult | Exception]:
        """Run a batch, halving it where memory runs out or the network fails, down to those that fail alone."""
        if not items:
            return []
        try:
            found = self.run(items)
        except Exception as error:  # noqa: BLE001 - one bad structure must not cost the others
            problem = error
            traceback.clear_frames(error.__traceback__)  # else their tensors fill the memory of the next try
        else:
            for outcome in found:
                if isinstance(outcome, Exception):
                    traceback.clear_frames(outcome.__traceback__)  # else a record keeps the arrays of its batch
            return found
        if is_out_of_memory(problem):
            problem = self._without_memory(problem, items)
        if len(items) == 1:
            return [problem]
        half = len(items) // 2
        return self._guarded(items[:half]) + self._guarded(items[half:])

    def _without_memory(self, problem: Exception, items: list[Item]) -> Exception:
        """Free memory for another attempt with half of the batch, with a warning; return the error to report."""
        free_memory(self.device)
        if len(items) == 1:
            sites = items[0].n_sites
            return DeviceError(f"{self.device} has too little memory for one structure of {sites} sites")
        text = f"out of memory on {self.device}: halving the batch to {len(items) // 2} structures"
        warnings.warn(text, DefiNetWarning, stacklevel=2)
        return problem


def _sites(items: Sequence[Pending]) -> int:
    """Count the sites of what still has to pass the network."""
    return sum(item.n_sites for item in items if isinstance(item, Item))
