"""The Python of the SERL manuals on agents, classifier and training, run as it stands there.

Only the package's name differs, and where a manual says "cuda" or names a file, the test has its own.
"""

import numpy as np
import pytest
import torch

from serl_fast import train_hybrid
from serl_fast.agents.sac import SACAgent

CREATE_STATES = """
import torch
import numpy as np
from serl_fast.agents.sac import SACAgent

agent = SACAgent.create_states(
    observations=torch.randn(1, 10),
    actions=torch.randn(1, 4),
    critic_network_kwargs={'hidden_dims': [256, 256]},
    policy_network_kwargs={'hidden_dims': [256, 256]},
    device='cuda' if torch.cuda.is_available() else 'cpu'
)
"""

TRAIN = """
batch_size = 256
state_dim = 10
action_dim = 4

batch = {
    'observations': torch.randn(batch_size, state_dim),
    'actions': torch.randn(batch_size, action_dim),
    'rewards': torch.randn(batch_size),
    'masks': torch.ones(batch_size),
    'next_observations': torch.randn(batch_size, state_dim),
}

agent, info = agent.update(batch)
print(f"Critic Loss: {info['critic_loss']:.4f}")
print(f"Actor Loss: {info['actor_loss']:.4f}")
"""

COMPILE = """
agent.state.models['actor'] = torch.compile(
    agent.state.models['actor'],
    mode='max-autotune'
)
agent.state.models['critic'] = torch.compile(
    agent.state.models['critic'],
    mode='max-autotune'
)
"""

MIXED_PRECISION = """
from torch.cuda.amp import autocast, GradScaler

scaler = GradScaler()

with autocast():
    loss, info = agent.critic_loss_fn(batch)

scaler.scale(loss).backward()
scaler.step(optimizer)
scaler.update()
"""

IMAGE_AGENTS = """
from serl_fast.agents.sac import SACAgent, SACHybridAgent

agent = SACAgent(
    image_keys=['image'],
    action_dim=6,
    lr=3e-4
)

agent = SACHybridAgent(
    image_keys=['image'],
    continuous_action_dim=6,
    grasp_action_dim=3,
    lr=3e-4
)
"""

CLASSIFIER = """
from serl_fast.networks.classifier import RewardClassifier

classifier = RewardClassifier(image_keys=['image'])
success_prob, is_success = classifier.predict_success(obs)
"""

LOAD = """
import torch
from serl_fast.agents.sac import SACHybridAgent

agent = SACHybridAgent(
    image_keys=["image"],
    continuous_action_dim=6,
    grasp_action_dim=3,
    device=device
)

checkpoint = torch.load(path)
agent.load(checkpoint)
"""


def test_creating_and_training_from_states(capsys):
    names = {}
    exec(CREATE_STATES, names)
    exec(TRAIN, names)
    said = capsys.readouterr().out
    assert "Critic Loss: " in said
    assert "Actor Loss: " in said
    assert names["agent"].sample_actions(np.zeros(10)).shape == (4,)
    assert names["agent"].sample_actions(torch.zeros(3, 10), argmax=True).shape == (3, 4)


def test_networks_may_be_wrapped_by_the_compiler():
    names = {}
    exec(CREATE_STATES, names)
    exec(COMPILE.replace("mode='max-autotune'", "backend='eager'"), names)  # autotuning takes minutes
    exec(TRAIN, names)
    assert np.isfinite(names["info"]["critic_loss"])


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:.*CUDA is not available:UserWarning")
def test_a_critic_loss_for_a_loop_of_ones_own():
    names = {}
    exec(CREATE_STATES, names)
    exec(TRAIN, names)
    critic = names["agent"].state.models["critic"]
    before = [p.detach().clone() for p in critic.parameters()]
    names["optimizer"] = torch.optim.Adam(critic.parameters())
    exec(MIXED_PRECISION, names)
    assert any(not torch.equal(a, b) for a, b in zip(before, critic.parameters(), strict=True))


def test_image_agents():
    names = {}
    exec(IMAGE_AGENTS, names)
    image = np.zeros((64, 64, 3), np.uint8)
    assert names["agent"].sample_actions({"image": image}).shape == (7,)


@pytest.mark.parametrize("shape", [(128, 128, 3), (1, 128, 128, 3), (1, 1, 64, 64, 3)])
def test_classifier(shape):
    names = {"obs": {"image": np.zeros(shape, np.uint8), "state": np.zeros(3)}}
    exec(CLASSIFIER, names)
    assert 0 < names["success_prob"] < 1
    assert names["is_success"] is (names["success_prob"] >= 0.5)


def test_loading_a_trained_model(tmp_path):
    flags = ["--env", "toy/Arm-v0", "--max_steps=4", "--batch_size=4", "--training_starts=4", "--random_steps=4"]
    quiet = ["--execution=eager", "--eval_interval=0", "--final_eval_episodes=0", "--hidden_widths", "16"]
    train_hybrid.run([*flags, *quiet, "--image_keys", "front", "--save_dir", str(tmp_path)])
    names = {"path": tmp_path / "final_model.pth", "device": "cpu"}
    exec(LOAD.replace('"image"', '"front"'), names)
    weights = names["agent"].agent.networks.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in names["checkpoint"]["networks"].items())


def test_arguments_that_are_not_known_are_named():
    example = {"observations": np.zeros(3), "actions": np.zeros(2)}
    with pytest.raises(ValueError, match=r"\['depth'\] are not known; accepted: \['activations', 'hidden_dims'"):
        SACAgent.create_states(**example, critic_network_kwargs={"depth": 3})
    with pytest.raises(ValueError, match="critics and policy share one shape"):
        SACAgent.create_states(
            **example, critic_network_kwargs={"hidden_dims": [8]}, policy_network_kwargs={"hidden_dims": [16]}
        )
    with pytest.raises(ValueError, match=r"unexpected keyword argument 'ensembles'.*SACConfig"):
        SACAgent.create_states(**example, ensembles=3)
    with pytest.raises(ValueError, match=r"cameras \['wrist'\] are not in the example"):
        SACAgent.create_pixels({"front": np.zeros((8, 8, 3))}, np.zeros(2), image_keys=["wrist"])


def test_create_pixels_sizes_a_small_encoder_by_example():
    observations = {"front": np.zeros((2, 48, 40, 3), np.uint8), "state": np.zeros((2, 5))}
    agent = SACAgent.create_pixels(
        observations,
        np.zeros((2, 3)),
        image_keys=("front",),
        encoder_type="small",
        critic_ensemble_size=3,
        temperature_init=0.1,
        policy_kwargs={"std_parameterization": "uniform"},
        device="cpu",
    )
    batch = {
        "observations": observations,
        "next_observations": observations,
        "actions": np.zeros((2, 3)),
        "rewards": np.zeros(2),
        "masks": np.ones(2),
    }
    assert np.isfinite(agent.update(batch)[1]["critic_loss"])
    assert agent.agent.settings["config"]["image_size"] == (48, 40)
