"""Routing, continuity, limits and endings of the loop."""

import dataclasses
import threading

import gymnasium
import numpy as np
import pytest
import torch

from serl_fast import loop
from serl_fast.agents.build import build_agent
from serl_fast.agents.sac import SACConfig
from serl_fast.engine import Engine, NonFiniteLossError, PolicyPublisher, PolicyRunner
from serl_fast.envs.make import FlatObservations
from serl_fast.loop import Actor, Learner, run_alone, run_synchronous, run_threaded
from serl_fast.replay import ReplayStore
from serl_fast.schedule import Counters, LoopConfig, Stop

SMALL = SACConfig(hidden_widths=(16, 16), proprioception_dim=None)


class Rig:
    """An actor and a learner on a toy environment."""

    def __init__(self, env: gymnasium.Env, eval_env: gymnasium.Env | None = None, **settings) -> None:
        defaults = {
            "max_steps": 40,
            "batch_size": 8,
            "training_starts": 10,
            "random_steps": 5,
            "steps_per_update": 5,
            "log_interval": 10,
            "save_interval": 0,
            "eval_interval": 0,
        }
        self.config = LoopConfig(**(defaults | settings))
        torch.manual_seed(0)
        self.env = FlatObservations(env, ())
        width = env.action_space.shape[0]
        agent = build_agent(4, width, 1 if width == 7 else 0, (), SMALL)
        example = {
            "observations": {"state": np.zeros(4, np.float32)},
            "actions": np.zeros(width, np.float32),
            "next_observations": {"state": np.zeros(4, np.float32)},
            "rewards": np.float32(0),
            "terminated": False,
            "truncated": False,
            "grasp_penalty": np.float32(0),
        }
        self.online = ReplayStore.from_example(example, 1000, seed=1)
        self.demonstrations = ReplayStore.from_example(example, 1000, seed=2)
        self.engine = Engine(agent, seed=0)
        self.counters, self.stop, self.reports, self.saves = Counters(), Stop(), [], []
        publisher = PolicyPublisher()
        self.actor = Actor(
            self.env,
            FlatObservations(eval_env, ()) if eval_env else None,
            PolicyRunner(agent, seed=1),
            publisher,
            self.online,
            self.demonstrations,
            self.counters,
            self.config,
            self.reports.append,
            self.stop,
        )
        self.learner = Learner(
            self.engine,
            self.online,
            self.demonstrations,
            publisher,
            self.counters,
            self.config,
            self.reports.append,
            lambda: self.saves.append(self.counters.updates),
        )


def all_rows(store: ReplayStore) -> dict:
    return store.batch_at(np.arange(len(store)), discount=0.9)


def test_intervened_steps_go_to_both_stores_with_the_executed_action(toy_arm):
    rig = Rig(toy_arm(intervals=[(3, 6), (12, 14)], goal=99), random_steps=0)
    rig.learner.publish()
    for _ in range(40):  # two episodes of 20
        rig.actor.step()
    online, demos = all_rows(rig.online), all_rows(rig.demonstrations)
    assert len(rig.online) == 40
    assert len(rig.demonstrations) == 10
    np.testing.assert_array_equal(demos["observations"]["state"][:, 1], [3, 4, 5, 12, 13] * 2)
    # The second segment starts at its own observation, not at the frame that followed the first segment.
    np.testing.assert_array_equal(demos["next_observations"]["state"][:, 1], [4, 5, 6, 13, 14] * 2)
    assert (demos["actions"] == 0.5).all()
    intervened = np.isin(online["observations"]["state"][:, 1], [3, 4, 5, 12, 13])
    assert (online["actions"][intervened] == 0.5).all()
    assert not (online["actions"][~intervened] == 0.5).all(axis=1).any()
    np.testing.assert_array_equal(online["grasp_penalty"], np.full(40, -0.02, np.float32))
    episodes = [r for r in rig.reports if "environment/episode/r" in r]
    assert [r["environment/episode/intervention_count"] for r in episodes] == [2, 2]
    assert [r["environment/episode/intervention_steps"] for r in episodes] == [5, 5]
    assert rig.counters.interventions == 4


def test_a_time_out_bootstraps_and_a_success_does_not(toy_arm):
    rig = Rig(toy_arm(intervals=[(0, 99)], goal=0.42, length=7), random_steps=0)
    rig.learner.publish()
    for _ in range(7):
        rig.actor.step()
    batch = all_rows(rig.online)  # nine steps of 0.05 reach the goal; seven run out of time
    assert batch["truncated"].tolist() == [False] * 6 + [True]
    assert not batch["terminated"].any()
    np.testing.assert_allclose(batch["discounts"], 0.9)
    rig = Rig(toy_arm(intervals=[(0, 99)], goal=0.12), random_steps=0)
    rig.learner.publish()
    for _ in range(3):
        rig.actor.step()
    batch = all_rows(rig.online)
    assert batch["terminated"].tolist() == [False, False, True]
    np.testing.assert_allclose(batch["discounts"], [0.9, 0.9, 0.0])


