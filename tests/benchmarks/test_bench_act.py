"""The acting benchmarks: percentiles are over single calls, and what is not measured says why."""

from __future__ import annotations

import os
import types

import numpy as np
import pytest

from benchmarks import bench_act
from benchmarks.bench_act import Latency, require_same_actions
from benchmarks.suite import REGISTRY, Run

TINY = Run()


class Clock:
    """Stands still but for what acting takes."""

    def __init__(self, durations):
        self.now, self.durations = 0.0, iter(durations)

    def perf_counter(self):
        return self.now

    def act(self, observation):
        self.now += next(self.durations)


def test_percentiles_are_over_all_calls_and_a_round_is_the_mean_of_its_own(monkeypatch):
    clock = Clock([1.0] * 99 + [31.0] + [2.0] * 100)
    monkeypatch.setattr(bench_act, "time", clock)
    extra = {}
    latency = Latency(types.SimpleNamespace(act=clock.act), {}, extra)
    assert latency.seconds_per_call(130.0) == pytest.approx(1.3)
    assert (extra["p50_s"], extra["calls"]) == (1.0, 100)
    assert extra["p99_s"] == pytest.approx(np.percentile([1.0] * 99 + [31.0], 99))
    assert latency.seconds_per_call(0) == 2.0
    assert extra["calls"] == 101
    assert latency.seconds_per_call(198.0) == 2.0
    assert extra["p50_s"] == 2.0


def test_executions_that_act_otherwise_are_caught():
    require_same_actions({"eager": np.ones(3), "compiled": np.full(3, 1.0005)})
    require_same_actions({"eager": np.ones(3)})
    with pytest.raises(AssertionError, match="graphed acts otherwise than eager"):
        require_same_actions({"eager": np.ones(3), "compiled": np.ones(3), "graphed": np.full(3, 1.01)})


@pytest.mark.parametrize(
    ("run", "agent", "execution", "said"),
    [
        (Run("cpu"), "state", "graphed", "CUDA"),
        (Run("cuda"), "state", "graphed", ""),
        (Run("cpu", "quick"), "cameras", "compiled", "without --quick"),
        (Run("cpu", "normal"), "cameras", "compiled", ""),
        (Run("cuda", "quick"), "cameras", "compiled", ""),
        (Run("cpu"), "hybrid", "compiled", ""),
    ],
)
def test_what_is_not_measured_says_why(run, agent, execution, said):
    reason = bench_act._missing(run, agent, execution)
    assert said in reason
    assert bool(said) == bool(reason)


def test_the_policies_act_on_their_observations(monkeypatch):
    monkeypatch.setattr(bench_act, "EXECUTIONS", ("eager",))
    for agent, actions in (("state", 7), ("hybrid", 7)):
        work = REGISTRY[f"act/act[{agent}-1]"].build(TINY)
        latency = work.functions["eager"]
        assert latency.runner.act(latency.observation).shape == (actions,)
        assert latency.runner.threads == 1
        assert latency.seconds_per_call(0) > 0
        assert set(work.extra["eager"]) == {"p50_s", "p99_s", "calls"}


def test_what_an_earlier_run_compiled_is_not_found(monkeypatch):
    caches, resets = {}, []

    class Runner:
        def __init__(self, agent, **options):
            self.execution = options["execution"]

        def warm_up(self, observation):
            caches[self.execution] = os.environ.get("TORCHINDUCTOR_CACHE_DIR")

        def act(self, observation, deterministic=False):
            return np.zeros(7)

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/kept")
    monkeypatch.setattr(bench_act, "PolicyRunner", Runner)
    monkeypatch.setattr(bench_act.torch._dynamo, "reset", lambda: resets.append(1))
    for _ in range(2):
        work = REGISTRY["act/act[state-1]"].build(Run(scale="quick"))
        assert set(work.extra["compiled"]) == {"compile_s"}
        assert caches["compiled"] != "/kept"
        assert not os.path.exists(caches["compiled"])
    assert len(resets) == 2


def test_the_processes_that_keep_the_cores_busy_are_ended(monkeypatch):
    started = []

    def start(*given):
        started.append(types.SimpleNamespace(kill=lambda: None, wait=lambda: ended.append(1)))
        return started[-1]

    ended = []
    monkeypatch.setattr(bench_act.subprocess, "Popen", start)
    work = REGISTRY["act/act_under_load[state]"].build(TINY)
    assert work.functions["1 thread"].runner.threads == 1
    assert work.functions["all threads"].runner.threads == len(started) == bench_act.torch.get_num_threads()
    work.close()
    assert len(ended) == len(started)
