"""D4RL's tasks: reference returns of their scores, and how long their episodes are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class Task:
    """A family of D4RL's data sets.

    Attributes:
        name: how ids and files of the family begin, in small letters and without separators.
        minimum: return of a random policy.
        maximum: return of an expert.
        max_episode_steps: at which D4RL's environment cuts an episode.
    """

    name: str
    minimum: float
    maximum: float
    max_episode_steps: int


TASKS = (
    Task("halfcheetah", -280.178953, 12135.0, 1000),
    Task("hopper", -20.272305, 3234.3, 1000),
    Task("walker2d", 1.629008, 4592.3, 1000),
    Task("antmazeumaze", 0.0, 1.0, 700),
    Task("antmaze", 0.0, 1.0, 1000),
    Task("ant", -325.6, 3879.7, 1000),
    Task("pen", 96.262799, 3076.8331, 100),
    Task("hammer", -274.856578, 12794.1348, 200),
    Task("relocate", -6.425911, 4233.8778, 200),
    Task("door", -56.512833, 2880.5693, 200),
    Task("kitchen", 0.0, 4.0, 280),
    Task("maze2dumazedense", 68.537689, 193.66285642381482, 300),
    Task("maze2dmediumdense", 44.264742, 297.4552547777125, 600),
    Task("maze2dlargedense", 30.569041, 303.4857382709002, 800),
    Task("maze2dumaze", 23.85, 161.86, 300),
    Task("maze2dmedium", 13.13, 277.39, 600),
    Task("maze2dlarge", 6.7, 273.99, 800),
)
"""The first whose name fits counts. Source: https://github.com/Farama-Foundation/D4RL, ``d4rl/infos.py`` and the
registration of the environments. Pen is cut at 100 steps there, and at 200 in gymnasium-robotics: its returns must be
taken over 100."""

_PREFIX = re.compile(r"(?:d4rl|mujoco|adroithand|franka|mini)+")


def find_task(name: str) -> Task | None:
    """The family of a data set, a file or a gymnasium id; None where it is none of them.

    Args:
        name: "halfcheetah-medium-v2", "HalfCheetah-v4", "hopper_mixed", "D4RL/pen/human-v2", for example.
    """
    plain = re.sub(r"[^a-z0-9]", "", name.lower())
    plain = plain[match.end() :] if (match := _PREFIX.match(plain)) else plain
    return next((task for task in TASKS if plain.startswith(task.name)), None)


def normalized_score(env: str, returns: npt.ArrayLike) -> npt.NDArray[Any]:
    """D4RL's score: 0 for a random policy, 1 for an expert; reports show it times 100.

        score = (R - minimum) / (maximum - minimum)

    Args:
        env: name of a data set or gymnasium id, as :func:`find_task` takes it.
        returns: undiscounted returns of whole episodes, any shape.

    Returns:
        float64 of the same shape.

    Raises:
        ValueError: the task has no reference returns.

    Source: https://arxiv.org/abs/2004.07219, section 6; ``d4rl.get_normalized_score``.
    """
    task = find_task(env)
    if task is None:
        known = ", ".join(task.name for task in TASKS)
        raise ValueError(f"{env!r} is none of D4RL's tasks; accepted: names that begin with {known}")
    return (np.asarray(returns, np.float64) - task.minimum) / (task.maximum - task.minimum)
