"""The ways to a batch look alike to the learner."""

import numpy as np
import pytest
import torch

from serl_fast.core import leaves
from serl_fast.data.batches import BatchReader
from serl_fast.data.readers import DeviceReader, StreamReader, make_reader
from serl_fast.replay import Mixture, ReplayStore

CPU = torch.device("cpu")
STEP = {
    "observations": {"state": np.zeros(3, np.float32)},
    "next_observations": {"state": np.zeros(3, np.float32)},
    "actions": np.zeros(2, np.float32),
    "rewards": 0.0,
    "terminated": False,
    "truncated": False,
}


def make_store(sign, steps=20):
    store = ReplayStore.from_example(STEP, 100)
    for number in range(steps):
        store.append({**STEP, "rewards": sign * (number + 1.0)})
    return store


@pytest.fixture
def stores():
    return [make_store(1), make_store(-1)]


def read(reader, mixture):
    batch = reader.read(mixture)
    if batch is None:
        generator = torch.Generator().manual_seed(0)
        batch = reader.source.batch(reader.source.draw_noise(generator, 1, CPU))
    return batch


@pytest.mark.parametrize("kind", ["line", "stream", "device"])
def test_a_reader_follows_the_mixture_that_it_is_given(kind, stores):
    reader = StreamReader(8, CPU) if kind == "stream" else make_reader("device", stores, 8, 0.9, CPU)[0]
    reader = BatchReader(8) if kind == "line" else reader
    both, second = Mixture(stores, discount=0.9), Mixture(stores[1:], (1.0,), discount=0.9)
    blank = reader.blank(both)
    for mixture, first in ((second, 0), (both, 4), (second, 0)):
        batch = read(reader, mixture)
        assert (batch["rewards"][:first] > 0).all()
        assert (batch["rewards"][first:] < 0).all()
        torch.testing.assert_close(batch["discounts"], torch.full((8,), 0.9))
        if blank is not None:
            assert {n: (t.shape, t.dtype) for n, t in leaves(blank)} == {
                n: (t.shape, t.dtype) for n, t in leaves(batch)
            }
    assert (reader.source is None) == (kind != "device")
    reader.close()
    reader.close()


@pytest.mark.parametrize("singles", [3, 4])
def test_what_was_drawn_ahead_does_not_outlive_many_other_draws(singles):
    store = make_store(1)
    mixture = Mixture([store], (1.0,), discount=0.9)
    reader = StreamReader(8, CPU, updates=3)
    reader.read(mixture, 3)
    for _ in range(singles):
        reader.read(mixture)
    assert (reader._stream is None) == (singles == 4)
    for _ in range(100):  # nothing of the old rows is left
        store.append({**STEP, "rewards": -1.0})
    drawn = reader.read(mixture, 3)["rewards"]  # with fewer, threads may have drawn before or not
    assert singles < 4 or (drawn < 0).all()
    reader.close()


@pytest.mark.parametrize("kind", ["line", "stream"])
@pytest.mark.parametrize("short", [False, True])
def test_a_block_is_drawn_at_once_and_has_the_rows_of_single_draws(kind, short):
    reader = BatchReader(8) if kind == "line" else StreamReader(8, CPU, updates=3)
    blocks, singles = ([make_store(1), make_store(-1, 0 if short else 20)] for _ in range(2))
    from_blocks, from_singles = Mixture(blocks, discount=0.9), Mixture(singles, discount=0.9)
    single = BatchReader(8)
    expected = [single.read(from_singles)["rewards"].clone() for _ in range(7)]
    for block in range(2):
        rewards = reader.read(from_blocks, 3)["rewards"].view(3, 8)
        assert torch.equal(rewards, torch.stack(expected[3 * block : 3 * block + 3]))
        assert (rewards[:, : 8 if short else 4] > 0).all()
    alone = reader.read(from_blocks)["rewards"]  # one beside the blocks, of rows drawn now
    assert alone.shape == (8,)
    assert reader.blank(from_blocks, 3)["rewards"].shape == (24,)
    assert reader.blank(from_blocks)["rewards"].shape == (8,)
    reader.close()


def test_a_share_that_is_no_whole_number_is_rounded_over_the_block():
    rewards = BatchReader(5).read(Mixture([make_store(1), make_store(-1)]), 4)["rewards"]
    assert (rewards > 0).sum() == 10
    assert all(2 <= (update > 0).sum() <= 3 for update in rewards.view(4, 5))


def test_the_reader_suits_the_device(stores, monkeypatch):
    def made(*arguments):
        return type(make_reader(*arguments)[0])

    assert made("auto", stores, 8, 0.9, CPU) is made("host", stores, 8, 0.9, CPU) is BatchReader
    assert made("device", stores, 8, 0.9, CPU) is DeviceReader
    cuda = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 0))
    assert made("host", stores, 8, 0.9, cuda) is made("auto", stores, 8, 0.9, cuda) is StreamReader
    assert made("host", stores, 8, 0.9, cuda, True) is BatchReader  # synchronous: nothing is drawn ahead


def test_a_device_reader_sees_every_append_and_refuses_empty_stores(stores):
    reader = make_reader("device", [*stores, ReplayStore.from_example(STEP, 100)], 8, 0.9, CPU)[0]
    with pytest.raises(ValueError, match="nothing to draw from"):
        reader.read(Mixture([reader.source.stores[2]], (1.0,)))
    mixture = Mixture(stores)
    for size in range(20, 25):
        reader.read(mixture)
        assert reader.source.sizes == (size, 20, 0)
        stores[0].append(STEP)
