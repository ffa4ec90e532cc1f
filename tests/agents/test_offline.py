"""What all offline algorithms have in common: what trains what, cameras, settings, noise, checks of the batch."""

import dataclasses

import pytest
import torch

from serl_fast.agents.build import ALGORITHMS, from_settings
from serl_fast.agents.offline import OfflineConfig, policy_metrics
from serl_fast.agents.parts import normalize_states
from serl_fast.engine import Engine
from tests.agents import plain
from tests.equivalence.agents import FrozenTrunk

OFFLINE = ("iql", "td3bc", "rebrac", "cql", "calql")
DELAYED = ("td3bc", "rebrac")
SMALL = {"hidden_widths": (16, 16)}
CAMERA = {"encoder": "small", "image_size": (32, 32)}
TRAINED_BY_CRITICS = {"iql": {"critic", "value"}}


def build(name, cameras=(), trunk=None, **settings):
    algorithm = ALGORITHMS[name]
    config = algorithm.config(**{**SMALL, **(CAMERA if cameras and trunk is None else {}), **settings})
    return algorithm.build(plain.STATE, plain.ACTION, cameras, config, trunk=trunk)


def with_images(batch, side=32):
    def add(observations):
        rows = len(observations["state"])
        return {**observations, "front": torch.randint(256, (rows, side, side, 3), dtype=torch.uint8)}

    return {**batch, **{key: add(batch[key]) for key in ("observations", "next_observations")}}


def moved(agent, before):
    """Names of the networks of which a parameter is not what it was."""
    now = agent.networks.state_dict()
    return {name.split(".")[0] for name, value in now.items() if not torch.equal(value, before[name])}


def snapshot(agent):
    return {name: value.clone() for name, value in agent.networks.state_dict().items()}


@pytest.mark.parametrize("name", OFFLINE)
@pytest.mark.parametrize("cameras", [(), ("front",)])
def test_what_is_trained(name, cameras):
    """Critics' steps train critics and encoder, the actor's the policy alone; TD3's targets wait for the actor."""
    torch.manual_seed(0)
    agent = build(name, cameras)
    engine = Engine(agent, seed=0)
    batches = [with_images(batch) if cameras else batch for batch in plain.batches(2)]
    critics = TRAINED_BY_CRITICS.get(name, {"critic"}) | ({"encoder"} if cameras else set())
    targets = {"target_critic"} | ({"target_encoder"} if cameras else set())
    before = snapshot(agent)
    engine.update(batches[0], with_actor=False)
    assert moved(agent, before) == (critics if name in DELAYED else critics | targets)

    delayed = {"target_actor"} if name in DELAYED else set()
    temperature = {"temperature"} if name in ("cql", "calql") else set()
    before = snapshot(agent)
    engine.update(batches[1])
    assert moved(agent, before) == critics | targets | delayed | temperature | {"actor"}
    for objective in agent.actor_step:
        assert "encoder" not in objective.trains


@pytest.mark.parametrize("name", OFFLINE)
def test_rebuilt_from_settings(name):
    agent = build(name, ("front",), critic_learning_rate=1e-3, proprioception_dim=8, reward_scale=2.0)
    again = from_settings(agent.settings)
    assert again.settings == agent.settings
    again.networks.load_state_dict(agent.networks.state_dict())
    observations = with_images(next(plain.batches(1)))["observations"]
    noise = torch.randn(plain.ROWS, plain.ACTION)
    for each in (None, noise):
        actions = agent.policy(agent.networks, observations, each)
        assert torch.equal(again.policy(again.networks, observations, each), actions)
        assert actions.shape == (plain.ROWS, plain.ACTION)
        assert actions.abs().max() <= 1
    assert again.optimizers["critic"].learning_rate == 1e-3


@pytest.mark.parametrize("name", OFFLINE)
def test_a_trunk_of_the_users_own(name):
    trunk = FrozenTrunk()
    agent = build(name, ("front",), trunk)
    assert agent.settings["config"]["encoder"] == "custom"
    with pytest.raises(ValueError, match="image trunk of its user's"):
        from_settings(agent.settings)
    again = from_settings(agent.settings, trunk)
    Engine(again, seed=0).update(with_images(next(plain.batches(1))))


@pytest.mark.parametrize("name", OFFLINE)
def test_noise_is_all_there_is_to_chance(name):
    """A loss is a function of its arguments; drawing leaves torch's global generator alone."""
    agent = build(name)
    state = torch.random.get_rng_state()
    noise = agent.draw_noise(torch.Generator().manual_seed(1), plain.ROWS, torch.device("cpu"))
    batch = agent.prepare(agent.networks, next(plain.batches(1)), noise)
    for objective in agent.objectives:
        first, second = (objective.loss(agent.networks, batch, noise) for _ in range(2))
        assert torch.equal(first.value, second.value)
        assert first.value.requires_grad
        assert not any(metric.requires_grad or metric.dim() for metric in first.metrics.values())
    assert torch.equal(torch.random.get_rng_state(), state)
    other = agent.draw_noise(torch.Generator().manual_seed(1), plain.ROWS, torch.device("cpu"))
    assert all(torch.equal(noise[key], other[key]) for key in noise)


