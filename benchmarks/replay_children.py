"""Replay stores in processes of their own, asked in turns."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.interleaved import Rate, summary

FILL_LIMIT, ANSWER_LIMIT = 400.0, 90.0  # seconds


class Child:
    """A worker process."""

    def __init__(self, name: str, work: str, order: str, pythons: dict[str, str]) -> None:
        self.name, self.built = name, {}
        self.errors = tempfile.TemporaryFile("w+")  # noqa: SIM115
        environment = os.environ | ({"OMP_NUM_THREADS": "1"} if name.endswith("1 thread") else {})
        environment |= {"TF_CPP_MIN_LOG_LEVEL": "3"}
        command = [pythons.get(name, sys.executable), "-m", "benchmarks.replay_worker", name, work, order]
        self.process = subprocess.Popen(
            command, env=environment, text=True, cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors,
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


def filled_children(
    names: Sequence[str], pythons: dict[str, str], work: str, order: str, capacity: int
) -> tuple[list[Child], dict[str, str]]:
    """Processes with a filled store each, and why the others have none."""
    started = [Child(name, work, order, pythons) for name in names]
    for child in started:
        child.send("build", capacity=capacity)
    alive, why = [], {}
    for child in started:
        child.built = child.answer(FILL_LIMIT)
        if "missing" in child.built:
            why[child.name] = child.built["missing"]
            child.close()
        else:
            alive.append(child)
    return alive, why


def in_turns(
    alive: Sequence[Child], request: dict[str, Any], rounds: int, why: dict[str, str]
) -> dict[str, dict[str, Rate]]:
    """Ask every child ``rounds`` times; the rates by child and by the keys of its answers, gaps into ``why``."""
    answers: dict[str, list[dict[str, float]]] = {child.name: [] for child in alive}
    for index in range(rounds):
        for child in alive[:: -1 if index % 2 else 1]:
            if child.name not in answers:
                continue
            answer = child.ask(**request)
            if "missing" in answer:
                why[f"{child.name}, {request.get('task', request['do'])} {request['rows']}"] = answer["missing"]
                del answers[child.name]
            else:
                answers[child.name].append(answer)
    return {
        name: {key: summary([answer[key] for answer in given]) for key in given[0]} for name, given in answers.items()
    }
