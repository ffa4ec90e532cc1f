"""Blocks of updates, and batches that a source draws inside the step."""

import copy
import dataclasses
import math

import pytest
import torch
from torch import Tensor

from serl_fast.core import Batch, Noise, leaves
from serl_fast.engine import Engine, EngineConfig, NonFiniteLossError, programs
from serl_fast.engine.programs import join, rows_of, share
from tests.engine.test_guard import batch as fragile_batch
from tests.equivalence.agents import CASES, batches
from tests.tracing import trace_only

UPDATES = 4


def graphs() -> int:
    return torch._dynamo.utils.counters["stats"]["unique_graphs"]


def joint(given: list[Batch]) -> Batch:
    """Batches one below the other."""
    first = given[0]
    if isinstance(first, Tensor):
        return torch.cat(given)
    return {key: joint([batch[key] for batch in given]) for key in first}


def engine_of(name: str, execution: str = "eager", **options) -> Engine:
    torch.manual_seed(0)
    return Engine(CASES[name].build(), EngineConfig(execution, strict=True), seed=5, **options)


def largest_difference(a: Engine, b: Engine) -> float:
    pairs = zip(a.agent.networks.parameters(), b.agent.networks.parameters(), strict=True)
    return max((x - y).abs().max().item() for x, y in pairs)


def train_in_both_ways(name: str, execution: str) -> tuple[Engine, Engine]:
    case = CASES[name]
    single, block = engine_of(name), engine_of(name, execution)
    given = list(batches(case, 3 * UPDATES))
    for start in range(0, len(given), UPDATES):
        part = given[start : start + UPDATES]
        expected: dict[str, Tensor] = {}
        for index, batch in enumerate(part):
            expected |= single.update(batch, with_actor=index == UPDATES - 1)
        found = block.update_block(joint(part), UPDATES)
        numbers = {name: value.item() for name, value in expected.items()}
        assert {name: value.item() for name, value in found.items()} == pytest.approx(numbers, rel=1e-4, abs=1e-5)
    return single, block


@pytest.mark.parametrize("name", ["sac, every option", "hybrid", "compat", "pixels, compat", "drq", "bc, squashed"])
def test_a_block_is_as_many_updates(name):
    single, block = train_in_both_ways(name, "eager")
    assert largest_difference(single, block) < 1e-5
    assert torch.equal(single.generator.get_state(), block.generator.get_state())
    assert single.updates == block.updates == 3 * UPDATES


@pytest.mark.parametrize("together", [1, 2])
def test_large_batches_are_prepared_a_few_updates_at_a_time(together, monkeypatch):
    """An encoder's memory must not grow with the block."""
    case, prepared = CASES["pixels, compat"], []
    rows = next(iter(batches(case, 1)))
    size = sum(tensor.nbytes for _, tensor in leaves(rows))
    monkeypatch.setattr(programs, "LARGEST_PREPARATION", together * size)
    build = case.build

    def counting():
        agent = build()

        def prepare(networks, batch, noise):
            prepared.append(rows_of(batch))
            return agent.prepare(networks, batch, noise)

        return dataclasses.replace(agent, prepare=prepare)

    single = engine_of("pixels, compat")
    torch.manual_seed(0)
    block = Engine(counting(), EngineConfig("eager", strict=True), seed=5)
    given = list(batches(case, UPDATES))
    for index, batch in enumerate(given):
        single.update(batch, with_actor=index == UPDATES - 1)
    block.update_block(joint(given), UPDATES)
    assert prepared == [together * rows_of(rows)] * (UPDATES // together)
    assert largest_difference(single, block) < 1e-5


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        ("sac, every option", "aot_eager"),
        ("hybrid", "aot_eager"),
        ("pixels, compat", "aot_eager"),
        pytest.param("hybrid", "inductor", marks=pytest.mark.slow),  # minutes; the others' code is compiled elsewhere
    ],
)
def test_a_compiled_block_is_three_graphs_however_long(name, backend, monkeypatch, capsys):
    if backend == "aot_eager":
        monkeypatch.setattr("serl_fast.engine.compiling.torch.compile", trace_only)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    single, block = train_in_both_ways(name, "compiled")
    assert largest_difference(single, block) < 1e-4
    assert graphs() == 3  # the preparation, the step without the actor and the one with it
    assert not torch._dynamo.utils.counters["graph_break"]
    assert not capsys.readouterr().err


