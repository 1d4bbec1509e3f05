"""``import-checkpoint``, ``combine`` and ``upgrade-weights``: bring, join, convert weights."""

from __future__ import annotations

from pathlib import Path

import click

from ase_definet.cli.common import FILE, BadUsage, check_folder, overwrite_option, refuse_existing


@click.command("import-checkpoint")
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@overwrite_option
def import_checkpoint_command(source: Path, out: Path, overwrite: bool) -> None:  # noqa: FBT001
    """Convert SOURCE, saved by the authors' code, to OUT (.safetensors). Pickled code is never run."""
    from ase_definet.checkpoints.authors import import_authors_checkpoint  # noqa: PLC0415
    from ase_definet.checkpoints.format import save_checkpoint  # noqa: PLC0415

    refuse_existing(out, overwrite=overwrite)
    check_folder(out.parent)
    loaded = import_authors_checkpoint(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, loaded.model, loaded.card, overwrite=overwrite)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    click.echo(f"wrote {out}: {loaded.architecture}, {parameters:,} parameters; use it as --model {out}")
    click.echo("Nothing is known about its training data: every result will carry that warning.")


@click.command("upgrade-weights")
@click.argument("source", type=FILE)
@click.argument("out", type=FILE)
@overwrite_option
def upgrade_weights_command(source: Path, out: Path, overwrite: bool) -> None:  # noqa: FBT001
    """Convert SOURCE, weights of format version 1, to OUT in the present format, and write its card beside it."""
    from ase_definet.checkpoints.format import write_card  # noqa: PLC0415
    from ase_definet.checkpoints.upgrade import upgrade_checkpoint  # noqa: PLC0415

    refuse_existing(out, out.with_suffix(".json"), overwrite=overwrite)
    check_folder(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    upgrade_checkpoint(source, out, overwrite=overwrite)
    write_card(out, overwrite=overwrite)
    click.echo(f"wrote {out}; use it as --model {out}")


@click.command("combine")
@click.argument("general", type=str)
@click.argument("out", type=FILE)
@click.option(
    "--host-model",
    "routed",
    type=(str, str),
    multiple=True,
    required=True,
    metavar="HOST[,HOST...] WEIGHTS",
    help="Hosts and the weights that are to serve them; repeatable.",
)
@click.option("--name", default="", help="Name of the new weights; by default that of OUT.")
@click.option("--version", "version", default="0.1.0", show_default=True, help="Version of the new weights.")
@overwrite_option
def combine_command(
    general: str,
    out: Path,
    routed: tuple[tuple[str, str], ...],
    name: str,
    version: str,
    overwrite: bool,  # noqa: FBT001
) -> None:
    """Make one weights file OUT: of GENERAL (a bundled name or a file), and of others for hosts of their own."""
    from ase_definet.checkpoints.combine import combine_weights  # noqa: PLC0415

    if out.suffix != ".safetensors":
        raise BadUsage(f"{out}: weights end in .safetensors")
    refuse_existing(out, out.with_suffix(".json"), overwrite=overwrite)
    check_folder(out.parent)
    others = {tuple(filter(None, hosts.split(","))): weights for hosts, weights in routed}
    if len(others) < len(routed):
        raise BadUsage("--host-model names the same hosts twice; give one weights file for each")
    out.parent.mkdir(parents=True, exist_ok=True)
    combine_weights(out, general, others, name=name or out.stem, version=version, overwrite=overwrite)
    served = "; ".join(f"{', '.join(hosts)} by {weights}" for hosts, weights in others.items())
    click.echo(f"wrote {out}: {served}; all others by {general}; use it as --model {out}")
