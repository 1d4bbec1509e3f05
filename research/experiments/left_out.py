"""What networks make of what was left out of their training: ``python -m research.experiments.left_out DATA [NAME...]``.

DATA is the folder with ``2dmd.pack`` and ``bn-states.pack`` (research/recipes/states.sh makes them). Each experiment
takes some pairs out of the training and validation data (a host, elements, charges, a kind of defect, a density),
trains a small network for some minutes on the rest, fits its error estimate to the remaining validation pairs, and
measures it on the pairs that were taken out. Killed, the same command goes on where it was; finished experiments are
skipped. ``research/results/left_out/NAME.json`` has one row for each structure that was left out, and the table by the
respects in which they lie outside of the training data (:mod:`ase_definet.relaxation.domain`);
``runs/left_out/NAME/atoms.npz`` has every atom. :mod:`research.experiments.calibrate` learns expected errors from them.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ase_definet.checkpoints.bundled import resolve_model
from ase_definet.checkpoints.card import ModelCard
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint
from ase_definet.data import PackedDataset, PairGroup
from ase_definet.data.packed import save_groups
from ase_definet.data.pairs import SPLITS
from ase_definet.evaluation.scores import ideal_sites
from ase_definet.matching.naming import defect_name
from ase_definet.relaxation.domain import Domain, Judgement
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure
from ase_definet.structures.charges import charge_of
from ase_definet.structures.metrics import minimum_image, rank_correlation
from ase_definet.structures.state import State
from ase_definet.training.card import host_records, training_record
from ase_definet.training.config import make_config
from ase_definet.training.error_estimate import fit_error_estimate
from ase_definet.training.run import train
from research.paths import RESULTS

Array: TypeAlias = NDArray[Any]
Chosen: TypeAlias = Callable[[PairGroup], Array]
"""Which pairs of a group are meant, as a mask."""

OUT = RESULTS / "left_out"
RUNS = Path("runs/left_out")
ESTIMATE = 700
"""Steps in which a network's own error estimate is fitted."""
MOST = 50
"""Structures of one subset that are measured, at most."""
KEPT = {"train": 450, "val": 40}
"""Pairs of one set of sites that are trained on and validated with, at most."""
ATOM_COLUMNS = ("error", "ideal", "expected", "moved", "from_defect", "from_doubtful")
"""Of every atom, in Å: length of the true error, of that of the ideal site, the network's expected error, the predicted
displacement's length, distance from the closest defect, and from the closest defect that makes the structure differ."""

HIGH_MOS2, LOW_MOS2 = {"high/MoS2": 0.5}, {"low/MoS2": 0.5}
MOS2, WSE2 = HIGH_MOS2 | LOW_MOS2, {"high/WSe2": 0.5, "low/WSe2": 0.5}
GASE, INSE = {"high/GaSe": 1.0}, {"high/InSe": 1.0}
MODEL = {"features": 64, "layers": 4, "short_range_cutoff": 4.5, "vector_norm": True, "dropout": 0.15}
STATES = {"states": True, "element_descriptors": True}
BUDGET = {
    "optimizer": "muon",
    "loss": "components",
    "learning_rate": 2e-3,
    "weight_decay": 0.1,
    "ema_decay": 0.99,
    "warmup_steps": 80,
    "cosine_fraction": 0.75,
    "noisy_start_fraction": 0.4,
    "noise_std": 0.12,
    "validate_every": 10_000,
    "checkpoint_every": 50,
}
HBN = {
    "hbn/bulk-charged": 0.22,
    "hbn/bulk-neutral": 0.1,
    "hbn/monolayer-charged": 0.27,
    "hbn/monolayer-neutral": 0.2,
    "hbn/bulk-charged-excited": 0.03,
    "hbn/bulk-neutral-excited": 0.03,
    "hbn/monolayer-charged-excited": 0.05,
    "hbn/monolayer-neutral-excited": 0.05,
    "high/BN": 0.05,
}


# What is left out


def host(name: str) -> Chosen:
    """Return the choice of all pairs of a host."""
    return lambda group: np.full(len(group), group.host == name)


