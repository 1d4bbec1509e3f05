"""Learn expected errors from what was left out, and put them on the card of weights.

``python -m research.experiments.calibrate learn`` reads what :mod:`research.experiments.left_out` measured, fits the
error models of :mod:`ase_definet.relaxation.expected_error` and writes ``research/results/calibration.json``: the
models, which respects are ``near`` (the share of the ideal sites' error that was left), and, for each group of
structures, the mean expected error beside the true one and their rank correlation over atoms. Each group is judged by
a model that was fitted without it: without its composition in the h-BN database, without its experiment elsewhere.

``python -m research.experiments.calibrate card WEIGHTS`` puts the models and the respects on the card of weights.
"""

from __future__ import annotations

import argparse
import json
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ase_definet.checkpoints.card import ErrorModelRecord
from ase_definet.checkpoints.format import load_checkpoint, save_checkpoint, write_card
from ase_definet.data import PackedDataset
from ase_definet.matching.library import library
from ase_definet.relaxation.expected_error import FEATURES, Defective, features
from ase_definet.structures.metrics import rank_correlation
from research.experiments.left_out import RUNS, Measured, load_measured, measure
from research.paths import RESULTS

Array: TypeAlias = NDArray[Any]

OUT = RESULTS / "calibration.json"
BETTER = 0.9
"""What is left of the ideal sites' error, at most, where the network is said to be better."""
WITHIN = 1.5
"""Factor within which the mean expected error of a group left out of the fit must be, for its respects to have one."""
RANK = 0.6
"""Rank correlation over atoms that is wanted."""
ENOUGH = 10
"""Structures that make a respect one that was tried."""
RIDGE = 3e-3
"""Weight of the square of a feature's weight, times its standard deviation, in the loss."""
RIDGE_RESPECT = 1e-2
FOLDS = 5
ATOMS = 40
"""Atoms of a structure in the fit, at most; evenly spread over distances from the defects."""
DATABASE = "hbn-database"
OF_HOST = ("defects", "species", "complex", "host")
"""Respects of which nothing follows for hosts where they were not tried."""
OF_SITES, CLOSE, FEW = ("defects", "species"), 4.0, 5
"""Respects that are judged by the atoms close to some sites, in Å, and by structures with no other defects, if there are
some."""
SOURCE = "research/results/left_out, networks trained without them"
FOLDED = {"states": ("fold",), "others": ("fold", "experiment")}
FAMILIES = {"states": ("hbn-",), "others": ("host-", "defects-", "density-", "2dmd-", "dilute-", "dense-", DATABASE)}
"""Experiments from which a model is learned, by the beginnings of their names: one for the h-BN network, which knows
states and element descriptors, one for all others."""


@dataclass(frozen=True)
class Sample:
    """One structure.

    Attributes:
        experiment: What was left out.
        one: What was measured.
        x: Features of all atoms.
        fold: Which fold it belongs to.
    """

    experiment: str
    one: Measured
    x: Array
    fold: int

    @property
    def group(self) -> str:
        """The structures that are judged together."""
        return f"{self.experiment} | {self.one.host} | {' '.join(self.one.words) or 'inside'}"


def structure_of(one: Measured) -> Defective:
    """Return what the expected error of a structure depends on, from its record."""
    *names, charge = one.defects.split(", ")
    counts = {name.split(" x")[0]: int(name.split(" x")[1]) for name in names}
    return Defective(counts, int(charge), library()[one.host].layered)


def sample_of(experiment: str, one: Measured) -> Sample:
    """Return a structure with its features."""
    x = features(one.atoms[:, 2], one.atoms[:, 3], one.atoms[:, 4], structure_of(one))
    composition = one.defects.rpartition(",")[0]
    return Sample(experiment, one, x, zlib.crc32(composition.encode()) % FOLDS)


def samples(family: str) -> list[Sample]:
    """Return what was measured in the experiments of a family."""
    out = []
    for path in sorted(RUNS.glob("*/atoms.npz")):
        name = path.parent.name
        mine = name != DATABASE if family == "states" else True
        if mine and name.startswith(FAMILIES[family]):
            out += [sample_of(name, one) for one in load_measured(path)]
    return out


