"""The log of a run: one row per validation in ``log.csv``, and in TensorBoard if it is installed."""

from __future__ import annotations

import csv
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ase_definet.errors import TrainingError
from ase_definet.structures.files import replacing

LOG = "log.csv"


def rows_before(folder: Path, step: int) -> list[dict[str, str]]:
    """Return the rows of ``log.csv`` before a step; later rows are from steps that a killed run lost.

    Args:
        folder: Folder of the run.
        step: Current step of the run.

    Raises:
        TrainingError: A row is damaged.
    """
    path = folder / LOG
    if not path.exists():
        return []
    kept = []
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream, restval="nothing"):
                for value in row.values():
                    float(value or 0)  # a row of another length is damaged
                if int(row["step"]) < step:
                    kept.append(row)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise TrainingError(f"{path}: damaged ({error}); move it away, training needs the checkpoint only") from error
    return kept


def write_row(folder: Path, row: Mapping[str, Any]) -> None:
    """Append a row to ``log.csv`` and TensorBoard, and drop later rows from steps that a killed run lost.

    The CSV logger of Lightning Fabric cannot remove rows; its TensorBoard logger is used.

    Args:
        folder: Folder of the run.
        row: Numbers by name, ``step`` among them.

    Raises:
        TrainingError: An earlier row is damaged.
    """
    kept = rows_before(folder, row["step"])
    with replacing(folder / LOG) as fresh, fresh.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, list(dict.fromkeys([k for old in kept for k in old] + list(row))))
        writer.writeheader()
        writer.writerows([*kept, {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in row.items()}])
    _tell_tensorboard(folder, row)


def _tell_tensorboard(folder: Path, row: Mapping[str, Any]) -> None:
    """Write a row for TensorBoard, if it is installed."""
    from lightning_fabric.loggers.tensorboard import TensorBoardLogger  # noqa: PLC0415 - slow to import

    try:
        logger = TensorBoardLogger(root_dir=folder, name="tensorboard", version="")
    except ModuleNotFoundError:
        return
    (folder / "tensorboard").mkdir(exist_ok=True)  # the logger would recreate the folder of a run that was removed
    with _quiet_threads():
        logger.log_metrics(dict(row), row["step"])
        logger.finalize("success")


@contextmanager
def _quiet_threads() -> Iterator[None]:
    """Suppress tracebacks of file system errors in the writer thread: they are raised on closing."""
    before = threading.excepthook

    def hook(arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            before(arguments)

    threading.excepthook = hook
    try:
        yield
    finally:
        threading.excepthook = before
