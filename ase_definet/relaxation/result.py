"""What comes out of a relaxer: a result, or the record of a structure that could not be relaxed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from ase_definet.matching.site_map import SiteMap
from ase_definet.relaxation.domain import TRUST, Judgement, Trust
from ase_definet.relaxation.inputs import beside_extra_atoms, by_atom, displaced
from ase_definet.structures.conversion import as_structure

if TYPE_CHECKING:
    from ase import Atoms

    from ase_definet.properties.predictor import PropertyValue

Array: TypeAlias = NDArray[Any]
Method: TypeAlias = Literal["network", "calculator", "none"]

LEFT = (
    "the network is not expected to beat the host's ideal sites here: the atoms were left on them; a calculator can "
    "relax them (--calculator chgnet, calculator='chgnet'), and --extrapolate (extrapolate=True) takes the network's "
    "answer all the same"
)
"""What is said where the network's answer was not taken."""


@dataclass(frozen=True)
class Calculation:
    """What a calculator did to one structure.

    Attributes:
        calculator: Its name.
        start: What it started from, in words: the prediction, the host's ideal sites, the given positions.
        steps: Evaluations of the forces.
        converged: Whether the largest force fell below :attr:`fmax_limit`, and every atom is bonded to something.
        fmax: Largest force of the geometry in the result, in eV/Å; None if that is the start.
        fmax_limit: Largest force of a converged structure, in eV/Å.
        energy: Energy of the geometry in the result, in eV; None if that is the start.
        displaced: Largest displacement of a symmetric start, in Å; 0 if it was not symmetric.
        seed: Of that displacement.
        seconds: Wall time.
        error: Why the calculator gave up, empty if it did not.
        unbound: Atoms that are bonded to nothing in the result: small forces on them mean nothing.
    """

    calculator: str
    start: str
    steps: int
    converged: bool
    fmax: float | None
    fmax_limit: float
    energy: float | None
    displaced: float = 0.0
    seed: int = 0
    seconds: float = 0.0
    error: str = ""
    unbound: tuple[int, ...] = ()

    def __str__(self) -> str:
        """Return it in a line: ``chgnet, 23 steps from the prediction, largest force 0.041 eV/Å, converged``."""
        text = f"{self.calculator}, {self.steps} steps from {self.start}"
        if self.displaced:
            text += f", whose symmetry was broken by at most {self.displaced:.3f} Å (seed {self.seed})"
        if self.fmax is not None:
            text += f", largest force {self.fmax:.3f} eV/Å"
        if self.error:
            return f"{text}, failed"
        if self.unbound:
            return f"{text}, no minimum: {len(self.unbound)} atoms bonded to nothing"
        return f"{text}, {'converged' if self.converged else f'not converged to {self.fmax_limit:g} eV/Å'}"


@dataclass(frozen=True, eq=False)
class RelaxResult:
    """A relaxed structure, and how far it can be trusted.

    Attributes:
        atoms: The relaxed structure, in the caller's order, cell and images.
        displacement: Relaxed minus given positions in the caller's order, shape ``(n_atoms, 3)``, in Å.
        site_displacement: Predicted displacement of every host site, shape ``(n_sites, 3)``, in Å.
        site_map: The match to the host.
        warnings: Reasons to distrust the result, in words.
        timings: Seconds spent in ``match``, ``graph`` and ``forward`` (its share of a batch).
        model: Name, version and hash of the weights.
        expected_error: Expected length of the error of every atom in the caller's order, shape ``(n_atoms,)``, in Å;
            None where the weights have no such estimate, and where nothing supports one, because the structure lies
            outside the training data and no error was measured there.
        judgement: How far the result can be trusted, and why not further.
        method: What moved the atoms last: ``network``, ``calculator``, or ``none`` where the network is not expected
            to beat the ideal sites, on which the atoms were left.
        calculation: What the calculator did, also where it failed; None without one.
        properties: Formation energy, gap and others by name, each with its expected error and trust; empty where the
            weights for properties do not know the host, or were not asked.
        chemical_potentials: Those that the formation energy is given for, by element of the structure and its host,
            in eV per atom.
    """

    atoms: Atoms
    displacement: Array
    site_displacement: Array
    site_map: SiteMap
    warnings: tuple[str, ...]
    timings: Mapping[str, float]
    model: str
    expected_error: Array | None = None
    judgement: Judgement = field(default_factory=Judgement)
    method: Method = "network"
    calculation: Calculation | None = None
    properties: Mapping[str, PropertyValue] = field(default_factory=dict)
    chemical_potentials: Mapping[str, float] = field(default_factory=dict)

    @property
    def trust(self) -> Trust:
        """``inside``, ``near`` or ``outside`` the training data; see :data:`~ase_definet.relaxation.domain.TRUST`."""
        return self.judgement.trust

    @property
    def outside(self) -> tuple[str, ...]:
        """The respects in which the structure lies outside the training data, one word each."""
        return self.judgement.outside

    @property
    def unsupported(self) -> tuple[str, ...]:
        """The respects among :attr:`outside` in which nothing supports an expected error."""
        return self.judgement.unsupported

    @cached_property
    def atom_trust(self) -> Array:
        """Trust of every atom in the caller's order, as a place in ``domain.TRUST``, shape ``(n_atoms,)``."""
        return by_atom(self.site_map, self.judgement.of_sites(self.site_map), TRUST.index("outside"))

    @property
    def kinds(self) -> Array:
        """:class:`~ase_definet.matching.site_kind.SiteKind` of every host site, shape ``(n_sites,)``."""
        return self.site_map.kinds

    @property
    def strain(self) -> Array:
        """Principal strains of the host onto the cell, shape ``(3,)``."""
        return self.site_map.strain

    @property
    def structure(self) -> Any:
        """The relaxed structure as a pymatgen Structure, sites in the caller's order, in Å; the charge stays."""
        return as_structure(self.atoms)

    @property
    def unrelaxed(self) -> Atoms:
        """The structure that was given, its atoms on the host's ideal sites; atoms on no site stay."""
        given = self.atoms.copy()
        given.positions -= self.displacement
        still = beside_extra_atoms(self.site_map, np.zeros((len(self.site_map.kinds), 3)))
        out = displaced(given, self.site_map, still)
        forget_earlier(out)
        return out


@dataclass(frozen=True)
class RelaxFailure:
    """The record of a structure that could not be relaxed.

    Attributes:
        index: Its position in the input.
        error: What went wrong.
    """

    index: int
    error: Exception


def forget_earlier(atoms: Atoms) -> None:
    """Remove what an earlier prediction left in ``info`` and ``arrays``."""
    for values in (atoms.info, atoms.arrays):
        for name in [key for key in values if str(key).startswith("definet_")]:
            del values[name]
