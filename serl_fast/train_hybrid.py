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
from typing import Any, Literal

import gymnasium
import numpy as np
import torch

from serl_fast.agents.build import build_agent, from_settings
from serl_fast.agents.sac import SACConfig, normalize_states
from serl_fast.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from serl_fast.cli import main, parse
from serl_fast.core import Agent
from serl_fast.data.demonstrations import demonstrations_to_store, load_demonstrations
from serl_fast.engine import Engine, EngineConfig, PolicyPublisher, PolicyRunner, default_execution
from serl_fast.envs import SETUP_MODES, SetupModeName, load_operator, make_env
from serl_fast.evaluation import EvaluationResult, evaluate
from serl_fast.logging import RunLogger, plot_progress, write_video
from serl_fast.loop import EVALUATION_SEEDS, Actor, Learner, run_synchronous, run_threaded
from serl_fast.replay import ReplayStore
from serl_fast.schedule import Counters, LoopConfig, Stop

PRESETS: dict[str, dict[str, Any]] = {
    "quick": {
        "max_steps": 1000,
        "batch_size": 32,
        "training_starts": 100,
        "random_steps": 100,
        "preset": "quick",
    },
    "medium": {"max_steps": 50_000, "batch_size": 128, "training_starts": 1000, "preset": "medium"},
    "full": {"max_steps": 500_000, "batch_size": 256, "training_starts": 5000, "preset": "full"},
}


