"""SIGKILL at any instant: every transition whose append returned is there; see crash_rounds.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROUNDS = Path(__file__).with_name("crash_rounds.py")


@pytest.mark.parametrize(("what", "rounds"), [("kill", 200), ("reader", 20)])
def test_a_killed_writer_loses_nothing(what, rounds, tmp_path):
    command = [sys.executable, os.fspath(ROUNDS), what, os.fspath(tmp_path), str(rounds), "1"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
    assert "transition" in result.stdout
