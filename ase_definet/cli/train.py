"""``ase-definet train``: train a network, resumably."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ase_definet.cli.common import (
    FOLDER,
    IN_FILE,
    INTERRUPTED,
    PATH,
    BadUsage,
    check_folder,
    error_text,
    training_missing,
    wrong_kind,
)
from ase_definet.cli.progress import ProgressBar
from ase_definet.errors import CheckpointError, TrainingError

if TYPE_CHECKING:
    from ase_definet.training.config import TrainConfig
    from ase_definet.training.run import TrainingRun

_SILENCE = 60.0
"""Seconds without a word where there is no progress bar."""

PRESET_NAMES = ("small", "base", "deep", "paper", "properties")


@click.command("train")
@click.argument("config", type=IN_FILE, required=False)
@click.option("--data", type=PATH, help="Packed data set, made by `ase-definet data pack`.")
@click.option("--preset", type=click.Choice(PRESET_NAMES), help="Settings to use instead of a CONFIG.")
@click.option("-o", "--out", type=FOLDER, help="Folder for checkpoints and logs; an unfinished run in it is resumed.")
@click.option(
    "--initial-weights",
    metavar="WEIGHTS",
    help="Weights to fine-tune: a bundled name or a .safetensors file.",
)
@click.option("--steps", type=click.IntRange(min=1), help="Number of training steps.")
@click.option("--validate-every", type=click.IntRange(min=1), help="Steps between validations.")
@click.option("--checkpoint-every", type=click.IntRange(min=1), help="Steps between checkpoints.")
@click.option("--accelerator", type=click.Choice(["auto", "cpu", "cuda"]), help="Device type.")
@click.option("--devices", type=click.IntRange(min=1), help="Devices per node.")
def train_command(config: Path | None, preset: str | None, **given: Any) -> None:
    """Train a network; an interrupted run can be resumed.

    Settings come from CONFIG (TOML), or from a --preset with --data and --out. The same command resumes an
    interrupted run exactly. The output folder holds the last checkpoint, log.csv and the configuration;
    `ase-definet weights export` turns them into weights for `--model`.
    """
    try:
        from ase_definet.training.run import train
    except ModuleNotFoundError as error:
        raise training_missing(error) from error

    values = {k: str(v) if isinstance(v, Path) else v for k, v in given.items() if v is not None}
    plan = _config(config, preset, values)
    if (problem := wrong_kind(Path(plan.data), "file")) is not None:
        raise click.ClickException(f"{problem}; make a packed data set with `ase-definet data pack SOURCE FILE`")
    check_folder(Path(plan.out))
    meter = _Meter(plan)
    try:
        run = train(plan, meter)
    except CheckpointError as error:  # those of --init
        raise BadUsage(error_text(error)) from error
    except KeyboardInterrupt:
        meter.close()
        click.echo(f"\nstopped; {_resumed_from(plan)}", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    finally:
        meter.close()
    if run.fabric.global_rank == 0:
        for line in _table(run):
            click.echo(line)
        for path in _curve(run):
            click.echo(f"wrote {path}")
        if not run.table:
            click.echo("warning   no validation pairs: nothing is known of the error of these weights")
        click.echo(
            f"done: {run.step} steps in {run.seconds:.0f} s; weights: ase-definet weights export {plan.out} FILE"
        )


def _resumed_from(plan: TrainConfig) -> str:
    """Say where the same command would resume a run that was stopped."""
    from ase_definet.training.run import LAST

    if not (Path(plan.out) / LAST).exists():
        return f"there is no checkpoint yet (one every {plan.checkpoint_every} steps): the same command starts again"
    return (
        f"the same command resumes from the last checkpoint in {plan.out} (one every {plan.checkpoint_every} steps)"
    )


def _curve(run: TrainingRun) -> list[Path]:
    """Draw the learning curve beside the log, where matplotlib is there to do it."""
    try:
        from ase_definet.plotting.scores import draw_learning_curve
    except ModuleNotFoundError:
        return []
    return [draw_learning_curve({run.out.name: run.out / "log.csv"}, run.out / "learning_curve.png")]


def _config(path: Path | None, preset: str | None, values: dict[str, Any]) -> TrainConfig:
    from ase_definet.training.config import make_config, read_config

    try:
        if path is not None:
            if preset:
                raise BadUsage("give a CONFIG or a --preset, not both; a config may name its preset")
            return read_config(path, **values)
        if not preset:
            raise BadUsage("give a CONFIG, or --data, --preset and --out")
        missing = [f"--{name}" for name in ("data", "out") if name not in values]
        if missing:
            raise BadUsage(f"--preset needs {' and '.join(missing)}")
        return make_config(values, preset)
    except TrainingError as error:
        raise BadUsage(str(error)) from error


class _Meter:
    """Show the loss and the last validation error: a progress bar on a terminal, a line per check in a log file."""

    def __init__(self, plan: TrainConfig) -> None:
        self.plan = plan
        self.bar = ProgressBar("", plan.steps)
        self.loss: float | None = None
        self.said = 0.0

    def __call__(self, run: TrainingRun, loss: float) -> None:
        if run.fabric.global_rank:
            return
        if self.loss is None:
            self._start(run)
        self.loss = loss if self.loss is None else 0.98 * self.loss + 0.02 * loss
        text = f"loss {self.loss:.4f}"
        if run.table:
            average = sum(row["mae"] for row in run.table.values()) / len(run.table)
            text += f", validation {average:.4f} {run.UNIT}".rstrip()
        if self.bar.shown:
            self.bar.update(run.step, text)
        elif run.step % self.plan.validate_every == 0 or time.monotonic() - self.said > _SILENCE:
            self.said = time.monotonic()
            click.echo(f"step {run.step} of {self.plan.steps}, {run.seconds:.0f} s, {text}", err=True)

    def _start(self, run: TrainingRun) -> None:
        """Say what is trained on what, and where it goes on."""
        self.said = time.monotonic()
        pairs = sum(len(own) for own in run.train_pairs)
        size = sum(p.numel() for p in run.network.parameters())
        before = f", going on after step {run.step - 1}" if run.step > 1 else ""
        click.echo(
            f"{size:,} parameters, {pairs} training pairs in {len(run.groups)} sets of sites, on {run.fabric.device}"
            f"{before}; checkpoints and log.csv in {self.plan.out}",
            err=True,
        )

    def close(self) -> None:
        self.bar.close()


def _table(run: TrainingRun) -> list[str]:
    width = max((len(name) for name in run.table), default=6)
    if not run.LOGGED:  # of properties
        return [
            f"{name:{width}s}  " + ", ".join(f"{k} {v:.4f}" for k, v in row.items())
            for name, row in run.table.items()
        ]
    lines = [f"{'subset':{width}s}  all atoms  within 3 Å  (ideal sites: the same), coordinate MAE on validation, Å"]
    for name, row in run.table.items():
        lines.append(
            f"{name:{width}s}  {row['mae']:9.4f}  {row['a3']:10.4f}  "
            f"({row['ideal_sites']:.4f}, {row['ideal_sites_a3']:.4f})"
        )
    return lines
