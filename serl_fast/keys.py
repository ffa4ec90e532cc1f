"""Keys that are pressed in the terminal in which a command runs, without waiting for one."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Callable, Iterator
from types import ModuleType


def _terminal_modules() -> tuple[ModuleType, ModuleType]:
    try:
        import termios
        import tty
    except ImportError:
        raise ValueError("keys can not be read on this system, which has no termios; use --labels scripted") from None
    return termios, tty


@contextlib.contextmanager
def pressed_keys() -> Iterator[Callable[[], str]]:
    """A function that returns the keys pressed since it was last called; Ctrl-C stays what it is.

    A key that is held is repeated by the terminal, after a moment.

    Raises:
        ValueError: the command does not run in a terminal.
    """
    termios, tty = _terminal_modules()
    if not sys.stdin.isatty():
        raise ValueError("keys are read from a terminal, and there is none; run it in one, or use --labels scripted")
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)

    def read() -> str:
        keys = b""
        while select.select([descriptor], [], [], 0.0)[0]:
            chunk = os.read(descriptor, 1024)
            if not chunk:
                break
            keys += chunk
        return keys.decode(errors="ignore")

    try:
        tty.setcbreak(descriptor)
        yield read
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
