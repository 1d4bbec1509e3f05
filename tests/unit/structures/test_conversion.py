"""Structures of pymatgen and ASE: partial occupancies are refused, moments and fixed atoms kept."""

from io import BytesIO

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixScaled
from ase.io import read, write
from hypothesis import given
from hypothesis import strategies as st
from pymatgen.core import DummySpecies, Element, Lattice, Species, Structure
from pymatgen.electronic_structure.core import Magmom

from ase_definet.dft.vasp import write_vasp_inputs
from ase_definet.errors import DefiNetWarning, HostError, StructureError
from ase_definet.matching.library import get_host
from ase_definet.matching.site_map import match_sites
from ase_definet.structures.charges import charge_of
from ase_definet.structures.conversion import WHOLE, as_atoms, as_structure
from tests.conftest import mos2_with_defects, pristine

FRACTIONS = [[0, 0, 0], [0.5, 0.5, 0.5], [0.5, 0, 0], [0, 0.5, 0]]


def structure(*species, **properties):
    """A structure with a site for each of the species."""
    return Structure(Lattice.hexagonal(4.2, 5), list(species), FRACTIONS[: len(species)], site_properties=properties)


def nickel_oxide():
    atoms = bulk("NiO", "rocksalt", a=4.2, cubic=True)
    return atoms, np.where(atoms.numbers == 28, 1.7, 0.1) * [1, 1, -1, -1, 1, 1, -1, -1]


# Occupancies


@pytest.mark.parametrize(
    ("site", "named"),
    [
        ({"S": 0.5}, "S with occupancy 0.5"),
        ({"S": 0.0}, "nothing with occupancy 0"),
        ({"S": 0.99}, "S with occupancy 0.99"),
        ({"S": 0.5, "Se": 0.5}, "S with occupancy 0.5 [+] Se with occupancy 0.5"),
        ({"S2-": 0.25, "Se2-": 0.75}, "S with occupancy 0.25 [+] Se with occupancy 0.75"),
        ({DummySpecies("X"): 0.5, "S": 0.5}, "X with occupancy 0.5"),
    ],
    ids=str,
)
def test_disorder_in_pymatgen_is_refused_by_every_function(site, named, relaxer, tmp_path):
    disordered = structure("Mo", site, "S")
    expected = f"partial occupancies: site 1 .*{named}.*; delete the sites"
    for take in (
        as_atoms,
        lambda s: relaxer.predict(s, "MoS2"),
        relaxer.relax,
        lambda s: match_sites(s, "MoS2"),
        lambda s: write_vasp_inputs(s, tmp_path / "run"),
    ):
        with pytest.raises(StructureError, match=expected):
            take(disordered)
    with pytest.raises(HostError, match=expected):
        get_host(disordered)
    failure = next(iter(relaxer.relax_many([disordered])))
    assert isinstance(failure.error, StructureError)
    assert not (tmp_path / "run").exists()


def test_label_and_number_of_further_sites_are_named():
    disordered = structure(*[{"S": 0.5}] * 4)
    disordered[1].label = "S1a"
    with pytest.raises(
        StructureError, match=r"site 0 \(S with occupancy 0.5\), 1 'S1a' \(.*\), 2 \(.*\) and 1 more;"
    ):
        as_atoms(disordered)


@pytest.mark.parametrize("share", [1 - WHOLE / 2, 0.9999, 1.0])
def test_rounded_occupancies_are_whole(share):
    atoms = as_atoms(structure({"Mo": share}, "S"))
    assert list(atoms.symbols) == ["Mo", "S"]
    np.testing.assert_allclose(atoms.get_scaled_positions(), FRACTIONS[:2])


@pytest.mark.parametrize("dummy", [DummySpecies("X"), DummySpecies("Xv", 2), DummySpecies("Qq")], ids=str)
def test_what_is_no_element_is_refused(dummy):
    with pytest.raises(StructureError, match=r"site 1 .* is no element: remove placeholders of vacancies"):
        as_atoms(structure("Mo", dummy))


def test_deuterium_is_hydrogen():
    assert list(as_atoms(structure("Mo", Element("D"))).symbols) == ["Mo", "H"]


@pytest.mark.parametrize("column", ["occupancy", "occupancies", "Site_Occupancy"])
@pytest.mark.parametrize("value", [0.0, 0.5, 1.02, np.nan])
def test_occupancy_columns_of_atoms(column, value, relaxer, tmp_path):
    atoms = mos2_with_defects()
    atoms.set_array(column, np.ones(len(atoms)))
    assert as_atoms(atoms) is atoms
    atoms.arrays[column][7] = value
    expected = rf"site 7 \({atoms.symbols[7]} with occupancy {value:g}\)"
    for take in (
        as_atoms,
        relaxer.predict,
        lambda a: match_sites(a, "MoS2"),
        lambda a: write_vasp_inputs(a, tmp_path),
    ):
        with pytest.raises(StructureError, match=expected):
            take(atoms)


