"""An episode as data files give it, what a data set is, and the way from there into a replay store."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class DatasetError(ValueError):
    """Data that can not be used; the message names file, episode and field, what is wrong and what is accepted."""


@dataclass(frozen=True)
class Episode:
    """T steps in a row.

    Steps that are known to follow one another but whose end is not in the data (a file that was cut, an intervention)
    are an episode too; its last step is then neither terminated nor truncated.

    Attributes:
        observations: by name, [T + 1, ...]: one before every step and one after the last. ``state`` float32
            [T + 1, P] where there is one, and cameras uint8 [T + 1, H, W, C].
        actions: float32 [T, A], in the units of the file.
        rewards: float32 [T].
        terminated: bool [T], the task ended there: no value follows. Only the last step may have it.
        truncated: bool [T], the episode was cut there, by a time limit for example. Only the last step may have it.
        extras: further values of every step by name, [T, ...]: ``grasp_penalty``, ``labels``, ``infos/qpos`` and so on.
        name: of the episode in its file, for messages: ``data/demo_7``.
        attributes: plain values of the whole episode, as JSON takes them: seed, task, split.
    """

    observations: dict[str, Array]
    actions: Array
    rewards: Array
    terminated: Array
    truncated: Array
    extras: dict[str, Array] = field(default_factory=dict)
    name: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        """T."""
        return len(self.actions)


@dataclass(frozen=True)
class ReadOptions:
    """What of a data set is wanted.

    Attributes:
        image_keys: cameras; None for all there are, () for none.
        image_size: (height, width) px that cameras are resized to, None for their own.
        state_keys: arrays that are joined to ``state``, in this order; None for the format's usual ones.
        filter_key: a named selection of episodes (robomimic's masks, a split); None for all.
        max_episodes: the first so many.
    """

    image_keys: tuple[str, ...] | None = None
    image_size: tuple[int, int] | None = None
    state_keys: tuple[str, ...] | None = None
    filter_key: str | None = None
    max_episodes: int | None = None


@dataclass(frozen=True)
class Dataset:
    """A data set that was opened: what its headers say, and a way to go through its episodes, as often as wanted.

    Attributes:
        path: file or folder.
        format: a name in ``serl_fast.data.formats.FORMATS``.
        read: starts a pass. One episode at a time is in memory. Raises :class:`DatasetError`.
        episodes: how many there are, None where only reading them tells.
        steps: how many there are, None where only reading them tells.
        attributes: plain values of the whole data set, as JSON takes them: ``env``, ``fps``, ``state_parts`` (widths
            by name of the arrays that ``state`` was joined from) and so on.
    """

    path: Path
    format: str
    read: Callable[[], Iterator[Episode]]
    episodes: int | None = None
    steps: int | None = None
    attributes: dict[str, Any] = field(default_factory=dict)

    def __iter__(self) -> Iterator[Episode]:
        """A pass over all episodes, each one checked by :func:`check_episode`."""
        first: Episode | None = None
        for episode in self.read():
            try:
                check_episode(episode, first)
            except DatasetError as error:
                raise DatasetError(f"{self.path}, {episode.name}: {error}") from None
            first = first or first_step(episode)
            yield episode


def check_episode(episode: Episode, like: Episode | None = None) -> None:
    """Check shapes, dtypes and values.

    Args:
        episode: any.
        like: an episode whose fields, shapes of a step and dtypes this one must have.

    Raises:
        DatasetError: the message names the field, and the step where a value is at fault.
    """
    for problem in episode_problems(episode, like):
        raise DatasetError(problem)


def episode_problems(episode: Episode, like: Episode | None = None) -> Iterator[str]:
    """All that :func:`check_episode` would raise, one message after the other."""
    steps = len(episode.actions)
    if not steps:
        yield "there are no steps; an episode has at least one"
    if not episode.observations:
        yield "there are no observations; a state or a camera is needed"
    wrong = False
    for name, value in fields_of(episode).items():
        problem = _problem(name, value, steps + 1 if name.startswith("observations/") else steps)
        if problem:
            wrong = True
            yield problem
    if not steps or wrong:
        return  # the rest could not be looked at
    early = np.flatnonzero((episode.terminated | episode.truncated)[:-1])
    if early.size:
        more = steps - 1 - early[0]
        yield f"it ends at step {early[0]}, and {more} more follow; an end is the last step of an episode"
    if like is None:
        return
    ours, theirs = fields_of(episode), fields_of(like)
    for name in {**theirs, **ours}:
        if name not in ours or name not in theirs:
            yield f"field '{name}' is only in {(episode if name in ours else like).name}; all need it"
            continue
        given, expected = ours[name], theirs[name]
        if (given.shape[1:], given.dtype) != (expected.shape[1:], expected.dtype):
            yield (
                f"field '{name}' is {given.dtype} {given.shape[1:]} per step; {like.name} has {expected.dtype} "
                f"{expected.shape[1:]}"
            )


def _problem(name: str, value: Array, rows: int) -> str | None:
    """What is wrong with a field by itself."""
    if value.shape[:1] != (rows,):
        steps = rows - name.startswith("observations/")
        return f"field '{name}' has shape {value.shape}; with {steps} actions it takes ({rows}, ...)"
    kind, dimensions, accepted = _FORMS.get(name, ("fiub", None, "numbers and bool"))
    if name.startswith("observations/"):
        kind, dimensions, accepted = _STATE if name == "observations/state" else _CAMERA
    if value.dtype.kind not in kind or dimensions not in (None, value.ndim):
        return f"field '{name}' is {value.dtype} {value.shape}; accepted: {accepted}"
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        bad = np.flatnonzero(~np.isfinite(value.reshape(rows, -1)).all(1))
        more = f", and at {len(bad) - 1} more" if len(bad) > 1 else ""
        return f"field '{name}' is not finite at step {bad[0]}{more}; accepted: finite numbers"
    return None


_STATE = ("f", 2, "float32 [T + 1, P]")
_CAMERA = ("u", 4, "uint8 [T + 1, H, W, C]")
_FORMS = {
    "actions": ("f", 2, "float32 [T, A]"),
    "rewards": ("f", 1, "float32 [T]"),
    "terminated": ("b", 1, "bool [T]"),
    "truncated": ("b", 1, "bool [T]"),
}


def fields_of(episode: Episode) -> dict[str, Array]:
    """All arrays by name: ``observations/state``, ``actions``, ``extras/labels`` and so on."""
    return (
        {f"observations/{key}": value for key, value in episode.observations.items()}
        | {name: getattr(episode, name) for name in ("actions", "rewards", "terminated", "truncated")}
        | {f"extras/{key}": value for key, value in episode.extras.items()}
    )


def columns_of(episode: Episode, extras: Sequence[str] = ()) -> dict[str, Any]:
    """The transitions of an episode as columns [T, ...], for ``ReplayStore.extend``.

    Args:
        episode: any.
        extras: which of its extras; ``grasp_penalty`` is 0 where the episode has none.
    """
    zeros: Mapping[str, Array] = {"grasp_penalty": np.zeros(len(episode), np.float32)}
    return {
        "observations": {key: value[:-1] for key, value in episode.observations.items()},
        "actions": episode.actions,
        "next_observations": {key: value[1:] for key, value in episode.observations.items()},
        "rewards": episode.rewards,
        "terminated": episode.terminated,
        "truncated": episode.truncated,
        **{name: episode.extras[name] if name in episode.extras else zeros[name] for name in extras},
    }


def first_step(episode: Episode) -> Episode:
    """A copy of the first step: all that others are compared with, without holding on to the rest."""
    return replace(
        episode,
        observations={key: value[:2].copy() for key, value in episode.observations.items()},
        **{name: getattr(episode, name)[:1].copy() for name in _FORMS},
        extras={key: value[:1].copy() for key, value in episode.extras.items()},
    )
