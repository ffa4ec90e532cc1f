"""The measured updates train what they say, and the products alone are theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from benchmarks.products import MatrixProducts
from benchmarks.products import _through_onednn as through
from benchmarks.workloads import CAMERAS, WORKLOADS
from serl_fast.agents.cached_features import pick


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_one_call_trains_every_network(name):
    workload = WORKLOADS[name].small()
    engine = workload.engine("eager")
    before = {key: value.clone() for key, value in engine.agent.networks.state_dict().items()}
    workload.call(engine)()
    after = engine.agent.networks.state_dict()
    assert engine.updates == workload.updates
    for network in engine.agent.trained_networks:
        keys = [key for key in before if key.startswith(f"{network}.")]
        assert any(not torch.equal(before[key], after[key]) for key in keys) or not list(
            engine.agent.networks[network].parameters()
        )
    assert all(bool(torch.isfinite(value).all()) for value in after.values())


@pytest.mark.parametrize(("name", "trained"), [("pixels", False), ("pixels_trained", True)])
def test_which_trunks_learn(name, trained):
    engine = WORKLOADS[name].small().engine("eager")
    assert engine.agent.networks["encoder"].frozen_trunk is not trained


def test_state_update_is_the_known_work():
    engine = WORKLOADS["state"].engine("eager")
    call = WORKLOADS["state"].call(engine)
    products = MatrixProducts()
    with products:
        call()
    assert products.flops == pytest.approx(0.609e9, rel=2e-3)


def test_changes_reach_the_agent():
    workload = replace(WORKLOADS["rlpd"], updates=1).changed(critic_ensemble_size=3).small()
    engine = workload.engine("eager")
    assert engine.agent.settings["config"]["critic_ensemble_size"] == 3
    assert engine.agent.settings["config"]["hidden_widths"] == (16, 16)
    assert WORKLOADS["rlpd"].engine("eager").agent.settings["config"]["critic_ensemble_size"] == 10


def test_onednn_computes_the_same_products(monkeypatch):
    functions = []
    monkeypatch.setattr("benchmarks.products._through_onednn", lambda *given: functions.append(given))
    workload = replace(WORKLOADS["state"], batch_size=2)
    with MatrixProducts():
        workload.call(workload.engine("eager"))()
    monkeypatch.undo()
    found = [(function(*args), through(function, args, kwargs)) for function, args, kwargs in functions]
    assert sum(products is not None for _, products in found) > 20
    for result, products in found:
        if products is not None:
            torch.testing.assert_close(torch.stack(products()).view_as(result), result, rtol=1e-4, atol=1e-5)


def test_cached_features_are_the_trunks():
    pixels, cached = WORKLOADS["pixels"].small(), WORKLOADS["pixels_cached"].small()
    images = pixels.batch()["observations"]
    features = pixels.engine("eager").agent.networks["encoder"].encode_trunk(images)
    stored = cached.batch()["observations"]
    chosen = {key: pick(stored[key], torch.zeros(2, dtype=torch.int64)) for key in CAMERAS}
    assert {key: features[key].shape for key in CAMERAS} == {key: value.shape for key, value in chosen.items()}
