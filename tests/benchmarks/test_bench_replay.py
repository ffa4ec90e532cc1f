"""The replay benchmarks: the NumPy twin does our store's work, bytes are those that are moved, and checks can fail."""

from __future__ import annotations

import types

import numpy as np
import pytest

from benchmarks import bench_replay, replay_pair, row_gather
from benchmarks.peers.replay.transitions import EPISODE, N_STEP, block
from benchmarks.replay_numpy import SumTree, Twin
from benchmarks.replay_pair import (
    Beside,
    data_of,
    filled,
    flattened,
    grown_apart,
    require_appends,
    require_filled,
    require_same_work,
    rotated,
    with_cameras,
)
from benchmarks.suite import REGISTRY, Run

TINY = Run()
ROWS = 40


@pytest.mark.parametrize("order", ["uniform", "n_step"])
def test_for_the_same_rows_the_twin_returns_what_our_store_returns(order):
    """Of a ring that has wrapped in the middle of an episode, with episodes that end either way."""
    source, capacity = data_of("states"), 200
    terminated = np.zeros(len(source.steps["rewards"]), bool)
    terminated[[5, 6, 70, 150]] = True
    rewards = np.random.default_rng(1).normal(size=len(terminated)).astype(np.float32)
    source = source._replace(steps=source.steps | {"terminated": terminated, "rewards": rewards})
    stores = {name: filled(name, source, capacity, order) for name in ("serl_fast", "numpy")}
    for store in stores.values():
        store.extend(
            store.block(block(source.steps, 0, 137))
        )  # the newest step goes on, the oldest came from somewhere
    ours, twin = stores["serl_fast"], stores["numpy"]
    places = np.arange(capacity)
    twin.random = types.SimpleNamespace(integers=lambda low, high, rows: places)
    expected = dict(flattened(ours.sampler.batch_at((places - twin.next) % capacity)))
    found = twin.into(capacity)()
    assert set(found) == set(expected)
    for key, array in expected.items():
        np.testing.assert_allclose(found[key], array, rtol=1e-6, atol=1e-6, err_msg=key)
    spans = expected["discounts"][expected["masks"] > 0]
    assert len(np.unique(spans)) == (1 if order == "uniform" else N_STEP), "not every span was met"


@pytest.mark.parametrize("order", ["uniform", "n_step", "prioritized"])
@pytest.mark.parametrize("data", ["states", "cameras"])
def test_both_return_the_same_arrays_of_stored_rows(data, order):
    stores = {name: filled(name, data_of(data), EPISODE, order) for name in ("serl_fast", "numpy")}
    for how in ("fresh", "into"):
        functions = {name: getattr(store, how)(ROWS) for name, store in stores.items()}
        require_same_work(stores, functions, N_STEP if order == "n_step" else 1)


def test_an_adapter_that_does_nothing_is_caught():
    stores = {name: filled(name, data_of("states"), EPISODE) for name in ("serl_fast", "numpy")}
    functions = {name: store.into(ROWS) for name, store in stores.items()}
    nothing = stores["numpy"].empty(ROWS)
    for array in nothing.values():
        array[:] = 0
    with pytest.raises(AssertionError, match=f"numpy returns {ROWS} rows that were never stored"):
        require_same_work(stores, functions | {"numpy": lambda: nothing}, 1)


@pytest.mark.parametrize(
    ("key", "spoil", "said"),
    [
        ("masks", lambda array: array.astype(np.float64), "the stores return other arrays"),
        ("rewards", lambda array: array.astype(np.float64), "numpy returns rewards as float64, not float32"),
        ("masks", lambda array: array[:-1], "numpy returns 40 rows that were never stored"),
    ],
)
def test_an_adapter_that_returns_other_arrays_is_caught(key, spoil, said):
    stores = {name: filled(name, data_of("states"), EPISODE) for name in ("serl_fast", "numpy")}
    functions = {name: store.into(ROWS) for name, store in stores.items()}

    def spoilt():
        batch = functions["numpy"]()
        return batch | {key: spoil(batch[key])}

    with pytest.raises(AssertionError, match=said):
        require_same_work(stores, functions | {"numpy": spoilt}, 1)


