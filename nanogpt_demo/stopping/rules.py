"""Stopping rules: functions from a curve to the epoch after which training ends.

A rule reads the curve from its beginning and returns at its first stop, so that what comes later
cannot have any influence. It returns the full length where it never stops.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from nanogpt_demo.stopping.curves import Curve
from resilient_optim.layer_variation import variation
from resilient_optim.rca import RCA, RCAConfig
from resilient_optim.rca_reading import patience_at, share_of_best
from resilient_optim.rca_statistics import slope_test

Rule = Callable[[Curve], int]


def patience(epochs: int, relative: float = 0.0, told: bool = False) -> Rule:
    """Stop after so many epochs in a row that are no better than the best.

    Args:
        epochs: How many, at least 1.
        relative: Share of the best by which a loss must be lower to count as better.
        told: Whether the training loss halves or doubles them, as it does the patience of `RCA`.
    """

    def rule(curve: Curve) -> int:
        best, waited = math.inf, 0
        for epoch, (value, train) in enumerate(zip(curve.val, curve.train, strict=True), 1):
            margin = relative * abs(best) if best < math.inf else 0.0
            if value < best - margin:
                best, waited = value, 0
                continue
            waited += 1
            if waited >= patience_at(epochs, share_of_best(train, best) if told else None):
                return epoch
        return len(curve)

    return rule


def lightning(curve: Curve) -> int:
    """``lightning.pytorch.callbacks.EarlyStopping`` with its defaults.

    min_delta 0, patience 3, mode "min", check_finite: as patience 3, and a loss that is not finite
    stops at once.
    """
    broken = np.flatnonzero(~np.isfinite(curve.val))
    return min(patience(3)(curve), int(broken[0]) + 1 if len(broken) else len(curve))


def keras(epochs: int = 0, start_from_epoch: int = 0) -> Rule:
    """``keras.callbacks.EarlyStopping``; its defaults are patience 0 and start_from_epoch 0.

    An epoch that is no better than the best stops if at least ``epochs`` of them have passed in a
    row, but never the first epoch; nothing before ``start_from_epoch``, counted from 0, is seen.
    """

    def rule(curve: Curve) -> int:
        best, waited = math.inf, 0
        for index, value in enumerate(curve.val):
            if index < start_from_epoch:
                continue
            waited += 1
            if value < best:
                best, waited = value, 0
            elif waited >= epochs and index > 0:
                return index + 1
        return len(curve)

    return rule


def slope(level: float, window: int) -> Rule:
    """Stop when the fall over the last ``window`` losses is not significant at ``level``."""

    def rule(curve: Curve) -> int:
        seen: list[float] = []
        for epoch, value in enumerate(curve.val, 1):
            if math.isfinite(value):
                seen.append(float(value))
            if len(seen) >= window and slope_test(np.array(seen[-window:])).p_down > level:
                return epoch
        return len(curve)

    return rule


def layer_variation(decimals: int = 2, stable_epochs: int = 5) -> Rule:
    """`LayerVariationStopper`: stop when the spread of no layer's output changes any more."""

    def rule(curve: Curve) -> int:
        rows = [[round(float(mu), decimals) for mu in row] for row in curve.layers]
        quiet = 1
        for epoch, (before, after) in enumerate(zip(rows, rows[1:], strict=False), 2):
            quiet = quiet + 1 if variation(before, after) == 0.0 else 1
            if quiet >= stable_epochs:
                return epoch
        return len(curve)

    return rule


def rca(
    preset: str = "default", also: tuple[str, ...] = (), told: bool = False, **settings: float
) -> Rule:
    """`RCA`, told one validation loss after another: stop at its first recommendation to stop.

    Args:
        preset: as RCA takes it. The published rules cut the lr twice before their patience stops;
            a replay cannot show what such a cut would have done.
        also: other recommendations that are taken for a stop.
        told: whether it is told the training losses as well.
        **settings: as RCA takes them.
    """
    ends = ("stop", *also)

    def rule(curve: Curve) -> int:
        said = recommendations(curve, preset, told, tuple(settings.items()))
        return next((epoch for epoch, word in enumerate(said, 1) if word in ends), len(curve))

    return rule


@lru_cache(maxsize=64)  # two methods ask for the same, one after the other
def recommendations(
    curve: Curve, preset: str, told: bool, settings: tuple[tuple[str, float], ...]
) -> list[str]:
    """What RCA recommends after each epoch, up to its first "stop"."""
    chosen: dict[str, Any] = dict(settings)
    monitor, said = RCA(preset, **chosen), list[str]()
    for value, loss in zip(curve.val, curve.train, strict=True):
        train = float(loss) if told else None
        said.append(monitor.update(float(value), train=train).recommendation)
        if said[-1] == "stop":
            break
    return said


def oracle(curve: Curve) -> int:
    """Stop at the best epoch, which no rule can know: the most that can be saved at no loss."""
    return int(np.nanargmin(curve.val)) + 1


@dataclass(frozen=True)
class Method:
    """A rule with one setting.

    Attributes:
        family: name of the rule.
        setting: its main threshold; None if it has only its defaults.
        rule: what it does.
        default: whether this is the setting that readers meet under the family's name.
    """

    family: str
    setting: float | None
    rule: Rule
    default: bool = False

    @property
    def name(self) -> str:
        """Name of the method."""
        return self.family if self.setting is None else f"{self.family} {self.setting:g}"


PATIENCES = tuple(range(1, 31))
LEVELS = (0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
RCA_PATIENCES = (0, 2, 4, 6, 8, 10, 12, 15, 20, 25)
RCA_DEFAULT = RCAConfig().patience
DECIMALS = (0, 1, 2, 3)
SLOPE_WINDOW = 20

PATIENCE, RCA_FAMILY, PUBLISHED, ORACLE = "patience", "rca", "rca as published", "oracle"
PATIENCE_FAMILIES = (PATIENCE, "patience, 0.1 % better")
TOLD_FAMILY, PATIENCE_TOLD = f"{RCA_FAMILY}, training loss told", f"{PATIENCE}, training loss told"

METHODS: tuple[Method, ...] = (
    *(Method(PATIENCE, p, patience(p), p in (3, 5, 10)) for p in PATIENCES),
    *(Method(PATIENCE_FAMILIES[1], p, patience(p, 0.001)) for p in PATIENCES),
    *(Method(PATIENCE_TOLD, p, patience(p, told=True), p == RCA_DEFAULT) for p in PATIENCES),
    Method("lightning", None, lightning, True),
    Method("keras", None, keras(), True),
    *(Method("layer variation", d, layer_variation(d), d == 2) for d in DECIMALS),
    *(Method("slope test", a, slope(a, SLOPE_WINDOW), a == 0.05) for a in LEVELS),
    Method(PUBLISHED, None, rca("paper"), True),
    *(Method(RCA_FAMILY, p, rca(patience=p), p == RCA_DEFAULT) for p in RCA_PATIENCES),
    *(Method(TOLD_FAMILY, p, rca(told=True, patience=p), p == RCA_DEFAULT) for p in RCA_PATIENCES),
    *(
        Method("rca, reduce_lr stops", p, rca(patience=p, also=("reduce_lr",)), p == RCA_DEFAULT)
        for p in RCA_PATIENCES
    ),
    Method(ORACLE, None, oracle, True),
)
"""Every rule that is replayed."""
