"""Signals that end a process, for commands that hold what can not be had again."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

Handler = Callable[[int, FrameType | None], Any] | signal.Handlers


@contextlib.contextmanager
def ending_signals(handler: Handler) -> Iterator[None]:
    """Handle Ctrl-C, SIGTERM and the end of the terminal (SIGHUP) meanwhile, in the main thread, which alone gets them.

    What the process was told to ignore, as by nohup, it still ignores.

    Args:
        handler: as for ``signal.signal``.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP"):  # absent on Windows
        numbers.append(signal.SIGHUP)
    ours = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, handler) for number in ours}
    try:
        yield
    finally:
        for number, before in previous.items():
            signal.signal(number, before)


def interrupt(number: int, frame: FrameType | None) -> None:
    """A handler: every ending signal is what Ctrl-C is."""
    raise KeyboardInterrupt