def test_a_torn_row_is_caught():
    stores = {name: filled(name, data_of("cameras"), EPISODE) for name in ("serl_fast", "numpy")}
    functions = {name: store.into(ROWS) for name, store in stores.items()}

    def torn():
        batch = functions["serl_fast"]()
        batch["next_observations"]["front"][3] = batch["observations"]["front"][3]
        return batch

    with pytest.raises(AssertionError, match="serl_fast returns 1 rows"):
        require_same_work(stores, functions | {"serl_fast": torn}, 1)


@pytest.mark.parametrize(
    ("key", "rows"),
    [
        ("observations/wrist", slice(64, None)),
        ("next_observations/front", slice(1, None)),
        ("next_observations/state", 3),
    ],
)
def test_a_copy_that_is_not_whole_is_caught(key, rows):
    stores = {name: filled(name, data_of("cameras"), EPISODE) for name in ("serl_fast", "numpy")}
    functions = {name: store.into(ROWS) for name, store in stores.items()}

    def partial():
        batch = functions["numpy"]()
        batch[key][:, rows] = 0
        return batch

    with pytest.raises(AssertionError, match=f"numpy returns {ROWS} rows that were never stored: .*{key[-5:]}"):
        require_same_work(stores, functions | {"numpy": partial}, 1)


@pytest.mark.parametrize("key", ["truncated", "masks", "discounts"])
def test_flags_that_were_not_copied_are_caught(key):
    stores = {name: filled(name, data_of("states"), 2 * EPISODE) for name in ("serl_fast", "numpy")}
    functions = {name: store.into(1000) for name, store in stores.items()}
    batch = functions["numpy"]()
    empty = {key: np.full_like(batch[key], 1)}
    with pytest.raises(AssertionError, match=rf"numpy returns \d+ rows that were never stored: .*{key[:-1]}"):
        require_same_work(stores, functions | {"numpy": lambda: functions["numpy"]() | empty}, 1)


def test_batches_that_do_not_change_are_caught():
    stores = {name: filled(name, data_of("states"), EPISODE) for name in ("serl_fast", "numpy")}
    functions = {name: store.into(ROWS) for name, store in stores.items()}
    batch = functions["numpy"]()
    with pytest.raises(AssertionError, match="numpy returns the same rows twice"):
        require_same_work(stores, functions | {"numpy": lambda: batch}, 1)


