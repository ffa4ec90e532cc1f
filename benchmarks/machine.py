"""What a number was measured on."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from pathlib import Path

import torch


def machine() -> dict[str, str]:
    """CPU, cores, versions, commit and date, by name."""
    return {
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