def test_random_steps_come_first_and_are_seeded(toy_arm):
    first, second = (Rig(toy_arm(), random_steps=10, seed=4) for _ in range(2))
    other = Rig(toy_arm(), random_steps=10, seed=5)
    for rig in (first, second, other):
        for _ in range(10):
            rig.actor.step()
    actions = all_rows(first.online)["actions"]
    np.testing.assert_array_equal(actions, all_rows(second.online)["actions"])
    assert not np.array_equal(actions, all_rows(other.online)["actions"])
    assert actions.std() == pytest.approx(1 / np.sqrt(3), rel=0.2)  # uniform on [-1, 1]


def test_operator_action_of_another_shape_is_named(toy_arm):
    class Wrong(toy_arm):
        def step(self, action):
            *rest, info = super().step(action)
            return *rest, info | {"intervene_action": np.zeros(3)}

    rig = Rig(Wrong())
    with pytest.raises(ValueError, match=r'info\["intervene_action"\] has shape \(3,\); the action has shape \(7,\)'):
        rig.actor.step()


def test_learning_starts_with_enough_data_and_publishes_on_schedule(toy_arm):
    rig = Rig(toy_arm(), max_steps=12)
    run_synchronous(rig.actor, rig.learner, rig.stop)
    assert rig.stop.reason == "the step limit is reached"
    assert rig.counters.training_started_at == 10
    assert rig.counters.updates == 12
    assert rig.counters.environment_steps == 21  # the tenth environment step already allows an update
    assert rig.actor.publisher.newest().version == 3  # the initial policy, and after 5 and 10 updates
    assert rig.actor.publisher.newest().updates == 10
    # The second row: the last two updates, at the end.
    assert [r["learner/utd_ratio"] for r in rig.reports if "critic/loss" in r] == pytest.approx([10 / 19, 12 / 21])


@pytest.mark.parametrize("ratio", [0.5, 3.0])
def test_synchronous_ratio_is_exact(toy_arm, ratio):
    rig = Rig(toy_arm(), max_steps=30, max_utd_ratio=ratio)
    run_synchronous(rig.actor, rig.learner, rig.stop)
    steps_while_learning = rig.counters.environment_steps - 9
    assert rig.counters.updates == 30
    assert steps_while_learning == pytest.approx(30 / ratio, abs=1)


def test_the_learner_never_exceeds_its_ratio(toy_arm):
    rig = Rig(toy_arm(), max_utd_ratio=0.25, max_steps=20)
    most = []
    rig.learner.tick = lambda: most.append(rig.counters.utd_ratio)
    run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.counters.updates == 20
    assert max(most) <= 0.25


def test_the_actor_waits_for_the_learner(toy_arm):
    rig = Rig(toy_arm(), min_utd_ratio=2.0, max_steps=60, steps_per_update=10)
    run_threaded(rig.actor, rig.learner, rig.stop)
    since_start = rig.counters.environment_steps - rig.counters.training_started_at
    assert since_start <= 60 / 2.0 + 10 / 2.0 + 1  # no further ahead than steps_per_update allows


def test_pretraining_uses_demonstrations_alone(toy_arm):
    rig = Rig(toy_arm(), pretrain_steps=7)
    with pytest.raises(ValueError, match="pretrain_steps is 7, but there are no demonstrations"):
        rig.learner.prepare(rig.stop)
    rig.demonstrations.append(
        {
            "observations": {"state": np.ones(4, np.float32)},
            "actions": np.zeros(7, np.float32),
            "next_observations": {"state": np.ones(4, np.float32)},
            "rewards": np.float32(1),
            "terminated": True,
            "truncated": False,
            "grasp_penalty": np.float32(0),
        }
    )
    rig.learner.prepare(rig.stop)
    assert rig.engine.updates == 7
    assert rig.counters.updates == 0
    assert len(rig.online) == 0
    assert rig.actor.publisher.newest().updates == 7


def test_a_good_evaluation_is_repeated_before_the_run_ends(toy_arm):
    good = toy_arm(intervals=[(0, 99)], goal=0.2)
    rig = Rig(toy_arm(), good, eval_interval=5, eval_episodes=3, max_steps=1000)
    run_synchronous(rig.actor, rig.learner, rig.stop)
    assert rig.stop.reason == "the policy succeeds in 100% of 15 evaluation episodes"
    assert rig.actor.accepted is not None
    rates = [r["evaluation/success_rate"] for r in rig.reports if "evaluation/success_rate" in r]
    assert rates == [1.0, 1.0]
    assert good.episode == 15


