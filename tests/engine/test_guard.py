"""What is not finite is not taken: float16's loss scale, and failures that end a run."""

import copy
import dataclasses
import math

import pytest
import torch

from serl_fast.engine import Engine, EngineConfig, NonFiniteLossError
from serl_fast.engine.guard import GROWTH_INTERVAL, INITIAL_SCALE, LARGEST_SCALE

GOOD = {"critic": torch.full((4,), 0.1), "actor": torch.full((4,), 0.1), "slope": torch.ones(4)}
OVERFLOW = 60000.0  # finite in float16; times a scale of 65536 it is not
EXECUTIONS = ["eager", "compiled"]


def batch(**changes: float) -> dict[str, torch.Tensor]:
    return GOOD | {name: torch.full((4,), value) for name, value in changes.items()}


def state_of(engine: Engine) -> dict[str, torch.Tensor]:
    """Everything that an update changes but the loss scale: networks, moments, counts."""
    state = copy.deepcopy(engine.state_dict())
    moments = {name: dict(enumerate(map(torch.Tensor.clone, tensors))) for name, tensors in state["adam"].items()}
    return {
        **{f"networks/{name}": value for name, value in state["networks"].items()},
        **{f"adam/{name}/{i}": value for name, tensors in moments.items() for i, value in tensors.items()},
    }


def changed(engine: Engine, before: dict[str, torch.Tensor]) -> set[str]:
    """First two parts of the names whose bits changed."""
    after = state_of(engine)
    names = [n for n, t in before.items() if not torch.equal(t.view(torch.int32), after[n].view(torch.int32))]
    return {"/".join(name.replace(".", "/").split("/")[:2]) for name in names}


def half(agent, execution: str = "eager", scale: float = 8.0) -> Engine:
    engine = Engine(agent, EngineConfig(execution, "float16", strict=True), seed=3)
    state = engine.state_dict()
    state["loss_scaling"]["loss_scale"].fill_(scale)
    engine.load_state_dict(state)
    return engine


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_an_overflow_changes_nothing_halves_the_scale_and_is_counted(fragile, execution):
    engine = half(fragile(), execution)
    for _ in range(3):
        metrics = engine.update(batch())
    assert metrics["engine/skipped_steps"] == 0
    before = state_of(engine)
    metrics = engine.update(batch(critic=OVERFLOW))
    assert changed(engine, before) == set()
    assert metrics["critic/loss"].isfinite()
    assert (metrics["engine/skipped_steps"], metrics["engine/loss_scale"]) == (1, 4.0)
    engine.update(batch())
    assert changed(engine, before) == {
        "networks/critic", "networks/actor", "networks/target", "adam/critic", "adam/actor",
    }  # fmt: skip
    assert engine.updates == 5


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_an_overflow_of_the_actor_leaves_the_actor_and_the_targets(fragile, execution):
    engine = half(fragile(), execution)
    for _ in range(3):
        engine.update(batch())
    before = state_of(engine)
    metrics = engine.update(batch(actor=OVERFLOW))
    assert changed(engine, before) == {"networks/critic", "adam/critic"}
    assert (metrics["engine/skipped_steps"], metrics["engine/loss_scale"]) == (1, 4.0)


def test_one_overflow_takes_nothing_where_all_objectives_step_together(fragile):
    engine = half(fragile("objectives"), scale=64.0)
    engine.update(batch())
    before = state_of(engine)
    for changes in ({"actor": OVERFLOW}, {"critic": OVERFLOW}):
        engine.update(batch(**changes))
        assert changed(engine, before) == set()


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_the_scale_doubles_after_2000_good_steps_and_goes_with_the_checkpoint(fragile, execution):
    engine = half(fragile(), execution)
    engine.update(batch(critic=OVERFLOW))
    state = copy.deepcopy(engine.state_dict())
    assert {name: value.item() for name, value in state["loss_scaling"].items()} == {
        "loss_scale": 4.0, "good_steps": 0.0, "skipped_steps": 1.0,
    }  # fmt: skip
    state["loss_scaling"]["good_steps"].fill_(GROWTH_INTERVAL - 2)
    other = half(fragile(), execution)
    other.load_state_dict(state)
    scales = [other.update(batch())["engine/loss_scale"].item() for _ in range(3)]
    assert scales == [4.0, 8.0, 8.0]
    assert other.state_dict()["loss_scaling"]["good_steps"] == 1
    assert other.state_dict()["loss_scaling"]["skipped_steps"] == 1


def test_an_overflow_starts_the_count_of_good_steps_again(fragile):
    engine = half(fragile())
    for changes in ({}, {}, {"critic": OVERFLOW}, {}):
        engine.update(batch(**changes))
    assert engine.state_dict()["loss_scaling"]["good_steps"] == 1


def test_the_scale_starts_at_65536_finds_its_place_and_stays_finite(fragile):
    engine = Engine(fragile(), EngineConfig(precision="float16"), seed=3)
    assert engine.state_dict()["loss_scaling"]["loss_scale"] == INITIAL_SCALE
    scales = [engine.update(batch())["engine/loss_scale"].item() for _ in range(4)]
    assert scales[-1] == scales[-2] <= INITIAL_SCALE
    state = engine.state_dict()
    state["loss_scaling"]["good_steps"].fill_(GROWTH_INTERVAL - 1)
    state["loss_scaling"]["loss_scale"].fill_(LARGEST_SCALE)
    engine.load_state_dict(state)
    zeros = {name: 0 * value for name, value in GOOD.items()} | {"slope": GOOD["slope"]}
    assert engine.update(zeros)["engine/loss_scale"] <= LARGEST_SCALE