@pytest.mark.parametrize("case", ["append_one[states]", "append_many[states]", "concurrent[append-states]"])
@pytest.mark.parametrize("fault", ["nothing", "half"])
def test_an_append_that_does_less_is_caught(monkeypatch, case, fault):
    """The adapter's own method does nothing, or leaves out a half."""
    append, extend = Twin.append, Twin.extend

    def of_items(self, items):
        return append(self, list(items)[: 0 if fault == "nothing" else len(items) // 2])

    def of_block(self, block):
        if len(block["rewards"]) != 64:
            return extend(self, block)
        if fault == "half":
            extend(self, {key: array[:32] for key, array in block.items()})
        return None

    monkeypatch.setattr(Twin, "append", of_items)
    monkeypatch.setattr(Twin, "extend", of_block)
    with pytest.raises(AssertionError, match=r"numpy: \d+ rows were appended, \d+ are there"):
        REGISTRY[f"replay/{case}"].build(TINY)


def test_an_append_of_other_rows_is_caught():
    source = data_of("states")

    def first_again(store):
        part = store.block(block(source.steps, 0, 64))
        return lambda: store.extend(part)

    with pytest.raises(AssertionError, match="other rows than the last 256"):
        require_appends({"numpy": first_again}, source, 64, 1024)

    def spoilt(store):
        turns = iter(range(0, 1024, 64))

        def call():
            store.extend(store.block(block(source.steps, next(turns), 64)))
            store.arrays["next_observations/state"][:, 5] = 0

        return call

    with pytest.raises(AssertionError, match=r"never stored: \{'next_state': 256\}"):
        require_appends({"numpy": spoilt}, source, 64, 1024)


def test_a_store_that_is_not_filled_is_caught(monkeypatch):
    require_filled(filled("serl_fast", data_of("states"), 300), 300)
    monkeypatch.setattr(Twin, "extend", lambda self, block: None)
    with pytest.raises(AssertionError, match="Twin: 0 rows"):
        REGISTRY["replay/fill[states]"].build(TINY)


def test_appended_cameras_come_from_memory_and_capacities_are_those_of_every_scale(monkeypatch):
    monkeypatch.setattr(replay_pair, "BEYOND_CACHES", 30 << 20)
    rotated.cache_clear()
    try:
        frames = [each.steps["observations"]["front"] for each in rotated("cameras")]
        assert sum(2 * array.nbytes for array in frames) > 30 << 20
        assert len({array.ctypes.data for array in frames}) == len(frames)
        assert len(rotated("states")) == 1
    finally:
        rotated.cache_clear()
    quick, normal = (bench_replay._capacity(Run(scale=scale), "cameras") for scale in ("quick", "normal"))
    assert quick == normal
    assert REGISTRY["replay/append_many[cameras]"].build(TINY).limit == "copy"
    assert REGISTRY["replay/append_many[states]"].build(TINY).limit is None
    assert REGISTRY["replay/fill[cameras]"].build(TINY).limit is None


def test_the_sum_tree_finds_what_a_running_sum_finds():
    random, tree = np.random.default_rng(0), SumTree(37)
    values = random.random(37)
    tree.set(np.arange(37), np.zeros(37))
    tree.set(random.permutation(37), np.full(37, 9.0))
    tree.set(np.arange(37), values)
    tree.set(np.array([4, 4]), np.array([7.0, values[4]]))  # the last counts
    assert tree.total == pytest.approx(values.sum())
    sums = random.random(500) * values.sum()
    np.testing.assert_array_equal(tree.find(sums), np.searchsorted(np.cumsum(values), sums, side="right"))
    assert tree.find(np.array([2 * tree.total]))[0] == 36


def test_the_twin_draws_by_priority_and_weighs_against_it():
    store = filled("numpy", data_of("states"), EPISODE, "prioritized")
    store.prioritise({"ids": np.arange(EPISODE)}, np.zeros(EPISODE, np.float32))
    store.prioritise({"ids": np.array([3, 7])}, np.array([1e6, 64e6], np.float32))
    batch = store.fresh(400)()
    assert set(batch["ids"]) == {3, 7}
    assert (batch["ids"] == 7).mean() == pytest.approx(64**0.6 / (1 + 64**0.6), abs=0.02)
    assert batch["weights"][batch["ids"] == 3] == pytest.approx(1.0)
    assert batch["weights"][batch["ids"] == 7] == pytest.approx(64 ** (-0.6 * 0.4), rel=1e-3)


@pytest.mark.parametrize(("id", "read"), [("sample_into[256-states]", 290), ("sample_n_step", 290 + 2 * 6)])
def test_bytes_of_a_batch(id, read):
    work = REGISTRY[f"replay/{id}"].build(TINY)
    written = sum(array.nbytes for _, array in flattened(work.functions["serl_fast"]()))
    assert work.units == 256
    assert work.bytes == 256 * read + written


def test_bytes_of_appended_transitions_count_each_frame_once():
    step = 2 * 128 * 128 * 3 + 14 * 4 + 7 * 4 + 4 + 2
    assert REGISTRY["replay/append_many[cameras]"].build(TINY).bytes == 64 * 2 * step
    one = REGISTRY["replay/append_one[cameras]"].build(TINY)
    assert one.bytes / one.units == 2 * step
    before = bench_replay.filled("serl_fast", data_of("states"), EPISODE)
    appended = before.store.appended
    bench_replay._appending(before, [bench_replay.transition(data_of("states").steps, 0)] * 4, 2)()
    assert before.store.appended == appended + 2


@pytest.mark.parametrize("cameras", [1, 3, 4])
def test_more_cameras_are_more_bytes(cameras):
    work = REGISTRY[f"replay/by_cameras[{cameras}]"].build(TINY)
    written = sum(array.nbytes for _, array in flattened(work.functions["numpy"]()))
    assert written == 256 * (2 * (cameras * 128 * 128 * 3 + 14 * 4) + 28 + 4 + 2 + 8)
    assert work.bytes == 2 * written - 256 * 8
    assert with_cameras(cameras).observation_bytes == cameras * 128 * 128 * 3 + 14 * 4


def test_threads_are_put_back():
    before = bench_replay._native.threads()
    work = REGISTRY["replay/by_threads[1]"].build(TINY)
    assert bench_replay._native.threads() == 1
    work.close()
    assert bench_replay._native.threads() == before
    bench_replay._native.set_threads(1)
    try:
        with pytest.raises(pytest.skip.Exception, match="thread"):
            REGISTRY["replay/by_threads[2]"].build(TINY)
    finally:
        bench_replay._native.set_threads(before)


def test_page_locked_arrays_are_filled_in_place(monkeypatch):
    locked = []

    def stand_in(array):
        locked.append(np.zeros_like(array))
        return locked[-1]

    monkeypatch.setattr(bench_replay, "page_locked", stand_in)
    on_cpu = REGISTRY["replay/sample_pinned[cameras]"].build(TINY)
    assert not on_cpu.functions
    assert "CUDA" in on_cpu.missing["serl_fast"]
    work = REGISTRY["replay/sample_pinned[cameras]"].build(Run("cuda"))
    assert work.limit is None, "the suite's limits are the device's, these bytes are the host's"
    for function in work.functions.values():
        batch = dict(flattened(function()))
        assert all(any(array is each for each in locked) for array in batch.values())
        assert batch["observations/front"].any()


@pytest.mark.parametrize("native", [True, False])
def test_the_limit_of_states_copies_the_rows_it_is_asked_for(monkeypatch, native):
    if native and row_gather.compiled() is None:
        pytest.skip("no C++ compiler")
    if not native:
        monkeypatch.setattr(row_gather, "compiled", lambda: None)
    gather = row_gather.RowGather(row_bytes=24, stride=8, rows=5, stored=50, threads=(2, 3))
    assert gather.threads in (2, 3)
    gather._source[:] = np.random.default_rng(0).integers(0, 256, len(gather._source))
    gather()
    expected = np.array([gather._source[8 * i : 8 * i + 24] for i in gather._indices[gather._turn]])
    np.testing.assert_array_equal(gather._out, expected)
    assert 0 < gather.seconds_per_call(0) < 60


def test_what_the_other_thread_does_is_counted_and_errors_come_out():
    calls, extra = [], {}
    beside = Beside(lambda: calls.append(1), lambda: None, 8, extra)
    seconds = beside.seconds_per_call(0.02)
    assert seconds * len(calls) == pytest.approx(beside.seconds)
    assert beside.seconds >= 0.02
    assert extra["other_thread_per_second"] == pytest.approx(beside.moved / beside.seconds)
    assert beside.moved % 8 == 0

    def fails():
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        Beside(lambda: None, fails, 8, {}).seconds_per_call(0.02)
    with pytest.raises(RuntimeError, match="full"):
        Beside(fails, lambda: None, 8, {}).seconds_per_call(0.02)


def test_either_side_of_two_threads_is_a_case():
    sampling, appending = (REGISTRY[f"replay/concurrent[{side}-states]"].build(TINY) for side in ("sample", "append"))
    assert (sampling.units, appending.units) == (256, 8)
    assert len(sampling.functions["serl_fast"].function()["rewards"]) == 256
    assert len(appending.functions["serl_fast"].other()["rewards"]) == 256
    for work in (sampling, appending):
        for name, function in work.functions.items():
            assert function.seconds_per_call(0.01) > 0
            assert work.extra[name]["other_thread_per_second"] > 0


def test_batches_drawn_ahead_and_directly(monkeypatch):
    streams = []
    stream_of = bench_replay.BatchStream
    monkeypatch.setattr(bench_replay, "BatchStream", lambda *given: streams.append(stream_of(*given)) or streams[-1])
    work = REGISTRY["replay/drawn_ahead[states-busy-0.02]"].build(TINY)
    work.functions["direct"]()
    assert work.functions["ahead"]() == 8, "arrays of a batch"
    assert callable(work.limit)
    work.close()
    assert streams[0].closed


@pytest.mark.skipif(not bench_replay.STATM.exists(), reason="resident memory is read from /proc")
def test_memory_of_a_transition_is_what_a_process_grows_by():
    twin = grown_apart("numpy", "states", 100_000)
    assert twin == pytest.approx(290, rel=0.1)
    assert 162 < grown_apart("serl_fast", "states", 100_000) < 0.8 * twin
