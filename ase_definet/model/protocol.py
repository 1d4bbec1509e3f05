"""Interface of all networks: prepare the sites of a structure, collate several, predict their displacements.

Each stage passes a frozen value to the next::

    Sites --prepare--> OnLattice or DefectGraph --collate--> LatticeBatch or DefectGraph --predict--> Prediction

Only :func:`prepare` decides whether a structure is processed on the lattice of its host or with explicit edges,
depending on the network and on the sites.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, NamedTuple, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ase_definet.model.config import Coverage, GeometryNeeds, NetworkConfig
from ase_definet.model.graph import DefectGraph, OccupiedSites, Prediction, batch_graphs, build_graph
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.model.working_set import WorkingSet

Array: TypeAlias = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Lattice:
    """A perfect supercell of a host, in the host's own frame; sites are ordered cell by cell.

    Attributes:
        numbers: Atomic numbers of the primitive cell, shape ``(n_basis,)``.
        positions: Positions in it, shape ``(n_basis, 3)``, in Å.
        cell: Its vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic; of a layer all but the last.
        supercell: Integer matrix, rows in the primitive vectors, shape ``(3, 3)``.
    """

    numbers: Array
    positions: Array
    cell: Array
    pbc: tuple[bool, bool, bool]
    supercell: Array

    @cached_property
    def key(self) -> tuple[Hashable, ...]:
        """Identifier of the lattice; lattices equal to within 1e-5 Å have equal keys."""
        plane = self.cell if self.pbc[2] else self.cell[:2]
        rounded = (np.round(part, 5) + 0.0 for part in (plane, self.positions))
        arrays = (*rounded, self.numbers, self.supercell)
        return (*(part.tobytes() for part in arrays), self.pbc)


LatticeSource: TypeAlias = Callable[[Lattice], LatticeGeometry]
"""Returns the geometry of a lattice, with the cutoff, precision and device of the network."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Sites:
    """The complete input of a network: the sites of one structure.

    Attributes:
        positions: Where the atoms start, shape ``(n_sites, 3)``, in Å; the site itself where it is empty.
        cell: Cell vectors as rows, shape ``(3, 3)``, in Å.
        pbc: Which of them are periodic.
        numbers: Atomic number on each site, 0 where empty, shape ``(n_sites,)``.
        host_numbers: Atomic number of the host there, shape ``(n_sites,)``.
        kinds: Kind of each site (0 pristine, 1 substitution, 2 vacancy), shape ``(n_sites,)``.
        state: Codes of the structure's state (:mod:`ase_definet.structures.state`); None if unknown.
        lattice: The perfect supercell formed by the sites; None if atoms start elsewhere.
        rotation: Rotation of the frame of the lattice into that of the structure, shape ``(3, 3)``, for column
            vectors; the identity by default.
    """

    positions: Array
    cell: Array
    pbc: tuple[bool, bool, bool]
    numbers: Array
    host_numbers: Array
    kinds: Array
    state: tuple[int, ...] | None = None
    lattice: Lattice | None = None
    rotation: Array | None = None

    def graph(
        self, cutoff: float, max_neighbors: int | None = None, dtype: torch.dtype = torch.float32
    ) -> DefectGraph:
        """Return the sites with explicit edges.

        Args:
            cutoff: Longest edge, in Å.
            max_neighbors: Most neighbours of a site, in whole shells; None for no limit.
            dtype: Precision of positions and cell.
        """
        return build_graph(
            self.positions,
            self.cell,
            self.pbc,
            numbers=self.numbers,
            host_numbers=self.host_numbers,
            kinds=self.kinds,
            cutoff=cutoff,
            max_neighbors=max_neighbors,
            state=self.state,
            dtype=dtype,
        )


@dataclass(frozen=True, eq=False)
class OnLattice:
    """One structure, prepared for the lattice of its host."""

    sites: Sites
    lattice: Lattice

    @property
    def key(self) -> Hashable:
        """Structures must have equal keys to share a batch."""
        return self.lattice.key


@dataclass(frozen=True, eq=False)
class Routed:
    """One structure, prepared for one of several networks.

    Attributes:
        place: Index of the network.
        inner: The structure as prepared for that network.
    """

    place: int
    inner: OnLattice | DefectGraph

    @property
    def key(self) -> Hashable:
        """Structures must have equal keys to share a batch."""
        return self.place, self.inner.key


Prepared: TypeAlias = OnLattice | DefectGraph | Routed


def sent(values: Tensor, device: torch.device | str) -> Tensor:
    """Return values on a device; a GPU copies them from pinned memory, and nobody waits for it."""
    if torch.device(device).type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


