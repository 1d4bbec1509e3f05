"""Write docs/performance.md from what ``python -m research.benchmarks --compare`` measured.

Run as ``python -m research.pages.performance`` after research/results/performance.json changed; a test compares the page
with it.
"""

from typing import Any

import torch

from ase_definet.model.config import DefiNetConfig
from ase_definet.model.lattice_convolution import MOST_DENSE
from ase_definet.model.working_set import WorkingSet
from ase_definet.relaxation.freed_memory import KEEP_MEMORY
from research.benchmarks.__main__ import CHGNET_FMAX, CHGNET_STEPS
from research.benchmarks.cuda import BATCHES, LARGE
from research.benchmarks.screen_profile import STAGES
from research.pages.markdown import listed, reflowed, table
from research.pages.stored import result
from research.paths import DOCS

PAGE = DOCS / "performance.md"
MILLI = 1e3
CPU_SITES = WorkingSet.of(torch.device("cpu")).sites


def page() -> str:
    """Return the whole page."""
    found, unlogged = result("performance"), result("unlogged")
    sites = found["paper_size"]["sites"]
    return reflowed(
        [
            *head(found["machine"]),
            *published(found),
            f"## The default weights, {sites} sites",
            "",
            *default(found["default"]),
            *floor(found["floor"], found["machine"]),
            "## Large cells",
            "",
            "One structure in a process of its own. The first call makes the kernels; a command makes no other. `linear` is the second call",
            f"with {sites} sites times the number of sites.",
            "",
            *growth(found["growth"]),
            "## Training",
            "",
            f"One step (forward, backward, AdamW) on cells of {sites} sites, in a process of its own.",
            "",
            *training(found["training"]),
            "## Screening",
            "",
            *screening(found["screening"], sites),
            *profiles(result("screen_profile"), sites),
            *(universal_potential(found["chgnet"], sites) if "chgnet" in found else []),
            *limits(unlogged),
        ]
    )


def head(machine: dict[str, Any]) -> list[str]:
    """Return how and on what was measured."""
    return [
        "# Performance",
        "",
        "Measured with `python -m research.benchmarks --compare`, which prints the same for your machine (`--quick` in two minutes), and",
        f"written by `python -m research.pages.performance`. The machine was {machine['description']}, {machine['threads']} threads,",
        f"torch {machine['torch']}, {machine['gflops']:.0f} GFLOP/s in a matrix product and {machine['gbytes_per_s']:.0f} GB/s in a copy, with nothing else running.",
        "Times are medians after a warm-up; every ratio is of numbers from one run.",
        "",
    ]


def published(found: dict[str, Any]) -> list[str]:
    """Return the times of the published network."""
    row, config = found["paper_size"], DefiNetConfig()
    floor = row["gflop"] / found["machine"]["gflops"] * MILLI
    return [
        "## The published network at its size",
        "",
        f"{config.features} features, {config.layers} layers, random weights, {row['sites']} sites, {row['edges']:,} edges.",
        "",
        *table(
            ["", "ms"],
            [
                [
                    "plain PyTorch transcription of the equations (`research/benchmarks/transcription.py`)",
                    f"{row['transcription_ms']:.0f}",
                ],
                [
                    f"ase-definet, equal to it within {row['largest_difference']:.0e} Å",
                    f"{row['ours_ms']:.0f} (**{row['times_quicker']:.1f} times faster**)",
                ],
                [
                    f"ideal: its matrix products alone, {row['gflop']:.1f} GFLOP, at this machine's rate",
                    f"{floor:.0f}",
                ],
            ],
        ),
    ]


def default(rows: list[dict[str, Any]]) -> list[str]:
    """Return the times of the bundled weights by batch."""
    return table(
        ["", "matching, ms", "network, ms", "total, ms per structure", "structures/s"],
        [
            [
                "one by one" if row["batch"] == 1 else f"batches of {row['batch']}",
                *(f"{row[key]:.1f}" for key in ("match", "forward", "ms")),
                f"{row['structures_per_s']:.0f}",
            ]
            for row in rows
        ],
    )


