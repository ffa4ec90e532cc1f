"""A policy on the highest rung of the ladder graphed, compiled, eager that works: what every way of acting runs.

:class:`PolicyProgram` is the mechanism; ``serl_fast.engine.acting.PolicyRunner`` gives it networks of the actor's own,
:class:`LivePolicy` those that are being trained.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from serl_fast.core import Agent, Observations, Policy, require_policy
from serl_fast.engine.compiling import ExecutionError, compile_function, reason_of
from serl_fast.engine.config import BELOW, Execution
from serl_fast.engine.graphs import WARM_UP_CALLS, Watch, own_memory

ACTING_THREADS = 1
"""Threads that one observation is worth on a CPU: a team waits for its slowest member at every layer."""

Run = Callable[[Observations, Tensor | None], Tensor]


class PolicyProgram:
    """A policy, compiled or captured when it is first called; one rung lower, which one line says, where that fails.

    Args:
        policy: what to run.
        networks: with which; what is compiled does not look whether they became others.
        execution: how.
        strict: a policy that does not compile is an error.
        cuda: graphs, ``torch.cuda`` or a stand-in; None: nothing is captured.
        stream: of ``cuda``, the current one at every call.

    Attributes:
        execution: a lower rung than was asked for after a failure.
    """

    def __init__(
        self,
        policy: Policy,
        networks: nn.ModuleDict,
        execution: Execution,
        *,
        strict: bool = False,
        cuda: Any = None,
        stream: Any = None,
    ) -> None:
        self._policy, self._networks = policy, networks
        self.execution, self._strict = execution, strict
        self._cuda, self._stream = cuda, stream
        self._runs: dict[bool, Run] = {}

    def __call__(self, observations: Observations, noise: Tensor | None) -> Tensor:
        """The actions [B, A] for standard normal noise [B, A], or the modes for None.

        Under "graphed" the tensors must be the same at every call, and the next one overwrites the result.

        Raises:
            ExecutionError: the policy does not compile, and ``strict``.
        """
        run = self._runs.get(noise is None)
        return self._first(observations, noise) if run is None else run(observations, noise)

    def _first(self, observations: Observations, noise: Tensor | None) -> Tensor:
        asked, failures = self.execution, []
        while True:
            try:
                run = self._build(observations, noise)
                actions = run(observations, noise)
                break
            except Exception as error:  # compilers raise every kind
                failures.append((self.execution, error))
                if self.execution == "eager":  # a mistake of the policy or of the observations
                    self.execution = asked
                    raise
                self.execution = BELOW[self.execution]
        if failures and self._strict:
            self.execution = asked
            reason = reason_of(failures[0][1])
            raise ExecutionError(
                f"acting by execution {asked!r} failed ({reason}) and strict execution is on"
            ) from failures[0][1]
        for execution, why in failures:
            said = f"acting by execution {execution!r} failed, going on with {BELOW[execution]!r}: {reason_of(why)}"
            print(said, file=sys.stderr, flush=True)
        if failures:
            self._runs = {}  # of the rung above
        self._runs[noise is None] = run
        return actions

    def _build(self, observations: Observations, noise: Tensor | None) -> Run:
        if self.execution == "eager":
            return self._call
        policy, networks = self._policy, self._networks

        def act(observations: Observations, noise: Tensor | None) -> Tensor:
            return policy(networks, observations, noise)

        run: Run = compile_function(act)
        if self.execution == "graphed" and self._cuda is not None:
            return CapturedPolicy(run, observations, noise, self._stream, self._cuda).replay
        return run

    def _call(self, observations: Observations, noise: Tensor | None) -> Tensor:
        return self._policy(self._networks, observations, noise)


class CapturedPolicy:
    """A policy as one CUDA graph over tensors of fixed address.

    Args:
        run: what to capture, compiled before.
        observations: read at every replay, where they are now.
        noise: likewise; None for the mode.
        stream: the current stream, on which the graph is captured and replayed.
        cuda: graphs; ``torch.cuda``, except in tests.
    """

    def __init__(self, run: Run, observations: Observations, noise: Tensor | None, stream: Any, cuda: Any) -> None:
        for _ in range(WARM_UP_CALLS):
            run(observations, noise)
        self._graph = cuda.CUDAGraph()
        # Thread-local: another thread may use the device meanwhile.
        with cuda.graph(self._graph, stream=stream, capture_error_mode="thread_local"):
            self._action = run(observations, noise)

    def replay(self, observations: Observations, noise: Tensor | None) -> Tensor:
        """The action [1, A] for what the captured tensors hold now; the next replay overwrites it."""
        self._graph.replay()
        return self._action


class LivePolicy:
    """A policy on tensors, with the parameters that its agent has at every call: behind ``Engine.act``.

    One observation (B = 1) runs on the ladder; of several, of whatever number, each operation is large enough to be run
    by itself. On a CUDA device one observation has a stream of its own. Not yet run on a CUDA device.

    Args:
        agent: whose policy, with the networks that it has.
        device: where they are.
        generator: of the noise of samples.
        execution: see :func:`suited`.
        strict: a policy that does not compile is an error.
        cuda: streams and graphs; by default ``torch.cuda`` on a CUDA device, a stand-in in tests.

    Raises:
        ValueError: the agent has no policy.
    """

    def __init__(
        self,
        agent: Agent,
        device: torch.device,
        generator: torch.Generator,
        execution: Execution,
        *,
        strict: bool = False,
        cuda: Any = None,
    ) -> None:
        self._agent, self._policy = agent, require_policy(agent)
        self._device, self._generator = device, generator
        self._execution, self._strict = execution, strict
        self._cuda = torch.cuda if cuda is None and device.type == "cuda" else cuda
        self._stream: Any = None if self._cuda is None else self._cuda.Stream(device, priority=-1)
        self._program: PolicyProgram | None = None
        self._watch: Watch | None = None
        self._built_for: Any = None
        self._memory: tuple[Observations, Tensor] | None = None

    @property
    def execution(self) -> Execution:
        """How one observation is acted on; a lower rung than was asked for after a failure."""
        return self._execution if self._program is None else self._program.execution

    def act(self, observations: Observations, deterministic: bool) -> Tensor:
        """Actions [B, A] in memory of the host, by one copy; see ``Engine.act``."""
        size = next(iter(observations.values())).shape[0]
        noise = None
        if not deterministic:
            shape = (size, self._agent.policy_noise_dim)
            noise = torch.randn(shape, generator=self._generator, device=self._device)
        with torch.no_grad():
            if size != 1:
                return on_host(self._policy(self._agent.networks, observations, noise))
            if self._stream is None:
                with with_threads(ACTING_THREADS, self._device):
                    return on_host(self._single(observations, noise))
            self._stream.wait_stream(self._cuda.current_stream(self._device))
            with self._cuda.stream(self._stream):
                action = on_host(self._single(observations, noise))
            self._stream.synchronize()  # of this stream alone
            return action

    def _single(self, observations: Observations, noise: Tensor | None) -> Tensor:
        program = self._program_for(observations)
        if program.execution != "graphed" or self._cuda is None:
            return program(observations, noise)
        if self._memory is None:
            width = (1, self._agent.policy_noise_dim)
            self._memory = own_memory(observations), torch.empty(width, device=self._device)
        mine, its_noise = self._memory
        torch._foreach_copy_([mine[name] for name in observations], list(observations.values()))
        return program(mine, None if noise is None else its_noise.copy_(noise))

    def _program_for(self, observations: Observations) -> PolicyProgram:
        """The program; a new one for observations of other shapes and for networks that became others."""
        held = [self._agent.networks[name] for name in self._agent.policy_networks]
        shapes = {name: (value.shape, value.dtype) for name, value in observations.items()}
        watch = self._watch
        if watch is None or held != self._built_for[0] or watch.replaced() or watch.moved():
            watch = Watch(nn.ModuleDict(dict(zip(self._agent.policy_networks, held, strict=True))))
        built_for = held, shapes, watch.modes(training=True)
        if self._program is None or watch is not self._watch or built_for != self._built_for:
            self._program = PolicyProgram(
                self._policy,
                self._agent.networks,
                suited(self.execution, observations.values(), 4, self._cuda is not None),
                strict=self._strict,
                cuda=self._cuda,
                stream=self._stream,
            )
            self._watch, self._built_for, self._memory = watch, built_for, None
        return self._program


def suited(execution: Execution, observations: Iterable[Any], image_dims: int, on_cuda: bool) -> Execution:
    """``execution``, or "eager" where that is faster: for images on a CPU.

    There convolutions take nearly all of the time, and a compiled policy is no faster.

    Args:
        execution: what was asked for.
        observations: arrays or tensors.
        image_dims: how many dimensions an image has among them.
        on_cuda: whether acting happens on a CUDA device.
    """
    return "eager" if not on_cuda and any(value.ndim >= image_dims for value in observations) else execution


def on_host(actions: Tensor) -> Tensor:
    """A copy in memory of the host, which later calls do not overwrite; waits for the current stream."""
    return torch.empty(actions.shape, dtype=actions.dtype).copy_(actions)


@contextlib.contextmanager
def with_threads(count: int, device: torch.device) -> Iterator[None]:
    """Run with ``count`` of torch's threads on the CPU, and with as many as before afterwards.

    Teams belong to the thread that starts them: what runs in other threads at the same time keeps its own. (A thread
    that begins meanwhile, and does not say how many it wants, gets ``count``.)
    """
    before = torch.get_num_threads()
    if device.type != "cpu" or before == count:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
