"""Ranks that follow hold the same stores, take the same updates, and end when rank 0 does.

The ranks are threads here, but for one run by torchrun.
"""

import copy
import os
import subprocess
import sys
import threading
import time
import types

import numpy as np
import pytest
import torch

from serl_fast import follow as follow_module
from serl_fast import record_demos
from serl_fast.checkpoint import latest_checkpoint, load_checkpoint
from serl_fast.engine import Engine, NonFiniteLossError, PolicyPublisher, PolicyRunner
from serl_fast.engine.ranks import RankError, Ranks
from serl_fast.follow import SharedLearner, checksum
from serl_fast.loop import Actor, run_synchronous, run_threaded
from tests.test_loop import Rig, all_rows


class Meeting:
    """Where the threads exchange values."""

    def __init__(self, size: int) -> None:
        self.size, self.changed, self.over = size, threading.Condition(), False
        self.done, self.given = [0] * size, {}  # exchanges of each rank; values by exchange and rank

    def exchange(self, rank: int, value) -> list:
        with self.changed:
            number, self.done[rank] = self.done[rank], self.done[rank] + 1
            self.given.pop(number - 1, None)
            found = self.given.setdefault(number, {})
            found[rank] = value
            self.changed.notify_all()
            self.changed.wait_for(lambda: len(found) == self.size or self.over, timeout=120)
        if len(found) < self.size:
            raise RankError("another rank left")
        return [found[each] for each in range(self.size)]

    def end(self) -> None:
        with self.changed:
            self.over = True
            self.changed.notify_all()


class ThreadRanks(Ranks):
    """The ranks of threads: the exchanges that ``serl_fast.engine.ranks`` makes through torch."""

    def __init__(self, rank: int, meeting: Meeting) -> None:
        self.rank, self.size, self._meeting = rank, meeting.size, meeting
        self.orders: list[int] = []
        self.blocks: list[int] = []  # updates of every order

    def average(self, tensors):
        mine = [tensor.clone() for tensor in tensors]  # the other may be slower than this rank's next step
        columns = zip(*self._meeting.exchange(self.rank, mine), strict=True)
        return [torch.stack(column).mean(0) for column in columns]

    def mean(self, values):
        found = self._meeting.exchange(self.rank, values)
        return {name: sum(each[name] for each in found) / self.size for name in values}

    def gather(self, number):
        return self._meeting.exchange(self.rank, number)

    def broadcast(self, value=None):
        return self._meeting.exchange(self.rank, value)[0]

    def header(self, numbers):
        found = self._meeting.exchange(self.rank, numbers)[0]
        self.orders.append(found[0])
        self.blocks.append(found[1])
        return found

    def close(self):
        self._meeting.end()


class Team:
    """Rank 0 with its actor, and one that follows in a thread."""

    def __init__(self, toy_arm, **settings) -> None:
        self.rigs, self.learners, self.inspected = [], [], []
        meeting = Meeting(2)
        for rank in range(2):
            # Other weights and seeds than rank 0's: what is equal in the end was made equal.
            rig = Rig(toy_arm(intervals=[(3, 6)], goal=99), **settings)
            ranks = ThreadRanks(rank, meeting)
            rig.engine = Engine(ranks.share_noise(rig.engine.agent, torch.device("cpu")), seed=0, average=ranks.average)
            rig.online.seed += 10 * rank
            learner = SharedLearner(
                ranks,
                (rig.online, rig.demonstrations),
                rig.engine,
                rig.online,
                rig.demonstrations,
                PolicyPublisher(),
                rig.counters,
                rig.config,
                rig.reports.append,
                lambda: None,
            )
            self.rigs.append(rig)
            self.learners.append(learner)
        lead, learner = self.rigs[0], self.learners[0]
        runner = PolicyRunner(lead.engine.agent, seed=1)
        stores = learner.forwarded()
        self.actor = Actor(
            lead.env,
            None,
            runner,
            learner.publisher,
            *stores,
            lead.counters,
            lead.config,
            lead.reports.append,
            lead.stop,
        )
        self.error = None
        self.thread = threading.Thread(target=self._follow)

    def _follow(self) -> None:
        try:
            self.learners[1].obey(self.inspected.append)
        except Exception as error:
            self.error = error
        finally:
            self.learners[1].close()

    def run(self, run) -> None:
        self.thread.start()
        try:
            run(self.actor, self.learners[0], self.rigs[0].stop)
        finally:
            self.learners[0].close()
            self.thread.join(150)
            assert not self.thread.is_alive()

    def checksums(self) -> list[int]:
        return [checksum(rig.engine.agent.networks) for rig in self.rigs]


