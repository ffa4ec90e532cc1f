"""What the README shows works as it stands."""

import re
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
PAGES = [path.relative_to(ROOT) for path in (*ROOT.glob("*.md"), *sorted((ROOT / "docs").rglob("*.md")))]


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


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_every_file_a_page_points_to_is_there(page):
    for target in re.findall(r"\]\(([^)#]+)", (ROOT / page).read_text()):
        if not target.startswith("http"):
            assert ((ROOT / page).parent / target).exists(), target
