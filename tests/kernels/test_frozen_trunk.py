"""The frozen ResNet-10 with its kernels: wired as the plain one, one graph, and weights cast once."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from serl_fast.kernels import crop_normalize as crop_module
from serl_fast.kernels import group_norm_relu as norm_module
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks import resnet10 as module
from serl_fast.networks.encoder import Encoder, make_encoder
from serl_fast.networks.resnet10 import ResNet10

SIZE = (32, 32)


def draw(count: int, seed: int = 0, frames: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, *frames, *SIZE, 3), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, 9, (count, 2), generator=generator)


@pytest.fixture
def trunk() -> ResNet10:
    torch.manual_seed(0)
    return ResNet10(SIZE)


@pytest.fixture
def as_on_cuda(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Kernels' operators run (as their references, on the CPU); their names in the order of the calls."""
    calls: list[str] = []

    def counted(name: str, operator: Any) -> Any:
        def call(*arguments: Any) -> Any:
            calls.append(name)
            return operator(*arguments)

        return call

    for each in (module, crop_module, norm_module):
        monkeypatch.setattr(each, "uses_triton", lambda _: True)
    for each, name in ((crop_module, "crop_normalize"), (norm_module, "group_norm_relu")):
        monkeypatch.setattr(each, f"{name}_operator", counted(name, getattr(each, f"{name}_operator")))
    return calls


def test_crops_are_encoded_as_their_images_are(trunk: ResNet10) -> None:
    (one, first), (two, second) = draw(3), draw(2, seed=1)
    expected = trunk(torch.cat([random_crop(one, first), random_crop(two, second)]))
    assert torch.equal(trunk.encode_crops([one, two], [first, second]), expected)
    stacked, offsets = draw(2, frames=(3,))
    assert torch.equal(trunk.encode_crops([stacked], [offsets]), trunk(random_crop(stacked, offsets)))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(trunk.encode_crops([one], [first]), trunk(random_crop(one, first)))


def test_other_sizes_are_refused(trunk: ResNet10) -> None:
    images = torch.zeros(2, 16, 16, 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"images are torch.uint8 \(2, 16, 16, 3\); encode_crops takes .*32, 32, 3"):
        trunk.encode_crops([images], [torch.zeros(2, 2, dtype=torch.int64)])


def test_an_encoder_crops_and_encodes_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    encoder = make_encoder(("a", "b"), 0, image_size=SIZE)
    sources = [{key: draw(n, seed=n + k)[0] for k, key in enumerate("ab")} for n in (3, 3)]
    offsets = [draw(3, seed=7)[1], draw(3, seed=8)[1]]
    assert isinstance(encoder.trunk, ResNet10)
    passes, features = [], encoder.trunk.features
    monkeypatch.setattr(encoder.trunk, "features", lambda x: passes.append(len(x)) or features(x))
    encoded = encoder.encode_crops(sources, offsets, 4)
    assert passes == [12]
    check_encoded(encoder, sources, offsets, encoded)
    smaller = [{key: x[:, :16, :16] for key, x in each.items()} for each in sources]  # cropped, then resized
    check_encoded(encoder, smaller, offsets, encoder.encode_crops(smaller, offsets, 4))


def check_encoded(encoder: Encoder, sources: Any, offsets: Any, encoded: Any) -> None:
    for source, offset, features in zip(sources, offsets, encoded, strict=True):
        cropped = {key: random_crop(source[key], offset) for key in encoder.image_keys}
        expected = encoder.encode_trunk(cropped)
        for key in encoder.image_keys:
            torch.testing.assert_close(features[key], expected[key], rtol=1e-5, atol=1e-5)


def test_kernels_are_wired_as_the_plain_trunk(trunk: ResNet10, as_on_cuda: list[str]) -> None:
    for parameter in trunk.parameters():
        nn.init.normal_(parameter, std=0.1)  # scales and biases that tell branches apart
    (images, offsets), calls = draw(3), as_on_cuda
    fused = trunk.encode_crops([images], [offsets])
    assert calls == ["crop_normalize"] + 12 * ["group_norm_relu"]
    module.uses_triton = crop_module.uses_triton = lambda _: False  # put back by the fixture
    plain = trunk.encode_crops([images], [offsets])
    torch.testing.assert_close(fused, plain, rtol=1e-5, atol=1e-5 * float(plain.abs().max()))


