"""The circuit breaker in real runs: what is rolled back, what is tried, and what is not lost."""

import copy
import functools
import math

import pytest
import torch

from resilient_optim import ARS, Budgets, DefaultConfig, Snapshots
from resilient_optim.rollback import LR_CUT
from tests.breaker_runs import FAULTS, Run
from tests.helpers import bits
from tests.training import OPTIMIZERS, Task, train

EVERY_8 = Snapshots(every=8)
every_optimizer = pytest.mark.parametrize("name", sorted(OPTIMIZERS))


@functools.cache
def control(name, steps):
    """The loss on held-out data of a run that nothing happened to, and that which it began with."""
    run = Run(name)
    start = run.task.validation()
    run.train(steps)
    return run.task.validation(), start


# -- weights and state that are corrupted from outside -------------------------------------------


@every_optimizer
@pytest.mark.parametrize("fault", sorted(FAULTS))
def test_a_corrupted_run_returns_to_a_good_state_and_learns_on(name, fault):
    run = Run(name, snapshot=EVERY_8)
    run.train(150)
    run.set_lr(0.9 * run.base.param_groups[0]["lr"])
    lr, good = run.base.param_groups[0]["lr"], [*run.found, run.state()]
    FAULTS[fault](run)
    decisions = run.train(20)
    (back,) = run.rollbacks()
    assert 150 <= back.step and 120 <= back.rolled_back_to <= 150
    assert (back.reason, back.update_scale) == ("corrupted weights", 0.0)
    assert back in decisions, "it is what optimizer.last says"
    assert run.found[back.step + 1] == good[back.rolled_back_to]
    assert run.base.param_groups[0]["lr"] == lr, "the learning rate is the schedule's"
    assert not {"probe", "learning-rate jump"} & set(run.reasons())
    assert run.optimizer.counters["rollbacks"] == run.optimizer.metrics()["ars/rollbacks"] == 1.0
    assert torch.isfinite(run.task.weights()).all()
    run.train(80)
    validation, _ = control(name, 250)
    assert run.task.validation() <= 1.1 * validation


@every_optimizer
def test_weights_out_of_all_proportion_are_found_even_if_the_loss_does_not_tell(name):
    run = Run(name, snapshot=EVERY_8)
    run.train(60)
    run.weight.mul_(1000.0)
    run.train(20)
    assert run.rollbacks()


def test_weights_that_explode_by_habit_end_a_run_that_has_only_its_beginning_to_return_to():
    """Young again after each rollback, it has no level that a loss could stand out from."""
    run = Run("sgd", snapshot=Snapshots(every=10**6))
    run.train(120)

    def disturb(step, y):
        for p in run.task.model.parameters():
            p.data.mul_(1.0 if step % 5 else 1000.0)
        return y

    error = run.train_until_diverged(60, disturb)
    assert error.cause == "corrupted weights"


def test_faults_a_hundred_steps_apart_are_each_forgiven():
    run = Run(snapshot=EVERY_8, budgets=Budgets(rollbacks=1))
    for _ in range(4):
        run.train(130)
        run.weight.fill_(math.nan)
    run.train(20)
    assert run.optimizer.counters["rollbacks"] == 4


@every_optimizer
@pytest.mark.parametrize("healthy, finite, is_sound", [
    (1, True, False),  # nobody knows yet what the copy is worth
    (2, True, True),
    (7, True, True),
    (7, False, False),
])  # fmt: skip
def test_a_copy_is_returned_to_once_what_is_wrong_with_it_would_have_shown(
    name, healthy, finite, is_sound
):
    run = Run(name, snapshot=EVERY_8)
    run.train(120)
    ring = run.optimizer._breaker.ring
    before = ring._candidate
    while ring._candidate in (before, None):
        run.train(1)
    run.train(healthy)
    good, copied = ring.good.step, ring._candidate.step
    ring._candidate._health[-1] *= 1.0 if finite else math.inf
    run.weight.fill_(math.nan)
    run.train(1)
    back_to = copied if is_sound else good
    assert run.optimizer.last.rolled_back_to == back_to
    assert run.found[back_to] == run.state()
    assert ring.good.step == good, "should trouble come back, the older states are there"


