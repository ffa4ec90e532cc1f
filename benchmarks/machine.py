"""What a number was measured on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import time
from pathlib import Path

import torch

QUIET = 0.3  # cores; above it a library whose threads spin for each other can be 100 times slower


def machine(device: str = "cpu") -> dict[str, str]:
    """CPU, cores, GPU with its driver and power limit where ``device`` is one, versions, commit and date, by name."""
    block = {}
    if device != "cpu":
        block = {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)} | gpu_state()
    return block | {
        "CPU": _cpu_model(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "threads of torch": str(torch.get_num_threads()),
        "threads of the replay store's copies": _store_threads(),
        "memory": _memory(),
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        **{name: _version(name) for name in ("numpy", "triton", "serl-fast")},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


def gpu_state() -> dict[str, str]:
    """Driver, power limit, largest clock and memory, as nvidia-smi reports them; nothing is changed."""
    query = {"driver": "driver_version", "power limit": "power.limit", "SM clock at most": "clocks.max.sm",
             "GPU memory": "memory.total"}  # fmt: skip
    try:
        command = ["nvidia-smi", f"--query-gpu={','.join(query.values())}", "--format=csv,noheader"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return {"driver": "unknown (no nvidia-smi)"}
    first = next(iter(done.stdout.strip().splitlines()), "")
    return dict(zip(query, (part.strip() for part in first.split(",")), strict=False))


def markdown(block: dict[str, str]) -> str:
    """The block as a list."""
    return "\n".join(f"* {name}: {value}" for name, value in block.items())


def busy_cores(seconds: float = 2.0) -> float:
    """Cores that other processes keep busy now; to be called while nothing here is running."""

    def times() -> list[int]:
        return [int(value) for value in Path("/proc/stat").read_text().splitlines()[0].split()[1:9]]

    before = times()
    time.sleep(seconds)
    spent = [after - earlier for after, earlier in zip(times(), before, strict=True)]
    return (sum(spent) - spent[3] - spent[4]) / max(sum(spent), 1) * len(os.sched_getaffinity(0))


def quiet_or_caution(busy: list[float]) -> dict[str, str]:
    """Lines about :func:`busy_cores` before and after a measurement."""
    block = {"cores kept busy by others, before and after": " and ".join(f"{cores:.1f}" for cores in busy)}
    if max(busy) > QUIET:
        block["caution"] = (
            "the machine was not quiet: threads that wait for each other stall, these figures are no results"
        )
    return block


def _cpu_model() -> str:
    """Name, family and model: of two generations of a virtual machine's "AMD EPYC" one has twice the other's rate."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    first = dict(reversed([[part.strip() for part in line.split(":", 1)] for line in lines if ":" in line]))
    if "model name" not in first:
        return platform.processor()
    numbers = [f"{field.removeprefix('cpu ')} {first[field]}" for field in ("cpu family", "model") if field in first]
    return ", ".join([first["model name"], " ".join(numbers)] if numbers else [first["model name"]])


def _store_threads() -> str:
    try:
        from serl_fast.replay import _native
    except ImportError:
        return "unknown (the extension is not built)"
    return str(_native.threads())


def _memory() -> str:
    try:
        return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"
    except (AttributeError, ValueError, OSError):
        return "unknown"


def _version(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit(folder: Path = Path(__file__).parent) -> str:
    """Twelve digits of the revision that ``folder`` is of, "with changes" where its files are not that revision's."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
