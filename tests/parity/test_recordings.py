"""The parity runner over every recording that is found, and its own honesty: what is wrong or left out fails."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.parity import check
from tests.parity.fixture import Fixture, FixtureError
from tests.parity.library import GOLDEN, HERE, Library, folders
from tests.parity.report import table

DATA = HERE / "data"


@pytest.mark.parametrize("path", folders(DATA), ids=lambda path: path.name)
def test_selection(path):
    agrees(path)


@pytest.mark.parametrize("path", folders(GOLDEN) or [None], ids=lambda path: path.name if path else "none")
def test_whole_set(path):
    if path is None:
        pytest.skip(f"recordings of the original are not here: {GOLDEN} (set SERL_FAST_GOLDEN)")
    agrees(path)


def agrees(path):
    outcome = check.check(path, Library([]))
    assert outcome.ok, table(outcome)


def test_selection_is_small():
    assert sum(path.stat().st_size for path in DATA.rglob("*") if path.is_file()) < 3_000_000


@pytest.fixture
def copy(tmp_path):
    """Copies a recording of the selection; `change` edits its arrays, `settings` its description."""

    def make(name, change=None, settings=None):
        path = tmp_path / name
        shutil.copytree(DATA / name, path)
        if change:
            with np.load(path / "arrays.npz") as file:
                arrays = {key: file[key].copy() for key in file.files}
            change(arrays)
            np.savez(path / "arrays.npz", **arrays)
        if settings:
            meta = json.loads((path / "meta.json").read_text())
            settings(meta)
            (path / "meta.json").write_text(json.dumps(meta))
        return path

    return make


def run(path, capsys):
    """(exit status, what was printed) of the command."""
    status = check.main([str(path)])
    return status, capsys.readouterr().out


def nudged(name):
    """Change the largest value of one array: by a thousandth, or by one where it counts things."""

    def change(arrays):
        values = arrays[name].reshape(-1)
        where = int(np.abs(np.nan_to_num(values.astype(float), posinf=0, neginf=0)).argmax())
        if values.dtype.kind in "bu":
            values[where] ^= 1
        else:
            values[where] += 1 if values.dtype.kind == "i" else 1e-3 * abs(values[where])
        arrays[name] = values.reshape(arrays[name].shape)

    return change


CHANGED = {
    "optimizer": ["all/trajectory/w", "warmup/learning_rate", "grads/b"],
    "policy": ["fixed/std", "softplus/sample_log_prob", "launcher/edge/log_prob", "launcher/obs"],
    "critic": ["E10/q_many", "E2/dmeanq_daction", "E2/params/Dense_0/kernel"],
    "grasp_critic": ["dual9/gripper_action", "class_default/q"],
    "augmentation": ["set1/output", "batch_out/next_observations/cam_b", "set2/offsets", "resize/256x192/output"],
    "replay_buffer": [
        "stack3/after39/sample/observations/cam_b",
        "stack1/after12/sample_packed/observations/cam_a",
        "stack1/trace/size",
        "stack3/seeded/actions",
        "stack1/insert/rewards",
    ],
    "agent_small_single_T2": [
        "critic/target_q",
        "grasp_critic/taken_action_index",
        "grads/actor/modules_actor/encoder/Dense_0/kernel",
        "new_params/modules_critic/Dense_0/kernel",
        "new_target_params/modules_temperature/lagrange",
        "info/temperature_lr",
        "sample_actions/single/sampled",
        "noise/temperature/next_action_eps",
        "batch/grasp_penalty",
    ],
    "agent_small_sac_redq": ["critic/target_next_qs", "temperature/entropy", "noise/critic/subsample_idcs"],
    "utd_sac": ["stats/adam_nu/actor", "stats/target_params", "after_step5/params/modules_actor/Dense_0/bias"],
}


@pytest.mark.parametrize(("name", "array"), [(name, array) for name, arrays in CHANGED.items() for array in arrays])
def test_one_changed_value_fails(copy, capsys, name, array):
    status, printed = run(copy(name, nudged(array)), capsys)
    assert status == 1
    assert "beyond tolerance:" in printed


def test_finite_for_infinite_fails(copy, capsys):
    def change(arrays):
        values = arrays["launcher/edge/log_prob"]
        assert not np.isfinite(values).all()
        values[~np.isfinite(values)] = -1e30

    status, printed = run(copy("policy", change), capsys)
    assert status == 1
    assert "launcher/edge/log_prob" in printed


def test_an_array_that_nobody_compares_fails(copy, capsys):
    path = copy("optimizer", lambda arrays: arrays.update({"default/trajectory/extra/w": np.zeros(3)}))
    status, printed = run(path, capsys)
    assert status == 1
    assert "not compared: default/trajectory/extra/w" in printed


def test_a_missing_array_fails(copy, capsys):
    status, printed = run(copy("optimizer", lambda arrays: arrays.pop("clip/learning_rate")), capsys)
    assert status == 1
    assert "clip/learning_rate" in printed


@pytest.mark.parametrize("file", ["arrays.npz", "meta.json"])
@pytest.mark.parametrize("damage", ["missing", "truncated"])
def test_a_damaged_file_fails_with_its_reason(copy, capsys, file, damage):
    path = copy("optimizer")
    if damage == "missing":
        (path / file).unlink()
    else:
        (path / file).write_bytes((path / file).read_bytes()[:1000])
    status, printed = run(path, capsys)
    assert status == 1
    assert "optimizer can not be read" in printed


def test_recorded_results_among_the_settings_are_compared(copy, capsys):
    path = copy("utd_sac", settings=lambda meta: meta["config"]["adam_count_at_end"].update(actor=9))
    status, printed = run(path, capsys)
    assert status == 1
    assert "config.adam_count_at_end" in printed

    def drop(meta):
        meta["config"]["zero_gradient_leaves"]["actor"].pop()

    status, printed = run(copy("agent_small_sac_redq", settings=drop), capsys)
    assert status == 1
    assert "config.zero_gradient_leaves.actor" in printed


def test_a_recording_that_another_one_needs_is_found_by_its_split(copy, tmp_path):
    wanted_by = Fixture.read(copy("optimizer"))
    with pytest.raises(FixtureError, match="needs the recording 'resnet10' of split 'public', which is neither among"):
        Library([]).find("resnet10", wanted_by)
    other = copy("critic", settings=lambda meta: meta.update(fixture="resnet10", split="other"))
    with pytest.raises(FixtureError):
        Library([other]).find("resnet10", wanted_by)
    wanted_by.meta["split"] = "other"
    assert Library([other]).find("resnet10", wanted_by).name == "critic"
    assert Library([]).find("resnet10", wanted_by).name == "critic"  # beside it


def test_an_unknown_kind_and_a_missing_folder_fail(copy, capsys, tmp_path):
    status, printed = run(copy("optimizer", settings=lambda meta: meta.update(fixture="novelty", arrays={})), capsys)
    assert status == 0, printed  # its arrays say what it is

    def rename(arrays):
        for name in list(arrays):
            arrays[name.replace("learning_rate", "rate")] = arrays.pop(name)

    path = copy("critic", rename, settings=lambda meta: meta.update(fixture="novelty", arrays={}))
    (path / "arrays.npz").unlink()
    np.savez(path / "arrays.npz", something=np.zeros(2))
    status, printed = run(path, capsys)
    assert status == 1
    assert "the kind is not known" in printed
    status, printed = run(tmp_path / "nowhere", capsys)
    assert status == 1
    assert "there is no such folder" in printed


def test_a_file_among_the_paths_is_skipped_and_the_rest_is_run(copy, capsys, tmp_path):
    index = tmp_path / "INDEX.json"
    index.write_text("{}")
    page = tmp_path / "page.md"
    status = check.main([str(index), str(copy("optimizer")), "--markdown", str(page)])
    assert status == 0
    assert "INDEX.json: a file, not a recording; skipped" in capsys.readouterr().out
    assert "| `all` | 3 |" in page.read_text()
    assert str(Path.home()) not in page.read_text()
