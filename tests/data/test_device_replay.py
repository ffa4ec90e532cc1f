"""Replay on the device gives what the stores give, and draws only what they hold."""

import contextlib
import itertools
import math
import threading
from time import sleep

import numpy as np
import pytest
import torch

from serl_fast.core import Agent, Loss, Objective, leaves
from serl_fast.data import mirror as mirrors
from serl_fast.data.device_replay import DeviceReplay, choose_placement, largest_remainders, replay_bytes
from serl_fast.engine import Engine, EngineConfig, NonFiniteLossError
from serl_fast.engine import config as config_module
from serl_fast.engine import runner as runner_module
from serl_fast.engine.ranks import SharedSource
from serl_fast.replay import Mixture, ReplayStore
from tests.engine.tape import Tape

CAMERAS = ("front", "wrist")


def observe(time, cameras=CAMERAS, stack=1):
    frames = [np.full((4, 5, 3), max(0, time - stack + 1 + t) % 251, np.uint8) for t in range(stack)]
    images = {camera: frames[0] if stack == 1 else np.stack(frames) for camera in cameras}
    return {**images, "state": np.full(3, time, np.float32)}


def step(time, terminated=False, truncated=False, **form):
    return {
        "observations": observe(time, **form),
        "next_observations": observe(time + 1, **form),
        "actions": np.array([time, -time], np.float32),
        "rewards": np.float32(time),
        "terminated": terminated,
        "truncated": truncated,
        "grasp_penalty": np.float32(-0.5 * time),
        "label": np.int64(7 * time),
    }


def make_store(capacity, times=0, **form):
    store = ReplayStore.from_example(step(0, **form), capacity, frame_stack=form.get("stack", 1))
    for time in range(times):
        store.append(step(time, **form))
    return store


def draw(replay, updates=1, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return replay.batch(replay.draw_noise(generator, updates, torch.device("cpu")))


def rows_of_all(replay):
    """Noise that names every step of the first store, and how many those are; the batch size must reach for them."""
    size = replay.sizes[0]
    return {"steps": torch.arange(replay.batch_size) % max(size, 1)}, size


def assert_equal(tensors, arrays):
    given, wanted = dict(leaves(tensors)), dict(leaves(arrays))
    assert given.keys() == wanted.keys()
    for name, array in wanted.items():
        assert given[name].numpy().dtype == array.dtype, name
        np.testing.assert_array_equal(given[name].numpy(), array, err_msg=name)
        assert given[name].numpy().tobytes() == array.tobytes(), name


class Program:
    """Appends, ends of episodes, interruptions, relabelling and syncs by chance."""

    def __init__(self, seed, store, **form):
        self.random, self.store, self.form = np.random.default_rng(seed), store, form
        self.time = 0

    def append(self, most):
        for _ in range(self.random.integers(0, most + 1)):
            chance = self.random.random()
            self.store.append(
                step(self.time, chance < 0.1, 0.1 < chance < 0.2, **self.form),
                continues=None if self.random.random() < 0.9 else False,
            )
            # After a gap the observation is not the one stored last; a stack begins again.
            skip = self.random.random() < 0.1 and self.form.get("stack", 1) == 1
            self.time += 1 + 5 * skip

    def relabel(self):
        ids = self.random.integers(0, self.store.appended + 1, 4)
        self.store.relabel("rewards", ids, self.random.normal(size=4))


@pytest.mark.parametrize(
    "form", [{}, {"cameras": ("front",)}, {"cameras": ()}, {"stack": 3}], ids=["two", "one", "state", "stack"]
)
@pytest.mark.parametrize("seed", range(6))
def test_every_step_equals_that_of_the_store(form, seed, monkeypatch):
    if seed % 2:  # copies of a few steps at a time
        monkeypatch.setattr(mirrors, "CHUNK_BYTES", 1000)
    capacity = [5, 17, 40][seed % 3]
    program = Program(seed, make_store(capacity, **form), **form)
    replay = DeviceReplay([program.store], capacity, discount=0.9, ids=True)
    sampler = program.store.sampler(0.9, ids=True)
    for _ in range(40):
        program.append(most=[3, 30, 100][program.random.integers(3)])
        if program.store.appended and program.random.random() < 0.3:
            program.relabel()
        if not len(program.store):
            continue
        replay.sync()
        noise, size = rows_of_all(replay)
        assert size == len(program.store)
        batch = replay.batch(noise)
        ids = batch["ids"].numpy()
        assert set(ids.tolist()) == set(range(program.store.first_id, program.store.appended))
        assert_equal(batch, sampler.batch_of(ids))
        assert_equal(batch, sampler.batch_at(noise["steps"].numpy() % size))


def test_rows_of_several_stores_in_the_order_of_a_mixture():
    online, demonstrations = make_store(50, 80), make_store(20, 7)
    replay = DeviceReplay([online, demonstrations], 9, shares=(0.5, 0.5), discount=0.9, ids=True)
    replay.sync()
    mixture = Mixture([online.sampler(0.9, ids=True), demonstrations.sampler(0.9, ids=True)], (0.5, 0.5))
    assert replay.counts == tuple(mixture.counts(9)) == (5, 4)
    batch = draw(replay, updates=3)
    for update in range(3):
        here = {name: tensor[9 * update : 9 * update + 9] for name, tensor in leaves(batch)}
        parts = zip((slice(0, 5), slice(5, 9)), mixture.samplers, strict=True)
        for rows, sampler in parts:
            expected = dict(leaves(sampler.batch_of(here["ids"][rows].numpy())))
            assert_equal({name: tensor[rows] for name, tensor in here.items()}, expected)
    assert batch["observations"]["front"].shape == (27, 4, 5, 3)
    assert list(batch) == list(mixture.empty_batch(1))


@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (2, 1), (4, 4)])
def test_a_short_store_gives_its_share_away(sizes):
    stores = [make_store(10, size) for size in sizes]
    for min_size in (1, 2):
        replay = DeviceReplay(stores, 7, shares=(1, 3), min_size=min_size)
        replay.sync()
        assert list(replay.counts) == Mixture(stores, (1, 3), min_size=min_size).counts(7)
        for size, count, share in zip(sizes, replay.counts, (0, 1), strict=True):
            assert size >= min_size or count == 0, share