def growth(rows: list[dict[str, Any]]) -> list[str]:
    """Return the times of ever larger cells."""
    return table(
        ["sites", "matching, s", "first call, s", "second call, s", "linear, s", "peak memory, MB"],
        [
            [
                f"{row['sites']:,}",
                f"{row['match_s']:.2f}",
                "" if row["first_s"] is None else f"{row['first_s']:.2f}",
                f"{row['forward_s']:.2f}",
                f"{row['linear_s']:.2f}",
                f"{row['peak_MB']:.0f}",
            ]
            for row in rows
        ],
    )


def training(rows: list[dict[str, Any]]) -> list[str]:
    """Return the times of training steps."""
    return [
        *table(
            ["network", "structures", "ms", "peak memory, MB"],
            [[row["kind"], str(row["batch"]), f"{row['ms']:.0f}", f"{row['peak_MB']:.0f}"] for row in rows],
        ),
        "`default by edges` is the default network as a sum over edges, and `transcription` the published one as its equations stand: what",
        "the two others were before.",
        "",
    ]


def floor(row: dict[str, Any], machine: dict[str, Any]) -> list[str]:
    """Return what the network needs at least."""
    return [
        f"Its matrix products are {row['gflop']:.2f} GFLOP per structure: {row['compute_ms']:.1f} ms at {machine['gflops']:.0f} GFLOP/s. Reading and writing the",
        f"fields of every layer once would take {row['memory_ms']:.2f} ms. What remains are operations on single sites, which are bound by the caches.",
        "",
    ]


def screening(rows: list[dict[str, Any]], sites: int) -> list[str]:
    """Return the times of screens."""
    return [
        f"Cells of {sites} sites, start-up included. Screens of many structures run one process on each core.",
        "",
        *table(
            ["source", "processes", "structures", "s", "structures/s"],
            [
                [
                    row["source"],
                    str(row["processes"]),
                    f"{row['structures']:,}",
                    f"{row['seconds']:.0f}",
                    f"{row['structures_per_s']:.0f}",
                ]
                for row in rows
            ],
        ),
    ]


def profiles(found: dict[str, Any], sites: int) -> list[str]:
    """Return where the time of a screen goes, and where it went."""
    many = found["hundred_thousand"]
    rows = [("before", row) for row in found["before"]] + [("now", row) for row in found["after"]]
    resumed, rest = f"{many['killed_after']:,}", many["structures"] - many["killed_after"]
    per_structure = MILLI * sum(many["cpu_s"]) / many["structures"]
    return [
        f"Where the time goes: processor time in ms per structure of {sites} sites, in one process on one core (`{found['command']}`).",
        f"The load was {found['load']}. Before, every structure was matched for itself, and every line of text was read back.",
        "",
        *table(
            ["", "source", "format", *STAGES],
            [
                [when, row["source"], row["structures"], *(f"{row[stage]:.1f}" for stage in STAGES)]
                for when, row in rows
            ],
        ),
        f"Memory does not grow with the number of structures. A screen of {many['structures']:,} enumerated cells of {many['sites']} sites with a very small network,",
        f"which shows what everything else takes, was killed after {resumed} structures and resumed for the other {rest:,}: {per_structure:.1f} ms of processor time per",
        f"structure, and at most {max(many['peak_MB'])} MB (`research/results/screen_profile.json` has the command).",
        "",
    ]


def universal_potential(rows: list[dict[str, Any]], sites: int) -> list[str]:
    """Return the times of relaxations with CHGNet."""
    return [
        "## Beside a universal potential",
        "",
        f"CHGNet relaxations of the same cells of {sites} sites at fixed cell to {CHGNET_FMAX} eV/Å, at most {CHGNET_STEPS} steps, on the same cores.",
        "",
        *table(
            ["cell", "optimizer", "steps", "s", "times slower than one pass"],
            [
                [
                    str(row["seed"]),
                    row["optimizer"],
                    f"{row['steps']}{'' if row['converged'] else ' (not converged)'}",
                    f"{row['seconds']:.0f}",
                    f"{row['times_slower']:.0f}",
                ]
                for row in rows
            ],
        ),
    ]


