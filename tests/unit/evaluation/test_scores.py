"""The numbers of a score table, computed once more from the structures that went in."""

from __future__ import annotations

import errno
import itertools
import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import mx2
from click.testing import CliRunner

from ase_definet.checkpoints.format import save_checkpoint
from ase_definet.cli import cli
from ase_definet.cli.evaluate import table_lines
from ase_definet.data import PairSource, pack_pairs
from ase_definet.errors import StructureError
from ase_definet.evaluation import scores as evaluate_module
from ase_definet.evaluation.scores import N_WORST, RADII, reliability, score_pairs, summarise
from ase_definet.evaluation.superposition import LinearSuperposition
from ase_definet.matching.library import get_host
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from tests.conftest import pristine

PACKED = 1e-4
"""A packed displacement is this good, single-precision inference included, in Å."""
VACANCY, TUNGSTEN = 0, 74
SMALL, LARGE = 4, 5
N_VAL = 7


def pair(n: int, defects: dict[int, int], seed: int, size: float = 0.03, vacuum: float = 20.0) -> tuple[Atoms, Atoms]:
    """Return MoS2 with new numbers on some sites, 0 to leave them empty, and a random relaxation of it."""
    atoms = pristine("MoS2", n, vacuum)
    for site, number in defects.items():
        atoms.numbers[site] = number
    del atoms[[site for site, number in defects.items() if number == VACANCY]]
    relaxed = atoms.copy()
    move = np.random.default_rng(seed).normal(0, size, (len(atoms), 3))
    relaxed.positions += move - move.mean(axis=0)
    return atoms, relaxed


def reference(key, subset, split, atoms, relaxed, host="MoS2") -> PairSource:
    return PairSource(key, subset, split, host, atoms, relaxed)


@pytest.fixture(scope="module")
def truth() -> dict[str, tuple[str, dict[int, int], int, Atoms, Atoms]]:
    """Return subset, defects, cell and structures of every scored pair; every relaxation has another size."""
    out = {}
    for k in range(N_VAL):
        defects = {1 + 3 * k: VACANCY, 30: TUNGSTEN} if k % 2 else {3 * k: TUNGSTEN}
        out[f"small{k}"] = ("high/MoS2", defects, SMALL, *pair(SMALL, defects, k, 0.02 + 0.02 * ((3 * k) % N_VAL)))
    for k in range(2):
        defects = {5 + k: VACANCY}
        out[f"large{k}"] = ("low/MoS2", defects, LARGE, *pair(LARGE, defects, 10 + k, vacuum=15))
    return out


@pytest.fixture(scope="module")
def pack(truth, tmp_path_factory):
    references = [reference(key, subset, "val", *atoms) for key, (subset, _, _, *atoms) in truth.items()]
    for k in range(6):
        defects = {3 * k: TUNGSTEN, 3 * k + 2: VACANCY}
        references.append(reference(f"train{k}", "high/MoS2", "train", *pair(SMALL, defects, 20 + k)))
    references.append(reference("hidden", "high/MoS2", "val", pair(SMALL, {4: VACANCY}, 0)[0], None))
    references.append(reference("secret", "low/MoS2", "test", pair(LARGE, {4: VACANCY}, 0, vacuum=15)[0], None))
    path = tmp_path_factory.mktemp("pack") / "tiny.pack"
    made, problems = pack_pairs(references, path, workers=1)
    assert problems == []
    return made


@pytest.fixture(scope="module")
def scored(pack, relaxer):
    seen = []
    scores, left_out = score_pairs(relaxer, pack, "val", progress=seen.append)
    assert seen == scores
    return scores, left_out


def images(vectors, cell):
    """Return the lengths of vectors and of all their nearby periodic images, shape ``(..., n_images)``."""
    shifts = np.array(list(itertools.product((-2, -1, 0, 1, 2), repeat=3))) @ cell
    return np.linalg.norm(vectors[..., None, :] + shifts, axis=-1)


def from_defects(atoms, defects, n):
    sites = pristine("MoS2", n, atoms.cell[2, 2])
    apart = atoms.positions[:, None] - sites.positions[list(defects)]
    return images(apart, atoms.cell.array).min(axis=(1, 2))


