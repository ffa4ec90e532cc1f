"""Build an environment by its gymnasium id, with observations and actions as the loop expects them."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from serl_fast.envs.classifier_reward import ClassifierReward, Judge
from serl_fast.envs.setup_modes import ARM_DIM, SetupMode

Operator = Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]]


def make_env(
    env_id: str,
    image_keys: Sequence[str] = (),
    setup_mode: SetupMode | None = None,
    *,
    operator: Operator | None = None,
    render_mode: str | None = None,
    image_size: int | None = None,
    judge: Judge | None = None,
    rescale: bool = False,
) -> gymnasium.Env[Any, Any]:
    """Build ``env_id`` and adapt it.

    Args:
        env_id: any gymnasium id; ``module:Id-v0`` imports ``module`` first.
        image_keys: cameras to keep; passed on to environments whose constructor takes ``image_keys``.
        setup_mode: the action layout to check against; a fixed-gripper mode on an environment with gripper commands
            holds the gripper still.
        operator: wraps the bare environment with a human or scripted operator, who sets ``info["intervene_action"]``.
        render_mode: as in gymnasium, for environments that take it.
        image_size: height and width of camera images, px, for environments that take it; None leaves it to them.
        judge: gives reward and ends episodes in the environment's place. Cameras that only the judge looks at are
            passed on as ``classifier_keys`` to environments whose constructor takes them, else as ``image_keys``.
        rescale: where there is no setup mode, actions are in [-1, 1] whatever range the environment has.

    Returns:
        An environment whose observations are a flat dict: ``state`` float32 [P] and each camera uint8 [H, W, C].

    Raises:
        ValueError: unknown id, a missing camera, an action space of another width, or an environment that takes no
            image_size though one is given.
    """
    shown = tuple(dict.fromkeys((*image_keys, *judge.image_keys))) if judge else tuple(image_keys)
    env = _build(env_id, image_keys, shown, render_mode, image_size)
    held = setup_mode is not None and _holds_gripper(env, env_id, setup_mode)
    arms = setup_mode.arms if setup_mode else 0
    if held:
        env = HeldGripper(env, arms)
    if rescale and setup_mode is None:
        env = _rescaled(env, env_id)
    if operator is not None:
        env = _with_operator(env, operator)
    if held:
        env = WithoutGripper(env, arms)
    flat = FlatObservations(env, shown)
    return flat if judge is None else ClassifierReward(flat, judge, image_keys)


OPERATORS = {"scripted": "serl_robots.operators:ScriptedOperator"}


def load_operator(name: str) -> Operator | None:
    """The operator's wrapper for a flag's value: "none", "scripted", or module:callable.

    Raises:
        ValueError: the module or its attribute is not there.
    """
    if name == "none":
        return None
    module, separator, attribute = OPERATORS.get(name, name).partition(":")
    try:
        if not separator:
            raise ValueError("no ':' in it")
        operator: Operator = getattr(importlib.import_module(module), attribute)
        return operator
    except (ImportError, AttributeError, ValueError) as error:
        accepted = ", ".join(["none", *OPERATORS, "module:callable"])
        raise ValueError(f"operator {name!r} can not be loaded ({error}); accepted: {accepted}") from error


def _build(
    env_id: str, image_keys: Sequence[str], shown: Sequence[str], render_mode: str | None, image_size: int | None
) -> gymnasium.Env[Any, Any]:
    kwargs: dict[str, Any] = {}
    module, _, name = env_id.rpartition(":")
    # Importing a package registers its environments; the namespace of "package/Id-v0" names one too.
    module = module or (env_id.partition("/")[0] if "/" in env_id else "")
    try:
        if module and name not in gymnasium.registry and importlib.util.find_spec(module):
            importlib.import_module(module)
        accepted = _parameters(gymnasium.spec(name))
        apart = "classifier_keys" in accepted
        cameras = {"image_keys": image_keys if apart else shown}
        if apart:
            cameras["classifier_keys"] = [key for key in shown if key not in image_keys]
        kwargs |= {argument: tuple(keys) for argument, keys in cameras.items() if keys and argument in accepted}
        if render_mode and "render_mode" in accepted:
            kwargs["render_mode"] = render_mode
        if image_size is not None:
            if "image_size" not in accepted:
                raise ValueError(f"{env_id} takes no image_size; leave it out, or resize in a wrapper")
            kwargs["image_size"] = image_size
        return gymnasium.make(name, disable_env_checker=True, **kwargs)
    except (gymnasium.error.Error, ModuleNotFoundError) as error:
        raise ValueError(f"environment {env_id!r} can not be built: {error}") from error


def _parameters(spec: gymnasium.envs.registration.EnvSpec) -> set[str]:
    """Names of what an environment's constructor takes, those of its base classes included."""
    creator: Any = spec.entry_point
    if isinstance(creator, str):
        creator = gymnasium.envs.registration.load_env_creator(creator)
    if not inspect.isclass(creator):
        return set(inspect.signature(creator).parameters) if creator else set()
    own = [c for c in creator.__mro__ if "__init__" in vars(c) and c is not object]
    return {name for c in own for name in inspect.signature(c.__init__).parameters}  # type: ignore[misc]


