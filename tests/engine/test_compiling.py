"""What does not compile runs eagerly, and what is compiled stays compiled."""

import re

import pytest
import torch

from serl_fast.engine import Engine, EngineConfig, ExecutionError
from serl_fast.engine import runner as engine_module
from serl_fast.engine.compiling import compile_function

BATCH = {"actions": torch.zeros(4, 1)}


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def refuse(function, **_):
    """A compiler that is not there."""

    def call(*arguments, **options):
        raise RuntimeError("no C++ compiler was found\n(searched: c++, g++)\n...")

    return call


def train(engine, updates=6):
    for index in range(updates):
        engine.update(BATCH, with_actor=index % 2 == 1)
    return engine.state_dict()


def equal(a, b) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("warm", [False, True])
def test_a_step_that_does_not_compile_runs_eagerly_to_the_bit(quadratic, monkeypatch, capsys, warm):
    monkeypatch.setattr(engine_module, "compile_function", refuse)
    engine = Engine(quadratic(), EngineConfig("compiled"), seed=3)
    if warm:
        engine.warm_up(BATCH)
    state = train(engine)
    assert engine.execution == "eager"
    said = capsys.readouterr().err
    expected = "execution 'compiled' failed, going on with 'eager': RuntimeError: no C++ compiler was found\n"
    assert said == expected
    assert equal(state, train(Engine(quadratic(), seed=3)))


def test_parts_that_do_not_compile_leave_no_trace(quadratic, monkeypatch, capsys):
    """On an older torch the losses are compiled one by one: the critics have stepped when the actor's fails."""
    monkeypatch.setattr(engine_module, "can_trace_autograd", lambda: False)
    monkeypatch.setattr(engine_module, "compile_function", lambda f, **_: refuse(f) if f.__name__ == "follow" else f)
    engine = Engine(quadratic(), EngineConfig("compiled"), seed=3)
    state = train(engine)
    assert capsys.readouterr().err.count("going on with 'eager'") == 1
    assert equal(state, train(Engine(quadratic(), seed=3)))


def test_a_real_compiler_that_is_missing_is_named(quadratic, monkeypatch, capsys, tmp_path):
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    engine = Engine(quadratic(), EngineConfig("compiled"), seed=3)
    with torch._inductor.config.patch({"cpp.cxx": ("/nowhere/c++",), "fx_graph_cache": False}):
        state = train(engine)
    torch._dynamo.reset()
    assert engine.execution == "eager"
    said = capsys.readouterr().err
    assert re.search(
        r"^execution 'compiled' failed, going on with 'eager': InvalidCxxCompiler: .+$", said, re.MULTILINE
    )
    assert equal(state, train(Engine(quadratic(), seed=3)))


def test_strict_execution_is_an_error_and_changes_nothing(quadratic, monkeypatch, capsys):
    monkeypatch.setattr(engine_module, "compile_function", refuse)
    engine = Engine(quadratic(), EngineConfig("compiled", strict=True), seed=3)
    before = engine.state_dict()["networks"]["shared.weight"].clone()
    with pytest.raises(ExecutionError, match=r"'compiled' failed.*no C\+\+ compiler was found.*strict execution"):
        engine.update(BATCH)
    assert torch.equal(engine.state_dict()["networks"]["shared.weight"], before)
    assert engine.execution == "compiled"
    with pytest.raises(ExecutionError):  # nor does the second call run eagerly
        engine.update(BATCH)
    assert not capsys.readouterr().err


def test_a_mistake_in_the_batch_is_not_blamed_on_the_compiler(quadratic, capsys):
    import dataclasses

    def prepare(networks, batch, noise):
        raise ValueError("field 'labels' is missing")

    for strict in (False, True):
        agent = dataclasses.replace(quadratic(), prepare=prepare)
        with pytest.raises(ValueError, match=r"^field 'labels' is missing$"):
            Engine(agent, EngineConfig("compiled", strict=strict)).update(BATCH)
    assert not capsys.readouterr().err


def test_nothing_that_may_change_compiles_again(fragile, capsys):
    from tests.engine.test_guard import batch

    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine = Engine(fragile(), EngineConfig("compiled", "float16", strict=True), seed=3)
    engine.warm_up(batch())
    assert graphs() == 2
    state = engine.state_dict()

    def both():
        for with_actor in (False, True):
            metrics = engine.update(batch(), with_actor)
        return metrics

    for _ in range(3):  # through the learning rate's warm-up
        both()
    engine.set_learning_rate(0.5, "critic")
    metrics = both()
    assert metrics["critic/learning_rate"] == 0.5
    assert metrics["actor/learning_rate"] == pytest.approx(0.01)
    engine.agent.networks.eval()
    both()
    engine.agent.networks.train()
    both()
    engine.load_state_dict(state)
    both()
    engine.update(batch(critic=60000.0))  # an overflow
    assert graphs() == 2
    assert not capsys.readouterr().err


def test_what_must_compile_again_says_so_once(quadratic, capsys):
    engine = Engine(quadratic(), EngineConfig("compiled", strict=True), seed=3)
    engine.update(BATCH)
    before = graphs()
    for value in (True, False, True):
        engine.agent.networks["target"].weight.requires_grad_(value)
        engine.update(BATCH)
    assert graphs() > before
    expected = r"the step was compiled again at update \d+: .*requires_grad changed \(said once\)\n"
    assert re.fullmatch(expected, capsys.readouterr().err)


def test_learning_rates_are_checked_and_go_with_the_checkpoint(quadratic):
    first, second = Engine(quadratic(), seed=3), Engine(quadratic(), seed=3)
    first.set_learning_rate(0.02)
    second.load_state_dict(first.state_dict())
    for engine in (first, second):
        assert engine.update(BATCH)["shared/learning_rate"] == pytest.approx(0.02)
    assert first.agent.networks["shared"].weight.item() == pytest.approx(0.02, rel=1e-4)  # Adam's first step
    with pytest.raises(ValueError, match="learning rate is 0; it must be positive"):
        first.set_learning_rate(0)
    with pytest.raises(ValueError, match=r"no optimizer 'critic'; this agent has \['actor', 'shared'\]"):
        first.set_learning_rate(0.1, "critic")


@pytest.mark.parametrize(("version", "expected"), [("2.11.0+cu130", False), ("2.13.0", None)])
def test_a_torch_that_fails_at_the_loops_of_foreach_operations_leaves_them(monkeypatch, version, expected):
    given = {}
    monkeypatch.setattr(torch, "compile", lambda function, **options: given.update(options) or function)
    monkeypatch.setattr(torch, "__version__", version)
    compile_function(lambda batch: batch)
    assert given["options"].get("loop_ordering_after_fusion") is expected
    assert given["options"]["triton.mix_order_reduction"] is False


def test_kernels_are_called_from_cpp_on_the_cpu_alone(quadratic, monkeypatch):
    given = []
    monkeypatch.setattr(torch, "compile", lambda function, **options: given.append(options["options"]) or function)
    Engine(quadratic(), EngineConfig("compiled")).update(BATCH)
    compile_function(lambda batch: batch)
    assert [options.get("cpp_wrapper") for options in given] == [True, None]
