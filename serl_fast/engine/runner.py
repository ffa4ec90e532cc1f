"""Runs programs on the highest rung of the ladder graphed, compiled, eager that works."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from serl_fast.core import Batch
from serl_fast.engine.compiling import (
    REBUILT,
    RECOMPILED,
    ExecutionError,
    can_trace_autograd,
    compile_function,
    graphs_compiled,
    reason_of,
)
from serl_fast.engine.config import BELOW, EngineConfig, Execution
from serl_fast.engine.graphs import CapturedProgram, CudaGraphs, Watch, own_memory
from serl_fast.engine.memory import keep_freed_memory
from serl_fast.engine.programs import Builder, Drawn, Parts, Program, draw, kept_of, rows_of

Key = tuple[int, bool]
"""Number of updates of a call, and whether the last has the actor's objectives."""


class _Built:
    """Programs for the networks' modes as they are, and what builds more of them."""

    def __init__(self, builder: Builder) -> None:
        self.builder = builder
        self.programs: dict[Key, Program | CapturedProgram] = {}


class Runner:
    """Builds programs when they are first asked for, and runs them.

    Args:
        parts: what programs are built from; ``compile_part`` and ``compile_whole`` are set here.
        config: execution and precision.
        device: of the engine.
        generator: of the noise.
        save: a copy of everything that a program writes; raises if an update before has failed, since what is put back
            knows nothing of that.
        restore: puts such a copy back, in place.

    Attributes:
        execution: how programs run; a lower rung after a failure.
        newest: batch and noise of the last call; nothing for one that was captured.
    """

    def __init__(
        self,
        parts: Parts,
        config: EngineConfig,
        device: torch.device,
        generator: torch.Generator,
        save: Callable[[], Any],
        restore: Callable[[Any], None],
    ) -> None:
        self._parts, self._config, self._device, self._generator = parts, config, device, generator
        self._save, self._restore = save, restore
        self.execution: Execution = config.execution
        self.newest: tuple[Batch, Drawn] | None = None
        self._graphs: CudaGraphs | None = None
        self._forget()
        self._memory: dict[int, Batch] = {}  # of captured programs, by their updates
        self._watch = Watch(parts.agent.networks)
        self._names: dict[str, list[str]] = {}  # of trained parameters, by their optimizer
        for name in parts.adam:
            self._trained(name)
        self._said = False
        self._generation = getattr(parts.source, "generation", 0)

    def run(self, key: Key, batch: Batch, at: int) -> list[dict[str, Tensor]]:
        """Run a program.

        Args:
            key: which one.
            batch: rows of all its updates; empty where a source draws them.
            at: number of the first update, for messages.

        Returns:
            The metrics of every update.

        Raises:
            ExecutionError: it can not be captured or compiled, and ``config.strict``.
            ValueError: other parameters take a gradient than when the engine was built.
        """
        self._notice_changes(at)
        program = self._built.programs.get(key)
        if program is None:
            return self._first(key, batch, at)
        if isinstance(program, CapturedProgram):
            return program(batch)
        drawn = self._draw(key, batch)
        self.newest = batch, drawn
        if self.execution == "eager" or self._said:
            return program(batch, drawn)
        compiled = graphs_compiled()
        metrics = program(batch, drawn)
        if graphs_compiled() > compiled:
            self._say(RECOMPILED.format(at))
        return metrics

    def _draw(self, key: Key, batch: Batch) -> Drawn:
        source, updates = self._parts.source, key[0]
        size = source.batch_size if source else rows_of(batch) // updates
        return draw(self._parts, self._generator, updates, size, self._device)

    def _first(self, key: Key, batch: Batch, at: int) -> list[dict[str, Tensor]]:
        """Build and run a program, on a lower rung from the same state where it fails."""
        if self._device.type == "cpu":
            keep_freed_memory()
        asked, failures = self.execution, []
        saved = None if asked == "eager" else self._save()
        while True:
            try:
                metrics = self._start(key, batch, saved, at)
                break
            except Exception as error:  # compilers raise every kind
                if asked != "eager":
                    self._restore(saved)
                if self.execution == "eager":  # a mistake in the agent or the batch, as what it is
                    self._fall_to(asked)
                    raise
                failures.append((self.execution, error))
                self._fall_to(BELOW[self.execution])
        if failures and self._config.strict:
            self._restore(saved)
            self._fall_to(asked)
            raise ExecutionError(
                f"execution {asked!r} failed ({reason_of(failures[0][1])}) and strict execution is on"
            ) from failures[0][1]
        for execution, reason in failures:
            said = f"execution {execution!r} failed, going on with {BELOW[execution]!r}: {reason_of(reason)}"
            print(said, file=sys.stderr, flush=True)
        return metrics

    def _fall_to(self, execution: Execution) -> None:
        if execution != self.execution:
            self.execution = execution
            self._forget()

    def _forget(self) -> None:
        """Build everything anew."""
        if self._graphs is not None:
            self._graphs.renew_pool()
        self._built = _Built(self._builder())
        self._by_modes: dict[tuple[bool, ...], _Built] = {}
        self._modes: list[bool] = []

    def _start(self, key: Key, batch: Batch, saved: Any, at: int) -> list[dict[str, Tensor]]:
        """Build a program, warm it up and capture it if that is asked for, and run it once from the state as it is."""
        drawn = self._draw(key, batch)
        if (guard := self._parts.options.guard) is not None:
            kept = kept_of(batch, drawn, 0, key[0], self._parts.source)
            guard.prepare_to_keep(kept["batch"], kept["noise"])
        program = self._built.builder.build(*key)
        if self.execution != "eager" and any(key in built.programs for built in self._by_modes.values()):
            again = "captured" if self.execution == "graphed" else "compiled"
            self._say(REBUILT.format(again, at, "train(), eval() or requires_grad changed"))
        if self.execution != "graphed":
            self.newest = batch, drawn
            metrics = program(batch, drawn)
            self._built.programs[key] = program
            return metrics
        self._graphs = self._graphs or CudaGraphs(self._device, self._generator)
        if key[0] not in self._memory:
            self._memory[key[0]] = own_memory(batch)
        captured = CapturedProgram(
            self._graphs, lambda given: program(given, self._draw(key, given)), self._memory[key[0]]
        )
        self._restore(saved)  # to warm up is to train
        self._built.programs[key] = captured
        return captured(batch)

    def _builder(self) -> Builder:
        parts = self._parts
        if self.execution != "eager":
            if can_trace_autograd():
                torch._dynamo.config.trace_autograd_ops = True
                whole = functools.partial(compile_function, calls_from_cpp=self._device.type == "cpu")
                parts = parts._replace(compile_whole=whole)
            else:
                parts = parts._replace(options=parts.options._replace(compile_part=compile_function))
        return Builder(parts)

    def _notice_changes(self, at: int) -> None:
        """Forget programs that would write to, or read, tensors that are no longer the networks' or the source's."""
        graphed = self.execution == "graphed"
        if self._generation != (generation := getattr(self._parts.source, "generation", 0)):
            self._generation = generation
            self._forget()
        replaced = self._watch.replaced()
        if replaced or (graphed and self._watch.moved()):
            networks = self._parts.agent.networks.to(self._device)
            for name, state in self._parts.adam.items():
                state.parameters = list(self._trained(name).values())
            self._watch = Watch(networks)
            if self._built.programs and self.execution != "eager":
                again = "captured" if graphed else "compiled"
                self._say(REBUILT.format(again, at, "a network's tensors were replaced"))
            self._forget()
        if (modes := self._watch.modes(training=graphed)) != self._modes:
            for name in self._parts.adam:
                self._trained(name)
            self._modes = modes
            self._built = self._by_modes.setdefault(tuple(modes), _Built(self._builder()))

    def _trained(self, name: str) -> dict[str, Tensor]:
        """The parameters of an optimizer by their names in the networks.

        Raises:
            ValueError: they are not those that it was built for.
        """
        networks = self._parts.agent.networks
        found: dict[str, Tensor] = {
            f"{key}.{parameter_name.removeprefix('_orig_mod.')}": parameter  # of networks in torch.compile
            for key in self._parts.agent.optimized[name]
            for parameter_name, parameter in networks[key].named_parameters()
            if parameter.requires_grad
        }
        expected = self._names.setdefault(name, list(found))
        if list(found) == expected:
            return found
        changed = sorted(set(found) ^ set(expected))
        was = "frozen" if changed[0] in expected else "made trainable"
        raise ValueError(
            f"{changed[0]} was {was} after the engine was built, and optimizer {name!r} has moments for "
            f"{len(expected)} tensors, not {len(found)}; set requires_grad first, or build a new Engine"
        )

    def _say(self, line: str) -> None:
        if not self._said:
            self._said = True
            print(line, file=sys.stderr, flush=True)