def test_trouble_that_comes_back_soon_returns_the_run_to_its_best_state():
    run = Run("sgd", snapshot=EVERY_8)
    run.train(120)
    run.optimizer._breaker.ring.best = best = copy.copy(run.optimizer._breaker.ring.good)
    run.train(40)
    run.optimizer._breaker.ring.best = best
    for _ in range(2):
        run.weight.mul_(1000.0)
        run.train(1)
    first, second = run.rollbacks()
    assert first.rolled_back_to > 120 and second.rolled_back_to == best.step < 120


# -- trials: is it the data? -----------------------------------------------------------------


@every_optimizer
@pytest.mark.parametrize("length, trial", [(9, 0), (10, 7), (12, 4), (15, 4)])
def test_a_burst_of_bad_batches_costs_no_weight(name, length, trial):
    """The good state sees the batches: if they are still bad, it is the data; else the present
    state sees three more, and if they are fine the trouble has passed."""
    run = Run(name, snapshot=EVERY_8)
    run.train(120)
    before = run.state()
    decisions = run.train(length, lambda step, y: y * math.nan)
    while decisions[-1].action == "skip":
        decisions += run.train(1)
    assert run.found[-1] == before, "bit for bit, until the first step that is taken again"
    assert [d.reason for d in decisions].count("probe") == trial
    assert run.optimizer.counters["rollbacks"] == 0
    run.train(20)
    assert run.optimizer.counters["skipped"] == len(decisions) - 1


def test_one_bad_batch_among_three_does_not_decide_a_trial():
    run = Run(snapshot=EVERY_8)
    run.train(120)
    decisions = run.train(17, lambda s, y: y * (math.nan if s < 130 or s == 131 else 1.0))
    assert [d.reason for d in decisions].count("probe") == 7


@every_optimizer
@pytest.mark.parametrize("shift", [5.0, 50.0])
def test_new_data_are_told_from_lost_weights_and_nothing_is_lost(name, shift, caplog):
    run = Run(name, snapshot=EVERY_8)
    run.train(120)
    assert caplog.messages == []
    before, good = run.state(), run.optimizer._breaker.ring.good.step
    decisions = run.train(11, lambda step, y: y + shift)
    reasons = [d.reason for d in decisions]
    assert reasons == ["surprise"] * 7 + ["probe"] * 3 + ["new level"]
    assert decisions[-1].new_level and run.optimizer.counters["new_levels"] == 1
    assert run.found[128] == run.found[good], "the trial is that of the good state"
    assert run.state() == before, "and the run goes on from where it was"
    told = caplog.messages[-1]
    assert f"the loss of step {decisions[-1].step} (" in told and f"state of step {good} " in told
    later = run.train(60, lambda step, y: y + shift)
    assert {d.action for d in later} <= {"apply", "damp"}
    assert run.optimizer.counters["rollbacks"] == 0


def ramp(run, rate, steps):
    """Raise the learning rate by a constant factor a step until the run is rolled back."""
    for _ in range(steps):
        run.set_lr(rate * run.base.param_groups[0]["lr"])
        run.train(1)
        if run.rollbacks():
            return run.rollbacks()[0]
    raise AssertionError("never rolled back")


def test_after_a_cut_rate_sgd_is_opened_as_slowly_as_any_other():
    """Its first gradient had said that it need not be, and was wrong."""
    run = Run("sgd", snapshot=EVERY_8)
    run.set_lr(0.5 * run.base.param_groups[0]["lr"])
    run.train(20)
    assert 0 < run.optimizer._memory.policy.opening_steps < DefaultConfig.start_up
    assert ramp(run, 1.1, 150).reason == "learning rate"
    assert run.optimizer._memory.policy.opening_steps == DefaultConfig.start_up


