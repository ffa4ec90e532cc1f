"""Replay on the device gives the host's batches, inside a captured step, while the store grows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import leaves
from serl_fast.data.batches import to_tensors
from serl_fast.data.device_replay import DeviceReplay
from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine.compiling import compile_function
from serl_fast.kernels.crop_normalize import crop_normalize
from serl_fast.replay import ReplayStore

pytestmark = pytest.mark.gpu


def step(time, last=False):
    def observe(moment):
        return {"front": np.full((16, 16, 3), moment % 251, np.uint8), "state": np.full(5, moment / 1000, np.float32)}

    return {
        "observations": observe(time),
        "next_observations": observe(time + 1),
        "actions": np.tanh(np.arange(6, dtype=np.float32) + time),
        "rewards": np.float32(time),
        "terminated": last,
        "truncated": False,
        "grasp_penalty": np.float32(0),
    }


def grow(store, start, count, length=17):
    for time in range(start, start + count):
        store.append(step(time, last=time % length == length - 1))


def test_a_mirror_on_the_device_equals_the_store(device):
    store = ReplayStore.from_example(step(0), 200, seed=1)
    replay = DeviceReplay([store], 64, discount=0.97, device=device, ids=True)
    generator = torch.Generator(device).manual_seed(0)
    sampler = store.sampler(0.97, ids=True)
    for turn in range(12):  # wraps around more than twice
        grow(store, 50 * turn, 50)
        replay.sync()
        batch = replay.batch(replay.draw_noise(generator, 1, device))
        expected = to_tensors(sampler.batch_of(batch["ids"].cpu().numpy()))
        for (name, found), (_, wanted) in zip(leaves(batch), leaves(expected), strict=True):
            assert torch.equal(found.cpu(), wanted), (turn, name)


@pytest.mark.parametrize("execution", ["compiled", "graphed"])
def test_a_step_that_draws_its_batch_sees_a_growing_store(execution, cuda):
    """Eager draws the same batches: the noise is the engine's."""
    engines, stores, replays = [], [], []
    for each in ("eager", execution):
        torch.manual_seed(0)
        store = ReplayStore.from_example({**step(0)}, 300, seed=1)
        grow(store, 0, 60)
        room = None if each == "eager" else [100]  # which it outgrows twice
        replay = DeviceReplay([store], 32, fields=None, room=room, device=cuda)
        replay.sync()
        agent = sac(5, 6, config=SACConfig(hidden_widths=(32, 32)))
        config = EngineConfig(each, strict=True)
        engines.append(Engine(agent, config, seed=3, device=cuda, source=replay))
        stores.append(store)
        replays.append(replay)
    for turn in range(8):
        metrics = []
        for engine, store, replay in zip(engines, stores, replays, strict=True):
            grow(store, 60 + 50 * turn, 50)
            replay.sync()
            metrics.append({name: value.clone() for name, value in engine.update().items()})
        eager, other = metrics
        assert other["critic/rewards"].item() == pytest.approx(eager["critic/rewards"].item(), rel=1e-5)
    assert [replay.generation for replay in replays] == [0, 2]
    for found, expected in zip(
        engines[1].agent.networks.parameters(), engines[0].agent.networks.parameters(), strict=True
    ):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_crops_read_the_frames_where_the_replay_keeps_them(cuda):
    store = ReplayStore.from_example(step(0), 200)
    grow(store, 0, 150)
    replay = DeviceReplay([store], 64, device=cuda)
    replay.sync()
    mean, std = 255 * torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], device=cuda)

    def prepare(noise, offsets):
        batch = replay.batch(noise)
        images = [batch["observations"]["front"], batch["next_observations"]["front"]]
        return crop_normalize(images, [offsets, offsets], mean, std)

    compiled = compile_function(prepare)
    generator = torch.Generator(cuda).manual_seed(0)
    for _ in range(3):
        noise = replay.draw_noise(generator, 1, cuda)
        offsets = torch.randint(9, (64, 2), generator=generator, device=cuda)
        with torch.profiler.profile() as profile:
            found = compiled(noise, offsets)
        assert torch.equal(found, prepare(noise, offsets))
    names = [event.key for event in profile.key_averages()]
    assert any("crop_normalize" in name for name in names), names


def test_mirroring_never_waits_for_the_device(cuda):
    store = ReplayStore.from_example(step(0), 500)
    grow(store, 0, 50)
    replay = DeviceReplay([store], 32, device=cuda)
    replay.sync()
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for turn in range(10):
            grow(store, 50 + 20 * turn, 20)
            replay.sync()
    finally:
        torch.cuda.set_sync_debug_mode("default")
