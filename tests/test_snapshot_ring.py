"""Which snapshots are kept: a candidate, the last good state, the best one; and when."""

import copy
import logging
import math
import pickle

import pytest
import torch

from resilient_optim import ARS, Snapshots, snapshot_ring
from resilient_optim.snapshot import Live
from resilient_optim.snapshot_ring import MEMORY_SHARE, PROBATION, SnapshotRing
from tests.training import Task, train


def make_ring(unasked=False, **settings):
    weight = torch.nn.Parameter(torch.ones(4))
    live = Live(torch.optim.SGD([weight], lr=0.1))
    return SnapshotRing(live, Snapshots(**settings), unasked), weight.data


def healthy_step(ring):
    """A healthy step, as the circuit breaker counts it; the snapshot that has just proved good."""
    if not ring.probation_ends():
        return None
    return ring.promote() if ring.is_finite() else ring.reject()


def prove(ring, steps=PROBATION):
    return [healthy_step(ring) for _ in range(steps)]


def held(ring):
    """Every snapshot that the ring keeps memory in."""
    kept = [ring.good, ring.best, ring._candidate, *ring._spare]
    return {id(s) for s in kept if s is not None and s.nbytes}


def add(ring, step, level=1.0, scale=0.0):
    """Take one and let it prove good."""
    ring.take(step, level, {"scale": scale})
    prove(ring)


def test_a_candidate_is_good_after_its_probation_and_not_before():
    ring, _ = make_ring(every=8)
    ring.take(5, 1.0, {})
    assert prove(ring, PROBATION - 1) == [None] * (PROBATION - 1)
    assert ring.good is None
    good = healthy_step(ring)
    assert good is ring.good is ring.best
    assert good.step == 5
    assert not ring.probation_ends() and ring.promote() is None, "there is no candidate any more"
    assert ring.good is good


def test_the_best_is_the_youngest_of_those_with_the_lowest_loss_up_to_noise():
    ring, _ = make_ring(every=8)
    ring.take(0, math.inf, {}, proven=True)
    steps = []
    for step, level in enumerate([5.0, 3.0, 3.05, 4.0, 3.2, 2.0, math.inf], start=1):
        add(ring, step, level, scale=0.1)
        assert ring.good.step == step
        steps.append(ring.best.step)
    assert steps == [1, 2, 3, 3, 3, 6, 6]


def test_the_state_that_the_run_begins_with_is_best_until_a_level_is_known():
    ring, _ = make_ring(every=8)
    ring.take(0, math.inf, {}, proven=True)
    add(ring, 8, math.inf)
    assert (ring.best.step, ring.good.step) == (0, 8)
    add(ring, 16, 100.0)
    assert ring.best.step == 16


def test_three_copies_are_held_at_the_most():
    ring, weight = make_ring(every=8)
    levels = [math.inf, 5.0, 4.0, 6.0, 7.0, 3.0, 3.0, 9.0, 9.0, 9.0, 1.0]
    for step, level in enumerate(levels):
        weight.fill_(step)
        ring.take(step, level, {}, proven=step == 0)
        assert len(held(ring)) <= 3
        for _ in range(PROBATION):
            if step == 8:
                ring.trouble()
            healthy_step(ring)
        if step == 9:
            ring.drop_good()
        lent = ring.spare()
        lent.take(ring.live, -5, 0.0, {})  # as a trial does
        assert len(held(ring) | {id(lent)}) <= 3
        ring.give_back(lent)
        for snapshot in (ring.good, ring.best):
            assert snapshot.tree()["params"][0].tolist() == [snapshot.step] * 4


def test_trouble_drops_the_candidate_and_has_a_new_one_taken_soon():
    ring, _ = make_ring(every=100)
    add(ring, 0)
    ring.take(100, 1.0, {})
    prove(ring, PROBATION - 1)
    ring.trouble()
    assert prove(ring) == [None] * PROBATION
    assert ring.good.step == 0
    assert ring.is_due(101)
    ring.take(101, 1.0, {})
    prove(ring)
    ring.trouble()  # without a candidate there is nothing to drop
    assert len(held(ring)) == 2 and not ring.is_due(102)
    ring.trouble(soon=True)
    assert ring.is_due(102)


def test_the_last_good_state_can_be_given_up_for_the_best():
    ring, _ = make_ring(every=8)
    add(ring, 0, level=1.0)
    add(ring, 8, level=2.0)
    ring.drop_good()
    assert ring.good is ring.best and ring.good.step == 0
    ring.drop_good()
    assert ring.good.step == 0, "the best one stays"


@pytest.mark.parametrize("error", [MemoryError("no room"), RuntimeError("no pinned memory")])
def test_a_copy_that_fails_leaves_the_older_ones_and_is_told(monkeypatch, caplog, error):
    ring, _ = make_ring(every=8)
    add(ring, 0)

    def fail(*args, **kwargs):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch, "_foreach_copy_", fail)
        with caplog.at_level(logging.WARNING, "resilient_optim"):
            assert ring.take(8, 0.5, {}) is None
    assert f"could not take a snapshot at step 8: {error}" in caplog.text
    assert ring.good.step == ring.best.step == 0
    assert ring.good.tree()["params"][0].tolist() == [1.0] * 4
    assert not ring.is_due(8 + PROBATION - 1) and ring.is_due(8 + PROBATION)
    prove(ring)
    assert ring.good.step == 0, "a failed copy never proves good"
    assert ring.take(16, 0.5, {}) == 8


