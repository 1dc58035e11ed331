"""`TrainingDiverged`, and the text that says what was seen, what was tried and what it may be."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from .decision import Decision
from .snapshot import Norms

BAD_DATA = "bad data"
BAD_GRADIENT = "bad gradient"
LEARNING_RATE = "learning rate"
CORRUPTED_WEIGHTS = "corrupted weights"
STUCK_GRADIENT = "stuck gradient"

NONFINITE_LR = "non-finite learning rate"
"""The policy's reason for a skip that is neither the loss's fault nor the gradient's."""

REMEDIES = {
    BAD_DATA: "look at the batches of the steps named above, and at what is made of them on the "
    "way into the model",
    BAD_GRADIENT: "look at the layer named above: a division by nothing, a logarithm or root of "
    "zero, or an overflow; in float16 use torch.amp.GradScaler, or bfloat16",
    LEARNING_RATE: "lower the learning rate, or warm it up, and look at its schedule",
    CORRUPTED_WEIGHTS: "something other than the optimizer writes to the weights, or memory is "
    "failing: look for what runs between two steps",
    STUCK_GRADIENT: "no gradient arrives: look for detach(), no_grad(), requires_grad=False, or a "
    "backward() of another loss",
}


class TrainingDiverged(RuntimeError):
    """The run cannot be saved by its optimizer. The text says what was seen and tried.

    The model holds the last state that can be trusted.

    Attributes:
        cause: the likeliest: "bad data", "bad gradient", "learning rate", "corrupted weights" or
            "stuck gradient".
        step: number of the step at which ARS gave up.
        rolled_back_to: number of the step that the model has been returned to; None if it holds
            what the last good step left.
        decision: the one at which it was given up.
    """

    def __init__(
        self, text: str, cause: str, decision: Decision, rolled_back_to: int | None
    ) -> None:
        super().__init__(text)
        self.cause = cause
        self.step: int = decision.step
        self.decision = decision
        self.rolled_back_to = rolled_back_to

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (str(self), self.cause, self.decision, self.rolled_back_to)


def diverged(
    cause: str,
    seen: str,
    decision: Decision,
    recent: list[Decision],
    tried: Counter[str],
    rolled_back_to: int | None,
) -> TrainingDiverged:
    """The exception with its whole text.

    Args:
        cause: one of the five.
        seen: what it is based on, one sentence.
        decision: the last.
        recent: the latest that were not quiet, oldest first.
        tried: how often what was done.
        rolled_back_to: see `TrainingDiverged`.
    """
    done = ", ".join(f"{n} times {what}" for what, n in tried.items() if n) or "nothing"
    steps = "; ".join(
        f"step {d.step}: {d.reason}, loss {d.loss:g}, gradient norm {_short(d.grad_norm)}"
        for d in recent[-5:]
    )
    left = "the last good step left" if rolled_back_to is None else f"step {rolled_back_to} found"
    text = (
        f"training cannot go on at step {decision.step}. Seen: {seen} Tried: {done}. "
        f"Likely cause: {cause}; {REMEDIES[cause]}. The weights are what {left}. Latest: {steps}."
    )
    return TrainingDiverged(text, cause, decision, rolled_back_to)


def wrong_parameters(norms: Norms, names: list[str], history: list[tuple[int, Norms]]) -> str:
    """Name the parameters whose norms are not finite, or far beyond all others, with their history.

    Args:
        norms: of each parameter, or of its gradient, shape (params,).
        names: of the parameters.
        history: the same norms at earlier steps, oldest first.
    """
    values = norms.tolist()
    wrong = [i for i, value in enumerate(values) if not math.isfinite(value)]
    if not wrong and values:
        wrong = [max(range(len(values)), key=values.__getitem__)]
    told = []
    for i in wrong[:3]:
        then = ", ".join(
            f"{float(old[i]):.3g} at step {step}" for step, old in history[-3:] if len(old) > i
        )
        told.append(f"{names[i]} (norm {values[i]:.3g}" + (f"; {then})" if then else ")"))
    if len(wrong) > 3:
        told.append(f"and {len(wrong) - 3} more")
    return ", ".join(told)


def _short(value: float | None) -> str:
    return "not measured" if value is None else f"{value:g}"
