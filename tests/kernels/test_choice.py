"""Which implementation runs where."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from serl_fast.kernels import choice
from serl_fast.kernels.choice import use_backend, uses_triton
from serl_fast.kernels.group_norm_relu import group_norm_relu


@pytest.fixture(autouse=True)
def _default_afterwards() -> Iterator[None]:
    yield
    use_backend("auto")


def test_plain_pytorch_on_the_cpu() -> None:
    assert not uses_triton(torch.zeros(1))


def test_triton_on_cuda_unless_told_otherwise(fake_cuda: Any) -> None:
    tensor = fake_cuda.empty(1)
    assert uses_triton(tensor)
    use_backend("triton", "cuda:1")
    assert uses_triton(tensor)
    use_backend("torch")
    assert not uses_triton(tensor)


@torch.no_grad()
def test_the_choice_reaches_compiled_code(fake_cuda: Any) -> None:
    x, weight = fake_cuda.empty(2, 8, 3, 3), fake_cuda.empty(8)
    arguments = (x, weight, weight, 4, 1e-5)
    assert "serl_fast.group_norm_relu" in fake_cuda.trace(group_norm_relu, *arguments)[0]
    use_backend("torch")
    assert "serl_fast.group_norm_relu" not in fake_cuda.trace(group_norm_relu, *arguments)[0]


def test_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="backend is 'cuda'; choose one of auto, triton, torch"):
        use_backend("cuda")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'triton' needs a CUDA device, this is cpu; choose 'auto' or 'torch'"):
        use_backend("triton", "cpu")
    monkeypatch.setattr(choice, "HAS_TRITON", False)
    with pytest.raises(ValueError, match="needs the package triton"):
        use_backend("triton", "cuda")
