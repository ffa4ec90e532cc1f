"""A process that ends, hangs or lacks its packages is a reason, at once or in time, and not a hang."""

from __future__ import annotations

import os
import sys
import time

import pytest

from benchmarks.children import Asked, Child, Unsupported, built_children, calls_per_second, interpreter, serve
from benchmarks.measure import Outcome, measure
from benchmarks.suite import Run, Work

ME = "tests.benchmarks.test_children"


class Worker:
    """What the process of a test does."""

    def build(self, what):
        if what == "import":
            import surely_not_installed  # noqa: F401
        if what == "end":
            os._exit(3)
        if what == "unsupported":
            raise Unsupported("does not offer it")
        self.what, self.asked = what, 0
        return {"pid": os.getpid()}

    def rate(self, seconds):
        self.asked += 1
        if self.asked > 2 and self.what == "end later":
            print("the last words", file=sys.stderr)
            os._exit(3)
        if self.asked > 2 and self.what == "hang later":
            time.sleep(600)
        if self.asked > 2 and self.what == "raise later":
            raise ValueError("this round")
        return {"rate": 100.0}


@pytest.fixture
def started():
    children = []

    def start(name, **options):
        environment = {"PYTHONPATH": os.pathsep.join(sys.path)}
        children.append(Child(name, ME, [], environment=environment, **options))
        return children[-1]

    yield start
    for child in children:
        if not child.errors.closed:
            child.close()


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("import", "not installed (No module named 'surely_not_installed')"),
        ("end", "its process ended ()"),
        ("unsupported", "does not offer it"),
    ],
)
def test_who_cannot_be_built_is_a_reason(started, what, said):
    alive, why = built_children([started("it")], 60.0, what=what)
    assert (alive, why) == ([], {"it": said})


def test_a_process_that_fails_while_it_is_measured_is_a_row(started):
    names = ("well", "end later", "hang later", "raise later")
    children = {name: started(name, limit=60.0) for name in names}
    for name, child in children.items():
        assert "pid" in child.ask("build", what=name)
    children["hang later"].limit = 2.0
    work = Work({name: Asked(child, {}, units=5.0) for name, child in children.items()})
    outcome = Outcome("a/case", "a", "", {}, None, list(names), "well")
    start = time.perf_counter()
    measure(work, Run("cpu", "quick", rounds=5, seconds=0.0), outcome)
    assert time.perf_counter() - start < 120.0
    assert outcome.passes == {"well": [[0.05] * 5]}
    assert "its process ended (the last words)" in outcome.missing["end later"]
    assert "no answer within 2 s" in outcome.missing["hang later"]
    assert "its code raised ValueError: this round" in outcome.missing["raise later"]
    for name in ("end later", "hang later"):
        assert children[name].process.wait(60) != 0
        children[name].limit = 300.0
        start = time.perf_counter()
        assert children[name].ask("rate", seconds=0.0) == {"missing": children[name].broken}
        assert time.perf_counter() - start < 60.0


def test_the_interpreter_is_the_first_that_has_the_modules():
    assert interpreter(["json", "numpy"], [sys.executable]) == sys.executable
    assert interpreter(["surely_not_installed"], [sys.executable]) is None
    with pytest.raises(ValueError, match="cannot be run"):
        interpreter(["json"], ["/nowhere/python"])
    with pytest.raises(ValueError, match="failed"):
        interpreter(["json"], ["/bin/false"])


def test_a_rate_counts_at_least_one_call():
    calls = []
    assert calls_per_second(lambda: calls.append(1), 0.0) > 0
    assert len(calls) == 1


if __name__ == "__main__":
    from benchmarks.children import answers_alone

    serve(Worker(), answers_alone())