def test_errors_are_those_of_the_structures_that_went_in(scored, truth, relaxer):
    scores, _ = scored
    assert [score.id for score in scores] == list(truth)
    for score in scores:
        subset, defects, n, unrelaxed, relaxed = truth[score.id]
        assert score.subset == subset
        distance = from_defects(unrelaxed, defects, n)
        regions = {"coordinate_mae": distance < np.inf} | {f"a{r}": distance <= r for r in RADII}
        predicted = relaxer.predict(unrelaxed, "MoS2").atoms.positions
        for method, positions in {"model": predicted, "unrelaxed": unrelaxed.positions}.items():
            shifted = positions - relaxed.positions
            error = np.abs(shifted - shifted.mean(axis=0))
            expected = {name: error[mask].mean() for name, mask in regions.items()}
            assert score.maes[method] == pytest.approx(expected, abs=PACKED)
        assert score.seconds > 0
        for values, expected in (
            (score.error, np.linalg.norm(predicted - relaxed.positions, axis=1)),
            (score.distance, distance),
            (np.linalg.norm(score.true, axis=1), np.linalg.norm(relaxed.positions - unrelaxed.positions, axis=1)),
            (np.linalg.norm(score.predicted, axis=1), np.linalg.norm(predicted - unrelaxed.positions, axis=1)),
        ):
            np.testing.assert_allclose(np.sort(values), np.sort(expected), atol=2 * PACKED)


def test_the_regions_grow_and_differ(scored, truth):
    """Were they empty or everything, the test above could not tell them apart."""
    _, defects, n, unrelaxed, _ = truth["large0"]
    distance = from_defects(unrelaxed, defects, n)
    counts = [(distance <= r).sum() for r in RADII]
    assert counts == sorted(set(counts))
    assert counts[0] > 0
    assert counts[-1] < len(unrelaxed)
    assert len({round(value, 6) for value in scored[0][0].maes["model"].values()}) == 1 + len(RADII)


def test_superposition_is_that_of_the_training_pairs(scored, pack, truth):
    (group,) = (g for g in pack.groups if g.subset == "high/MoS2")
    fit = LinearSuperposition(group, group.indices("train"))
    for score in scored[0]:
        if score.subset != "high/MoS2":
            assert set(score.maes) == {"model", "ideal_sites", "unrelaxed"}  # nothing to fit
            continue
        index = group.ids.index(score.id)
        there = group.numbers[index] > 0
        difference = fit.predict(group.numbers[[index]])[0] - (group.offsets([index]) + group.moves([index]))[0]
        error = np.abs(difference[there] - difference[there].mean(axis=0)).mean()
        assert score.maes["superposition"]["coordinate_mae"] == pytest.approx(error)
        assert there.sum() == len(truth[score.id][3])


def test_table(scored):
    scores, _ = scored
    table = summarise(scores)
    assert list(table["subsets"]) == ["high/MoS2", "low/MoS2"]
    for name, row in table["subsets"].items():
        own = [score for score in scores if score.subset == name]
        assert row["n"] == len(own) == {"high/MoS2": N_VAL, "low/MoS2": 2}[name]
        for key in ("coordinate_mae", "a3", "a4", "a5", "a6"):
            assert row[key] == pytest.approx(sum(s.maes["model"][key] for s in own) / len(own))
            for method in own[0].maes.keys() - {"model"}:
                assert row[method][key] == pytest.approx(sum(s.maes[method][key] for s in own) / len(own))
        error = np.sort(np.concatenate([s.error for s in own]))
        assert row["error_quantiles"]["max"] == error[-1]
        for q in (0.5, 0.9, 0.99):
            below = int(q * (len(error) - 1))
            assert error[below] <= row["error_quantiles"][f"{q:g}"] <= error[below + 1]
        assert row["seconds_per_structure"] == pytest.approx(sum(s.seconds for s in own) / len(own))
    assert "superposition" in table["subsets"]["high/MoS2"]
    assert "superposition" not in table["subsets"]["low/MoS2"]


def test_worst_are_those_the_model_predicts_worst(scored):
    own = [score for score in scored[0] if score.subset == "high/MoS2"]
    maes = dict(zip((s.id for s in own), (0.3, 0.1, 0.7, 0.2, 0.6, 0.5, 0.4), strict=True))  # not as displacements go
    own = [replace(s, maes=s.maes | {"model": {"coordinate_mae": maes[s.id]}}) for s in own]
    worst = summarise(own)["subsets"]["high/MoS2"]["worst"]
    assert len(worst) == N_WORST < len(maes)
    assert list(worst.items()) == sorted(maes.items(), key=lambda item: -item[1])[:N_WORST]


