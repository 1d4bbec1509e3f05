"""The state of a structure: what it says, what a network sees of it, and what the network does with it."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.io import write
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from ase_definet.cli import cli
from ase_definet.data import find_pairs, pack_pairs
from ase_definet.errors import StructureError
from ase_definet.evaluation.scores import score_pairs
from ase_definet.matching.library import get_host
from ase_definet.model.config import SiteNetworkConfig
from ase_definet.model.elements import element_descriptors, valence_electrons
from ase_definet.model.graph import batch_graphs, build_graph
from ase_definet.model.site_network import SiteNetwork
from ase_definet.relaxation.relaxer import DefiNetRelaxer
from ase_definet.structures.state import (
    FUNCTIONALS,
    MAX_CHARGE,
    MAX_MULTIPLICITY,
    N_CODES,
    NEUTRAL,
    State,
    refuse_parity,
    set_state,
    state_of,
)
from ase_definet.training.batches import SiteBatches
from ase_definet.training.config import TrainConfig
from ase_definet.training.loss import withheld
from ase_definet.training.run import train
from tests.conftest import pristine

SIZES = SiteNetworkConfig(cutoff=5.0, features=8, layers=2, n_radial=6, embedding=4, states=True)
states = st.builds(
    State,
    charge=st.none() | st.integers(-MAX_CHARGE, MAX_CHARGE),
    spin_multiplicity=st.none() | st.integers(1, MAX_MULTIPLICITY),
    functional=st.none() | st.sampled_from(FUNCTIONALS),
    excited=st.none() | st.booleans(),
)


@given(state=states)
def test_codes_and_back(state):
    assert State.from_codes(state.codes) == state
    assert all(0 <= code < n for code, n in zip(state.codes, N_CODES, strict=True))
    assert str(state)


@given(state=states)
def test_the_info_of_a_state_is_read_as_the_same_state(state):
    assert state_of(Atoms("N", info=state.info)) == state


@given(asked=states, own=states)
def test_what_is_asked_for_replaces_what_is_there_and_is_noted_where_it_differs(asked, own):
    atoms = Atoms("N", info=own.info)
    notes = set_state(atoms, asked.charge, asked.spin_multiplicity, asked.functional)
    names = ("charge", "spin_multiplicity", "functional")
    found = state_of(atoms)
    for name in names:
        value = getattr(asked, name)
        assert getattr(found, name) == (getattr(own, name) if value is None else value)
    replaced = [
        name
        for name in names
        if getattr(asked, name) is not None and name in own.info and getattr(own, name) != getattr(asked, name)
    ]
    assert len(notes) == len(replaced)
    for name, note in zip(replaced, notes, strict=True):
        assert name.replace("_", " ") in note
        assert str(own.info[name]) in note


@pytest.mark.parametrize("own", [{"charge": 0.5}, {"spin_multiplicity": "high"}, {"functional": "PW91"}], ids=str)
def test_what_makes_no_sense_is_replaced_too(own):
    atoms = Atoms("N", info=own)
    (note,) = set_state(atoms, -1, 3, "PBE")
    assert str(next(iter(own.values()))) in note
    assert state_of(atoms) == State(charge=-1, spin_multiplicity=3)


def test_a_functional_keeps_what_it_says_beside_its_name():
    atoms = Atoms("N", info={"functional": "hse06 a=0.32"})
    assert set_state(atoms, functional="HSE06") == []
    assert atoms.info["functional"] == "hse06 a=0.32"


@given(
    numbers=st.lists(st.integers(1, 100), min_size=1, max_size=6),
    charge=st.none() | st.integers(-4, 4),
    multiplicity=st.none() | st.integers(1, 12),
)
def test_the_parity_of_the_electrons_decides_on_a_multiplicity(numbers, charge, multiplicity):
    atoms = Atoms(numbers=numbers, info={"charge": "unknown" if charge is None else charge})
    atoms.info |= {} if multiplicity is None else {"spin_multiplicity": multiplicity}
    if charge is None or multiplicity is None or (sum(numbers) - charge - multiplicity) % 2:
        refuse_parity(atoms)
        return
    parity = "odd" if (sum(numbers) - charge) % 2 else "even"
    with pytest.raises(StructureError, match=f"with {sum(numbers) - charge} electrons .* {parity} number"):
        refuse_parity(atoms)


def test_every_state_has_its_own_codes():
    kinds = ([None, *range(-MAX_CHARGE, MAX_CHARGE + 1)], [None, 1, 2, 3], [None, *FUNCTIONALS], [None, False, True])
    every = [State(*values) for values in itertools.product(*kinds)]
    assert len({state.codes for state in every}) == len(every)
    assert State(None, None, None, None).codes == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("info", "expected"),
    [
        ({}, NEUTRAL),
        ({"charge": -1}, State(charge=-1)),
        ({"charge": "+2", "spin_multiplicity": "3"}, State(charge=2, spin_multiplicity=3)),
        ({"functional": "hse06 a=0.32 D3"}, State(functional="HSE06")),
        ({"excited": np.True_, "spin_multiplicity": np.int64(1)}, State(excited=True, spin_multiplicity=1)),
    ],
)
def test_atoms_say_their_state(info, expected):
    assert state_of(Atoms("N", info=info)) == expected


@pytest.mark.parametrize(
    ("info", "message"),
    [
        ({"charge": 7}, "larger than 4"),
        ({"charge": 0.5}, "whole number"),
        ({"spin_multiplicity": 0}, "1 for no unpaired electron; found 0"),
        ({"spin_multiplicity": 1.5}, "must be a whole number"),
        ({"spin_multiplicity": "triplet"}, "must be a whole number"),
        ({"spin_multiplicity": 12}, "between 1"),
        ({"functional": "HSE"}, "did you mean HSE06"),
        ({"functional": 3}, "functional '3' is not known; expected one of PBE"),
        ({"excited": "perhaps"}, "true or false, found 'perhaps'"),
    ],
)
def test_what_is_no_state_is_said(info, message):
    with pytest.raises(StructureError, match=message):
        state_of(Atoms("N", info=info))


def test_valence_electrons_follow_the_groups():
    groups = {
        1: "HLiNaKRbCs",
        2: "BeMgCaSrBa",
        3: "BAlGaInTl",
        4: "CSiGeSnPb",
        5: "NPAsSbBi",
        6: "OSSeTe",
        7: "FClBrI",
    }
    for valence, symbols in groups.items():
        assert {valence_electrons(z) for z in Atoms(symbols).numbers} == {valence}
    assert [valence_electrons(z) for z in Atoms("TiVCrMnFeCoNiCuZnMoW").numbers] == [
        4,
        5,
        6,
        7,
        8,
        9,
        10,
        11,
        12,
        6,
        6,
    ]
    table = element_descriptors()
    assert not table[0].any()
    assert len({tuple(row) for row in table[1:58].tolist()}) == 57


def graph_of(state=None, symbol="C"):
    """Return a layer of h-BN with an atom on a boron site, and a vacancy, as a graph."""
    host = pristine("BN", 4)
    numbers = host.numbers.copy()
    numbers[int(np.flatnonzero(numbers == 5)[3])] = Atoms(symbol).numbers[0]
    numbers[int(np.flatnonzero(numbers == 7)[5])] = 0
    kinds = np.where(numbers == 0, 2, (numbers != host.numbers).astype(int))
    arrays = {"numbers": numbers, "host_numbers": host.numbers, "kinds": kinds}
    return build_graph(
        host.positions, host.cell.array, (True, True, False), **arrays, cutoff=5.0, state=state, dtype=torch.float64
    )


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return SiteNetwork(replace(SIZES, element_descriptors=True)).double().eval()


def test_a_network_hears_every_part_of_a_state(network):
    with torch.no_grad():
        base = network.predict(graph_of(NEUTRAL.codes)).displacement
        for changes in ({"charge": -1}, {"spin_multiplicity": 3}, {"functional": "HSE06"}, {"excited": True}):
            other = network.predict(graph_of(replace(NEUTRAL, **changes).codes)).displacement
            assert (other - base).abs().max() > 1e-6, changes
        nothing = network.predict(graph_of()).displacement
        assert torch.equal(nothing, network.predict(graph_of((0, 0, 0, 0))).displacement)
        assert (nothing - base).abs().max() > 1e-6


def test_each_structure_of_a_batch_has_its_own_state(network):
    codes = [State(charge=q, spin_multiplicity=m).codes for q, m in ((0, 1), (-1, 2), (1, None), (None, None))]
    graphs = [graph_of(code) for code in codes]
    with torch.no_grad():
        together = network.predict(batch_graphs(graphs)).displacement.view(len(graphs), -1, 3)
        for found, graph in zip(together, graphs, strict=True):
            assert (found - network.predict(graph).displacement).abs().max() < 1e-10


def test_a_network_without_states_ignores_them():
    torch.manual_seed(0)
    blind = SiteNetwork(replace(SIZES, states=False)).double().eval()
    with torch.no_grad():
        found = [blind.predict(graph_of(code)).displacement for code in (None, NEUTRAL.codes, State(charge=2).codes)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_the_same_electrons_are_the_same_to_the_network():
    """An element with one electron less at charge 0 and one with as many at +1 share their number of electrons."""
    torch.manual_seed(0)
    network = SiteNetwork(SIZES).double().eval()
    seen = []
    network.state.electrons.register_forward_hook(lambda _module, given, _out: seen.append(int(given[0].item())))
    with torch.no_grad():
        for symbol, charge in (("Al", 0), ("C", 1), ("N", 2), ("C", 0), ("Al", None)):
            network.predict(graph_of(State(charge=charge).codes, symbol))
    assert seen[0] == seen[1] == seen[2] == seen[3] - 1
    assert seen[4] == 0


def states_file(tmp_path, n=12):
    """Write relaxed structures whose vacancy draws its neighbours in or pushes them out, by charge."""
    host = pristine("BN", 4)
    frames = []
    for k in range(n):
        charge = (-1, 1)[k % 2]
        atoms = host.copy()
        vacant = int(np.flatnonzero(host.numbers == 7)[k % 16])
        away = host.get_distances(vacant, range(len(host)), mic=True, vector=True)
        length = np.linalg.norm(away, axis=1)
        near = (length > 0.1) & (length < 1.6)
        atoms.positions[near] += 0.15 * charge * away[near] / length[near][:, None]
        del atoms[vacant]
        atoms.info = {"id": f"q{k}", "charge": charge, "functional": "HSE06", "split": ("train", "val")[k >= n - 4]}
        frames.append(atoms)
    write(tmp_path / "relaxed.extxyz", frames)
    return tmp_path / "relaxed.extxyz", frames


@pytest.fixture
def dataset(tmp_path):
    source, frames = states_file(tmp_path)
    pack, problems = pack_pairs(find_pairs(source, "BN", relaxed_only=True), tmp_path / "pack", workers=1)
    assert not problems
    return pack, frames


def test_relaxed_structures_alone_start_on_the_sites(dataset):
    pack, frames = dataset
    (group,) = pack.groups
    assert [State.from_codes(code).charge for code in group.state] == [-1, 1] * 6
    assert {State.from_codes(code).functional for code in group.state} == {"HSE06"}
    host = get_host("BN")
    for k in (0, 1):
        unrelaxed, relaxed = group.atoms(k)
        found = np.sort(np.linalg.norm(relaxed.positions - unrelaxed.positions, axis=1))[-3:]
        assert found == pytest.approx([0.15] * 3, abs=0.02)
        assert len(relaxed) == len(frames[k])
        assert state_of(relaxed) == state_of(frames[k])
    assert group.host == host.name


@pytest.mark.parametrize("with_state", [True, False])
def test_a_score_without_state_withholds_all_of_it_but_the_functional(dataset, with_state):
    pack, frames = dataset
    relaxer = DefiNetRelaxer(device="cpu")
    seen = []
    real = relaxer.relax_many

    def watched(structures, **options):
        def passed():
            for atoms in structures:
                seen.append(state_of(atoms))
                yield atoms

        yield from real(passed(), **options)

    relaxer.relax_many = watched
    scores, left_out = score_pairs(relaxer, pack, "val", superposition=False, with_state=with_state)
    assert (len(scores), left_out) == (4, [])
    known = [state_of(atoms) for atoms in frames[-4:]]
    blind = [State(charge=None, functional="HSE06", excited=None)] * 4
    assert sorted(map(str, seen)) == sorted(map(str, known if with_state else blind))
    assert {state.excited for state in seen} == ({False} if with_state else {None})
    if not with_state:
        assert not any("net charge" in text for score in scores for text in score.warnings)


def test_the_command_says_what_it_withholds(dataset, tmp_path):
    pack, _ = dataset
    asked = ["evaluate", "--data", str(pack.path), "--device", "cpu", "--no-superposition"]
    for option, said in ([], False), (["--without-state"], True):
        out = tmp_path / f"{said}.json"
        done = CliRunner().invoke(cli, [*asked, "--json", str(out), *option])
        assert done.exit_code == 0, done.output
        assert ("charge and spin withheld" in done.output) == said
        result = json.loads(out.read_text())
        assert result["with_state"] == (not said)
        assert ("with the state, and with charge" in done.output) == (not said)  # both ways, if not asked for one
        assert ("without_state" in result) == (not said)
        if not said:
            aware, blind = result["subsets"], result["without_state"]["subsets"]
            assert set(aware) == set(blind)
            assert any(aware[name]["coordinate_mae"] != blind[name]["coordinate_mae"] for name in aware)


def test_relaxed_only_is_for_files(tmp_path):
    with pytest.raises(StructureError, match="read from an extended XYZ file or a database"):
        list(find_pairs(tmp_path, "BN", relaxed_only=True))


def test_the_host_of_a_frame_may_be_a_file_beside_it(tmp_path):
    source, frames = states_file(tmp_path, 5)
    write(tmp_path / "host.vasp", pristine("BN", 1))
    for atoms in frames:
        atoms.info["host_file"] = "host.vasp"
    frames[0].info["host_file"] = "nowhere.vasp"
    write(source, frames)
    pack, problems = pack_pairs(find_pairs(source, relaxed_only=True), tmp_path / "pack", workers=1)
    assert sum(len(group) for group in pack.groups) == 4
    assert [problem.id for problem in problems] == ["q0"]
    assert "nowhere.vasp" in problems[0].reason


def test_mixed_fidelities_need_a_label(tmp_path):
    source, frames = states_file(tmp_path, 5)
    frames[1].info["functional"] = "PBE"
    for k in (2, 4):
        del frames[k].info["functional"]
    write(source, frames)
    pack, problems = pack_pairs(find_pairs(source, "BN", relaxed_only=True), tmp_path / "pack", workers=1)
    assert sum(len(group) for group in pack.groups) == 3
    assert [problem.id for problem in problems] == ["q2", "q4"]
    assert "no functional is named, where others of this file say HSE06, PBE" in problems[0].reason


def test_training_learns_what_a_charge_does(dataset, tmp_path):
    """Sites and occupation are the same for both charges: only a network that knows the state can tell them apart."""
    pack, _ = dataset
    base = TrainConfig(
        data=str(pack.path),
        out=str(tmp_path / "aware"),
        model=SIZES,
        steps=120,
        batch_size=6,
        learning_rate=1e-2,
        warmup_steps=5,
        ema_decay=0.9,
        validate_every=120,
        state_dropout=0.0,
        accelerator="cpu",
    )
    aware = train(base).table["relaxed"]
    blind = train(replace(base, out=str(tmp_path / "blind"), model=replace(SIZES, states=False))).table["relaxed"]
    assert aware["mae"] < 0.5 * blind["mae"]
    assert aware["mae"] < 0.5 * aware["ideal_sites"]


def test_withheld_states_are_unknown():
    torch.manual_seed(0)
    state = torch.tensor(State(charge=1, spin_multiplicity=2, functional="HSE06").codes).expand(1, 4000, 4)
    found = withheld(state, 0.25)
    share = (found == 0).double().mean(1)[0]
    assert share.tolist() == pytest.approx([0.25] * 4, abs=0.03)
    assert torch.equal(torch.where(found == 0, state, found), state)
    assert torch.equal(withheld(state, 0.0), state)


def test_batches_carry_states(dataset):
    (group,) = dataset[0].groups
    batches = SiteBatches(group, SIZES, torch.device("cpu"))
    assert batches.states(np.array([1, 4])).tolist() == [group.state[[1, 4]].tolist()]


def test_states_that_training_has_not_seen_are_unknown(dataset, tmp_path):
    """An untrained vector would say something at random."""
    pack, _ = dataset
    config = TrainConfig(
        data=str(pack.path), out=str(tmp_path / "run"), model=SIZES, steps=2, batch_size=6, accelerator="cpu"
    )
    network = train(config).average.double()
    seen = State(charge=-1, functional="HSE06")
    with torch.no_grad():
        base = network.predict(graph_of(seen.codes)).displacement
        for changes in ({"charge": 1}, {"charge": None}, {"functional": None}):
            other = network.predict(graph_of(replace(seen, **changes).codes)).displacement
            assert not torch.equal(other, base), changes
        for unseen, unknown in (({"charge": 3}, {"charge": None}), ({"functional": "PBE"}, {"functional": None})):
            found = network.predict(graph_of(replace(seen, **unseen).codes)).displacement
            assert torch.equal(found, network.predict(graph_of(replace(seen, **unknown).codes)).displacement)
        multiplicity = network.predict(graph_of(replace(seen, spin_multiplicity=3).codes)).displacement
        assert torch.equal(multiplicity, base)
