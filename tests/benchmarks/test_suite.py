"""Cases, their instances, and how they are measured and played back."""

from __future__ import annotations

import time

import pytest

from benchmarks.interleaved import turns
from benchmarks.measure import CLOCK, LIMIT, Measurements, Outcome, clock_of, measure
from benchmarks.suite import REGISTRY, Run, Work, case, full, normal

QUICK = Run(scale="quick", rounds=6, seconds=0.001)


@pytest.fixture(autouse=True)
def _registry():
    before = dict(REGISTRY)
    yield
    REGISTRY.clear()
    REGISTRY.update(before)


def nothing():
    pass


def cases(**options):
    @case("replay", variants=("fast", "slow"), title="{n} of {kind}", **options)
    @pytest.mark.parametrize("kind", ["a", pytest.param("b", marks=normal)])
    @pytest.mark.parametrize("n", [1, pytest.param(4, marks=full, id="four")])
    def work_of(run, kind, n):
        return Work({"fast": nothing, "slow": nothing}, units=n, unit="rows")

    return work_of, {key: value for key, value in REGISTRY.items() if key.startswith("replay/work_of")}


class Benchmark:
    """What a test needs of pytest-benchmark's fixture."""

    def __init__(self):
        self.extra_info, self.group, self.seen = {}, None, []

    def pedantic(self, target, rounds=1):
        for _ in range(rounds):
            start = CLOCK()
            target()
            self.seen.append(CLOCK() - start)


def only_instance(builder, variants=("fast", "slow"), **options):
    case("replay", variants=variants, **options)(builder)
    return REGISTRY[f"replay/{builder.__name__}"]


def test_every_combination_is_an_instance():
    test, found = cases(scaling="n")
    assert list(found) == [
        "replay/work_of[1-a]",
        "replay/work_of[1-b]",
        "replay/work_of[four-a]",
        "replay/work_of[four-b]",
    ]
    assert [each.scale for each in found.values()] == ["quick", "normal", "full", "full"]
    last = found["replay/work_of[four-b]"]
    assert (last.title, last.parameters, last.baseline, last.scaling) == ("4 of b", {"n": 4, "kind": "b"}, "slow", "n")
    (mark,) = test.pytestmark
    assert [each.id for each in mark.args[1]][:3] == ["1-a-fast", "1-a-slow", "1-b-fast"]


@pytest.mark.parametrize(
    ("options", "said"),
    [({"baseline": "numpy"}, "baseline is 'numpy'"), ({"scaling": "capacity"}, "scaling is 'capacity'")],
)
def test_what_does_not_fit_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        cases(**options)


def test_parameters_and_arguments_agree():
    with pytest.raises(ValueError, match="takes"):

        @case("replay", variants=("a",))
        @pytest.mark.parametrize("n", [1])
        def other(run, m): ...


def test_limits_and_scales_are_known():
    with pytest.raises(ValueError, match="limit is 'speed'"):
        Work({}, limit="speed")
    with pytest.raises(ValueError, match="scale is 'huge'"):
        Run(scale="huge")


def test_scales_include_the_smaller_ones():
    assert [Run(scale="tiny").includes(each) for each in ("quick", "normal", "full")] == [True, False, False]
    assert [Run(scale="normal").includes(each) for each in ("quick", "normal", "full")] == [True, True, False]


def test_variants_that_were_not_built_are_missing():
    def builds_one(run):
        return Work({"fast": nothing})

    assert only_instance(builds_one).build(QUICK).missing == {"slow": "not offered on cpu"}

    def builds_another(run):
        return Work({"other": nothing})

    with pytest.raises(ValueError, match="other"):
        only_instance(builds_another).build(QUICK)


def test_turns_alternate():
    assert list(turns("ab", 3)) == ["a", "b", "b", "a", "a", "b"]


