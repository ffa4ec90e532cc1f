"""An expert that errs in many ways, episode by episode: what a classifier must learn to tell from success."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import numpy as np

Manner = Literal["clean", "noisy", "aside", "interrupted", "random"]
MANNERS: tuple[Manner, ...] = get_args(Manner)

MOST_NOISE = 8.0  # times the noise that was asked for, in a noisy episode
MOST_ASIDE = 0.8  # units of the action
SEGMENT = (3, 15)  # steps that one random action is repeated for
PAUSE = 10.0  # steps between two interruptions, on average


class DisturbedExpert:
    """An expert's actions, disturbed in another manner every episode.

    ``clean``: with a little noise. ``noisy``: with a lot. ``aside``: a constant is added, so that it misses and closes
    its fingers on nothing. ``interrupted``: now and then a random action is repeated for some steps: it strays, drops
    what it holds, turns back just before success or just behind. ``random``: such actions alone.

    Args:
        expert: observation -> action float32 [A]; None: every episode is random.
        action_dim: A.
        noise: standard deviation of the motion's noise in a clean episode, in units of the action.
        seed: of everything random.

    Attributes:
        manner: of the episode in progress.
    """

    def __init__(
        self, expert: Callable[[Any], np.ndarray] | None, action_dim: int, *, noise: float = 0.1, seed: int = 0
    ) -> None:
        self._expert, self._size, self._noise = expert, action_dim, noise
        self._random = np.random.default_rng(seed)
        self.manner: Manner = "random"
        self.start(0)

    def start(self, episode: int) -> None:
        """Begin an episode; the manners take turns."""
        random = self._random
        self.manner = MANNERS[episode % len(MANNERS)] if self._expert is not None else "random"
        self._spread = self._noise * (random.uniform(2.0, MOST_NOISE) if self.manner == "noisy" else 1.0)
        self._aside = random.uniform(-MOST_ASIDE, MOST_ASIDE, self._size) if self.manner == "aside" else 0.0
        self._left = 0  # steps of the segment of random action
        self._segment = np.zeros(self._size)

    def __call__(self, observation: Any) -> np.ndarray:
        """The action float32 [A] in -1..1."""
        if self._strays():
            return self._segment.astype(np.float32)
        assert self._expert is not None
        action = np.asarray(self._expert(observation), np.float64)
        noise = self._random.normal(0.0, self._spread, self._size) if self._spread else np.zeros(self._size)
        noise[6:] *= 0.0  # of grippers: they open and close at a threshold
        clipped: np.ndarray = np.clip(action + noise + self._aside, -1.0, 1.0).astype(np.float32)
        return clipped

    def _strays(self) -> bool:
        """Whether a random action stands in the expert's place; a new one begins now and then."""
        if self._left:
            self._left -= 1
            return True
        if self.manner == "random" or (self.manner == "interrupted" and self._random.random() < 1.0 / PAUSE):
            self._left = int(self._random.integers(*SEGMENT)) - 1
            self._segment = self._random.uniform(-1.0, 1.0, self._size)
            return True
        return False
