"""Recorded learning curves, and what stopping one of them at some epoch means."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nanogpt_demo.stopping.design import spec_of
from nanogpt_demo.stopping.record import STD
from nanogpt_demo.store import Document

Array = NDArray[np.float64]

STILL_TO_GAIN = 0.01  # a stop is wrong if it gives up more than this share of what training gains


@dataclass(frozen=True, eq=False)  # by identity: arrays have no equality of their own
class Curve:
    """One recorded run, as a rule sees it: one entry for each epoch.

    Attributes:
        name: of the run.
        workload: what is learned.
        config: what is special about the run.
        split: "dev" or "held-out".
        val_start: validation loss before training.
        val: validation loss, NaN where it was not finite.
        train: mean training loss of the epoch, for rules that do without validation.
        layers: mean over the epoch of the standard deviation of each layer's output, shape
            (epochs, layers).
    """

    name: str
    workload: str
    config: str
    split: str
    val_start: float
    val: Array
    train: Array
    layers: Array

    def __len__(self) -> int:
        return len(self.val)

    def upto(self, epochs: int) -> Curve:
        """What had been seen after some epochs."""
        seen = {name: getattr(self, name)[:epochs] for name in ("val", "train", "layers")}
        return replace(self, **seen)

    def outcome(self, stop: int) -> Outcome:
        """What it comes to if training ends after epoch ``stop`` and the best epoch is kept."""
        best, kept = np.nanmin(self.val), _best(self.val[:stop], self.val_start)
        gain = self.val_start - best
        # Where training gains nothing, nothing is lost by stopping.
        regret = float((kept - best) / gain) if gain > 0 else 0.0
        return Outcome(1.0 - stop / len(self), regret, regret > STILL_TO_GAIN)


@dataclass(frozen=True)
class Outcome:
    """What a stop comes to.

    Attributes:
        saved: share of the budget that is not used.
        regret: best loss up to the stop minus the best of the full budget, as a share of what
            training gains on this curve.
        wrong: whether more than one per cent was still to be gained.
    """

    saved: float
    regret: float
    wrong: bool


def _best(seen: Array, otherwise: float) -> float:
    finite = seen[np.isfinite(seen)]
    return float(finite.min()) if len(finite) else otherwise


def load_curves(document: Document) -> list[Curve]:
    """Read the curves of ``curves.json``, in the order of its records.

    Those that never had a finite loss are left out: there is nothing to judge.
    """
    curves = []
    for record in document["records"]:
        trace = document["traces"][spec_of(record).key]
        if record["val_start"] is None or record["best"] is None:
            continue
        curves.append(_curve(record, trace))
    return curves


def _curve(record: dict[str, Any], trace: dict[str, list[float | None]]) -> Curve:
    layers = [values for name, values in trace.items() if name.startswith(STD)]
    return Curve(
        name=record["name"],
        workload=record["workload"],
        config=record["config"],
        split=record["split"],
        val_start=record["val_start"],
        val=np.array(trace["val_loss"], np.float64),
        train=np.array(trace["train_loss"], np.float64),
        layers=np.array(layers, np.float64).T,
    )
