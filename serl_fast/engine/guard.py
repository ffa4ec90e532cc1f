"""A step that is not finite is not taken, decided on the device: loss scaling, and what ends a run.

The objectives of a group are evaluated at the same parameters, and their step is taken only where all of their losses
and gradients are finite; nothing after a step that was not taken is, up to the end of the update. What is not taken
leaves parameters, moments, counts and targets as they are, bit for bit. There are two reasons:

* float16, a gradient overflowed. The loss is scaled by s before the gradient is taken and the gradient divided by s; an
  overflow halves s, 2000 updates without one double it. The skipped update is counted.
* A loss is not finite, or a gradient is not and loss scaling can not be why. This freezes the engine: no later update
  is taken until the host has looked (``Engine.check``), so that the parameters are still those at which it happened.

Nothing here reads a value on the host but :meth:`Guard.failure`.

Source of the loss scaling: Micikevicius et al. 2018, section 3.2; constants of ``torch.amp.GradScaler``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

INITIAL_SCALE = 2.0**16
LARGEST_SCALE = 2.0**24  # without gradients nothing overflows and the scale would grow to infinity
SMALLEST_SCALE = 2.0**-14  # what still overflows here is no matter of scale
GROWTH_INTERVAL = 2000


class Outcome(NamedTuple):
    """What one objective gave: its loss and the norm of its gradient, float32 scalars."""

    loss: Tensor
    gradient_norm: Tensor


class Verdict(NamedTuple):
    """What is known of an update so far, bool scalars on the device.

    Attributes:
        take: everything was finite, and no earlier update failed.
        failed: a loss was not finite.
        overflowed: a gradient was not finite, the losses were.
        outcomes: of the objectives evaluated.
    """

    take: Tensor
    failed: Tensor
    overflowed: Tensor
    outcomes: tuple[Outcome, ...] = ()

    def after(self, outcomes: Sequence[Outcome]) -> Verdict:
        """The verdict after one more group of objectives; behind one that was not finite they see its step missing."""
        losses = torch.stack([outcome.loss for outcome in outcomes]).isfinite().all()
        gradients = torch.stack([outcome.gradient_norm for outcome in outcomes]).isfinite().all()
        return Verdict(
            self.take & losses & gradients,
            self.failed | (self.take & ~losses),
            self.overflowed | (self.take & losses & ~gradients),
            self.outcomes + tuple(outcomes),
        )


class Failure(NamedTuple):
    """The first update that was not finite, as the host reads it.

    Attributes:
        updates_ago: 1 for the update that was enqueued last.
        with_actor: which step it was.
        outcomes: objective -> (loss, norm of the gradient), in the order of evaluation.
    """

    updates_ago: int
    with_actor: bool
    outcomes: dict[str, tuple[float, float]]

    @property
    def reason(self) -> str:
        """The first objective that went wrong, with its value."""
        for name, (loss, norm) in self.outcomes.items():
            if not torch.isfinite(torch.tensor(loss)):
                return f"{name}/loss is {loss}"
            if not torch.isfinite(torch.tensor(norm)):
                return f"the gradient of {name} has norm {norm} (its loss is {loss:g})"
        raise AssertionError("every objective is finite")


class Guard:
    """The tensors that decide about updates.

    Args:
        objectives: names of all objectives, those of the critics' step first.
        device: of the engine.
        scaled: whether losses are scaled (float16).
        keep_batch: keep the batch and noise of a failed update in buffers of their own: for a device where the host
            looks only now and then, when the batch itself is long gone.
    """

    def __init__(self, objectives: Sequence[str], device: torch.device, *, scaled: bool, keep_batch: bool) -> None:
        self.objectives = tuple(objectives)
        self.scaled, self.keeps_batch = scaled, keep_batch
        self.loss_scale = torch.full((), INITIAL_SCALE, device=device)
        self.good_steps = torch.zeros((), device=device)  # since the scale changed
        self.skipped_steps = torch.zeros((), device=device)
        self.frozen = torch.zeros((), dtype=torch.int64, device=device)  # updates since a failure, that one included
        self.report = torch.zeros(len(self.objectives), 2, device=device)  # loss and gradient norm of the failure
        self.failed_with_actor = torch.zeros((), dtype=torch.bool, device=device)
        self.kept: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Tensor]:
        """The loss scale and its counts; empty where losses are not scaled."""
        if not self.scaled:
            return {}
        tensors = {"loss_scale": self.loss_scale, "good_steps": self.good_steps, "skipped_steps": self.skipped_steps}
        return {name: tensor.clone() for name, tensor in tensors.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy into place; what is missing (a checkpoint of another precision) stays. Forgets a failure."""
        for name, value in state.items():
            getattr(self, name).copy_(value)
        self.frozen.zero_()

    def prepare_to_keep(self, batch: dict[str, Any], noise: dict[str, Any]) -> None:
        """Make the buffers for a failed update's batch and noise, once."""
        if self.keeps_batch and not self.kept:
            self.kept = {"batch": _zeros(batch), "noise": _zeros(noise)}

    def metrics(self) -> dict[str, Tensor]:
        """``engine/loss_scale`` and ``engine/skipped_steps`` where losses are scaled."""
        if not self.scaled:
            return {}
        return {"engine/loss_scale": self.loss_scale.clone(), "engine/skipped_steps": self.skipped_steps.clone()}

    def begin(self) -> Verdict:
        """The verdict at the start of an update."""
        awake = self.frozen == 0
        return Verdict(awake, torch.zeros_like(awake), torch.zeros_like(awake))

    def settle(self, verdict: Verdict, given: dict[str, Any], *, with_actor: bool) -> None:
        """End an update: adapt the scale, remember a failure. No host read, no branch on a value.

        Args:
            verdict: on all of its objectives.
            given: its ``batch`` and ``noise``.
            with_actor: which step it was.
        """
        take, failed, overflowed, outcomes = verdict
        if not outcomes:
            return
        hopeless = self.loss_scale <= SMALLEST_SCALE if self.scaled else torch.ones_like(take)
        failed = failed | (overflowed & hopeless)
        if self.scaled:
            self._rescale(take, overflowed & ~failed)
        self._remember(outcomes, given, failed, with_actor)
        self.frozen.add_((failed | (self.frozen > 0)).to(self.frozen.dtype))

    def _rescale(self, taken: Tensor, skipped: Tensor) -> None:
        good = self.good_steps + 1
        grown = taken & (good >= GROWTH_INTERVAL)
        scale = torch.where(grown, (2 * self.loss_scale).clamp(max=LARGEST_SCALE), self.loss_scale)
        self.loss_scale.copy_(torch.where(skipped, (0.5 * self.loss_scale).clamp(min=SMALLEST_SCALE), scale))
        self.good_steps.copy_(torch.where(skipped | grown, 0.0, torch.where(taken, good, self.good_steps)))
        self.skipped_steps.add_(skipped.to(self.skipped_steps.dtype))

    def _remember(self, outcomes: Sequence[Outcome], given: dict[str, Any], first: Tensor, with_actor: bool) -> None:
        rows = torch.stack([torch.stack(outcome) for outcome in outcomes])
        absent = len(self.objectives) - len(rows)  # the critics' step has no actor
        rows = torch.nn.functional.pad(rows, (0, 0, 0, absent))
        self.report.copy_(torch.where(first, rows, self.report))
        self.failed_with_actor.copy_(first & with_actor | ~first & self.failed_with_actor)
        if self.keeps_batch:
            _keep(self.kept, given, first)

    def failure(self) -> Failure | None:
        """The failure since the last time, which is then forgotten; waits for the device."""
        frozen = int(self.frozen)
        if not frozen:
            return None
        self.frozen.zero_()
        with_actor = bool(self.failed_with_actor)
        outcomes = {name: (row[0], row[1]) for name, row in zip(self.objectives, self.report.tolist(), strict=True)}
        return Failure(frozen, with_actor, outcomes)


def _zeros(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _zeros(value) for key, value in tree.items()}
    return torch.zeros_like(tree, memory_format=torch.contiguous_format)


def _keep(kept: Any, given: Any, first: Tensor) -> None:
    for key, value in kept.items():
        if isinstance(value, dict):
            _keep(value, given[key], first)
        else:
            value.copy_(torch.where(first, given[key], value))
