"""Conditions on the state, such as ``state[6]>0.04 and state[0]<0.9``: read by a grammar, never evaluated as code."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

ACCEPTED = "comparisons such as 'state[6]>0.04', joined by 'and'; with >, >=, < or <= and a plain number"

SIGNS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}

# HIL-SERL writes state[0, 6]: there the state has a time axis of 1 before it.
_COMPARISON = re.compile(
    r"\s*state\s*\[\s*(?:0\s*,\s*)?(?P<index>\d{1,6})\s*\]\s*(?P<sign>>=|<=|>|<)\s*"
    r"(?P<bound>[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d{1,3})?)\s*"
)


@dataclass(frozen=True)
class Comparison:
    """One entry of the state against a bound.

    Attributes:
        index: of the entry in ``state``.
        sign: ">", ">=", "<" or "<=".
        bound: in the unit of the entry.
    """

    index: int
    sign: str
    bound: float

    def __call__(self, state: np.ndarray) -> bool:
        """Whether it holds of a state float32 [P]."""
        return bool(SIGNS[self.sign](float(state[self.index]), self.bound))


@dataclass(frozen=True)
class Condition:
    """Comparisons that must all hold.

    Attributes:
        comparisons: at least one.
    """

    comparisons: tuple[Comparison, ...]

    def __call__(self, state: np.ndarray) -> bool:
        """Whether it holds of a state float32 [P]."""
        return all(comparison(state) for comparison in self.comparisons)

    def check(self, state_dim: int) -> None:
        """Refuse a state that is too short.

        Raises:
            ValueError: an entry is compared that the state does not have.
        """
        largest = max(comparison.index for comparison in self.comparisons)
        if largest >= state_dim:
            accepted = f"state[0] to state[{state_dim - 1}]" if state_dim else "no condition, for there is no state"
            raise ValueError(f"the condition compares state[{largest}]; accepted in this environment: {accepted}")


def parse_condition(text: str) -> Condition:
    """Read a condition.

    Args:
        text: ``state[INDEX] SIGN NUMBER``, several joined by ``and``.

    Raises:
        ValueError: it is something else.
    """
    comparisons = []
    for part in re.split(r"\band\b", text):
        match = _COMPARISON.fullmatch(part)
        if match is None:
            raise ValueError(f"condition {text!r}: {part.strip()!r} is no comparison; accepted: {ACCEPTED}")
        comparisons.append(Comparison(int(match["index"]), match["sign"], float(match["bound"])))
    return Condition(tuple(comparisons))
