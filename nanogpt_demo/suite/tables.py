"""Markdown tables of the suite, made from its result file and from nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median

from nanogpt_demo.markdown import difference, markdown, percent, plus_minus
from nanogpt_demo.store import Document
from nanogpt_demo.suite.profile import VERDICTS, Summary, tally
from nanogpt_demo.suite.summary import (
    BARE,
    BEST_PEER,
    CLIP,
    HEALTHY,
    WARMUP_CLIP,
    against,
    method_order,
    reported,
)
from nanogpt_demo.summary import OURS


def _bold(method: str) -> str:
    return f"**{method}**" if method == OURS else method


def verdicts(counts: Mapping[str, int]) -> str:
    """How often each verdict occurs, from better to worse."""
    return " / ".join(str(counts[verdict]) for verdict in VERDICTS)


def suite_ranks(document: Document) -> str:
    """All methods over all cells, best mean rank first."""
    name, split = reported(document["summary"])
    header = ["method", "mean rank", "rank, adamw only", "lost to the best", "in the worst cell"]
    header += ["profile score", "cells"]
    header += [f"{OURS} {' / '.join(VERDICTS)}", "survived", "touched when healthy"]
    rows = [_rank_row(method, split) for method in method_order(split)]
    pairs = split["ranks"]["common"]["pairs"]
    return (
        f"{markdown(header, rows)}\n\n{name} split, ranks over {pairs} pairs of cell and seed. "
        "Lost to the best: val above that of the best method of the cell, in percent of what that "
        "one learns, mean over the cells and in the worst of them. "
        f"Touched when healthy: steps after the start-up phase that are not the bare optimizer's, "
        f'where nothing happens ("{HEALTHY}").'
    )


def _rank_row(method: str, split: Summary) -> list[str]:
    numbers = split["methods"][method]
    means = [split["ranks"][pool]["mean"].get(method) for pool in ("common", "adamw")]
    score = split["profile"]["common"].get(method)
    return [
        _bold(method),
        *("-" if mean is None else f"{mean:.2f}" for mean in means),
        *(percent(numbers[name]) for name in ("regret_mean", "regret_max")),
        f"{score['score']:.3f}" if score else "-",
        str(numbers["cells"]),
        "" if method == OURS else verdicts(numbers[f"{OURS}_is"]),
        f"{numbers['survived']} of {numbers['runs']}",
        percent(numbers["touched_healthy"]),
    ]


def suite_cells(document: Document) -> str:
    """One row for each cell: the usual methods, the best peer and ours."""
    _, split = reported(document["summary"])
    header = ["cell", "best peer", "its val", CLIP, WARMUP_CLIP, BARE, f"**{OURS}**"]
    header.append(f"{OURS} minus best peer")
    rows = [_cell_row(name, cell) for name, cell in split["cells"].items()]
    return markdown(header, rows)


def _cell_row(name: str, cell: Summary) -> list[str]:
    methods = [cell["best_peer"], CLIP, WARMUP_CLIP, BARE, OURS]
    control = " (control)" if cell["control"] else ""
    return [
        f"{name}{control}",
        cell["best_peer"] or "-",
        *(_val(cell["methods"].get(method)) for method in methods),
        difference(against(cell, BEST_PEER)),
    ]


def _val(numbers: Summary | None) -> str:
    """Mean capped loss; says so if runs died."""
    if numbers is None:
        return "-"
    dead = numbers["n"] - numbers["survived"]
    lost = f" ({dead} of {numbers['n']} died)" if dead else ""
    return plus_minus(numbers["val"], numbers["val_se"]) + lost


def suite_losses(document: Document) -> str:
    """The cells in which ours is not shown to be as good as the best peer, in words."""
    name, split = reported(document["summary"])
    found = [
        (lost_share(cell, pair), cell_name, cell, pair)
        for cell_name, cell in split["cells"].items()
        if (pair := against(cell, BEST_PEER)) and pair["verdict"] in ("worse", "unclear")
    ]
    if not found:
        return f"None of the {len(split['cells'])} cells of the {name} split."
    return "\n".join(
        f"- {cell_name}: {OURS} {_val(cell['methods'][OURS])} against "
        f"{_val(cell['methods'][cell['best_peer']])} of {cell['best_peer']}, a difference of "
        f"{plus_minus(pair['mean'], pair['se'], '+')}, or {100 * share:+.1f} % of what training "
        f"gains there ({pair['verdict']})."
        for share, cell_name, cell, pair in sorted(found, key=lambda item: -item[0])
    )


def lost_share(cell: Summary, pair: Summary) -> float:
    """A difference as a share of what the best method of the cell learns."""
    gain = float(cell["val_start"] - cell["best"])
    return float(pair["mean"]) / gain if gain > 0 else 0.0


def suite_ablation(document: Document) -> str:
    """What each part of ours is worth, a table for each split that has an ablation."""
    header = ["variant", "cost (% of what is learned)", "cells"]
    header.append(f"variant {' / '.join(VERDICTS)} than {OURS}")
    return "\n\n".join(
        f"**{name} split**\n\n"
        + markdown(header, [_ablation_row(v, n) for v, n in split["ablation"].items()])
        for name, split in document["summary"].items()
        if split["ablation"]
    )


def _ablation_row(variant: str, numbers: Summary) -> list[str]:
    cost = numbers["cost"]
    return [
        variant,
        plus_minus(cost["mean"], cost["se"], "+") if cost else "-",
        str(len(numbers["cells"])),
        verdicts(numbers["verdicts"]),
    ]


def suite_ideas(document: Document) -> str:
    """What was tried for the policy: cost of each idea, and where it matters most."""
    header = ["idea", "cost (% of what is learned)", "acts in"]
    header += [f"{' / '.join(VERDICTS)} than {OURS} there", "best cell", "worst cell"]
    return "\n\n".join(
        f"**{name} split**\n\n"
        + markdown(header, [_idea_row(idea, n) for idea, n in split["ablation"].items()])
        for name, split in document["summary"].items()
        if split["ablation"]
    )


def _idea_row(idea: str, numbers: Summary) -> list[str]:
    """A cell in which every run is the default's to the bit says nothing of an idea."""
    cost, cells = numbers["cost"], numbers["cells"]
    acts = {name: pair for name, pair in cells.items() if pair["mean"] or pair["se"]}
    by_cost = sorted(acts.items(), key=lambda item: float(item[1]["percent"] or 0.0))
    ends = [f"{name} {pair['percent']:+.1f} ({pair['verdict']})" for name, pair in by_cost]
    return [
        idea,
        plus_minus(cost["mean"], cost["se"], "+") if cost else "-",
        f"{len(acts)} of {len(cells)} cells",
        verdicts(tally(pair["verdict"] for pair in acts.values())),
        *((ends[0], ends[-1]) if ends else ("-", "-")),
    ]


