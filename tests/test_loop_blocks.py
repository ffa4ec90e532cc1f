"""The learner takes whole blocks of updates, and single ones where the schedule forbids a block."""

import copy

import numpy as np
import pytest
import torch

from serl_fast.core import leaves
from serl_fast.engine import NonFiniteLossError
from serl_fast.loop import run_synchronous, run_threaded
from serl_fast.schedule import crossed
from tests.test_loop import Rig

BLOCK = 4


class Watched(Rig):
    """A rig that keeps what its engine was called with: first update, number of updates, whether with the actor."""

    def __init__(self, env, **settings) -> None:
        super().__init__(env, **({"critic_to_actor_ratio": BLOCK} | settings))
        self.calls: list[tuple[int, int, bool]] = []
        self.metrics: list[dict[str, float]] = []
        self.batches: list[dict[str, np.ndarray]] = []
        plain = self.engine.update_block

        def update_block(batch, updates, with_actor):
            self.calls.append((self.engine.updates, updates, with_actor))
            self.batches.append({name: value.numpy().copy() for name, value in leaves(batch)})
            written = len(self.engine._ring._written)
            metrics = plain(batch, updates, with_actor)
            rows = self.engine._ring._written[written:]
            self.metrics += [
                dict(zip(names, self.engine._ring.rows[row].tolist(), strict=False)) for row, names in rows
            ]
            return metrics

        self.engine.update_block = update_block

    def fill(self, steps: int = 40) -> None:
        """Steps of the environment, a few of them demonstrations."""
        self.learner.publish()
        for _ in range(steps):
            self.actor.step()

    @property
    def sizes(self) -> list[int]:
        return [updates for _, updates, _ in self.calls]


def reports_of(rig: Rig) -> list[dict[str, float]]:
    return [report for report in rig.reports if "critic/loss" in report]


def assert_same_weights(first: Rig, second: Rig, atol: float = 1e-6) -> None:
    pairs = zip(first.engine.agent.networks.parameters(), second.engine.agent.networks.parameters(), strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=atol)


def test_a_block_is_the_same_updates_on_the_same_rows(toy_arm):
    blocks, singles = (Watched(toy_arm(intervals=[(3, 6)], goal=99)) for _ in range(2))
    for rig in (blocks, singles):
        rig.fill()
        assert len(rig.demonstrations) > 0
    for _ in range(3):
        assert blocks.learner.step(BLOCK + 1) == BLOCK
    for _ in range(3 * BLOCK):
        assert singles.learner.step() == 1
    assert [call for call in singles.calls if call[2]] == [(3, 1, True), (7, 1, True), (11, 1, True)]
    assert blocks.calls == [(0, BLOCK, True), (4, BLOCK, True), (8, BLOCK, True)]
    for name in blocks.batches[0]:
        rows = [np.concatenate([batch[name] for batch in rig.batches]) for rig in (blocks, singles)]
        np.testing.assert_array_equal(*rows)
    assert torch.equal(blocks.engine.generator.get_state(), singles.engine.generator.get_state())
    assert_same_weights(blocks, singles)
    assert blocks.counters.state_dict() == singles.counters.state_dict()
    assert len(reports_of(blocks)) == len(reports_of(singles)) == 1  # at update 12 and at update 10


def test_without_blocks_every_call_is_an_update_with_the_actor(toy_arm):
    rig = Watched(toy_arm(), critic_to_actor_ratio=1, max_steps=7)
    twin = copy.deepcopy(rig.engine.agent.networks)
    run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.calls == [(update, 1, True) for update in range(7)]
    pairs = zip(twin.parameters(), rig.engine.agent.networks.parameters(), strict=True)
    assert any(not torch.equal(before, after) for before, after in pairs)


@pytest.mark.parametrize("pretrain", [0, 5])
def test_the_ends_of_training_and_pretraining_are_kept_to_the_update(toy_arm, pretrain):
    rig = Watched(toy_arm(intervals=[(3, 6)], goal=99), pretrain_steps=pretrain, max_steps=10)
    if pretrain:
        rig.fill()
    assert rig.learner._sizes(100) == [BLOCK, 1]
    run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.counters.updates == 10
    assert rig.engine.updates == 10 + pretrain
    assert rig.sizes == ([4, 1, 1, 1, 1, 4, 1, 1, 1] if pretrain else [4, 4, 1, 1])
    for first, updates, with_actor in rig.calls:  # every fourth update has the actor's step, whoever took it
        assert with_actor == ((first + updates) % BLOCK == 0)


def test_single_updates_are_warmed_up_where_they_can_come_alone(toy_arm):
    def sizes(at_once=100, done=0, **settings):
        rig = Watched(toy_arm(), **settings)
        rig.engine.updates = rig.counters.updates = done
        return rig.learner._sizes(at_once)

    assert sizes(float("inf"), max_steps=12) == [BLOCK]
    assert sizes(float("inf"), max_steps=12, done=BLOCK) == [BLOCK]
    assert sizes(float("inf"), max_steps=12, done=2) == [BLOCK, 1]
    assert sizes(float("inf"), max_steps=13) == [BLOCK, 1]
    assert sizes(float("inf"), max_steps=12, max_utd_ratio=1.0) == [BLOCK, 1]
    assert sizes(float("inf"), critic_to_actor_ratio=1) == [1]
    assert sizes(3, max_steps=12) == [1]
    assert sizes(4, max_steps=12) == [BLOCK, 1]


