import numpy as np
import pytest

from serl_fast.data.d4rl_scores import find_task, normalized_score


@pytest.mark.parametrize(
    ("name", "task", "steps"),
    [
        ("halfcheetah-medium-v2", "halfcheetah", 1000),
        ("HalfCheetah-v4", "halfcheetah", 1000),
        ("hopper_mixed", "hopper", 1000),
        ("mujoco/walker2d/expert-v0", "walker2d", 1000),
        ("ant-random-v2", "ant", 1000),
        ("antmaze-umaze-diverse-v2", "antmazeumaze", 700),
        ("Ant_maze_hardest-maze_noisy_multistart_True_sparse_fixed", "antmaze", 1000),
        ("AntMaze_UMaze-v4", "antmazeumaze", 700),
        ("D4RL/pen/human-v2", "pen", 100),
        ("AdroitHandHammer-v1", "hammer", 200),
        ("mini_kitchen_microwave_kettle_light_slider-v0", "kitchen", 280),
        ("FrankaKitchen-v1", "kitchen", 280),
        ("maze2d-umaze-dense-v1", "maze2dumazedense", 300),
        ("maze2d-large-v1", "maze2dlarge", 800),
    ],
)
def test_tasks_by_their_names(name, task, steps):
    found = find_task(name)
    assert (found.name, found.max_episode_steps) == (task, steps)


def test_other_names_are_none():
    for name in ("", "giant-v0", "x", "cube-single-play-v0"):
        assert find_task(name) is None
        with pytest.raises(ValueError, match="none of D4RL's tasks"):
            normalized_score(name, 1.0)


def test_scores():
    """Worked out by hand: a random policy's return gives 0, an expert's 1."""
    np.testing.assert_allclose(normalized_score("halfcheetah-medium-v2", [-280.178953, 12135.0]), [0, 1], atol=1e-12)
    assert normalized_score("hopper-medium-v2", 1000.0) == pytest.approx((1000 + 20.272305) / (3234.3 + 20.272305))
    assert normalized_score("antmaze-large-play-v2", 1.0) == 1.0
    assert normalized_score("pen-human-v1", [[96.262799]]).shape == (1, 1)
