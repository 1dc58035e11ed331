"""The event log: one JSON line for each decision of ARS, for a report or a replay.

```python
log = EventLog("run/events.jsonl")
log.write(optimizer.last, lr=3e-4)  # ARS does it itself if it is given a log
events = read_events("run/events.jsonl")
```

A line holds what is known beyond the default, so that a quiet step costs some microseconds and
some 60 bytes: `step`, `loss`, `grad_norm` if it was measured, and whatever the writer adds. A step
that is not quiet has every field of its `Decision` that is not at its default, and `time`, in
seconds since 1970. JSON knows no NaN and no infinity: they are the strings "nan", "inf", "-inf".
Each process that writes begins with a header line, {"resilient_optim": version, "time": ...}.
"""

from __future__ import annotations

import json
import logging
import math
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .decision import APPLY, QUIET, Decision

FLUSH_EVERY = 100
"""Lines that wait in memory at most; a kill loses no more than these, all of quiet steps."""

HEADER_KEY = "resilient_optim"
HEADER_START = f'{{"{HEADER_KEY}"'.encode()

_NOT_IN_JSON = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}

_logger = logging.getLogger(__name__)


class EventLog:
    """Writes one JSON line for each decision of ARS; survives kills, resumes, copies and pickling.

    Lines are appended: a run that is resumed goes on in the file of its first part, and
    `read_events` makes one run of them. In a distributed run let one rank write.

    A copy (deepcopy, pickle) keeps the path and writes to the same file. A disk that fails costs
    the lines that could not be written, never the run: it is told to the `logging` of this module.

    Args:
        path: the file; it is made at the first flush, its folder at once. One that exists must be
            an event log.
        header: what the header line shall hold besides, for instance {"config": ...}.

    Raises:
        ValueError: `path` is a folder, or a file that is no event log.
        OSError: the folder of `path` cannot be made.
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Mapping[str, Any] | None = None
    ) -> None:
        self.path: Path = Path(os.path.abspath(path))  # the run may change its working directory
        self.header: dict[str, Any] = dict(header or {})
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.is_dir():
            raise ValueError(f"path must be a file, got the folder {str(path)!r}; name a .jsonl")
        if self.path.exists() and not _is_log(self.path):
            raise ValueError(
                f"path must be a new file or an event log to go on with, got {str(path)!r}, which "
                "begins otherwise; nothing was written to it, name another file"
            )
        self._start()

    def write(self, decision: Decision, **more: Any) -> None:
        """Add the line of one step; on the disk at once if the step is not quiet.

        Args:
            decision: the verdict on the step.
            **more: what else is known of it, for instance lr: plain values, tensors or lists. They
                take precedence over fields of the decision.
        """
        quiet = decision.reason == QUIET
        if quiet:
            record: dict[str, Any] = {"step": decision.step, "loss": decision.loss}
            if decision.grad_norm is not None:
                record["grad_norm"] = decision.grad_norm
        else:
            record = _beyond_default(decision)
            record["time"] = round(time.time(), 3)
        if more:
            record.update(more)
        if self._writer.process != os.getpid():  # a forked child; its parent writes its own lines
            self._start()
        waiting = self._writer.lines
        waiting.append(_as_json(record))
        if not quiet or len(waiting) >= FLUSH_EVERY:
            self._writer.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        self._writer.flush()

    def close(self) -> None:
        """Write what waits in memory; happens by itself when the log or the program ends.

        No file stays open between flushes, so that a later `write` simply goes on.
        """
        self._writer.flush()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self.header}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._writer = _Writer(self.path, self.header)
        # Called when the log is collected and when the program ends, whichever comes first.
        weakref.finalize(self, self._writer.flush)


class _Writer:
    """The lines that wait and the file they go to; apart from `EventLog` so as to outlive it."""

    def __init__(self, path: Path, header: dict[str, Any]) -> None:
        self.path, self.header = path, header
        self.lines: list[str] = []
        self.begun = False
        self.process = os.getpid()

    def flush(self) -> None:
        if not self.lines or self.process != os.getpid():
            return
        lines, self.lines = self.lines, []
        try:
            if not self.begun:
                _cut_torn_line(self.path)
                lines.insert(0, self._header_line())
            # One write to a file opened for appending: lines of two processes do not mix.
            with open(self.path, "ab", buffering=0) as file:
                text = "".join(lines).encode()
                if file.write(text) != len(text):
                    raise OSError("the disk took only a part of the lines")
            self.begun = True
        except OSError as error:
            self.begun = False  # what was written in part is cut off before the next lines
            _logger.warning("event log %s: %d lines lost: %s", self.path, len(lines), error)

    def _header_line(self) -> str:
        from . import __version__  # the package imports this module

        return _as_json({HEADER_KEY: __version__, "time": round(time.time(), 3), **self.header})


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a run, step by step, each step once.

    Where the run went back, resumed from a checkpoint or begun anew in the same file, the steps
    from there on are those of its later part alone. A last line that a kill has cut is left out.

    Args:
        path: the log.

    Returns:
        A dict for each step, its number rising: what `EventLog` wrote, with `action` and `reason`
        for quiet steps, too. A field of `Decision` that is missing is at its default. Values are
        what was written, but every string "nan", "inf" or "-inf" is a float.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is broken, or is no event; the message tells which.
    """
    events: list[dict[str, Any]] = []
    for number, record in _records(path):
        if HEADER_KEY in record:
            continue
        if not isinstance(record.get("step"), int) or "loss" not in record:
            raise ValueError(
                f"{os.fspath(path)}, line {number}: must be an event with a step and a loss, got "
                f"the keys {sorted(record)}; is this file an event log?"
            )
        record.setdefault("action", APPLY)
        record.setdefault("reason", QUIET)
        while events and events[-1]["step"] >= record["step"]:
            events.pop()
        events.append(record)
    return events


