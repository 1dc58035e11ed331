"""What a quiet step without norm guard adds to the bare optimizer's, counted.

Calls do not depend on how busy the machine is, as microseconds do: `python -m nanogpt_demo bench`
measures those.
"""

import random
import sys
from collections import Counter
from statistics import mean, median

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_optim import ARS

STEPS = 200
USUAL, ON_AVERAGE = 70, 85  # calls of functions; a few steps in a hundred sum up what has been


class Operators(TorchDispatchMode):
    """Counts what torch is asked to do."""

    def __init__(self):
        super().__init__()
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.counts[func] += 1
        return func(*args, **(kwargs or {}))


def quiet_runs():
    """A bare step and a wrapped one, of which nothing is to be said, and their losses."""
    rng = random.Random(0)
    optimizers = []
    for _ in range(2):
        weight = torch.nn.Parameter(torch.zeros(10))
        weight.grad = torch.zeros_like(weight)
        optimizers.append(torch.optim.SGD([weight], lr=1e-3))
    # When a copy is due depends on the clock.
    wrapped = ARS(optimizers[1], norm_guard=False, start_up=0, snapshot=False)
    losses = [rng.gauss(2.0, 0.1) for _ in range(2 * STEPS)]
    for loss in losses[:STEPS]:
        wrapped.step(loss)
        optimizers[0].step()
    return optimizers[0].step, wrapped, losses[STEPS:]


def calls_of(step, *args):
    """How many functions, of Python or of C, a step calls."""
    count = 0

    def note(frame, event, arg):
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        step(*args)
    finally:
        sys.setprofile(before)
    return count


def test_a_quiet_step_adds_a_few_dozen_calls():
    bare_step, wrapped, losses = quiet_runs()
    bare = median(calls_of(bare_step) for _ in range(STEPS))
    added = [calls_of(wrapped.step, loss) - bare for loss in losses]
    assert wrapped.counters["touched"] < 0.02 * wrapped.counters["observed"]
    assert 0 < median(added) <= USUAL and mean(added) <= ON_AVERAGE, (median(added), mean(added))


def test_a_quiet_step_asks_nothing_more_of_torch():
    bare_step, wrapped, losses = quiet_runs()
    with Operators() as bare:
        for _ in losses:
            bare_step()
    with Operators() as guarded:
        for loss in losses:
            wrapped.step(loss)
    assert bare.counts == guarded.counts and sum(bare.counts.values()) >= STEPS
