import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.geometry import find_mic

from ase_definet.errors import HostError
from ase_definet.matching.library import get_host, library
from ase_definet.matching.supercell import (
    MAX_STRAIN,
    Mapping,
    describe,
    find_mappings,
    mapping_stages,
    supercell_sites,
)

LENGTH_TOLERANCE = 1e-8  # Å
STRAIN_TOLERANCE = 1e-8

MGO, SI = (get_host(bulk(*args)) for args in (("MgO", "rocksalt", 4.21), ("Si", "diamond", 5.43)))
HOSTS = {"MoS2": library()["MoS2"], "P": library()["P"], "MgO": MGO, "Si": SI}
DIAGONAL = {"MoS2": [5, 5, 1], "P": [4, 5, 1], "MgO": [3, 3, 3], "Si": [2, 3, 3]}


def frame_of(host, matrix):
    return np.asarray(matrix) @ host.cell


def best(host, frame, n_sites, **options):
    """Return the best mapping, after checking what holds for all of them."""
    found = find_mappings(host, frame, n_sites, **options)
    periodic = list(host.periodic)
    for mapping in found:
        laid = (mapping.matrix @ host.cell @ mapping.deformation)[periodic]
        np.testing.assert_allclose(laid, frame[periodic], atol=LENGTH_TOLERANCE)
        assert np.linalg.det(mapping.deformation) > 0
        stretches = np.sqrt(np.linalg.eigvalsh(mapping.deformation.T @ mapping.deformation))
        np.testing.assert_allclose(np.sort(mapping.strain), stretches - 1, atol=STRAIN_TOLERANCE)
        assert abs(mapping.max_strain) <= options.get("max_strain", MAX_STRAIN) + 1e-5
    return found[0]


@pytest.mark.parametrize("name", HOSTS)
def test_diagonal(name):
    host, size = HOSTS[name], DIAGONAL[name]
    n_sites = int(np.prod(size)) * len(host.numbers)
    mapping = best(host, frame_of(host, np.diag(size)), n_sites)
    np.testing.assert_allclose(mapping.strain, 0, atol=STRAIN_TOLERANCE)
    assert mapping.n_cells == np.prod(size)


@pytest.mark.parametrize(
    ("name", "matrix"),
    [
        ("MoS2", [[3, 6, 0], [-6, -3, 0], [0, 0, 1]]),
        ("MoS2", [[4, 1, 0], [-1, 3, 0], [0, 0, 1]]),
        ("P", [[3, 1, 0], [-1, 2, 0], [0, 0, 1]]),
        ("MgO", [[-2, 2, 2], [2, -2, 2], [2, 2, -2]]),
        ("Si", [[2, 1, 0], [0, 3, 1], [-1, 0, 2]]),
    ],
)
def test_non_diagonal(name, matrix):
    host = HOSTS[name]
    cells = abs(round(np.linalg.det(matrix)))
    mapping = best(host, frame_of(host, matrix), cells * len(host.numbers))
    assert mapping.n_cells == cells
    np.testing.assert_allclose(mapping.strain, 0, atol=STRAIN_TOLERANCE)


@pytest.mark.parametrize("name", HOSTS)
def test_rotated_frame(name):
    host = HOSTS[name]
    box = Atoms(cell=np.eye(3))
    box.rotate(73, (1, 2, 3), rotate_cell=True)
    size = DIAGONAL[name]
    frame = frame_of(host, np.diag(size)) @ box.cell.array
    mapping = best(host, frame, int(np.prod(size)) * len(host.numbers))
    np.testing.assert_allclose(mapping.deformation @ mapping.deformation.T, np.eye(3), atol=STRAIN_TOLERANCE)


@pytest.mark.parametrize("name", HOSTS)
def test_swapped_and_reversed_axes(name):
    host = HOSTS[name]
    size = DIAGONAL[name]
    frame = frame_of(host, np.diag(size))
    for rows in ([1, 0, 2], [0, 1, 2]):
        for sign in ([1, 1, 1], [-1, 1, 1]):
            mapping = best(host, frame[rows] * np.array(sign)[:, None], int(np.prod(size)) * len(host.numbers))
            assert mapping.n_cells == np.prod(size)
            np.testing.assert_allclose(mapping.strain, 0, atol=STRAIN_TOLERANCE)


