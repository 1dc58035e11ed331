"""What RCA says, and by what rule: a pure function of a run and its recent values."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from . import _checks
from .extrapolation import fit_curve
from .loss_buffer import Array
from .rca_statistics import MIN_HISTORY, improvement, oscillation, slopes
from .run_record import RunRecord

BY_HEART, LESS, MORE = 0.25, 0.5, 2.0
"""Training data are taken to be learned by heart where the training loss is below this share of the
best validation loss. Little is left to learn there: `patience` is multiplied by `LESS`. Elsewhere a
validation loss that stands still may yet fall: it is multiplied by `MORE`. All three were chosen on
the development curves of the stopping benchmark. A loss with a floor that no training passes (the
entropy of a language, noisy targets) is hardly ever learned by heart: there it only means to wait
for longer."""


@dataclass(frozen=True)
class RCAConfig:
    """Settings of the default monitor. Values are epochs or steps, whatever `update` is given.

    Attributes:
        window: recent values in which rhythms and level jumps are looked for; 24 to 128.
        horizon: how far ahead the gain is asked for; an int counts values, a float is a share of
            the values seen since the last shift. The default asks whether half as much training
            again is worth its price.
        min_gain: the gain over the horizon that is worth having, as a share of the run's total
            improvement so far; >= 0.
        min_gain_noise: a gain below this many noise standard deviations of one entry of the record
            is not worth having either: it is less than the luck of the value that is kept. This is
            what ends a run that never improved; > 0.
        significance: of each state's test, in (0, 0.5].
        min_values: no stop before this many values; >= 8.
        patience: no stop before this many values in a row without a new best; >= 0. The gain is
            that of the curve; the best value kept profits from its noise, too. Where the training
            loss is told as well: half as many if the training data seem to be learned by heart,
            twice as many if not, by the loss of the moment (see `BY_HEART`).

    Raises:
        TypeError: a setting is of a wrong type.
        ValueError: a setting is out of range.
    """

    window: int = 64
    horizon: int | float = 0.5
    min_gain: float = 0.05
    min_gain_noise: float = 0.15
    significance: float = 0.05
    min_values: int = 12
    patience: int = 12

    def __post_init__(self) -> None:
        _checks.integer("window", self.window)
        _checks.number("window", self.window, low=24, high=128)
        _checks.number("horizon", self.horizon, low=0.0, open_low=True)
        _checks.number("min_gain", self.min_gain, low=0.0)
        _checks.number("min_gain_noise", self.min_gain_noise, low=0.0, open_low=True)
        _checks.number("significance", self.significance, low=0.0, high=0.5, open_low=True)
        _checks.integer("min_values", self.min_values, low=MIN_HISTORY)
        _checks.integer("patience", self.patience, low=0)


class Reading(NamedTuple):
    """What RCA says after a value.

    Attributes:
        step: values seen, the non-finite ones too.
        value: the latest, as it came.
        state: what the tests found, first match:
            "shifted": a new level, told or found (see `jumped`); until 8 entries of it are seen.
            "unknown": fewer than 8 entries since, or too noisy as yet to tell the others apart.
            "unstable": a significant rise of the slope, or a significant rhythm that grows.
            "improving": a significant fall, expected to bring a gain worth having.
            "converging": a significant fall whose expected gain is no longer worth having.
            "plateau": no significant fall, and even the upper end of the gain is not worth having.
        beta: share in [0, 1] of the recent window's detrended variance in its strongest rhythm;
            read it with its null: about ln(n/2)/(n/2) in white noise.
        omega: that rhythm's angular frequency, radians per value, in (0, pi]; 0 if unknown.
        confidence: 1 - p of the state's own test: of the slope (improving, unstable); posterior
            probability that the gain is not worth having (plateau, converging); of the rank test
            (shifted: 1 if told); 0 if unknown.
        p_improving: a p-value, not a probability of improving: small means improving, near 1 means
            not. How often values that do not improve would look as good as these: one-sided, of
            the slope (see `slope_test`), corrected for three scales.
        gain: expected improvement over the next `horizon` values: how far the level would fall
            (with mode "max" rise), in the unit of the values themselves, not as a share of them.
        gain_low, gain_high: its 90 % interval, in the same unit.
        recommendation: "stop" if gain_high is not worth having and the best value is `patience`
            values old; "reduce_lr" if unstable and more
            is to be had; "wait" while nothing is known; else "continue".
        train_share: training loss as a share of the best value since the last shift; None if it
            was not told with this value, see `share_of_best`.
    """

    step: int
    value: float
    state: str
    beta: float
    omega: float
    confidence: float
    p_improving: float
    gain: float
    gain_low: float
    gain_high: float
    recommendation: str
    train_share: float | None = None


UNKNOWN = Reading(0, math.nan, "unknown", 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, math.inf, "wait")


def judge(
    run: RunRecord,
    recent: Array,
    waited: int,
    config: RCAConfig,
    shift: float = 0.0,
    train_share: float | None = None,
) -> Reading:
    """A reading, lower values being better; step and value are left to the caller.

    Args:
        run: the run since the last shift.
        recent: its last values, unaveraged.
        waited: values since the best one.
        config: the settings.
        shift: confidence that the level has just shifted, 0 for no.
        train_share: decides how long to wait; see `Reading`.
    """
    record, n, seen = run.entries, len(run.entries), len(run.entries) * run.block
    if n < MIN_HISTORY:
        return UNKNOWN._replace(state="shifted", confidence=shift) if shift else UNKNOWN
    unit = float(np.abs(record - record[-1]).max())
    # Squares of huge values overflow, of tiny ones vanish: the tests see values of order one.
    record = (record - record[-1]) / unit if unit > 0.0 else np.zeros(n)
    fit = fit_curve(record)
    ahead = config.horizon
    counted = isinstance(ahead, (int, np.integer))
    horizon = (ahead if counted else max(1.0, ahead * seen)) / run.block
    gain = fit.gain(horizon)
    worth = max(config.min_gain * improvement(record), config.min_gain_noise * fit.sigma)
    p_not_worth = fit.probability_below(worth, horizon)
    p_down, p_up = slopes(record)
    rhythm, p_growing = oscillation(recent)
    alpha = config.significance
    exhausted = gain.high <= worth
    if shift:
        state, confidence = "shifted", shift
    elif p_growing < alpha:
        state, confidence = "unstable", 1.0 - p_growing
    elif p_up < alpha and p_up < p_down:
        state, confidence = "unstable", 1.0 - p_up
    elif p_down < alpha and gain.final <= worth:
        state, confidence = "converging", p_not_worth
    elif p_down < alpha:
        state, confidence = "improving", 1.0 - p_down
    elif exhausted:
        state, confidence = "plateau", p_not_worth
    else:
        state, confidence = "unknown", 0.0
    patient = seen >= config.min_values and waited >= patience_at(config.patience, train_share)
    if shift:
        recommendation = "wait"
    elif exhausted and patient and p_growing >= alpha:
        recommendation = "stop"
    else:
        recommendation = "reduce_lr" if state == "unstable" else "continue"
    return Reading(
        0, math.nan, state, rhythm.amplitude, rhythm.omega, confidence, p_down,
        gain.final * unit, gain.low * unit, gain.high * unit, recommendation,
    )  # fmt: skip


def share_of_best(train: float, best: float) -> float | None:
    """Training loss as a share of the best validation loss.

    None where that means nothing: one of them is not finite, or negative, or the best is zero.
    """
    comparable = 0.0 <= train < math.inf and 0.0 < best < math.inf
    return train / best if comparable else None


def patience_at(patience: int, train_share: float | None) -> float:
    """Values to wait for a new best one, see `RCAConfig.patience`."""
    if train_share is None:
        return patience
    return patience * (LESS if train_share < BY_HEART else MORE)
