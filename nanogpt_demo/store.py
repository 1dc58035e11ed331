"""The result file of an experiment: one JSON document, rewritten whole after every run.

Several commands may add to the same file, even at the same time: each change reads the file, adds
to it and replaces it in one go, under a lock.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

PARTIAL = "partial"  # folder for what a restart needs and a finished experiment does not

Document = dict[str, Any]


def record_key(record: Mapping[str, Any]) -> str:
    """Name a run: the same settings on the same text have the same key on every machine.

    Args:
        record: A record, or any mapping with its settings.
    """
    return (
        f"{record['size']}-{record['method']}-{record['shift']}{record['shift_at']}"
        f"of{record['steps']}-lr{record['lr']:g}"
        f"-{record['corpus']}.{record['corpus_sha256'][:8]}-seed{record['seed']}"
    )


def dumps(document: Document) -> str:
    """Write a document as valid JSON with one line for each record and each trace.

    Raises:
        ValueError: If it holds a NaN or an infinity, which JSON has no word for.
    """
    parts = [f"{json.dumps(key)}: {_value(value)}" for key, value in document.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _value(value: Any) -> str:
    def line(item: Any) -> str:
        return json.dumps(item, allow_nan=False, separators=(",", ":"), ensure_ascii=False)

    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(line(item) for item in value) + "\n]"
    if isinstance(value, dict) and value:
        return "{\n" + ",\n".join(f"{line(k)}: {line(v)}" for k, v in value.items()) + "\n}"
    return line(value)


class Store:
    """The result file ``name``.json in a folder.

    Args:
        folder: Created with its ``partial`` folder when first written to.
        name: Name of the experiment.
    """

    def __init__(self, folder: Path, name: str) -> None:
        """Remember the paths; nothing is written yet."""
        self.folder = folder
        self.path = folder / f"{name}.json"
        self.picture = folder / f"{name}.png"
        self.partial = folder / PARTIAL

    def read(self) -> Document:
        """Return the document, or one without records if the file does not exist.

        Raises:
            ValueError: If the file is no result file.
        """
        if not self.path.exists():
            return {"records": [], "summary": {}, "traces": {}}
        try:
            document: Document = json.loads(self.path.read_text(encoding="utf-8"))
            document["records"], document["summary"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"out must be a folder with a readable {self.path.name}, got {error!r}; "
                "give another folder, or move that file away"
            ) from error
        return document

    def keys(self) -> set[str]:
        """Keys of the finished runs."""
        return {record_key(record) for record in self.read()["records"]}

    def change(self, edit: Callable[[Document], None]) -> Document:
        """Let ``edit`` change the document, and save it.

        Args:
            edit: Called with the current document.

        Returns:
            The document as saved.
        """
        self.partial.mkdir(parents=True, exist_ok=True)
        with FileLock(self.partial / f"{self.path.stem}.lock"):
            document = self.read()
            edit(document)
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(dumps(document), encoding="utf-8")
            os.replace(temporary, self.path)
        return document

    def checkpoint(self, key: str) -> Path:
        """Where the half-done run ``key`` is kept."""
        return self.partial / f"{key}.pt"
