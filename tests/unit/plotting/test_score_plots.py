"""Pictures of made-up scores: what is drawn is what went in."""

from __future__ import annotations

import csv

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib._pylab_helpers import Gcf
from matplotlib.image import imread

from ase_definet.errors import DefiNetError
from ase_definet.evaluation.scores import Score, reliability
from ase_definet.plotting import scores as plots
from ase_definet.plotting.scores import BIN, DPI, FEWEST, FILES, REACH, SHORTEST, draw_learning_curve, draw_scores

N_ATOMS = 200


def score(subset: str, seed: int = 0, *, estimated: bool = False, size: float = 0.1) -> Score:
    rng = np.random.default_rng(seed)
    distance = rng.uniform(0, REACH + 3, N_ATOMS)
    true = rng.normal(0, size, (N_ATOMS, 3)) * np.exp(-distance / 4)[:, None]
    predicted = true * rng.uniform(0.5, 1.2, (N_ATOMS, 1))
    error = np.linalg.norm(predicted - true, axis=1)
    maes = {
        "model": {"coordinate_mae": float(error.mean())},
        "ideal_sites": {"coordinate_mae": 2 * float(error.mean())},
    }
    expected_error = error * np.exp(rng.normal(0, 0.3, N_ATOMS)) if estimated else None
    return Score(f"{subset}{seed}", subset, maes, error, distance, predicted, true, expected_error, 0.1, ())


def ink(path) -> float:
    """Return the share of a picture that is not white, after checking its size."""
    picture = imread(path)
    assert picture.shape[0] > 2 * DPI
    assert picture.shape[1] > 2 * DPI
    return float((picture[..., :3].min(axis=-1) < 0.9).mean())


def visible(figure) -> list:
    """Return the panels of a figure that are shown, without the colour bar."""
    return [axes for axes in figure.axes if axes.get_visible() and axes.get_label() != "<colorbar>"]


@pytest.mark.parametrize("n_subsets", [1, 2, 5, 8])
def test_pictures_are_written(tmp_path, n_subsets):
    scores = [score(f"high/X{k}", 10 * k + seed, estimated=True) for k in range(n_subsets) for seed in range(2)]
    with pytest.raises(FileNotFoundError, match="no such folder"):
        draw_scores(scores, tmp_path / "new")
    assert not (tmp_path / "new").exists()
    (tmp_path / "new" / "folder").mkdir(parents=True)
    paths = draw_scores(scores, tmp_path / "new" / "folder")
    assert paths == [tmp_path / "new" / "folder" / name for name in FILES]
    for path in paths:
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 0.01 < ink(path) < 0.6


def test_reliability_is_drawn_only_where_errors_are_expected(tmp_path):
    some = [score("a"), score("b", estimated=True)]
    assert [path.name for path in draw_scores(some[:1], tmp_path)] == list(FILES[:2])
    assert [path.name for path in draw_scores(some, tmp_path)] == list(FILES)


def test_pictures_show_the_scores(tmp_path):
    one, same, other = (
        [path.read_bytes() for path in draw_scores([score("a", seed, estimated=True)], tmp_path)]
        for seed in (0, 0, 1)
    )
    assert one == same
    assert all(picture != changed for picture, changed in zip(one, other, strict=True))


def test_no_global_state_is_touched(tmp_path):
    before = {key: value for key, value in mpl.rcParams.items() if key != "backend"}  # chosen when looked at
    draw_scores([score("a", estimated=True)], tmp_path)
    assert {key: mpl.rcParams[key] for key in before} == before
    assert Gcf.get_all_fig_managers() == []


def test_error_by_distance_is_median_and_90th_percentile():
    subsets = {name: [score(name, seed) for seed in (k, k + 1)] for k, name in enumerate(("a", "b"))}
    panels = visible(plots._errors_by_distance(subsets))
    assert [panel.get_title(loc="left") for panel in panels] == ["a", "b"]
    for panel, scores in zip(panels, subsets.values(), strict=True):
        assert panel.get_yscale() == "log"
        distance = np.concatenate([s.distance for s in scores])
        error = np.concatenate([s.error for s in scores])
        length = np.concatenate([np.linalg.norm(s.true, axis=1) for s in scores])
        drawn = [line for line in panel.get_lines() if len(line.get_xdata())]
        for line, (values, q) in zip(drawn, [(length, 0.9), (length, 0.5), (error, 0.9), (error, 0.5)], strict=True):
            expected = {}
            for low in np.arange(0, REACH, BIN):
                inside = values[(distance >= low) & (distance < low + BIN)]
                if len(inside) >= FEWEST:
                    expected[low + BIN / 2] = np.quantile(inside, q)
            assert len(expected) > 10
            assert dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) == pytest.approx(expected)


