"""The subjects of ``scripts/benchmark.py``."""
