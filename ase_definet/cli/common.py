"""What several commands share."""

from __future__ import annotations

import functools
import math
import os
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from ase_definet.errors import DefiNetError, HostError, StructureError

if TYPE_CHECKING:
    from ase_definet.matching.site_map import SiteMap
    from ase_definet.relaxation.relaxer import DefiNetRelaxer
    from ase_definet.relaxation.result import RelaxResult

PROFILES = ("paper", "few-steps", "robust")
CODES = ("vasp", "espresso", "cp2k", "aims", "gpaw")
"""Those of :mod:`ase_definet.dft.codes`, which a prompt need not wait for."""

FILE = click.Path(path_type=Path, dir_okay=False)
"""A file to write."""
FOLDER = click.Path(path_type=Path, file_okay=False)
"""A folder to write to."""
PATH = click.Path(path_type=Path)
"""One of several inputs: whether it can be used is seen when its turn comes, so that a bad one costs no other."""


class InputPath(click.Path):
    """The only input of a command: if it is not there, or of the wrong kind, there is nothing to do (exit code 1)."""

    def __init__(self, kind: Literal["file", "folder", "file or folder"]) -> None:
        super().__init__(path_type=Path)
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Path:
        """Return the path, checked to be there."""
        path = Path(os.fsdecode(super().convert(value, param, ctx)))
        problem = wrong_kind(path, self.kind)
        if problem is not None:
            raise click.ClickException(problem)
        return path


def wrong_kind(path: Path, kind: Literal["file", "folder", "file or folder"]) -> str | None:
    """Return an error message if an input does not exist or is not of the expected kind, else None."""
    if not path.exists():
        return f"{path}: no such {kind}"
    if path.is_dir() and kind == "file":
        return f"{path}: a folder, expected a file"
    return f"{path}: a file, expected a folder" if kind == "folder" and not path.is_dir() else None


IN_FILE, IN_FOLDER, IN_EITHER = InputPath("file"), InputPath("folder"), InputPath("file or folder")


