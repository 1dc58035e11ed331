"""What the pages say about stopping, from ``stopping.json``."""

from __future__ import annotations

from typing import Any

from nanogpt_demo.markdown import markdown
from nanogpt_demo.stopping.rules import RCA_FAMILY
from nanogpt_demo.stopping.summary import SPLITS, WANTED, default_of
from nanogpt_demo.store import Document

HELD_OUT = SPLITS[0]


def stopping_table(document: Document) -> str:
    """The default methods on the held-out curves, those that save most first."""
    split = document["summary"][HELD_OUT]
    front = set(split["pareto"])
    shown = {name: n for name, n in split["methods"].items() if n["default"]}
    header = ["rule", "saved", "regret", "wrong stops", "on the front", *_workloads(split)]
    rows = [
        [
            f"**{name}**" if numbers["family"] == RCA_FAMILY else name,
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
    """What was asked of RCA's default, setting by setting, and whether it holds."""
    split = document["summary"][HELD_OUT]
    default, asked = default_of(RCA_FAMILY).name, split["acceptance"]
    lines = [
        _claim(asked, "saved", f"{default}: mean saved", "at least"),
        _claim(asked, "regret", f"{default}: mean regret", "at most"),
        _claim(asked, "wrong_stop", f"{default}: wrong stops", "at most"),
        _claim(asked, "points", "points beyond patience, the worst setting in range", "at least"),
        _front(split),
    ]
    return "\n".join([*lines, "", _against_patience(split)])


def _claim(acceptance: dict[str, Any], name: str, text: str, side: str) -> str:
    value, holds = acceptance[name]
    found = "no setting" if value is None else f"{100 * value:.2f}"
    verdict = "holds" if holds else "does not hold"
    return f"- {text}: {found} % (asked: {side} {100 * WANTED[name]:g} %): {verdict}."


def _front(split: dict[str, Any]) -> str:
    rows = split["front"]
    missed = [f"{100 * row['saved']:.0f} % ({row['other']})" for row in rows if not row["on_front"]]
    where = "everywhere" if not missed else f"not at {', '.join(missed)}"
    ends = f"{100 * rows[0]['saved']:.0f} and {100 * rows[-1]['saved']:.0f} %"
    return f"- on the Pareto front between {ends} saved: {where}."


def _against_patience(split: dict[str, Any]) -> str:
    default = default_of(RCA_FAMILY).name
    header = ["setting", "saved", "regret", "best patience saves", "points more"]
    rows = []
    for row in split["against_patience"]:
        name = row["method"]
        low, high = (f"{100 * edge:+.1f}" for edge in row["points_ci"])
        rows.append(
            [
                f"**{name}**" if name == default else name,
                f"{100 * row['saved']:.1f} %",
                f"{100 * row['regret']:.2f} %",
                f"{100 * row['patience_saved']:.1f} %",
                f"{100 * row['points']:+.1f} ({low} to {high})",
            ]
        )
    return "At equal regret:\n\n" + markdown(header, rows)
