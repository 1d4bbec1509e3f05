"""INCAR as it is written; apart, because it needs pymatgen, which is slow to import."""

from __future__ import annotations

from typing import Any

from pymatgen.io.vasp.inputs import Incar


class VerbatimIncar(Incar):
    """An INCAR with text as it was given: pymatgen's own makes ``R2scan`` of ``R2SCAN``."""

    @classmethod
    def proc_val(cls, key: str, val: str) -> Any:
        """Return a value in its tag's type, text as it is."""
        value = Incar.proc_val(key, val)
        return val.strip() if isinstance(value, str) else value
