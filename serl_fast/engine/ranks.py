"""Several processes that train one agent, each on its share of every batch (data parallelism).

With N ranks of B / N rows each, gradients averaged before Adam, every rank takes the step that one process would take
on all B rows, since the losses are means over rows: mean over ranks of (mean over B / N rows) = mean over B rows. The
ranks start from the same parameters and never exchange them again. What the guard judges (losses, norms of gradients)
is averaged with the gradients, so that all ranks take a step or none does: NaN and infinity survive a mean.

torchrun says in environment variables who is who. Gradients on CUDA devices go through NCCL; everything else, and
gradients on a CPU, through gloo. Not yet run on CUDA devices.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import os
import pickle
import re
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from serl_fast.core import Agent, DeviceSource, Noise

if TYPE_CHECKING:
    from serl_fast.engine.engine import Engine

TIMEOUT = 600.0  # s that a rank waits for one which is there but silent; one that ended is noticed at once


class RankError(RuntimeError):
    """Another process of the run ended, or does not answer."""


class Ranks:
    """This process among those that train together.

    Args:
        device: of this process's engine; see :func:`device_of_rank`.
        timeout: s to wait for a silent rank.

    Attributes:
        rank: 0, which leads, to size - 1.
        size: number of processes.
        device: as given.
    """

    def __init__(self, device: torch.device, timeout: float = TIMEOUT) -> None:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        with explained("joining"):
            dist.init_process_group(backend, timeout=datetime.timedelta(seconds=timeout))
        self.rank, self.size, self.device = dist.get_rank(), dist.get_world_size(), device
        # Its name, not the group: what is held to the end of the process is torn down too late, and aborts.
        self._name: str = dist.group.WORLD.group_name  # type: ignore[union-attr]

    def average(self, tensors: list[Tensor]) -> list[Tensor]:
        """The means over ranks, by one reduction of everything together. Can be traced and captured.

        Args:
            tensors: of one dtype and device, the same shapes on every rank.
        """
        flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
        total = torch.ops._c10d_functional.all_reduce(flat, "sum", self._name)
        mean = torch.ops._c10d_functional.wait_tensor(total) / self.size
        parts = mean.split([tensor.numel() for tensor in tensors])
        return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """Numbers averaged over ranks, which all give the same names."""
        total = torch.tensor([values[name] for name in sorted(values)], dtype=torch.float64)
        with explained("averaging metrics"):
            dist.all_reduce(total)
        return dict(zip(sorted(values), (total / self.size).tolist(), strict=True))

    def broadcast(self, value: Any = None) -> Any:
        """What rank 0 gives, on every rank: any value that pickles, for the ranks are processes of one user's job."""
        packed = np.frombuffer(pickle.dumps(value, protocol=5), np.uint8) if self.rank == 0 else None
        size = torch.tensor([0 if packed is None else len(packed)])
        with explained("exchanging data"):
            dist.broadcast(size, 0)
            content = torch.empty(int(size), dtype=torch.uint8)
            if packed is not None:
                content.numpy()[:] = packed
            dist.broadcast(content, 0)
        return value if self.rank == 0 else pickle.loads(content.numpy().tobytes())

    def header(self, numbers: Sequence[int]) -> list[int]:
        """A few integers of rank 0, on every rank; others give as many."""
        tensor = torch.tensor(numbers, dtype=torch.int64)
        with explained("waiting for orders" if self.rank else "giving orders"):
            dist.broadcast(tensor, 0)
        return tensor.tolist()

    def gather(self, number: int) -> list[int]:
        """One integer of every rank, in their order, on every rank."""
        numbers = torch.zeros(self.size, dtype=torch.int64)
        numbers[self.rank] = number
        with explained("comparing"):
            dist.all_reduce(numbers)
        found: list[int] = numbers.tolist()
        return found

    def share(self, batch_size: int) -> int:
        """Rows of this rank.

        Raises:
            ValueError: the batch can not be shared out evenly.
        """
        if batch_size % self.size:
            lower = batch_size // self.size * self.size
            raise ValueError(
                f"batch_size is {batch_size}, which {self.size} processes can not share evenly; "
                f"give {lower or self.size} or {lower + self.size}"
            )
        return batch_size // self.size

    def share_noise(self, agent: Agent, device: torch.device) -> Agent:
        """The agent drawing this rank's rows of the noise of the joint batch.

        All ranks draw all of it from generators in the same state, so that what does not belong to a row (the critics
        that make a target, say) is the same for all.

        Args:
            agent: of any algorithm.
            device: where noise is drawn.
        """
        draw_noise = agent.draw_noise
        two, three = (draw_noise(torch.Generator(device), rows, device) for rows in (2, 3))
        by_row = {name for name in two if two[name].shape != three[name].shape}

        def draw(generator: torch.Generator, batch_size: int, device: torch.device) -> Noise:
            joint = draw_noise(generator, self.size * batch_size, device)
            mine = slice(self.rank * batch_size, (self.rank + 1) * batch_size)
            return {name: value[mine] if name in by_row else value for name, value in joint.items()}

        return dataclasses.replace(agent, draw_noise=draw)

    def share_source(self, source: DeviceSource | None) -> DeviceSource | None:
        """A source of which every rank draws other rows."""
        return None if source is None else SharedSource(source, self.rank, self.size)

    def seeds(self, seed: int, count: int) -> list[int]:
        """Seeds of this rank alone, from one that all have."""
        return np.random.SeedSequence([seed, self.rank]).generate_state(count).tolist()

    def synchronize(self, engine: Engine) -> None:
        """Give every rank the state of rank 0's engine: parameters, moments, counts, generator."""
        state = self.broadcast(_on_cpu(engine.state_dict()) if self.rank == 0 else None)
        if self.rank:
            engine.load_state_dict(state)

    def close(self) -> None:
        """Leave. May be called again."""
        if dist.is_initialized():
            dist.destroy_process_group()


