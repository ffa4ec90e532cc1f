"""What losses share is evaluated once, and is what each would have evaluated."""

import pytest
import torch

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import SACConfig, sac
from tests.agents.test_products import STATE, batch_of
from tests.equivalence.agents import CAMERAS, FrozenTrunk

PLAIN = {"hidden_widths": (32, 32), "proprioception_dim": None}


def prepared(agent, size=4, cameras=(), seed=0):
    torch.manual_seed(seed)
    noise = agent.draw_noise(torch.Generator().manual_seed(seed), size, torch.device("cpu"))
    with torch.no_grad():
        return agent.prepare(agent.networks, batch_of(size, cameras), noise), noise


def gradients(agent, objective, batch, noise):
    parameters = {
        name: p
        for name, p in agent.networks.named_parameters()
        if p.requires_grad and name.partition(".")[0] in objective.trains
    }
    value = objective.loss(agent.networks, batch, noise).value
    return dict(zip(parameters, torch.autograd.grad(value, list(parameters.values())), strict=True))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_critics_together_have_the_sum_of_their_gradients(dropout):
    agent = hybrid_sac(
        STATE, 1, CAMERAS, SACConfig(hidden_widths=(32, 32), encoder_dropout=dropout), trunk=FrozenTrunk()
    )
    batch, noise = prepared(agent, cameras=CAMERAS)
    (joint,) = agent.critic_step
    apart = [gradients(agent, part, batch, noise) for part in joint.parts]
    together = gradients(agent, joint, batch, noise)
    assert set(together) == set().union(*apart)
    for name, gradient in together.items():
        expected = sum(each[name] for each in apart if name in each)
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)
    loss = joint.loss(agent.networks, batch, noise)
    for part in joint.parts:
        for key, value in part.loss(agent.networks, batch, noise).metrics.items():
            torch.testing.assert_close(loss.metrics[f"{part.name}/{key}"], value)


def test_the_sample_at_s_prime_is_prepared_and_the_same_to_the_bit():
    agent = sac(STATE, 7, config=SACConfig(**PLAIN, backup_entropy=True))
    batch, noise = prepared(agent)
    without = {name: value for name, value in batch.items() if not name.startswith("sampled")}
    assert without.keys() < batch.keys()
    (objective,) = agent.critic_step
    given, own = (objective.loss(agent.networks, each, noise).value for each in (batch, without))
    assert torch.equal(given, own)


def test_one_pass_of_the_policy_serves_a_block_of_updates():
    agent = sac(STATE, 7, config=SACConfig(**PLAIN))
    parts = [prepared(agent, seed=seed)[0]["sampled_next_actions"] for seed in (1, 2)]
    batches, noises = [], []
    for seed in (1, 2):
        torch.manual_seed(seed)
        noises.append(agent.draw_noise(torch.Generator().manual_seed(seed), 4, torch.device("cpu")))
        batches.append(batch_of(4, ()))
    joined = {
        name: torch.cat([batch[name] for batch in batches])
        for name in ("actions", "rewards", "discounts", "grasp_penalty")
    }
    for name in ("observations", "next_observations"):
        joined[name] = {"state": torch.cat([batch[name]["state"] for batch in batches])}
    noise = {name: torch.cat([each[name] for each in noises]) for name in noises[0]}
    with torch.no_grad():
        whole = agent.prepare(agent.networks, joined, noise)
    torch.testing.assert_close(whole["sampled_next_actions"], torch.cat(parts))


@pytest.mark.parametrize(
    "config",
    [SACConfig(hidden_widths=(32, 32), proprioception_dim=8), SACConfig(**PLAIN, compat="hil_serl")],
    ids=["the encoder is trained", "momentum moves the policy"],
)
def test_a_policy_that_critic_updates_change_is_asked_every_time(config):
    assert "sampled_next_actions" not in prepared(sac(STATE, 7, config=config))[0]
