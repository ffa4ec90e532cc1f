"""SAC's losses against numbers worked out by hand, for the four setup modes."""

import math

import pytest
import torch
from torch import nn

from serl_fast.agents.build import build_agent, from_settings
from serl_fast.agents.hybrid_sac import grasp_critic_objective, hybrid_sac, join_action, split_action
from serl_fast.agents.sac import SACConfig, actor_objective, critic_objective, every_action, sac
from serl_fast.networks.policy import ActionDistribution


class Call(nn.Module):
    """A network given by a function."""

    def __init__(self, function):
        super().__init__()
        self.forward = function


def toy_networks():
    """One-dimensional state and action, everything computable on paper."""
    return {
        "encoder": Call(lambda observations, dropout=None: observations["state"]),
        "target_encoder": Call(lambda observations: observations["state"]),
        "actor": Call(lambda features: ActionDistribution(torch.zeros_like(features), torch.ones_like(features))),
        # Members 0 and 1 differ: Q = s + a and 2 s.
        "critic": Call(lambda f, a, members=None: torch.stack([(f + a).squeeze(-1), (2 * f).squeeze(-1)])),
        "target_critic": Call(
            lambda f, a, members=None: torch.stack([(f + a).squeeze(-1) + 10, f.squeeze(-1) * 0 + 1])
        ),
        "temperature": Call(lambda: torch.tensor(0.5)),
        # Two rows of choices: the online argmax is 2, where the target says 3.
        "grasp_critic": Call(lambda f: torch.tensor([[0.0, 1.0, 2.0]]).expand(len(f), 3)),
        "target_grasp_critic": Call(lambda f: torch.tensor([[7.0, 5.0, 3.0]]).expand(len(f), 3)),
    }


def toy_batch(discount=0.9):
    return {
        "observations": {"state": torch.tensor([[1.0], [2.0]])},
        "next_observations": {"state": torch.tensor([[3.0], [4.0]])},
        "actions": torch.tensor([[0.5], [-0.5]]),
        "rewards": torch.tensor([1.0, 0.0]),
        "discounts": torch.tensor([discount, 0.0]),  # the second transition terminated
        "grasp_penalty": torch.tensor([-0.02, 0.0]),
    }


NOISE = {"actions": torch.zeros(2, 1), "next_actions": torch.zeros(2, 1)}
LOG_PROB_AT_ZERO = -0.5 * math.log(2 * math.pi)  # tanh'(0) = 1


def test_critic_loss_by_hand():
    # a' = 0; target members 13, 1 and 14, 1: minimum 1. y = 1 + 0.9 = 1.9 and 0.
    # Q: members (1.5, 2) and (1.5, 4).
    loss = critic_objective(SACConfig(), every_action).loss(toy_networks(), toy_batch(), NOISE)
    expected = ((1.5 - 1.9) ** 2 + (2 - 1.9) ** 2 + 1.5**2 + 4**2) / 4
    assert loss.value.item() == pytest.approx(expected, rel=1e-6)
    assert loss.metrics["target_qs"].item() == pytest.approx(0.95)


def test_entropy_of_the_backup_is_discounted_and_masked():
    # y = 1 + 0.9 (1 - 0.5 log pi); the terminal transition has no entropy term at all.
    loss = critic_objective(SACConfig(backup_entropy=True), every_action).loss(toy_networks(), toy_batch(), NOISE)
    target = 1 + 0.9 * (1 - 0.5 * LOG_PROB_AT_ZERO)
    assert loss.metrics["target_qs"].item() == pytest.approx(target / 2, rel=1e-6)


def test_actor_and_temperature_losses_by_hand():
    # a = 0: mean over members (1 + 2)/2 and (2 + 4)/2. Policy: 0.5 log pi - 2.25.
    loss = actor_objective(SACConfig(), 1).loss(toy_networks(), toy_batch(), NOISE)
    assert loss.metrics["loss"].item() == pytest.approx(0.5 * LOG_PROB_AT_ZERO - 2.25, rel=1e-6)
    # Temperature: 0.5 (H + 0.5) with H = -log pi.
    assert loss.metrics["temperature_loss"].item() == pytest.approx(0.5 * (-LOG_PROB_AT_ZERO + 0.5), rel=1e-6)


def test_imitation_term_by_hand():
    """bc_weight * -log pi(a_data|s) is added, of the continuous part; at ±1 it is finite."""
    batch = toy_batch()
    networks = toy_networks()
    plain = actor_objective(SACConfig(), 1).loss(networks, batch, NOISE)
    found = actor_objective(SACConfig(bc_weight=0.5), 1, lambda actions: 0 * actions + 1).loss(networks, batch, NOISE)
    fitted = networks["actor"](networks["encoder"](batch["observations"]))
    expected = -fitted.log_prob(torch.full_like(fitted.mean, 0.99999899)).mean()
    assert found.metrics["bc_loss"].item() == pytest.approx(expected.item(), rel=1e-6)
    assert (found.value - plain.value).item() == pytest.approx(0.5 * expected.item(), rel=1e-5)
    with pytest.raises(ValueError, match="bc_weight is -1"):
        SACConfig(bc_weight=-1.0)
    with pytest.raises(ValueError, match="bc_weight with compat='hil_serl'"):
        SACConfig(bc_weight=1.0, compat="hil_serl")


def test_grasp_critic_is_double_dqn_and_alone_sees_the_penalty():
    batch = toy_batch() | {"actions": torch.tensor([[0, 0, 0, 0, 0, 0, 1.0], [0, 0, 0, 0, 0, 0, -1.0]])}
    loss = grasp_critic_objective(1).loss(toy_networks(), batch, NOISE)
    # Choice +1 is index 2 (Q 2), choice -1 index 0 (Q 0). y = 1 - 0.02 + 0.9 * 3, and 0.
    expected = ((2 - (0.98 + 2.7)) ** 2 + 0) / 2
    assert loss.value.item() == pytest.approx(expected, rel=1e-6)


