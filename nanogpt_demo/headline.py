"""What the front page says in numbers: one line for each experiment, what it costs, what it loses.

Everything is worked out of the committed result files; the tables behind it are in
``results/README.md``.
"""

from __future__ import annotations

from typing import Any

from nanogpt_demo.bench.summary import (
    JITTERED,
    JITTERED_LIMIT,
    NOISE_ALONE,
    QUIET,
    UNGUARDED,
    Row,
    overhead_memory,
    ratio_text,
    rows,
)
from nanogpt_demo.faults import summary as faults
from nanogpt_demo.markdown import difference, markdown, percent, plus_minus
from nanogpt_demo.stopping.summary import OURS as OURS_STOPPING
from nanogpt_demo.stopping.summary import SPLITS, default_of
from nanogpt_demo.store import Document
from nanogpt_demo.suite import summary as suite
from nanogpt_demo.suite.tables import lost_share
from nanogpt_demo.summary import OURS

Numbers = dict[str, Any]

DETAILS = "results/README.md"
FUSED, GPT2 = ("20x1M", "adamw-fused"), ("gpt2-124m", "adamw-fused")
TRAINED = "gpt-step"
SIZES = {
    "paper": "a GPT of the size that the method was announced with",
    "wide": "the layers of nanoGPT's own character model, on less text",
    "nanogpt": "nanoGPT's own character model",
}
"""Sizes of the stress test that the front page tells of."""

PLAIN, RECIPE = "adamw", "adamw+warmup+clip"
OLDER = "by the default of then, whose gate opened sooner"


def headline(
    stress: Document,
    suites: Document,
    matrix: Document,
    overhead: Document,
    stopping: Document,
    gpu_overhead: Document,
    gpu_stress: Document,
) -> str:
    """One line for each experiment, as a Markdown table.

    Args:
        stress: The stress test.
        suites: The suite.
        matrix: The fault matrix.
        overhead: What a step costs.
        stopping: The stopping rules.
        gpu_overhead: What a step costs on a GPU.
        gpu_stress: The stress test on a GPU.
    """
    _, split = suite.reported(suites["summary"])
    _, sick = faults.reported(matrix["summary"])
    lines = [
        [f"[stress test]({DETAILS}#stress)", _stress(stress)],
        [f"[stress test on a GPU]({DETAILS}#gpu), {OLDER}", _stress(gpu_stress)],
        [f"[suite]({DETAILS}#suite)", _suite(split)],
        [f"[learning rates]({DETAILS}#suite)", _rates(split["lr_sweep"])],
        [f"[faults]({DETAILS}#faults)", _transient(sick)],
        [f"[faults that never end]({DETAILS}#faults)", _persistent(sick)],
        [f"[clean runs]({DETAILS}#faults)", _clean(sick, split)],
        [f"[a quiet step]({DETAILS}#overhead)", _quiet(rows(overhead["records"])[FUSED])],
        [f"[a quiet step on a GPU]({DETAILS}#gpu)", _quiet_on_gpu(gpu_overhead)],
        [f"[stopping]({DETAILS}#stopping)", _stopping(stopping)],
    ]
    return markdown(["experiment", "measured"], lines)


def _stress(document: Document) -> str:
    """The comparisons at the sizes that are told of."""
    groups = document["summary"].values()
    told = [group for size in SIZES for group in groups if group["size"] == size]
    return "; ".join(map(_comparison, told))


def _comparison(group: Numbers) -> str:
    methods = group["methods"]
    told = {OURS: OURS, PLAIN: "bare AdamW", RECIPE: "AdamW with warm-up and clipping"}
    first, *others = (
        f"{label} {plus_minus(methods[name]['val'], methods[name]['val_se'])}"
        for name, label in told.items()
        if name in methods
    )
    return (
        f"final loss of {SIZES[group['size']]}, {methods[OURS]['n']} seeds: "
        f"{', '.join([f'**{first}**', *others])}; "
        f"{OURS} minus the last: {difference(group[f'{OURS}_minus'][RECIPE])}"
    )


def _suite(split: Numbers) -> str:
    ranks, methods = split["ranks"]["common"]["mean"], split["methods"]
    best = min(filter(suite.is_peer, ranks), key=lambda name: float(ranks[name]))
    clipped = f"{OURS}+{suite.CLIP}"
    told = {OURS: f"**{OURS}**", clipped: clipped, best: f"{best} (the best peer)"}
    lines = [
        f"{label}: mean rank {ranks[name]:.2f}, {methods[name]['survived']} of "
        f"{methods[name]['runs']} runs survive, {percent(methods[name]['regret_max'])} lost to "
        "the best method in its worst cell"
        for name, label in told.items()
    ]
    cells = f"{len(split['cells'])} cells (model, optimizer, and what happens to the run)"
    return f"{cells}, {len(ranks)} methods. {'; '.join(lines)}"


def _rates(sweeps: Numbers) -> str:
    """How much a wrong learning rate costs."""
    shown = {OURS: f"**{OURS}**", "warmup+clip": "warm-up and clipping", "bare": "bare"}
    lines = []
    for cell, sweep in sweeps.items():
        lrs = sweep[OURS]["lrs"]
        costs = ", ".join(
            f"{label} {sweep[name]['sensitivity']:.2f}" for name, label in shown.items()
        )
        lines.append(f"{cell}, {len(lrs)} rates from {lrs[0]:g} to {lrs[-1]:g}: {costs}")
    return f"loss above the best of all, mean over rates; {'; '.join(lines)}"


