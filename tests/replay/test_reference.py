"""The C++ store and its NumPy twin, driven by the same programs, never differ.

A program is a list of calls on a store of a schema by chance. `python -m pytest -m nightly` runs 10 000 of them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serl_fast.replay import Field, ReplayStore, Schema
from serl_fast.replay.reference import NumpyReplayStore

OBSERVATIONS = [
    ("images/front", "uint8", (2, 3)),
    ("images/wrist", "uint8", (2, 1, 3)),
    ("state", "float32", (2,)),
    ("mode", "int64", ()),
    ("deep/er/flag", "bool", (2,)),
    ("deep/er/nothing", "float32", (0,)),
]
ENDS = [Field("rewards", "float32", ()), Field("terminated", "bool", ()), Field("truncated", "bool", ())]
EXTRAS = [
    Field("grasp_penalty", "float32", ()),
    Field("label", "int32", ()),
    Field("ok", "bool", (2,)),
    Field("void", "int32", (3, 0)),
]
ACTIONS = [("float32", (2,)), ("int32", ()), ("float32", (0,))]


class World:
    """Makes transitions whose values come from few enough possibilities that bytes are often equal."""

    def __init__(self, schema: Schema, seed: int) -> None:
        self.schema = schema
        self.random = np.random.default_rng(seed)
        self.now = self.reset()

    def value(self, field: Field, shape: tuple[int, ...]):
        return self.random.integers(0, 2 if field.dtype == "bool" else 3, shape).astype(field.dtype)

    def reset(self):
        return [self.value(field, field.row_shape) for field in self.schema.observations]

    def after(self, observation):
        frames = []
        for field, old in zip(self.schema.observations, observation, strict=True):
            new = self.value(field, field.shape)
            frames.append(np.concatenate([old[1:], new[None]]) if field.stack > 1 else new)
        return frames

    def step(self, terminated: bool, truncated: bool, jump: bool, poison: bool):
        if jump:
            self.now = self.reset()
        following = self.after(self.now)
        values = [*self.now, *following, *(self.value(field, field.shape) for field in self.schema.steps)]
        transition = nested({field.name: value for field, value in zip(self.schema.inputs, values, strict=True)})
        transition.update(terminated=np.bool_(terminated), truncated=np.bool_(truncated))
        if poison:
            transition["rewards"] = np.float32(np.nan)
        self.now = self.reset() if terminated or truncated else following
        return transition

    def steps(self, count: int):
        ends = self.random.random((count, 3)) < (0.1, 0.1, 0.1)
        return [self.step(*map(bool, row), False) for row in ends]


def nested(leaves):
    root = {}
    for name, value in leaves.items():
        *parents, leaf = name.split("/")
        node = root
        for key in parents:
            node = node.setdefault(key, {})
        node[leaf] = value
    return root


def stack(transitions):
    if isinstance(transitions[0], dict):
        return {key: stack([t[key] for t in transitions]) for key in transitions[0]}
    return np.stack(transitions)


def flat(tree, prefix=""):
    if isinstance(tree, dict):
        return {name: leaf for key, child in tree.items() for name, leaf in flat(child, f"{prefix}/{key}").items()}
    return {prefix: tree}


def assert_equal(one, two):
    one, two = flat(one), flat(two)
    assert one.keys() == two.keys()
    for key in one:
        assert one[key].dtype == two[key].dtype, key
        assert one[key].shape == two[key].shape, key
        assert one[key].tobytes() == two[key].tobytes(), f"{key}: {one[key]} is not {two[key]}"


class Stores:
    """The C++ store, its twin and, in some programs, one in files: they take the same calls."""

    def __init__(self, schema: Schema, capacity: int, seed: int, folder: Path | None) -> None:
        self.all = [NumpyReplayStore(schema, capacity, seed), ReplayStore(schema, capacity, seed)]
        self.path = folder
        if folder is not None:
            self.all.append(ReplayStore.open(folder / "store", schema, capacity, seed=seed))
        self.samplers: list[list] = []  # each: one of every store
        self.world = World(schema, seed % 1000)

    def same(self, call, things=None):
        """The one result of the same call on all, or None after the same kind of error from all."""
        results = []
        for thing in things or self.all:
            try:
                results.append(call(thing))
            except (ValueError, TypeError, IndexError) as error:
                results.append(error)
        for result in results[1:]:
            if isinstance(results[0], Exception) or isinstance(result, Exception):
                assert type(result) is type(results[0]), results
            elif isinstance(result, dict):
                assert_equal(results[0], result)
            elif isinstance(result, list):
                assert len(results[0]) == len(result)
                for one, other in zip(results[0], result, strict=True):
                    assert_equal(one, other)
            else:
                assert results[0] == result
        return None if isinstance(results[0], Exception) else results[0]

    def check(self):
        for name in ("appended", "draws", "seed", "first_id"):
            assert len({getattr(store, name) for store in self.all}) == 1, name
        assert len({len(store) for store in self.all}) == 1

    # --- the operations ------------------------------------------------------------------------------------------

    def append(self, flags, wish):
        transition = self.world.step(*flags)
        self.same(lambda store: store.append(transition, wish))

    def extend(self, flags, wish):
        columns = stack([self.world.step(*row) for row in flags])
        self.same(lambda store: store.extend(columns, wish))

    def extend_each(self, rows):
        columns = stack([self.world.step(*flags) for flags, _ in rows])
        self.same(lambda store: store.extend(columns, [wish for _, wish in rows]))

    def fill(self, count):
        columns = stack(self.world.steps(count))
        self.same(lambda store: store.extend(columns))

    def sample(self, rows, discount):
        self.same(lambda store: store.sample(rows, discount))

    def sampler(self, settings_of_it):
        made = []
        if self.same(lambda store: made.append(store.sampler(**settings_of_it)) or 1):
            self.samplers = [*self.samplers[-3:], made]

    def with_sampler(self, which, call):
        if self.samplers:
            self.same(call, self.samplers[which % len(self.samplers)])

    def draw(self, which, rows):
        self.with_sampler(which, lambda sampler: sampler.sample(rows))

    def batch_at(self, which, ages):
        self.with_sampler(which, lambda sampler: sampler.batch_at(ages))

    def epoch(self, which, rows, batches):
        def some(sampler):
            taken = []
            for batch in sampler.epoch(rows):
                taken.append(batch)
                if len(taken) == batches:
                    break
            return taken

        self.with_sampler(which, some)

    def beta(self, which, beta):
        self.with_sampler(which, lambda sampler: setattr(sampler, "beta", beta))

    def relabel(self, which, ages, poison):
        names = [*(field.name for field in self.all[0].schema.steps), "observations"]
        name = names[which % len(names)]
        forms = [field for field in self.all[0].schema.steps if field.name == name]
        shape = (len(ages), *(forms[0].shape if forms else ()))
        values = self.world.random.integers(0, 2, shape).astype(forms[0].dtype if forms else "float32")
        if poison and values.dtype == np.float32:
            values[...] = np.inf
        ids = np.array(ages, int) + self.all[0].first_id
        self.same(lambda store: store.relabel(name, ids, values))

    def prioritize(self, alpha, epsilon):
        self.same(lambda store: store.prioritize(alpha, epsilon))

    def update_priorities(self, ages, errors):
        ids = np.array(ages, int) + self.all[0].first_id
        self.same(lambda store: store.update_priorities(ids, errors[: len(ids)]))

    def state(self, how):
        dumps = [store.state_dict() for store in self.all]
        for other in dumps[1:]:
            assert_equal(dumps[0], other)
        if how == "into themselves" and self.path is None:
            for store, state in zip(self.all, [*dumps[1:], dumps[0]], strict=True):
                store.load_state_dict(state)
        elif how == "into new ones" and self.path is None:  # a store in files takes no state
            self.renew(list(reversed(dumps)))

    def renew(self, states):
        """New stores in memory take these states; priorities and samplers end with the old ones."""
        for place, state in enumerate(states):
            store = self.all[place]
            self.all[place] = type(store)(store.schema, store.capacity)
            self.all[place].load_state_dict(state)
        self.samplers = []

    def reopen(self):
        if self.path is None:
            return
        self.all[-1].snapshot(self.path / "snapshot")
        assert_equal(ReplayStore.load(self.path / "snapshot").state_dict(), self.all[0].state_dict())
        self.all[-1].close()
        self.all[-1] = ReplayStore.open(self.path / "store")
        assert_equal(self.all[-1].state_dict(), self.all[0].state_dict())
        self.renew([store.state_dict() for store in self.all[:2]])

    def close(self):
        if self.path is not None:
            self.all[-1].close()


@st.composite
def schemas(draw):
    actions = Field("actions", *draw(st.sampled_from(ACTIONS)))
    extras = draw(st.lists(st.sampled_from(EXTRAS), unique=True, max_size=3))
    stacks = st.sampled_from([1, 1, 2, 3, 4])
    if draw(st.booleans()):
        leaves = draw(st.lists(st.sampled_from(OBSERVATIONS), unique=True, min_size=1, max_size=4))
        observations = [Field("observations/" + leaf[0], *leaf[1:], draw(stacks)) for leaf in leaves]
        on_request = draw(st.sampled_from([(), (leaves[0][0],)]))
    else:
        observations, on_request = (
            [Field("observations", *draw(st.sampled_from(OBSERVATIONS[:4]))[1:], draw(stacks))],
            (),
        )
    return Schema(observations, [actions, *ENDS, *extras], on_request)


def op(name, *arguments):
    return st.tuples(st.just(name), *arguments)


SELDOM = st.sampled_from([False] * 15 + [True])
FLAGS = st.tuples(*[st.sampled_from([False] * 5 + [True]) for _ in range(3)], SELDOM)
WISH = st.sampled_from([None, None, None, True, False])
WHICH = st.integers(0, 9)
AGES = st.lists(st.integers(-1, 41), max_size=7)
FIELDS = [None] * 4 + [["rewards"], ["observations", "masks"], ["full_observations", "ids"], ["weights", "actions"]]
SETTINGS = st.fixed_dictionaries(
    {},
    optional={
        "discount": st.sampled_from([0.0, 0.5, 0.9, 1.0, 1.1]),
        "n_step": st.sampled_from([1, 2, 3, 5, 50, 0]),
        "order": st.sampled_from(["uniform", "prioritized", "epoch", "epoch"]),
        "fields": st.sampled_from(FIELDS),
        "beta": st.sampled_from([0.0, 0.5, 1.0, -1.0]),
        "ids": st.booleans(),
    },
)
SEQUENCES = st.fixed_dictionaries(
    {"sequence_length": st.integers(1, 7)},
    optional={
        "discount": st.sampled_from([0.0, 0.5, 0.9, 1.0]),
        "pad": st.sampled_from(["next", "last", "last"]),
        "order": st.sampled_from(["uniform", "prioritized", "epoch"]),
        "fields": st.sampled_from(FIELDS),
        "n_step": st.sampled_from([1, 1, 1, 1, 2]),
        "ids": st.just(True),
    },
)
ERRORS = st.lists(st.sampled_from([0.0, 0.25, 1.0, 3.7, 1e5, 1e28]), min_size=7, max_size=7) | st.lists(
    st.sampled_from([1.0, -1.0, float("nan"), float("inf")]), max_size=7
)
OPERATIONS = st.one_of(
    op("append", FLAGS, WISH),
    op("append", FLAGS, WISH),
    op("extend", st.lists(FLAGS, min_size=1, max_size=6), WISH),
    op("extend_each", st.lists(st.tuples(FLAGS, st.booleans()), min_size=1, max_size=5)),
    op("fill", st.integers(0, 60).filter(bool)),
    op("sample", st.integers(1, 9), st.sampled_from([0.0, 0.99, 1.0])),
    op("sampler", SETTINGS),
    op("sampler", SEQUENCES),
    op("draw", WHICH, st.integers(0, 9)),
    op("draw", WHICH, st.integers(0, 9)),
    op("batch_at", WHICH, AGES),
    op("epoch", WHICH, st.integers(1, 9), st.integers(1, 6)),
    op("beta", WHICH, st.sampled_from([0.0, 1.0, 1.5])),
    op("relabel", WHICH, AGES, SELDOM),
    op("prioritize", st.just(0.6), st.just(0.01)),
    op("update_priorities", AGES, ERRORS),
    op("state", st.sampled_from(["only compared", "into themselves", "into new ones"])),
    op("reopen"),
)
PROGRAMS = given(
    schema=schemas(),
    capacity=st.integers(1, 40),
    seed=st.integers(0, 2**64 - 1),
    # Every program fills the store a little and has samplers to draw from.
    prelude=st.tuples(
        op("fill", st.integers(1, 12)),
        op("prioritize", st.sampled_from([0.0, 0.6, 1.0, 1.5]), st.sampled_from([1e-6, 0.1])),
        op("sampler", SETTINGS),
        op("sampler", SEQUENCES),
    ),
    operations=st.lists(OPERATIONS, min_size=10, max_size=40),
)
COMMON = {"deadline": None, "database": None, "suppress_health_check": list(HealthCheck)}


def run(schema, capacity, seed, prelude, operations):
    with tempfile.TemporaryDirectory() as folder:
        stores = Stores(schema, capacity, seed, Path(folder) if seed % 4 == 0 else None)
        for name, *arguments in [*prelude, *operations]:
            getattr(stores, name)(*arguments)
            stores.check()
        stores.state("only compared")
        every = np.arange(len(stores.all[0]))
        stores.same(lambda store: store.batch_at(every))
        for samplers in stores.samplers:
            stores.same(lambda sampler: sampler.sample(5), samplers)
        stores.close()


@settings(max_examples=500, derandomize=True, **COMMON)
@PROGRAMS
def test_programs_never_tell_the_stores_apart(schema, capacity, seed, prelude, operations):
    run(schema, capacity, seed, prelude, operations)


@pytest.mark.nightly
@pytest.mark.timeout(7200)
@settings(max_examples=10_000, print_blob=True, **COMMON)
@PROGRAMS
def test_many_programs_never_tell_the_stores_apart(schema, capacity, seed, prelude, operations):
    run(schema, capacity, seed, prelude, operations)
