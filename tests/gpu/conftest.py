"""What needs a CUDA device. These tests import torch, triton, numpy and this repository, nothing else.

``make gpu-check`` runs them on a bare machine. SERL_FAST_TEST_DEVICE=cpu runs those that make sense there, to see that
the tests themselves are in order.
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = os.environ.get("SERL_FAST_TEST_DEVICE", "cuda")


@pytest.fixture
def device() -> torch.device:
    """Where to run; the test is skipped where there is no such device."""
    if DEVICE == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return torch.device(DEVICE)


@pytest.fixture
def cuda(device: torch.device) -> torch.device:
    """A CUDA device, for what exists on no other."""
    if device.type != "cuda":
        pytest.skip("needs a CUDA device")
    return device