def read_header(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The latest header line of a log.

    Args:
        path: the log.

    Returns:
        Version, time and what the run gave; {} if there is none.

    Raises:
        OSError: the file cannot be read.
        ValueError: a line is broken; the message tells which.
    """
    header: dict[str, Any] = {}
    for _, record in _records(path, HEADER_START):
        header = record
    return header


def _records(
    path: str | os.PathLike[str], start: bytes = b""
) -> Iterator[tuple[int, dict[str, Any]]]:
    """The lines that start so with their numbers, from 1; no empty ones, and no torn last one."""
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.startswith(start) or not line.strip():
                continue
            try:
                record = json.loads(line)
            except ValueError as error:
                if not line.endswith(b"\n"):
                    return  # only the last line of a file can be without an end
                raise ValueError(
                    f"{os.fspath(path)}, line {number}: must be JSON, got {line[:60]!r} ({error}); "
                    "remove the line or restore the file"
                ) from error
            if not isinstance(record, dict):
                raise ValueError(
                    f"{os.fspath(path)}, line {number}: must be a JSON object, got {line[:60]!r}; "
                    "is this file an event log?"
                )
            if b'nan"' in line or b'inf"' in line:
                record = _with_floats(record)
            yield number, record


def _beyond_default(decision: Decision) -> dict[str, Any]:
    record = {}
    for name, value in decision._asdict().items():
        default = decision._field_defaults.get(name, ...)  # some fields have none
        if value != default and not (value != value and default != default):  # NaN is NaN here
            record[name] = value
    return record


_encode = json.JSONEncoder(allow_nan=False, default=lambda value: _plain(value)).encode


def _as_json(record: dict[str, Any]) -> str:
    try:
        return _encode(record) + "\n"
    except ValueError:  # NaN or infinity somewhere, which is rare
        return _encode(_plain(record)) + "\n"


def _plain(value: Any) -> Any:
    """The value as JSON has it."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if hasattr(value, "tolist"):  # tensors and numpy's values
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if value != value else "inf" if value > 0 else "-inf"
    return value if value is None or isinstance(value, (str, int, float)) else repr(value)


def _with_floats(value: Any) -> Any:
    """The inverse of `_plain` for NaN and infinities."""
    if isinstance(value, dict):
        return {key: _with_floats(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_floats(item) for item in value]
    return _NOT_IN_JSON.get(value, value) if isinstance(value, str) else value


def _is_log(path: Path) -> bool:
    with open(path, "rb") as file:
        # A kill may have cut the first line.
        return HEADER_START.startswith(file.read(len(HEADER_START)))


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
