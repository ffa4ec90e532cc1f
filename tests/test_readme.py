"""What the README shows works as it stands."""

import re
from pathlib import Path

import numpy as np

README = (Path(__file__).parents[1] / "README.md").read_text()


def test_the_five_lines_that_embed_the_replay_store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len([line for line in code.splitlines() if line]) == 5
    observation = {"state": np.zeros(3, np.float32), "front": np.zeros((8, 8, 3), np.uint8)}
    transition = {
        "observations": observation,
        "actions": np.zeros(7, np.float32),
        "next_observations": observation,
        "rewards": 0.0,
        "masks": 1.0,
        "dones": False,
    }
    names = {"transition": transition}
    exec(code, names)
    assert names["batch"]["observations"]["front"].shape == (256, 8, 8, 3)
    assert names["ReplayStore"].load("replay").appended == 1


def test_every_file_it_points_to_is_there():
    for target in re.findall(r"\]\(([^)#]+)", README):
        assert (Path(__file__).parents[1] / target).exists(), target
