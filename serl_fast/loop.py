"""The actor's and the learner's loops, and the two ways to run them: two threads, or one thread in lock-step.

One environment step: act, step the environment, record the EXECUTED action, append to the online store; a step that a
human or scripted operator took goes to the demonstrations too. One learner step: sample half and half, update, and every
``steps_per_update`` updates publish a numbered snapshot of the policy.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import gymnasium
import numpy as np

from serl_fast.data.batches import BatchReader
from serl_fast.engine import Engine, PolicyPublisher, PolicyRunner, PolicySnapshot, check_finite
from serl_fast.evaluation import evaluate, succeeded
from serl_fast.replay import Mixture, ReplayStore

Report = Callable[[dict[str, float]], None]

EVALUATION_SEEDS = 1_000_000  # episodes of evaluations are seeded from here on, apart from those of training


@dataclass(frozen=True)
class LoopConfig:
    """The loop's schedule. A step is one gradient step unless it says environment step.

    Attributes:
        max_steps: gradient steps after pre-training at which the run ends.
        batch_size: transitions per gradient step, half of them demonstrations.
        training_starts: online transitions to wait for before learning.
        random_steps: environment steps with uniform actions at the start.
        critic_to_actor_ratio: critic steps per actor step.
        steps_per_update: gradient steps between two publications of the policy.
        discount: gamma, in [0, 1].
        pretrain_steps: gradient steps on demonstrations alone before the actor starts.
        log_interval: gradient steps between two reports of losses.
        save_interval: gradient steps between two checkpoints; 0 for none.
        eval_interval: gradient steps between two evaluations; 0 for none.
        eval_episodes: episodes of one evaluation.
        stop_success_rate: end when an evaluation and its repetition together reach this, in (0, 1]; None: never.
        max_utd_ratio: the learner waits rather than exceed so many gradient steps per environment step.
        min_utd_ratio: the actor waits rather than fall below (for simulations; a real robot is not to be kept waiting).
        seed: of environment resets and random actions.
    """

    max_steps: int = 100_000
    batch_size: int = 256
    training_starts: int = 1000
    random_steps: int = 1000
    critic_to_actor_ratio: int = 2
    steps_per_update: int = 50
    discount: float = 0.95
    pretrain_steps: int = 0
    log_interval: int = 100
    save_interval: int = 10_000
    eval_interval: int = 1000
    eval_episodes: int = 20
    stop_success_rate: float | None = 0.95
    max_utd_ratio: float | None = None
    min_utd_ratio: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        at_least = {
            "max_steps": 1,
            "batch_size": 1,
            "training_starts": 1,
            "random_steps": 0,
            "critic_to_actor_ratio": 1,
            "steps_per_update": 1,
            "pretrain_steps": 0,
            "log_interval": 1,
            "save_interval": 0,
            "eval_interval": 0,
            "eval_episodes": 1,
            "seed": 0,
        }
        for name, least in at_least.items():
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.discount <= 1:
            raise ValueError(f"discount is {self.discount}; it must be in [0, 1]")
        if self.stop_success_rate is not None and not 0 < self.stop_success_rate <= 1:
            raise ValueError(f"stop_success_rate is {self.stop_success_rate}; it must be in (0, 1]")
        for name in ("max_utd_ratio", "min_utd_ratio"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be positive")
        if self.max_utd_ratio is not None and self.min_utd_ratio is not None and self.min_utd_ratio > self.max_utd_ratio:
            raise ValueError(f"min_utd_ratio {self.min_utd_ratio} exceeds max_utd_ratio {self.max_utd_ratio}")


class Stop:
    """Asks both loops to end after the step in progress, and remembers why."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self.reason = ""

    def set(self, reason: str) -> None:
        """Ask for the end; the first reason stays."""
        self.reason = self.reason or reason
        self._event.set()

    def is_set(self) -> bool:
        """Whether the end was asked for."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end, at most so long; says whether it was asked for."""
        return self._event.wait(seconds)


