"""The cases of site matching: planted defects are found again, or the match is refused or flagged."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, make_supercell, molecule, mx2

from ase_definet.errors import DefiNetError, HostError, MatchError, StructureError
from ase_definet.matching.extra_atoms import OUTSIDE, ExtraKind
from ase_definet.matching.library import library
from ase_definet.matching.site_kind import SiteKind
from ase_definet.matching.site_map import MIN_ADVANTAGE, MIN_MARGIN, STRAIN_NOTICE, match_sites

POSITION_TOLERANCE = 1e-3  # Å, a structure on its sites
RATTLE_TOLERANCE = 0.2  # Å, the rigid shift of a rattled one is a median
STRAIN_TOLERANCE = 1e-6
GIVEN_TOLERANCE = 1e-9  # Å, arithmetic on the caller's own numbers

LAYERS = {"MoS2": 8, "BN": 8, "GaSe": 6, "P": 6}
CRYSTALS = {
    "MgO": bulk("MgO", "rocksalt", a=4.21, cubic=True),
    "GaAs": bulk("GaAs", "zincblende", a=5.65, cubic=True),
    "Si": bulk("Si", "diamond", a=5.43, cubic=True),
}
FOREIGN = {"MoS2": "W", "BN": "C", "GaSe": "In", "P": "N", "MgO": "Ca", "GaAs": "In", "Si": "Ge"}
HOSTS = ["MoS2", "BN", "GaSe", "P", "MgO", "GaAs", "Si"]
PAIR = ["MoS2", "MgO"]
COMPOUNDS = ["MoS2", "BN", "GaSe", "MgO", "GaAs"]


def host_of(name):
    return name if name in LAYERS else CRYSTALS[name]


def unit_cell(name, c=20.0):
    if name in CRYSTALS:
        return CRYSTALS[name].copy()
    host = library()[name]
    atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True)
    atoms.set_cell([*atoms.cell[:2], [0, 0, c]])
    return atoms


def pristine(name, c=20.0, size=None):
    size = size or LAYERS.get(name, 3)
    return unit_cell(name, c).repeat((size, size, 1 if name in LAYERS else size))


def plant(atoms, changes):
    """Plant ``{index: symbol or None}``; return the structure and the set of (name, ideal position) it holds."""
    defects = [(f"{new or 'v'}_{atoms.symbols[k]}", atoms.positions[k].copy()) for k, new in changes.items()]
    out = atoms.copy()
    for k, new in changes.items():
        if new:
            out.symbols[k] = new
    del out[[k for k, new in changes.items() if new is None]]
    return out, defects


def one_of_each(name, seed=0):
    """Plant a vacancy on each sublattice, a substitution and, in a compound, an antisite."""
    atoms = pristine(name)
    rng = np.random.default_rng(seed)
    elements = sorted(set(atoms.symbols), key=str)
    changes = {int(rng.choice(np.flatnonzero(atoms.symbols == element))): None for element in elements}
    free = [k for k in rng.permutation(len(atoms)).tolist() if k not in changes]
    changes[free[0]] = FOREIGN[name]
    if len(elements) > 1:
        changes[free[1]] = next(e for e in elements if e != atoms.symbols[free[1]])
    return plant(atoms, changes)


def distance(atoms, a, b):
    """Distance of two points up to vectors of the cell."""
    fraction = np.linalg.solve(atoms.cell.complete().array.T, np.subtract(a, b))
    return np.linalg.norm((fraction - np.round(fraction)) @ atoms.cell.complete().array)


def assert_consistent(atoms, site_map):
    """What every SiteMap promises."""
    real = site_map.atom_index >= 0
    off = [atom.atom_index for atom in site_map.extra]
    assert off == sorted(off)
    assert sorted([*site_map.atom_index[real], *off]) == list(range(len(atoms)))
    for atom in site_map.extra:
        assert atom.element == atoms.symbols[atom.atom_index]
        np.testing.assert_array_equal(atom.position, atoms.positions[atom.atom_index])
        nearest = min(distance(atoms, atom.position, site_map.positions[site]) for site in atom.sites)
        assert atom.distance == pytest.approx(nearest, abs=GIVEN_TOLERANCE)
    np.testing.assert_array_equal(site_map.numbers[real], atoms.numbers[site_map.atom_index[real]])
    np.testing.assert_array_equal(site_map.kinds == SiteKind.VACANCY, ~real)
    np.testing.assert_array_equal(site_map.numbers[~real], 0)
    assert len(site_map.kinds) == abs(round(np.linalg.det(site_map.supercell))) * len(site_map.host.numbers)
    np.testing.assert_array_equal(site_map.offsets[~real], 0)
    given = atoms.positions[site_map.atom_index[real]] - site_map.offsets[real]
    for ideal, site in zip(given[::7], site_map.positions[real][::7], strict=True):
        assert distance(atoms, ideal, site) < GIVEN_TOLERANCE
    assert np.isclose(np.linalg.det(site_map.rotation), 1)


def assert_found(atoms, defects, host, tolerance=POSITION_TOLERANCE, **options):
    """The defects planted, and no others, are found where they were planted."""
    site_map = match_sites(atoms, host, **options)
    assert_consistent(atoms, site_map)
    left = list(site_map.defects)
    for name, position in defects:
        here = [d for d in left if d.name == name and distance(atoms, d.position, position) < tolerance]
        assert len(here) == 1, f"{name} at {position}: found {site_map.defect_counts}"
        left.remove(here[0])
    assert left == []
    return site_map


def the_extra_atom(atoms, site_map):
    """Return the only atom on no site, that the networks' way in refuses by name."""
    assert_consistent(atoms, site_map)
    (extra,) = site_map.extra
    with pytest.raises(MatchError) as error:
        site_map.require_sites_only()
    for part in (f"atom {extra.atom_index} ({extra.element}) at (", "sits on no free site of host", extra.name):
        assert part in str(error.value)
    assert f"({extra.kind})" in str(error.value)
    return extra