def test_occupancies_as_ase_leaves_them():
    crystal = Structure.from_spacegroup(
        "Fm-3m", Lattice.cubic(4.2), [{"Ni": 0.6, "Fe": 0.4}, "O"], [[0, 0, 0], [0.5] * 3]
    )
    text = crystal.to(fmt="cif", symprec=1e-3)
    atoms = read(BytesIO(text.encode()), format="cif")
    assert set(atoms.symbols) == {"Ni", "O"}  # what ASE makes of it
    with pytest.raises(StructureError, match=r"site 0 .*Ni with occupancy 0.6 [+] Fe with occupancy 0.4"):
        as_atoms(atoms)
    with pytest.raises(HostError, match="partial occupancies"):
        get_host(atoms)
    whole = atoms[atoms.symbols == "O"]
    assert as_atoms(whole) is whole
    atoms.info["occupancy"] = {key: {next(iter(shares)): 1.0} for key, shares in atoms.info["occupancy"].items()}
    assert as_atoms(atoms) is atoms


@pytest.mark.parametrize("unrelated", [0.5, "half", [1, 2], {"band": 2}, {"0": "x"}])
def test_other_things_called_occupancy_are_left_alone(unrelated):
    atoms = pristine("MoS2", 2)
    atoms.info["occupancy"] = unrelated
    assert as_atoms(atoms) is atoms


# Moments


@pytest.mark.parametrize("name", ["magmoms", "magmom", "initial_magmoms", "initial_magmom", "magnetic_moments"])
@pytest.mark.parametrize("vectors", [False, True])
def test_moments_of_extended_xyz_are_initial_moments(name, vectors, tmp_path):
    atoms, moments = nickel_oxide()
    moments = moments[:, None] * [0.0, 0.6, 0.8] if vectors else moments
    atoms.set_initial_magnetic_moments(moments)
    path = tmp_path / "x.extxyz"
    write(path, atoms)
    path.write_text(path.read_text().replace("initial_magmoms", name))
    for given_ in (read(path), atoms):
        np.testing.assert_allclose(as_atoms(given_).get_initial_magnetic_moments(), moments)


def test_a_total_moment_is_not_that_of_atoms(tmp_path):
    atoms, _ = nickel_oxide()
    atoms.info["magmom"] = 2.0
    write(tmp_path / "x.extxyz", atoms)
    assert not as_atoms(read(tmp_path / "x.extxyz")).has("initial_magmoms")


def test_moments_reach_the_input_set_and_others_stay(tmp_path):
    atoms, moments = nickel_oxide()
    atoms.calc = SinglePointCalculator(atoms, magmoms=moments, energy=-1.0)
    in_poscar = np.argsort(-atoms.numbers, kind="stable")
    assert write_vasp_inputs(atoms, tmp_path).incar["MAGMOM"] == moments[in_poscar].tolist()
    assert not atoms.has("initial_magmoms")
    taken = as_atoms(atoms)
    assert taken.get_potential_energy() == -1.0
    atoms.set_initial_magnetic_moments(-moments)
    assert as_atoms(atoms) is atoms
    assert write_vasp_inputs(atoms, tmp_path, overwrite=True).incar["MAGMOM"] == (-moments[in_poscar]).tolist()


moment = st.one_of(st.none(), st.integers(-5, 5), st.floats(-9, 9, allow_nan=False).map(lambda v: round(v, 3)))
state = st.one_of(st.none(), st.integers(-4, 6))