@dataclass(frozen=True, eq=False, kw_only=True)
class LatticeBatch:
    """Structures on one lattice, ready for a network.

    Attributes:
        geometry: The lattice.
        numbers: Atomic number on each site, 0 where empty, shape ``(n_sites, batch)``.
        host_numbers: Atomic number of the host there, shape ``(n_sites,)``.
        kinds: Kind of each site, shape ``(n_sites, batch)``.
        state: Codes of each structure's state, shape ``(1, batch, 4)``; None if all are unknown.
        rotation: Of the lattice's frame into that of each structure, shape ``(batch, 3, 3)``, in double precision.
    """

    geometry: LatticeGeometry
    numbers: Tensor
    host_numbers: Tensor
    kinds: Tensor
    state: Tensor | None
    rotation: Tensor

    def occupied(self, working_set: WorkingSet | None = None) -> OccupiedSites:  # noqa: ARG002 - the geometry has its own
        """Return the input of a network on a geometry."""
        return OccupiedSites(self.geometry, self.numbers, self.host_numbers, self.kinds, self.state)

    def prediction(self, moved: Tensor, error: Tensor | None) -> Prediction:
        """Rotate the output of a network into the frames of the structures, concatenated.

        Args:
            moved: Displacements, shape ``(n_sites, batch, 3)``, in Å.
            error: Their expected errors, shape ``(n_sites, batch)``, in Å.
        """
        turned = moved.double().transpose(0, 1) @ self.rotation.transpose(1, 2)
        return Prediction(turned.reshape(-1, 3), None if error is None else error.T.reshape(-1))

    def other_occupations(self, numbers: Tensor, kinds: Tensor, state: Tensor | None = None) -> LatticeBatch:
        """Return a batch of other structures on the same sites; see :meth:`DefectGraph.other_occupations`."""
        return LatticeBatch(
            geometry=self.geometry,
            numbers=numbers,
            host_numbers=self.host_numbers,
            kinds=kinds,
            state=state,
            rotation=self.rotation[:1].expand(numbers.shape[1], 3, 3),
        )

    def by_site(self, values: Tensor) -> Tensor:
        """Return the output of a network per site, shape ``(n_sites, batch, ...)``, unchanged."""
        return values

    def to(self, device: torch.device | str) -> LatticeBatch:
        """Return the batch on a device, where its geometry already is."""
        return LatticeBatch(
            geometry=self.geometry,
            numbers=sent(self.numbers, device),
            host_numbers=sent(self.host_numbers, device),
            kinds=sent(self.kinds, device),
            state=None if self.state is None else sent(self.state, device),
            rotation=sent(self.rotation, device),
        )


@dataclass(frozen=True, eq=False)
class RoutedBatch:
    """Structures for the same one of several networks.

    Attributes:
        place: Index of the network.
        inner: Their batch.
    """

    place: int
    inner: LatticeBatch | DefectGraph

    def prediction(self, moved: Tensor, error: Tensor | None) -> Prediction:
        """Rotate the output of a network into the frames of the structures; see :meth:`LatticeBatch.prediction`."""
        return self.inner.prediction(moved, error)

    def to(self, device: torch.device | str) -> RoutedBatch:
        """Return the batch on a device."""
        return RoutedBatch(self.place, self.inner.to(device))


Batch: TypeAlias = LatticeBatch | DefectGraph


def prepare(sites: Sites, needs: GeometryNeeds, dtype: torch.dtype = torch.float32) -> OnLattice | DefectGraph:
    """Prepare one structure for a network: on its lattice if network and sites allow it, else with edges.

    Args:
        sites: The structure.
        needs: What the network requires of the geometry.
        dtype: Precision of the network.

    Raises:
        StructureError: The sites are invalid.
    """
    lattice = sites.lattice
    if needs.lattice and lattice is not None and LatticeGeometry.suits(torch.as_tensor(lattice.supercell)):
        return OnLattice(sites, lattice)
    return sites.graph(needs.cutoff, needs.max_neighbors, dtype)


