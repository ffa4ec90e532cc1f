"""Encoders by name and around a user's trunk: what is shared, what is trained, what a target copy holds."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from serl_fast.networks.dropout import dropout_mask
from serl_fast.networks.encoder import Encoder, make_encoder
from serl_fast.networks.resnet10 import ResNet10
from serl_fast.networks.trunks import ImpalaSmall, SmallCNN

CAMERAS = ("left/wrist", "side")
SIZE = (32, 40)
TRAINED = {"resnet": ResNet10, "small": SmallCNN, "impala_small": ImpalaSmall}


class Own(nn.Module):
    """A user's trunk: one convolution, [..., H, W, 3] -> [..., H / 8, W / 8, 6]."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 6, 8, stride=8)

    def forward(self, images: Tensor) -> Tensor:
        x = self.convolution(images.reshape(-1, *images.shape[-3:]).permute(0, 3, 1, 2) / 255)
        return x.permute(0, 2, 3, 1).reshape(*images.shape[:-3], *x.shape[-2:], 6)


def make(name: str = "small", **options: object) -> Encoder:
    torch.manual_seed(0)
    options = {"encoder": name, "image_size": SIZE, "bottleneck": 16, "embeddings": 4} | options
    return make_encoder(CAMERAS, 6, **options)  # type: ignore[arg-type]


