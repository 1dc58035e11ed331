"""What the pages say about stopping, from ``stopping.json``."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from nanogpt_demo.markdown import markdown
from nanogpt_demo.stopping.rules import PATIENCE, PATIENCE_TOLD
from nanogpt_demo.stopping.summary import OURS, SPLITS, WANTED, default_of
from nanogpt_demo.store import Document
from nanogpt_demo.summary import Record

HELD_OUT = SPLITS[0]
RIVAL = f"{PATIENCE} 10"  # of the defaults, the one that saves about as much as RCA


def stopping_table(document: Document) -> str:
    """The default methods on the held-out curves, those that save most first."""
    split = document["summary"][HELD_OUT]
    front = set(split["pareto"])
    shown = {name: n for name, n in split["methods"].items() if n["default"]}
    header = ["rule", "saved", "regret", "wrong stops", "on the front", *_workloads(split)]
    rows = [
        [
            f"**{name}**" if numbers["family"] in OURS else name,
            _percent(numbers["saved"], numbers["saved_ci"], 0),
            _percent(numbers["regret"], numbers["regret_ci"], 2),
            _percent(numbers["wrong_stop"], numbers["wrong_stop_ci"], 0),
            "yes" if name in front else "",
            *(f"{100 * s:.0f} / {100 * r:.2f}" for s, r, _ in numbers["workloads"].values()),
        ]
        for name, numbers in sorted(shown.items(), key=lambda item: -item[1]["saved"])
    ]
    curves = f"{split['curves']} curves of {split['configurations']} configurations"
    note = "by workload: saved / regret in per cent; intervals: bootstrap, 95 %"
    return f"Held-out: {curves} ({note}).\n\n{markdown(header, rows)}"


def _workloads(split: dict[str, Any]) -> list[str]:
    return list(next(iter(split["methods"].values()))["workloads"])


def _percent(mean: float, interval: list[float], digits: int) -> str:
    low, high = (f"{100 * edge:.{digits}f}" for edge in interval)
    return f"{100 * mean:.{digits}f} % ({low} to {high})"


def stopping_claims(document: Document) -> str:
    """What was asked of RCA, with and without the training loss, and whether it holds."""
    split = document["summary"][HELD_OUT]
    rows = [row for family in OURS for row in split["against_patience"][family]]
    return "\n\n".join([*(_claims(split, family) for family in OURS), _against_patience(rows)])


def _claims(split: dict[str, Any], family: str) -> str:
    default, asked = default_of(family).name, split["acceptance"][family]
    lines = [
        _claim(asked, "saved", f"{default}: mean saved", "at least"),
        _claim(asked, "regret", f"{default}: mean regret", "at most"),
        _claim(asked, "wrong_stop", f"{default}: wrong stops", "at most"),
        _claim(asked, "points", f"{family}: points beyond patience, the worst setting", "at least"),
        f"{family}: {_front(split['front'][family])}",
    ]
    return "\n".join(f"- {line}" for line in lines)


def stopping_told(document: Document) -> str:
    """What RCA's default gains by knowing the training loss, on the same curves."""
    split = document["summary"][HELD_OUT]
    alone, told = (default_of(family).name for family in OURS)
    found = split["told"]
    before, after = found["wrong_stops"]
    return (
        f"{told} minus {alone}, curve by curve (brackets: bootstrap, 95 %): saved "
        f"{_points(found['saved'], 1)}, regret {_points(found['regret'], 2)}, wrong stops "
        f"{_points(found['wrong'], 1)}, {after} in place of {before} of {split['curves']} curves. "
        f"Two curves make {100 * found['two_worst']:.0f} % of the regret of {told}."
    )


def _points(change: list[float], digits: int) -> str:
    mean, low, high = (f"{100 * value:+.{digits}f}" for value in change)
    return f"{mean} points ({low} to {high})"


def _claim(acceptance: dict[str, Any], name: str, text: str, side: str) -> str:
    value, holds = acceptance[name]
    found = "no setting" if value is None else f"{100 * value:.2f}"
    verdict = "holds" if holds else "does not hold"
    return f"{text}: {found} % (asked: {side} {100 * WANTED[name]:g} %): {verdict}."


def _front(rows: list[dict[str, Any]]) -> str:
    missed = [f"{100 * row['saved']:.0f} % ({row['other']})" for row in rows if not row["on_front"]]
    where = "everywhere" if not missed else f"not at {', '.join(missed)}"
    ends = f"{100 * rows[0]['saved']:.0f} and {100 * rows[-1]['saved']:.0f} %"
    return f"on the Pareto front between {ends} saved: {where}."


def _against_patience(pairs: list[dict[str, Any]]) -> str:
    defaults = [default_of(family).name for family in OURS]
    header = ["setting", "saved", "regret", "best patience saves", "points more"]
    rows = []
    for row in pairs:
        name = row["method"]
        low, high = (f"{100 * edge:+.1f}" for edge in row["points_ci"])
        rows.append(
            [
                f"**{name}**" if name in defaults else name,
                f"{100 * row['saved']:.1f} %",
                f"{100 * row['regret']:.2f} %",
                f"{100 * row['patience_saved']:.1f} %",
                f"{100 * row['points']:+.1f} ({low} to {high})",
            ]
        )
    return "At equal regret:\n\n" + markdown(header, rows)


def stopping_by_kind(document: Document) -> str:
    """RCA's defaults and patience on each kind of curve, those that cost RCA most first."""
    shown = (*(default_of(family).name for family in (*OURS, PATIENCE_TOLD)), RIVAL)
    kinds = {name: _by_kind(document, name) for name in shown}
    first = kinds[shown[0]]
    order = sorted(first, key=lambda kind: -_mean(first[kind], "regret"))
    header = ["kind of curve", "curves", *(column for name in kinds for column in _columns(name))]
    rows = [
        [
            kind,
            str(len(first[kind])),
            *(x for found in kinds.values() for x in _outcome(found[kind])),
        ]
        for kind in order
    ]
    rest = [f"{name} {_without(found, order[0])}" for name, found in kinds.items()]
    return f"{markdown(header, rows)}\n\nWithout `{order[0]}`: {'; '.join(rest)}."


def _without(kinds: dict[str, list[Record]], left_out: str) -> str:
    rest = [record for kind, found in kinds.items() if kind != left_out for record in found]
    saved, regret, wrong = (100 * _mean(rest, name) for name in ("saved", "regret", "wrong_stop"))
    return f"saves {saved:.1f} % at a regret of {regret:.2f} % with {wrong:.1f} % wrong stops"


def _by_kind(document: Document, method: str) -> dict[str, list[Record]]:
    """A method's outcomes on the held-out curves, by what is special about the run."""
    kinds: dict[str, list[Record]] = {}
    for record in document["records"]:
        if record["method"] == method and record["split"] == HELD_OUT:
            kinds.setdefault(record["curve"].split("/")[1], []).append(record)
    return kinds


def _columns(method: str) -> list[str]:
    return [f"{method}: {what}" for what in ("saved", "regret", "wrong")]


def _outcome(records: list[Record]) -> list[str]:
    saved, regret = (100 * _mean(records, name) for name in ("saved", "regret"))
    return [f"{saved:.0f} %", f"{regret:.2f} %", str(sum(r["wrong_stop"] for r in records))]


def _mean(records: list[Record], name: str) -> float:
    return fmean(record[name] for record in records)
