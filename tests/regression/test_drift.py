"""Committed tiny checkpoints give the displacements they gave when they were committed.

``python -m tests.regression.test_drift`` writes checkpoints and expectations anew; do that only for a change of the
networks that is meant to change results, and say so in the changelog.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.matching.site_map import match_sites
from ase_definet.model.config import DefiNetConfig, SiteNetworkConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.inputs import sites_of
from tests.conftest import mos2_with_defects

HERE = Path(__file__).parent
DRIFT = 1e-6
"""Å; the displacements are of order 0.1 Å, in float32."""
NETWORKS = {
    "site": lambda: SiteNetwork(SiteNetworkConfig(cutoff=5.0, features=8, layers=2, n_radial=6, embedding=4)),
    "definet": lambda: DefiNet(DefiNetConfig(features=8, layers=2, n_radial=16)),
}


def displacements(path: Path) -> np.ndarray:
    loaded = load_checkpoint(path)
    site_map = match_sites(mos2_with_defects(4), "MoS2")
    graph = sites_of(site_map).graph(loaded.config.cutoff, getattr(loaded.config, "max_neighbors", None))
    with torch.inference_mode():
        out = loaded.model.predict(graph).displacement.numpy()
    result = np.zeros((len(site_map.kinds), 3))
    occupied = site_map.atom_index >= 0
    result[site_map.atom_index[occupied]] = out[occupied]
    return result[: occupied.sum()]


@pytest.mark.parametrize("name", NETWORKS)
def test_outputs_do_not_drift(name):
    expected = np.load(HERE / f"{name}.npy")
    assert 0.01 < np.abs(expected).max() < 1
    assert np.abs(displacements(HERE / f"{name}.safetensors") - expected).max() < DRIFT


if __name__ == "__main__":
    for name, build in NETWORKS.items():
        torch.manual_seed(0)
        network = build()
        target = HERE / f"{name}.safetensors"
        for unscaled in (True, False):
            scale = 1.0 if unscaled else 0.1 / np.abs(displacements(target)).max()
            last = network.read_out.weight if name == "site" else None
            with torch.no_grad():
                if last is not None:
                    last.mul_(scale)
                else:
                    for layer in network.coord_update_layers:
                        layer.lin_vec2coord.weight.mul_(scale)
                        layer.coord_mlp[2].weight.mul_(scale)
                        layer.coord_mlp[2].bias.mul_(scale)
            save_checkpoint(target, network, {"name": f"tiny {name}, untrained, for a test"}, overwrite=True)
        np.save(HERE / f"{name}.npy", displacements(target))