def observe(batch: int = 3, frames: int | None = None, size: tuple[int, int] = SIZE) -> dict[str, Tensor]:
    leading = (batch,) if frames is None else (batch, frames)
    images = {key: torch.randint(0, 256, (*leading, *size, 3), dtype=torch.uint8) for key in CAMERAS}
    return {"state": torch.randn(*leading, 6 // (frames or 1)), **images}


def gradients(encoder: Encoder, observations: dict[str, Tensor], **options: bool) -> dict[str, Tensor | None]:
    encoded = encoder(observations, **options)
    names, parameters = zip(*((n, p) for n, p in encoder.named_parameters() if p.requires_grad), strict=True)
    found = torch.autograd.grad((encoded * torch.randn_like(encoded)).sum(), parameters, allow_unused=True)
    return dict(zip(names, found, strict=True))


@pytest.mark.parametrize("name", TRAINED)
@pytest.mark.parametrize("frames", [1, 3])
def test_trained_trunks_and_heads_get_gradients_in_every_parameter(name: str, frames: int) -> None:
    encoder = make(name, frames=frames)
    assert not encoder.frozen_trunk
    assert encoder.trunk is None
    assert [type(trunk) for trunk in encoder.trunks] == [TRAINED[name]] * 2
    found = gradients(encoder, observe(frames=None if frames == 1 else frames))
    assert {name.split(".")[0] for name in found} == {"trunks", "heads", "proprioception"}
    empty = [name for name, gradient in found.items() if gradient is None or not gradient.any()]
    assert not empty


def test_a_frozen_trunk_is_shared_and_gets_no_gradient() -> None:
    encoder = make("resnet-pretrained")
    assert encoder.frozen_trunk
    assert isinstance(encoder.trunk, ResNet10)
    assert not len(encoder.trunks)
    found = gradients(encoder, observe())
    assert {name.split(".")[0] for name in found} == {"heads", "proprioception"}
    assert all(gradient is not None and gradient.any() for gradient in found.values())


def test_detached_images_leave_trained_trunks_without_a_gradient() -> None:
    encoder = make("small")
    found = gradients(encoder, observe(), detach_images=True)
    assert {name.split(".")[0] for name, gradient in found.items() if gradient is not None} == {"proprioception"}
    observations = observe()
    assert torch.equal(encoder(observations, detach_images=True), encoder(observations))


def test_only_a_frozen_trunk_is_run_ahead() -> None:
    observations = observe()
    frozen, trained = make("resnet-pretrained"), make("resnet")
    features = frozen.encode_trunk(observations)
    assert features["side"].shape == (3, 1, 2, 512)
    torch.testing.assert_close(frozen(features), frozen(observations))
    assert trained.encode_trunk(observations) is observations


@pytest.mark.parametrize("name", ["resnet-pretrained", "small"])
def test_stacked_frames_pass_one_by_one(name: str) -> None:
    encoder, observations = make(name, frames=3), observe(frames=3)
    encoded = encoder(observations)
    assert encoded.shape == (3, encoder.feature_size) == (3, 2 * 3 * 16 + 64)
    trunk = encoder.trunk or encoder.trunks[1]
    one = encoder.heads[1](trunk(observations["side"][:, 2]))
    torch.testing.assert_close(encoded[:, 5 * 16 : 6 * 16], one, rtol=1e-4, atol=1e-5)
    mask = dropout_mask(torch.rand(3, *encoder.dropout_shape))
    dropped = encoder.heads[1](trunk(observations["side"][:, 2]), mask[:, 5])
    torch.testing.assert_close(encoder(observations, mask)[:, 5 * 16 : 6 * 16], dropped, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["resnet-pretrained", "small"])
def test_one_frame_axis_changes_nothing(name: str) -> None:
    encoder, observations = make(name), observe()
    stacked = {key: value[:, None] for key, value in observations.items()}
    torch.testing.assert_close(encoder(stacked), encoder(observations))


def test_cameras_have_trunks_of_their_own() -> None:
    encoder, observations = make("small"), observe()
    first, second = encoder.trunks
    assert not torch.equal(first.convolutions[0].weight, second.convolutions[0].weight)
    torch.testing.assert_close(encoder(observations)[:, 16:32], encoder.heads[1](second(observations["side"])))


# --- target copies --------------------------------------------------------------------------------------


def test_target_of_a_frozen_trunk_has_none() -> None:
    encoder, observations = make("resnet-pretrained"), observe()
    target = encoder.target_copy()
    assert target.trunk is None
    assert encoder.trunk is not None
    assert set(target.state_dict()) == {name for name in encoder.state_dict() if not name.startswith("trunk.")}
    assert not any(p.requires_grad for p in target.parameters())
    assert any(p.requires_grad for p in encoder.parameters())
    torch.testing.assert_close(target(encoder.encode_trunk(observations)), encoder(observations))
    with pytest.raises(ValueError, match="no trunk"):
        target(observations)


def test_target_of_a_trained_trunk_has_its_own() -> None:
    encoder, observations = make("small"), observe()
    target = encoder.target_copy()
    assert set(target.state_dict()) == set(encoder.state_dict())
    assert not any(p.requires_grad for p in target.parameters())
    assert not target.frozen_trunk  # it is averaged: nothing may be computed ahead
    assert target.encode_trunk(observations) is observations
    before = target(observations)
    assert torch.equal(before, encoder(observations))
    with torch.no_grad():
        encoder.trunks[0].convolutions[0].weight.zero_()
    assert torch.equal(target(observations), before)


def test_target_keeps_the_statistics_of_the_state() -> None:
    encoder = make_encoder((), 3)
    assert encoder.normalizer is not None
    encoder.normalizer.set_statistics(torch.randn(9, 3) * 4 + 2)
    target, observations = encoder.target_copy(), {"state": torch.randn(5, 3)}
    assert torch.equal(target(observations), encoder(observations))


# --- a user's trunk -------------------------------------------------------------------------------------


def test_a_trained_module_is_copied_for_each_camera() -> None:
    own = Own()
    encoder = make("custom", trunk=own)
    assert encoder.feature_shape == (4, 5, 6)
    assert not encoder.frozen_trunk
    copies = [*encoder.trunks]
    assert own not in copies
    assert copies[0] is not copies[1]
    assert torch.equal(copies[0].convolution.weight, copies[1].convolution.weight)
    assert encoder.heads[0].pooling == "spatial_embeddings"
    assert all(gradient is not None and gradient.any() for gradient in gradients(encoder, observe()).values())


def test_a_frozen_module_is_shared() -> None:
    own = Own().requires_grad_(False)
    encoder = make("small", trunk=own)
    assert encoder.trunk is own
    assert encoder.frozen_trunk
    assert encoder.heads[0].pooling == "average"  # the name still chooses the head
    assert encoder.train().training
    assert not own.training


def test_names_and_poolings() -> None:
    with pytest.raises(ValueError, match="'vit' is not known; choose one of resnet-pretrained, "):
        make("vit")
    with pytest.raises(ValueError, match="'custom' stands for a trunk of your own"):
        make("custom")
    with pytest.raises(ValueError, match="there are 1 trunks for 2 cameras"):
        Encoder(CAMERAS, trunk=[SmallCNN()])
    assert make("small").heads[0].pooling == "average"
    impala = make("impala_small").heads[0]
    assert (impala.pooling, impala.activation, impala.norm) == ("none", "gelu", None)
    for pooling, width in (("spatial_softmax", 512), ("max", 256), ("none", 1024), ("spatial_embeddings", 1024)):
        encoder = make("small", pooling=pooling, bottleneck=None, image_size=(48, 48))
        assert encoder.dropout_shape == (2, width)
        assert encoder(observe(size=(48, 48))).shape == (3, encoder.feature_size) == (3, 2 * width + 64)
    plain = make_encoder((), 4, encoder="resnet18", latent=None)  # no camera, no trunk
    assert plain.feature_size == 4
    assert plain.target_copy().frozen_trunk


def test_impala_is_the_size_of_the_original() -> None:
    """1,049,088 in Dense(512) on 8 x 8 x 32, and the convolutions."""
    encoder = make_encoder(("side",), 0, encoder="impala_small", image_size=(64, 64), bottleneck=512)
    dense = sum(p.numel() for p in encoder.heads.parameters())
    assert dense == 2048 * 512 + 512
    assert encoder.feature_size == 512


def test_images_of_another_size() -> None:
    resized = make("resnet")
    assert resized(observe(size=(50, 60))).shape == (3, resized.feature_size)
    with pytest.raises(ValueError, match=r"images of 'left/wrist' have shape \(3, 40, 32, 3\); .*\(32, 40, 3\)"):
        make("small")(observe(size=(40, 32)))
    own = make("custom", trunk=Own())
    with pytest.raises(ValueError, match=r"features of 'left/wrist' have shape \(3, 1, 5, 4, 6\)"):
        own(observe(size=(40, 32)))


# --- compiled -------------------------------------------------------------------------------------------


@contextlib.contextmanager
def traced_gradients() -> Iterator[None]:
    """Let ``torch.autograd.grad`` stand inside a graph, as the engine does."""
    if not hasattr(torch._dynamo.config, "trace_autograd_ops"):
        pytest.skip("this torch does not trace torch.autograd.grad")
    torch._dynamo.reset()
    with torch._dynamo.config.patch(trace_autograd_ops=True):
        yield


@pytest.mark.parametrize(("name", "backend"), [*((name, "aot_eager") for name in TRAINED), ("small", "inductor")])
def test_forward_and_gradient_compile_into_one_graph(name: str, backend: str) -> None:
    encoder, observations = make(name, frames=2), observe(frames=2)
    parameters = [p for p in encoder.parameters() if p.requires_grad]
    mask = dropout_mask(torch.rand(3, *encoder.dropout_shape))

    def step(observations: dict[str, Tensor], mask: Tensor) -> tuple[Tensor, ...]:
        loss = encoder(observations, mask).square().mean() + encoder(observations, detach_images=True).mean()
        return (loss.detach(), *torch.autograd.grad(loss, parameters))

    with traced_gradients():
        compiled = torch.compile(step, backend=backend, fullgraph=True, dynamic=False)
        torch.testing.assert_close(compiled(observations, mask), step(observations, mask), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("pooling", ["spatial_softmax", "max"])
def test_poolings_on_frozen_features_compile(pooling: str) -> None:
    encoder = make("resnet-pretrained", pooling=pooling)
    target, observations = encoder.target_copy(), observe()

    def step(observations: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        features = encoder.encode_trunk(observations)
        return encoder(features), target(features)

    compiled = torch.compile(step, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(observations), step(observations))
