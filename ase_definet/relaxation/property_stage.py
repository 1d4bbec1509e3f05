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
from ase_definet.properties.predictor import UNITS, PropertyPredictor, PropertyValue
from ase_definet.relaxation.result import RelaxResult

if TYPE_CHECKING:
    from ase_definet.matching.host import Host
    from ase_definet.relaxation.inputs import Item

DEFAULT = "default"
FAILED = "not predicted, see the warnings"
"""Why there are no properties where something went wrong; a warning of the result says what."""


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
        """Return results with their properties; what the weights cannot say is None, with the reason.

        What goes wrong with a property is a warning: the relaxed structure does not depend on it.

        Args:
            results: What was found of each structure.
            items: The structures.
        """
        out = list(results)
        groups: dict[Host, list[int]] = {}
        for index, result in enumerate(results):
            if isinstance(result, RelaxResult):
                groups.setdefault(result.site_map.host, []).append(index)
        for indices in groups.values():
            try:
                self._fill(out, indices, items)
            except Exception as error:  # noqa: BLE001 - the relaxation is good without
                for index in indices:
                    out[index] = self._without(results[index], error)
        return out

    def _without(self, result: RelaxResult | Exception, error: Exception) -> RelaxResult | Exception:
        """Return a result whose properties could not be predicted, with a warning that says why."""
        if isinstance(result, Exception):
            return result
        said = str(error) if isinstance(error, DefiNetError) else f"{type(error).__name__}: {error}"
        try:
            units = self.predictor.units
        except DefiNetError:  # the weights cannot be read: nobody knows what they predict
            units = {}
        values = {name: PropertyValue(None, unit, None, "outside", (FAILED,)) for name, unit in units.items()}
        text = f"properties were not predicted: {' '.join(said.split())}"
        return replace(result, properties=values, warnings=(*result.warnings, text))

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
            doubts = tuple(text for text in self.asked.doubts(elements) if text not in result.warnings)
            out[index] = replace(
                result,
                warnings=result.warnings + doubts,
                properties=values,
                chemical_potentials={element: value for element, value in known.items() if value is not None},
            )