def test_rounds_are_paired_and_near_the_truth():
    outcome = Outcome.of(cases()[1]["replay/work_of[1-a]"])
    work = Work({"fast": lambda: time.sleep(1e-3), "slow": lambda: time.sleep(4e-3)}, limit=nothing)
    measure(work, Run(scale="quick", rounds=6, seconds=0.01), outcome)
    fast, slow, floor = (outcome.passes[name][0] for name in ("fast", "slow", LIMIT))
    assert len(fast) == len(slow) == len(floor) == 6
    assert 1e-3 <= min(fast) < min(slow)
    assert min(slow) >= 4e-3
    assert min(floor) < 1e-4


def test_long_calls_get_fewer_rounds_but_enough():
    outcome = Outcome.of(cases()[1]["replay/work_of[1-a]"])
    measure(Work({"slow": lambda: time.sleep(0.01)}), Run(scale="quick", rounds=50, seconds=1e-4), outcome)
    assert len(outcome.passes["slow"][0]) == 6


def test_a_variant_that_fails_is_missing_and_the_others_are_measured():
    def fail():
        raise RuntimeError("no\nsecond line")

    outcome = Outcome.of(cases()[1]["replay/work_of[1-a]"])
    measure(Work({"fast": fail, "slow": nothing}), QUICK, outcome)
    assert outcome.failed
    assert outcome.missing == {"fast": "failed: RuntimeError: no"}
    assert list(outcome.passes) == ["slow"]


def test_work_that_times_itself_is_asked():
    class Own:
        def seconds_per_call(self, seconds):
            return 7.0

    outcome = Outcome.of(cases()[1]["replay/work_of[1-a]"])
    measure(Work({"fast": Own()}), QUICK, outcome)
    assert outcome.passes["fast"] == [[7.0] * 6]


def test_the_first_variant_measures_and_all_play_back():
    built, closed = [], []

    def played(run):
        built.append(run)
        extra = {"fast": {"compile_s": 2.0}}
        return Work({"fast": nothing, "slow": nothing}, extra=extra, close=lambda: closed.append(1))

    kept = []
    measurements = Measurements(QUICK, kept.append)
    benchmarks = [Benchmark(), Benchmark()]
    instance = only_instance(played)
    for variant, benchmark in zip(instance.variants, benchmarks, strict=True):
        measurements.play(instance, variant, benchmark)
    (outcome,) = kept
    assert len(built) == len(closed) == 1
    for variant, benchmark in zip(instance.variants, benchmarks, strict=True):
        assert benchmark.seen == pytest.approx(outcome.passes[variant][0], rel=1e-3)
        assert benchmark.group == "replay/played"
    assert benchmarks[0].extra_info == {"compile_s": 2.0}


def test_device_s_calls_are_timed_between_events():
    assert clock_of("cpu") is not clock_of("cuda:0")
    assert clock_of("cpu")(nothing, 3) >= 0


def test_untimed_every_variant_runs_once():
    calls, closed = [], []

    def once(run):
        assert run.scale == "tiny"
        return Work(
            {"fast": lambda: calls.append("fast"), "slow": lambda: calls.append("slow")},
            close=lambda: closed.append(len(calls)),
        )

    kept = []
    measurements = Measurements(Run(), kept.append)
    instance = only_instance(once)
    measurements.play(instance, "fast", Benchmark())
    assert calls == ["fast"]
    measurements.play(instance, "slow", Benchmark())
    measurements.close()
    assert (calls, closed, kept) == (["fast", "slow"], [2], [])


def test_missing_is_a_skip_and_an_error_a_failure():
    def skips(run):
        return Work({"slow": nothing}, missing={"fast": "not installed"})

    def fails(run):
        raise RuntimeError("broken")

    kept = []
    measurements = Measurements(QUICK, kept.append)
    with pytest.raises(pytest.skip.Exception, match="not installed"):
        measurements.play(only_instance(skips), "fast", Benchmark())
    with pytest.raises(pytest.fail.Exception, match="broken"):
        measurements.play(only_instance(fails), "fast", Benchmark())
    assert [each.failed for each in kept] == [False, True]