def suite_lr(document: Document) -> str:
    """Loss by learning rate, a table for each split, workload and optimizer that was swept."""
    return "\n\n".join(
        f"**{name}, {split_name} split**\n\n{_lr_table(sweep)}"
        for split_name, split in document["summary"].items()
        for name, sweep in split["lr_sweep"].items()
    )


def _lr_table(sweep: Summary) -> str:
    rates = sorted({lr for numbers in sweep.values() for lr in numbers["lrs"]})
    header = ["method", *(f"lr {lr:.2g}" for lr in rates), "sensitivity"]
    rows = []
    for method, numbers in sorted(sweep.items(), key=lambda item: item[1]["sensitivity"]):
        found = zip(numbers["lrs"], numbers["val"], numbers["se"], strict=True)
        by_rate = {lr: plus_minus(val, se) for lr, val, se in found}
        vals = [by_rate.get(lr, "-") for lr in rates]
        rows.append([_bold(method), *vals, f"{numbers['sensitivity']:.3f}"])
    return markdown(header, rows)


def suite_controls(document: Document) -> str:
    """What ours costs where nothing is wrong, and how often each method acts there."""
    _, split = reported(document["summary"])
    header = ["control", "better of bare and clip", f"{OURS} minus it", f"{OURS} touched late"]
    header += ["most in one run", "median other method", "most active other method"]
    rows = [_control_row(name, numbers) for name, numbers in split["controls"].items()]
    return markdown(header, rows)


def _control_row(name: str, numbers: Summary) -> list[str]:
    late = dict(numbers["touched_late"])
    ours = late.pop(OURS, {"mean": None, "max": None})
    others = {method: found["mean"] for method, found in late.items()}
    busiest = max(others, key=lambda method: float(others[method]), default=None)
    return [
        name,
        numbers["reference"] or "-",
        difference(numbers["against_reference"]),
        percent(ours["mean"]),
        percent(ours["max"]),
        percent(median(others.values()) if others else None),
        f"{busiest} {percent(others[busiest])}" if busiest else "-",
    ]
