"""One environment step as the replay store takes it."""

from __future__ import annotations

from typing import Any

import numpy as np


def make_transition(
    observation: dict[str, np.ndarray],
    action: np.ndarray,
    step: tuple[dict[str, np.ndarray], Any, bool, bool, dict[str, Any]],
) -> dict[str, Any]:
    """The transition of one step, with the keys of ``ReplayStore.append``.

    Args:
        observation: before the step.
        action: the EXECUTED action float32 [A].
        step: what ``env.step`` returned.
    """
    following, reward, terminated, truncated, info = step
    return {
        "observations": observation,
        "actions": action,
        "next_observations": following,
        "rewards": np.float32(reward),
        "terminated": bool(terminated),
        "truncated": bool(truncated),
        "grasp_penalty": np.float32(info.get("grasp_penalty", 0.0)),
    }


def executed_action(intervention: Any, action: np.ndarray) -> np.ndarray:
    """The operator's action float32 [A], clipped to what the environment executes."""
    executed = np.asarray(intervention, np.float32)
    if executed.shape != action.shape:
        raise ValueError(f'info["intervene_action"] has shape {executed.shape}; the action has shape {action.shape}')
    return np.clip(executed, -1.0, 1.0)
