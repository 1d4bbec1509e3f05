"""A jobflow Maker that puts the prediction ahead of a DFT relaxation: ``pip install 'ase-definet[workflows]'``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ase_definet.errors import DefiNetError
from ase_definet.matching.library import get_host
from ase_definet.relaxation.relaxer import DefiNetRelaxer, like
from ase_definet.structures.conversion import as_structure

try:
    from jobflow import Maker, job
except ImportError as error:
    raise DefiNetError("workflows need jobflow: pip install 'ase-definet[workflows]'") from error


@dataclass
class DefiNetRelaxMaker(Maker):
    """Make jobs that relax a defect structure in one pass.

    Attributes:
        name: Name of the jobs.
        model: Bundled weights by name, or a file that the worker can read.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``, on the worker.
        strict: Whether any warning about a result fails the job.
        extrapolate: Whether the network's answer is taken also where it is not expected to beat the ideal sites.
        max_strain: Largest principal strain of the host onto the cell of a structure.
        calculator: Name of the calculator that relaxes what the network does not know, None for none.
        calculator_settings: Its settings.
        refine: Whether the calculator also goes on from the network's answers.
        properties: Weights for formation energy, gap and magnetic moment; None not to predict any.
        chemical_potentials: Those that formation energies are given for: ``{"S": -4.5}`` in eV per atom, or
            ``["rich:S"]``.

    Examples:
        Ahead of a relaxation in atomate2, with the input set made for a start close to the minimum::

            from ase_definet.dft.vasp import DefiNetRelaxSet

            first = DefiNetRelaxMaker().make(structure, host="MoS2")
            then = RelaxMaker(input_set_generator=DefiNetRelaxSet()).make(first.output["structure"])
            flow = Flow([first, then])
    """

    name: str = "DefiNet relax"
    model: str = "default"
    device: str = "auto"
    strict: bool = False
    extrapolate: bool = False
    max_strain: float = 0.06
    calculator: str | None = None
    calculator_settings: dict[str, Any] | None = None
    refine: bool = False
    properties: str | None = "default"
    chemical_potentials: dict[str, float] | list[str] | None = None

    def make(self, structure: Any, host: Any) -> Any:
        """Make the job that relaxes one structure.

        Args:
            structure: A pymatgen Structure, an Atoms, or what another job will return.
            host: Its host: a library name, a Structure, an Atoms, a file that the worker can read, or ``"auto"``.

        Returns:
            A job. Its output is a dict: ``structure``, relaxed, a pymatgen Structure in the order given;
            ``displacement``, shape ``(n_atoms, 3)``, and ``expected_error``, shape ``(n_atoms,)``, in Å; ``host``,
            ``supercell``, ``defects``, ``trust``, ``method``, ``calculation`` (what the calculator did, or None),
            ``outside``, ``warnings`` and ``model``; and ``properties`` by name, each a dict with ``value``, ``unit``,
            ``expected_error``, ``trust`` and ``reasons``.

        Raises:
            HostError: The host is a name or a file that is neither in the library nor here.
        """
        if isinstance(host, str) and host.lower() != "auto" and not Path(host).is_absolute():
            get_host(host)
        return self.run(_sendable(structure), _sendable(host))

    @job  # type: ignore[untyped-decorator]
    def run(self, structure: Any, host: Any) -> dict[str, Any]:
        """Relax one structure, on the worker; see :meth:`make`."""
        relaxer = DefiNetRelaxer(
            self.model,
            host=host,
            device=self.device,
            strict=self.strict,
            extrapolate=self.extrapolate,
            max_strain=self.max_strain,
            calculator=self.calculator,
            calculator_settings=self.calculator_settings,
            refine=self.refine,
            properties=self.properties,
            chemical_potentials=self.chemical_potentials,
        )
        result = relaxer.predict(structure)
        return {
            "structure": like(structure, result.atoms),
            "displacement": result.displacement.tolist(),
            "expected_error": None if result.expected_error is None else result.expected_error.tolist(),
            "host": result.site_map.host.name,
            "supercell": result.site_map.supercell_name,
            "defects": dict(result.site_map.defect_counts),
            "trust": result.trust,
            "method": result.method,
            "calculation": None if result.calculation is None else asdict(result.calculation),
            "outside": list(result.outside),
            "warnings": list(result.warnings),
            "model": result.model,
            "properties": {name: asdict(one) for name, one in result.properties.items()},
        }


def _sendable(structure: Any) -> Any:
    """Return what jobflow can serialise: a Structure for an Atoms, anything else unchanged."""
    return as_structure(structure) if hasattr(structure, "get_positions") else structure
