"""Figures of the Franka Emika Panda.

Sources: Denavit-Hartenberg parameters (Craig's convention), joint and torque limits: Franka Control Interface
documentation, "Robot and interface specifications". Masses, rounded: C. Gaz et al., "Dynamic Identification
of the Franka Emika Panda Robot With Retrieval of Feasible Parameters Using Penalty-Based Optimization", IEEE
Robotics and Automation Letters 4(4), 2019; hand: the manufacturer's data sheet.
"""

from dataclasses import dataclass
from math import pi

import numpy as np


@dataclass(frozen=True)
class Joint:
    """One revolute joint and the link it moves.

    Attributes:
        a: m, translation along the previous x axis.
        d: m, translation along this joint's z axis.
        alpha: rad, rotation about the previous x axis.
        lower: rad.
        upper: rad.
        torque: Nm, largest magnitude.
        mass: kg, of the link.
    """

    a: float
    d: float
    alpha: float
    lower: float
    upper: float
    torque: float
    mass: float


JOINTS = (
    Joint(a=0.0, d=0.333, alpha=0.0, lower=-2.8973, upper=2.8973, torque=87.0, mass=4.97),
    Joint(a=0.0, d=0.0, alpha=-pi / 2, lower=-1.7628, upper=1.7628, torque=87.0, mass=0.65),
    Joint(a=0.0, d=0.316, alpha=pi / 2, lower=-2.8973, upper=2.8973, torque=87.0, mass=3.23),
    Joint(a=0.0825, d=0.0, alpha=pi / 2, lower=-3.0718, upper=-0.0698, torque=87.0, mass=3.59),
    Joint(a=-0.0825, d=0.384, alpha=-pi / 2, lower=-2.8973, upper=2.8973, torque=12.0, mass=1.23),
    Joint(a=0.0, d=0.0, alpha=pi / 2, lower=-0.0175, upper=3.7525, torque=12.0, mass=1.67),
    Joint(a=0.088, d=0.0, alpha=pi / 2, lower=-2.8973, upper=2.8973, torque=12.0, mass=0.74),
)
LOWER = np.array([joint.lower for joint in JOINTS])  # [7] rad
UPPER = np.array([joint.upper for joint in JOINTS])  # [7] rad
FLANGE_OFFSET = 0.107  # m, along the last joint's z axis
HAND_ANGLE = -pi / 4  # rad, of the hand about the flange's z axis
TCP_OFFSET = 0.1034  # m, from the flange to the point between the finger tips
HAND_MASS = 0.73  # kg
FINGER_MASS = 0.015  # kg
FINGER_TRAVEL = 0.04  # m, of each of the two fingers
GRIPPER_FORCE = 20.0  # N, well below the 70 N that the hand can hold for long

# Elbow up, hand pointing down: preferred by the null-space term, start of inverse kinematics.
HOME = np.array((0.0, -pi / 4, 0.0, -3 * pi / 4, 0.0, pi / 2, pi / 4))  # [7] rad
