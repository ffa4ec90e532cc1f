"""Whole episodes of a policy as data sets hold them, failed ones too, and policies of checkpoints to record."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from serl_fast.data.episodes import Episode
from serl_fast.engine import PolicyRunner
from serl_fast.envs import SETUP_MODES, make_env, make_transition
from serl_fast.evaluation import Policy, succeeded
from serl_fast.interop.policies import build, load_policy
from serl_fast.logging import progress

Extras = Callable[[gymnasium.Env[Any, Any]], Mapping[str, Any]]


def record_episode(
    env: gymnasium.Env[Any, Any], policy: Policy, seed: int, name: str, extras: Extras = lambda env: {}
) -> Episode:
    """One episode, from its reset to its end.

    Args:
        env: of ``make_env``.
        policy: observation -> action float32 [A].
        seed: of the reset.
        name: who acted; kept as ``policy`` in the attributes, beside ``seed`` and ``success``.
        extras: further values of the state BEFORE each step, by name.
    """
    observation, _ = env.reset(seed=seed)
    transitions, before = [], []
    success = done = False
    while not done:
        before.append({key: np.copy(value) for key, value in extras(env).items()})
        action = np.clip(np.asarray(policy(observation), np.float32), -1.0, 1.0)
        step = env.step(action)
        transitions.append(make_transition(observation, action, step))
        observation, reward, terminated, truncated, info = step
        success = success or succeeded(float(reward), bool(terminated), info)
        done = bool(terminated or truncated)
    columns = {key: np.stack([step[key] for step in before]) for key in before[0]}
    if "grasp_penalty" in info:
        columns["grasp_penalty"] = np.stack([transition["grasp_penalty"] for transition in transitions])
    fields = ("actions", "rewards", "terminated", "truncated")
    values = {key: np.stack([transition[key] for transition in transitions]) for key in fields}
    seen = [*(transition["observations"] for transition in transitions), observation]
    return Episode(
        {key: np.stack([step[key] for step in seen]) for key in observation},
        **values,
        extras=columns,
        name=f"episode_{seed}",
        attributes={"policy": name, "seed": seed, "success": success},
    )


def checkpoint_policy(path: Path, seed: int, env: str | None = None) -> tuple[gymnasium.Env[Any, Any], Policy]:
    """The environment that a checkpoint was trained in, and its policy, which draws its actions.

    Args:
        path: checkpoint of ``train_hybrid``.
        seed: of the draws.
        env: another environment than the checkpoint's.
    """
    agent, checkpoint = load_policy(path, build)
    mode = SETUP_MODES[checkpoint["setup_mode"]]
    built = make_env(env or checkpoint["env"], agent.settings["image_keys"], mode)
    runner = PolicyRunner(agent, seed=seed)
    return built, lambda observation: runner.act(observation, deterministic=False)


def collect(episodes: Iterable[Episode], total: int, worth: Callable[[Episode], int] = len) -> list[Episode]:
    """The episodes, with a bar that counts their steps or what else each is ``worth`` of ``total``."""
    kept: list[Episode] = []

    def parts() -> Iterator[int]:
        for episode in episodes:
            kept.append(episode)
            yield worth(episode)

    progress(parts(), total, "recording")
    return kept


def describe(episodes: Iterable[Episode]) -> list[dict[str, Any]]:
    """Of each policy: its episodes, their steps, how many succeeded, and their mean return."""
    rows: dict[str, dict[str, Any]] = {}
    for episode in episodes:
        name = episode.attributes["policy"]
        row = rows.setdefault(name, {"policy": name, "episodes": 0, "steps": 0, "successes": 0, "return": 0.0})
        row["episodes"] += 1
        row["steps"] += len(episode)
        row["successes"] += bool(episode.attributes["success"])
        row["return"] += float(episode.rewards.sum())
    return [{**row, "return": row["return"] / row["episodes"]} for row in rows.values()]