def _transient(split: Numbers) -> str:
    totals = split["totals"]
    ended = {method: f"{numbers['healthy']}" for method, numbers in totals.items()}
    others = ", ".join(f"{method} {count}" for method, count in ended.items() if method != OURS)
    return (
        f"{len(split['faults'])} kinds, runs that end healthy: **{OURS} {ended[OURS]} of "
        f"{totals[OURS]['runs']}**, {others}"
    )


def _persistent(split: Numbers) -> str:
    found = {fault: kind["methods"][OURS] for fault, kind in split["persistent"].items()}
    counts = {
        name: sum(numbers[name] for numbers in found.values())
        for name in ("runs", "stopped", "cause_right")
    }
    never = [f"`{fault}`" for fault, numbers in found.items() if not numbers["stopped"]]
    return (
        f"{len(found)} kinds: {OURS} stops {counts['stopped']} of {counts['runs']} runs, "
        f"{counts['cause_right']} with the right cause"
        + (f"; never stopped: {', '.join(never)}" if never else "")
    )


def _clean(split: Numbers, suites: Numbers) -> str:
    numbers = split["controls"][OURS]
    return (
        f"{numbers['rollbacks']} rollbacks and {numbers['steps_lost']} steps lost in "
        f"{numbers['runs']} short runs; touched: {percent(numbers['touched'])} of all steps, "
        f"{percent(numbers['touched_late'])} after the start-up phase; in the suite "
        f"{percent(suites['methods'][OURS]['touched_healthy'])}"
    )


def _quiet(row: Row) -> str:
    return (
        f"fused AdamW on 20 tensors of a million: {ratio_text(row[UNGUARDED])} of the bare step "
        f"without the norm guard, {ratio_text(row[QUIET])} with it; `clip_grad_norm_`: "
        f"{ratio_text(row['clip'])}"
    )


def _quiet_on_gpu(document: Document) -> str:
    row = rows(document["records"])[GPT2]
    return (
        f"{document['environment']['device']}, fused AdamW on the parameters of GPT-2 124M: "
        f"{ratio_text(row[QUIET])} of the bare step with the norm guard; `clip_grad_norm_`: "
        f"{ratio_text(row['clip'])}"
    )


def _stopping(document: Document) -> str:
    split = document["summary"][SPLITS[0]]
    alone, told = (_stopped(split, family) for family in OURS_STOPPING)
    return (
        f"{split['curves']} held-out curves. RCA {alone}. Told the training loss as well it {told}"
    )


def _stopped(split: dict[str, Any], family: str) -> str:
    name = default_of(family).name
    (row,) = (row for row in split["against_patience"][family] if row["method"] == name)
    regret, points, low, high = (
        100 * value for value in (row["regret"], row["points"], *row["points_ci"])
    )
    return (
        f"saves {percent(row['saved'])} of the budget at a regret of {regret:.2f} % and stops "
        f"{percent(split['methods'][name]['wrong_stop'])} of runs too early: {points:+.1f} points "
        f"({low:+.1f} to {high:+.1f}) saved beyond the best patience at equal regret"
    )


def cost(overhead: Document, snapshots: Document) -> str:
    """What ARS costs a step on a CPU, as a Markdown list.

    Args:
        overhead: What a step costs.
        snapshots: What snapshots cost.
    """
    by_row = rows(overhead["records"])
    (copies,) = (record for record in snapshots["records"] if record["case"] == TRAINED)
    jittered, alone = (by_row[FUSED][name] for name in (JITTERED, NOISE_ALONE))
    noise = f"{ratio_text(jittered)} of the bare one"
    if jittered["ratio_to_bare"] > JITTERED_LIMIT:
        noise += (
            f", more than the limit of {JITTERED_LIMIT} that we had set; the two passes over the "
            f"gradients that it takes, with nothing decided, {ratio_text(alone)}"
        )
    return "\n".join(
        [
            *(f"- {', '.join(place)}: {_step(by_row[place])}." for place in (FUSED, GPT2)),
            "- A whole training step of a small GPT: "
            f"{ratio_text(by_row[TRAINED, FUSED[1]][QUIET])} of the bare one with the norm guard; "
            f"copying snapshots takes {100 * copies['copying']:.2f} % of the time.",
            f"- Noise, which is off, makes a step {noise}.",
            f"- {overhead_memory(overhead)} A copy of that GPT takes {copies['state'] / 1e6:.1f} "
            f"MB, all copies {copies['held'] / 1e6:.1f} MB.",
        ]
    )


def _step(row: Row) -> str:
    return (
        f"a quiet step takes {ratio_text(row[UNGUARDED])} of the bare one without the norm guard, "
        f"{ratio_text(row[QUIET])} with it, `clip_grad_norm_` {ratio_text(row['clip'])}"
    )


def where_it_loses(document: Document) -> str:
    """The cells of the suite in which ARS is worse than the best peer, as a sentence."""
    _, split = suite.reported(document["summary"])
    worse = [
        (lost_share(cell, pair), name, cell["best_peer"])
        for name, cell in split["cells"].items()
        if (pair := suite.against(cell, suite.BEST_PEER)) and pair["verdict"] == "worse"
    ]
    named = ", ".join(
        f"{name} ({100 * share:.1f} %, {peer})" for share, name, peer in sorted(worse, reverse=True)
    )
    return (
        f"In {len(worse)} of {len(split['cells'])} cells ARS is worse than the best peer by more "
        "than two standard errors"
        + (f" (share of what training gains there, and the peer): {named}." if worse else ".")
    )