@given(
    st.lists(st.tuples(st.sampled_from(["Fe", "Mo", "S"]), state, moment), min_size=1, max_size=4),
    st.lists(moment, min_size=4, max_size=4),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore::ase_definet.errors.DefiNetWarning")
def test_spins_and_moments_go_there_and_back(species, magmoms, with_property):
    kinds = [Species(*kind) if kind[1] is not None or kind[2] is not None else Element(kind[0]) for kind in species]
    properties = {"magmom": magmoms[: len(kinds)]} if with_property else {}
    before = structure(*kinds, **properties)
    atoms = as_atoms(before)
    after = as_structure(atoms)
    expected = [m if m is not None else kind[2] for m, kind in zip(properties.get("magmom", [None] * 4), species)]  # noqa: B905
    found = [
        site.properties.get("magmom") if "magmom" in site.properties else getattr(site.specie, "spin", None)
        for site in after
    ]
    assert [m or 0.0 for m in found] == [m or 0.0 for m in expected]
    assert [getattr(a.specie, "oxi_state", None) for a in after] == [k[1] for k in species]
    assert atoms.has("initial_magmoms") == any(m is not None for m in expected)
    assert charge_of(atoms).value == 0
    again = as_atoms(after)
    np.testing.assert_array_equal(again.get_initial_magnetic_moments(), atoms.get_initial_magnetic_moments())


@pytest.mark.filterwarnings("ignore:the oxidation states sum to")
def test_species_with_spin_come_back_as_they_were():
    before = structure(Species("Fe", 3, spin=5), Species("Fe", 2, spin=-4), Species("O", -2, spin=0))
    after = as_structure(as_atoms(before))
    assert [site.specie for site in after] == [site.specie for site in before]
    assert "magmom" not in after.site_properties
    assert after == before


@pytest.mark.parametrize(
    ("magmom", "expected"),
    [
        ([Magmom(5), Magmom(-5)], [5, -5]),
        ([Magmom([0, 3, 4]), Magmom([1, 0, 0])], [[0, 3, 4], [1, 0, 0]]),
        ([Magmom([0, 0, 2], saxis=[1, 0, 0]), None], [[2, 0, 0], [0, 0, 0]]),
        ([[0, 0, 2.0], [0, 0, 1.0]], [[0, 0, 2], [0, 0, 1]]),
        ([np.array([0, 1, 2.0]), 3], [[0, 1, 2], [0, 0, 3]]),
    ],
)
@pytest.mark.filterwarnings("ignore::ase_definet.errors.DefiNetWarning")
def test_vectors_are_kept(magmom, expected):
    before = structure("Fe", "O", magmom=magmom)
    atoms = as_atoms(before)
    np.testing.assert_allclose(atoms.get_initial_magnetic_moments(), expected, atol=1e-7)
    np.testing.assert_allclose(as_structure(atoms).site_properties["magmom"], expected, atol=1e-7)


def test_sites_without_a_moment_are_named_and_nonsense_is_refused():
    with pytest.warns(DefiNetWarning, match="1 of 2 sites have no magnetic moment: taken as 0 μB"):
        atoms = as_atoms(structure("Fe", "O", magmom=[3.0, None]))
    assert atoms.get_initial_magnetic_moments().tolist() == [3, 0]
    with pytest.raises(StructureError, match="expected moments as numbers or vectors of three"):
        as_atoms(structure("Fe", "O", magmom=["up", "down"]))


@pytest.mark.filterwarnings("ignore:the oxidation states sum to")
def test_oxidation_states_are_no_charge(relaxer, tmp_path):
    before = as_structure(mos2_with_defects())
    before.add_oxidation_state_by_element({"Mo": 4, "S": -2, "W": 4})  # +4 in sum
    result = relaxer.predict(before)
    assert charge_of(result.atoms).value == 0
    assert "charge" not in result.outside
    assert "NELECT" not in write_vasp_inputs(before, tmp_path).incar
    assert [site.specie for site in result.structure] == [site.specie for site in before]


# Constraints and other properties


def test_selective_dynamics_go_there_and_back_in_a_cell_of_any_angle():
    flags = [[True, False, True], [False, False, False], [True, True, True], [True, True, False]]
    before = structure("Mo", "S", "S", "W", selective_dynamics=flags)
    atoms = as_atoms(before)
    assert {type(constraint) for constraint in atoms.constraints} == {FixAtoms, FixScaled}
    moved = atoms.copy()
    moved.set_positions(atoms.positions + np.array([0.3, 0.2, 0.1]))
    delta = moved.get_scaled_positions(wrap=False) - atoms.get_scaled_positions(wrap=False)
    np.testing.assert_array_equal(np.isclose(delta, 0), ~np.array(flags))
    assert as_structure(atoms).site_properties["selective_dynamics"] == flags
    del before[0].properties["selective_dynamics"]
    assert as_structure(as_atoms(before)).site_properties["selective_dynamics"] == [[True] * 3, *flags[1:]]


def test_properties_that_some_sites_lack(tmp_path):
    before = structure("Mo", "S", coordination=[6, None], name=["a", None], thing=[{"a": 1}, None])
    with pytest.warns(DefiNetWarning, match="the site property 'thing' was left out"):
        atoms = as_atoms(before)
    np.testing.assert_array_equal(atoms.arrays["coordination"], [6, np.nan])
    assert atoms.arrays["name"].tolist() == ["a", "-"]
    write(tmp_path / "x.extxyz", atoms)
    assert len(read(tmp_path / "x.extxyz")) == 2


def test_an_atoms_without_any_of_this_is_returned_as_it_is():
    atoms = Atoms("MoS2", positions=np.eye(3) * 2, cell=[9, 9, 9], pbc=True)
    assert as_atoms(atoms) is atoms
