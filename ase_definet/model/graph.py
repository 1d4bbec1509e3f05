"""The graph of a defective supercell: host sites as nodes, periodic images within a cutoff as edges.

Nodes are in host order and a vacancy is an ordinary node. Edges follow PyG: ``edge_index[0]`` sends,
``edge_index[1]`` receives. Cell vectors are rows, and the edge ``j -> i`` of shift ``S`` spans
``r_j + S @ cell - r_i``.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ase_definet.errors import StructureError
from ase_definet.matching.site_kind import SiteKind
from ase_definet.model.edge_convolution import EdgeGeometry, Geometry
from ase_definet.model.working_set import WorkingSet
from ase_definet.structures.neighbors import neighbor_list
from ase_definet.structures.state import N_CODES

if TYPE_CHECKING:
    from torch_geometric.data import Data

PRISTINE, SUBSTITUTION, VACANCY = (int(k) for k in (SiteKind.PRISTINE, SiteKind.SUBSTITUTION, SiteKind.VACANCY))
"""The values of ``DefectGraph.kinds``."""

SHORTEST_EDGE = 0.1
"""Sites closer than this are rejected, in Å."""

_NAMES = ("numbers", "host_numbers", "kinds", "pos", "cell", "edge_index", "cell_shift")
_INTEGERS = ("numbers", "host_numbers", "kinds", "edge_index", "cell_shift", "state")


@dataclass(frozen=True, eq=False)
class Prediction:
    """Predictions for a batch, one structure after the other.

    Attributes:
        displacement: Of every site, shape ``(n_sites, 3)``, in Å, in the frames of the structures.
        expected_error: Expected length of the error of each, shape ``(n_sites,)``, in Å; None if the weights have
            no error estimate.
    """

    displacement: Tensor
    expected_error: Tensor | None


class OccupiedSites(NamedTuple):
    """Input of networks on a geometry: the arguments of :meth:`SiteNetwork.estimate`, in their order."""

    geometry: Geometry
    numbers: Tensor
    host_numbers: Tensor
    kinds: Tensor
    state: Tensor | None


@dataclass(frozen=True, eq=False, kw_only=True)
class DefectGraph:
    """One structure, or after :func:`batch_graphs` several, as a graph; build it with :func:`build_graph`.

    It is also the batch of networks that require explicit edges (:mod:`ase_definet.model.protocol`). :meth:`to_data`
    converts it to torch-geometric, which is imported only then because that takes longer than relaxing a structure.

    Attributes:
        numbers: Atomic number on each site, 0 where empty, shape ``(n_sites,)``.
        host_numbers: Atomic number of the host there, shape ``(n_sites,)``.
        kinds: Kind of each site: 0 pristine, 1 substitution, 2 vacancy, shape ``(n_sites,)``.
        pos: Unrelaxed sites, shape ``(n_sites, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(n_structures, 3, 3)``, in Å.
        edge_index: Source and target of each edge, shape ``(2, n_edges)``.
        cell_shift: Image of the source, in cell vectors, integers of shape ``(n_edges, 3)``.
        batch: Structure of each site where there are several, shape ``(n_sites,)``, else None.
        state: Codes of each structure's state (:mod:`ase_definet.structures.state`), shape ``(n_structures, 4)``;
            None where nothing is known of it.
    """

    numbers: Tensor
    host_numbers: Tensor
    kinds: Tensor
    pos: Tensor
    cell: Tensor
    edge_index: Tensor
    cell_shift: Tensor
    batch: Tensor | None = None
    state: Tensor | None = None

    @property
    def num_nodes(self) -> int:
        """Number of sites, empty ones included."""
        return len(self.pos)

    @property
    def num_edges(self) -> int:
        """Number of directed edges."""
        return self.edge_index.shape[1]

    @property
    def n_structures(self) -> int:
        """Number of structures in this graph."""
        return len(self.cell)

    @property
    def structure(self) -> Tensor:
        """Index of the structure each site belongs to, shape ``(n_sites,)``."""
        return torch.zeros_like(self.numbers) if self.batch is None else self.batch

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: value for name, value in values.items() if value is not None}

    def to(self, device: torch.device | str) -> DefectGraph:
        """Return the graph, moved to a device."""
        return DefectGraph(**{name: value.to(device) for name, value in self.tensors().items()})

    def to_data(self) -> Data:
        """Return a torch-geometric ``Data`` of the same tensors, ready for its loaders and ``Batch``."""
        with warnings.catch_warnings():  # importing PyG compiles with torch.jit, which torch deprecates
            warnings.simplefilter("ignore", DeprecationWarning)
            from torch_geometric.data import Data  # noqa: PLC0415
        return Data(num_nodes=self.num_nodes, **self.tensors())

    @property
    def key(self) -> Hashable:
        """Structures must have equal keys to share a batch; any two with explicit edges do."""
        return "graph"

    def occupied(self, working_set: WorkingSet | None = None) -> OccupiedSites:
        """Return the input of a network on a geometry, with a batch dimension of one.

        Args:
            working_set: How much to process at a time; by default chosen for the device.
        """
        geometry = EdgeGeometry(
            self.edge_index,
            self.edge_vectors(),
            self.host_numbers,
            self.structure,
            self.n_structures,
            working_set=working_set,
        )
        state = None if self.state is None else self.state[:, None]
        return OccupiedSites(geometry, self.numbers[:, None], self.host_numbers, self.kinds[:, None], state)

    def prediction(self, moved: Tensor, error: Tensor | None) -> Prediction:
        """Return the output of a network for all sites, one structure after the other.

        Args:
            moved: Displacements, shape ``(n_sites, 1, 3)``, in Å.
            error: Their expected errors, shape ``(n_sites, 1)``, in Å.
        """
        return Prediction(moved[:, 0], None if error is None else error[:, 0])

    def other_occupations(self, numbers: Tensor, kinds: Tensor, state: Tensor | None = None) -> DefectGraph:
        """Return a batch of other structures on the sites of this one.

        Args:
            numbers: Atomic number on each site, shape ``(n_sites, batch)``.
            kinds: Kind of each site, shape ``(n_sites, batch)``.
            state: Codes of the structures' states, shape ``(1, batch, 4)``.
        """
        n, batch = numbers.shape
        count = torch.arange(batch, device=numbers.device)
        offset = (count * n)[:, None]
        return DefectGraph(
            numbers=numbers.T.reshape(-1),
            host_numbers=self.host_numbers.repeat(batch),
            kinds=kinds.T.reshape(-1),
            pos=self.pos.repeat(batch, 1),
            cell=self.cell.repeat(batch, 1, 1),
            edge_index=torch.stack([(part + offset).reshape(-1) for part in self.edge_index]),
            cell_shift=self.cell_shift.repeat(batch, 1),
            batch=count.repeat_interleave(n),
            state=None if state is None else state[0],
        )

    def by_site(self, values: Tensor) -> Tensor:
        """Return the output for structures with equal numbers of sites, shape ``(n_sites, n_structures, ...)``.

        Args:
            values: Shape ``(n_structures * n_sites, 1, ...)``.
        """
        return values.view(self.n_structures, -1, *values.shape[2:]).transpose(0, 1)

    def edge_vectors(self) -> Tensor:
        """Return the vector of each edge, from the target to the image of the source, ``(n_edges, 3)``, in Å."""
        source, target = self.edge_index
        cell = self.cell[self.structure[target]]
        shift = torch.einsum("ei,eij->ej", self.cell_shift.to(cell.dtype), cell)
        return self.pos[source] + shift - self.pos[target]

    def validate(self) -> None:
        """Check the invariants of a graph.

        Raises:
            StructureError: A tensor has the wrong shape, type or values, kinds contradict the atomic numbers,
                an edge leaves its structure, or two sites overlap.
        """
        self._check_shapes()
        self._check_sites()
        self._check_edges()

    def _check_shapes(self) -> None:
        n_sites, n_edges, n_structures = len(self.pos), self.edge_index.shape[-1], len(self.cell)
        if n_sites == 0:
            raise StructureError("a DefectGraph needs at least one site, found none")
        shapes = {
            "numbers": (n_sites,),
            "host_numbers": (n_sites,),
            "kinds": (n_sites,),
            "pos": (n_sites, 3),
            "cell": (n_structures, 3, 3),
            "edge_index": (2, n_edges),
            "cell_shift": (n_edges, 3),
        }
        if self.state is not None:
            shapes["state"] = (n_structures, len(N_CODES))
        for name, shape in shapes.items():
            value: Tensor = getattr(self, name)
            if tuple(value.shape) != shape:
                raise StructureError(f"{name} must have shape {shape}, found {tuple(value.shape)}")
            if name in _INTEGERS and value.dtype != torch.int64:
                raise StructureError(f"{name} must hold int64, found {value.dtype}")
            if name not in _INTEGERS and not (value.is_floating_point() and bool(value.isfinite().all())):
                raise StructureError(f"{name} must hold finite floating-point numbers")

    def _check_sites(self) -> None:
        structure = self.structure
        seen = torch.unique_consecutive(structure)
        if not torch.equal(seen, torch.arange(self.n_structures, device=seen.device)):
            raise StructureError(
                f"expected the sites of {self.n_structures} structure(s), one for each cell and in that order,"
                f" found {seen.tolist()}; use batch_graphs"
            )
        if bool((self.host_numbers < 1).any()) or bool((self.numbers < 0).any()):
            raise StructureError("atomic numbers start at 1, and only `numbers` may hold 0, on an empty site")
        empty = self.numbers == 0
        wrong = (empty != (self.kinds == VACANCY)) | ((self.kinds == PRISTINE) & (self.numbers != self.host_numbers))
        wrong |= (self.kinds < PRISTINE) | (self.kinds > VACANCY)
        if bool(wrong.any()):
            site = int(torch.nonzero(wrong)[0])
            raise StructureError(
                f"site {site} of host element {int(self.host_numbers[site])} holds {int(self.numbers[site])}, which"
                f" contradicts its kind {int(self.kinds[site])} ({int(wrong.sum())} such site(s))"
            )

    def _check_edges(self) -> None:
        if self.edge_index.numel() == 0:
            return
        if int(self.edge_index.min()) < 0 or int(self.edge_index.max()) >= len(self.pos):
            raise StructureError(f"edge_index must name sites 0 to {len(self.pos) - 1}")
        ends = self.structure[self.edge_index]
        if not torch.equal(ends[0], ends[1]):
            raise StructureError("an edge joins two structures of a batch; use batch_graphs")
        length = self.edge_vectors().norm(dim=1)
        if float(length.min()) < SHORTEST_EDGE:
            source, target = self.edge_index[:, length.argmin()].tolist()
            raise StructureError(
                f"sites {target} and {source} are {float(length.min()):.3g} Å apart, expected at least"
                f" {SHORTEST_EDGE} Å; remove the duplicate or check the cell"
            )


def build_graph(
    positions: npt.ArrayLike,
    cell: npt.ArrayLike,
    pbc: Sequence[bool],
    *,
    numbers: npt.ArrayLike,
    host_numbers: npt.ArrayLike,
    kinds: npt.ArrayLike,
    cutoff: float,
    max_neighbors: int | None = None,
    state: npt.ArrayLike | None = None,
    dtype: torch.dtype = torch.float32,
) -> DefectGraph:
    """Build the graph of one unrelaxed structure, including its vacancies.

    Args:
        positions: Sites, shape ``(n_sites, 3)``, in Å.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic.
        numbers: Atomic number on each site, 0 where empty, shape ``(n_sites,)``.
        host_numbers: Atomic number of the host there, shape ``(n_sites,)``.
        kinds: Kind of each site: 0 pristine, 1 substitution, 2 vacancy, shape ``(n_sites,)``.
        cutoff: Longest edge, in Å.
        max_neighbors: Keep at most this many neighbours per site, in whole shells.
        state: Codes of the structure's state (:mod:`ase_definet.structures.state`), shape ``(4,)``.
        dtype: Precision of positions and cell. Edges are always found in double precision.

    Returns:
        The graph, validated.

    Raises:
        StructureError: The arrays do not describe a structure.

    Examples:
        A hydrogen chain with one hydrogen missing:

        >>> import numpy as np
        >>> sites = [[0, 0, 0], [1, 0, 0], [2, 0, 0]]
        >>> cell, pbc = np.diag([3, 9, 9]), (True, False, False)
        >>> graph = build_graph(
        ...     sites, cell, pbc, numbers=[1, 1, 0], host_numbers=[1, 1, 1], kinds=[0, 0, 2], cutoff=1.5
        ... )
        >>> graph.num_nodes, graph.num_edges
        (3, 6)
    """
    sites, rows = np.asarray(positions, dtype=float), np.asarray(cell, dtype=float)
    periodic = np.asarray(pbc, dtype=bool)
    if sites.ndim != 2 or sites.shape[1] != 3:  # noqa: PLR2004
        raise StructureError(f"positions must have shape (n_sites, 3), found {sites.shape}")
    if rows.shape != (3, 3) or periodic.shape != (3,):
        raise StructureError(f"expected a (3, 3) cell and 3 pbc flags, found {rows.shape} and {periodic.shape}")
    if not (np.isfinite(sites).all() and np.isfinite(rows).all()):
        raise StructureError("positions and cell must be finite")
    if periodic.any() and np.linalg.matrix_rank(rows[periodic]) < periodic.sum():
        raise StructureError("the periodic cell vectors must be linearly independent; check cell and pbc")
    a, b, c = periodic.tolist()
    target, source, shift, _ = neighbor_list(sites, rows, (a, b, c), cutoff, max_neighbors)
    graph = DefectGraph(
        numbers=_integers("numbers", numbers),
        host_numbers=_integers("host_numbers", host_numbers),
        kinds=_integers("kinds", kinds),
        pos=torch.as_tensor(sites, dtype=dtype),
        cell=torch.as_tensor(rows, dtype=dtype)[None],
        edge_index=torch.from_numpy(np.stack([source, target])),
        cell_shift=torch.from_numpy(np.ascontiguousarray(shift)),
        state=None if state is None else _integers("state", state)[None],
    )
    graph.validate()
    return graph


def batch_graphs(graphs: Sequence[DefectGraph]) -> DefectGraph:
    """Join several structures into one graph; ``structure`` gives the structure of each site.

    Args:
        graphs: The structures, at least one.

    Returns:
        The joined graph, as torch-geometric's ``Batch`` makes it; a single graph comes back as it is.

    Raises:
        StructureError: There is nothing to join.
    """
    if not graphs:
        raise StructureError("batch_graphs needs at least one graph, found none")
    if len(graphs) == 1:
        return graphs[0]
    data = [graph.to_data() for graph in graphs]
    from torch_geometric.data import Batch  # noqa: PLC0415 - to_data has imported it

    joined = Batch.from_data_list(data)
    return DefectGraph(**{name: joined[name] for name in _NAMES}, batch=joined.batch, state=joined.get("state"))


def _integers(name: str, values: npt.ArrayLike) -> Tensor:
    """Take an array of whole numbers over as int64, refusing to round."""
    array = np.asarray(values)
    whole = array.astype(np.int64)
    if not np.array_equal(whole, array):
        raise StructureError(f"{name} must be whole numbers")
    return torch.from_numpy(np.array(whole))
