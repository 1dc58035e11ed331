"""What ran on a GPU, in numbers: the cost of a step, and the stress test."""

from __future__ import annotations

from nanogpt_demo.bench.summary import ratio_text, rows, unclear
from nanogpt_demo.store import Document
from nanogpt_demo.summary import OURS, by_method, compare_seeds
from paper.common import Numbers, difference, require, word
from paper.numbers_cost import CLIP, QUIET
from paper.numbers_stress import PLAIN, PUBLISHED, RECIPE, of_size

FUSED, GPT2 = ("adamw-fused", "sgd-fused"), ("gpt2-124m", "adamw-fused")
FAR = 0.3
"""Nats a character: the least by which a method is far behind."""


def on_gpu(overhead: Document, stress: Document) -> Numbers:
    """What the paper says of runs on a GPU."""
    return _cost(overhead) | _stress(stress)


def _cost(document: Document) -> Numbers:
    by_row = rows(document["records"])
    sets = [row for (case, base), row in by_row.items() if base in FUSED and case != "gpt-step"]
    ratios = [(row[QUIET]["ratio_to_bare"], row[CLIP]["ratio_to_bare"]) for row in sets]
    require(all(quiet < clip for quiet, clip in ratios), "less than clipping under fused ones")
    missed = [c for c in document["summary"]["checks"] if not c["holds"] and not unclear(c)]
    known = ("quiet without norm guard", "jittered")
    require(all(c["check"].startswith(known) for c in missed), "of the limits, two kinds fail")
    return {
        "gpu-device": document["environment"]["device"],
        "gpu-quiet": ratio_text(by_row[GPT2][QUIET]),
        "gpu-clip": ratio_text(by_row[GPT2][CLIP]),
        "gpu-limits": word(len(document["summary"]["checks"])),
        "gpu-missed": word(len(missed)),
    }


def _stress(document: Document) -> Numbers:
    (large, runs), (nano, nano_runs) = of_size(document, "paper"), of_size(document, "nanogpt")
    summary, nano_summary = document["summary"][large], document["summary"][nano]
    methods, nano_methods = by_method(runs), by_method(nano_runs)
    require(summary[f"{OURS}_minus"][RECIPE]["verdict"] == "tied", "level with the recipe")
    behind = [
        ours["val"] - recipe["val"]
        for ours, recipe in zip(nano_methods[OURS], nano_methods[RECIPE], strict=True)
    ]
    require(min(behind) > FAR, "far behind it at nanoGPT's size")
    vals = {m: f"{numbers['val']:.2f}" for m, numbers in nano_summary["methods"].items()}
    return {
        "gpu-large-seeds": word(len(methods[OURS])),
        "gpu-large-minus-recipe": difference(summary[f"{OURS}_minus"][RECIPE]),
        "gpu-claim": difference(compare_seeds(methods[PUBLISHED], methods[PLAIN])),
        "gpu-nano-seeds": word(len(nano_methods[OURS])),
        "gpu-nano-params": f"{nano_runs[0]['params'] / 1e6:.1f} million",
        "gpu-nano-ars": vals[OURS],
        "gpu-nano-adamw": vals[PLAIN],
        "gpu-nano-recipe": vals[RECIPE],
    }
