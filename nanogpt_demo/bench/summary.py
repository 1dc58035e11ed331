"""From the records to ratios by row, the checks of what we promise, and tables for the front page.

A row is a case on a base optimizer; all its numbers come from the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import Any

from nanogpt_demo.markdown import markdown
from nanogpt_demo.store import Document

Record = dict[str, Any]
Row = dict[str, Record]

PROMISED = (("20x1M", "adamw-fused"), ("gpt2-124m", "adamw-fused"))
"""Rows for which the limits are meant."""

RIVALS = ("zclip", "arc", "stabilityguard")

QUIET, UNGUARDED = "ars, quiet", "ars no norm guard, quiet"
GATED, JITTERED = ("ars, bounded", "ars, damped"), "ars, jittered"
NOISE_ALONE = "noise alone"

QUIET_LIMIT = 1.01
GATED_LIMIT = 1.1
JITTERED_LIMIT = 1.6

QUARTILES_TO_ERROR = math.sqrt(math.pi / 2) / 1.349
"""Standard error of a median of normal values: this times their interquartile range over the root
of their number."""


def label(record: Record) -> str:
    """Name of a method; with its state where ARS has several."""
    ours = record["method"].startswith("ars")
    return f"{record['method']}, {record['state']}" if ours else str(record["method"])


def row_of(record: Record) -> tuple[str, str]:
    """Case and base of a record."""
    return record["case"], record["base"]


def rows(records: Iterable[Record]) -> dict[tuple[str, str], Row]:
    """The timed records by row and label, in the order in which they were measured."""
    found: dict[tuple[str, str], Row] = {}
    for record in records:
        if record["kind"] == "time":
            found.setdefault(row_of(record), {})[label(record)] = record
    return found


def summarise(records: list[Record]) -> dict[str, Any]:
    """Ratios to the bare step by row, the checks, and the bytes that ARS adds.

    Args:
        records: as `measure` returns them.
    """
    by_row = rows(records)
    ratios = {
        ", ".join(place): {name: record["ratio_to_bare"] for name, record in row.items()}
        for place, row in by_row.items()
    }
    return {"ratios": ratios, "checks": list(checks(by_row)), "bytes": _bytes(records)}


def _bytes(records: list[Record]) -> dict[str, dict[str, int]]:
    """The most that each part of ARS took, by label."""
    parts: dict[str, dict[str, int]] = {}
    for record in records:
        if record["kind"] == "memory":
            sizes = parts.setdefault(label(record), {})
            sizes[record["part"]] = max(record["bytes"], sizes.get(record["part"], 0))
    return parts


def checks(by_row: dict[tuple[str, str], Row]) -> Iterator[Record]:
    """Every promise with the two numbers that decide it, and their difference's standard error.

    Args:
        by_row: the rows.
    """
    for place in PROMISED:
        if place in by_row:
            for text, sides in _promises(by_row[place]):
                yield _check(text, place, *sides)
    for place, row in by_row.items():
        rival = min(RIVALS, key=lambda name: row[name]["added"])
        # In a training step this leaves out what StabilityGuard's hooks cost the backward pass,
        # to its advantage: the rest of that step only adds noise.
        text = f"quiet with norm guard adds less than the cheapest of the peers ({rival})"
        added = {name: _median(row[name], "added") for name in (QUIET, rival)}
        yield _check(text, place, added[QUIET], added[rival], strict=True)


Median = tuple[float, float]
"""A median over the rounds and its standard error."""


def _median(record: Record, name: str) -> Median:
    spread = record[f"{name}_q3"] - record[f"{name}_q1"]
    return record[name], QUARTILES_TO_ERROR * spread / math.sqrt(record["rounds"])


def _promises(row: Row) -> Iterator[tuple[str, tuple[Median, Median]]]:
    """What is promised of a row, what was measured, and the limit."""
    ratio = {name: _median(record, "ratio_to_bare") for name, record in row.items()}
    yield f"quiet without norm guard ≤ {QUIET_LIMIT} × bare", (ratio[UNGUARDED], (QUIET_LIMIT, 0.0))
    yield "quiet with norm guard ≤ bare + `clip_grad_norm_`", (ratio[QUIET], ratio["clip"])
    value, error = ratio[QUIET]
    for name in GATED:
        yield f"{name} ≤ quiet + 10 %", (ratio[name], (GATED_LIMIT * value, GATED_LIMIT * error))
    yield f"jittered ≤ {JITTERED_LIMIT} × bare", (ratio[JITTERED], (JITTERED_LIMIT, 0.0))


def _check(
    text: str, place: tuple[str, str], found: Median, limit: Median, strict: bool = False
) -> Record:
    numbers = {"value": found[0], "limit": limit[0], "error": math.hypot(found[1], limit[1])}
    rounded = {name: float(f"{number:.5g}") for name, number in numbers.items()}
    value, bound = rounded["value"], rounded["limit"]
    holds = value < bound if strict else value <= bound
    return {"check": text, "case": place[0], "base": place[1], **rounded, "holds": holds}


# -- the tables of the front page --------------------------------------------------------------


def overhead_table(document: Document) -> str:
    """For each case a table of ratios to the bare step, median and quartiles, as Markdown."""
    by_row = rows(document["records"])
    tables = []
    for case, places in groupby(by_row, key=lambda place: place[0]):
        columns = {base: by_row[case, base] for _, base in places}
        labels = dict.fromkeys(name for row in columns.values() for name in row)
        body = [[name, *(_cell(row.get(name)) for row in columns.values())] for name in labels]
        tables.append(f"**{case}**\n\n{markdown(['', *columns], body)}")
    return "\n\n".join(tables)


def _cell(record: Record | None) -> str:
    """Milliseconds of the bare step, ratios of the others."""
    if record is None:
        return ""
    if record["method"] == "bare":
        return f"{record['ms']:.3g} ms"
    low, high = record["ratio_to_bare_q1"], record["ratio_to_bare_q3"]
    return f"{record['ratio_to_bare']:.3f} ({low:.3f} to {high:.3f})"


def overhead_memory(document: Document) -> str:
    """What ARS keeps in memory, quiet and once it has added noise, as a sentence."""
    parts = document["summary"]["bytes"]
    quiet, jittered = (sum(parts[name].values()) for name in (QUIET, JITTERED))
    return (
        f"ARS adds {quiet:,} bytes of memory, whatever the model; once it adds noise, a table of "
        f"{(jittered - quiet) / 2**20:.1f} MiB. Snapshots come on top."
    )


def overhead_checks(document: Document) -> str:
    """What is promised and what was measured, as a Markdown table."""
    body = [
        [
            found["check"],
            f"{found['case']}, {found['base']}",
            f"{found['value']:.3f}",
            f"{found['limit']:.3f}",
            f"{found['value'] - found['limit']:+.3f} ± {found['error']:.3f}",
            ("yes" if found["holds"] else "**no**") + (", within noise" if unclear(found) else ""),
        ]
        for found in document["summary"]["checks"]
    ]
    return markdown(["promise", "where", "measured", "limit", "difference", "holds"], body)


def ratio_text(record: Record) -> str:
    """A step as a multiple of the bare one's: the median over the rounds and its standard error."""
    return "{:.3f} ± {:.3f}".format(*_median(record, "ratio_to_bare"))


def unclear(check: Record) -> bool:
    """Whether a check is decided by less than two standard errors."""
    return bool(abs(check["value"] - check["limit"]) <= 2 * check["error"])