class PositiveFloat(click.FloatRange):
    """A number above zero; unlike click's own range, none that is not a number."""

    def __init__(self) -> None:
        super().__init__(min=0, min_open=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the number, or fail."""
        number = float(super().convert(value, param, ctx))
        if math.isnan(number):
            self.fail(f"{value!r} is not a number.", param, ctx)
        return number


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""
REPORT = "please report it to the issue tracker of ase-definet, with the input and what --debug shows"
DEBUG_VARIABLE = "ASE_DEFINET_DEBUG"
_DEBUG = "ase_definet.debug"

overwrite_option = click.option("--overwrite", is_flag=True, help="Replace existing files.")
host_option = click.option(
    "--host",
    required=True,
    metavar="HOST",
    help="Pristine host: a library name (see 'ase-definet hosts'), a structure file, or 'auto'.",
)


extrapolate_option = click.option(
    "--extrapolate",
    is_flag=True,
    help="Use the prediction even if it is not expected to beat the host's ideal sites.",
)
strain_option = click.option(
    "--max-strain",
    type=PositiveFloat(),
    default=0.06,
    show_default=True,
    help="Largest principal strain of the host onto the cell of a structure.",
)
model_option = click.option(
    "--model",
    default="default",
    show_default=True,
    metavar="WEIGHTS",
    help="Bundled weights by name (see 'ase-definet weights list'), or a .safetensors file.",
)
device_option = click.option(
    "--device", default="auto", show_default=True, help="auto (CUDA if available), cpu, cuda or cuda:N."
)

mu_option = click.option(
    "--mu",
    multiple=True,
    metavar="POTENTIAL",
    help="Chemical potential that formation energies are given for: S=-4.5 (eV per atom), rich:S or poor:S; "
    "repeatable.  [default: the bulk phases of the elements]",
)
properties_option = click.option(
    "--properties",
    default="default",
    show_default=True,
    metavar="WEIGHTS",
    help="Weights for formation energies, gaps and moments: bundled ones by name, a .safetensors file, or none.",
)


def properties_asked(weights: str, mu: Sequence[str], host: object) -> str | None:
    """Check the options on properties before any work is done; return the weights, None for none.

    Args:
        weights: What --properties says.
        mu: What --mu says.
        host: The host, or ``auto``.
    """
    if weights.lower() == "none":
        if mu:
            raise BadUsage("--mu is for formation energies, which --properties none turns off: leave one out")
        return None
    if mu:
        from ase_definet.properties.asked_potentials import AskedPotentials

        try:
            asked = AskedPotentials.of(mu)
            if not is_auto(host):
                asked.in_host(host)  # type: ignore[arg-type]
        except DefiNetError as error:
            raise BadUsage(f"--mu: {error_text(error)}") from error
    return weights


def is_auto(host: object) -> bool:
    """Return whether a host is still to be found out, structure by structure."""
    return isinstance(host, str) and host.lower() == "auto"


def input_set_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of an input set, as ``input_set``: keyword arguments of ``write_vasp_inputs``.

    What cannot be parsed is bad usage. Tags that hold a value per atom, such as MAGMOM, are checked for each
    structure.
    """

    @functools.wraps(command)
    def wrapped(
        *args: Any, profile: str, incar: tuple[str, ...], magnetic: str, kpoints: str, dipole: bool, **rest: Any
    ) -> Any:
        from ase_definet.dft.incar import parse_incar_overrides
        from ase_definet.errors import InputSetError

        chosen: dict[str, Any] = {"profile": profile, "magnetic": magnetic, "dipole": dipole}
        try:
            chosen |= {"kpoints": _kpoints(kpoints)} | ({"incar": parse_incar_overrides(incar)} if incar else {})
        except InputSetError as error:
            raise BadUsage(error_text(error)) from error
        return command(*args, input_set=chosen, **rest)

    for option in reversed(
        [
            click.option(
                "--profile",
                type=click.Choice(PROFILES),
                default="few-steps",
                show_default=True,
                help="Settings of the input set.",
            ),
            click.option(
                "--incar", multiple=True, metavar="KEY=VALUE", help="Set or override an INCAR tag (VASP); repeatable."
            ),
            click.option(
                "--magnetic-start",
                "magnetic",
                type=click.Choice(["high-spin", "parity", "none"]),
                default="high-spin",
                show_default=True,
                help="Initial magnetic moments, if the structure has none.",
            ),
            click.option(
                "--kpoints",
                default="1x1x1",
                show_default=True,
                metavar="GRID",
                help="Γ-centred k-point grid (2x2x1), or the largest spacing in 1/Å (0.25).",
            ),
            click.option(
                "--dipole",
                is_flag=True,
                help="Add a dipole correction, for a neutral layer with two different sides.",
            ),
        ]
    ):
        wrapped = option(wrapped)
    return wrapped


def calculator_option(text: str, *, required: bool = False) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Return the option that names a calculator.

    Args:
        text: What it is for.
        required: Whether there must be one.
    """
    return click.option(
        "--calculator",
        metavar="NAME",
        required=required,
        help=f"{text}: a name of 'ase-definet calculators', or package.module:callable.",
    )


set_option = click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Setting of the calculator, its value as JSON or text; repeatable.",
)


def relaxation_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command a calculator that relaxes what the network does not know, as ``calculation``.

    That is a dict of the keyword arguments ``calculator``, ``refine``, ``fmax`` and ``max_steps`` of a relaxer.
    """

    @functools.wraps(command)
    def wrapped(
        *args: Any, calculator: str | None, refine: bool, fmax: float | None, max_steps: int | None, **rest: Any
    ) -> Any:
        given = {"--refine": refine, "--fmax": fmax, "--max-steps": max_steps}
        useless = [name for name, value in given.items() if value]
        if calculator is None and useless:
            raise BadUsage(f"{useless[0]} is for a calculator: name one with --calculator")
        asked = {"calculator": calculator, "refine": refine or None, "fmax": fmax, "max_steps": max_steps}
        return command(*args, calculation={k: v for k, v in asked.items() if v is not None}, **rest)

    for option in reversed(
        [
            calculator_option(
                "Relax what is outside the training data, and structures with atoms on no site of the host, with a "
                "calculator, at fixed cell"
            ),
            click.option("--refine", is_flag=True, help="Also go on from the network's answers with the calculator."),
            click.option(
                "--fmax",
                type=PositiveFloat(),
                help="Largest force at which the calculator stops, in eV/Å.  [default: 0.05]",
            ),
            click.option(
                "--max-steps",
                type=click.IntRange(min=1),
                help="Force evaluations of the calculator for one structure, at most.  [default: 200]",
            ),
        ]
    ):
        wrapped = option(wrapped)
    return wrapped


def calculator_settings(calculation: dict[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return the options of a calculator with its settings, as keyword arguments of a relaxer.

    Raises:
        BadUsage: There are settings without a calculator, or they cannot be parsed.
    """
    from ase_definet.relaxation.calculators import parse_values

    if not settings:
        return calculation
    if "calculator" not in calculation:
        raise BadUsage("--set is for a calculator: name one with --calculator")
    try:
        return calculation | {"calculator_settings": parse_values(settings)}
    except DefiNetError as error:
        raise BadUsage(f"--set: {error_text(error)}") from error


def code_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that only some DFT codes take, as ``settings`` and ``library``."""
    for option in (
        click.option(
            "--library",
            type=FOLDER,
            help="Folder of pseudopotentials (espresso), data files (cp2k) or species defaults (aims).",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Set or override a setting of any code except VASP, under its name in the code, or, without such an "
            "input set, of the calculator of 'relax'; repeatable.",
        ),
    ):
        command = option(command)
    return command


def for_code(code: str, input_set: dict[str, Any], settings: tuple[str, ...], library: Path | None) -> dict[str, Any]:
    """Return the options of an input set as keyword arguments of ``write_inputs``.

    Raises:
        BadUsage: They are not for this code, or cannot be parsed.
    """
    from ase_definet.dft.input_set import parse_settings
    from ase_definet.errors import InputSetError

    chosen = dict(input_set)
    incar = chosen.pop("incar", None)
    if code == "vasp" and (settings or library):
        raise BadUsage(
            f"{'--set' if settings else '--library'} is not for VASP: give --incar, or set PMG_VASP_PSP_DIR"
        )
    if code != "vasp" and incar:
        raise BadUsage(f"--incar is for VASP: give --set KEY=VALUE for {code}")
    try:
        chosen["settings"] = incar if code == "vasp" else parse_settings(settings)
    except InputSetError as error:
        raise BadUsage(error_text(error)) from error
    return chosen | {"code": code, "library": library}


def _kpoints(text: str) -> tuple[int, int, int] | float:
    """Return a grid or a spacing of k-points."""
    try:
        if "x" not in text:
            return float(text)
        a, b, c = (int(part) for part in text.split("x"))
    except ValueError as error:
        raise BadUsage(
            f"--kpoints: expected a grid such as 2x2x1 or a spacing such as 0.25, found {text!r}"
        ) from error
    return a, b, c


class BadUsage(click.ClickException):
    """An invalid command line: an error of one line, exit code 2."""

    exit_code = 2


def error_text(error: BaseException, file: Path | None = None) -> str:
    """Describe an error in one line that names the file it is about.

    A full disk or too little memory is nobody's bug. Any error that was not foreseen is one, and says where to report
    it.

    Args:
        error: What went wrong.
        file: The input that it is about, unless the error itself names another file.
    """
    if isinstance(error, DefiNetError) or (isinstance(error, OSError) and not error.strerror):
        text = str(error)
    elif isinstance(error, OSError):
        text = f"{os.fsdecode(error.filename)}: {error.strerror}" if error.filename else str(error.strerror)
        file = None if error.filename else file  # full disks are about the output
    elif _is_out_of_memory(error):
        text = "out of memory: try smaller structures, or fewer at a time"
    else:
        frames = traceback.extract_tb(error.__traceback__)
        place = [frame for frame in frames if "ase_definet" in frame.filename or frame is frames[0]][-1:]
        where = "".join(f" in {Path(frame.filename).name}:{frame.lineno}" for frame in place)
        text = f"unexpected {type(error).__name__}{where}: {error}; this is a bug: {REPORT}"
    text = " ".join(text.splitlines())
    return text if file is None or text.startswith(str(file)) else f"{file}: {text}"


def _is_out_of_memory(error: BaseException) -> bool:
    """Return whether Python, NumPy or torch ran out of memory, on any device."""
    names = {kind.__name__ for kind in type(error).__mro__}  # torch is not imported for this
    return bool(names & {"MemoryError", "OutOfMemoryError"}) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def show_traceback(error: BaseException) -> None:
    """Print the traceback of an error on standard error, if ``--debug`` or ASE_DEFINET_DEBUG asks for it."""
    context = click.get_current_context(silent=True)
    asked = context is not None and context.find_root().meta.get(_DEBUG, False)
    if asked or os.environ.get(DEBUG_VARIABLE, "0") not in {"", "0"}:
        click.echo("".join(traceback.format_exception(error)), err=True, nl=False)


def _debug(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().meta[_DEBUG] = True


def add_debug_option(command: click.Command) -> None:
    """Let a command and all below it take ``--debug``."""
    command.params.append(
        click.Option(
            ["--debug"],
            is_flag=True,
            expose_value=False,
            is_eager=True,
            callback=_debug,
            help="Show the traceback of an error.",
        )
    )
    for below in command.commands.values() if isinstance(command, click.Group) else ():
        add_debug_option(below)


@contextmanager
def about(file: Path) -> Iterator[None]:
    """Name the file in every error about its structure."""
    try:
        yield
    except (click.ClickException, click.exceptions.Exit):  # has its own words and exit code
        raise
    except Exception as error:
        raise click.ClickException(error_text(error, file)) from error


def checked_host(host: str) -> object:
    """Resolve a host before any structure is read; an unknown one is a usage error."""
    from ase_definet.matching.library import get_host

    if host.lower() == "auto":
        return "auto"
    try:
        return get_host(host)
    except HostError as error:
        raise BadUsage(error_text(error)) from error


def make_relaxer(model: str, host: object = None, device: str = "auto", **options: Any) -> DefiNetRelaxer:
    """Make the relaxer of a command; missing weights, devices or settings are usage errors."""
    from ase_definet.relaxation.relaxer import DefiNetRelaxer

    try:
        return DefiNetRelaxer(model, host, device, **options)
    except DefiNetError as error:
        raise BadUsage(error_text(error)) from error


def refuse_existing(*paths: Path, overwrite: bool) -> None:
    """Refuse to replace existing files unless the user allows it."""
    for path in paths:
        if path.exists() and not overwrite:
            raise BadUsage(f"{path} exists; choose another name or give --overwrite")


def check_folder(folder: Path) -> None:
    """Reject a folder that cannot be created or written to, before any work is done."""
    folder = folder.absolute()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir():
        raise BadUsage(f"cannot write to {folder}: {existing} is a file, expected a folder")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise BadUsage(f"cannot write to {folder}: no permission to write in {existing}")


def file_format(path: Path) -> str:
    """Return ASE's name for the format of an existing file."""
    from ase_definet.structures.reading import structure_format

    return structure_format(path)


def image_notes(path: Path) -> list[str]:
    """Return a note if a file contains more than the structure that was read from it."""
    from ase.io.formats import ioformats

    from ase_definet.structures.reading import read_structures, structure_format

    fmt = structure_format(path)
    if fmt in ioformats and ioformats[fmt].single:
        return []
    try:
        with warnings.catch_warnings():  # said when the structure was read
            warnings.simplefilter("ignore")
            several = len(list(islice(read_structures(path), 2))) > 1
    except StructureError:  # the last structure could be read
        return []
    return ["the file holds several structures: only the last one was used"] if several else []


def counts(defects: Mapping[str, int]) -> str:
    """Return defect counts as text: ``v_S x2, W_Mo x1``."""
    return ", ".join(f"{name} x{n}" for name, n in defects.items()) or "none (pristine)"


def host_line(site_map: SiteMap) -> str:
    """Describe host, supercell and strain in one line."""
    percent = round(100 * site_map.max_strain, 2) + 0.0  # no -0.00
    sites = len(site_map.kinds)
    return f"{site_map.host.name}, supercell {site_map.supercell_name} ({sites} sites), strain {percent:+.2f} %"


def finite(value: float) -> float | None:
    """Return a number that JSON can represent, else None."""
    return float(value) if math.isfinite(value) else None


def trust_line(result: RelaxResult) -> str:
    """Describe the trust level of a result, the reasons for it, and the consequence."""
    why = ", ".join(result.outside)
    done = ""
    if result.calculation is not None and result.method == "calculator":
        done = f"; {result.calculation.calculator} relaxed it"
    elif result.method == "none":
        done = "; the atoms were left on the host's ideal sites"
    return f"{result.trust} {'of' if result.trust == 'outside' else 'to'} the training data ({why}){done}"


def unknown_error(unsupported: Sequence[str]) -> str:
    """Explain a missing expected error by the respects in which a structure lies outside the training data."""
    if "training" in unsupported:
        return "expected error unknown (these weights have no record of their training data)"
    return f"expected error unknown (outside the training data: {', '.join(unsupported)})"


def match_record(site_map: SiteMap) -> dict[str, Any]:
    """Return a match as JSON-ready data, distances in Å."""
    return {
        "host": site_map.host.name,
        "supercell": site_map.supercell.tolist(),
        "strain": [round(float(v), 8) + 0.0 for v in site_map.strain],
        "shift": [float(v) for v in site_map.shift],
        "margin": finite(site_map.margin),
        "cost": finite(site_map.cost),
        "runner_up_cost": finite(site_map.runner_up),
        "ambiguous": site_map.ambiguous,
        "warnings": list(site_map.warnings),
        "defects": [
            {
                "name": defect.name,
                "kind": defect.kind.name.lower(),
                "site": defect.site,
                "host_element": defect.host_element,
                "element": defect.element,
                "atom_index": defect.atom_index,
                "position": list(defect.position),
            }
            for defect in site_map.defects
        ],
        "extra": [
            {
                "name": atom.name,
                "kind": atom.kind.name.lower(),
                "element": atom.element,
                "atom_index": atom.atom_index,
                "position": list(atom.position),
                "sites": list(atom.sites),
                "distance": atom.distance,
                "height": atom.height,
                "side": atom.side,
                "partner": atom.partner,
                "origin": atom.origin,
            }
            for atom in site_map.extra
        ],
    }


def training_missing(error: ModuleNotFoundError) -> click.ClickException:
    """Return the exception for a missing package that training requires."""
    return click.ClickException(f"training needs {error.name}: pip install 'ase-definet[train]'")


def saved_text(share: float) -> str:
    """Describe the share of ionic steps saved or lost."""
    return f"saved {share:.0%} of the ionic steps" if share >= 0 else f"took {-share:.0%} more ionic steps"
