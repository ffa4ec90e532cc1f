"""The programs in the guides run, and print what the guides say they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(guide):
    """Code and expected output (None: not stated) of every Python block; an output block follows its code."""
    text = (GUIDES / guide).read_text()
    found = []
    for match in BLOCK.finditer(text):
        language, body = match.groups()
        if language == "python":
            found.append([body, None])
        elif not language and found and text[: match.start()].rstrip().endswith(found[-1][0].rstrip() + "\n```"):
            found[-1][1] = body
    return found


def check(code, expected, names):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "guide", "exec"), names)
    if expected is not None:
        assert output.getvalue() == expected


def test_the_replay_guide_is_one_program(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    found = blocks("replay.md")
    assert sum(expected is not None for _, expected in found) >= 10
    for code, expected in found:
        check(code, expected, names)


@pytest.mark.parametrize(("code", "expected"), blocks("embed.md"), ids=["loop", "stable_baselines3", "lerobot"])
def test_each_block_of_the_embedding_guide_stands_alone(code, expected, tmp_path, monkeypatch):
    (package,) = re.findall(r"^# needs: (\S+)$", code, re.MULTILINE)
    pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    check(code, expected, {"__name__": "guide"})


def test_the_training_loop_has_forty_lines_at_most():
    assert len([line for line in blocks("embed.md")[0][0].splitlines() if line.strip()]) <= 40
