"""The engine: owns optimizer state, noise and the compiled step of one agent."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor

from serl_fast.core import AdamConfig, Agent, Batch, DeviceSource, Observations, leaves
from serl_fast.engine.config import EngineConfig, Execution
from serl_fast.engine.guard import Failure, Guard
from serl_fast.engine.metrics import Interval, MetricsRing, Readback
from serl_fast.engine.policy import LivePolicy
from serl_fast.engine.programs import Parts, kept_of, rows_of
from serl_fast.engine.runner import Runner
from serl_fast.engine.step import AdamState, Average, StepOptions


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

    On the CPU the first update tells glibc to keep freed memory in the process, see
    :func:`serl_fast.engine.memory.keep_freed_memory`.

    Args:
        agent: what to minimise; its networks are moved to ``device`` and trained in place.
        config: execution and precision.
        seed: of the noise of updates and actions.
        device: where the networks live and where batches must be.
        source: draws every batch from memory of the device, inside the step; None: batches are given.
        average: applied to the gradients of a group of objectives, with the scalars that say whether they are finite,
            before Adam: the mean over processes. It must be traceable.

    Attributes:
        updates: gradient steps so far, those included that float16 skipped.

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
        source: DeviceSource | None = None,
        average: Average | None = None,
    ) -> None:
        self.agent = agent
        self.config = config or EngineConfig()
        self.device = torch.empty(0, device=device).device  # "cuda" is "cuda:0": batches say which
        self.config.check(self.device)
        agent.networks.to(self.device)
        for module in agent.networks.modules():
            keep_cast: Any = getattr(module, "keep_cast", None)
            if keep_cast is not None:  # a frozen trunk: its weights are cast once, not in every pass
                keep_cast(self.config.cast_to)
        self.updates = 0
        self.generator = torch.Generator(self.device).manual_seed(seed)
        self.adam: dict[str, AdamState] = {}
        for name, trained in agent.optimized.items():
            parameters = [p for network in trained for p in agent.networks[network].parameters() if p.requires_grad]
            if parameters:  # an encoder that only passes the state through has none
                self.adam[name] = AdamState(parameters, agent.optimizers.get(name, AdamConfig()))
        self._check_interval = self.config.check_interval_on(self.device)
        names = [objective.name for objective in agent.objectives]
        scaled = self.config.precision == "float16"
        keep = self._check_interval > 1 or self.config.execution == "graphed"
        self._guard = Guard(names, self.device, scaled=scaled, keep_batch=keep)
        self._failed = Readback(self._guard.frozen)
        self._ring = MetricsRing(self.device)
        autocast = self.config.autocast(self.device)
        options = StepOptions(autocast, guard=self._guard, average=average, ring=self._ring)
        parts = Parts(agent, self.adam, options, source)
        self._source, self._joint = source, average is not None
        self._runner = Runner(parts, self.config, self.device, self.generator, self._save, self._restore)
        self._policy: LivePolicy | None = None
        self._expected: dict[int, dict[str, tuple[torch.Size, torch.dtype]]] = {}
        self.config.set_products(self.device)

    @property
    def execution(self) -> Execution:
        """How steps run: what was asked for, or a lower rung of the ladder after a failure."""
        return self._runner.execution

    def update(self, batch: Batch | None = None, with_actor: bool = True) -> dict[str, Tensor]:
        """Take one gradient step on ``batch``.

        An update whose loss or gradient is not finite changes nothing, and nothing after it does until it was raised.

        Args:
            batch: tensors on the engine's device; the first batch fixes every shape and dtype. None for an engine with
                a source.
            with_actor: include the actor's objectives (once per ``critic_to_actor_ratio`` steps).

        Returns:
            Detached scalars on the device, named ``<objective>/<metric>``; reading them waits for the device. Under
            "graphed" they are valid until the next update. See :meth:`request_metrics`.

        Raises:
            ValueError: a field's shape, dtype or device differs from the first batch's; a batch was given to an engine
                with a source, or none to one without.
            NonFiniteLossError: at the latest ``check_interval`` updates after the one that failed (on an accelerator:
                as soon after as the flag has arrived); the engine is as it was before that one, and can go on.
            ExecutionError: the step can not be captured or compiled, and ``config.strict``.
        """
        return self._run(batch, 1, with_actor)

    def update_block(self, batch: Batch | None = None, updates: int = 1, with_actor: bool = True) -> dict[str, Tensor]:
        """Take ``updates`` gradient steps, the actor's objectives in the last at most, on one batch after the other.

        Equal to as many calls of :meth:`update`, up to rounding, but the batches are prepared together: one pass of a
        frozen trunk over all rows.

        Args:
            batch: U * B rows, those of update u from u * B on. None for an engine with a source.
            updates: U.
            with_actor: include the actor's objectives in the last.

        Returns:
            As :meth:`update`, the newest value of each name.

        Raises:
            ValueError: as :meth:`update`; the rows can not be shared out evenly.
            NonFiniteLossError: as :meth:`update`; the updates of the block before the one that failed were taken.
            ExecutionError: as :meth:`update`.
        """
        if updates < 1:
            raise ValueError(f"updates is {updates}; a block has at least 1")
        return self._run(batch, updates, with_actor)

    def _run(self, batch: Batch | None, updates: int, with_actor: bool) -> dict[str, Tensor]:
        given = self._given(batch, updates)
        key = (updates, with_actor and bool(self.agent.actor_step))  # a classifier has one step, compiled once
        self.config.set_products(self.device)
        metrics: dict[str, Tensor] = {}
        try:
            taken = self._runner.run(key, given, self.updates + 1)
        except BaseException:
            self._ring.realign()
            raise
        for of_update in taken:
            self._ring.note(of_update)
            metrics.update(of_update)
        if updates not in self._expected:
            self._expected[updates] = _shapes(given)
        before, self.updates = self.updates, self.updates + updates
        self._look(before)
        return metrics

    def _look(self, before: int) -> None:
        """See whether an update has failed, where it is time and without waiting for the device."""
        if self._check_interval == 1:
            self.check()
            return
        due = self.updates // self._check_interval > before // self._check_interval
        if due and not self._failed.pending:
            self._failed.start()
        # Several processes must see it at the same update: behind it they would wait for each other in different calls.
        arrived = self._failed.arrived(wait=due and self._joint)
        if arrived is not None and int(arrived):
            self.check()

    def check(self) -> None:
        """Raise if an update since the last look was not finite; waits for the device.

        Raises:
            NonFiniteLossError: see :meth:`update`.
        """
        failure = self._guard.failure()
        if failure is None:
            return
        self.updates -= failure.updates_ago
        self._ring.forget()
        content = {
            "reason": failure.reason,
            "updates": self.updates,
            "agent": self.agent.settings,
            "engine": copy.deepcopy(self.state_dict()),
            "with_actor": failure.with_actor,
            "outcomes": {name: list(values) for name, values in failure.outcomes.items()},
            **self._kept(failure),
        }
        raise NonFiniteLossError(self._advice(failure), content)

    def _kept(self, failure: Failure) -> dict[str, Any]:
        """Batch and noise of a failed update."""
        kept = copy.deepcopy(self._guard.kept)
        if not kept and self._runner.newest is not None:
            batch, drawn = self._runner.newest
            index = len(drawn.updates) - failure.updates_ago
            if index >= 0:
                kept = copy.deepcopy(kept_of(batch, drawn, index, len(drawn.updates), self._source))
        if self._source is not None and kept:
            kept["batch"] = copy.deepcopy(self._source.batch(kept["noise"].pop("source")))
        return kept

    def request_metrics(self) -> None:
        """End an interval: have the metrics of its updates brought to the host, without waiting for the device."""
        self._ring.request(self.updates)

    def newest_metrics(self, wait: bool = False) -> Interval | None:
        """The metrics of the next interval that has arrived, each once; None while there is none.

        On the CPU they are there as soon as they were requested. Only the last 256 updates of an interval count.

        Args:
            wait: for the interval that was requested last.
        """
        return self._ring.newest(wait)

    def warm_up(self, batch: Batch | None = None, updates: int = 1) -> None:
        """Compile and capture what updates need, so that the first real one does not stall; trains nothing.

        Args:
            batch: of the shapes and dtypes to come; its values do not matter, not even that losses are finite. None
                for an engine with a source, which must be able to draw.
            updates: 1 for both variants of :meth:`update`, more for :meth:`update_block`.

        Raises:
            ExecutionError: the step can not be captured or compiled, and ``config.strict``.
        """
        if self.execution == "eager":
            return
        saved = self._save()
        self.config.set_products(self.device)
        given = self._given(batch, updates)
        for with_actor in (False, True) if updates == 1 else (True,):
            self._runner.run((updates, with_actor and bool(self.agent.actor_step)), given, self.updates + 1)
            self._restore(saved)

    def set_learning_rate(self, value: float, name: str | None = None) -> None:
        """Change the learning rate from the next update on; a schedule's shape stays. Compiles nothing.

        Args:
            value: positive and finite.
            name: one of ``agent.optimized``; None for all.

        Raises:
            ValueError: ``value`` is not positive and finite, or no optimizer has that name.
        """
        if not 0 < value < math.inf:
            raise ValueError(f"learning rate is {value}; it must be positive and finite")
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

        One observation (B = 1) runs as updates do, compiled or captured, which the first call of each kind takes
        seconds for; several run operation by operation, and so do images on a CPU, where that is faster. Acting is
        float32 (products in tf32 if that is the precision), on one of torch's threads. A thread beside the learner's
        has a ``PolicyRunner`` of its own.

        Args:
            observations: [B, ...] each, on the engine's device.
            deterministic: the mode.

        Returns:
            Float32 in memory of the host, by one copy.

        Raises:
            ValueError: the agent has no policy.
            ExecutionError: the policy can not be captured or compiled, and ``config.strict``.
        """
        if self._policy is None:
            self._policy = LivePolicy(
                self.agent, self.device, self.generator, self.execution, strict=self.config.strict
            )
        self.config.set_products(self.device)
        return self._policy.act(observations, deterministic)

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
            ValueError: the optimizer state belongs to other networks; the engine stays as it was.
            RuntimeError: the network weights do not fit (torch's own message); likewise.
        """
        before = copy.deepcopy(self.agent.networks.state_dict())
        try:
            self.agent.networks.load_state_dict(state["networks"])
            self._check_adam(state["adam"])
        except Exception:
            self.agent.networks.load_state_dict(before)  # torch copies what fits before it complains of the rest
            raise
        for name, adam in self.adam.items():
            for mine, saved in zip(adam.tensors(), state["adam"][name], strict=True):
                mine.copy_(saved)
        # Absent in checkpoints of 0.1.0's first revisions, whose learning rates were the agent's own.
        for name, rate in state.get("learning_rates", {}).items():
            self.adam[name].learning_rate.copy_(rate)
        self._guard.load_state_dict(state.get("loss_scaling", {}))
        self.generator.set_state(state["generator"].cpu())
        self.updates = state["updates"]

    def _check_adam(self, saved: dict[str, list[Tensor]]) -> None:
        """Refuse moments of other parameters."""
        if set(saved) != set(self.adam):
            raise ValueError(f"the checkpoint trains {sorted(saved)}; this agent trains {sorted(self.adam)}")
        for name, adam in self.adam.items():
            theirs, mine = ([tuple(tensor.shape) for tensor in moments] for moments in (saved[name], adam.tensors()))
            if theirs != mine:
                raise ValueError(f"the checkpoint trains other parameters of {name!r} than this agent")

    def _save(self) -> tuple[dict[str, Any], list[Tensor]]:
        """A copy of everything that an update changes.

        Raises:
            NonFiniteLossError: an update has failed.
        """
        self.check()
        return copy.deepcopy(self.state_dict()), [tensor.clone() for tensor in self._ring.tensors()]

    def _restore(self, saved: tuple[dict[str, Any], list[Tensor]]) -> None:
        state, ring = saved
        self.load_state_dict(state)
        for mine, theirs in zip(self._ring.tensors(), ring, strict=True):
            mine.copy_(theirs)

    def _given(self, batch: Batch | None, updates: int) -> Batch:
        """The batch, checked; empty where a source draws it."""
        if self._source is not None:
            if batch is not None:
                raise ValueError("this engine draws its batches from a source; call without a batch")
            return {}
        if batch is None:
            raise ValueError("this engine has no source to draw from; give a batch")
        self._check(batch, updates)
        return batch

    def _advice(self, failure: Failure) -> str:
        advice = "lower the learning rate or look for bad data in the batch"
        if self.config.precision == "float16":
            advice += ", or choose bfloat16: float16 ends at 65504"
        return f"{failure.reason} at update {self.updates + 1}, which was not taken; {advice}"

    def _check(self, batch: Batch, updates: int) -> None:
        """Compare every field with the first batch's of as many updates, and its device with the engine's."""
        if not batch:
            raise ValueError("the batch has no fields")
        for name, tensor in leaves(batch):
            if not isinstance(tensor, Tensor):
                raise ValueError(f"field {name!r} is a {type(tensor).__name__}; a batch holds tensors")
            if tensor.device != self.device:
                raise ValueError(f"field {name!r} is on {tensor.device}; this engine runs on {self.device}")
        found, first = _shapes(batch), self._expected.get(updates)
        if first is None and (not rows_of(batch) or rows_of(batch) % updates):
            raise ValueError(f"a batch of {rows_of(batch)} rows can not be shared out to {updates} updates evenly")
        rows, kept = rows_of(batch) // updates, self._guard.kept.get("batch")
        if first is None and kept and rows_of(kept) != rows:
            raise ValueError(
                f"{updates} update(s) on {rows_of(batch)} rows have {rows} each; this engine has room to keep the "
                f"batch of a failed update of {rows_of(kept)} rows: keep to these, or build a new Engine"
            )
        if first is None or found == first:
            return
        for name in first.keys() | found.keys():
            expected, came = first.get(name), found.get(name)
            if expected != came:
                raise ValueError(
                    f"field {name!r} is {_describe(came)}; the step was built for {_describe(expected)}; "
                    "keep the batch size and fields fixed, or build a new Engine"
                )


def _shapes(batch: Batch) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (tensor.shape, tensor.dtype) for name, tensor in leaves(batch)}


def _describe(entry: tuple[torch.Size, torch.dtype] | None) -> str:
    if entry is None:
        return "absent"
    shape, dtype = entry
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"
