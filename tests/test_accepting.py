"""What a user does on purpose: new weights, and a loss that means something else."""

import logging
from collections import Counter

import pytest
import torch

from resilient_optim import ARS
from tests.helpers import bits


class Fit:
    """A small regression under ARS, step by step."""

    def __init__(self, steps, **settings):
        torch.manual_seed(0)
        self.model = torch.nn.Sequential(
            torch.nn.Linear(8, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1)
        )
        self.ars = ARS(torch.optim.AdamW(self.model.parameters(), lr=3e-3), **settings)
        self.times = 1.0
        self.run(steps)

    def run(self, steps):
        reasons = Counter()
        for _ in range(steps):
            x = torch.randn(64, 8)
            loss = self.times * (self.model(x) - x[:, :1].sin()).square().mean()
            self.ars.zero_grad()
            loss.backward()
            self.ars.step(loss)
            reasons[self.ars.last.reason] += 1
        return reasons


def test_weights_made_anew_are_trained_at_once(caplog):
    fit = Fit(300)
    fit.model[2].reset_parameters()
    fit.model[2].weight.data.mul_(3)
    fit.ars.accept_weights()
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        reasons = fit.run(120)
    assert reasons["quiet"] >= 110
    assert not reasons.keys() & {"surprise", "probe", "new level", "rollback"}
    assert not caplog.records


def test_weights_made_anew_without_a_word_are_taken_back():
    fit = Fit(300)
    fit.model[2].reset_parameters()
    fit.model[2].weight.data.mul_(3)
    fit.run(120)
    assert fit.ars.counters["rollbacks"] == 1


@pytest.mark.parametrize("told", [False, True])
def test_a_loss_of_another_meaning(told):
    fit = Fit(300)
    fit.times = 200.0
    if told:
        fit.ars.accept_level()
    reasons = fit.run(200)
    assert (reasons["quiet"] >= 190) == told
    assert (reasons["surprise"] + reasons["probe"] > 5) != told


def test_a_start_up_phase_goes_on_and_counts_stay():
    fit = Fit(20)
    before = dict(fit.ars.counters)
    fit.ars.accept_level()
    assert fit.ars.counters == before
    assert fit.run(20).keys() <= {"start-up", "quiet"}
    assert fit.ars.loss_buffer.losses.values.shape == (20,)
    packed = fit.ars.state_dict()["param_groups"][0]["ars"]
    assert packed.isfinite().any()


def test_a_trial_under_way_is_given_up_and_the_present_weights_are_back():
    fit = Fit(200)
    present = None
    for _ in range(12):
        before = bits(fit.model)
        fit.times = 400.0
        fit.run(1)
        if fit.ars.last.reason == "probe":
            break
        present = before if fit.ars.last.action == "skip" else bits(fit.model)
    assert fit.ars.last.reason == "probe"
    assert bits(fit.model) != present
    fit.ars.accept_level()
    assert bits(fit.model) == present
