"""The programs in the guides run, and print what the guides say they print."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path

import pytest

GUIDES = Path(__file__).parents[1] / "docs" / "guides"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(text):
    """Code and expected output (None: not stated) of every Python block; an output block follows its code."""
    found = []
    for match in BLOCK.finditer(text):
        language, body = match.groups()
        if language == "python":
            found.append([body, None])
        elif not language and found and text[: match.start()].rstrip().endswith(found[-1][0].rstrip() + "\n```"):
            found[-1][1] = body
    return found


def run(code, names):
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, "guide", "exec"), names)
    return output.getvalue()


@pytest.mark.parametrize("guide", ["replay.md", "embed.md"])
def test_a_guide_is_a_program(guide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "guide"}
    found = blocks((GUIDES / guide).read_text())
    assert found
    for code, expected in found:
        missing = re.match(r"# needs: (\S+)", code)
        if missing:
            try:
                __import__(missing.group(1))
            except ImportError:
                continue
        printed = run(code, names)
        if expected is not None:
            assert printed == expected
