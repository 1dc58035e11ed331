"""When a run is beyond what a single step can mend: pure rules on numbers.

Like the policy, the rules compare losses with losses, so that a * loss + b (a > 0) changes nothing.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from . import statistics
from .loss_buffer import Array

SHARE_SPAN = 100
"""Steps over which the share of skipped steps is averaged, exponentially."""

FORGIVEN_EVERY = 100
"""Observed steps after which one rollback no longer counts against the budget."""

PROBE_STEPS = 3
"""Losses that the good state is tried on."""

NONFINITE_PROBE = 10
"""Steps without a finite loss and gradient after which the good state is tried."""

LOST_SCALES = 8.0
"""A level this many noise scales above the best one, or above the first one, is a loss of all that
was learned."""

FROZEN = 4
"""Losses of one value, to the bit, that are no coincidence."""

HIGH_STEPS = 64
"""Steps for which that must hold, without the loss coming down, to be a divergence."""

DATA_STEPS = 64
"""Fewest steps without progress on data that the good state does not know either; then we stop."""

MOST = 0.75
"""Share of what was learned; where more is lost, the model knows next to nothing of its data. Not
all of it: the first loss is one draw, and noise is fitted better than by the first weights."""

LEARNED_SCALES = 4.0
"""A run that is this many noise scales below an earlier level has learned something."""

LEARNED = 0.2
"""Share of the way back to the best level that counts as progress on such data, if it is more than
`MOST` of what had been learned: a model that is sure of itself learns from noise to be less so."""

WILD_LR, LARGE_LR = 1e4, 1e3
"""A learning rate this many times the largest proven one, and this large, is nobody's wish ..."""
WILD_LR_STEPS = 20  # ... if it stays for so many steps
HABIT_LEAK, HABIT_MAX = 0.98, 2.0
"""Weights that change between steps more often than twice in fifty are changed on purpose (weight
clipping, SAM, averages): that says nothing then."""

TRIAL_PAUSE = 100
"""Steps without a further trial of a level after one that has cleared the weights."""

NEGLIGIBLE = 0.01
"""A rise of the loss by less than this share of what was learned is not worth a trial."""

OPENING_STEPS = 16
"""Steps after which a young run should be no worse than it began."""

HINDSIGHT = 100.0
"""A first gradient norm this many times those that follow was an outlier that nobody could know."""


class BreakerState(NamedTuple):
    """What the circuit breaker remembers; all numbers, so that it can be saved.

    Attributes:
        skip_share: exponential average of the share of steps left out.
        rollbacks: rollbacks so far.
        recent_rollbacks: rollbacks that are not forgiven yet.
        first: level of the loss at the beginning; NaN while unknown.
        best: the lowest level so far; NaN while unknown.
        best_scale: noise scale of the loss at that level.
        high_since: observed step since when all that was learned is lost; -1 if it is not.
        data_since: observed step at which the good state, too, was found to have a high loss, or
            since when something has been learned of it; -1 while all is well.
        data_level: level of the loss then; NaN while unknown.
        data_best: the lowest level before.
        data_lost: the level above which most of what had been learned before is lost.
        top_norm: largest gradient norm of the opening.
        low_norms: gradient norms in a row that were far below it.
        same_gradients: steps in a row with one and the same gradient.
        last_norm: its norm.
        wild_lrs: steps in a row with a learning rate out of all proportion, see `WILD_LR`.
        habit: leaky count of the times that weights changed between two steps.
        next_trial: no level is put to a trial before this step.
    """

    skip_share: float = 0.0
    rollbacks: int = 0
    recent_rollbacks: float = 0.0
    first: float = math.nan
    best: float = math.nan
    best_scale: float = 0.0
    high_since: int = -1
    data_since: int = -1
    data_level: float = math.nan
    data_best: float = math.nan
    data_lost: float = math.inf
    top_norm: float = 0.0
    low_norms: int = 0
    same_gradients: int = 0
    last_norm: float = math.nan
    wild_lrs: int = 0
    habit: float = 0.0
    next_trial: int = 0

    @classmethod
    def of(cls, numbers: list[float]) -> BreakerState:
        """The state from its fields as floats, each turned back into the type that it has."""
        pairs = zip(cls(), numbers, strict=True)
        return cls._make(type(default)(number) for default, number in pairs)

    @property
    def limit(self) -> float:
        """The level above which all that was learned is lost; infinite while unknown."""
        if math.isnan(self.best) or math.isnan(self.first):
            return math.inf
        return self.best + max(self.first - self.best, LOST_SCALES * self.best_scale)

    @property
    def learned(self) -> float:
        """By how much the loss has fallen; 0 while unknown."""
        fallen = self.first - self.best
        return fallen if fallen > 0.0 else 0.0

    @property
    def mostly_lost(self) -> float:
        """The level at which `MOST` of what was learned is lost; `limit` if little was."""
        if self.learned > LEARNED_SCALES * self.best_scale:
            return self.best + MOST * self.learned
        return self.limit


def counted(
    state: BreakerState,
    skipped: bool,
    norm: float | None,
    same_gradient: bool,
    wild_lr: bool,
    changed: bool,
) -> BreakerState:
    """The state after one more observed step.

    Args:
        state: before.
        skipped: whether the step is left out.
        norm: of the gradient, None if not measured.
        same_gradient: whether it is the gradient of the last step.
        wild_lr: whether a learning rate is out of all proportion.
        changed: whether somebody changed weights since the last step.
    """
    share = state.skip_share + (skipped - state.skip_share) / SHARE_SPAN
    recent = max(0.0, state.recent_rollbacks - 1.0 / FORGIVEN_EVERY)
    return state._replace(
        skip_share=share, recent_rollbacks=recent, habit=HABIT_LEAK * state.habit + changed,
        same_gradients=state.same_gradients + 1 if same_gradient else 0,
        last_norm=math.nan if norm is None else norm, wild_lrs=state.wild_lrs + 1 if wild_lr else 0,
    )  # fmt: skip


