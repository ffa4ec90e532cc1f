"""Names, dtypes and shapes, from examples and from spaces."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from serl_fast.replay import Field, ReplayStore, Schema

BOX = gym.spaces.Box(-1, 1, (2,), np.float64)
IMAGE = gym.spaces.Box(0, 255, (3, 8, 8, 3), np.uint8)


def names(schema):
    return [field.name for field in (*schema.observations, *schema.steps)]


def test_from_space_nested():
    observations = gym.spaces.Dict({"state": BOX, "images": gym.spaces.Dict({"front": IMAGE, "wrist": IMAGE})})
    extra = {"grasp_penalty": np.float32, "hint": (np.int16, (4,))}
    store = ReplayStore.from_space(observations, BOX, 10, frame_stack={"images/front": 3}, extra=extra)
    assert store.schema.observations == (
        Field("observations/images/front", "uint8", (8, 8, 3), 3),
        Field("observations/images/wrist", "uint8", (3, 8, 8, 3)),
        Field("observations/state", "float32", (2,)),
    )
    assert names(store.schema)[3:] == ["actions", "rewards", "terminated", "truncated", "grasp_penalty", "hint"]
    assert store.schema.steps[-1] == Field("hint", "int32", (4,))
    batch = store.empty_batch(5)
    assert batch["next_observations"]["images"]["front"].shape == (5, 3, 8, 8, 3)
    assert batch["masks"].shape == (5,)


@pytest.mark.parametrize(
    ("space", "dtype", "shape"),
    [
        (gym.spaces.Box(0, 1, (), np.float32), "float32", ()),
        (gym.spaces.Discrete(5), "int64", ()),
        (gym.spaces.MultiDiscrete([2, 3]), "int64", (2,)),
        (gym.spaces.MultiBinary(4), "int32", (4,)),
    ],
)
def test_from_space_of_every_kind(space, dtype, shape):
    schema = Schema.from_space(space, space)
    assert schema.observations == (Field("observations", dtype, shape),)
    assert schema.steps[0] == Field("actions", dtype, shape)


def test_spaces_that_cannot_be_stored():
    with pytest.raises(TypeError, match="field 'observations': a Text space cannot be stored"):
        Schema.from_space(gym.spaces.Text(5), BOX)
    with pytest.raises(TypeError, match="the action space is a Dict"):
        Schema.from_space(BOX, gym.spaces.Dict({"a": BOX}))
    with pytest.raises(TypeError, match="field 'observations' has dtype uint64, which cannot be stored"):
        Schema.from_space(gym.spaces.Box(0, 9, (1,), np.uint64), BOX)
    with pytest.raises(ValueError, match="a store needs observations"):
        Schema.from_space(gym.spaces.Dict({}), BOX)
    with pytest.raises(ValueError, match="keys are text without '/'"):
        Schema.from_space(gym.spaces.Dict({"a/b": BOX}), BOX)
    for name in ("masks", "a/b"):
        with pytest.raises(ValueError, match=f"field '{name}' cannot be an extra field"):
            Schema.from_space(BOX, BOX, extra={name: np.float32})
    with pytest.raises(TypeError, match="the key 5 cannot be an extra field; keys are text"):
        Schema.from_space(BOX, BOX, extra={5: np.float32})


def test_plain_observations_stay_plain():
    example = {
        "observations": np.zeros(3),
        "next_observations": np.zeros(3),
        "actions": 1,
        "rewards": 0,
        "masks": 1.0,
        "dones": False,
        "infos": {"x": 1},
    }
    store = ReplayStore.from_example(example, 4)
    store.append(example)
    batch = store.sample(2)
    assert batch["observations"].shape == (2, 3)
    assert batch["actions"].dtype == np.int64
    with pytest.raises(TypeError, match="field 'observations' is a mapping; the store holds an array"):
        store.append({**example, "observations": {"a": np.zeros(3)}})


def test_an_example_must_fit_itself():
    example = {"observations": np.zeros(3), "next_observations": np.zeros(4), "actions": 0, "rewards": 0}
    with pytest.raises(ValueError, match=r"field 'next_observations' has shape \(4,\); the store holds \(3,\)"):
        Schema.from_example({**example, "masks": 1})
    example["next_observations"] = np.zeros(3)
    with pytest.raises(ValueError, match="'terminated' is missing; a transition has terminated and truncated, or"):
        Schema.from_example(example)
    with pytest.raises(TypeError, match="field 'extra' is a mapping"):
        Schema.from_example({**example, "masks": 1, "extra": {}})
    with pytest.raises(TypeError, match="field 'actions' is a mapping"):
        Schema.from_example({**example, "masks": 1, "actions": {"arm": 0}})


def test_frame_stack_must_fit_the_fields():
    space = gym.spaces.Dict({"front": IMAGE})
    with pytest.raises(ValueError, match=r"field 'observations/front' has shape \(3, 8, 8, 3\); frame_stack 4 needs"):
        Schema.from_space(space, BOX, frame_stack=4)
    with pytest.raises(ValueError, match="frame_stack names 'back', which is no observation field"):
        Schema.from_space(space, BOX, frame_stack={"back": 3})
    with pytest.raises(ValueError, match="frame_stack is 0"):
        Schema.from_space(space, BOX, frame_stack=0)


def test_the_order_of_keys_does_not_matter():
    one = gym.spaces.Dict({"a": BOX, "b": IMAGE})
    example = {"b": np.zeros((3, 8, 8, 3), np.uint8), "a": np.zeros(2)}
    transition = {"y": 1.0, "x": True, "rewards": 0, "actions": np.zeros(2), "dones": False}
    other = Schema.from_example({"observations": example, "next_observations": example, **transition})
    assert Schema.from_space(one, BOX, extra={"x": bool, "y": np.float32}) == other
    assert hash(other) == hash(Schema.from_json(other.to_json()))


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"observations": 3}', '{"observations": [1], "steps": []}'])
def test_text_that_is_no_schema(text):
    with pytest.raises(ValueError):
        Schema.from_json(text)


@pytest.mark.parametrize(
    "name", ["ids", "weights", "valid", "terminals", "next_actions", "full_observations", "masks", ""]
)
def test_names_that_batches_use_are_no_extra_fields(name):
    steps = [Field("actions", "float32", (2,)), Field("rewards", "float32", ())]
    ends = [Field("terminated", "bool", ()), Field("truncated", "bool", ())]
    with pytest.raises(ValueError, match=f"field '{name}' cannot be an extra field"):
        Schema([Field("observations", "float32", (3,))], [*steps, *ends, Field(name, "float32", ())])


@pytest.mark.parametrize("order", [1, -1])
def test_a_field_is_an_array_or_holds_fields(order):
    fields = [Field("observations/a", "float32", (3,)), Field("observations/a/b", "float32", (3,))][::order]
    steps = [Field("actions", "float32", (2,)), Field("rewards", "float32", ())]
    with pytest.raises(ValueError, match="observations/a"):
        Schema(fields, [*steps, Field("terminated", "bool", ()), Field("truncated", "bool", ())])
