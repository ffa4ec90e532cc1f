"""A folder that one process writes to keeps others out, however that process ends."""

import contextlib
import signal
import subprocess
import sys

import pytest

from serl_fast.files import FolderInUseError, held_alone

pytest.importorskip("fcntl")

# Its child lives on behind it, until nothing more can come.
HOLDER = """
import os, sys
from serl_fast.files import held_alone
held = held_alone(sys.argv[1])
if os.fork():
    print("held", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def holder(folder):
    """Another process that holds the folder."""
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_another_process_is_kept_out_until_the_first_is_killed(tmp_path):
    folder = tmp_path / "not there yet"
    with holder(folder) as process:
        with pytest.raises(FolderInUseError, match="not there yet is in use"):
            held_alone(folder)
        process.send_signal(signal.SIGKILL)
        process.wait()
        held_alone(folder).close()
    with holder(folder):  # closing it let others in
        pass