def test_parity_counts_every_atom():
    subsets = {"a": [score("a", seed) for seed in range(3)], "b": [score("b", 5, size=1.0)]}
    panels = visible(plots._parity(subsets))
    for panel, scores in zip(panels, subsets.values(), strict=True):
        (bins,) = panel.collections
        assert bins.get_array().sum() == N_ATOMS * len(scores)
        assert panel.get_xscale() == panel.get_yscale() == "log"
        assert panel.get_xlim() == panel.get_ylim()
        assert panel.get_xlim()[0] == pytest.approx(SHORTEST)
        (text,) = panel.texts
        assert f"{np.mean([s.maes['model']['coordinate_mae'] for s in scores]):.4f}" in text.get_text()


def test_reliability_has_a_line_a_subset_and_one_for_all():
    subsets = {name: [score(name, k, estimated=True)] for k, name in enumerate("abc")}
    (panel,) = plots._reliability(subsets).axes
    lines = {line.get_label(): line for line in panel.get_lines()}
    assert list(lines) == [*subsets, "all atoms", "estimate = error"]
    rows = reliability([s for scores in subsets.values() for s in scores])
    np.testing.assert_allclose(lines["all atoms"].get_xdata(), [row["estimate"] for row in rows])
    np.testing.assert_allclose(lines["all atoms"].get_ydata(), [row["error"] for row in rows])
    diagonal = lines["estimate = error"]
    np.testing.assert_array_equal(diagonal.get_xdata(), diagonal.get_ydata())
    assert "all atoms" not in {
        line.get_label() for line in plots._reliability({"a": subsets["a"]}).axes[0].get_lines()
    }


def test_what_has_no_logarithm_is_drawn_all_the_same(tmp_path):
    """Pristine pairs have no distance, atoms on their sites no displacement, and a perfect model no error."""
    still = score("still", estimated=True)
    zero = np.zeros(N_ATOMS)
    still = Score(
        "0",
        "still",
        still.maes,
        zero,
        np.full(N_ATOMS, np.inf),
        np.zeros((N_ATOMS, 3)),
        np.zeros((N_ATOMS, 3)),
        zero,
        0.1,
        (),
    )
    assert len(draw_scores([still], tmp_path)) == len(FILES)
    assert len(draw_scores([still, score("a", estimated=True)], tmp_path)) == len(FILES)


def write_log(path, steps, names=("high/MoS2", "low/WSe2"), gap=None):
    rows = [
        {"step": step, "seconds": step / 2, "rate": 1e-3, "loss": 1 / (k + 1)}
        | {f"{name} {key}": 0.1 / (k + 1) for name in names for key in ("mae", "a3") if name != gap or k > 1}
        for k, step in enumerate(steps)
    ]
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[-1].keys())
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_learning_curve(tmp_path):
    logs = {
        "one": write_log(tmp_path / "one.csv", range(500, 5000, 500)),
        "two": write_log(tmp_path / "two.csv", range(500, 3000, 500), ("high/MoS2", "high/P"), gap="high/P"),
        "just begun": write_log(tmp_path / "three.csv", [500]),
    }
    with pytest.raises(FileNotFoundError, match="no such folder"):
        draw_learning_curve(logs, tmp_path / "pictures" / "curve.png")
    (tmp_path / "pictures").mkdir()
    path = draw_learning_curve(logs, tmp_path / "pictures" / "curve.png")
    assert path == tmp_path / "pictures" / "curve.png"
    assert 0.01 < ink(path) < 0.6
    first = path.read_bytes()
    write_log(tmp_path / "one.csv", range(500, 4000, 500))
    assert draw_learning_curve(logs, path).read_bytes() != first


def test_learning_curve_leaves_out_rows_without_a_value(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path: figures.append(figure) or path)
    log = write_log(tmp_path / "log.csv", range(500, 3000, 500), gap="low/WSe2")
    draw_learning_curve({"run": log}, tmp_path / "curve.png")
    panels = {panel.get_title(loc="left"): panel for panel in visible(figures[0])}
    assert list(panels) == ["training loss", "high/MoS2, validation", "low/WSe2, validation"]
    steps = {
        name: [line.get_xdata().tolist() for line in panel.get_lines() if len(line.get_xdata())]
        for name, panel in panels.items()
    }
    assert steps["high/MoS2, validation"] == [[500, 1000, 1500, 2000, 2500]] * 2
    assert steps["low/WSe2, validation"] == [[1500, 2000, 2500]] * 2
    assert len(steps["training loss"]) == 1


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "expected the log.csv of a training run"),
        ("step,loss\n", "0 rows"),
        ("epoch,error\n1,2\n", r"found \['epoch', 'error'\]"),
        ("step,loss\n1,lots\n", "could not convert string to float: 'lots'"),
    ],
)
def test_what_is_no_log_is_refused(tmp_path, text, reason):
    (tmp_path / "log.csv").write_text(text)
    with pytest.raises(DefiNetError, match=reason):
        draw_learning_curve({"run": tmp_path / "log.csv"}, tmp_path / "curve.png")
    assert not (tmp_path / "curve.png").exists()


def test_no_log_is_refused(tmp_path):
    with pytest.raises(DefiNetError, match="at least one"):
        draw_learning_curve({}, tmp_path / "curve.png")