def test_shares_follow_the_mixtures_arithmetic():
    random = np.random.default_rng(0)
    stores = [make_store(3, 1) for _ in range(4)]
    for _ in range(200):
        shares = tuple(random.random(4) * (random.random(4) < 0.8))
        if not any(shares):
            continue
        rows = int(random.integers(1, 300))
        assert list(largest_remainders(shares, rows)) == Mixture(stores, shares).counts(rows)
    for shares in ((1e-300, 1.0), (3, 3, 3), (1e300, 1e300), (0.1, 0.2, 0.7)):
        assert list(largest_remainders(shares, 100)) == Mixture(stores[: len(shares)], shares).counts(100)


def test_draws_are_uniform_over_each_store():
    stores = [make_store(64, 90, cameras=()), make_store(64, 40, cameras=())]
    replay = DeviceReplay(stores, 1000, ids=True, fields=["rewards"])
    replay.sync()
    ids = draw(replay, updates=200)["ids"].view(200, 1000)
    for drawn, first, count in ((ids[:, :500], 26, 64), (ids[:, 500:], 0, 40)):
        seen = torch.bincount(drawn.flatten() - first, minlength=count).double()
        assert len(seen) == count
        expected = seen.sum() / count
        chi_square = float(((seen - expected) ** 2 / expected).sum())
        assert abs(chi_square - (count - 1)) < 5 * (2 * (count - 1)) ** 0.5
    noise = replay.draw_noise(torch.Generator().manual_seed(1), 2, torch.device("cpu"))["steps"]
    assert noise.dtype == torch.int64
    assert noise.shape == (2000,)
    assert 2**61 < int(noise.max()) < 2**62