@pytest.mark.parametrize("name", ["sac, every option", "pixels, compat"])
def test_single_updates_beside_blocks_run_on_their_steps(name, monkeypatch, capsys):
    monkeypatch.setattr("serl_fast.engine.compiling.torch.compile", trace_only)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    given = list(batches(CASES[name], 2 * UPDATES + 2))
    plain, mixed = engine_of(name), engine_of(name, "compiled")
    mixed.warm_up(joint(given[:UPDATES]), UPDATES)
    mixed.warm_up(given[0])
    compiled = graphs()
    assert compiled <= 4  # the two steps, and a preparation for each number of rows if it does anything
    for index, batch in enumerate(given):
        plain.update(batch, with_actor=index % UPDATES == UPDATES - 1)
    mixed.update_block(joint(given[:UPDATES]), UPDATES)
    for index, batch in enumerate(given[UPDATES : 2 * UPDATES]):
        mixed.update_block(batch, 1, with_actor=index == UPDATES - 1)
    mixed.update_block(joint(given[2 * UPDATES :]), 2, with_actor=False)
    assert largest_difference(plain, mixed) < 1e-4
    assert torch.equal(plain.generator.get_state(), mixed.generator.get_state())
    assert graphs() <= compiled + 1  # the preparation of two updates
    assert not capsys.readouterr().err


def test_the_trunk_runs_once_for_a_block():
    engine = engine_of("pixels, compat")
    trunk = next(m for m in engine.agent.networks.modules() if type(m).__name__ == "FrozenTrunk")
    calls = []
    trunk.register_forward_hook(lambda module, arguments, result: calls.append(result[..., 0, 0, 0].numel()))
    given = joint(list(batches(CASES["pixels, compat"], UPDATES)))
    engine.update_block(given, UPDATES)
    assert calls == [2 * 2 * given["actions"].shape[0]]  # both observations, both cameras, every row once


@pytest.mark.parametrize("interval", [1, UPDATES, 3])
def test_the_update_that_failed_in_a_block_is_named_and_kept(fragile, interval):
    engine = Engine(fragile(), EngineConfig(check_interval=interval), seed=3)
    twin = Engine(fragile(), seed=3)
    good = fragile_batch()
    for _ in range(2):
        engine.update_block(joint([good] * UPDATES), UPDATES)
        twin.update_block(joint([good] * UPDATES), UPDATES)
    bad = {name: value.clone() for name, value in joint([good] * UPDATES).items()}
    bad["critic"][5] = math.nan  # row 1 of the block's second update
    with pytest.raises(NonFiniteLossError, match="critic/loss is nan at update 10,") as caught:
        engine.update_block(bad, UPDATES)
    twin.update(good, with_actor=False)
    assert largest_difference(engine, twin) == 0
    assert engine.updates == 9
    content = caught.value.inspection
    assert content["batch"]["critic"].isnan().tolist() == [False, True, False, False]
    assert content["with_actor"] is False
    again = Engine(dataclasses.replace(fragile(), draw_noise=lambda *_: content["noise"]))
    again.load_state_dict(content["engine"])
    with pytest.raises(NonFiniteLossError, match="critic/loss is nan at update 10"):
        again.update(content["batch"], with_actor=content["with_actor"])


