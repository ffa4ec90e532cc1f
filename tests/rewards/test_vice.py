"""VICE: mixup, smoothed labels and gradient penalty by hand; how batches are lined up; rewards and relabelling."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from serl_fast.agents.sac import SACConfig, sac
from serl_fast.engine import Engine
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.classifier import Discriminator
from serl_fast.replay import Mixture, ReplayStore
from serl_fast.rewards.vice import (
    ViceConfig,
    gradient_norms,
    mix,
    mixed_cross_entropy,
    objective,
    relabel,
    rewarded_by,
    rewards,
    vice,
)

CAMERAS = ("front", "left/wrist")
SMALL = {"encoder": "small", "image_size": (32, 32), "bottleneck": 32, "hidden": 16}


class Linear:
    """logit = sum over cameras of slope_k * (sum of the features of camera k); masks multiply the logit."""

    def __init__(self, **slopes):
        self.slopes = slopes
        self.image_keys = tuple(slopes)

    def __call__(self, features, dropout=None, hidden_dropout=None):
        logits = sum(slope * features[key].flatten(1).sum(1) for key, slope in self.slopes.items())
        for mask in (dropout, hidden_dropout):
            logits = logits if mask is None else logits * mask.flatten(1)[:, 0]
        return logits[:, None]


def images(size=4, cameras=CAMERAS, generator=None):
    return {key: torch.randint(256, (size, 32, 32, 3), generator=generator, dtype=torch.uint8) for key in cameras}


def cross_entropy(logit, label):
    return math.log1p(math.exp(logit)) - label * logit


def test_mixup_by_hand():
    # w x + (1 - w) x[p], with weights and partners of its own for each camera.
    features = {"a": torch.tensor([[1.0], [2.0], [3.0], [4.0]]), "b": torch.tensor([[0.0], [10.0], [20.0], [30.0]])}
    noise = {"mixup": torch.tensor([0.25, 1.0]), "permutation": torch.tensor([[3, 2, 1, 0], [1, 2, 3, 0]])}
    mixed = mix(Linear(a=1, b=1), features, noise)
    assert mixed["a"].flatten().tolist() == [3.25, 2.75, 2.25, 1.75]
    assert torch.equal(mixed["b"], features["b"])
    assert mix(Linear(a=1, b=1), features, {}) is features


def test_cross_entropy_by_hand():
    # Labels 0.9, 0.9, 0.1, 0.1; the last camera's weight 0.25 and partners count.
    logits = [1.0, -2.0, 0.5, 0.0]
    noise = {"mixup": torch.tensor([0.7, 0.25]), "permutation": torch.tensor([[0, 1, 2, 3], [2, 0, 1, 3]])}
    own = sum(cross_entropy(logit, label) for logit, label in zip(logits, [0.9, 0.9, 0.1, 0.1], strict=True)) / 4
    other = sum(cross_entropy(logit, label) for logit, label in zip(logits, [0.1, 0.9, 0.9, 0.1], strict=True)) / 4
    value = mixed_cross_entropy(torch.tensor(logits), 0.2, noise)
    assert value.item() == pytest.approx(0.25 * own + 0.75 * other, rel=1e-6)
    assert mixed_cross_entropy(torch.tensor(logits), 0.2, {}).item() == pytest.approx(own, rel=1e-6)


def test_gradient_norms_by_hand():
    # Slope 2 in 3 entries of camera a: sqrt(3 (4 + 1e-6)); slope -1 in 2 entries of b: sqrt(2 (1 + 1e-6)).
    mixed = {"a": torch.randn(4, 3), "b": torch.randn(4, 2)}
    noise = {"interpolation": torch.rand(2, 2)}
    norms = gradient_norms(Linear(a=2.0, b=-1.0), mixed, noise)
    assert norms.tolist() == [pytest.approx([math.sqrt(12.000003)] * 2), pytest.approx([math.sqrt(2.000002)] * 2)]
    # A mask of each sample, and one for both.
    masked = gradient_norms(
        Linear(a=2.0, b=-1.0), mixed, {**noise, "penalty_dropout": torch.tensor([[[1.0]], [[3.0]]])}
    )
    assert masked[0].tolist() == pytest.approx([math.sqrt(12), 3 * math.sqrt(12)], rel=1e-4)
    shared = gradient_norms(Linear(a=2.0, b=-1.0), mixed, {**noise, "penalty_hidden_dropout": torch.tensor([[0.5]])})
    assert shared[1].tolist() == pytest.approx([math.sqrt(0.5)] * 2, rel=1e-4)


def test_the_penalty_is_taken_between_goals_and_seen():
    class Square(Linear):
        def __call__(self, features, dropout=None, hidden_dropout=None):
            return features["a"].square()

    # z = e goal + (1 - e) seen = 0.25 * 8 + 0.75 * 4 and 1 * 2 + 0: slopes 2 z = 10 and 4.
    mixed = {"a": torch.tensor([[8.0], [2.0], [4.0], [100.0]])}
    norms = gradient_norms(Square(a=1.0), mixed, {"interpolation": torch.tensor([[0.25, 1.0]])})
    assert norms.tolist() == [pytest.approx([10.0, 4.0])]


def test_loss_is_the_sum_and_the_penalty_reaches_the_weights():
    torch.manual_seed(0)
    config = ViceConfig(**SMALL, gradient_penalty=3.0)
    agent = vice(CAMERAS, config)
    noise = agent.draw_noise(torch.Generator().manual_seed(0), 4, torch.device("cpu"))
    batch = agent.prepare(agent.networks, {"next_observations": images()}, noise)
    value, metrics = objective(config).loss(agent.networks, batch, noise)
    assert value.item() == pytest.approx(metrics["bce_loss"].item() + 3 * metrics["gradient_penalty"].item(), rel=1e-6)
    assert not any(metric.requires_grad for metric in metrics.values())
    parameters = list(agent.networks.parameters())
    gradients = torch.autograd.grad(value, parameters)
    assert all(gradient.abs().sum() > 0 for gradient in gradients)  # the trained trunks' too
    # Against central differences in the last layer's weight with the largest gradient.
    weight = agent.networks["vice"].head.weight
    (gradient,) = [g for p, g in zip(parameters, gradients, strict=True) if p is weight]
    place = int(gradient.abs().argmax())
    step, found = 1e-3, []
    for sign in (1, -1):
        with torch.no_grad():
            weight.view(-1)[place] += sign * step
            found.append(objective(config).loss(agent.networks, batch, noise).value.item())
            weight.view(-1)[place] -= sign * step
    slope = (found[0] - found[1]) / (2 * step)
    assert slope == pytest.approx(gradient.view(-1)[place].item(), rel=2e-2)


def test_pictures_are_lined_up():
    """The second half of the batch are goals: [goals, cropped goals, seen, cropped seen], one crop for all cameras."""
    agent = vice(CAMERAS, ViceConfig(**SMALL))
    noise = agent.draw_noise(torch.Generator().manual_seed(0), 4, torch.device("cpu"))
    given = images()
    lined = agent.prepare(agent.networks, {"next_observations": given}, noise)["pictures"]
    for key in CAMERAS:
        cropped = random_crop(given[key], noise["crop"])
        expected = torch.cat([given[key][2:], cropped[2:], given[key][:2], cropped[:2]])
        assert torch.equal(lined[key], expected)


def test_a_frozen_trunk_runs_once_for_the_batch():
    calls = []

    class Trunk(nn.Module):
        feature_shape = (2, 2, 3)

        def forward(self, pictures):
            calls.append(pictures.shape)
            return pictures.float()[..., :2, :2, :] / 255

    agent = vice(CAMERAS, ViceConfig(bottleneck=8, hidden=8, image_size=(32, 32)), trunk=Trunk())
    Engine(agent).update({"next_observations": images()})
    assert calls == [(2, 8, 32, 32, 3)]


@pytest.mark.parametrize("compat", [None, "hil_serl"])
def test_noise(compat):
    agent = vice(CAMERAS, ViceConfig(**SMALL, compat=compat))
    noise = agent.draw_noise(torch.Generator().manual_seed(0), 6, torch.device("cpu"))
    rows = 1 if compat else 6
    assert {name: tuple(value.shape) for name, value in noise.items()} == {
        "crop": (6, 2),
        "mixup": (2,),
        "permutation": (2, 12),
        "interpolation": (2, 6),
        "dropout": (12, 2, 256),
        "hidden_dropout": (12, 16),
        "penalty_dropout": (rows, 2, 256),
        "penalty_hidden_dropout": (rows, 16),
    }
    for row in noise["permutation"]:
        assert sorted(row.tolist()) == list(range(12))
    for name in ("mixup", "permutation", "interpolation"):  # one for all cameras, or one for each
        assert torch.equal(noise[name][0], noise[name][1]) == (compat is None), name


def test_without_mixup_and_dropout_little_is_drawn():
    agent = vice(CAMERAS, ViceConfig(**SMALL, mixup=False, dropout=0, encoder_dropout=0))
    noise = agent.draw_noise(torch.Generator(), 4, torch.device("cpu"))
    assert set(noise) == {"crop", "interpolation"}
    Engine(agent).update({"next_observations": images()})


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"next_observations": images(5)}, "the batch has 5 rows; VICE takes an even number, half of them goals"),
        ({"observations": images()}, r"the batch has \['observations'\]; VICE reads 'next_observations'"),
        ({"next_observations": images(4, ("front",))}, "camera 'left/wrist' is missing"),
    ],
)
def test_batches_that_do_not_fit(batch, message):
    with pytest.raises(ValueError, match=message):
        Engine(vice(CAMERAS, ViceConfig(**SMALL))).update(batch)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label_smoothing": 1.0}, "label_smoothing is 1.0"),
        ({"dropout": -0.1}, "dropout is -0.1"),
        ({"gradient_penalty": -1}, "gradient_penalty is -1"),
        ({"crop_padding": -4}, "crop_padding is -4"),
        ({"compat": "serl"}, "compat is 'serl'"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ViceConfig(**settings)


def test_the_discriminator_is_rebuilt_from_its_settings():
    discriminator = vice(CAMERAS, ViceConfig(**SMALL, threshold=0.7)).networks["vice"]
    again = Discriminator(**discriminator.settings)
    again.load_state_dict(discriminator.state_dict())
    pictures = images()
    assert torch.equal(again(pictures), discriminator(pictures))
    assert again.settings == discriminator.settings


def coloured(green, size=32):
    """Noisy pictures, green where the goal is."""
    pictures = np.random.default_rng(int(green)).integers(0, 60, (size, 32, 32, 3)).astype(np.uint8)
    pictures[..., 1] += 190 * green
    return pictures


def store_of(pictures, seed=0):
    def transition(index):
        picture = {"front": pictures[index], "state": np.zeros(2, np.float32)}
        following = {"front": pictures[index + 1], "state": np.ones(2, np.float32)}
        rest = {"rewards": 0.0, "terminated": False, "truncated": False}
        return {"observations": picture, "actions": np.zeros(2, np.float32), "next_observations": following, **rest}

    store = ReplayStore.from_example(transition(0), capacity=1000, seed=seed)
    for index in range(len(pictures) - 1):
        store.append(transition(index), continues=False)
    return store


class EveryFourth(nn.Module):
    """A frozen trunk without weights: every fourth pixel."""

    feature_shape = (8, 8, 3)

    def forward(self, pictures):
        return pictures[..., ::4, ::4, :].float() / 64


@pytest.fixture(scope="module")
def trained():
    """A discriminator of green pictures from dark ones, trained through the engine from two stores."""
    torch.manual_seed(0)
    config = ViceConfig(bottleneck=64, hidden=64, image_size=(32, 32), learning_rate=1e-3)
    agent = vice(["front"], config, trunk=EveryFourth())
    engine = Engine(agent, seed=0)
    mixture = Mixture([store_of(coloured(False)), store_of(coloured(True), seed=1)])
    for _ in range(40):
        drawn = mixture.sample(16)
        metrics = engine.update({"next_observations": {"front": torch.from_numpy(drawn["next_observations"]["front"])}})
    return agent, metrics


def test_it_learns_goals_with_slopes_near_one(trained):
    agent, metrics = trained
    pictures = {"front": torch.from_numpy(np.concatenate([coloured(True, 8), coloured(False, 8)]))}
    assert rewards(agent.networks, pictures).tolist() == [1.0] * 8 + [0.0] * 8
    assert metrics["vice/grad_norm"].item() == pytest.approx(1.0, abs=0.3)


def test_a_store_is_relabelled(trained):
    agent, _ = trained
    pictures = np.concatenate([coloured(False, 20), coloured(True, 20), coloured(False, 5)])
    store = store_of(pictures)
    assert relabel(agent.networks, store, batch_size=7) == pytest.approx(20 / 44)
    # The reward of a transition is that of its next picture.
    assert store[:].batch()["rewards"].tolist() == [0.0] * 19 + [1.0] * 20 + [0.0] * 5


@pytest.mark.parametrize("ends_episode", [False, True])
def test_an_agent_learns_from_its_rewards(trained, ends_episode):
    networks = trained[0].networks
    agent = sac(2, 2, (), SACConfig(hidden_widths=(8,), proprioception_dim=None))
    rewarded = rewarded_by(agent, networks, ends_episode=ends_episode)
    batch = store_of(np.concatenate([coloured(False, 5), coloured(True, 4)])).batch_at(range(8), discount=0.9)
    batch = {k: {n: torch.from_numpy(v) for n, v in x.items()} if isinstance(x, dict) else x for k, x in batch.items()}
    batch = {k: torch.from_numpy(x) if isinstance(x, np.ndarray) else x for k, x in batch.items()}
    noise = agent.draw_noise(torch.Generator(), 8, torch.device("cpu"))
    seen = rewarded.prepare(agent.networks, batch, noise)
    assert seen["rewards"].tolist() == [0.0] * 4 + [1.0] * 4
    assert seen["discounts"].tolist() == pytest.approx([0.9] * 4 + [0.0 if ends_episode else 0.9] * 4)
    metrics = Engine(rewarded).update(batch)
    assert metrics["critic/rewards"] == 0.5
    assert "vice.head.weight" not in rewarded.networks.state_dict()
