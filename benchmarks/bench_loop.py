"""The whole of ``train_hybrid`` on the simulated PickCube from states: updates per second, and the time to success.

python -m benchmarks --suite loop

Each variant is the command in a process of its own, with the flags of ``make train``: actor, scripted operator, stores,
learner and log. Processes stand still (SIGSTOP) while another one is measured, so that they too run in turns.
"""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path

import pytest
from torch._inductor.utils import fresh_cache

from benchmarks.suite import Run, Work, case, normal
from benchmarks.training import Flags, Training, make_train, needed, run_to_success

EXECUTIONS = ("eager", "compiled", "graphed")
SETTINGS: dict[str, Flags] = {
    "hil_serl": {},
    "rlpd": {"critic_ensemble_size": "10", "critic_subsample_size": "2", "cta_ratio": "20"},
}
ENDLESS: Flags = {"max_steps": "100000000", "eval_interval": "0", "log_interval": "20", "strict_execution": "true"}
SMALL: Flags = {
    "batch_size": "8",
    "hidden_widths": ("16", "16"),
    "training_starts": "20",
    "log_interval": "5",
    "threads": "1",
}
SECONDS = 0.5  # of a round, at least: the log is read, which has a row now and then
DEMONSTRATIONS = 20


@case("loop", variants=EXECUTIONS, baseline="eager", title="train_hybrid, PickCube from states, {settings}")
@pytest.mark.parametrize("settings", ["hil_serl", pytest.param("rlpd", marks=normal)])
def train(run: Run, settings: str) -> Work:
    """Updates per second; environment steps per second are in the notes."""
    reason = needed()
    if reason:
        return Work({}, missing=dict.fromkeys(EXECUTIONS, reason))
    left_out = {} if run.timed else {"compiled": "compiled from the scale quick on"}
    if run.device == "cpu":
        left_out["graphed"] = "captures a CUDA graph and this is cpu"
    flags = {**make_train(run.device, DEMONSTRATIONS if run.timed else 1), **SETTINGS[settings], **ENDLESS}
    flags |= {} if run.timed else SMALL
    folder = tempfile.TemporaryDirectory(prefix="bench_loop_")
    started: dict[str, Training] = {}
    work = Work({}, unit="updates", missing=left_out)

    def close() -> None:
        for name, training in started.items():
            training.close()
            work.extra.setdefault(name, {})["note"] = training.note()
        folder.cleanup()

    work.close = close
    try:
        # One starts after the other, and what it compiles is kept for nobody: so long does a start take.
        for name in (each for each in EXECUTIONS if each not in left_out):
            with fresh_cache(dir=folder.name, delete=False) if run.timed else contextlib.nullcontext():
                training = started[name] = Training(Path(folder.name) / name, {**flags, "execution": name}, SECONDS)
            try:
                work.extra[name] = {"startup_s": training.start_up()}
                work.functions[name] = training
            except RuntimeError as error:
                work.missing[name] = f"failed: {error}"
    except BaseException:
        close()
        raise
    return work


@case("loop", variants=("default",), title="PickCube from states to 95 % success, one seed after the other")
def time_to_success(run: Run) -> Work:
    """From the start of the command to an evaluation, and a longer one, in which 95 % of the episodes succeed.

    By the execution that the command chooses itself.
    """
    reason = needed()
    if not reason and run.scale in ("quick", "normal"):
        reason = "three runs of some minutes: --full measures it"
    if reason:
        return Work({}, missing={"default": reason})
    return Work({"default": ToSuccess(run)}, unit="runs")


class ToSuccess:
    """A training run for each call, each with the next seed."""

    def __init__(self, run: Run) -> None:
        self._run, self._seed = run, 0

    def seconds_per_call(self, seconds: float) -> float:
        """Of a whole run, however long it takes.

        Raises:
            RuntimeError: it did not get there.
        """
        run = self._run
        flags = {**make_train(run.device, DEMONSTRATIONS if run.timed else 1), "seed": str(self._seed)}
        flags |= {} if run.timed else {**SMALL, "max_steps": "10", "execution": "eager"}
        took, reached = run_to_success(flags)
        if run.timed and not reached:
            raise RuntimeError(f"seed {self._seed} did not reach 95 % within {flags['max_steps']} updates")
        self._seed += 1
        return took
