"""States: what is restored goes on as if nothing had happened."""

from __future__ import annotations

import numpy as np
import pytest

from serl_fast.replay import ReplayStore


@pytest.fixture
def store(step):
    result = ReplayStore.from_example(step(0), 10, seed=5)
    for time in range(17):
        result.append(step(time, truncated=time == 11))
    result.sample(4)
    return result


def same_future(one, two, step):
    for time in (17, 18, 40):
        np.testing.assert_array_equal(one.sample(32)["rewards"], two.sample(32)["rewards"])
        one.append(step(time))
        two.append(step(time))
    a, b = one.state_dict(), two.state_dict()
    assert a.keys() == b.keys()
    for key in a:
        if key != "capacity":
            np.testing.assert_array_equal(a[key], b[key], key)


def test_load_state_dict_goes_on_exactly(store, step, check):
    other = ReplayStore.from_example(step(0), 10, seed=77)
    other.append(step(500))
    other.load_state_dict(store.state_dict())
    assert (other.seed, other.draws, other.appended, len(other)) == (5, 1, 17, 10)
    check(other.batch_at(range(10)), range(7, 17))
    other.append(step(17), continues=True)
    store.append(step(17), continues=True)
    same_future(store, other, step)


def test_an_empty_store_has_a_state(step):
    one, two = (ReplayStore.from_example(step(0), 4) for _ in range(2))
    two.append(step(0))
    two.load_state_dict(one.state_dict())
    assert len(two) == 0


def test_a_state_that_does_not_fit_changes_nothing(store, step):
    good = store.state_dict()
    wrong_schema = ReplayStore.from_example(step(0, labels=1), 10)
    with pytest.raises(ValueError, match="field 'labels' of the state is missing; here it is int64"):
        wrong_schema.load_state_dict(good)
    with pytest.raises(ValueError, match="the state holds 10 transitions; the store's capacity is 9"):
        ReplayStore.from_example(step(0), 9).load_state_dict(good)
    ends = good["steps/truncated"].copy()
    ends[0] = True
    bad_rewards = good["steps/rewards"].copy()
    bad_rewards[3] = np.nan
    for changes, error, message in [
        ({"format": np.array(99)}, ValueError, "the state has format 99; this version of serl_fast reads format 1"),
        ({"steps/truncated": ends}, ValueError, "step 1 continues nothing"),
        ({"steps/rewards": bad_rewards}, ValueError, "non-finite"),
        ({"steps/rewards": good["steps/rewards"][:5]}, ValueError, "field 'rewards' has shape"),
        ({"steps/actions": good["steps/actions"].astype(np.float64)}, TypeError, "field 'actions' has dtype"),
        ({"records/observations/state": good["records/observations/state"][:-1]}, ValueError, "has shape"),
        ({"continues": np.zeros(10, bool)}, ValueError, "inconsistent: its steps need 20 observation records"),
        ({"continues": np.ones(10, bool)}, ValueError, "step 0 continues nothing"),
        ({"appended": np.array(3)}, ValueError, "more transitions than were ever appended"),
    ]:
        with pytest.raises(error, match=message):
            store.load_state_dict({**good, **changes})
    for key in good:
        with pytest.raises(ValueError, match=f"the state has no part '{key}'"):
            store.load_state_dict({k: v for k, v in good.items() if k != key})
    for key, value in store.state_dict().items():
        np.testing.assert_array_equal(value, good[key])
