"""Snapshots are numbered, complete and never torn."""

import copy
import threading
import time

import numpy as np
import pytest
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.engine import PolicyPublisher, PolicyRunner
from tests.engine.deferred_cuda import DeferredCuda

ELSEWHERE = "cpu:0"  # to torch another device than "cpu", with the same memory


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


def fill(parameters, value: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.fill_(value)


def values_of(snapshot) -> set[float]:
    """All numbers of a snapshot but the state's statistics, which nobody fills."""
    return {v for name, t in snapshot.tensors.items() if "normalizer" not in name for v in t.unique().tolist()}


@pytest.mark.parametrize("elsewhere", [False, True])
def test_memory_is_used_again_when_the_last_holder_is_gone(elsewhere):
    agent = hybrid_sac(3)
    publisher = PolicyPublisher(ELSEWHERE if elsewhere else None)
    held = publisher.publish(agent.networks, agent.policy_networks, updates=1)
    assert (held.tensors is held._slot.staged) is not elsewhere
    places = set()
    for updates in range(2, 20):
        snapshot = publisher.publish(agent.networks, agent.policy_networks, updates)
        places.add(next(iter(snapshot.tensors.values())).data_ptr())
        del snapshot
    assert len(places) == 2  # one is the newest while the other is written
    assert next(iter(held.tensors.values())).data_ptr() not in places


def test_a_transfer_that_is_under_way_hides_the_snapshot():
    agent, cuda = hybrid_sac(3), DeferredCuda()
    publisher = PolicyPublisher(ELSEWHERE, cuda)
    parameters = list(agent.networks["actor"].parameters())
    fill(parameters, 1)
    publisher.publish(agent.networks, ("actor",), updates=1)
    assert publisher.newest() is None
    cuda.streams[0].run()
    first = publisher.newest()
    fill(parameters, 2)
    publisher.publish(agent.networks, ("actor",), updates=2)
    fill(parameters, 3)
    publisher.publish(agent.networks, ("actor",), updates=3)
    assert publisher.newest() is first
    cuda.streams[0].run(until=2)  # the second has arrived, the third has not
    assert publisher.newest(after=1).updates == 2
    assert values_of(publisher.newest()) == {2.0}
    assert values_of(first) == {1.0}
    cuda.streams[0].run()
    assert values_of(publisher.newest(after=2)) == {3.0}


def test_a_slot_is_not_written_before_a_late_reader_has_read_it():
    """The reader's copy is enqueued on its own stream; the learner's next copy into the slot must come after it."""
    agent, cuda = hybrid_sac(3), DeferredCuda()
    publisher, mine = PolicyPublisher(None, cuda), copy.deepcopy(agent.networks)
    parameters, copied = list(agent.networks["actor"].parameters()), list(mine["actor"].parameters())
    late = cuda.Stream()
    for version in range(1, 6):
        fill(parameters, version)
        snapshot = publisher.publish(agent.networks, ("actor",), updates=version)
        if version == 1:
            with cuda.stream(late):
                snapshot.load_into(mine)
        del snapshot
    late.run()
    assert {v for p in copied for v in p.unique().tolist()} == {1.0}


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_reader_never_sees_two_steps_nor_goes_back(asynchronous):
    agent = hybrid_sac(3)
    cuda = DeferredCuda() if asynchronous else None
    publisher = PolicyPublisher(ELSEWHERE if asynchronous else None, cuda)
    runner = PolicyRunner(agent)
    parameters = list(agent.networks["actor"].parameters())
    stop = threading.Event()

    def learn() -> None:
        version = 0
        while not stop.is_set():
            version += 1
            fill(parameters, version)
            publisher.publish(agent.networks, ("actor",), updates=version)
            if cuda is not None and version % 3 == 0:  # the device is late, and done with some of it
                cuda.streams[0].run()

    thread = threading.Thread(target=learn)
    thread.start()
    seen, deadline = [0], time.monotonic() + 120
    try:
        while (seen[-1] < 500 or len(seen) < 50) and time.monotonic() < deadline:
            if runner.refresh(publisher):
                values = {v for p in runner._networks["actor"].parameters() for v in p.unique().tolist()}
                assert values == {float(runner.version)} == {float(runner.updates)}
                assert runner.version > seen[-1]
                seen.append(runner.version)
    finally:
        stop.set()
        thread.join()
    assert seen[-1] >= 500
    assert len(seen) >= 50


def test_the_frozen_trunk_is_not_published():
    agent = build_agent(3, 7, 1, ("front",), SACConfig(encoder="resnet-pretrained"))
    published = PolicyPublisher().publish(agent.networks, agent.policy_networks, updates=0)
    frozen = {name for name, p in agent.networks.named_parameters() if not p.requires_grad}
    assert frozen
    assert not frozen & published.tensors.keys()
