"""What all tests share."""

from __future__ import annotations

from typing import Any

import pytest
import torch

# The networks of the tests are tiny: a team of threads would only wait at its barriers.
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
