"""Robot drivers and simulated manipulation tasks; importing it registers the environments with gymnasium.

Kept light on purpose: a program that only talks to a real robot needs no simulation.
"""

from serl_robots.registration import register
from serl_robots.robot import Robot, RobotState

__version__ = "0.1.0"
__all__ = ["Robot", "RobotState", "__version__", "register"]

register()
