"""Hybrid training: half demonstrations, half online data, with a human or scripted operator correcting the policy.

python -m serl_fast.train_hybrid --env serl_robots/PickCube-v0 --demo_paths demos.pkl --operator scripted
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import gymnasium
import numpy as np
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.parts import normalize_states
from serl_fast.agents.sac_config import SACConfig, from_dict
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
from serl_fast.data.demonstrations import demonstrations_to_store, load_demonstrations
from serl_fast.engine import (
    Engine,
    EngineConfig,
    NonFiniteLossError,
    PolicyPublisher,
    PolicyRunner,
    default_execution,
)
from serl_fast.envs import SETUP_MODES, load_operator, make_env
from serl_fast.evaluation import EvaluationResult, evaluate
from serl_fast.interop.pretrained import load_pretrained, resnet10_trunks
from serl_fast.logging import RunLogger, plot_progress, write_video
from serl_fast.loop import EVALUATION_SEEDS, Actor, Learner, run_synchronous, run_threaded
from serl_fast.networks.encoder import Encoder
from serl_fast.replay import ReplayStore
from serl_fast.schedule import Counters, Stop
from serl_fast.train_hybrid_config import PRESETS, TrainHybridConfig


class Run:
    """One training run: everything built from the flags, and what is saved of it."""

    def __init__(self, config: TrainHybridConfig) -> None:
        self.config = config
        self.device = _device(config.device)
        torch.set_num_threads(config.threads or _default_threads(config, self.device))
        # One stream each for the weights, the learner's noise, the actor's noise, and the two stores.
        seeds = np.random.SeedSequence(config.seed).generate_state(5).tolist()
        torch.manual_seed(seeds[0])
        self.store_seeds = seeds[3:]
        mode = SETUP_MODES[config.setup_mode]
        operator, size = load_operator(config.operator), config.image_size
        self.env = make_env(config.env, config.image_keys, mode, operator=operator, image_size=size)
        self.eval_env = None
        if config.eval_interval or config.final_eval_episodes:
            self.eval_env = make_env(config.env, config.image_keys, mode, render_mode="rgb_array", image_size=size)
        self.counters, self.stop = Counters(), Stop()
        self.interrupted = False
        self.directory, checkpoint = self._place()
        self.agent = self._agent(checkpoint)
        self.demonstrations, self.online = self._stores(checkpoint)
        if checkpoint is None:
            self._normalize()
        execution = default_execution() if config.execution == "auto" else config.execution
        interval = None if self.device.type == "cpu" else config.log_interval
        engine_config = EngineConfig(execution, config.precision, config.strict_execution, interval)
        self.engine = Engine(self.agent, engine_config, seed=seeds[1], device=self.device)
        print(
            f"execution {execution}, precision {config.precision}, device {self.device}, "
            f"{torch.get_num_threads()} thread(s)"
        )
        self.logger = RunLogger(self.directory)
        self._write_config()
        loop, publisher = config.loop(), PolicyPublisher()
        runner = PolicyRunner(self.agent, seed=seeds[2], device=self.device)
        self.actor = Actor(
            self.env,
            self.eval_env,
            runner,
            publisher,
            self.online,
            self.demonstrations,
            self.counters,
            loop,
            self.report,
            self.stop,
        )
        self.learner = Learner(
            self.engine,
            self.online,
            self.demonstrations,
            publisher,
            self.counters,
            loop,
            self.report,
            self.save,
            self.tick,
        )
        if checkpoint is not None:
            self.engine.load_state_dict(checkpoint["engine"])
            self.counters.load_state_dict(checkpoint["counters"])
            self.actor.load_state_dict(checkpoint["actor"])

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
            _close(self.env)

    def finish(self) -> EvaluationResult | None:
        """Save the final policy, evaluate it on fresh episodes, draw and film; print where everything is."""
        if self.actor.accepted is not None:
            self.actor.accepted.load_into(self.agent.networks)  # the very policy that passed the evaluation
        final = save_checkpoint(self.directory / "final_model.pth", self._policy_content())
        result = None
        if self.eval_env is not None:
            if self.config.final_eval_episodes and not self.interrupted:
                result = self._final_evaluation(self.eval_env)
            _close(self.eval_env)
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
        self.engine.check()
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

    def _place(self) -> tuple[Path, dict[str, Any] | None]:
        """The run's folder, and the checkpoint to continue from."""
        config = self.config
        if not config.resume:
            directory = config.save_dir or _new_directory(config)
            if (directory / "metrics.csv").exists():
                raise ValueError(f"{directory} holds a run already; give --resume, or another --save_dir")
            return directory, None
        directory = config.save_dir or _newest_run()
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
        self.logger.write_config({**_plain(self.config), **used})

    def _save_inspection(self, error: Exception) -> str:
        """After an update that was not finite: save what it saw; says where."""
        if not isinstance(error, NonFiniteLossError) or error.inspection is None:
            return ""
        path = self.directory / f"non_finite_{error.inspection['updates'] + 1}.pth"
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
        return {"online": self.online, "demonstrations": self.demonstrations}

    def _agent(self, checkpoint: dict[str, Any] | None) -> Agent:
        config, mode = self.config, SETUP_MODES[self.config.setup_mode]
        space = _flat_space(self.env)
        state_dim = space.get("state", _EMPTY).shape[0]
        sizes = [space[key].shape[:2] for key in config.image_keys]
        if config.algorithm == "sac":
            agent = build_agent(state_dim, mode.action_dim, mode.grippers, config.image_keys, config.agent(sizes))
        else:
            builder = import_callable(config.algorithm, "algorithm")
            agent = builder(state_dim, mode.action_dim, config.image_keys)
        networks = dict(agent.networks.items())
        if config.pretrained_encoder is not None:
            _check_takes_pretrained(networks.get("encoder"), config)
        if checkpoint is not None:
            mine, saved = _flat(agent.settings), _flat(_complete(checkpoint["agent"]))
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
        example = _example_transition(self.env)
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

    def _final_evaluation(self, env: gymnasium.Env[Any, Any]) -> EvaluationResult:
        runner = PolicyRunner(self.agent, device=self.device)
        result = evaluate(
            env,
            lambda observation: runner.act(observation, deterministic=True),
            self.config.final_eval_episodes,
            seed=EVALUATION_SEEDS * (1 + self.config.seed) + EVALUATION_SEEDS // 2,
            record_episodes=self.config.video_episodes if _renders(env) else 0,
            should_stop=lambda: self.interrupted,
        )
        if result.successes:
            self.report({f"final_{name}": value for name, value in result.metrics().items()})
        if result.frames:
            write_video(self.directory / "rollout.mp4", result.frames, fps=10)
        return result