class SharedSource:
    """Draws for every rank from generators in the same state and keeps what is this rank's.

    Args:
        source: of one rank's rows.
        rank: this rank.
        size: how many there are.
    """

    def __init__(self, source: DeviceSource, rank: int, size: int) -> None:
        self.batch_size, self.batch = source.batch_size, source.batch
        self._source, self._rank, self._size = source, rank, size

    @property
    def generation(self) -> int:
        """The source's; 0 where it has none."""
        return getattr(self._source, "generation", 0)

    def drew_from(self) -> Noise:
        """The source's; nothing where it has none."""
        return getattr(self._source, "drew_from", dict)()

    def draw_noise(self, generator: torch.Generator, updates: int, device: torch.device) -> Noise:
        """The random numbers of this rank's batches."""
        return [self._source.draw_noise(generator, updates, device) for _ in range(self._size)][self._rank]


class Alone:
    """The only process, where one may also have been among several."""

    rank, size, device, average = 0, 1, None, None

    def broadcast(self, value: Any = None) -> Any:
        """``value``."""
        return value

    def share(self, batch_size: int) -> int:
        """All rows."""
        return batch_size

    def share_noise(self, agent: Agent, device: torch.device) -> Agent:
        """``agent``."""
        return agent

    def share_source(self, source: DeviceSource | None) -> DeviceSource | None:
        """All of it."""
        return source

    def seeds(self, seed: int, count: int) -> list[int]:
        """Seeds from a seed."""
        return np.random.SeedSequence(seed).generate_state(count).tolist()

    def synchronize(self, engine: Engine) -> None:
        """Nothing to do."""


@contextlib.contextmanager
def join(device: str) -> Iterator[Ranks | Alone]:
    """This process among those that torchrun started, or alone; only rank 0 prints.

    Args:
        device: "auto" or a device; several CUDA processes take a device each.

    Raises:
        ValueError: see :func:`device_of_rank`.
        SystemExit: another rank ended or does not answer, which is said in one line; status 1.
    """
    if ranks_given() == 1:
        yield Alone()
        return
    chosen = ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    ranks = Ranks(device_of_rank(torch.device(chosen)))
    try:
        with contextlib.ExitStack() as stack:
            if ranks.rank:
                stack.enter_context(contextlib.redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
            yield ranks
    except RuntimeError as error:
        if not isinstance(error, RankError) and not isinstance(error.__cause__, RankError):
            raise
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun ends who is left; this rank is about to
        print(f"rank {ranks.rank}: {error}", file=sys.stderr, flush=True)
        raise SystemExit(1) from None
    finally:
        ranks.close()


def ranks_given() -> int:
    """How many processes torchrun started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def ranks_on_this_machine() -> int:
    """How many of them are on this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def device_of_rank(device: torch.device) -> torch.device:
    """The device of this process: the CPU for all, or a CUDA device of its own.

    Args:
        device: what was asked for, without a number.

    Raises:
        ValueError: all processes would share one device, or there are too few.
    """
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise ValueError(f"several processes can not train on device {device}; choose 'cuda' or 'cpu'")
    if device.index is not None:
        raise ValueError(f"device {device} is one for all {ranks_given()} processes; choose 'cuda': each takes its own")
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place >= torch.cuda.device_count():
        raise ValueError(
            f"{ranks_on_this_machine()} processes need a CUDA device each and there are {torch.cuda.device_count()}; "
            "lower --nproc_per_node"
        )
    return torch.device("cuda", place)


@contextlib.contextmanager
def explained(doing: str) -> Iterator[None]:
    """Say of a failed exchange what failed, in one line.

    Raises:
        RankError: in place of the errors of gloo and NCCL.
    """
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, RankError) or not _is_of_an_exchange(error):
            raise
        first = re.sub(r"^\[.*?\] ", "", str(error).strip().splitlines()[0])  # where in their source
        what = first.partition(". ")[0][:200]
        raise RankError(f"another process of this run ended or does not answer ({doing}: {what})") from error


def _on_cpu(tree: Any) -> Any:
    if isinstance(tree, dict):
        return {key: _on_cpu(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_on_cpu(value) for value in tree]
    return tree.cpu() if isinstance(tree, Tensor) else tree


def _is_of_an_exchange(error: RuntimeError) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in ("gloo", "nccl", "connection closed"))
