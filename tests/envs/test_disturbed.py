"""The ways in which an expert is made to err."""

import numpy as np

from serl_fast.envs.disturbed import MANNERS, DisturbedExpert


def actions(disturbed, episode, steps=400):
    disturbed.start(episode)
    return np.stack([disturbed(None) for _ in range(steps)])


def expert(observation):
    return np.array([0.5, 0, 0, 0, 0, 0, -1.0])


def test_every_manner_errs_in_its_own_way():
    disturbed = DisturbedExpert(expert, 7, noise=0.1, seed=0)
    seen = {}
    for episode, manner in enumerate(MANNERS):
        taken = actions(disturbed, episode)
        assert disturbed.manner == manner
        assert taken.dtype == np.float32
        assert np.abs(taken).max() <= 1
        seen[manner] = taken
    error = {manner: taken - expert(None) for manner, taken in seen.items()}
    assert 0.08 < error["clean"][:, :6].std() < 0.12
    assert not error["clean"][:, 6].any()  # grippers have no noise
    assert error["noisy"][:, 1:6].std() > 0.15
    aside = error["aside"][:, 1:6].mean(0)
    assert np.abs(aside).max() > 0.2
    assert np.abs(error["aside"][:, 1:6] - aside).std() < 0.12  # a constant, and the usual noise
    strayed = np.abs(error["interrupted"][:, 6]) > 0
    assert 0.2 < strayed.mean() < 0.8
    assert (np.abs(error["random"][:, 6]) > 0).all()
    repeated = (np.diff(seen["random"], axis=0) == 0).all(1)
    assert 0.7 < repeated.mean() < 0.95


def test_without_an_expert_all_is_random_and_the_seed_says_what():
    first, same, other = (DisturbedExpert(None, 6, seed=seed) for seed in (1, 1, 2))
    taken = actions(first, 3, 50)
    assert np.array_equal(taken, actions(same, 3, 50))
    assert not np.array_equal(taken, actions(other, 3, 50))