def elements(*symbols: str) -> Chosen:
    """Return the choice of pairs with any of some elements."""
    numbers = [atomic_numbers[symbol] for symbol in symbols]
    return lambda group: np.isin(group.numbers, numbers).any(axis=1)


def states(wanted: Callable[[State], bool]) -> Chosen:
    """Return the choice of pairs in some states."""
    return lambda group: np.array([wanted(State.from_codes(codes)) for codes in group.state])


def defects(**names: tuple[str, ...]) -> Chosen:
    """Return the choice of pairs with any of some defects, by host."""
    return lambda group: np.array([bool(own & set(names.get(group.host, ()))) for own in defects_of(group)])


def denser(least: float) -> Chosen:
    """Return the choice of pairs with more defects than a share of the sites."""
    return lambda group: (group.numbers != group.host_numbers).mean(axis=1) > least


def either(*choices: Chosen) -> Chosen:
    """Return the choice of pairs that any of some choices has."""
    return lambda group: np.any([chosen(group) for chosen in choices], axis=0)


def vacancy_beside(group: PairGroup) -> Array:
    """Choose pairs with a vacancy and a foreign atom."""
    numbers = group.numbers
    foreign = (numbers != group.host_numbers) & (numbers > 0)
    return np.asarray((numbers == 0).any(axis=1) & foreign.any(axis=1))


def compositions(fold: int, folds: int = 4) -> Chosen:
    """Return the choice of one fold of the compositions of the h-BN database, all charges and both hosts together."""

    def chosen(group: PairGroup) -> Array:
        own = (" ".join(sorted(names)) for names in defects_of(group, count=True))
        return np.array([zlib.crc32(name.encode()) % folds == fold for name in own])

    return chosen


def defects_of(group: PairGroup, *, count: bool = False) -> Iterator[set[str]]:
    """Yield the names of the defects of each pair, with their numbers if asked for."""
    for numbers in group.numbers:
        where = numbers != group.host_numbers
        names = [defect_name(z, h) for z, h in zip(numbers[where], group.host_numbers[where], strict=True)]
        yield {f"{name} x{names.count(name)}" for name in names} if count else set(names)


# Experiments


@dataclass(frozen=True)
class Experiment:
    """Something left out.

    Attributes:
        kind: What kind of thing: ``host``, ``element``, ``charge``, ``defect``, ``density``, ``state``.
        words: What is left out, in words.
        chosen: Which pairs.
        subsets: What is trained on, with shares of the steps.
        pack: The data.
        steps: Length of the run.
        model: Sizes, beside those of all.
        initial: The experiment whose weights it starts from.
        batch_size: Structures a step.
    """

    kind: str
    words: str
    chosen: Chosen
    subsets: Mapping[str, float]
    pack: str = "2dmd.pack"
    steps: int = 300
    model: Mapping[str, Any] = field(default_factory=dict)
    initial: str = ""
    batch_size: int = 4


def nothing(group: PairGroup) -> Array:
    """Choose no pair."""
    return np.zeros(len(group), dtype=bool)


def _hbn(kind: str, words: str, chosen: Chosen, steps: int = 200) -> Experiment:
    return Experiment(
        kind,
        words,
        lambda group: chosen(group) & group.subset.startswith("hbn/"),
        HBN,
        pack="bn-states.pack",
        steps=steps,
        model=STATES,
        initial="bn-base",
    )


def _charged(least: int) -> Chosen:
    return states(lambda state: abs(state.charge or 0) >= least)