@pytest.mark.parametrize("where", ["weights", "state"])
def test_a_candidate_that_is_not_finite_is_found_corrupt_and_never_good(where):
    ring, weight = make_ring(every=8)
    add(ring, 0)
    state = ring.live.base.state
    state[ring.live.base.param_groups[0]["params"][0]]["momentum_buffer"] = torch.ones(4)
    (weight if where == "weights" else next(iter(state.values()))["momentum_buffer"])[2] = math.nan
    ring.take(8, 0.5, {})
    assert not ring.found_corruption
    assert prove(ring) == [None] * PROBATION
    assert ring.found_corruption and ring.is_due(9)
    assert ring.good.step == ring.best.step == 0


def test_weights_are_intact_up_to_a_hundred_times_the_largest_norm_of_the_good_state():
    ring, _ = make_ring(every=8)
    norms = torch.tensor([2.0]).numpy()
    assert ring.is_intact(norms * 1e30), "nothing is known yet"
    assert not ring.is_intact(norms * math.nan)
    add(ring, 0)  # its norm is 2
    assert ring.is_intact(norms * 99.0) and not ring.is_intact(norms * 101.0)
    assert not ring.is_intact(norms * math.inf)


def test_nobody_asked_so_no_snapshot_is_taken_while_memory_is_scarce(monkeypatch, caplog):
    free = 3 * 16 / MEMORY_SHARE - 1  # a byte less than three need
    monkeypatch.setattr(snapshot_ring, "free_memory", lambda: free)
    ring, _ = make_ring(unasked=True, every=8)
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        assert ring.take(0, 1.0, {}, proven=True) is ring.good is None
        assert [ring.is_due(step) for step in (PROBATION - 1, PROBATION)] == [False, True]
        assert ring.take(8, 1.0, {}, proven=True) is None
    assert caplog.text.count("Pass snapshot=True to insist") == 1, "that is said once"
    free += 1
    assert ring.take(16, 1.0, {}, proven=True) == 8
    free = 16 / MEMORY_SHARE - 1
    assert ring.take(24, 1.0, {}) is None and ring.good.step == 16
    free += 1
    assert ring.take(32, 1.0, {}) == 8, "one more is a third of them"
    prove(ring)
    free = 0
    assert ring.take(40, 1.0, {}) == 8, "and memory that it has already costs nothing"
    asked, _ = make_ring(unasked=False)
    assert asked.take(0, 1.0, {}, proven=True) is not None


@pytest.mark.parametrize("snapshot, taken", [("auto", False), (True, True), (Snapshots(), True)])
def test_only_the_snapshots_of_auto_give_way_to_scarce_memory(monkeypatch, snapshot, taken):
    monkeypatch.setattr(snapshot_ring, "free_memory", lambda: 1000.0)
    task = Task(0)
    optimizer = ARS(torch.optim.SGD(task.model.parameters(), lr=0.01), snapshot=snapshot)
    train(task, optimizer, 0, 20)
    assert (optimizer._breaker.ring.good is not None) == taken


def test_a_run_that_began_with_broken_weights_has_snapshots_again_once_others_are_loaded():
    task = Task(0)
    optimizer = ARS(torch.optim.SGD(task.model.parameters(), lr=0.01))
    saved = copy.deepcopy((task.model.state_dict(), optimizer.state_dict()))
    task.model[0].weight.data.fill_(math.nan)
    train(task, optimizer, 0, 1)
    task.model.load_state_dict(saved[0])
    optimizer.load_state_dict(saved[1])
    train(task, optimizer, 0, 1)
    assert optimizer._breaker.ring.good is not None


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda r: pickle.loads(pickle.dumps(r))])
def test_copies_of_a_ring_take_snapshots_of_their_own(twin):
    ring, _ = make_ring(every=16)
    add(ring, 0)
    other = twin(ring)
    assert other.good is other.best is None and other.settings == ring.settings
    assert other.live is not ring.live and other.is_due(0)
    assert ring.good is not None


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"every": 0}, ValueError, ["every", "0", "None chooses by the cost"]),
        ({"every": 2.5}, TypeError, ["every", "2.5"]),
        ({"every": True}, TypeError, ["every", "True"]),
        ({"cost": 0.0}, ValueError, ["cost", "0.0", "(0, 1]"]),
        ({"cost": 1.5}, ValueError, ["cost", "1.5", "(0, 1]"]),
        ({"cost": "1 %"}, TypeError, ["cost", "'1 %'"]),
        ({"cost": math.nan}, ValueError, ["cost", "nan"]),
        ({"directory": 3}, TypeError, ["directory", "3", "None keeps snapshots in memory"]),
    ],
)
def test_wrong_settings_are_named_with_their_value(settings, error, words):
    with pytest.raises(error) as info:
        Snapshots(**settings)
    assert all(word in str(info.value) for word in words)
