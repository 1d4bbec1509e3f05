"""How far a result can be trusted, and what is done where it cannot."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, mx2
from ase.formula import Formula
from hypothesis import given, settings
from hypothesis import strategies as st

from ase_definet.checkpoints.card import ModelCard
from ase_definet.checkpoints.combine import combine
from ase_definet.errors import StrictError
from ase_definet.matching.library import get_host
from ase_definet.matching.site_map import match_sites
from ase_definet.model.config import Coverage, HostRoutedConfig, RoutedConfig, SiteNetworkConfig
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.domain import TRUST, Domain, Judgement, Reservation, alike_hosts
from ase_definet.relaxation.inputs import sites_of
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.structures.state import State
from tests.conftest import pristine

SITES = 1e-6
"""An atom this close to its site is on it, in Å."""


@pytest.fixture(scope="module")
def relaxer() -> DefiNetRelaxer:
    return DefiNetRelaxer(device="cpu")


def replaced(host: str, symbol: str | None, on: str, n: int = 6, **info) -> Atoms:
    """Return a cell with one atom of an element replaced or, with None, missing."""
    atoms = pristine(host, n)
    site = int(np.flatnonzero(atoms.symbols == on)[n])
    if symbol is None:
        del atoms[site]
    else:
        atoms.symbols[site] = symbol
    atoms.info |= info
    return atoms


def carbon_dimer() -> Atoms:
    atoms = pristine("BN", 7)
    boron = int(np.flatnonzero(atoms.symbols == "B")[10])
    nitrogen = int(np.argsort(atoms.get_distances(boron, range(len(atoms)), mic=True))[1])
    atoms.symbols[[boron, nitrogen]] = "C"
    atoms.info |= {"charge": -1, "spin_multiplicity": 2, "functional": "HSE06"}
    return atoms


MGO = bulk("MgO", "rocksalt", 4.21)


def vacancy_in_mgo() -> Atoms:
    atoms = MGO * (3, 3, 3)
    del atoms[1]
    return atoms


CASES = {
    "W_Mo in MoS2": (lambda: replaced("MoS2", "W", "Mo"), "MoS2", "inside", ()),
    "charged carbon dimer in h-BN": (carbon_dimer, "BN", "inside", ()),
    "v_S- in MoS2": (lambda: replaced("MoS2", None, "S", charge=-1), "MoS2", "near", ("charge",)),
    "v_S in MoS2, triplet": (lambda: replaced("MoS2", None, "S", spin_multiplicity=3), "MoS2", "near", ("spin",)),
    "v_Se in MoSe2": (lambda: replaced("MoSe2", None, "Se"), "MoSe2", "near", ("host",)),
    "v_W in WS2": (lambda: replaced("WS2", None, "W"), "WS2", "near", ("host",)),
    "Mo_W in WS2": (lambda: replaced("WS2", "Mo", "W"), "WS2", "outside", ("host",)),
    "v_S2- in MoS2": (lambda: replaced("MoS2", None, "S", charge=-2), "MoS2", "outside", ("charge",)),
    "Re_Mo in MoS2": (lambda: replaced("MoS2", "Re", "Mo"), "MoS2", "outside", ("species", "defects")),
    "O_S in MoS2": (lambda: replaced("MoS2", "O", "S"), "MoS2", "outside", ("species", "defects")),
    "As_P in phosphorus": (lambda: replaced("P", "As", "P"), "P", "outside", ("species", "defects", "density")),
    "v_O in MgO": (vacancy_in_mgo, MGO, "outside", ("species", "host")),
}


@pytest.mark.parametrize("case", CASES)
def test_each_structure_is_judged_by_what_was_tried(relaxer, case):
    make, host, trust, words = CASES[case]
    atoms = make()
    result = relaxer.predict(atoms, host)
    assert (result.trust, result.outside) == (trust, words)
    assert result.atoms.info["definet_trust"] == trust
    assert result.method == result.atoms.info["definet_method"] == ("none" if trust == "outside" else "network")
    moved = np.linalg.norm(result.site_displacement, axis=1).max()
    if trust == "outside":
        assert moved == 0
        assert np.abs(result.displacement).max() < SITES  # the given structure is on the sites
        assert result.expected_error is None
        assert any("--extrapolate" in text for text in result.warnings)
    else:
        assert moved > 1e-3
        assert (result.expected_error is None) == ("host" in words)


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case[2] == "outside"])
def test_the_network_answers_all_the_same_if_asked(case):
    make, host, _, words = CASES[case]
    result = DefiNetRelaxer(device="cpu", extrapolate=True).predict(make(), host)
    assert (result.trust, result.method, result.outside) == ("outside", "network", words)
    assert np.abs(result.displacement).max() > 1e-3
    assert result.expected_error is None  # never a small number


def test_atoms_off_their_sites_are_put_back_or_left_as_asked(relaxer):
    atoms = replaced("MoS2", "Re", "Mo")
    moved = atoms.copy()
    moved.rattle(0.05, seed=1)
    moved.positions += atoms.positions.mean(axis=0) - moved.positions.mean(axis=0)
    back = relaxer.predict(moved, "MoS2")
    assert np.abs(back.atoms.positions - atoms.positions).max() < 0.02  # up to the rigid shift of the noise
    kept = DefiNetRelaxer(device="cpu", initial_positions="given").predict(moved, "MoS2")
    assert kept.method == "none"
    assert np.abs(kept.displacement).max() < SITES


def test_strict_is_strict():
    strict = DefiNetRelaxer(device="cpu", strict=True)
    with pytest.raises(StrictError, match="net charge -1"):
        strict.predict(replaced("MoS2", None, "S", charge=-1), "MoS2")


def test_expected_errors_grow_outside(relaxer):
    neutral = relaxer.predict(replaced("MoS2", None, "S"), "MoS2")
    charged = relaxer.predict(replaced("MoS2", None, "S", charge=1), "MoS2")
    assert neutral.trust == "inside"
    assert charged.expected_error.mean() > neutral.expected_error.mean()


def test_a_factor_alone_multiplies_the_networks_own_estimate():
    relaxer = DefiNetRelaxer(device="cpu")
    values = relaxer.card.plain()
    near = {"charge:1": {"share": 0.5, "error_factor": 2.5}}
    relaxer.domain = Domain(ModelCard.read(values | {"near": near, "error_model": None}), relaxer.model)
    neutral = relaxer.predict(replaced("MoS2", None, "S"), "MoS2")
    charged = relaxer.predict(replaced("MoS2", None, "S", charge=1), "MoS2")
    np.testing.assert_allclose(charged.expected_error, 2.5 * neutral.expected_error, rtol=1e-5)


def test_atoms_far_from_what_is_unknown_are_less_doubtful(relaxer):
    atoms = replaced("MoS2", "Re", "Mo", n=8)
    result = relaxer.predict(atoms, "MoS2")
    rhenium = int(np.flatnonzero(atoms.symbols == "Re")[0])
    distance = atoms.get_distances(rhenium, range(len(atoms)), mic=True)
    assert {TRUST[k] for k in result.atom_trust[distance < 6.9]} == {"outside"}
    assert {TRUST[k] for k in result.atom_trust[distance > 7.1]} == {"near"}
    inside = relaxer.predict(replaced("MoS2", None, "S"), "MoS2")
    assert not inside.atom_trust.any()


def own_host(thickness: float, a: float = 3.18) -> Atoms:
    layer = pristine("MoS2", 1)
    layer.set_cell(layer.cell.array * [[a / 3.19031570], [a / 3.19031570], [1]], scale_atoms=True)
    middle = layer.positions[layer.symbols == "Mo", 2][0]
    layer.positions[:, 2] = middle + np.sign((layer.positions[:, 2] - middle).round(3)) * thickness / 2
    return layer


@pytest.mark.parametrize("thickness", [3.10, 3.13, 3.16])
@pytest.mark.parametrize("n", [3, 5])
def test_a_host_of_the_users_own_is_a_fixed_point(relaxer, thickness, n):
    host = own_host(thickness)
    result = relaxer.predict(host.repeat((n, n, 1)), host)
    assert np.abs(result.site_displacement).max() < SITES
    defective = host.repeat((n, n, 1))
    del defective[1]
    alone = relaxer.predict(defective, host)
    together = next(iter(relaxer.relax_many([defective, host.repeat((n, n, 1))], host)))
    np.testing.assert_allclose(alone.site_displacement, together.site_displacement, atol=1e-5)
    assert np.abs(alone.site_displacement).max() > 0.02


@pytest.mark.parametrize("name", ["MoSe2", "WS2"])
def test_a_host_of_the_library_that_was_not_trained_on_is_a_fixed_point_too(relaxer, name):
    result = relaxer.predict(pristine(name, 5), name)
    assert np.abs(result.site_displacement).max() < SITES
    assert relaxer.predict(pristine("MoS2", 5), "MoS2").site_displacement.any()  # its own answer, as in training


def unit(formula: str, kind: str, a: float, thickness: float) -> Atoms:
    atoms = mx2(formula, kind=kind, a=a, thickness=thickness, vacuum=8)
    atoms.pbc = True
    return atoms


@pytest.mark.parametrize(
    ("host", "found"),
    [
        ("MoSe2", {"MoS2", "WSe2", "WS2"}),
        ("InSe", {"GaSe"}),
        ("BN", set()),
        ("BN-bulk", set()),
        ("P", set()),
        (unit("NbS2", "2H", 3.35, 3.14), {"MoS2", "MoSe2", "WS2", "WSe2"}),
        (unit("MoSe2", "1T", 3.30, 3.20), set()),
        (unit("CrO2", "2H", 2.60, 2.30), set()),  # of the same structure, but much smaller
    ],
    ids=str,
)
def test_hosts_of_one_structure_are_alike(host, found):
    places = dict(alike_hosts(get_host(host)))
    assert set(places) == found
    for name, pairs in places.items():
        assert [other for _, other in pairs] == list(Formula(name).count())


MOLYBDENUM = {"defects": ["W_Mo", "v_Mo", "Se_S", "v_S"], "density": [0.01, 0.05]}


@pytest.mark.parametrize(
    ("change", "keys"),
    [
        ((None, "Se"), ["host:alike"]),
        (("S", "Se"), ["host:alike"]),
        (("Mo", "W"), ["host:alike"]),
        (("Re", "W"), ["species", "host:alike", "defects:alike"]),
        (("S", "W"), ["host:alike", "defects:alike"]),
    ],
)
def test_an_alike_host_is_told_from_others(change, keys):
    symbol, on = change
    atoms = replaced("WSe2", symbol, on, n=5)
    card = ModelCard.read({"training": {"elements": ["Mo", "S", "Se", "W"], "hosts": {"MoS2": MOLYBDENUM}}})
    judgement = Domain(card, "x").judge(atoms, match_sites(atoms, "WSe2"))
    assert [one.kind_key for one in judgement.reservations] == keys
    assert judgement.trust == "outside"  # nothing was measured
    other = card.changed(training={"elements": ["Mo", "S", "Se", "W"], "hosts": {"MoS2": {"defects": ["v_S"]}}})
    judgement = Domain(other, "x").judge(atoms, match_sites(atoms, "WSe2"))
    assert judgement.reservations[-1].kind_key == "host:other"  # W and Se were never on such sites


def test_many_defects_of_an_alike_host_are_a_respect_of_their_own():
    atoms = pristine("WSe2", 5)
    del atoms[[1, 5, 10, 20, 30, 40, 50]]
    card = ModelCard.read({"training": {"elements": ["Mo", "S", "Se", "W"], "hosts": {"MoS2": MOLYBDENUM}}})
    judgement = Domain(card, "x").judge(atoms, match_sites(atoms, "WSe2"))
    assert [one.key for one in judgement.reservations] == ["host:WSe2", "density:beyond"]


@pytest.mark.parametrize(
    ("missing", "key", "trust"),
    [
        (2, None, "inside"),
        (3, "density:high", "near"),
        (4, "density:high", "outside"),
        (9, "density:beyond", "outside"),
    ],
)
def test_a_density_is_known_as_far_as_it_was_tried(missing, key, trust):
    """Densities of up to a quarter more are near without a measurement, others if that was made, up to a bound."""
    atoms = pristine("MoS2", 5)
    del atoms[[int(k) for k in np.flatnonzero(atoms.symbols == "S")[::5][:missing]]]
    host = {"defects": ["v_S"], "density": [0.01, 2.5 / 75]}
    card = ModelCard.read({"training": {"elements": ["Mo", "S"], "hosts": {"MoS2": host}}})
    judgement = Domain(card, "x").judge(atoms, match_sites(atoms, "MoS2"))
    assert [one.key for one in judgement.reservations] == ([] if key is None else [key])
    assert judgement.trust == trust
    tried = card.changed(near={"density:high": {"share": 0.8}})
    expected = "near" if key == "density:high" else trust
    assert Domain(tried, "x").judge(atoms, match_sites(atoms, "MoS2")).trust == expected


def beside(far: bool, first: str | None, second: str | None) -> Atoms:  # noqa: FBT001 - of a table
    """Return h-BN with two defects, on neighbouring sites or far apart."""
    atoms = pristine("BN", 6)
    one = int(np.flatnonzero(atoms.symbols == "B")[0])
    order = np.argsort(atoms.get_distances(one, range(len(atoms)), mic=True))
    other = next(int(k) for k in (order[::-1] if far else order[1:]) if atoms.symbols[k] == "N")
    empty = []
    for site, symbol in ((one, first), (other, second)):
        if symbol is None:
            empty.append(site)
        else:
            atoms.symbols[site] = symbol
    del atoms[empty]
    return atoms


@pytest.mark.parametrize("far", [False, True])
@pytest.mark.parametrize(
    "seen", [None, [], ["substitution+vacancy"], ["substitution+substitution", "vacancy+vacancy"]]
)
@pytest.mark.parametrize(
    ("kinds", "defects"),
    [
        ("substitution+vacancy", ("C", None)),
        ("vacancy+vacancy", (None, None)),
        ("substitution+substitution", ("C", "C")),
    ],
)
def test_defects_that_were_never_neighbours_are_a_respect(far, seen, kinds, defects):
    atoms = beside(far, *defects)
    host = {"defects": ["C_B", "C_N", "v_B", "v_N"]} | ({} if seen is None else {"side_by_side": seen})
    card = ModelCard.read({"training": {"elements": ["B", "C", "N"], "hosts": {"BN": host}}})
    judgement = Domain(card, "x").judge(atoms, match_sites(atoms, "BN"))
    new = not far and seen is not None and kinds not in seen
    assert [one.key for one in judgement.reservations] == (["complex"] if new else [])
    assert judgement.trust == ("outside" if new else "inside")


@pytest.mark.parametrize("charge", [1, -2, 3, -4])
@pytest.mark.parametrize("charged", [False, True])
def test_a_charge_is_as_far_as_from_the_closest_one_seen(charge, charged):
    charges = [0, 2] if charged else [0]
    atoms = replaced("MoS2", None, "S", charge=charge)
    near = {f"charge:{n}": {"share": 0.6} for n in (1, 2)}
    model = {"features": {"one": -5.0}, "respects": {"charge:1": 0.1, "charge:2": 0.2}}
    seen = {"elements": ["Mo", "S"], "hosts": {"MoS2": {"defects": ["v_S"], "charges": charges}}}
    card = ModelCard.read({"training": seen, "near": near, "error_model": model})
    judgement = Domain(card, "x").judge(atoms, match_sites(atoms, "MoS2"))
    (one,) = judgement.reservations
    away = min(abs(charge - known) for known in charges)
    assert one.key == (f"charge:{away} from charged" if charged else f"charge:{away}")
    assert judgement.trust == ("near" if away == 1 or (away == 2 and not charged) else "outside")
    # errors were measured beyond neutral cells only
    assert (judgement.error_weights is not None) is (not charged and away <= 2)
    assert ("charge" in judgement.unsupported) is (charged or away > 2)


def test_the_measured_share_decides():
    """A card may say that a respect was tried and the network was worse: then it is outside."""
    atoms = replaced("MoS2", None, "S", charge=-1)
    site_map = match_sites(atoms, "MoS2")
    card = ModelCard.read({"training": {"elements": ["Mo", "S"], "hosts": {"MoS2": {"defects": ["v_S"]}}}})
    for near, trust in (({}, "outside"), ({"share": 0.5}, "near"), ({"share": 1.2}, "outside")):
        own = card.changed(near={"charge:1": near} if near else {})
        assert Domain(own, "x").judge(atoms, site_map).trust == trust


@given(
    levels=st.lists(st.sampled_from(TRUST), max_size=4), factors=st.lists(st.none() | st.floats(0.5, 5), max_size=4)
)
def test_the_worst_reservation_decides(levels, factors):
    found = tuple(Reservation("x", "", level, factor) for level, factor in zip(levels, factors, strict=False))
    judgement = Judgement(found)
    assert judgement.trust == max((one.trust for one in found), key=TRUST.index, default="inside")
    known = [one.error_factor for one in found]
    assert judgement.error_factor == (None if None in known else max(known, default=1.0))


# Networks beside each other


NEUTRAL = Coverage(elements=(5, 6, 7), states=((5,), (1, 2), (1,), (1,)), layered=True)


@pytest.mark.parametrize(
    ("numbers", "state", "layered", "held"),
    [
        ((5, 7), State(), True, True),
        ((5, 6, 7), State(spin_multiplicity=2), True, True),
        ((5, 7), State(charge=None, functional=None), True, True),
        ((5, 7), None, True, True),
        ((5, 7, 13), State(), True, False),
        ((5, 7), State(charge=-1), True, False),
        ((5, 7), State(spin_multiplicity=3), True, False),
        ((5, 7), State(functional="HSE06"), True, False),
        ((5, 7), State(excited=True), True, False),
        ((5, 7), State(), False, False),
    ],
)
def test_what_a_network_covers(numbers, state, layered, held):
    assert NEUTRAL.holds(numbers, None if state is None else state.codes, layered=layered) == held


def network(seed: int, **changes) -> SiteNetwork:

    torch.manual_seed(seed)
    return SiteNetwork(SiteNetworkConfig(cutoff=5.0, features=8, layers=1, n_radial=6, embedding=4, **changes)).eval()


def test_two_networks_share_a_host():
    old, new = network(1), network(2, states=True)
    first = combine(network(0), {((5, 7),): old})
    both = combine(first, {((5, 7),): new}, {(5, 7): NEUTRAL})
    site_map = match_sites(replaced("BN", "C", "B"), "BN")
    for state, place in ((State(), 1), (State(charge=-1), 2), (State(functional="HSE06"), 2)):
        assert both.place_of(sites_of(site_map, state=state.codes)) == place
    assert both.place_of(sites_of(match_sites(replaced("BN", "Al", "B"), "BN"), state=State().codes)) == 2
    assert both.place_of(sites_of(match_sites(replaced("MoS2", None, "S"), "MoS2"))) == 0
    crystal = pristine("BN-bulk", 4)
    assert both.place_of(sites_of(match_sites(crystal, "BN-bulk"), state=State().codes)) == 2
    again = HostRoutedConfig.parse(
        {
            "general": {"cutoff": 5.0},
            "routed": [
                {
                    "hosts": [[5, 7]],
                    "model": {"cutoff": 5.0},
                    "coverage": {"elements": [5], "states": [[5]], "layered": None},
                },
                {"hosts": [[5, 7]], "model": {"cutoff": 5.0}, "coverage": None},
            ],
        }
    )
    assert again.routed[0].coverage == Coverage(elements=(5,), states=((5,),))


def test_what_is_left_of_a_host_needs_a_network_too():
    size = SiteNetworkConfig()
    with pytest.raises(ValueError, match="needs another one for the rest"):
        HostRoutedConfig(general=size, routed=(RoutedConfig(hosts=((5, 7),), model=size, coverage=NEUTRAL),))
    with pytest.raises(ValueError, match="each of one network"):
        HostRoutedConfig(general=size, routed=(RoutedConfig(hosts=((5, 7),), model=size),) * 2)


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 100))
def test_the_six_neutral_hosts_are_answered_as_before(relaxer, seed):
    """Neutral h-BN in PBE goes on being answered by the network that was trained on it alone."""
    rng = np.random.default_rng(seed)
    atoms = pristine("BN", 6)
    for site in rng.choice(len(atoms), 3, replace=False):
        atoms.symbols[site] = "C"
    place = relaxer.network.place_of(sites_of(match_sites(atoms, "BN"), state=State().codes))
    entry = relaxer.network.config.routed[place - 1]
    assert entry.coverage is not None
    assert not entry.model.states


@pytest.mark.parametrize(("lattice", "known"), [("fcc", True), ("bcc", False)])
def test_a_host_of_ones_own_training_data_is_recognised_in_any_cell(lattice, known):
    crystal = {
        "numbers": [29],
        "positions": [[0.0, 0.0, 0.0]],
        "cell": [[0.0, 1.8, 1.8], [1.8, 0.0, 1.8], [1.8, 1.8, 0.0]],
        "layered": False,
    }
    seen = {"defects": ["v_Cu"], "density": [0.005, 0.02], "training_pairs": 40}
    training = {"elements": ["Cu"], "hosts": {"copper": seen | {"crystal": crystal}}}
    unit = bulk("Cu", lattice, a=3.6 if lattice == "fcc" else 2.87, cubic=True)
    atoms = unit.repeat(3)
    del atoms[5]
    card = ModelCard.read({"training": training})
    judgement = Domain(card, "x").judge(atoms, match_sites(atoms, unit))
    assert judgement.trust == ("inside" if known else "outside")
    assert ("host" in judgement.outside) is not known
    without = ModelCard.read({"training": training | {"hosts": {"copper": seen}}})
    assert "host" in Domain(without, "x").judge(atoms, match_sites(atoms, unit)).outside
