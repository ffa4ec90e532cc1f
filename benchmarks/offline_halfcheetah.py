"""A D4RL file of a policy of medium quality on HalfCheetah, from a run of our own SAC that was stopped on its way.

python -m benchmarks.offline_halfcheetah --run runs/offline/halfcheetah_sac --output halfcheetah_medium.hdf5

The checkpoint is the first one whose evaluation reached ``--target_return``; its policy draws its actions, as in the
files of D4RL. Every episode is cut at 1000 steps: ``timeouts``, never ``terminals``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from benchmarks.offline_recording import checkpoint_policy, collect, describe, record_episode
from serl_fast.cli import main, parse
from serl_fast.data.episodes import Episode
from serl_fast.data.formats import write_dataset
from serl_fast.logging import read_metrics


@dataclass(frozen=True)
class HalfCheetahConfig:
    """Flags of ``benchmarks.offline_halfcheetah``.

    Attributes:
        run: folder of the training run, with checkpoints as often as evaluations.
        output: the HDF5 file to write.
        steps: at least so many; the last episode is whole.
        target_return: of the evaluation that makes a policy a medium one. D4RL's medium file has 4 770.
        seed: episode i is reset with seed + i.
    """

    run: Path
    output: Path
    steps: int = 100_000
    target_return: float = 4770.0
    seed: int = 500_000

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; it must be at least 1")


def medium_checkpoint(run: Path, target_return: float) -> tuple[Path, float]:
    """The first checkpoint that an evaluation with at least this return saw, and that return.

    Raises:
        ValueError: none did.
    """
    columns = read_metrics(run / "metrics.csv")
    returns = columns["evaluation/return"]
    saved = {int(path.stem.rpartition("_")[2]): path for path in run.glob("checkpoint_*.pth")}
    for row in np.flatnonzero(returns >= target_return):
        before = [step for step in saved if step <= columns["step"][row]]
        if before:
            return saved[max(before)], float(returns[row])
    raise ValueError(f"{run}: no evaluation reached {target_return}; the best one is {np.nanmax(returns):.0f}")


def record(checkpoint: Path, steps: int, seed: int) -> Iterator[Episode]:
    """Episodes of a checkpoint's policy until there are so many steps."""
    env, policy = checkpoint_policy(checkpoint, seed)
    recorded, episodes = 0, 0
    while recorded < steps:
        episode = record_episode(env, policy, seed + episodes, "medium", positions)
        recorded, episodes = recorded + len(episode), episodes + 1
        yield episode
    env.close()


def positions(env: gymnasium.Env[Any, Any]) -> Mapping[str, np.ndarray]:
    """MuJoCo's state, by D4RL's names."""
    data = env.unwrapped.data  # type: ignore[attr-defined]
    return {f"infos/{name}": np.asarray(getattr(data, name), np.float32) for name in ("qpos", "qvel")}


def run(argv: list[str]) -> int:
    """Record and write; the exit status."""
    config = parse(HalfCheetahConfig, argv, description=__doc__ or "")
    checkpoint, reached = medium_checkpoint(config.run, config.target_return)
    print(f"{checkpoint}: return {reached:.0f} of its mode")
    episodes = collect(record(checkpoint, config.steps, config.seed), config.steps)
    config.output.parent.mkdir(parents=True, exist_ok=True)
    write_dataset(config.output, episodes, "d4rl", {"env": "HalfCheetah-v4", "policy": str(checkpoint)})
    for row in describe(episodes):
        print("{policy} {episodes} episodes, {steps} steps, mean return {return:.1f}".format(**row))
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
