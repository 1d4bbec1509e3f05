"""The last stage of a relaxation: energies, gaps and moments from the defects, beside the relaxed positions."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from ase.data import chemical_symbols

from ase_definet.checkpoints.bundled import bundled_properties, resolve_properties
from ase_definet.errors import DefiNetError
from ase_definet.properties.asked_potentials import AskedPotentials
from ase_definet.properties.predictor import UNITS, PropertyPredictor
from ase_definet.relaxation.domain import known_host
from ase_definet.relaxation.result import RelaxResult

if TYPE_CHECKING:
    from ase_definet.relaxation.inputs import Item

DEFAULT = "default"


class PropertyStage:
    """Predict the properties of relaxed structures.

    Args:
        weights: Weights for properties, by the name of bundled ones or by their path.
        potentials: Chemical potentials, as texts (``S=-4.5``, ``rich:S``) or numbers by element.
        device: Where they run.

    Raises:
        CheckpointError: The weights cannot be read.
        DefiNetError: A chemical potential cannot be read.
    """

    def __init__(
        self, weights: str, potentials: Iterable[str] | Mapping[str, float] | AskedPotentials | None, device: str
    ) -> None:
        self.asked = AskedPotentials.of(potentials)
        self._path, self._device = resolve_properties(weights), device
        if weights != DEFAULT:  # what is wrong with a user's file is said at once
            self.predictor  # noqa: B018 - reads them

    @classmethod
    def of(
        cls,
        weights: str | None,
        potentials: Iterable[str] | Mapping[str, float] | AskedPotentials | None,
        device: str,
    ) -> PropertyStage | None:
        """Return the stage; None if it is turned off, or if no weights for properties are bundled."""
        if weights is None or (weights == DEFAULT and DEFAULT not in bundled_properties()):
            return None
        return cls(weights, potentials, device)

    @cached_property
    def predictor(self) -> PropertyPredictor:
        """The predictor, read when the first structure needs it."""
        return PropertyPredictor(self._path, self._device)

    def filled(
        self, results: Sequence[RelaxResult | Exception], items: Sequence[Item]
    ) -> list[RelaxResult | Exception]:
        """Return results with their properties, where the weights know the host.

        What goes wrong with a property is a warning: the relaxed structure does not depend on it.

        Args:
            results: What was found of each structure.
            items: The structures.
        """
        out = list(results)
        groups: dict[str, list[int]] = {}
        for index, result in enumerate(results):
            if isinstance(result, RelaxResult):
                groups.setdefault(known_host(result.site_map.host)[0] or "", []).append(index)
        for name, indices in groups.items():
            if not self._knows(name):
                continue
            try:
                self._fill(out, indices, items)
            except Exception as error:  # noqa: BLE001 - the relaxation is good without
                said = str(error) if isinstance(error, DefiNetError) else f"{type(error).__name__}: {error}"
                text = f"properties were not predicted: {' '.join(said.split())}"
                for index in indices:
                    out[index] = _warned(results[index], text)
        return out

    def _knows(self, host: str) -> bool:
        training = self.predictor.card.training
        return training is not None and host in training.hosts

    def _fill(self, out: list[RelaxResult | Exception], indices: list[int], items: Sequence[Item]) -> None:
        chosen = [(index, out[index]) for index in indices]
        results = [(index, result) for index, result in chosen if isinstance(result, RelaxResult)]
        maps = [result.site_map for _, result in results]
        potentials = self.asked.in_host(maps[0].host) if self.asked.texts else None
        found = self.predictor.predict(maps, [items[index].atoms for index, _ in results], potentials)
        for (index, result), values in zip(results, found, strict=True):
            for key, one in values.items():
                if one.value is not None and key in UNITS:
                    result.atoms.info[f"definet_{key}"] = round(one.value, 6)
                    if one.expected_error is not None:
                        result.atoms.info[f"definet_{key}_error"] = round(one.expected_error, 6)
            elements = [chemical_symbols[z] for z in result.site_map.host.numbers]
            elements += result.atoms.get_chemical_symbols()
            mu = self.asked.in_host(result.site_map.host)
            known = {element: mu.of(element) for element in dict.fromkeys(elements)}
            out[index] = replace(
                result,
                properties=values,
                chemical_potentials={element: value for element, value in known.items() if value is not None},
            )


def _warned(result: RelaxResult | Exception, text: str) -> RelaxResult | Exception:
    return replace(result, warnings=(*result.warnings, text)) if isinstance(result, RelaxResult) else result
