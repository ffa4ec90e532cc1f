"""This tree beside another revision: stand-ins for the children, and once for real (nightly)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import regression
from benchmarks.regression import Row, Side, compared, measure, own_variants, repeated, verdict
from benchmarks.regression_worker import Worker
from benchmarks.spread import speed_up
from benchmarks.suite import Instance, Run

RUN = Run(scale="quick", rounds=15, seconds=0.0)
VARIANTS = ("serl_fast", "appender", "numpy")
CASE = Instance("replay", "sample", {}, {}, VARIANTS, "numpy", "sample", None, "quick", lambda run: None)


class StandIn:
    """A child whose calls take ``seconds``, with noise; ``spells`` makes a whole child slow, by the number it is."""

    def __init__(self, name, seconds, built=None):
        self.name, self.seconds, self.broken, self.asked, self.closed = name, seconds, "", [], False
        self.built = {"variants": ["serl_fast", "appender"], "without": {}} if built is None else built
        self.random = np.random.default_rng(abs(hash(name)) % 1000)

    def send(self, do, **request):
        self.asked.append(do)

    def answer(self, limit=None):
        return self.built

    def ask(self, do, **request):
        self.asked.append(do)
        return {} if do == "free" else {"seconds": self.seconds * float(np.exp(self.random.normal(0, 0.03)))}

    def close(self):
        self.closed = True


class Quiet:
    def show(self, *said): ...


def rows_of(first, second, **built):
    return measure([StandIn("main", first), StandIn("this", second, **built)], CASE, RUN)


def test_a_slowdown_is_caught():
    rows = rows_of(1.0, 1.25)
    assert [row.variant for row in rows] == ["serl_fast", "appender"]
    assert all(row.lost for row in rows)


@pytest.mark.parametrize("factor", [1.0, 1.05, 0.5])
def test_equal_a_little_slower_and_faster_pass(factor):
    assert not any(row.lost for row in rows_of(1.0, factor))


def test_a_loss_within_the_noise_passes():
    random = np.random.default_rng(3)
    first, second = np.exp(random.normal(0, 1.0, 9)), 1.15 * np.exp(random.normal(0, 1.0, 9))
    assert not Row("case", "a", speed_up([list(second)], [list(first)])).lost


def test_a_case_that_can_not_be_built_is_a_row_that_says_so():
    (row,) = rows_of(1.0, 1.0, built={"missing": "no such module"})
    assert row.gain is None
    assert row.why == "this: no such module"
    assert row.broken
    first, second = rows_of(1.0, 1.0, built={"variants": ["serl_fast"], "without": {"appender": "not offered"}})
    assert first.gain is not None
    assert second.why == "this: not offered"
    assert second.broken
    assert verdict([first, second]) == (
        "0 of 2 variants lost more than 10%. 1 that the reference can do this tree can not.",
        True,
    )


@pytest.mark.parametrize(
    "gap", [{"missing": "no such module"}, {"variants": [], "without": dict.fromkeys(VARIANTS, "x")}]
)
def test_what_the_reference_lacks_is_no_fault_of_this_tree(gap):
    new = measure([StandIn("main", 1.0, gap), StandIn("this", 1.0)], CASE, RUN)
    neither = measure([StandIn("main", 1.0, gap), StandIn("this", 1.0, gap)], CASE, RUN)
    assert not any(row.broken for row in [*new, *neither])
    assert verdict([*new, *rows_of(1.0, 1.0)])[1] is False
    assert verdict(new) == (f"0 of {len(new)} variants lost more than 10%. Nothing could be compared.", True)


def test_a_variant_that_fails_in_this_tree_alone_is_broken():
    class Failing(StandIn):
        def ask(self, do, **request):
            return {} if do == "free" else {"missing": "failed: no"}

    assert all(row.broken for row in measure([StandIn("main", 1.0), Failing("this", 1.0)], CASE, RUN))
    assert not any(row.broken for row in measure([Failing("main", 1.0), StandIn("this", 1.0)], CASE, RUN))


def test_a_retest_that_fails_keeps_the_first_row():
    first = rows_of(1.0, 1.3)
    for second in ([Row(CASE.id, "all", why="this: its process ended")], first[1:]):
        kept = repeated(first, second)[0]
        assert kept.lost
        assert kept.gain == first[0].gain
        assert kept.why.startswith("could not be repeated")
        side = Side("main", "", Path(), Path())
        assert "**, could not be repeated" in regression.report([kept], side, side)
    assert repeated(first, [Row(CASE.id, "all", why="this: its process ended")])[0].why.endswith("its process ended")


def test_children_that_do_not_start_again_keep_the_first_rows(monkeypatch):
    started = []

    def child(side, run, folder):
        if len(started) == 2:
            raise ValueError("does not start")
        started.append(StandIn(side.name, {"main": 1.0, "this": 1.3}[side.name]))
        return started[-1]

    monkeypatch.setattr(regression, "child", child)
    monkeypatch.setattr(regression, "harness", Path)
    sides = tuple(Side(name, "", Path(), Path()) for name in ("main", "this"))
    rows = compared(sides, [CASE], RUN, Quiet())
    assert [row.why for row in rows] == ["could not be repeated: does not start"] * 2
    assert all(row.lost for row in rows)


def test_the_work_is_freed():
    child = StandIn("this", 1.0)
    measure([StandIn("main", 1.0), child], CASE, RUN)
    assert child.asked[-1] == "free"


def test_twins_are_not_measured():
    assert own_variants(CASE) == ["serl_fast", "appender"]


@pytest.mark.parametrize(("again", "lost"), [(1.0, False), (1.3, True)])
def test_a_loss_counts_if_fresh_children_find_it_again(monkeypatch, again, lost):
    speeds, started = {"main": [1.0, 1.0], "this": [1.3, again]}, []

    def child(side, run, folder):
        started.append(StandIn(side.name, speeds[side.name].pop(0)))
        return started[-1]

    monkeypatch.setattr(regression, "child", child)
    monkeypatch.setattr(regression, "harness", Path)
    sides = tuple(Side(name, "", Path(), Path()) for name in ("main", "this"))
    rows = compared(sides, [CASE], RUN, Quiet())
    assert len(started) == 4
    assert all(each.closed for each in started)
    assert [row.lost for row in rows] == [lost, lost]
    text = regression.report(rows, *sides)
    assert ("lost more than 10%" in text) == lost


def test_a_child_of_another_package_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(
        regression, "Child", lambda name, *rest: StandIn(name, 1.0, {"package": "/elsewhere/serl_fast"})
    )
    side = Side("main", "", Path("python"), tmp_path / "serl_fast")
    with pytest.raises(ValueError, match="was to import"):
        regression.child(side, RUN, tmp_path)


def test_an_unknown_revision_is_refused():
    with pytest.raises(ValueError, match="no revision"):
        regression.reference("no-such-branch")


def test_a_worker_builds_and_times_a_case_of_this_tree(tmp_path):
    worker = Worker("cpu", "tiny")
    assert worker.where()["package"].endswith("serl_fast")
    case = "replay/sample_into[256-states]"
    built = worker.build("benchmarks.bench_replay", case)
    assert "serl_fast" in built["variants"]
    assert 0 < worker.time("serl_fast", 0.001)["seconds"] < 60
    worker.free()


def test_the_harness_has_no_serl_fast(monkeypatch, tmp_path):
    monkeypatch.setattr(regression, "FOLDER", tmp_path)
    folder = regression.harness()
    assert [path.name for path in folder.iterdir()] == ["benchmarks"]


@pytest.mark.nightly
@pytest.mark.timeout(3000)
def test_a_sleep_in_the_sampler_is_caught_and_the_same_revision_passes(tmp_path):
    """A copy of this tree with its own history: unchanged it passes, with a sleep in the sampler it fails."""
    copy = tmp_path / "tree"
    ignored = shutil.ignore_patterns(".*", "build", "runs", "results", "__pycache__")
    shutil.copytree(regression.ROOT, copy, ignore=ignored)

    def do(*command, status=0):
        environment = os.environ | {"GIT_CONFIG_GLOBAL": os.devnull, "PYTHONPATH": ""}
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True, env=environment)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout

    do("git", "init", "--quiet", "--initial-branch", "main")
    do("git", "add", ".")
    do("git", "-c", "user.name=test", "-c", "user.email=test@example.com", "commit", "--quiet", "-m", "the tree")
    compare = [sys.executable, "-m", "benchmarks", "regression", "--ref", "main", "--suite", "replay"]
    compare += ["--only", "sample_into[256-states]"]
    assert "0 of 1 variants lost" in do(*compare)
    sampler = copy / "serl_fast" / "replay" / "sampler.py"
    text = sampler.read_text()
    call = "        if not self._try_sample(batch):\n"
    assert call in text
    sampler.write_text(text.replace(call, f"        __import__('time').sleep(20e-6)\n{call}"))
    assert "1 of 1 variants lost" in do(*compare, status=1)