def test_the_scale_changes_nothing_but_rounding(fragile):
    small, large = half(fragile(), scale=2.0), half(fragile(), scale=2.0**9)
    for engine in (small, large):
        for _ in range(20):
            engine.update(batch())
    for a, b in zip(small.agent.networks.parameters(), large.agent.networks.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_checkpoint_of_another_precision_loads(fragile):
    full, rough = Engine(fragile(), seed=1), half(fragile(), scale=16.0)
    assert full.state_dict()["loss_scaling"] == {}
    rough.load_state_dict(full.state_dict())
    assert rough.state_dict()["loss_scaling"]["loss_scale"] == 16.0
    full.load_state_dict(rough.state_dict())
    old = {name: value for name, value in full.state_dict().items() if name not in ("loss_scaling", "learning_rates")}
    rough.load_state_dict(old)


@pytest.mark.parametrize("execution", EXECUTIONS)
@pytest.mark.parametrize("interval", [1, 4])
def test_a_loss_that_is_not_finite_is_raised_with_what_it_saw(fragile, execution, interval, tmp_path):
    engine = Engine(fragile(), EngineConfig(execution, strict=True, check_interval=interval), seed=3)
    for index in range(4):
        engine.update(batch(), with_actor=index % 2 == 1)
    before = state_of(engine)
    bad = batch(critic=math.nan)

    def train_on() -> None:
        engine.update(bad, with_actor=True)
        for name in bad:
            bad[name] = torch.zeros(4)  # the reader reuses its memory
        for _ in range(3):
            engine.update(batch(), with_actor=False)

    with pytest.raises(NonFiniteLossError, match=r"critic/loss is nan at update 5, which was not taken") as caught:
        train_on()
    assert changed(engine, before) == set()
    assert engine.updates == 4

    path = tmp_path / "inspection.pth"
    torch.save(caught.value.inspection, path)
    content = torch.load(path, weights_only=True)
    assert (content["updates"], content["with_actor"]) == (4, True)
    assert content["agent"] == {"algorithm": "fragile", "sizes": [3, 2]}
    assert content["batch"]["critic"].isnan().all()
    assert math.isnan(content["outcomes"]["critic"][0])
    # The same failure again, from the file alone.
    again = Engine(dataclasses.replace(fragile(), draw_noise=lambda *_: content["noise"]))
    again.load_state_dict(content["engine"])
    with pytest.raises(NonFiniteLossError, match="critic/loss is nan at update 5"):
        again.update(content["batch"], with_actor=content["with_actor"])

    engine.update(batch())  # a caller who catches it may go on
    assert "networks/critic" in changed(engine, before)
    for _ in range(4):
        engine.update(batch())


def test_the_kept_batch_is_the_failed_one_and_not_a_later_one(fragile):
    engine = Engine(fragile(), EngineConfig(check_interval=3), seed=3)
    engine.update(batch())
    engine.update(batch(critic=math.inf, slope=2.0))
    with pytest.raises(NonFiniteLossError, match="at update 2,") as caught:
        engine.update(batch(critic=math.nan, slope=3.0))
    assert caught.value.inspection["batch"]["slope"].tolist() == [2.0] * 4


def test_the_actor_is_named_where_only_its_loss_is_not_finite(fragile):
    engine = Engine(fragile(), seed=3)
    engine.update(batch())
    before = state_of(engine)
    with pytest.raises(NonFiniteLossError, match=r"actor/loss is (nan|-?inf) at update 2"):
        engine.update(batch(actor=math.inf))
    # Its loss saw the critic after that update's step, and so does who looks at it.
    assert changed(engine, before) == {"networks/critic", "adam/critic"}


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_gradient_that_is_not_finite_is_no_matter_of_scale(fragile, precision):
    engine = Engine(fragile(), EngineConfig(precision=precision), seed=3)
    before = state_of(engine)

    def train() -> None:
        for _ in range(60):
            engine.update(batch(slope=0.0))  # sqrt(0)

    with pytest.raises(NonFiniteLossError, match=r"the gradient of critic has norm nan \(its loss is"):
        train()
    assert changed(engine, before) == set()


def test_float16_says_that_it_may_be_the_reason(fragile):
    engine = Engine(fragile(), EngineConfig(precision="float16"))
    with pytest.raises(NonFiniteLossError, match="choose bfloat16: float16 ends at 65504"):
        engine.update(batch(critic=1e6))


def test_warming_up_does_not_mind_what_zeros_give(fragile):
    engine = Engine(fragile(), EngineConfig("compiled", strict=True))
    engine.warm_up(batch(slope=0.0))
    engine.check()
    engine.update(batch())


def test_looking_is_refused_less_often_than_every_update():
    with pytest.raises(ValueError, match="check_interval is 0"):
        EngineConfig(check_interval=0)


def test_a_guarded_step_is_the_plain_one_to_the_bit(fragile):
    import contextlib

    from serl_fast.engine.step import StepOptions, build_step

    guarded, plain = Engine(fragile(), seed=3), Engine(fragile(), seed=3)
    options = StepOptions(contextlib.nullcontext())
    steps = [build_step(plain.agent, plain.adam, options, with_actor=with_actor) for with_actor in (False, True)]
    for index in range(20):
        guarded.update(batch(), with_actor=index % 2 == 1)
        noise = plain.agent.draw_noise(plain.generator, 4, plain.device)
        steps[index % 2](batch(), noise, {})
    assert changed(guarded, state_of(plain)) == set()
