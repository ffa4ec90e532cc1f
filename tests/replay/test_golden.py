"""Our store beside the original's memory-efficient buffer, insertion by insertion.

The recording says what was inserted, what the buffer then returned for every slot that could be sampled, and
which of these returns were wrong. Ours must return what was inserted, hence the same where the original is right.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

from serl_fast.replay import ReplayStore
from serl_fast.replay.reference import NumpyReplayStore

PATH = Path(os.environ.get("SERL_FAST_GOLDEN", Path(__file__).parents[3] / "shared" / "golden")) / "replay_buffer"
META = json.loads((PATH / "meta.json").read_text()) if (PATH / "meta.json").exists() else None
CASES = META["config"]["cases"] if META else {}
WHY = f"recordings of the original are not here: {PATH} (set SERL_FAST_GOLDEN)"
SAMPLED = ("rewards", "masks", "actions", "grasp_penalty")


class Case:
    """One scripted run: the transitions, the checkpoints, and our stores."""

    def __init__(self, name: str) -> None:
        self.name, self.config = name, CASES[name]
        with np.load(PATH / "arrays.npz") as arrays:
            self.arrays = {
                key.removeprefix(name + "/"): arrays[key] for key in arrays.files if key.startswith(name + "/")
            }
        self.pixels = META["config"]["pixel_keys"]
        start = "insert/observations/"
        self.keys = sorted(key.removeprefix(start) for key in self.arrays if key.startswith(start))
        self.count = len(self.arrays["insert/rewards"])

    def transition(self, number: int, of: str = "insert"):
        """Number `number` of what was inserted, as the original took it: masks and dones, images as stacks."""

        def look(which):
            return {key: self.arrays[f"{of}/{which}/{key}"][number] for key in self.keys}

        names = [*SAMPLED, "dones"]
        steps = {name: self.arrays[f"{of}/{name}"][number] for name in names if f"{of}/{name}" in self.arrays}
        steps = {name: value.astype(np.float32) if name != "dones" else value for name, value in steps.items()}
        return {"observations": look("observations"), "next_observations": look("next_observations"), **steps}

    def checkpoints(self):
        """(insertions so far, the recorded returns) at each checkpoint."""
        return [int(after) for after in self.config["checked_after"]]

    def wrong(self, after: int):
        """By the transition's number, what the original returns wrongly at a checkpoint."""
        return {
            fault["transition"]: fault for fault in self.config["sampled_differs_from_inserted"].get(str(after), [])
        }


def stores(case: Case, capacity: int):
    stack = case.config["stack"]
    frames = dict.fromkeys(case.pixels, stack) if stack > 1 else 1
    native = ReplayStore.from_example(case.transition(0), capacity, frame_stack=frames)
    return [native, NumpyReplayStore(native.schema, capacity)]


def assert_same(batch, row, case, number, of):
    wanted = case.transition(number, of)
    for which in ("observations", "next_observations"):
        for key in case.keys:
            np.testing.assert_array_equal(batch[which][key][row], wanted[which][key], f"{which}/{key}")
    for name in SAMPLED:
        if name in wanted:
            np.testing.assert_array_equal(batch[name][row], wanted[name], name)


def differing(batch, row, case, after):
    """The fields in which ours and theirs differ: images, and others."""
    theirs = case.transition(row, f"after{after}/sample")
    names = [(which, key) for which in ("observations", "next_observations") for key in case.keys]
    looks = [n for n in names if not np.array_equal(batch[n[0]][n[1]][row], theirs[n[0]][n[1]])]
    steps = [name for name in SAMPLED if name in theirs and not np.array_equal(batch[name][row], theirs[name])]
    pixels = [name for name in looks if name[1] in case.pixels]
    return pixels, [name for name in looks if name[1] not in case.pixels] + steps


@pytest.mark.skipif(META is None, reason=WHY)
@pytest.mark.parametrize("name", CASES or [None])
@pytest.mark.parametrize("capacity", ["theirs", 1, 7, "all"])
def test_every_transition_comes_back_as_it_was_inserted(name, capacity):
    case = Case(name)
    size = {"theirs": case.config["capacity"], "all": case.count}.get(capacity, capacity)
    for store in stores(case, size):
        for number in range(case.count):
            store.append(case.transition(number))
            batch = store.batch_at(np.arange(len(store)))
            for age in range(len(store)):
                assert_same(batch, age, case, store.first_id + age, "insert")