def test_float16_counts_the_skipped_updates_of_a_block(fragile):
    from tests.engine.test_guard import OVERFLOW, half

    engine = half(fragile())
    parts = [fragile_batch(), fragile_batch(critic=OVERFLOW), fragile_batch(), fragile_batch(critic=OVERFLOW)]
    metrics = engine.update_block(joint(parts), UPDATES)
    assert (metrics["engine/skipped_steps"], metrics["engine/loss_scale"]) == (2, 2.0)


def test_blocks_that_can_not_be_are_refused(quadratic):
    engine = Engine(quadratic())
    with pytest.raises(ValueError, match="a batch of 7 rows can not be shared out to 2 updates evenly"):
        engine.update_block({"actions": torch.zeros(7, 1)}, 2)
    with pytest.raises(ValueError, match="updates is 0; a block has at least 1"):
        engine.update_block({"actions": torch.zeros(7, 1)}, 0)
    engine.update_block({"actions": torch.zeros(8, 1)}, 2)
    with pytest.raises(ValueError, match=r"'actions' is float32\[6, 1\]; the step was built for float32\[8, 1\]"):
        engine.update_block({"actions": torch.zeros(6, 1)}, 2)
    engine.update({"actions": torch.zeros(4, 1)})  # single updates have a size of their own
    engine.update({"actions": torch.zeros(4, 1)})


def test_where_failed_batches_are_kept_all_updates_have_as_many_rows(fragile):
    engine = Engine(fragile(), EngineConfig(check_interval=10))
    good = fragile_batch()
    engine.update_block(joint([good] * UPDATES), UPDATES)
    engine.update(good)
    with pytest.raises(ValueError, match=r"2 update\(s\) on 4 rows have 2 each; .* of a failed update of 4 rows"):
        engine.update_block(good, 2)
    assert engine.updates == UPDATES + 1


def test_noise_of_one_update_is_not_joined():
    noises = [{"actions": torch.full((3, 2), float(u)), "members": torch.tensor([u, u + 1])} for u in range(2)]
    joined = join(noises, 3)
    assert set(joined) == {"actions"}
    assert joined["actions"][:, 0].tolist() == [0.0] * 3 + [1.0] * 3


def test_what_has_no_rows_is_shared_by_all_updates():
    tree = {"rows": torch.arange(6), "deep": {"whole": torch.arange(4), "scalar": torch.tensor(1.0)}}
    part = share(tree, 1, 2, rows=6)
    assert part["rows"].tolist() == [3, 4, 5]
    assert part["deep"]["whole"].tolist() == [0, 1, 2, 3]
    assert part["deep"]["scalar"] == 1.0


class Ring:
    """The smallest source: rows of a table whose size grows."""

    batch_size = 4

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(1)
        self.table = {"critic": 0.1 * torch.rand(16, generator=generator), "slope": torch.ones(16)}
        self.table["actor"] = 0.1 * torch.rand(16, generator=generator)
        self.size = torch.tensor(2)

    def draw_noise(self, generator: torch.Generator, updates: int, device: torch.device) -> Noise:
        return {"place": torch.rand(updates * self.batch_size, generator=generator, device=device)}

    def batch(self, noise: Noise) -> Batch:
        rows = (noise["place"] * self.size).long()
        return {name: column[rows] for name, column in self.table.items()}


def sourced(agent, execution: str, **options) -> tuple[Engine, Ring]:
    source = Ring()
    return Engine(agent, EngineConfig(execution, strict=True, **options), seed=3, source=source), source


