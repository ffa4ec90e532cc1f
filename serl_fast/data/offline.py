"""Data sets for learning without an environment: what is kept of them, and what every step gets beside its fields."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serl_fast.data.episodes import Array, Dataset, DatasetError, Episode
from serl_fast.data.pieces import continues, part_of
from serl_fast.replay import ReplayStore

ACTION_LIMIT = 1 - 1e-5
"""Largest magnitude of an action that is kept: the log-probability of a tanh policy is infinite at 1."""
TOLERANCE = 1e-4  # by which an action may exceed its range: files hold float32 of what was computed in float64
MC_RETURNS = "mc_returns"
"""The field of the discounted returns, see :func:`discounted_returns`."""
UNKNOWN = np.float32(-1e30)
"""A return that is not known: as a lower bound it says nothing. (Stores take finite numbers only.)"""


def known(returns: Array) -> Array:
    """Which of some returns are known, bool."""
    return returns > 0.5 * UNKNOWN


FOLLOWING = "following_actions"
"""The field of the action of the next step, float32 [A]; the last step of an episode has its own there. Batches hold it
as ``next_actions``, a name which stores keep for themselves."""


@dataclass(frozen=True)
class Selection:
    """What of the data is learned from, and how.

    Attributes:
        discount: gamma of ``mc_returns``.
        reward_scale: rewards are multiplied by it in ``mc_returns``; stored rewards stay as they are.
        reward_bias: then added to them, likewise.
        drop_idle: leave out steps whose action is zero in every dimension; the last step of an episode stays.
        action_range: (low, high) float [A] each, which become -1 and 1; None: the data's actions are in [-1, 1].
        action_limit: actions are clipped to ± this.
        columns: further fields of every step: :data:`MC_RETURNS`, :data:`FOLLOWING`.
    """

    discount: float = 0.99
    reward_scale: float = 1.0
    reward_bias: float = 0.0
    drop_idle: bool = False
    action_range: tuple[Array, Array] | None = None
    action_limit: float = ACTION_LIMIT
    columns: tuple[str, ...] = (MC_RETURNS, FOLLOWING)

    def rewards(self, rewards: Array) -> Array:
        """Rewards as the agent sees them."""
        return rewards * np.float32(self.reward_scale) + np.float32(self.reward_bias)


@dataclass
class Summary:
    """What was learned from.

    A recording that goes on after an end is one episode, which ends terminated.

    Attributes:
        episodes: how many.
        transitions: how many, dropped ones not counted.
        failures: episodes without a terminated step: nothing was reached before they ended.
        idle: transitions that were dropped.
        returns: undiscounted, of the rewards as they are in the data, by episode.
        known: transitions whose discounted return is known.
        mc_return: mean of the known discounted returns from every transition on, dropped ones too, of the rewards as
            the agent sees them; NaN where there is none.
        mc_lowest: the lowest of them; infinite where there is none.
        mc_highest: the highest of them; infinite where there is none.
    """

    episodes: int = 0
    transitions: int = 0
    failures: int = 0
    idle: int = 0
    returns: list[float] = field(default_factory=list)
    known: int = 0
    mc_return: float = np.nan
    mc_lowest: float = np.inf
    mc_highest: float = -np.inf

    def add(self, episode: Episode, pieces: Sequence[Episode], selection: Selection, goes_on: bool = False) -> None:
        """Count an episode and what was kept of it; ``goes_on``: it continues the one before, behind its end."""
        kept = sum(map(len, pieces))
        self.idle += len(episode) - kept
        self.transitions += kept
        if goes_on:
            self.returns[-1] += _return_of(episode)
        else:
            self.episodes += 1
            self.failures += not bool(episode.terminated[-1])
            self.returns.append(_return_of(episode))
        returns = _returns_from(episode, selection)
        returns = returns[known(returns)]
        if len(returns):
            before = self.known * self.mc_return if self.known else 0.0
            self.known += len(returns)
            self.mc_return = (before + float(returns.sum(dtype=np.float64))) / self.known
            self.mc_lowest = min(self.mc_lowest, float(returns.min()))
            self.mc_highest = max(self.mc_highest, float(returns.max()))

    def plain(self) -> dict[str, Any]:
        """As JSON takes it, without the single returns; None for what is not known."""
        numbers = {name: value for name, value in vars(self).items() if name != "returns"}
        values = {**numbers, "mean_return": float(np.mean(self.returns)) if self.returns else 0.0}
        return {name: value if np.isfinite(value) else None for name, value in values.items()}

    def describe(self) -> str:
        """One line."""
        ends = f"{self.episodes - self.failures} end terminated" if self.failures else "all end terminated"
        idle = f", {self.idle} idle steps dropped" if self.idle else ""
        later = f"{self.mc_return:.4g} ({self.mc_lowest:.4g} to {self.mc_highest:.4g})" if self.known else "not known"
        return (
            f"{self.transitions} transitions of {self.episodes} episodes ({ends}{idle}); "
            f"return {np.mean(self.returns):.4g} ({min(self.returns):.4g} to {max(self.returns):.4g}); "
            f"discounted, from each transition on, {later}"
        )


def best_episodes(datasets: Sequence[Dataset], part: float) -> dict[Path, set[int]] | None:
    """The numbers of the episodes with the highest undiscounted return, by data set; the earlier one among equals.

    The pieces of a recording that goes on after an end count as one, with the return of all of them: what is left of a
    demonstration in its goal is none by itself.

    Args:
        datasets: all are compared with each other.
        part: of all episodes, in (0, 1]; at least one is kept. None is returned where all are.
    """
    if part >= 1:
        return None
    found: list[tuple[float, Path, list[int]]] = []
    for dataset in datasets:
        for number, (episode, goes_on) in enumerate(_with_continuations(dataset)):
            if goes_on:
                before, path, numbers = found.pop()
                found.append((before + _return_of(episode), path, [*numbers, number]))
            else:
                found.append((_return_of(episode), dataset.path, [number]))
    kept: dict[Path, set[int]] = {dataset.path: set() for dataset in datasets}
    for _, path, numbers in sorted(found, key=lambda entry: -entry[0])[: max(1, round(part * len(found)))]:
        kept[path].update(numbers)
    return kept


def prepared(
    dataset: Dataset, selection: Selection, kept: Collection[int] | None = None, summary: Summary | None = None
) -> Dataset:
    """The data set with actions in ±``action_limit`` and the further fields among the extras of its episodes.

    Where idle steps are dropped, an episode becomes the pieces between them, each an episode whose end is not known.

    Args:
        dataset: any.
        selection: what is wanted of it.
        kept: numbers of the episodes to keep; None for all.
        summary: receives what every pass finds.
    """

    def read() -> Iterator[Episode]:
        for number, (episode, goes_on) in enumerate(_with_continuations(dataset.read())):
            if kept is not None and number not in kept:
                continue
            try:
                pieces = pieces_of(episode, selection)
            except DatasetError as error:
                raise DatasetError(f"{dataset.path}, {episode.name}: {error}") from None
            if summary is not None:
                summary.add(episode, pieces, selection, goes_on)
            yield from pieces

    all_there = kept is None and not selection.drop_idle
    return replace(dataset, read=read, steps=dataset.steps if all_there else None, episodes=None)


def pieces_of(episode: Episode, selection: Selection) -> list[Episode]:
    """What is kept of an episode, see :func:`prepared`.

    Raises:
        DatasetError: an action is out of range.
    """
    actions = _scaled(episode.actions, selection)
    further = {
        MC_RETURNS: _returns_from(episode, selection),
        FOLLOWING: np.concatenate([actions[1:], actions[-1:]]),
    }
    extras = {**episode.extras, **{name: further[name] for name in selection.columns}}
    whole = replace(episode, actions=actions, extras=extras)
    if not selection.drop_idle:
        return [whole]
    kept = (episode.actions != 0).any(1)
    kept[-1] = True
    edges = np.flatnonzero(np.diff(np.concatenate([[0], kept, [0]])))
    return [part_of(whole, first, last) for first, last in zip(edges[::2], edges[1::2], strict=True)]


def discounted_returns(rewards: Array, terminated: bool, discount: float) -> npt.NDArray[np.float32]:
    """Monte-Carlo returns of an episode, G_t = r_t + discount * G_{t+1}, float32 [T].

    Behind the last step G is 0. Where it is not terminated, the episode was cut; nothing is known of what would follow,
    and 0 stands for it too. But where every step cost the same, the goal was never reached and goes on not being
    reached: G = r / (1 - discount).

    Args:
        rewards: float [T].
        terminated: whether the task ended with the last step.
        discount: gamma, in [0, 1].

    Source: Cal-QL (Nakamoto et al. 2023), ``calc_return_to_go`` of its code, which has both rules (the second one for
    tasks whose only rewards are a cost per step and the goal's).
    """
    values = rewards.astype(np.float64)
    following = 0.0
    failed = len(values) > 1 and values[0] < 0 and (values == values[0]).all()
    if not terminated and discount < 1 and failed:
        following = values[0] / (1 - discount)
    for step in range(len(values) - 1, -1, -1):
        values[step] = following = values[step] + discount * following
    return values.astype(np.float32)


class FilledLater:
    """Where an actor's steps go: into a store whose steps have fields that only later steps tell.

    A step is stored with its own action for the next one's and :data:`UNKNOWN` for its return. It gets the true ones
    when the next step comes, and when the episode ends; a return that never comes stays unknown.

    Args:
        store: has the fields ``selection.columns``.
        selection: what rewards become, and the discount.
    """

    def __init__(self, store: ReplayStore, selection: Selection) -> None:
        self.store, self._selection = store, selection
        self._rewards: list[float] = []

    def append(self, transition: dict[str, Any], continues: bool) -> None:
        """As ``ReplayStore.append``."""
        selection, columns = self._selection, self._selection.columns
        further = {MC_RETURNS: UNKNOWN, FOLLOWING: transition["actions"]}
        self.store.append({**transition, **{name: further[name] for name in columns}}, continues)
        newest = self.store.appended - 1
        if not continues:
            self._rewards = []
        elif FOLLOWING in columns:
            self.store.relabel(FOLLOWING, [newest - 1], transition["actions"][None])
        self._rewards.append(float(transition["rewards"]))
        if MC_RETURNS in columns and (transition["terminated"] or transition["truncated"]):
            rewards = selection.rewards(np.array(self._rewards, np.float32))
            returns = discounted_returns(rewards, bool(transition["terminated"]), selection.discount)
            self.store.relabel(MC_RETURNS, np.arange(newest + 1 - len(rewards), newest + 1), returns)


def _with_continuations(episodes: Iterable[Episode]) -> Iterator[tuple[Episode, bool]]:
    """Every episode, and whether it goes on where the one before it ended terminated."""
    before: Episode | None = None
    for episode in episodes:
        yield episode, before is not None and bool(before.terminated[-1]) and continues(before, episode)
        before = episode


def _returns_from(episode: Episode, selection: Selection) -> npt.NDArray[np.float32]:
    """:func:`discounted_returns` of an episode as the agent sees it; :data:`UNKNOWN` where it has no end."""
    terminated, truncated = bool(episode.terminated[-1]), bool(episode.truncated[-1])
    if not (terminated or truncated):
        return np.full(len(episode), UNKNOWN)
    return discounted_returns(selection.rewards(episode.rewards), terminated, selection.discount)


def _return_of(episode: Episode) -> float:
    return float(episode.rewards.sum(dtype=np.float64))


def _scaled(actions: Array, selection: Selection) -> Array:
    """Actions in ±``action_limit``, float32 [T, A]."""
    if selection.action_range is not None:
        low, high = (np.asarray(bound, np.float64) for bound in selection.action_range)
        if low.shape != actions.shape[1:]:
            raise DatasetError(f"field 'actions' has {actions.shape[1]} values; the environment takes {low.shape[0]}")
        actions = (2 * (actions - low) / (high - low) - 1).astype(np.float32)
    outside = np.argwhere(np.abs(actions) > 1 + TOLERANCE)
    if len(outside):
        step, index = outside[0]
        scaled = f", in the environment's range {actions[step, index]:g}" if selection.action_range else ""
        hint = "" if selection.action_range else "; --env says in which range they are, and scales them"
        raise DatasetError(
            f"field 'actions' is {actions[step, index]:g} at step {step}, index {index}{scaled}; accepted: values in "
            f"[-1, 1]{hint}"
        )
    return np.clip(actions, -selection.action_limit, selection.action_limit).astype(np.float32)
