"""Quaternions (x, y, z, w) and rotation vectors (rad), on single rotations.

Plain `math` on four floats: at this size it is several times faster than array code.
"""

import math

import numpy as np
from numpy.typing import ArrayLike

from serl_robots.robot import Array


def multiply(left: ArrayLike, right: ArrayLike) -> Array:
    """The rotation `right` followed by the rotation `left`, both [4] xyzw."""
    ax, ay, az, aw = np.asarray(left).tolist()
    bx, by, bz, bw = np.asarray(right).tolist()
    return np.array(
        (
            aw * bx + ax * bw + ay * bz - az * by,
            aw * by - ax * bz + ay * bw + az * bx,
            aw * bz + ax * by - ay * bx + az * bw,
            aw * bw - ax * bx - ay * by - az * bz,
        )
    )


def inverse(quaternion: ArrayLike) -> Array:
    """The opposite rotation of a unit quaternion [4] xyzw."""
    x, y, z, w = np.asarray(quaternion).tolist()
    return np.array((-x, -y, -z, w))


def from_rotation_vector(vector: ArrayLike) -> Array:
    """The unit quaternion [4] xyzw of a rotation vector [3] rad."""
    x, y, z = np.asarray(vector).tolist()
    angle = math.sqrt(x * x + y * y + z * z)
    # sin(angle / 2) / angle, by its limit where the quotient loses its digits.
    scale = math.sin(0.5 * angle) / angle if angle > 1e-8 else 0.5
    return np.array((x * scale, y * scale, z * scale, math.cos(0.5 * angle)))


def to_rotation_vector(quaternion: ArrayLike) -> Array:
    """The rotation vector [3] rad, at most pi long, of a unit quaternion [4] xyzw."""
    x, y, z, w = np.asarray(quaternion).tolist()
    sine = math.sqrt(x * x + y * y + z * z)
    if w < 0.0:
        x, y, z, w = -x, -y, -z, -w
    scale = 2.0 * math.atan2(sine, w) / sine if sine > 1e-8 else 2.0
    return np.array((x * scale, y * scale, z * scale))


def to_matrix(quaternion: ArrayLike) -> Array:
    """The rotation matrix [3, 3] of a unit quaternion [4] xyzw."""
    x, y, z, w = np.asarray(quaternion).tolist()
    return np.array(
        (
            (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
            (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
            (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
        )
    )
