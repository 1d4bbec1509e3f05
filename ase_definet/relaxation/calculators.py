"""ASE calculators by name, in one table: how each is made, installed, and where its weights come from."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import io
import os
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from ase.data import atomic_numbers, chemical_symbols

from ase_definet.errors import CalculatorError, DefiNetWarning

if TYPE_CHECKING:
    from ase import Atoms

Settings: TypeAlias = Mapping[str, Any]
Weights: TypeAlias = Literal["none", "in the package", "downloaded"]


@dataclass(frozen=True)
class Entry:
    """A calculator known by name.

    Attributes:
        make: Returns a new one, given its settings.
        module: Module that must be installed.
        install: How to install it.
        what: What it is, in a few words.
        weights: Where its default weights come from: ``none`` are needed, they are in the package, or the package
            downloads them when they are first used.
        downloads: Returns what would be downloaded with these settings, and where it would be kept; None if nothing.
        offline: What to do on a machine without network.
        knows_state: Whether it can be told a charge and a spin multiplicity, see :func:`tell_state`.
        ready: Returns what its package lacks outside of Python, empty if nothing.
    """

    make: Callable[..., Any]
    module: str
    install: str
    what: str
    weights: Weights = "none"
    downloads: Callable[[Settings], tuple[str, Path] | None] = lambda _: None
    offline: str = "works offline"
    knows_state: bool = False
    ready: Callable[[], str] = str


def _extra(name: str) -> str:
    return f"pip install 'ase-definet[{name}]'"


def _known(settings: Settings, known: Iterable[str], name: str) -> None:
    """Refuse settings that a calculator would swallow without using them."""
    wrong = sorted(set(settings) - set(known))
    if wrong:
        raise CalculatorError(f"{name} has no setting {', '.join(wrong)}; it has {', '.join(sorted(known))}")


def _parameters(function: Callable[..., Any], *more: str) -> set[str]:
    """Return the names of the parameters of a function that can be given by name."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    found = {p.name for p in inspect.signature(function).parameters.values() if p.kind in kinds}
    return (found | set(more)) - {"self", "cls"}


def _emt(**settings: Any) -> Any:
    from ase.calculators.emt import EMT  # noqa: PLC0415

    _known(settings, EMT.default_parameters, "emt")
    return EMT(**settings)


def _lj(**settings: Any) -> Any:
    from ase.calculators.lj import LennardJones  # noqa: PLC0415

    _known(settings, LennardJones.default_parameters, "lj")
    return LennardJones(**settings)


def _chgnet(**settings: Any) -> Any:
    from chgnet.model import CHGNet  # noqa: PLC0415
    from chgnet.model.dynamics import CHGNetCalculator  # noqa: PLC0415

    parameters = inspect.signature(CHGNetCalculator.__init__).parameters.values()
    _known(settings, {p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.name == "model"}, "chgnet")
    if isinstance(settings.get("model"), str):
        settings["model"] = CHGNet.load(model_name=settings["model"])
    return CHGNetCalculator(**{"on_isolated_atoms": "ignore"} | settings)  # this package says it itself, of all


def _sevennet(**settings: Any) -> Any:
    from sevenn.calculator import SevenNetCalculator  # noqa: PLC0415

    _known(settings, _parameters(SevenNetCalculator.__init__), "sevennet")
    return SevenNetCalculator(**{"model": "7net-0", "device": "auto"} | settings)


def _mattersim(**settings: Any) -> Any:
    from mattersim.forcefield import MatterSimCalculator  # noqa: PLC0415

    _known(settings, _parameters(MatterSimCalculator.__init__, "load_path"), "mattersim")
    return MatterSimCalculator(**settings)


def _mace(**settings: Any) -> Any:
    from mace.calculators import mace_mp  # noqa: PLC0415

    _known(settings, _parameters(mace_mp), "mace")
    return mace_mp(**{"model": "medium-mpa-0", "default_dtype": "float64"} | settings)