# The fit


@dataclass(frozen=True)
class Model:
    """Weights of the features, and what each respect adds."""

    weights: Array
    respects: Mapping[str, float]

    def lengths(self, sample: Sample) -> Array:
        """Return expected lengths of errors of all atoms, in Å."""
        return np.asarray(np.exp(sample.x @ self.weights + sum(self.respects.get(w, 0.0) for w in sample.one.words)))


def _chosen(sample: Sample) -> Array:
    order = np.argsort(sample.one.atoms[:, 4], kind="stable")
    return order[np.unique(np.linspace(0, len(order) - 1, ATOMS).astype(int))]


def fit(rows: Sequence[Sample], names: Iterable[str] = FEATURES) -> Model:
    """Fit a model: the negative log-likelihood of exponentially distributed errors, all groups with equal weight."""
    words = sorted({word for row in rows for word in row.one.words})
    wanted = [FEATURES.index(name) for name in names]
    count: dict[str, int] = defaultdict(int)
    for row in rows:
        count[row.group] += 1
    x, error, weight = [], [], []
    for row in rows:
        chosen = _chosen(row)
        flags = np.array([[word in row.one.words for word in words]] * len(chosen), dtype=float).reshape(
            len(chosen), -1
        )
        x.append(np.hstack([row.x[chosen][:, wanted], flags]))
        error.append(np.maximum(row.one.atoms[chosen, 0], 1e-4))
        weight.append(np.full(len(chosen), 1 / len(chosen) / np.sqrt(count[row.group])))
    a, e, w = np.concatenate(x), np.concatenate(error), np.concatenate(weight)
    w = w / w.sum()
    mean, scale = a.mean(axis=0), a.std(axis=0)
    scale[scale < 1e-9] = 1.0  # noqa: PLR2004
    flag = np.arange(a.shape[1]) >= len(wanted)
    mean, scale = np.where(flag | (np.arange(a.shape[1]) == 0), 0.0, mean), np.where(flag, 1.0, scale)
    z = (a - mean) / scale
    ridge = np.where(flag, RIDGE_RESPECT, RIDGE)
    ridge[0] = 0.0

    def loss(theta: Array) -> tuple[float, Array]:
        log = np.clip(z @ theta, -12, 3)
        ratio = e * np.exp(-log)
        return float(w @ (log + ratio) + ridge @ theta**2), z.T @ (w * (1 - ratio)) + 2 * ridge * theta

    start = np.zeros(a.shape[1])
    start[0] = np.log(w @ e)
    theta = minimize(loss, start, jac=True, method="L-BFGS-B", options={"maxiter": 500}).x
    plain = theta / scale
    weights = np.zeros(len(FEATURES))
    weights[wanted] = plain[: len(wanted)]
    weights[0] -= float((plain * mean).sum())
    return Model(weights, dict(zip(words, map(float, plain[len(wanted) :]), strict=True)))


def crossed(rows: Sequence[Sample], by: str) -> list[Array]:
    """Return expected errors of all structures, each from a model that was fitted without its like.

    Args:
        rows: The structures.
        by: ``fold`` (the compositions) or ``experiment``. Respects that only one experiment has tried are judged by
            compositions.
    """
    tried: dict[str, set[str]] = defaultdict(set)
    for row in rows:
        for word in row.one.words:
            tried[word].add(row.experiment)
    alone = {word for word, where in tried.items() if len(where) == 1}
    keys = [f"{row.fold}" if by == "fold" or alone & set(row.one.words) else row.experiment for row in rows]
    out: list[Array] = [np.empty(0)] * len(rows)
    for key in sorted(set(keys)):
        rest = [row for row, own in zip(rows, keys, strict=True) if own != key and not _same(row, key)]
        model = fit(rest)
        for k, own in enumerate(keys):
            if own == key:
                out[k] = model.lengths(rows[k])
    return out


def _same(row: Sample, key: str) -> bool:
    """Return whether a structure may not help where a fold or an experiment is judged."""
    return key in {str(row.fold), row.experiment}


