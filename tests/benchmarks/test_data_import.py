"""The import benchmark: both sides read the same, and the page holds a row for every format."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data_import

NEEDS = {"d4rl": "h5py", "robomimic": "h5py", "minari": "minari", "lerobot": "av"}


@pytest.mark.parametrize("name", data_import.FORMATS)
def test_the_plain_loop_reads_what_the_reader_reads(name, tmp_path):
    pytest.importorskip(NEEDS.get(name, "numpy"))
    folder = tmp_path / name
    folder.mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path, count = data_import.make(name, folder, 0.001)
    (folder / "transitions.txt").write_text(str(count))
    ours, plain = data_import.ours(path).batch_at(np.arange(count)), data_import.plain(path).arrays
    for field in ("actions", "rewards", "masks"):
        np.testing.assert_array_equal(ours[field], plain[field], err_msg=field)
    for part in ("observations", "next_observations"):
        assert set(ours[part]) == set(plain[part])
        for key, value in plain[part].items():
            np.testing.assert_array_equal(ours[part][key], value, err_msg=f"{part}/{key}")


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("benchmarks.machine.busy_cores", lambda: 0.0)
    page = tmp_path / "page.md"
    flags = ["--rounds", "2", "--scale", "0.1", "--formats", "pickle", "--output", str(page)]
    assert data_import.run(flags) == 0
    (row,) = [line for line in page.read_text().splitlines() if line.startswith("| pickle")]
    *_, ours, loop, _ = row.split("|")
    content = 300 * (64 * 64 * 3 + 4 * data_import.STATE) / 1e6
    assert int(ours) >= int(content)
    assert int(loop) >= int(2 * content)  # which has every frame twice
    with pytest.raises(ValueError, match="formats are zarr; choose from pickle"):
        data_import.run(["--formats", "zarr"])
