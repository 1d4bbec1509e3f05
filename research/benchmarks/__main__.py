"""Print how fast this is on this machine: ``python -m research.benchmarks [--quick] [--json OUT] [--compare]``.

Every ratio is of numbers measured in the same run. Times are medians after a warm-up, in milliseconds.
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from ase_definet import DefiNetRelaxer
from ase_definet.matching.site_map import match_sites
from ase_definet.model.config import DefiNetConfig
from ase_definet.model.definet import DefiNet
from ase_definet.model.graph import DefectGraph
from ase_definet.relaxation.freed_memory import keep_freed_memory
from ase_definet.relaxation.inputs import sites_of
from research.benchmarks.cells import mos2
from research.benchmarks.screen_profile import STAGES, measured
from research.benchmarks.training import KINDS
from research.benchmarks.transcription import Transcription

MILLI = 1e3
BLOCK = 64
CHGNET_FMAX, CHGNET_STEPS = 0.05, 200
"""Force to which CHGNet relaxes, in eV/Å, and the most steps it takes."""
ALONE = """
import re, sys
from research.benchmarks.cells import mos2
from ase_definet import DefiNetRelaxer
from ase_definet.relaxation.freed_memory import keep_freed_memory
keep_freed_memory()
relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
relaxer.predict(mos2(8))  # libraries start their threads
first = relaxer.predict(mos2(int(sys.argv[1])))
result = relaxer.predict(mos2(int(sys.argv[1])))
peak = re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())  # ru_maxrss would be the parent's
print(result.timings["match"], first.timings["forward"], result.timings["forward"], int(peak[1]) / 1024)
"""


def median_ms(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of some calls after one that does not count."""
    work()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return MILLI * statistics.median(times)


