"""The trunk against numbers recorded from the original, and its padding, loading and freezing by hand."""

from __future__ import annotations

import json
import lzma
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from serl_fast import safe_pickle
from serl_fast.networks.resnet10 import (
    ResNet10,
    SameConv2d,
    load_resnet10_params,
    same_max_pool,
    same_padding,
    truncated_normal_,
)

GOLDEN = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden"))
TOLERANCE = 1e-5  # of the largest magnitude


def recording(name: str) -> dict[str, torch.Tensor]:
    path = GOLDEN / name / "arrays.npz"
    if not path.exists():
        pytest.skip(f"recordings of the original are not here: {path} (set SERL_FAST_GOLDEN)")
    with np.load(path) as arrays:
        tensors = {key: torch.from_numpy(np.ascontiguousarray(arrays[key])) for key in arrays.files}
    return {key: t.float() if t.dtype == torch.float16 else t for key, t in tensors.items()}


def error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Largest difference, relative to the largest expected magnitude."""
    assert actual.shape == expected.shape
    return float((actual.double() - expected.double()).abs().max() / expected.double().abs().max())


@pytest.fixture(scope="module")
def parameters() -> Any:
    path = GOLDEN / "resnet10" / "resnet10_params.pkl.xz"
    if not path.exists():
        pytest.skip(f"recordings of the original are not here: {path} (set SERL_FAST_GOLDEN)")
    return safe_pickle.loads(lzma.decompress(path.read_bytes()), path.name)


@pytest.fixture(scope="module")
def trunk(parameters: Any) -> ResNet10:
    module = ResNet10()
    load_resnet10_params(module, parameters)
    return module


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    return recording("resnet10")


@pytest.mark.parametrize("size", ["128x128", "64x64", "160x200"])
def test_features(trunk: ResNet10, recorded: dict[str, torch.Tensor], size: str) -> None:
    images = recorded[f"images/{size}"]
    assert error(trunk(images), recorded[f"features/{size}"]) < TOLERANCE
    assert error(trunk(images[0]), recorded[f"features_single/{size}"]) < TOLERANCE
    assert error(trunk(images[:, None, None])[:, 0, 0], recorded[f"features/{size}"]) < TOLERANCE


@pytest.mark.parametrize("size", ["64x64", "160x200"])
def test_resize_inside_the_trunk(trunk: ResNet10, recorded: dict[str, torch.Tensor], size: str) -> None:
    resized = trunk.resize(recorded[f"images/{size}"][:1]).permute(0, 2, 3, 1)
    assert error(resized, recorded[f"resized/{size}"]) < TOLERANCE


@pytest.mark.parametrize("size", ["64x64", "100x140", "256x192"])
def test_resize_of_the_augmentation_recording(size: str) -> None:
    arrays = recording("augmentation")
    resized = ResNet10().resize(arrays[f"resize/{size}/input"]).permute(0, 2, 3, 1)
    assert error(resized, arrays[f"resize/{size}/output"]) < TOLERANCE


def test_every_stage(trunk: ResNet10, recorded: dict[str, torch.Tensor]) -> None:
    modules = {"conv_init": trunk.conv_init, "norm_init": trunk.norm_init}
    modules |= {f"ResNetBlock_{i}": block for i, block in enumerate(trunk.blocks)}
    outputs: dict[str, torch.Tensor] = {}
    hooks = [
        module.register_forward_hook(lambda _m, _i, out, name=name: outputs.__setitem__(name, out.clone()))
        for name, module in modules.items()
    ]
    trunk(recorded["images/128x128"])
    for hook in hooks:
        hook.remove()
    for name, output in outputs.items():
        stage = output.permute(0, 2, 3, 1)
        assert stage.shape == tuple(recorded[f"stages/{name}/full_shape"])
        assert error(stage[:1, ::4, ::4, ::8], recorded[f"stages/{name}/subsample"]) < TOLERANCE
        norm, total = recorded[f"stats/stages/{name}"][:2]
        assert abs(float(stage.double().norm() / norm) - 1) < TOLERANCE
        assert abs(float(stage.double().sum() - total)) < TOLERANCE * float(stage.double().abs().sum())


def test_the_parameter_file(parameters: Any, trunk: ResNet10, tmp_path: Path) -> None:
    meta = json.loads((GOLDEN / "resnet10" / "meta.json").read_text())["config"]
    assert sum(p.numel() for p in trunk.parameters()) == meta["trunk_params"]
    assert len(list(trunk.parameters())) == meta["trunk_leaves"]
    path = tmp_path / "resnet10_params.pkl"
    path.write_bytes(pickle.dumps(parameters | {"classifier_head": {"kernel": np.zeros(3)}}))
    other = ResNet10()
    assert load_resnet10_params(other, path) == ("classifier_head",)
    for a, b in zip(trunk.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


# --- without recordings --------------------------------------------------------------------------------


def nested(module: ResNet10) -> dict[str, Any]:
    """The module's parameters in the layout of the file."""
    tree: dict[str, Any] = {}

    def norm(layer: Any) -> dict[str, Any]:
        return {"scale": layer.weight.numpy(), "bias": layer.bias.numpy()}

    def conv(layer: Any) -> dict[str, Any]:
        return {"kernel": layer.weight.permute(2, 3, 1, 0).numpy()}

    tree["conv_init"], tree["norm_init"] = conv(module.conv_init), norm(module.norm_init)
    for i, block in enumerate(module.blocks):
        leaf = {"Conv_0": conv(block.conv1), "Conv_1": conv(block.conv2)}
        leaf |= {"MyGroupNorm_0": norm(block.norm1), "MyGroupNorm_1": norm(block.norm2)}
        if i:
            leaf |= {"conv_proj": conv(block.projection), "norm_proj": norm(block.projection_norm)}
        tree[f"ResNetBlock_{i}"] = leaf
    return tree


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "expected"),
    [(128, 3, 2, (0, 1)), (127, 3, 2, (1, 1)), (128, 3, 1, (1, 1)), (5, 1, 2, (0, 0)), (4, 3, 2, (0, 1))],
)
def test_same_padding(size: int, kernel: int, stride: int, expected: tuple[int, int]) -> None:
    assert same_padding(size, size, kernel, stride) == (*expected, *expected)


