"""Learned rewards as agents: they have an objective and no policy."""