@dataclass
class Counters:
    """What happened so far. Each field has one writer: the actor's thread or the learner's."""

    environment_steps: int = 0
    episodes: int = 0
    interventions: int = 0
    updates: int = 0
    training_started_at: int | None = None  # environment steps when learning began
    success_rate: float | None = None  # of the newest evaluation
    recent_successes: deque[bool] = field(default_factory=lambda: deque(maxlen=20))

    @property
    def utd_ratio(self) -> float:
        """Gradient steps per environment step, over the whole run."""
        return self.updates / max(self.environment_steps, 1)

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "environment_steps": self.environment_steps,
            "episodes": self.episodes,
            "interventions": self.interventions,
            "updates": self.updates,
            "training_started_at": self.training_started_at,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`."""
        for name, value in state.items():
            setattr(self, name, value)


class Actor:
    """Steps the environment with the newest published policy and fills the stores.

    Args:
        env: the environment, with its operator if there is one.
        eval_env: another instance without operator, or None for no evaluations.
        runner: the policy, refreshed between steps.
        publisher: where snapshots come from.
        online: every step goes here.
        demonstrations: intervened steps go here too.
        counters: shared with the learner.
        config: the schedule.
        report: receives metrics of episodes and evaluations.
        stop: asked between episodes of an evaluation; set when the evaluation is good enough.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        eval_env: gymnasium.Env[Any, Any] | None,
        runner: PolicyRunner,
        publisher: PolicyPublisher,
        online: ReplayStore,
        demonstrations: ReplayStore,
        counters: Counters,
        config: LoopConfig,
        report: Report,
        stop: Stop,
    ) -> None:
        self.env, self.eval_env = env, eval_env
        self.runner, self.publisher = runner, publisher
        self.online, self.demonstrations = online, demonstrations
        self.counters, self.config, self.report, self.stop = counters, config, report, stop
        self.accepted: PolicySnapshot | None = None  # the policy that reached stop_success_rate
        self._snapshot: PolicySnapshot | None = None
        self._random = np.random.default_rng([config.seed, 1])
        self._observation: dict[str, np.ndarray] | None = None
        self._next_evaluation = config.eval_interval
        self._evaluations = 0

    def step(self) -> None:
        """Take one environment step; between episodes, evaluate when it is time.

        Raises:
            ValueError: the operator's action has another shape, or the environment returned a value that is not finite.
        """
        snapshot = self.publisher.newest(after=self.runner.version)
        if snapshot is not None:
            self.runner.load(snapshot)
            self._snapshot = snapshot
        if self._observation is None:
            self._evaluate_if_due()
            if self.stop.is_set():
                return
            self._begin_episode()
        observation = self._observation
        assert observation is not None
        action = self._choose(observation)
        following, reward, terminated, truncated, info = self.env.step(action)
        intervened = "intervene_action" in info
        if intervened:
            action = self._intervention(info["intervene_action"], action)
        transition = {
            "observations": observation,
            "actions": action,
            "next_observations": following,
            "rewards": np.float32(reward),
            "terminated": bool(terminated),
            "truncated": bool(truncated),
            "grasp_penalty": np.float32(info.get("grasp_penalty", 0.0)),
        }
        self.online.append(transition, continues=self._length > 0)
        if intervened:
            # Operators come and go: a segment continues only the segment of the step just before.
            self.demonstrations.append(transition, continues=self._intervened)
            self._intervention_steps += 1
            self._intervention_count += not self._intervened
            self.counters.interventions += not self._intervened
        self._intervened = intervened
        self._length += 1
        self._return += float(reward)
        self._success = self._success or succeeded(float(reward), bool(terminated), info)
        self.counters.environment_steps += 1
        self._observation = following
        if terminated or truncated:
            self._end_episode()

    def state_dict(self) -> dict[str, Any]:
        """Random state and the evaluation schedule, for a checkpoint."""
        return {
            "random": self._random.bit_generator.state,
            "noise": self.runner.generator.get_state(),
            "next_evaluation": self._next_evaluation,
            "evaluations": self._evaluations,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, with a new episode."""
        self._random.bit_generator.state = state["random"]
        self.runner.generator.set_state(state["noise"].cpu())
        self._next_evaluation = state["next_evaluation"]
        self._evaluations = state["evaluations"]

    def _begin_episode(self) -> None:
        seed = int(np.random.SeedSequence([self.config.seed, 2, self.counters.episodes]).generate_state(1)[0])
        self._observation, _ = self.env.reset(seed=seed % EVALUATION_SEEDS)
        self._length, self._return, self._success = 0, 0.0, False
        self._intervened, self._intervention_steps, self._intervention_count = False, 0, 0

    def _end_episode(self) -> None:
        self._observation = None
        self.counters.episodes += 1
        self.counters.recent_successes.append(self._success)
        self.report(
            {
                "environment/episode/r": self._return,
                "environment/episode/l": float(self._length),
                "environment/episode/succeed": float(self._success),
                "environment/episode/intervention_count": float(self._intervention_count),
                "environment/episode/intervention_steps": float(self._intervention_steps),
                "environment/episode/intervention_rate": self._intervention_steps / self._length,
                "environment/episode/policy_version": float(self.runner.version),
            }
        )

    def _choose(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        if self.counters.environment_steps < self.config.random_steps:
            space = self.env.action_space
            assert isinstance(space, gymnasium.spaces.Box)
            return self._random.uniform(space.low, space.high).astype(np.float32)
        return self.runner.act(observation)

    def _intervention(self, executed: Any, action: np.ndarray) -> np.ndarray:
        executed = np.asarray(executed, np.float32)
        if executed.shape != action.shape:
            raise ValueError(
                f'info["intervene_action"] has shape {executed.shape}; the action has shape {action.shape}'
            )
        return np.clip(executed, -1.0, 1.0)

    def _evaluate_if_due(self) -> None:
        config = self.config
        if self.eval_env is None or not config.eval_interval or self.counters.updates < self._next_evaluation:
            return
        self._next_evaluation = self.counters.updates + config.eval_interval
        result = self._run_evaluation()
        threshold = config.stop_success_rate
        if threshold is None or result.success_rate < threshold or self.stop.is_set():
            return
        # One good evaluation may be luck: the same policy must keep the rate over as many fresh episodes again.
        again = self._run_evaluation()
        rate = float(np.mean(result.successes + again.successes))
        if rate >= threshold and not self.stop.is_set():
            self.accepted = self._snapshot
            self.stop.set(
                f"the policy succeeds in {rate:.0%} of {len(result.successes + again.successes)} evaluation episodes"
            )

    def _run_evaluation(self) -> Any:
        assert self.eval_env is not None
        seed = EVALUATION_SEEDS * (1 + self.config.seed) + self._evaluations * self.config.eval_episodes
        self._evaluations += 1
        result = evaluate(
            self.eval_env,
            lambda observation: self.runner.act(observation, deterministic=True),
            self.config.eval_episodes,
            seed=seed,
            should_stop=self.stop.is_set,
        )
        if result.successes:
            self.counters.success_rate = result.success_rate
            self.report(result.metrics())
        return result


class Learner:
    """Samples, updates, publishes, reports and saves.

    Args:
        engine: runs the updates.
        online: the actor's steps.
        demonstrations: demonstrations and interventions.
        publisher: where policies go.
        counters: shared with the actor.
        config: the schedule.
        report: receives losses every ``log_interval`` gradient steps.
        save: called every ``save_interval`` gradient steps.
        tick: called after every gradient step, for the progress display.
    """

    def __init__(
        self,
        engine: Engine,
        online: ReplayStore,
        demonstrations: ReplayStore,
        publisher: PolicyPublisher,
        counters: Counters,
        config: LoopConfig,
        report: Report,
        save: Callable[[], None],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self.engine, self.publisher = engine, publisher
        self.online, self.demonstrations = online, demonstrations
        self.counters, self.config = counters, config
        self.report, self.save, self.tick = report, save, tick
        self._reader = BatchReader(config.batch_size, engine.device)
        # While a store is short its share goes to the other: no demonstrations is plain SAC.
        self._mixture = Mixture([online, demonstrations], shares=(0.5, 0.5), discount=config.discount)
        self._demonstrations_only = Mixture([demonstrations], shares=(1.0,), discount=config.discount)
        self._metrics: dict[str, Any] = {}
        self._reported_at = (time.monotonic(), engine.updates)

    def ready(self) -> bool:
        """Whether the next step may be taken: enough data, and within the limit on the UTD ratio."""
        if self.counters.training_started_at is None:
            if len(self.online) < self.config.training_starts:
                return False
            self.counters.training_started_at = self.counters.environment_steps
        limit = self.config.max_utd_ratio
        return limit is None or self.counters.updates + 1 <= limit * self.counters.environment_steps

    def actor_may_step(self) -> bool:
        """Whether the actor may go on without the UTD ratio falling below ``min_utd_ratio``."""
        least, started = self.config.min_utd_ratio, self.counters.training_started_at
        if least is None or started is None:
            return True
        ahead = (self.counters.environment_steps - started) * least - self.counters.updates
        return ahead < max(self.config.steps_per_update, least)

    def pretrain(self, stop: Stop) -> None:
        """Take ``pretrain_steps`` on demonstrations alone, then publish the policy."""
        steps = self.config.pretrain_steps
        if steps and not len(self.demonstrations):
            raise ValueError(f"pretrain_steps is {steps}, but there are no demonstrations; give --demo_paths")
        while self.engine.updates < steps and not stop.is_set():
            self._update(self._demonstrations_only)
        self.publish()

    def step(self) -> None:
        """Take one gradient step with everything that is due after it."""
        self._update(self._mixture)
        self.counters.updates += 1
        if self.counters.updates % self.config.steps_per_update == 0:
            self.publish()
        if self.config.save_interval and self.counters.updates % self.config.save_interval == 0:
            self.save()

    def publish(self) -> PolicySnapshot:
        """Make the present policy the actor's."""
        return self.publisher.publish(
            self.engine.agent.networks, self.engine.agent.policy_networks, self.engine.updates
        )

    def finished(self) -> bool:
        """Whether ``max_steps`` are done."""
        return self.counters.updates >= self.config.max_steps

    def _update(self, source: Mixture) -> None:
        with_actor = (self.engine.updates + 1) % self.config.critic_to_actor_ratio == 0
        self._metrics.update(self.engine.update(self._reader.read(source), with_actor))
        if self.engine.updates % self.config.log_interval == 0:
            now, updates = time.monotonic(), self.engine.updates
            then, before = self._reported_at
            self._reported_at = (now, updates)
            metrics = {name: float(value) for name, value in self._metrics.items()}
            metrics["learner/updates_per_second"] = (updates - before) / max(now - then, 1e-9)
            metrics["learner/utd_ratio"] = self.counters.utd_ratio
            self.report(metrics)
            check_finite(metrics, updates)
        self.tick()


def run_synchronous(actor: Actor, learner: Learner, stop: Stop) -> None:
    """Alternate in one thread at a fixed UTD ratio (``max_utd_ratio``, or 1): reproducible bit for bit on the CPU."""
    learner.pretrain(stop)
    ratio = learner.config.max_utd_ratio or 1.0
    owed = 0.0
    while not stop.is_set():
        actor.step()
        if not learner.ready():
            continue
        owed += ratio
        while owed >= 1.0 and not stop.is_set():
            owed -= 1.0
            learner.step()
            if learner.finished():
                stop.set("the step limit is reached")


def run_threaded(actor: Actor, learner: Learner, stop: Stop) -> None:
    """Run the actor in a thread of its own and the learner in this one, until ``stop``.

    Raises:
        BaseException: whatever ended either of them; both have stopped by then.
    """
    failures: list[BaseException] = []

    def act() -> None:
        try:
            while not stop.is_set():
                if learner.actor_may_step():
                    actor.step()
                else:
                    stop.wait(0.001)
        except BaseException as error:
            failures.append(error)
            stop.set(f"the actor failed: {error}")

    thread = threading.Thread(target=act, name="actor")
    try:
        learner.pretrain(stop)
        thread.start()
        while not stop.is_set():
            if learner.finished():
                stop.set("the step limit is reached")
            elif learner.ready():
                learner.step()
            else:
                learner.tick()
                stop.wait(0.005)
    except BaseException as error:
        stop.set(f"the learner failed: {error}")
        raise
    finally:
        if thread.ident is not None:
            thread.join()
    if failures:
        raise failures[0]