def passed(state: BreakerState, steps: int, norm: float) -> BreakerState:
    """The state after so many steps of which nothing is to be said, as `counted` one by one.

    The gradient of the last of them has the norm `norm`, NaN if not measured.
    """
    share, recent, habit = state.skip_share, state.recent_rollbacks, state.habit
    for _ in range(steps):
        share -= share / SHARE_SPAN
        recent = max(0.0, recent - 1.0 / FORGIVEN_EVERY)
        habit *= HABIT_LEAK
    return state._replace(
        skip_share=share, recent_rollbacks=recent, same_gradients=0, last_norm=norm, wild_lrs=0,
        habit=habit,
    )  # fmt: skip


def watched(state: BreakerState, step: int, level: float, scale: float) -> BreakerState:
    """The state after a look at the level of the loss; see `has_diverged`.

    Args:
        state: before.
        step: observed steps so far.
        level: recent level of the loss, infinite while unknown.
        scale: its noise scale.
    """
    if not math.isfinite(level) or not math.isfinite(scale):
        return state
    if math.isnan(state.best) or level <= state.best:
        state = state._replace(best=level, best_scale=scale)
    if level <= state.limit:
        state = state._replace(high_since=-1)
    elif state.high_since < 0:
        state = state._replace(high_since=step)
    if state.data_since >= 0:
        if level <= state.data_lost:
            state = state._replace(data_since=-1)
        elif math.isnan(state.data_level):
            state = state._replace(data_level=level)
        else:
            learned, way = state.data_lost - state.data_best, state.data_level - state.data_best
            if state.data_level - level > max(learned, LEARNED * way, LEARNED_SCALES * scale):
                state = state._replace(data_since=step, data_level=level)
    return state


def blamed_on_data(state: BreakerState, step: int) -> BreakerState:
    """The state after a good state was found to do no better: the loss has another level now.

    Levels of before say nothing of divergence any more, but it is remembered what they were: data
    of which nothing can be learned are recognised by that, see `is_hopeless`.

    Args:
        state: before.
        step: observed steps so far.
    """
    if state.data_since < 0:
        state = state._replace(
            data_since=step, data_level=math.nan,
            data_best=state.best, data_lost=state.mostly_lost,
        )  # fmt: skip
    return state._replace(first=math.nan, best=math.nan, high_since=-1)


def is_frozen(losses: Array, level: float) -> bool:
    """Whether the level is a loss that stood still to the bit: then it is not what was learned."""
    return bool(np.count_nonzero(losses == level) > FROZEN)


def has_diverged(state: BreakerState, step: int, losses: Array, level: float) -> bool:
    """Whether the loss has been worse than in the beginning for long, and does not come down."""
    if state.high_since < 0 or step - state.high_since < HIGH_STEPS:
        return False
    return _stays_up(losses, level, state.limit)


def _stays_up(losses: Array, level: float, limit: float) -> bool:
    """Whether the loss fell within a window by less than half of what it is still above a limit."""
    return len(losses) >= 48 and statistics.median(losses[:24]) - level < 0.5 * (level - limit)


def is_hopeless(
    state: BreakerState, step: int, losses: Array, level: float, fruitless: float
) -> bool:
    """Whether most is lost, and nothing learned, on data that the good state does not know either.

    For `fruitless` see `budgets.Budgets`; anything learned sets `data_since` anew.
    """
    if state.data_since < 0 or math.isnan(state.data_level) or not level > state.data_lost:
        return False
    if step - state.data_since < max(DATA_STEPS, fruitless * state.data_since):
        return False
    return _stays_up(losses, level, state.data_lost)


def has_wild_lr(state: BreakerState) -> bool:
    """Whether a learning rate has been out of all proportion for long, and is only approached."""
    return state.wild_lrs >= WILD_LR_STEPS


def began_badly(state: BreakerState, losses: Array) -> bool:
    """Whether a young run is worse than it began, by twice the range of its latest losses."""
    if len(losses) < OPENING_STEPS or math.isnan(state.first):
        return False
    newest = losses[-8:]
    span = float(newest.max() - newest.min())
    return statistics.median(newest) - state.first > 2.0 * span


def opened(state: BreakerState, norm: float | None) -> BreakerState:
    """The state after one more gradient norm of the opening; see `HINDSIGHT`."""
    if not norm or not math.isfinite(norm):
        return state
    low = HINDSIGHT * norm < state.top_norm
    low_norms = state.low_norms + 1 if low else 0
    return state._replace(top_norm=max(state.top_norm, norm), low_norms=low_norms)


def stands_out(losses: Array, loss: float) -> bool:
    """Whether a loss is above all seen, by more than they span: also where no noise is known."""
    if len(losses) < OPENING_STEPS:
        return False
    top, bottom = float(losses.max()), float(losses.min())
    return loss > top + (top - bottom)


def is_stuck(state: BreakerState, losses: Array, stuck_steps: float) -> bool:
    """Whether gradients have stood still to the bit while the losses went up and down."""
    if state.same_gradients < stuck_steps:
        return False
    changes = np.diff(losses[-state.same_gradients :])
    return bool((changes > 0).any() and (changes < 0).any())