def test_gripper_choices_round_half_to_even_and_count_in_base_three():
    commands = torch.tensor([-1.0, -0.5, 0.0, 0.5, 0.51, 1.0, 1.5])
    actions = torch.zeros(7, 7)
    actions[:, 6] = commands
    assert split_action(actions, 1)[1].tolist() == [0, 1, 1, 1, 2, 2, 2]
    pair = torch.zeros(1, 14)
    pair[0, 6], pair[0, 13] = 1.0, -1.0
    arms, choice = split_action(pair, 2)
    assert arms.shape == (1, 12)
    assert choice.tolist() == [6]  # 3 * 2 + 0


@pytest.mark.parametrize("grippers", [1, 2])
def test_join_action_inverts_split_action(grippers):
    torch.manual_seed(0)
    choices = torch.arange(3**grippers)
    arms = torch.rand(len(choices), 6 * grippers) * 2 - 1
    again, found = split_action(join_action(arms, choices, grippers), grippers)
    assert torch.equal(again, arms)
    assert torch.equal(found, choices)


@pytest.mark.parametrize(("width", "grippers"), [(6, 0), (7, 1), (12, 0), (14, 2)])
def test_every_setup_mode_acts_in_bounds(width, grippers):
    torch.manual_seed(0)
    agent = build_agent(9, width, grippers, ())
    observations = {"state": torch.randn(32, 9)}
    for noise in (None, torch.randn(32, agent.policy_noise_dim)):
        actions = agent.policy(agent.networks, observations, noise)
        assert actions.shape == (32, width)
        assert actions.abs().max() <= 1
    if grippers:
        assert set(actions[:, 6].tolist()) <= {-1.0, 0.0, 1.0}


def test_targets_start_equal_and_get_no_gradient():
    agent = hybrid_sac(5)
    networks = agent.networks
    for name in ("encoder", "critic", "grasp_critic"):
        for a, b in zip(networks[name].parameters(), networks[f"target_{name}"].parameters(), strict=True):
            assert torch.equal(a, b)
            assert not b.requires_grad


def test_an_agent_is_rebuilt_from_its_settings():
    for agent in (sac(4, 6, config=SACConfig(hidden_widths=(32,))), hybrid_sac(4, 2)):
        again = from_settings(agent.settings)
        assert again.settings == agent.settings
        again.networks.load_state_dict(agent.networks.state_dict())
    with pytest.raises(ValueError, match="not known"):
        from_settings(agent.settings | {"algorithm": "ppo"})
    with pytest.raises(ValueError, match="not complete"):
        from_settings({"algorithm": "sac"})


def test_crop_padding_and_layer_norm_reach_every_user():
    config = SACConfig(crop_padding=1, layer_norm=False)
    agent = hybrid_sac(3, 1, ("front",), config)
    assert not any(isinstance(m, nn.LayerNorm) for m in agent.networks["grasp_critic"].modules())
    images = torch.randint(0, 255, (4, 16, 16, 3), dtype=torch.uint8)
    rows = {name: torch.zeros(4) for name in ("rewards", "discounts", "grasp_penalty")}
    batch = {"observations": {"front": images}, "next_observations": {"front": images}, "actions": torch.zeros(4, 7)}
    batch |= rows
    still = {"crop": torch.ones(4, 2, dtype=torch.int64), "next_crop": torch.ones(4, 2, dtype=torch.int64)}
    features = agent.networks["encoder"].encode_trunk({"front": images})["front"]
    prepared = agent.prepare(agent.networks, batch, still)  # an offset equal to the padding is the identity
    torch.testing.assert_close(prepared["observations"]["front"], features, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_subsample_size": 3}, r"critic_subsample_size is 3.*1\.\.2"),
        ({"target_update_rate": 0.0}, r"target_update_rate is 0\.0"),
        ({"encoder_dropout": 1.0}, r"encoder_dropout is 1\.0"),
    ],
)
def test_bad_hyper_parameters_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        SACConfig(**settings)


def test_wrong_sizes_are_refused():
    with pytest.raises(ValueError, match="at least 1"):
        sac(4, 0)
    with pytest.raises(ValueError, match="grippers is 0"):
        hybrid_sac(4, 0)
    with pytest.raises(ValueError, match="image_keys or a proprioception_size"):
        sac(0, 6)


@pytest.mark.parametrize("execution", ["eager", "compiled"])
def test_shapes_that_do_not_fit_are_named(execution):
    from serl_fast.engine import Engine, EngineConfig

    def batch(**changes):
        rows = {name: torch.zeros(8) for name in ("rewards", "discounts", "grasp_penalty")}
        states = {name: {"state": torch.zeros(8, 3)} for name in ("observations", "next_observations")}
        return {**states, **rows, "actions": torch.zeros(8, 7)} | changes

    engine = Engine(hybrid_sac(3, 1, config=SACConfig(hidden_widths=(8,))), EngineConfig(execution))
    for changes, message in (
        ({"rewards": torch.zeros(8, 1)}, r"field 'rewards' has shape \(8, 1\); this agent takes \(8,\)"),
        ({"actions": torch.zeros(8, 6)}, r"field 'actions' has shape \(8, 6\); this agent takes \(8, 7\)"),
    ):
        with pytest.raises(ValueError, match=message):
            engine.update(batch(**changes))
    incomplete = batch()
    del incomplete["grasp_penalty"]
    with pytest.raises(ValueError, match="the batch has no grasp_penalty; it holds actions, discounts"):
        engine.update(incomplete)
