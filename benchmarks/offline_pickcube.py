"""A data set of mixed quality on PickCube: a third by the expert, a third by a hand that shakes, a third by beginners.

python -m benchmarks.offline_pickcube --checkpoints runs/.../checkpoint_{1000,3000,5000}.pth --output mixed_200.pkl

Failed episodes stay in. The expert and the shaking hand are the scripted expert with little and with much noise; the
beginners are checkpoints of a training run that has not got far. The first N episodes are the same whatever
``--episodes`` is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.offline_recording import checkpoint_policy, collect, describe, record_episode
from serl_fast.cli import main, parse
from serl_fast.data.episodes import Episode
from serl_fast.data.formats import write_dataset
from serl_fast.envs import make_env
from serl_fast.errors import require


@dataclass(frozen=True)
class MixedConfig:
    """Flags of ``benchmarks.offline_pickcube``.

    Attributes:
        checkpoints: of the beginners, who take turns.
        output: the pickle to write.
        episodes: how many, a third by each kind.
        env: the task.
        noise: standard deviation of the expert's motion noise, in units of the action.
        shaking: that of the hand that shakes.
        seed: episode i is reset with seed + i.
    """

    checkpoints: tuple[Path, ...]
    output: Path
    episodes: int = 200
    env: str = "serl_robots/PickCube-v0"
    noise: float = 0.1
    shaking: float = 0.7
    seed: int = 500_000

    def __post_init__(self) -> None:
        if self.episodes < 1:
            raise ValueError(f"episodes is {self.episodes}; it must be at least 1")
        if not self.checkpoints:
            raise ValueError("there are no checkpoints; give at least one for the beginners' episodes")


def record(config: MixedConfig) -> Iterator[Episode]:
    """The episodes, by the three kinds in turn."""
    env = make_env(config.env)
    expert = require("serl_robots.experts", "sim").expert
    scripted = [
        ("expert", env, expert(env, noise=config.noise, seed=config.seed)),
        ("shaking", env, expert(env, noise=config.shaking, seed=config.seed + 1)),
    ]
    beginners = [("beginner", *checkpoint_policy(path, config.seed, config.env)) for path in config.checkpoints]
    turns = itertools.cycle([turn for beginner in beginners for turn in (*scripted, beginner)])
    for seed, (name, where, policy) in zip(range(config.seed, config.seed + config.episodes), turns, strict=False):
        yield record_episode(where, policy, seed, name)


def run(argv: list[str]) -> int:
    """Record and write; the exit status."""
    config = parse(MixedConfig, argv, description=__doc__ or "")
    episodes = collect(record(config), config.episodes, lambda episode: 1)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_dataset(config.output, episodes, "pickle", {"env": config.env})
    for row in describe(episodes):
        print("{policy:10} {episodes:4} episodes {steps:6} steps {successes:4} succeeded".format(**row))
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
