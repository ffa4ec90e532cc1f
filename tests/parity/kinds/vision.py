"""The image trunk, the camera heads on it, and augmentation."""

from __future__ import annotations

import functools
import lzma
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from serl_fast.agents.parts import image_preparation
from serl_fast.agents.sac_config import SACConfig
from serl_fast.interop.flax_names import fill, module_leaves
from serl_fast.kernels.random_crop import random_crop
from serl_fast.networks.dropout import dropout_mask
from serl_fast.networks.encoder import CameraHead, make_encoder
from serl_fast.networks.resnet10 import ResNet10, load_resnet10_params
from tests.parity.fixture import Fixture, FixtureError, statistics
from tests.parity.library import Library

POOLINGS = {"avg": "average", "max": "max", "spatial_softmax": "spatial_softmax"}
DROPOUT = 0.1  # of the spatial embeddings, in the original's encoder


def resnet10(fixture: Fixture, library: Library) -> None:
    """Features of every image size, what comes out of each stage, and what the heads make of it."""
    trunk = load_trunk(fixture)
    recorded = {name: list(shape) for name, shape in fixture.config["trunk_param_names"].items()}
    leaves = module_leaves(trunk)
    fixture.compare_setting("trunk_param_names", {leaf.path: list(leaf.shape) for leaf in leaves}, recorded)
    count = sum(leaf.parameter.numel() for leaf in leaves)
    fixture.compare_setting("trunk_leaves", len(leaves), fixture.config["trunk_leaves"])
    fixture.compare_setting("trunk_params", count, fixture.config["trunk_params"])
    features = {}
    for size in fixture.below("images"):
        images = fixture.given(f"images/{size}")
        features[size] = trunk(images)
        fixture.compare(f"features/{size}", features[size], "feature")
        fixture.compare(f"features_single/{size}", trunk(images[0]), "feature")
        if (name := f"resized/{size}") in fixture:
            fixture.compare(name, channels_last(trunk.resize(images[:1])), "feature")
    first = "x".join(map(str, fixture.config["sizes"][0][1:]))  # stages and heads were recorded with these images
    compare_stages(fixture, trunk, fixture.given(f"images/{first}"))
    compare_heads(fixture, library, features[first])


def load_trunk(fixture: Fixture) -> ResNet10:
    """The trunk with the parameters of the recording's own file, read as the original's is."""
    found = sorted(fixture.path.glob("*.pkl*"))
    if not found:
        raise FixtureError(f"{fixture.name} has no parameter file *.pkl or *.pkl.xz")
    trunk = ResNet10(tuple(fixture.config.get("image_size", (128, 128))))
    with tempfile.TemporaryDirectory() as folder:
        plain = Path(folder) / "resnet10_params.pkl"
        data = found[0].read_bytes()
        plain.write_bytes(lzma.decompress(data) if found[0].suffix == ".xz" else data)
        load_resnet10_params(trunk, plain)
    return trunk


def trunk_for(fixture: Fixture, library: Library) -> ResNet10:
    """The trunk that ``fixture`` was recorded with."""
    return _trunk_at(library.find("resnet10", fixture).path)


@functools.lru_cache(maxsize=1)  # several recordings use the same one
def _trunk_at(path: Path) -> ResNet10:
    return load_trunk(Fixture.read(path))


def compare_stages(fixture: Fixture, trunk: ResNet10, images: Tensor) -> None:
    """The output of the stem and of every block: a part of it, its statistics and its shape."""
    stages: dict[str, nn.Module] = {"conv_init": trunk.conv_init, "norm_init": trunk.norm_init}
    stages |= {f"ResNetBlock_{index}": block for index, block in enumerate(trunk.blocks)}
    outputs: dict[str, Tensor] = {}
    hooks = [
        stage.register_forward_hook(lambda _, __, output, name=name: outputs.update({name: channels_last(output)}))
        for name, stage in stages.items()
    ]
    trunk(images)
    for hook in hooks:
        hook.remove()
    for name, output in outputs.items():
        fixture.compare(f"stages/{name}/subsample", output[:1, ::4, ::4, ::8], "feature")
        fixture.compare(f"stages/{name}/full_shape", torch.tensor(output.shape), "exact")
        # The sums cancel: half a million values of both signs. Their scale is the sum of the magnitudes.
        total = float(output.double().abs().sum())
        fixture.compare(f"stats/stages/{name}", statistics(output), "feature", scale=(total, "of sum |x|"))