def _orb(**settings: Any) -> Any:
    from orb_models.forcefield import pretrained  # noqa: PLC0415
    from orb_models.forcefield.calculator import ORBCalculator  # noqa: PLC0415

    name = str(settings.pop("model", "orb_v3_conservative_inf_omat"))
    load = getattr(pretrained, name.replace("-", "_"), None)
    if not callable(load):
        raise CalculatorError(f"orb has no model {name}: see orb_models.forcefield.pretrained")
    _known(settings, _parameters(load), "orb")
    return ORBCalculator(load(**settings), device=settings.get("device"))


def _uma(**settings: Any) -> Any:
    from fairchem.core import FAIRChemCalculator, pretrained_mlip  # noqa: PLC0415

    model, task = settings.pop("model", "uma-s-1p1"), settings.pop("task_name", "omat")
    _known(settings, _parameters(pretrained_mlip.get_predict_unit) - {"model_name"}, "uma")
    return FAIRChemCalculator(pretrained_mlip.get_predict_unit(model, **settings), task_name=task)


def _gpaw(**settings: Any) -> Any:
    from gpaw import GPAW, FermiDirac  # noqa: PLC0415

    defaults: dict[str, Any] = {
        "mode": "lcao",
        "basis": "dzp",
        "xc": "PBE",
        "h": 0.2,
        "kpts": (1, 1, 1),
        "occupations": FermiDirac(0.05),
        "convergence": {"density": 1e-4},
        "symmetry": "off",
        "txt": None,
    }
    return GPAW(**defaults | settings)


def _vasp(**settings: Any) -> Any:
    from ase.calculators.vasp import Vasp  # noqa: PLC0415

    defaults = {"xc": "PBE", "encut": 500, "ediff": 1e-6, "ismear": 0, "sigma": 0.05, "ispin": 2, "isym": 0}
    return Vasp(**defaults | {"nsw": 0, "lreal": False, "prec": "Accurate"} | settings)


_LONGEST = 120  # characters of another package's message
_SERVER = re.compile(r"ConnectionPool\(host='(?P<name>[^']+)'")  # in every message of urllib3
_BUNDLED_SEVENNET = ("7net-0", "sevennet-0", "7net-l3i5", "sevennet-l3i5", "7net-mf-0", "sevennet-mf-0")


def _vasp_command() -> str:
    """Return what is missing for ASE to run VASP."""
    from ase.config import cfg  # noqa: PLC0415

    named = any(cfg.get(name) for name in ("ASE_VASP_COMMAND", "VASP_COMMAND", "VASP_SCRIPT"))
    return "" if named or "vasp" in cfg.parser else "a command that runs VASP"


def _of_sevennet(settings: Settings) -> tuple[str, Path] | None:
    model = str(settings.get("model", "7net-0"))
    kept = Path.home() / ".cache/sevennet"
    if model.lower().removesuffix("_11july2024").removesuffix("_22may2024") in _BUNDLED_SEVENNET or _is_file(model):
        return None
    return (f"the weights of {model}, from GitHub", kept) if not _holds(kept, "*.pth") else None


def _of_mattersim(settings: Settings) -> tuple[str, Path] | None:
    model = str(settings.get("load_path") or "MatterSim-v1.0.0-1M")
    if _is_file(model):
        return None
    kept = Path.home() / ".local/mattersim/pretrained_models"
    size = "5M" if "5m" in model.lower() else "1M"
    return None if _holds(kept, f"*{size}.pth") else (f"MatterSim-v1.0.0-{size}, from Azure or GitHub", kept)


def _of_mace(settings: Settings) -> tuple[str, Path] | None:
    model = str(settings.get("model", "medium-mpa-0"))
    kept = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "mace"
    return None if _is_file(model) or _holds(kept, "*") else (f"the weights of {model}, from GitHub", kept)


def _of_orb(settings: Settings) -> tuple[str, Path] | None:
    kept = Path(os.environ.get("CACHED_PATH_CACHE_ROOT", Path.home() / ".cache/cached_path"))
    if _is_file(str(settings.get("weights_path", ""))) or _holds(kept, "*"):
        return None
    return f"the weights of {settings.get('model', 'orb-v3-conservative-inf-omat')}, from Orbital's S3 bucket", kept


