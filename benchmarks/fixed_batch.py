"""Hybrid SAC from two cameras on ONE fixed batch of demonstrations: do its losses fall?

python -m benchmarks.fixed_batch --updates 300 --batch_size 32 --output docs/results/pixels_fixed_batch.md
"""

from __future__ import annotations

import random
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch

from benchmarks.machine import machine, markdown
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.parts import normalize_states
from serl_fast.cli import main, parse
from serl_fast.core import Batch
from serl_fast.engine import Engine, EngineConfig, default_execution
from serl_fast.engine.config import Execution
from serl_fast.envs import make_env
from serl_fast.errors import require

LOSSES = ("critic/loss", "grasp_critic/loss", "actor/loss")


@dataclass(frozen=True)
class FixedBatchConfig:
    """Flags of ``benchmarks.fixed_batch``.

    Attributes:
        updates: gradient steps, each with the actor.
        batch_size: transitions, drawn once from the demonstrations.
        num_demos: episodes of the scripted expert.
        env: gymnasium id.
        image_keys: cameras.
        discount: gamma.
        log_interval: updates between two rows.
        execution: "eager" or "compiled"; by default the faster one that this machine can run.
        seed: of everything.
        output: Markdown file to write, with a plot of the same name beside it.
    """

    updates: int = 300
    batch_size: int = 32
    num_demos: int = 5
    env: str = "serl_robots/PickCube-v0"
    image_keys: tuple[str, ...] = ("front", "wrist")
    discount: float = 0.95
    log_interval: int = 20
    execution: Execution | None = None
    seed: int = 0
    output: Path | None = None


def record(env: gymnasium.Env[Any, Any], episodes: int, seed: int) -> list[dict[str, Any]]:
    """Transitions of the scripted expert."""
    expert = require("serl_robots.experts", "sim").expert(env, noise=0.1, seed=seed)
    transitions = []
    for episode in range(episodes):
        observation, _ = env.reset(seed=seed + episode)
        done = False
        while not done:
            action = expert(observation)
            following, reward, terminated, truncated, info = env.step(action)
            transitions.append(
                {
                    "observations": observation,
                    "next_observations": following,
                    "actions": action,
                    "rewards": np.float32(reward),
                    "discounts": np.float32(not terminated),
                    "grasp_penalty": np.float32(info.get("grasp_penalty", 0.0)),
                }
            )
            observation, done = following, terminated or truncated
    return transitions


def stack(rows: list[Any]) -> Any:
    """A list of nested dicts of arrays -> one nested dict of tensors with a leading axis."""
    if isinstance(rows[0], dict):
        return {key: stack([row[key] for row in rows]) for key in rows[0]}
    return torch.from_numpy(np.stack(rows))


def draw(transitions: list[dict[str, Any]], config: FixedBatchConfig) -> Batch:
    """The batch: successes first, so that there is a reward to learn, and others at random."""
    successes = [row for row in transitions if row["rewards"] > 0][: config.batch_size // 2]
    others = [row for row in transitions if not row["rewards"] > 0]
    chosen = random.Random(config.seed).sample(others, config.batch_size - len(successes))
    batch: Batch = stack(successes + chosen)
    batch["discounts"] = config.discount * batch["discounts"]
    return batch


def train(batch: Batch, states: torch.Tensor, config: FixedBatchConfig) -> list[tuple[float, ...]]:
    """Rows of (update, each loss)."""
    torch.manual_seed(config.seed)
    agent = hybrid_sac(states.shape[1], 1, config.image_keys)
    normalize_states(agent.networks, states)
    engine = Engine(agent, EngineConfig(config.execution or default_execution()), seed=config.seed)
    rows = []
    for update in range(1, config.updates + 1):
        metrics = engine.update(batch)
        if update == 1 or update % config.log_interval == 0 or update == config.updates:
            rows.append((update, *(metrics[name].item() for name in LOSSES)))
            print(
                f"update {update:4d}: " + ", ".join(f"{n} {v:.5f}" for n, v in zip(LOSSES, rows[-1][1:], strict=True))
            )
    return rows


def plot(rows: list[tuple[float, ...]], png: Path) -> None:
    """One panel per loss; the critics' logarithmic."""
    figure = require("matplotlib.figure", "logging").Figure(figsize=(11, 3.2), dpi=150, layout="constrained")
    updates, *curves = zip(*rows, strict=True)
    for axes, name, values in zip(figure.subplots(1, len(LOSSES)), LOSSES, curves, strict=True):
        axes.plot(updates, values, "o-", markersize=3, color="#1f77b4")
        axes.set_title(name)
        axes.set_xlabel("updates on the same batch")
        if min(values) > 0:
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png)


def write(rows: list[tuple[float, ...]], config: FixedBatchConfig, output: Path, argv: list[str]) -> None:
    """The table, the plot, and what they were made with."""
    png = output.with_suffix(".png")
    plot(rows, png)
    lines = [("update", *LOSSES), ("---",) * (1 + len(LOSSES))]
    lines += [(f"{row[0]}", *(f"{value:.5f}" for value in row[1:])) for row in rows]
    first, last = rows[0], rows[-1]
    falls = ", ".join(f"{name} {first[i] / last[i]:.1f} times" for i, name in enumerate(LOSSES[:2], 1))
    text = [
        "# Losses on one fixed batch of images",
        f"Hybrid SAC from {' and '.join(config.image_keys)} and the state, on {config.batch_size} transitions of "
        f"{config.num_demos} demonstrations of {config.env}, the successful ones included. The frozen trunk has random "
        "weights. Every update crops the images anew and moves the targets, so no loss reaches zero; the actor's "
        "follows the critics. "
        f"From the first row to the last: {falls} smaller.",
        f"```\npython -m benchmarks.fixed_batch {shlex.join(argv)}\n```",
        f"![losses]({png.name})",
        "\n".join(f"| {' | '.join(line)} |" for line in lines),
        markdown(machine()),
    ]
    output.write_text("\n\n".join(text) + "\n", encoding="utf-8")
    print(f"{output}\n{png}")


def run(argv: list[str]) -> int:
    """Record, train and write; the exit status."""
    config = parse(FixedBatchConfig, argv, description=__doc__ or "")
    env = make_env(config.env, config.image_keys)
    transitions = record(env, config.num_demos, config.seed)
    env.close()
    if len(transitions) < config.batch_size:
        raise ValueError(
            f"batch_size is {config.batch_size}; {config.num_demos} demonstrations gave {len(transitions)} "
            "transitions: raise num_demos"
        )
    states = stack([row["observations"]["state"] for row in transitions])
    rows = train(draw(transitions, config), states, config)
    if config.output is not None:
        write(rows, config, config.output, argv)
    return 0


if __name__ == "__main__":
    main(lambda: run(sys.argv[1:]))
