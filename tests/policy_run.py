"""The default policy on its own, without an optimizer: losses in, decisions out."""

import numpy as np

from resilient_optim import DefaultConfig, LossBuffer
from resilient_optim.decision import SKIP, Observation

CALM = np.random.default_rng(0).normal(2.0, 0.1, size=400)
"""Losses of which nothing is to be said."""


class Run:
    """A policy fed with losses, keeping the buffer as ARS does."""

    def __init__(self, start_up=0, lr=0.0, **settings):
        self.config = DefaultConfig(start_up=start_up, **settings)
        self.state = self.config.first_state(young=True)
        self.buffer = LossBuffer(self.config.history)
        self.steps, self.lr = 0, lr

    def see(self, loss, norm=None, own_warmup=False, lr_ratio=1.0):
        seen = Observation(self.steps, float(loss), norm, own_warmup, lr_ratio, lr=self.lr)
        decision, self.state = self.config.decide(self.state, self.buffer, seen)
        self.steps += 1
        if decision.new_level:
            self.buffer.losses.clear()
        if decision.action != SKIP:
            self.buffer.append(decision.loss, None if decision.abnormal_norm else norm)
        return decision

    def see_all(self, losses, norms=None):
        norms = [None] * len(losses) if norms is None else norms
        return [self.see(loss, norm) for loss, norm in zip(losses, norms, strict=True)]
