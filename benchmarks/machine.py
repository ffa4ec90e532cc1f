"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

import torch

QUIET = 0.3  # cores; above it a library whose threads spin for each other can be 100 times slower


def machine(device: str = "cpu") -> dict[str, str]:
    """CPU, cores, GPU where ``device`` is one, versions, commit and date, by name."""
    gpu = {"GPU": torch.cuda.get_device_name(device), "CUDA": str(torch.version.cuda)} if device != "cpu" else {}
    return gpu | {
        "CPU": _cpu_model(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()}",
        "load average at the start": f"{os.getloadavg()[0]:.1f}",
        "system": platform.platform(),
        "Python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()}",
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d"),
    }


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
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _commit() -> str:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return git("rev-parse", "--short=12", "HEAD") + (" with changes" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
