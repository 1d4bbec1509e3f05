"""Which atom sits on which site of which host: hosts, supercells, registration."""
