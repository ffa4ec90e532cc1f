"""A checkpoint is written whole or not at all, and read without running code."""

import os
import pickle

import pytest
import torch

from serl_fast.checkpoint import CheckpointError, latest_checkpoint, load_checkpoint, save_checkpoint


def test_round_trip(tmp_path):
    path = save_checkpoint(tmp_path / "deep" / "checkpoint_1.pth", {"a": torch.arange(3), "b": {"c": [1, "x", None]}})
    content = load_checkpoint(path)
    assert torch.equal(content["a"], torch.arange(3))
    assert content["b"] == {"c": [1, "x", None]}


def test_a_failed_write_leaves_the_old_file_whole(tmp_path, monkeypatch):
    path = save_checkpoint(tmp_path / "checkpoint_1.pth", {"a": 1})

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_checkpoint(path, {"a": 2})
    monkeypatch.undo()
    assert load_checkpoint(path)["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1.pth"]


def test_the_latest_has_the_highest_step(tmp_path):
    for step in (9, 100, 20):
        save_checkpoint(tmp_path / f"checkpoint_{step}.pth", {})
    (tmp_path / "checkpoint_abc.pth").touch()
    assert latest_checkpoint(tmp_path).name == "checkpoint_100.pth"


def test_a_truncated_checkpoint_is_named(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoint_1.pth", {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"checkpoint_1\.pth: not a readable checkpoint"):
        load_checkpoint(path)


def test_a_hostile_checkpoint_runs_nothing(tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "owned"),)

    path = tmp_path / "checkpoint_1.pth"
    torch.save({"format_version": 1, "x": Hostile()}, path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(CheckpointError):
        load_checkpoint(path)
    assert not (tmp_path / "owned").exists()


@pytest.mark.parametrize("size", [1 << 16, 1 << 22], ids=["in its first bytes", "later"])
def test_a_disk_that_fills_up_is_named(size, tmp_path):
    resource = pytest.importorskip("resource")
    path = save_checkpoint(tmp_path / "checkpoint_1.pth", {"a": 1})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        with pytest.raises(OSError, match=r"checkpoint_1\.pth"):
            save_checkpoint(path, {"a": torch.zeros(1 << 20), "b": [torch.zeros(1000)] * 3})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert load_checkpoint(path)["a"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint_1.pth"]
