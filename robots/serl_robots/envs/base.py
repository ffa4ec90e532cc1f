"""What every simulated task shares: actions, safety limits, proprioception, cameras.

The action follows HIL-SERL's Franka environment: a small motion relative to the MEASURED pose, at 10 Hz,
clipped to a safety box; rotations are rotation vectors in the base frame. A gripper value of at most -0.5
closes, at least 0.5 opens, anything between leaves the gripper's target as it is.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from numpy.typing import ArrayLike, NDArray

from serl_robots import rotations
from serl_robots.robot import Array, RobotState
from serl_robots.sim.arm import SimulatedFranka
from serl_robots.sim.scene import LARGEST_IMAGE

Observation = dict[str, NDArray[Any]]
Vector = NDArray[np.float32]
Limits = tuple[float, float]

CAMERAS = ("front", "wrist")
POINTING_DOWN = np.array((1.0, 0.0, 0.0, 0.0))  # xyzw
START_POSITION = np.array((0.45, 0.0, 0.18))  # m, the tool at the start of an episode
POSITION_SCALE = 0.03  # m per step at action 1
ROTATION_SCALE = 0.15  # rad per step at action 1
GRIPPER_THRESHOLD = 0.5  # of the action's last entry, either sign

# Part of the state vector: (entries, lowest, highest). Values beyond are clipped.
PROPRIOCEPTION: dict[str, tuple[int, float, float]] = {
    "gripper": (1, 0.0, 1.0),  # opening
    "tcp_position": (3, -0.3, 0.3),  # m, relative to START_POSITION
    "tcp_rotation": (3, -1.2, 1.2),  # rad, rotation vector from POINTING_DOWN, in the base frame
    "tcp_linear_velocity": (3, -1.0, 1.0),  # m/s
    "tcp_angular_velocity": (3, -4.0, 4.0),  # rad/s
}


def slices(layout: Mapping[str, tuple[int, float, float]]) -> dict[str, slice]:
    """Where each part of a layout stands in the state vector."""
    ends = np.cumsum([size for size, _, _ in layout.values()]).tolist()
    return {name: slice(end - layout[name][0], end) for name, end in zip(layout, ends, strict=True)}


class FrankaTask(gymnasium.Env[Observation, Vector]):
    """Base class of the tasks; a subclass says what the scene holds and when the task is done.

    A subclass provides `ID`, `PRIVILEGED`, `OBJECTS`, `_reset_task`, `_privileged`, `_succeeded` and
    `progress`.

    Attributes:
        robot: the simulated arm.
    """

    ID: ClassVar[str]
    PRIVILEGED: ClassVar[Mapping[str, tuple[int, float, float]]]  # layout of what cameras would have to tell
    OBJECTS: ClassVar[str]  # MJCF
    HAS_GRIPPER_ACTION: ClassVar[bool] = True
    START_GRIPPER: ClassVar[float] = 1.0

    metadata: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(
        self,
        image_keys: Sequence[str] = (),
        image_size: int = 128,
        render_mode: str | None = None,
        render_size: int = 256,
        position_scale: float = POSITION_SCALE,
        rotation_scale: float = ROTATION_SCALE,
        position_limits: tuple[Limits, Limits, Limits] = ((0.3, 0.6), (-0.18, 0.18), (0.012, 0.35)),
        rotation_limits: tuple[float, float, float] = (0.25, 0.25, 0.8),
        grasp_penalty: float = -0.02,
        classifier_keys: Sequence[str] = (),
    ) -> None:
        """Build the scene.

        Args:
            image_keys: cameras to observe, of `CAMERAS`; with any, the state holds proprioception only.
            image_size: px, height and width of an observed image.
            render_mode: None or "rgb_array", what `render` returns (front camera).
            render_size: px, height and width of `render`'s image.
            position_scale: m per step at action 1.
            rotation_scale: rad per step at action 1.
            position_limits: m, (lowest, highest) target position per axis in the base frame.
            rotation_limits: rad, largest component of the target's rotation vector from `POINTING_DOWN`.
            grasp_penalty: info["grasp_penalty"] of a step that earns it.
            classifier_keys: cameras to observe for a reward classifier; the state stays as `image_keys` make it.
        """
        cameras = tuple(dict.fromkeys((*image_keys, *classifier_keys)))
        unknown = sorted(set(cameras) - set(CAMERAS))
        if unknown:
            raise ValueError(f"image_keys has {unknown}; the cameras are {list(CAMERAS)}")
        if render_mode not in (None, "rgb_array"):
            raise ValueError(f"render_mode is {render_mode!r}; it can be None or 'rgb_array'")
        for name, size in (("image_size", image_size), ("render_size", render_size)):
            if not 1 <= size <= LARGEST_IMAGE:
                raise ValueError(f"{name} is {size} px; it can be 1 to {LARGEST_IMAGE}")
        self.render_mode = render_mode
        self.robot = SimulatedFranka(self.OBJECTS)
        self._image_keys, self._image_size, self._render_size = cameras, image_size, render_size
        self._scale = np.repeat((position_scale, rotation_scale), 3)
        self._position_limits = np.array(position_limits).T  # [2, 3]
        self._rotation_limits = np.array(rotation_limits)
        self._grasp_penalty = grasp_penalty
        self._cameras: dict[int, Any] = {}  # by image size
        self._gripper_target = self.START_GRIPPER
        self._state: RobotState

        self._full_space = self._box({**PROPRIOCEPTION, **self.PRIVILEGED})
        self._state_space = self._box(PROPRIOCEPTION) if image_keys else self._full_space
        image_space = spaces.Box(0, 255, (image_size, image_size, 3), np.uint8)
        self.observation_space = spaces.Dict(  # type: ignore[assignment]
            {"state": self._state_space, **dict.fromkeys(cameras, image_space)}
        )
        self.action_space = spaces.Box(-1.0, 1.0, (7 if self.HAS_GRIPPER_ACTION else 6,), np.float32)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: the arm at rest at `START_POSITION`, the task's objects placed at random."""
        super().reset(seed=seed)
        self.robot.reset(START_POSITION, POINTING_DOWN, self.START_GRIPPER)
        self._reset_task()
        self.robot.refresh()
        self._gripper_target = self.START_GRIPPER
        self._state = self.robot.state()
        return self._observation(), {"succeed": False, "grasp_penalty": 0.0}

    def step(self, action: ArrayLike) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Execute one action for one control period.

        Args:
            action: [7] or [6], clipped to -1..1.

        Returns:
            Observation; reward, 1 on success, else 0; terminated, on success; truncated, always False here
            (the registered step limit truncates); info with `succeed` (bool) and `grasp_penalty` (float).

        Raises:
            ValueError: if the action has another shape or is not finite.
        """
        checked = self._checked(action)
        penalty = self._penalty(checked)
        self._execute(checked)
        self._state = self.robot.state()
        succeed = self._succeeded()
        return (
            self._observation(),
            float(succeed),
            succeed,
            False,
            {"succeed": succeed, "grasp_penalty": penalty},
        )

    def render(self) -> NDArray[np.uint8] | None:  # type: ignore[override]
        """The front camera's image [render_size, render_size, 3], or None without a render mode."""
        return None if self.render_mode is None else self._image("front", self._render_size)

    def close(self) -> None:
        """Free the cameras' graphics memory."""
        for camera in self._cameras.values():
            camera.close()
        self._cameras.clear()

    def privileged_state(self) -> Vector:
        """The full state vector: proprioception and the task's objects, also when images are observed."""
        return self._vector(self._full_space, self._proprioception() + self._privileged())

    def progress(self) -> float:
        """How far the task is, higher is further; an operator watches it to see whether the policy stalls."""
        raise NotImplementedError

    def _reset_task(self) -> None:
        """Place the task's objects with `self.np_random`."""
        raise NotImplementedError

    def _privileged(self) -> list[ArrayLike]:
        """The parts of `PRIVILEGED`, in order."""
        raise NotImplementedError

    def _succeeded(self) -> bool:
        raise NotImplementedError

    def _checked(self, action: ArrayLike) -> Array:
        values = np.asarray(action, dtype=np.float64)
        if values.shape != self.action_space.shape:
            raise ValueError(f"the action has shape {values.shape}; {self.ID} takes {self.action_space.shape}")
        if not np.isfinite(values).all():
            raise ValueError(f"the action is not finite: {values}")
        return np.clip(values, -1.0, 1.0)

    def _execute(self, action: Array) -> None:
        """Move by `action` from the measured pose, within the safety limits."""
        motion = action[:6] * self._scale
        position = np.clip(self._state.tcp_position + motion[:3], *self._position_limits)
        # In HIL-SERL too, the increment turns about the base frame's axes: multiplied from the left.
        turned = rotations.multiply(rotations.from_rotation_vector(motion[3:]), self._state.tcp_quaternion)
        limits = self._rotation_limits
        rotation = np.clip(self._rotation_from_down(turned), -limits, limits)
        quaternion = rotations.multiply(rotations.from_rotation_vector(rotation), POINTING_DOWN)
        if self.HAS_GRIPPER_ACTION and abs(action[6]) >= GRIPPER_THRESHOLD:
            self._gripper_target = 1.0 if action[6] > 0 else 0.0
        self.robot.command(position, quaternion, self._gripper_target)

    def _penalty(self, action: Array) -> float:
        """No penalty without a gripper action; see `PickCube`."""
        return 0.0

    @staticmethod
    def _rotation_from_down(quaternion: Array) -> Array:
        return rotations.to_rotation_vector(rotations.multiply(quaternion, rotations.inverse(POINTING_DOWN)))

    def _proprioception(self) -> list[ArrayLike]:
        """The parts of `PROPRIOCEPTION`, in order."""
        state = self._state
        rotation = self._rotation_from_down(state.tcp_quaternion)
        return [[state.gripper], state.tcp_position - START_POSITION, rotation, state.tcp_velocity]

    def _observation(self) -> Observation:
        images: Observation = {key: self._image(key, self._image_size) for key in self._image_keys}
        if self._state_space is self._full_space:
            return {"state": self.privileged_state(), **images}
        return {"state": self._vector(self._state_space, self._proprioception()), **images}

    def _image(self, camera: str, size: int) -> NDArray[np.uint8]:
        if size not in self._cameras:
            # Imported here: state observations need no graphics library.
            from serl_robots.sim.rendering import Camera

            self._cameras[size] = Camera(self.robot.model, size, size)
        image: NDArray[np.uint8] = self._cameras[size].render(self.robot.data, camera)
        return image

    @staticmethod
    def _box(layout: Mapping[str, tuple[int, float, float]]) -> spaces.Box:
        sizes = [size for size, _, _ in layout.values()]
        low = np.repeat([low for _, low, _ in layout.values()], sizes).astype(np.float32)
        high = np.repeat([high for _, _, high in layout.values()], sizes).astype(np.float32)
        return spaces.Box(low, high, dtype=np.float32)

    @staticmethod
    def _vector(space: Any, parts: Sequence[ArrayLike]) -> Vector:
        vector: Vector = np.concatenate(parts).astype(np.float32)
        return np.clip(vector, space.low, space.high)
