"""Stability under injected shifts: a disturbed run survives, recovers, and controls stay calm.

A small regression is trained; from step 80 on something is injected for up to 30 steps. The
promises, for any kind, strength and length that hypothesis picks:

- every weight is finite at the end;
- 160 steps after the injection has ended, the loss on clean held-out data is back at that of an
  uninjected control, up to 5 % of what the control has gained since its start;
- on the control at most 2 % of the steps after start-up are touched.
"""

import math

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_optim import ARS
from tests.training import OPTIMIZERS, Task, train

ONSET, LENGTH, RECOVERY = 80, 30, 160
WITHIN = 0.05
CONTROL_RATE = 0.02


def level_shift(strength):
    """All targets are off by a constant for a while, then back."""
    return lambda step, y: y + strength


def spikes(strength):
    """Every ninth batch has random targets of great size."""

    def disturb(step, y):
        if step % 9:
            return y
        generator = torch.Generator().manual_seed(step)
        return strength * 10 * torch.randn(y.shape, generator=generator)

    return disturb


def oscillation(strength):
    """Batches alternate between two opposite tasks."""
    return lambda step, y: y + strength * (-1) ** step


def trend(strength):
    """The targets drift away, further at every step."""
    return lambda step, y: y + strength * (step - ONSET) / LENGTH


def poison(strength):
    """Every fifth batch is broken altogether."""
    return lambda step, y: y * (math.nan if step % 5 == 0 else 1.0)


KINDS = {f.__name__: f for f in (level_shift, spikes, oscillation, trend, poison)}


def disturbed_only_while(injection, last):
    return lambda step, y: injection(step, y) if ONSET <= step < last else y


@given(
    kind=st.sampled_from(sorted(KINDS)),
    strength=st.floats(0.5, 4.0),
    length=st.integers(1, LENGTH),
    name=st.sampled_from(sorted(OPTIMIZERS)),
    seed=st.integers(0, 10_000),
)
@settings(max_examples=25)
def test_an_injected_disturbance_is_survived_and_recovered_from(kind, strength, length, name, seed):
    last = ONSET + length + RECOVERY
    control, task = Task(seed), Task(seed)
    start = task.validation()
    train(control, ARS(OPTIMIZERS[name](control.model.parameters())), 0, last)
    injection = disturbed_only_while(KINDS[kind](strength), ONSET + length)
    train(task, ARS(OPTIMIZERS[name](task.model.parameters())), 0, last, injection)
    assert torch.isfinite(task.weights()).all()
    assert task.validation() <= recovered(start, control.validation())


def recovered(start, control):
    """The loss at which a run counts as recovered."""
    return control + WITHIN * (start - control)


def test_the_injections_hurt_a_bare_optimizer():
    """At least where a broken batch can undo what was learned, it takes ARS to pass the above."""
    for kind in ("spikes", "poison"):
        task, control = Task(1), Task(1)
        start, last = task.validation(), ONSET + LENGTH
        injection = disturbed_only_while(KINDS[kind](4.0), last)
        train(task, OPTIMIZERS["sgd"](task.model.parameters()), 0, last, injection)
        train(control, OPTIMIZERS["sgd"](control.model.parameters()), 0, last)
        assert not task.validation() <= recovered(start, control.validation())


def test_controls_are_hardly_touched_after_start_up():
    touched = steps = 0
    for seed in range(8):
        for name in OPTIMIZERS:
            task = Task(seed)
            optimizer = ARS(OPTIMIZERS[name](task.model.parameters()))
            train(task, optimizer, 0, 105)
            before = optimizer.counters["touched"]
            train(task, optimizer, 105, 255)
            touched += optimizer.counters["touched"] - before
            steps += 150
    assert touched / steps <= CONTROL_RATE