@pytest.mark.parametrize("execution", ["eager", "compiled", "graphed"])
def test_a_source_draws_inside_the_step(fragile, execution, monkeypatch, capsys):
    """In one graph, from a table that grows without compiling or capturing again."""
    if execution == "graphed":
        from serl_fast.engine import config, runner
        from tests.engine.tape import Tape

        monkeypatch.setattr(config, "CAPTURING_DEVICES", ("cpu",))
        monkeypatch.setattr(runner, "CudaGraphs", Tape)
        monkeypatch.setattr(runner, "compile_function", lambda function, **_: function)
        monkeypatch.setattr(Tape, "captures", 0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    engine, source = sourced(fragile(), execution)
    engine.warm_up()
    twin = Engine(fragile(), seed=3)
    for index in range(8):
        source.size.add_(1)
        noise = source.draw_noise(twin.generator, 1, twin.device)
        twin.update(source.batch(noise), with_actor=index % 2 == 1)
        engine.update(with_actor=index % 2 == 1)
    assert largest_difference(engine, twin) < 1e-6
    assert engine.updates == 8
    assert not capsys.readouterr().err
    if execution == "compiled":
        assert graphs() == 2
        assert not torch._dynamo.utils.counters["graph_break"]
    if execution == "graphed":
        assert Tape.captures == 2


def test_a_source_draws_blocks(fragile):
    (engine, source), twin = sourced(fragile(), "eager"), Engine(fragile(), seed=3)
    for _ in range(3):
        noise = source.draw_noise(twin.generator, UPDATES, twin.device)
        twin.update_block(source.batch(noise), UPDATES)
        engine.update_block(updates=UPDATES)
    assert largest_difference(engine, twin) == 0


@pytest.mark.parametrize("interval", [1, UPDATES])
@pytest.mark.parametrize("updates", [1, UPDATES])
def test_the_batch_of_a_failed_update_is_gathered_again(fragile, interval, updates):
    engine, source = sourced(fragile(), "eager", check_interval=interval)
    source.table["critic"][1] = math.nan

    def train() -> None:
        for _ in range(8):
            engine.update_block(updates=updates)

    with pytest.raises(NonFiniteLossError, match="critic/loss is nan at update") as caught:
        train()
    content = copy.deepcopy(caught.value.inspection)
    assert content["batch"]["critic"].shape == (4,)
    assert content["batch"]["critic"].isnan().any()
    assert set(content["noise"]) == {"x"}


def test_a_batch_comes_from_one_place(fragile):
    engine, _ = sourced(fragile(), "eager")
    with pytest.raises(ValueError, match="draws its batches from a source; call without a batch"):
        engine.update(fragile_batch())
    with pytest.raises(ValueError, match="has no source to draw from; give a batch"):
        Engine(fragile()).update()


def test_gradients_are_averaged_once_for_a_group_of_objectives(fragile):
    calls = []

    def halve(tensors: list[Tensor]) -> list[Tensor]:
        calls.append(len(tensors))
        return [tensor / 2 for tensor in tensors]

    def without_clipping(agent):
        config = dataclasses.replace(agent.optimizers["critic"], clip_gradient_norm=None, epsilon=1.0)
        return dataclasses.replace(agent, optimizers=dict.fromkeys(("critic", "actor"), config))

    plain = Engine(without_clipping(fragile()), seed=3)
    averaged = Engine(without_clipping(fragile()), seed=3, average=halve)
    for _ in range(3):
        plain.update(fragile_batch())
        averaged.update(fragile_batch())
    # Critic and actor, weight and bias each, with loss and norm.
    assert calls == [4, 4] * 3
    moments = [engine.adam["critic"].first[0] for engine in (plain, averaged)]
    assert not torch.allclose(*moments)


@pytest.mark.parametrize("optimize", ["networks", "objectives"])
def test_what_is_not_finite_elsewhere_is_not_taken_here(fragile, optimize):
    """Another process's scalars come in through the mean; its gradients need not be looked at."""

    def poison(tensors: list[Tensor]) -> list[Tensor]:
        return [*tensors[:-1], tensors[-1] + math.inf]

    engine = Engine(fragile(optimize), seed=3, average=poison)
    before = copy.deepcopy(engine.state_dict()["networks"])
    with pytest.raises(NonFiniteLossError, match=r"the gradient of .* has norm inf"):
        engine.update(fragile_batch())
    assert all(torch.equal(before[name], value) for name, value in engine.state_dict()["networks"].items())
