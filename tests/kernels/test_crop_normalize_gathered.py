"""A compiled step's crops read the frames where the replay keeps them: no copy in between, the same bits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from serl_fast.data.device_replay import DeviceReplay
from serl_fast.engine.compiling import compile_function
from serl_fast.engine.gathers import KernelsGather
from serl_fast.kernels import crop_normalize as module
from tests.data.test_device_replay import make_store

MEAN, STD = 255 * torch.tensor([0.485, 0.456, 0.406]), 255 * torch.tensor([0.229, 0.224, 0.225])
ROWS = 6


def step_of(replay: DeviceReplay, images: Callable[[dict[str, Any]], list[Tensor]]) -> Callable[..., Tensor]:
    """The part of a step in question: draw, gather, then crop and normalise."""

    def step(noise: dict[str, Tensor], offsets: list[Tensor]) -> Tensor:
        found = images(replay.batch(noise))
        return module.crop_normalize(found, offsets[: len(found)], MEAN, STD, padding=2)

    return step


def every_camera(batch: dict[str, Any]) -> list[Tensor]:
    return [batch[which][key] for which in ("observations", "next_observations") for key in ("front", "wrist")]


def one_by_itself(batch: dict[str, Any]) -> list[Tensor]:
    return [batch["observations"]["front"], 255 - batch["observations"]["wrist"]]


@pytest.mark.parametrize(
    ("images", "stack", "gathers"),
    [(every_camera, 1, True), (every_camera, 3, True), (one_by_itself, 1, False)],
    ids=["cameras", "stacked", "not only gathered"],
)
def test_frames_are_not_copied_first(
    images: Callable[..., list[Tensor]], stack: int, gathers: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = []

    def reference(*arguments: Any) -> Tensor:
        taken.append([image.shape[0] for image in arguments[0]])
        return module.crop_normalize_reference(*arguments)

    # As on CUDA, where the compiler meets the operator, which runs the reference here.
    monkeypatch.setattr(module, "uses_triton", lambda tensor: True)
    monkeypatch.setitem(module.crop_normalize_operator._backend_fns, None, reference)
    form = {"stack": stack}
    replay = DeviceReplay([make_store(30, 20, **form), make_store(30, 9, **form)], ROWS)
    replay.sync()
    step = step_of(replay, images)
    compiled = compile_function(step)
    generator = torch.Generator().manual_seed(0)
    frames = replay._arena.records["observations/front"].shape[0]
    for _ in range(2):
        noise = replay.draw_noise(generator, 2, torch.device("cpu"))
        offsets = [torch.randint(5, (2 * ROWS, 2), generator=generator) for _ in range(4)]
        expected = step(noise, offsets)
        taken.clear()
        assert torch.equal(compiled(noise, offsets), expected)
        assert len(taken) == 1
        assert (set(taken[0]) == {frames}) is gathers


def test_what_is_no_gather_by_rows_is_left_alone() -> None:
    graph = torch.fx.Graph()
    image, offsets, mean = (graph.placeholder(name) for name in ("image", "offsets", "mean"))
    image.meta["val"] = torch.zeros(4, 2, 2, 3, dtype=torch.uint8)
    arguments = ([image], [offsets], [], mean, mean, 2, torch.float32)
    node = graph.call_function(torch.ops.serl_fast.crop_normalize.default, arguments)
    graph.output(node)
    KernelsGather()(graph)
    assert node.args == arguments


INTERPRETED = """
from serl_fast.data.device_replay import DeviceReplay
from serl_fast.engine.compiling import compile_function
from serl_fast.kernels import crop_normalize as module
from tests.data.test_device_replay import make_store
from tests.kernels.test_crop_normalize_gathered import ROWS, every_camera, step_of

replay = DeviceReplay([make_store(30, 20)], ROWS)
replay.sync()
noise = replay.draw_noise(torch.Generator().manual_seed(0), 1, torch.device("cpu"))
offsets = [torch.randint(5, (ROWS, 2)) for _ in range(4)]
expected = step_of(replay, every_camera)(noise, offsets)  # the reference, on frames that were copied
seen = []

def kernel(images, *rest):
    seen.append([image.data_ptr() for image in images])
    return module.crop_normalize_triton(images, *rest)

module.crop_normalize_operator.register_kernel("cpu")(kernel)
module.uses_triton = lambda tensor: True
found = compile_function(step_of(replay, every_camera))(noise, offsets)
assert torch.equal(found, expected), float((found - expected).abs().max())
assert seen == [2 * [replay._arena.records[f"observations/{key}"].data_ptr() for key in ("front", "wrist")]]
"""


def test_the_kernel_reads_the_replays_own_memory(interpret: Callable[[str], None]) -> None:
    interpret(INTERPRETED)
