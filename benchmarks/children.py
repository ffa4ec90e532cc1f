"""Libraries in processes of their own, asked in turns over pipes.

A process of its own keeps a library's packages, thread pools and memory apart from the others', and lets it have an
interpreter of its own. Requests and answers are lines of JSON. The standard library only: every child imports this.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.interleaved import Rate, summary

ANSWER_LIMIT = 90.0  # seconds


class Unsupported(Exception):
    """The library does not offer this; the message says what it lacks."""


class Child:
    """A worker process: ``python -m module arguments``, which calls :func:`serve`.

    Args:
        name: of what it measures.
        module: of this repository.
        arguments: of the module's command line.
        python: interpreter; this one's by default.
        environment: variables beyond this process's.

    Attributes:
        built: its answer to the request that built it.
    """

    def __init__(
        self,
        name: str,
        module: str,
        arguments: Sequence[str],
        python: str = sys.executable,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self.built: dict[str, Any] = {}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, "-m", module, *arguments], env=os.environ | dict(environment or {}), text=True,
            cwd=Path(__file__).parents[1], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
        )  # fmt: skip

    def send(self, do: str, **request: Any) -> None:
        with contextlib.suppress(BrokenPipeError):  # answer() will say so
            print(json.dumps({"do": do, **request}), file=self.process.stdin, flush=True)

    def answer(self, limit: float = ANSWER_LIMIT) -> dict[str, Any]:
        timer = threading.Timer(limit, self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        expired = not timer.is_alive()
        timer.cancel()
        if line:
            return json.loads(line)
        if expired:
            return {"missing": f"no answer within {limit:.0f} s"}
        self.errors.seek(0)
        said = self.errors.read().strip().splitlines() or [""]
        return {"missing": f"its process ended ({said[-1][:200]})"}

    def ask(self, do: str, **request: Any) -> dict[str, Any]:
        self.send(do, **request)
        return self.answer()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


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


def in_turns(
    alive: Sequence[Child], request: dict[str, Any], rounds: int, why: dict[str, str], label: str
) -> dict[str, dict[str, Rate]]:
    """Ask every child ``rounds`` times; the rates by child and by the keys of its answers.

    Args:
        alive: odd rounds ask them in the opposite order.
        request: its "do" is the name of a worker's method.
        rounds: at least 2.
        why: receives the reason for a child without an answer, under "<child>, <label>".
        label: of the request.
    """
    answers: dict[str, list[dict[str, float]]] = {child.name: [] for child in alive}
    for index in range(rounds):
        for child in alive[:: -1 if index % 2 else 1]:
            if child.name not in answers:
                continue
            answer = child.ask(**request)
            if "missing" in answer:
                why[f"{child.name}, {label}"] = answer["missing"]
                del answers[child.name]
            else:
                answers[child.name].append(answer)
    return {
        name: {key: summary([answer[key] for answer in given]) for key in given[0]} for name, given in answers.items()
    }


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
            answer = {"missing": f"failed: {type(error).__name__}: {error}".replace("\n", " ")[:300]}
        print(json.dumps(answer), file=answers, flush=True)
