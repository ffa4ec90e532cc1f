"""The measured updates run, and the page says what was and what was not measured."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from benchmarks.interleaved import Rate
from benchmarks.products import MatrixProducts
from benchmarks.products import _through_onednn as through
from benchmarks.update import LIMIT, ONEDNN, UpdateBenchmarkConfig, measure, report
from benchmarks.workloads import CAMERAS, WORKLOADS
from serl_fast.agents.cached_features import pick


def small(name):
    workload = WORKLOADS[name]
    return replace(workload, batch_size=2, updates=min(workload.updates, 2))


@pytest.mark.parametrize("name", list(WORKLOADS))
def test_one_call_trains_every_network(name):
    workload = small(name)
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


def test_state_update_is_the_known_work():
    engine = WORKLOADS["state"].engine("eager")
    call = WORKLOADS["state"].call(engine)
    products = MatrixProducts()
    with products:
        call()
    assert products.flops == pytest.approx(0.609e9, rel=2e-3)


def test_onednn_computes_the_same_products(monkeypatch):
    functions = []
    monkeypatch.setattr("benchmarks.products._through_onednn", lambda *given: functions.append(given))
    with MatrixProducts():
        small("state").call(small("state").engine("eager"))()
    monkeypatch.undo()
    found = [(function(*args), through(function, args, kwargs)) for function, args, kwargs in functions]
    assert sum(products is not None for _, products in found) > 20
    for result, products in found:
        if products is not None:
            torch.testing.assert_close(torch.stack(products()).view_as(result), result, rtol=1e-4, atol=1e-5)


def test_cached_features_are_the_trunks():
    pixels, cached = small("pixels"), small("pixels_cached")
    images = pixels.batch()["observations"]
    features = pixels.engine("eager").agent.networks["encoder"].encode_trunk(images)
    stored = cached.batch()["observations"]
    chosen = {key: pick(stored[key], torch.zeros(2, dtype=torch.int64)) for key in CAMERAS}
    assert {key: features[key].shape for key in CAMERAS} == {key: value.shape for key, value in chosen.items()}


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setitem(WORKLOADS, "state", small("state"))
    return UpdateBenchmarkConfig(workloads=("state",), threads=(1,), executions=("eager",), rounds=2, seconds=0.01)


def test_page(quick, tmp_path):
    config = replace(quick, output=tmp_path / "page.md")
    text = report(config, "command")
    assert (tmp_path / "page.md").read_text() == text + "\n"
    assert "Not yet run on a GPU" in text
    assert "| 1 | float32 | eager |" in text
    rows = json.loads((tmp_path / "page.json").read_text())["rows"]
    assert [row[3] if isinstance(row, list) else row["execution"] for row in rows] == ["eager", LIMIT, ONEDNN]


def test_what_cannot_run_is_a_line_without_a_number(quick):
    rows = measure(WORKLOADS["state"], 1, "tf32", quick)
    assert [row.execution for row in rows] == ["eager"]
    assert rows[0].rate is None
    assert "CUDA" in rows[0].missing


def test_rates_of_a_block_count_gradient_steps(quick, monkeypatch):
    blocks = Rate(10.0, 9.0, 11.0)
    monkeypatch.setattr("benchmarks.update.interleaved", lambda functions, *_: dict.fromkeys(functions, blocks))
    rows = measure(small("rlpd"), 1, "float32", quick)
    assert rows[0].rate == Rate(20.0, 18.0, 22.0)


@pytest.mark.parametrize("field", ["workloads", "executions", "precisions"])
def test_unknown_choices_are_refused(field):
    with pytest.raises(ValueError, match=field):
        UpdateBenchmarkConfig(**{field: ("nonsense",)})
