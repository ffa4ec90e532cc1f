"""Record demonstrations: a scripted expert, or anyone who intervenes, until enough episodes have succeeded.

python -m serl_fast.record_demos --env serl_robots/PickCube-v0 --num_demos 20 --output demos.pkl
"""

from __future__ import annotations

import dataclasses
import signal
import sys
import time
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from serl_fast.cli import main, parse
from serl_fast.data.demonstrations import save_demonstrations
from serl_fast.envs import SETUP_MODES, SetupModeName, executed_action, load_operator, make_env, make_transition
from serl_fast.envs.make import Operator
from serl_fast.errors import require
from serl_fast.evaluation import succeeded
from serl_fast.interrupts import ending_signals, interrupt
from serl_fast.reward_flags import RewardFlags
from serl_fast.run_setup import close_quietly


@dataclasses.dataclass(frozen=True)
class RecordDemosConfig(RewardFlags):
    """Flags of ``record_demos``; those of the reward are in :class:`serl_fast.reward_flags.RewardFlags`.

    Attributes:
        env: any gymnasium id; ``module:Id-v0`` imports ``module`` first.
        num_demos: successful episodes to record; others are dropped.
        output: the pickle to write; by default runs/demonstrations/<env>_<N>_demos_<time>.pkl.
        image_keys: cameras to record.
        image_size: height and width of their images, px, where the environment takes it.
        setup_mode: arms and grippers; by default whatever the environment takes.
        operator: "scripted" for the environment's scripted expert, or module:callable that wraps the environment
            and sets info["intervene_action"]; where it does not, the arm is held still.
        noise: standard deviation of the scripted expert's motion noise, in units of the action.
        max_episodes: give up after so many episodes.
        seed: of episodes and noise.
    """

    env: str = "serl_robots/PickCube-v0"
    num_demos: int = 20
    output: Path | None = None
    image_keys: tuple[str, ...] = ()
    image_size: int | None = None
    setup_mode: SetupModeName | None = None
    operator: str = "scripted"
    noise: float = 0.1
    max_episodes: int = 1000
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.num_demos < 1:
            raise ValueError(f"num_demos is {self.num_demos}; it must be at least 1")
        if self.max_episodes < self.num_demos:
            raise ValueError(
                f"max_episodes is {self.max_episodes}, num_demos {self.num_demos}; an episode is one demonstration at "
                "most, so give more of them"
            )
        if not self.noise >= 0:
            raise ValueError(f"noise is {self.noise}; it must not be negative")


def record(config: RecordDemosConfig) -> Path:
    """Record, write the file, and return its path.

    Ctrl-C, SIGTERM or the end of the terminal ends the recording; the demonstrations that are complete are written.

    Raises:
        ValueError: fewer than ``num_demos`` of ``max_episodes`` episodes succeeded; those that did are saved.
    """
    mode = SETUP_MODES[config.setup_mode] if config.setup_mode else None
    operator = _expert(config) if config.operator == "scripted" else load_operator(config.operator)
    env = make_env(
        config.env, config.image_keys, mode, operator=operator, image_size=config.image_size, judge=config.judge()
    )
    transitions: list[dict[str, Any]] = []
    demos = episodes = 0
    interrupted = False
    try:
        with ending_signals(interrupt):
            while demos < config.num_demos and episodes < config.max_episodes:
                episode, success = _episode(env, seed=config.seed + episodes)
                episodes += 1
                if success:
                    transitions += episode
                    demos += 1
                print(
                    f"episode {episodes}: {len(episode)} steps, {'success' if success else 'dropped'}; "
                    f"{demos}/{config.num_demos} demonstrations"
                )
    except KeyboardInterrupt:
        if not demos:
            raise
        interrupted = True
    finally:  # also when a robot fails: demonstrations are dear
        output = config.output or _default_output(config, demos)
        try:
            if transitions:
                with ending_signals(signal.SIG_IGN):  # a second Ctrl-C must not cost the first one's data
                    output.parent.mkdir(parents=True, exist_ok=True)
                    save_demonstrations(output, transitions)
                print(f"{demos} demonstrations, {len(transitions)} transitions: {output}")
        finally:  # last, since a robot's driver may hang
            close_quietly(env)
    if demos < config.num_demos and not interrupted:
        kept = f"; they are in {output}" if transitions else ""
        raise ValueError(f"{demos} of {episodes} episodes succeeded, {config.num_demos} were asked for{kept}")
    return output


def _expert(config: RecordDemosConfig) -> Operator:
    """The environment's scripted expert, as an operator who takes every step."""
    experts, operators = require("serl_robots.experts", "sim"), require("serl_robots.operators", "sim")

    def wrap(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        policy = experts.expert(env, noise=config.noise, seed=config.seed)
        wrapped: gymnasium.Env[Any, Any] = operators.Intervention(
            env, lambda observation, action, info: policy(observation)
        )
        return wrapped

    return wrap


def _episode(env: gymnasium.Env[Any, Any], seed: int) -> tuple[list[dict[str, Any]], bool]:
    """One episode's transitions with the executed actions, and whether it succeeded."""
    transitions: list[dict[str, Any]] = []
    observation, _ = env.reset(seed=seed)
    success = done = False
    still = np.zeros(env.action_space.shape or (), np.float32)
    while not done:
        step = env.step(still)
        following, reward, terminated, truncated, info = step
        action = executed_action(info["intervene_action"], still) if "intervene_action" in info else still
        transitions.append(make_transition(observation, action, step))
        success = success or succeeded(float(reward), bool(terminated), info)
        done = bool(terminated or truncated)
        observation = following
    return transitions, success


def _default_output(config: RecordDemosConfig, demos: int) -> Path:
    name = config.env.rpartition("/")[2].rpartition(":")[2]
    return Path("runs/demonstrations") / f"{name}_{demos}_demos_{time.strftime('%Y-%m-%d_%H-%M-%S')}.pkl"


def run(argv: list[str] | None = None) -> int:
    """Parse and record; the exit status."""
    record(parse(RecordDemosConfig, argv, description=__doc__ or ""))
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
