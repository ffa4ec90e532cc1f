"""Data sets go into stores whole, an episode at a time, or an error says what is there."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serl_fast.data.episodes import Dataset, DatasetError, Episode, columns_of
from serl_fast.data.fill import NoRoomError, count_steps, fill_store, schema_of, store_of
from serl_fast.replay import ReplayStore


def episode(steps: int = 3, start: int = 0, ended: bool = True, camera: bool = True, **changes: Any) -> Episode:
    rng = np.random.default_rng(start)
    flags = np.zeros(steps, bool)
    last = flags.copy()
    last[-1] = ended
    observations = {"state": np.arange(start, start + 2 * (steps + 1), dtype=np.float32).reshape(-1, 2)}
    if camera:
        observations["front"] = rng.integers(0, 256, (steps + 1, 4, 5, 3), np.uint8)
    values: dict[str, Any] = {
        "actions": rng.uniform(-1, 1, (steps, 2)).astype(np.float32),
        "rewards": last.astype(np.float32),
        "terminated": last,
        "truncated": flags,
        "name": f"episode {start}",
    }
    return Episode(observations, **(values | changes))


def dataset(*episodes: Episode, steps: int | None = None) -> Dataset:
    return Dataset(Path("somewhere"), "pickle", lambda: iter(episodes), steps=steps)


def test_a_store_gives_back_every_transition_of_every_episode() -> None:
    given = [episode(3, 0), episode(2, 10, ended=False), episode(4, 20)]
    store = store_of(dataset(*given), progress=False)
    assert len(store) == store.capacity == 9
    batch = store.batch_at(np.arange(9))
    for name in ("actions", "rewards", "terminated", "truncated"):
        assert np.array_equal(batch[name], np.concatenate([getattr(e, name) for e in given]))
    for part in ("observations", "next_observations"):
        for key in ("state", "front"):
            assert np.array_equal(batch[part][key], np.concatenate([columns_of(e)[part][key] for e in given]))
    assert [len(slice_) for slice_ in store.episodes()] == [3, 2, 4]


def test_an_episode_never_continues_the_one_before_it() -> None:
    """Not even where its first observation is the other one's last."""
    first = episode(2, 0, ended=False, camera=False)
    second = episode(2, 4, ended=True, camera=False)
    assert np.array_equal(first.observations["state"][-1], second.observations["state"][0])
    store = store_of(dataset(first, second), progress=False)
    assert [len(slice_) for slice_ in store.episodes()] == [2, 2]


def test_a_store_on_disk_is_there_afterwards_or_not_at_all(tmp_path: Path) -> None:
    with store_of(dataset(episode(3), episode(2, 10)), path=tmp_path / "store", capacity=8, progress=False) as store:
        assert (len(store), store.capacity) == (5, 8)
    assert len(ReplayStore.load(tmp_path / "store")) == 5
    with pytest.raises(FileExistsError, match="give the path of a new folder"):
        store_of(dataset(episode(3)), path=tmp_path / "store")
    bad = episode(2, 10, rewards=np.full(2, np.nan, np.float32))
    with pytest.raises(DatasetError, match="'rewards' is not finite at step 0"):
        store_of(dataset(episode(3), bad), path=tmp_path / "other", capacity=8, progress=False)
    assert not (tmp_path / "other").exists()


def test_an_error_leaves_an_empty_store_empty_and_says_what_is_in_another(tmp_path: Path) -> None:
    good, bad = episode(3), episode(2, 10, actions=np.zeros((2, 3), np.float32))
    store = ReplayStore(schema_of(good), 20)
    with pytest.raises(DatasetError, match=r"somewhere, episode 10: field 'actions' is float32 \(3,\)") as error:
        fill_store(dataset(good, bad), store, progress=False)
    assert len(store) == store.appended == 0
    assert "the store got" not in str(error.value)
    fill_store(dataset(good), store, progress=False)
    with pytest.raises(DatasetError, match=r"the store got 3 transitions of the 1 episodes before it, and holds 6"):
        fill_store(dataset(good, bad), store, progress=False)
    with (
        ReplayStore.open(tmp_path / "disk", schema_of(good), 20) as disk,
        pytest.raises(DatasetError, match="the store got 3 transitions of the 1 episodes before it, and holds 3"),
    ):
        fill_store(dataset(good, bad), disk, progress=False)


def test_nothing_is_dropped_for_lack_of_room() -> None:
    store = ReplayStore(schema_of(episode(3)), 5)
    with pytest.raises(NoRoomError, match=r"episode 10: its 3 transitions do not fit; the store holds 3 of 5"):
        fill_store(dataset(episode(3), episode(3, 10)), store, progress=False)
    assert len(store) == 0


def test_extras() -> None:
    labels = {"grasp_penalty": np.full(3, -0.5, np.float32), "labels": np.arange(3), "infos/x": np.zeros((3, 2))}
    with_extras = dataset(episode(3, extras=labels))
    batch = store_of(with_extras, progress=False).batch_at([0, 1, 2])
    assert np.array_equal(batch["labels"], [0, 1, 2])
    assert np.array_equal(batch["grasp_penalty"], [-0.5] * 3)
    assert "labels" not in store_of(with_extras, extras=["grasp_penalty"], progress=False).batch_at([0])
    plain = store_of(dataset(episode(3)), extras=["grasp_penalty"], progress=False)
    assert np.array_equal(plain.batch_at([0])["grasp_penalty"], [0.0])
    with pytest.raises(DatasetError, match="episode 0 has no extra labels; it has none"):
        store_of(dataset(episode(3)), extras=["labels"])


def test_another_schema_is_named() -> None:
    store = ReplayStore(schema_of(episode(3)), 20)
    with pytest.raises(DatasetError, match=r"field 'observations/front' of the data is missing; here it is uint8"):
        fill_store(dataset(episode(3, camera=False)), store, progress=False)


def test_steps_after_an_end_are_refused() -> None:
    with pytest.raises(DatasetError, match="it ends at step 0, and 2 more follow"):
        store_of(dataset(episode(3, terminated=np.array([True, False, True]))), progress=False)


def test_progress_and_counts(capsys: pytest.CaptureFixture[str]) -> None:
    assert count_steps(dataset(episode(3), episode(4, 10))) == 7
    assert count_steps(dataset(steps=12)) == 12
    assert fill_store(dataset(episode(3), steps=3), ReplayStore(schema_of(episode(3)), 3)) == 3
    assert capsys.readouterr().out == "reading somewhere: 3 of 3\n"
    with pytest.raises(DatasetError, match="somewhere has no episodes"):
        store_of(dataset())


def test_one_episode_at_a_time_is_in_memory() -> None:
    """Each one is gone before the one after the next is made."""
    import weakref

    alive: list[Any] = []

    def read() -> Any:
        for start in range(0, 50, 10):
            assert sum(reference() is not None for reference in alive) <= 1
            made = episode(3, start)
            alive.append(weakref.ref(made))
            yield made
            del made

    store_of(dataclasses.replace(dataset(), read=read, steps=15))
