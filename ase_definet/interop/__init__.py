"""Other packages' workflows: doped, pymatgen-analysis-defects, jobflow."""