def _with_operator(env: gymnasium.Env[Any, Any], operator: Operator) -> gymnasium.Env[Any, Any]:
    hint = "an operator takes the environment and returns it wrapped; see serl_robots.operators.Intervention"
    try:
        wrapped = operator(env)
    except TypeError as error:
        raise ValueError(f"operator {operator!r} can not wrap the environment ({error}); {hint}") from error
    if not isinstance(wrapped, gymnasium.Env):
        raise ValueError(f"operator {operator!r} returned {type(wrapped).__name__}; {hint}")
    return wrapped


def _holds_gripper(env: gymnasium.Env[Any, Any], env_id: str, mode: SetupMode) -> bool:
    """Check the action space against the mode; whether grippers are there that the mode holds still."""
    space = env.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1:
        raise ValueError(f"{env_id} has action space {space}; a Box of one axis is needed")
    if not (np.all(space.low == -1) and np.all(space.high == 1)):
        raise ValueError(
            f"{env_id} takes actions from {space.low.min()} to {space.high.max()}; the policy's are in [-1, 1]: "
            "wrap it in gymnasium.wrappers.RescaleAction"
        )
    width = space.shape[0]
    if width == mode.action_dim:
        return False
    if not mode.learned_gripper and width == (ARM_DIM + 1) * mode.arms:
        return True
    raise ValueError(
        f"{env_id} takes actions of width {width}; setup mode {mode.name!r} needs {mode.action_dim}"
        + ("" if mode.learned_gripper else f" (or {(ARM_DIM + 1) * mode.arms}, gripper held still)")
    )


def _rescaled(env: gymnasium.Env[Any, Any], env_id: str) -> gymnasium.Env[Any, Any]:
    """Actions in [-1, 1] whatever range the environment has."""
    space = env.action_space
    if not isinstance(space, spaces.Box) or len(space.shape) != 1 or not space.is_bounded():
        raise ValueError(f"{env_id} has action space {space}; a bounded Box of one axis is needed")
    if np.all(space.low == -1) and np.all(space.high == 1):
        return env
    return _Rescaled(env, np.float32(-1), np.float32(1))


class _Rescaled(gymnasium.wrappers.RescaleAction[Any, Any]):
    """What :func:`make_env` rescaled, and not the environment's maker."""


def action_range(env: gymnasium.Env[Any, Any]) -> tuple[np.ndarray, np.ndarray] | None:
    """Low and high of the actions, float [A] each, of an environment that :func:`make_env` rescaled; else None."""
    while isinstance(env, gymnasium.Wrapper):
        if isinstance(env, _Rescaled):
            space = env.env.action_space
            assert isinstance(space, spaces.Box)
            return space.low, space.high
        env = env.env
    return None


class HeldGripper(gymnasium.ActionWrapper[Any, Any, Any]):
    """Hold every gripper still, whoever acts: its command is replaced by 0. Stands inside an operator's wrapper."""

    def __init__(self, env: gymnasium.Env[Any, Any], arms: int) -> None:
        super().__init__(env)
        self._arms = arms

    def action(self, action: Any) -> np.ndarray:
        """The action with zero gripper commands."""
        held = np.array(action, np.float32).reshape(self._arms, ARM_DIM + 1)
        held[:, ARM_DIM] = 0.0
        return held.ravel()


