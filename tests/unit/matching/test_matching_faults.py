"""Faults that users met in site matching, each with its whole kind: dense and stacked hosts, noise, size, strain."""

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, graphene, make_supercell, mx2
from click.testing import CliRunner

from ase_definet.cli import cli
from ase_definet.errors import HostError, MatchError
from ase_definet.matching.host import NOISE
from ase_definet.matching.library import get_host
from ase_definet.matching.registration import GOOD_COST
from ase_definet.matching.site_map import MIN_ADVANTAGE, match_sites
from ase_definet.matching.supercell import diffracted_mappings, find_mappings
from ase_definet.relaxation.domain import known_host
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.structures.cell import layer_frame
from tests.reliability.matches import layer, stack, sweep
from tests.unit.matching.test_match_sites import RATTLE_TOLERANCE, assert_found, plant

EXACT = 1e-4
"""Å: rounding of a structure that is its host's."""


def graphene_on_mos2(noise=0.0):
    host = stack(mx2("MoS2", a=3.16, size=(4, 4, 1), vacuum=8), graphene(size=(5, 5, 1), vacuum=8))
    host.positions += noise * np.random.default_rng(0).normal(size=host.positions.shape)
    return host


def bn_on_mos2(noise=0.0):
    host = stack(mx2("MoS2", a=3.15, size=(4, 4, 1), vacuum=8), layer("BN").repeat((5, 5, 1)))
    host.positions += noise * np.random.default_rng(1).normal(size=host.positions.shape)
    return host


def nitrogen_in_diamond(size=2):
    host = bulk("C", cubic=True).repeat(size)
    host.symbols[5] = "N"
    return host


def bilayer(name):
    return stack(layer(name), layer(name), gap=3.2)


DENSE = {
    "graphene on MoS2": graphene_on_mos2,
    "h-BN on MoS2": bn_on_mos2,
    "N in diamond": nitrogen_in_diamond,
    "graphene": lambda: graphene(size=(1, 1, 1), vacuum=8).repeat((6, 6, 1)),
    "h-BN bilayer": lambda: bilayer("BN").repeat((5, 5, 1)),
    "Cu": lambda: bulk("Cu", cubic=True).repeat(3),
    "diamond": lambda: bulk("C", cubic=True).repeat(2),
    "solid H2-like": lambda: Atoms("H2", positions=[[0, 0, 0], [0, 0, 0.75]], cell=[2.6, 2.6, 2.6], pbc=True).repeat(
        3
    ),
}


# Dense and stacked hosts: sublattices finer than an atom's bin of votes


@pytest.mark.parametrize("name", DENSE)
@pytest.mark.parametrize("rattle", [0.0, 0.05])
def test_every_vacancy_of_a_dense_host_is_found_where_it_is(name, rattle):
    host = DENSE[name]()
    host.pbc = True
    rng = np.random.default_rng(3)
    for k in rng.choice(len(host), min(12, len(host)), replace=False).tolist():
        atoms, defects = plant(host, {k: None})
        shift = rng.uniform(-3, 3, 3)
        atoms.positions += shift + rattle * rng.normal(size=atoms.positions.shape)
        defects = [(kind, position + shift) for kind, position in defects]
        found = assert_found(atoms, defects, host, EXACT if rattle == 0 else RATTLE_TOLERANCE)
        assert found.cost < (EXACT if rattle == 0 else 3 * rattle)


def test_the_layers_of_a_stack_keep_their_places():
    # issue 17: 0.44 Å rms where 0 is exact
    host = graphene_on_mos2()
    atoms, _ = plant(host, {int(np.flatnonzero(host.symbols == "S")[3]): None})
    control = DefiNetRelaxer(host=host, device="cpu").predict(atoms).unrelaxed
    assert np.abs(control.positions - atoms.positions).max() < EXACT


def test_registrations_that_are_as_good_and_read_differently_are_said():
    # an adatom-like layer atom that may be the vacancy of either of two places
    host = bulk("NaCl", "rocksalt", a=5.6, cubic=True)
    atoms = host.repeat(2)
    atoms.symbols[:] = "Na"
    atoms.symbols[::2] = "Na"
    with pytest.raises(MatchError):
        match_sites(atoms, host)
    half = host.repeat(2)
    swapped = [int(k) for k in np.flatnonzero(half.symbols == "Na")[:16]]
    others = [int(k) for k in np.flatnonzero(half.symbols == "Cl")[:16]]
    half.symbols[swapped], half.symbols[others] = "Cl", "Na"
    found = match_sites(half, host)
    assert found.ambiguous
    assert found.runner_up < found.cost + MIN_ADVANTAGE


