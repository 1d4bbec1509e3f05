"""The networks and the one call that runs them on a graph."""

from __future__ import annotations

from torch import Tensor, nn

from ase_definet.model.edge_convolution import EdgeGeometry
from ase_definet.model.graph import DefectGraph
from ase_definet.model.host_routing import HostRoutedModel
from ase_definet.model.site_network import SiteNetwork
from ase_definet.model.working_set import WorkingSet


def predict_displacements(network: nn.Module, graph: DefectGraph) -> Tensor:
    """Run any network on one graph or a batch of graphs.

    Args:
        network: A :class:`SiteNetwork`, an :class:`~ase_definet.model.host_routing.HostRoutedModel` or a
            :class:`~ase_definet.model.definet.DefiNet`.
        graph: A graph, or a batch made by torch-geometric.

    Returns:
        Displacement of every site, shape ``(n_sites, 3)``, in Å.
    """
    return predict(network, graph)[0]


def predict(
    network: nn.Module, graph: DefectGraph, working_set: WorkingSet | None = None
) -> tuple[Tensor, Tensor | None]:
    """Run any network on one graph or a batch of graphs, and ask it how sure it is.

    Args:
        network: A :class:`SiteNetwork`, an :class:`~ase_definet.model.host_routing.HostRoutedModel` or a
            :class:`~ase_definet.model.definet.DefiNet`.
        graph: A graph, or a batch made by torch-geometric.
        working_set: How much to do at a time; by default what suits the graph's device.

    Returns:
        Displacement of every site, shape ``(n_sites, 3)``, and the expected length of its error, shape
        ``(n_sites,)``, in Å; None where the weights have no such estimate.
    """
    if isinstance(network, SiteNetwork | HostRoutedModel):
        geometry = EdgeGeometry(
            graph.edge_index,
            graph.edge_vectors(),
            graph.host_numbers,
            graph.structure,
            graph.n_structures,
            working_set=working_set,
        )
        state = None if graph.state is None else graph.state[:, None]
        moved, error = network.estimate(
            geometry, graph.numbers[:, None], graph.host_numbers, graph.kinds[:, None], state
        )
        return moved[:, 0], None if error is None else error[:, 0]
    displacement: Tensor = network(graph, working_set)
    return displacement, None
