"""The cards of the bundled weights, readable without torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WEIGHTS = Path(__file__).parent.parent / "weights"
"""Folder of the bundled weights: ``NAME.safetensors`` beside ``NAME.json``."""


def bundled_cards() -> dict[str, dict[str, Any]]:
    """Return the card of each bundled model by name, ``default`` first."""
    names = sorted((path.stem for path in WEIGHTS.glob("*.safetensors")), key=lambda name: (name != "default", name))
    cards = {}
    for name in names:
        content = json.loads((WEIGHTS / f"{name}.json").read_text(encoding="utf-8"))
        cards[name] = content["card"] | {"sha256": content["sha256"]}
    return cards