def assert_same_rows(first, second) -> None:
    first, second = all_rows(first), all_rows(second)
    np.testing.assert_array_equal(first["observations"]["state"], second["observations"]["state"])
    for name in ("actions", "rewards", "discounts"):
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("run", [run_synchronous, run_threaded])
def test_a_rank_that_follows_ends_with_the_same_stores_and_parameters(toy_arm, run, capsys):
    team = Team(toy_arm, max_steps=30, critic_to_actor_ratio=2)
    before = team.checksums()
    team.run(run)
    lead, other = team.rigs
    assert team.error is None
    assert lead.engine.updates == other.engine.updates == 30
    after = team.checksums()
    assert after[0] == after[1] != before[0]
    assert f"all 2 ranks have the same parameters (checksum {after[0]:08x})" in capsys.readouterr().out
    # What the actor did after the last update's order need not have been sent.
    rows = len(other.online)
    assert len(lead.online) >= rows > 20
    np.testing.assert_array_equal(
        all_rows(lead.online)["observations"]["state"][:rows], all_rows(other.online)["observations"]["state"]
    )
    assert len(other.demonstrations) > 0
    assert sum("learner/utd_ratio" in report for report in lead.reports) == 3


def test_a_block_of_updates_is_one_order(toy_arm):
    team = Team(toy_arm, max_steps=18, critic_to_actor_ratio=4, max_utd_ratio=4, log_interval=6)
    team.run(run_synchronous)
    assert team.error is None
    ranks, order = team.learners[1].ranks, follow_module.Order
    given = list(zip(ranks.orders, ranks.blocks, strict=True))
    assert [size for what, size in given if what == order.WARM_UP] == [4, 1]
    assert [size for what, size in given if what == order.UPDATE] == [4, 4, 4, 4, 1, 1]
    assert len(set(team.checksums())) == 1
    assert [rig.engine.updates for rig in team.rigs] == [18, 18]


def test_transitions_arrive_whole_even_where_the_environment_writes_into_its_arrays(toy_arm):
    team = Team(toy_arm)
    (online, demonstrations), follower = team.learners[0].forwarded(), team.rigs[1]
    state = np.zeros(4, np.float32)
    for step in range(5):
        before = state.copy()
        state += 1
        transition = {
            "observations": {"state": before},
            "actions": np.full(7, step, np.float32),
            "next_observations": {"state": state},
            "rewards": np.float32(step),
            "terminated": False,
            "truncated": False,
            "grasp_penalty": np.float32(0),
        }
        online.append(transition, step > 0)
        if step >= 3:
            demonstrations.append(transition, step > 3)
    team.thread.start()
    team.learners[0].close()
    team.thread.join(150)
    assert_same_rows(team.rigs[0].online, follower.online)
    assert_same_rows(team.rigs[0].demonstrations, follower.demonstrations)
    assert len(follower.online) == 5
    assert len(follower.demonstrations) == 2


def test_metrics_are_means_over_ranks(toy_arm):
    team = Team(toy_arm, max_steps=10, log_interval=10)
    seen: list[dict] = [{}, {}]
    for rank, rig in enumerate(team.rigs):

        def newest(wait=False, take=rig.engine.newest_metrics, of_rank=seen[rank]):
            interval = take(wait)
            of_rank.update(interval.metrics if interval else {})
            return interval

        rig.engine.newest_metrics = newest
    team.run(run_synchronous)
    first, second = seen
    losses = [name for name in first if name.endswith("loss")]
    assert losses
    for name in losses:
        assert first[name] != second[name]
        assert team.rigs[0].reports[-1][name] == pytest.approx((first[name] + second[name]) / 2, rel=1e-6), name


def test_an_update_that_is_not_finite_ends_all_ranks_and_each_keeps_what_it_saw(toy_arm):
    team = Team(toy_arm, max_steps=30)
    other = team.rigs[1].engine
    update = other.update_block

    def poisoned(batch, *rest):
        if other.updates == 7:
            batch["rewards"][0] = torch.nan
        return update(batch, *rest)

    other.update_block = poisoned
    with pytest.raises(NonFiniteLossError, match="at update 8"):
        team.run(run_synchronous)
    assert team.error is None
    assert [error.inspection["updates"] for error in team.inspected] == [7]
    assert torch.isnan(team.inspected[0].inspection["batch"]["rewards"]).any()
    assert team.rigs[0].engine.updates == 7
    assert team.learners[1].ranks.orders[-1] == follow_module.Order.END
    assert len(set(team.checksums())) == 1


