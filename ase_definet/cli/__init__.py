"""The command line: parsing and printing only. Heavy imports wait until a command needs them."""

from __future__ import annotations

import io
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import click

from ase_definet import __version__
from ase_definet.cli.calculators import calculators_command
from ase_definet.cli.collect import collect_command
from ase_definet.cli.common import INTERRUPTED, BadUsage, add_debug_option, error_text, show_traceback
from ase_definet.cli.compare_steps import compare_steps_command
from ase_definet.cli.count_steps import count_steps_command
from ase_definet.cli.data import data_group
from ase_definet.cli.enumerate import enumerate_command
from ase_definet.cli.evaluate import evaluate_command
from ase_definet.cli.hosts import hosts_command
from ase_definet.cli.inputs import inputs_command
from ase_definet.cli.match import match_command
from ase_definet.cli.plot import plot_command
from ase_definet.cli.properties import properties_command
from ase_definet.cli.relax import relax_command
from ase_definet.cli.report import report_command
from ase_definet.cli.screen import screen_command
from ase_definet.cli.train import train_command
from ase_definet.cli.variants import variants_command
from ase_definet.cli.vasp import vasp_command
from ase_definet.cli.weights import weights_group
from ase_definet.errors import DefiNetWarning


@contextmanager
def _one_line_errors() -> Iterator[None]:
    """Make every error one line on standard error: exit code 2 for bad usage, 130 for Ctrl-C, 1 for anything else."""
    try:
        yield
    except click.UsageError as error:
        command = error.ctx.command_path if error.ctx else "ase-definet"
        message = " ".join(error.format_message().split()).rstrip(".")
        raise BadUsage(f"{message}; see {command} --help") from error
    except click.ClickException as error:
        if error.__cause__ is not None:
            show_traceback(error.__cause__)
        raise
    except KeyboardInterrupt:
        click.echo("\nAborted!", err=True)
        raise click.exceptions.Exit(INTERRUPTED) from None
    except (click.Abort, click.exceptions.Exit, BrokenPipeError):
        raise  # click's own business
    except Exception as error:
        show_traceback(error)
        raise click.ClickException(error_text(error)) from error


class _Group(click.Group):
    def make_context(self, *args: Any, **kwargs: Any) -> click.Context:
        with _one_line_errors():
            return super().make_context(*args, **kwargs)

    def invoke(self, ctx: click.Context) -> Any:
        with _one_line_errors():
            return super().invoke(ctx)


def _show_warning(message: Warning | str, *_: object, **__: object) -> None:
    click.echo(f"warning   {message}", err=True)


@click.group(
    "ase-definet",
    cls=_Group,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="ase-definet")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Relax crystal defects in one forward pass and hand them to DFT.

    \b
    ase-definet relax POSCAR --host MoS2 --vasp run
    ase-definet match POSCAR --host auto
    """  # noqa: D301 - click reads \b as "leave the lines as they are"
    _print_anything()
    ctx.with_resource(warnings.catch_warnings())
    warnings.simplefilter("ignore")  # other libraries' warnings help nobody at a prompt
    warnings.simplefilter("always", DefiNetWarning)
    warnings.showwarning = _show_warning
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (
    relax_command,
    match_command,
    properties_command,
    inputs_command,
    vasp_command,
    hosts_command,
    calculators_command,
    enumerate_command,
    screen_command,
    variants_command,
    report_command,
    plot_command,
    evaluate_command,
    compare_steps_command,
    count_steps_command,
    collect_command,
    data_group,
    train_command,
    weights_group,
):
    cli.add_command(command)
add_debug_option(cli)


def _print_anything() -> None:
    r"""Print what a terminal cannot show as ``\xff``: the name of a file, say, must not end a batch."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def _share_cores() -> None:
    """Let OpenMP's threads wait asleep rather than spin, unless the user says how: others may need the cores.

    libgomp reads this when torch loads it. With all cores busy elsewhere, spinning makes a prediction take seconds.
    """
    if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "1000"


def main() -> None:
    """Run the command line."""
    from ase_definet.relaxation.freed_memory import keep_freed_memory

    _share_cores()
    keep_freed_memory()
    cli(prog_name="ase-definet")