def test_stride_two_convolution_by_hand() -> None:
    """Windows of a 4-long row start at columns 0 and 2; the second reaches one column past the end."""
    conv = SameConv2d(1, 1, 3, stride=2)
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 0] = torch.tensor([1.0, 10.0, 100.0])  # first row of the kernel only
    image = torch.arange(16.0).view(1, 1, 4, 4)
    # Rows 0 and 2: 0 + 10*1 + 100*2, 2 + 10*3 + 0; 8 + 10*9 + 100*10, 10 + 10*11 + 0.
    assert torch.equal(conv(image)[0, 0], torch.tensor([[210.0, 32.0], [1098.0, 120.0]]))


def test_frozen_by_default() -> None:
    trunk = ResNet10((32, 32))
    assert not any(p.requires_grad for p in trunk.parameters())
    assert not trunk(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).requires_grad
    trained = ResNet10((32, 32), frozen=False)
    trained(torch.zeros(2, 32, 32, 3, dtype=torch.uint8)).sum().backward()
    assert all(p.grad is not None for p in trained.parameters())


@pytest.mark.parametrize("size", [(128, 128), (64, 96), (33, 40)])
def test_feature_shape(size: tuple[int, int]) -> None:
    trunk = ResNet10(size)
    features = trunk(torch.zeros(2, 3, 20, 24, 3, dtype=torch.uint8))
    assert features.shape == (2, 3, *trunk.feature_shape)
    assert features.is_contiguous()


def test_normalisation() -> None:
    trunk = ResNet10((8, 8))
    image = torch.randint(0, 256, (1, 8, 8, 3), dtype=torch.uint8)
    expected = (image / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(trunk.normalise(image).permute(0, 2, 3, 1), expected)


def test_max_pool_pads_after_the_image() -> None:
    """The last window sees two columns and minus infinity, never a zero."""
    x = -1 - torch.arange(4.0).view(1, 1, 1, 4).expand(1, 1, 4, 4)
    assert torch.equal(same_max_pool(x)[0, 0], torch.tensor([[-1.0, -3.0], [-1.0, -3.0]]))


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (5, 8), (7, 7), (16, 9)])
def test_max_pool_is_that_of_a_padded_image(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, *size)
    padded = F.pad(x, same_padding(*size, 3, 2), value=float("-inf"))
    assert torch.equal(same_max_pool(x), F.max_pool2d(padded, 3, 2))


def test_initial_weights() -> None:
    torch.manual_seed(0)
    weight = truncated_normal_(torch.empty(512, 256, 3, 3), fan_in=256 * 9, scale=2.0)
    std = (2 / (256 * 9)) ** 0.5
    assert abs(float(weight.std()) / std - 1) < 0.01
    assert float(weight.abs().max()) <= 2 * std / 0.8796 + 1e-6