def experiments() -> dict[str, Experiment]:
    """Return all experiments by name, in the order in which they are run."""
    antisites = defects(**dict.fromkeys(("BN", "BN-bulk"), ("B_N", "N_B")))
    metals, chalcogens = {"high/MoS2": 0.5, "high/WSe2": 0.5, "low/MoS2": 0.5, "low/WSe2": 0.5}, GASE | INSE
    return {
        "bn-base": Experiment(
            "none", "nothing", nothing, {"high/BN": 1.0}, pack="bn-states.pack", steps=500, model=STATES, batch_size=8
        ),
        "hbn-compositions-1": _hbn("composition", "a quarter of the compositions", compositions(0), 350),
        "hbn-charged": _hbn("charge", "all charges", _charged(1), 350),
        "host-InSe": _sibling("InSe", GASE, INSE),
        "hbn-elements-1": _hbn("element", "Al, Ge, S, Sb", elements("Al", "Ge", "S", "Sb"), 350),
        "hbn-kinds": _hbn(
            "defect", "antisites, and vacancies beside foreign atoms", either(vacancy_beside, antisites)
        ),
        "2dmd-elements": Experiment(
            "element", "W and Se in MoS2", elements("W", "Se"), {"high/MoS2": 0.3, "low/MoS2": 1.0}
        ),
        "density-chalcogens": Experiment("density", "more than 7.5 % of the sites", denser(0.075), chalcogens),
        "hbn-compositions-2": _hbn("composition", "another quarter of the compositions", compositions(1)),
        "defects-metals": Experiment(
            "defect",
            "W_Mo in MoS2, v_Se in WSe2",
            defects(MoS2=("W_Mo",), WSe2=("v_Se",)),
            metals,
        ),
        "hbn-charge-2": _hbn("charge", "charges of magnitude 2", _charged(2)),
        "host-MoS2": _sibling("MoS2", WSE2, MOS2),
        "hbn-states": _hbn(
            "state",
            "excited states and triplets",
            states(lambda state: bool(state.excited) or state.spin_multiplicity == 3),  # noqa: PLR2004
        ),
        "hbn-elements-2": _hbn("element", "Ga, Si, Se, P", elements("Ga", "Si", "Se", "P")),
        "dense-to-dilute": Experiment(
            "density",
            "isolated defects (MoS2, WSe2)",
            lambda group: np.full(len(group), group.subset.startswith("low/")),
            metals,
        ),
        "dilute-to-dense": Experiment("density", "more than 3 defects (MoS2)", denser(0.02), LOW_MOS2 | HIGH_MOS2),
        "density-metals": Experiment(
            "density", "more than 7.5 % of the sites", denser(0.075), {"high/MoS2": 0.5, "high/WSe2": 0.5}
        ),
        "host-WSe2": _sibling("WSe2", MOS2, WSE2),
        "host-GaSe": _sibling("GaSe", INSE, GASE),
        "hbn-elements-3": _hbn("element", "O, In, Sn, As", elements("O", "In", "Sn", "As")),
    }


def _sibling(name: str, trained_on: Mapping[str, float], left_out: Mapping[str, float]) -> Experiment:
    """Return the experiment that leaves a host out of two of the same structure; black P and h-BN are left out too."""
    known = {subset.split("/")[1] for subset in trained_on}
    return Experiment(
        "host",
        f"{name}, from {', '.join(known)} alone",
        lambda group: np.full(len(group), group.host not in known),
        {**trained_on, **dict.fromkeys(left_out, 0.0), "high/P": 0.0, "high/BN": 0.0},
        steps=800,
    )


def thinned(group: PairGroup, chosen: Array, subsets: Mapping[str, float]) -> PairGroup | None:
    """Return a group with the pairs that are left out in the split ``test``, and few enough others."""
    split = np.array(group.split)
    split[chosen] = SPLITS.index("test")
    keep = np.flatnonzero(chosen & group.has_relaxed)
    for name, most in KEPT.items():
        if not subsets.get(group.subset):
            continue
        own = np.flatnonzero((split == SPLITS.index(name)) & ~chosen & group.has_relaxed)
        keep = np.concatenate([keep, np.random.default_rng(0).permutation(own)[:most]])
    if not len(keep):
        return None
    keep = np.sort(keep)
    names = ("numbers", "offset", "offset_scale", "move", "move_scale", "state")
    arrays: dict[str, Any] = {name: np.array(getattr(group, name))[keep] for name in names}
    return replace(group, ids=tuple(group.ids[k] for k in keep), split=split[keep], **arrays)


