"""What one call of the engine runs: one update, or a block of updates that share their preparation.

A program is a function (batch, drawn) -> the metrics of every update. What is compiled as one is an update as a whole,
with the source's gather and the preparation; of a block the preparation (of all rows, or of as many updates' as
:data:`LARGEST_PREPARATION` allows), the step without the actor and the step with it. Unrolled into one function a block
takes minutes to compile; captured in a CUDA graph it is unrolled all the same. A single update beside blocks runs on
their two steps and has its own preparation alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from serl_fast.core import Agent, Batch, DeviceSource, Noise, leaves
from serl_fast.engine.step import AdamState, Step, StepOptions, as_it_is, build_step

Program = Callable[[Batch, "Drawn"], list[dict[str, Tensor]]]
Preparation = Callable[[Batch, "Drawn"], Batch]

LARGEST_PREPARATION = 2**24
"""Bytes of a batch that are prepared at once. An encoder holds some 70 times as much on the way; the rows of a few
updates keep a device busy, and those of twenty with cameras would take tens of gigabytes."""


class Drawn(NamedTuple):
    """Every random number of a call.

    Attributes:
        updates: the agent's noise of each update.
        source: the source's noise for all updates together; empty without a source.
    """

    updates: list[Noise]
    source: Noise


class Parts(NamedTuple):
    """What programs are built from.

    Attributes:
        agent: what to minimise.
        adam: optimizer state by the names of ``agent.optimized``.
        options: of the steps.
        source: draws the batches inside the step; None: they are given.
        compile_whole: applied to what is to be one graph.
    """

    agent: Agent
    adam: dict[str, AdamState]
    options: StepOptions
    source: DeviceSource | None = None
    compile_whole: Callable[[Any], Any] = as_it_is


def draw(parts: Parts, generator: torch.Generator, updates: int, batch_size: int, device: torch.device) -> Drawn:
    """The random numbers of ``updates`` updates on ``batch_size`` rows each.

    The agent draws update by update, so that a block sees the numbers that as many single updates would.
    """
    source = parts.source.draw_noise(generator, updates, device) if parts.source else {}
    return Drawn([parts.agent.draw_noise(generator, batch_size, device) for _ in range(updates)], source)


class Builder:
    """Builds programs; what several of them have in common is compiled once.

    Args:
        parts: what programs are built from.
    """

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self._preparations: dict[int, Preparation] = {}  # by updates
        self._update_bytes = 0  # of the batch of one update of a block
        self._steps: dict[bool, Step] = {}  # of blocks, by whether they have the actor's objectives

    def build(self, updates: int, with_actor: bool) -> Program:
        """A program of ``updates`` updates, of which the last has the actor's objectives if ``with_actor``.

        A single update is one graph, unless a block was built before: then it runs on the block's steps.
        """
        if updates == 1 and not self._steps:
            return _single(self._parts, with_actor)
        return self._block(self._step(False), self._step(with_actor), updates)

    def _preparation(self, updates: int) -> Preparation:
        if updates not in self._preparations:
            self._preparations[updates] = self._parts.compile_whole(_preparation(self._parts, updates))
        return self._preparations[updates]

    def _together(self, batch: Batch, drawn: Drawn, updates: int) -> int:
        """How many updates of a block are prepared at once: a divisor of their number."""
        if not self._update_bytes:
            with torch.no_grad():
                one = _batch_of(self._parts.source, share(batch, 0, updates), share(drawn.source, 0, updates))
            self._update_bytes = sum(tensor.nbytes for _, tensor in leaves(one))
        fitting = max(LARGEST_PREPARATION // max(self._update_bytes, 1), 1)
        return next(size for size in range(min(updates, fitting), 0, -1) if updates % size == 0)

    def _step(self, with_actor: bool) -> Step:
        if with_actor not in self._steps:
            parts = self._parts
            step = build_step(parts.agent, parts.adam, parts.options, with_actor=with_actor)
            self._steps[with_actor] = parts.compile_whole(step)
        return self._steps[with_actor]

    def _block(self, critics: Step, last: Step, updates: int) -> Program:
        source = self._parts.source
        guard = self._parts.options.guard
        keeps = guard is not None and guard.keeps_batch

        def block(batch: Batch, drawn: Drawn) -> list[dict[str, Tensor]]:
            together = self._together(batch, drawn, updates)
            prepare = self._preparation(together)
            metrics = []
            for index, noise in enumerate(drawn.updates):
                group, place = divmod(index, together)
                if place == 0:
                    few = Drawn(
                        drawn.updates[index : index + together], share(drawn.source, group, updates // together)
                    )
                    prepared = prepare(share(batch, group, updates // together), few)
                    rows = rows_of(prepared)
                step = last if index == updates - 1 else critics
                kept = kept_of(batch, drawn, index, updates, source) if keeps else {}
                metrics.append(step(share(prepared, place, together, rows), noise, kept))
            return metrics

        return block


def _single(parts: Parts, with_actor: bool) -> Program:
    prepare = _preparation(parts, 1)
    step = build_step(parts.agent, parts.adam, parts.options, with_actor=with_actor)

    def update(batch: Batch, drawn: Drawn) -> dict[str, Tensor]:
        prepared = prepare(batch, drawn)
        return step(prepared, drawn.updates[0], kept_of(batch, drawn, 0, 1, parts.source))

    whole = parts.compile_whole(update)
    return lambda batch, drawn: [whole(batch, drawn)]


def _preparation(parts: Parts, updates: int) -> Preparation:
    """The source's gather and the agent's preparation, once for all updates, without gradient."""
    agent, source, autocast = parts.agent, parts.source, parts.options.autocast
    prepare = parts.options.compile_part(agent.prepare)

    def preparation(batch: Batch, drawn: Drawn) -> Batch:
        with torch.no_grad():
            batch = _batch_of(source, batch, drawn.source)
            noise = drawn.updates[0] if updates == 1 else join(drawn.updates, rows_of(batch) // updates)
            with autocast:
                prepared: Batch = prepare(agent.networks, batch, noise)
            return prepared

    return preparation


def _batch_of(source: DeviceSource | None, batch: Batch, noise: Noise) -> Batch:
    """The batch that was given, or the source's."""
    return batch if source is None else source.batch(noise)