def test_evaluation_does_not_end_a_run_that_may_not_end(toy_arm):
    rig = Rig(
        toy_arm(), toy_arm(intervals=[(0, 99)], goal=0.2), eval_interval=5, eval_episodes=1, stop_success_rate=None
    )
    run_synchronous(rig.actor, rig.learner, rig.stop)
    assert rig.stop.reason == "the step limit is reached"


def test_saving_on_schedule(toy_arm):
    rig = Rig(toy_arm(), save_interval=15, max_steps=40)
    run_synchronous(rig.actor, rig.learner, rig.stop)
    assert rig.saves == [15, 30]


def test_a_failing_actor_stops_the_learner_and_is_raised(toy_arm):
    rig = Rig(toy_arm(fail_at=30), max_steps=10**6)
    with pytest.raises(OSError, match="the gripper does not answer"):
        run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.stop.reason == "the actor failed: the gripper does not answer"
    assert len(rig.online) == 29  # nothing accepted is lost
    assert "actor" not in [thread.name for thread in threading.enumerate()]


def test_a_failing_learner_stops_the_actor_and_is_raised(toy_arm, monkeypatch):
    rig = Rig(toy_arm(), max_steps=10**6)
    update = rig.engine.update_block

    def fail(*arguments):
        if rig.engine.updates == 12:
            raise RuntimeError("out of memory")
        return update(*arguments)

    monkeypatch.setattr(rig.engine, "update_block", fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.counters.updates == 12
    assert "actor" not in [thread.name for thread in threading.enumerate()]


def test_state_of_the_actor_continues(toy_arm):
    first, second = Rig(toy_arm(), random_steps=100), Rig(toy_arm(), random_steps=100)
    for _ in range(20):
        first.actor.step()
    second.actor.load_state_dict(first.actor.state_dict())
    second.counters.load_state_dict(first.counters.state_dict())
    first.actor.step()
    second.actor.step()
    np.testing.assert_array_equal(
        first.online.batch_at(np.array([20]))["actions"], second.online.batch_at(np.array([0]))["actions"]
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_steps": 0}, "max_steps is 0; it must be at least 1"),
        ({"discount": 1.5}, r"discount is 1\.5; it must be in \[0, 1\]"),
        ({"stop_success_rate": 0.0}, r"stop_success_rate is 0\.0"),
        ({"max_utd_ratio": 0.0}, r"max_utd_ratio is 0\.0; it must be positive"),
        ({"min_utd_ratio": 2.0, "max_utd_ratio": 1.0}, r"min_utd_ratio 2\.0 exceeds max_utd_ratio 1\.0"),
    ],
)
def test_bad_schedules_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LoopConfig(**settings)


def test_an_environment_that_never_returns_does_not_hold_the_run(toy_arm, monkeypatch):
    hangs, release = threading.Event(), threading.Event()

    class Hanging(toy_arm):
        def step(self, action):
            if self.total == 15:
                hangs.set()
                release.wait()
            return super().step(action)

    monkeypatch.setattr(loop, "ACTOR_PATIENCE", 0.2)
    rig = Rig(Hanging(), max_steps=10)
    rig.learner.tick = lambda: hangs.wait(60)
    try:
        with pytest.raises(RuntimeError, match=r"did not return from its step within 0\.2 s"):
            run_threaded(rig.actor, rig.learner, rig.stop)
    finally:
        release.set()
    assert len(rig.online) == 15


def test_an_actor_that_is_told_to_exit_is_an_error(toy_arm):
    class Quitting(toy_arm):
        def step(self, action):
            raise SystemExit("driver gave up")

    rig = Rig(Quitting())
    with pytest.raises(RuntimeError, match="the actor ended with SystemExit"):
        run_threaded(rig.actor, rig.learner, rig.stop)


def test_an_action_that_is_not_finite_never_reaches_the_robot(toy_arm):
    executed = []

    class Watched(toy_arm):
        def step(self, action):
            executed.append(action)
            return super().step(action)

    rig = Rig(Watched(), random_steps=0)
    with torch.no_grad():
        rig.engine.agent.networks["actor"].mean.weight.fill_(float("nan"))
    rig.learner.publish()
    with pytest.raises(NonFiniteLossError, match="the policy's action is not finite, so it was not executed"):
        rig.actor.step()
    assert not executed


def test_stopping_needs_no_lock():
    stop = Stop()
    stop.set("first")
    stop.set("second")
    assert stop.reason == "first"
    assert vars(stop) == {"reason": "first"}  # a signal handler may interrupt any of its methods


def test_data_lost_since_the_last_run_are_waited_for_again(toy_arm):
    rig = Rig(toy_arm(), training_starts=10)
    rig.counters.training_started_at = 100  # a resumed run whose stores were not kept
    assert not rig.learner.may_take()