def test_what_is_due_inside_a_block_comes_behind_it(toy_arm):
    rig = Watched(toy_arm(), max_steps=24, log_interval=6, save_interval=10, steps_per_update=7)
    published = []
    publish = rig.learner.publish
    rig.learner.publish = lambda: published.append(rig.counters.updates) or publish()
    run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.sizes == [BLOCK] * 6
    assert rig.saves == [12, 20]
    assert published == [0, 8, 16, 24]  # the first policy; 7, 14 and 21 lie in these blocks
    reports = reports_of(rig)
    for report, begin, end in zip(reports, [0, 8, 12, 20], [8, 12, 20, 24], strict=True):
        part = rig.metrics[begin:end]
        assert report["critic/loss"] == pytest.approx(np.mean([update["critic/loss"] for update in part]), rel=1e-5)
        actor = [update["actor/loss"] for update in part if "actor/loss" in update]
        assert len(actor) == (end - begin) // BLOCK
        assert report["actor/loss"] == pytest.approx(np.mean(actor), rel=1e-5)


@pytest.mark.parametrize("done", [1, 2, 3])
def test_a_run_resumed_within_a_block_finishes_it_first(toy_arm, done):
    rig = Watched(toy_arm(), max_steps=12)
    rig.engine.updates = rig.counters.updates = done
    run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.sizes == [1] * (BLOCK - done) + [BLOCK, BLOCK]
    assert [call[2] for call in rig.calls] == [False] * (BLOCK - done - 1) + [True] * 3


@pytest.mark.parametrize(("ratio", "sizes"), [(1.0, {1}), (4.0, {4}), (6.0, {1, 4})])
def test_lock_step_takes_what_a_step_of_the_environment_allows(toy_arm, ratio, sizes):
    rig = Watched(toy_arm(), max_utd_ratio=ratio, max_steps=48)
    run_synchronous(rig.actor, rig.learner, rig.stop)
    assert set(rig.sizes) == sizes
    assert rig.counters.updates == 48
    assert rig.counters.environment_steps - 9 == 48 / ratio
    again = Watched(toy_arm(), max_utd_ratio=ratio, max_steps=48)
    run_synchronous(again.actor, again.learner, again.stop)
    assert_same_weights(rig, again, atol=0)


@pytest.mark.parametrize("limit", [0.3, 2.0, 4.0])
def test_a_limit_on_the_ratio_holds_behind_every_block(toy_arm, limit):
    rig = Watched(toy_arm(), max_utd_ratio=limit, min_utd_ratio=limit / 2, max_steps=30)
    most = []
    rig.learner.tick = lambda: most.append(rig.counters.utd_ratio)
    run_threaded(rig.actor, rig.learner, rig.stop)
    assert rig.counters.updates == 30
    assert max(most) <= limit


def test_what_a_limit_leaves_is_taken_one_by_one(toy_arm):
    rig = Watched(toy_arm(), max_utd_ratio=0.5, max_steps=8)
    rig.fill(11)
    taken = []
    while most := rig.learner.may_take():
        taken.append((most, rig.learner.step(most)))
    assert taken == [(5, 4), (1, 1)]
    rig.fill(89)
    assert rig.learner.may_take() == 3  # up to max_steps


def test_multiples_that_are_crossed():
    assert [crossed(3, before, before + 4) for before in range(4)] == [True] * 4
    assert [crossed(5, before, before + 2) for before in (2, 3, 4, 5)] == [False, True, True, False]
    assert not crossed(0, 0, 10)


@pytest.mark.parametrize(("pretrain", "bad", "counted"), [(8, 1, 0), (0, 1, 6), (8, 3, 6)])
def test_a_failure_counts_what_was_taken_and_pretraining_counts_nothing(toy_arm, pretrain, bad, counted):
    """Two good updates of the failing block count; they do not where the block is one of pre-training."""
    rig = Watched(toy_arm(intervals=[(3, 6)], goal=99), pretrain_steps=pretrain, max_steps=16)
    rig.fill()
    plain = rig.engine.update_block

    def update_block(batch, updates, with_actor):
        if len(rig.calls) == bad:
            batch["rewards"][2 * len(batch["rewards"]) // BLOCK] = float("nan")
        return plain(batch, updates, with_actor)

    rig.engine.update_block = update_block

    def train():
        rig.learner.prepare(rig.stop)
        while True:
            rig.learner.step(BLOCK)

    with pytest.raises(NonFiniteLossError):
        train()
    assert rig.counters.updates == counted
    assert rig.engine.updates == bad * BLOCK + 2