def test_overall_is_the_mean_over_subsets(scored):
    table = summarise(scored[0])
    high, low = table["subsets"].values()
    overall = table["overall"]
    assert overall["n"] == N_VAL + 2
    assert overall["a3"] == pytest.approx((high["a3"] + low["a3"]) / 2)
    assert overall["unrelaxed"]["coordinate_mae"] == pytest.approx(
        (high["unrelaxed"]["coordinate_mae"] + low["unrelaxed"]["coordinate_mae"]) / 2
    )
    assert overall["error_quantiles"]["0.9"] == pytest.approx(
        (high["error_quantiles"]["0.9"] + low["error_quantiles"]["0.9"]) / 2
    )
    assert "superposition" not in overall  # of one subset only, it would be compared with another average


def test_a_pair_without_relaxed_structure_is_left_out_by_name(scored):
    assert scored[1] == ["high/MoS2 hidden: no relaxed structure"]


def test_nothing_to_score_is_an_error_that_names_the_pairs(pack, relaxer):
    with pytest.raises(StructureError, match="test split can be scored: low/MoS2 secret: no relaxed structure"):
        score_pairs(relaxer, pack, "test")
    high = replace(pack, groups=tuple(g for g in pack.groups if g.subset == "high/MoS2"))
    with pytest.raises(StructureError, match="test split can be scored: none is there"):
        score_pairs(relaxer, high, "test")


def test_what_the_relaxer_refuses_is_left_out_with_its_reason(truth, tmp_path):
    references = [
        reference("none", "mine", "val", *pair(SMALL, {}, 0)),
        reference("one", "mine", "val", *truth["small0"][3:]),
    ]
    made, _ = pack_pairs(references, tmp_path / "pack", workers=1)
    scores, left_out = score_pairs(DefiNetRelaxer(device="cpu", strict=True), made, "val", superposition=False)
    assert [score.id for score in scores] == ["one"]
    assert len(left_out) == 1
    assert left_out[0].startswith("mine none: no defects found")


def test_limit_takes_pairs_from_the_whole_range(pack, relaxer):
    scores, _ = score_pairs(relaxer, pack, "val", limit=3, superposition=False)
    assert [score.id for score in scores] == ["small0", "small3", "small6", "large0", "large1"]


def test_a_subset_of_two_cells_has_a_superposition_only_if_both_have(truth, tmp_path, relaxer):
    """Two groups make one row of the table; only one of them has training pairs."""
    references = [reference("t", "mine", "train", *pair(SMALL, {0: TUNGSTEN}, 0))]
    references += [reference(key, "mine", "val", *truth[key][3:]) for key in ("small0", "large0")]
    made, _ = pack_pairs(references, tmp_path / "pack", workers=1)
    assert len(made.groups) == 2
    scores, _ = score_pairs(relaxer, made, "val")
    assert sorted("superposition" in score.maes for score in scores) == [False, True]
    for order in (scores, scores[::-1]):
        row = summarise(order)["subsets"]["mine"]
        assert row["n"] == 2
        assert "superposition" not in row


def test_a_host_that_shares_its_name_with_another_crystal_is_itself(tmp_path, relaxer):
    """1T-MoS2 in a file MoS2.cif is not the library's MoS2."""
    unit = mx2("MoS2", kind="1T", a=3.19, vacuum=8)
    unit.pbc = True
    unrelaxed = unit.repeat((SMALL, SMALL, 1))
    del unrelaxed[4]
    relaxed = unrelaxed.copy()
    relaxed.positions[0, 2] += 0.1
    made, problems = pack_pairs(
        [reference("one", "mine", "val", unrelaxed, relaxed, get_host(unit, "MoS2"))], tmp_path / "pack", workers=1
    )
    assert problems == []
    assert made.groups[0].host == "MoS2"
    (score,), left_out = score_pairs(relaxer, made, "val", superposition=False)
    assert left_out == []
    assert any("host MoS2 was not in the training data" in text for text in score.warnings)
    n = len(unrelaxed)  # one atom moved by 0.1 Å, all by its mean
    assert score.maes["unrelaxed"]["coordinate_mae"] == pytest.approx(0.2 * (1 - 1 / n) / (3 * n), abs=1e-5)


