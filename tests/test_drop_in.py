"""The classes that the manuals name, used as the manuals use them."""

import numpy as np
import pytest
import torch

from serl_fast import train_hybrid
from serl_fast.agents.sac import SACAgent, SACHybridAgent


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
