"""What every package is asked for, and the check that it does the same work as the others."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from benchmarks.peers.update import task
from benchmarks.peers.update.task import Arrays, Transitions


class Learner:
    """A package's SAC on the common task. Libraries are imported where they are used.

    The docstring of a subclass says how the package is set; the report shows it.

    Attributes:
        modules: that an interpreter must have to run it.
        package: distribution whose version is reported.
        updates: gradient steps of one call.
    """

    modules: tuple[str, ...] = ()
    package = ""
    updates = 1

    def fill(self, rows: Transitions) -> None:
        """Put ``task.CAPACITY`` transitions into the replay, over those that are there."""
        raise NotImplementedError

    def load(self, weights: Arrays) -> None:
        """Take weights by the names of ``task.weights``."""
        raise NotImplementedError

    def weights(self) -> Arrays:
        """Copies of the weights as they are now."""
        raise NotImplementedError

    def call(self) -> Any:
        """Draw a batch and update critics, actor, temperature and targets ``updates`` times; done when it returns."""
        raise NotImplementedError

    def critic_loss(self) -> float | None:
        """Mean squared error over critics and batch of the last call; None where it is not to be had."""
        return None

    def gflop(self) -> float | None:
        """Matrix products of one update, in 10^9 operations; None where they cannot be counted."""
        return None


class Check(NamedTuple):
    """What :func:`same_work` found; ``wrong`` is empty when the work is the same."""

    parameters: int
    critic_loss: float | None
    gflop: float | None
    wrong: tuple[str, ...]


def same_work(learner: Learner, least_gflop: float = 0.0) -> Check:
    """One call from known weights on known data, compared with the NumPy result of ``task.expected``.

    Looked at: how many parameters are trained; that every network moves, by what Adam's step is; the critics' loss;
    every weight of the critics; the targets' average; and that at least ``least_gflop`` of matrix products was run.
    Of a call that makes several updates the loss and the exact weights are not known; it must have moved on instead.
    """
    learner.fill(task.one_transition())
    learner.load(task.weights())
    before = learner.weights()
    learner.call()
    after, loss = learner.weights(), learner.critic_loss()
    wrong = []
    count = task.parameters(before)
    if count != task.parameters(task.weights()):
        wrong.append(f"{count} trained parameters")
    steps = {name: float(np.abs(after[name].astype(np.float64) - before[name]).max()) for name in after}
    rate = task.LEARNING_RATE
    for name, step in steps.items():
        least, most = (0.9, 1.1) if learner.updates == 1 else (0.3 * learner.updates, 1.1 * learner.updates)
        if task.trained(name) and not least * rate < step < most * rate:
            wrong.append(f"{name} moved by {step / rate:.3g} learning rates")
    if learner.updates == 1:
        wrong += _against_reference(before, after, loss)
    elif not all(steps[name] > 0 for name in steps if not task.trained(name)):
        wrong.append("a target did not move")
    gflop = learner.gflop()
    if gflop is not None and gflop < least_gflop:
        wrong.append(f"{gflop:.3g} GFLOP an update, fewer than {least_gflop:.3g}")
    return Check(count, loss, gflop, tuple(wrong))


def _against_reference(before: Arrays, after: Arrays, loss: float | None) -> list[str]:
    wrong, reference, rate = [], task.expected(before), task.LEARNING_RATE
    if loss is not None and not abs(loss / reference.critic_loss - 1) < 1e-3:
        wrong.append(f"critic loss {loss:.5g}, not {reference.critic_loss:.5g}")
    for name, value in reference.critics.items():
        apart = float(np.abs(after[name] - value).mean()) / rate
        if not apart < 0.02:
            wrong.append(f"{name} is {apart:.2g} learning rates from where it should be")
        target = f"target_{name}"
        averaged = (1 - task.TAU) * before[target].astype(np.float64) + task.TAU * after[name]
        if not np.abs(after[target] - averaged).max() < 0.01 * task.TAU * rate + 1e-6 * np.abs(averaged).max():
            wrong.append(f"{target} is not the average with tau {task.TAU}")
    return wrong


def torch_gflop(learner: Learner) -> float:
    """The matrix products of one call of a learner that runs torch eagerly."""
    from benchmarks.products import MatrixProducts

    products = MatrixProducts()
    with products:
        learner.call()
    return products.flops / 1e9 / learner.updates
