"""Environments as the loop needs them: setup modes, observation layout, construction by id."""

from serl_fast.envs.make import load_operator, make_env
from serl_fast.envs.setup_modes import SETUP_MODES, SetupMode, SetupModeName

__all__ = ["SETUP_MODES", "SetupMode", "SetupModeName", "load_operator", "make_env"]
