"""The benchmark's reference and the package's network are the same function."""

from __future__ import annotations

import torch

from ase_definet.matching.site_map import match_sites
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.graph import batch_graphs
from ase_definet.relaxation.inputs import sites_of
from research.benchmarks.transcription import Transcription
from tests.conftest import mos2_with_defects, pristine

FLOAT32 = 1e-5


def test_blocks_chunks_and_the_plain_transcription_agree():
    config = DefiNetConfig(features=32, layers=3, n_radial=64)
    torch.manual_seed(1)
    net = DefiNet(config).eval()
    small = pristine("MoS2", 5)
    del small[[7, 30]]
    maps = [match_sites(atoms, "MoS2") for atoms in (mos2_with_defects(), small)]
    graph = batch_graphs([sites_of(m).graph(config.cutoff, config.max_neighbors) for m in maps])
    with torch.no_grad():
        blocked = net(graph)
        plain = Transcription(net.state_dict(), config)(graph)
    chunked = net(graph).detach()
    assert float(plain.abs().max()) > 0.01
    assert float((blocked - plain).abs().max()) < FLOAT32
    assert float((chunked - plain).abs().max()) < FLOAT32
