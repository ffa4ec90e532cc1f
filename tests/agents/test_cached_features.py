"""Updates from cached features are those from pixels under the crops that were cached."""

import numpy as np
import pytest
import torch

from serl_fast.agents.cached_features import encode_images, with_cached_features
from serl_fast.agents.hybrid_sac import hybrid_sac
from serl_fast.agents.sac import SACConfig, sac
from serl_fast.data.feature_cache import CropEncoder
from serl_fast.engine import Engine, EngineConfig
from tests.agents.test_products import STATE
from tests.equivalence.agents import CAMERAS, SIDE, FrozenTrunk

SIZE, CROPS = 6, 3
CONFIG = SACConfig(hidden_widths=(32, 32))


def build():
    torch.manual_seed(0)
    return hybrid_sac(STATE, 1, CAMERAS, CONFIG, trunk=FrozenTrunk())


def pixels():
    generator = np.random.default_rng(0)

    def observe():
        images = {key: generator.integers(256, size=(SIZE, SIDE, SIDE, 3), dtype=np.uint8) for key in CAMERAS}
        return {"state": generator.normal(size=(SIZE, STATE)).astype(np.float32), **images}

    return {
        "observations": observe(),
        "next_observations": observe(),
        "actions": generator.uniform(-1, 1, (SIZE, 7)).astype(np.float32),
        "rewards": generator.normal(size=SIZE).astype(np.float32),
        "discounts": np.full(SIZE, 0.97, np.float32),
        "grasp_penalty": np.zeros(SIZE, np.float32),
    }


def tensors(tree):
    return {k: tensors(v) if isinstance(v, dict) else torch.from_numpy(v) for k, v in tree.items()}


def cached(batch, agent, precision):
    """The batch with features, and the offsets of its crops, int64 [B, K, 2], by part."""
    shapes = {key: (SIDE, SIDE, 3) for key in CAMERAS}
    encoder = CropEncoder(
        lambda images: encode_images(agent.networks, images), shapes, CROPS, precision=precision, seed=3
    )
    batch, drawn, draw = dict(batch), {}, encoder.draw_offsets
    for part in ("observations", "next_observations"):
        frames = [{key: batch[part][key][row] for key in CAMERAS} for row in range(SIZE)]
        offsets = []
        encoder.draw_offsets = lambda count, found=offsets: found.append(draw(count)) or found[-1]
        batch[part] = {**batch[part], **encoder(frames)}
        drawn[part] = torch.from_numpy(np.concatenate(offsets))
    return batch, drawn


def noise_of(agent):
    return agent.draw_noise(torch.Generator().manual_seed(2), SIZE, torch.device("cpu"))


@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-6), ("float16", 1e-3)])
def test_an_update_from_features_is_the_update_from_pixels(precision, tolerance):
    from_pixels, reads_features = build(), with_cached_features(build(), CROPS)
    batch, offsets = cached(pixels(), reads_features, precision)
    noise = noise_of(reads_features)
    rows = torch.arange(SIZE)
    crops = {
        "crop": offsets["observations"][rows, noise["crop_choice"]],
        "next_crop": offsets["next_observations"][rows, noise["next_crop_choice"]],
    }
    assert len(set(noise["crop_choice"].tolist())) > 1
    assert not torch.equal(noise["crop_choice"], noise["next_crop_choice"])
    live = from_pixels.prepare(from_pixels.networks, tensors(pixels()), noise | crops)
    read = reads_features.prepare(reads_features.networks, tensors(batch), noise)
    for part in ("observations", "next_observations"):
        for key in CAMERAS:
            assert read[part][key].dtype == torch.float32
            torch.testing.assert_close(read[part][key], live[part][key], rtol=tolerance, atol=1e-6)
    losses = [
        {o.name: o.loss(agent.networks, prepared, noise).value.item() for o in agent.objectives}
        for agent, prepared in ((from_pixels, live), (reads_features, read))
    ]
    assert losses[1] == pytest.approx(losses[0], rel=10 * tolerance)


def test_the_trunk_is_not_run_and_the_step_is_one_graph():
    agent = build()
    batch, _ = cached(pixels(), agent, "float16")
    calls = []
    agent.networks["encoder"].trunk.register_forward_hook(lambda *_: calls.append(1))
    engine = Engine(with_cached_features(agent, CROPS), EngineConfig("eager"), seed=1)
    metrics = engine.update(tensors(batch))
    assert not calls
    assert all(torch.isfinite(value) for value in metrics.values())
    assert engine.agent.settings == agent.settings  # a checkpoint and a policy are those of the agent itself


@pytest.mark.slow
def test_compiled_it_is_the_same():
    results = []
    for execution in ("eager", "compiled"):
        agent = build()
        batch, _ = cached(pixels(), agent, "float16")
        engine = Engine(with_cached_features(agent, CROPS), EngineConfig(execution, strict=True), seed=1)
        results.append({name: value.item() for name, value in engine.update(tensors(batch)).items()})
    assert results[1] == pytest.approx(results[0], rel=1e-4, abs=1e-6)


def test_an_agent_without_frozen_trunk_is_refused():
    with pytest.raises(ValueError, match=r"needs a frozen trunk.*choose --encoder resnet-pretrained"):
        with_cached_features(sac(STATE, 7, CAMERAS, SACConfig(encoder="small", image_size=(32, 32))), 1)
    with pytest.raises(ValueError, match="no cameras; give --image_keys"):
        with_cached_features(sac(STATE, 7), 1)