@pytest.mark.parametrize("thicker", [-0.1, 0.0, 0.1])
@pytest.mark.parametrize("shift", [(0.0, 0.0, 0.0), (0.02, -0.05, 0.01)])
def test_ideal_sites_are_the_prediction_of_a_network_that_moves_nothing(tmp_path, thicker, shift):
    """Whatever the layer thickness of the unrelaxed file; that DFT moved the atoms as a whole is no error."""
    net = SiteNetwork(SiteNetworkConfig(features=8, layers=1))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.zero_()
    still = DefiNetRelaxer(save_checkpoint(tmp_path / "still.safetensors", net, {}), device="cpu")
    unrelaxed, relaxed = pair(SMALL, {4: VACANCY, 9: TUNGSTEN}, 3)
    relaxed.positions += shift
    middle = pristine("MoS2", SMALL).positions[:, 2].mean()
    unrelaxed.positions[:, 2] += thicker * np.sign((unrelaxed.positions[:, 2] - middle).round(3))
    made, problems = pack_pairs([reference("one", "mine", "val", unrelaxed, relaxed)], tmp_path / "pack", workers=1)
    assert problems == []
    (score,), _ = score_pairs(still, made, "val")
    assert score.maes["ideal_sites"] == pytest.approx(score.maes["model"], abs=1e-9)
    sites = pair(SMALL, {4: VACANCY, 9: TUNGSTEN}, 3)[0].positions
    error = np.abs((sites - sites.mean(axis=0)) - (relaxed.positions - relaxed.positions.mean(axis=0))).mean()
    assert score.maes["ideal_sites"]["coordinate_mae"] == pytest.approx(error, abs=PACKED)
    if thicker:
        assert abs(score.maes["unrelaxed"]["coordinate_mae"] - error) > 0.01


def test_a_pristine_pair_has_no_region_near_a_defect(tmp_path, relaxer):
    made, _ = pack_pairs([reference("none", "mine", "val", *pair(SMALL, {}, 0))], tmp_path / "pack", workers=1)
    (score,), _ = score_pairs(relaxer, made, "val")
    assert np.isinf(score.distance).all()
    assert set(score.maes["unrelaxed"]) == {"coordinate_mae"}
    assert "a3" not in summarise([score])["overall"]


def rank_correlation(one, other):
    return np.corrcoef(np.argsort(np.argsort(one)), np.argsort(np.argsort(other)))[0, 1]


@pytest.fixture
def estimated(scored):
    """Return the scores with estimates that are right within a factor."""
    rng = np.random.default_rng(0)
    return [replace(s, expected_error=s.error * np.exp(rng.normal(0, 0.7, len(s.error)))) for s in scored[0]]


def test_the_expected_error_is_compared_with_the_error(estimated):
    row = summarise(estimated)["subsets"]["high/MoS2"]["expected_error"]
    own = [score for score in estimated if score.subset == "high/MoS2"]
    error = np.concatenate([score.error for score in own])
    estimate = np.concatenate([score.expected_error for score in own])
    assert row["rank_correlation"] == pytest.approx(rank_correlation(estimate, error))
    assert 0.5 < row["rank_correlation"] < 0.99
    means = [(score.expected_error.mean(), score.error.mean()) for score in own]
    assert row["rank_correlation_of_structures"] == pytest.approx(rank_correlation(*zip(*means, strict=True)))
    assert row["mean_estimate"] == pytest.approx(estimate.mean())
    assert row["mean_error"] == pytest.approx(error.mean())
    assert row["within_twice"] == pytest.approx(np.mean(error <= 2 * estimate))


def test_structures_without_an_expected_error_are_counted_apart(estimated):
    some = [replace(estimated[0], expected_error=None), *estimated[1:]]
    row = summarise(some)["subsets"]["high/MoS2"]
    own = [score for score in some[1:] if score.subset == "high/MoS2"]
    assert row["n"] == row["expected_error"]["n"] + 1 == N_VAL
    assert row["expected_error"]["mean_error"] == pytest.approx(np.concatenate([s.error for s in own]).mean())
    none = [replace(score, expected_error=None) for score in estimated]
    assert "expected_error" not in summarise(none)["subsets"]["high/MoS2"]


def test_the_calibration_of_every_subset_is_shown(estimated):
    some = [replace(estimated[0], expected_error=None, trust="outside"), *estimated[1:]]
    rows = [replace(s, expected_error=None, trust="near") if s.subset == "low/MoS2" else s for s in some]
    table = {"model": "m", "split": "val"} | summarise(rows)
    lines = table_lines(table)
    start = next(k for k, line in enumerate(lines) if line.startswith("expected error"))
    shown = {line.split()[0]: line.split() for line in lines[start + 2 :]}
    own = table["subsets"]["high/MoS2"]["expected_error"]
    ratio = own["mean_estimate"] / own["mean_error"]
    assert shown["high/MoS2"][1:5] == [
        str(N_VAL - 1),
        f"{own['mean_estimate']:.4f}",
        f"{own['mean_error']:.4f}",
        f"{ratio:.2f}",
    ]
    assert shown["high/MoS2"][-2:] == [f"{N_VAL - 1}/0/1,", "1"]
    assert shown["low/MoS2"][1:] == ["0", "unknown", "0/2/0,", "2"]


