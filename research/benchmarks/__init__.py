"""Speed of this package on this machine: ``python -m research.benchmarks``."""