def _of_uma(settings: Settings) -> tuple[str, Path] | None:
    model = str(settings.get("model", "uma-s-1p1"))
    kept = Path(os.environ.get("FAIRCHEM_CACHE_DIR", Path.home() / ".cache/fairchem"))
    if _is_file(model) or _holds(kept, "*"):
        return None
    return f"the weights of {model}, from Hugging Face, which asks for a licence and a token first", kept


def _is_file(path: str) -> bool:
    return bool(path) and Path(path).is_file()


def _holds(folder: Path, pattern: str) -> bool:
    """Return whether a folder is there and has files of this name."""
    return folder.is_dir() and any(folder.glob(pattern))


CALCULATORS: Mapping[str, Entry] = MappingProxyType(
    {
        "emt": Entry(_emt, "ase", "part of ASE", "effective medium theory of ten metals, for tests"),
        "lj": Entry(_lj, "ase", "part of ASE", "Lennard-Jones pairs, for tests"),
        "chgnet": Entry(
            _chgnet, "chgnet", _extra("chgnet"), "CHGNet 0.3.0, trained on MPtrj (PBE, PBE+U)", "in the package"
        ),
        "sevennet": Entry(
            _sevennet,
            "sevenn",
            _extra("sevennet"),
            "SevenNet-0, trained on MPtrj (PBE, PBE+U)",
            "in the package",
            _of_sevennet,
            "works offline with 7net-0, 7net-l3i5 and 7net-mf-0; other models: --set model=FILE",
        ),
        "mattersim": Entry(
            _mattersim,
            "mattersim",
            _extra("mattersim"),
            "MatterSim-v1.0.0-1M, trained on Microsoft's own data (PBE, PBE+U)",
            "downloaded",
            _of_mattersim,
            "copy mattersim-v1.0.0-1M.pth to ~/.local/mattersim/pretrained_models, or --set load_path=FILE",
        ),
        "mace": Entry(
            _mace,
            "mace",
            _extra("mace"),
            "MACE-MPA-0, trained on MPtrj and Alexandria (PBE)",
            "downloaded",
            _of_mace,
            "copy the model to ~/.cache/mace, or --set model=FILE",
        ),
        "orb": Entry(
            _orb,
            "orb_models",
            _extra("orb"),
            "Orb v3 (conservative), trained on OMat24 (PBE, PBE+U)",
            "downloaded",
            _of_orb,
            "--set weights_path=FILE",
        ),
        "uma": Entry(
            _uma,
            "fairchem",
            _extra("uma"),
            "UMA small, its OMat24 task (PBE, PBE+U)",
            "downloaded",
            _of_uma,
            "--set model=FILE",
        ),
        "gpaw": Entry(
            _gpaw,
            "gpaw",
            "see docs/dft.md for GPAW and its setups",
            "GPAW: PBE, LCAO with dzp at Γ",
            offline="works offline with its setups installed",
            knows_state=True,
        ),
        "vasp": Entry(
            _vasp,
            "ase",
            "ASE_VASP_COMMAND and VASP_PP_PATH, see ASE's documentation",
            "VASP: PBE at Γ, run by ASE",
            offline="works offline with its POTCARs installed",
            knows_state=True,
            ready=_vasp_command,
        ),
    }
)
"""All calculators with a name."""


def parse_values(assignments: Sequence[str]) -> dict[str, Any]:
    """Parse KEY=VALUE with JSON values; what is no JSON is text.

    Args:
        assignments: Such as ``model=7net-l3i5`` or ``asap_cutoff=true``.

    Raises:
        CalculatorError: One of them is no assignment.

    Examples:
        >>> parse_values(["model=7net-0", "rc=3.5"])
        {'model': '7net-0', 'rc': 3.5}
    """
    import json  # noqa: PLC0415

    out = {}
    for text in assignments:
        key, separator, value = text.partition("=")
        if not (separator and key.isidentifier()):
            raise CalculatorError(f"expected KEY=VALUE, found {text!r}")
        try:
            out[key] = json.loads(value)
        except json.JSONDecodeError:
            out[key] = value
    return out


