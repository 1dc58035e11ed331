"""Measures the rules of `detector_rules` on known traces: false alarms, power and delay.

A record says how often one rule at one setting spoke on one kind of trace: `rate_per_1000` steps
(or evaluations, for rules that judge a window at every eighth step) where nothing happened;
`power` and `median_delay` where something did. `se` is the standard error of either over traces.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from nanogpt_demo import detector_rules as rules
from nanogpt_demo import detector_windows as shapes
from nanogpt_demo.detector_rules import SHIPPED, Bools, N
from nanogpt_demo.detector_signals import HORIZON, OUTLIER_EVERY, oscillation, white
from resilient_optim.loss_buffer import Array
from resilient_optim.policy import SUMMARY_EVERY

Record = dict[str, Any]

Z = (2, 3, 4, 5, 6)
PATIENCE = (2, 4, 6, 8, 12)
RHO = (0.6, 0.65, 0.7, 0.75, 0.8)
PERIODS = (2, 3, 4, 6, 8, 16)
AMPLITUDES = (0.5, 1.0, 2.0)
SLOPES = (0.005, 0.01, 0.02)

SURPRISE_RATE = 1.0
"""False alarms per 1000 steps of white noise at which the surprise rules are compared."""

CHANGE_RATE = 0.1
"""The same for sustained change: one false new level in 10,000 steps."""

RESONANCE_RATE = 1.0
"""The same for resonance, per 1000 evaluations."""

NOMINAL = 1.645
"""Normal score of a one-sided test of size 5 %."""


class Case(NamedTuple):
    """Traces of one kind.

    Attributes:
        family: "null", "alternative" or "recorded".
        signal: What they are.
        parameter: Its size.
        traces: The losses (traces, steps).
        start: First step that counts.
        event: First step of the change; None if there is none.
        outliers: Whether single values are changed, every `OUTLIER_EVERY` steps from the event.
    """

    family: str
    signal: str
    parameter: str
    traces: Array
    start: int
    event: int | None = None
    outliers: bool = False


class Evidence(NamedTuple):
    """A case with all scores that do not depend on a threshold."""

    case: Case
    scale: Array
    surprise: Array
    signed: Array
    rise: Array


def evidence(case: Case) -> Evidence:
    """Score every step of every trace."""
    known = rules.summaries(case.traces)
    return Evidence(
        case,
        known.scale,
        rules.surprises(case.traces, known),
        rules.signed_scores(case.traces, known),
        rules.two_window_scores(case.traces, known.scale),
    )


def pooled(many: list[Evidence]) -> Evidence:
    """Several nulls of equal length as one."""
    return Evidence(
        many[0].case._replace(signal="all", traces=np.concatenate([e.case.traces for e in many])),
        *(np.concatenate([e[i] for e in many]) for i in range(1, 5)),
    )


# -- records -----------------------------------------------------------------------------------


def measure(case: Case, purpose: str, rule: str, setting: str, alarms: Bools) -> Record:
    """Make the record of one rule's alarms (traces, steps) on a case."""
    named = {"family": case.family, "signal": case.signal, "parameter": case.parameter}
    named |= {"purpose": purpose, "rule": rule, "setting": setting}
    blank = {"rate_per_1000": None, "power": None, "median_delay": None, "traces": len(alarms)}
    if case.event is None:
        return named | blank | false_alarms(alarms[:, case.start :])
    if case.outliers:
        return named | blank | share(alarms[:, case.event :: OUTLIER_EVERY].ravel())
    after = alarms[:, case.event : case.event + HORIZON]
    delays = np.where(after.any(axis=1), after.argmax(axis=1) + 1.0, np.inf)
    middle = float(np.median(delays))
    delay = {"median_delay": middle if math.isfinite(middle) else None}
    return named | blank | share(np.isfinite(delays)) | delay


def false_alarms(alarms: Bools) -> Record:
    """Alarms per 1000 steps, with the standard error over traces."""
    rates = 1000.0 * alarms.mean(axis=1)
    se = float(rates.std(ddof=1)) / math.sqrt(len(rates)) if len(rates) > 1 else None
    return {"rate_per_1000": _short(rates.mean()), "se": None if se is None else _short(se)}


