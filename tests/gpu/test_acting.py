"""Acting from a captured policy, and snapshots that are published while the device is busy."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.engine import Engine, EngineConfig, PolicyPublisher, PolicyRunner

pytestmark = pytest.mark.gpu


def test_a_captured_policy_acts_as_the_eager_one_and_follows_its_parameters(device):
    torch.manual_seed(0)
    agent = hybrid_sac(5)
    agent.networks.to(device)
    execution = "graphed" if device.type == "cuda" else "compiled"
    eager = PolicyRunner(agent, seed=3, device=device)
    fast = PolicyRunner(agent, seed=3, device=device, execution=execution, strict=True)
    observation = {"state": np.linspace(-1, 1, 5).astype(np.float32)}
    fast.warm_up(observation)
    publisher = PolicyPublisher()
    previous = None
    for updates in range(3):
        mode = fast.act(observation, deterministic=True)
        np.testing.assert_allclose(mode, eager.act(observation, deterministic=True), atol=1e-5)
        np.testing.assert_allclose(fast.act(observation), eager.act(observation), atol=1e-5)
        assert previous is None or not np.array_equal(mode, previous)
        previous = mode
        with torch.no_grad():
            for parameter in agent.networks["actor"].parameters():
                parameter.add_(0.05)
        publisher.publish(agent.networks, agent.policy_networks, updates)
        wait_for(lambda: fast.refresh(publisher))
        wait_for(lambda: eager.refresh(publisher))


def test_an_engine_acts_by_a_captured_policy_with_the_parameters_of_now(device):
    torch.manual_seed(0)
    agent = hybrid_sac(5)
    execution = "graphed" if device.type == "cuda" else "compiled"
    eager = Engine(agent, seed=3, device=device)
    fast = Engine(agent, EngineConfig(execution, strict=True), seed=3, device=device)
    for turn in range(3):
        seen = {"state": torch.full((1, 5), 0.1 * turn, device=device)}
        for deterministic in (False, True):
            found = fast.act(seen, deterministic)
            assert found.device.type == "cpu"
            torch.testing.assert_close(found, eager.act(seen, deterministic), rtol=0, atol=1e-5)
        with torch.no_grad():
            for parameter in agent.networks["actor"].parameters():
                parameter.add_(0.05)


@pytest.mark.parametrize("reader", ["cpu", None])
def test_a_reader_never_sees_two_steps_of_a_busy_learner(device, reader):
    agent = hybrid_sac(5)
    agent.networks.to(device)
    parameters = list(agent.networks["actor"].parameters())
    publisher = PolicyPublisher(reader)
    runner = PolicyRunner(agent, device=reader or device)
    work = torch.randn(1000, 1000, device=device)
    stop = threading.Event()

    def learn() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            work.matmul(work)  # the device is behind the host
            with torch.no_grad():
                for parameter in parameters:
                    parameter.fill_(version)
            publisher.publish(agent.networks, ("actor",), updates=version)

    thread = threading.Thread(target=learn)
    thread.start()
    seen, deadline = [0], time.monotonic() + 120
    try:
        while len(seen) < 50 and time.monotonic() < deadline:
            if runner.refresh(publisher):
                own = runner._stream
                if own is not None:
                    own.synchronize()
                values = {v for p in runner._networks["actor"].parameters() for v in p.unique().tolist()}
                assert values == {float(runner.updates)}
                assert runner.version > seen[-1]
                seen.append(runner.version)
    finally:
        stop.set()
        thread.join()
    assert len(seen) >= 50


def wait_for(happens) -> None:
    deadline = time.monotonic() + 60
    while not happens():
        assert time.monotonic() < deadline