class WithoutGripper(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Six numbers per arm outside, seven inside: what a policy that commands no gripper sees."""

    def __init__(self, env: gymnasium.Env[Any, Any], arms: int) -> None:
        super().__init__(env)
        self._arms = arms
        self.action_space = spaces.Box(-1.0, 1.0, (ARM_DIM * arms,), np.float32)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Add zero gripper commands; an operator's action is returned without its own."""
        arms = np.asarray(action, np.float32).reshape(self._arms, ARM_DIM)
        full = np.concatenate([arms, np.zeros((self._arms, 1), np.float32)], axis=1)
        observation, reward, terminated, truncated, info = self.env.step(full.ravel())
        if "intervene_action" in info:
            executed = np.asarray(info["intervene_action"], np.float32).reshape(self._arms, ARM_DIM + 1)
            info = {**info, "intervene_action": executed[:, :ARM_DIM].ravel()}
        return observation, reward, bool(terminated), bool(truncated), info


class FlatObservations(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Observations as a flat dict of ``state`` float32 [P] and the chosen cameras uint8 [H, W, C].

    A Box observation is the state. Of a Dict, ``state`` (a Box, or a Dict joined in alphabetical order as SERL does) is
    kept with the cameras in ``image_keys``; without a ``state`` all float boxes are joined. Cameras that were not asked
    for are dropped before anything is stored. A leading time axis of 1 is removed.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], image_keys: Sequence[str]) -> None:
        super().__init__(env)
        space = env.observation_space
        fields = dict(space.spaces) if isinstance(space, spaces.Dict) else {"state": space}
        missing = [key for key in image_keys if key not in fields]
        if missing:
            raise ValueError(f"the environment has no camera {missing}; its observations are {sorted(fields)}")
        self._image_keys = tuple(image_keys)
        self._state_keys = _state_keys(fields)
        sizes = [spaces.flatdim(fields[key]) for key in self._state_keys]
        self.state_dim = sum(sizes)
        flat: dict[str, spaces.Space[Any]] = {}
        if self.state_dim:
            flat["state"] = spaces.Box(-np.inf, np.inf, (self.state_dim,), np.float32)
        for key in image_keys:
            shape = _squeeze(np.empty(fields[key].shape or (), np.uint8)).shape
            if fields[key].dtype != np.uint8 or len(shape) != 3:
                raise ValueError(f"camera {key!r} is {fields[key]}; uint8 images [H, W, C] are needed")
            flat[key] = spaces.Box(0, 255, shape, np.uint8)
        if not flat:
            raise ValueError(f"nothing to observe: no state and no image_keys; the environment offers {sorted(fields)}")
        self._source = space
        self.observation_space = spaces.Dict(flat)

    def observation(self, observation: Any) -> dict[str, np.ndarray]:
        """Convert one observation; arrays are copied, since environments may reuse theirs."""
        fields = observation if isinstance(self._source, spaces.Dict) else {"state": observation}
        flat: dict[str, np.ndarray] = {}
        if self._state_keys:
            parts = [_flatten(fields[key]) for key in self._state_keys]
            flat["state"] = np.concatenate(parts)
        for key in self._image_keys:
            flat[key] = _squeeze(np.array(fields[key], np.uint8))
        return flat


def _state_keys(fields: dict[str, spaces.Space[Any]]) -> tuple[str, ...]:
    if "state" in fields:
        return ("state",)
    return tuple(
        sorted(key for key, s in fields.items() if isinstance(s, spaces.Box) and np.issubdtype(s.dtype, np.floating))
    )


def _flatten(value: Any) -> np.ndarray:
    """Join a value, or a dict's values in alphabetical order, into float32 [P]."""
    if isinstance(value, dict):
        return np.concatenate([_flatten(value[key]) for key in sorted(value)])
    return np.array(value, np.float32).ravel()


def _squeeze(image: np.ndarray) -> np.ndarray:
    """Drop the time axis of 1 that HIL-SERL's environments put before an image."""
    return image[0] if image.ndim == 4 and image.shape[0] == 1 else image
