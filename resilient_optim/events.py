"""The event log: one JSON line for each decision of ARS, for a report or a replay.

```python
log = EventLog("run/events.jsonl")
log.write(optimizer.last, lr=3e-4)  # ARS does it itself if it is given a log
events = read_events("run/events.jsonl")
```

A line holds what is known beyond the default, so that a quiet step costs some microseconds and
some 60 bytes: `step`, `loss`, `grad_norm` if it was measured, and whatever the writer adds. A step
that is not quiet has every field of its `Decision` that is not at its default, and `time`, in
seconds since 1970. NaN and infinities are the strings "nan", "inf" and "-inf".
Each process that writes begins with a header line, {"resilient_optim": version, "time": ...}.
"""

from __future__ import annotations

import gc
import os
import time
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .decision import APPLY, QUIET, Decision
from .event_json import as_line, from_line
from .event_writer import HEADER_KEY, HEADER_START, Writer, writers_to

FLUSH_EVERY = 100
"""With so many lines in memory they are written; a kill loses those that wait, of quiet steps."""


class EventLog:
    """Writes one JSON line for each decision of ARS; survives kills, resumes, copies and pickling.

    Lines are appended: a run that is resumed goes on in the file of its first part, and
    `read_events` makes one run of them. In a distributed run let one rank write.

    Lines of quiet steps wait in memory, up to 99 of them, until a step that is not quiet, the end
    of the log or of the program, or somebody in this process who reads the log. Other processes
    see them later, and a kill (SIGKILL, or any signal that ends Python at once) loses them.

    A file is written to by one log of a process at a time, or steps of two runs would replace each
    other. A log lets go of it when it is closed or collected. A copy (deepcopy, pickle) keeps the
    path and writes to the same file from its first line on: let it take the place of the original.

    A disk that fails costs the lines that could not be written, never the run: it is told to the
    `logging` of this module.

    Args:
        path: the file; it is made at the first flush, its folder at once. One that exists must be
            an event log.
        header: what the header line shall hold besides, for instance {"config": ...}.

    Raises:
        ValueError: `path` is a folder, a file that is no event log, or one that another log of this
            process writes to.
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
        if writers_to(self.path):
            gc.collect()  # what nobody holds any more may be part of a cycle
        if writers_to(self.path):
            raise ValueError(
                "path must be an event log that nobody else in this process writes to, got "
                f"{str(path)!r}, the log of another live optimizer; give each optimizer a file of "
                "its own, or delete the other one first (del optimizer)"
            )
        self._start()
        self._writer.claim()

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
        waiting = self._writer.add(as_line(record))
        if not quiet or waiting >= FLUSH_EVERY:
            self._writer.flush()

    def flush(self) -> None:
        """Write what waits in memory."""
        self._writer.flush()

    def close(self) -> None:
        """Write what waits in memory and let go of the file; happens by itself at the log's end.

        No file stays open between flushes, so that a later `write` simply goes on.
        """
        self._writer.end()

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "header": self.header}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

    def _start(self) -> None:
        self._writer = Writer(self.path, self.header)
        # Called when the log is collected and when the program ends, whichever comes first.
        weakref.finalize(self, self._writer.end)


def read_events(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a run, step by step, each step once.

    Where the run went back, resumed from a checkpoint or begun anew in the same file, the steps
    from there on are those of its later part alone. Where it was given up (`TrainingDiverged`) and
    went on all the same, the step is the one that has the diagnosis. A last line that a kill has
    cut is left out. What a log of this process still holds in memory is written first.

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
    given_up: int | None = None
    for number, record in _records(path):
        if HEADER_KEY in record:
            given_up = None  # another process, which may have found a remedy
            continue
        if not isinstance(record.get("step"), int) or "loss" not in record:
            raise ValueError(
                f"{os.fspath(path)}, line {number}: must be an event with a step and a loss, got "
                f"the keys {sorted(record)}; is this file an event log?"
            )
        if record["step"] == given_up:
            continue
        given_up = record["step"] if "diagnosis" in record else None
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
    for writer in writers_to(path):
        writer.flush()
    with open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            if not line.startswith(start) or not line.strip():
                continue
            try:
                record = from_line(line)
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
            yield number, record


def _beyond_default(decision: Decision) -> dict[str, Any]:
    record = {}
    for name, value in decision._asdict().items():
        default = decision._field_defaults.get(name, ...)  # some fields have none
        if value != default and not (value != value and default != default):  # NaN is NaN here
            record[name] = value
    return record


def _is_log(path: Path) -> bool:
    with open(path, "rb") as file:
        # A kill may have cut the first line.
        return HEADER_START.startswith(file.read(len(HEADER_START)))
