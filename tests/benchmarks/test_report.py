"""Tables and pictures of results that were made up."""

from __future__ import annotations

import json
import os
from dataclasses import replace

import pytest

from benchmarks import plots, report
from benchmarks.compare import compare, repetition
from benchmarks.measure import LIMIT, Outcome
from benchmarks.results import Results, is_floor, merged, new_folder, newest, prepared, ratio, shown_variant
from benchmarks.spread import Figure

MACHINE = {"CPU": "Made-up CPU", "cores": "4", "date": "2030-01-02", "commit": "0123456789ab"}


def outcome(name="sample", times=(1e-3, 2e-3), noise=0.0, limit="copy", scaling=None, **parameters):
    def rounds(seconds, phase):
        return [[seconds * (1 + noise * (-1) ** (index + phase)) for index in range(9)]]

    passes = {"serl_fast": rounds(times[0], 0), "numpy": rounds(times[1], 1)}
    if limit == LIMIT:
        passes[LIMIT] = rounds(times[0] / 4, 0)
    labels = "-".join(str(value) for value in parameters.values())
    return Outcome(
        f"replay/{name}[{labels}]", "replay", f"{name} {labels}", parameters, scaling, ["serl_fast", "numpy"], "numpy",
        "rows", 256.0, 5e5, 0.0, limit, passes,
    )  # fmt: skip


def results(*cases, **changes):
    limits = {"copy": {"name": "copy", "value": 1e9, "unit": "bytes", "how": "so"}}
    return Results(
        MACHINE, {"scale": "quick", "rounds": 9, "seconds": 0.1}, "command", limits, {}, list(cases), **changes
    )


def test_a_clear_winner_and_a_noisy_case():
    page = report.report(results(outcome(), outcome("draw", (1e-3, 1e-3), 0.2)))
    assert "| sample  | serl_fast | 1 ms [1, 1] | 256 k rows/s | **2 x** [2, 2] |" in page
    assert "50% (copy)" in page
    row = next(line for line in page.splitlines() if line.startswith("| draw"))
    assert "noisy" in row
    assert "**" not in row


def test_a_case_s_own_floor_is_a_row():
    rows = report.case_rows(results(), outcome(limit=LIMIT))
    assert [row[1] for row in rows] == ["serl_fast", "numpy", "limit"]
    assert [row[7] for row in rows] == ["25%", "12%", ""]


def test_empty_columns_are_left_out():
    header = report.suite_table(results(outcome()), "replay").splitlines()[0]
    assert "bytes" in header
    assert "FLOPs" not in header
    assert "capture" not in header


@pytest.mark.parametrize(
    ("value", "said"), [(1.234e-5, "12.3 us"), (2.0, "2 s"), (3e-10, "0.3 ns"), (0.5, "500 ms"), (90.0, "90 s")]
)
def test_times_have_three_digits(value, said):
    assert report.times(Figure(value, value, value)).startswith(said + " [")


@pytest.mark.parametrize(("value", "said"), [(999.9, "1 k"), (1.5e6, "1.5 M"), (12.0, "12 "), (2e12, "2 T")])
def test_quantities_have_prefixes(value, said):
    assert report.quantity(value) == said


def test_the_page_without_markers_is_refused():
    with pytest.raises(ValueError, match="benchmarks:begin"):
        report.replace_block("no markers", "block")


def test_unrest_widens_every_spread():
    calm, restless = results(outcome()), results(outcome())
    restless.yardsticks = {"copy": [0.9, 1.0, 1.1, 1.2, 0.8]}
    spread = [each.figures()["replay/sample[]", "serl_fast"] for each in (calm, restless)]
    assert spread[0].lower == spread[0].upper
    assert spread[1].lower < spread[1].median < spread[1].upper


def test_results_differ_where_their_spreads_do_not_meet():
    first, second = results(outcome()), results(outcome(times=(0.5e-3, 2e-3)))
    text = compare([first, second], ["old", "new"])
    rows = [line for line in text.splitlines() if line.startswith("| replay")]
    assert rows[0].endswith("| 2 x |")
    assert rows[1].endswith("| no difference |")
    assert "The same machine" in text


def test_repetition_names_what_did_not_repeat():
    text, repeated = repetition([results(outcome()), results(outcome()), results(outcome(times=(1.5e-3, 2e-3)))])
    assert not repeated
    assert "1 of 2 figures" in text
    assert "serl_fast" in text
    assert "numpy" not in text