# Hosts given as relaxed supercells: noise is neither ambiguity nor a reason to refuse other sizes


@pytest.mark.parametrize("noise", [0.0005, 0.002, 0.005])
@pytest.mark.parametrize("name", ["MoS2", "BN", "P", "MgO"])
def test_a_noisy_supercell_is_reduced_and_fits_other_sizes(name, noise):
    unit = bulk("MgO", "rocksalt", a=4.21, cubic=True) if name == "MgO" else layer(name)
    repeat = (2, 2, 2) if name == "MgO" else (3, 3, 1)
    given = unit.repeat(repeat)
    given.positions += noise * np.random.default_rng(5).normal(size=given.positions.shape)
    host = get_host(given, name)
    assert len(host.numbers) == (2 if name == "MgO" else len(unit))
    for size in (repeat, tuple(n + (n > 1) for n in repeat)):
        atoms, defects = plant(unit.repeat(size), {7: None})
        found = assert_found(atoms, defects, given, tolerance=20 * noise)
        assert not found.ambiguous
        assert found.warnings == ()


def test_a_host_that_does_not_reduce_is_not_ambiguous_with_itself():
    # every copy distorted by more than noise: the 32 translations of the diamond lattice all but tie
    host = bulk("C", cubic=True).repeat(2)
    host.positions += 0.03 * np.random.default_rng(2).normal(size=host.positions.shape)
    assert len(get_host(host).numbers) == len(host)
    atoms, defects = plant(host, {11: None})
    found = assert_found(atoms, defects, host, 0.2)
    assert not found.ambiguous


def test_a_superstructure_stays_and_says_so_where_it_does_not_fit():
    host = layer("MoS2").repeat((2, 2, 1))
    host.positions[0] += [0.0, 0.25, 0.0]
    reduced = get_host(host, "distorted")
    assert len(reduced.numbers) == len(host)
    with pytest.raises((HostError, MatchError), match=r"within 0\.02 Å, has 12 atoms: if .* give its primitive cell"):
        match_sites(layer("MoS2").repeat((5, 5, 1)), reduced)


def test_reduction_takes_the_mean_of_the_copies():
    clean = layer("MoS2")
    noisy = clean.repeat((4, 4, 1))
    move = 0.003 * np.random.default_rng(0).normal(size=noisy.positions.shape)
    noisy.positions += move
    host = get_host(noisy)
    exact = get_host(clean)
    heights = [np.sort(h.positions @ (h.cell[2] / np.linalg.norm(h.cell[2]))) for h in (host, exact)]
    heights = [h - h.mean() for h in heights]
    assert np.abs(heights[0] - heights[1]).max() < 0.003
    assert np.abs(move).max() < NOISE


# Order of the species


@pytest.mark.parametrize("name", ["MoS2", "WSe2", "BN", "GaSe"])
def test_a_library_host_is_known_in_any_order(name):
    unit = layer(name)
    index = np.arange(len(unit))
    for order in (index, index[::-1], np.argsort(unit.numbers), np.argsort(-unit.numbers)):
        found, strain, offset = known_host(get_host(unit[order]))
        assert (found, round(strain, 6), round(offset, 4)) == (name, 0, 0)


# Large cells with a lattice constant of their own


def strained_cell(unit, size, strain, share, seed=0, rattle=0.0):
    """Return a strained supercell with random vacancies and the number of each."""
    rng = np.random.default_rng(seed)
    atoms = unit.repeat(size)
    atoms.set_cell(atoms.cell.array * (1 + np.array(strain)), scale_atoms=True)
    gone = rng.choice(len(atoms), max(1, round(share * len(atoms))), replace=False)
    counts = {f"v_{e}": int((atoms.symbols[gone] == e).sum()) for e in set(atoms.symbols)}
    del atoms[gone]
    atoms.positions += rattle * rng.normal(size=atoms.positions.shape) + rng.uniform(-4, 4, 3)
    return atoms, {name: n for name, n in counts.items() if n}


