"""Images between the replay store and the encoder: random crops alone, and the whole way to the network's input.

All variants of a case get the same bytes and the same offsets, and what they return is compared before anything is
timed. DALI's pipeline is a program of the host: on a CUDA device its time includes the copy to the device. The Triton
and CUDA rows have not yet been run on a CUDA device.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor
from torch._inductor.utils import fresh_cache

from benchmarks.suite import Run, Work, case, full, normal
from serl_fast.data.dali import DaliCrop
from serl_fast.engine.compiling import compile_function
from serl_fast.errors import MissingExtraError
from serl_fast.kernels.choice import HAS_TRITON
from serl_fast.kernels.crop_normalize import crop_normalize_reference, crop_normalize_triton
from serl_fast.kernels.random_crop import PADDING, random_crop_reference, random_crop_triton
from serl_fast.networks.resnet10 import IMAGENET_MEAN, IMAGENET_STD

VARIANTS = ("eager", "compiled", "triton", "dali")
SIZE = (128, 128, 3)
TINY = (24, 24, 3)
OFFSET_BYTES = 16  # of an image: two int64
TOLERANCE = 1e-5  # of normalised values: DALI multiplies by 1 / std
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}

Call = Callable[[], list[Tensor]]

batches = pytest.mark.parametrize("batch", [64, pytest.param(256, marks=normal)])
cameras = pytest.mark.parametrize("cameras", [pytest.param(1, marks=normal), 2])


@case("augment", variants=VARIANTS, baseline="eager", title="random crop of {batch} x {cameras} images")
@cameras
@batches
def crop(run: Run, batch: int, cameras: int) -> Work:
    """uint8 to uint8."""
    images, offsets = _images(run, batch, cameras)

    def calls(function: Callable[[Tensor, Tensor], Tensor]) -> Call:
        return lambda: [function(image, offsets) for image in images]

    def dali() -> Call:
        pipeline, host = DaliCrop(len(offsets), threads=_threads()), [image.cpu() for image in images]
        return lambda: [pipeline(image, offsets.cpu()).to(run.device) for image in host]

    work = _work(
        run,
        eager=lambda: calls(random_crop_reference),
        compiled=lambda: calls(compile_function(random_crop_reference)),
        triton=lambda: calls(random_crop_triton),
        dali=dali,
    )
    count, pixels = len(offsets) * cameras, images[0][0].numel()
    work.units, work.bytes = count, count * (2 * pixels + OFFSET_BYTES)
    return work


@case(
    "augment", variants=VARIANTS, baseline="eager", title="{batch} x {cameras} images to the encoder's input, {dtype}"
)
@pytest.mark.parametrize("dtype", ["float32", pytest.param("bfloat16", marks=full)])
@cameras
@batches
def encoder_input(run: Run, batch: int, cameras: int, dtype: str) -> Work:
    """uint8 to crops, normalised by ImageNet's statistics, of the encoder's dtype, all cameras in one tensor."""
    images, offsets = _images(run, batch, cameras)
    mean, std = (255 * torch.tensor(values, device=run.device) for values in (IMAGENET_MEAN, IMAGENET_STD))
    kind = DTYPES[dtype]

    def calls(function: Callable[..., Tensor]) -> Call:
        corners: list[Tensor] = [offsets] * cameras
        return lambda: [function(images, corners, [], mean, std, PADDING, kind)]

    def dali() -> Call:
        count = len(offsets) * cameras
        pipeline = DaliCrop(count, mean=mean.tolist(), std=std.tolist(), threads=_threads())
        joint, corners = torch.cat(images).cpu(), offsets.cpu().repeat(cameras, 1)
        return lambda: [pipeline(joint, corners).to(run.device, kind)]

    work = _work(
        run,
        eager=lambda: calls(crop_normalize_reference),
        compiled=lambda: calls(compile_function(crop_normalize_reference)),
        triton=lambda: calls(crop_normalize_triton),
        dali=dali,
    )
    count, pixels = len(offsets) * cameras, images[0][0].numel()
    work.units, work.bytes = count, count * (pixels * (1 + kind.itemsize) + OFFSET_BYTES)
    return work


def _images(run: Run, batch: int, cameras: int) -> tuple[list[Tensor], Tensor]:
    """A tensor of uint8 [B, H, W, C] for each camera, and the offsets [B, 2] that they share."""
    generator = torch.Generator().manual_seed(0)
    batch, size = (batch, SIZE) if run.timed else (4, TINY)
    images = [torch.randint(256, (batch, *size), generator=generator, dtype=torch.uint8) for _ in range(cameras)]
    offsets = torch.randint(2 * PADDING + 1, (batch, 2), generator=generator)
    return [image.to(run.device) for image in images], offsets.to(run.device)


def _work(run: Run, **makers: Callable[[], Call]) -> Work:
    """Build and warm up what runs here; every variant has to return what "eager" returns."""
    work = Work({}, unit="images", limit="copy")
    torch._dynamo.reset()  # nothing of an earlier case or run is reused: it would not be the time to compile
    with fresh_cache() if run.timed else contextlib.nullcontext():
        _build(run, makers, work)
    return work


def _build(run: Run, makers: Mapping[str, Callable[[], Call]], work: Work) -> None:
    expected: list[Tensor] = []
    for name, make in makers.items():
        if name == "triton" and not (run.device.startswith("cuda") and HAS_TRITON):
            work.missing[name] = "Triton's kernels need a CUDA device; its interpreter on the CPU is not worth a time"
            continue
        start = time.perf_counter()
        try:
            function = make()
        except MissingExtraError as error:
            work.missing[name] = str(error)
            continue
        found = function()
        if name == "compiled":
            work.extra[name] = {"compile_s": time.perf_counter() - start}
        if name == "dali" and run.device.startswith("cuda"):
            work.extra[name] = {"note": "cropped on the host, then copied to the device"}
        expected = expected or found
        require_same(name, found, expected)
        function()
        work.functions[name] = function


def require_same(name: str, found: list[Tensor], expected: list[Tensor]) -> None:
    """Raise unless two results are the same: bytes exactly, normalised values within a rounding of their dtype."""
    for one, other in zip(found, expected, strict=True):
        tolerance = 0.0 if one.dtype == torch.uint8 else max(TOLERANCE, 4 * torch.finfo(one.dtype).eps)
        same = one.dtype == other.dtype and one.shape == other.shape
        if not same or not torch.allclose(one.double(), other.double(), rtol=tolerance, atol=tolerance):
            raise AssertionError(f"{name} does other work: {one.dtype} {tuple(one.shape)}, or other values")


def _threads() -> int:
    """As many as torch has: its cores, or what the user allowed it."""
    return min(torch.get_num_threads(), os.cpu_count() or 1)
