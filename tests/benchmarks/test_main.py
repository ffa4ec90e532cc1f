"""The command: from cases to a report, pictures and the README, and results side by side."""

from __future__ import annotations

import json
import sys

import pytest
from _pytest.terminal import TerminalReporter

from benchmarks import __main__ as command
from benchmarks import plugin as plugins
from benchmarks.limits import Limit
from benchmarks.measure import Outcome
from benchmarks.plugin import Lines, Plugin, Selection, duration, run_pass
from benchmarks.report import BEGIN, END
from benchmarks.results import Results
from benchmarks.suite import REGISTRY, Run

CASES = """
import time
import pytest
from benchmarks.suite import Run, Work, case, full

def spin(seconds):
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass

@case("replay", variants=("ours", "gone", "numpy"), title="spin {n} times", scaling="n")
@pytest.mark.parametrize("n", [1, 4, pytest.param(16, marks=full)])
def spins(run, n):
    functions = {"ours": lambda: spin(n * 5e-5), "numpy": lambda: spin(n * 2e-4)}
    return Work(functions, n, "spins", bytes=1e3 * n, limit="copy", missing={"gone": "not | installed"},
                extra={"ours": {"compile_s": 1.5, "peak_bytes": 2e6, "note": "spun"}})

@case("act", variants=("eager", "compiled"), baseline="eager", title="spin beside eager")
def acts(run):
    return Work({"eager": lambda: spin(2e-4), "compiled": lambda: spin(5e-5)}, limit=lambda: spin(2.5e-5))

@case("update", variants=("eager",))
def breaks(run):
    raise RuntimeError("does not build")

def test_no_case():
    raise AssertionError("ordinary tests do not run here")
"""
CONFTEST = "from benchmarks.conftest import measurements, pytest_collection_modifyitems, run\n"


@pytest.fixture
def bench(tmp_path, monkeypatch):
    folder = tmp_path / "cases"
    folder.mkdir()
    (folder / "bench_tried.py").write_text(CASES)
    (folder / "conftest.py").write_text(CONFTEST)
    before = dict(REGISTRY)
    monkeypatch.setattr(command, "run_pass", lambda plugin: run_pass(plugin, folder))
    monkeypatch.setattr(command, "measured", lambda device, quick: [Limit("copy", 1e9, "bytes", "said so")])
    monkeypatch.setattr(command, "busy_cores", lambda seconds: 0.0)
    yield folder
    REGISTRY.clear()
    REGISTRY.update(before)


