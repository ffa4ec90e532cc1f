"""One algorithm per file, each a function that returns a ``serl_fast.core.Agent``."""
