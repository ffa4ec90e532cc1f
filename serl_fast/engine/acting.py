"""A policy for the actor's thread: its own copy of the networks, refreshed from numbered snapshots.

One call of :meth:`PolicyRunner.act` costs one copy of the observation into memory of fixed address, one run of the
policy and one copy of the action out.

* On a CPU the policy of a state observation is compiled, which takes 6 s before anything moves: a call of a 2 x 256
  policy takes 0.09 ms instead of 0.15 ms, on one thread or three (medians). With images the convolutions take nearly
  all of the time, 8 to 16 ms for two cameras of 128 x 128; compiling saves a tenth of it on one thread and adds a tenth
  to a quarter on three, so there it stays eager.
* One thread acts, whatever the learner has. Several halve the time of a policy of images on a machine that does nothing
  else. Where the learner, a simulation or a renderer takes the cores, a team waits at every layer for the member that
  has none: some 10 to 30 times as long as one thread. ``python -m benchmarks --suite act`` measures it.
* On a CUDA device observations go through page-locked memory and a stream of high priority, so that an action does not
  wait for updates that are queued; under "graphed" the compiled policy is one CUDA graph. Not yet run on a CUDA device.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from serl_fast.core import Agent, Observations, require_policy
from serl_fast.engine.config import Execution
from serl_fast.engine.policy import ACTING_THREADS, PolicyProgram, suited, with_threads
from serl_fast.engine.snapshot import PolicyPublisher, PolicySnapshot

ALIGNMENT = 64  # bytes, of each observation's start in a block


class PolicyRunner:
    """Acts from NumPy observations with parameters that only change in :meth:`refresh`.

    Args:
        agent: whose policy to run; its policy networks are copied.
        seed: of the exploration noise.
        device: where acting happens.
        execution: how the policy runs. "compiled" and "graphed" stay eager where that is faster (see the module).
        strict: a policy that does not compile is an error; otherwise it runs eagerly, which is said in one line.
        threads: of torch's during :meth:`act` on a CPU; the caller has as many as before afterwards.
        only_where_faster: False compiles policies of images on a CPU too.
        cuda: streams, events and graphs; by default ``torch.cuda`` on a CUDA device, a stand-in in tests.

    Attributes:
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
        threads: int = ACTING_THREADS,
        only_where_faster: bool = True,
        cuda: Any = None,
    ) -> None:
        self.device = torch.empty(0, device=device).device
        networks = nn.ModuleDict({name: agent.networks[name] for name in agent.policy_networks})
        self._networks = copy.deepcopy(networks).to(self.device)
        self._policy = require_policy(agent)
        self._asked, self._strict, self._only_where_faster = execution, strict, only_where_faster
        self.threads = threads
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self._noise = torch.empty(1, agent.policy_noise_dim, device=self.device)
        self.version = 0
        self.updates = 0
        self._cuda = torch.cuda if cuda is None and self.device.type == "cuda" else cuda
        self._stream: Any = None if self._cuda is None else self._cuda.Stream(self.device, priority=-1)
        self._memory: ObservationMemory | None = None
        self._program: PolicyProgram | None = None
        self._action: Tensor | None = None
        self._wait_for_current_stream()

    def _wait_for_current_stream(self) -> None:
        """Have the runner's stream wait for what was made on the current one."""
        if self._cuda is not None:
            self._stream.wait_stream(self._cuda.current_stream(self.device))

    @property
    def execution(self) -> Execution:
        """How the policy runs: what was asked for, or a lower rung where that is faster or all that works."""
        return self._asked if self._program is None else self._program.execution

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
        if self._program is None:
            self._build(observation)
        assert self._memory is not None
        self._memory.write(observation)
        with torch.inference_mode(), with_threads(self.threads, self.device):
            on_host = self._run(deterministic)[0] if self._cuda is None else self._run_on_stream(deterministic)
        action: np.ndarray = on_host.numpy().copy()
        return action

    def _run(self, deterministic: bool) -> Tensor:
        """The action [1, A] for the observation in memory."""
        assert self._memory is not None
        assert self._program is not None
        noise = None if deterministic else self._noise.normal_(generator=self.generator)
        return self._program(self._memory.tensors, noise)

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

    def _build(self, observation: dict[str, np.ndarray]) -> PolicyProgram:
        """The program and its memory, at the first observation."""
        on_cuda = self._cuda is not None
        self._memory = ObservationMemory(observation, self.device, apart=on_cuda)
        self._program = PolicyProgram(
            self._policy,
            self._networks,  # private, and refreshed in place
            suited(self._asked, observation.values(), 3, on_cuda) if self._only_where_faster else self._asked,
            strict=self._strict,
            cuda=self._cuda,
            stream=self._stream,
        )
        self._wait_for_current_stream()
        return self._program


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