def test_a_run_writes_everything(bench, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    out = tmp_path / "results"
    flags = ["--quick", "--device", "cpu", "--suite", "replay,act,update", "--output", str(out), "--passes", "2"]
    assert command.command([*flags, "--seconds", "0.002"]) == 1  # one case fails
    said = capsys.readouterr()
    assert "4 cases in" in said.out
    page = (out / "report.md").read_text()
    assert "## replay" in page
    assert "not \\| installed" in page
    assert "failed: RuntimeError: does not build" in page
    assert "in 2 passes" in page
    assert "not yet measured" in page.lower()
    found = Results.load(out)
    by_id = {each.id: each for each in found.cases}
    assert set(by_id) == {"replay/spins[1]", "replay/spins[4]", "act/acts", "update/breaks"}
    assert [len(rounds) in (6, 7) for rounds in by_id["replay/spins[1]"].passes["ours"]] == [True, True]
    assert by_id["update/breaks"].failed
    took = found.seconds_per_call(by_id["replay/spins[4]"], "ours").median  # 2e-4 on a quiet machine
    assert found.of_limit(by_id["replay/spins[4]"], "ours") == pytest.approx(4e3 / took / 1e9)
    assert {path.name for path in out.glob("*.svg")} == {"act.svg", "replay_spins.svg"}
    assert "<text" in (out / "act.svg").read_text()  # fonttype none

    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert command.command(["report", str(out), "--readme", "--page", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "spin beside eager" in text
    assert "results/act.svg" not in text  # the README shows three of them
    capsys.readouterr()

    assert command.command(["compare", str(out), str(out), str(out)]) == 0
    said = capsys.readouterr().out
    assert "no difference" in said
    assert "6 of 6 figures differ by less than the spread they print" in said


def test_without_matplotlib_the_tables_stand(bench, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    flags = ["--quick", "--device", "cpu", "--suite", "act", "--seconds", "0.0001", "--output", str(tmp_path / "out")]
    assert command.command(flags) == 0
    assert "pip install 'serl-fast[logging]'" in capsys.readouterr().out
    assert "spin beside eager" in (tmp_path / "out" / "report.md").read_text()


def test_scale_and_words_choose_the_cases(bench):
    ran = Plugin(Run(scale="full", rounds=6, seconds=1e-4), Selection(["replay"], "spin 16"))
    run_pass(ran, bench)
    assert list(ran.outcomes) == ["replay/spins[16]"]
    assert ran.failures == []


def test_a_file_that_can_not_be_imported_is_a_failure_and_the_rest_runs(bench):
    (bench / "bench_broken.py").write_text("import there_is_no_such_module\n")
    ran = Plugin(Run(scale="quick", rounds=6, seconds=1e-4), Selection(["act"]))
    run_pass(ran, bench)
    assert list(ran.outcomes) == ["act/acts"]
    assert "there_is_no_such_module" in ran.failures[0]


def test_progress_says_what_is_left(bench):
    class Shown:
        def __init__(self):
            self.said = []

        def show(self, *said):
            self.said.append(said)

    shown = Shown()
    run = Run(scale="quick", rounds=6, seconds=1e-4)
    run_pass(Plugin(run, Selection(["replay"]), {"replay/spins[1]": 8.0, "replay/spins[4]": 30.0}, shown), bench)
    assert shown.said == [(0, 2, "replay: spin 1 times", 38.0), (1, 2, "replay: spin 4 times", 30.0)]


def test_lines_come_now_and_then(capsys):
    lines = Lines(sys.stdout, every=1e9)
    lines.show(0, 2, "first", None)
    lines.show(1, 2, "second", 3.0)
    assert capsys.readouterr().out == "0 of 2, ? left: first\n"
    assert duration(80.4) == "1 min 20 s"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--suite", "speed"], "suites speed are not known"),
        (["--suite", "peers"], "--peers PYTHON"),
        (["--device", "tpu"], "device is 'tpu'"),
        (["--peers", "no-such-python", "--device", "cpu"], "can not be run"),
        (["compare", "only-one"], "two or more"),
        (["report", "nowhere"], "not there"),
        (["repeat", "--times", "1"], "--times is 1"),
        (["regression", "--rounds", "3"], "--rounds is 3"),
        (["regression", "--seconds", "0"], "--seconds is 0"),
        (["--rounds", "1"], "--rounds is 1"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--seconds", "0"], "--seconds is 0"),
        (["--seconds", "-1"], "--seconds is -1"),
        (["--passes", "0"], "--passes is 0"),
    ],
)
def test_bad_input_is_one_clear_error(argv, said, bench):
    with pytest.raises(ValueError, match=said):
        command.command(argv)


def test_a_case_is_kept_as_soon_as_it_is_done(bench, tmp_path, monkeypatch):
    out, seen = tmp_path / "out", []

    def one_pass(plugin):
        for instance in [each for each in REGISTRY.values() if each.suite == "act"][:2]:
            assert out.is_dir()
            plugin.failures.append("failed before")
            plugin.keep(Outcome.of(instance))
            seen.append(Results.load(out))
        if len(seen) > 2:
            raise SystemExit("killed")

    run_pass(Plugin(Run(scale="quick", rounds=6, seconds=1e-4), Selection(["act"])), bench)  # enters the cases
    import benchmarks.bench_act  # noqa: F401

    monkeypatch.setattr(command, "run_pass", one_pass)
    with pytest.raises(SystemExit):
        command.command(["--device", "cpu", "--suite", "act", "--passes", "2", "--output", str(out)])
    assert [len(each.cases) for each in seen] == [1, 2, 2, 2]
    assert len(seen[-1].failures) == 4
    assert all(each.interrupted for each in seen)  # nothing else says so where the process ends
    assert Results.load(out).cases == seen[-1].cases


def test_ctrl_c_ends_all_passes_and_keeps_what_was_measured(bench, tmp_path, capsys):
    ending = "\n@case('update', variants=('eager',))\ndef a_stopped(run):\n    raise KeyboardInterrupt\n"
    (bench / "bench_tried.py").write_text(CASES.replace("raise RuntimeError", "raise KeyboardInterrupt") + ending)
    flags = ["--quick", "--device", "cpu", "--suite", "act,update", "--seconds", "0.0001"]
    out = tmp_path / "out"
    assert command.command([*flags, "--passes", "3", "--output", str(out)]) == 130
    found = Results.load(out)
    assert found.interrupted
    assert [len(case.passes["eager"]) for case in found.cases] == [1]
    assert "**Interrupted**" in (out / "report.md").read_text()
    assert command.command(["repeat", *flags, "--times", "3", "--output", str(tmp_path / "several")]) == 130
    assert [path.name for path in (tmp_path / "several").iterdir()] == ["1"]
    capsys.readouterr()


def test_ctrl_c_at_a_place_without_a_line_is_one_all_the_same(bench, monkeypatch):
    def fails(self, excinfo):
        raise TypeError("unsupported operand type(s) for -: 'NoneType' and 'int'")

    (bench / "bench_tried.py").write_text(CASES.replace("raise RuntimeError", "raise KeyboardInterrupt"))
    monkeypatch.setattr(TerminalReporter, "pytest_keyboard_interrupt", fails)
    ran = Plugin(Run(scale="quick", rounds=6, seconds=1e-4), Selection(["act", "update"]))
    run_pass(ran, bench)
    assert ran.interrupted
    assert list(ran.outcomes) == ["act/acts"]


def test_ctrl_c_between_cases_has_the_same_status(monkeypatch, capsys):
    def stopped(argv):
        raise KeyboardInterrupt

    monkeypatch.setitem(command.COMMANDS, "compare", stopped)
    assert command.command(["compare"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_ctrl_c_on_one_device_leaves_the_next(bench, tmp_path, monkeypatch):
    began = []

    def stopped(device, quick):
        began.append(device)
        raise KeyboardInterrupt

    monkeypatch.setattr(command, "measured", stopped)
    monkeypatch.setattr(command, "devices", lambda asked: ["cpu", "cpu"])
    assert command.command(["--suite", "act", "--output", str(tmp_path / "out")]) == 130
    assert began == ["cpu"]


def test_a_folder_that_can_not_be_written_ends_it_before_anything_is_measured(bench, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "measured", lambda device, quick: pytest.fail("measured"))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="no results can be written"):
        command.command(["--device", "cpu", "--suite", "act", "--output", str(tmp_path / "file")])


def test_a_run_without_cases_leaves_no_folder(bench, tmp_path):
    for more in ([], ["repeat"]):
        with pytest.raises(ValueError, match="no case fits"):
            command.command([*more, "--device", "cpu", "--only", "no such", "--output", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


def test_without_pytest_benchmark_nothing_runs(monkeypatch):
    monkeypatch.setattr(command.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(command, "measure", lambda *given: pytest.fail("measured"))
    with pytest.raises(ValueError, match="pip install pytest-benchmark"):
        command.command(["--device", "cpu"])


def test_results_of_another_format_are_refused(tmp_path):
    (tmp_path / "results.json").write_text(json.dumps({"format": 0}))
    with pytest.raises(ValueError, match="format"):
        Results.load(tmp_path)


def test_plugin_name_is_the_one_that_the_fixtures_ask_for():
    from benchmarks import conftest

    assert conftest.NAME == plugins.NAME
