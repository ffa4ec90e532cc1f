"""The environment ids."""

from typing import Any

from gymnasium.envs.registration import register as register_environment
from gymnasium.envs.registration import registry

# Targets below the tool, where neither the hand nor the edge of a picture hides them.
IN_VIEW = {"target_low": (-0.02, -0.09, -0.12), "target_high": (0.09, 0.09, -0.05)}

# id: (entry point, control steps until an episode is truncated, arguments)
ENVIRONMENTS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "serl_robots/PickCube-v0": ("serl_robots.envs.pick_cube:PickCube", 100, {}),
    "serl_robots/Reach-v0": ("serl_robots.envs.reach:Reach", 50, {}),
    "serl_robots/ReachInView-v0": ("serl_robots.envs.reach:Reach", 50, IN_VIEW),
}


def register() -> None:
    """Register the environments of `ENVIRONMENTS` that gymnasium does not know yet."""
    for env_id, (entry_point, max_episode_steps, keywords) in ENVIRONMENTS.items():
        if env_id not in registry:
            register_environment(env_id, entry_point, max_episode_steps=max_episode_steps, kwargs=keywords)
