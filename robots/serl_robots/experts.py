"""Scripted experts: for demonstrations, and as the operator who takes over.

They decide from the newest state alone, without memory, so they can take over in any situation.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from serl_robots.envs.base import POSITION_SCALE, ROTATION_SCALE
from serl_robots.envs.pick_cube import OPEN_THRESHOLD, PickCube
from serl_robots.envs.pick_cube import STATE as PICK_CUBE
from serl_robots.envs.reach import STATE as REACH
from serl_robots.envs.reach import Reach
from serl_robots.robot import Array

Policy = Callable[[Mapping[str, NDArray[Any]]], NDArray[np.float32]]

CLOSE, KEEP, OPEN = -1.0, 0.0, 1.0  # the action's gripper entry
HELD_OPENING = 0.75  # a grasped cube leaves half of the opening, and 0.71 if grasped by its edges


def expert(env: str | gymnasium.Env[Any, Any], noise: float = 0.0, seed: int | None = None) -> Policy:
    """A policy that solves a task, for environments with the default action scales.

    Args:
        env: an environment, or an id of `serl_robots.registration`. Given an id, the policy reads the
            observation's state, which must then be the full one (no `image_keys`); given an environment, it
            reads that environment's `privileged_state`, so it works with images too.
        noise: standard deviation added to the motion, in units of the action, for diverse demonstrations.
        seed: of the noise.

    Returns:
        Function of an observation that returns an action [7] or [6] in -1..1.

    Raises:
        ValueError: if there is no expert for this environment.
    """
    env_id = env if isinstance(env, str) else getattr(env.unwrapped, "ID", str(env))
    if env_id not in _EXPERTS:
        raise ValueError(f"there is no expert for {env_id!r}; there is one for {sorted(_EXPERTS)}")
    decide = _EXPERTS[env_id]
    random = np.random.default_rng(seed)

    def policy(observation: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        state = observation["state"] if isinstance(env, str) else env.unwrapped.privileged_state()  # type: ignore
        action = decide(np.asarray(state, dtype=np.float64))
        if noise > 0.0:
            action[:6] += random.normal(0.0, noise, 6)
        return np.clip(action, -1.0, 1.0).astype(np.float32)

    return policy


def _reach(state: Array) -> Array:
    """Straight to the target, hand upright."""
    return np.concatenate((state[REACH["target_from_tcp"]] / POSITION_SCALE, _upright(state[REACH["tcp_rotation"]])))


def _pick_cube(state: Array) -> Array:
    """Above the cube with open fingers, down as far as the alignment allows, close, lift.

    Opens only fingers that are closed elsewhere than around the cube, closes only around the cube.
    """
    offset = state[PICK_CUBE["cube_from_tcp"]]  # [3] m
    opening = state[PICK_CUBE["gripper"]][0]
    distance = math.hypot(offset[0], offset[1])
    sine, cosine = state[PICK_CUBE["cube_yaw"]]
    hand_rotation = state[PICK_CUBE["tcp_rotation"]]
    # Of the four ways to align with a cube, the one that turns the hand least from its upright pose.
    yaw = math.remainder(hand_rotation[2] + math.atan2(sine, cosine) / 4.0, math.pi / 2)
    yaw_error = yaw - hand_rotation[2]
    rotation = _upright(hand_rotation)
    rotation[2] = yaw_error / ROTATION_SCALE

    around_cube = distance < 0.012 and abs(offset[2]) < 0.014
    if around_cube and opening < HELD_OPENING:
        return np.array((0.0, 0.0, 1.0, 0.0, 0.0, 0.0, KEEP))
    if around_cube:
        return np.array((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, CLOSE))

    is_open = opening > OPEN_THRESHOLD
    # A funnel around the cube: the further aside, the higher; well above it until the fingers are open.
    clearance = min(0.08, 4.0 * max(0.0, distance - 0.01)) if is_open else 0.08
    if abs(yaw_error) > 0.2:
        clearance = max(clearance, 0.05)
    motion = np.array((offset[0], offset[1], offset[2] + clearance)) / POSITION_SCALE
    return np.concatenate((motion, rotation, [KEEP if is_open else OPEN]))


def _upright(rotation: Array) -> Array:
    """The action [3] that turns the hand back from a rotation vector [3] rad."""
    return -rotation / ROTATION_SCALE


_EXPERTS: dict[str, Callable[[Array], Array]] = {
    PickCube.ID: _pick_cube,
    Reach.ID: _reach,
    "serl_robots/ReachInView-v0": _reach,
}
