"""The weights that come with the package, and how weights are found by name or path; readable without torch."""

from __future__ import annotations

import difflib
import json
import os
from dataclasses import dataclass
from pathlib import Path

from ase_definet.checkpoints.card import ModelCard
from ase_definet.errors import CheckpointError

WEIGHTS = Path(__file__).parent.parent / "weights"
"""Folder of the bundled weights: ``NAME.safetensors`` beside ``NAME.json``."""

SUFFIX = ".safetensors"

PROPERTIES = WEIGHTS / "properties"
"""Folder of the bundled weights for properties, likewise."""


@dataclass(frozen=True, slots=True)
class BundledWeights:
    """What is known about bundled weights without reading them.

    Attributes:
        card: Their card.
        sha256: Digest of their file.
    """

    card: ModelCard
    sha256: str


def bundled_models() -> dict[str, Path]:
    """List the checkpoints that come with the package, by name."""
    return {path.stem: path for path in sorted(WEIGHTS.glob(f"*{SUFFIX}"))}


def bundled_cards() -> dict[str, BundledWeights]:
    """Return the card of each bundled model by name, ``default`` first."""
    cards = {}
    for name in sorted(bundled_models(), key=lambda name: (name != "default", name)):
        content = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        cards[name] = BundledWeights(ModelCard.read(content["card"]), content["sha256"])
    return cards


def bundled_properties() -> dict[str, Path]:
    """List the weights for properties that come with the package, by name."""
    return {path.stem: path for path in sorted(PROPERTIES.glob(f"*{SUFFIX}"))}


def resolve_properties(name_or_path: str | os.PathLike[str]) -> Path:
    """Find weights for properties by the name of bundled ones or by their path; see :func:`resolve_model`."""
    bundled = bundled_properties()
    name = os.fspath(name_or_path)
    return bundled[name] if name in bundled else _file_or_hint(name, bundled)


def resolve_model(name_or_path: str | os.PathLike[str]) -> Path:
    """Find a checkpoint by the name of a bundled model or by its path.

    Args:
        name_or_path: A key of :func:`bundled_models`, which wins, or a file.

    Returns:
        The file.

    Raises:
        CheckpointError: There is neither; the message suggests the nearest name.
    """
    bundled = bundled_models()
    name = os.fspath(name_or_path)
    return bundled[name] if name in bundled else _file_or_hint(name, bundled)


def _file_or_hint(name: str, bundled: dict[str, Path]) -> Path:
    """Return the file of this path, or raise an error that says what else there is."""
    run = Path(name) if Path(name).is_dir() else Path(name).parent
    if (Path(name).is_dir() or Path(name).suffix == ".pt") and (run / "last.pt").exists():
        raise CheckpointError(
            f"{name} is a training run: export its weights with `ase-definet weights export {run} FILE`"
        )
    if Path(name).is_file():
        return Path(name)
    near = difflib.get_close_matches(name, bundled, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"bundled models: {', '.join(bundled) or 'none'}"
    raise CheckpointError(f"{name!r} is neither a bundled model nor a file; {hint}")
