"""Time and memory of one training step, in a process of its own: ``python -m research.benchmarks.training KIND BATCH``.

Kinds: ``default`` as it is trained, its messages products on the lattice; ``default by edges``, the same network and the
same numbers by a sum over edges; ``published`` at the published size, and ``transcription``, that as its equations stand.
"""

import json
import re
import statistics
import sys
import time
from pathlib import Path

import torch
from torch import Tensor

from ase_definet.matching.site_map import match_sites
from ase_definet.model.config import DefiNetConfig, SiteNetworkConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.graph import batch_graphs
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.inputs import lattice_of, sites_of
from ase_definet.relaxation.lattices import build_lattice
from research.benchmarks.cells import mos2
from research.benchmarks.transcription import Transcription

KINDS = ("default", "default by edges", "published", "transcription")
REPEATS = 5
MILLI = 1e3


def forward_of(kind: str, batch: int) -> tuple[torch.nn.Module, list[Tensor]]:
    """Return a network, and a function that predicts the displacements of a batch."""
    torch.manual_seed(0)
    maps = [match_sites(mos2(8, seed), "MoS2") for seed in range(batch)]
    if kind in {"default", "default by edges"}:
        config = SiteNetworkConfig(short_range_cutoff=4.5, dropout=0.1)
        net = SiteNetwork(config)
        if kind == "default":
            lattice = build_lattice(lattice_of(maps[0].sites), config.cutoff)
            numbers = torch.stack([torch.as_tensor(m.numbers) for m in maps], 1)
            kinds = torch.stack([torch.as_tensor(m.kinds) for m in maps], 1)
            host = torch.as_tensor(maps[0].host_numbers)
            return net, lambda: net(lattice, numbers, host, kinds)
        graph = batch_graphs([sites_of(m).graph(config.cutoff) for m in maps])
        return net, lambda: net.predict(graph).displacement
    published = DefiNetConfig()
    graph = batch_graphs([sites_of(m).graph(published.cutoff, published.max_neighbors) for m in maps])
    net = DefiNet(published)
    if kind == "published":
        return net, lambda: net(graph)
    plain = Transcription(dict(net.named_parameters()), published)
    return net, lambda: plain(graph)


def main() -> None:
    """Measure one kind."""
    kind, batch = sys.argv[1], int(sys.argv[2])
    net, forward = forward_of(kind, batch)
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-5)
    times = []
    for _ in range(REPEATS + 1):
        began = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        forward().square().mean().backward()
        optimizer.step()
        times.append(time.perf_counter() - began)
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())  # ru_maxrss would be the parent's
    peak = int(found[1]) / 1024 if found else float("nan")
    print(json.dumps({"kind": kind, "batch": batch, "ms": MILLI * statistics.median(times[1:]), "peak_MB": peak}))


if __name__ == "__main__":
    main()
