"""The benchmark suite, ``python -m benchmarks``; further figures in docs/results by ``python -m benchmarks.<name>``."""