def collate(prepared: Sequence[Prepared], lattices: LatticeSource) -> Batch:
    """Collate structures with equal keys, on the CPU.

    Args:
        prepared: At least one result of :func:`prepare`.
        lattices: Returns the geometry of their lattice.

    Raises:
        StructureError: There are no structures.
    """
    on_lattice = [one for one in prepared if isinstance(one, OnLattice)]
    if not on_lattice:
        return batch_graphs([one for one in prepared if isinstance(one, DefectGraph)])
    parts = [one.sites for one in on_lattice]
    states = [part.state for part in parts]
    unknown = (0,) * max(len(state or ()) for state in states)
    return LatticeBatch(
        geometry=lattices(on_lattice[0].lattice),
        numbers=torch.as_tensor(np.stack([part.numbers for part in parts], axis=1)),
        host_numbers=torch.as_tensor(parts[0].host_numbers),
        kinds=torch.as_tensor(np.stack([part.kinds for part in parts], axis=1)),
        state=torch.tensor([[state or unknown for state in states]]) if unknown else None,
        rotation=torch.as_tensor(np.stack([np.eye(3) if p.rotation is None else p.rotation for p in parts])),
    )


class Served(NamedTuple):
    """A single network and the structures it serves.

    Attributes:
        hosts: Elements of its hosts, as ascending atomic numbers; empty for the network of all other hosts.
        network: The network.
        coverage: Which structures on these hosts it serves; None for all.
    """

    hosts: tuple[tuple[int, ...], ...]
    network: DisplacementModel
    coverage: Coverage | None


class DisplacementModel(nn.Module, ABC):
    """A network that maps occupied host sites to displacements.

    A new network implements :meth:`run`, declares the geometry it requires in its config, and is listed in
    :data:`ase_definet.model.architectures.ARCHITECTURES`.

    Attributes:
        config: Its sizes, and the geometry it requires.
        can_fit_error_head: Whether an error estimate can be fitted after training.
        combinable: Whether it can be one of several networks, each for its own hosts.
    """

    config: NetworkConfig
    can_fit_error_head: ClassVar[bool] = False
    combinable: ClassVar[bool] = False

    @abstractmethod
    def run(self, batch: Any, working_set: WorkingSet | None = None) -> tuple[Tensor, Tensor | None]:
        """Run the network on a batch, in the layout and the frame of the batch.

        Args:
            batch: What :meth:`collate` returned.
            working_set: How much to process at a time; by default chosen for the device.

        Returns:
            Displacements, shape ``(n_sites, batch, 3)``, and the expected lengths of their errors, shape
            ``(n_sites, batch)``, in Å; None if the weights have no error estimate. For a graph, whose sites are those
            of all structures, the batch dimension is one.
        """

    @property
    def precision(self) -> torch.dtype:
        """Floating-point type of geometries: that of the weights, but at least single precision."""
        return torch.promote_types(next(self.parameters()).dtype, torch.float32)

    def prepare(self, sites: Sites) -> Prepared:
        """Prepare one structure; see :func:`prepare`."""
        return prepare(sites, self.config.geometry, self.precision)

    def collate(self, prepared: Sequence[Prepared], lattices: LatticeSource) -> Batch | RoutedBatch:
        """Collate prepared structures with equal keys; see :func:`collate`."""
        return collate(prepared, lattices)

    def predict(self, batch: Batch | RoutedBatch, working_set: WorkingSet | None = None) -> Prediction:
        """Predict displacements and expected errors, in the frames of the structures.

        Args:
            batch: What :meth:`collate` returned, on the device of the network.
            working_set: How much to process at a time; by default chosen for the device.
        """
        return batch.prediction(*self.run(batch, working_set))

    def guesses(self, batch: Batch, start: Tensor | None = None) -> list[Tensor]:
        """Return the displacements predicted between layers, if any, and the final prediction last.

        Args:
            batch: What :meth:`collate` returned.
            start: Displacements at which the atoms start, in Å; zero (the host's sites) by default.

        Returns:
            Displacements in the layout of the batch, as returned by :meth:`run`.
        """
        if start is not None:
            raise TypeError(f"the atoms of a {type(self).__name__} start on the host's sites")
        return [self.run(batch)[0]]

    def restrict_states(self, states: Tensor, *, and_before: bool = False) -> None:
        """Treat every charge, multiplicity, functional and excitation absent from the training data as unknown.

        Args:
            states: Codes of all states of the training data, shape ``(n, 4)``.
            and_before: Whether those in the data of earlier training remain known.
        """

    def network_for(self, host_numbers: Tensor) -> DisplacementModel:  # noqa: ARG002 - of several networks, one
        """Return the network that serves one host: itself, unless the model consists of several.

        Args:
            host_numbers: Atomic numbers of the host's sites, any shape.
        """
        return self

    def served_networks(self) -> list[Served]:
        """Return its networks with the elements of their hosts, starting with the one for all other hosts."""
        return [Served((), self, None)]

    def with_features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the displacements, and the features of each site from which their errors are estimated."""
        raise TypeError(f"a {type(self).__name__} has no estimate of its error; found {type(batch).__name__}")
