"""Defects of other packages: what their objects become, and what they become in their own installed versions."""

from types import SimpleNamespace

import numpy as np
import pytest
from pymatgen.core import PeriodicSite, Structure
from pymatgen.io.ase import AseAtomsAdaptor
from pymatgen.io.vasp.inputs import Incar

from ase_definet.dft.vasp import write_vasp_inputs
from ase_definet.errors import DefiNetWarning, MatchError, StructureError
from ase_definet.interop.doped import from_doped
from ase_definet.matching.site_map import match_sites
from ase_definet.structures.charges import NetCharge, charge_of
from ase_definet.structures.conversion import as_atoms
from tests.conftest import pristine

ROUNDED = 1e-6


@pytest.fixture(scope="module")
def host() -> Structure:
    return AseAtomsAdaptor.get_structure(pristine("MoS2", 5))


@pytest.fixture(scope="module")
def vacancy(host) -> Structure:
    out = host.copy()
    out.remove_sites([next(k for k, site in enumerate(out) if site.specie.symbol == "S")])
    return out


def test_a_charged_entry_keeps_its_charge_to_the_input_set(host, vacancy, relaxer, tmp_path):
    entry = SimpleNamespace(defect_supercell=vacancy, bulk_supercell=host, charge_state=-1, name="v_S_-1")
    found = from_doped(entry)
    assert (found.charge, found.name) == (-1, "v_S_-1")
    assert vacancy._charge is None
    with pytest.warns(DefiNetWarning, match="net charge -1"):
        relaxed = relaxer.relax(found.structure, found.host)
    assert [site.specie for site in relaxed] == [site.specie for site in vacancy]
    assert charge_of(as_atoms(relaxed)) == NetCharge(-1, "stated")
    assert relaxer.predict(found.structure, found.host).structure._charge == -1
    write_vasp_inputs(relaxed, tmp_path / "run")
    neutral = 25 * 12 + 49 * 6  # Mo_pv and S
    assert Incar.from_file(tmp_path / "run" / "INCAR")["NELECT"] == neutral + 1


def test_entries_of_pymatgen_without_supercell_fields(host, vacancy):
    entry = SimpleNamespace(
        defect=SimpleNamespace(structure=host),
        sc_entry=SimpleNamespace(structure=vacancy),
        bulk_entry=None,
        charge_state=0,
        name="",
    )
    found = from_doped(entry)
    assert found.host is host
    assert found.structure == vacancy
    assert found.name == "SimpleNamespace"


@pytest.mark.parametrize(("state", "own", "charge"), [(None, None, 0), (None, 1, 1), (0, 1, 0), (-2, 1, -2)])
@pytest.mark.parametrize("oxidised", [False, True])
def test_the_charge_is_stated_and_not_added_up(host, vacancy, tmp_path, state, own, charge, oxidised):
    structure = vacancy.copy()
    if oxidised:  # +2 in sum
        structure.add_oxidation_state_by_element({"Mo": 4, "S": -2})
    if own is not None:
        structure.set_charge(own)
    found = from_doped(SimpleNamespace(defect_supercell=structure, bulk_supercell=host, charge_state=state))
    assert found.charge == charge
    assert charge_of(as_atoms(found.structure)) == NetCharge(charge, "stated")
    incar = write_vasp_inputs(found.structure, tmp_path).incar
    assert incar.get("NELECT") == (25 * 12 + 49 * 6 - charge if charge else None)


@pytest.mark.parametrize("wrong", ["MoS2", {"v_S": 1}, SimpleNamespace(charge_state=0)])
def test_anything_else_is_refused(wrong):
    with pytest.raises(StructureError, match="defect_entries"):
        from_doped(wrong)


@pytest.mark.filterwarnings("ignore")
def test_doped_as_installed(host, relaxer):
    generation = pytest.importorskip("doped.generation")
    generator = generation.DefectsGenerator(
        host, generate_supercell=False, interstitial_gen_kwargs=False, extrinsic={"Mo": ["W"]}, processes=1
    )
    seen = {}
    for name in ("v_S_-1", "v_Mo_0", "W_Mo_0"):
        found = from_doped(generator.defect_entries[name])
        result = relaxer.predict(found.structure, found.host)
        seen[name] = (result.site_map.defect_counts, found.charge)
        relaxed = relaxer.relax(found.structure, found.host)
        assert isinstance(relaxed, Structure)
        assert relaxed.charge == found.charge
        for k, site in enumerate(relaxed):
            assert site.specie == found.structure[k].specie
            assert site.distance(found.structure[k]) == pytest.approx(
                np.linalg.norm(result.displacement[k]), abs=ROUNDED
            )
    assert seen == {"v_S_-1": ({"v_S": 1}, -1), "v_Mo_0": ({"v_Mo": 1}, 0), "W_Mo_0": ({"W_Mo": 1}, 0)}


@pytest.mark.filterwarnings("ignore")
def test_defects_of_pymatgen_as_installed(relaxer):
    core = pytest.importorskip("pymatgen.analysis.defects.core")
    cell = AseAtomsAdaptor.get_structure(pristine("MoS2", 1))
    sulphur = next(site for site in cell if site.specie.symbol == "S")
    defect = core.Substitution(cell, PeriodicSite("Se", sulphur.frac_coords, cell.lattice), sulphur)
    supercell = defect.get_supercell_structure(sc_mat=np.diag([6, 6, 1]))
    entry = SimpleNamespace(defect=defect, defect_supercell=supercell, charge_state=0, name=defect.name)
    found = from_doped(entry)
    result = relaxer.predict(found.structure, found.host)
    assert result.site_map.defect_counts == {"Se_S": 1}
    assert len(result.site_map.kinds) == 108


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("kind", "place"), [("Interstitial", None), ("Adsorbate", 2.0)])
def test_atoms_on_no_site_are_named_as_in_pymatgen(relaxer, kind, place):
    core = pytest.importorskip("pymatgen.analysis.defects.core")
    layer = pristine("MoS2", 1)
    metal, top = layer.positions[layer.symbols == "Mo"][0], layer.positions[np.argmax(layer.positions[:, 2])]
    hexagon = 2 * metal - top  # seen from above, S, Mo and the middle of a hexagon are evenly spaced
    at = np.array([*hexagon[:2], metal[2]]) if place is None else top + np.array([0, 0, place])
    cell = AseAtomsAdaptor.get_structure(layer)
    site = PeriodicSite("Li", at, cell.lattice, coords_are_cartesian=True)
    defect = getattr(core, kind)(cell, site)
    supercell = defect.get_supercell_structure(sc_mat=np.diag([6, 6, 1]))
    entry = SimpleNamespace(defect=defect, defect_supercell=supercell, charge_state=0, name=defect.name)
    found = from_doped(entry)
    site_map = match_sites(found.structure, found.host)
    assert site_map.defect_counts == {found.name.replace("{", "").replace("}", ""): 1}
    with pytest.raises(MatchError, match="no kind of site"):
        relaxer.predict(found.structure, found.host)
