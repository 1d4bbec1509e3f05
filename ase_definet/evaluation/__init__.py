"""How good predictions are: scores, superposition of single-defect fields, ionic steps saved."""
