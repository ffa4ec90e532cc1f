"""Replay: the store of transitions, and the mixture of several stores in one batch."""

from serl_fast.replay.fields import Field
from serl_fast.replay.mixture import Mixture
from serl_fast.replay.schema import Schema
from serl_fast.replay.store import ReplayStore

__all__ = ["Field", "Mixture", "ReplayStore", "Schema"]