def moved(atoms, defects, function):
    """Apply a function to the positions of atoms and defects."""
    out = atoms.copy()
    out.positions = function(atoms.positions)
    return out, [(name, function(position)) for name, position in defects]


def with_axes(atoms, order):
    """Reorder the cell vectors."""
    out = atoms.copy()
    out.set_cell(atoms.cell.array[list(order)])
    return out


def turn(axis, degrees):
    """Return the rotation by an angle about an axis, for row vectors."""
    box = Atoms(cell=np.eye(3))
    box.rotate(degrees, axis, rotate_cell=True)
    return box.cell.array


# 1. Origin


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(
    "shift", [(0.002, 0.002, 0.002), (1.0, 0.0, 0.0), (0.4, -1.0, 0.7), "half", "across"], ids=str
)
def test_case_01_origin_shifted(name, shift):
    atoms, defects = one_of_each(name)
    vector = {"half": atoms.cell.sum(axis=0) / 2, "across": atoms.cell[2] / 2}.get(shift, shift)
    atoms, defects = moved(atoms, defects, lambda r: r + vector)
    assert_found(atoms, defects, host_of(name))


# 2. Images


@pytest.mark.parametrize("name", ["MoS2", "GaSe", "P", "MgO", "GaAs"])
@pytest.mark.parametrize("start", [0.0, -1e-6, 1e-6, 0.5], ids=str)
def test_case_02_wrapped_at_the_cell_boundary(name, start):
    atoms, defects = one_of_each(name)
    # one atom comes to lie at the boundary: a layer is cut by it, an atom at 1 - 1e-6 has neighbours at 0
    origin = atoms.positions[40] - start * atoms.cell.sum(axis=0)
    atoms, defects = moved(atoms, defects, lambda r: r - origin)
    atoms.wrap(eps=0)
    assert_found(atoms, defects, host_of(name))


@pytest.mark.parametrize("name", HOSTS)
def test_case_02_any_image(name):
    atoms, defects = one_of_each(name)
    images = np.random.default_rng(1).integers(-2, 3, (len(atoms), 3))
    atoms.positions += images @ atoms.cell.array
    assert_found(atoms, defects, host_of(name))


def test_offsets_give_the_ideal_site_in_the_callers_own_image():
    ideal = pristine("MoS2")
    images = np.random.default_rng(1).integers(-2, 3, (len(ideal), 3)) @ ideal.cell.array
    atoms, _ = moved(ideal, [], lambda r: r + images)
    atoms.rattle(0.05, seed=2)
    site_map = match_sites(atoms, "MoS2")
    found = np.empty((len(atoms), 3))
    found[site_map.atom_index] = atoms.positions[site_map.atom_index] - site_map.offsets
    delta = found - ideal.positions - images
    np.testing.assert_allclose(delta, np.broadcast_to(delta[0], delta.shape), atol=GIVEN_TOLERANCE)
    assert np.linalg.norm(delta[0]) < 0.05


# 3. Strain


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("strain", [-0.02, -0.005, 0.005, 0.02])
def test_case_03_strained(name, strain):
    atoms, defects = one_of_each(name)
    stretch = np.array([1 + strain, 1 + strain, 1 if name in LAYERS else 1 + strain])
    atoms, defects = moved(atoms, defects, lambda r: r * stretch)
    atoms.set_cell(atoms.cell.array * stretch)
    site_map = assert_found(atoms, defects, host_of(name))
    np.testing.assert_allclose(np.sort(site_map.strain), np.sort(stretch - 1), atol=STRAIN_TOLERANCE)
    assert site_map.max_strain == pytest.approx(strain, abs=STRAIN_TOLERANCE)
    assert site_map.warnings == ()


@pytest.mark.parametrize("name", ["MoS2", "P", "MgO"])
def test_case_03_strained_along_one_axis(name):
    atoms, defects = one_of_each(name)
    stretch = np.diag([1.02, 0.995, 1.0])
    atoms, defects = moved(atoms, defects, lambda r: r @ stretch)
    atoms.set_cell(atoms.cell.array @ stretch)
    site_map = assert_found(atoms, defects, host_of(name))
    np.testing.assert_allclose(np.sort(site_map.strain), [-0.005, 0.0, 0.02], atol=STRAIN_TOLERANCE)


@pytest.mark.parametrize("name", ["MoS2", "GaSe", "P"])
@pytest.mark.parametrize("c", [14.879, 31.7])
def test_case_03_another_vacuum_is_no_strain(name, c):
    atoms, defects = one_of_each(name)
    atoms.set_cell([*atoms.cell[:2], [0, 0, c]])
    site_map = assert_found(atoms, defects, name)
    np.testing.assert_allclose(site_map.strain, 0, atol=STRAIN_TOLERANCE)


@pytest.mark.parametrize("name", ["MoS2", "BN"])
def test_case_03_tilted_vacuum_vector(name):
    atoms, defects = one_of_each(name)
    atoms, defects = moved(atoms, defects, lambda r: r - [0, 0, 3.8])
    atoms.set_cell([*atoms.cell[:2], [2.5, 1.5, 20]])
    atoms.wrap()
    assert_found(atoms, defects, name)


@pytest.mark.parametrize("name", ["MoS2", "P"])
@pytest.mark.parametrize("edge", ["zero", "tight"])
def test_case_03_layer_without_a_third_vector_as_ase_writes_it(name, edge):
    atoms, defects = one_of_each(name)
    height = np.ptp(atoms.positions[:, 2])
    atoms.set_cell([*atoms.cell[:2], [0, 0, 0 if edge == "zero" else height + 0.1]])
    atoms.pbc = (True, True, False)
    site_map = assert_found(atoms, defects, name)
    assert site_map.pbc == (True, True, False)


