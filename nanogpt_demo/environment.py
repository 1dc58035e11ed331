"""Where a result comes from: code, libraries and machine."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent
CODE = ("nanogpt_demo", "resilient_optim", "kernels")  # what a run executes


def _git(*arguments: str) -> str | None:
    """Output of a git command in the repository, or None where there is no git or no commit."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str | None:
    """Short hash of HEAD, with ``+dirty`` if Python files that a run executes differ from it.

    None outside a git repository.
    """
    head = _git("rev-parse", "--short", "HEAD")
    if head is None:
        return None
    changed = _git("status", "--porcelain", "--", *(f"{folder}/*.py" for folder in CODE))
    return f"{head}+dirty" if changed else head


def _cpu() -> str:
    """Name of the processor; Linux keeps it where ``platform`` does not look."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def environment(threads: int) -> dict[str, str | int]:
    """Describe libraries and machine.

    Args:
        threads: Torch threads of each run.
    """
    return {
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "cpu": _cpu(),
        "threads": threads,
        "platform": platform.platform(),
    }