def test_a_failure_within_rank_0s_step_leaves_no_rank_waiting(toy_arm):
    team = Team(toy_arm, max_steps=30)
    lead = team.rigs[0].engine
    update = lead.update_block

    def failing(batch, *rest):
        if lead.updates == 7:
            raise OSError("no more memory")
        return update(batch, *rest)

    lead.update_block = failing
    started = time.monotonic()
    with pytest.raises(OSError, match="no more memory"):
        team.run(run_synchronous)
    assert isinstance(team.error, RankError)
    assert time.monotonic() - started < 100  # the patience of the meeting is 120 s


def test_rank_0_ends_when_another_rank_does(toy_arm):
    team = Team(toy_arm, max_steps=30)
    other = team.rigs[1].engine
    update = other.update_block

    def failing(batch, *rest):
        if other.updates == 7:
            raise MemoryError("rank 1 is out of memory")
        return update(batch, *rest)

    other.update_block = failing
    with pytest.raises(RankError):
        team.run(run_synchronous)
    assert isinstance(team.error, MemoryError)
    assert team.rigs[0].engine.updates == 7
    assert team.rigs[0].counters.updates == 7


def test_idle_ranks_hear_from_rank_0(toy_arm, monkeypatch):
    clock = iter(range(1000))  # one second for every look
    monkeypatch.setattr(follow_module, "time", types.SimpleNamespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(follow_module, "HEARTBEAT", 3.5)
    team = Team(toy_arm, training_starts=30)
    learner = team.learners[0]
    team.thread.start()
    for _ in range(20):
        learner.tick()
    learner.close()
    team.thread.join(150)
    orders = team.learners[1].ranks.orders
    assert 2 <= orders.count(follow_module.Order.IDLE) <= 5
    assert orders[-1] == follow_module.Order.END


def test_pretraining_is_on_demonstrations_for_all(toy_arm):
    team = Team(toy_arm, max_steps=2, pretrain_steps=3)
    for rig in team.rigs:
        state = np.arange(4, dtype=np.float32)
        for step in range(10):
            transition = {
                "observations": {"state": state + step},
                "actions": np.zeros(7, np.float32),
                "next_observations": {"state": state + step + 1},
                "rewards": np.float32(0),
                "terminated": False,
                "truncated": False,
                "grasp_penalty": np.float32(0),
            }
            rig.demonstrations.append(transition, step > 0)
    team.run(run_synchronous)
    order = follow_module.Order
    orders = [o for o in team.learners[1].ranks.orders if o != order.IDLE]
    pretraining, learning = [order.UPDATE_ON_DEMONSTRATIONS] * 3, [order.UPDATE] * 2
    assert orders == [order.WARM_UP, *pretraining, *learning, order.REPORT_REST, order.END]
    assert len(set(team.checksums())) == 1


def torchrun(*flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    tiny = "--batch_size=16 --training_starts=20 --random_steps=10 --hidden_widths 16 16 --execution=eager --device=cpu"
    quiet = "--eval_interval=0 --final_eval_episodes=0 --log_interval=5 --save_interval=0 --threads=1 --synchronous"
    return subprocess.run(
        [*command, "-m", "serl_fast.train_hybrid", *tiny.split(), *quiet.split(), *flags],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
    )


def test_torchrun_trains_in_two_processes_and_resumes(tmp_path):
    demos, run = tmp_path / "demos.pkl", tmp_path / "run"
    assert record_demos.run(["--num_demos", "2", "--output", str(demos), "--seed", "3"]) == 0
    flags = ["--save_dir", str(run), "--demo_paths", str(demos), "--operator", "scripted"]
    first = torchrun(*flags, "--max_steps=10")
    assert first.returncode == 0, first.stderr
    assert "all 2 ranks have the same parameters" in first.stdout
    assert first.stdout.count("demonstration transitions from 1 file(s)") == 1  # rank 0 alone prints
    before = load_checkpoint(latest_checkpoint(run))
    assert before["counters"]["updates"] == before["engine"]["updates"] == 10
    second = torchrun(*flags, "--max_steps=15", "--resume")
    assert second.returncode == 0, second.stderr
    assert "all 2 ranks have the same parameters" in second.stdout
    after = load_checkpoint(latest_checkpoint(run))
    assert after["engine"]["updates"] == 15
    assert after["counters"]["environment_steps"] > before["counters"]["environment_steps"]
    changed = copy.deepcopy(before["networks"])
    assert any(not torch.equal(changed[name], value) for name, value in after["networks"].items())