def test_a_growing_replay_is_seen_without_a_new_graph_and_only_after_a_sync():
    store = make_store(30, 4)
    replay = DeviceReplay([store], 64, ids=True)
    replay.sync()
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    traced = torch.compile(replay.batch, backend="aot_eager", fullgraph=True, dynamic=False)
    noise = {"steps": torch.arange(64)}  # every step at least twice
    for time in range(4, 60, 7):
        batch = traced(noise)
        assert_equal(batch, {k: v for k, v in _numpy(replay.batch(noise)).items()})
        assert int(batch["ids"].max()) == store.appended - 1
        assert int(batch["ids"].min()) == store.first_id
        for later in range(time, time + 7):
            store.append(step(later))
        assert int(traced(noise)["ids"].max()) < time
        replay.sync()
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.slow
def test_compiled_by_inductor_as_run_eagerly():
    store = make_store(30, 50, stack=2)
    replay = DeviceReplay([store, make_store(9, 3, stack=2)], 16, ids=True)
    replay.sync()
    noise = replay.draw_noise(torch.Generator().manual_seed(0), 2, torch.device("cpu"))
    compiled = torch.compile(replay.batch, fullgraph=True, dynamic=False)
    assert_equal(compiled(noise), _numpy(replay.batch(noise)))


def test_addresses_stay():
    store = make_store(30, 4)
    replay = DeviceReplay([store], 8)
    places = lambda: [t.data_ptr() for t in (replay._table, replay._arena.slots, *replay._arena.records.values())]  # noqa: E731
    before = places()
    for time in range(4, 100):
        store.append(step(time))
        replay.sync()
    replay.shares = (2.0,)
    assert places() == before


def test_other_contents_replace_the_mirror():
    store, other = make_store(20, 33), make_store(20, 5)
    other.relabel("rewards", [1], [99.0])
    replay = DeviceReplay([store], 20, ids=True)
    replay.sync()
    store.load_state_dict(other.state_dict())
    store.append(step(5))
    replay.sync()
    noise, size = rows_of_all(replay)
    assert size == 6
    batch = replay.batch(noise)
    assert_equal(batch, store.sampler(ids=True).batch_of(batch["ids"].numpy()))
    assert batch["rewards"][1] == 99.0


def test_a_loaded_store(tmp_path):
    make_store(20, 33).snapshot(tmp_path / "store")
    store = ReplayStore.load(tmp_path / "store")
    replay = DeviceReplay([store], 20, ids=True)
    replay.sync()
    batch = replay.batch(rows_of_all(replay)[0])
    assert_equal(batch, store.sampler(ids=True).batch_of(batch["ids"].numpy()))


def test_a_store_on_disk(tmp_path):
    path, schema = tmp_path / "store", make_store(1).schema
    with ReplayStore.open(path, schema, 20) as writer, ReplayStore.open(path, mode="r") as reader:
        replays = [DeviceReplay([store], 20, ids=True) for store in (writer, reader)]
        for time in range(50):
            writer.append(step(time, terminated=time % 8 == 7))
            for replay in replays:
                replay.sync()
                batch = replay.batch(rows_of_all(replay)[0])
                assert_equal(batch, writer.sampler(ids=True).batch_of(batch["ids"].numpy()))
        assert replays[1].sizes == (20,)
    (file,) = path.glob("records.0*")
    content = bytearray(file.read_bytes())
    content[200] ^= 1
    file.write_bytes(content)
    for damaged in ("raise", "skip"):
        with ReplayStore.open(path, damaged=damaged) as store:
            replay = DeviceReplay([store], 20)
            with pytest.raises(
                ValueError, match=r"can not be mirrored: .*records\.0.*damaged='skip'\) leaves them out"
            ):
                replay.sync()
    whole = DeviceReplay([ReplayStore.load(path, damaged="skip")], 20)
    whole.sync()
    assert 17 <= whole.sizes[0] < 20


def test_stretches_too_short_for_the_frames_lose_the_oldest_and_nothing_else(monkeypatch, capsys):
    monkeypatch.setattr(mirrors, "_SMALL_RECORD", 0)
    store, random = make_store(100), np.random.default_rng(0)
    replay = DeviceReplay([store], 100, ids=True)
    for time in range(500):
        store.append(step(time), continues=None if random.random() < 0.3 else False)
        replay.sync()
        noise, size = rows_of_all(replay)
        batch = replay.batch(noise)
        assert_equal(batch, store.sampler(ids=True).batch_of(batch["ids"].numpy()))
        assert int(batch["ids"].max()) == time
        assert size >= min(time + 1, 81)
    assert size < len(store)
    assert capsys.readouterr().err.count("so short that 162 frames do not reach for all 100 transitions") == 1


