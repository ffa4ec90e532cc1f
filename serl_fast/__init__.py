"""serl_fast: a compiled engine for human-in-the-loop reinforcement learning on real robots."""

__version__ = "0.1.0"
