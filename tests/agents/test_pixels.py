"""Agents that see: what is cropped, encoded, trained and dropped where, with the real trunk on small batches."""

import numpy as np
import pytest
import torch

from serl_fast.agents.build import build_agent
from serl_fast.agents.sac import SACConfig
from serl_fast.engine import Engine, PolicyRunner
from serl_fast.kernels.random_crop import random_crop

CAMERAS = ("front", "wrist")
CONFIG = SACConfig(hidden_widths=(32, 32))
WIDTHS = {0: 6, 1: 7}  # of the action, by number of learned grippers
BOTH = pytest.mark.parametrize("grippers", list(WIDTHS), ids=["sac", "hybrid"])


def build(grippers, config=CONFIG):
    torch.manual_seed(0)
    return build_agent(5, WIDTHS[grippers], grippers, CAMERAS, config)


def batch_of(size, grippers, side=32):
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    def observe():
        images = torch.randint(256, (len(CAMERAS), size, side, side, 3), generator=generator, dtype=torch.uint8)
        return {"state": normal(size, 5), **dict(zip(CAMERAS, images, strict=True))}

    batch = {
        "observations": observe(),
        "next_observations": observe(),
        "actions": torch.tanh(normal(size, WIDTHS[grippers])),
        "rewards": normal(size),
        "discounts": 0.97 * (torch.arange(size) % 4 > 0).float(),
    }
    return batch | ({"grasp_penalty": torch.full((size,), -0.02)} if grippers else {})


def noise_of(agent, size):
    return agent.draw_noise(torch.Generator().manual_seed(2), size, torch.device("cpu"))


def copies(module):
    return [p.detach().clone() for p in module.parameters()]


@BOTH
def test_both_cameras_are_cropped_alike_and_encoded_in_one_pass(grippers):
    agent, batch = build(grippers), batch_of(4, grippers)
    noise, trunk, seen = noise_of(agent, 4), agent.networks["encoder"].trunk, []
    trunk.register_forward_hook(lambda module, arguments, output: seen.append(arguments[0]))
    prepared = agent.prepare(agent.networks, batch, noise)
    assert not torch.equal(noise["crop"], noise["next_crop"])
    (images,) = seen  # [K, 2 B, H, W, 3]: observations, then next observations
    for camera, key in enumerate(CAMERAS):
        for half, part, offsets in ((0, "observations", "crop"), (1, "next_observations", "next_crop")):
            rows = slice(4 * half, 4 * half + 4)
            assert torch.equal(images[camera, rows], random_crop(batch[part][key], noise[offsets]))
            # Not bit for bit: convolutions of another batch size may add in another order.
            torch.testing.assert_close(prepared[part][key], trunk(images[camera, rows]), rtol=1e-5, atol=1e-5)
    assert batch["observations"]["front"].dtype == torch.uint8  # the caller's batch stays as it was


@BOTH
def test_an_update_runs_the_trunk_once(grippers):
    engine, calls = Engine(build(grippers)), []
    engine.agent.networks["encoder"].trunk.register_forward_hook(lambda *_: calls.append(1))
    engine.update(batch_of(4, grippers), with_actor=True)
    assert len(calls) == 1


@BOTH
def test_the_trunk_stays_and_the_heads_learn(grippers):
    engine = Engine(build(grippers))
    encoder, batch = engine.agent.networks["encoder"], batch_of(4, grippers)
    trained = {id(p) for state in engine.adam.values() for p in state.parameters}
    assert not trained & {id(p) for p in encoder.trunk.parameters()}
    assert trained >= {id(p) for p in encoder.heads.parameters()}
    trunk, heads = copies(encoder.trunk), copies(encoder.heads)
    for _ in range(5):
        engine.update(batch)
    assert all(map(torch.equal, trunk, encoder.trunk.parameters()))
    assert not any(map(torch.equal, heads, encoder.heads.parameters()))


@BOTH
def test_the_target_encoder_follows_at_its_rate_without_a_trunk(grippers):
    engine = Engine(build(grippers, SACConfig(hidden_widths=(32, 32), target_update_rate=0.25)))
    encoder, target = (engine.agent.networks[name] for name in ("encoder", "target_encoder"))
    assert target.trunk is None
    before = copies(target)
    engine.update(batch_of(4, grippers))
    learned = [p for p in encoder.parameters() if p.requires_grad]
    for old, new, source in zip(before, target.parameters(), learned, strict=True):
        torch.testing.assert_close(new, 0.75 * old + 0.25 * source, rtol=1e-6, atol=1e-7)


@BOTH
def test_dropout_is_on_the_policy_path_alone(grippers):
    """The actor loss samples at s under "dropout", the critic target at s' under "next_dropout"; no Q sees either."""
    agent = build(grippers)
    noise = noise_of(agent, 4)
    batch = agent.prepare(agent.networks, batch_of(4, grippers), noise)

    def losses(**changed):
        return {o.name: o.loss(agent.networks, batch, noise | changed).value.item() for o in agent.objectives}

    other = {name: noise[name].flip(0) for name in ("dropout", "next_dropout")}
    plain = losses()
    assert moved(plain, losses(dropout=other["dropout"])) == {"actor"}
    assert moved(plain, losses(next_dropout=other["next_dropout"])) == {"critic"}
    # With a policy that ignores its features a' is the same under every mask, and so must the critic loss be.
    with torch.no_grad():
        for head in (agent.networks["actor"].mean, agent.networks["actor"].log_std):
            head.weight.zero_()
    plain = losses()
    assert moved(plain, losses(**other)) == set()


def moved(before, after):
    return {name for name in before if before[name] != after[name]}


@BOTH
def test_losses_fall_on_a_fixed_batch(grippers):
    engine, batch = (
        Engine(build(grippers, SACConfig(hidden_widths=(32, 32), learning_rate=1e-3))),
        batch_of(8, grippers),
    )
    history = [engine.update(batch, with_actor=index % 2 == 1) for index in range(60)]
    for name in ("critic/loss", "grasp_critic/loss") if grippers else ("critic/loss",):
        first, last = (torch.stack([m[name] for m in part]).mean() for part in (history[:5], history[-5:]))
        assert last < first / 2, name


@BOTH
def test_a_runner_acts_from_images(grippers):
    agent = build(grippers)
    runner = PolicyRunner(agent)
    observations = batch_of(1, grippers, side=128)["observations"]
    observation = {key: value[0].numpy() for key, value in observations.items()}
    action = runner.act(observation, deterministic=True)
    assert action.dtype == np.float32
    with torch.no_grad():
        expected = agent.policy(agent.networks, observations, None)[0].numpy()
    np.testing.assert_array_equal(action, expected)
    assert not np.array_equal(runner.act(observation), action)
    observation["wrist"] = 255 - observation["wrist"]
    assert not np.array_equal(runner.act(observation, deterministic=True), action)