@pytest.mark.parametrize("name, rate", [("sgd", 1.05), ("adamw", 1.05), ("sgd", 1.1)])
def test_a_learning_rate_that_is_too_high_is_rolled_back_and_approached_slowly(name, rate):
    run = Run(name, snapshot=EVERY_8)
    run.train(120)
    back = ramp(run, rate, 150)
    assert back.reason == "learning rate"
    assert run.state() == run.found[back.rolled_back_to]
    assert [d.reason for d in run.events[-7:-1]] == ["probe"] * 6, "both states were tried"
    scheduled = run.base.param_groups[0]["lr"]
    eased = [d.update_scale for d in run.train(6)]
    # The trial was begun before the schedule's last six rises.
    assert eased[0] == pytest.approx(LR_CUT * 1.01 / rate**6)
    assert eased[1] == pytest.approx(1.01 * eased[0]) or eased[1] < eased[0]
    assert all(1.0101**k * eased[0] >= later for k, later in enumerate(eased))
    assert run.base.param_groups[0]["lr"] == scheduled
    run.set_lr(OPTIMIZERS[name]([torch.zeros(1)]).param_groups[0]["lr"])
    run.train(100)
    validation, start = control(name, 250)
    assert run.task.validation() < validation + 0.1 * (start - validation)


# -- what there is without snapshots, and around them ---------------------------------------------


@pytest.mark.parametrize("settings", [{"snapshot": False}, {"preset": "paper"}])
def test_without_snapshots_nothing_is_ever_rolled_back_or_tried(settings):
    run = Run(budgets=Budgets(skips_in_a_row=50), **settings)
    run.train(120)
    run.train(12, lambda step, y: y * math.nan)
    run.train(12, lambda step, y: y + 50.0)
    run.weight.fill_(math.nan)
    run.train(15)
    assert not run.rollbacks() and "probe" not in run.reasons()
    assert run.optimizer.counters["rollbacks"] == 0


def test_the_paper_preset_has_snapshots_if_asked():
    run = Run(preset="paper", snapshot=EVERY_8)
    run.train(60)
    run.weight.fill_(math.nan)
    run.train(2)
    # In its eyes every loss above the mean is a surprise: no later state ever proves good.
    assert [d.rolled_back_to for d in run.rollbacks()] == [0]


@every_optimizer
@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_is_never_rolled_back_and_is_that_without_snapshots(name, seed):
    with_snapshots, without = Run(name, seed, snapshot=EVERY_8), Run(name, seed, snapshot=False)
    for run in (with_snapshots, without):
        train(run.task, run.optimizer, 0, 400)
    assert not {"probe", "new level"} & set(with_snapshots.reasons())
    assert with_snapshots.optimizer.counters["rollbacks"] == 0
    assert with_snapshots.optimizer._breaker.ring.good.step >= 380
    assert with_snapshots.state() == without.state()
    assert with_snapshots.events == without.events


def test_events_are_the_decisions_that_are_not_quiet_told_once_carried_out():
    told, task = [], Task(0)
    base = torch.optim.SGD(task.model.parameters(), lr=0.03)

    def hear(decision):
        told.append((decision, bits(task.model), optimizer.counters["observed"]))

    optimizer, decisions = ARS(base, on_event=hear, snapshot=EVERY_8), []
    for step in range(140):
        if step == 125:
            task.model[0].weight.data.fill_(math.nan)
        train(task, optimizer, step, step + 1, lambda s, y: y * (math.nan if s == 110 else 1))
        decisions.append((optimizer.last, bits(task.model), step + 1))
    assert told == [entry for entry in decisions if entry[0].reason != "quiet"]
    assert {"start-up", "non-finite loss", "corrupted weights"} <= {d.reason for d, _, _ in told}
