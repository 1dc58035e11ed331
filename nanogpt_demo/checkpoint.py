"""A half-done run on disk, so that an interruption costs at most a minute."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nanogpt_demo.methods import Method


class Checkpoint:
    """The file of one run; it is replaced in one go, so a kill never leaves half of it.

    Args:
        path: Where it is, or None to keep nothing.
        identity: What the run is; a file of any other run is not resumed.
        model: Saved and restored.
        method: Saved and restored.
        seconds: Least time between two saves.
    """

    def __init__(
        self,
        path: Path | None,
        identity: dict[str, Any],
        model: nn.Module,
        method: Method,
        seconds: float,
    ) -> None:
        """Start the clock; nothing is read or written yet."""
        self._path = path
        self._identity = identity
        self._model = model
        self._method = method
        self._seconds = seconds
        self._last = time.monotonic()

    def load(self) -> dict[str, Any] | None:
        """Restore model and method; return the progress saved with them, or None."""
        if self._path is None or not self._path.exists():
            return None
        state = torch.load(self._path, weights_only=True)
        if state["identity"] != self._identity:
            return None
        self._model.load_state_dict(state["model"])
        self._method.load_state_dict(state["method"])
        progress: dict[str, Any] = state["progress"]
        return progress

    def save(self, progress: dict[str, Any]) -> None:
        """Save the run, unless it was saved a moment ago."""
        if self._path is None or time.monotonic() - self._last < self._seconds:
            return
        state = {
            "identity": self._identity,
            "model": self._model.state_dict(),
            "method": self._method.state_dict(),
            "progress": progress,
        }
        temporary = self._path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self._path)
        self._last = time.monotonic()

    def remove(self) -> None:
        """Forget the run: it is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
