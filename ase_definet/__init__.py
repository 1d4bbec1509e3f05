"""Relaxed geometries of crystal defects in one forward pass, ready for DFT.

Importing this package is quick: torch is loaded when a relaxer is first asked for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"
"""Version of the source, also read by the build, so that it is available in a checkout that is not installed."""

if TYPE_CHECKING:
    from ase_definet.dft.codes import write_inputs
    from ase_definet.dft.vasp import write_vasp_inputs
    from ase_definet.errors import DefiNetError, DefiNetWarning
    from ase_definet.matching.host import Host
    from ase_definet.matching.library import get_host, library
    from ase_definet.matching.site_kind import SiteKind
    from ase_definet.matching.site_map import SiteMap, match_sites
    from ase_definet.relaxation.relaxer import DefiNetRelaxer
    from ase_definet.relaxation.result import RelaxFailure, RelaxResult

_HOMES = {
    "DefiNetError": "errors",
    "DefiNetWarning": "errors",
    "DefiNetRelaxer": "relaxation.relaxer",
    "RelaxFailure": "relaxation.relaxer",
    "RelaxResult": "relaxation.relaxer",
    "Host": "matching.host",
    "get_host": "matching.library",
    "library": "matching.library",
    "SiteKind": "matching.site_kind",
    "SiteMap": "matching.site_map",
    "match_sites": "matching.site_map",
    "write_inputs": "dft.codes",
    "write_vasp_inputs": "dft.vasp",
}

__all__ = [
    "DefiNetError",
    "DefiNetRelaxer",
    "DefiNetWarning",
    "Host",
    "RelaxFailure",
    "RelaxResult",
    "SiteKind",
    "SiteMap",
    "__version__",
    "get_host",
    "library",
    "match_sites",
    "write_inputs",
    "write_vasp_inputs",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name in _HOMES:
        return getattr(import_module(f"ase_definet.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'ase_definet' has no attribute {name!r}")
