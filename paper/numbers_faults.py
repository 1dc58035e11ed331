"""The fault matrix in numbers: faults that pass, faults that stay, and clean runs."""

from __future__ import annotations

from nanogpt_demo.faults.summary import reported
from nanogpt_demo.markdown import percent
from nanogpt_demo.store import Document
from nanogpt_demo.suite.summary import BARE
from nanogpt_demo.summary import OURS
from paper.common import HELD_OUT, Numbers, Summary, require, word

ARC = "arc"


def faults(document: Document) -> Numbers:
    """All that the paper says of faults."""
    _, split = reported(document["summary"])
    runs = [r for r in document["records"] if r["split"] == HELD_OUT]
    return {
        "faults-all-runs": f"{len(runs):,}",
        "faults-workloads": word(len({r["workload"] for r in runs})),
        "faults-optimizers": word(len({r["optimizer"] for r in runs})),
        "faults-shortest": str(min(r["steps"] for r in runs)),
        "faults-longest": str(max(r["steps"] for r in runs)),
        "arc-exceptions": str(sum(
            r["method"] == ARC and r["error"] == "math domain error" for r in runs)),
        **_transient(split),
        **_persistent(split["persistent"], runs),
        **_controls(split["controls"]),
    }  # fmt: skip


def _transient(split: Summary) -> Numbers:
    totals = split["totals"]
    return {
        "faults-kinds": str(len(split["faults"])),
        "faults-runs": f"{totals[OURS]['runs']:,}",
        **{f"faults-{m}-healthy": f"{totals[m]['healthy']:,}" for m in (OURS, ARC, BARE)},
        **{f"faults-{m}-lenient": f"{totals[m]['lenient']:,}" for m in (OURS, ARC)},
    }


def _persistent(kinds: Summary, runs: list[Summary]) -> Numbers:
    lasting = {name: kind["methods"][OURS] for name, kind in kinds.items()}
    require(all(k["stopped"] == k["cause_right"] for k in lasting.values()), "the right cause")
    late = [name for name, kind in lasting.items() if kind["stopped"] < kind["runs"]]
    require(late in ([], ["always-batch-noise"]), "the slowest is finite garbage")
    after = [r["stopped_after"] for r in runs if r["method"] == OURS and r["fault"] in lasting]
    stopped = [steps for steps in after if steps is not None]
    return {
        "persistent-kinds": word(len(lasting)),
        "persistent-runs": str(sum(kind["runs"] for kind in lasting.values())),
        "persistent-stopped": str(sum(kind["stopped"] for kind in lasting.values())),
        "persistent-fastest": f"{min(stopped):g}",
        "persistent-slowest": f"{max(stopped):g}",
    }


def _controls(controls: Summary) -> Numbers:
    ours = controls[OURS]
    require(ours["touched_late"] < 0.005, "below the half per cent")
    require(ours["rollbacks"] == 0, "never rolled back")
    return {
        "controls-runs": str(ours["runs"]),
        "controls-touched": percent(ours["touched_late"]),
        "controls-touched-in-all": percent(ours["touched"]),
        "controls-touched-most": percent(ours["touched_late_max"]),
        "controls-arc-rollbacks": word(controls[ARC]["rollbacks"]),
    }
