"""Hybrid training: half demonstrations, half online data, with a human or scripted operator correcting the policy.

python -m serl_fast.train_hybrid --env serl_robots/PickCube-v0 --demo_paths demos.pkl --operator scripted
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium
import numpy as np
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.cached_features import encode_images, frozen_encoder, with_cached_features
from serl_fast.agents.parts import normalize_states
from serl_fast.checkpoint import (
    latest_checkpoint,
    load_checkpoint,
    newest_stores,
    save_checkpoint,
    save_run,
    save_stores,
)
from serl_fast.cli import import_callable, main, parse
from serl_fast.core import Agent
from serl_fast.data.dali import DaliReader
from serl_fast.data.demonstrations import demonstrations_to_store, load_demonstrations
from serl_fast.data.feature_cache import CropEncoder, FeatureCache, describe
from serl_fast.data.readers import Reader, make_reader
from serl_fast.engine import (
    Engine,
    EngineConfig,
    NonFiniteLossError,
    PolicyPublisher,
    PolicyRunner,
    default_execution,
)
from serl_fast.engine.ranks import Alone, Ranks, join
from serl_fast.envs import SETUP_MODES, load_operator, make_env
from serl_fast.evaluation import EvaluationResult, evaluate
from serl_fast.follow import SharedLearner
from serl_fast.interop.pretrained import load_pretrained
from serl_fast.kernels.choice import use_backend
from serl_fast.logging import RunLogger, plot_progress, progress, write_video
from serl_fast.loop import EVALUATION_SEEDS, Actor, Appends, Learner, run_synchronous, run_threaded
from serl_fast.networks.encoder import Encoder
from serl_fast.replay import ReplayStore
from serl_fast.schedule import Counters, Stop
from serl_fast.train_hybrid_config import PRESETS, TrainHybridConfig
from serl_fast.train_hybrid_setup import (
    EMPTY_STATE,
    ROOM_FOR_INTERVENTIONS,
    Spaces,
    can_be_filmed,
    check_takes_pretrained,
    choose_device,
    close_quietly,
    default_threads,
    example_transition,
    flattened,
    new_directory,
    newest_run,
    plain_values,
    spaces_of,
    with_defaults,
)


class Run:
    """One training run: everything built from the flags, and what is saved of it."""

    def __init__(self, config: TrainHybridConfig, ranks: Ranks | Alone | None = None) -> None:
        self.config, self.ranks = config, ranks or Alone()
        self.device = self.ranks.device or choose_device(config.device)
        use_backend("auto" if config.augment == "dali" else config.augment, self.device)
        torch.set_num_threads(config.threads or default_threads(config, self.device))
        # One stream each for the weights, the learner's noise, the actor's noise, the two stores, and cached crops.
        seeds = np.random.SeedSequence(config.seed).generate_state(6).tolist()
        torch.manual_seed(seeds[0])
        self.store_seeds = seeds[3:5]
        leads = self.ranks.rank == 0
        self.env: gymnasium.Env[Any, Any] | None = None
        self.eval_env: gymnasium.Env[Any, Any] | None = None
        if leads:
            self.env, self.eval_env = self._environments()
        self.spaces: Spaces = self.ranks.broadcast(spaces_of(self.env) if self.env else None)
        self.counters, self.stop = Counters(), Stop()
        self.interrupted = False
        self.directory, checkpoint = self.ranks.broadcast(self._place() if leads else None)
        self.agent = self._agent(checkpoint)
        self.demonstrations, self.online = self._stores(checkpoint)
        if not leads:
            self.demonstrations.seed, self.online.seed = self.ranks.seeds(config.seed, 2)
        if checkpoint is None:
            self._normalize()
        self.caches = self._feature_caches(seeds[5])
        execution = default_execution() if config.execution == "auto" else config.execution
        interval = None if self.device.type == "cpu" else config.log_interval
        engine_config = EngineConfig(execution, config.precision, config.strict_execution, interval)
        reader = self._reader()
        self.agent = self.ranks.share_noise(self.agent, self.device)
        self.engine = Engine(
            self.agent,
            engine_config,
            seed=seeds[1],
            device=self.device,
            source=self.ranks.share_source(reader.source),
            average=self.ranks.average,
        )
        print(
            f"execution {execution}, precision {config.precision}, device {self.device}, "
            f"{torch.get_num_threads()} thread(s)"
        )
        if leads and (remark := engine_config.remark(self.device)):
            print(remark)
        self.learner = self._learner(reader)
        if checkpoint is not None:
            self.engine.load_state_dict(checkpoint["engine"])
            self.counters.load_state_dict(checkpoint["counters"])
        self._fill_caches()  # by the trunk of the checkpoint
        if leads:
            self._lead(seeds[2], checkpoint)
        self.ranks.synchronize(self.engine)

    def _lead(self, seed: int, checkpoint: dict[str, Any] | None) -> None:
        """What only rank 0 has: the log, the actor and its policy."""
        assert self.env is not None
        self.logger = RunLogger(self.directory)
        self._write_config()
        execution, strict = self.engine.execution, self.config.strict_execution
        runner = PolicyRunner(self.agent, seed=seed, device=self.device, execution=execution, strict=strict)
        if execution != "eager":
            runner.warm_up(example_transition(self.spaces)["observations"])
        online, demonstrations = self._filled()
        if isinstance(self.learner, SharedLearner):
            online, demonstrations = self.learner.forwarded()
        self.actor = Actor(
            self.env,
            self.eval_env,
            runner,
            self.learner.publisher,
            online,
            demonstrations,
            self.counters,
            self.learner.config,
            self.report,
            self.stop,
        )
        if checkpoint is not None:
            self.actor.load_state_dict(checkpoint["actor"])

    def _learner(self, reader: Reader) -> Learner:
        leads, loop = self.ranks.rank == 0, self.config.loop()
        arguments: dict[str, Any] = {
            "config": dataclasses.replace(loop, batch_size=self.ranks.share(loop.batch_size)),
            "report": self.report if leads else lambda metrics: None,
            "tick": self.tick if leads else lambda: None,
            "reader": reader,
        }
        given = (self.engine, *self._drawn_from(), PolicyPublisher(), self.counters)
        if isinstance(self.ranks, Alone):
            return Learner(*given, save=self.save, **arguments)
        return SharedLearner(self.ranks, self._filled(), *given, save=self.save, **arguments)

    def train(self) -> None:
        """Run both loops to the end; whatever happens, save what there is.

        Raises:
            RuntimeError: an exception ended a loop; it is the cause.
        """
        run = run_synchronous if self.config.synchronous else run_threaded
        try:
            with self.logger.display():
                run(self.actor, self.learner, self.stop)
            self.save()
        except Exception as error:
            inspection = self._save_inspection(error)
            raise RuntimeError(f"training stopped: {error}; {inspection}{self._salvage()}") from error
        finally:
            if self.engine.execution != self.engine.config.execution:
                self._write_config()
            self.learner.close()
            if self.env is not None:
                close_quietly(self.env)

    def follow(self) -> int:
        """What every rank but 0 does: learn as rank 0 says, to the end; the exit status."""
        for number in (signal.SIGINT, signal.SIGTERM):  # rank 0 says when it is over
            signal.signal(number, signal.SIG_IGN)
        assert isinstance(self.learner, SharedLearner)
        try:
            self.learner.obey(self._save_inspection)
        finally:
            self.learner.close()
        return 0

    def finish(self) -> EvaluationResult | None:
        """Save the final policy, evaluate it on fresh episodes, draw and film; print where everything is."""
        if self.actor.accepted is not None:
            self.actor.accepted.load_into(self.agent.networks)  # the very policy that passed the evaluation
        final = save_checkpoint(self.directory / "final_model.pth", self._policy_content())
        result = None
        if self.eval_env is not None:
            if not self.interrupted:
                result = self._final_evaluation(self.eval_env)
            close_quietly(self.eval_env)
        self.logger.close()
        plot_progress(self.directory / "metrics.csv", self.directory / "success.png")
        print(f"\n{self.stop.reason}")
        if result is not None and result.successes:
            print(f"success rate over {len(result.successes)} fresh episodes: {result.success_rate:.0%}")
        for path in (final, *sorted(set(self.directory.iterdir()) - {final})):
            print(f"  {path}")
        return result

    def save(self) -> Path:
        """Write a checkpoint and, beside it, the replay stores; the newest stores replace older ones.

        Raises:
            NonFiniteLossError: an update was not finite, or the weights hold NaN or infinity; the last good checkpoint
                stays the newest.
        """
        before = self.engine.updates
        try:
            self.engine.check()
        except NonFiniteLossError:
            self.learner.recount(before)
            raise
        if not self.engine.finite():
            raise NonFiniteLossError(f"the weights are not finite after {self.engine.updates} updates")
        stores = self._stores_by_name() if self.config.save_replay else {}
        return save_run(self.directory, self.counters.updates, self._content(), stores)

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C or SIGTERM once: finish the step, save, exit 0. Twice: as usual."""

        def handle(signum: int, frame: FrameType | None) -> None:
            # Whatever the main thread was doing is on hold: no locks here, and a way out before anything else.
            signal.signal(signal.SIGINT, signal.default_int_handler)
            self.interrupted = True
            self.stop.set("interrupted")
            os.write(2, b"\nfinishing the step and saving; press Ctrl-C again to end at once\n")

        previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)

    def report(self, metrics: dict[str, float]) -> None:
        """Log metrics at the present step."""
        self.logger.log(metrics, step=self.engine.updates, environment_steps=self.counters.environment_steps)

    def tick(self) -> None:
        """Show where the run stands."""
        counters = self.counters
        recent = counters.recent_successes.copy()
        self.logger.progress(
            environment_steps=counters.environment_steps,
            updates=counters.updates,
            max_updates=self.config.max_steps,
            utd_ratio=counters.utd_ratio,
            success_rate=counters.success_rate,
            training_success_rate=sum(recent) / len(recent) if recent else None,
            episodes=counters.episodes,
            interventions=counters.interventions,
        )

    def _environments(self) -> tuple[gymnasium.Env[Any, Any], gymnasium.Env[Any, Any] | None]:
        """One to act in, and one without operator for evaluations."""
        config, mode = self.config, SETUP_MODES[self.config.setup_mode]
        operator, size = load_operator(config.operator), config.image_size
        env = make_env(config.env, config.image_keys, mode, operator=operator, image_size=size)
        if not config.eval_interval and not config.final_eval_episodes:
            return env, None
        return env, make_env(config.env, config.image_keys, mode, render_mode="rgb_array", image_size=size)

    def _place(self) -> tuple[Path, dict[str, Any] | None]:
        """The run's folder, and the checkpoint to continue from."""
        config = self.config
        if not config.resume:
            directory = config.save_dir or new_directory(config)
            if (directory / "metrics.csv").exists():
                raise ValueError(f"{directory} holds a run already; give --resume, or another --save_dir")
            return directory, None
        directory = config.save_dir or newest_run()
        path = latest_checkpoint(directory)
        checkpoint = load_checkpoint(path)
        for name in ("env", "setup_mode"):
            given, saved = getattr(config, name), checkpoint[name]
            if given != saved:
                raise ValueError(f"--{name} is {given}; {path} was trained with {saved}: resume with that")
        print(f"resuming from {path}")
        return directory, checkpoint

    def _write_config(self) -> None:
        used = {"execution_used": self.engine.execution, "device_used": str(self.device)}
        self.logger.write_config({**plain_values(self.config), **used})

    def _save_inspection(self, error: Exception) -> str:
        """After an update that was not finite: save what it saw; says where."""
        if not isinstance(error, NonFiniteLossError) or error.inspection is None:
            return ""
        rank = f"_rank{self.ranks.rank}" if self.ranks.rank else ""
        path = self.directory / f"non_finite_{error.inspection['updates'] + 1}{rank}.pth"
        try:
            return f"its batch and the state that it met are in {save_checkpoint(path, error.inspection)}; "
        except OSError as failed:
            return f"its batch and state could not be saved ({failed}); "

    def _salvage(self) -> str:
        """After a failure: save what can be saved, and say what was."""
        step, kept = self.counters.updates, f"older checkpoints in {self.directory} stay"
        finite = False
        try:
            finite = self.engine.finite()
            if finite:
                return f"everything up to here is in {self.save()}"
            folder = save_stores(self.directory, step, self._stores_by_name())
            return f"the weights are not finite and were not saved; the data are in {folder}, {kept}"
        except Exception as error:
            said = f"saving failed as well: {error}; {kept}"
        if not finite:
            return said
        try:  # the weights are small and may still fit where the stores did not
            path = save_checkpoint(self.directory / f"checkpoint_{step}.pth", self._content())
            return f"{said}; the weights alone are in {path}"
        except Exception:
            return said

    def _content(self) -> dict[str, Any]:
        return {
            **self._policy_content(),
            "engine": self.engine.state_dict(),
            "counters": self.counters.state_dict(),
            "actor": self.actor.state_dict(),
        }

    def _policy_content(self) -> dict[str, Any]:
        return {
            "agent": self.agent.settings,
            "networks": self.agent.networks.state_dict(),
            "env": self.config.env,
            "setup_mode": self.config.setup_mode,
            "image_size": self.config.image_size,
            "updates": self.counters.updates,
        }

    def _stores_by_name(self) -> dict[str, ReplayStore]:
        for cache in self.caches or ():
            cache.store.draws = cache.features.draws  # a resumed run draws on from here
        return {"online": self.online, "demonstrations": self.demonstrations}

    def _agent(self, checkpoint: dict[str, Any] | None) -> Agent:
        config, mode = self.config, SETUP_MODES[self.config.setup_mode]
        space = self.spaces.observations
        state_dim = space.get("state", EMPTY_STATE).shape[0]
        sizes = [space[key].shape[:2] for key in config.image_keys]
        if config.algorithm == "sac":
            agent = build_agent(state_dim, mode.action_dim, mode.grippers, config.image_keys, config.agent(sizes))
        else:
            builder = import_callable(config.algorithm, "algorithm")
            agent = builder(state_dim, mode.action_dim, config.image_keys)
        networks = dict(agent.networks.items())
        if config.pretrained_encoder is not None:
            check_takes_pretrained(networks.get("encoder"), config)
        if checkpoint is not None:
            mine, saved = flattened(agent.settings), flattened(with_defaults(checkpoint["agent"]))
            differing = [
                f"{name} {saved.get(name)}, not {mine[name]}" for name in mine if mine[name] != saved.get(name)
            ]
            if differing:
                raise ValueError(f"the run to resume has {'; '.join(differing)}: resume it with its own flags")
        elif config.pretrained_encoder is not None or (
            config.image_keys and config.algorithm == "sac" and config.encoder == "resnet-pretrained"
        ):
            load_pretrained(networks["encoder"], config.pretrained_encoder, target=networks.get("target_encoder"))
        return agent

    def _feature_caches(self, seed: int) -> tuple[FeatureCache, FeatureCache] | None:
        """Those of the online store and the demonstrations, still empty; the agent becomes one that reads them."""
        config = self.config
        if not config.feature_cache:
            return None
        keys, shapes = frozen_encoder(self.agent).image_keys, self.spaces.observations
        networks = self.agent.networks.to(self.device)
        encoder = CropEncoder(
            functools.partial(encode_images, networks),
            {key: shapes[key].shape for key in keys},
            config.feature_cache,
            padding=self.agent.settings["config"]["crop_padding"],
            precision=config.feature_cache_precision,
            device=self.device,
            seed=seed,
        )
        self.agent = with_cached_features(self.agent, config.feature_cache)
        print(describe(encoder, [self.online, self.demonstrations]))
        return FeatureCache(self.online, encoder), FeatureCache(self.demonstrations, encoder)

    def _fill_caches(self) -> None:
        for cache in self.caches or ():
            if len(cache.store):
                progress(cache.fill(), len(cache.store), "encoding crops of stored transitions")

    def _filled(self) -> tuple[Appends, Appends]:
        """Where the actor's steps go, online data first."""
        return self.caches or (self.online, self.demonstrations)

    def _drawn_from(self) -> tuple[ReplayStore, ReplayStore]:
        """The stores that updates read, online data first."""
        if self.caches is None:
            return self.online, self.demonstrations
        return self.caches[0].features, self.caches[1].features

    def _reader(self) -> Reader:
        config, stores = self.config, list(self._drawn_from())
        rows = self.ranks.share(config.batch_size)
        if config.augment == "dali":
            print("replay on the host, drawn in line; its images are cropped there by DALI")
            seed, updates = config.seed + self.ranks.rank, config.cta_ratio
            return DaliReader(rows, config.image_keys, self.device, seed=seed, updates=updates)
        reader, why = make_reader(
            config.replay_device,
            stores,
            rows,
            config.discount,
            self.device,
            synchronous=config.synchronous,
            updates=config.cta_ratio,
            # Growing builds the step anew, which ranks would do at different updates.
            room=None
            if self.ranks.size > 1
            else (self.online.capacity, len(self.demonstrations) + ROOM_FOR_INTERVENTIONS),
        )
        print(why)
        return reader

    def _normalize(self) -> None:
        if not self.config.normalize_state or not len(self.demonstrations):
            return
        observations = self.demonstrations.batch_at(np.arange(len(self.demonstrations)))["observations"]
        encoder = dict(self.agent.networks.items()).get("encoder")
        if "state" in observations and isinstance(encoder, Encoder):
            normalize_states(self.agent.networks, torch.from_numpy(observations["state"]))

    def _stores(self, checkpoint: dict[str, Any] | None) -> tuple[ReplayStore, ReplayStore]:
        """The stores of demonstrations and of online data, in this order."""
        config = self.config
        if checkpoint is not None:
            folder = newest_stores(self.directory, ("demonstrations", "online"))
            if folder is not None:
                print(f"replay stores from {folder}")
                return ReplayStore.load(folder / "demonstrations"), ReplayStore.load(folder / "online")
            print(f"no stores in {self.directory}: starting from the demonstrations, with an empty online store")
        example = example_transition(self.spaces)
        capacity = config.replay_buffer_capacity
        demonstrations = ReplayStore.from_example(example, capacity, seed=self.store_seeds[0])
        online = ReplayStore.from_example(example, capacity, seed=self.store_seeds[1])
        if config.demo_paths:
            width = SETUP_MODES[config.setup_mode].action_dim
            transitions = load_demonstrations(config.demo_paths, config.image_keys, width, like=example)
            if len(transitions) > capacity:
                raise ValueError(
                    f"{len(transitions)} demonstration transitions do not fit; "
                    f"raise --replay_buffer_capacity, which is {capacity}"
                )
            demonstrations_to_store(transitions, demonstrations)
            print(f"{len(demonstrations)} demonstration transitions from {len(config.demo_paths)} file(s)")
        return demonstrations, online

    def _final_evaluation(self, env: gymnasium.Env[Any, Any]) -> EvaluationResult | None:
        """The evaluation after training, which stands for one of those in between that the end left out."""
        due, episodes = self.actor.evaluation_due, self.config.final_eval_episodes
        if not episodes and not due:
            return None
        runner = PolicyRunner(self.agent, device=self.device)
        result = evaluate(
            env,
            lambda observation: runner.act(observation, deterministic=True),
            episodes or self.config.eval_episodes,
            seed=EVALUATION_SEEDS * (1 + self.config.seed) + EVALUATION_SEEDS // 2,
            record_episodes=self.config.video_episodes if can_be_filmed(env) else 0,
            should_stop=lambda: self.interrupted,
        )
        if result.successes:
            metrics = result.metrics()
            final = {f"final_{name}": value for name, value in metrics.items()} if episodes else {}
            self.report({**final, **(metrics if due else {})})
        if result.frames:
            write_video(self.directory / "rollout.mp4", result.frames, fps=10)
        return result


def run(argv: list[str] | None = None) -> int:
    """Parse, train, finish; the exit status."""
    config = parse(TrainHybridConfig, argv, description=__doc__ or "", presets=PRESETS)
    with join(config.device) as ranks:
        training = Run(config, ranks)
        if ranks.rank:
            return training.follow()
        with training.interruptible():
            training.train()
            training.finish()
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
