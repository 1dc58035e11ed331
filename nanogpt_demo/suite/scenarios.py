"""What happens to a run: pure, seeded functions from a step to the conditions it meets.

A scenario is a function ``(at, strength) -> Conditions``. ``at`` knows the step, the length of the
run and a random generator that depends on nothing but (seed, step), so that every method meets the
same events and no scenario needs a memory.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ONSET = 0.4
"""Events begin after this share of the run."""


class At(NamedTuple):
    """Where in a run we are.

    Attributes:
        step: counted from 0.
        steps: length of the run.
        seed: of the run.
    """

    step: int
    steps: int
    seed: int

    @property
    def since_onset(self) -> int:
        """Steps since the events began; negative before."""
        return self.step - int(ONSET * self.steps)

    def chance(self, probability: float) -> bool:
        """Whether an event of this probability happens at this step."""
        rng = np.random.default_rng([self.seed, 2, self.step])
        return bool(rng.random() < probability)


class Conditions(NamedTuple):
    """What one step meets; the defaults are a step without event.

    Attributes:
        shifted: share of the samples that come from task B.
        batch: factor on the batch size.
        corrupt: the whole batch is noise.
        mislabel: share of the targets that are random.
        loss: factor on the loss before ``backward``; may be NaN or infinite.
        grad: factor on all gradients.
        poison: value written into one entry of one gradient.
        lr: factor on the learning rate.
    """

    shifted: float = 0.0
    batch: float = 1.0
    corrupt: bool = False
    mislabel: float = 0.0
    loss: float = 1.0
    grad: float = 1.0
    poison: float | None = None
    lr: float = 1.0


QUIET = Conditions()


def none(at: At, strength: float) -> Conditions:
    """Nothing happens: the control."""
    return QUIET


def high_lr(at: At, strength: float) -> Conditions:
    """Nothing happens but that the run is given ``strength`` times its usual learning rate."""
    return QUIET


def reversed_task(at: At, strength: float) -> Conditions:
    """A share ``strength`` of all data comes from task B from the onset on."""
    return Conditions(shifted=strength) if at.since_onset >= 0 else QUIET


def corrupted_isolated(at: At, strength: float) -> Conditions:
    """Single batches of noise, a share ``strength`` of all, from a fifth of the run on."""
    hit = at.step >= at.steps // 5 and at.chance(strength)
    return Conditions(corrupt=True) if hit else QUIET


def corrupted_burst(at: At, strength: float) -> Conditions:
    """``strength`` batches of noise in a row, every tenth of the run, from the onset on."""
    hit = at.since_onset >= 0 and at.since_onset % (at.steps // 10) < strength
    return Conditions(corrupt=True) if hit else QUIET


def label_noise(at: At, strength: float) -> Conditions:
    """A share ``strength`` of the targets is random for a fifth of the run."""
    return Conditions(mislabel=strength) if 0 <= at.since_onset < at.steps // 5 else QUIET


def gradient_spikes(at: At, strength: float) -> Conditions:
    """Gradients ``strength`` times too large in 3 % of the steps from a fifth of the run on."""
    hit = at.step >= at.steps // 5 and at.chance(0.03)
    return Conditions(grad=strength) if hit else QUIET


def lr_spikes(at: At, strength: float) -> Conditions:
    """``strength`` times the learning rate for 10 of every 80 steps from a fifth of the run on."""
    since = at.step - at.steps // 5
    return Conditions(lr=strength) if since >= 0 and since % 80 < 10 else QUIET


def drift(at: At, strength: float) -> Conditions:
    """The share of task B grows linearly to ``strength`` between a fifth and the end of the run."""
    share = (at.step / at.steps - 0.2) / 0.8
    return Conditions(shifted=strength * max(0.0, share))


def batch_drop(at: At, strength: float) -> Conditions:
    """The batch shrinks to a share ``strength`` from the onset on."""
    return Conditions(batch=strength) if at.since_onset >= 0 else QUIET


def alternating(at: At, strength: float) -> Conditions:
    """From the onset on tasks A and B take turns; one rhythm takes ``strength`` steps."""
    turn = at.since_onset >= 0 and at.since_onset % strength >= strength / 2
    return Conditions(shifted=1.0) if turn else QUIET


def nonfinite_loss(at: At, strength: float) -> Conditions:
    """The loss, and every gradient with it, is NaN or infinite in a share of the steps."""
    value = math.nan if at.step % 2 else math.inf
    return Conditions(loss=value) if at.step > 5 and at.chance(strength) else QUIET


def nonfinite_gradient(at: At, strength: float) -> Conditions:
    """One entry of one gradient is NaN or infinite in a share of the steps; the loss is fine."""
    value = math.nan if at.step % 2 else math.inf
    return Conditions(poison=value) if at.step > 5 and at.chance(strength) else QUIET


def restarts(at: At, strength: float) -> Conditions:
    """A cosine from the full learning rate to nearly nothing, started ``strength`` times."""
    period = at.steps / strength
    return Conditions(lr=0.505 + 0.495 * math.cos(math.pi * (at.step % period) / period))


Scenario = Callable[[At, float], Conditions]

SCENARIOS: dict[str, Scenario] = {
    "none": none,
    "high-lr": high_lr,
    "reversed": reversed_task,
    "corrupted-isolated": corrupted_isolated,
    "corrupted-burst": corrupted_burst,
    "label-noise": label_noise,
    "gradient-spikes": gradient_spikes,
    "lr-spikes": lr_spikes,
    "drift": drift,
    "batch-drop": batch_drop,
    "alternating": alternating,
    "nonfinite-loss": nonfinite_loss,
    "nonfinite-gradient": nonfinite_gradient,
    "restarts": restarts,
}


def final_shift(scenario: str, strength: float, steps: int) -> float:
    """Share of task B in what a run has to know at its end.

    Both tasks count alike when they take turns; else it is the share in the last batch.
    """
    if scenario == "alternating":
        return 0.5
    return SCENARIOS[scenario](At(steps - 1, steps, seed=0), strength).shifted