def test_wrong_images() -> None:
    trunk = ResNet10((32, 32))
    with pytest.raises(ValueError, match=r"float32 \(1, 32, 32, 3\)"):
        trunk(torch.zeros(1, 32, 32, 3))
    with pytest.raises(ValueError, match=r"\(1, 3, 32, 32\)"):
        trunk(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_load_copies_every_parameter() -> None:
    source, target = ResNet10((32, 32)), ResNet10((32, 32))
    assert load_resnet10_params(target, nested(source)) == ()
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


def test_load_refuses_what_does_not_fit_and_changes_nothing() -> None:
    trunk = ResNet10((32, 32))
    before = [p.clone() for p in trunk.parameters()]
    tree = nested(ResNet10((32, 32)))
    del tree["ResNetBlock_3"]["norm_proj"]["bias"]
    with pytest.raises(ValueError, match="'ResNetBlock_3/norm_proj/bias' is missing"):
        load_resnet10_params(trunk, tree)
    tree = nested(ResNet10((32, 32)))
    tree["ResNetBlock_1"]["Conv_0"]["kernel"] = np.zeros((128, 64, 3, 3))
    with pytest.raises(ValueError, match=r"shape \(128, 64, 3, 3\); the trunk takes \(3, 3, 64, 128\)"):
        load_resnet10_params(trunk, tree)
    tree = nested(ResNet10((32, 32)))
    tree["conv_init"]["kernel"] = tree["conv_init"]["kernel"].astype(str)
    with pytest.raises(ValueError, match=r"'conv_init/kernel' is a ndarray of <U\d+; expected floats"):
        load_resnet10_params(trunk, tree)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk.parameters(), strict=True))


def test_load_names_all_that_it_does_not_know() -> None:
    """At the top it is ignored, as in the original, and returned; below a key that is read it is a mistake."""
    trunk, source = ResNet10((32, 32)), ResNet10((32, 32))
    before = [p.clone() for p in trunk.parameters()]
    tree = nested(source) | {"head": {"kernel": np.zeros(3)}, "ResNetBlock_4": {}}
    tree["conv_init"]["bias"] = np.zeros(64)
    tree["ResNetBlock_0"]["conv_proj"] = {"kernel": np.zeros((1, 1, 64, 64))}
    tree["ResNetBlock_2"]["Conv_0"]["bias"] = np.zeros(256)
    with pytest.raises(ValueError, match="no parameters 'ResNetBlock_0/conv_proj', 'ResNetBlock_2/Conv_0/bias', 'conv"):
        load_resnet10_params(trunk, tree)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk.parameters(), strict=True))
    del tree["conv_init"]["bias"], tree["ResNetBlock_0"]["conv_proj"], tree["ResNetBlock_2"]["Conv_0"]["bias"]
    assert load_resnet10_params(trunk, tree) == ("ResNetBlock_4", "head")
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), trunk.parameters(), strict=True))


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e300])
def test_load_refuses_what_is_not_finite(value: float) -> None:
    trunk, tree = ResNet10((32, 32)), nested(ResNet10((32, 32)))
    before = [p.clone() for p in trunk.parameters()]
    tree["ResNetBlock_3"]["norm_proj"]["bias"] = np.array([0.0] * 510 + [value] * 2)
    with pytest.raises(ValueError, match="'ResNetBlock_3/norm_proj/bias' has 2 of 512 values that are not finite"):
        load_resnet10_params(trunk, tree)
    assert all(torch.equal(a, b) for a, b in zip(before, trunk.parameters(), strict=True))


def test_group_norms_are_the_originals() -> None:
    """Four groups, and 1e-5 under the root: the recordings can not tell epsilons apart."""
    norms = [module for module in ResNet10((32, 32)).modules() if isinstance(module, torch.nn.GroupNorm)]
    assert len(norms) == 1 + 4 * 2 + 3
    assert {(norm.num_groups, norm.eps, norm.affine) for norm in norms} == {(4, 1e-5, True)}
    # One group holds (0, 0.002): variance 1e-6, so that x -> (x - 0.001) / sqrt(1e-6 + 1e-5).
    x = torch.zeros(1, 64, 1, 2)
    x[..., 1] = 0.002
    expected = 0.001 / (1e-6 + 1e-5) ** 0.5
    torch.testing.assert_close(norms[0](x)[..., 1], torch.full((1, 64, 1), expected))
    # Channels 0 to 15 are one group: what happens in them changes no other.
    y = x.clone()
    y[:, :16] *= 100
    changed = (norms[0](y) != norms[0](x)).any(-1).flatten()
    assert changed[:16].all()
    assert not changed[16:].any()


def test_load_refuses_files_of_anything_else(tmp_path: Path) -> None:
    path = tmp_path / "params.pkl"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ValueError, match=r"params\.pkl holds a list"):
        load_resnet10_params(ResNet10((32, 32)), path)
    path.write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(ValueError, match="refused the global"):
        load_resnet10_params(ResNet10((32, 32)), path)


def test_one_graph() -> None:
    """The engine compiles with ``fullgraph=True``: the trunk must trace without a break, resize included."""
    trunk = ResNet10((32, 32))
    images = torch.randint(0, 256, (2, 48, 40, 3), dtype=torch.uint8)
    compiled = torch.compile(trunk, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), trunk(images))
