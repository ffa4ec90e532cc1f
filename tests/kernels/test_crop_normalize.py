"""One pass from stored bytes to a network's input: against crop, then normalise; and as CUDA would run it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from serl_fast.kernels import crop_normalize as module
from serl_fast.kernels.crop_normalize import (
    crop_normalize,
    crop_normalize_operator,
    crop_normalize_reference,
    crop_normalize_triton,
)
from serl_fast.kernels.random_crop import random_crop

MEAN = 255 * torch.tensor([0.485, 0.456, 0.406])
STD = 255 * torch.tensor([0.229, 0.224, 0.225])
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def draw(*shape: int, padding: int = 4, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 2 * padding + 1, (shape[0], 2), generator=generator)


def statistics(channels: int) -> tuple[Tensor, Tensor]:
    return MEAN[:1].expand(channels) + torch.arange(channels), STD[:1].expand(channels) + torch.arange(channels)


def two_steps(images: Tensor, offsets: Tensor, mean: Tensor, std: Tensor, padding: int, dtype: torch.dtype) -> Tensor:
    """Crop, then normalise, then cast, then permute: what the one pass is to replace."""
    cropped = random_crop(images, offsets, padding).flatten(0, -4)
    return ((cropped.float() - mean) / std).to(dtype).permute(0, 3, 1, 2)


@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (3, 7, 11, 1), (1, 1, 1, 3), (2, 4, 4, 9), (3, 2, 6, 5, 3)])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("dtype", DTYPES)
def test_crop_then_normalise(shape: tuple[int, ...], padding: int, dtype: torch.dtype) -> None:
    images, offsets = draw(*shape, padding=padding)
    mean, std = statistics(shape[-1])
    output = crop_normalize(images, offsets, mean, std, padding=padding, dtype=dtype)
    assert torch.equal(output, two_steps(images, offsets, mean, std, padding, dtype))
    assert output.permute(0, 2, 3, 1).is_contiguous()
    assert output.dtype == dtype


def test_by_hand() -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).view(1, 2, 3, 1)
    mean, std = torch.tensor([1.0]), torch.tensor([2.0])
    output = crop_normalize(image, torch.tensor([[0, 2]]), mean, std, padding=1)  # a row up, a column right
    assert output.tolist() == [[[[0.5, 1.0, 1.0], [0.5, 1.0, 1.0]]]]
    assert crop_normalize(image, None, mean, std).tolist() == [[[[0.0, 0.5, 1.0], [1.5, 2.0, 2.5]]]]


def test_rows_of_a_store() -> None:
    store, _ = draw(7, 6, 5, 3)
    rows, offsets = torch.tensor([6, 0, 0, 3]), draw(4, 1, 1, 1)[1]
    expected = two_steps(store[rows], offsets, MEAN, STD, 4, torch.float32)
    assert torch.equal(crop_normalize(store, offsets, MEAN, STD, rows=rows), expected)
    stacked = torch.tensor([[0, 1], [5, 6], [2, 2]])
    expected = two_steps(store[stacked], offsets[:3], MEAN, STD, 4, torch.float32)
    assert torch.equal(crop_normalize(store, offsets[:3], MEAN, STD, rows=stacked), expected)


def test_several_images_in_their_order() -> None:
    parts = [draw(n, 6, 5, 3, seed=n) for n in (3, 1, 2)]
    images, offsets = zip(*parts, strict=True)
    expected = torch.cat([crop_normalize(image, o, MEAN, STD) for image, o in parts])
    assert torch.equal(crop_normalize(images, offsets, MEAN, STD), expected)
    rows = [torch.tensor([2, 2]), torch.tensor([0]), torch.tensor([1, 0, 1])]
    drawn = [o[:1].expand(len(r), 2) for o, r in zip(offsets, rows, strict=True)]
    each = [crop_normalize(i, o, MEAN, STD, rows=r) for i, o, r in zip(images, drawn, rows, strict=True)]
    assert torch.equal(crop_normalize(images, drawn, MEAN, STD, rows=rows), torch.cat(each))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": torch.zeros(4, 8, 8, 3)}, r"images are torch.float32 \(4, 8, 8, 3\)"),
        ({"images": torch.zeros(8, 8, 3, dtype=torch.uint8)}, r"images are torch.uint8 \(8, 8, 3\)"),
        ({"images": []}, "there are no images"),
        ({"offsets": torch.zeros(3, 2)}, r"offsets have shape \(3, 2\).* take \(4, 2\)"),
        ({"offsets": [torch.zeros(4, 2)] * 2}, "2 tensors of offsets for 1"),
        ({"rows": torch.zeros(4)}, r"rows are torch.float32 \(4,\)"),
        ({"rows": [torch.zeros(4, dtype=torch.int64)] * 3}, "3 tensors of rows for 1"),
        ({"mean": torch.zeros(1)}, r"mean is torch.float32 \(1,\).*\[3\]"),
        ({"std": torch.zeros(3, dtype=torch.float64)}, "std is torch.float64"),
        ({"dtype": torch.float64}, "dtype is torch.float64"),
    ],
)
def test_errors(change: dict[str, Any], message: str) -> None:
    images, offsets = draw(4, 8, 8, 3)
    with pytest.raises(ValueError, match=message):
        crop_normalize(**{"images": images, "offsets": offsets, "mean": MEAN, "std": STD} | change)  # type: ignore[arg-type]


def test_one_graph_on_the_cpu() -> None:
    def encode(images: Tensor, offsets: Tensor) -> Tensor:
        return crop_normalize([images, images], [offsets, offsets], MEAN, STD)

    compiled = torch.compile(encode, backend="aot_eager", fullgraph=True)
    for seed in range(3):
        images, offsets = draw(4, 8, 8, 3, seed=seed)
        assert torch.equal(compiled(images, offsets), encode(images, offsets))


def test_the_operator_keeps_its_word() -> None:
    images, offsets = draw(4, 9, 7, 3)
    rows = torch.tensor([1, 1, 0, 3])
    for arguments in (
        ([images, images], [offsets, offsets], [], MEAN, STD, 4, torch.bfloat16),
        ([images], [offsets], [rows], MEAN, STD, 4, torch.float32),
    ):
        torch.library.opcheck(crop_normalize_operator, arguments)


def test_one_operator_in_the_graph_for_cuda(fake_cuda: Any) -> None:
    images, offsets = fake_cuda.empty(4, 16, 16, 3, dtype=torch.uint8), fake_cuda.empty(4, 2, dtype=torch.int64)
    mean, std = fake_cuda.empty(3), fake_cuda.empty(3)

    def encode(images: Tensor, offsets: Tensor) -> Tensor:
        return crop_normalize([images, images], [offsets, offsets], mean, std, dtype=torch.bfloat16)

    code, output = fake_cuda.trace(encode, images, offsets)
    assert code.count("serl_fast.crop_normalize.default") == 1
    assert output.shape == (8, 3, 16, 16)
    assert output.stride() == (16 * 16 * 3, 1, 16 * 3, 3)
    assert (output.dtype, output.is_cuda) == (torch.bfloat16, True)


INTERPRETED = """
from serl_fast.kernels.crop_normalize import crop_normalize_reference, crop_normalize_triton