@pytest.mark.skipif(META is None, reason=WHY)
@pytest.mark.parametrize("name", CASES or [None])
def test_the_original_is_reproduced_where_it_is_right(name):
    """Their slots hold frames, ours transitions: `owner` says which transition a slot is."""
    case = Case(name)
    compared = faults = 0
    for store in stores(case, case.count):
        done = 0
        for after in case.checkpoints():
            for number in range(done, after):
                store.append(case.transition(number))
            done = after
            owners = case.arrays[f"after{after}/owner"]
            batch = store.batch_at(owners)
            for row, owner in enumerate(map(int, owners)):
                assert_same(batch, row, case, owner, "insert")
                pixels, others = differing(batch, row, case, after)
                fault = case.wrong(after).get(owner, {"pixels_equal": True, "other_fields_equal": True})
                assert (not pixels, not others) == (fault["pixels_equal"], fault["other_fields_equal"])
                faults += owner in case.wrong(after)
                compared += 1
    assert compared
    assert faults == 2 * sum(len(case.wrong(after)) for after in case.checkpoints())


@pytest.mark.skipif(META is None, reason=WHY)
@pytest.mark.parametrize("name", CASES or [None])
def test_packed_frames_are_the_stack_and_the_next_one(name):
    case = Case(name)
    (store, _), stack, done = stores(case, case.count), case.config["stack"], 0
    for after in case.checkpoints():
        for number in range(done, after):
            store.append(case.transition(number))
        done = after
        owners = case.arrays[f"after{after}/owner"]
        batch = store.batch_at(owners)
        for key in case.pixels:
            packed = case.arrays.get(f"after{after}/sample_packed/observations/{key}")
            if packed is None:
                continue
            right = [row for row, owner in enumerate(owners) if int(owner) not in case.wrong(after)]
            np.testing.assert_array_equal(batch["observations"][key][right], packed[right, :stack])
            np.testing.assert_array_equal(batch["next_observations"][key][right], packed[right, 1:])


@pytest.mark.skipif(META is None, reason=WHY)
@pytest.mark.parametrize("name", CASES or [None])
def test_a_cut_episode_is_no_reason_to_stitch(name):
    """Where an episode is cut without `dones`, the next step begins a stretch although nothing says so."""
    case = Case(name)
    (store, _) = stores(case, case.count)
    for number in range(case.count):
        store.append(case.transition(number))
    episodes = case.arrays["insert/episode"]
    begins = np.flatnonzero(np.diff(episodes, prepend=episodes[0] - 1))
    continues = store.state_dict()["continues"]
    np.testing.assert_array_equal(np.flatnonzero(~continues), begins)
    assert [len(part) for part in np.split(episodes, begins[1:])] == [e["length"] for e in case.config["episodes"]]


@pytest.mark.skipif(META is None, reason=WHY)
@pytest.mark.parametrize("name", CASES or [None])
@pytest.mark.parametrize("gap", [(2, 3), (0, 2)])
def test_a_gap_is_not_stitched(name, gap):
    """Only some steps of an episode are stored, as of an operator's interventions."""
    case = Case(name)
    kept = [n for n in range(case.count) if not gap[0] <= int(case.arrays["insert/t"][n]) < gap[1]]
    for store in stores(case, case.count):
        for number in kept:
            store.append(case.transition(number))
        batch = store.batch_at(np.arange(len(store)))
        for age, number in enumerate(kept):
            assert_same(batch, age, case, number, "insert")


@pytest.mark.skipif(META is None, reason=WHY)
@pytest.mark.parametrize("name", CASES or [None])
def test_samples_are_among_what_was_inserted(name):
    """Their draws depend on their rejections: the rows differ, what a row can be does not."""
    case = Case(name)
    (store, _) = stores(case, case.config["capacity"])
    for number in range(case.count):
        store.append(case.transition(number))
    batch = store.sampler(ids=True).sample(64)
    for row, number in enumerate(map(int, batch["ids"])):
        assert_same(batch, row, case, number, "insert")
