"""Write docs/performance.md from what ``python -m benchmarks --compare --json docs/results/benchmark.json`` measured."""

import json
from pathlib import Path

HERE = Path(__file__).parent
MILLI = 1e3

WORDS = """
## What bounds it

**The default network.** On ideal host sites no edge list is needed: messages are convolutions on the lattice, done as products
in reciprocal space. For supercells of up to 300 primitive cells the transform is a matrix product and the kernels are made
once and kept; beyond, it is a fast Fourier transform, and the kernels are made a few waves at a time and used in the layout
they come in. One structure is bound by many small operations, a batch by memory traffic on the sites, so batches on a CPU
are cut to what stays in cache (2,000 sites). Time and memory are linear in the sites beyond 3,000. The first call for a new
supercell makes its kernels (0.1 to 1 s).

**The published network.** It runs a block of sites at a time, small enough for the cache, with the gates of the site kinds in
tables, without the radial functions that no distance reaches, and without vector messages where no vector points anywhere
yet (the first layer). Most of its time is matrix products. In training the blocks keep nothing and are worked out once more
on the way back.

**Matching.** Supercells of the host's own lattice constant are tried first; an atom with one site in reach that no other atom
reaches is assigned without a search, which in a large cell is nearly all of them.

**Screening.** Reading, matching, the network and writing one after the other in each process; `--workers` runs several.

**Busy cores.** Where other jobs keep all cores busy, threads that wait for each other by spinning lose their time slices: two
threads then took 4.2 s for a structure of 192 sites in place of 0.02 s. The command line therefore sets `GOMP_SPINCOUNT=1000`
unless that or `OMP_WAIT_POLICY` is set (0.11 s then; idle 0.03 s, batches as before). In scripts on a shared node
set it yourself before torch is imported, or `OMP_NUM_THREADS=1` (0.06 s).

No GPU was at hand: nothing is claimed for CUDA.
"""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """Return a table in Markdown."""
    lines = [f"| {' | '.join(head)} |", "| --- " * len(head) + "|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def page(result: dict) -> str:
    """Return the whole page."""
    own, paper = result["machine"], result["paper_size"]
    floor = paper["gflop"] / own["gflops"] * MILLI
    lines = [
        "# Performance",
        "",
        "Measured with `python -m benchmarks --compare`, which prints the same for your machine (`--quick` in two minutes), and",
        f"written by `docs/make_performance.py`. This machine: two cores of an AMD EPYC (Zen 4), {own['threads']} threads, torch",
        f"{own['torch']}, {own['gflops']:.0f} GFLOP/s in a matrix product, {own['gbytes_per_s']:.0f} GB/s in a copy, nothing else running.",
        "Medians after a warm-up; every ratio is of numbers from the same run.",
        "",
        "## The published network at its size",
        "",
        f"512 features, 4 layers, random weights, {paper['sites']} sites, {paper['edges']:,} edges.",
        "",
        *table(
            ["", "ms"],
            [
                [
                    "plain PyTorch transcription of the equations (`benchmarks/transcription.py`)",
                    f"{paper['transcription_ms']:.0f}",
                ],
                [
                    f"ase-definet, equal to it within {paper['largest_difference']:.0e} Å",
                    f"{paper['ours_ms']:.0f} (**{paper['times_quicker']:.1f} times quicker**)",
                ],
                [
                    f"ideal: its matrix products alone, {paper['gflop']:.1f} GFLOP, at this machine's rate",
                    f"{floor:.0f}",
                ],
            ],
        ),
        "## The default weights, 192 sites",
        "",
        *table(
            ["", "matching, ms", "network, ms", "all, ms a structure", "structures/s"],
            [
                [
                    "one by one" if row["batch"] == 1 else f"batches of {row['batch']}",
                    *(f"{row[key]:.1f}" for key in ("match", "forward", "ms")),
                    f"{row['structures_per_s']:.0f}",
                ]
                for row in result["default"]
            ],
        ),
        "## Large cells",
        "",
        "One structure, second call, in a process of its own.",
        "",
        *table(
            ["sites", "matching, s", "network, s", "ms a site", "peak memory, MB"],
            [
                [
                    f"{row['sites']:,}",
                    f"{row['match_s']:.2f}",
                    f"{row['forward_s']:.2f}",
                    f"{MILLI * row['forward_s'] / row['sites']:.2f}",
                    f"{row['peak_MB']:.0f}",
                ]
                for row in result["growth"]
            ],
        ),
        "## Training",
        "",
        "One step (forward, backward, AdamW) on 192-site cells, in a process of its own.",
        "",
        *table(
            ["network", "structures", "ms", "peak memory, MB"],
            [
                [row["kind"], str(row["batch"]), f"{row['ms']:.0f}", f"{row['peak_MB']:.0f}"]
                for row in result["training"]
            ],
        ),
        "`default by edges` is the default network as a sum over edges, `transcription` the published one as its equations",
        "stand: what the two others were before.",
        "",
        "## Screening",
        "",
    ]
    row = result["screening"]
    shares = ", ".join(f"{stage} {share:.0%}" for stage, share in row["shares"].items())
    lines += [
        f"{row['structures']:,} cells of 192 sites from an extended XYZ file, start-up included: {row['seconds']:.0f} s,",
        f"{row['structures_per_s']:.0f} structures/s. Shares of the stages: {shares}.",
        "",
    ]
    if "chgnet" in result:
        lines += [
            "## Beside a universal potential",
            "",
            "CHGNet relaxations of the same 192-site cells at fixed cell to 0.05 eV/Å, at most 200 steps, on the same cores.",
            "",
            *table(
                ["cell", "optimizer", "steps", "s", "times slower than one pass"],
                [
                    [
                        str(r["seed"]),
                        r["optimizer"],
                        f"{r['steps']}{'' if r['converged'] else ' (not converged)'}",
                        f"{r['seconds']:.0f}",
                        f"{r['times_slower']:.0f}",
                    ]
                    for r in result["chgnet"]
                ],
            ),
        ]
    return "\n".join(lines).rstrip() + "\n" + WORDS


if __name__ == "__main__":
    (HERE / "performance.md").write_text(page(json.loads((HERE / "results" / "benchmark.json").read_text())), "utf-8")
