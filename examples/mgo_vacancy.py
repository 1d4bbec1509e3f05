"""A three-dimensional host the weights know nothing of: matching works, and the result says not to trust it."""

from ase.build import bulk

from ase_definet import DefiNetRelaxer

host = bulk("MgO", "rocksalt", a=4.21)
atoms = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(2)
del atoms[1]  # an O vacancy

result = DefiNetRelaxer(host=host).predict(atoms)
print("found:", result.site_map.defect_counts, "in", result.site_map.supercell_name)
for warning in result.warnings:
    print("warning:", warning)

assert any("not in the training data" in warning for warning in result.warnings), "an unknown host must be named"
