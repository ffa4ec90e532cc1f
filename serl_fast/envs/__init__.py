"""Environments as the loop needs them: setup modes, observation layout, construction by id."""

from serl_fast.errors import require

require("gymnasium", "sim")

from serl_fast.envs.classifier_reward import ClassifierReward, Judge  # noqa: E402
from serl_fast.envs.conditions import Condition, parse_condition  # noqa: E402
from serl_fast.envs.make import action_range, load_operator, make_env  # noqa: E402
from serl_fast.envs.setup_modes import SETUP_MODES, SetupMode, SetupModeName  # noqa: E402
from serl_fast.envs.transition import executed_action, make_transition  # noqa: E402

__all__ = [
    "SETUP_MODES",
    "ClassifierReward",
    "Condition",
    "Judge",
    "SetupMode",
    "SetupModeName",
    "action_range",
    "executed_action",
    "load_operator",
    "make_env",
    "make_transition",
    "parse_condition",
]
