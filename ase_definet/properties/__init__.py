"""Properties of defects: formation energies, gaps and moments, their expected errors and chemical potentials."""
