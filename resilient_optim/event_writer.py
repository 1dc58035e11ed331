"""The lines of event logs that wait in memory, and the files of this process that they go to."""

from __future__ import annotations

import logging
import os
import threading
import time
from pathlib import Path
from typing import Any

from .event_json import as_line

HEADER_KEY = "resilient_optim"
HEADER_START = f'{{"{HEADER_KEY}"'.encode()

_logger = logging.getLogger(__name__)


class Writer:
    """The lines that wait and the file they go to; apart from `EventLog` so as to outlive it.

    Args:
        path: the file.
        header: what the header line holds besides version and time.

    Attributes:
        path: the file.
        process: whose lines these are. A forked child has a copy of them that is not its own.
    """

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path = path
        self.process = os.getpid()
        self._header = header
        self._lines: list[str] = []
        self._begun = False
        # Who reads the log flushes it, maybe in another thread, or in the handler of a signal.
        self._lock = threading.RLock()

    def claim(self) -> None:
        """Lay claim to the file, see `writers_to`."""
        _open[self] = None

    def add(self, line: str) -> int:
        """Have a line wait.

        Args:
            line: with its end.

        Returns:
            How many wait now.
        """
        self.claim()
        with self._lock:
            self._lines.append(line)
            return len(self._lines)

    def flush(self) -> None:
        """Write what waits."""
        if self.process != os.getpid():
            return
        with self._lock:
            lines, self._lines = self._lines, []
            if lines:
                self._append(lines)

    def end(self) -> None:
        """Write what waits, and let go of the file."""
        self.flush()
        _open.pop(self, None)

    def _append(self, lines: list[str]) -> None:
        try:
            if not self._begun:
                _cut_torn_line(self.path)
                lines.insert(0, self._header_line())
            # One write to a file opened for appending: lines of two processes do not mix.
            with open(self.path, "ab", buffering=0) as file:
                text = "".join(lines).encode()
                if file.write(text) != len(text):
                    raise OSError("the disk took only a part of the lines")
            self._begun = True
        except OSError as error:
            self._begun = False  # what was written in part is cut off before the next lines
            _logger.warning("event log %s: %d lines lost: %s", self.path, len(lines), error)

    def _header_line(self) -> str:
        from . import __version__  # the package imports this module

        return as_line({HEADER_KEY: __version__, "time": round(time.time(), 3), **self._header})


_open: dict[Writer, None] = {}
"""Those that have a file, oldest first; in a forked child its parent's may be among them."""


def writers_to(path: str | os.PathLike[str]) -> list[Writer]:
    """The writers of this process that write to a file, by whatever name it goes; oldest first.

    Args:
        path: the file, there or not yet.
    """
    file, process = os.path.realpath(path), os.getpid()
    return [w for w in list(_open) if w.process == process and os.path.realpath(w.path) == file]


def _cut_torn_line(path: Path) -> None:
    """Remove a last line without an end, which a kill has left: new lines must not follow it."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        return
    with open(path, "r+b") as file:
        end = file.seek(0, os.SEEK_END)
        tail, start = b"", end
        while start and b"\n" not in tail:
            start = max(0, start - 4096)
            file.seek(start)
            tail = file.read(end - start)
        keep = start + tail.rfind(b"\n") + 1
        if keep < end:
            file.truncate(keep)