@pytest.mark.parametrize("name", PAIR)
def test_case_03_large_strain_is_reported(name):
    atoms, defects = one_of_each(name)
    stretch = np.diag([1.04, 1.04, 1.0 if name in LAYERS else 1.04])
    atoms, defects = moved(atoms, defects, lambda r: r @ stretch)
    atoms.set_cell(atoms.cell.array @ stretch)
    site_map = assert_found(atoms, defects, host_of(name))
    assert site_map.max_strain > STRAIN_NOTICE
    assert any("+4.0%" in warning for warning in site_map.warnings)
    with pytest.raises((HostError, MatchError), match=r"commensurate|check the host"):
        match_sites(atoms, host_of(name), max_strain=0.03)


# 4. Orientation


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize(("axis", "degrees"), [((0, 0, 1), 60), ((0, 0, 1), 17), ((1, 2, -3), 101), ((1, 0, 0), 180)])
def test_case_04_rotated_with_its_cell(name, axis, degrees):
    rotation = turn(axis, degrees)
    atoms, defects = one_of_each(name)
    atoms, defects = moved(atoms, defects, lambda r: r @ rotation)
    atoms.set_cell(atoms.cell.array @ rotation)
    site_map = assert_found(atoms, defects, host_of(name))
    np.testing.assert_allclose(site_map.strain, 0, atol=STRAIN_TOLERANCE)


@pytest.mark.parametrize(
    ("name", "degrees"), [("MoS2", 60), ("BN", 60), ("GaSe", 180), ("P", 180), ("MgO", 90), ("GaAs", 90), ("Si", 90)]
)
def test_case_04_rotated_against_its_cell(name, degrees):
    rotation = turn((0, 0, 1), degrees)
    atoms, defects = one_of_each(name)
    assert_found(*moved(atoms, defects, lambda r: r @ rotation), host_of(name))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("order", [(1, 0, 2), (2, 0, 1), (0, 2, 1), (2, 1, 0)], ids=str)
def test_case_04_axes_swapped(name, order):
    atoms, defects = one_of_each(name)
    assert_found(with_axes(atoms, order), defects, host_of(name))


@pytest.mark.parametrize("name", ["MoS2", "BN", "MgO", "Si"])
@pytest.mark.parametrize("rows", [[[1, 0, 0], [1, 1, 0], [0, 0, 1]], [[-1, 0, 0], [0, 1, 0], [0, 0, 1]]], ids=str)
def test_case_04_another_setting_of_the_same_lattice(name, rows):
    """The rows are 60 for 120 degrees, and a left-handed cell."""
    atoms, defects = one_of_each(name)
    atoms.set_cell(np.array(rows) @ atoms.cell.array)
    assert_found(atoms, defects, host_of(name))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("mirror", [(-1, 1, 1), (1, -1, 1), (1, 1, -1), (-1, -1, -1)], ids=str)
def test_case_04_mirrored(name, mirror):
    atoms, defects = one_of_each(name)
    atoms, defects = moved(atoms, defects, lambda r: r * mirror)
    atoms.set_cell(atoms.cell.array * mirror)
    assert_found(atoms, defects, host_of(name))


def test_case_04_janus_layer_upside_down():
    """A layer without a mirror plane of its own: top and bottom are told apart."""
    host = mx2("MoS2", vacuum=10)
    host.symbols[2] = "Se"
    host.pbc = True
    atoms, defects = plant(host.repeat((5, 5, 1)), {7: "Se", 30: None, 50: "S"})
    for mirror in ((1, 1, -1), (1, -1, -1)):
        assert_found(*moved(atoms, defects, lambda r, m=mirror: r * m), host)


# 5. Order


@pytest.mark.parametrize("name", HOSTS)
def test_case_05_permuted(name):
    atoms, defects = one_of_each(name)
    assert_found(atoms[np.random.default_rng(3).permutation(len(atoms))], defects, host_of(name))


@pytest.mark.parametrize("name", HOSTS)
def test_case_05_substituted_atom_is_the_first(name):
    site_map = assert_found(*plant(pristine(name), {0: FOREIGN[name]}), host_of(name))
    assert [defect.atom_index for defect in site_map.defects] == [0]


@pytest.mark.parametrize("name", PAIR)
def test_result_does_not_depend_on_the_order_of_atoms(name):
    atoms, _ = one_of_each(name)
    order = np.random.default_rng(4).permutation(len(atoms))
    first, second = match_sites(atoms, host_of(name)), match_sites(atoms[order], host_of(name))
    np.testing.assert_array_equal(first.supercell, second.supercell)
    assert first.defect_counts == second.defect_counts
    assert first.cost == pytest.approx(second.cost)


# 6. Supercells


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("MoS2", [[4, 1, 0], [-1, 5, 0], [0, 0, 1]]),
        ("MoS2", [[5, 10, 0], [-10, -5, 0], [0, 0, 1]]),
        ("BN", [[3, 6, 0], [-6, -3, 0], [0, 0, 1]]),
        ("P", [[4, 1, 0], [-2, 5, 0], [0, 0, 1]]),
        ("MgO", [[2, 1, 0], [-1, 2, 0], [0, 1, 3]]),
        ("Si", [[2, 0, 1], [0, 3, 0], [-1, 0, 2]]),
    ],
)
def test_case_06_non_diagonal_and_sqrt3_supercells(name, matrix):
    atoms = make_supercell(unit_cell(name), matrix)
    atoms, defects = plant(atoms, {3: FOREIGN[name], 11: None})
    site_map = assert_found(atoms, defects, host_of(name))
    assert len(site_map.kinds) == len(atoms) + 1


