"""ASE calculators by name, each from its own extra; any other is built by the user."""

from __future__ import annotations

import contextlib
import inspect
import io
from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias

from ase_definet.errors import CalculatorError

Maker: TypeAlias = Callable[[], Any]
"""Returns a new ASE calculator."""


def _known(settings: dict[str, Any], known: Iterable[str], name: str) -> None:
    """Refuse settings that a calculator would swallow without using them."""
    wrong = sorted(set(settings) - set(known))
    if wrong:
        raise CalculatorError(f"{name} has no setting {', '.join(wrong)}; it has {', '.join(sorted(known))}")


def _emt(**settings: Any) -> Any:
    from ase.calculators.emt import EMT  # noqa: PLC0415

    _known(settings, EMT.default_parameters, "emt")
    return EMT(**settings)


def _chgnet(**settings: Any) -> Any:
    from chgnet.model import CHGNet  # noqa: PLC0415
    from chgnet.model.dynamics import CHGNetCalculator  # noqa: PLC0415

    parameters = inspect.signature(CHGNetCalculator.__init__).parameters.values()
    _known(settings, {p.name for p in parameters if p.kind is p.KEYWORD_ONLY or p.name == "model"}, "chgnet")
    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself every time
        if isinstance(settings.get("model"), str):
            settings["model"] = CHGNet.load(model_name=settings["model"])
        return CHGNetCalculator(**settings)


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


MAKERS: Mapping[str, tuple[Callable[..., Any], str]] = MappingProxyType(
    {
        "emt": (_emt, "ASE's own"),
        "chgnet": (_chgnet, "pip install 'ase-definet[compare]'"),
        "gpaw": (_gpaw, "see docs/dft.md for GPAW and its setups"),
        "vasp": (_vasp, "ASE_VASP_COMMAND and VASP_PP_PATH, see ASE's documentation"),
    }
)
"""How to make each calculator known by name, and how to install it."""


def get_calculator(name: str, **settings: Any) -> Any:
    """Return a new ASE calculator.

    Args:
        name: One of :data:`MAKERS`.
        settings: Passed on to it, over defaults that suit a defect supercell at the Γ point.

    Raises:
        CalculatorError: The name is not known, its package is not installed, or it has no such setting.

    Examples:
        >>> type(get_calculator("emt")).__name__
        'EMT'
    """
    if name not in MAKERS:
        raise CalculatorError(
            f"unknown calculator {name!r}: expected {', '.join(MAKERS)}, or pass an ASE calculator from Python"
        )
    make, advice = MAKERS[name]
    try:
        return make(**settings)
    except ImportError as error:
        raise CalculatorError(f"the calculator {name} needs {error.name or error}: {advice}") from error