def test_results_survive_the_disk(tmp_path):
    before = results(outcome(n=3), seconds=4.0, failures=["[1, 2]"])
    folder = new_folder(MACHINE, tmp_path)
    assert folder.name == "made-up-cpu-4-cores_2030-01-02"
    before.save(folder)
    assert Results.load(folder) == before
    assert newest(tmp_path) == folder
    assert new_folder(MACHINE, tmp_path).name.endswith("_2")


def test_a_second_pass_stands_beside_the_first():
    both = results(outcome())
    both.add_pass([outcome(times=(3e-3, 2e-3))])
    (case,) = both.cases
    assert len(case.passes["serl_fast"]) == 2
    assert ratio(case, "serl_fast").verdict == "noisy"
    assert ratio(case, "numpy") is None


def test_rounds_of_the_same_pass_stay_paired_where_a_variant_is_missing_in_one():
    first, second = outcome(), outcome(times=(4e-3, 8e-3))
    del first.passes["serl_fast"]
    first.missing["serl_fast"] = "failed: RuntimeError: once"
    both = results(first)
    both.add_pass([second])
    (case,) = both.cases
    assert case.passes["serl_fast"][0] == []
    assert ratio(case, "serl_fast").median == pytest.approx(2.0)  # 8 ms beside 4 ms, not 2 ms
    assert "not in every pass: failed: RuntimeError: once" in report.report(both)
    both.add_pass([replace(first)])
    assert [len(each) for each in both.cases[0].passes["serl_fast"]] == [0, 9, 0]
    assert [len(each) for each in both.cases[0].passes["numpy"]] == [9, 9, 9]
    assert first.passes["numpy"] == second.passes["numpy"] or len(first.passes["numpy"]) == 1  # not changed


def test_a_pass_that_measured_nothing_changes_nothing_but_the_reasons():
    first = outcome()
    broken = replace(
        outcome(), unit="calls", units=1.0, bytes=0.0, limit=None, passes={}, failed=True,
        missing={"serl_fast": "failed: no", "numpy": "failed: no"},
    )  # fmt: skip
    found = merged(first, broken)
    assert replace(found, missing={}, failed=False) == first
    assert found.failed
    assert found.missing == broken.missing
    assert merged(broken, first).units == 256.0


def test_further_figures_are_the_first_pass_s():
    first, second = outcome(), outcome()
    first.extra = {"serl_fast": {"p99_s": 1.0}}
    second.extra = {"serl_fast": {"p99_s": 2.0, "p50_s": 0.5}, "numpy": {"p99_s": 3.0}}
    assert merged(first, second).extra == {"serl_fast": {"p99_s": 1.0, "p50_s": 0.5}, "numpy": {"p99_s": 3.0}}


def peers(**extra):
    times = {"serl_fast, eager": 2e-3, "serl_fast, compiled": 1e-3, "matrix products alone, oneDNN": 1e-4,
             "other": 5e-4, "bound": 1e-5, "SB3": 4e-3}  # fmt: skip
    return Outcome(
        "peers/update[1]", "peers", "one update", {}, None, list(times), "SB3", "updates", 1.0, 0.0, 1e9, None,
        {name: [[seconds] * 9] for name, seconds in times.items()}, extra={"bound": {"floor": "why"}},
    )  # fmt: skip


def test_the_short_table_shows_ours_and_never_a_floor():
    case = peers()
    assert [name for name in case.variants if is_floor(case, name)] == ["matrix products alone, oneDNN", "bound"]
    assert shown_variant(case) == "serl_fast, compiled"
    block = report.readme_block(results(case), "folder", [])
    assert "| serl_fast, compiled | 1 k updates/s | SB3 | **4 x** [4, 4] |" in block
    rows = {row[1]: row[4] for row in report.case_rows(results(case), case)}
    assert rows["bound"] == rows["matrix products alone, oneDNN"] == "floor"
    executions = replace(outcome(), variants=["eager", "compiled"], baseline="eager",
                         passes={"eager": [[2.0] * 9], "compiled": [[1.0] * 9]})  # fmt: skip
    assert shown_variant(executions) == "compiled"


def test_floors_are_no_bars():
    assert plots._bars(peers()) == ["serl_fast, eager", "serl_fast, compiled", "other"]


def test_the_short_table_says_what_makes_it_doubtful():
    page = results(outcome(), failures=["bench.py::test\nTraceback"], interrupted=True)
    page.machine = MACHINE | {"caution": "the machine was not quiet"}
    block = report.readme_block(page, "folder", [])
    assert "**Caution**: the machine was not quiet." in block
    assert "**1 failed**: bench.py::test." in block
    assert "**Interrupted**" in block
    assert "**Interrupted**" in report.report(page)
    calm = report.readme_block(results(outcome()), "folder", [])
    assert not any(word in calm for word in ("Caution", "failed", "Interrupted"))


