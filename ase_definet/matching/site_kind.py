"""What a host site has become; apart, because the networks know it too, and no structures."""

from __future__ import annotations

import enum


class SiteKind(enum.IntEnum):
    """What a host site has become; the values are those that networks are trained with (the paper's markers).

    References:
        Yang et al., npj Comput. Mater. 11, 229 (2025).
    """

    PRISTINE = 0
    SUBSTITUTION = 1
    VACANCY = 2
