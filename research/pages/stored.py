"""What the pages read: the JSON files and logs under research/results, and the card of the bundled weights."""

import csv
import json
from importlib.resources import files
from typing import Any

from research.paths import RESULTS


def result(name: str) -> Any:
    """Return the content of a JSON file by its path under research/results, without the suffix."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))


def results(folder: str) -> dict[str, Any]:
    """Return the contents of all JSON files of a folder, by name."""
    return {path.stem: result(f"{folder}/{path.stem}") for path in sorted((RESULTS / folder).glob("*.json"))}


def card() -> dict[str, Any]:
    """Return the card of the bundled weights."""
    path = files("ase_definet") / "weights" / "default.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))["card"])


def last_errors(log: str) -> dict[str, float]:
    """Return the last validation errors of a training log by host, in Å."""
    with (RESULTS / "logs" / f"{log}.csv").open(encoding="utf-8", newline="") as stream:
        *_, last = csv.DictReader(stream)
    return {key.split()[0].split("/")[1]: float(value) for key, value in last.items() if key.endswith(" mae")}