@pytest.mark.parametrize(("name", "other"), [("BN", "MoS2"), ("P", "MoS2"), ("MoS2", "InSe"), ("GaAs", "MgO")])
def test_case_06_not_commensurate_names_the_misfit(name, other):
    atoms = pristine(name, size=3 if name in LAYERS else 1)
    with pytest.raises(HostError, match=r"not commensurate with the cell: .*(strain of [+-]\d+\.\d%|as many sites)"):
        match_sites(atoms, host_of(other) if other in CRYSTALS else other)


@pytest.mark.parametrize("name", ["MoS2", "MgO"])
def test_case_06_misfit_is_that_of_the_cell(name):
    atoms = pristine(name, size=2)
    atoms.set_cell(atoms.cell.array * [1.1, 1.1, 1.0 if name in LAYERS else 1.1], scale_atoms=True)
    with pytest.raises(HostError, match=r"needs a strain of \+10\.0%, at most 6\.0% is allowed"):
        match_sites(atoms, host_of(name))


# 7. One of each


@pytest.mark.parametrize("name", HOSTS)
def test_case_07_each_kind_alone(name):
    ideal = pristine(name)
    for element in sorted(set(ideal.symbols)):
        index = int(np.flatnonzero(ideal.symbols == element)[5])
        for new in {None, FOREIGN[name], *ideal.symbols} - {element}:
            site_map = assert_found(*plant(ideal, {index: new}), host_of(name))
            assert site_map.defect_counts == {f"{new or 'v'}_{element}": 1}
            assert not site_map.ambiguous


@pytest.mark.parametrize("name", ["MoS2", "GaSe"])
def test_case_07_defects_say_where_and_what(name):
    ideal = pristine(name)
    atoms, _ = plant(ideal, {5: None, 9: FOREIGN[name]})
    vacancy, substitution = sorted(match_sites(atoms, name).defects, key=lambda d: -d.kind)
    assert (vacancy.kind, vacancy.element, vacancy.atom_index) == (SiteKind.VACANCY, None, None)
    assert vacancy.host_element == ideal.symbols[5]
    assert (substitution.kind, substitution.element, substitution.atom_index) == (
        SiteKind.SUBSTITUTION,
        FOREIGN[name],
        8,
    )


# 8. Several


@pytest.mark.parametrize("name", HOSTS)
def test_case_08_two_vacancies_next_to_each_other(name):
    ideal = pristine(name)
    near = int(np.argsort(ideal.get_distances(20, range(len(ideal)), mic=True))[1])
    assert_found(*plant(ideal, {20: None, near: None}), host_of(name))


@pytest.mark.parametrize("name", HOSTS)
def test_case_08_vacancy_beside_a_substitution(name):
    ideal = pristine(name)
    near = int(np.argsort(ideal.get_distances(20, range(len(ideal)), mic=True))[1])
    assert_found(*plant(ideal, {20: None, near: FOREIGN[name]}), host_of(name))


