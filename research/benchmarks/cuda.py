"""Print the times of batches on a device: ``python -m research.benchmarks.cuda [--device cpu] [--batches 1 8] [--json OUT]``.

Batches of 192 sites, and one structure of 12,288 sites, with the bundled weights and with the published network at its
published size (untrained: times do not depend on weights). Medians after a warm-up, in milliseconds, matching included
and, under ``network``, without it.
"""

import argparse
import json
import platform
import statistics
import tempfile
from pathlib import Path

import torch

from ase_definet import DefiNetRelaxer, RelaxResult
from ase_definet.checkpoints.format import save_checkpoint
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from research.benchmarks.__main__ import MILLI, median_ms
from research.benchmarks.cells import mos2

BATCHES = (1, 8, 64, 512)
LARGE = 64
"""Cells along each side of the structure of 12,288 sites."""
WHOLE = 10**6


def measure(relaxer: DefiNetRelaxer, structures: list, repeats: int) -> dict:
    """Time the relaxation of some structures together, and the network's part of it."""
    results: list[RelaxResult] = []
    network: list[float] = []

    def run() -> None:
        results[:] = relaxer.relax_many(structures, batch_sites=WHOLE)
        failed = [result for result in results if not isinstance(result, RelaxResult)]
        if failed:
            raise failed[0].error
        network.append(MILLI * sum(result.timings["forward"] for result in results))

    total = median_ms(run, repeats)
    sites = sum(len(result.kinds) for result in results)
    row = {"batch": len(structures), "sites": sites, "ms": total, "network_ms": statistics.median(network[1:])}
    if relaxer.device.type == "cuda":
        row["peak_MB"] = torch.cuda.max_memory_allocated(relaxer.device) / 2**20
        torch.cuda.reset_peak_memory_stats(relaxer.device)
    return row


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batches", type=int, nargs="+", default=list(BATCHES))
    parser.add_argument("--models", nargs="+", choices=("default", "published"), default=["default", "published"])
    parser.add_argument("--no-large", action="store_true", help="leave out the 12,288 sites")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cuda = torch.device(options.device).type == "cuda"
    name = torch.cuda.get_device_name(options.device) if cuda else platform.processor() or platform.machine()
    found: dict = {"device": name, "torch": torch.__version__, "rows": []}
    print(f"{name}, torch {torch.__version__}")
    print(f"{'model':10s} {'batch':>6s} {'sites':>7s} {'ms':>10s} {'network':>10s} {'structures/s':>13s}")
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        file = save_checkpoint(Path(folder) / "published.safetensors", DefiNet(DefiNetConfig()), {})
        for model in options.models:
            relaxer = DefiNetRelaxer("default" if model == "default" else str(file), "MoS2", options.device)
            cells = [[mos2(8, seed) for seed in range(batch)] for batch in options.batches]
            for structures in cells + ([] if options.no_large else [[mos2(LARGE)]]):
                row = {"model": model} | measure(relaxer, structures, options.repeats)
                found["rows"].append(row)
                rate = MILLI * row["batch"] / row["ms"]
                print(
                    f"{model:10s} {row['batch']:6d} {row['sites']:7d} {row['ms']:10.1f} {row['network_ms']:10.1f}"
                    f" {rate:13.1f}" + (f"   peak {row['peak_MB']:.0f} MB" if cuda else "")
                )
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
