"""What a step costs, and what snapshots do, in numbers."""

from __future__ import annotations

from nanogpt_demo.bench.summary import NOISE_ALONE, PROMISED, unclear
from nanogpt_demo.store import Document
from paper.common import Numbers, require, word

LARGE, TINY, TRAINING = ("20x1M", "gpt2-124m"), "200-tiny", "gpt-step"
UNGUARDED, QUIET, CLIP = "ars no norm guard, quiet", "ars, quiet", "clip"


def cost(overhead: Document, snapshots: Document) -> Numbers:
    """What the paper says of cost."""
    ratios = {tuple(row.split(", ")): found for row, found in overhead["summary"]["ratios"].items()}
    large = [found for (case, _), found in ratios.items() if case in LARGE]
    tiny = [found for (case, _), found in ratios.items() if case == TINY]
    (training,) = (found for (case, _), found in ratios.items() if case == TRAINING)
    require(all(r[QUIET] < r[CLIP] for r in large), "on large tensors less than clipping")
    dearer = sum(r[QUIET] > r[CLIP] for r in tiny)
    checks = overhead["summary"]["checks"]
    decided = [check for check in checks if not unclear(check)]
    missed = [check for check in decided if not check["holds"]]
    require(all("jitter" in check["check"] for check in missed), "what fails is jitter")
    alone = [ratios[place][NOISE_ALONE] for place in PROMISED]
    bytes_held = overhead["summary"]["bytes"][QUIET]
    steps = {record["case"]: record for record in snapshots["records"]}
    return {
        "large-unguarded-most": _more(max(r[UNGUARDED] for r in large)),
        "tiny-unguarded-least": _more(min(r[UNGUARDED] for r in tiny)),
        "tiny-unguarded-most": _more(max(r[UNGUARDED] for r in tiny)),
        "tiny-dearer-than-clip": f"{word(dearer)} of {word(len(tiny))}",
        "training-quiet": _more(training[QUIET]),
        "overhead-limits": word(len(checks)),
        "overhead-held": word(len(decided) - len(missed)),
        "overhead-missed": word(len(missed)),
        "overhead-jitter-worst": f"{max(check['value'] for check in missed):.2f}",
        "overhead-jitter-limit": f"{max(check['limit'] for check in missed):g}",
        "overhead-noise-alone": f"{min(alone):.2f}",
        "overhead-bytes": f"{sum(bytes_held.values()):,}",
        "snapshots-training": f"{100 * steps[TRAINING]['copying']:.2f} %",
        "snapshots-most": f"{100 * max(s['copying'] for s in steps.values()):.1f} %",
        "snapshots-tiny-added": f"{100 * steps[TINY]['added']:.0f} %",
    }


def _more(ratio: float) -> str:
    return f"{100 * (ratio - 1):.0f} %"