def share(found: Bools) -> Record:
    """How many events were found, with the binomial standard error."""
    power = float(found.mean())
    return {"power": _short(power), "se": _short(math.sqrt(power * (1 - power) / len(found)))}


def _short(number: float) -> float:
    return float(f"{number:.4g}")


# -- surprise and sustained change -------------------------------------------------------------


ChangeRule = Callable[[Evidence, float], Bools]

CHANGE_RULES: dict[str, ChangeRule] = {
    rules.STREAK: lambda e, h: rules.leaky_count(e.surprise, h, SHIPPED.patience),
    "leaky count of 2": lambda e, h: rules.leaky_count(e.surprise, h, 2),
    "CUSUM": lambda e, h: rules.cusum(e.signed, h),
    "clipped CUSUM": lambda e, h: rules.clipped_cusum(e.signed, h),
    "Page-Hinkley": lambda e, h: rules.page_hinkley(e.case.traces, e.scale, h),
    "two windows": lambda e, h: rules.two_window(e.rise, h),
}
"""Rules of sustained change, each with one threshold to be tuned."""


class Thresholds(NamedTuple):
    """Thresholds at which the rules have equal false-alarm rates.

    Attributes:
        surprise: Of the shipped surprise.
        window: Of the mean and standard deviation of 128.
        white: Of each rule of sustained change, for the target rate on white noise.
        nulls: The same for the target rate on all nulls together.
        resonance: Of each statistic of resonance, on white noise.
    """

    surprise: float
    window: float
    white: dict[str, float]
    nulls: dict[str, float]
    resonance: dict[str, float]


def calibrate(nulls: list[Evidence], rng: np.random.Generator, windows: int) -> Thresholds:
    """Find the thresholds on traces that are not used again; the first null is white noise."""
    first, everything = nulls[0], pooled(nulls)
    quantile = 1.0 - SURPRISE_RATE / 1000
    start = first.case.start
    noise = white(rng, windows, N)
    share_below = 1.0 - RESONANCE_RATE / 1000
    return Thresholds(
        float(np.quantile(first.surprise[:, start:], quantile)),
        float(np.quantile(rules.window_scores(first.case.traces)[:, start:], quantile)),
        {name: tuned(rule, first) for name, rule in CHANGE_RULES.items()},
        {name: tuned(rule, everything) for name, rule in CHANGE_RULES.items()},
        {name: float(np.quantile(of(noise), share_below)) for name, of in RESONANCE.items()},
    )


def tuned(rule: ChangeRule, null: Evidence, rate: float = CHANGE_RATE) -> float:
    """The threshold at which a rule has the given false alarms per 1000 steps."""
    low, high = 0.25, 65536.0
    for _ in range(14):
        middle = math.sqrt(low * high)
        too_many = 1000.0 * rule(null, middle)[:, null.case.start :].mean() > rate
        low, high = (middle, high) if too_many else (low, middle)
    return high


def change_records(seen: Evidence, at: Thresholds) -> Iterator[Record]:
    """Records of surprise (unless a synthetic change stays) and of sustained change.

    Outliers are to be surprises but no new level: for the latter they are a null.
    """
    case = seen.case
    ships = rules.run_policy(case.traces)
    if case.event is None or case.outliers or case.family == "recorded":
        alarms: dict[tuple[str, str], Bools] = {
            ("policy", "as shipped"): ships.surprised,
            **{("surprise", f"z > {z}"): seen.surprise > z for z in Z},
            ("surprise", "matched"): seen.surprise > at.surprise,
            ("mean and std of 128", "6 std"): rules.window_scores(case.traces) > 6.0,
            ("mean and std of 128", "matched"): rules.window_scores(case.traces) > at.window,
            ("ratio to mean of 100", "2"): rules.ratios(case.traces) >= 2.0,
        }
        for (rule, setting), fired in alarms.items():
            yield measure(case, "surprise", rule, setting, fired)
    if case.outliers:
        case = case._replace(family="null", event=None, outliers=False)
    yield measure(case, "new level", "policy", "as shipped", ships.new_level)
    for k in PATIENCE:
        fired = rules.leaky_count(seen.surprise, SHIPPED.z_threshold, k)
        yield measure(case, "new level", f"leaky count of {k}", rules.SURPRISED, fired)
    for name, change in CHANGE_RULES.items():
        for setting, found in (("white", at.white), ("all nulls", at.nulls)):
            fired = change(seen, found[name])
            yield measure(case, "new level", name, f"matched on {setting}", fired)
    if seen.case.event is None:
        beats = ships.resonant[:, case.start :: SUMMARY_EVERY]
        yield measure(case._replace(start=0), "resonance", "policy", "as shipped", beats)


