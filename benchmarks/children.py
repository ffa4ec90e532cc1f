"""Libraries in processes of their own, asked in turns over pipes.

A process of its own keeps a library's packages, thread pools and memory apart from the others', and lets it have an
interpreter of its own. Requests and answers are lines of JSON. The standard library only: every child imports this.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.metadata
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ANSWER_LIMIT = 90.0  # seconds


class Unsupported(Exception):
    """The library does not offer this; the message says what it lacks."""


class Child:
    """A worker process: ``python -m module arguments``, which calls :func:`serve`.

    A process that ends, or gives no answer in time and is killed then, answers every later request with the reason.

    Args:
        name: of what it measures.
        module: of this repository.
        arguments: of the module's command line.
        python: interpreter; this one's by default.
        environment: variables beyond this process's.
        limit: seconds that an answer may take.
        folder: where the module is found.

    Attributes:
        built: its answer to the request that built it.
        broken: why it answers no more.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
        limit: float = ANSWER_LIMIT,
        folder: Path = Path(__file__).parents[1],
    ) -> None:
        self.name, self.limit = name, limit
        self.built: dict[str, Any] = {}
        self.broken = ""
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments], env=os.environ | dict(environment or {}), text=True,
            cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
            start_new_session=True,
        )  # fmt: skip

    def send(self, do: str, **request: Any) -> None:
        with contextlib.suppress(BrokenPipeError, ValueError):  # answer() will say so
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)

    def answer(self, limit: float | None = None) -> dict[str, Any]:
        if self.broken:
            return {"missing": self.broken}
        seconds = self.limit if limit is None else limit
        expired = threading.Event()
        timer = threading.Timer(seconds, lambda: (expired.set(), self.kill()))
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        if expired.is_set():
            self.broken = f"no answer within {seconds:.0f} s"
        else:
            self.errors.seek(0)
            said = self.errors.read().strip().splitlines() or [""]
            self.broken = f"its process ended ({said[-1][:200]})"
        return {"missing": self.broken}

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        self.send(do, **request)
        return self.answer()

    def kill(self) -> None:
        """End the process and those it started."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()


@dataclass(frozen=True)
class Asked:
    """Work in a child process, as :class:`benchmarks.suite.Timed`: the child times it itself.

    Attributes:
        child: answers "rate" with units a second.
        request: what it is asked beside the seconds.
        units: of one call.
        key: of its answer.
    """

    child: Child
    request: Mapping[str, Any]
    units: float = 1.0
    key: str = "rate"

    def seconds_per_call(self, seconds: float) -> float:
        """Seconds of one call, measured for about ``seconds``; 0 asks for a single call.

        Raises:
            RuntimeError: the child cannot say.
        """
        answer = self.child.ask(**{"do": "rate", **self.request}, seconds=seconds)
        if "missing" in answer:
            raise RuntimeError(answer["missing"])
        return self.units / answer[self.key]


def built_children(started: Sequence[Child], limit: float, **request: Any) -> tuple[list[Child], dict[str, str]]:
    """Ask all to "build" at once: those that did, and by name why the others did not."""
    for child in started:
        child.send("build", **request)
    alive, why = [], {}
    for child in started:
        child.built = child.answer(limit)
        if "missing" in child.built:
            why[child.name] = child.built["missing"]
            child.close()
        else:
            alive.append(child)
    return alive, why


def interpreter(modules: Sequence[str], pythons: Sequence[str]) -> str | None:
    """The first of ``pythons`` that finds all ``modules``."""
    return next((python for python in pythons if all(name in _found(python, tuple(modules)) for name in modules)), None)


@functools.cache
def _found(python: str, modules: tuple[str, ...]) -> tuple[str, ...]:
    if python == sys.executable:
        return tuple(name for name in modules if importlib.util.find_spec(name) is not None)
    code = "import importlib.util, sys; print(*(n for n in sys.argv[1:] if importlib.util.find_spec(n)))"
    try:
        run = subprocess.run([python, "-c", code, *modules], capture_output=True, text=True, timeout=ANSWER_LIMIT)
    except OSError as error:
        raise ValueError(f"the peers' interpreter {python!r} cannot be run ({error}); give a Python's path") from error
    if run.returncode:
        raise ValueError(f"the peers' interpreter {python!r} failed: {run.stderr.strip()[-200:]}")
    return tuple(run.stdout.split())


def answers_alone() -> Any:
    """A file for the answers; what libraries print on standard output goes to standard error from now on."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return answers


def serve(worker: Any, answers: Any) -> None:
    """Call the methods of ``worker`` that standard input asks for, until it is closed."""
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("do"))(**request)
        except Unsupported as error:
            answer = {"missing": str(error)}
        except ImportError as error:
            answer = {"missing": f"not installed ({error})".replace("\n", " ")}
        except Exception as error:
            answer = {"missing": f"its code raised {type(error).__name__}: {error}".replace("\n", " ")[:300]}
        print(json.dumps(answer), file=answers, flush=True)


def calls_per_second(function: Callable[[], Any], seconds: float) -> float:
    """At least one call, without garbage collection."""
    gc.collect()
    gc.disable()
    try:
        calls, start = 0, time.perf_counter()
        while True:
            function()
            calls += 1
            elapsed = time.perf_counter() - start
            if elapsed >= seconds:
                return calls / elapsed
    finally:
        gc.enable()


def version(package: str) -> str:
    """Of an installed distribution."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "of this repository"
