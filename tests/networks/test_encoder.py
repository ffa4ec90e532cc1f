"""The encoder against numbers recorded from the original, and its layout by hand."""

from __future__ import annotations

import lzma
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from serl_fast import safe_pickle
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.dropout import draw_dropout_mask, dropout_mask
from serl_fast.networks.encoder import (
    CameraHead,
    Encoder,
    ProprioceptionBranch,
    SpatialLearnedEmbeddings,
    StateNormalizer,
)
from serl_fast.networks.resnet10 import ResNet10, load_resnet10_params

GOLDEN = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TOLERANCE = 1e-5  # of the largest magnitude
CAMERAS = ("side", "wrist_1")


def recording(name: str) -> dict[str, Tensor]:
    path = GOLDEN / name / "arrays.npz"
    if not path.exists():
        pytest.skip(f"recordings of the original are not here: {path} (set SERL_FAST_GOLDEN)")
    with np.load(path) as arrays:
        tensors = {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}
    return {key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()}


def error(actual: Tensor, expected: Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    assert actual.shape == expected.shape
    actual = actual.detach()
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


def fill_head(head: CameraHead, arrays: dict[str, Tensor], prefix: str) -> None:
    state = {
        "embeddings.kernel": arrays[f"{prefix}/SpatialLearnedEmbeddings_0/kernel"],
        "dense.weight": arrays[f"{prefix}/Dense_0/kernel"].T,
        "dense.bias": arrays[f"{prefix}/Dense_0/bias"],
        "norm.weight": arrays[f"{prefix}/LayerNorm_0/scale"],
        "norm.bias": arrays[f"{prefix}/LayerNorm_0/bias"],
    }
    head.load_state_dict(state)


def fill_proprioception(branch: nn.Module, arrays: dict[str, Tensor], prefix: str) -> None:
    state = {
        "dense.weight": arrays[f"{prefix}/Dense_0/kernel"].T,
        "dense.bias": arrays[f"{prefix}/Dense_0/bias"],
        "norm.weight": arrays[f"{prefix}/LayerNorm_0/scale"],
        "norm.bias": arrays[f"{prefix}/LayerNorm_0/bias"],
    }
    branch.load_state_dict(state)


@pytest.fixture(scope="module")
def trunk() -> ResNet10:
    path = GOLDEN / "resnet10" / "resnet10_params.pkl.xz"
    if not path.exists():
        pytest.skip(f"recordings of the original are not here: {path} (set SERL_FAST_GOLDEN)")
    module = ResNet10()
    load_resnet10_params(module, safe_pickle.loads(lzma.decompress(path.read_bytes()), path.name))
    return module


def test_head_against_the_original() -> None:
    arrays = recording("resnet10")
    head = CameraHead((4, 4, 512))
    fill_head(head, recording("encoder_heads"), "params/side")
    features = arrays["features/128x128"]
    embeddings = head.embeddings(features)
    assert error(embeddings, arrays["head_eval/spatial_embeddings"]) < TOLERANCE
    assert error(head.dense(embeddings), arrays["head_eval/dense"]) < TOLERANCE
    assert error(head.norm(head.dense(embeddings)), arrays["head_eval/layernorm"]) < TOLERANCE
    assert error(head(features), arrays["head_eval/encoded"]) < TOLERANCE
    mask = arrays["head_train/dropout_mask"].float() / 0.9
    assert error(head(features, mask), arrays["head_train/encoded"]) < TOLERANCE


@pytest.mark.parametrize(
    ("observations", "which"),
    [("observations", "online"), ("next_observations", "online"), ("next_observations", "target")],
)
def test_agent_encodings_against_the_original(trunk: ResNet10, observations: str, which: str) -> None:
    """Crop, trunk, heads and proprioception of a recorded batch, online and target parameters."""
    arrays, heads = recording("agent_pixels"), recording("encoder_heads")
    root = "params" if which == "online" else "target_params"
    encoder = Encoder(CAMERAS, 19, trunk=trunk)
    for camera, head in zip(CAMERAS, encoder.heads, strict=True):
        leaves = {k.replace(f"params/{camera}/", "head/"): v for k, v in heads.items()}
        prefix = f"{root}/modules_actor/encoder/encoder_{camera}/"
        leaves |= {k.replace(prefix, "head/"): v for k, v in arrays.items()}  # the others equal the online ones
        fill_head(head, leaves, "head")
    fill_proprioception(encoder.proprioception, arrays, f"{root}/modules_actor/encoder")
    frame = slice(0, 1) if observations == "observations" else slice(1, 2)
    offsets = arrays[f"noise/crop_offsets/{observations}"]
    inputs = {c: random_crop(arrays[f"batch/observations/{c}"][:, frame], offsets) for c in CAMERAS}
    inputs["state"] = arrays[f"batch/{observations}/state"]
    assert error(encoder(inputs), arrays[f"encoded/{observations}_{which}"]) < TOLERANCE


def test_dropout_in_the_policy_pass(trunk: ResNet10) -> None:
    """With the recorded keep masks the recorded policy mean of the actor loss comes out."""
    arrays, heads = recording("agent_pixels"), recording("encoder_heads")
    encoder = Encoder(CAMERAS, 19, trunk=trunk)
    for camera, head in zip(CAMERAS, encoder.heads, strict=True):
        fill_head(head, heads, f"params/{camera}")
    fill_proprioception(encoder.proprioception, arrays, "params/modules_actor/encoder")
    offsets = arrays["noise/crop_offsets/observations"]
    inputs = {c: random_crop(arrays[f"batch/observations/{c}"][:, :1], offsets) for c in CAMERAS}
    inputs["state"] = arrays["batch/observations/state"]
    masks = [arrays[f"noise/actor/dropout/encoder_{camera}"].float() / 0.9 for camera in CAMERAS]
    x = encoder(inputs, torch.stack(masks, dim=1))
    for i in (0, 1):
        prefix = "params/modules_actor/network"
        x = x @ arrays[f"{prefix}/Dense_{i}/kernel"] + arrays[f"{prefix}/Dense_{i}/bias"]
        scale, bias = arrays[f"{prefix}/LayerNorm_{i}/scale"], arrays[f"{prefix}/LayerNorm_{i}/bias"]
        x = torch.tanh(nn.functional.layer_norm(x, (256,), scale, bias, eps=1e-6))
    mean = x @ arrays["params/modules_actor/Dense_0/kernel"] + arrays["params/modules_actor/Dense_0/bias"]
    assert error(mean, arrays["actor/mean"]) < TOLERANCE


# --- without recordings --------------------------------------------------------------------------------

SHAPE = (2, 2, 6)  # a small feature map


class TinyTrunk(nn.Module):
    """Stands in for the ResNet: mean over quarters of the image, repeated to SHAPE."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        x = images.flatten(0, -4).permute(0, 3, 1, 2).float() / 255
        x = nn.functional.adaptive_avg_pool2d(x, SHAPE[:2]).permute(0, 2, 3, 1)
        return torch.cat([x, x.square()], dim=-1).reshape(*images.shape[:-3], *SHAPE)


def tiny(cameras: tuple[str, ...] = ("a", "b"), size: int = 5, **options: object) -> Encoder:
    torch.manual_seed(0)
    options = {"trunk": TinyTrunk(), "feature_shape": SHAPE, "bottleneck": 16, "embeddings": 4} | options
    return Encoder(cameras, size, **options)  # type: ignore[arg-type]


def observe(batch: int = 3, frames: int | None = None, size: int = 5) -> dict[str, Tensor]:
    leading = (batch,) if frames is None else (batch, frames)
    images = {key: torch.randint(0, 256, (*leading, 8, 8, 3), dtype=torch.uint8) for key in ("a", "b")}
    return {"state": torch.randn(*leading, size // (frames or 1)), **images}


def test_embeddings_by_hand() -> None:
    layer = SpatialLearnedEmbeddings((1, 2, 2), embeddings=2)
    with torch.no_grad():
        # [position, channel, embedding]
        layer.kernel.copy_(torch.tensor([[[1.0, 2.0], [3.0, 4.0]], [[5.0, 6.0], [7.0, 8.0]]])[None])
    features = torch.tensor([[[[1.0, 10.0], [2.0, 20.0]]]])  # [1, 1, 2, 2]: two positions of two channels
    # channel 0: 1*(1,2) + 2*(5,6) = (11, 14); channel 1: 10*(3,4) + 20*(7,8) = (170, 200); channel-major.
    assert torch.equal(layer(features), torch.tensor([[11.0, 14.0, 170.0, 200.0]]))


def test_feature_layout_and_size() -> None:
    encoder = tiny(latent=7)
    observations = observe()
    encoded = encoder(observations)
    assert encoded.shape == (3, encoder.feature_size) == (3, 2 * 16 + 7)
    features = encoder.encode_trunk(observations)
    torch.testing.assert_close(encoded[:, :16], encoder.heads[0](features["a"]))
    torch.testing.assert_close(encoded[:, 16:32], encoder.heads[1](features["b"]))
    torch.testing.assert_close(encoded[:, 32:], encoder.proprioception(observations["state"]))


def test_camera_order_is_as_given() -> None:
    observations = observe()
    forward, backward = tiny(("a", "b")), tiny(("b", "a"))
    backward.heads[0].load_state_dict(forward.heads[1].state_dict())
    backward.heads[1].load_state_dict(forward.heads[0].state_dict())
    a, b = forward(observations)[:, :16], forward(observations)[:, 16:32]
    torch.testing.assert_close(backward(observations)[:, :32], torch.cat([b, a], dim=-1))


def test_features_in_place_of_images() -> None:
    encoder = tiny()
    observations = observe()
    features = encoder.encode_trunk(observations)
    assert features["a"].shape == (3, *SHAPE)
    assert features["state"] is observations["state"]
    torch.testing.assert_close(encoder(features), encoder(observations))
    assert encoder.encode_trunk(features) is features
    target = tiny(trunk=None)
    torch.testing.assert_close(target(features), encoder(observations))
    with pytest.raises(ValueError, match="no trunk"):
        target(observations)


def test_all_cameras_pass_the_trunk_at_once() -> None:
    encoder = tiny()
    assert isinstance(encoder.trunk, TinyTrunk)
    encoder.encode_trunk(observe())
    assert encoder.trunk.calls == 1
    different = observe()
    different["b"] = torch.zeros(3, 4, 4, 3, dtype=torch.uint8)
    encoder.encode_trunk(different)
    assert encoder.trunk.calls == 3


def test_stacked_frames() -> None:
    encoder = tiny(size=6, frames=2)
    observations = observe(frames=2, size=6)
    encoded = encoder(observations)
    assert encoded.shape == (3, encoder.feature_size) == (3, 4 * 16 + 64)
    features = encoder.encode_trunk(observations)
    torch.testing.assert_close(encoded[:, 16:32], encoder.heads[0](features["a"][:, 1]))
    torch.testing.assert_close(encoded[:, 32:48], encoder.heads[1](features["b"][:, 0]))
    mask = dropout_mask(torch.rand(3, *encoder.dropout_shape))
    dropped = encoder(observations, mask)
    torch.testing.assert_close(dropped[:, 16:32], encoder.heads[0](features["a"][:, 1], mask[:, 1]))
    torch.testing.assert_close(dropped[:, 32:48], encoder.heads[1](features["b"][:, 0], mask[:, 2]))


def test_one_frame_axis_changes_nothing() -> None:
    encoder = tiny()
    observations = observe()
    stacked = {key: value[:, None] for key, value in observations.items()}
    torch.testing.assert_close(encoder(stacked), encoder(observations))


def test_dropout_mask() -> None:
    mask = dropout_mask(torch.tensor([0.0, 0.0999, 0.1, 0.999]))
    torch.testing.assert_close(mask, torch.tensor([0.0, 0.0, 1 / 0.9, 1 / 0.9]))
    encoder = tiny()
    observations = observe()
    ones = torch.ones(3, *encoder.dropout_shape)
    assert torch.equal(encoder(observations, ones), encoder(observations))
    zeros = encoder(observations, torch.zeros(3, *encoder.dropout_shape))
    torch.testing.assert_close(zeros[:, :16], torch.zeros(3, 16))  # dense bias and norm bias are zero at first


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.999])
def test_drawn_dropout_masks_drop_at_their_rate_and_independently(rate: float) -> None:
    generator = torch.Generator().manual_seed(0)
    rows = 4099  # entries that are no multiple of the four that a word of 64 bits decides
    mask = draw_dropout_mask((rows, 3, 67), rate, generator, "cpu")
    kept = mask != 0
    assert mask.shape == (rows, 3, 67)
    torch.testing.assert_close(mask[kept], torch.full((int(kept.sum()),), 1 / (1 - rate)))
    deviation = (rate * (1 - rate) / mask.numel()) ** 0.5
    assert abs(1 - kept.double().mean().item() - rate) <= 5 * deviation + 2**-17
    flat = kept.flatten()
    for apart in (1, 2, 3, 4, 67):
        together = (flat[apart:] & flat[:-apart]).double().mean().item()
        assert abs(together - (1 - rate) ** 2) <= 10 * deviation + 2**-16
    assert not torch.equal(mask, draw_dropout_mask(mask.shape, rate, generator, "cpu")) or rate == 0


def test_detached_images_leave_only_the_proprioception_branch_a_gradient() -> None:
    encoder = tiny()
    encoder(observe(), detach_images=True).square().sum().backward()
    assert all(p.grad is None for p in encoder.heads.parameters())
    assert all(p.grad is not None for p in encoder.proprioception.parameters())


def test_parts_can_be_left_out() -> None:
    observations = observe()
    raw = tiny((), latent=None)
    assert torch.equal(raw(observations), observations["state"])
    assert raw.feature_size == 5
    branched = tiny(())
    assert isinstance(branched.proprioception, ProprioceptionBranch)
    assert branched(observations).shape == (3, 64)
    pixels = tiny(("a",), size=0)
    assert pixels(observations).shape == (3, 16)
    assert not [name for name, _ in pixels.named_parameters() if "proprioception" in name]


def test_errors() -> None:
    encoder = tiny()
    observations = observe()
    with pytest.raises(ValueError, match=r"'b' is missing; .*\['a', 'state'\]"):
        encoder({key: value for key, value in observations.items() if key != "b"})
    with pytest.raises(ValueError, match="'state' is missing"):
        encoder({key: value for key, value in observations.items() if key != "state"})
    with pytest.raises(ValueError, match="state has 4 values; the encoder takes 5"):
        encoder(observations | {"state": torch.zeros(3, 4)})
    with pytest.raises(ValueError, match=r"features of 'a'"):
        encoder(observations | {"a": torch.zeros(3, 3, 3, 6)})
    with pytest.raises(ValueError, match=r"features of 'a'"):
        encoder(observe(frames=2, size=10) | {"state": torch.zeros(3, 5)})
    with pytest.raises(ValueError, match="both are empty"):
        Encoder()
    with pytest.raises(ValueError, match="twice"):
        Encoder(("a", "a"))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    head = CameraHead((4, 4, 512))
    assert head.embeddings.kernel.numel() == 65536
    assert abs(float(head.embeddings.kernel.detach().std(correction=0)) - 8192**-0.5) < 2e-4  # 0.011, fan-in 8192
    assert abs(float(head.dense.weight.detach().std(correction=0)) - 4096**-0.5) < 2e-4
    assert not head.dense.bias.any()
    assert head.norm.eps == 1e-6
    branch = ProprioceptionBranch(19)
    bound = (6 / (19 + 64)) ** 0.5
    assert 0.9 * bound < float(branch.dense.weight.detach().abs().max()) <= bound


def test_state_normalizer() -> None:
    normalizer = StateNormalizer(3)
    states = torch.tensor([[1.0, 5.0, 0.0], [3.0, 5.0, 1e-4]])
    assert torch.equal(normalizer(states), states)
    normalizer.set_statistics(states)
    # mean 2, std 1; constant 5; a coordinate that moves less than the floor is divided by the floor.
    torch.testing.assert_close(normalizer(states), torch.tensor([[-1.0, 0.0, -0.05], [1.0, 0.0, 0.05]]))
    assert not list(normalizer.parameters())
    assert set(normalizer.state_dict()) == {"mean", "std"}
    for wrong in (torch.zeros(4), torch.zeros(4, 2), torch.zeros(1, 3)):
        with pytest.raises(ValueError, match="statistics take"):
            normalizer.set_statistics(wrong)
    with pytest.raises(ValueError, match="not finite"):
        normalizer.set_statistics(torch.full((4, 3), float("nan")))


def test_statistics_act_before_the_branch() -> None:
    encoder = tiny(())
    assert encoder.normalizer is not None
    observations = observe()
    encoder.normalizer.set_statistics(observations["state"])
    state = observations["state"]
    normalised = (state - state.mean(0)) / state.std(0, correction=0)
    torch.testing.assert_close(encoder(observations), encoder.proprioception(normalised))


def test_one_graph() -> None:
    encoder = Encoder(("a", "b"), 5, trunk=ResNet10((32, 32)), feature_shape=(1, 1, 512))
    observations = observe()
    mask = dropout_mask(torch.rand(3, *encoder.dropout_shape))
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(observations, mask), encoder(observations, mask))


@pytest.mark.parametrize("frames", [1, 2])
def test_with_and_without_dropout_are_the_two_forward_passes(frames):
    torch.manual_seed(0)
    encoder = Encoder(("front", "wrist"), 3, feature_shape=(2, 2, 4), bottleneck=5, frames=frames)
    size = (6, frames, 2, 2, 4)
    observations = {"state": torch.randn(6, 3), "front": torch.randn(size), "wrist": torch.randn(size)}
    dropout = dropout_mask(torch.rand(6, *encoder.dropout_shape), 0.5)
    dropped, plain = encoder.with_and_without_dropout(observations, dropout)
    assert torch.equal(dropped, encoder(observations, dropout))
    assert torch.equal(plain, encoder(observations))
    assert not torch.equal(dropped, plain)
    assert torch.equal(*encoder.with_and_without_dropout(observations, None))
