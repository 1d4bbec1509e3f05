"""Kinds of host sites; a separate module, because networks use them without structures."""

from __future__ import annotations

import enum


class SiteKind(enum.IntEnum):
    """Kind of a host site; networks are trained with these values (the markers of the paper).

    References:
        Yang et al., npj Comput. Mater. 11, 229 (2025).
    """

    PRISTINE = 0
    SUBSTITUTION = 1
    VACANCY = 2
