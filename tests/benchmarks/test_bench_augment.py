"""The augmentation benchmarks: variants that do other work are caught, bytes are counted, gaps have reasons."""

from __future__ import annotations

import os

import pytest
import torch

from benchmarks import bench_augment
from benchmarks.bench_augment import require_same
from benchmarks.suite import REGISTRY, Run

TINY = Run()
PIXELS = 24 * 24 * 3


@pytest.fixture
def not_compiled(monkeypatch):
    monkeypatch.setattr(bench_augment, "compile_function", lambda function: function)


@pytest.mark.usefixtures("not_compiled")
def test_a_crop_reads_and_writes_every_byte_once():
    work = REGISTRY["augment/crop[64-2]"].build(TINY)
    images = work.functions["eager"]()
    assert [image.dtype for image in images] == [torch.uint8] * 2
    assert work.units == sum(len(image) for image in images) == 8
    assert work.bytes == 8 * (2 * PIXELS + 16)
    assert work.extra["compiled"]["compile_s"] > 0


@pytest.mark.usefixtures("not_compiled")
@pytest.mark.parametrize(("dtype", "bytes"), [("float32", 4), ("bfloat16", 2)])
def test_the_encoders_input_is_written_in_its_dtype(dtype, bytes):
    work = REGISTRY[f"augment/encoder_input[64-2-{dtype}]"].build(TINY)
    (images,) = work.functions["compiled"]()
    assert images.dtype == getattr(torch, dtype)
    assert work.units == len(images) == 8
    assert work.bytes == 8 * (PIXELS * (1 + bytes) + 16)


@pytest.mark.usefixtures("not_compiled")
def test_what_does_not_run_here_says_why():
    work = REGISTRY["augment/crop[64-2]"].build(TINY)
    assert "CUDA device" in work.missing["triton"]
    try:
        import nvidia.dali  # noqa: F401
    except ImportError:
        assert "serl-fast[dali]" in work.missing["dali"]
    else:
        assert "dali" in work.functions


def test_on_a_cuda_device_the_kernels_run_and_dali_says_where_it_does(monkeypatch):
    monkeypatch.setattr(bench_augment, "HAS_TRITON", True)
    image = torch.ones(2, 3, dtype=torch.uint8)
    work = bench_augment._work(Run("cuda"), **{name: lambda: lambda: [image] for name in bench_augment.VARIANTS})
    assert tuple(work.functions) == bench_augment.VARIANTS
    assert "host" in work.extra["dali"]["note"]


def test_what_an_earlier_run_compiled_is_not_found(monkeypatch):
    caches, resets = [], []
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    monkeypatch.setattr(torch._dynamo, "reset", lambda: resets.append(1))

    def compiled():
        caches.append(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        return lambda: [torch.ones(2)]

    for _ in range(2):
        work = bench_augment._work(Run(scale="quick"), compiled=compiled)
        assert work.extra["compiled"]["compile_s"] > 0
    assert len({*caches, "/kept"}) == 3
    assert len(resets) == 2


def test_a_variant_that_does_other_work_is_caught():
    image = torch.arange(6, dtype=torch.uint8)
    makers = {"eager": lambda: lambda: [image], "compiled": lambda: lambda: [image.flip(0)]}
    with pytest.raises(AssertionError, match="compiled does other work"):
        bench_augment._work(TINY, **makers)


@pytest.mark.parametrize(
    "other", [torch.zeros(3), torch.full((4,), 1.0001), torch.ones(4, dtype=torch.float64), torch.ones(2, 2)]
)
def test_values_shape_and_dtype_have_to_be_the_same(other):
    require_same("dali", [torch.full((4,), 1.000001)], [torch.ones(4)])
    with pytest.raises(AssertionError):
        require_same("dali", [other], [torch.ones(4)])
    with pytest.raises(AssertionError):
        require_same("triton", [torch.tensor([1], dtype=torch.uint8)], [torch.tensor([2], dtype=torch.uint8)])