@pytest.mark.parametrize("name", HOSTS)
@pytest.mark.parametrize("strain", [-0.05, -0.02, 0.02, 0.05])
def test_strain_is_that_applied(name, strain):
    host, size = HOSTS[name], DIAGONAL[name]
    stretch = np.array([1 + strain, 1 + strain, 1 if host.layered else 1 + strain])
    frame = frame_of(host, np.diag(size)) * stretch
    mapping = best(host, frame, int(np.prod(size)) * len(host.numbers))
    np.testing.assert_allclose(np.sort(mapping.strain), np.sort(stretch - 1), atol=STRAIN_TOLERANCE)
    assert mapping.max_strain == pytest.approx(strain)


@pytest.mark.parametrize("name", ["MoS2", "MgO"])
def test_not_commensurate_names_supercell_and_strain(name):
    host = HOSTS[name]
    scale = np.array([1.1, 1.1, 1.0 if host.layered else 1.1])
    size = np.diag([2, 2, 1 if host.layered else 2])
    n_sites = abs(round(np.linalg.det(size))) * len(host.numbers)
    with pytest.raises(HostError, match=rf"{host.name} is not commensurate.*needs a strain of \+10.0%, at most 6.0%"):
        find_mappings(host, frame_of(host, size) * scale, n_sites)
    assert best(host, frame_of(host, size) * scale, n_sites, max_strain=0.12).max_strain == pytest.approx(0.1)


@pytest.mark.parametrize("name", ["P", "Si"])
def test_nothing_near_says_so(name):
    host = HOSTS[name]
    with pytest.raises(HostError, match="no supercell within 25% strain has about as many sites"):
        find_mappings(host, frame_of(host, np.eye(3)), 100 * len(host.numbers))


@pytest.mark.parametrize("name", HOSTS)
def test_symmetry_equivalent_mappings_are_one(name):
    """A turn of the host by its own symmetry is the same mapping: no two share their sites."""
    host, size = HOSTS[name], [2, 2, 1 if HOSTS[name].layered else 2]
    frame = frame_of(host, np.diag(size))
    found = find_mappings(host, frame, int(np.prod(size)) * len(host.numbers), 0.001)
    expected = {"MoS2": 2, "P": 1, "MgO": 1, "Si": 1}  # hexagonal lattice, trigonal layer: 0 and 60 degrees differ
    assert len(found) == expected[name]


def test_stages_add_up_without_repeats():
    host = HOSTS["MoS2"]
    frame = frame_of(host, np.diag([8, 8, 1])) * [1.01, 1.01, 1]
    stages = list(mapping_stages(host, frame, 192))
    matrices = [mapping.matrix.tobytes() for stage in stages for mapping in stage]
    assert stages[0] == []
    assert len(matrices) == len(set(matrices))
    assert set(matrices) == {mapping.matrix.tobytes() for mapping in find_mappings(host, frame, 192)}


def test_stages_end_in_the_error_of_the_last():
    host = HOSTS["MoS2"]
    with pytest.raises(HostError, match="commensurate"):
        list(mapping_stages(host, frame_of(host, np.diag([2, 2, 1])) * [1.1, 1.1, 1], 12))


@pytest.mark.parametrize("name", HOSTS)
def test_sites_are_those_of_the_repeated_crystal(name):
    host, size = HOSTS[name], DIAGONAL[name]
    crystal = Atoms(numbers=host.numbers, positions=host.positions, cell=host.cell, pbc=True).repeat(size)
    identity = Mapping(np.diag(size), np.eye(3), np.zeros(3))
    numbers, positions = supercell_sites(host, identity)
    assert len(numbers) == len(crystal)
    delta = (positions[:, None] - crystal.positions[None]).reshape(-1, 3)
    distance = find_mic(delta, crystal.cell)[1].reshape(len(numbers), -1)
    nearest = distance.argmin(axis=1)
    assert sorted(nearest) == list(range(len(crystal)))
    assert distance.min(axis=1).max() < LENGTH_TOLERANCE
    np.testing.assert_array_equal(crystal.numbers[nearest], numbers)


def test_description():
    assert describe(np.array([[0, -3, 0], [4, 0, 0], [0, 0, 1]])) == "3x4x1"
    assert describe(np.array([[2, 1, 0], [0, 2, 0], [0, 0, 1]])) == "[[2,1,0],[0,2,0],[0,0,1]]"
