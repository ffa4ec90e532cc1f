"""Command lines: one frozen dataclass per command, parsed by tyro, with the spellings of the manuals."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import os
import re
import select
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TextIO, TypeVar

from serl_fast.errors import MissingExtraError, require

BOOLEANS = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}

HEAD_START = 2.0  # s: torchrun ends all processes when the first one ends, and rank 0 is to be heard

DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nobody's mistake, and nothing to trace

Config = TypeVar("Config")


def parse(
    config: type[Config],
    argv: Sequence[str] | None = None,
    *,
    description: str,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    prog: str | None = None,
) -> Config:
    """Parse ``argv`` into ``config``.

    Of processes that torchrun started, which all have the same flags, the first alone says what is wrong with them.

    Flags are the field names with underscores (hyphens work too). A boolean is set by ``--flag``, ``--no_flag``,
    ``--flag=True`` or ``--flag False``. ``--preset NAME`` replaces defaults; flags given explicitly win.

    Args:
        config: a dataclass; its docstring's attributes become the help texts.
        argv: arguments, by default the process's.
        description: what the command does, shown by ``--help``.
        presets: default values by preset name.
        prog: the command's name in its help, by default the process's.
    """
    tyro = require("tyro", "sim")
    with _said_once():
        arguments = plain_booleans(config, list(sys.argv[1:] if argv is None else argv))
        default = None
        if presets:
            chosen = _option(arguments, "preset")
            if chosen is not None and chosen in presets:
                default = config(**presets[chosen])
        parsed: Config = tyro.cli(
            config, args=arguments, description=description, default=default, use_underscores=True, prog=prog
        )
    return parsed


@contextlib.contextmanager
def _said_once() -> Iterator[None]:
    """Print nothing on other ranks than 0, and end there with the status with which :func:`main` ends rank 0."""
    if os.environ.get("RANK", "0") == "0":
        yield
        return
    status: str | int | None = None
    try:
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
            yield
        return
    except SystemExit as ended:
        status = ended.code
    except ValueError:
        status = 2
    time.sleep(HEAD_START)
    raise SystemExit(status)


def plain_booleans(config: type[Any], arguments: list[str]) -> list[str]:
    """Rewrite ``--flag=True`` and ``--flag False`` of boolean fields as ``--flag`` and ``--no_flag``."""
    booleans = {f.name for f in dataclasses.fields(config) if f.type in (bool, "bool")}
    rewritten: list[str] = []
    index = 0
    while index < len(arguments):
        argument = arguments[index]
        name, equals, value = argument.removeprefix("--").partition("=")
        name = name.replace("-", "_")
        if argument.startswith("--") and name in booleans:
            if not equals and index + 1 < len(arguments) and arguments[index + 1].lower() in BOOLEANS:
                index += 1
                value = arguments[index]
            if value and value.lower() not in BOOLEANS:
                raise ValueError(f"--{name} is {value!r}; accepted: {', '.join(BOOLEANS)}")
            argument = f"--{name}" if BOOLEANS.get(value.lower(), True) else f"--no_{name}"
        rewritten.append(argument)
        index += 1
    return rewritten


def import_callable(name: str, what: str) -> Callable[..., Any]:
    """The attribute that ``module:callable`` names.

    Raises:
        ValueError: the module or its attribute is not there; ``what`` says what it was to be.
    """
    module, separator, attribute = name.partition(":")
    try:
        if not separator:
            raise ValueError("no ':' in it")
        found: Callable[..., Any] = getattr(importlib.import_module(module), attribute)
        return found
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{what} {name!r} can not be loaded ({error}); give module:callable") from error


def _option(arguments: Sequence[str], name: str) -> str | None:
    for index, argument in enumerate(arguments):
        if argument == f"--{name}" and index + 1 < len(arguments):
            return arguments[index + 1]
        match = re.fullmatch(rf"--{name}=(.*)", argument)
        if match:
            return match[1]
    return None


def main(run: Callable[[], int]) -> None:
    """Run a command: a user's mistake is one line on stderr and exit status 2, not a traceback; a full disk status 1.

    A reader of its output that goes away, as ``head`` does, ends it with exit status 1 and without a word.
    """
    try:
        status = run()
        sys.stdout.flush()
        sys.exit(status)
    except BrokenPipeError:
        if not _unread(sys.stdout):
            raise  # another pipe's
        # The interpreter flushes once more on its way out.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, MissingExtraError, FileNotFoundError, FileExistsError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)


def _unread(stream: TextIO) -> bool:
    """Whether a stream is a pipe whose reader has gone."""
    try:
        poll = select.poll()
        poll.register(stream, select.POLLOUT)
        return any(event & select.POLLERR for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call here, or no file behind the stream
        return False
