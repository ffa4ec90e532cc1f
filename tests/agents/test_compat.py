"""compat="hil_serl": the original's update, against numbers worked out by hand; the recordings are in tests/parity."""

import pytest
import torch

from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.parts import critic_subset
from serl_fast.agents.sac import critic_targets, sac
from serl_fast.agents.sac_config import SACConfig
from serl_fast.engine import Engine
from tests.agents.test_sac import LOG_PROB_AT_ZERO, NOISE, toy_batch, toy_networks

CONFIG = SACConfig(hidden_widths=(8,), proprioception_dim=4, compat="hil_serl")
LEARNING_RATE = CONFIG.learning_rate


def batch(width, size=16):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "observations": {"state": normal(size, 3)},
        "next_observations": {"state": normal(size, 3)},
        "actions": torch.tanh(normal(size, width)),
        "rewards": normal(size),
        "discounts": torch.full((size,), 0.9),
        "grasp_penalty": torch.zeros(size),
    }


def values(engine, name):
    return [p.detach().clone() for p in engine.agent.networks[name].parameters()]


def largest_step(before, after):
    return max((a - b).abs().max().item() for a, b in zip(before, after, strict=True))


def test_the_entropy_bonus_is_not_discounted():
    config = SACConfig(backup_entropy=True, compat="hil_serl")
    targets = critic_targets(config)(toy_networks(), toy_batch(), NOISE)
    bonus = -0.5 * LOG_PROB_AT_ZERO  # the toy temperature is 0.5
    assert targets.tolist() == pytest.approx([1 + 0.9 + bonus, bonus])  # also after the terminal step


def test_an_optimizer_that_was_not_asked_for_takes_ghost_steps():
    torch.manual_seed(0)
    engine = Engine(sac(3, 6, config=CONFIG))
    start = values(engine, "actor"), values(engine, "temperature")
    engine.update(batch(6), with_actor=False)
    # No momentum yet: a zero gradient moves nothing.
    assert largest_step(start[0], values(engine, "actor")) == 0
    engine.update(batch(6), with_actor=True)
    before = values(engine, "temperature")[0].item()
    engine.update(batch(6), with_actor=False)
    moved = abs(values(engine, "temperature")[0].item() - before)
    # Adam's moments after gradients 0, g, 0: m = 0.9 * 0.1 g, v = 0.999 * 0.001 g^2; bias corrections of step 3.
    first = 0.9 * 0.1 / (1 - 0.9**3)
    second = 0.999 * 0.001 / (1 - 0.999**3)
    assert moved == pytest.approx(LEARNING_RATE * first / second**0.5, rel=1e-3)
    assert {name: state.count.item() for name, state in engine.adam.items()} == dict.fromkeys(engine.adam, 3.0)


def test_steps_of_several_optimizers_add_up_on_what_they_share():
    torch.manual_seed(0)
    engine = Engine(hybrid_sac(3, 1, config=CONFIG))
    before = values(engine, "encoder")
    engine.update(batch(7))
    # Adam's first step has size lr: critic, grasp critic and actor reach the branch, so up to 3 lr.
    assert 2.5 * LEARNING_RATE < largest_step(before, values(engine, "encoder")) < 3.01 * LEARNING_RATE
    assert set(engine.adam) == {"critic", "grasp_critic", "actor", "temperature"}


def test_all_losses_see_the_old_parameters():
    torch.manual_seed(0)
    first, second = Engine(sac(3, 6, config=CONFIG), seed=1), Engine(sac(3, 6, config=CONFIG), seed=1)
    second.load_state_dict(first.state_dict())
    for p in second.adam["critic"].second:
        p.fill_(1e12)  # the critic's own step vanishes
    a, b = first.update(batch(6)), second.update(batch(6))
    assert a["actor/loss"] == b["actor/loss"]


def test_the_critics_share_their_last_layer_and_every_network_has_a_target():
    networks = hybrid_sac(3, 2, config=CONFIG).networks
    assert networks["critic"].head.weight.shape == (1, 8, 1)
    trained = {"encoder", "actor", "critic", "grasp_critic", "temperature"}
    assert set(networks) == trained | {f"target_{name}" for name in trained}


@pytest.mark.parametrize(("grippers", "entropy"), [(1, -3.5), (2, -7.0)])
def test_the_target_entropy_counts_the_grippers(grippers, entropy):
    agent = hybrid_sac(3, grippers, config=CONFIG)
    (objective,) = [o for o in agent.actor_step if o.name == "temperature"]
    noise = agent.draw_noise(torch.Generator().manual_seed(0), 16, torch.device("cpu"))
    loss = objective.loss(agent.networks, batch(7 * grippers), noise)
    temperature = agent.networks["temperature"]()
    assert loss.value.item() == pytest.approx((temperature * (loss.metrics["entropy"] - entropy)).item(), rel=1e-5)


def test_a_subset_of_critics_may_hold_one_twice():
    def drawn(compat):
        config = SACConfig(critic_ensemble_size=3, critic_subsample_size=3, compat=compat)
        generator = torch.Generator().manual_seed(0)
        return [len(set(critic_subset(config, generator, torch.device("cpu")).tolist())) for _ in range(50)]

    assert set(drawn(None)) == {3}
    assert min(drawn("hil_serl")) < 3


def test_what_is_not_reproduced_is_refused():
    with pytest.raises(ValueError, match="weight_decay with compat"):
        SACConfig(weight_decay=0.1, compat="hil_serl")
    with pytest.raises(ValueError, match="compat is 'serl'; choose 'hil_serl' or None"):
        SACConfig(compat="serl")
