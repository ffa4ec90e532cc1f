"""Random crop: bit for bit the original's, by hand, and the Triton kernel in Triton's interpreter."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from serl_fast.kernels import random_crop as module
from serl_fast.kernels.random_crop import random_crop, random_crop_reference, random_crop_triton

GOLDEN = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
CUDA = torch.cuda.is_available()


def recording(name: str) -> dict[str, Tensor]:
    path = GOLDEN / name / "arrays.npz"
    if not path.exists():
        pytest.skip(f"recordings of the original are not here: {path} (set SERL_FAST_GOLDEN)")
    with np.load(path) as arrays:
        return {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}


@pytest.mark.parametrize("name", ["set0", "set1", "set2"])
def test_crops_of_the_original(name: str) -> None:
    arrays = recording("augmentation")
    images, padding = arrays[f"{name}/images"], int(arrays[f"{name}/padding"])
    assert torch.equal(random_crop(images, arrays[f"{name}/offsets"], padding), arrays[f"{name}/output"])
    corners = arrays[f"{name}/corner_offsets"]
    repeated = images[0, 0].expand(len(corners), *images.shape[2:])
    assert torch.equal(random_crop(repeated, corners, padding), arrays[f"{name}/corner_output"])


@pytest.mark.parametrize("observations", ["observations", "next_observations"])
@pytest.mark.parametrize("camera", ["cam_a", "cam_b"])
def test_batches_of_the_original(observations: str, camera: str) -> None:
    arrays = recording("augmentation")
    offsets = arrays[f"batch/{observations}/offsets"]
    cropped = random_crop(arrays[f"batch/{observations}/{camera}"], offsets)
    assert torch.equal(cropped, arrays[f"batch_out/{observations}/{camera}"])


# --- without recordings --------------------------------------------------------------------------------


def pad_and_slice(images: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """The definition: repeat the edge, then cut."""
    height, width = images.shape[1:3]
    padded = F.pad(images.permute(0, 3, 1, 2).float(), (padding,) * 4, mode="replicate").permute(0, 2, 3, 1)
    cut = [p[y : y + height, x : x + width] for p, (y, x) in zip(padded, offsets.tolist(), strict=True)]
    return torch.stack(cut).to(torch.uint8)


def draw(
    batch: int, height: int, width: int, channels: int = 3, padding: int = 4, seed: int = 0
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (batch, height, width, channels), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 2 * padding + 1, (batch, 2), generator=generator)


def test_by_hand() -> None:
    image = torch.tensor([[1, 2, 3], [4, 5, 6]], dtype=torch.uint8).view(1, 2, 3, 1)
    shifted = random_crop(image, torch.tensor([[0, 2]]), padding=1)  # one row up (repeated), one column right
    assert shifted[0, :, :, 0].tolist() == [[2, 3, 3], [2, 3, 3]]
    assert torch.equal(random_crop(image, torch.tensor([[1, 1]]), padding=1), image)


@pytest.mark.parametrize("shape", [(5, 16, 16, 3), (3, 7, 11, 3), (2, 3, 2, 1), (1, 1, 1, 4), (2, 4, 4, 9)])
@pytest.mark.parametrize("padding", [0, 1, 4, 9])
def test_reference_is_pad_and_slice(shape: tuple[int, int, int, int], padding: int) -> None:
    images, offsets = draw(*shape, padding=padding)
    assert torch.equal(random_crop_reference(images, offsets, padding), pad_and_slice(images, offsets, padding))


def test_every_offset() -> None:
    grid = torch.cartesian_prod(torch.arange(9), torch.arange(9))
    images = draw(1, 12, 10)[0].expand(81, -1, -1, -1)
    assert torch.equal(random_crop_reference(images, grid), pad_and_slice(images, grid, 4))


def test_frames_share_the_offset_of_their_sample() -> None:
    images, _ = draw(6, 9, 8)
    stacked, offsets = images.view(3, 2, 9, 8, 3), torch.tensor([[0, 8], [4, 4], [8, 1]])
    expected = random_crop(images, offsets.repeat_interleave(2, 0)).view_as(stacked)
    assert torch.equal(random_crop(stacked, offsets), expected)
    assert torch.equal(random_crop(stacked, offsets[:, None].expand(-1, 2, -1)), expected)


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64, torch.uint8])
def test_offset_types(dtype: torch.dtype) -> None:
    images, offsets = draw(4, 8, 8)
    assert torch.equal(random_crop(images, offsets.to(dtype)), pad_and_slice(images, offsets, 4))


def test_errors() -> None:
    images, offsets = draw(4, 8, 8)
    with pytest.raises(ValueError, match=r"images have shape \(8, 8, 3\)"):
        random_crop(images[0], offsets)
    with pytest.raises(ValueError, match=r"offsets have shape \(3, 2\).* take \(4, 2\)"):
        random_crop(images, offsets[:3])


def test_one_graph_for_any_offsets() -> None:
    compiled = torch.compile(random_crop, backend="eager", fullgraph=True)
    for seed in range(3):
        images, offsets = draw(4, 8, 8, seed=seed)
        assert torch.equal(compiled(images, offsets), random_crop(images, offsets))


def test_the_operator_keeps_its_word() -> None:
    torch.library.opcheck(module.random_crop_operator, (*draw(4, 9, 7), 4))


def test_one_operator_in_the_graph_for_cuda(fake_cuda: Any) -> None:
    images, offsets = fake_cuda.empty(4, 2, 9, 7, 3, dtype=torch.uint8), fake_cuda.empty(4, 2, dtype=torch.int64)
    code, output = fake_cuda.trace(random_crop, images, offsets)
    assert code.count("serl_fast.random_crop.default") == 1
    assert (output.shape, output.dtype, output.is_cuda) == (images.shape, torch.uint8, True)


def test_machine_code(compile_for_hopper: Callable[..., str]) -> None:
    arguments = {"images": "*u8", "offsets": "*i64", "output": "*u8"}
    arguments |= dict.fromkeys(("height", "width", "channels", "padding", "size"), "i32")
    compile_for_hopper(module._crop_kernel, arguments, {"BLOCK": 2048})


INTERPRETED = """
from serl_fast.kernels.random_crop import random_crop_reference, random_crop_triton
cases = [((3, 16, 16, 3), 4), ((2, 33, 20, 3), 4), ((2, 7, 5, 1), 2), ((2, 2, 9, 8, 3), 3), ((1, 4, 4, 9), 0)]
for shape, padding in cases:
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    for dtype in (torch.int32, torch.int64):
        offsets = torch.randint(0, 2 * padding + 1, (shape[0], 2), generator=generator).to(dtype)
        expected = random_crop_reference(images, offsets, padding)
        assert torch.equal(random_crop_triton(images, offsets, padding), expected), (shape, padding, dtype)
images = torch.arange(4 * 6 * 6 * 3, dtype=torch.uint8).view(4, 6, 6, 3)[::2]  # not contiguous
offsets = torch.tensor([[0, 0], [8, 8]])
assert torch.equal(random_crop_triton(images, offsets), random_crop_reference(images, offsets))
"""


def test_triton_kernel_in_the_interpreter(interpret: Callable[[str], None]) -> None:
    interpret(INTERPRETED)


@pytest.mark.gpu
@pytest.mark.skipif(not CUDA, reason="needs a CUDA device")
@pytest.mark.parametrize("shape", [(256, 128, 128, 3), (3, 33, 20, 3), (2, 7, 5, 1)])
def test_triton_kernel_on_the_device(shape: tuple[int, int, int, int]) -> None:
    images, offsets = draw(*shape)
    expected = random_crop_reference(images, offsets)
    assert torch.equal(random_crop_triton(images.cuda(), offsets.cuda()).cpu(), expected)
    assert torch.equal(random_crop_reference(images.cuda(), offsets.cuda()).cpu(), expected)
