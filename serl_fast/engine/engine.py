"""The engine: owns optimizer state, noise and the compiled step of one agent."""

from __future__ import annotations

import copy
import sys
from typing import Any

import torch
from torch import Tensor

from serl_fast.core import AdamConfig, Agent, Batch, Noise, Observations, leaves, require_policy
from serl_fast.engine.compiling import (
    RECOMPILED,
    ExecutionError,
    can_trace_autograd,
    compile_function,
    graphs_compiled,
    reason_of,
)
from serl_fast.engine.config import EngineConfig, Execution
from serl_fast.engine.guard import Failure, Guard
from serl_fast.engine.step import AdamState, Step, build_step


class NonFiniteLossError(RuntimeError):
    """A loss or gradient became NaN or infinite; the message names the objective, the value and the update.

    Attributes:
        inspection: what to save for looking at it, plain containers of tensors: ``updates`` before the failed one,
            ``engine`` (the engine's state then), ``agent`` (settings), ``batch``, ``noise`` and ``with_actor`` of the
            failed update, ``outcomes`` (objective -> loss and gradient norm) and ``reason``. None where no update
            failed (a policy's action, say).
    """

    def __init__(self, message: str, inspection: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.inspection = inspection


class Engine:
    """Runs an agent's updates and its policy.

    Args:
        agent: what to minimise; its networks are moved to ``device`` and trained in place.
        config: execution and precision.
        seed: of the noise of updates and actions.
        device: where the networks live and where batches must be.

    Attributes:
        updates: gradient steps so far, those included that float16 skipped.
        execution: how steps run; "eager" after a compilation failed.

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
        self.execution: Execution = self.config.execution
        agent.networks.to(self.device)
        self.updates = 0
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.adam: dict[str, AdamState] = {}
        for name, trained in agent.optimized.items():
            parameters = [p for network in trained for p in agent.networks[network].parameters() if p.requires_grad]
            if parameters:  # an encoder that only passes the state through has none
                self.adam[name] = AdamState(parameters, agent.optimizers.get(name, AdamConfig()))
        self._check_interval = self.config.check_interval_on(self.device)
        names = [objective.name for objective in agent.critic_step + agent.actor_step]
        scaled, keep = self.config.precision == "float16", self._check_interval > 1
        self._guard = Guard(names, self.device, scaled=scaled, keep_batch=keep)
        self._steps: dict[bool, Step] = {}
        self._expected: dict[str, tuple[torch.Size, torch.dtype]] | None = None
        self._recompilation_said = False
        if self.device.type == "cuda":
            torch.backends.cuda.matmul.allow_tf32 = self.config.precision == "tf32"
            torch.backends.cudnn.allow_tf32 = self.config.precision == "tf32"

    def update(self, batch: Batch, with_actor: bool = True) -> dict[str, Tensor]:
        """Take one gradient step on ``batch``.

        An update whose loss or gradient is not finite changes nothing, and nothing after it does until it was raised.

        Args:
            batch: tensors on the engine's device; the first batch fixes every shape and dtype.
            with_actor: include the actor's objectives (once per ``critic_to_actor_ratio`` steps).

        Returns:
            Detached scalars on the device, named ``<objective>/<metric>``; reading them waits for the device.

        Raises:
            ValueError: a field's shape, dtype or device differs from the first batch's.
            NonFiniteLossError: at the latest ``check_interval`` updates after the one that failed; the engine is as
                it was before that one, and can go on.
            ExecutionError: the step does not compile, and ``config.strict``.
        """
        self._check(batch)
        noise = self._draw_noise(batch)
        metrics = self._step(batch, noise, with_actor)
        self.updates += 1
        if self.updates % self._check_interval == 0:
            self.check({"batch": batch, "noise": noise})
        return metrics

    def check(self, given: dict[str, Any] | None = None) -> None:
        """Raise if an update since the last look was not finite; waits for the device.

        Args:
            given: batch and noise of the newest update, for an engine that looks after every one.

        Raises:
            NonFiniteLossError: see :meth:`update`.
        """
        failure = self._guard.failure()
        if failure is None:
            return
        self.updates -= failure.updates_ago
        given = copy.deepcopy(self._guard.kept or given or {})
        content = {
            "reason": failure.reason,
            "updates": self.updates,
            "agent": self.agent.settings,
            "engine": copy.deepcopy(self.state_dict()),
            "with_actor": failure.with_actor,
            "outcomes": {name: list(values) for name, values in failure.outcomes.items()},
            **given,
        }
        raise NonFiniteLossError(self._advice(failure), content)

    def warm_up(self, batch: Batch) -> None:
        """Compile both variants of the step, so that the first real update does not stall; trains nothing.

        Args:
            batch: of the shapes and dtypes to come; its values do not matter, not even that losses are finite.

        Raises:
            ExecutionError: the step does not compile, and ``config.strict``.
        """
        if self.execution == "eager":
            return
        before = copy.deepcopy(self.state_dict())
        self._check(batch)
        for with_actor in (False, True):
            self._step(batch, self._draw_noise(batch), with_actor)
        self.load_state_dict(before)

    def set_learning_rate(self, value: float, name: str | None = None) -> None:
        """Change the learning rate from the next update on; a schedule's shape stays. Compiles nothing.

        Args:
            value: positive.
            name: one of ``agent.optimized``; None for all.

        Raises:
            ValueError: ``value`` is not positive, or no optimizer has that name.
        """
        if not value > 0:
            raise ValueError(f"learning rate is {value}; it must be positive")
        if name is not None and name not in self.adam:
            raise ValueError(f"there is no optimizer {name!r}; this agent has {sorted(self.adam)}")
        for key, state in self.adam.items():
            if name in (None, key):
                state.learning_rate.fill_(value)

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
        """Networks, optimizer state, loss scale, generator state and update count: all that continuing needs."""
        return {
            "updates": self.updates,
            "generator": self.generator.get_state(),
            "networks": self.agent.networks.state_dict(),
            "adam": {name: [t.clone() for t in state.tensors()] for name, state in self.adam.items()},
            "learning_rates": {name: state.learning_rate.clone() for name, state in self.adam.items()},
            "loss_scaling": self._guard.state_dict(),
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
        # Absent in checkpoints of 0.1.0's first revisions, whose learning rates were the agent's own.
        for name, rate in state.get("learning_rates", {}).items():
            self.adam[name].learning_rate.copy_(rate)
        self._guard.load_state_dict(state.get("loss_scaling", {}))
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]

    def _draw_noise(self, batch: Batch) -> Noise:
        _, first = next(leaves(batch))
        return self.agent.draw_noise(self.generator, first.shape[0], self.device)

    def _step(self, batch: Batch, noise: Noise, with_actor: bool) -> dict[str, Tensor]:
        with_actor = with_actor and bool(self.agent.actor_step)  # a classifier has one step, compiled once
        step = self._steps.get(with_actor)
        if step is None:
            return self._first_step(batch, noise, with_actor)
        if self.execution == "eager" or self._recompilation_said:
            return step(batch, noise)
        compiled = graphs_compiled()
        metrics = step(batch, noise)
        if graphs_compiled() > compiled:
            self._recompilation_said = True
            print(RECOMPILED.format(self.updates + 1), file=sys.stderr, flush=True)
        return metrics

    def _first_step(self, batch: Batch, noise: Noise, with_actor: bool) -> dict[str, Tensor]:
        """Build and run a variant of the step; one that does not compile runs eagerly, from the same state."""
        self._guard.prepare_to_keep(batch, noise)
        before = None if self.execution == "eager" else copy.deepcopy(self.state_dict())
        step = self._build(with_actor)
        try:
            metrics = step(batch, noise)
        except Exception as error:  # compilers raise every kind
            if before is None:
                raise
            self.load_state_dict(before)
            metrics = self._run_eagerly(batch, noise, with_actor)
            if self.config.strict:
                self.load_state_dict(before)
                self.execution, self._steps = self.config.execution, {}
                raise ExecutionError(
                    f"execution {self.config.execution!r} failed ({reason_of(error)}) and strict execution is on"
                ) from error
            print(
                f"execution {self.config.execution!r} failed, going on with 'eager': {reason_of(error)}",
                file=sys.stderr,
                flush=True,
            )
            return metrics
        self._steps[with_actor] = step
        return metrics

    def _run_eagerly(self, batch: Batch, noise: Noise, with_actor: bool) -> dict[str, Tensor]:
        """Move to eager execution for good; a mistake in the agent or the batch raises here as what it is."""
        self.execution = "eager"
        self._steps = {with_actor: self._build(with_actor)}
        return self._steps[with_actor](batch, noise)

    def _build(self, with_actor: bool) -> Step:
        arguments: dict[str, Any] = {"with_actor": with_actor, "guard": self._guard}
        autocast = self.config.autocast(self.device)
        if self.execution == "eager":
            return build_step(self.agent, self.adam, autocast, **arguments)
        if not can_trace_autograd():
            return build_step(self.agent, self.adam, autocast, compile_part=compile_function, **arguments)
        torch._dynamo.config.trace_autograd_ops = True
        step: Step = compile_function(build_step(self.agent, self.adam, autocast, **arguments))
        return step

    def _advice(self, failure: Failure) -> str:
        advice = "lower the learning rate or look for bad data in the batch"
        if self.config.precision == "float16":
            advice += ", or choose bfloat16: float16 ends at 65504"
        return f"{failure.reason} at update {self.updates + 1}, which was not taken; {advice}"

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


def _describe(entry: tuple[torch.Size, torch.dtype] | None) -> str:
    if entry is None:
        return "absent"
    shape, dtype = entry
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
