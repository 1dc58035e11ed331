"""The circuit breaker through copies of a run, its checkpoints, and groups that are added."""

import copy
import math
import pickle

import pytest
import torch

from tests.breaker_runs import Run
from tests.helpers import bits
from tests.test_breaker import EVERY_8
from tests.training import train


def by_deepcopy(task, optimizer):
    return copy.deepcopy((task, optimizer))


def by_pickle(task, optimizer):
    return pickle.loads(pickle.dumps((task, optimizer)))


@pytest.mark.parametrize("duplicate", [by_deepcopy, by_pickle])
def test_a_copy_in_mid_run_goes_on_alike_and_can_be_rolled_back_on_its_own(duplicate):
    run = Run(snapshot=EVERY_8)
    run.train(60)
    task, optimizer = duplicate(run.task, run.optimizer)
    assert repr(optimizer._breaker.run.state) == repr(run.optimizer._breaker.run.state)
    assert optimizer._breaker.ring.good is None, "snapshots are not copied along"
    train(task, optimizer, 60, 100)
    run.train(40)
    assert bits(task.model) == bits(run.task.model)
    task.model[0].weight.data.fill_(math.nan)
    train(task, optimizer, 100, 101)
    assert optimizer.last.action == "rollback" and torch.isfinite(task.weights()).all()
    run.train(1)
    assert run.optimizer.last.reason == "start-up", "the original knows nothing of that"


@pytest.mark.parametrize("duplicate", [by_deepcopy, by_pickle])
def test_a_copy_during_a_trial_goes_on_from_the_state_on_trial(duplicate):
    run = Run(snapshot=EVERY_8)
    run.train(120)
    run.train(11, lambda step, y: y * math.nan)
    assert run.optimizer.last.reason == "probe"
    task, optimizer = duplicate(run.task, run.optimizer)
    good = run.optimizer._breaker.ring.good.step
    twin = bits([p.detach() for p in task.model.parameters()])
    assert {k: v for k, v in run.found[good].items() if k.startswith("/weights")} == {
        f"/weights{k}": v for k, v in twin.items()
    }
    train(task, optimizer, 131, 150)
    assert optimizer.last.action != "skip" and torch.isfinite(task.weights()).all()


def test_a_checkpoint_keeps_the_budgets_and_drops_the_snapshots():
    run = Run("sgd", snapshot=EVERY_8)
    run.train(110)
    run.weight.fill_(math.nan)
    run.train(3)
    saved = copy.deepcopy((run.task.model.state_dict(), run.optimizer.state_dict()))
    state = run.optimizer._breaker.run.state
    assert state.recent_rollbacks > 0.9 and state.skip_share < 0.5
    for fresh in (Run("sgd", snapshot=EVERY_8), run):
        if fresh is run:
            fresh.train(10)
        fresh.task.model.load_state_dict(saved[0])
        fresh.optimizer.load_state_dict(saved[1])
        assert repr(fresh.optimizer._breaker.run.state) == repr(state)
        assert fresh.optimizer._breaker.ring.good is None
        fresh.train(1)
        assert fresh.optimizer._breaker.ring.good.step == 113, "what was loaded is good"
        fresh.weight.fill_(math.nan)
        fresh.train(1)
        assert fresh.optimizer.last.rolled_back_to == 113


def test_a_group_added_in_mid_run_is_part_of_the_snapshots_that_follow():
    run, extra = Run(snapshot=EVERY_8), torch.nn.Parameter(torch.ones(3))
    run.train(110)
    run.optimizer.add_param_group({"params": [extra], "lr": 0.1})
    assert run.optimizer._breaker.ring.good is None, "the old ones do not know it"
    extra.grad = torch.ones(3)
    run.train(1)
    extra.data.fill_(math.nan)
    run.weight.fill_(math.nan)
    run.train(1)
    assert run.optimizer.last.rolled_back_to == 110
    assert extra.tolist() == [1.0] * 3 and run.state() == run.found[110]
