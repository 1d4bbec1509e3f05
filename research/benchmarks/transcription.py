"""The published network, written down as its equations stand: the reference our fast path is measured against.

Straightforward PyTorch: all edges at once, every intermediate an array over (edges, 3 F), sums by ``index_add``. It takes
the weights of an :class:`ase_definet.model.definet.DefiNet` by name, and gives the same numbers.

Reference: Yang et al., npj Comput. Mater. 11, 229 (2025), Methods.
"""

import math

import torch
from torch import Tensor

from ase_definet.model.config import DefiNetConfig
from ase_definet.model.graph import VACANCY, DefectGraph


class Transcription:
    """Callable on a graph, with the state dict of a DefiNet."""

    def __init__(self, weights: dict[str, Tensor], config: DefiNetConfig) -> None:
        self.weights, self.config = weights, config

    def linear(self, name: str, x: Tensor) -> Tensor:
        """Apply one linear layer."""
        return torch.nn.functional.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def mlp(self, name: str, x: Tensor) -> Tensor:
        """Apply linear, scaled SiLU, linear."""
        return self.linear(f"{name}.2", torch.nn.functional.silu(self.linear(f"{name}.0", x)) / 0.6)

    def activation(self, name: str, vectors: Tensor) -> Tensor:
        """Apply the vector activation."""
        own, consensus = self.linear(f"{name}.lin_vec", vectors), self.linear(f"{name}.lin_gvec", vectors)
        agrees = (own * consensus).sum(1, keepdim=True) >= 0
        return torch.where(agrees, own, (own + consensus) / 2)

    def radial(self, distance: Tensor) -> Tensor:
        """Return all Gaussians of every edge."""
        u = (distance / self.config.radial_range).clamp(max=1)[:, None]
        envelope = 1 - 21 * u**5 + 35 * u**6 - 15 * u**7
        centres = torch.linspace(0, 1, self.config.n_radial)
        return torch.exp(-0.5 * ((u - centres) * (self.config.n_radial - 1)).square()) * envelope

    def __call__(self, graph: DefectGraph) -> Tensor:
        """Return the displacement of every site, shape ``(n_sites, 3)``, in Å."""
        source, target = graph.edge_index
        structure, n = graph.structure, graph.n_structures
        count = torch.bincount(structure, minlength=n).float()
        elements = torch.where(graph.kinds == VACANCY, graph.host_numbers, graph.numbers)
        defect = self.weights["defect_emb.embeddings.weight"][graph.kinds]
        x = self.linear("lin_comb", torch.cat([self.weights["atom_emb.embeddings.weight"][elements], defect], 1))
        width = x.shape[1]
        v = torch.zeros(len(x), 3, width)
        gx = self.weights["vn_emb.weight"].expand(n, -1)
        gv = torch.zeros(n, 3, width)
        moved = torch.zeros(len(x), 3)
        for layer in range(self.config.layers):
            span = graph.edge_vectors() + moved[source] - moved[target]
            distance = span.norm(dim=1)
            direction, radial = -span / distance[:, None], self.radial(distance)
            # 1 hear the global node
            scalar, vector = f"virtual_scalar_layers.{layer}", f"virtual_vector_layers.{layer}"
            x = x + torch.nn.functional.silu(self.mlp(f"{scalar}.mlp_node", torch.cat([x, gx[structure]], 1))) / 0.6
            v = v + self.linear(f"{vector}.mlp_node", v + gv[structure])
            # 2 messages
            name = f"message_passing_layers.{layer}"
            gate, sent = self.linear(f"{name}.defect_proj", defect), self.mlp(f"{name}.x_proj", x)
            message = self.linear(f"{name}.edge_proj", radial) * sent[source] * (gate[source] + gate[target])
            p, q, s = (message / math.sqrt(3)).chunk(3, dim=1)
            pointing = p[:, None] * v[source] + q[:, None] * direction[:, :, None]
            heard = torch.zeros_like(v).index_add_(0, target, pointing) / math.sqrt(width)
            x = (x + torch.zeros_like(x).index_add_(0, target, s)) / math.sqrt(2)
            v = v + self.activation(f"{name}.vec_activation", heard)
            # 3 update
            name = f"message_update_layers.{layer}"
            turned, measured = self.linear(f"{name}.vec_proj", v).chunk(2, dim=2)
            length = (measured.square().sum(1) + 1e-8).sqrt()
            b1, b2, b3 = self.mlp(f"{name}.xvec_proj", torch.cat([x, length], 1)).chunk(3, dim=1)
            x = (x + b2 / math.sqrt(2) + x * torch.tanh(b3)) / math.sqrt(2)
            v = v + self.activation(f"{name}.vec_activation", b1[:, None] * turned)
            # 4 move
            name = f"coord_update_layers.{layer}"
            gate, sent = self.linear(f"{name}.defect_proj", defect), self.mlp(f"{name}.x_proj", x)
            pair = self.linear(f"{name}.edge_proj", radial) * sent[source] * (gate[source] + gate[target])
            push = self.mlp(f"{name}.coord_mlp", pair) * direction
            pushed = torch.zeros_like(moved).index_add_(0, target, push)
            moved = moved + (self.linear(f"{name}.lin_vec2coord", v).squeeze(2) + pushed) / 2
            # 5 tell the global node
            mean_x = torch.zeros(n, width).index_add_(0, structure, x) / count[:, None]
            mean_v = torch.zeros(n, 3, width).index_add_(0, structure, v) / count[:, None, None]
            told = self.mlp(f"{scalar}.mlp_vn", torch.cat([mean_x, gx], 1))
            gx = gx + torch.nn.functional.silu(told) / 0.6
            gv = gv + self.linear(f"{vector}.mlp_vn", mean_v + gv)
        return torch.where((graph.kinds == VACANCY)[:, None], 0.0, moved)