def judged(rows: Sequence[Sample], expected: Sequence[Array]) -> dict[str, dict[str, Any]]:
    """Return how good expected errors are in each group."""
    groups: dict[str, list[int]] = defaultdict(list)
    for k, row in enumerate(rows):
        groups[row.group].append(k)
    out = {}
    for name, own in sorted(groups.items()):
        error = [rows[k].one.atoms[:, 0] for k in own]
        mae = np.array([rows[k].one.mae for k in own])
        true, guess = np.mean([e.mean() for e in error]), np.mean([expected[k].mean() for k in own])
        raw = [rows[k].one.atoms[:, 2] for k in own]
        out[name] = {
            "structures": len(own),
            "share": round(float(mae[:, 0].mean() / mae[:, 1].mean()), 3),
            "error": round(float(true), 5),
            "expected": round(float(guess), 5),
            "ratio": round(float(guess / true), 2),
            "rank_correlation": round(
                rank_correlation(np.concatenate([expected[k] for k in own]), np.concatenate(error)), 2
            ),
            "own_ratio": round(float(np.mean([r.mean() for r in raw]) / true), 2),
            "own_rank_correlation": round(rank_correlation(np.concatenate(raw), np.concatenate(error)), 2),
        }
    return out


def not_supported(table: Mapping[str, Mapping[str, Any]]) -> set[str]:
    """Return the respects of groups whose mean expected error was not within :data:`WITHIN` of the true one."""
    out: set[str] = set()
    for key, row in table.items():
        if row["given"] and row["structures"] >= ENOUGH and not 1 / WITHIN <= row["ratio"] <= WITHIN:
            out |= set(key.split(" | ")[2].split()) - {"inside"}
    return out


# What is near


def near_records(rows: Sequence[Sample], source: str) -> dict[str, dict[str, Any]]:
    """Return the respects in which the networks were better than the ideal sites.

    A respect is judged by the structures that lie outside in it and otherwise only in respects that were found to be
    near before it, or that come with it always, for each host apart. One that says something of defects, elements or
    hosts is near where it was tried with success, one of the state or of densities everywhere, unless a host has shown
    otherwise.
    """
    hosts = sorted({row.one.host for row in rows})
    out: dict[str, dict[str, Any]] = {}
    words = sorted({word for row in rows for word in row.one.words})
    found = True
    while found:
        found = False
        for word in words:
            own = {host: _alone(rows, word, host, _near_at(out, host)) for host in hosts}
            tried = {host: some for host, some in own.items() if len(some) >= ENOUGH}
            good = sorted(host for host, some in tried.items() if _share(_purest(some, word), word) < BETTER)
            if word in out or not good:
                continue
            restricted = word.partition(":")[0] in OF_HOST or len(good) < len(tried)
            some = [row for host in good for row in _purest(tried[host], word)]
            record = {"share": round(_share(some, word), 3), "structures": len(some)}
            out[word] = record | ({"hosts": good} if restricted else {}) | {"source": source}
            found = True
    return out


def _alone(rows: Sequence[Sample], word: str, host: str, near: set[str]) -> list[Sample]:
    """Return the structures of a host that judge a respect."""
    own = [row for row in rows if row.one.host == host and word in row.one.words]
    always = set.intersection(*(set(row.one.words) for row in own)) if own else set()
    allowed = near | {word} | {one for one in always if one.partition(":")[0] not in OF_HOST}
    return [row for row in own if set(row.one.words) <= allowed]


def _near_at(records: Mapping[str, Mapping[str, Any]], host: str) -> set[str]:
    """Return the respects that are near for a host."""
    return {word for word, record in records.items() if host in record.get("hosts", [host])}


def _purest(rows: list[Sample], word: str) -> list[Sample]:
    """Return the structures in which nothing is defective but what a respect is about, if there are some."""
    if word not in OF_SITES:
        return rows
    pure = [row for row in rows if np.allclose(row.one.atoms[:, 4], row.one.atoms[:, 5])]
    return pure if len(pure) >= FEW else rows


