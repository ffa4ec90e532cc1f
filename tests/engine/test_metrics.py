"""The ring of metrics, and tensors that are read without waiting."""

import pytest
import torch

from serl_fast.engine import Engine, EngineConfig
from serl_fast.engine.metrics import COLUMNS, ROWS, MetricsRing, Readback
from tests.tracing import trace_only

BATCH = {"actions": torch.zeros(4, 1)}


class Clock:
    """A device whose copies arrive when the test says so."""

    done = False

    @staticmethod
    def current_stream(device) -> str:
        return f"the stream of {device}"

    class Event:
        def record(self, stream) -> None:
            assert stream == "the stream of cpu"
            Clock.done = False

        def query(self) -> bool:
            return Clock.done

        def synchronize(self) -> None:
            Clock.done = True


def value(number: float) -> torch.Tensor:
    return torch.tensor(number)


def test_a_copy_is_there_once_and_not_before_it_arrived():
    readback = Readback(torch.ones(2), Clock)
    assert readback.arrived() is None
    readback.start()
    assert readback.arrived() is None
    Clock.done = True
    assert readback.arrived().tolist() == [1.0, 1.0]
    assert readback.arrived() is None
    readback.start()
    assert readback.arrived(wait=True) is not None


def test_an_interval_waits_on_the_device_and_not_on_the_host():
    ring = MetricsRing(torch.device("cpu"), Clock)
    for number in (1.0, 3.0):
        ring.write([value(number)])
        ring.note(["a"])
    ring.request(2)
    ring.write([value(7.0)])
    ring.note(["a"])
    assert ring.newest() is None
    Clock.done = True
    assert ring.newest() == (2, {"a": 2.0})
    assert ring.newest() is None
    ring.request(3)
    ring.request(4)  # an interval without updates; the one before is waited for
    assert ring.newest() == (3, {"a": 7.0})
    assert ring.newest(wait=True) == (4, {})


def test_of_a_long_interval_the_latest_count():
    ring = MetricsRing(torch.device("cpu"))
    for number in range(ROWS + 10):
        ring.write([value(float(number))])
        ring.note(["a"])
    ring.request(ROWS + 10)
    assert ring.newest().metrics["a"] == pytest.approx(10 + (ROWS - 1) / 2)


def test_too_many_metrics_are_refused():
    with pytest.raises(ValueError, match=rf"{COLUMNS + 1} metrics and at most {COLUMNS} fit"):
        MetricsRing(torch.device("cpu")).write([value(0.0)] * (COLUMNS + 1))


@pytest.mark.parametrize("execution", ["eager", "compiled"])
def test_means_of_an_interval_are_those_of_its_updates(quadratic, execution, monkeypatch):
    monkeypatch.setattr("serl_fast.engine.compiling.torch.compile", trace_only)
    engine = Engine(quadratic(), EngineConfig(execution, strict=True), seed=3)
    engine.warm_up(BATCH)
    seen: dict[str, list[float]] = {}
    for index in range(7):
        for name, metric in engine.update(BATCH, with_actor=index % 3 == 2).items():
            seen.setdefault(name, []).append(metric.item())
    assert len(seen["actor/loss"]) == 2
    engine.request_metrics()
    interval = engine.newest_metrics()
    assert interval.updates == 7
    assert interval.metrics == pytest.approx({name: sum(values) / len(values) for name, values in seen.items()})
    engine.update_block({"actions": torch.zeros(8, 1)}, 2)
    engine.request_metrics()
    interval = engine.newest_metrics()
    assert (interval.updates, set(interval.metrics)) == (9, set(seen))


def test_counts_are_the_last_and_not_the_mean(fragile):
    from tests.engine.test_guard import OVERFLOW, batch, half

    engine = half(fragile())
    engine.update(batch())
    engine.update(batch(critic=OVERFLOW))
    engine.request_metrics()
    metrics = engine.newest_metrics().metrics
    assert (metrics["engine/skipped_steps"], metrics["engine/loss_scale"]) == (1.0, 4.0)
