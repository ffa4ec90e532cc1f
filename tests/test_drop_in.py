"""The classes that the manuals name, used as the manuals use them."""

import dataclasses

import numpy as np
import pytest
import torch

from serl_fast import train_hybrid
from serl_fast.agents.sac import SACAgent, SACHybridAgent
from serl_fast.agents.sac_config import SACConfig


def batch(width: int, size: int = 4, **cameras) -> dict:
    random = np.random.default_rng(0)
    observations = {"state": random.normal(size=(size, 5))}  # float64, as NumPy makes it
    observations |= {key: random.integers(0, 255, (size, *shape), np.uint8) for key, shape in cameras.items()}
    return {
        "observations": observations,
        "next_observations": observations,
        "actions": random.uniform(-1, 1, (size, width)),
        "rewards": random.normal(size=size),
        "masks": np.ones(size),
    }


def test_hybrid_agent_acts_and_learns():
    torch.manual_seed(0)
    agent = SACHybridAgent(continuous_action_dim=6, grasp_action_dim=3, state_dim=5, device="cpu", lr=1e-3)
    data = batch(7)
    action = agent.sample_actions({"state": data["observations"]["state"][0]}, argmax=True)
    assert action.shape == (7,)
    assert action[6] in (-1, 0, 1)
    assert agent.sample_actions(data["observations"]).shape == (4, 7)
    same, first = agent.update(data)
    assert same is agent
    for _ in range(60):
        _, info = agent.update(data)
    assert info["critic_loss"] < first["critic_loss"] / 2
    assert {"critic_loss", "grasp_critic_loss", "actor_loss", "alpha_loss", "alpha"} <= set(info)


def test_agents_with_images_alone():
    agent = SACAgent(image_keys=["image"], action_dim=6, lr=3e-4, device="cpu")
    image = np.zeros((32, 32, 3), np.uint8)
    assert agent.sample_actions({"image": image}).shape == (6,)
    data = batch(6, size=2, image=(32, 32, 3))
    assert np.isfinite(agent.update(data)[1]["critic_loss"])


def test_two_arms():
    agent = SACHybridAgent(state_dim=5, continuous_action_dim=12, grasp_action_dim=9, device="cpu")
    assert agent.update(batch(14))[0].sample_actions({"state": np.zeros(5)}).shape == (14,)


def test_a_trained_checkpoint_loads(tmp_path):
    flags = ["--env", "toy/Arm-v0", "--max_steps=4", "--batch_size=4", "--training_starts=4", "--random_steps=4"]
    quiet = ["--execution=eager", "--eval_interval=0", "--final_eval_episodes=0", "--hidden_widths", "16"]
    train_hybrid.run([*flags, *quiet, "--save_dir", str(tmp_path)])
    agent = SACHybridAgent(continuous_action_dim=6, grasp_action_dim=3, state_dim=4, device="cpu")
    checkpoint = torch.load(tmp_path / "final_model.pth")
    agent.load(checkpoint)  # widths that the constructor does not ask for come from the checkpoint
    for name, value in checkpoint["networks"].items():
        assert torch.equal(agent.agent.networks.state_dict()[name], value)
    assert agent.sample_actions({"state": np.zeros(4, np.float32)}).shape == (7,)
    agent.load(torch.load(tmp_path / "checkpoint_4.pth"))
    assert agent.engine.updates == 4
    with pytest.raises(ValueError, match="the checkpoint's algorithm is hybrid_sac; this agent's is sac"):
        SACAgent(["image"], device="cpu").load(checkpoint)
    with pytest.raises(ValueError, match="not a checkpoint of train_hybrid"):
        agent.load({"weights": 1})


def test_dimensions_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="continuous_action_dim 6 with grasp_action_dim 9; accepted: 6 with 3"):
        SACHybridAgent(["image"], 6, 9)


STATE, ACTIONS = np.zeros(5, np.float32), np.zeros(2, np.float32)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"policy_kwargs": {"tanh_squash_distribution": False}}, "policy_kwargs: tanh_squash_distribution is False"),
        ({"policy_network_kwargs": {"activate_final": False}}, "policy_network_kwargs: activate_final is False"),
        ({"critic_network_kwargs": {"activate_final": False}}, "critic_network_kwargs: activate_final is False"),
        ({"policy_kwargs": {"activate_final": True}}, r"policy_kwargs: \['activate_final'\] are not known"),
        ({"lr": 1e-3, "learning_rate": 1e-3}, "learning_rate is given twice"),
        ({"policy_kwargs": {"std_min": 0.1}, "std_min": 0.2}, "std_min is given twice, the second time as std_min"),
    ],
)
def test_what_the_original_can_and_this_can_not_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        SACAgent.create_states(STATE, ACTIONS, device="cpu", **kwargs)


def test_what_it_can_is_taken():
    agent = SACAgent.create_states(
        STATE,
        ACTIONS,
        critic_network_kwargs={"hidden_dims": [8], "activate_final": True},
        policy_network_kwargs={"hidden_dims": [8]},
        policy_kwargs={"tanh_squash_distribution": True, "std_max": 2.0},
        device="cpu",
    )
    config = agent.agent.settings["config"]
    assert (config["hidden_widths"], config["std_max"]) == ((8,), 2.0)


