"""What this machine can do at most, measured when the suite starts; and yardsticks that show whether it stays the same.

A fraction of a limit in the tables is a case's bytes or FLOPs per second over one of these rates.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from benchmarks.measure import clock_of
from benchmarks.row_gather import PASSES, ROW_BYTES, row_gathers

BEST_OF = 7  # runs; a limit is what the machine can do, so the fastest one counts
COPIED = 1 << 28  # bytes; far beyond any cache
GATHERED_ROWS, STORED_ROWS = 2048, 6144  # frames of 128 x 128 x 3 bytes: more than caches hold, from 300 MB
PRODUCT_SIZES = (512, 1024, 2048)


@dataclass(frozen=True)
class Limit:
    """A rate of the hardware.

    Attributes:
        name: that cases name it by; "copy", "row_gather" and "products" are in benchmarks/suite.py.
        value: ``unit`` per second.
        unit: "bytes" or "FLOP".
        how: what reached it.
    """

    name: str
    value: float
    unit: str
    how: str

    def as_json(self) -> dict[str, Any]:
        """For ``results.json``."""
        return asdict(self)


def measured(device: str, quick: bool = False) -> list[Limit]:
    """Every limit of ``device``; about 3 s on a CPU with 4 cores, half of that if ``quick``."""
    if device.startswith("cuda"):
        return cuda_limits(0.1 if quick else 0.5)
    runs = 3 if quick else BEST_OF
    return [copy_limit(runs), row_gather_limit(runs), *product_limits(runs)]


def copy_limit(runs: int = BEST_OF, size: int = COPIED) -> Limit:
    """Bytes per second read and written by a copy of one long array, as STREAM's copy counts them.

    ``Tensor.copy_`` by one thread and by all, and ``numpy.copyto``, each into memory that was written before.
    """
    source, target = (torch.zeros(size, dtype=torch.uint8) for _ in range(2))
    from_array, to_array = source.numpy(), target.numpy()
    found = []
    for threads in sorted({1, torch.get_num_threads()}):
        with torch_threads(threads):
            found.append((best(lambda: target.copy_(source), runs), f"torch, {threads} thread{'s' * (threads > 1)}"))
    found.append((best(lambda: np.copyto(to_array, from_array), runs), "NumPy"))
    seconds, how = min(found)
    return Limit("copy", 2 * size / seconds, "bytes", f"{size >> 20} MiB copied by {how}, read and written counted")


def row_gather_limit(runs: int = BEST_OF, rows: int = GATHERED_ROWS, stored: int = STORED_ROWS) -> Limit:
    """Bytes per second read and written while random frames are copied into one block; see row_gather.py.

    By NumPy, and where there is a C++ compiler by its ``memcpy`` and by stores that pass the caches by, from one thread
    to all.
    """
    threads = torch.get_num_threads()
    gathers = row_gathers(rows, stored, tuple(sorted({1, 2, threads} - {0})))
    moved = 2 * PASSES * rows * ROW_BYTES
    seconds, how = min((best(function, runs), name) for name, (_, function) in gathers.items())
    return Limit("row_gather", moved / seconds, "bytes", f"{rows} random rows of {ROW_BYTES} bytes by {how}")


def product_limits(runs: int = BEST_OF, sizes: tuple[int, ...] = PRODUCT_SIZES) -> list[Limit]:
    """FLOP per second of square float32 matrix products, by all threads and by one.

    By ``torch.mm``, which is MKL on x86, and by oneDNN's inner product; "products" is the best of all sizes and both
    libraries with all of torch's threads, the others say what each reaches.
    """
    libraries = {"MKL" if torch.backends.mkl.is_available() else "BLAS": torch.mm}
    if torch.backends.mkldnn.is_available():
        libraries["oneDNN"] = onednn_product
    limits, found = [], []
    for threads in sorted({1, torch.get_num_threads()}, reverse=True):
        with torch_threads(threads):
            for library, product in libraries.items():
                rate, size = max((product_rate(product, size, runs), size) for size in sizes)
                how = f"{size} x {size} float32 by {library}, {threads} thread{'s' * (threads > 1)}"
                limits.append(
                    Limit(f"products, {library}, {threads} threads".replace("1 threads", "1 thread"), rate, "FLOP", how)
                )
                found.append((rate, how))
    rate, how = max(found[: len(libraries)])
    return [Limit("products", rate, "FLOP", how), *limits]


def product_rate(product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], size: int, runs: int) -> float:
    """FLOP per second of one square product, a multiply-add counted as two."""
    left, right = torch.randn(size, size), torch.randn(size, size)
    with torch.no_grad():
        return 2 * size**3 / best(lambda: product(left, right), runs)


def onednn_product(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """``left @ right.T`` by oneDNN, whatever torch itself would take."""
    return torch.ops.mkldnn._linear_pointwise(left, right, None, "none", [], "")


def cuda_limits(seconds: float) -> list[Limit]:
    """The device's own copy and cuBLAS's products, timed by events. Not yet run on a CUDA device."""
    from benchmarks.gpu_profile import device_limits

    rates = device_limits(seconds)
    limits = [
        Limit("copy", rates["copy, bytes/s"], "bytes", "256 MiB in the device's memory, read and written counted")
    ]
    for name, rate in rates.items():
        kind, _, unit = name.partition(", ")
        if kind != "copy":
            named = "products, " * unit.startswith("FLOP") + kind
            limits.append(Limit(named, rate, "FLOP" if "products" in named else "bytes", f"cuBLAS, {kind}"))
    products = max((each for each in limits if each.unit == "FLOP"), key=lambda each: each.value)
    return [*limits, Limit("products", products.value, "FLOP", products.how)]


def best(function: Callable[[], Any], runs: int) -> float:
    """Seconds of the fastest of ``runs`` calls after one that does not count."""
    function()
    found = []
    for _ in range(runs):
        start = time.perf_counter()
        function()
        found.append(time.perf_counter() - start)
    return min(found)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Torch with so many threads, while it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_tf32() -> Iterator[None]:
    """Products of float32 in float32 on a CUDA device, while it lasts."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


class Yardsticks:
    """Two pieces of work that never change, timed before every case: their spread is the machine's own unrest.

    A copy that goes to memory, and a float32 matrix product that stays in a cache; about 100 ms together. On a CUDA
    device between events, larger products and more of both, so that the device is timed and not the launches; TF32 is
    off meanwhile, whatever the case before has set. Not yet run on a CUDA device.

    Attributes:
        times: seconds by yardstick, a value for every time it was taken.
    """

    def __init__(self, device: str = "cpu") -> None:
        cuda = device.startswith("cuda")
        self._clock, self._copies, self._products = clock_of(device), *((16, 16) if cuda else (1, 4))
        size = 2048 if cuda else 512
        self._from, self._to = (torch.zeros(1 << 26, dtype=torch.uint8, device=device) for _ in range(2))
        self._left, self._right = (torch.randn(size, size, device=device) for _ in range(2))
        self.times: dict[str, list[float]] = {"copy": [], "product": []}
        self._once()

    def take(self) -> None:
        """Time them now; each the median of three, as a round is the mean of many calls."""
        for name, seconds in self._once().items():
            self.times[name].append(seconds)

    def _once(self) -> dict[str, float]:
        found: dict[str, list[float]] = {"copy": [], "product": []}
        with torch.no_grad(), without_tf32():
            for _ in range(3):
                found["copy"].append(self._clock(lambda: self._to.copy_(self._from), self._copies))
                found["product"].append(self._clock(lambda: torch.mm(self._left, self._right), self._products))
        return {name: sorted(values)[1] for name, values in found.items()}