@dataclasses.dataclass(frozen=True)
class TrainHybridConfig:
    """Flags of ``train_hybrid``.

    Attributes:
        env: any gymnasium id; ``module:Id-v0`` imports ``module`` first.
        demo_paths: demonstration pickles; none means learning from online data and interventions alone.
        image_keys: cameras to learn from; none means learning from the state.
        setup_mode: arms and grippers: 6, 7, 12 or 14 action dimensions.
        max_steps: gradient steps at which the run ends.
        batch_size: transitions per gradient step, half of them demonstrations.
        lr: Adam's learning rate.
        save_dir: where results go; by default runs/<env>_seed<seed>_<time>.
        training_starts: online transitions to wait for before learning.
        random_steps: environment steps with uniformly random actions at the start.
        cta_ratio: critic steps per actor step.
        steps_per_update: gradient steps between two publications of the policy to the actor.
        discount: gamma.
        replay_buffer_capacity: transitions kept in each store.
        pretrain_steps: gradient steps on demonstrations alone before the actor starts.
        log_interval: gradient steps between two lines of losses.
        save_interval: gradient steps between two checkpoints; 0 for none but the last.
        eval_interval: gradient steps between two evaluations; 0 for none.
        eval_episodes: episodes of one evaluation, without interventions.
        final_eval_episodes: fresh episodes after training; 0 for none.
        stop_success_rate: end early when an evaluation and its repetition, four times as long, reach this; 0 for never.
        max_utd_ratio: the learner never exceeds so many gradient steps per environment step.
        min_utd_ratio: the actor waits rather than fall below so many (simulations only).
        operator: who may intervene: "none", "scripted", or module:callable that wraps the environment.
        seed: of every random number.
        device: "auto", "cpu", "cuda", "cuda:1", "mps".
        execution: "auto" is compiled where there is a C++ compiler, else eager.
        precision: of the forward and backward passes.
        threads: torch's threads; 0 chooses: on the CPU two for state observations, all but one for images.
        resume: continue the run in save_dir (or the newest under runs/) from its last checkpoint.
        synchronous: actor and learner take turns in one thread at max_utd_ratio (or 1): reproducible.
        normalize_state: scale the state by the demonstrations' statistics.
        critic_ensemble_size: number of critics.
        critic_subsample_size: critics whose minimum is the target; by default all.
        temperature_init: SAC's temperature at the start.
        target_entropy: by default -(continuous action dimensions) / 2.
        target_update_rate: tau of the target networks.
        hidden_widths: hidden layers of policy and critics.
        save_replay: keep the replay stores beside the last checkpoint, so that resuming loses no data.
        video_episodes: episodes shown in rollout.mp4; 0 for no video.
        preset: defaults of a size; flags given explicitly win.
    """

    env: str = "serl_robots/PickCube-v0"
    demo_paths: tuple[Path, ...] = ()
    image_keys: tuple[str, ...] = ()
    setup_mode: SetupModeName = "single-arm-learned-gripper"
    max_steps: int = 100_000
    batch_size: int = 256
    lr: float = 3e-4
    save_dir: Path | None = None
    training_starts: int = 1000
    random_steps: int = 1000
    cta_ratio: int = 2
    steps_per_update: int = 50
    discount: float = 0.95
    replay_buffer_capacity: int = 200_000
    pretrain_steps: int = 0
    log_interval: int = 100
    save_interval: int = 10_000
    eval_interval: int = 1000
    eval_episodes: int = 20
    final_eval_episodes: int = 50
    stop_success_rate: float = 0.95
    max_utd_ratio: float | None = None
    min_utd_ratio: float | None = None
    operator: str = "none"
    seed: int = 0
    device: str = "auto"
    execution: Literal["auto", "eager", "compiled", "graphed"] = "auto"
    precision: Literal["float32", "tf32", "bfloat16", "float16"] = "float32"
    threads: int = 0
    resume: bool = False
    synchronous: bool = False
    normalize_state: bool = True
    critic_ensemble_size: int = 2
    critic_subsample_size: int | None = None
    temperature_init: float = 0.01
    target_entropy: float | None = None
    target_update_rate: float = 0.005
    hidden_widths: tuple[int, ...] = (256, 256)
    save_replay: bool = True
    video_episodes: int = 3
    preset: Literal["quick", "medium", "full"] | None = None

    def __post_init__(self) -> None:
        self.loop()
        self.agent()
        if self.replay_buffer_capacity < self.training_starts:
            raise ValueError(
                f"replay_buffer_capacity is {self.replay_buffer_capacity}; it must hold at least "
                f"training_starts = {self.training_starts} transitions"
            )
        for name in ("final_eval_episodes", "video_episodes", "threads"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")

    def loop(self) -> LoopConfig:
        """The schedule."""
        shared = {f.name for f in dataclasses.fields(LoopConfig)} & {f.name for f in dataclasses.fields(self)}
        values = {name: getattr(self, name) for name in shared}
        values["stop_success_rate"] = self.stop_success_rate or None
        return LoopConfig(critic_to_actor_ratio=self.cta_ratio, **values)

    def agent(self) -> SACConfig:
        """The agent's hyper-parameters."""
        return SACConfig(
            hidden_widths=self.hidden_widths,
            critic_ensemble_size=self.critic_ensemble_size,
            critic_subsample_size=self.critic_subsample_size,
            initial_temperature=self.temperature_init,
            target_entropy=self.target_entropy,
            target_update_rate=self.target_update_rate,
            learning_rate=self.lr,
            # Beside images the state is squeezed through HIL-SERL's 64-wide branch; alone it is the whole observation
            # and passes as it is, as in SERL's state agents.
            proprioception_dim=64 if self.image_keys else None,
        )


class Run:
    """One training run: everything built from the flags, and what is saved of it."""

    def __init__(self, config: TrainHybridConfig) -> None:
        self.config = config
        self.device = _device(config.device)
        torch.set_num_threads(config.threads or _default_threads(config, self.device))
        torch.manual_seed(config.seed)
        mode = SETUP_MODES[config.setup_mode]
        self.env = make_env(config.env, config.image_keys, mode, operator=load_operator(config.operator))
        self.eval_env = make_env(config.env, config.image_keys, mode, render_mode="rgb_array")
        self.counters, self.stop = Counters(), Stop()
        checkpoint = None
        if config.resume:
            self.directory = config.save_dir or _newest_run()
            path = latest_checkpoint(self.directory)
            checkpoint = load_checkpoint(path, self.device)
            print(f"resuming from {path}")
        else:
            self.directory = config.save_dir or _new_directory(config)
            if (self.directory / "metrics.csv").exists():
                raise ValueError(f"{self.directory} holds a run already; give --resume, or another --save_dir")
        self.agent = self._agent(checkpoint)
        self.demonstrations, self.online = self._stores(checkpoint)
        if checkpoint is None and config.normalize_state and len(self.demonstrations):
            indices = np.arange(len(self.demonstrations))
            observations = self.demonstrations.batch_at(indices)["observations"]
            if "state" in observations:
                normalize_states(self.agent.networks, torch.from_numpy(observations["state"]))
        execution = default_execution() if config.execution == "auto" else config.execution
        engine_config = EngineConfig(execution, config.precision)
        self.engine = Engine(self.agent, engine_config, seed=config.seed, device=self.device)
        print(
            f"execution {execution}, precision {config.precision}, device {self.device}, "
            f"{torch.get_num_threads()} thread(s)"
        )
        self.logger = RunLogger(self.directory)
        self.logger.write_config({**_plain(config), "execution_used": execution, "device_used": str(self.device)})
        loop, publisher = config.loop(), PolicyPublisher()
        runner = PolicyRunner(self.agent, seed=config.seed + 1, device=self.device)
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
            with _interrupts(self.stop), self.logger.display():
                run(self.actor, self.learner, self.stop)
        except Exception as error:
            path = self.save()
            raise RuntimeError(f"training stopped: {error}; everything up to here is in {path}") from error
        self.save()

    def finish(self) -> EvaluationResult | None:
        """Save the final policy, evaluate it on fresh episodes, draw and film; print where everything is."""
        if self.actor.accepted is not None:
            self.actor.accepted.load_into(self.agent.networks)  # the very policy that passed the evaluation
        final = save_checkpoint(self.directory / "final_model.pth", self._policy_content())
        result = None
        if self.config.final_eval_episodes and self.stop.reason != INTERRUPTED:
            result = self._final_evaluation()
        self.logger.close()
        plot_progress(self.directory / "metrics.csv", self.directory / "success.png")
        print(f"\n{self.stop.reason}")
        if result is not None:
            print(f"success rate over {len(result.successes)} fresh episodes: {result.success_rate:.0%}")
        for path in (final, *sorted(set(self.directory.iterdir()) - {final})):
            print(f"  {path}")
        return result

    def save(self) -> Path:
        """Write a checkpoint and, beside it, the replay stores; the newest stores replace older ones."""
        step = self.counters.updates
        stores = self.directory / f"replay_{step}"
        if self.config.save_replay:
            stores.mkdir(parents=True, exist_ok=True)
            self.online.save(stores / "online.npz")
            self.demonstrations.save(stores / "demonstrations.npz")
        content = {
            **self._policy_content(),
            "engine": self.engine.state_dict(),
            "counters": self.counters.state_dict(),
            "actor": self.actor.state_dict(),
        }
        path = save_checkpoint(self.directory / f"checkpoint_{step}.pth", content)
        for older in self.directory.glob("replay_*"):
            if older != stores:
                for file in older.iterdir():
                    file.unlink()
                older.rmdir()
        return path

    def report(self, metrics: dict[str, float]) -> None:
        """Log metrics at the present step."""
        self.logger.log(metrics, step=self.counters.updates, environment_steps=self.counters.environment_steps)

    def tick(self) -> None:
        """Show where the run stands."""
        counters = self.counters
        recent = counters.recent_successes
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

    def _policy_content(self) -> dict[str, Any]:
        return {
            "agent": self.agent.settings,
            "networks": self.agent.networks.state_dict(),
            "env": self.config.env,
            "setup_mode": self.config.setup_mode,
            "updates": self.counters.updates,
        }

    def _agent(self, checkpoint: dict[str, Any] | None) -> Agent:
        if checkpoint is not None:
            return from_settings(checkpoint["agent"])
        mode = SETUP_MODES[self.config.setup_mode]
        state_dim = _flat_space(self.env).get("state", _EMPTY).shape[0]
        return build_agent(state_dim, mode.action_dim, mode.grippers, self.config.image_keys, self.config.agent())

    def _stores(self, checkpoint: dict[str, Any] | None) -> tuple[ReplayStore, ReplayStore]:
        """The stores of demonstrations and of online data, in this order."""
        config = self.config
        if checkpoint is not None:
            folder = self.directory / f"replay_{checkpoint['updates']}"
            if folder.is_dir():
                return (
                    ReplayStore.load(folder / "demonstrations.npz"),
                    ReplayStore.load(folder / "online.npz"),
                )
            print(f"{folder} is not there: starting from the demonstrations, with an empty online store")
        example = _example_transition(self.env)
        capacity = config.replay_buffer_capacity
        demonstrations = ReplayStore.from_example(example, capacity, seed=2 * config.seed)
        online = ReplayStore.from_example(example, capacity, seed=2 * config.seed + 1)
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

    def _final_evaluation(self) -> EvaluationResult:
        runner = PolicyRunner(self.agent, device=self.device)
        result = evaluate(
            self.eval_env,
            lambda observation: runner.act(observation, deterministic=True),
            self.config.final_eval_episodes,
            seed=EVALUATION_SEEDS * (1 + self.config.seed) + EVALUATION_SEEDS // 2,
            record_episodes=self.config.video_episodes,
        )
        self.report({f"final_{name}": value for name, value in result.metrics().items()})
        if result.frames:
            write_video(self.directory / "rollout.mp4", result.frames, fps=10)
        return result


INTERRUPTED = "interrupted"
_EMPTY = gymnasium.spaces.Box(-1, 1, (0,))


@contextlib.contextmanager
def _interrupts(stop: Stop) -> Iterator[None]:
    """Ctrl-C once: finish the step, save, exit 0. Twice: as usual."""

    def handle(signum: int, frame: FrameType | None) -> None:
        print("\nfinishing the step and saving; press Ctrl-C again to end at once")
        stop.set(INTERRUPTED)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)


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
    training.train()
    training.finish()
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