def machine(description: str) -> dict:
    """Measure what this machine can do at most: multiply matrices, and move memory."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    gemm = median_ms(lambda: a @ b, 20)
    big = torch.randn(64 * 2**20 // 4)
    out = torch.empty_like(big)
    copy = median_ms(lambda: out.copy_(big), 10)
    return {
        "description": description,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "gflops": 2 * 1024**3 / gemm / 1e6,
        "gbytes_per_s": 2 * big.numel() * 4 / copy / 1e6,
    }


def paper_size(repeats: int) -> dict:
    """Time the published network at its published size: as its equations stand, and as the package runs it."""
    torch.manual_seed(0)
    config = DefiNetConfig()
    net = DefiNet(config).eval()
    plain = Transcription(net.state_dict(), config)
    graph = sites_of(match_sites(mos2(8), "MoS2")).graph(config.cutoff, config.max_neighbors)
    with torch.inference_mode():
        difference = float((net(graph) - plain(graph)).abs().max())
        ours, theirs = median_ms(lambda: net(graph), repeats), median_ms(lambda: plain(graph), repeats)
    flops = operations(graph, config)
    return {
        "sites": graph.num_nodes,
        "edges": graph.num_edges,
        "transcription_ms": theirs,
        "ours_ms": ours,
        "times_quicker": theirs / ours,
        "largest_difference": difference,
        "gflop": flops / 1e9,
    }


def operations(graph: DefectGraph, config: DefiNetConfig) -> float:
    """Count the floating-point operations of the matrix products that cannot be avoided."""
    n, e, f = graph.num_nodes, graph.num_edges, config.features
    radial = 40  # Gaussians that a distance within 6 Å reaches, of 128 on 30 Å
    per_edge = radial * 3 * f + radial * f + f * f + f
    per_site = (
        2 * f * f + f * f + 3 * f * f + f * f / 2 + 3 * f * f / 2 + 9 * f * f + 2 * f * f + 3 * f * f + 6 * f * f
    )
    return 2.0 * config.layers * (e * per_edge + n * per_site)


def default_weights(repeats: int) -> list[dict]:
    """Time the bundled weights on 192 sites: one by one, and in batches."""
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    rows = []
    for batch in (1, 8, 64):
        structures = [mos2(8, seed) for seed in range(batch)]
        total = median_ms(lambda structures=structures: list(relaxer.relax_many(structures)), repeats)
        results = list(relaxer.relax_many(structures))
        stages = {k: MILLI * statistics.median(r.timings[k] for r in results) for k in ("match", "graph", "forward")}
        rows.append({"batch": batch, "ms": total / batch, "structures_per_s": MILLI * batch / total} | stages)
    return rows


def growth(sizes: list[int]) -> list[dict]:
    """Relax ever larger cells, each in a process of its own: seconds and peak memory."""
    rows = []
    for n in sizes:
        done = subprocess.run([sys.executable, "-c", ALONE, str(n)], capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"{n}x{n}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        match, first, forward, memory = map(float, done.stdout.split())
        row = {
            "n": n,
            "sites": 3 * n * n,
            "match_s": match,
            "first_s": first,
            "forward_s": forward,
            "peak_MB": memory,
        }
        rows.append(row | {"linear_s": (rows[0] if rows else row)["forward_s"] * n * n / sizes[0] ** 2})
    return rows


def training(batch: int) -> list[dict]:
    """Take training steps, each kind in a process of its own: time and peak memory."""
    rows = []
    for kind in KINDS:
        command = [sys.executable, "-m", "research.benchmarks.training", kind, str(batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"training, {kind}: {done.stderr.strip().splitlines()[-1]}", file=sys.stderr)
            continue
        rows.append(json.loads(done.stdout))
    return rows


def screening(count: int) -> list[dict]:
    """Screen candidates as a user would, start-up included: from an enumeration and from a file, on one core and all."""
    asked = ["--host", "MoS2", "--supercell", "8x8", "--defects", "v_S + W_Mo + Se_S", "--density", "0.0156"]
    asked += ["--limit", str(count)]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "in.extxyz")
        command = ["ase-definet", "enumerate", *asked, "-o", path]
        subprocess.run(command, check=True, capture_output=True)
        sources = {"enumeration": asked, "file": [path, "--host", "MoS2"]}
        for (source, given), workers in itertools.product(sources.items(), ("1", None)):
            out = f"{folder}/{source}-{workers}"
            command = ["ase-definet", "screen", *given, "-o", out, "--format", "arrow"]
            command += ["--workers", workers] if workers else []
            began = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            seconds = time.perf_counter() - began
            processes = 1 if workers else torch.get_num_threads()
            row = {"source": source, "processes": processes, "structures": count, "seconds": seconds}
            rows.append(row | {"structures_per_s": count / seconds})
    return rows


def floor(own: dict, batch: int) -> dict:
    """Return what the network cannot do without on cells of 192 sites: operations, and moving the fields of its layers.

    The operations are those of its matrix products, with one of complex numbers counted as one, so it is a little too
    low; the bytes are those of a scalar and a vector field that each layer reads and writes once.
    """
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu", properties=None)
    prepared = [relaxer._prepare(mos2(8, seed), None).prepared for seed in range(batch)]  # noqa: SLF001
    lattices = relaxer._lattice  # noqa: SLF001
    with torch.inference_mode():
        joined = relaxer.network.collate(prepared, lattices)
        relaxer.network.predict(joined)  # makes the kernels
        with FlopCounterMode(display=False) as counter:
            relaxer.network.predict(joined)
    config = relaxer.network.networks[prepared[0].place].config
    flop = sum(counter.get_flop_counts()["Global"].values())
    moved = batch * 192 * config.layers * 4 * config.features * 4 * 2
    compute, memory = flop / own["gflops"] / 1e6, moved / own["gbytes_per_s"] / 1e6
    return {"batch": batch, "gflop": flop / 1e9 / batch, "compute_ms": compute / batch, "memory_ms": memory / batch}


def chgnet(count: int) -> list[dict]:
    """Relax the same cells with CHGNet at fixed cell, the way one would without a trained network."""
    from ase.optimize import FIRE, LBFGS  # noqa: PLC0415
    from chgnet.model.dynamics import CHGNetCalculator  # noqa: PLC0415 - the [chgnet] extra

    calculator = CHGNetCalculator(use_device="cpu")
    relaxer = DefiNetRelaxer(host="MoS2", device="cpu")
    relaxer.predict(mos2(8))
    rows = []
    for seed in range(count):
        atoms = mos2(8, seed)
        began = time.perf_counter()
        relaxer.predict(atoms)
        own = time.perf_counter() - began
        for optimizer in (FIRE, LBFGS):
            moving = atoms.copy()
            moving.calc = calculator
            began = time.perf_counter()
            run = optimizer(moving, logfile=None)
            converged = run.run(fmax=CHGNET_FMAX, steps=CHGNET_STEPS)
            seconds = time.perf_counter() - began
            rows.append(
                {
                    "seed": seed,
                    "optimizer": optimizer.__name__,
                    "steps": run.get_number_of_steps(),
                    "converged": bool(converged),
                    "seconds": seconds,
                    "times_slower": seconds / own,
                }
            )
    return rows


def show(result: dict) -> None:
    """Print the tables."""
    own = result["machine"]
    print(
        f"{own['threads']} threads, torch {own['torch']}: {own['gflops']:.0f} GFLOP/s, {own['gbytes_per_s']:.0f} GB/s"
    )
    row = result["paper_size"]
    floor = row["gflop"] / own["gflops"] * MILLI
    print(
        f"\npublished size, {row['sites']} sites, {row['edges']} edges (largest difference {row['largest_difference']:.1e} Å)"
    )
    print(f"  as the equations stand   {row['transcription_ms']:8.0f} ms")
    print(f"  ase-definet              {row['ours_ms']:8.0f} ms   {row['times_quicker']:.1f} times quicker")
    print(f"  matrix products alone    {floor:8.0f} ms   {row['gflop']:.1f} GFLOP at this machine's rate")
    print("\ndefault weights, 192 sites: batch, ms a structure (matching, graph, network), structures/s")
    for row in result["default"]:
        print(
            f"  {row['batch']:4d}  {row['ms']:8.1f}  ({row['match']:.1f}, {row['graph']:.1f}, {row['forward']:.1f})"
            f"  {row['structures_per_s']:8.1f}"
        )
    row = result["floor"]
    print(
        f"  floor of the network in batches of {row['batch']}: {row['compute_ms']:.1f} ms for {row['gflop']:.2f} GFLOP, "
        f"{row['memory_ms']:.1f} ms to move its fields"
    )
    print(
        "\ndefault weights, one structure: sites, matching s, network s (first call, second, linear), peak memory MB"
    )
    for row in result["growth"]:
        print(
            f"  {row['sites']:7d}  {row['match_s']:7.2f}  {row['first_s']:7.2f}  {row['forward_s']:7.2f}"
            f"  {row['linear_s']:7.2f}  {row['peak_MB']:7.0f}"
        )
    print("\none training step on 192-site cells: network, structures, ms, peak memory MB")
    for row in result["training"]:
        print(f"  {row['kind']:18s}  {row['batch']:2d}  {row['ms']:7.0f}  {row['peak_MB']:7.0f}")
    print("\nscreens of cells of 192 sites, start-up included: source, processes, structures, s, structures/s")
    for row in result["screening"]:
        print(
            f"  {row['source']:11s}  {row['processes']:2d}  {row['structures']:7d}  {row['seconds']:7.0f}"
            f"  {row['structures_per_s']:7.1f}"
        )
    print("\nstages of a screen, processor time in ms per structure")
    for row in result["profile"]:
        print(f"  {row['source']:11s}  {row['structures']:7s}  " + "  ".join(f"{k} {row[k]:.2f}" for k in STAGES))
    if "chgnet" in result:
        print(
            f"\nCHGNet relaxations of the same 192-site cells to {CHGNET_FMAX} eV/Å: optimizer, steps, s, times slower than one pass"
        )
        for row in result["chgnet"]:
            state = "" if row["converged"] else "  (not converged)"
            print(
                f"  {row['optimizer']:6s} {row['steps']:4d}  {row['seconds']:7.1f}  {row['times_slower']:7.0f}{state}"
            )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m research.benchmarks", description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="fewer repeats, cells up to 3,072 sites")
    parser.add_argument("--compare", action="store_true", help="CHGNet too (pip install 'ase-definet[chgnet]')")
    parser.add_argument(
        "--machine", default=platform.processor() or platform.machine(), help="what to call this machine"
    )
    parser.add_argument("--json", type=Path, help="write the numbers to this file")
    options = parser.parse_args()
    keep_freed_memory()  # as the command line does
    repeats = 3 if options.quick else 7
    sizes = [8, 16, 32] if options.quick else [8, 16, 32, 64, 128, 184]
    own = machine(options.machine)
    result = {
        "machine": own,
        "paper_size": paper_size(repeats),
        "default": default_weights(repeats),
        "floor": floor(own, BLOCK),
        "growth": growth(sizes),
        "training": training(2),
        "screening": screening(600 if options.quick else 10_000),
        "profile": measured(64 if options.quick else 256),
    }
    if options.compare:
        result["chgnet"] = chgnet(1 if options.quick else 3)
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
