"""The simulated workcell as MJCF text: arm, gripper, table, cameras and the impedance controller.

Made of primitive shapes, from the figures in `panda`. Contacts: cube, table, hand and fingers only; arm links
pass through everything, which keeps a simulation step short (the environments' safety box keeps them off the
table).
"""

from dataclasses import dataclass

import numpy as np

from serl_robots.robot import Array
from serl_robots.sim import panda

# Contact bits: two shapes touch when the type of one is among the affinities of the other.
TABLE_CONTACT = 'contype="1" conaffinity="0"'
OBJECT_CONTACT = 'contype="2" conaffinity="1"'
HAND_CONTACT = 'contype="0" conaffinity="3"'
NO_CONTACT = 'contype="0" conaffinity="0"'
# Time constant 10 ms, four default physics steps: softer pads sink into a cube as they close on it.
STIFF = 'solimp="0.95 0.99 0.001" solref="0.01 1"'

LARGEST_IMAGE = 1024  # px, of the offscreen buffer
WHITE, GREY, DARK = "0.92 0.92 0.9 1", "0.55 0.57 0.6 1", "0.2 0.21 0.23 1"


@dataclass(frozen=True)
class Impedance:
    """Cartesian impedance: force = stiffness * limited error - damping * velocity.

    Limiting the error bounds both the contact force and the speed (HIL-SERL calls it reference limiting).

    Attributes:
        stiffness: N/m.
        damping: N s/m.
        error_limit: m, per axis.
        rotational_stiffness: Nm/rad.
        rotational_damping: Nm s/rad.
        rotational_error_limit: rad, per axis.
    """

    stiffness: float = 2000.0
    damping: float = 89.0
    error_limit: float = 0.02
    rotational_stiffness: float = 150.0
    rotational_damping: float = 7.0
    rotational_error_limit: float = 0.1


def text(values: Array) -> str:
    """The numbers as MJCF writes them."""
    return " ".join(f"{value:.12g}" for value in np.ravel(values))


def looking_at(position: tuple[float, float, float], target: tuple[float, float, float], up: Array) -> str:
    """MJCF attributes of a camera at `position`, looking at `target` (m, in the parent body's frame)."""
    back = np.subtract(position, target)
    back /= np.linalg.norm(back)
    right = np.cross(up, back)
    right /= np.linalg.norm(right)
    return f'pos="{text(np.array(position))}" xyaxes="{text(right)} {text(np.cross(back, right))}"'


def build_scene(objects: str = "", impedance: Impedance | None = None, timestep: float = 0.0025) -> str:
    """The whole scene.

    Args:
        objects: MJCF of the task's own bodies, placed in the world body.
        impedance: the controller's figures.
        timestep: s, of the physics.

    Returns:
        MJCF text.
    """
    front = looking_at((1.02, 0.0, 0.42), (0.44, 0.0, 0.09), np.array((0.0, 0.0, 1.0)))
    return f"""
<mujoco model="franka_table">
  <compiler angle="radian" autolimits="true"/>
  <option timestep="{timestep}" integrator="implicitfast" cone="elliptic" impratio="10"/>
  <visual>
    <headlight ambient="0.45 0.45 0.45" diffuse="0.35 0.35 0.35" specular="0 0 0"/>
    <quality shadowsize="0" offsamples="0"/>
    <global offwidth="{LARGEST_IMAGE}" offheight="{LARGEST_IMAGE}"/>
    <map znear="0.01"/>
  </visual>
  <asset>
    <texture name="sky" type="skybox" builtin="flat" rgb1="0.75 0.8 0.85" width="8" height="48"/>
  </asset>
  <worldbody>
    <light pos="0.8 0.6 1.5" dir="-0.3 -0.4 -1" directional="true" castshadow="false"
           diffuse="0.45 0.45 0.45" specular="0 0 0"/>
    <camera name="front" {front} fovy="40"/>
    <geom name="table" type="box" size="0.6 0.6 0.02" pos="0.35 0 -0.02" rgba="0.72 0.6 0.46 1"
          {TABLE_CONTACT} condim="4" friction="1 0.01 0.0001"/>
    <geom type="cylinder" size="0.075 0.06" pos="0 0 0.06" rgba="{GREY}" {NO_CONTACT}/>
    <body name="target" mocap="true"><site name="target"/></body>
    {objects}
    {_arm()}
  </worldbody>
  {_actuators(impedance or Impedance())}
  <tendon>
    <fixed name="opening">
      <joint joint="left_finger" coef="0.5"/>
      <joint joint="right_finger" coef="0.5"/>
    </fixed>
  </tendon>
  <equality>
    <joint joint1="left_finger" joint2="right_finger" {STIFF}/>
  </equality>
</mujoco>"""