@pytest.mark.parametrize("kind", [SACAgent, SACHybridAgent])
def test_the_constructors_take_settings(kind):
    small = {"encoder": "small", "image_size": (32, 32), "hidden_widths": [8]}
    agent = kind(["front"], state_dim=5, device="cpu", compat="hil_serl", lr=1e-3, temperature_init=0.5, **small)
    expected = SACConfig(
        compat="hil_serl",
        encoder="small",
        image_size=(32, 32),
        hidden_widths=(8,),
        learning_rate=1e-3,
        initial_temperature=0.5,
    )
    assert agent.agent.settings["config"] == dataclasses.asdict(expected)
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'ensembles'.*SACConfig"):
        kind(state_dim=5, ensembles=3)
    with pytest.raises(ValueError, match="compat is 'serl'; choose 'hil_serl' or None"):
        kind(state_dim=5, compat="serl")


def test_six_actions_where_none_are_given():
    assert SACAgent(state_dim=5, device="cpu").agent.action_dim == 6
    assert SACAgent(state_dim=5, continuous_action_dim=4, device="cpu").agent.action_dim == 4


@pytest.mark.parametrize(
    ("frames", "state", "image", "expected"),
    [
        (1, (6,), (32, 32, 3), (6,)),
        (1, (6,), (1, 32, 32, 3), (6,)),
        (1, (1, 6), (1, 32, 32, 3), (1, 6)),
        (1, (4, 6), (4, 32, 32, 3), (4, 6)),
        (1, (4, 1, 6), (4, 1, 32, 32, 3), (4, 6)),
        (2, (6,), (2, 32, 32, 3), (6,)),
        (2, (2, 3), (2, 32, 32, 3), (6,)),
        (2, (4, 6), (4, 2, 32, 32, 3), (4, 6)),
        (2, (4, 2, 3), (4, 2, 32, 32, 3), (4, 6)),
        (2, (2, 2, 3), (2, 2, 32, 32, 3), (2, 6)),
    ],
)
def test_one_observation_or_a_batch(frames, state, image, expected):
    agent = SACAgent(
        ["front"], state_dim=6, device="cpu", frames=frames, encoder="small", image_size=(32, 32), hidden_widths=(8,)
    )
    random = np.random.default_rng(0)
    observations = {"state": random.normal(size=state), "front": random.integers(0, 255, image, np.uint8)}
    actions = agent.sample_actions(observations, argmax=True)
    assert actions.shape == expected
    # The same observations as a batch with every axis, one at a time, give the same.
    full = {
        "state": observations["state"].reshape(-1, 6),
        "front": observations["front"].reshape(-1, frames, 32, 32, 3),
    }
    for row, action in enumerate(actions.reshape(-1, 6)):
        one = agent.sample_actions({key: value[row : row + 1] for key, value in full.items()}, argmax=True)
        np.testing.assert_allclose(one[0], action, rtol=1e-5, atol=5e-6)  # weights are random: the last digits differ


@pytest.mark.parametrize(
    ("frames", "state", "image"),
    [
        (2, (6,), (32, 32, 3)),
        (2, (6,), (3, 32, 32, 3)),
        (2, (4, 6), (4, 32, 32, 3)),
        (1, (6,), (4, 32, 32, 3)),
        (1, (5,), (32, 32, 3)),
        (1, (4, 6), (32, 32, 3)),
    ],
)
def test_shapes_that_are_neither_are_named(frames, state, image):
    agent = SACAgent(["front"], state_dim=6, device="cpu", frames=frames, encoder="small", image_size=(32, 32))
    cameras = r"\[H, W, C\]" if frames == 1 else r"2 frames each, \[2, H, W, C\]"
    with pytest.raises(ValueError, match=rf"have shapes .*; accepted: state \[6\], cameras {cameras}, or all with a"):
        agent.sample_actions({"state": np.zeros(state), "front": np.zeros(image, np.uint8)})


def test_what_is_missing_is_named():
    agent = SACAgent(["front"], state_dim=5, device="cpu", encoder="small", image_size=(32, 32))
    with pytest.raises(ValueError, match="observations: front missing; given are state, wrist"):
        agent.sample_actions({"state": np.zeros(5), "wrist": np.zeros((32, 32, 3), np.uint8)})
    with pytest.raises(ValueError, match="observations: state, front missing; given are none"):
        agent.sample_actions({})
    data = batch(6, front=(32, 32, 3))
    for update in (agent.update, agent.critic_loss_fn):
        with pytest.raises(ValueError, match="the batch: rewards, masks missing; given are observations, next_obs"):
            update({key: value for key, value in data.items() if key not in ("rewards", "masks")})
        with pytest.raises(ValueError, match="next_observations: front missing; given are state"):
            update(data | {"next_observations": {"state": data["observations"]["state"]}})
    with pytest.raises(ValueError, match="observations: state missing; given are front"):
        SACAgent.create_states({"front": np.zeros((8, 8, 3))}, ACTIONS)
