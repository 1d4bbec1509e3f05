"""Which arrangement of three defects in 8x8 WSe2 is the most stable? Binding energy against distance.

Run as ``python examples/three_defects_wse2.py [FOLDER]``; with a folder (and matplotlib) it draws the figure of
docs/screening.md there. The three defects are a tungsten vacancy and two selenium vacancies, in all their 743
symmetry-distinct arrangements.
"""

import sys
from pathlib import Path

import numpy as np
from ase.data import atomic_numbers

from ase_definet import DefiNetRelaxer, get_host
from ase_definet.properties.predictor import FORMATION_ENERGY, PropertyPredictor
from ase_definet.screening.enumeration import Configuration, DefectSpace, parse_defects

DEFECTS = ["v_W", "v_Se", "v_Se"]
SIZE = 8
BEST = 3
RADIUS = 9.0


def energies(
    predictor: PropertyPredictor, space: DefectSpace, configurations: list[Configuration]
) -> tuple[np.ndarray, np.ndarray]:
    """Return formation energies and their expected errors, in eV."""
    occupations = np.tile(space.numbers, (len(configurations), 1))
    for row, one in zip(occupations, configurations, strict=True):
        row[list(one.sites)] = [kind.element for kind in one.kinds]
    found = predictor.predict_occupations(space.host, space.supercell, occupations, targets=[FORMATION_ENERGY])
    return found[FORMATION_ENERGY], found[f"{FORMATION_ENERGY}_error"]


def main() -> None:
    """Rank all arrangements, relax the best and compare them with three isolated defects."""
    predictor = PropertyPredictor()
    space = DefectSpace(get_host("WSe2"), np.diag([SIZE, SIZE, 1]))
    alone = 0.0
    for name in DEFECTS:
        (single,) = space.enumerate(parse_defects(name))
        alone += energies(predictor, space, [single])[0][0]
    found = list(space.enumerate(parse_defects(" + ".join(DEFECTS))))
    formation, error = energies(predictor, space, found)
    binding = alone - formation
    distance = np.array([np.mean(one.distances) for one in found])

    print(f"{len(found)} arrangements of {', '.join(DEFECTS)} in {SIZE}x{SIZE} WSe2; {alone:.2f} eV apart")
    relaxer = DefiNetRelaxer(host="WSe2", device="cpu")
    order = np.argsort(-binding)
    for k in order[:BEST]:
        result = relaxer.predict(space.atoms(found[k]))
        apart = ", ".join(f"{length:.2f}" for length in found[k].distances)
        moved = np.linalg.norm(result.displacement, axis=1).max()
        print(
            f"{found[k].name:22s} bound by {binding[k]:.2f} eV (expected error {error[k]:.2f}), {apart} Å apart, "
            f"atoms move by up to {moved:.2f} Å"
        )
    if len(sys.argv) > 1:
        draw(Path(sys.argv[1]), distance, binding, space, found)


def bonds(space: DefectSpace, one: Configuration) -> int:
    """Return how many selenium vacancies are next to the tungsten vacancy."""
    metal, *others = one.sites  # the tungsten vacancy comes first
    lengths = space.distances(np.full(len(others), metal), np.array(others))
    return int((lengths < 1.05 * space.host.nearest_neighbor).sum())


def draw(
    folder: Path, distance: np.ndarray, binding: np.ndarray, space: DefectSpace, found: list[Configuration]
) -> None:
    """Draw binding energy against mean distance, and the sites of the best arrangement."""
    import matplotlib.pyplot as plt  # noqa: PLC0415 - only for the figure

    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", width_ratios=(3, 2))
    left.axhline(0, color="0.7", linewidth=1)
    beside = np.array([bonds(space, one) for one in found])
    for count, color in enumerate(("#7a8794", "#0b63c5", "#b3541e")):
        own = beside == count
        left.scatter(distance[own], binding[own], s=10, color=color, linewidths=0, label=f"{count} v_Se beside v_W")
    left.set_xlabel("mean distance of the three vacancies (Å)")
    left.set_ylabel("binding energy (eV)")
    left.set_title(f"v_W + 2 v_Se in 8x8 WSe2, {len(found)} arrangements", fontsize=10)
    left.legend(frameon=False)

    best = found[int(binding.argmax())]
    scaled = np.linalg.solve(space.cell.T, (space.positions - space.positions[best.sites[0]]).T).T
    scaled[:, :2] -= np.round(scaled[:, :2])
    places = scaled @ space.cell  # relative to the tungsten vacancy
    shown = np.linalg.norm(places[:, :2], axis=1) < RADIUS
    shown[list(best.sites)] = False
    for symbol, color, size in (("W", "#2194d6", 130), ("Se", "#ffa100", 70)):
        own = shown & (space.numbers == atomic_numbers[symbol])
        right.scatter(*places[own, :2].T, s=size, color=color, edgecolors="0.4", linewidths=0.5)
    for site, kind in zip(best.sites, best.kinds, strict=True):
        x, y, z = places[site]
        right.scatter(x, y, s=260, facecolors="none", edgecolors="#b3541e", linewidths=2)
        where = "" if abs(z) < 1 else " above" if z > 0 else " below"
        right.annotate(
            f"{kind.name}{where}",
            (x, y),
            (14, 0),
            textcoords="offset points",
            color="#b3541e",
            fontsize=9,
            va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.85, "pad": 1},
        )
    right.set_aspect("equal")
    right.set_axis_off()
    right.set_title("the most stable one, from above", fontsize=10)
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / "three-defects.png", dpi=100)
    print(f"wrote {folder / 'three-defects.png'}")


if __name__ == "__main__":
    main()
