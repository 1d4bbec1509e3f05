"""``ase-definet weights list|import|combine|ensemble|export|upgrade``: weights, listed and made."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ase_definet.cli.common import (
    FILE,
    IN_FILE,
    IN_FOLDER,
    BadUsage,
    check_folder,
    overwrite_option,
    refuse_existing,
    training_missing,
)


@click.group("weights")
def weights_group() -> None:
    """List, import, combine, export and upgrade weights."""


@weights_group.command("list")
def list_command() -> None:
    """List the bundled weights.

    Shows what they were trained on, and their validation errors.
    """
    from ase_definet.checkpoints.bundled import bundled_cards

    for name, bundled in bundled_cards().items():
        card = bundled.card
        click.echo(f"{name} {card.version}: {card.architecture}, {card.parameters:,} parameters, {card.date}")
        if card.training is not None:
            click.echo(f"  hosts     {', '.join(card.training.hosts)}")
        if card.routed:
            part = " (what it was trained on)"
            served = "; ".join(", ".join(one.hosts) + part * one.beside for one in card.routed)
            click.echo(f"  networks  one each for {served}; one for all others")
        if card.training is not None:
            click.echo(f"  elements  {', '.join(card.training.elements)}")
        click.echo("  validation, coordinate MAE in Å (all atoms, within 3 Å of a defect; ideal sites: the same):")
        for subset, row in card.validation.items():
            click.echo(
                f"    {subset:12s} {row.mae:.4f}  {row.a3:.4f};  {row.ideal_sites:.4f}  {row.ideal_sites_a3:.4f}"
            )
        click.echo(f"  sha256    {bundled.sha256}")
        click.echo(f"  {card.attribution}")


@weights_group.command("import")
@click.argument("source", type=IN_FILE)
@click.argument("out", type=FILE)
@overwrite_option
def import_command(source: Path, out: Path, overwrite: bool) -> None:
    """Import weights that the authors' code saved.

    Converts SOURCE to OUT (.safetensors). Pickled code is never run.
    """
    from ase_definet.checkpoints.authors import import_authors_checkpoint
    from ase_definet.checkpoints.format import save_checkpoint

    refuse_existing(out, overwrite=overwrite)
    check_folder(out.parent)
    loaded = import_authors_checkpoint(source)
    out.parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(out, loaded.model, loaded.card, overwrite=overwrite)
    parameters = sum(p.numel() for p in loaded.model.parameters())
    click.echo(f"wrote {out}: {loaded.architecture}, {parameters:,} parameters; use it as --model {out}")
    click.echo("Its training data are unknown: every result will carry a warning that says so.")


@weights_group.command("upgrade")
@click.argument("source", type=IN_FILE)
@click.argument("out", type=FILE)
@overwrite_option
def upgrade_command(source: Path, out: Path, overwrite: bool) -> None:
    """Upgrade weights of format version 1.

    Converts SOURCE to OUT in the present format, and writes its card beside it.
    """
    from ase_definet.checkpoints.format import write_card
    from ase_definet.checkpoints.upgrade import upgrade_checkpoint

    refuse_existing(out, out.with_suffix(".json"), overwrite=overwrite)
    check_folder(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    upgrade_checkpoint(source, out, overwrite=overwrite)
    write_card(out, overwrite=overwrite)
    click.echo(f"wrote {out}; use it as --model {out}")


@weights_group.command("combine")
@click.argument("general", type=str)
@click.argument("out", type=FILE)
@click.option(
    "--host-weights",
    "routed",
    type=(str, str),
    multiple=True,
    required=True,
    metavar="HOST[,HOST...] WEIGHTS",
    help="Hosts, and the weights to use for them; repeatable.",
)
@click.option(
    "--beside",
    is_flag=True,
    help="Keep the present weights of a host for the structures they were trained on; the new ones serve the rest.",
)
@click.option("--name", default="", help="Name of the new weights; by default that of OUT.")
@click.option("--version", "version", default="0.1.0", show_default=True, help="Version of the new weights.")
@overwrite_option
def combine_command(
    general: str,
    out: Path,
    routed: tuple[tuple[str, str], ...],
    beside: bool,
    name: str,
    version: str,
    overwrite: bool,
) -> None:
    """Combine weights that serve different hosts.

    OUT uses the given weights for each of these hosts, and GENERAL, a bundled name or a file, for all others.
    """
    from ase_definet.checkpoints.combine import combine_weights

    if out.suffix != ".safetensors":
        raise BadUsage(f"{out}: weights end in .safetensors")
    refuse_existing(out, out.with_suffix(".json"), overwrite=overwrite)
    check_folder(out.parent)
    others = {tuple(filter(None, hosts.split(","))): weights for hosts, weights in routed}
    if len(others) < len(routed):
        raise BadUsage("--host-weights names the same hosts twice: give each set of hosts one weights file")
    out.parent.mkdir(parents=True, exist_ok=True)
    combine_weights(out, general, others, name=name or out.stem, version=version, beside=beside, overwrite=overwrite)
    served = "; ".join(f"{', '.join(hosts)} by {weights}" for hosts, weights in others.items())
    click.echo(f"wrote {out}: {served}; all others by {general}; use it as --model {out}")


@weights_group.command("ensemble")
@click.argument("out", type=FILE)
@click.argument("members", type=IN_FILE, nargs=-1, required=True)
@click.option("--data", type=IN_FILE, required=True, help="Packed data set; expected errors come from its val split.")
@click.option(
    "--not-for",
    type=(str, IN_FILE),
    multiple=True,
    metavar="HOST[,HOST...] MEMBER",
    help="Hosts on which this member does not answer, because others know them better; repeatable.",
)
@click.option("--name", default="", help="Name of the new weights; by default that of OUT.")
@click.option("--version", "version", default="0.1.0", show_default=True, help="Version of the new weights.")
@overwrite_option
def ensemble_command(
    out: Path,
    members: tuple[Path, ...],
    data: Path,
    not_for: tuple[tuple[str, Path], ...],
    name: str,
    version: str,
    overwrite: bool,
) -> None:
    """Put several networks for properties into one file.

    OUT answers with their mean, and with an expected error that is fitted to their spread on the validation split.
    """
    try:
        from ase_definet.training.property_ensemble import write_ensemble
    except ModuleNotFoundError as error:
        raise training_missing(error) from error
    if out.suffix != ".safetensors":
        raise BadUsage(f"{out}: weights end in .safetensors")
    refuse_existing(out, out.with_suffix(".json"), overwrite=overwrite)
    check_folder(out.parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    _, reliability = write_ensemble(
        out, members, data, name=name or out.stem, version=version, not_for=not_for, overwrite=overwrite
    )
    for target, subsets in reliability.items():
        for subset, row in subsets.items():
            click.echo(
                f"{target} {subset}: mean error {row['mean_error']:.4f}, expected {row['mean_estimate']:.4f}, rank "
                f"correlation {row.get('rank_correlation', float('nan')):.2f}"
            )
    click.echo(f"wrote {out} and its card")


@weights_group.command("export")
@click.argument("run", type=IN_FOLDER)
@click.argument("out", type=FILE)
@click.option("--name", help="Name on the card; by default that of OUT.")
@click.option("--version", default="0", show_default=True, help="Version on the card.")
@overwrite_option
def export_command(run: Path, out: Path, name: str | None, version: str, overwrite: bool) -> None:
    """Export the weights of a training run.

    RUN is the folder of the run; OUT is the .safetensors file to write. Its card is written beside it, too.
    """
    try:
        from ase_definet.checkpoints.bundled import bundled_models
        from ase_definet.training.card import export_weights
        from ase_definet.training.config import CONFIG, config_of_run
        from ase_definet.training.run import run_of
    except ModuleNotFoundError as error:
        raise training_missing(error) from error
    if out.suffix != ".safetensors":
        raise BadUsage(f"{out}: weights end in .safetensors")
    refuse_existing(out, out.with_suffix(".json"), overwrite=overwrite)
    if not (run / CONFIG).exists():
        raise click.ClickException(f"{run}: holds no training run (no {CONFIG})")
    config = replace(config_of_run(run), accelerator="cpu", devices=1, nodes=1)
    if (
        config.initial_weights
        and config.initial_weights not in bundled_models()
        and not Path(config.initial_weights).exists()
    ):
        config = replace(config, initial_weights="")  # the run holds all that is needed
    finished = run_of(config)
    if not finished.resume():
        raise click.ClickException(f"{run}: holds no checkpoint yet")
    check_folder(out.parent)
    export_weights(finished, out, name or out.stem, version)
    click.echo(f"wrote {out} and its card; use it as --model {out}")
