"""`TrainingDiverged`, and the text that says what was seen, what was tried and what it may be."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

from .decision import Decision
from .snapshot_norms import Norms

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

    The run is over: the `try` belongs around the loop. Whoever goes on all the same gets the same
    again at every further bad step.

    Steps that were left out have changed nothing. After too many rollbacks the model holds the best
    state that there is a snapshot of, see `rolled_back_to`; else no earlier state is put back, and
    the text says whether the weights are finite.

    Attributes:
        cause: the likeliest: "bad data", "bad gradient", "learning rate", "corrupted weights" or
            "stuck gradient".
        step: number of the step at which ARS gave up.
        rolled_back_to: number of the step that found the weights as they are again; None if no
            earlier state was put back.
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
    weights: str,
    rolled_back_to: int | None,
) -> TrainingDiverged:
    """The exception with its whole text.

    Args:
        cause: one of the five.
        seen: what it is based on, one sentence.
        decision: the last.
        recent: the latest that were not quiet, oldest first, each step once.
        tried: how often what was done.
        weights: what the model holds now, one sentence.
        rolled_back_to: see `TrainingDiverged`.
    """
    done = ", ".join(f"{n} times {what}" for what, n in tried.items() if n) or "nothing"
    steps = "; ".join(
        f"step {d.step}: {d.reason}, loss {d.loss:g}, gradient norm {_short(d.grad_norm)}"
        for d in recent
    )
    text = (
        f"training cannot go on at step {decision.step}. Seen: {seen} Tried: {done}. "
        f"Likely cause: {cause}; {REMEDIES[cause]}. {weights} Latest: {steps}."
    )
    return TrainingDiverged(text, cause, decision, rolled_back_to)


def weights_left(rolled_back_to: int | None, finite: bool, has_snapshot: bool) -> str:
    """What the model holds at the end, one sentence.

    Args:
        rolled_back_to: see `TrainingDiverged`.
        finite: whether the weights are.
        has_snapshot: whether there was a state to put back.
    """
    if rolled_back_to is not None:
        return f"The weights are what step {rolled_back_to} found."
    text = f"The weights are {'finite' if finite else 'not finite'}; no earlier state was put back"
    return text + ("." if has_snapshot else ", as there is no snapshot.")


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