@pytest.mark.parametrize(
    ("name", "size", "strain", "share"),
    [
        ("MoS2", (40, 40, 1), (-0.03, -0.03, 0), 0.125),
        ("MoS2", (36, 36, 1), (0.02, -0.02, 0), 0.0),
        ("MoS2", (64, 64, 1), (0.01, -0.01, 0), 0.0),
        ("MoS2", (128, 128, 1), (-0.0032, -0.0032, 0), 0.01),
        ("P", (40, 40, 1), (0.02, -0.01, 0), 0.0),
        ("P", (31, 47, 1), (-0.05, 0.04, 0), 0.1),
        ("BN", (70, 12, 1), (0.05, 0.05, 0), 0.1),
        ("GaSe", (25, 40, 1), (0.0, 0.03, 0), 0.05),
        ("Si", (16, 16, 16), (0.02, -0.02, 0.0), 0.0),
        ("Si", (9, 12, 7), (0.04, 0.04, 0.04), 0.1),
        ("MgO", (10, 10, 10), (-0.03, 0.01, 0.02), 0.05),
    ],
)
@pytest.mark.parametrize("rattle", [0.0, 0.1])
def test_large_strained_cells(name, size, strain, share, rattle):
    crystals = {"Si": bulk("Si"), "MgO": bulk("MgO", "rocksalt", a=4.21, cubic=True)}
    unit = crystals.get(name) or layer(name)
    atoms, counts = strained_cell(unit, size, strain, share, rattle=rattle)
    found = match_sites(atoms, unit)
    assert found.defect_counts == counts
    np.testing.assert_allclose(np.sort(found.strain), np.sort(strain), atol=1e-3)
    assert found.cost < 2 * rattle + EXACT


def test_turned_and_skewed_large_cell():
    unit = layer("MoS2")
    matrix = np.array([[31, 12, 0], [-5, 28, 0], [0, 0, 1]])
    atoms = make_supercell(unit, matrix)
    atoms.rotate(33, "z", rotate_cell=True)
    atoms, defects = plant(atoms, {100: None, 1000: "W"})
    found = match_sites(atoms, "MoS2")
    assert sorted(found.defect_counts) == sorted(name for name, _ in defects)


@pytest.mark.parametrize("name", ["MoS2", "P", "Si"])
@pytest.mark.parametrize("size", [3, 5])
def test_diffraction_finds_what_enumeration_finds(name, size):
    """In small cells, where all supercells can be tried, the atoms choose one that fits as well as any."""
    unit = bulk("Si", cubic=True) if name == "Si" else layer(name)
    host = get_host(unit)
    atoms = unit.repeat((size, size, size if name == "Si" else 1))
    atoms.set_cell(atoms.cell.array * [1.02, 0.99, 1.0], scale_atoms=True)
    frame, positions, _ = layer_frame(atoms.cell.array, atoms.positions)
    every = {m.matrix.tobytes() for m in find_mappings(host, frame, len(atoms))}
    chosen = diffracted_mappings(host, frame, (positions, atoms.numbers), 0.06)
    assert chosen
    assert {m.matrix.tobytes() for m in chosen} <= every
    strain = np.sort(chosen[0].strain)
    np.testing.assert_allclose(strain, np.sort([0.02, -0.01, 0.0]), atol=1e-6)


# Refusals name their reason


def test_thick_slabs_keep_their_vacuum():
    # issue 17: 36 Å of slab with 20 Å of vacuum "lost its vacuum"
    for cells in (5, 9, 15):
        slab = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat((1, 1, cells))
        slab.center(vacuum=10, axis=2)
        host = get_host(slab)
        assert host.layered
        assert len(host.numbers) == 4 * cells
        atoms, defects = plant(slab.repeat((2, 2, 1)), {7: None})
        assert_found(atoms, defects, slab)


def test_the_gap_that_is_too_small_is_named():
    atoms = layer("MoS2").repeat((4, 4, 1))
    thickness = np.ptp(atoms.positions[:, 2])
    atoms.cell[2, 2] = thickness + 6.8
    for host in ("MoS2", "auto"):
        with pytest.raises(HostError, match=r"widest gap is 6\.8 Å along axis 2, a layer needs 7 Å"):
            match_sites(atoms, host)


@pytest.mark.parametrize("size", [5, 8, 20])
@pytest.mark.parametrize("strain", [0.07, 0.1, -0.08])
@pytest.mark.parametrize("name", ["MoS2", "BN"])
def test_strain_beyond_the_limit_is_what_is_said(name, size, strain):
    atoms = layer(name).repeat((size, size, 1))
    atoms.set_cell(atoms.cell.array * [1 + strain, 1 + strain, 1], scale_atoms=True)
    del atoms[3]
    with pytest.raises(HostError, match=rf"strain of \{strain:+.1%}, at most 6\.0% is allowed"):
        match_sites(atoms, name)
    found = match_sites(atoms, name, max_strain=abs(strain) + 0.005)
    assert len(found.defects) == 1


