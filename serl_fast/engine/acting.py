"""A policy for the actor's thread: its own copy of the networks, refreshed from numbered snapshots.

One call of :meth:`PolicyRunner.act` costs one copy of the observation into memory of fixed address, one run of the
policy and one copy of the action out.

* On a CPU the policy of a state observation is compiled, which takes 6 s before anything moves: a call of a 2 x 256
  policy takes 0.09 ms instead of 0.15 ms, on one thread or three (medians). With images the convolutions take nearly
  all of the time, 8 to 16 ms for two cameras of 128 x 128; compiling saves a tenth of it on one thread and adds a tenth
  to a quarter on three, so there it stays eager. ``python -m benchmarks.acting`` measures both.
* On a CUDA device observations go through page-locked memory and a stream of high priority, so that an action does not
  wait for updates that are queued; under "graphed" the compiled policy is one CUDA graph. Not yet run on a CUDA device.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serl_fast.core import Agent, Observations, Policy, require_policy
from serl_fast.engine.compiling import ExecutionError, compile_function, reason_of
from serl_fast.engine.config import BELOW, Execution
from serl_fast.engine.graphs import WARM_UP_CALLS
from serl_fast.engine.snapshot import PolicyPublisher, PolicySnapshot

ALIGNMENT = 64  # bytes, of each observation's start in a block

Run = Callable[[Observations, Tensor | None], Tensor]


class PolicyRunner:
    """Acts from NumPy observations with parameters that only change in :meth:`refresh`.

    Args:
        agent: whose policy to run; its policy networks are copied.
        seed: of the exploration noise.
        device: where acting happens.
        execution: how the policy runs. "compiled" and "graphed" stay eager where that is faster (see the module).
        strict: a policy that does not compile is an error; otherwise it runs eagerly, which is said in one line.
        cuda: streams, events and graphs; by default ``torch.cuda`` on a CUDA device, a stand-in in tests.

    Attributes:
        execution: "eager" after a compilation failed.
        version: of the snapshot in use; 0: the parameters that the agent had.
        updates: gradient steps behind them.
    """

    def __init__(
        self,
        agent: Agent,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
        execution: Execution = "eager",
        strict: bool = False,
        cuda: Any = None,
    ) -> None:
        self.device = torch.empty(0, device=device).device
        networks = nn.ModuleDict({name: agent.networks[name] for name in agent.policy_networks})
        self._networks = copy.deepcopy(networks).to(self.device)
        self._policy = require_policy(agent)
        self.execution, self._strict = execution, strict
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._noise = torch.empty(1, agent.policy_noise_dim, device=self.device)
        self.version = 0
        self.updates = 0
        self._cuda = torch.cuda if cuda is None and self.device.type == "cuda" else cuda
        self._stream: Any = None if self._cuda is None else self._cuda.Stream(self.device, priority=-1)
        self._memory: ObservationMemory | None = None
        self._action: Tensor | None = None
        self._runs: dict[bool, Run] = {}

    def refresh(self, publisher: PolicyPublisher) -> bool:
        """Take the newest snapshot, if there is a newer one; says whether there was."""
        snapshot = publisher.newest(after=self.version)
        if snapshot is None:
            return False
        self.load(snapshot)
        return True

    def load(self, snapshot: PolicySnapshot) -> None:
        """Use the parameters of ``snapshot``. They are copied into place: what was compiled or captured stays valid."""
        if self._cuda is None:
            snapshot.load_into(self._networks)
        else:
            with self._cuda.stream(self._stream):
                snapshot.load_into(self._networks)
        self.version, self.updates = snapshot.version, snapshot.updates

    def warm_up(self, observation: dict[str, np.ndarray]) -> None:
        """Compile (and capture) samples and modes before anything moves; draws no noise that :meth:`act` would draw.

        Args:
            observation: of the shapes and dtypes to come; its values do not matter.

        Raises:
            ExecutionError: the policy does not compile, and ``strict``.
        """
        state = self.generator.get_state()
        for deterministic in (False, True):
            self.act(observation, deterministic)
        self.generator.set_state(state)

    def act(self, observation: dict[str, np.ndarray], deterministic: bool = False) -> np.ndarray:
        """The action float32 [A] for one observation without batch axis: a sample, or the mode.

        Raises:
            ValueError: the observation's fields or shapes are not those of the first one.
            ExecutionError: the policy does not compile, and ``strict``.
        """
        if self._memory is None:
            self._memory = ObservationMemory(observation, self.device, apart=self._cuda is not None)
            self._keep_eager_where_faster(observation)
        self._memory.write(observation)
        with torch.inference_mode():
            on_host = self._run(deterministic)[0] if self._cuda is None else self._run_on_stream(deterministic)
        action: np.ndarray = on_host.numpy().copy()
        return action

    def _run(self, deterministic: bool) -> Tensor:
        """The action [1, A] for the observation in memory; compiles at the first call of each kind."""
        assert self._memory is not None
        noise = None if deterministic else self._noise.normal_(generator=self.generator)
        run = self._runs.get(deterministic)
        while run is None:
            try:
                run = self._build(noise)
                action = run(self._memory.tensors, noise)
                self._runs[deterministic] = run
                return action
            except Exception as error:  # compilers raise every kind
                self._fall_back(error)
                run = None
        return run(self._memory.tensors, noise)

    def _build(self, noise: Tensor | None) -> Run:
        assert self._memory is not None
        if self.execution == "eager":
            return self._call(self._policy)
        run: Run = compile_function(self._call(self._policy))
        if self.execution == "graphed" and self._cuda is not None:
            return CapturedPolicy(run, self._memory.tensors, noise, self._stream, self._cuda).replay
        return run

    def _fall_back(self, error: Exception) -> None:
        """Go down one rung and say so, or raise."""
        if self.execution == "eager":
            raise error  # a mistake of the policy or of the observation
        failed = f"acting by execution {self.execution!r} failed"
        if self._strict:
            raise ExecutionError(f"{failed} ({reason_of(error)}) and strict execution is on") from error
        self.execution, self._runs = BELOW[self.execution], {}
        print(f"{failed}, going on with {self.execution!r}: {reason_of(error)}", file=sys.stderr, flush=True)

    def _call(self, policy: Policy) -> Run:
        networks = self._networks  # private, and refreshed in place: compiled code need not look whether it changed

        def act(observations: Observations, noise: Tensor | None) -> Tensor:
            return policy(networks, observations, noise)

        return act

    def _run_on_stream(self, deterministic: bool) -> Tensor:
        """The action [A] in host memory, by way of the runner's own stream: one copy in, one copy out."""
        assert self._memory is not None
        with self._cuda.stream(self._stream):
            self._memory.send()
            action = self._run(deterministic)[0]
            if self._action is None:
                self._action = torch.empty(action.shape, dtype=action.dtype, pin_memory=self.device.type == "cuda")
            self._action.copy_(action, non_blocking=True)
        self._stream.synchronize()  # of this stream alone; the learner's goes on
        return self._action

    def _keep_eager_where_faster(self, observation: dict[str, np.ndarray]) -> None:
        if self._cuda is None and any(value.ndim >= 3 for value in observation.values()):
            self.execution = "eager"