def data_of(name: str, experiment: Experiment, folder: Path) -> PackedDataset:
    """Return the data of an experiment: a pack of its own, made once."""
    path = RUNS / name / "data.pack"
    if path.exists():
        return PackedDataset.open(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = PackedDataset.open(folder / experiment.pack)
    wanted = set(experiment.subsets)
    groups = (thinned(g, experiment.chosen(g), experiment.subsets) for g in whole.groups if g.subset in wanted)
    return save_groups([group for group in groups if group is not None], path)


def trained(name: str, experiment: Experiment, pack: PackedDataset) -> Path:
    """Train and export the network of an experiment, once."""
    path = RUNS / name / "weights.safetensors"
    if path.exists():
        return path
    present = {g.subset for g in pack.groups if len(g.indices("train"))}
    options: dict[str, Any] = {
        "data": str(pack.path),
        "out": str(RUNS / name / "run"),
        "sampling_weights": {key: share for key, share in experiment.subsets.items() if share and key in present},
        "steps": experiment.steps,
        "batch_size": experiment.batch_size,
        "model": MODEL | dict(experiment.model),
        "seed": zlib.crc32(name.encode()) % 1000,
    }
    if experiment.initial:
        options["initial_weights"] = str(RUNS / experiment.initial / "weights.safetensors")
    run = train(make_config(BUDGET | options))
    network, _ = fit_error_estimate(run.average, run.batches, steps=ESTIMATE, cross_fit=False)
    record = {"name": f"left-out {name}", "version": "0", "training": training_record(run)}
    return save_checkpoint(path, network, record, overwrite=True)


# Measurement


class OpenDomain(Domain):
    """A domain that names every respect in which a structure lies outside, and takes back nothing for it."""

    __slots__ = ()

    def judge(self, *args: Any, **options: Any) -> Judgement:
        """Return the reservations, all of them near and with expected errors as they are."""
        found = Domain.judge(self, *args, **options)
        return Judgement(tuple(replace(one, trust="near", error_factor=1.0) for one in found.reservations))


@dataclass(frozen=True)
class Measured:
    """What was found of one structure.

    Attributes:
        subset: Its subset.
        host: Its host.
        words: The respects in which it lies outside the training data.
        mae: Coordinate MAE of the network and of the ideal sites, in Å.
        atoms: The columns of every atom.
        defects: Its defects and their numbers, and its charge: ``C_B x1, v_N x1, +1``.
    """

    subset: str
    host: str
    words: tuple[str, ...]
    mae: tuple[float, float]
    atoms: Array
    defects: str = ""


def measure(weights: Path, pack: PackedDataset, split: str = "test", most: int = MOST) -> Iterator[Measured]:
    """Yield what the network makes of the pairs of a split."""
    relaxer = DefiNetRelaxer(str(weights), device="cpu", extrapolate=True)
    relaxer.domain = OpenDomain(card_of(relaxer.card, pack), relaxer.model)
    for group in pack.groups:
        chosen = np.random.default_rng(1).permutation(group.indices(split))[:most]
        pairs = [group.atoms(int(k)) for k in chosen]
        results = relaxer.relax_many((unrelaxed for unrelaxed, _ in pairs), group.host)
        for (unrelaxed, relaxed), result in zip(pairs, results, strict=True):
            if isinstance(result, RelaxFailure) or relaxed is None:
                continue
            yield _measured(group, unrelaxed, relaxed.positions, result)


def card_of(card: ModelCard, pack: PackedDataset) -> ModelCard:
    """Return a card with a record of the hosts as it is made today, if the pack is what was trained on.

    Neighbouring defects count as seen where they were trained on in earnest: not in the h-BN of 2DMD, which the
    networks of the h-BN database see in every twentieth step, so as not to forget it.
    """
    if card.training is None or card.training.data_sha256 != pack.sha256:
        return card
    hosts = host_records(pack.groups, [group.indices("train") for group in pack.groups])
    main = [group for group in pack.groups if group.subset.startswith("hbn/")]
    for name, record in host_records(main, [group.indices("train") for group in main]).items():
        hosts[name] = hosts[name].model_copy(update={"side_by_side": record.side_by_side})
    training = card.training.plain() | {"hosts": {name: record.plain() for name, record in hosts.items()}}
    return card.changed(training=training)


def _measured(group: PairGroup, unrelaxed: Any, true: Array, result: Any) -> Measured:
    site_map = result.site_map
    still = ideal_sites(unrelaxed, site_map)
    error, ideal = result.atoms.positions - true, still - true
    error, ideal = error - error.mean(axis=0), ideal - ideal.mean(axis=0)
    moved = result.atoms.positions - still
    reservations = [one for one in result.judgement.reservations if one.word != "pristine"]
    defective = np.array([defect.site for defect in site_map.defects], dtype=int)
    named = sorted({site for one in reservations for site in one.sites or ()})
    doubtful = np.array(named, dtype=int) if named else defective
    columns = [np.linalg.norm(v, axis=1) for v in (error, ideal)]
    columns += [result.expected_error, np.linalg.norm(moved - moved.mean(axis=0), axis=1)]
    columns += [_distance(still, site_map, sites) for sites in (defective, doubtful)]
    return Measured(
        group.subset,
        group.host,
        tuple(sorted({one.kind_key for one in reservations})),
        (float(np.abs(error).mean()), float(np.abs(ideal).mean())),
        np.array(columns, dtype=np.float32).T,
        ", ".join(
            [*(f"{name} x{n}" for name, n in site_map.defect_counts.items()), f"{charge_of(unrelaxed).value:+d}"]
        ),
    )


def _distance(positions: Array, site_map: Any, sites: Array) -> Array:
    """Return the distance of every atom from the closest of some sites, in Å; 99 where there is none."""
    if not len(sites):
        return np.full(len(positions), 99.0)
    vectors = (positions[:, None] - site_map.positions[sites][None]).reshape(-1, 3)
    lengths = np.linalg.norm(minimum_image(vectors, site_map.cell), axis=1)
    return np.asarray(lengths.reshape(len(positions), -1).min(axis=1))


def summary(found: list[Measured]) -> dict[str, Any]:
    """Return means over structures, in Å, and what the network's own expected error was worth."""
    mae = np.array([one.mae for one in found])
    atoms = np.concatenate([one.atoms for one in found])
    length, expected = (np.mean([one.atoms[:, k].mean() for one in found]) for k in (0, 2))
    return {
        "structures": len(found),
        "network": round(float(mae[:, 0].mean()), 5),
        "ideal_sites": round(float(mae[:, 1].mean()), 5),
        "share": round(float(mae[:, 0].mean() / mae[:, 1].mean()), 3),
        "better_in": round(float((mae[:, 0] < mae[:, 1]).mean()), 2),
        "error": round(float(length), 5),
        "expected": round(float(expected), 5),
        "error_factor": round(float(length / expected), 2),
        "rank_correlation": round(rank_correlation(atoms[:, 2], atoms[:, 0]), 2),
    }


def grouped(found: list[Measured]) -> dict[str, list[Measured]]:
    """Return what was found by host and by the respects in which structures lie outside."""
    out: dict[str, list[Measured]] = defaultdict(list)
    for one in found:
        out[f"{one.host}: {' '.join(one.words) or 'inside'}"].append(one)
    return dict(sorted(out.items()))


def save_measured(path: Path, found: list[Measured]) -> None:
    """Write every atom."""
    np.savez_compressed(
        path,
        atoms=np.concatenate([one.atoms for one in found]),
        count=np.array([len(one.atoms) for one in found]),
        mae=np.array([one.mae for one in found]),
        words=np.array([" ".join(one.words) for one in found]),
        host=np.array([one.host for one in found]),
        defects=np.array([one.defects for one in found]),
        subset=np.array([one.subset for one in found]),
    )


def load_measured(path: Path) -> list[Measured]:
    """Read what :func:`save_measured` wrote."""
    with np.load(path) as file:
        parts = np.split(file["atoms"], np.cumsum(file["count"])[:-1])
        names = ("subset", "host", "words", "mae", "defects")
        rows = zip(*(file[name] for name in names), parts, strict=True)
        return [Measured(str(s), str(h), tuple(str(w).split()), (m[0], m[1]), a, str(d)) for s, h, w, m, d, a in rows]


def done(name: str, experiment: Experiment, folder: Path) -> dict[str, Any]:
    """Train and measure one experiment."""
    pack = data_of(name, experiment, folder)
    weights = trained(name, experiment, pack)
    found, inside = list(measure(weights, pack)), list(measure(weights, pack, "val", KEPT["val"] // 5))
    for split, rows in (("atoms", found), ("inside", inside)):
        if rows:
            save_measured(RUNS / name / f"{split}.npz", rows)
    parameters = sum(p.numel() for p in load_checkpoint(weights).model.parameters())
    return {
        "kind": experiment.kind,
        "left_out": experiment.words,
        "steps": experiment.steps,
        "parameters": parameters,
        "units": "Å: coordinate MAE of network and ideal_sites; error, expected: mean length of the error, per atom",
        "table": {key: summary(rows) for key, rows in grouped(found).items()},
        "inside": {key: summary(rows) for key, rows in grouped(inside).items()},
        "columns": ["host", "respects", "network", "ideal_sites", "error", "expected"],
        "structures": [
            [
                one.host,
                " ".join(one.words),
                *(round(float(v), 4) for v in (*one.mae, *one.atoms[:, [0, 2]].mean(axis=0))),
            ]
            for one in found
        ],
    }


def unseen_database(folder: Path) -> dict[str, Any]:
    """Measure the bundled network of neutral h-BN in PBE on the h-BN database, of which it has seen nothing."""
    weights = RUNS / "hbn-database" / "weights.safetensors"
    if not weights.exists():
        loaded = load_checkpoint(resolve_model("default"))
        place = next(k for k, one in enumerate(loaded.card.routed, 1) if one.beside)
        own = loaded.card.routed[place - 1]
        network = [one.network for one in loaded.model.served_networks()][place]
        training = None if own.training is None else own.training.plain()
        weights.parent.mkdir(parents=True, exist_ok=True)
        save_checkpoint(weights, network, {"name": own.name, "version": own.version, "training": training})
    pack = PackedDataset.open(folder / "bn-states.pack")
    pack = replace(pack, groups=tuple(group for group in pack.groups if group.subset.startswith("hbn/")))
    found = [one for split in ("train", "val") for one in measure(weights, pack, split)]
    save_measured(RUNS / "hbn-database" / "atoms.npz", found)
    return {
        "kind": "database",
        "left_out": "the h-BN database, from the bundled network of neutral h-BN in PBE",
        "table": {key: summary(rows) for key, rows in grouped(found).items()},
    }


def write(name: str, content: Mapping[str, Any]) -> None:
    """Write the result of an experiment, one line for each of its entries, and show its table."""
    OUT.mkdir(parents=True, exist_ok=True)
    lines = []
    for key, value in content.items():
        if isinstance(value, dict):
            inner = ",\n".join(f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in value.items())
            lines.append(f" {json.dumps(key)}: {{\n{inner}\n }}")
        elif key == "structures":
            inner = ",\n".join(f"  {json.dumps(row, ensure_ascii=False)}" for row in value)
            lines.append(f" {json.dumps(key)}: [\n{inner}\n ]")
        else:
            lines.append(f" {json.dumps(key)}: {json.dumps(value, ensure_ascii=False)}")
    (OUT / f"{name}.json").write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")
    for key, row in content["table"].items():
        print(f"{name:20s} {key:60s} {row}", flush=True)


def main() -> None:
    """Run what is asked for and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data", type=Path, help="folder with 2dmd.pack and bn-states.pack")
    parser.add_argument("names", nargs="*", help="parts of names of experiments; all by default")
    parser.add_argument("--again", action="store_true", help="measure anew what was trained")
    given = parser.parse_args()

    def wanted(name: str) -> bool:
        return not given.names or any(part in name for part in given.names)

    every = experiments()
    for name, experiment in every.items():
        base = any(one.initial == name and wanted(other) for other, one in every.items())
        there = (OUT / f"{name}.json").exists()
        if (there and not given.again) or (given.again and not there) or not (wanted(name) or base):
            continue
        if experiment.kind == "none":
            trained(name, experiment, data_of(name, experiment, given.data))
        else:
            write(name, done(name, experiment, given.data))
    if wanted("hbn-database") and (given.again or not (OUT / "hbn-database.json").exists()):
        write("hbn-database", unseen_database(given.data))


if __name__ == "__main__":
    main()
