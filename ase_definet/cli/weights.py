"""``ase-definet import-checkpoint``: bring weights trained with the authors' code."""

from __future__ import annotations

from pathlib import Path

import click

from ase_definet.cli.common import FILE, BadUsage, check_folder, error_text, overwrite_option
from ase_definet.errors import OutputExistsError


@click.command("import-checkpoint")
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@overwrite_option
def import_checkpoint_command(source: Path, out: Path, overwrite: bool) -> None:  # noqa: FBT001
    """Convert SOURCE, saved by the authors' code, to OUT (.safetensors). Pickled code is never run."""
    from ase_definet.checkpoint import import_authors_checkpoint, save_checkpoint  # noqa: PLC0415

    check_folder(out.parent)
    loaded = import_authors_checkpoint(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_checkpoint(out, loaded.model, loaded.card, overwrite=overwrite)
    except OutputExistsError as error:
        raise BadUsage(error_text(error)) from error
    parameters = sum(p.numel() for p in loaded.model.parameters())
    click.echo(f"wrote {out}: {loaded.architecture}, {parameters:,} parameters; use it as --model {out}")
    click.echo("Nothing is known about its training data: every result will carry that warning.")
