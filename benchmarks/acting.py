"""How long one action takes, eager and compiled: python -m benchmarks.acting [--threads 1] [--seconds 2].

A call is ``PolicyRunner.act``: the observation as NumPy arrays in, the action as an array out. The executions take
turns; what is printed are median and 99th percentile over all calls. On a CUDA device "graphed" is measured as well.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.sac_config import SACConfig
from serl_fast.core import Agent
from serl_fast.engine import PolicyRunner
from serl_fast.engine.config import Execution

ROUNDS = 5


class Forced(PolicyRunner):
    """Compiles even where the runner would not."""

    def _keep_eager_where_faster(self, observation: dict[str, np.ndarray]) -> None:
        """Keep what was asked for."""


def policies() -> dict[str, tuple[Agent, dict[str, np.ndarray]]]:
    """Agents of the size of the task's, and an observation for each."""
    random = np.random.default_rng(0)
    torch.manual_seed(0)
    state = {"state": random.normal(size=32).astype(np.float32)}
    cameras = {key: random.integers(0, 256, (128, 128, 3), dtype=np.uint8) for key in ("front", "wrist")}
    return {
        "state 32, 2 x 256": (build_agent(32, 7, 1, (), SACConfig(proprioception_dim=None)), state),
        "2 cameras 128 x 128, frozen ResNet-10": (build_agent(32, 7, 1, tuple(cameras), SACConfig()), state | cameras),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each execution and round")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    executions: list[Execution] = ["eager", "compiled"]
    if given.device.startswith("cuda"):
        executions.append("graphed")
    print(f"torch {torch.__version__}, {given.device}, {torch.get_num_threads()} thread(s)")
    for name, (agent, observation) in policies().items():
        runners = {each: Forced(agent, device=given.device, execution=each) for each in executions}
        for each, runner in runners.items():
            start = time.perf_counter()
            runner.warm_up(observation)
            print(f"{name}: {each} warmed up in {time.perf_counter() - start:.1f} s")
        times: dict[Execution, list[float]] = {each: [] for each in executions}
        for _ in range(ROUNDS):
            for each, runner in runners.items():
                measure(runner, observation, given.seconds, times[each])
        for each, values in times.items():
            median, late = np.percentile(values, [50, 99]) * 1e6
            print(f"{name}: {each} ({runners[each].execution}) {median:.0f} us, 99 % within {late:.0f} us")


def measure(runner: PolicyRunner, observation: dict[str, np.ndarray], seconds: float, into: list[float]) -> None:
    """Act for ``seconds`` and add the duration of every call to ``into``."""
    runner.act(observation)
    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        runner.act(observation)
        into.append(time.perf_counter() - start)


if __name__ == "__main__":
    main()
