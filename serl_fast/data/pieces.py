"""Steps in a row cut where the task ended, and put together again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from serl_fast.data.episodes import Episode


def split_at_ends(episode: Episode) -> Iterator[Episode]:
    """The steps up to each end as an episode of its own.

    Files go on after an end: a robot stays in its goal, or is sent on to the next one. Each such step is terminal all
    the same, and what follows begins anew.

    Args:
        episode: ``terminated`` and ``truncated`` may be set at any step.
    """
    steps = len(episode)
    ends = (1 + np.flatnonzero((episode.terminated | episode.truncated)[: steps - 1])).tolist()
    for first, last in pairwise([0, *ends, steps]):
        yield part_of(episode, first, last) if ends else episode


def part_of(episode: Episode, first: int, last: int) -> Episode:
    """Steps ``first`` to ``last``, which is not among them."""
    steps = slice(first, last)
    return replace(
        episode,
        observations={name: value[first : last + 1] for name, value in episode.observations.items()},
        actions=episode.actions[steps],
        rewards=episode.rewards[steps],
        terminated=episode.terminated[steps],
        truncated=episode.truncated[steps],
        extras={name: value[steps] for name, value in episode.extras.items()},
        name=f"{episode.name}, from step {first}" if first else episode.name,
    )


def joined(episodes: Sequence[Episode]) -> Episode:
    """One episode of pieces that follow one another, as they were before :func:`split_at_ends`."""
    if len(episodes) == 1:
        return episodes[0]
    first = episodes[0]
    return replace(
        first,
        observations={
            name: np.concatenate([value, *(e.observations[name][1:] for e in episodes[1:])])
            for name, value in first.observations.items()
        },
        actions=np.concatenate([e.actions for e in episodes]),
        rewards=np.concatenate([e.rewards for e in episodes]),
        terminated=np.concatenate([e.terminated for e in episodes]),
        truncated=np.concatenate([e.truncated for e in episodes]),
        extras={name: np.concatenate([e.extras[name] for e in episodes]) for name in first.extras},
    )


def continues(episode: Episode, following: Episode) -> bool:
    """Whether an episode begins with the observation after the last step of another, in every value."""
    after, start = episode.observations, following.observations
    return set(after) == set(start) and all(np.array_equal(after[name][-1], start[name][0]) for name in after)
