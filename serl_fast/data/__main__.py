"""``python -m serl_fast.data inspect | validate | convert | merge | split``: see ``serl_fast.data.commands``."""

from __future__ import annotations

from serl_fast.cli import main


def _run() -> int:
    from serl_fast.data.commands import run  # which needs tyro: main says so where it is missing

    return run()


if __name__ == "__main__":
    main(_run)
