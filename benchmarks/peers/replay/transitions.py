"""The transitions that every replay store of the comparison is fed with, and how a batch of them is checked.

NumPy and the standard library only: stores that need an interpreter of their own import this too.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

EPISODE = 128  # steps; every episode ends truncated
BLOCK = 64  # rows of an append of many; two blocks are one episode
DISCOUNT = 0.99
N_STEP = 3
PIXEL_CODES = 251
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


def wrong_rows(parts: dict[str, Any], n_step: int) -> int:
    """How many rows of a sampled batch are not what was stored.

    Args:
        parts: arrays [B, ...] under "state", "next_state", "action", "reward", "front" and "next_front", as far as
            the store returns them.
        n_step: steps that a row spans.

    Every observation carries its number: episode · 1000 + time in its state, that number modulo 251 in the first
    value of its image. The action carries the number too, and every reward is 1.
    """
    number = np.asarray(parts["state"])[:, 0].astype(np.int64)
    spanned = np.minimum(n_step, EPISODE - number % 1000)
    returns = (1 - DISCOUNT**spanned) / (1 - DISCOUNT)
    expected = {"action": number, "next_state": number + spanned, "reward": returns}
    expected |= {"front": number % PIXEL_CODES, "next_front": (number + spanned) % PIXEL_CODES}
    wrong = np.zeros(len(number), bool)
    for name, values in parts.items():
        if name in expected:
            first = np.asarray(values, np.float64).reshape(len(number), -1)[:, 0]
            wrong |= np.abs(first - expected[name]) > 1e-3
    return int(wrong.sum())


def _work(name: str, episodes: int, state: int, cameras: tuple[str, ...]) -> Work:
    random = np.random.default_rng(0)
    frames = episodes * (EPISODE + 1)
    number = (1000 * np.arange(episodes)[:, None] + np.arange(EPISODE + 1)).reshape(-1)
    proprioception = random.standard_normal((frames, state), np.float32)
    proprioception[:, 0] = number
    seen: dict[str, np.ndarray] = {key: random.integers(0, 256, (frames, 128, 128, 3), np.uint8) for key in cameras}
    for image in seen.values():
        image[:, 0, 0, 0] = number % PIXEL_CODES
    seen["state"] = proprioception
    first = np.flatnonzero(number % 1000 < EPISODE)

    def at(rows: np.ndarray) -> Any:
        # One episode is one slice: the next observations are then views of the same frames.
        picked = {k: v[rows[0] : rows[-1] + 1] if episodes == 1 else v[rows] for k, v in seen.items()}
        return picked if cameras else picked["state"]

    actions = random.standard_normal((len(first), 7), np.float32)
    actions[:, 0] = number[first]
    steps = {
        "observations": at(first),
        "actions": actions,
        "next_observations": at(first + 1),
        "rewards": np.ones(len(first), np.float32),
        "terminated": np.zeros(len(first), bool),
        "truncated": number[first] % 1000 == EPISODE - 1,
    }
    return Work(name, steps, sum(array[0].nbytes for array in seen.values()))
