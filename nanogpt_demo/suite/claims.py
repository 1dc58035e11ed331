"""What was asked of ARS in the suite, line by line: what was found, and whether it holds.

Beside each goal stands what any method reaches, so that a reader can tell a weakness of ours from a
goal that nobody meets.
"""

from __future__ import annotations

from collections.abc import Iterable

from nanogpt_demo.markdown import percent
from nanogpt_demo.store import Document
from nanogpt_demo.suite.profile import (
    Cell,
    Cells,
    Runs,
    Summary,
    compare_runs,
    complete,
    mean_capped,
    ranks,
    seeds_of,
    tally,
)
from nanogpt_demo.suite.summary import BEST_PEER, CLIP, grouped, is_peer, reported
from nanogpt_demo.suite.tables import lost_share
from nanogpt_demo.summary import OURS

TOUCHED = 0.005
"""Share of healthy steps, after the start-up phase, that may be touched."""

FRESH = range(6, 11)
"""Held-out seeds that were run last, when the policy was settled but for the opening of SGD."""

QUIET = 0.05
"""A method that touches less than this of a healthy run leaves it alone, more or less."""


def suite_claims(document: Document) -> str:
    """The goals of the suite as a Markdown list."""
    name, split = reported(document["summary"])
    records = (r for r in document["records"] if r["split"] == name and r["kind"] == "cell")
    cells = grouped(records)
    goals = (_every_cell, _half_of_the_sick, _rank, _controls, _untouched, _alive)
    lines = [*(goal(split, cells) for goal in goals), *_fresh(cells)]
    return "\n".join(f"- {line}" for line in lines)


def chosen_unseen(cell: Cell) -> Runs:
    """For each seed, the run of the peer that is best on the other seeds.

    The best peer of a cell is picked on the seeds that it is then compared on, and lucky for that;
    this one is not.
    """
    peers = [method for method in complete(cell) if is_peer(method)]
    return {seed: cell[_best(cell, peers, seed)][seed] for seed in seeds_of(cell)}


def _best(cell: Cell, methods: list[str], unseen: int) -> str:
    def mean(method: str) -> float:
        return mean_capped({seed: run for seed, run in cell[method].items() if seed != unseen})

    return min(methods, key=mean)


def wins_over_clip(cells: Cells) -> dict[str, list[str]]:
    """By method: the cells in which it is better than clipping, beyond two standard errors."""
    wins: dict[str, list[str]] = {}
    for name, cell in cells.items():
        for method, runs in cell.items():
            won = method != CLIP and compare_runs(runs, cell[CLIP])["verdict"] == "better"
            wins.setdefault(method, []).extend([name] * won)
    return wins


def _every_cell(split: Summary, cells: Cells) -> str:
    found = split["counts"]["all"][BEST_PEER]
    unseen = tally(
        compare_runs(cell[OURS], chosen_unseen(cell))["verdict"] for cell in cells.values()
    )
    return (
        f"Better than the best peer or tied in every cell: worse in {found['worse']} of "
        f"{len(cells)}, unclear in {found['unclear']}: "
        f"{_holds(not found['worse'] and not found['unclear'])}. Against the peer that is best on "
        "the other seeds, picked without seeing the seed it is compared on: better in "
        f"{unseen['better']}, tied in {unseen['tied']}, unclear in {unseen['unclear']}, worse in "
        f"{unseen['worse']}."
    )


def _half_of_the_sick(split: Summary, cells: Cells) -> str:
    sick = {name: cell for name, cell in cells.items() if not split["cells"][name]["control"]}
    ours = split["counts"]["sick_better_than_clip"]
    peers = {m: won for m, won in wins_over_clip(sick).items() if is_peer(m) and won}
    best = max(peers, key=lambda method: len(peers[method]), default=None)
    most = f"{len(peers[best])} ({best})" if best else "0"
    anyone = {name for won in peers.values() for name in won}
    return (
        f"Better than `{CLIP}`, beyond two standard errors, in half of {len(sick)} sick cells or "
        f"more: in {ours}: {_holds(2 * ours >= len(sick))}. No peer manages more than {most}; in "
        f"{len(anyone)} cells at least one of them does."
    )


def _rank(split: Summary, cells: Cells) -> str:
    order = list(split["ranks"]["common"]["mean"])
    before = order[: order.index(OURS)]
    quiet = [m for m in order if split["methods"][m]["touched_healthy"] < QUIET]
    place = f"place {quiet.index(OURS) + 1}" if OURS in quiet else "it is not among them"
    return (
        f"The best mean rank: place {len(before) + 1} of {len(order)}{_listed(before, ' after ')}: "
        f"{_holds(not before)}. Of the {len(quiet)} methods that touch less than {percent(QUIET)} "
        f"of healthy steps: {place}."
    )


def _controls(split: Summary, cells: Cells) -> str:
    pairs = {name: found["against_reference"] for name, found in split["controls"].items()}
    worse = {name: pair for name, pair in pairs.items() if pair["verdict"] == "worse"}
    named = [
        f"{name} ({percent(lost_share(split['cells'][name], p))})" for name, p in worse.items()
    ]
    return (
        f"Where nothing happens, no worse than bare or `{CLIP}`, whichever is better: worse in "
        f"{len(worse)} of {len(pairs)} controls{_listed(named)}: {_holds(not worse)}."
    )


def _untouched(split: Summary, cells: Cells) -> str:
    late = {name: found["touched_late"][OURS]["mean"] for name, found in split["controls"].items()}
    above = [f"{name} ({percent(share)})" for name, share in late.items() if share > TOUCHED]
    mean = split["methods"][OURS]["touched_healthy"]
    return (
        f"At most {percent(TOUCHED)} of healthy steps touched after the start-up phase: "
        f"{percent(mean)} on average: {_holds(mean <= TOUCHED)}; more in "
        f"{len(above)} of the controls{_listed(above)}."
    )


def _alive(split: Summary, cells: Cells) -> str:
    counts = split["counts"]
    lost, alive, of = (
        counts[n] for n in ("lost_by_ars_only", "nonfinite_survived", "nonfinite_runs")
    )
    return (
        f"Survives what the bare optimizer survives, and all NaNs and infinities: lost alone in "
        f"{len(lost)} cells, {alive} of {of} runs with NaNs survive: "
        f"{_holds(not lost and alive == of)}."
    )


def _fresh(cells: Cells) -> list[str]:
    """The ranks on fresh seeds alone, if there are any."""
    fresh: Cells = {
        name: {m: {s: run for s, run in runs.items() if s in FRESH} for m, runs in cell.items()}
        for name, cell in cells.items()
    }
    mean = ranks(fresh)["mean"]
    if OURS not in mean:
        return []
    place = list(mean).index(OURS) + 1
    first = ", ".join(
        f"{method} {rank:.2f}" for method, rank in list(mean.items())[: max(4, place)]
    )
    return [
        f"On the seeds that came last, when all but the opening of SGD was settled: place {place} "
        f"({first})."
    ]


def _listed(names: Iterable[str], link: str = ", namely ") -> str:
    text = ", ".join(names)
    return f"{link}{text}" if text else ""


def _holds(true: bool) -> str:
    return "**holds**" if true else "**does not hold**"