shapes = [((2, 16, 16, 3), 4), ((2, 33, 29, 3), 4), ((3, 7, 5, 1), 2), ((1, 4, 4, 9), 0), ((1, 1, 1, 3), 1)]
for shape, padding in shapes:
    images, other = integers(256, *shape, dtype=torch.uint8), integers(256, *shape, dtype=torch.uint8)
    mean, std = 100 + normal(shape[-1]), 50 + normal(shape[-1])
    count = shape[0]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for kind in (torch.int32, torch.int64):
            offsets = [integers(2 * padding + 1, count, 2).to(kind) for _ in range(2)]
            arguments = ([images, other], offsets, [], mean, std, padding, dtype)
            output = crop_normalize_triton(*arguments)
            assert output.dtype == dtype
            assert_close(output, crop_normalize_reference(*arguments), (shape, dtype))
    offsets = [integers(2 * padding + 1, 5, 2)]
    arguments = ([images], offsets, [integers(count, 5)], mean, std, padding, torch.float32)
    assert_close(crop_normalize_triton(*arguments), crop_normalize_reference(*arguments), (shape, "rows"))
images = integers(256, 4, 6, 6, 3, dtype=torch.uint8)[::2]  # not contiguous
arguments = ([images], [integers(9, 4, 2)[::2]], [], torch.rand(6)[::2], 1 + torch.rand(6)[::2], 4, torch.float32)
assert_close(crop_normalize_triton(*arguments), crop_normalize_reference(*arguments), "strides")
empty = ([images[:0]], [integers(9, 0, 2)], [], torch.zeros(3), torch.ones(3), 4, torch.float32)
assert crop_normalize_triton(*empty).shape == (0, 6, 6, 3)

# Rows from the end, as PyTorch's own indexing takes them, of a store that lies inside a larger one.
store = integers(256, 20, 6, 6, 3, dtype=torch.uint8)[5:15]
rows, offsets = torch.tensor([0, -1, 3, -10]), integers(9, 4, 2)
mean, std = torch.zeros(3), torch.ones(3)
picked = crop_normalize_triton([store[rows]], [offsets], [], mean, std, 4, torch.float32)
gathered = crop_normalize_triton([store], [offsets], [rows], mean, std, 4, torch.float32)
assert torch.equal(gathered, picked)
"""


def test_triton_kernel_in_the_interpreter(interpret: Callable[[str], None]) -> None:
    interpret(INTERPRETED)


@pytest.mark.parametrize("output", ["*fp32", "*bf16", "*fp16"])
def test_machine_code(compile_for_hopper: Callable[..., str], output: str) -> None:
    pointers = {"images": "*u8", "rows": "*i64", "offsets": "*i64", "mean": "*fp32", "std": "*fp32", "output": output}
    constants = {"HEIGHT": 128, "WIDTH": 128, "CHANNELS": 3, "GATHER": True, "BLOCK": 2048}
    compile_for_hopper(module._crop_normalize_kernel, {**pointers, "padding": "i32", "frames": "i32"}, constants)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(64, 128, 128, 3), (3, 33, 29, 3), (2, 7, 5, 1)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_triton_kernel_on_the_device(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    images, offsets = draw(*shape)
    rows = torch.arange(shape[0]).flip(0)
    mean, std = statistics(shape[-1])
    torch._dynamo.reset()  # it refuses the ninth compilation of a function
    for index in ([], [rows]):
        arguments = ([images], [offsets], index, mean, std, 4, dtype)
        moved = [[t.cuda() for t in a] if isinstance(a, list) else a for a in arguments[:3]]
        on_device = (*moved, mean.cuda(), std.cuda(), 4, dtype)
        assert torch.equal(crop_normalize_triton(*on_device).cpu(), crop_normalize_reference(*arguments))
        compiled = torch.compile(crop_normalize, fullgraph=True)
        whole = compiled(images.cuda(), offsets.cuda(), mean.cuda(), std.cuda(), dtype=dtype)
        assert torch.equal(whole.cpu(), two_steps(images, offsets, mean, std, 4, dtype))
