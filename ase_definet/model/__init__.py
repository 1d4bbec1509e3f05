"""The networks and the one call that runs them on a graph."""

from __future__ import annotations

from torch import Tensor, nn

from ase_definet.graph import DefectGraph
from ase_definet.model.geometry import EdgeGeometry
from ase_definet.model.site_network import SiteNetwork


def predict_displacements(network: nn.Module, graph: DefectGraph) -> Tensor:
    """Run either network on one graph or a batch of graphs.

    Args:
        network: A :class:`SiteNetwork` or a :class:`~ase_definet.model.definet.DefiNet`.
        graph: A graph, or a batch made by torch-geometric.

    Returns:
        Displacement of every site, shape ``(n_sites, 3)``, in Å.
    """
    if isinstance(network, SiteNetwork):
        geometry = EdgeGeometry(
            graph.edge_index,
            graph.edge_vectors(),
            graph.host_numbers,
            graph.structure,
            graph.n_structures,
        )
        out: Tensor = network(geometry, graph.numbers[:, None], graph.host_numbers, graph.kinds[:, None])[:, 0]
        return out
    displacement: Tensor = network(graph)
    return displacement
