"""The engine: owns optimizer state, noise and the compiled step of one agent."""

from __future__ import annotations

import contextlib
import copy
import math
import types
from typing import Any

import torch
from torch import Tensor

from serl_fast.core import Agent, Batch, Observations, leaves, require_policy
from serl_fast.engine.config import EngineConfig
from serl_fast.engine.step import AdamState, Step, build_step


class NonFiniteLossError(RuntimeError):
    """A loss became NaN or infinite; the message names the objective."""


class Engine:
    """Runs an agent's updates and its policy.

    Args:
        agent: what to minimise; its networks are moved to ``device`` and trained in place.
        config: execution and precision.
        seed: of the noise of updates and actions.
        device: where the networks live and where batches must be.

    Raises:
        ValueError: ``config`` cannot run on ``device``.
    """

    def __init__(
        self,
        agent: Agent,
        config: EngineConfig | None = None,
        *,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> None:
        self.agent = agent
        self.config = config or EngineConfig()
        self.device = torch.empty(0, device=device).device  # "cuda" is "cuda:0": batches say which
        self.config.check(self.device)
        agent.networks.to(self.device)
        self.updates = 0
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.adam = {}
        for name, trained in agent.optimized.items():
            parameters = [p for network in trained for p in agent.networks[network].parameters() if p.requires_grad]
            if parameters:  # an encoder that only passes the state through has none
                self.adam[name] = AdamState(parameters)
        self._steps: dict[bool, Step] = {}
        self._expected: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.config.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = self.config.precision == "tf32"

    def update(self, batch: Batch, with_actor: bool = True) -> dict[str, Tensor]:
        """Take one gradient step on ``batch``.

        Args:
            batch: tensors on the engine's device; the first batch fixes every shape and dtype.
            with_actor: include the actor's objectives (once per ``critic_to_actor_ratio`` steps).

        Returns:
            Detached scalars on the device, named ``<objective>/<metric>``; reading them waits for the device.

        Raises:
            ValueError: a field's shape, dtype or device differs from the first batch's.
        """
        self._check(batch)
        _, first = next(leaves(batch))
        batch_size = first.shape[0]
        noise = self.agent.draw_noise(self.generator, batch_size, self.device)
        step = self._steps.get(with_actor)
        if step is None:
            step = self._steps[with_actor] = self._build(with_actor)
        metrics = step(batch, noise)
        self.updates += 1
        return metrics

    def warm_up(self, batch: Batch) -> None:
        """Compile both variants of the step, so that the first real update does not stall; trains nothing.

        Args:
            batch: of the shapes and dtypes to come; its values do not matter.
        """
        if self.config.execution == "eager":
            return
        before = copy.deepcopy(self.state_dict())
        for with_actor in (False, True):
            self.update(batch, with_actor)
        self.load_state_dict(before)

    def finite(self) -> bool:
        """Whether every weight and Adam moment is a finite number; waits for the device."""
        moments = [tensor for state in self.adam.values() for tensor in state.tensors()]
        return all(bool(torch.isfinite(t).all()) for t in (*self.agent.networks.parameters(), *moments))

    def act(self, observations: Observations, deterministic: bool = False) -> Tensor:
        """Actions [B, A] for ``observations``: the mode, or a sample from the engine's generator.

        Raises:
            ValueError: the agent has no policy.
        """
        policy = require_policy(self.agent)
        noise = None
        if not deterministic:
            batch_size = next(iter(observations.values())).shape[0]
            size = (batch_size, self.agent.policy_noise_dim)
            noise = torch.randn(size, generator=self.generator, device=self.device)
        with torch.no_grad():
            return policy(self.agent.networks, observations, noise)

    def state_dict(self) -> dict[str, Any]:
        """Networks, optimizer state, generator state and update count: all that continuing needs."""
        return {
            "updates": self.updates,
            "generator": self.generator.get_state(),
            "networks": self.agent.networks.state_dict(),
            "adam": {name: [t.clone() for t in state.tensors()] for name, state in self.adam.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from :meth:`state_dict`; values are copied into place, so compiled steps stay valid.

        Raises:
            ValueError: the optimizer state belongs to other networks.
            RuntimeError: the network weights do not fit (torch's own message).
        """
        self.agent.networks.load_state_dict(state["networks"])
        if set(state["adam"]) != set(self.adam):
            raise ValueError(f"the checkpoint trains {sorted(state['adam'])}; this agent trains {sorted(self.adam)}")
        for name, adam in self.adam.items():
            for mine, saved in zip(adam.tensors(), state["adam"][name], strict=True):
                mine.copy_(saved)
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]

    def _build(self, with_actor: bool) -> Step:
        autocast = self._autocast()
        if self.config.execution == "eager":
            return build_step(self.agent, self.adam, autocast, with_actor=with_actor)
        if not can_trace_autograd():
            return build_step(self.agent, self.adam, autocast, with_actor=with_actor, compile_part=_compile)
        torch._dynamo.config.trace_autograd_ops = True
        return _compile(build_step(self.agent, self.adam, autocast, with_actor=with_actor))

    def _autocast(self) -> Any:
        if self.config.precision != "bfloat16":
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=torch.bfloat16)

    def _check(self, batch: Batch) -> None:
        """Compare every field with the first batch's, and its device with the engine's."""
        found = {}
        for name, tensor in leaves(batch):
            if tensor.device != self.device:
                raise ValueError(f"field {name!r} is on {tensor.device}; this engine runs on {self.device}")
            found[name] = (tensor.shape, tensor.dtype)
        if self._expected is None:
            self._expected = found
        elif found != self._expected:
            for name in self._expected.keys() | found.keys():
                expected, came = self._expected.get(name), found.get(name)
                if expected != came:
                    raise ValueError(
                        f"field {name!r} is {_describe(came)}; the step was built for {_describe(expected)}; "
                        "keep the batch size and fields fixed, or build a new Engine"
                    )


def check_finite(metrics: dict[str, float], updates: int) -> None:
    """Raise if a logged loss is not a finite number.

    Raises:
        NonFiniteLossError: names the objective, the value and the update.
    """
    for name, value in metrics.items():
        if name.endswith("/loss") and not math.isfinite(value):
            raise NonFiniteLossError(
                f"{name} is {value} at update {updates}; lower the learning rate or look for bad data in the batch"
            )


def can_trace_autograd() -> bool:
    """Whether this torch can compile ``autograd.grad`` inside a function, which makes the whole step ONE graph.

    An older one compiles the losses; gradients, Adam and target averages stay outside, with the same results.
    """
    return hasattr(torch._dynamo.config, "trace_autograd_ops")


def _compile(function: Any) -> Any:
    """Compile a function as one graph for fixed shapes.

    Dynamo counts recompilations per code object, and the steps of all engines share one: without a copy of its own the
    ninth engine of a process would be refused.
    """
    if isinstance(function, types.FunctionType):
        code, closure = function.__code__.replace(), function.__closure__
        copied = types.FunctionType(code, function.__globals__, function.__name__, function.__defaults__, closure)
        copied.__kwdefaults__ = function.__kwdefaults__
        function = copied
    return torch.compile(function, fullgraph=True, dynamic=False)


def _describe(entry: tuple[torch.Size, torch.dtype] | None) -> str:
    if entry is None:
        return "absent"
    shape, dtype = entry
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
