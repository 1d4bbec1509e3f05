"""The progress bar of every command: on standard error, and only where that is a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID


class ProgressBar:
    """A progress bar, silent where standard error is no terminal.

    It appears with the first step and leaves what commands print on either stream in order. Rich is imported only
    where there is something to show.

    Args:
        label: What is being done.
        total: Steps until it is; None if nobody knows.
        hidden: Show nothing in any case.
    """

    def __init__(self, label: str, total: int | None = None, *, hidden: bool = False) -> None:
        self.label, self.total = label, total
        self.shown = not hidden and sys.stderr.isatty()
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        """Return itself: it appears with the first step."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Stop showing anything."""
        self.close()

    def advance(self, *_: object) -> None:
        """Count one more step; arguments are ignored, so that this serves as a callback."""
        if self.shown:
            bar, task = self._started()
            bar.advance(task)

    def update(self, completed: int, label: str | None = None) -> None:
        """Show so many steps, and another label if one is given."""
        if self.shown:
            self.label = label or self.label
            bar, task = self._started()
            bar.update(task, completed=completed, description=self.label)

    def say(self, label: str) -> None:
        """Show another label."""
        if self.shown:
            bar, task = self._started()
            bar.update(task, description=f"{self.label}: {label}")

    def close(self) -> None:
        """Stop showing anything."""
        if self._bar is not None:
            self._bar.stop()
        self.shown = False

    def _started(self) -> tuple[Progress, TaskID]:
        if self._bar is None or self._task is None:
            from rich.console import Console
            from rich.progress import (
                BarColumn,
                MofNCompleteColumn,
                Progress,
                TextColumn,
                TimeRemainingColumn,
            )

            columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
            # rich prints above the bar what goes to the terminal; what goes to a file must still go there
            console = Console(stderr=True)
            self._bar = Progress(*columns, console=console, redirect_stdout=sys.stdout.isatty())
            self._task = self._bar.add_task(self.label, total=self.total)
            self._bar.start()
        return self._bar, self._task
