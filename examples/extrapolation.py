"""Beyond the training data: the extended defects and large cells of Yang et al. (2025), with the bundled weights.

Run as ``python examples/extrapolation.py [FOLDER]``; with a folder (and matplotlib) it draws each case there.
"""

import sys
from pathlib import Path

import numpy as np
from ase import Atoms
from ase.geometry import get_distances

from ase_definet import DefiNetError, DefiNetRelaxer, get_host, match_sites

TOP, BOTTOM = 1, -1
BOND = 2.8


def pristine(name: str, n: int) -> Atoms:
    """Return an n x n cell of a library host in 18 Å of vacuum."""
    host = get_host(name)
    cell = host.cell.copy()
    cell[2] = [0, 0, 18]
    atoms = Atoms(host.numbers, host.positions, cell=cell, pbc=True).repeat((n, n, 1))
    atoms.positions[:, 2] += 9 - atoms.positions[:, 2].mean()
    return atoms


def nearest(atoms: Atoms, symbol: str, place: tuple[float, float], side: int) -> int:
    """Return the atom of an element nearest to a fractional place in the plane, on one side of the layer."""
    target = np.array([*place, 0]) @ atoms.cell
    target[2] = 9 + side * 1.6
    mine = [k for k, found in enumerate(atoms.symbols) if found == symbol]
    _, distance = get_distances(target, atoms.positions[mine], cell=atoms.cell, pbc=atoms.pbc)
    return mine[int(distance[0].argmin())]


def vacancy_line() -> Atoms:
    """Return 12x12 MoS2 with a row of S vacancies along a, through the whole cell, on one side."""
    atoms = pristine("MoS2", 12)
    del atoms[[nearest(atoms, "S", (k / 12 + 0.02, 0.5), TOP) for k in range(12)]]
    return atoms


def mixed_vacancies() -> Atoms:
    """Return 12x12 WSe2 with single and double Se vacancies."""
    atoms = pristine("WSe2", 12)
    places = [(0.2, 0.2), (0.6, 0.3), (0.3, 0.7), (0.75, 0.75)]
    gone = [nearest(atoms, "Se", place, TOP) for place in places]
    gone += [nearest(atoms, "Se", place, BOTTOM) for place in places[:2]]
    del atoms[gone]
    return atoms


def before_the_trefoil() -> Atoms:
    """Return 12x12 WSe2 without one Se pair, as rotational defects begin."""
    atoms = pristine("WSe2", 12)
    del atoms[[nearest(atoms, "Se", (0.5, 0.5), side) for side in (TOP, BOTTOM)]]
    return atoms


def trefoil() -> Atoms:
    """Return it with the three Se pairs bonded to one W turned by 60 degrees about it, the motif of the trefoil."""
    atoms = before_the_trefoil()
    tungsten = nearest(atoms, "W", (0.5, 0.5), 0)
    _, distance = get_distances(atoms.positions[tungsten], atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    bonded = np.flatnonzero((distance[0] > 0) & (distance[0] < BOND))
    arm = atoms.get_distances(tungsten, bonded, mic=True, vector=True)
    turn = np.array([[0.5, -np.sqrt(0.75), 0], [np.sqrt(0.75), 0.5, 0], [0, 0, 1]])
    atoms.positions[bonded] = atoms.positions[tungsten] + arm @ turn.T
    return atoms


def rows_across(atoms: Atoms, symbol: str, middle: float) -> float:
    """Return the distance of the two rows of an element on either side of a height y, in Å."""
    y = np.sort(atoms.positions[np.array(atoms.symbols) == symbol, 1])
    return float(y[y > middle][:4].mean() - y[y <= middle][-4:].mean())


def report(name: str, atoms: Atoms, relaxer: DefiNetRelaxer, folder: Path | None) -> Atoms:
    """Relax one case and say what came of it."""
    result = relaxer.predict(atoms)
    moved = np.linalg.norm(result.displacement, axis=1)
    defects = ", ".join(f"{what} x{n}" for what, n in result.site_map.defect_counts.items())
    print(f"{name}: {len(result.site_map.kinds)} sites, {defects}")
    if result.expected_error is None:
        doubt = f"unknown (outside the training data: {', '.join(result.unsupported)})"
    else:
        doubt = f"{result.expected_error.max():.3f} Å at most, {result.expected_error.mean():.3f} Å on average"
    print(f"  moved {moved.max():.3f} Å at most; expected error {doubt}; {sum(result.timings.values()):.2f} s")
    for warning in result.warnings:
        print(f"  warning: {warning}")
    if folder is not None:
        from ase_definet.plotting.structure import draw_relaxation  # noqa: PLC0415 - needs matplotlib

        draw_relaxation(
            atoms, result.atoms, folder / f"{name}.png", defects=result.site_map.defects, title=name, overwrite=True
        )
    return result.atoms


def main() -> None:
    """Run all cases."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    mos2, wse2 = DefiNetRelaxer(host="MoS2", device="cpu"), DefiNetRelaxer(host="WSe2", device="cpu")

    line = vacancy_line()
    relaxed = report("vacancy-line", line, mos2, folder)
    gone = [d.position[1] for d in match_sites(line, "MoS2").defects]
    for symbol in ("Mo", "S"):
        before, after = (rows_across(a, symbol, float(np.mean(gone))) for a in (line, relaxed))
        print(f"  {symbol} rows across the line: {before:.3f} -> {after:.3f} Å ({after / before - 1:+.1%})")

    report("mixed-vacancies", mixed_vacancies(), wse2, folder)

    report("before-the-trefoil", before_the_trefoil(), wse2, folder)
    turned = trefoil()
    print(f"trefoil, bonds already rotated: {match_sites(turned, 'WSe2').defect_counts}")
    try:
        wse2.predict(turned)
    except DefiNetError as error:
        print(f"  refused: {error}")

    for n in (12, 16, 64):
        cell = pristine("MoS2", n)
        del cell[nearest(cell, "S", (0.5, 0.5), TOP)]
        report(f"one-vacancy-in-{n}x{n}", cell, mos2, None)


if __name__ == "__main__":
    main()