def limits(unlogged: dict[str, Any]) -> list[str]:
    """Return what bounds the speed."""
    first, busy, faults = unlogged["first_call"], unlogged["busy_cores"], unlogged["page_faults"]
    batches = listed([str(batch) for batch in BATCHES])
    return [
        "## What limits it",
        "",
        "**The default network.** On ideal host sites no edge list is needed: messages are convolutions on the lattice, computed as products",
        f"in reciprocal space. For supercells of up to {MOST_DENSE} primitive cells the transform is a matrix product, and the kernels are made",
        "once and kept. Beyond that it is a fast Fourier transform, and the kernels are made for a few waves at a time and used in the",
        "layout they come in. One structure is limited by many small operations and a batch by memory traffic on the sites, so batches",
        f"on a CPU are cut to what stays in cache ({CPU_SITES:,} sites). Time and memory are linear in the number of sites beyond",
        f"{first['linear_from_sites']:,}. The first call for a new supercell makes its kernels ({first['least_s']:g} to {first['most_s']:g} s).",
        "",
        "**The published network.** It runs one block of sites at a time, small enough for the cache, with the gates of the site kinds in",
        "tables, without the radial functions that no distance reaches, and without vector messages in the first layer, where all vectors",
        "are still zero. Most of its time goes into matrix products. In training the blocks keep nothing and are computed again in the",
        "backward pass.",
        "",
        "**Matching.** Of the structures in one cell, the first is matched in full; those whose atoms lie on its sites are recognised, with the",
        "same result to the bit, and those of an enumeration are not matched at all. Supercells of the host's own lattice constant are tried first. An atom with one site in reach, which no other atom",
        "reaches, is assigned without a search; in a large cell that is nearly all of them.",
        "",
        "**Screening.** Several processes need Dask. One reads and writes, the others match and run the network, each on one core: small",
        "operations gain little from a second thread. On GPUs each has one process for the network, and the others match for them; few",
        "blocks are on their way at a time.",
        "",
        "**Memory.** A pass frees as much memory as it uses. glibc returns it to the system, and every page has to be mapped anew. The command",
        f"line therefore tells glibc to keep up to {KEEP_MEMORY['MALLOC_TRIM_THRESHOLD_'] // 2**30} GB, unless a variable such as `MALLOC_TRIM_THRESHOLD_` is set: {faults['kept_ms']} ms of processor time per structure in a",
        f"batch of {faults['batch']} instead of {faults['returned_ms']} ms. In scripts, call",
        "`ase_definet.relaxation.freed_memory.keep_freed_memory()` once: it concerns the whole process. Dask sets that variable for its",
        "workers: on a cluster of your own, unset it.",
        "",
        "**Busy cores.** Where other jobs keep all cores busy, threads that wait for each other by spinning lose their time slices:",
        f"{busy['threads']} threads then took {busy['spinning_s']} s for a structure of {busy['sites']} sites instead of {busy['idle_before_s']} s. The command line therefore sets",
        f"`GOMP_SPINCOUNT={busy['gomp_spincount']}` unless that or `OMP_WAIT_POLICY` is set ({busy['gomp_spincount_busy_s']} s then; {busy['gomp_spincount_idle_s']} s on idle cores, batches as before).",
        "In scripts on a shared node, set it yourself before torch is imported, or set",
        f"`OMP_NUM_THREADS=1` ({busy['one_thread_busy_s']} s).",
        "",
        "No GPU was at hand, and nothing is claimed for CUDA. `python -m research.benchmarks.cuda` prints the times of batches of",
        f"{batches} structures and of {3 * LARGE**2:,} sites on one, and `pytest -k cuda` compares its results with the CPU's.",
    ]


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