def test_reliability_bins_hold_equal_numbers_of_atoms(estimated):
    rows = reliability(estimated, bins=4)
    estimate = np.concatenate([score.expected_error for score in estimated])
    error = np.concatenate([score.error for score in estimated])
    assert sum(row["n"] for row in rows) == len(error)
    assert max(row["n"] for row in rows) - min(row["n"] for row in rows) <= 1
    least = estimate <= np.sort(estimate)[rows[0]["n"] - 1]
    assert rows[0]["estimate"] == pytest.approx(estimate[least].mean())
    assert rows[0]["error"] == pytest.approx(error[least].mean())
    assert [row["estimate"] for row in rows] == sorted(row["estimate"] for row in rows)


def run(*args: object):
    return CliRunner().invoke(cli, [str(arg) for arg in args])


def test_command_writes_json_and_pictures(pack, scored, tmp_path):
    out, plots = tmp_path / "scores.json", tmp_path / "plots"
    args = ("evaluate", "--data", pack.path, "--device", "cpu", "--json", out, "--plot", plots)
    done = run(*args)
    assert done.exit_code == 0, done.output
    result = json.loads(out.read_text())
    assert result["split"] == "val"
    assert result["data_sha256"] == pack.sha256
    assert result["left_out"] == ["high/MoS2 hidden: no relaxed structure"]
    assert "left out  high/MoS2 hidden" in done.output
    expected = summarise(scored[0])["subsets"]
    keys = {"n", "coordinate_mae", "a3", "a4", "a5", "a6", "unrelaxed", "seconds_per_structure"}
    for name, extra in (("high/MoS2", {"superposition"}), ("low/MoS2", set())):
        row = result["subsets"][name]
        assert keys | extra <= set(row)
        assert row["a3"] == pytest.approx(expected[name]["a3"])
        assert set(row["unrelaxed"]) == {"coordinate_mae", "a3", "a4", "a5", "a6"}
        assert f"{row['coordinate_mae']:.4f}" in done.output
    assert {"error_by_distance.png", "parity.png"} <= {path.name for path in plots.iterdir()}

    again = run(*args)
    assert again.exit_code == 2
    assert "scores.json exists" in again.output
    again = run(*args[:5], "--plot", plots)
    assert again.exit_code == 2
    assert "error_by_distance.png exists" in again.output


def test_a_full_disk_leaves_the_old_json(pack, tmp_path, monkeypatch):
    out = tmp_path / "new" / "scores.json"
    args = ("evaluate", "--data", pack.path, "--device", "cpu", "--no-superposition", "--json", out)
    assert run(*args).exit_code == 0
    before = out.read_bytes()

    def full(_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    done = run(*args, "--overwrite")
    assert done.exit_code == 1
    assert "No space left" in done.output
    assert out.read_bytes() == before
    assert [path.name for path in out.parent.iterdir()] == [out.name]


@pytest.mark.parametrize("option", ["--json", "--plot"])
def test_a_folder_removed_meanwhile_is_missed_and_not_made_anew(pack, tmp_path, monkeypatch, option):
    folder = tmp_path / "new"
    real = evaluate_module.score_pairs

    def removing(*args, **kwargs):
        found = real(*args, **kwargs)
        shutil.rmtree(folder)
        return found

    monkeypatch.setattr(evaluate_module, "score_pairs", removing)
    target = folder / "scores.json" if option == "--json" else folder
    done = run("evaluate", "--data", pack.path, "--device", "cpu", "--no-superposition", option, target)
    assert done.exit_code == 1
    assert "this is a bug" not in done.output
    assert "no such folder" in done.output
    assert not folder.exists()


def test_command_scores_only_the_subsets_asked_for(pack, tmp_path):
    out = tmp_path / "scores.json"
    args = ("evaluate", "--data", pack.path, "--device", "cpu", "--json", out, "--no-superposition", "--subset")
    assert run(*args, "low/MoS2").exit_code == 0
    result = json.loads(out.read_text())
    assert list(result["subsets"]) == ["low/MoS2"]
    assert result["left_out"] == []
    refused = run(*args, "low/WSe2", "--overwrite")
    assert refused.exit_code == 2
    assert "has no subset low/WSe2; it has high/MoS2, low/MoS2" in refused.output
