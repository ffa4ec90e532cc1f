"""The actor's and the learner's loops, and the ways to run them: two threads, lock-step, or the learner alone.

One environment step: act, step the environment, record the EXECUTED action, append to the online store; a step that a
human or scripted operator took goes to the demonstrations too. One learner step: sample half and half, update, and
every ``steps_per_update`` updates publish a numbered snapshot of the policy. The learner takes all updates from one
with the actor to the next as one block, drawn and prepared together, and single ones where that is too many.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from typing import Any, Protocol

import gymnasium
import numpy as np

from serl_fast.data.batches import BatchReader
from serl_fast.data.readers import Reader
from serl_fast.engine import Engine, NonFiniteLossError, PolicyPublisher, PolicyRunner, PolicySnapshot
from serl_fast.envs import executed_action, make_transition
from serl_fast.evaluation import EVALUATION_SEEDS, Evaluations, succeeded
from serl_fast.replay import Mixture, ReplayStore
from serl_fast.schedule import STEP_LIMIT, Counters, LoopConfig, Stop, crossed

Report = Callable[[dict[str, float]], None]


class Appends(Protocol):
    """What the actor needs of a store."""

    def append(self, transition: dict[str, Any], continues: bool) -> Any:
        """Add one transition; ``continues``: it follows the one appended before it."""


ACTOR_PATIENCE = 10.0  # s that the actor gets to finish its step when the run ends


class _Episode:
    """The episode in progress."""

    def __init__(self, observation: dict[str, np.ndarray]) -> None:
        self.observation = observation
        self.length, self.total, self.success = 0, 0.0, False
        self.intervened = False  # whether the operator took the step just before
        self.intervention_steps = self.intervention_count = 0

    def metrics(self) -> dict[str, float]:
        return {
            "environment/episode/r": self.total,
            "environment/episode/l": float(self.length),
            "environment/episode/succeed": float(self.success),
            "environment/episode/intervention_count": float(self.intervention_count),
            "environment/episode/intervention_steps": float(self.intervention_steps),
            "environment/episode/intervention_rate": self.intervention_steps / self.length,
        }


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
        online: Appends,
        demonstrations: Appends,
        counters: Counters,
        config: LoopConfig,
        report: Report,
        stop: Stop,
    ) -> None:
        self.env = env
        self.runner, self.publisher = runner, publisher
        self.online, self.demonstrations = online, demonstrations
        self.counters, self.config, self.report, self.stop = counters, config, report, stop
        self.accepted: PolicySnapshot | None = None  # the policy that reached stop_success_rate
        self._snapshot: PolicySnapshot | None = None
        self._random = np.random.default_rng([config.seed, 1])
        self._episode: _Episode | None = None
        self.evaluations = Evaluations(eval_env, self._mode, counters, config, report, stop)

    def step(self) -> None:
        """Take one environment step; between episodes, evaluate when it is time.

        Raises:
            ValueError: the operator's action has another shape, or the environment returned a value that is not finite.
        """
        snapshot = self.publisher.newest(after=self.runner.version)
        if snapshot is not None:
            self.runner.load(snapshot)
            self._snapshot = snapshot
        if self._episode is None:
            if self.evaluations.run_if_due():
                self.accepted = self._snapshot
            if self.stop.is_set():
                return
            self._episode = self._begin_episode()
        episode = self._episode
        action = self._choose(episode.observation)
        if not np.isfinite(action).all():
            raise NonFiniteLossError(f"the policy's action is not finite, so it was not executed: {action}")
        step = self.env.step(action)
        following, reward, terminated, truncated, info = step
        intervened = "intervene_action" in info
        if intervened:
            action = executed_action(info["intervene_action"], action)
        transition = make_transition(episode.observation, action, step)
        self.online.append(transition, continues=episode.length > 0)
        if intervened:
            # Operators come and go: a segment continues only the segment of the step just before.
            self.demonstrations.append(transition, continues=episode.intervened)
            episode.intervention_steps += 1
            episode.intervention_count += not episode.intervened
            self.counters.interventions += not episode.intervened
        episode.intervened = intervened
        episode.observation = following
        episode.length += 1
        episode.total += float(reward)
        episode.success = episode.success or succeeded(float(reward), bool(terminated), info)
        self.counters.environment_steps += 1
        if terminated or truncated:
            self._episode = None
            self.counters.episodes += 1
            self.counters.recent_successes.append(episode.success)
            self.report({**episode.metrics(), "environment/episode/policy_version": float(self.runner.version)})

    def state_dict(self) -> dict[str, Any]:
        """Random state and the evaluation schedule, for a checkpoint."""
        return {
            "random": self._random.bit_generator.state,
            "noise": self.runner.generator.get_state(),
            **self.evaluations.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`, with a new episode."""
        self._random.bit_generator.state = state["random"]
        self.runner.generator.set_state(state["noise"].cpu())
        self.evaluations.load_state_dict(state)

    def _begin_episode(self) -> _Episode:
        seed = int(np.random.SeedSequence([self.config.seed, 2, self.counters.episodes]).generate_state(1)[0])
        observation, _ = self.env.reset(seed=seed % EVALUATION_SEEDS)
        return _Episode(observation)

    def _choose(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        if self.counters.environment_steps < self.config.random_steps:
            space = self.env.action_space
            assert isinstance(space, gymnasium.spaces.Box)
            return self._random.uniform(space.low, space.high).astype(np.float32)
        return self.runner.act(observation)

    def _mode(self, observation: dict[str, np.ndarray]) -> np.ndarray:
        return self.runner.act(observation, deterministic=True)

    @property
    def evaluation_due(self) -> bool:
        """Whether it is time for an evaluation; at the end of a run, whether one is missing."""
        return self.evaluations.due


class Learner:
    """Samples, updates, publishes, reports and saves.

    Args:
        engine: runs the updates.
        online: the actor's steps; None where nobody acts, and updates are on demonstrations alone.
        demonstrations: demonstrations and interventions.
        publisher: where policies go.
        counters: shared with the actor.
        config: the schedule.
        report: receives the metrics of the last ``log_interval`` gradient steps, their means, when these are over.
        save: called every ``save_interval`` gradient steps.
        tick: called after every call of the engine, for the progress display.
        reader: where batches come from; by default they are drawn in line. Its source, if it has one, is the engine's.
    """

    def __init__(
        self,
        engine: Engine,
        online: ReplayStore | None,
        demonstrations: ReplayStore,
        publisher: PolicyPublisher,
        counters: Counters,
        config: LoopConfig,
        report: Report,
        save: Callable[[], Any],
        tick: Callable[[], None] = lambda: None,
        reader: Reader | None = None,
    ) -> None:
        self.engine, self.publisher = engine, publisher
        self.online, self.demonstrations = online, demonstrations
        self.counters, self.config = counters, config
        self.report, self.save, self.tick = report, save, tick
        self._reader = reader or BatchReader(config.batch_size, engine.device)
        self._demonstrations_only = Mixture([demonstrations], shares=(1.0,), discount=config.discount)
        self._mixture = self._demonstrations_only
        if online is not None:
            # While a store is short its share goes to the other: no demonstrations is plain SAC.
            self._mixture = Mixture([online, demonstrations], shares=(0.5, 0.5), discount=config.discount)
        self._rates: dict[str, float] = {}  # of the interval whose metrics are on their way
        self._reported_at = (time.monotonic(), engine.updates)
        self._unreported = 0  # gradient steps since metrics were asked for

    def may_take(self) -> int:
        """Gradient steps that may be taken now: there is enough data, up to ``max_steps`` and the UTD ratio's limit."""
        if self._starting():
            return 0
        if self.counters.training_started_at is None:
            self.counters.training_started_at = self.counters.environment_steps
        limit, most = self.config.max_utd_ratio, self.config.max_steps
        if limit is not None:
            most = min(most, math.floor(limit * self.counters.environment_steps))
        return max(most - self.counters.updates, 0)

    def _starting(self) -> bool:
        """Whether more of the actor's steps are needed before learning."""
        return self.online is not None and len(self.online) < self.config.training_starts

    def actor_may_step(self) -> bool:
        """Whether the actor may go on without the UTD ratio falling below ``min_utd_ratio``."""
        least, started = self.config.min_utd_ratio, self.counters.training_started_at
        if least is None or started is None or self._starting():
            return True  # the learner is waiting for data
        ahead = (self.counters.environment_steps - started) * least - self.counters.updates
        return ahead < max(self.config.steps_per_update, least)

    def prepare(self, stop: Stop, at_once: float = math.inf) -> None:
        """Compile, take ``pretrain_steps`` on demonstrations alone, publish the policy: all before anything moves.

        Args:
            stop: ends the pre-training.
            at_once: the most that :meth:`step` will be allowed at once.
        """
        if self.engine.execution != "eager":
            print("compiling the update ...", flush=True)
        for updates in self._sizes(at_once):
            if not stop.is_set():
                self._warm_up(updates)
        self._reported_at = (time.monotonic(), self.engine.updates)  # compiling is not learning
        steps = self.config.pretrain_steps
        if steps and not len(self.demonstrations):
            raise ValueError(f"pretrain_steps is {steps}, but there are no demonstrations; give --demo_paths")
        while self.engine.updates < steps and not stop.is_set():
            updates = self._size(min(steps - self.engine.updates, at_once))
            self._update(self._demonstrations_only, updates)
            self._after_update(updates)
        self.publish()

    def step(self, most: int = 1) -> int:
        """Call the engine once, with everything that is due after it.

        Args:
            most: gradient steps that may be taken, at least 1.

        Returns:
            Those that were: a block, or one.
        """
        before = self.counters.updates
        updates = self._size(min(most, self.config.max_steps - before))
        self._update(self._mixture, updates)
        self.counters.updates += updates
        self._after_update(updates)
        if crossed(self.config.steps_per_update, before, self.counters.updates):
            self.publish()
        if crossed(self.config.save_interval, before, self.counters.updates):
            self.save()
        return updates

    def publish(self) -> PolicySnapshot:
        """Make the present policy the actor's."""
        return self.publisher.publish(
            self.engine.agent.networks, self.engine.agent.policy_networks, self.engine.updates
        )

    def close(self) -> None:
        """End the threads that draw batches ahead."""
        self._reader.close()

    def finished(self) -> bool:
        """Whether ``max_steps`` are done."""
        return self.counters.updates >= self.config.max_steps

    def _size(self, most: float) -> int:
        """Gradient steps of the next call, of which ``most`` may be taken: a block ends with the actor's step."""
        block = self.config.critic_to_actor_ratio
        return block if most >= block and self.engine.updates % block == 0 else 1

    def _sizes(self, at_once: float) -> list[int]:
        """The numbers of gradient steps that calls will have; single ones are left out only where none can come."""
        config, block = self.config, self.config.critic_to_actor_ratio
        if block > at_once:
            return [1]
        done, pretrained = self.engine.updates, max(self.engine.updates, config.pretrain_steps)
        ends = (done, pretrained, pretrained + config.max_steps - self.counters.updates)
        limited = config.max_utd_ratio is not None or at_once < math.inf
        return [block, 1] if block > 1 and (limited or any(end % block for end in ends)) else [block]

    def _warm_up(self, updates: int) -> None:
        self.engine.warm_up(self._reader.blank(self._mixture, updates), updates)

    def _update(self, source: Mixture, updates: int) -> None:
        before = self.engine.updates
        with_actor = (before + updates) % self.config.critic_to_actor_ratio == 0
        try:
            self.engine.update_block(self._reader.read(source, updates), updates, with_actor)
        except NonFiniteLossError:
            if source is self._mixture:
                self.recount(before)
            raise

    def recount(self, before: int) -> None:
        """After a failure, count what was taken alone.

        Earlier updates of its block were taken; where the device is looked at now and then, some were counted before.

        Args:
            before: ``engine.updates`` when ``counters.updates`` was right.
        """
        self.counters.updates = max(self.counters.updates + self.engine.updates - before, 0)

    def report_rest(self) -> None:
        """At the end of a run: report what is still on its way, and the gradient steps since the last interval."""
        while (metrics := self._newest_metrics(wait=True)) is not None:
            self.report({**metrics, **self._rates})
        if not self._unreported:
            return
        self._request_metrics()
        metrics = self._newest_metrics(wait=True)
        if metrics is not None:
            self.report({**metrics, **self._rates})

    def _newest_metrics(self, wait: bool = False) -> dict[str, float] | None:
        """Means over the last interval, once, when they have come from the device; see ``Engine.newest_metrics``."""
        interval = self.engine.newest_metrics(wait)
        return None if interval is None else interval.metrics

    def _after_update(self, taken: int) -> None:
        """Ask for the metrics that are due, and report those that have come; waits for no device."""
        self._unreported += taken
        if crossed(self.config.log_interval, self.engine.updates - taken, self.engine.updates):
            self._request_metrics()
        metrics = self._newest_metrics()
        if metrics is not None:
            self.report({**metrics, **self._rates})
        self.tick()

    def _request_metrics(self) -> None:
        self._unreported = 0
        now, updates = time.monotonic(), self.engine.updates
        then, before = self._reported_at
        self._reported_at = (now, updates)
        self._rates = {
            "learner/updates_per_second": (updates - before) / max(now - then, 1e-9),
            "learner/utd_ratio": self.counters.utd_ratio,
        }
        self.engine.request_metrics()


def run_alone(learner: Learner, stop: Stop, between: Callable[[], None] = lambda: None) -> None:
    """Run a learner that has demonstrations alone, until ``max_steps`` or ``stop``.

    Args:
        learner: one without online data.
        stop: ends it after the step in progress.
        between: called after every call of the engine: evaluations, for example.
    """
    learner.prepare(stop)
    while not stop.is_set():
        if most := learner.may_take():
            learner.step(most)
            between()
        else:
            stop.set(STEP_LIMIT)
    learner.report_rest()


def run_synchronous(actor: Actor, learner: Learner, stop: Stop) -> None:
    """Alternate in one thread at a fixed UTD ratio (``max_utd_ratio``, or 1): reproducible bit for bit on the CPU."""
    ratio = learner.config.max_utd_ratio or 1.0
    learner.prepare(stop, math.ceil(ratio))  # less than one is owed from before
    owed = 0.0
    while not stop.is_set():
        if learner.finished():
            stop.set(STEP_LIMIT)
            break
        actor.step()
        if not learner.may_take():
            learner.tick()
            continue
        owed += ratio
        while owed >= 1.0 and not learner.finished():
            owed -= learner.step(int(owed))
    learner.report_rest()


def run_threaded(actor: Actor, learner: Learner, stop: Stop) -> None:
    """Run the actor in a thread of its own and the learner in this one, until ``stop``.

    Raises:
        RuntimeError: the environment does not return from its step, or the actor's thread was told to exit.
        Exception: whatever ended either loop; both have stopped by then.
    """
    failures: list[BaseException] = []

    def act() -> None:
        try:
            while not stop.is_set():
                if learner.actor_may_step():
                    actor.step()
                else:
                    time.sleep(0.001)
        except BaseException as error:  # a driver may also call sys.exit
            failures.append(error)
            stop.set(f"the actor failed: {error}")

    # A daemon, so that an environment which never returns can not keep the process alive.
    thread = threading.Thread(target=act, name="actor", daemon=True)
    try:
        learner.prepare(stop)
        thread.start()
        while not stop.is_set():
            if learner.finished():
                stop.set(STEP_LIMIT)
            elif most := learner.may_take():
                learner.step(most)
            else:
                learner.tick()
                time.sleep(0.005)
    except BaseException as error:
        stop.set(f"the learner failed: {error}")
        raise
    finally:
        if thread.ident is not None:
            thread.join(ACTOR_PATIENCE)
    if failures:
        if isinstance(failures[0], Exception):
            raise failures[0]
        raise RuntimeError(f"the actor ended with {failures[0]!r}") from failures[0]
    if thread.is_alive():
        raise RuntimeError(f"the environment did not return from its step within {ACTOR_PATIENCE:g} s")
    learner.report_rest()