def _arm() -> str:
    """The nested bodies from the first joint to the fingers."""
    inner = _hand()
    for number in range(len(panda.JOINTS), 0, -1):
        joint = panda.JOINTS[number - 1]
        # Craig's convention: turn about and move along the old x, then turn about and move along the new z.
        sine, cosine = np.sin(joint.alpha), np.cos(joint.alpha)
        position = text(np.array((joint.a, -sine * joint.d, cosine * joint.d)))
        orientation = text(np.array((np.cos(joint.alpha / 2), np.sin(joint.alpha / 2), 0.0, 0.0)))
        limit = joint.torque
        inner = f"""
        <body name="link{number}" pos="{position}" quat="{orientation}" gravcomp="1">
          <joint name="joint{number}" axis="0 0 1" range="{joint.lower} {joint.upper}" armature="0.1"
                 damping="1" actuatorgravcomp="true" actuatorfrcrange="{-limit} {limit}"/>
          {_link_shape(number)}
          {inner}
        </body>"""
    return inner


def _link_shape(number: int) -> str:
    """A capsule that looks like the link; its mass is the link's, its inertia the capsule's."""
    ends, radius = {
        1: ("0 0 -0.2 0 0 -0.03", 0.06),
        2: ("0 -0.02 0 0 -0.13 0", 0.06),
        3: ("0.02 0 -0.12 0.07 0 -0.01", 0.055),
        4: ("-0.01 0 0 -0.075 0.06 0", 0.055),
        5: ("0 0 -0.26 0 0.03 -0.1", 0.05),
        6: ("0 0 0 0.07 0 0", 0.05),
        7: ("0 0 -0.01 0 0 0.06", 0.045),
    }[number]
    mass = panda.JOINTS[number - 1].mass
    return f'<geom type="capsule" fromto="{ends}" size="{radius}" mass="{mass}" rgba="{WHITE}" {NO_CONTACT}/>'


def _hand() -> str:
    """The hand at the flange, with fingers, wrist camera and tool centre point."""
    half_angle = panda.HAND_ANGLE / 2
    orientation = text(np.array((np.cos(half_angle), 0.0, 0.0, np.sin(half_angle))))
    # On the side away from the base when the hand points down, so that the arm does not hide the view.
    wrist = looking_at((0.075, 0.0, 0.04), (0.005, 0.0, 0.13), np.array((1.0, 0.0, 0.0)))
    return f"""
        <body name="hand" pos="0 0 {panda.FLANGE_OFFSET}" quat="{orientation}" gravcomp="1">
          <site name="flange"/>
          <site name="tcp" pos="0 0 {panda.TCP_OFFSET}"/>
          <geom type="box" size="0.03 0.1 0.032" pos="0 0 0.032" mass="{panda.HAND_MASS}" rgba="{WHITE}"
                {HAND_CONTACT}/>
          <camera name="wrist" {wrist} fovy="80"/>
          {_finger("left", 1)}
          {_finger("right", -1)}
        </body>"""


def _finger(name: str, side: int) -> str:
    """One finger; `side` is its direction along the hand's y axis, in which it opens."""
    return f"""
          <body name="{name}_finger" pos="0 0 0.0584" gravcomp="1">
            <joint name="{name}_finger" type="slide" axis="0 {side} 0" range="0 {panda.FINGER_TRAVEL}"
                   damping="100" armature="0.1"/>
            <geom type="box" size="0.01 0.0075 0.018" pos="0 {side * 0.0125} 0.018"
                  mass="{panda.FINGER_MASS / 2}" rgba="{DARK}" {NO_CONTACT}/>
            <geom name="{name}_pad" type="box" size="0.01 0.005 0.027" pos="0 {side * 0.005} 0.027"
                  mass="{panda.FINGER_MASS / 2}" rgba="{DARK}" {HAND_CONTACT}
                  condim="4" friction="1.5 0.02 0.0001" priority="1" {STIFF}/>
          </body>"""


def _actuators(impedance: Impedance) -> str:
    """Springs and dampers between the tool centre point and the target, and the gripper's drive.

    MuJoCo evaluates them inside its step: force = J^T (stiffness * clip(error) - damping * velocity), the law
    of HIL-SERL's controller, with implicitly integrated damping and without Python in the loop. Spring and
    damper are two actuators because only the spring is limited.
    """
    lines = []
    force = 2 * panda.GRIPPER_FORCE
    for axis in range(6):
        gear = text(np.eye(6)[axis])
        linear = axis < 3
        stiffness = impedance.stiffness if linear else impedance.rotational_stiffness
        damping = impedance.damping if linear else impedance.rotational_damping
        limit = stiffness * (impedance.error_limit if linear else impedance.rotational_error_limit)
        common = f'site="tcp" refsite="target" gear="{gear}" biastype="affine" gainprm="0"'
        lines.append(f'<general {common} biasprm="0 {-stiffness} 0" forcerange="{-limit} {limit}"/>')
        lines.append(f'<general {common} biasprm="0 0 {-damping}"/>')
    # The drive acts on the fingers' mean position; the equality constraint, like their rack and pinion, keeps
    # them symmetric.
    lines.append(
        f'<general name="gripper" tendon="opening" biastype="affine" gainprm="10000" biasprm="0 -10000 0"'
        f' ctrlrange="0 {panda.FINGER_TRAVEL}" forcerange="{-force} {force}"/>'
    )
    return "<actuator>" + "\n    ".join(lines) + "</actuator>"
