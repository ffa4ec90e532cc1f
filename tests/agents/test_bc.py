"""Behaviour cloning: its loss against numbers worked out by hand, its noise, what it trains."""

import math

import pytest
import torch
from torch import nn

from serl_fast.agents.bc import BCConfig, bc, distribution, evaluate, log_probabilities, objective
from serl_fast.agents.build import from_settings
from serl_fast.engine import Engine
from serl_fast.networks.policy import ActionDistribution

SMALL = {"hidden_widths": (16, 16), "image_size": (32, 32), "encoder": "small"}
CAMERAS = ("front", "wrist")
ACTIONS = torch.tensor([[0.5, 0.0], [-1.0, 1.0]])
HALF_LOG_TWO_PI = 0.5 * math.log(2 * math.pi)


class Call(nn.Module):
    """A network given by a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def toy_networks(squash=False, mean=0.5, std=2.0):
    """A policy whose distribution is the same in every state."""

    def actor(features, dropout=None):
        filled = torch.full((len(features), 2), mean)
        return ActionDistribution(filled, torch.full_like(filled, std), squash)

    encoder = Call(lambda observations, dropout=None, detach_images=False: observations["state"])
    return {"encoder": encoder, "actor": Call(actor)}


def toy_batch():
    return {"observations": {"state": torch.zeros(2, 3)}, "actions": ACTIONS}


def looks(size=4, generator=None):
    images = torch.randint(256, (len(CAMERAS), size, 32, 32, 3), generator=generator, dtype=torch.uint8)
    return {"state": torch.randn(size, 5, generator=generator), **dict(zip(CAMERAS, images, strict=True))}


def test_loss_by_hand():
    # (a - 0.5) / 2: 0, -0.25 and -0.75, 0.25. Each of two dimensions adds log 2 + log(2 pi) / 2.
    loss = objective(BCConfig()).loss(toy_networks(), toy_batch(), {})
    quadratic = (0.5 * (0 + 0.0625) + 0.5 * (0.5625 + 0.0625)) / 2
    assert loss.value.item() == pytest.approx(quadratic + 2 * (math.log(2) + HALF_LOG_TWO_PI), rel=1e-6)
    # |mode - a|^2: 0.25 and 2.25 + 0.25.
    assert loss.metrics["mse"].item() == pytest.approx((0.25 + 2.5) / 2, rel=1e-6)
    assert loss.metrics["loss"].item() == loss.value.item()


def test_squashed_loss_by_hand():
    # u = atanh(a); log pi = log N(u; 0.5, 2) - log(1 - a^2), actions clipped to 1 - 1e-6, 0.99999899 in float32.
    limit = 0.99999899
    batch = {**toy_batch(), "actions": torch.tensor([[0.5, 0.0], [-1.0, 1.5]])}
    loss = objective(BCConfig(squash=True)).loss(toy_networks(squash=True), batch, {})

    def log_pi(a):
        u = math.atanh(a)
        return -0.5 * ((u - 0.5) / 2) ** 2 - math.log(2) - HALF_LOG_TWO_PI - math.log(1 - a * a)

    expected = -(log_pi(0.5) + log_pi(0.0) + log_pi(-limit) + log_pi(limit)) / 2
    assert loss.value.item() == pytest.approx(expected, rel=1e-3)  # float32 knows 1 - limit to 6 % only


def test_actions_are_clipped_under_a_squashed_policy_alone():
    squashed = ActionDistribution(torch.zeros(1, 1), torch.ones(1, 1), squash=True)
    edge = log_probabilities(squashed, torch.tensor([[1.0]]))
    assert torch.isfinite(edge).all()
    assert torch.equal(edge, log_probabilities(squashed, torch.tensor([[3.0]])))
    plain = ActionDistribution(torch.zeros(1, 1), torch.ones(1, 1), squash=False)
    assert log_probabilities(plain, torch.tensor([[3.0]])).item() == pytest.approx(-4.5 - HALF_LOG_TWO_PI)


def test_evaluation_is_the_loss_without_crop_and_dropout():
    agent = bc(5, 2, (), BCConfig(hidden_widths=(16,), dropout=0.0, proprioception_dim=None))
    batch = {"observations": {"state": torch.randn(6, 5)}, "actions": torch.rand(6, 2)}
    fit = evaluate(agent.networks, batch)
    loss = agent.critic_step[0].loss(agent.networks, batch, {})
    assert -fit["log_probs"].mean() == loss.value
    assert fit["mse"].mean().item() == pytest.approx(loss.metrics["mse"].item(), rel=1e-6)
    assert torch.equal(fit["actions"], agent.policy(agent.networks, batch["observations"], None))


@pytest.mark.parametrize("compat", [None, "hil_serl"])
def test_what_is_trained(compat):
    """Everything but, in the original, camera heads (and here a trained trunk below them)."""
    agent = bc(5, 6, CAMERAS, BCConfig(**SMALL, compat=compat))
    before = {name: p.detach().clone() for name, p in agent.networks.named_parameters()}
    engine = Engine(agent, seed=0)
    for _ in range(2):
        engine.update({"observations": looks(), "actions": torch.rand(4, 6)})
    for name, p in agent.networks.named_parameters():
        still = compat is not None and name.startswith(("encoder.heads", "encoder.trunks"))
        assert torch.equal(p, before[name]) == still, name


def test_noise():
    config = BCConfig(**SMALL)
    agent = bc(5, 6, CAMERAS, config)
    noise = agent.draw_noise(torch.Generator().manual_seed(0), 4096, torch.device("cpu"))
    assert {name: tuple(value.shape[1:]) for name, value in noise.items()} == {
        "crop": (2,),
        "dropout": (2, 256),
        "hidden_dropout_0": (16,),
        "hidden_dropout_1": (16,),
    }
    assert noise["crop"].unique().tolist() == list(range(9))
    assert noise["hidden_dropout_0"].unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert (noise["hidden_dropout_0"] > 0).float().mean().item() == pytest.approx(0.75, abs=0.01)
    assert (noise["dropout"] > 0).float().mean().item() == pytest.approx(0.9, abs=0.01)


def test_each_dropout_acts():
    config = BCConfig(**SMALL)
    agent, observations = bc(5, 6, CAMERAS, config), looks()
    noise = agent.draw_noise(torch.Generator().manual_seed(0), 4, torch.device("cpu"))
    plain = distribution(config, agent.networks, observations, {}).mean
    for name in ("dropout", "hidden_dropout_0", "hidden_dropout_1"):
        kept = {key: noise[key] if key == name else torch.ones_like(noise[key]) for key in noise if key != "crop"}
        assert not torch.allclose(distribution(config, agent.networks, observations, kept).mean, plain), name


def test_serl_draws_nothing_and_states_need_no_crop():
    for agent in (
        bc(5, 6, CAMERAS, BCConfig.serl(image_size=(32, 32))),
        bc(5, 6, (), BCConfig(dropout=0.0)),
    ):
        assert agent.draw_noise(torch.Generator(), 4, torch.device("cpu")) == {}
    config = BCConfig.serl(learning_rate=1e-3)
    assert (config.hidden_widths, config.layer_norm, config.dropout) == ((256, 256), False, 0.0)
    assert config.learning_rate == 1e-3


def test_it_imitates():
    """A linear controller: the mode comes close on states that were not seen."""
    torch.manual_seed(0)
    gain = torch.randn(4, 2) / 2
    agent = bc(4, 2, (), BCConfig(hidden_widths=(64, 64), dropout=0.0, learning_rate=1e-3, proprioception_dim=None))
    engine, generator = Engine(agent), torch.Generator().manual_seed(0)

    def batch():
        state = torch.randn(128, 4, generator=generator)
        return {"observations": {"state": state}, "actions": torch.tanh(state @ gain)}

    first = engine.update(batch())
    for _ in range(300):
        last = engine.update(batch())
    assert last["bc/loss"] < first["bc/loss"] - 2
    assert evaluate(agent.networks, batch())["mse"].mean() < 0.02


def test_it_is_rebuilt_from_its_settings():
    agent = bc(5, 6, CAMERAS, BCConfig(**SMALL, squash=True, learning_rate=1e-3, warmup_steps=5))
    again = from_settings(agent.settings)
    assert again.settings == agent.settings
    again.networks.load_state_dict(agent.networks.state_dict())
    observations = looks()
    assert torch.equal(
        again.policy(again.networks, observations, None), agent.policy(agent.networks, observations, None)
    )
    assert again.optimizers["bc"].warmup_steps == 5


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"encoder_dropout": -0.1}, "encoder_dropout is -0.1"),
        ({"hidden_widths": ()}, "hidden_widths is \\(\\); at least one layer"),
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"compat": "serl"}, "compat is 'serl'"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        BCConfig(**settings)


def test_there_must_be_an_action():
    with pytest.raises(ValueError, match="action_dim is 0"):
        bc(5, 0)
