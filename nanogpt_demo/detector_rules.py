"""The rules under test, on many traces at once: arrays (traces, steps) in, alarms alike out.

What ships is called, not copied: level, scale, rhythm and surprise come from `resilient_optim`.
Only the rules that do not ship, and the streak that lives inside the policy, are written here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from resilient_optim import DefaultConfig, gates, policy, policy_state
from resilient_optim.decision import SKIP, Decision, Observation
from resilient_optim.loss_buffer import Array, LossBuffer
from resilient_optim.policy_state import MATURE

Bools = NDArray[np.bool_]

SHIPPED = DefaultConfig(start_up=0)
N = SHIPPED.window_size
STREAK = f"leaky count of {SHIPPED.patience}"
SURPRISED = f"z > {SHIPPED.z_threshold:g}"
"""Names of the shipped rules in records, tables and pictures."""


class Policy(NamedTuple):
    """What the policy itself does on traces, each array (traces, steps).

    Attributes:
        surprised: The loss counted as a surprise.
        new_level: The surprise was accepted as the new level.
        resonant: The entropy guard was below 1.
    """

    surprised: Bools
    new_level: Bools
    resonant: Bools


def decisions(losses: Array, config: DefaultConfig = SHIPPED) -> Iterable[Decision]:
    """What the policy decides on one trace, with the buffer kept as ARS keeps it."""
    buffer, state = LossBuffer(config.history), config.first_state(young=True)
    for step, loss in enumerate(losses.tolist()):
        decision, state = config.decide(state, buffer, Observation(step, loss))
        if decision.new_level:
            buffer.losses.clear()
        if decision.action != SKIP:
            buffer.append(loss)
        yield decision


def run_policy(traces: Array, config: DefaultConfig = SHIPPED) -> Policy:
    """Run the policy over all traces."""
    rows = [
        [(d.z > config.z_threshold, d.new_level, d.psi < 1.0) for d in decisions(trace, config)]
        for trace in traces
    ]
    flags = np.array(rows, dtype=np.bool_)
    return Policy(flags[..., 0], flags[..., 1], flags[..., 2])


class Summaries(NamedTuple):
    """The policy's summary of the past at every step, without any feedback of its decisions.

    Attributes:
        level: Recent level; infinite at first.
        scale: Noise scale.
        rho: Lag-1 autocorrelation of the differences; NaN at first.
    """

    level: Array
    scale: Array
    rho: Array


def summaries(traces: Array) -> Summaries:
    """Summarise every trace at each eighth step and hold it until the next."""
    every, steps = policy.SUMMARY_EVERY, traces.shape[1]
    found = np.array([list(_summaries(trace, every)) for trace in traces])
    held = np.repeat(found, every, axis=1)[:, :steps]
    return Summaries(held[..., 0], held[..., 1], held[..., 2])


def _summaries(trace: Array, every: int) -> Iterable[tuple[float, float, float]]:
    buffer, state = LossBuffer(N), MATURE
    for start in range(0, len(trace), every):
        state = policy.summarise(state, buffer, SHIPPED)
        yield state.level, state.scale, state.rho
        for loss in trace[start : start + every].tolist():
            buffer.append(loss)


def surprises(traces: Array, known: Summaries) -> Array:
    """The shipped surprise of every loss."""
    score = np.frompyfunc(gates.surprise, 3, 1)(traces, known.level, known.scale)
    return np.asarray(score, dtype=np.float64)


def signed_scores(traces: Array, known: Summaries) -> Array:
    """As `surprises`, with good surprises negative: what a cumulative sum needs."""
    usable = np.isfinite(known.level) & (known.scale > 0.0)
    excess = np.where(usable, traces - np.where(usable, known.level, 0.0), 0.0)
    return np.asarray(excess / np.where(usable, known.scale, 1.0))


# -- surprise: the rules of others -----------------------------------------------------------


def window_scores(traces: Array, n: int = 128) -> Array:
    """Standard deviations above the mean of the last n losses (OLMo's step skipper: 6 of 128)."""
    past = sliding_window_view(traces, n, axis=1)[:, :-1]
    return _after(n, (traces[:, n:] - past.mean(axis=-1)) / past.std(axis=-1).clip(1e-10))


def ratios(traces: Array, n: int = 100) -> Array:
    """The loss as a multiple of the mean of the last n (llm-foundry: a spike from 2 of 100)."""
    past = sliding_window_view(traces, n, axis=1)[:, :-1].mean(axis=-1)
    return _after(n, traces[:, n:] / past.clip(1e-10))


def _after(n: int, scores: Array) -> Array:
    """Scores that begin at step n, with silence before."""
    return np.pad(scores, ((0, 0), (n, 0)))


# -- sustained change -------------------------------------------------------------------------


def leaky_count(scores: Array, threshold: float, patience: float) -> Bools:
    """The policy's streak: alarm at the surprise that makes it `patience`; others leak it."""
    streak = np.zeros(len(scores))

    def advance(step: int, reset: Bools) -> Bools:
        surprised = scores[:, step] > threshold
        leaked = np.maximum(streak - policy_state.STREAK_LEAK, 0.0)
        streak[:] = np.where(surprised, streak + 1.0, leaked)
        streak[reset] = 0.0
        return np.asarray(surprised & (streak >= patience))

    return _alarms(scores.shape, advance, gates.MIN_HISTORY)


def cusum(scores: Array, threshold: float, slack: float = 0.5) -> Bools:
    """Page's one-sided cumulative sum of the scores above the slack."""
    total = np.zeros(len(scores))

    def advance(step: int, reset: Bools) -> Bools:
        total[:] = np.maximum(total + scores[:, step] - slack, 0.0)
        total[reset] = 0.0
        return np.asarray(total > threshold)

    return _alarms(scores.shape, advance, gates.MIN_HISTORY)


def clipped_cusum(scores: Array, threshold: float, slack: float = 0.5) -> Bools:
    """The same of scores cut at 4: no single outlier, however large, is a new level."""
    return cusum(scores.clip(-4.0, 4.0), threshold, slack)


def page_hinkley(traces: Array, scale: Array, threshold: float, slack: float = 0.5) -> Bools:
    """Cumulative sum of what exceeds the mean of *all* losses since the last alarm."""
    total, sums, count = np.zeros((3, len(traces)))

    def advance(step: int, reset: Bools) -> Bools:
        loss, sigma = traces[:, step], scale[:, step]
        mean = np.where(count > 0, sums / count.clip(1), loss)
        excess = np.where(sigma > 0.0, (loss - mean) / np.where(sigma > 0.0, sigma, 1.0), 0.0)
        total[:] = np.maximum(total + excess - slack, 0.0)  # the sum minus its minimum so far
        sums[:] += loss
        count[:] += 1.0
        for state in (total, sums, count):
            state[reset] = 0.0
        return np.asarray(total > threshold)

    return _alarms(traces.shape, advance, gates.MIN_HISTORY)


def two_window_scores(traces: Array, scale: Array, recent: int = 8) -> Array:
    """Median of the last 8 losses, the judged one included, above that of the 56 before."""
    windows = sliding_window_view(traces, N, axis=1)
    older = np.median(windows[..., :-recent], axis=-1)
    rise = np.median(windows[..., -recent:], axis=-1) - older
    sigma = scale[:, N - 1 :]
    return _after(N - 1, np.where(sigma > 0.0, rise / np.where(sigma > 0.0, sigma, 1.0), 0.0))


def two_window(scores: Array, threshold: float) -> Bools:
    """Alarm above the threshold; then rest until both windows are filled anew."""
    return _alarms(scores.shape, lambda step, _: scores[:, step] > threshold, N)


def _alarms(shape: tuple[int, ...], advance: Callable[[int, Bools], Bools], rest: int) -> Bools:
    """Alarms of a rule that starts afresh, and rests for some steps, after each.

    Args:
        shape: Traces and steps.
        advance: From step and the traces that are to forget it, to the traces with an alarm.
        rest: Steps without a level; the policy has none until its buffer has 16 losses.
    """
    fired = np.zeros(shape, dtype=np.bool_)
    left = np.zeros(shape[0], dtype=np.int64)
    for step in range(shape[1]):
        fired[:, step] = advance(step, left > 0) & (left == 0)
        left = np.where(fired[:, step], rest, np.maximum(left - 1, 0))
    return fired