def rows_of(batch: Batch) -> int:
    """Rows of a batch: the length of its first field."""
    _, first = next(leaves(batch))
    return first.shape[0]


def join(noises: Sequence[Noise], batch_size: int) -> Noise:
    """The noise of several updates for one preparation: what has a row for each of theirs, one below the other.

    What has not, such as the members of a subset of critics, belongs to one update and is left out.
    """
    first = noises[0]
    rowwise = [name for name, value in first.items() if value.dim() and value.shape[0] == batch_size]
    return {name: torch.cat([noise[name] for noise in noises]) for name in rowwise}


def share(tree: Any, index: int, updates: int, rows: int | None = None) -> Any:
    """Update ``index``'s share of the first axis of every tensor of a nested dict.

    Args:
        tree: nested dict of tensors.
        index: which update, from 0.
        updates: of the block.
        rows: share out only what has that many rows; what has not is everyone's.
    """
    if updates == 1:
        return tree
    if isinstance(tree, dict):
        return {key: share(value, index, updates, rows) for key, value in tree.items()}
    if rows is not None and (not tree.dim() or tree.shape[0] != rows):
        return tree
    size = tree.shape[0] // updates
    return tree[index * size : (index + 1) * size]


def kept_of(batch: Batch, drawn: Drawn, index: int, updates: int, source: DeviceSource | None = None) -> dict[str, Any]:
    """What must be kept of an update to look at it when it failed.

    With a source that is its noise and what the source drew from, from which the batch can be gathered again.
    """
    noise: dict[str, Any] = dict(drawn.updates[index])
    if drawn.source:
        drew_from: Noise = getattr(source, "drew_from", dict)()
        noise["source"] = share(drawn.source, index, updates) | drew_from
    return {"batch": share(batch, index, updates), "noise": noise}