@pytest.mark.parametrize(("formula", "a"), [("WTe2", 3.3), ("NbS2", 3.3), ("MoTe2", 3.29), ("TaS2", 3.3)])
@pytest.mark.parametrize("host", ["auto", "MoS2"])
def test_a_replaced_sublattice_is_no_defect(formula, a, host):
    atoms = mx2(formula, a=a, size=(5, 5, 1), vacuum=9)
    atoms.pbc = True
    del atoms[4]
    with pytest.raises((HostError, MatchError), match=r"hold (W|Nb|Te|Ta).*no defect|not a defect structure|fits"):
        match_sites(atoms, host)


def test_auto_says_why_each_host_does_not_fit():
    atoms = mx2("NbS2", a=3.18, size=(5, 5, 1), vacuum=9)
    atoms.pbc = True
    with pytest.raises(HostError) as error:
        match_sites(atoms, "auto")
    for part in ("MoS2: only 0 of the 25 Mo sites", "25 hold Nb", "WS2: only 0 of the 25 W sites"):
        assert part in str(error.value)


@pytest.mark.parametrize("command", ["match", "relax"])
def test_the_command_line_takes_more_strain(command, tmp_path):
    atoms = layer("MoS2").repeat((5, 5, 1))
    atoms.set_cell(atoms.cell.array * [1.07, 1.07, 1], scale_atoms=True)
    del atoms[3]
    atoms.write(tmp_path / "a.vasp")
    given = [command, str(tmp_path / "a.vasp"), "--host", "MoS2"]
    done = CliRunner().invoke(cli, given)
    assert done.exit_code == 1
    assert "at most 6.0% is allowed" in done.output
    assert "--max-strain" in done.output
    done = CliRunner().invoke(cli, [*given, "--max-strain", "0.08"])
    assert done.exit_code == 0, done.output
    assert "v_Mo" in done.output


def test_a_structure_without_defects_is_said_with_any_host():
    # issue of a newcomer: the defective cell given as its own host
    atoms = layer("MoS2").repeat((4, 4, 1))
    del atoms[5]
    result = DefiNetRelaxer(host=atoms, device="cpu").predict(atoms)
    assert set(result.outside) == {"pristine", "host"}
    assert any("no defects found" in text for text in result.warnings)


def test_auto_does_not_try_hosts_of_other_elements():
    atoms = layer("MoS2").repeat((6, 6, 1))
    atoms.symbols[[5, 40]] = ["W", "Se"]
    assert match_sites(atoms, "auto").host.name == "MoS2"
    strange = layer("MoS2").repeat((4, 4, 1))
    strange.symbols[strange.symbols == "Mo"] = "Fe"
    strange.symbols[np.flatnonzero(strange.symbols == "S")[::2]] = "Cl"
    with pytest.raises(HostError, match="MoS2: only 16 of 48 atoms are of its elements"):
        match_sites(strange, "auto")


def test_a_host_file_that_is_not_there_is_said():
    with pytest.raises(HostError, match="there is no such file"):
        get_host("some/where/host.vas")


def test_half_a_sublattice_may_be_replaced():
    atoms = layer("MoS2").repeat((6, 6, 1))
    metal = np.flatnonzero(atoms.symbols == "Mo")
    atoms.symbols[metal[:18]] = "W"
    assert match_sites(atoms, "MoS2").defect_counts == {"W_Mo": 18}


def test_a_single_atom_out_of_place_does_not_blame_the_strain():
    atoms = layer("MoS2").repeat((5, 5, 1))
    atoms += Atoms("H", positions=np.add(atoms.positions.mean(axis=0, keepdims=True), [0.7, 0.4, 3.2]))
    found = match_sites(atoms, "MoS2")
    assert found.defect_counts == {"H_ads": 1}
    with pytest.raises(MatchError, match="sits on no free site"):
        found.require_sites_only()


def test_random_matches_are_never_silently_wrong():
    lines = []
    outcomes = sweep(seed=0, count=60, report=lines.append)
    assert not [line for line in lines if line.startswith("SILENTLY")], lines
    assert sum(n for (_, outcome), n in outcomes.items() if outcome.startswith("right")) >= 57
    assert GOOD_COST < 1
