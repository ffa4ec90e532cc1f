"""Tables and pictures of results that were made up."""

from __future__ import annotations

import pytest

from benchmarks import plots, report
from benchmarks.compare import compare, repetition
from benchmarks.measure import LIMIT, Outcome
from benchmarks.results import Results, new_folder, newest, ratio
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


def test_long_suites_are_several_pictures(tmp_path):
    pytest.importorskip("matplotlib")
    many = results(*(outcome(f"case{index}") for index in range(plots.MOST_BARS + 1)))
    assert [path.name for path in plots.draw(many, tmp_path)] == ["replay.svg", "replay_2.svg"]


def test_a_single_point_is_no_line():
    assert plots.scaling_groups([outcome(scaling="n", n=1)]) == {}