@pytest.mark.parametrize("name", OFFLINE)
def test_metrics_that_show_health(name):
    agent = build(name)
    metrics = Engine(agent, seed=0).update(next(plain.batches(1)))
    common = ("critic/loss", "critic/q_data", "critic/q_target", "actor/loss", "actor/q_policy", "actor/bc_error")
    assert {*common, "actor/saturated"} <= set(metrics)


def test_saturation():
    metrics = policy_metrics(torch.tensor([[0.5, -1.0], [0.995, 0.0]]), {"actions": torch.zeros(2, 2)})
    assert metrics["saturated"].item() == 0.5


@pytest.mark.parametrize("name", OFFLINE)
def test_rewards_are_scaled(name):
    agent = build(name, reward_scale=10.0, reward_bias=-5.0)
    noise = agent.draw_noise(torch.Generator(), plain.ROWS, torch.device("cpu"))
    batch = next(plain.batches(1))
    assert torch.equal(agent.prepare(agent.networks, batch, noise)["rewards"], batch["rewards"] * 10 - 5)


@pytest.mark.parametrize("name", OFFLINE)
def test_states_are_normalised(name):
    agent = build(name)
    normalize_states(agent.networks, 3 + 2 * torch.randn(1000, plain.STATE))
    for encoder in ("encoder", "target_encoder"):
        assert agent.networks[encoder].normalizer.mean.mean().item() == pytest.approx(3, abs=0.2)


@pytest.mark.parametrize(("name", "field"), [("rebrac", "next_actions"), ("calql", "mc_returns")])
def test_further_fields(name, field):
    assert ALGORITHMS[name].fields == (field,)
    engine, batch = Engine(build(name)), next(plain.batches(1))
    with pytest.raises(ValueError, match=f"{field} is missing|the batch has no {field}"):
        engine.update({key: value for key, value in batch.items() if key != field})
    with pytest.raises(ValueError, match=f"field '{field}' has shape \\({plain.ROWS}, 7\\)"):
        engine.update({**batch, field: torch.zeros(plain.ROWS, 7)})


def test_how_often_the_actor_steps():
    assert {name: ALGORITHMS[name].critic_to_actor_ratio for name in OFFLINE} == {
        "iql": 1,
        "td3bc": 2,
        "rebrac": 2,
        "cql": 1,
        "calql": 1,
    }


@pytest.mark.parametrize("name", OFFLINE)
def test_published_defaults(name):
    config = ALGORITHMS[name].config()
    expected = {
        "iql": {"hidden_widths": (256, 256), "expectile": 0.7, "beta": 3.0, "largest_weight": 100.0},
        "td3bc": {"hidden_widths": (256, 256), "alpha": 2.5, "policy_noise": 0.2, "noise_clip": 0.5},
        "rebrac": {"hidden_widths": (256,) * 3, "critic_layer_norm": True, "actor_learning_rate": 1e-3},
        "cql": {"hidden_widths": (256,) * 3, "alpha": 10.0, "sampled_actions": 10, "actor_learning_rate": 3e-5},
        "calql": {"alpha": 10.0, "sampled_actions": 10, "critic_learning_rate": 3e-4},
    }[name]
    assert {key: getattr(config, key) for key in expected} == expected
    assert config.activation == "relu"
    assert config.target_update_rate == 0.005


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hidden_widths": ()}, "hidden_widths is \\(\\); at least one layer"),
        ({"activation": "sine"}, "activation 'sine' is not known"),
        ({"critic_ensemble_size": 0}, "critic_ensemble_size is 0"),
        ({"target_update_rate": 0.0}, "target_update_rate is 0.0; it must be in \\(0, 1\\]"),
        ({"actor_learning_rate": 0.0}, "actor_learning_rate is 0.0; it must be positive"),
        ({"critic_learning_rate": -1.0}, "critic_learning_rate is -1.0"),
        ({"reward_scale": 0.0}, "reward_scale is 0.0"),
        ({"reward_bias": float("inf")}, "reward_bias is inf"),
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"frames": 0}, "frames is 0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        OfflineConfig(**settings)


@pytest.mark.parametrize("name", OFFLINE)
def test_there_must_be_an_action_and_something_to_see(name):
    algorithm = ALGORITHMS[name]
    with pytest.raises(ValueError, match="action_dim is 0; at least 1 is needed"):
        algorithm.build(4, 0)
    with pytest.raises(ValueError, match="both are empty"):
        algorithm.build(0, 3)
    assert dataclasses.is_dataclass(algorithm.config)