def test_steps_given_up_while_they_are_copied(monkeypatch):
    store = make_store(20, 10)
    replay = DeviceReplay([store], 20, ids=True)
    replay.sync()
    fill = mirrors.Staging.fill

    def late(staging, source, first):
        for time in range(10, 60):
            store.append(step(time))
        monkeypatch.setattr(mirrors.Staging, "fill", fill)
        return fill(staging, source, first)

    monkeypatch.setattr(mirrors.Staging, "fill", late)
    store.append(step(10))
    replay.sync()
    for _ in range(2):
        batch = replay.batch(rows_of_all(replay)[0])
        assert int(batch["ids"].min()) == store.first_id
        assert_equal(batch, store.sampler(ids=True).batch_of(batch["ids"].numpy()))
        replay.sync()
    assert replay.sizes == (20,)


def test_each_frame_lies_there_once_and_bytes_are_known_before():
    store = make_store(1000, 1000)
    replay = DeviceReplay([store], 4)
    allocated = [*replay._arena.records.values(), *replay._arena.steps.values(), replay._arena.slots]
    assert replay.nbytes == replay_bytes([store]) == sum(t.numel() * t.element_size() for t in allocated)
    replay.sync()
    assert replay._mirrors[0]._record_end == 1001
    assert replay._arena.records["observations/front"].dtype == torch.uint8
    large = ReplayStore.from_example({**step(0), **{k: big() for k in ("observations", "next_observations")}}, 10_000)
    frames = 2 * 128 * 128 * 3
    assert frames * 1.13 < replay_bytes([large]) / 10_000 < frames * 1.14 + 100
    assert replay_bytes([large], fields=["rewards", "observations/state"]) < 10_500 * 100


def big():
    return {**{camera: np.zeros((128, 128, 3), np.uint8) for camera in CAMERAS}, "state": np.zeros(3, np.float32)}


def test_fields_on_request_are_not_mirrored():
    store = ReplayStore.from_example(step(0), 10, on_request=["wrist"])
    store.append(step(0))
    replay = DeviceReplay([store], 2)
    replay.sync()
    assert "observations/wrist" not in replay._arena.records
    assert_equal(replay.batch({"steps": torch.zeros(2, dtype=torch.int64)}), store.batch_at([0, 0]))