def get_calculator(name: str, **settings: Any) -> Any:
    """Return a new ASE calculator.

    A potential that has to download its weights says so first, by a :class:`~ase_definet.errors.DefiNetWarning`.

    Args:
        name: One of :data:`CALCULATORS`, or ``package.module:callable`` for any other: it is called with the settings
            and returns an ASE calculator.
        settings: Passed on to it, over defaults that suit a defect supercell at the Γ point.

    Raises:
        CalculatorError: The name is not known, its package is not installed, its weights could not be had, or it has
            no such setting.

    Examples:
        >>> type(get_calculator("emt")).__name__
        'EMT'
        >>> type(get_calculator("ase.calculators.lj:LennardJones", sigma=2.0)).__name__
        'LennardJones'
    """
    if ":" in name:
        return _custom(name, settings)
    entry = CALCULATORS.get(name)
    if entry is None:
        raise CalculatorError(
            f"unknown calculator {name!r}: expected {', '.join(CALCULATORS)}, or package.module:callable for any "
            "other"
        )
    lacking = lacking_of(name)
    if lacking:
        raise CalculatorError(f"the calculator {name} needs {lacking}: {entry.install}")
    download = entry.downloads(settings)
    if download is not None:
        what, kept = download
        text = f"{name} downloads {what}, and keeps it in {kept}; on a machine without network: {entry.offline}"
        warnings.warn(text, DefiNetWarning, stacklevel=2)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # several announce themselves every time
            return entry.make(**settings)
    except CalculatorError:
        raise
    except ModuleNotFoundError as error:
        raise CalculatorError(f"the calculator {name} needs {error.name or error}: {entry.install}") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        if download is not None:
            reason = f"its weights could not be downloaded ({_brief(reason)}); without network: {entry.offline}"
        elif settings:
            reason = f"it refuses {', '.join(f'{key}={value}' for key, value in settings.items())}: {reason}"
        raise CalculatorError(f"the calculator {name} cannot be made: {reason}") from error


def _brief(reason: str) -> str:
    """Return why a download failed in a few words: which server was not reached, if the message names it."""
    server = _SERVER.search(reason)
    if server is not None:
        return f"no connection to {server['name']}"
    return reason if len(reason) <= _LONGEST else f"{reason[:_LONGEST].rsplit(maxsplit=1)[0]} ..."


def lacking_of(name: str) -> str:
    """Return what is not installed of a calculator, empty if it can be made.

    Args:
        name: One of :data:`CALCULATORS`.
    """
    entry = CALCULATORS[name]
    try:
        there = importlib.util.find_spec(entry.module) is not None
    except (ImportError, ValueError):  # a package that is half there
        there = False
    return entry.ready() if there else f"{entry.module}, which is not installed"


def _custom(name: str, settings: Settings) -> Any:
    """Return the calculator that ``package.module:callable`` makes."""
    where, _, what = name.partition(":")
    try:
        module = importlib.import_module(where)
    except Exception as error:
        raise CalculatorError(
            f"the calculator {name}: {where} cannot be imported ({error}); is it installed, or on PYTHONPATH?"
        ) from error
    make = getattr(module, what, None)
    if not callable(make):
        raise CalculatorError(f"the calculator {name}: {where} has nothing to call that is named {what!r}")
    try:
        calculator = make(**settings)
    except Exception as error:
        raise CalculatorError(
            f"the calculator {name} cannot be made from {dict(settings) or 'no settings'}: {error}"
        ) from error
    if not callable(getattr(calculator, "get_forces", None)):
        raise CalculatorError(
            f"the calculator {name} returned {type(calculator).__name__}, expected an ASE calculator with forces"
        )
    return calculator