def _share(rows: Sequence[Sample], word: str = "") -> float:
    """Return what is left of the ideal sites' error, mean over structures.

    Where a respect is about some sites, atoms close to them count: known vacancies elsewhere in a structure, which
    the network does well, are no merit of what it makes of an unknown element.
    """
    if word not in OF_SITES:
        mae = np.array([row.one.mae for row in rows])
        return float(mae[:, 0].mean() / mae[:, 1].mean())
    parts = []
    for row in rows:
        away, doubtful = row.one.atoms[:, 4], row.one.atoms[:, 5]
        close = (doubtful <= away + 1e-3) & (doubtful < CLOSE)
        parts.append(row.one.atoms[close][:, :2].mean(axis=0))
    error, ideal = np.mean(parts, axis=0)
    return float(error / ideal)


def plain(model: Model, rows: Sequence[Sample]) -> dict[str, Any]:
    """Return a model as the entries of a card."""
    return {
        "features": {name: round(float(w), 4) for name, w in zip(FEATURES, model.weights, strict=True) if w},
        "respects": {word: round(value, 4) for word, value in model.respects.items()},
        "structures": len(rows),
        "source": SOURCE,
    }


def learn() -> None:
    """Fit the models, judge them, and write both."""
    out: dict[str, Any] = {
        "command": "python -m research.experiments.calibrate learn",
        "units": "Å; ratio: expected over true error; own: what the network's own estimate was worth; given: whether "
        "such structures have an expected error, or are outside",
        "better": BETTER,
        "rank_goal": RANK,
        "models": {},
        "near": {},
        "shown": [f"{family}, by {by[-1]}" for family, by in FOLDED.items()],
        "without_number": {},
        "judged": {},
        "experiments": sorted({path.parent.name for path in RUNS.glob("*/atoms.npz")}),
    }
    for family in FAMILIES:
        rows = samples(family)
        out["models"][family] = plain(fit(rows), rows)
        out["near"][family] = near_records(rows, SOURCE)
        for by in FOLDED[family]:
            table = judged(rows, crossed(rows, by))
            for key, row in table.items():
                _, host, words = key.split(" | ")
                row["given"] = words == "inside" or set(words.split()) <= _near_at(out["near"][family], host)
            out["judged"][f"{family}, by {by}"] = table
        failed = not_supported(out["judged"][f"{family}, by {FOLDED[family][-1]}"])
        out["without_number"][family] = sorted(failed)
        respects = out["models"][family]["respects"]
        out["models"][family]["respects"] = {word: value for word, value in respects.items() if word not in failed}
        for by in FOLDED[family]:
            for key, row in out["judged"][f"{family}, by {by}"].items():
                row["given"] = row["given"] and not failed & set(key.split(" | ")[2].split())
    OUT.write_text(json.dumps(out, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for name, table in out["judged"].items():
        print(name)
        for key, row in table.items():
            print(
                f"  {key:75s} n {row['structures']:4d} share {row['share']:.2f} error {row['error']:.4f} "
                f"ratio {row['ratio']:.2f} rank {row['rank_correlation']:.2f}   "
                f"own {row['own_ratio']:.2f} {row['own_rank_correlation']:.2f}"
            )
    for family, records in out["near"].items():
        print(family, json.dumps(records, indent=1))


# The card


def shifted(model: Mapping[str, Any], weights: Path, pack: PackedDataset) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a model whose expected errors have the right mean for given weights, on their validation pairs.

    The small networks of the experiments have larger errors. Two factors are fitted to the weights, one for crystals
    and one for layers.

    Args:
        model: As learned.
        weights: The weights.
        pack: With validation pairs that the weights were not trained on.

    Returns:
        The model, and how good it is on all validation pairs, by subset, each judged without its composition.
    """
    record = ErrorModelRecord.model_validate(dict(model))
    first = Model(np.array([record.features.get(name, 0.0) for name in FEATURES]), record.respects)
    rows = [sample_of(one.subset, one) for one in measure(weights, pack, "val", 10_000)]
    expected: list[Array] = [np.empty(0)] * len(rows)
    for fold in range(FOLDS):
        scaled = _scaled(first, [row for row in rows if row.fold != fold])
        for k, row in enumerate(rows):
            if row.fold == fold:
                expected[k] = scaled.lengths(row)
    final = _scaled(first, rows)
    values = {name: round(float(w), 4) for name, w in zip(FEATURES, final.weights, strict=True) if w}
    return dict(model) | {"features": values}, judged(rows, expected)


def _scaled(model: Model, rows: Sequence[Sample]) -> Model:
    """Return a model whose mean expected error is the mean true one, for layers and for crystals of some structures."""
    weights = model.weights.copy()
    logs = []
    for layered in (False, True):
        own = [row for row in rows if library()[row.one.host].layered == layered]
        true = sum(float(row.one.atoms[:, 0].mean()) for row in own)
        guess = sum(float(model.lengths(row).mean()) for row in own)
        logs.append(float(np.log(true / guess)) if own else 0.0)
    weights[FEATURES.index("one")] += logs[0]
    weights[FEATURES.index("layer_one")] += logs[1] - logs[0]
    return Model(weights, model.respects)


def write_to_card(given: argparse.Namespace) -> None:
    """Put what was learned on the card of weights, and print how good it is there."""
    learned = json.loads(OUT.read_text(encoding="utf-8"))
    loaded = load_checkpoint(given.weights)
    values = loaded.card.plain()
    near = dict(learned["near"]["others"])
    values["error_model"] = learned["models"]["others"]
    places = [k for k, one in enumerate(loaded.model.served_networks()[1:]) if one.network.config.states]
    if places and given.data:
        pack = PackedDataset.open(given.data)
        hosts = sorted({group.host for group in pack.groups})
        model, table = shifted(learned["models"]["states"], given.weights, pack)
        for place in places:
            values["routed"][place]["error_model"] = model | {"inside": hosts}
        near = joined(near, learned["near"]["states"], hosts)
        for name, row in table.items():
            print(f"{name:75s} {row}")
    for key, share, defects, source in given.near:
        near[key] = {"share": float(share), "source": source} | ({"defects": defects.split(",")} if defects else {})
    for record in (values, *values.get("routed", [])):  # what is outside has no expected error, whatever its size
        if model_ := record.get("error_model"):
            record["error_model"] = model_ | {"respects": {k: v for k, v in model_["respects"].items() if k in near}}
    card = loaded.card.changed(**(values | {"near": near}))
    save_checkpoint(given.weights, loaded.model, card, overwrite=True)
    write_card(given.weights, overwrite=True)
    print(f"wrote the card of {given.weights}: near in {', '.join(near)}")


def joined(
    others: Mapping[str, dict[str, Any]], states: Mapping[str, dict[str, Any]], hosts: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """Return the respects of both families; where both have tried one, that of more structures, for all their hosts."""
    out = dict(others)
    for key, record in states.items():
        own = record | {"hosts": record.get("hosts", list(hosts))}  # the other networks know no states
        before = out.get(key)
        if before is None:
            out[key] = own
            continue
        both = sorted({*before.get("hosts", []), *own.get("hosts", [])})
        worst = max(before, own, key=lambda one: float(one["share"]))
        restricted = "hosts" in before and "hosts" in own
        total = {"structures": before["structures"] + own["structures"]}
        out[key] = {k: v for k, v in worst.items() if k != "hosts"} | total | ({"hosts": both} if restricted else {})
    return out


def main() -> None:
    """Learn, or write a card."""
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(required=True, dest="what")
    commands.add_parser("learn")
    card = commands.add_parser("card")
    card.add_argument("weights", type=Path, help="file whose card is written anew")
    card.add_argument("--data", type=Path, help="pack with validation pairs of the network that knows states")
    card.add_argument(
        "--near",
        action="append",
        default=[],
        nargs=4,
        metavar=("KEY", "SHARE", "DEFECTS", "SOURCE"),
        help="a respect that was measured elsewhere; defects with commas between, '' for all",
    )
    given = parser.parse_args()
    if given.what == "learn":
        learn()
    else:
        write_to_card(given)


if __name__ == "__main__":
    main()
