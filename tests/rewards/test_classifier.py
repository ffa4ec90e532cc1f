"""The reward classifier: losses worked out by hand, what it says about one observation, labels that do not fit."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from serl_fast.engine import Engine
from serl_fast.kernels.color_jitter import color_jitter
from serl_fast.networks.classifier import RewardClassifier
from serl_fast.rewards.classifier import (
    ClassifierConfig,
    check_labels,
    objective,
    reward_classifier,
    with_threshold,
)

SMALL = {"encoder": "small", "image_size": (32, 32)}
CAMERAS = ("front", "left/wrist")


class Logits(nn.Module):
    """A classifier whose logits are the observation, doubled by dropout."""

    def forward(self, observations, dropout=None, hidden_dropout=None):
        return observations["front"] if dropout is None else 2 * observations["front"]


def loss_of(logits, labels, classes=1, noise=None):
    networks = {"classifier": Logits()}
    batch = {"observations": {"front": torch.tensor(logits)}, "labels": torch.as_tensor(labels)}
    return objective(ClassifierConfig(classes=classes)).loss(networks, batch, noise or {})


def images(size=4, cameras=CAMERAS):
    return {key: torch.randint(256, (size, 32, 32, 3), dtype=torch.uint8) for key in cameras}


def softplus(x):
    return math.log1p(math.exp(x))


@pytest.mark.parametrize("labels", [[1, 0, 1], [[1], [0], [1]], [1.0, 0.0, 1.0], [True, False, True]])
def test_binary_loss_by_hand(labels):
    # softplus(l) - y l
    loss = loss_of([[2.0], [-1.0], [-0.5]], labels)
    expected = (softplus(2) - 2 + softplus(-1) + softplus(-0.5) + 0.5) / 3
    assert loss.value.item() == pytest.approx(expected, rel=1e-6)
    assert loss.metrics["accuracy"].item() == pytest.approx(2 / 3)


def test_loss_of_three_classes_by_hand():
    loss = loss_of([[0.0, 0.0, 0.0], [1.0, 0.0, 2.0]], [1, 2], classes=3)
    expected = (math.log(3) + math.log(math.e + 1 + math.e**2) - 2) / 2
    assert loss.value.item() == pytest.approx(expected, rel=1e-6)
    assert loss.metrics["accuracy"].item() == 0.5


def test_the_loss_has_dropout_and_the_accuracy_has_none():
    loss = loss_of([[1.0], [-1.0]], [0, 1], noise={"dropout": torch.ones(())})
    assert loss.value.item() == pytest.approx(softplus(2), rel=1e-6)
    assert loss.metrics["accuracy"].item() == 0.0


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([1, 0, 1], 1, r"labels have shape \(3,\); 2 pictures take \(2,\)"),
        ([[1, 0], [0, 1]], 1, r"labels have shape \(2, 2\)"),
        ([0.0, 1.0], 3, "labels are torch.float32; 3 classes take integers, 0 to 2"),
        ([True, False], 3, "labels are torch.bool"),
    ],
)
def test_labels_that_do_not_fit(labels, classes, message):
    logits = [[0.0] * classes] * 2
    with pytest.raises(ValueError, match=message):
        loss_of(logits, labels, classes)


def test_label_values_are_checked_on_request():
    check_labels(torch.tensor([0, 1, 1]))
    check_labels(torch.tensor([0, 2]), classes=3)
    with pytest.raises(ValueError, match=r"labels hold \[2\]; success is 1, failure 0"):
        check_labels(torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match=r"labels hold \[-1, 3\]"):
        check_labels(torch.tensor([0, -1, 3]), classes=3)
    with pytest.raises(ValueError, match="no labels"):
        check_labels(torch.tensor([]))


def test_one_observation_in_any_form():
    torch.manual_seed(0)
    classifier = RewardClassifier(CAMERAS, **SMALL)
    batch = images(1)
    expected = classifier.probabilities(batch)
    assert expected.shape == (1,)
    assert expected.item() == pytest.approx(torch.sigmoid(classifier(batch)).item(), rel=1e-6)
    single = {key: image[0] for key, image in batch.items()}
    forms = [
        batch,
        single,
        {key: image.numpy() for key, image in single.items()},
        {key: image[None].numpy() for key, image in batch.items()},  # [1, 1, H, W, 3]: batch and time
        {**single, "state": np.zeros(3)},
    ]
    for form in forms:
        probability, success = classifier.predict_success(form)
        assert isinstance(probability, float)
        assert isinstance(success, bool)
        assert probability == pytest.approx(expected.item(), rel=1e-6)
        assert success == (probability >= 0.5)


def test_the_threshold_may_be_set():
    classifier = RewardClassifier(["front"], **SMALL, threshold=0.9)
    with torch.no_grad():
        classifier.head.weight.zero_()
        classifier.head.bias.fill_(math.log(4))  # probability 0.8
    observation = {"front": images(1)["front"][0]}
    assert classifier.predict_success(observation) == (pytest.approx(0.8), False)
    assert classifier.predict_success(observation, threshold=0.75) == (pytest.approx(0.8), True)
    with pytest.raises(ValueError, match=r"threshold is 1\.0"):
        classifier.predict_success(observation, threshold=1.0)
    with pytest.raises(ValueError, match="threshold is 0"):
        RewardClassifier(["front"], **SMALL, threshold=0)


def test_several_classes():
    classifier = RewardClassifier(["front"], classes=3, **SMALL)
    with torch.no_grad():
        classifier.head.weight.zero_()
        classifier.head.bias.copy_(torch.tensor([0.0, math.log(2), math.log(5)]))
    assert classifier.probabilities({"front": images()["front"]})[3].tolist() == pytest.approx([1 / 8, 2 / 8, 5 / 8])
    observation = {"front": images()["front"][0]}
    assert classifier.predict_success(observation, success_class=2) == (pytest.approx(0.625), True)
    with pytest.raises(ValueError, match="success_class is None; this classifier has 3 class"):
        classifier.predict_success(observation)
    with pytest.raises(ValueError, match="success_class is 0; this classifier has 1 class"):
        RewardClassifier(["front"], **SMALL).predict_success(observation, success_class=0)


def test_the_class_that_means_success_may_be_settled():
    classifier = RewardClassifier(["front"], classes=3, success_class=1, **SMALL)
    observation = {"front": images()["front"][0]}
    settled = classifier.predict_success(observation)
    assert settled == classifier.predict_success(observation, success_class=1)
    assert settled != classifier.predict_success(observation, success_class=0)
    for classes, wrong in ((3, 3), (3, -1), (1, 0)):
        with pytest.raises(ValueError, match=f"success_class is {wrong}; this classifier has {classes} class"):
            RewardClassifier(["front"], classes=classes, success_class=wrong, **SMALL)


@pytest.mark.parametrize("encoder", ["small", "impala_small", "resnet"])
def test_images_of_another_size_are_resized(encoder):
    classifier = RewardClassifier(["front"], encoder=encoder, image_size=(32, 40))
    given = torch.randint(256, (2, 60, 80, 3), dtype=torch.uint8)
    resized = torch.nn.functional.interpolate(
        given.permute(0, 3, 1, 2).float(), (32, 40), mode="bilinear", antialias=True
    )
    fitting = resized.round().to(torch.uint8).permute(0, 2, 3, 1)
    found, expected = (classifier.probabilities({"front": each}) for each in (given, fitting))
    # A ResNet does not round what it has resized.
    assert torch.allclose(found, expected, atol=1e-6 if encoder != "resnet" else 0.02)


def test_the_threshold_is_part_of_the_settings():
    agent = with_threshold(reward_classifier(["front"], ClassifierConfig(**SMALL)), 0.8)
    classifier = agent.networks["classifier"]
    assert agent.settings["config"]["threshold"] == classifier.settings["threshold"] == classifier.threshold == 0.8
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        classifier.threshold = 1.5


def test_training_images_are_jittered_and_cropped():
    config = ClassifierConfig(color_jitter=0.3, crop_padding=0, **SMALL)
    agent = reward_classifier(CAMERAS, config)
    noise = agent.draw_noise(torch.Generator().manual_seed(0), 500, torch.device("cpu"))
    assert noise["jitter"].shape == (500, 2, 3)
    assert noise["jitter"].min() < 0.71
    assert noise["jitter"].max() > 1.29
    assert (noise["jitter"] - 1).abs().max() <= 0.3
    batch = {"observations": images(3), "labels": torch.tensor([0, 1, 1])}
    noise = {"jitter": noise["jitter"][:3]}
    prepared = agent.prepare(agent.networks, batch, noise)["observations"]
    for camera, key in enumerate(CAMERAS):
        assert torch.equal(prepared[key], color_jitter(batch["observations"][key], noise["jitter"][:, camera]))
    plain = reward_classifier(CAMERAS, ClassifierConfig(**SMALL))
    assert "jitter" not in plain.draw_noise(torch.Generator(), 3, torch.device("cpu"))


def test_stacked_frames_are_one_observation():
    classifier = RewardClassifier(["front"], **SMALL, frames=2)
    stack = torch.randint(256, (2, 32, 32, 3), dtype=torch.uint8)
    assert classifier.predict_success({"front": stack})[0] == pytest.approx(
        classifier.probabilities({"front": stack[None]}).item()
    )
    with pytest.raises(ValueError, match=r"takes one observation, \[2, H, W, 3\]"):
        classifier.predict_success({"front": stack[0]})


def test_observations_that_do_not_fit():
    classifier = RewardClassifier(["front"], **SMALL)
    with pytest.raises(ValueError, match="observation 'front' is missing"):
        classifier.predict_success({"side": images()["front"][0]})
    with pytest.raises(ValueError, match=r"\(4, 32, 32, 3\); predict_success takes one observation, \[H, W, 3\]"):
        classifier.predict_success({"front": images()["front"]})
    with pytest.raises(ValueError, match=r"\(32, 32\); predict_success takes one"):
        classifier.predict_success({"front": np.zeros((32, 32), np.uint8)})
    for wrong, said in (
        (np.zeros((32, 32, 3), np.float32), r"float32 \(32, 32, 3\)"),
        (torch.zeros((32, 32, 3)), r"torch.float32 \(32, 32, 3\)"),
        (np.zeros((32, 32, 3), np.int64), r"int64 \(32, 32, 3\)"),
        (np.zeros((3, 32, 32), np.uint8), r"uint8 \(3, 32, 32\)"),
        (np.zeros((32, 32, 1), np.uint8), r"uint8 \(32, 32, 1\)"),
        (np.zeros((1, 32, 32, 4), np.uint8), r"uint8 \(1, 32, 32, 4\)"),
        ([[1.0]], r"float64 \(1, 1\)"),
    ):
        with pytest.raises(
            ValueError, match=rf"camera 'front' is {said}; predict_success takes uint8 \[H, W, 3\], RGB"
        ):
            classifier.predict_success({"front": wrong})
    with pytest.raises(ValueError, match="image_keys is empty"):
        RewardClassifier([])
    with pytest.raises(ValueError, match="classes is 0"):
        RewardClassifier(["front"], classes=0)


@pytest.mark.filterwarnings("error")
def test_arrays_that_pytorch_does_not_take():
    classifier = RewardClassifier(["front"], **SMALL)
    image = np.random.default_rng(0).integers(0, 256, (32, 32, 3), np.uint8)
    fixed = image.copy()
    fixed.flags.writeable = False
    expected = classifier.predict_success({"front": image})
    assert classifier.predict_success({"front": fixed}) == expected
    assert classifier.predict_success({"front": image[::-1, :, ::-1].copy()[::-1, :, ::-1]}) == expected


def test_it_is_rebuilt_from_its_settings():
    classifier = RewardClassifier(CAMERAS, classes=3, hidden=32, **SMALL)
    again = RewardClassifier(**classifier.settings)
    again.load_state_dict(classifier.state_dict())
    batch = images()
    assert torch.equal(again(batch), classifier(batch))


@pytest.mark.parametrize("classes", [1, 3])
def test_it_learns_to_tell_colours(classes):
    torch.manual_seed(0)
    agent = reward_classifier(["front"], ClassifierConfig(classes=classes, learning_rate=1e-3, **SMALL))
    assert agent.policy is None
    engine, generator = Engine(agent, seed=0), torch.Generator().manual_seed(0)

    def batch(size):
        labels = torch.randint(max(classes, 2), (size,), generator=generator)
        noise = torch.randint(60, (size, 32, 32, 3), generator=generator)
        bright = torch.nn.functional.one_hot(labels, 3)[:, None, None]  # each class its colour
        return {"observations": {"front": (noise + 190 * bright).to(torch.uint8)}, "labels": labels}

    for _ in range(25):
        metrics = engine.update(batch(16))
    assert metrics["classifier/accuracy"] == 1.0
    assert metrics["classifier/loss"] < 0.3
    unseen = batch(50)
    found = agent.networks["classifier"].probabilities(unseen["observations"])
    predicted = (found >= 0.5) if classes == 1 else found.argmax(-1)
    assert torch.equal(predicted.long(), unseen["labels"])
    with pytest.raises(ValueError, match="no policy"):
        engine.act(unseen["observations"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"encoder_dropout": -1.0}, "encoder_dropout is -1.0"),
        ({"crop_padding": -1}, "crop_padding is -1"),
        ({"color_jitter": 1.0}, "color_jitter is 1.0"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        ClassifierConfig(**settings)
