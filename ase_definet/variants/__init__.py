"""Several minima of one defect: starts, relaxations, and what is distinct among their ends."""
