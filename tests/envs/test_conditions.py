"""Conditions on the state: what they mean, and that nothing else is read."""

import numpy as np
import pytest

from serl_fast.envs import parse_condition

STATE = np.array([0.5, -1.0, 0.04, 2e-3], np.float32)


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("state[0]>0.4", True),
        ("state[0] > 0.5", False),
        ("state[0]>=0.5", True),
        ("state[1]<-1", False),
        ("state[1] <= -1.0", True),
        ("state[0, 3] < 1e-2", True),
        (" state [ 0 ] < +.6 ", True),
        ("state[0]>0.4 and state[1]>0", False),
        ("state[0]>0.4 and state[1]<0 and state[3]<2.5e-3", True),
    ],
)
def test_a_condition_holds_of_the_state_or_not(text, holds):
    assert parse_condition(text)(STATE) is holds


@pytest.mark.parametrize(
    "text",
    ["", "state[0]", "state[-1]>0", "state[0]==1", "state[0]>0.4 or state[1]>0", "state[0]>nan", "state[0]>1 and",
     "front[0]>1", "state[1,0]>0", "state[0]>__import__('os').system('true')", "0<state[0]", "state[99999999]>0"],
)  # fmt: skip
def test_anything_else_is_refused(text):
    with pytest.raises(ValueError, match=r"is no comparison; accepted: .*state\[6\]>0.04"):
        parse_condition(text)


def test_a_state_that_is_too_short_is_refused():
    condition = parse_condition("state[0]>0 and state[4]<1")
    condition.check(5)
    with pytest.raises(
        ValueError, match=r"compares state\[4\]; accepted in this environment: state\[0\] to state\[3\]"
    ):
        condition.check(4)
    with pytest.raises(ValueError, match="no condition, for there is no state"):
        condition.check(0)
