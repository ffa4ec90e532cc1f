"""The transitions that every replay store of the comparison is fed with, and how a batch of them is checked.

NumPy and the standard library only: stores that need an interpreter of their own import this too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

EPISODE = 128  # steps; episodes end truncated and terminated by turns
BLOCK = 64  # rows of an append of many; two blocks are one episode
DISCOUNT = 0.99
N_STEP = 3
TOLERANCE = 1e-4  # of returns, which are summed in float32; what is only copied is the same anyway
Columns = dict[str, Any]


class Work(NamedTuple):
    """What a transition holds, and the steps that are stored again and again.

    Attributes:
        name: "states" or "cameras".
        steps: a transition's keys, every array with a leading axis [N].
        observation_bytes: of one observation.
    """

    name: str
    steps: Columns
    observation_bytes: int

    @property
    def transition_bytes(self) -> int:
        """Both observations, 7 actions, a reward, terminated and truncated."""
        return 2 * self.observation_bytes + 7 * 4 + 4 + 2


def states() -> Work:
    """32 float32 observed, 8 episodes."""
    return _work("states", episodes=8, state=32, cameras=())


def cameras() -> Work:
    """Two 128 x 128 x 3 uint8 images and 14 float32 observed, 1 episode."""
    return _work("cameras", episodes=1, state=14, cameras=("front", "wrist"))


WORKS = {"states": states, "cameras": cameras}


def transition(steps: Columns, row: int) -> Columns:
    """One step as an actor would hand it over: arrays, and Python's numbers."""
    return {
        key: {name: array[row] for name, array in column.items()}
        if isinstance(column, dict)
        else column[row].item()
        if column.ndim == 1
        else column[row]
        for key, column in steps.items()
    }


def block(steps: Columns, start: int, rows: int) -> Columns:
    """Rows of the columns, without a copy."""
    return {
        key: {name: array[start : start + rows] for name, array in column.items()}
        if isinstance(column, dict)
        else column[start : start + rows]
        for key, column in steps.items()
    }


def named(observations: Any) -> dict[str, Any]:
    """A plain observation under the name "state"."""
    return observations if isinstance(observations, dict) else {"state": observations}


def fields(work: Work) -> set[str]:
    """What a batch has to hold, by the names of :func:`wrong_fields`."""
    seen = named(work.steps["observations"])
    return {*seen, *(f"next_{name}" for name in seen), "action", "reward", "terminated", "truncated"}


def wrong_rows(work: Work, parts: dict[str, Any], n_step: int) -> int:
    """How many rows of a sampled batch are not what was stored; see :func:`wrong_fields`."""
    return int(np.logical_or.reduce(list(wrong_fields(work, parts, n_step).values())).sum())


def wrong_fields(work: Work, parts: dict[str, Any], n_step: int) -> dict[str, np.ndarray]:
    """Where a sampled batch is not what was stored.

    Args:
        work: what was stored.
        parts: arrays [B, ...] by the names of :func:`fields`, as far as the store returns them; "mask" and "discount"
            as well. Numbers may come as [B] or [B, 1].
        n_step: steps that a row spans.

    Returns:
        For each of ``parts`` bool [B].

    Every observation carries its number, episode · 1000 + time, in its state. The whole row is compared with the
    stored one of that number: images and flags exactly, other numbers to a rounding.
    """
    state = np.asarray(parts["state"])
    first, last, spanned = _spanned(work, state.reshape(len(state), -1)[:, 0], n_step)
    steps, wrong = work.steps, {}
    seen, reached = named(steps["observations"]), named(steps["next_observations"])
    for name, values in parts.items():
        if name in seen:
            expected = seen[name][first]
        elif name.removeprefix("next_") in reached and name.startswith("next_"):
            expected = reached[name.removeprefix("next_")][last]
        elif name == "action":
            expected = steps["actions"][first]
        elif name == "reward":
            expected = _returns(steps["rewards"], first, spanned)
        elif name in ("mask", "discount"):
            expected = np.where(steps["terminated"][last], 0.0, DISCOUNT**spanned if name == "discount" else 1.0)
        else:
            expected = steps[name][last]
        wrong[name] = _differ(np.asarray(values), expected)
    return wrong


def _spanned(work: Work, number: np.ndarray, n_step: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of numbers [B] the first and the last step that a row spans, and how many; of one that is not there, any."""
    episode, time = np.divmod(np.nan_to_num(number).clip(0, 1e6).astype(np.int64), 1000)
    time = np.minimum(time, EPISODE - 1)
    first = np.minimum(episode * EPISODE + time, len(work.steps["rewards"]) - 1)
    spanned = np.minimum(n_step, EPISODE - first % EPISODE)
    return first, first + spanned - 1, spanned


def _returns(rewards: np.ndarray, first: np.ndarray, spanned: np.ndarray) -> np.ndarray:
    """Discounted sums [B] of the rewards of so many steps."""
    found = np.zeros(len(first))
    for step in range(int(spanned.max(initial=0))):
        within = step < spanned
        found[within] += DISCOUNT**step * rewards[first[within] + step]
    return found


def _differ(values: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Rows [B] in which two arrays differ; all of them if the shapes do."""
    if values.shape not in (expected.shape, (*expected.shape, 1)):
        return np.ones(len(expected), bool)
    values = values.reshape(expected.shape)
    exact = expected.dtype in (np.uint8, bool)
    unequal = values != expected if exact else ~(np.abs(values - expected) <= TOLERANCE)  # NaN differs
    return unequal.reshape(len(expected), -1).any(1)


def _work(name: str, episodes: int, state: int, cameras: tuple[str, ...]) -> Work:
    random = np.random.default_rng(0)
    frames = episodes * (EPISODE + 1)
    number = (1000 * np.arange(episodes)[:, None] + np.arange(EPISODE + 1)).reshape(-1)
    proprioception = random.standard_normal((frames, state), np.float32)
    proprioception[:, 0] = number
    seen: dict[str, np.ndarray] = {key: random.integers(0, 256, (frames, 128, 128, 3), np.uint8) for key in cameras}
    seen["state"] = proprioception
    first = np.flatnonzero(number % 1000 < EPISODE)

    def at(rows: np.ndarray) -> Any:
        # One episode is one slice: the next observations are then views of the same frames.
        picked = {k: v[rows[0] : rows[-1] + 1] if episodes == 1 else v[rows] for k, v in seen.items()}
        return picked if cameras else picked["state"]

    actions = random.standard_normal((len(first), 7), np.float32)
    episode, time = np.divmod(number[first], 1000)
    steps = {
        "observations": at(first),
        "actions": actions,
        "next_observations": at(first + 1),
        "rewards": random.standard_normal(len(first), np.float32),
        "terminated": (time == EPISODE - 1) & (episode % 2 == 1),
        "truncated": (time == EPISODE - 1) & (episode % 2 == 0),
    }
    return Work(name, steps, sum(array[0].nbytes for array in seen.values()))