def compare_heads(fixture: Fixture, library: Library, features: Tensor) -> None:
    """The head of the first camera of ``encoder_heads``, step by step, and the poolings without parameters."""
    heads = library.find("encoder_heads", fixture)
    head = camera_head(heads, heads.config["cameras"][0])
    assert head.dense is not None
    assert head.norm is not None
    with torch.no_grad():
        pooled = head.pool(features)
        dense = head.dense(pooled)
        fixture.compare("head_eval/spatial_embeddings", pooled, "feature")
        fixture.compare("head_eval/dense", dense, "feature")
        fixture.compare("head_eval/layernorm", head.norm(dense), "feature")
        fixture.compare("head_eval/encoded", head(features), "feature")
        mask = scaled_mask(fixture.given("head_train/dropout_mask"))
        fixture.compare("head_train/encoded", head(features, mask), "feature")
        for name in fixture.below("pool"):
            pool = CameraHead(tuple(features.shape[1:]), bottleneck=None, pooling=POOLINGS[name])
            fixture.compare(f"pool/{name}", pool(features), "feature")


def camera_head(heads: Fixture, camera: str) -> CameraHead:
    """Our head with the recorded parameters of one camera, of the sizes that these have."""
    below = f"params/{camera}"
    if f"{below}/SpatialLearnedEmbeddings_0/kernel" not in heads:
        raise FixtureError(f"the recording {heads.name!r} has no camera {camera!r}; it has {heads.config['cameras']}")
    height, width, channels, embeddings = heads.recorded(f"{below}/SpatialLearnedEmbeddings_0/kernel").shape
    bottleneck = heads.recorded(f"{below}/Dense_0/bias").shape[0]
    head = CameraHead((height, width, channels), embeddings, bottleneck)
    leaves = module_leaves(head)
    fill(leaves, {leaf.path: heads.given(f"{below}/{leaf.path}") for leaf in leaves})
    return head


def scaled_mask(kept: Tensor, rate: float = DROPOUT) -> Tensor:
    """A recorded mask (True = kept) as ours take it: zero or 1 / (1 - rate)."""
    return dropout_mask(kept.float(), rate)


def encoder_heads(fixture: Fixture, library: Library) -> None:
    """Parameters only: each of them must have its place in our heads; other recordings compare what they do."""
    for camera in fixture.config["cameras"]:
        camera_head(fixture, camera)


def augmentation(fixture: Fixture, library: Library) -> None:
    """Crops of single sets, of whole batches as agents prepare them, and the trunk's resize."""
    for at in sorted({name.split("/")[0] for name in fixture.arrays if name.endswith("/corner_offsets")}):
        images, padding = fixture.given(f"{at}/images"), int(fixture.given(f"{at}/padding"))
        offsets = fixture.given(f"{at}/offsets")
        fixture.compare(f"{at}/output", random_crop(images, offsets, padding), "exact")
        corners = fixture.given(f"{at}/corner_offsets")
        repeated = images[:1, 0].expand(len(corners), -1, -1, -1)
        fixture.compare(f"{at}/corner_output", random_crop(repeated, corners, padding), "exact")
    compare_prepared_batch(fixture)
    for size in sorted({name.split("/")[0] for name in fixture.below("resize")}):
        images = fixture.given(f"resize/{size}/input")
        height, width = fixture.recorded(f"resize/{size}/output").shape[1:3]
        resized = ResNet10((height, width)).resize(images)
        fixture.compare(f"resize/{size}/output", channels_last(resized), "feature")


def compare_prepared_batch(fixture: Fixture) -> None:
    """Our agents' preparation of a batch with several cameras; a trained trunk leaves the cropped images alone."""
    cameras = [name for name in fixture.below("batch/observations") if name != "offsets"]
    if not cameras:
        return
    parts = {"observations": "crop", "next_observations": "next_crop"}
    noise = {to: fixture.given(f"batch/{part}/offsets") for part, to in parts.items()}
    batch = {part: {key: fixture.given(f"batch/{part}/{key}") for key in cameras} for part in parts}
    size, _, *image_size, _ = batch["observations"][cameras[0]].shape
    encoder = make_encoder(cameras, 0, encoder="small", image_size=tuple(image_size))
    prepare = image_preparation(cameras, SACConfig(crop_padding=fixture.config["padding_in_training"]))
    rows = {"actions": torch.zeros(size, 1), "rewards": torch.zeros(size)}
    prepared = prepare(nn.ModuleDict({"encoder": encoder}), {**batch, **rows}, noise)
    for part in parts:
        for key in cameras:
            fixture.compare(f"batch_out/{part}/{key}", prepared[part][key], "exact")


def channels_last(images: Tensor) -> Tensor:
    """[N, C, H, W] -> [N, H, W, C]."""
    return images.permute(0, 2, 3, 1)
