"""One call of the learner, compiled beside eager: pytest benchmarks/bench_update.py --benchmark-only.

Compiling and warming up happen before the clock starts. ``python -m benchmarks.update`` measures both interleaved.
"""

import pytest

from benchmarks.workloads import WORKLOADS

WARM_UP = 5


@pytest.mark.parametrize("execution", ["eager", "compiled"])
@pytest.mark.parametrize("name", list(WORKLOADS))
def test_update(benchmark, name, execution):
    benchmark.group = f"update-{name}"
    workload = WORKLOADS[name]
    call = workload.call(workload.engine(execution))
    for _ in range(WARM_UP if benchmark.enabled else 0):
        call()
    benchmark(call)
