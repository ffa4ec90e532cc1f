"""A share of pytest's tests: ``SERL_FAST_SHARE=1/4 python -m pytest -p benchmarks.gpu_share``.

Share k of n has every n-th test, from number k on, counted from 0.
"""

from __future__ import annotations

import os

import pytest

VARIABLE = "SERL_FAST_SHARE"


@pytest.hookimpl(trylast=True)  # behind -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    share, of = map(int, os.environ[VARIABLE].split("/"))
    mine = items[share::of]
    config.hook.pytest_deselected(items=[item for number, item in enumerate(items) if number % of != share])
    items[:] = mine
