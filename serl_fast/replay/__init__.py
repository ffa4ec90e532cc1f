"""Replay: the store of transitions, its samplers, mixtures of several stores, and batches drawn ahead."""

try:
    from serl_fast.replay import _native  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"the extension of serl_fast cannot be loaded ({error}); build it in its repository: pip install -e ."
    ) from error
from serl_fast.replay.fields import Field
from serl_fast.replay.limiter import RateLimiter
from serl_fast.replay.mixture import Mixture
from serl_fast.replay.sampler import Sampler
from serl_fast.replay.schema import Schema
from serl_fast.replay.slices import Slice
from serl_fast.replay.store import ReplayStore
from serl_fast.replay.stream import BatchStream, StreamBatch

__all__ = [
    "BatchStream",
    "Field",
    "Mixture",
    "RateLimiter",
    "ReplayStore",
    "Sampler",
    "Schema",
    "Slice",
    "StreamBatch",
]