class ObservationMemory:
    """One observation at a fixed address, [1, ...] for each field, and where it is written.

    Args:
        like: an observation of the fields, shapes and dtypes to come, without batch axis.
        device: where the tensors are.
        apart: keep the device's memory apart from the host's; ``send`` copies one to the other, in one go.

    Attributes:
        tensors: what the policy reads.
    """

    def __init__(self, like: dict[str, np.ndarray], device: torch.device, *, apart: bool) -> None:
        places, size = {}, 0
        for key, value in like.items():
            places[key] = size
            size += -(-value.nbytes // ALIGNMENT) * ALIGNMENT
        self._host = torch.zeros(size, dtype=torch.uint8, pin_memory=device.type == "cuda")
        self._device = torch.zeros(size, dtype=torch.uint8, device=device) if apart else self._host
        self._arrays: dict[str, np.ndarray] = {}
        self.tensors: Observations = {}
        for key, value in like.items():
            part = slice(places[key], places[key] + value.nbytes)
            self._arrays[key] = self._host.numpy()[part].view(value.dtype).reshape(value.shape)
            dtype = torch.from_numpy(np.empty(0, value.dtype)).dtype
            self.tensors[key] = self._device[part].view(dtype).view(1, *value.shape)

    def write(self, observation: dict[str, np.ndarray]) -> None:
        """Copy an observation into the host's memory.

        Raises:
            ValueError: a field is missing, or has another shape or a dtype that does not fit.
        """
        for key, array in self._arrays.items():
            value = observation.get(key)
            if value is None or value.shape != array.shape:
                came = "absent" if value is None else f"of shape {value.shape}"
                raise ValueError(f"observation {key!r} is {came}; the policy acts on shape {array.shape}")
            try:
                np.copyto(array, value)
            except TypeError:
                raise ValueError(
                    f"observation {key!r} is {value.dtype}; the policy acts on {array.dtype}, which can not hold it"
                ) from None

    def send(self) -> None:
        """Copy what was written to the device, on the current stream."""
        self._device.copy_(self._host, non_blocking=True)


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
