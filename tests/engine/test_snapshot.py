"""Snapshots are numbered, complete and never torn."""

import threading

import numpy as np
import torch

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.engine import PolicyPublisher, PolicyRunner


def test_versions_count_up_and_old_ones_are_not_given_again():
    agent, publisher = hybrid_sac(3), PolicyPublisher()
    assert publisher.newest() is None
    first = publisher.publish(agent.networks, agent.policy_networks, updates=50)
    assert (first.version, first.updates) == (1, 50)
    assert publisher.newest() is first
    assert publisher.newest(after=1) is None
    assert publisher.publish(agent.networks, agent.policy_networks, updates=100).version == 2


def test_a_runner_keeps_its_parameters_until_it_is_refreshed():
    torch.manual_seed(0)
    agent, publisher = hybrid_sac(3), PolicyPublisher()
    runner = PolicyRunner(agent)
    observation = {"state": np.ones(3, np.float32)}
    before = runner.act(observation, deterministic=True)
    with torch.no_grad():
        for parameter in agent.networks["actor"].parameters():
            parameter.add_(0.5)
    np.testing.assert_array_equal(runner.act(observation, deterministic=True), before)
    publisher.publish(agent.networks, agent.policy_networks, updates=1)
    assert runner.refresh(publisher)
    assert not runner.refresh(publisher)
    after = runner.act(observation, deterministic=True)
    batch = {"state": torch.ones(1, 3)}
    np.testing.assert_array_equal(after, agent.policy(agent.networks, batch, None)[0].detach().numpy())
    assert not np.array_equal(after, before)


def test_no_snapshot_mixes_two_steps():
    agent, publisher = hybrid_sac(3), PolicyPublisher()
    parameters = [p for name in agent.policy_networks for p in agent.networks[name].parameters()]
    stop = threading.Event()

    def learn() -> None:
        step = 0
        while not stop.is_set():
            step += 1
            with torch.no_grad():
                for parameter in parameters:
                    parameter.fill_(step)
            publisher.publish(agent.networks, agent.policy_networks, updates=step)

    thread = threading.Thread(target=learn)
    thread.start()
    version = 0
    try:
        while version < 200:
            snapshot = publisher.newest(after=version)
            if snapshot is None:
                continue
            version = snapshot.version
            values = {v for n, t in snapshot.tensors.items() if "normalizer" not in n for v in t.unique().tolist()}
            assert values == {float(snapshot.updates)}
    finally:
        stop.set()
        thread.join()
