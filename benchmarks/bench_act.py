"""The latency of one action: ``PolicyRunner.act``, NumPy observation in, NumPy action out, on one thread or several.

Every call is timed on the host by itself, because what a robot waits for is the slow call: the table has median and
99th percentile over all calls of all rounds beside the median of the rounds. The CUDA rows have not yet been run.
"""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch._inductor.utils import fresh_cache

from benchmarks.suite import Run, Work, case, full, normal
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import Agent
from serl_fast.engine import PolicyRunner
from serl_fast.engine.config import Execution

STATE, ACTION = 32, 7
TOLERANCE = 1e-3  # of an action, in units of half its range; rounding differs
EXECUTIONS: tuple[Execution, ...] = ("eager", "compiled", "graphed")
CAMERAS = ("front", "wrist")


def _state() -> Agent:
    return sac(STATE, ACTION, config=SACConfig(proprioception_dim=None))


def _hybrid() -> Agent:
    return hybrid_sac(STATE, 1)


def _cameras() -> Agent:
    return hybrid_sac(STATE, 1, CAMERAS)


AGENTS: dict[str, Callable[[], Agent]] = {"state": _state, "hybrid": _hybrid, "cameras": _cameras}
"""SAC from a state; hybrid SAC, which has a gripper to choose too; the same from two cameras by a frozen ResNet-10."""


@case("act", variants=EXECUTIONS, baseline="eager", title="one action, {agent}, {threads} thread(s)")
@pytest.mark.parametrize("threads", [1, pytest.param(2, marks=full), pytest.param(4, marks=full)])
@pytest.mark.parametrize("agent", list(AGENTS))
def act(run: Run, agent: str, threads: int) -> Work:
    """A sampled action; the parameters stay where they are."""
    work = Work({}, unit="actions")
    if threads > 1 and run.device != "cpu":
        pytest.skip("threads act on a CPU")
    if threads > (most := torch.get_num_threads()):
        pytest.skip(f"torch has {most} thread(s) here")
    torch.manual_seed(0)
    observation = _observation(agent)
    built = AGENTS[agent]()
    modes: dict[str, np.ndarray] = {}
    torch._dynamo.reset()  # nothing of an earlier case or run is reused: it would not be the time to compile
    with fresh_cache() if run.timed else contextlib.nullcontext():
        for execution in EXECUTIONS:
            if reason := _missing(run, agent, execution):
                work.missing[execution] = reason
                continue
            runner = PolicyRunner(
                built, device=run.device, execution=execution, strict=True, threads=threads, only_where_faster=False
            )
            extra = work.extra[execution] = {}
            start = time.perf_counter()
            runner.warm_up(observation)
            if execution != "eager":
                # What is captured was compiled for the execution before.
                extra["compile_s" if execution == "compiled" else "capture_s"] = time.perf_counter() - start
            modes[execution] = runner.act(observation, deterministic=True)
            work.functions[execution] = Latency(runner, observation, extra)
    require_same_actions(modes)
    return work


@case("act", variants=("1 thread", "all threads"), title="one action, {agent}, eager, while other processes spin")
@pytest.mark.parametrize("agent", [pytest.param("state", marks=full), pytest.param("cameras", marks=normal)])
def act_under_load(run: Run, agent: str) -> Work:
    """As many processes as there are cores keep them busy, as a simulation and a learner do."""
    if run.device != "cpu":
        pytest.skip("threads act on a CPU")
    observation, built, cores = _observation(agent), AGENTS[agent](), torch.get_num_threads()
    work = Work({}, unit="actions")
    for variant, threads in {"1 thread": 1, "all threads": cores}.items():
        runner = PolicyRunner(built, threads=threads)
        runner.warm_up(observation)
        work.extra[variant] = {}
        work.functions[variant] = Latency(runner, observation, work.extra[variant])
    spinning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(cores)]

    def stop() -> None:
        for child in spinning:
            child.kill()
            child.wait()

    work.close = stop
    return work


def require_same_actions(modes: dict[str, np.ndarray]) -> None:
    """Raise unless every execution acts as the first one does."""
    first, *others = modes
    for other in others:
        if not np.allclose(modes[first], modes[other], rtol=TOLERANCE, atol=TOLERANCE):
            raise AssertionError(f"{other} acts otherwise than {first}: {modes[other]} and {modes[first]}")


class Latency:
    """An action that is timed every time; percentiles of all calls so far are kept in ``extra``.

    Args:
        runner: warmed up; an action is on the host when it returns.
        observation: NumPy arrays.
        extra: where "p50_s" and "p99_s" are put, seconds.
    """

    def __init__(self, runner: PolicyRunner, observation: dict[str, np.ndarray], extra: dict[str, Any]) -> None:
        self.runner, self.observation, self.extra = runner, observation, extra
        self.seconds: list[float] = []

    def seconds_per_call(self, seconds: float) -> float:
        """The mean over calls for ``seconds``, at least one."""
        first, end = len(self.seconds), time.perf_counter() + seconds
        while True:
            start = time.perf_counter()
            self.runner.act(self.observation)
            stop = time.perf_counter()
            self.seconds.append(stop - start)
            if stop >= end:
                break
        self.extra["p50_s"], self.extra["p99_s"] = map(float, np.percentile(self.seconds, [50, 99]))
        self.extra["calls"] = len(self.seconds)
        return float(np.mean(self.seconds[first:]))


def _observation(agent: str) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    observation = {"state": random.normal(size=STATE).astype(np.float32)}
    if agent == "cameras":
        observation |= {key: random.integers(0, 256, (128, 128, 3), dtype=np.uint8) for key in CAMERAS}
    return observation


def _missing(run: Run, agent: str, execution: Execution) -> str:
    """Why an execution is not measured; empty if it is."""
    if execution == "graphed" and not run.device.startswith("cuda"):
        return "CUDA graphs need a CUDA device"
    if execution == "compiled" and agent == "cameras" and run.device == "cpu" and not run.includes("normal"):
        return "takes long to compile; measured without --quick (the actor stays eager here by itself)"
    return ""
