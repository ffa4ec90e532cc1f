"""What all tests share."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """One of torch's threads: the tests' networks are tiny, and sums differ by the number of threads.

    Commands that a test runs choose their own number for the whole process.
    """
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(1)


# For what runs while tests are collected.
torch.set_num_threads(1)

try:
    from tests.toy_arm import ToyArm
except ModuleNotFoundError as error:  # a machine that only checks the GPU has no gymnasium
    if error.name != "gymnasium":
        raise
else:

    @pytest.fixture
    def toy_arm() -> Any:
        """The environment's class, which is registered as toy/Arm-v0."""
        return ToyArm
