"""The environment ids."""

from gymnasium.envs.registration import register as register_environment
from gymnasium.envs.registration import registry

# id: (entry point, control steps until an episode is truncated)
ENVIRONMENTS = {
    "serl_robots/PickCube-v0": ("serl_robots.envs.pick_cube:PickCube", 100),
    "serl_robots/Reach-v0": ("serl_robots.envs.reach:Reach", 50),
}


def register() -> None:
    """Register the environments of `ENVIRONMENTS` that gymnasium does not know yet."""
    for env_id, (entry_point, max_episode_steps) in ENVIRONMENTS.items():
        if env_id not in registry:
            register_environment(env_id, entry_point=entry_point, max_episode_steps=max_episode_steps)