def test_refusals():
    store = make_store(5, 2)
    with pytest.raises(ValueError, match="n_step is 3; on the device it is 1"):
        DeviceReplay([store], 4, n_step=3)
    with pytest.raises(ValueError, match="field 'observations/wrist' of store 1 is missing"):
        DeviceReplay([store, make_store(5, 2, cameras=("front",))], 4)
    with pytest.raises(ValueError, match="shares"):
        DeviceReplay([store], 4, shares=(0.5, 0.5))
    with pytest.raises(TypeError, match="list of ReplayStores"):
        DeviceReplay([store.sampler()], 4)
    with pytest.raises(ValueError, match="discount is 2"):
        DeviceReplay([store], 4, discount=2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        DeviceReplay([store], 0)
    with pytest.raises(ValueError, match="auto, host or device"):
        choose_placement("gpu", [store], torch.device("cpu"))


def test_nothing_to_draw_gives_zeros():
    replay = DeviceReplay([make_store(5), make_store(5)], 4, ids=True)
    replay.sync()
    assert replay.counts == (0, 0)
    assert all(not tensor.any() for name, tensor in leaves(draw(replay)) if name not in ("masks", "discounts"))


def test_placement_by_size(monkeypatch):
    store, cuda = make_store(5, 2), torch.device("cuda", 0)
    size = replay_bytes([store])
    assert choose_placement("auto", [store], torch.device("cpu"))[0] is False
    assert choose_placement("device", [store], torch.device("cpu"))[0] is True
    for free, expected in ((2 * size, True), (size, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free, free))
        chosen, why = choose_placement("auto", [store], cuda)
        assert chosen is expected
        assert f"of {free / 1e9:.1f} GB free" in why
        assert choose_placement("device", [store], cuda)[0] is True
        assert choose_placement("host", [store], cuda) == (False, "replay on the host, as asked")


def _numpy(tree):
    return {key: _numpy(value) if isinstance(value, dict) else value.numpy() for key, value in tree.items()}


def test_a_store_that_grows_meanwhile():
    store, done = make_store(50, 10), threading.Event()

    def act():
        for moment in itertools.count(10):
            store.append(step(moment, terminated=moment % 13 == 0))
            if done.is_set():
                return

    replay = DeviceReplay([store], 64, ids=True)
    actor = threading.Thread(target=act)
    actor.start()
    try:
        for seed in range(10_000):
            replay.sync()
            batch = draw(replay, seed=seed)
            times = batch["rewards"]
            assert torch.equal(batch["ids"], times.long())
            assert torch.equal(batch["observations"]["state"][:, 1], times)
            assert torch.equal(batch["next_observations"]["state"][:, 2], times + 1)
            assert torch.equal(batch["next_observations"]["wrist"][:, 3, 4, 2], ((times + 1) % 251).to(torch.uint8))
            assert torch.equal(batch["terminated"], (times % 13 == 0) & (times > 9))
            if store.appended > 500:
                break
            sleep(1e-4)
    finally:
        done.set()
        actor.join()
    assert store.appended > 500


class LateSteps:
    """A stand-in for torch.cuda under which copies run as early, and steps as late, as the order of streams allows."""

    def __init__(self):
        self.steps, self.done, self.log = [], 0, []
        late = self

        class Stream:
            def __init__(self, device=None):
                pass

            def wait_stream(self, other):
                late.log.append("all")
                late.run(len(late.steps))

            def wait_event(self, event):
                if self is not late.main:
                    late.run(event.place)
                late.log.append("main waits" if self is late.main else "announced")

        class Event:
            def record(self, stream):
                self.place = len(late.steps)

        self.Stream, self.Event, self.main = Stream, Event, Stream()

    def run(self, until):
        while self.done < until:
            self.steps[self.done]()
            self.done += 1

    def current_stream(self, device):
        return self.main

    def stream(self, stream):
        return contextlib.nullcontext()


@pytest.mark.parametrize("most", [1, 5, 40])
def test_a_sync_never_tears_a_batch_under_way(most):
    cuda = LateSteps()
    program = Program(most, make_store(30))
    program.append(100)
    replay = DeviceReplay([program.store, make_store(8, 20)], 32, ids=True, cuda=cuda)
    replay.sync()

    def enqueue(seed):
        expected, table = draw(replay, seed=seed), replay._table.clone()

        def run():
            now, replay._table = replay._table, table
            assert_equal(draw(replay, seed=seed), _numpy(expected))
            replay._table = now

        cuda.steps.append(run)

    for seed in range(120):
        enqueue(seed)
        program.append(most)
        if seed % 7 == 0:
            program.relabel()
        replay.sync()
    cuda.run(len(cuda.steps))
    # Few new steps go to spare places and are copied beside the step under way; many must wait for it.
    assert (cuda.log.count("announced") > cuda.log.count("all")) == (most < 40)
    assert cuda.log.count("main waits") > 50


def equal_to_the_store(replay, store):
    noise, size = rows_of_all(replay)
    assert size == len(store)
    assert_equal(replay.batch(noise), store.sampler(0.99).batch_at(noise["steps"].numpy() % size))


@pytest.mark.parametrize("form", [{}, {"cameras": ()}], ids=["images", "state"])
def test_a_store_that_outgrows_its_room_gets_more(form, capsys):
    store, other = make_store(200, 10, **form), make_store(50, 60, **form)
    replay = DeviceReplay([store, other], 200, shares=(1, 0), room=(12, 50))
    small = replay.nbytes
    assert small == replay_bytes([store, other], room=(12, 50)) < replay_bytes([store, other])
    seen = []
    for time in range(10, 260):
        replay.sync()
        equal_to_the_store(replay, store)
        assert replay.sizes[1] == 50
        seen.append(replay.generation)
        store.append(step(time, **form))
    assert seen == sorted(seen)
    assert [seen.count(number) for number in range(4)] == [3, 14, 28, 56]  # room for 12, 26, 54, 110, then all
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "replay on cpu: room for 26 and 50 transitions in place of 12 and 50; the step is built anew"
    assert len(said) == replay.generation == 4
    assert replay.nbytes == replay_bytes([store, other])
    first = DeviceReplay([store], 1, room=[7])
    assert first.nbytes == replay_bytes([store])  # never less than what is there
    with pytest.raises(ValueError, match=r"room is \(3,\) for 2 stores; it is one per store, at least 1"):
        DeviceReplay([store, other], 1, room=[3])


def test_without_memory_for_more_room_the_newest_are_drawn(monkeypatch, capsys):
    store = make_store(500, 10)
    replay = DeviceReplay([store], 64, ids=True, room=[20])
    empty = mirrors.Arena.empty.__func__

    def out_of_memory(cls, schema, forms, device):
        if forms[0].capacity > 20:
            raise RuntimeError("CUDA out of memory")
        return empty(cls, schema, forms, device)

    monkeypatch.setattr(mirrors.Arena, "empty", classmethod(out_of_memory))
    for time in range(10, 200):
        store.append(step(time))
        if time % 3 == 0:
            replay.sync()
            newest = range(max(0, time + 1 - 20), time + 1)
            ids = draw(replay)["ids"].numpy()
            assert set(ids.tolist()) <= set(newest)
            assert replay.sizes == (len(newest),)
            assert_equal(
                replay.batch(rows_of_all(replay)[0]), store.sampler(0.99, ids=True).batch_of(np.resize(newest, 64))
            )
    said = capsys.readouterr().err.splitlines()
    assert said == ["replay on cpu: no memory for 44 transitions; the newest 20 of the stores are drawn"]
    assert replay.generation == 1


def test_a_captured_step_is_built_anew_for_the_larger_room(monkeypatch):
    monkeypatch.setattr(config_module, "CAPTURING_DEVICES", ("cpu",))
    monkeypatch.setattr(runner_module, "CudaGraphs", Tape)
    monkeypatch.setattr(runner_module, "compile_function", lambda function, **_: function)
    monkeypatch.setattr(Tape, "captures", 0)
    store = make_store(100, 4, cameras=())
    replay = DeviceReplay([store], 32, ids=True, room=[4])

    def loss(networks, batch, noise):
        return Loss(networks["actor"].weight.square().sum(), {"newest": batch["ids"].max().float()})

    networks = torch.nn.ModuleDict({"actor": torch.nn.Linear(1, 1)})
    agent = Agent(networks, (Objective("actor", loss, ("actor",)),), lambda *_: {})
    source = SharedSource(replay, rank=0, size=1)  # as each of several processes has it
    engine = Engine(agent, EngineConfig("graphed", strict=True), source=source)
    newest = []
    for time in range(4, 60):
        replay.sync()
        newest.append(engine.update()["actor/newest"].item())
        store.append(step(time, cameras=()))
    assert replay.generation == 4
    assert Tape.captures == 1 + 4
    assert max(newest[-10:]) > 45


def test_a_failed_batch_is_the_one_that_was_drawn_although_the_replay_has_grown():
    """The device is looked at now and then; steps appended meanwhile must not change what is inspected."""
    store = make_store(200, 20)
    replay = DeviceReplay([store], 8)
    replay.sync()
    seen, bad = [], [False]

    def loss(networks, batch, noise):
        seen.append(batch["rewards"].clone())
        value = networks["net"](batch["rewards"][:, None]).mean()
        return Loss(value * (math.nan if bad[0] else 1.0), {})

    agent = Agent(
        networks=torch.nn.ModuleDict({"net": torch.nn.Linear(1, 1)}),
        critic_step=(Objective("critic", loss, ("net",)),),
        draw_noise=lambda generator, size, device: {"unused": torch.randn(size, 1, generator=generator)},
    )
    engine = Engine(agent, EngineConfig("eager", check_interval=4), source=replay)
    engine.update()
    bad[0] = True
    engine.update()
    failed, bad[0] = seen[-1], False
    for time in range(20, 60):
        store.append(step(time))
    replay.sync()
    engine.update()
    with pytest.raises(NonFiniteLossError) as raised:
        engine.update()
    assert torch.equal(raised.value.inspection["batch"]["rewards"], failed)
