"""The composer: what a user gives comes back moved, and nothing else of it changed."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, make_supercell
from ase.calculators.singlepoint import SinglePointCalculator
from ase.constraints import FixAtoms, FixCartesian
from pymatgen.core import Structure
from pymatgen.io.ase import AseAtomsAdaptor

from ase_definet.dft.vasp import write_vasp_inputs
from ase_definet.errors import (
    DefiNetError,
    DefiNetWarning,
    DeviceError,
    HostError,
    MatchError,
    StrictError,
    StructureError,
)
from ase_definet.matching.library import get_host
from ase_definet.model.lattice_convolution import LatticeGeometry
from ase_definet.relaxation.domain import Domain, Judgement
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.relaxation.result import RelaxFailure, RelaxResult
from ase_definet.screening.enumeration import DefectSpace, parse_defects
from tests.conftest import DEVICES, mos2_with_defects, pristine

MOVED = 0.03
"""A neighbour of an S vacancy moves at least this far in DFT, in Å."""
EXACT = 1e-9
FLOAT32 = 2e-5
"""Float32 rounding of a displacement, through all layers, in Å."""
DFT = 0.015
"""Agreement with single DFT results, in Å."""
ORIGIN = 2e-4
"""Origin and strain of a hand-made cell are found to this precision, in Å."""


def wrapped_difference(a: Atoms, b: Atoms) -> np.ndarray:
    delta = a.positions - b.positions
    fractions = np.linalg.solve(a.cell.array.T, delta.T).T
    return delta - np.round(fractions) @ a.cell.array


def near_vacancy(atoms: Atoms, n: int = 8) -> np.ndarray:
    """Return the atoms within 3 Å of the first removed S."""
    host = pristine("MoS2", n)
    gone = host.positions[np.flatnonzero(host.numbers == 16)[0]]
    probe = Atoms("X", positions=[gone], cell=atoms.cell, pbc=True) + atoms
    return np.flatnonzero(probe.get_distances(0, range(1, len(probe)), mic=True) < 3.0)


def test_moves_most_at_the_defects_and_is_finite(relaxer, mos2):
    relaxed = relaxer.relax(mos2)
    moved = np.linalg.norm(relaxed.positions - mos2.positions, axis=1)
    assert np.isfinite(relaxed.positions).all()
    near = near_vacancy(mos2)
    assert len(near) == 3
    assert moved[near].min() > MOVED
    assert np.median(moved) < MOVED


@pytest.mark.parametrize(
    ("element", "after", "largest"),
    [(16, 2.415, 0.092), (42, 2.493, 0.091)],
    ids=["v_S", "v_Mo"],
)
def test_single_vacancies_of_mos2_relax_as_in_dft(relaxer, element, after, largest):
    """Distance of the nearest neighbours to the empty site, and largest displacement, read off 2DMD, in Å."""
    host = pristine("MoS2", 8)
    gone = int(np.flatnonzero(host.numbers == element)[40])
    probe = Atoms("X", positions=host.positions[[gone]], cell=host.cell, pbc=True)
    atoms = host.copy()
    del atoms[gone]
    result = relaxer.predict(atoms)
    before = (probe + atoms).get_distances(0, range(1, len(host)), mic=True)
    distances = (probe + result.atoms).get_distances(0, range(1, len(host)), mic=True)
    nearest = np.argsort(before)[: 3 if element == 16 else 6]
    assert np.abs(distances[nearest] - after).max() < DFT
    assert np.ptp(distances[nearest]) < ORIGIN  # the symmetry of the site survives
    assert abs(np.linalg.norm(result.displacement, axis=1).max() - largest) < 2 * DFT


def test_input_is_unchanged_and_everything_else_comes_back(relaxer, mos2):
    mos2.info["name"] = "probe"
    mos2.set_array("site_label", np.arange(len(mos2)))
    mos2.set_initial_magnetic_moments(np.linspace(0, 1, len(mos2)))
    mos2.calc = SinglePointCalculator(mos2, energy=1.0)
    before = mos2.copy()
    relaxed = relaxer.relax(mos2)
    assert np.array_equal(mos2.positions, before.positions)
    assert mos2.calc is not None
    assert relaxed.calc is None
    assert np.array_equal(relaxed.numbers, mos2.numbers)
    assert np.array_equal(relaxed.cell.array, mos2.cell.array)
    assert np.array_equal(relaxed.pbc, mos2.pbc)
    assert np.array_equal(relaxed.arrays["site_label"], mos2.arrays["site_label"])
    assert np.array_equal(relaxed.get_initial_magnetic_moments(), mos2.get_initial_magnetic_moments())
    assert relaxed.info["name"] == "probe"
    assert relaxed.info["definet_host"] == "MoS2"
    assert relaxed.info["definet_defects"] == "v_S x2, W_Mo x1"
    assert relaxed.info["definet_model"].startswith("default")
    assert "definet_host" not in mos2.info


def test_mean_position_is_kept(relaxer, mos2):
    relaxed = relaxer.relax(mos2)
    assert np.abs((relaxed.positions - mos2.positions).mean(axis=0)).max() < EXACT


def test_fixed_atoms_do_not_move(relaxer, mos2):
    near = near_vacancy(mos2)
    mos2.set_constraint([FixAtoms(indices=near[:1]), FixCartesian(int(near[1]), mask=(False, False, True))])
    relaxed = relaxer.relax(mos2)
    assert np.array_equal(relaxed.positions[near[0]], mos2.positions[near[0]])
    assert relaxed.positions[near[1], 2] == mos2.positions[near[1], 2]
    assert not np.array_equal(relaxed.positions[near[1], :2], mos2.positions[near[1], :2])
    assert len(relaxed.constraints) == 2


@pytest.mark.parametrize("shift", [(0.002, 0, 0), (1.0, 0.5, 0.0), (0, 0, 9.0), (12.76, 3.0, -7.0)])
def test_origin_does_not_matter(relaxer, mos2, shift):
    expected = relaxer.relax(mos2)
    moved = mos2.copy()
    moved.positions += shift
    moved.wrap()
    delta = wrapped_difference(relaxer.relax(moved), expected) - shift
    fractions = np.linalg.solve(mos2.cell.array.T, delta.T).T
    assert np.abs(delta - np.round(fractions) @ mos2.cell.array).max() < ORIGIN


def test_images_are_the_callers(relaxer, mos2):
    expected = relaxer.relax(mos2)
    moved = mos2.copy()
    moved.positions[7] += 2 * mos2.cell[0] - mos2.cell[2]
    assert (
        np.abs(relaxer.relax(moved).positions[7] - expected.positions[7] - 2 * mos2.cell[0] + mos2.cell[2]).max()
        < 1e-4
    )


def test_order_does_not_matter(relaxer, mos2):
    order = np.random.default_rng(0).permutation(len(mos2))
    delta = relaxer.relax(mos2[order]).positions - relaxer.relax(mos2).positions[order]
    assert np.abs(delta).max() < ORIGIN


def test_guess_does_not_matter_only_the_sites(relaxer, mos2):
    expected = relaxer.relax(mos2)
    rattled = mos2.copy()
    rattled.rattle(0.05, seed=1)
    delta = relaxer.relax(rattled).positions - expected.positions
    assert np.abs(delta - delta.mean(axis=0)).max() < ORIGIN


def test_keeping_the_given_positions_is_another_prediction(mos2):
    rattled = mos2.copy()
    rattled.rattle(0.02, seed=1)
    ideal = DefiNetRelaxer(host="MoS2", device="cpu").relax(rattled)
    given = DefiNetRelaxer(host="MoS2", device="cpu", initial_positions="given").relax(rattled)
    assert np.abs(ideal.positions - given.positions).max() > 0.01


def test_structure_in_structure_out(relaxer, mos2):
    structure = AseAtomsAdaptor.get_structure(mos2)
    relaxed = relaxer.relax(structure)
    assert isinstance(relaxed, Structure)
    assert relaxed.species == structure.species
    assert np.abs(relaxed.cart_coords - relaxer.relax(mos2).positions).max() < FLOAT32
    assert np.abs(structure.cart_coords - mos2.positions).max() < EXACT


def test_result_says_how(relaxer, mos2):
    result = relaxer.predict(mos2)
    assert result.site_map.supercell_name == "8x8x1"
    assert result.kinds.shape == (192,)
    assert (result.kinds == 2).sum() == 2
    assert set(result.timings) == {"match", "graph", "forward"}
    assert np.abs(result.displacement - (result.atoms.positions - mos2.positions)).max() == 0
    assert np.abs(result.site_displacement[result.kinds == 2]).max() == 0
    with pytest.raises(AttributeError):
        result.atoms = mos2


def test_many_in_order_with_a_bad_one_between(relaxer, mos2):
    bad = mos2.copy()
    bad.positions[3] = np.nan
    structures = [mos2, bad, mos2_with_defects(5), StopIteration("a reader's exception"), pristine("MoS2", 6)]
    items = list(relaxer.relax_many(structures))
    assert [type(i) for i in items] == [RelaxResult, RelaxFailure, RelaxResult, RelaxFailure, RelaxResult]
    assert "not a number" in str(items[1].error)
    assert items[1].index == 1
    assert items[3].error is structures[3]
    for k in (0, 2, 4):
        single = relaxer.predict(structures[k])
        assert np.abs(items[k].atoms.positions - single.atoms.positions).max() < FLOAT32
    assert np.abs(items[4].displacement).max() < 0.05  # pristine: hardly moves


def test_batches_of_any_size_agree(relaxer):
    structures = [mos2_with_defects(n) for n in (4, 5, 6)]
    together = [item.atoms.positions for item in relaxer.relax_many(structures)]
    single = [item.atoms.positions for item in relaxer.relax_many(structures, batch_sites=1)]
    for a, b in zip(together, single, strict=True):
        assert np.abs(a - b).max() < FLOAT32


def test_relax_many_reads_lazily(relaxer, mos2):
    read = []

    def stream():
        for k in range(100):
            read.append(k)
            yield mos2

    results = relaxer.relax_many(stream(), batch_sites=200)
    next(results)
    assert len(read) < 5


def test_out_of_memory_halves_the_batch(relaxer, mos2, monkeypatch):
    real = relaxer._predict

    def scarce(items):
        if len(items) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(items)

    monkeypatch.setattr(relaxer, "_predict", scarce)
    with pytest.warns(DefiNetWarning, match="halving the batch"):
        items = list(relaxer.relax_many([mos2, mos2, mos2]))
    assert all(isinstance(item, RelaxResult) for item in items)


def test_out_of_memory_for_one_structure_is_its_failure(relaxer, mos2, monkeypatch):
    def scarce(items):
        del items
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(relaxer, "_predict", scarce)
    (item,) = relaxer.relax_many([mos2])
    assert isinstance(item.error, DeviceError)


def test_lattices_and_graphs_agree(relaxer, mos2, monkeypatch):
    """Rotated, strained, shuffled, of several sizes: the quick path gives what the sum over edges gives."""
    wide = pristine("MoS2", 18)
    del wide[[40, 300]]
    turned = mos2.copy()
    turned.rotate(37, "z", rotate_cell=True)
    strained = mos2.copy()
    strained.set_cell(mos2.cell.array * [[1.004], [0.998], [1]], scale_atoms=True)
    oblong = make_supercell(pristine("MoS2", 1), [[6, 2, 0], [-1, 7, 0], [0, 0, 1]])
    del oblong[[5]]
    given = [mos2, turned, strained, oblong, mos2[np.random.default_rng(0).permutation(len(mos2))], wide]
    quick = list(relaxer.relax_many(given, batch_sites=10_000))
    monkeypatch.setattr(LatticeGeometry, "suits", staticmethod(lambda supercell: supercell is None))
    slow = list(relaxer.relax_many(given))
    for a, b in zip(quick, slow, strict=True):
        assert np.abs(a.displacement).max() > 0.01
        assert np.abs(a.displacement - b.displacement).max() < FLOAT32


def reasons(relaxer: DefiNetRelaxer, atoms: Atoms, host: object = None) -> str:
    return "; ".join(relaxer.predict(atoms, host).warnings)


def test_nothing_to_say_of_the_familiar(relaxer, mos2):
    assert relaxer.predict(mos2).warnings == ()


def test_reasons_to_distrust(relaxer, mos2):
    rhenium = mos2.copy()
    rhenium.numbers[rhenium.numbers == 74] = 75
    assert "elements never seen in training: Re" in reasons(relaxer, rhenium)
    oxygen = mos2.copy()
    oxygen.numbers[np.flatnonzero(oxygen.numbers == 16)[5]] = 7
    assert "defects never seen in MoS2: N_S" in reasons(relaxer, oxygen)
    charged = mos2.copy()
    charged.info["charge"] = -1
    assert "net charge -1" in reasons(relaxer, charged)
    strained = mos2.copy()
    strained.set_cell(strained.cell.array * [[1.02], [1.02], [1]], scale_atoms=True)
    assert "strained by +2.0%" in reasons(relaxer, strained)
    dense = mos2.copy()
    del dense[np.flatnonzero(dense.numbers == 16)[10:40].tolist()]
    assert "of the sites are defects" in reasons(relaxer, dense)


def test_unseen_host_is_named(relaxer):
    magnesia = bulk("MgO", "rocksalt", a=4.25, cubic=True).repeat(2)
    del magnesia[0]
    text = reasons(relaxer, magnesia, bulk("MgO", "rocksalt", a=4.25))
    assert "host MgO was not in the training data" in text
    assert "elements never seen in training: O, Mg" in text


def test_a_known_host_given_as_atoms_is_recognised(relaxer, mos2):
    assert relaxer.predict(mos2, pristine("MoS2", 1)).warnings == ()


def test_strict_turns_reasons_into_errors(mos2):
    mos2.info["charge"] = 1
    with pytest.raises(StrictError, match="net charge"):
        DefiNetRelaxer(host="MoS2", device="cpu", strict=True).relax(mos2)


def test_relax_warns(relaxer, mos2):
    mos2.info["charge"] = 1
    with pytest.warns(DefiNetWarning, match="net charge"):
        relaxer.relax(mos2)


def test_errors(relaxer, mos2):
    with pytest.raises(HostError, match="no host"):
        DefiNetRelaxer(device="cpu").relax(mos2)
    with pytest.raises(MatchError):
        relaxer.predict(mos2, kinds=[0] * 192)
    with pytest.raises(DeviceError, match="unknown device"):
        DefiNetRelaxer(device="quantum")
    if not torch.cuda.is_available():
        with pytest.raises(DeviceError, match="0 CUDA"):
            DefiNetRelaxer(device="cuda")


def _with_adatom(atoms):
    top = atoms.positions[np.argmax(atoms.positions[:, 2])]
    return atoms + Atoms("O", [top + np.array([0, 0, 2.0])])


def _with_an_atom_off_its_site(atoms):
    top = int(np.argmax(atoms.positions[:, 2]))
    atoms.positions[top] += [1.4, 0.81, -0.4]  # towards the middle of a hexagon, below the outer plane
    return atoms


EXTRA = {"adatom": ("O_ads", _with_adatom), "displaced host atom": ("S_i", _with_an_atom_off_its_site)}


@pytest.mark.parametrize("kind", EXTRA)
def test_atoms_on_no_site_are_refused_by_kind_and_name(relaxer, mos2, kind):
    name, change = EXTRA[kind]
    atoms = change(mos2.copy())
    reason = rf"sits on no free site of host MoS2, .* {name} \({kind}\); the network has no kind of site"
    with pytest.raises(MatchError, match=reason):
        relaxer.predict(atoms)
    first, failed, last = relaxer.relax_many([mos2, atoms, mos2])
    assert isinstance(failed, RelaxFailure)
    assert isinstance(failed.error, MatchError)
    assert isinstance(first, RelaxResult)
    assert isinstance(last, RelaxResult)


def test_auto_host(mos2):
    assert DefiNetRelaxer(host="auto", device="cpu").predict(mos2).site_map.host.name == "MoS2"


@pytest.mark.parametrize("device", DEVICES)
def test_devices_agree(relaxer, mos2, device):
    other = DefiNetRelaxer(host="MoS2", device=device).relax(mos2)
    assert np.abs(other.positions - relaxer.relax(mos2).positions).max() < 1e-4


@pytest.mark.parametrize("host", ["WSe2", "BN", "GaSe", "InSe", "P"])
def test_every_library_host_relaxes_a_vacancy(host):
    atoms = pristine(host, 6)
    del atoms[10]
    result = DefiNetRelaxer(host=host, device="cpu").predict(atoms)
    assert 0.01 < np.linalg.norm(result.displacement, axis=1).max() < 1.5


def test_tiled_cell_gives_tiled_displacements(relaxer):
    atoms = mos2_with_defects(5)
    small = relaxer.predict(atoms)
    large = relaxer.predict(atoms.repeat((2, 1, 1)))
    assert np.abs(large.displacement.reshape(2, -1, 3) - small.displacement).max() < FLOAT32


def test_own_host_does_not_hide_how_far_it_is_from_the_training_data(relaxer):
    """A host of the user's own lattice constant fits without strain: the model's reach is another question."""
    host = pristine("MoS2", 1)
    host.set_cell(host.cell.array * [[0.97], [0.97], [1]], scale_atoms=True)
    atoms = host.repeat((6, 6, 1))
    del atoms[4]
    assert "the cell is strained by -3.0%" in reasons(relaxer, atoms, host)
    thin = pristine("MoS2", 1)
    thin.positions[:, 2] = 10 + (thin.positions[:, 2] - 10) * 0.8
    atoms = thin.repeat((6, 6, 1))
    del atoms[4]
    assert "the host's sites lie" in reasons(relaxer, atoms, thin)


def test_charges_of_all_kinds_are_seen(relaxer, mos2):
    structure = AseAtomsAdaptor.get_structure(mos2)
    structure.set_charge(-1)
    assert "net charge -1" in reasons(relaxer, structure)
    charges = np.zeros(len(mos2))
    charges[3] = 1
    mos2.set_initial_charges(charges)
    assert "net charge +1" in reasons(relaxer, mos2)
    mos2.info["charge"] = "neutral"
    with pytest.raises(StructureError, match="must be a number"):
        relaxer.predict(mos2)


def test_pristine_is_named(relaxer):
    assert relaxer.predict(pristine("MoS2", 5)).warnings == ("no defects found: the structure is the pristine host",)


def test_options_are_checked():
    with pytest.raises(DefiNetError, match="'ideal' or 'given', found 'IDEAL'"):
        DefiNetRelaxer(host="MoS2", device="cpu", initial_positions="IDEAL")
    with pytest.raises(DefiNetError, match="max_strain must be positive"):
        DefiNetRelaxer(host="MoS2", device="cpu", max_strain=-1)


def test_relax_many_keeps_what_it_has_when_the_source_breaks(relaxer, mos2):
    def source():
        yield mos2
        yield mos2
        raise OSError("the disk went away")

    got = []
    with pytest.raises(OSError, match="the disk went away"):
        got.extend(relaxer.relax_many(source()))
    results = relaxer.relax_many(source())
    assert [isinstance(next(results), RelaxResult) for _ in range(2)] == [True, True]
    with pytest.raises(StructureError, match="put it in a list"):
        next(relaxer.relax_many(mos2))


def test_provenance_and_warnings_reach_the_input_set(relaxer, mos2, tmp_path):
    mos2.info["charge"] = -1
    result = relaxer.predict(mos2)
    report = write_vasp_inputs(result.atoms, tmp_path / "a")
    text = (tmp_path / "a" / "README.txt").read_text(encoding="utf-8")
    assert "MoS2" in text
    assert "v_S x2, W_Mo x1" in text
    assert "net charge -1" in text
    assert "NELECT" in report.incar
    relaxed = relaxer.relax(AseAtomsAdaptor.get_structure(mos2_with_defects(4)))
    assert "POSCAR" in write_vasp_inputs(relaxed, tmp_path / "b").files


# Displacements longer than a bond


def dense_wse2() -> Atoms:
    """Return a cell in which the bundled weights move an atom by 2.9 Å."""
    space = DefectSpace(get_host("WSe2"), np.diag([4, 4, 1]))
    name = "v_Sex2+v_Wx2+S_Sex3-5-40-9-12-16-17-23"
    sample = space.sample(0.15, list(parse_defects("v_Se + v_W + S_Se")), 1)
    return space.atoms(next(one for one, _ in zip(sample, range(12), strict=False) if one.name == name))


def test_a_displacement_longer_than_a_bond_is_a_warning_of_its_own():
    atoms = dense_wse2()
    result = DefiNetRelaxer(host="WSe2", device="cpu").predict(atoms)
    moved = np.linalg.norm(result.site_displacement, axis=1) * (result.site_map.atom_index >= 0)
    assert moved.max() > result.site_map.host.nearest_neighbor
    (said,) = (text for text in result.warnings if "than a bond" in text)
    atom = result.site_map.atom_index[moved.argmax()]
    assert said.startswith(f"atom {atom} ({atoms.symbols[atom]}) is predicted {moved.max():.2f} Å from its site")
    assert said in result.atoms.info["definet_warnings"]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DefiNetRelaxer(host="WSe2", device="cpu").relax(atoms)
    assert [str(one.message) for one in caught] == list(result.warnings)


@pytest.mark.parametrize("name", ["MoS2", "BN", "P", "GaSe"])
@pytest.mark.parametrize(("share", "count"), [(0.99, 0), (1.01, 1), (2.0, 3)])
def test_only_atoms_that_move_further_than_a_bond_are_counted(name, share, count, monkeypatch):
    atoms = pristine(name, 4)
    del atoms[3]
    relaxer = DefiNetRelaxer(host=name, device="cpu")
    sites = len(atoms) + 1
    moved = np.zeros((sites, 3))
    moved[: max(count, 1), 0] = share * get_host(name).nearest_neighbor
    moved[:, 1] = 0.0
    monkeypatch.setattr(relaxer, "_predict", lambda _: (moved, None))
    result = relaxer.predict(atoms)
    moved[result.site_map.atom_index < 0] = 100.0  # where nothing is, nothing moves
    result = relaxer.predict(atoms)
    occupied = int((result.site_map.atom_index[: max(count, 1)] >= 0).sum())
    said = [text for text in result.warnings if "than a bond" in text]
    assert len(said) == (1 if count and occupied else 0)
    if occupied > 1 and count:
        assert f"and {occupied - 1} more such atoms" in said[0]
    relaxer.strict = True
    monkeypatch.setattr(Domain, "judge", lambda *_: Judgement())
    if said:
        with pytest.raises(StrictError, match="than a bond"):
            relaxer.predict(atoms)
    else:
        assert relaxer.predict(atoms).warnings == ()


# Strain


@pytest.mark.parametrize("name", ["MoS2", "BN", "P"])
@pytest.mark.parametrize("strain", [-0.04, 0.02, 0.05])
def test_one_strain_is_one_warning(name, strain):
    atoms = pristine(name, 4)
    del atoms[3]
    atoms.set_cell(atoms.cell.array * [[1 + strain], [1 + strain], [1]], scale_atoms=True)
    result = DefiNetRelaxer(host=name, device="cpu").predict(atoms)
    (said,) = (text for text in result.warnings if "strained" in text)
    assert said == f"the cell is strained by {strain:+.1%} against the {name} of the training data"
    assert "strain" in result.outside


def test_a_strained_host_that_differs_from_the_training_data_too_says_both():
    host = pristine("MoS2", 1)
    host.set_cell(host.cell.array * [[0.98], [0.98], [1]], scale_atoms=True)
    atoms = pristine("MoS2", 4)
    del atoms[3]
    atoms.set_cell(atoms.cell.array * [[1.02], [1.02], [1]], scale_atoms=True)
    result = DefiNetRelaxer(host=host, device="cpu").predict(atoms)
    (said,) = (text for text in result.warnings if "strained" in text)
    assert "the cell is strained by +2.1% against the MoS2" in said
    assert "the host is strained by +4.1% onto the cell" in said
