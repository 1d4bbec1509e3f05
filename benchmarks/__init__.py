"""Speed of this package on this machine: ``python -m benchmarks``."""