def test_the_newest_results_are_those_of_the_latest_date(tmp_path):
    for name, date, written in (("a", "2030-01-02", 3), ("b", "2030-02-01", 1), ("c", "2030-02-01", 2)):
        page = results()
        page.machine = MACHINE | {"date": date}
        os.utime(page.save(tmp_path / name), (written, written))
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "results.json").write_text("[")
    assert newest(tmp_path) == tmp_path / "c"


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", b'{"format": 1}', b'{"format": 1, "cases": [{"id": "x"}], "machine": {}}',
     b'{"format": 1, "cases": 3, "machine": {}}', b'{"format": 1, "cases": [], "machine": {}, "other": 1}', b"[1"],
)  # fmt: skip
def test_what_are_no_results_is_one_line_with_the_file(tmp_path, content):
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"results\.json") as error:
        Results.load(tmp_path)
    assert "\n" not in str(error.value)


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    results(outcome()).save(tmp_path)
    monkeypatch.setattr("pathlib.Path.replace", lambda self, target: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        results().save(tmp_path)
    assert len(json.loads((tmp_path / "results.json").read_text())["cases"]) == 1


def test_a_folder_that_can_not_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"no results can be written to .*--output DIR"):
        prepared(tmp_path / "file" / "below")
    assert prepared(tmp_path / "a" / "b").is_dir()


def test_without_yardsticks_the_unrest_is_not_measured():
    assert "unrest meanwhile: not measured" in report.report(results(outcome()))
    taken = results(outcome())
    taken.yardsticks = {"copy": [1.0, 1.0]}
    assert "unrest meanwhile: 0.0%" in report.report(taken)


@pytest.mark.parametrize(
    ("change", "said"),
    [({"units": 64.0}, "units 256 and 64"), ({"bytes": 1e3}, "bytes 5e+05 and 1000"), ({"flops": 2.0}, "flops 0 and 2"),
     ({"unit": "calls"}, "unit rows and calls"), ({"parameters": {"n": 2}}, "n None and 2")],
)  # fmt: skip
def test_other_work_has_no_ratio(change, said):
    first, second = results(outcome()), results(replace(outcome(times=(0.5e-3, 2e-3)), **change))
    rows = [line for line in compare([first, second], ["old", "new"]).splitlines() if line.startswith("| replay")]
    assert len(rows) == 2
    assert all(row.endswith(f"| other work: {said} |") for row in rows)
    assert "0 of 0 figures" in repetition([first, second])[0]
    assert not repetition([first, second])[1]


def test_runs_of_another_scale_have_no_ratio_and_their_flags_are_shown():
    first, second = results(outcome()), results(outcome(times=(0.5e-3, 2e-3)))
    second.run = first.run | {"scale": "full", "rounds": 15}
    text = compare([first, second], ["old", "new"])
    assert "| run: scale | quick | full |" in text
    assert "| run: rounds | 9 | 15 |" in text
    assert "other work: scale quick and full" in text
    assert "2 x |" not in text


def test_pictures_of_a_suite_and_of_scaling(tmp_path):
    pytest.importorskip("matplotlib")
    scaled = [outcome("grow", (1e-3 * n, 2e-3 * n), scaling="n", n=n, kind="wide") for n in (1, 10, 100)]
    page = results(outcome(), outcome("draw", (1e-3, 1e-3), 0.2), *scaled)
    written = plots.draw(page, tmp_path)
    assert [path.name for path in written] == ["replay.svg", "replay_grow_wide.svg"]
    bars, lines = (path.read_text() for path in written)
    assert "2.00 x" in bars
    assert "noisy" in bars
    assert "limit of the machine, copy" in lines
    assert plots.draw(page, tmp_path) == written
    assert written[0].read_text() == bars  # the same results draw the same file


def test_pictures_of_others_are_left_alone(tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "replay_mine.svg").write_text("<svg/>")
    plots.draw(results(outcome(), outcome("draw")), tmp_path)
    plots.draw(results(), tmp_path)
    assert [path.name for path in tmp_path.glob("*.svg")] == ["replay_mine.svg"]


def test_long_suites_are_several_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    many = results(*(outcome(f"case{index}") for index in range(plots.MOST_BARS + 1)))
    assert [path.name for path in plots.draw(many, tmp_path)] == ["replay.svg", "replay_2.svg"]


def test_a_single_point_is_no_line():
    assert plots.scaling_groups([outcome(scaling="n", n=1)]) == {}