def test_a_learner_that_waits_for_data_never_holds_the_actor(toy_arm):
    rig = Rig(toy_arm(), training_starts=10, min_utd_ratio=1.0)
    rig.counters.training_started_at, rig.counters.environment_steps = 0, 1000  # resumed, far ahead, nothing stored
    assert rig.learner.actor_may_step()


def losses(rig: Rig) -> list[dict[str, float]]:
    return [report for report in rig.reports if "critic/loss" in report]


@pytest.mark.parametrize("run", [run_synchronous, run_threaded])
@pytest.mark.parametrize(("steps", "interval", "rows"), [(12, 100, 1), (12, 5, 3), (12, 4, 3)])
def test_a_run_reports_its_last_losses(toy_arm, run, steps, interval, rows):
    rig = Rig(toy_arm(), max_steps=steps, log_interval=interval, critic_to_actor_ratio=1)
    seen, update = [], rig.engine.update_block

    def watched(*arguments):
        metrics = update(*arguments)
        seen.append(metrics["critic/loss"].item())
        return metrics

    rig.engine.update_block = watched
    run(rig.actor, rig.learner, rig.stop)
    reports = losses(rig)
    assert len(reports) == rows
    rest = steps % interval or interval
    assert reports[-1]["critic/loss"] == pytest.approx(np.mean(seen[-rest:]), rel=1e-5)  # of those updates, all of them


def test_a_run_that_is_stopped_reports_its_last_losses(toy_arm):
    rig = Rig(toy_arm(), max_steps=1000, log_interval=100)
    rig.learner.tick = lambda: rig.stop.set("interrupted") if rig.counters.updates >= 6 else None
    run_synchronous(rig.actor, rig.learner, rig.stop)
    assert rig.stop.reason == "interrupted"
    assert len(losses(rig)) == 1


def test_a_run_without_updates_reports_no_losses(toy_arm):
    rig = Rig(toy_arm(), training_starts=1000)
    rig.learner.tick = lambda: rig.stop.set("interrupted") if rig.counters.environment_steps == 30 else None
    run_synchronous(rig.actor, rig.learner, rig.stop)
    assert not losses(rig)


def test_an_evaluation_that_the_end_cuts_short_stays_due(toy_arm):
    cut: list[Rig] = []

    class Last(toy_arm):
        def step(self, action):
            if self.episode == 2:  # one episode is over
                cut[0].stop.set(loop.STEP_LIMIT)
            return super().step(action)

    rig = Rig(toy_arm(), Last(), eval_interval=5, eval_episodes=3)
    cut.append(rig)
    rig.counters.updates = 7
    assert rig.actor.evaluation_due
    rig.actor.step()
    assert rig.actor.evaluation_due
    assert not rig.reports
    other = Rig(toy_arm(), toy_arm(), eval_interval=5, eval_episodes=3)
    other.counters.updates = 7
    other.actor.step()
    assert not other.actor.evaluation_due
    other.counters.updates = 12
    assert other.actor.evaluation_due
    assert not Rig(toy_arm(), eval_interval=5).actor.evaluation_due  # nothing to evaluate in


def alone(rig: Rig, **changes) -> Learner:
    """A learner that has the rig's demonstrations and no actor."""
    config = dataclasses.replace(rig.config, **changes)
    saved = lambda: rig.saves.append(rig.counters.updates)  # noqa: E731
    return Learner(
        rig.engine, None, rig.demonstrations, PolicyPublisher(), rig.counters, config, rig.reports.append, saved
    )


def test_a_learner_alone_takes_its_steps_and_no_more(toy_arm):
    rig = Rig(toy_arm(intervals=[(0, 20)], goal=99), random_steps=0)
    rig.learner.publish()
    for _ in range(20):
        rig.actor.step()
    seen = []
    learner = alone(rig, max_steps=7, save_interval=4, training_starts=1000)
    run_alone(learner, rig.stop, lambda: seen.append(rig.counters.updates))
    assert rig.stop.reason == loop.STEP_LIMIT
    assert seen == [2, 4, 6, 7]  # blocks of critic_to_actor_ratio
    assert rig.saves == [4]
    assert len(rig.online) == 20
    assert rig.reports[-1]["critic/loss"] > 0  # what was left at the end
    rig.stop.reason = ""
    run_alone(learner, rig.stop)  # finished: not one step more
    assert rig.engine.updates == 7


def test_a_learner_alone_ends_after_the_step_in_progress(toy_arm):
    rig = Rig(toy_arm(intervals=[(0, 20)], goal=99), random_steps=0)
    rig.learner.publish()
    for _ in range(20):
        rig.actor.step()
    run_alone(alone(rig, max_steps=40), rig.stop, lambda: rig.stop.set("enough"))
    assert (rig.engine.updates, rig.stop.reason) == (2, "enough")