def test_kernels_stay_near_float32_under_autocast(trunk: ResNet10, as_on_cuda: list[str]) -> None:
    images, offsets = draw(3)
    exact = trunk.encode_crops([images], [offsets])
    with torch.autocast("cpu", torch.bfloat16):
        rounded = trunk.encode_crops([images], [offsets])
    assert rounded.dtype == torch.bfloat16
    assert float((rounded - exact).norm() / exact.norm()) < 0.03


def test_a_trained_trunk_keeps_to_pytorch(as_on_cuda: list[str]) -> None:
    trunk = ResNet10(SIZE, frozen=False)
    trunk(draw(2)[0]).sum().backward()
    assert as_on_cuda == []
    assert all(p.grad is not None for p in trunk.parameters())


def test_one_graph_for_cuda(trunk: ResNet10, fake_cuda: Any) -> None:
    with fake_cuda.mode:
        for part in trunk.modules():
            for name, value in part._parameters.items():
                if value is not None:
                    moved = torch.empty_strided(value.shape, value.stride(), device="cuda")
                    part._parameters[name] = nn.Parameter(moved, requires_grad=False)
            for name, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[name] = torch.empty_strided(buffer.shape, buffer.stride(), device="cuda")
    images, offsets = fake_cuda.empty(4, *SIZE, 3, dtype=torch.uint8), fake_cuda.empty(4, 2, dtype=torch.int64)
    code, output = fake_cuda.trace(lambda i, o: trunk.encode_crops([i, i], [o, o]), images, offsets)
    assert code.count("serl_fast.crop_normalize.default") == 1
    assert code.count("serl_fast.group_norm_relu.default") == 12
    assert output.shape == (8, 1, 1, 512)


# --- weights cast once ---------------------------------------------------------------------------------


def under_autocast(trunk: ResNet10, images: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        return trunk(images)


def test_weights_cast_once_change_nothing(trunk: ResNet10) -> None:
    images, names = draw(2)[0], list(trunk.state_dict())
    plain, rounded = trunk(images), under_autocast(trunk, images)
    trunk.keep_cast(torch.bfloat16)
    assert torch.equal(under_autocast(trunk, images), rounded)
    assert torch.equal(trunk(images), plain)
    assert list(trunk.state_dict()) == names
    assert torch.equal(under_autocast(copy.deepcopy(trunk), images), rounded)
    for conv in trunk._convolutions():
        assert conv.precast is not None
        conv.precast.zero_()
    assert not torch.equal(under_autocast(trunk, images), rounded)  # they are what is used,
    assert torch.equal(trunk(images), plain)  # but only under autocast
    trunk.keep_cast(None)
    assert torch.equal(under_autocast(trunk, images), rounded)


def test_casts_follow_the_weights(trunk: ResNet10) -> None:
    images, other = draw(2)[0], ResNet10(SIZE)
    expected = under_autocast(other, images)
    trunk.keep_cast(torch.bfloat16)
    kept = trunk.conv_init.precast
    trunk.load_state_dict(other.state_dict())
    assert trunk.conv_init.precast is kept  # a captured graph knows its address
    assert kept is not None
    assert torch.equal(kept, other.conv_init.weight.bfloat16())
    with torch.no_grad():
        trunk.conv_init.weight.zero_()
        trunk.conv_init.weight.copy_(other.conv_init.weight)
        kept.zero_()
    assert torch.equal(under_autocast(trunk, images), expected)
    kept.zero_()
    trunk.refresh_cast()
    assert torch.equal(under_autocast(trunk, images), expected)


def test_casts_in_a_compiled_pass(trunk: ResNet10) -> None:
    images = draw(2)[0]
    trunk.keep_cast(torch.bfloat16)
    expected = under_autocast(trunk, images)
    compiled = torch.compile(under_autocast, backend="aot_eager", fullgraph=True, dynamic=False)
    torch.testing.assert_close(compiled(trunk, images), expected, rtol=1e-2, atol=1e-2)
    for conv in trunk._convolutions():
        assert conv.precast is not None
        conv.precast.zero_()
    assert float(compiled(trunk, images).abs().max()) < float(expected.abs().max())


def test_a_trained_trunk_keeps_no_casts() -> None:
    trunk = ResNet10(SIZE, frozen=False)
    trunk.keep_cast(torch.bfloat16)
    assert all(conv.precast is None for conv in trunk._convolutions())