@pytest.mark.parametrize("name", COMPOUNDS)
def test_case_08_antisite_pair_at_unchanged_composition(name):
    ideal = pristine(name)
    other = int(np.flatnonzero(ideal.numbers != ideal.numbers[20])[-1])
    atoms, defects = plant(ideal, {20: str(ideal.symbols[other]), other: str(ideal.symbols[20])})
    assert sorted(atoms.symbols) == sorted(ideal.symbols)
    assert_found(atoms, defects, host_of(name))


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("seed", range(4))
def test_case_08_one_site_in_eight(name, seed):
    ideal = pristine(name)
    rng = np.random.default_rng(seed)
    chosen = rng.choice(len(ideal), len(ideal) // 8, replace=False)
    changes = {int(k): FOREIGN[name] if rng.random() < 0.5 else None for k in chosen}
    assert_found(*plant(ideal, changes), host_of(name))


# 9. Interstitials


@pytest.mark.parametrize(("name", "height"), [("MoS2", 2.2), ("BN", 1.8), ("P", 2.0)])
@pytest.mark.parametrize("vacancy", [False, True])
def test_case_09_adatom_is_named(name, height, vacancy):
    atoms = pristine(name)
    top = int(np.argmax(atoms.positions[:, 2]))
    adatom, top_number, gone = atoms.positions[top] + [0, 0, height], atoms.numbers[top], atoms.symbols[3]
    atoms += Atoms("O", [adatom])
    if vacancy:
        del atoms[3]
    site_map = match_sites(atoms, name)
    extra = the_extra_atom(atoms, site_map)
    assert (extra.name, extra.kind, extra.atom_index) == ("O_ads", ExtraKind.ADATOM, len(atoms) - 1)
    assert extra.height == pytest.approx(height, abs=POSITION_TOLERANCE)
    assert extra.distance == pytest.approx(height, abs=POSITION_TOLERANCE)
    assert extra.side == "above"
    assert site_map.host_numbers[extra.sites[0]] == top_number
    assert site_map.defect_counts == {"O_ads": 1} | ({f"v_{gone}": 1} if vacancy else {})


@pytest.mark.parametrize(
    ("name", "place"), [("MgO", (0.25, 0.25, 0.25)), ("GaAs", (0.5, 0.5, 0.5)), ("Si", (0.5, 0.5, 0.5))]
)
@pytest.mark.parametrize("vacancy", [False, True])
def test_case_09_interstitial_is_named(name, place, vacancy):
    atoms = pristine(name)
    gone = atoms.symbols[100]
    atoms += Atoms("H", [np.array(place) @ CRYSTALS[name].cell.array])
    if vacancy:
        del atoms[100]
    site_map = match_sites(atoms, host_of(name))
    extra = the_extra_atom(atoms, site_map)
    assert (extra.name, extra.kind, extra.atom_index) == ("H_i", ExtraKind.INTERSTITIAL, len(atoms) - 1)
    assert extra.height is extra.side is extra.origin is None
    assert site_map.defect_counts == {"H_i": 1} | ({f"v_{gone}": 1} if vacancy else {})
    assert site_map.warnings == ()


@pytest.mark.parametrize("name", ["MoS2", "Si", "BN", "MgO", "GaAs"])
@pytest.mark.parametrize("half", [0.6, 0.75, 0.9])
@pytest.mark.parametrize("foreign", [False, True])
def test_case_09_dumbbell_is_named(name, half, foreign):
    atoms = pristine(name)
    along = np.array([0.0, 0.0, half]) if name in LAYERS else np.full(3, half / np.sqrt(3))
    element = FOREIGN[name] if foreign else str(atoms.symbols[10])
    ideal = atoms.positions[10].copy()
    atoms += Atoms(element, [ideal + along])
    atoms.positions[10] -= along
    site_map = match_sites(atoms, host_of(name))
    extra = the_extra_atom(atoms, site_map)
    assert (extra.name, extra.kind) == (f"{element}_i", ExtraKind.SPLIT_INTERSTITIAL)
    assert {extra.atom_index, extra.partner} == {10, len(atoms) - 1}
    assert extra.distance == pytest.approx(half, abs=POSITION_TOLERANCE)
    assert distance(atoms, site_map.positions[extra.sites[0]], ideal) < POSITION_TOLERANCE
    assert site_map.defect_counts == {f"{element}_i": 1}
    if foreign:  # the site is the host's own atom's
        assert extra.atom_index == len(atoms) - 1


@pytest.mark.parametrize("name", HOSTS)
def test_case_09_atom_out_of_its_site_is_named_with_where_it_came_from(name):
    atoms = pristine(name)
    ideal = atoms.positions[20].copy()
    element = str(atoms.symbols[20])
    away = np.flatnonzero(np.arange(len(atoms)) != 20)
    for direction in np.random.default_rng(2).normal(size=(400, 3)):  # to where there is room
        atoms.positions[20] = ideal + 2.0 * direction / np.linalg.norm(direction)
        if atoms.get_distances(20, away, mic=True).min() > (1.45 if name != "BN" else 1.7):
            break
    site_map = match_sites(atoms, host_of(name))
    extra = the_extra_atom(atoms, site_map)
    assert extra.kind in {ExtraKind.DISPLACED, ExtraKind.ADATOM}
    assert extra.atom_index == 20
    assert distance(atoms, site_map.positions[extra.origin], ideal) < POSITION_TOLERANCE
    assert site_map.defect_counts == {f"v_{element}": 1, extra.name: 1}
    assert extra.name == f"{element}_{'ads' if extra.kind is ExtraKind.ADATOM else 'i'}"


@pytest.mark.parametrize("name", ["MoS2", "BN", "MgO", "Si"])
@pytest.mark.parametrize("away", [0.45, 0.6, 0.8, 1.1])
def test_case_09_interstitial_on_top_of_an_atom_is_ambiguous_and_both_readings_are_given(name, away):
    atoms = pristine(name)
    host = str(atoms.symbols[10])
    direction = np.array([0.0, 0.0, away]) if name in LAYERS else np.full(3, away / np.sqrt(3))
    atoms += Atoms(FOREIGN[name], [atoms.positions[10] + direction])
    site_map = match_sites(atoms, host_of(name))
    extra = the_extra_atom(atoms, site_map)
    assert extra.atom_index == len(atoms) - 1
    assert extra.name == f"{FOREIGN[name]}_{'ads' if name == 'BN' and away > OUTSIDE else 'i'}"
    assert site_map.ambiguous == (away < 0.9)
    if site_map.ambiguous:
        (warning,) = site_map.warnings
        for part in (f"read as {extra.name}", "on top of atom 10", f"{FOREIGN[name]}_{host} and {host}_i"):
            assert part in warning


@pytest.mark.parametrize("height", [1.2, 1.6])
def test_case_09_adatom_just_off_a_free_site_gives_both_readings(height):
    """Within the gate or beyond it: As on the site of B, or above it."""
    atoms = pristine("BN")
    boron = int(np.flatnonzero(atoms.symbols == "B")[5])
    atoms.symbols[boron] = "As"
    atoms.positions[boron, 2] += height
    site_map = match_sites(atoms, "BN")
    assert_consistent(atoms, site_map)
    off = height > 1.4
    assert site_map.defect_counts == ({"v_B": 1, "As_ads": 1} if off else {"As_B": 1})
    assert site_map.ambiguous
    (warning,) = site_map.warnings
    assert ("the other reading is As_B" if off else "the other reading is As on no site and v_B") in warning


def test_an_atom_on_another_is_one_line():
    atoms = pristine("MoS2")
    atoms += Atoms("Li", [atoms.positions[10] + [0.3, 0, 0]])
    with pytest.raises(StructureError, match=r"atoms 10 \(S\) and 192 \(Li\) overlap \(0\.300 Å apart\)"):
        match_sites(atoms, "MoS2")


@pytest.mark.parametrize("name", PAIR)
def test_a_molecule_instead_of_a_defect_is_one_line(name):
    lone = molecule("H2O", vacuum=8)
    with pytest.raises(StructureError, match="found a wire or a molecule"):
        match_sites(lone, host_of(name))
    lone.cell = None
    with pytest.raises(StructureError, match="expected a periodic cell"):
        match_sites(lone, host_of(name))


def test_a_molecule_on_a_layer_is_named_atom_by_atom_and_said():
    atoms = pristine("MoS2")
    water = molecule("H2O")
    water.positions += atoms.positions[10] + [1.0, 0.4, atoms.positions[:, 2].max() - atoms.positions[10, 2] + 2.5]
    site_map = match_sites(atoms + water, "MoS2")
    assert_consistent(atoms + water, site_map)
    assert site_map.defect_counts == {"H_ads": 2, "O_ads": 1}
    (warning,) = site_map.warnings
    assert "atoms 192, 193, 194 (H2O) lie on no site and are bonded to one another" in warning


@pytest.mark.parametrize("size", [3, 5])
def test_a_large_molecule_is_no_defect(size):
    atoms = pristine("MoS2", size=size)
    benzene = molecule("C6H6")
    benzene.positions += atoms.positions.mean(axis=0) + np.array([0, 0, 5.0])
    with pytest.raises(
        MatchError, match=rf"12 of {12 + len(atoms)} atoms are on no site .* a molecule \(C6H6\) is no point defect"
    ):
        match_sites(atoms + benzene, "MoS2")


@pytest.mark.parametrize(("name", "size"), [("MoS2", 2), ("BN", 3), ("P", 2), ("MgO", 2)])
def test_case_09_adatom_or_interstitial_in_a_small_cell(name, size):
    atoms = pristine(name, size=size)
    top = atoms.positions[np.argmax(atoms.positions[:, 2])]
    place = top + np.array([0, 0, 2.0]) if name in LAYERS else np.full(3, 4.21 / 4)
    site_map = match_sites(atoms + Atoms("Li", [place]), host_of(name))
    assert site_map.defect_counts == {"Li_ads" if name in LAYERS else "Li_i": 1}


@pytest.mark.parametrize(("name", "size"), [("MoS2", 1), ("BN", 2), ("MgO", 1)])
def test_case_09_one_extra_atom_of_few_is_too_many(name, size):
    atoms = pristine(name, size=size)
    top = atoms.positions[np.argmax(atoms.positions[:, 2])]
    place = top + np.array([0, 0, 2.0]) if name in LAYERS else np.full(3, 4.21 / 4)
    with pytest.raises(MatchError, match=rf"1 of {len(atoms) + 1} atoms are .* more than a defect explains"):
        match_sites(atoms + Atoms("Li", [place]), host_of(name))


def test_an_atom_far_from_everything_is_said():
    atoms = pristine("MoS2")
    atoms += Atoms("Xe", [atoms.positions[10] + [0, 0, 8.0]])
    site_map = match_sites(atoms, "MoS2")
    assert site_map.defect_counts == {"Xe_ads": 1}
    (warning,) = site_map.warnings
    assert "bound to none" in warning


# 10. Split vacancies and relaxed structures


def neighbor_of_its_kind(atoms, index):
    same = np.flatnonzero(atoms.numbers == atoms.numbers[index])
    return int(same[np.argsort(atoms.get_distances(index, same, mic=True))[1]])


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("fraction", [0.35, 0.45, 0.5, 0.55, 0.65])
def test_case_10_atom_between_two_sites_is_described_or_flagged(name, fraction):
    ideal = pristine(name)
    first = 20
    second = neighbor_of_its_kind(ideal, first)
    step = ideal.get_distance(first, second, mic=True, vector=True)
    atoms = ideal.copy()
    atoms.positions[second] -= fraction * step
    del atoms[first]
    site_map = match_sites(atoms, host_of(name))
    if site_map.extra:
        extra = the_extra_atom(atoms, site_map)
        element = str(ideal.symbols[first])
        assert extra.kind is ExtraKind.SPLIT_VACANCY or (abs(fraction - 0.5) > 0.01 and extra.origin is not None)
        assert extra.name == f"{element}_i"
        assert site_map.defect_counts == {f"v_{element}": 2, f"{element}_i": 1}
        sites = [site_map.positions[site] for site in extra.sites]
        if extra.kind is ExtraKind.SPLIT_VACANCY:
            for ideal_site in (ideal.positions[first], ideal.positions[second]):
                assert min(distance(atoms, ideal_site, site) for site in sites) < RATTLE_TOLERANCE
        return
    assert fraction != 0.5
    if not site_map.ambiguous:
        # it may be sure of an atom that is clearly nearer to one of the two sites, and then must be right
        assert abs(fraction - 0.5) > 0.1
        empty = ideal.positions[first if fraction < 0.5 else second]
        assert_found(atoms, [(f"v_{ideal.symbols[first]}", empty)], host_of(name), tolerance=RATTLE_TOLERANCE)
        return
    assert any(f"margin {site_map.margin:.2f}" in warning for warning in site_map.warnings)
    assert site_map.margin < MIN_MARGIN


def test_case_10_split_vacancy_of_an_impurity():
    """Sn midway between two vacant sites of diamond, its best known split vacancy."""
    host = bulk("C", cubic=True)
    atoms = host.repeat(3)
    other = int(np.argsort(atoms.get_distances(0, range(len(atoms)), mic=True))[1])
    step = atoms.get_distance(0, other, mic=True, vector=True)
    places = [atoms.positions[k].copy() for k in (0, other)]
    for share, split in ((0.5, True), (0.45, True), (0.35, False)):
        changed = atoms.copy()
        del changed[[0, other]]
        changed += Atoms("Sn", [atoms.positions[0] + share * step])
        site_map = match_sites(changed, host)
        if not split:
            assert_consistent(changed, site_map)
            assert site_map.defect_counts == {"Sn_C": 1, "v_C": 1}
            assert any("the other reading has it on site" in warning for warning in site_map.warnings)
            continue
        extra = the_extra_atom(changed, site_map)
        assert (extra.name, extra.kind) == ("Sn_i", ExtraKind.SPLIT_VACANCY)
        assert site_map.defect_counts == {"v_C": 2, "Sn_i": 1}
        found = [site_map.positions[site] for site in extra.sites]
        for place in places:
            assert min(distance(atoms, place, site) for site in found) < POSITION_TOLERANCE


@pytest.mark.parametrize("name", ["MoS2", "BN", "Si"])
def test_case_10_relaxed_structure_is_flagged_with_the_atom(name):
    """Neighbours of a vacancy have moved by 0.45 of the shortest bond, as in a strongly reconstructed defect."""
    ideal = pristine(name)
    order = np.argsort(ideal.get_distances(20, range(len(ideal)), mic=True))
    atoms = ideal.copy()
    bond = ideal.get_distance(20, order[1], mic=True)
    for k in order[1:3]:
        step = ideal.get_distance(int(k), 20, mic=True, vector=True)
        atoms.positions[k] += 0.45 * bond * step / np.linalg.norm(step)
    del atoms[20]
    site_map = match_sites(atoms, host_of(name))
    assert site_map.ambiguous
    moved_atoms = {int(k) - (k > 20) for k in order[1:3]}
    assert any(f"atom {k} (" in warning for warning in site_map.warnings for k in moved_atoms)


@pytest.mark.parametrize("name", HOSTS)
def test_case_10_unrelaxed_structure_is_not_flagged(name):
    atoms, defects = one_of_each(name)
    site_map = assert_found(atoms, defects, host_of(name))
    assert not site_map.ambiguous
    assert site_map.warnings == ()
    assert site_map.runner_up > site_map.cost + MIN_ADVANTAGE


@pytest.mark.parametrize("name", ["BN", "GaAs"])
def test_case_10_two_registrations_that_fit_alike_are_flagged(name):
    """Half of each sublattice swapped: the exchanged registration explains the structure as well."""
    atoms = pristine(name, size=2)
    first, second = sorted(set(atoms.symbols))
    rng = np.random.default_rng(5)
    for element, other in ((first, second), (second, first)):
        here = np.flatnonzero(pristine(name, size=2).symbols == element)
        atoms.symbols[rng.permutation(here)[: len(here) // 2]] = other
    site_map = match_sites(atoms, host_of(name))
    assert site_map.ambiguous
    assert any("another registration" in warning for warning in site_map.warnings)


# 11. Rattled


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("size", [0.05, 0.15, 0.3])
def test_case_11_rattled(name, size):
    """Every atom moved by ``size`` in some direction."""
    atoms, defects = one_of_each(name)
    move = np.random.default_rng(6).normal(size=(len(atoms), 3))
    atoms.positions += size * move / np.linalg.norm(move, axis=1)[:, None]
    site_map = assert_found(atoms, defects, host_of(name), tolerance=RATTLE_TOLERANCE)
    assert np.linalg.norm(site_map.offsets, axis=1).max() < size + RATTLE_TOLERANCE


# 12. Nothing to find, or not here


@pytest.mark.parametrize("name", HOSTS)
def test_case_12_pristine_is_valid(name):
    atoms = pristine(name)
    site_map = assert_found(atoms, [], host_of(name))
    assert site_map.density == 0
    assert site_map.defect_counts == {}
    assert site_map.margin >= MIN_MARGIN
    assert site_map.cost < POSITION_TOLERANCE


@pytest.mark.parametrize("name", HOSTS)
def test_case_12_pristine_primitive_cell(name):
    assert_found(unit_cell(name), [], host_of(name))


@pytest.mark.parametrize(
    ("name", "host"),
    [("MoS2", "WSe2"), ("GaSe", "InSe"), ("BN", "P"), ("MgO", "NaCl"), ("GaAs", "MgO"), ("MoS2", "Si"), ("Si", "BN")],
)
def test_case_12_wrong_host(name, host):
    crystals = CRYSTALS | {"NaCl": bulk("NaCl", "rocksalt", a=4.21)}
    atoms, _ = one_of_each(name)
    with pytest.raises(
        (HostError, MatchError), match=r"not commensurate|not a defect structure|dimensional|no free site"
    ):
        match_sites(atoms, crystals.get(host, host))


@pytest.mark.parametrize("formula", ["MoS2", "WSe2"])
def test_case_12_1t_against_1h(formula):
    octahedral = mx2(formula, kind="1T", a=library()[formula].cell[0, 0], size=(6, 6, 1), vacuum=8)
    octahedral.pbc = True
    with pytest.raises(MatchError, match="polytype"):
        match_sites(octahedral, formula)


def test_case_12_zincblende_against_rocksalt():
    with pytest.raises(MatchError):
        match_sites(bulk("MgO", "zincblende", a=4.21, cubic=True).repeat(3), host_of("MgO"))


@pytest.mark.parametrize("name", PAIR)
def test_case_12_everything_vacant_is_refused(name):
    ideal = pristine(name)
    with pytest.raises((HostError, MatchError), match=r"not commensurate|host's own element"):
        match_sites(ideal[::4], host_of(name))
    foreign = ideal.copy()
    foreign.symbols[:] = "Xe"
    with pytest.raises(MatchError, match="host's own element"):
        match_sites(foreign, host_of(name))


def test_unusable_structures_are_refused_before_matching():
    atoms = pristine("MoS2", size=3)
    atoms.positions[4, 1] = np.nan
    with pytest.raises(StructureError, match="atom 4"):
        match_sites(atoms, "MoS2")
    with pytest.raises(StructureError, match="ndarray"):
        match_sites(np.eye(3), "MoS2")


@pytest.mark.parametrize("name", ["MoS2", "BN", "GaSe", "P"])
def test_auto_finds_the_library_host(name):
    assert assert_found(*one_of_each(name), "auto").host.name == name


@pytest.mark.parametrize(
    ("formula", "a", "thickness"), [("NbS2", 3.34, 3.13), ("WTe2", 3.55, 3.62), ("MoTe2", 3.55, 3.62)]
)
def test_auto_never_makes_a_host_of_a_thousand_dopants(formula, a, thickness):
    """A host that the library lacks is not one that it has, with every metal or chalcogen replaced."""
    atoms = mx2(formula, a=a, thickness=thickness, size=(6, 6, 1), vacuum=8)
    del atoms[7]
    with pytest.raises(HostError, match=f"no host of the library fits .*{'|'.join(library())}"):
        match_sites(atoms, "auto", max_strain=0.2)


def test_auto_takes_the_host_whose_composition_it_is():
    """Each host of the library is found as itself, also where another one would fit with dopants and strain."""
    for name, host in library().items():
        size = (LAYERS.get(name, 3),) * 2 + (1,)
        cell = [*host.cell[:2], [0, 0, 20.0]] if host.layered else host.cell
        atoms = Atoms(numbers=host.numbers, positions=host.positions, cell=cell, pbc=True).repeat(size)
        del atoms[5]
        assert match_sites(atoms, "auto").host.name == name


def test_auto_without_a_host_that_fits_says_so():
    with pytest.raises(HostError, match="no host of the library"):
        match_sites(pristine("Si"), "auto")


# 13. Overrides


@pytest.mark.parametrize("name", PAIR)
def test_case_13_consistent_overrides_are_taken(name):
    atoms, _ = plant(pristine(name), {5: FOREIGN[name], 50: None})
    inferred = match_sites(atoms, host_of(name))
    np.testing.assert_array_equal(match_sites(atoms, host_of(name), kinds=inferred.kinds).kinds, inferred.kinds)
    np.testing.assert_array_equal(match_sites(atoms, host_of(name), substitutions=[5]).kinds, inferred.kinds)
    both = match_sites(atoms, host_of(name), substitutions=[5, 7])
    assert both.kinds[both.atom_index == 7] == SiteKind.SUBSTITUTION
    assert (both.kinds != inferred.kinds).sum() == 1
    again = match_sites(atoms, host_of(name), kinds=both.kinds.tolist())
    np.testing.assert_array_equal(again.kinds, both.kinds)


@pytest.mark.parametrize("name", PAIR)
def test_case_13_contradictory_overrides_are_refused(name):
    atoms, _ = plant(pristine(name), {5: FOREIGN[name], 50: None})
    host = host_of(name)
    kinds = match_sites(atoms, host).kinds
    full, empty = kinds.copy(), kinds.copy()
    full[kinds == SiteKind.VACANCY] = SiteKind.PRISTINE
    empty[np.flatnonzero(kinds == SiteKind.PRISTINE)[0]] = SiteKind.VACANCY
    unknown = kinds.copy()
    unknown[0] = 3
    foreign = np.where(kinds == SiteKind.SUBSTITUTION, SiteKind.PRISTINE, kinds)
    more = kinds.copy()
    more[np.flatnonzero(kinds == SiteKind.PRISTINE)[0]] = SiteKind.SUBSTITUTION
    for options, reason in (
        ({"kinds": full}, "marked pristine but is empty"),
        ({"kinds": empty}, "marked vacancy but holds atom"),
        ({"kinds": unknown}, "another value"),
        ({"kinds": kinds[:-1]}, f"expected {len(kinds)} kinds"),
        ({"kinds": kinds + 0.5}, "another value"),
        ({"kinds": foreign}, f"marked pristine but holds {FOREIGN[name]}"),
        ({"substitutions": []}, f"marked pristine but holds {FOREIGN[name]}"),
        ({"substitutions": [5, len(atoms)]}, f"names atom {len(atoms)}"),
        ({"substitutions": [5, -1]}, "names atom -1"),
        ({"substitutions": [5], "kinds": more}, "disagree"),
    ):
        with pytest.raises(MatchError, match=reason):
            match_sites(atoms, host, **options)


def test_case_13_an_atom_on_no_site_is_no_substitution():
    atoms = pristine("MoS2")
    atoms += Atoms("Li", [atoms.positions[10] + [0, 0, 5.0]])
    with pytest.raises(MatchError, match=r"substitutions names atom 192 \(Li\), which is on no site: .* Li_ads"):
        match_sites(atoms, "MoS2", substitutions=[192])


# Large cells


@pytest.mark.parametrize("stretch", [1.0, 1.02])
def test_twelve_thousand_sites(stretch):
    """A strained large cell fits many other supercells at less strain; the atoms decide."""
    ideal = pristine("MoS2", size=64)
    rng = np.random.default_rng(7)
    changes = {int(k): FOREIGN["MoS2"] if k % 2 else None for k in rng.choice(len(ideal), 100, replace=False)}
    atoms, defects = plant(ideal, changes)
    scale = np.array([stretch, stretch, 1.0])
    atoms, defects = moved(atoms, defects, lambda r: r * scale)
    atoms.set_cell(atoms.cell.array * scale)
    site_map = assert_found(atoms, defects, "MoS2")
    assert len(site_map.kinds) == 12288
    assert site_map.supercell_name == "64x64x1"


def test_large_crystal():
    ideal = pristine("MgO", size=6)
    oxygen = int(np.flatnonzero(ideal.symbols == "O")[-1])
    site_map = assert_found(*plant(ideal, {5: "Ca", 900: None, 901: None, oxygen: "Mg"}), host_of("MgO"))
    assert len(site_map.kinds) == 1728


def test_every_refusal_is_one_of_ours():
    for error in (HostError, MatchError, StructureError):
        assert issubclass(error, DefiNetError)
