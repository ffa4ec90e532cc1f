"""Benchmarks: ``make bench`` for regressions, ``python -m benchmarks.<name>`` for the numbers in docs/results."""
