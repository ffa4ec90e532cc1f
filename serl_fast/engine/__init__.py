"""How an agent is run: eager, compiled or graphed, and at which precision. The only package that knows.

engine = Engine(agent, EngineConfig(execution="compiled"), seed=0)
metrics = engine.update(batch, with_actor=True)
"""

from serl_fast.engine.acting import PolicyRunner
from serl_fast.engine.compiling import ExecutionError
from serl_fast.engine.config import EngineConfig, default_execution
from serl_fast.engine.engine import Engine, NonFiniteLossError
from serl_fast.engine.metrics import Interval
from serl_fast.engine.snapshot import PolicyPublisher, PolicySnapshot

__all__ = [
    "Engine",
    "EngineConfig",
    "ExecutionError",
    "Interval",
    "NonFiniteLossError",
    "PolicyPublisher",
    "PolicyRunner",
    "PolicySnapshot",
    "default_execution",
]
