"""The C++ store and its NumPy twin, driven by the same programs, never differ."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serl_fast.replay import Field, ReplayStore, Schema
from serl_fast.replay.reference import NumpyReplayStore

ENDS = [Field("rewards", "float32", ()), Field("terminated", "bool", ()), Field("truncated", "bool", ())]
SCHEMAS = {
    "plain": Schema([Field("observations", "float32", (3,))], [Field("actions", "float32", (2,)), *ENDS]),
    "nested": Schema(
        [
            Field("observations/images/front", "uint8", (4, 3, 3)),
            Field("observations/state", "float32", (5,)),
            Field("observations/mode", "int64", ()),
        ],
        [Field("actions", "int32", ()), *ENDS, Field("grasp_penalty", "float32", ()), Field("ok", "bool", (2,))],
    ),
    "stacked": Schema(
        [
            Field("observations/front", "uint8", (2, 2, 3), 3),
            Field("observations/side", "uint8", (2, 2), 2),
            Field("observations/state", "float32", (2,)),
        ],
        [Field("actions", "float32", (1,)), *ENDS],
    ),
    "stacked plain": Schema([Field("observations", "float32", (2,), 4)], [Field("actions", "int64", ()), *ENDS]),
}


class World:
    """Makes transitions whose values come from few enough possibilities that bytes are often equal."""

    def __init__(self, schema: Schema, seed: int) -> None:
        self.schema = schema
        self.random = np.random.default_rng(seed)
        self.now = self.reset()

    def value(self, field: Field, shape: tuple[int, ...]):
        low, high = (0, 2) if field.dtype == "bool" else (0, 3)
        return self.random.integers(low, high, shape).astype(field.dtype)

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
        extras = [self.value(field, field.shape) for field in self.schema.steps]
        columns = [*self.now, *following, *extras]
        named = self.schema.batch([*columns, None, None])
        named.update(terminated=np.bool_(terminated), truncated=np.bool_(truncated))
        del named["masks"], named["discounts"]
        if poison:
            named["rewards"] = np.float32(np.nan)
        self.now = self.reset() if terminated or truncated else following
        return named


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
        assert one[key].tobytes() == two[key].tobytes(), key
        assert one[key].shape == two[key].shape, key


def both(stores, call):
    """The results of the same call on both stores, or the same kind of error from both."""
    results = []
    for store in stores:
        try:
            results.append(call(store))
        except (ValueError, TypeError, IndexError) as error:
            results.append(type(error))
    if any(isinstance(result, type) for result in results):
        assert results[0] == results[1]
    elif results[0] is not None:
        assert_equal(*results)


FLAGS = st.tuples(*[st.sampled_from([False] * 5 + [True]) for _ in range(3)], st.sampled_from([False] * 15 + [True]))
WISH = st.sampled_from([None, None, None, True, False])
OPERATIONS = st.one_of(
    st.tuples(st.just("append"), FLAGS, WISH),
    st.tuples(st.just("append"), FLAGS, WISH),
    st.tuples(st.just("extend"), st.lists(FLAGS, min_size=1, max_size=12), WISH),
    st.tuples(st.just("extend each"), st.lists(st.tuples(FLAGS, st.booleans()), min_size=1, max_size=6)),
    st.tuples(st.just("sample"), st.integers(1, 9), st.sampled_from([0.0, 0.99, 1.0])),
    st.tuples(st.just("batch_at"), st.lists(st.integers(-1, 12), min_size=1, max_size=9)),
    st.tuples(st.just("state"), st.booleans()),
)


def perform(stores, world, operation):
    name, *arguments = operation
    if name == "append":
        transition = world.step(*arguments[0])
        both(stores, lambda store: store.append(transition, arguments[1]))
    elif name == "extend":
        columns = stack([world.step(*flags) for flags in arguments[0]])
        both(stores, lambda store: store.extend(columns, arguments[1]))
    elif name == "extend each":
        columns = stack([world.step(*flags) for flags, _ in arguments[0]])
        wishes = [wish for _, wish in arguments[0]]
        both(stores, lambda store: store.extend(columns, wishes))
    elif name == "sample":
        both(stores, lambda store: store.sample(arguments[0], arguments[1]))
    elif name == "batch_at":
        both(stores, lambda store: store.batch_at(arguments[0]))
    else:
        dumps = [store.state_dict() for store in stores]
        assert_equal(*dumps)
        if arguments[0]:  # crosswise into new stores, which go on in their place
            fresh = [type(store)(store.schema, store.capacity) for store in stores]
            for store, state in zip(fresh, reversed(dumps), strict=True):
                store.load_state_dict(state)
            stores[:] = fresh


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS.keys())
@settings(max_examples=200, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(
    capacity=st.sampled_from([1, 2, 3, 5, 11]),
    seed=st.integers(0, 2**64 - 1),
    operations=st.lists(OPERATIONS, min_size=1, max_size=25),
)
def test_programs_never_tell_the_stores_apart(schema, capacity, seed, operations):
    stores = [ReplayStore(schema, capacity, seed), NumpyReplayStore(schema, capacity, seed)]
    world = World(schema, seed)
    for operation in operations:
        perform(stores, world, operation)
        assert len(stores[0]) == len(stores[1])
        assert [store.appended for store in stores] == [stores[0].appended] * 2
        assert stores[0].draws == stores[1].draws
    assert_equal(stores[0].state_dict(), stores[1].state_dict())
    if len(stores[0]):
        every = np.arange(len(stores[0]))
        assert_equal(stores[0].batch_at(every), stores[1].batch_at(every))
