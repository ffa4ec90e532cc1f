"""Scripted expert and operator."""

import re

import gymnasium
import numpy as np
import pytest
import serl_robots  # noqa: F401  (registers the environments)
from serl_robots.envs import pick_cube
from serl_robots.experts import expert
from serl_robots.operators import Intervention, ScriptedOperator
from serl_robots.registration import ENVIRONMENTS

PICK_CUBE, REACH = "serl_robots/PickCube-v0", "serl_robots/Reach-v0"
ALL = pytest.mark.parametrize("env_id", ENVIRONMENTS)


def run_episode(env, policy, seed):
    """(success, steps, infos, actions) of one episode."""
    observation, info = env.reset(seed=seed)
    infos, actions, finished = [], [], False
    while not finished:
        actions.append(policy(observation))
        observation, _, terminated, truncated, info = env.step(actions[-1])
        infos.append(info)
        finished = terminated or truncated
    return info["succeed"], len(infos), infos, np.array(actions)


def idle(env):
    return lambda observation: np.zeros(env.action_space.shape, np.float32)


def success_rate(env_id, seeds, noise=0.0):
    env, policy = gymnasium.make(env_id), expert(env_id, noise=noise, seed=0)
    return np.mean([run_episode(env, policy, seed)[0] for seed in seeds])


@ALL
def test_expert_succeeds(env_id):
    assert success_rate(env_id, range(40)) >= 0.95
    assert success_rate(env_id, range(20), noise=0.2) >= 0.95


@pytest.mark.slow
@ALL
def test_expert_succeeds_on_many_seeds(env_id):
    assert success_rate(env_id, range(200)) >= 0.95


@ALL
def test_expert_reads_observation_or_environment_alike(env_id):
    env = gymnasium.make(env_id)
    observation, _ = env.reset(seed=0)
    assert np.array_equal(expert(env_id)(observation), expert(env)(observation))
    assert expert(env)(observation) in env.action_space


def test_noise_makes_demonstrations_differ():
    env = gymnasium.make(PICK_CUBE)
    first, again, other = (run_episode(env, expert(env, 0.2, seed), 0)[-1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert first.shape != other.shape or not np.array_equal(first, other)


def test_expert_uses_the_gripper_sparingly():
    env = gymnasium.make(PICK_CUBE)
    for seed in range(10):
        _, _, infos, actions = run_episode(env, expert(env), seed)
        assert sum(info["grasp_penalty"] for info in infos) == pytest.approx(-0.02)
        assert (actions[:, 6] <= 0).all()
        assert (actions[:, 6] < 0).sum() <= 3


def test_expert_recovers_from_bad_states():
    """After random play, gripper closed beside or on top of the cube, hand turned and tilted."""
    env = gymnasium.make(PICK_CUBE, max_episode_steps=200)
    policy, random = expert(env), np.random.default_rng(0)
    for seed in range(20):
        observation, _ = env.reset(seed=seed)
        for _ in range(40):
            action = random.uniform(-1, 1, 7)
            if seed % 2:
                action[:3] = observation["state"][pick_cube.STATE["cube_from_tcp"]] / 0.03
                action[6] = -1.0
            observation, _, terminated, _, _ = env.step(action)
            if terminated:
                break
        for _ in range(60):
            if terminated:
                break
            observation, _, terminated, _, _ = env.step(policy(observation))
        assert terminated, f"seed {seed}"


def test_unknown_environment_has_no_expert():
    with pytest.raises(ValueError, match=r"no expert for 'Other-v0'.*PickCube"):
        expert("Other-v0")


@ALL
def test_operator_helps_an_idle_policy(env_id):
    env = ScriptedOperator(gymnasium.make(env_id), patience=10, duration=5)
    succeed, steps, infos, _ = run_episode(env, idle(env), 1)
    taken = [index for index, info in enumerate(infos) if "intervene_action" in info]
    assert succeed
    assert taken[0] == 10, "after 10 steps without progress"
    assert len(taken) < steps
    for index in taken:
        action = infos[index]["intervene_action"]
        assert action.dtype == np.float32
        assert action in env.action_space


def test_operator_lets_go_after_its_duration():
    env = ScriptedOperator(gymnasium.make(PICK_CUBE), patience=10, duration=4)
    _, _, infos, _ = run_episode(env, idle(env), 0)
    taken = "".join("x" if "intervene_action" in info else "." for info in infos)
    # The arm still coasts when the policy is given back: its first steps may count as progress.
    assert re.match(r"\.{10}xxxx\.{10,12}xxxx\.{10,12}x", taken)


@ALL
def test_operator_leaves_an_expert_alone(env_id):
    env = ScriptedOperator(gymnasium.make(env_id))
    for seed in range(20):
        succeed, _, infos, _ = run_episode(env, expert(env, noise=0.1, seed=seed), seed)
        assert succeed
        assert not any("intervene_action" in info for info in infos)


def test_operator_can_be_switched_off():
    env = ScriptedOperator(gymnasium.make(REACH), patience=1)
    env.enabled = False
    succeed, _, infos, _ = run_episode(env, idle(env), 1)
    assert not succeed
    assert not any("intervene_action" in info for info in infos)


def test_operator_refuses_what_it_cannot_watch():
    with pytest.raises(ValueError, match="no progress"):
        ScriptedOperator(gymnasium.make("CartPole-v1"))
    with pytest.raises(ValueError, match="patience is 0"):
        ScriptedOperator(gymnasium.make(REACH), patience=0)


def test_any_callable_can_be_the_operator():
    seen = []

    def device(observation, policy_action, info):
        seen.append((observation["state"].shape, policy_action, info["succeed"]))
        return np.full(6, 3.0) if len(seen) == 2 else None

    env = Intervention(gymnasium.make(REACH), device)
    env.reset(seed=1)
    policy_action = np.zeros(6, np.float32)
    infos = [env.step(policy_action)[-1] for _ in range(3)]
    assert ["intervene_action" in info for info in infos] == [False, True, False]
    assert np.array_equal(infos[1]["intervene_action"], np.ones(6, np.float32))
    assert seen[0][1] is policy_action