# -- resonance and trend -----------------------------------------------------------------------


RESONANCE: dict[str, Callable[[Array], Array]] = {
    "anticorrelation": shapes.anticorrelation,
    "spectral entropy": shapes.spectral_order,
    "Fisher's g": shapes.fisher_g,
    "g at half steps": shapes.half_step_g,
    "g, whitened": shapes.whitened_g,
}


def resonance_alarms(windows: Array, at: Thresholds) -> dict[tuple[str, str], Bools]:
    """Which windows each rule calls resonant."""
    found = {name: statistic(windows) for name, statistic in RESONANCE.items()}
    rho = found["anticorrelation"]
    bartlett = 0.5 + 3.09 * math.sqrt(0.5 / (windows.shape[1] - 1))
    return {
        **{("anticorrelation", f"rho < -{threshold}"): rho > threshold for threshold in RHO},
        ("anticorrelation", "Bartlett z < -3.09"): rho > bartlett,
        ("Fisher's g", "exact p < 0.001"): found["Fisher's g"] > shapes.fisher_threshold(0.001),
        **{(name, "matched"): found[name] > at.resonance[name] for name in RESONANCE},
    }


def trend_alarms(windows: Array) -> dict[tuple[str, str], Bools]:
    """Which windows are called falling."""
    return {
        ("slope", "n = 64"): shapes.slope_scores(windows, effective=False) > NOMINAL,
        ("slope", "effective n"): shapes.slope_scores(windows, effective=True) > NOMINAL,
    }


def windows_of(case: Case, every: int) -> Array:
    """Windows (traces, evaluations, n) of the losses before each evaluated step."""
    return sliding_window_view(case.traces, N, axis=1)[:, max(0, case.start - N) :: every]


def window_records(case: Case, at: Thresholds) -> Iterator[Record]:
    """Records of resonance and trend on a case without an event; a descent is a trend."""
    windows = windows_of(case, SUMMARY_EVERY)
    flat = windows.reshape(-1, N)
    for (rule, setting), fired in resonance_alarms(flat, at).items():
        alarms = fired.reshape(windows.shape[:2])
        yield measure(case._replace(start=0), "resonance", rule, setting, alarms)
    windows = windows_of(case, N)
    falls = case.signal in ("descent", "shrinking noise") or case.family == "recorded"
    for (rule, setting), fired in trend_alarms(windows.reshape(-1, N)).items():
        record = measure(
            case._replace(start=0), "trend", rule, setting, fired.reshape(windows.shape[:2])
        )
        if falls:
            record |= {"rate_per_1000": None, **share(fired)}
            record["family"] = "recorded" if case.family == "recorded" else "alternative"
        yield record


def power_records(rng: np.random.Generator, count: int, at: Thresholds) -> Iterator[Record]:
    """Records of resonance on oscillations and of trend on straight descents."""
    for period in PERIODS:
        for amplitude in AMPLITUDES:
            windows = oscillation(rng, count, N, period, amplitude)
            case = Case("alternative", f"period {period}", f"{amplitude:g}", windows, 0, 0, True)
            for (rule, setting), fired in resonance_alarms(windows, at).items():
                yield measure(case, "resonance", rule, setting, fired[:, None])
    for slope in SLOPES:
        windows = white(rng, count, N) - 0.1 * slope * np.arange(N)
        case = Case("alternative", "straight descent", f"-{slope:g}/step", windows, 0, 0, True)
        for (rule, setting), fired in trend_alarms(windows).items():
            yield measure(case, "trend", rule, setting, fired[:, None])
