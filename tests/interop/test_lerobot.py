"""The store behind the interface of LeRobot's buffer."""

from __future__ import annotations

import itertools

import pytest
import torch

from serl_fast.interop.lerobot import LeRobotReplayBuffer, random_shift


def state(t):
    return {
        "observation.state": torch.full((1, 6), float(t)),
        "observation.images.front": torch.full((1, 3, 8, 8), t / 64),
    }


def filled(steps=50, use_drq=False, **arguments):
    buffer = LeRobotReplayBuffer(capacity=100, use_drq=use_drq, **arguments)
    for t in range(steps):
        buffer.add(
            state=state(t),
            action=torch.full((1, 4), float(t)),
            reward=float(t),
            next_state=state(t + 1),
            done=t % 10 == 9,
            truncated=t % 10 == 4,
            complementary_info={"discrete_penalty": torch.tensor([-0.5])},
        )
    return buffer


def check(batch, rows):
    time = batch["reward"]
    assert time.shape == (rows,)
    assert torch.equal(batch["state"]["observation.state"], time[:, None].expand(-1, 6))
    assert torch.equal(batch["next_state"]["observation.state"], time[:, None].expand(-1, 6) + 1)
    assert torch.equal(batch["next_state"]["observation.images.front"][:, 0, 0, 0], (time + 1) / 64)
    assert torch.equal(batch["done"], (time % 10 == 9).float())
    assert torch.equal(batch["truncated"], (time % 10 == 4).float())
    assert torch.equal(batch["complementary_info"]["discrete_penalty"], torch.full((rows,), -0.5))


def test_what_is_sampled_is_what_was_added():
    buffer = filled()
    assert len(buffer) == 50
    check(buffer.sample(32), 32)
    check(buffer.sample(1_000), 50)  # never more than there are, as in the original


@pytest.mark.parametrize("prefetch", [True, False])
def test_the_iterator_goes_on_for_ever_and_its_batches_stay(prefetch):
    iterator = filled().get_iterator(16, async_prefetch=prefetch)
    batches = list(itertools.islice(iterator, 10))
    for batch in batches:
        check(batch, 16)
    assert len({tuple(batch["reward"].tolist()) for batch in batches}) == 10
    iterator.close()


def test_augmentation_touches_images_alone():
    buffer = filled(use_drq=True, image_augmentation_function=lambda images: images + 1)
    batch = buffer.sample(8)
    assert (batch["state"]["observation.images.front"] >= 1).all()
    assert torch.equal(batch["state"]["observation.state"][:, 0], batch["reward"])


def test_the_default_augmentation_shifts_each_image_by_its_own_offset():
    torch.manual_seed(0)
    image = torch.arange(64.0).reshape(1, 1, 8, 8).repeat(200, 3, 1, 1)
    shifted = random_shift(image)
    corners = shifted[:, 0, 4, 4]  # of row 4 + down - 4, column 4 + right - 4
    down, right = (corners // 8).long(), (corners % 8).long()
    assert set(down.tolist()) == set(right.tolist()) == set(range(8))  # 0 … 8, the last one repeats the edge
    for n in (0, 7, 99):
        rows = (torch.arange(8) + down[n] - 4).clamp(0, 7)
        columns = (torch.arange(8) + right[n] - 4).clamp(0, 7)
        inner = shifted[n, 1, 2:6, 2:6]
        assert torch.equal(inner, image[n, 1][rows][:, columns][2:6, 2:6]) or 7 in (int(down[n]), int(right[n]))
    assert filled(use_drq=True).sample(8)["state"]["observation.images.front"].shape == (8, 3, 8, 8)


def test_an_empty_buffer_says_so():
    buffer = LeRobotReplayBuffer(10)
    assert len(buffer) == 0
    with pytest.raises(RuntimeError, match="empty"):
        buffer.sample(4)
