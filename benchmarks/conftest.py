"""Fixtures of the cases: ``python -m benchmarks`` says what the run is, ``make test`` runs each case once, untimed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from benchmarks.measure import CLOCK, Measurements, Outcome
from benchmarks.plugin import NAME
from benchmarks.suite import Instance, Run


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Times are played back on a clock of ours; what the run or its scale leaves out is deselected."""
    plugin = config.pluginmanager.get_plugin(NAME)
    run = plugin.run if plugin is not None else _default_run(config)
    kept: list[pytest.Item] = []
    left: list[pytest.Item] = []
    for item in items:
        found = getattr(getattr(item, "callspec", None), "params", {}).get("instance")
        instance = found if isinstance(found, Instance) else None
        if instance is not None:
            item.add_marker(pytest.mark.benchmark(timer=CLOCK))
        wanted = plugin.wants(instance) if plugin else instance is None or run.includes(instance.scale)
        (kept if wanted else left).append(item)
    config.hook.pytest_deselected(items=left)
    items[:] = kept


@pytest.fixture(scope="session")
def run(request: pytest.FixtureRequest) -> Run:
    """What this run is: the plugin's; else the tiny scale, or the quick one with --benchmark-enable."""
    plugin = request.config.pluginmanager.get_plugin(NAME)
    return plugin.run if plugin is not None else _default_run(request.config)


@pytest.fixture(scope="session")
def measurements(request: pytest.FixtureRequest, run: Run) -> Iterator[Measurements]:
    plugin = request.config.pluginmanager.get_plugin(NAME)

    def keep(outcome: Outcome) -> None:
        if plugin is not None:
            plugin.keep(outcome)

    measured = Measurements(run, keep)
    yield measured
    measured.close()


def _default_run(config: pytest.Config) -> Run:
    timed = config.getoption("benchmark_enable") or not config.getoption("benchmark_disable")
    return Run(scale="quick" if timed else "tiny")