_EMPTY = gymnasium.spaces.Box(-1, 1, (0,))


def _check_takes_pretrained(encoder: torch.nn.Module | None, config: TrainHybridConfig) -> None:
    try:
        resnet10_trunks(encoder)
    except ValueError as error:
        of = f"encoder {config.encoder}" if config.algorithm == "sac" else f"algorithm {config.algorithm}"
        cameras = f"image_keys {' '.join(config.image_keys)}" if config.image_keys else "no image_keys"
        raise ValueError(f"--pretrained_encoder has no use with --{of} and {cameras}: {error}") from None


def _renders(env: gymnasium.Env[Any, Any]) -> bool:
    """Whether an environment can be filmed; if not, why is said. Training does not fail for want of a video."""
    if env.render_mode != "rgb_array":
        print(f"no video: {env.spec.id if env.spec else env} does not render (it takes no render_mode='rgb_array')")
        return False
    try:
        env.reset()
        env.render()
    except Exception as error:  # a missing graphics library shows only now
        print(f"no video: {error}")
        return False
    return True


def _close(env: gymnasium.Env[Any, Any]) -> None:
    """Close an environment; what goes wrong is said, and hides nothing that went wrong before."""
    try:
        env.close()
    except Exception as error:
        print(f"closing the environment failed: {error!r}", file=sys.stderr)


def _device(name: str) -> torch.device:
    if name != "auto":
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError) as error:  # torch's ways of saying unknown or absent
            raise ValueError(f"device {name!r} can not be used: {error}") from error
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def _default_threads(config: TrainHybridConfig, device: torch.device) -> int:
    """Threads for torch, so that learner and actor do not fight for cores.

    Beyond two threads a 256-wide MLP gains nothing, and a team that outnumbers the free cores waits at its barriers.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    wanted = cores - 1 if config.image_keys or device.type != "cpu" else 2
    return max(1, min(wanted, cores - 1))


def _complete(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the defaults of fields that the version which wrote them did not have."""
    if settings.get("algorithm") not in ("sac", "hybrid_sac"):
        return settings
    return {**settings, "config": dataclasses.asdict(from_dict(SACConfig, settings["config"]))}


def _flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings with the nested ones beside the others, and sequences comparable after a checkpoint."""
    merged = {**settings, **settings.get("config", {})}
    return {key: list(v) if isinstance(v, tuple) else v for key, v in merged.items() if key != "config"}


def _flat_space(env: gymnasium.Env[Any, Any]) -> dict[str, gymnasium.spaces.Box]:
    assert isinstance(env.observation_space, gymnasium.spaces.Dict)
    return dict(env.observation_space.spaces)  # type: ignore[arg-type]


def _example_transition(env: gymnasium.Env[Any, Any]) -> dict[str, Any]:
    """A transition of zeros with the environment's shapes: the stores' schema."""
    observation = {key: np.zeros(space.shape, space.dtype) for key, space in _flat_space(env).items()}
    return {
        "observations": observation,
        "actions": np.zeros(env.action_space.shape or (), np.float32),
        "next_observations": observation,
        "rewards": np.float32(0),
        "terminated": False,
        "truncated": False,
        "grasp_penalty": np.float32(0),
    }


def _new_directory(config: TrainHybridConfig) -> Path:
    name = config.env.rpartition("/")[2].rpartition(":")[2]
    return Path("runs") / f"{name}_seed{config.seed}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"


def _newest_run() -> Path:
    runs = [path.parent for path in Path("runs").glob("*/checkpoint_*.pth")]
    if not runs:
        raise ValueError("resume: no run with a checkpoint under runs/; give --save_dir")
    return max(runs, key=lambda path: path.stat().st_mtime)


def _plain(config: TrainHybridConfig) -> dict[str, Any]:
    values = dataclasses.asdict(config)
    return {
        key: str(v) if isinstance(v, Path) else [str(p) for p in v] if key == "demo_paths" else v
        for key, v in values.items()
    }


def run(argv: list[str] | None = None) -> int:
    """Parse, train, finish; the exit status."""
    config = parse(TrainHybridConfig, argv, description=__doc__ or "", presets=PRESETS)
    training = Run(config)
    with training.interruptible():
        training.train()
        training.finish()
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