def name_of(calculator: Any) -> str:
    """Return the name of an ASE calculator in tables and messages: that of its row, else of its class."""
    kind = type(calculator).__name__
    return _NAMES.get(kind, kind)


_NAMES = {
    "EMT": "emt",
    "LennardJones": "lj",
    "CHGNetCalculator": "chgnet",
    "SevenNetCalculator": "sevennet",
    "MatterSimCalculator": "mattersim",
    "MACECalculator": "mace",
    "ORBCalculator": "orb",
    "FAIRChemCalculator": "uma",
    "GPAW": "gpaw",
    "Vasp": "vasp",
}
_MOST = {"CHGNetCalculator": 94, "MatterSimCalculator": 94}  # atomic numbers from 1 to this


def elements_of(calculator: Any) -> frozenset[int] | None:
    """Return the atomic numbers that a calculator knows, None if it does not say."""
    kind = type(calculator).__name__
    if kind in _MOST:
        return frozenset(range(1, _MOST[kind] + 1))
    if kind == "EMT":
        from ase.calculators.emt import parameters  # noqa: PLC0415

        return frozenset(atomic_numbers[symbol] for symbol in parameters)
    if kind == "SevenNetCalculator":
        return frozenset(int(z) for z in calculator.type_map)
    if kind == "MACECalculator":
        return frozenset(int(z) for z in calculator.z_table.zs)
    return None


def check_elements(calculator: Any, numbers: Iterable[int], name: str = "") -> None:
    """Make sure that a calculator knows all elements of a structure.

    Args:
        calculator: An ASE calculator.
        numbers: Atomic numbers of the structure.
        name: What to call the calculator.

    Raises:
        CalculatorError: It does not.
    """
    known = elements_of(calculator)
    unknown = [] if known is None else sorted(set(map(int, numbers)) - known)
    if known is None or not unknown:
        return
    listed = ", ".join(chemical_symbols[z] for z in sorted(known))
    has = f"it has {listed}" if len(known) < 20 else f"it has {len(known)} elements"  # noqa: PLR2004
    lacking = ", ".join(chemical_symbols[z] for z in unknown)
    raise CalculatorError(
        f"the calculator {name or name_of(calculator)} does not know {lacking} ({has}): choose another one"
    )


def tell_state(calculator: Any, charge: int, multiplicity: int | None) -> str:
    """Tell a calculator the charge and the spin multiplicity of a structure, if it can be told.

    Args:
        calculator: An ASE calculator.
        charge: Net charge of the cell, in e.
        multiplicity: Number of unpaired electrons plus one; None if it is not fixed.

    Returns:
        What it cannot be told and will ignore, as a sentence; empty if nothing.
    """
    name = name_of(calculator)
    entry = CALCULATORS.get(name)
    if entry is None or not entry.knows_state:
        ignored = [f"charge {charge:+d}"] if charge else []
        ignored += [f"spin multiplicity {multiplicity}"] if multiplicity is not None else []
        return (
            f"{name} knows nothing of {' and '.join(ignored)}: its result is for the cell without" if ignored else ""
        )
    if name == "vasp":
        calculator.set(charge=charge, nupdown=-1 if multiplicity is None else multiplicity - 1)
    else:
        smearing = {"name": "fermi-dirac", "width": 0.05, "fixmagmom": multiplicity is not None}
        calculator.set(charge=charge, **({} if multiplicity is None else {"occupations": smearing, "spinpol": True}))
    return ""


def with_moments(atoms: Atoms, multiplicity: int, near: Sequence[int]) -> Atoms:
    """Return a structure whose initial magnetic moments add up to its unpaired electrons.

    Args:
        atoms: The structure.
        multiplicity: Number of unpaired electrons plus one.
        near: Indices of the atoms that carry them, in equal parts.
    """
    out = atoms.copy()
    moments = [0.0] * len(atoms)
    for k in near:
        moments[k] = (multiplicity - 1) / len(near)
    out.set_initial_magnetic_moments(moments)
    return out
