"""The jobflow Maker, run by jobflow's local manager."""

from __future__ import annotations

import numpy as np
import pytest
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp.inputs import Incar, Poscar

from ase_definet.errors import HostError
from tests.conftest import mos2_with_defects

jobflow = pytest.importorskip("jobflow")
from maggma.stores import MemoryStore  # noqa: E402

from ase_definet.dft.vasp import DefiNetRelaxSet, restore_order  # noqa: E402
from ase_definet.interop.jobflow import DefiNetRelaxMaker  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # of jobflow's own
ROUNDED = 1e-6


@pytest.fixture
def structure():
    return AseAtomsAdaptor.get_structure(mos2_with_defects())


def run(flow, folder):
    store = jobflow.JobStore(MemoryStore())
    return jobflow.run_locally(flow, store=store, root_dir=folder, create_folders=True, ensure_success=True)


def test_a_prediction_feeds_the_next_job_with_its_order_and_properties(structure, relaxer, tmp_path):
    structure.add_site_property("number", list(range(len(structure))))
    seen = {}

    @jobflow.job
    def last(relaxed):  # stands in for VASP
        seen["relaxed"] = relaxed
        return len(relaxed)

    first = DefiNetRelaxMaker(device="cpu").make(structure, host="MoS2")
    second = last(first.output["structure"])
    run(jobflow.Flow([first, second]), tmp_path)
    relaxed, expected = seen["relaxed"], relaxer.relax(structure)
    assert [site.specie for site in relaxed] == [site.specie for site in structure]
    assert relaxed.site_properties["number"] == list(range(len(structure)))
    assert np.abs(relaxed.cart_coords - expected.cart_coords).max() < ROUNDED
    assert np.abs(relaxed.cart_coords - structure.cart_coords).max() > 0.01


def test_what_a_job_returns(structure, relaxer, tmp_path):
    job = DefiNetRelaxMaker(device="cpu", name="first").make(structure, host="MoS2")
    responses = run(job, tmp_path)
    output = responses[job.uuid][1].output
    result = relaxer.predict(structure)
    assert job.name == "first"
    assert output["defects"] == {"v_S": 2, "W_Mo": 1}
    assert output["host"] == "MoS2"
    assert output["supercell"] == "8x8x1"
    assert output["warnings"] == []
    assert output["model"] == result.model
    energy = output["properties"]["formation_energy"]
    assert energy["value"] == pytest.approx(result.properties["formation_energy"].value, abs=ROUNDED)
    assert energy["trust"] == "inside"
    np.testing.assert_allclose(output["displacement"], result.displacement, atol=ROUNDED)
    np.testing.assert_allclose(output["expected_error"], result.expected_error, atol=ROUNDED)


def test_properties_are_those_asked_for(structure, tmp_path):
    jobs = [
        DefiNetRelaxMaker(device="cpu", **options).make(structure, host="MoS2")
        for options in ({}, {"chemical_potentials": {"S": -5.127}}, {"properties": None})
    ]
    responses = run(jobflow.Flow(jobs), tmp_path)
    default, poor, none = (responses[job.uuid][1].output["properties"] for job in jobs)
    # two sulphur atoms go to a reservoir that is 1 eV lower
    assert poor["formation_energy"]["value"] == pytest.approx(default["formation_energy"]["value"] - 2, abs=1e-3)
    assert none == {}


def test_an_atoms_is_taken_too(tmp_path):
    atoms = mos2_with_defects()
    atoms.info["charge"] = 1
    job = DefiNetRelaxMaker(device="cpu").make(atoms, host="MoS2")
    output = run(job, tmp_path)[job.uuid][1].output
    assert len(output["structure"]) == len(atoms)
    assert output["structure"].charge == 1
    assert output["outside"] == ["charge"]


def test_a_wrong_host_is_noticed_before_anything_is_sent(structure):
    with pytest.raises(HostError, match="MoS3"):
        DefiNetRelaxMaker(device="cpu").make(structure, host="MoS3")
    with pytest.raises(TypeError, match="host"):
        DefiNetRelaxMaker(device="cpu").make(structure)


@pytest.mark.parametrize("options", [{}, {"input_set_generator": DefiNetRelaxSet(profile="robust")}])
def test_ahead_of_atomate2(options, structure, relaxer, tmp_path, monkeypatch):
    core = pytest.importorskip("atomate2.vasp.jobs.core")
    base = pytest.importorskip("atomate2.vasp.jobs.base")
    started = {}

    def stand_in(**_):  # for the binary, at the very last step
        atoms = restore_order(AseAtomsAdaptor.get_atoms(Poscar.from_file("POSCAR").structure), ".")
        started["structure"] = AseAtomsAdaptor.get_structure(atoms)
        started["incar"] = Incar.from_file("INCAR")
        raise RuntimeError("VASP would start here")

    monkeypatch.setattr(base, "run_vasp", stand_in)
    if not options:  # atomate2's own sets sort
        structure.sort()
    first = DefiNetRelaxMaker(device="cpu").make(structure, host="MoS2")
    maker = core.RelaxMaker(write_input_set_kwargs={"potcar_spec": True}, **options)
    second = maker.make(first.output["structure"])
    jobflow.run_locally(
        jobflow.Flow([first, second]), root_dir=tmp_path, create_folders=True, store=jobflow.JobStore(MemoryStore())
    )
    relaxed = started["structure"]
    assert [site.specie.symbol for site in relaxed] == [site.specie.symbol for site in structure]
    expected = relaxer.relax(structure)
    assert max(a.distance(b) for a, b in zip(relaxed, expected, strict=True)) < 1e-4
    if options:
        assert started["incar"] == DefiNetRelaxSet(expected, profile="robust").incar
