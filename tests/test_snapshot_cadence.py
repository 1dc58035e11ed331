"""When snapshots are taken: as often as asked for, or as their share of the time allows."""

import itertools
import math

import pytest

from resilient_optim import snapshot_ring
from resilient_optim.snapshot import Snapshot
from resilient_optim.snapshot_ring import PROBATION
from tests.test_snapshot_ring import healthy_step, make_ring, prove


class Clock:
    """A run whose steps take exactly one second, and a copy as long as it is told to."""

    def __init__(self, monkeypatch, copy_takes):
        self.now, self.copy_takes = 0.0, copy_takes
        monkeypatch.setattr(snapshot_ring.time, "perf_counter", lambda: self.now)
        take = Snapshot.take

        def slow(*args, **kwargs):
            self.now += self.copy_takes
            return take(*args, **kwargs)

        monkeypatch.setattr(Snapshot, "take", slow)


@pytest.mark.parametrize("every", [1, 8, 50])
def test_snapshots_come_as_often_as_asked_for(every):
    ring, _ = make_ring(every=every)
    taken = []
    for step in range(400):
        healthy_step(ring)
        if ring.is_due(step):
            taken.append(step)
            ring.take(step, 1.0, {})
    # A candidate on probation is not replaced.
    apart = every if every >= PROBATION else PROBATION
    assert taken == list(range(0, 400, apart))


@pytest.mark.parametrize("copy_takes, cost", [(0.05, 0.01), (0.3, 0.01), (0.3, 0.2), (1.0, 0.03)])
def test_without_a_number_snapshots_take_the_share_of_time_that_they_may(
    monkeypatch, copy_takes, cost
):
    clock = Clock(monkeypatch, copy_takes)
    ring, _ = make_ring(cost=cost)
    taken = []
    for step in range(3000):
        clock.now += 1.0
        healthy_step(ring)
        if ring.is_due(step):
            taken.append(step)
            ring.take(step, 1.0, {})
    apart = taken[-1] - taken[-2]
    assert copy_takes / apart <= cost, "never dearer than that"
    assert apart == PROBATION or copy_takes / apart > cost / 1.6, "and not much rarer than need be"
    grid = math.log2(apart) if apart % 3 else math.log2(apart / 3)
    assert grid.is_integer(), "few values, so that two runs nearly always agree"
    assert taken[:2] == [0, PROBATION], "nothing is known of the cost of the first"


@pytest.mark.parametrize(
    "host, gpu, apart", [(0.1, 0.3, 32), (0.3, 0.1, 32), (0.01, 0.02, 8), (0.1, None, 128)]
)
def test_on_a_gpu_the_dearer_of_queueing_and_copying_counts(monkeypatch, host, gpu, apart):
    """Until a copy has been timed, by its size."""
    clock = Clock(monkeypatch, host)
    monkeypatch.setattr(Snapshot, "is_on_gpu", True)
    monkeypatch.setattr(Snapshot, "gpu_seconds", gpu)
    monkeypatch.setattr(Snapshot, "nbytes", int(snapshot_ring.HOST_BANDWIDTH))
    ring, _ = make_ring(cost=0.01)
    for step in range(10):
        clock.now += 100.0
        interval = ring.take(100 * step, 1.0, {})
        prove(ring)
    assert interval == apart


def test_copies_of_different_length_take_no_more_than_their_share(monkeypatch):
    clock = Clock(monkeypatch, 0.0)
    ring, _ = make_ring(cost=0.01)
    lengths, spent = itertools.cycle([0.1, 0.2, 0.3, 0.4]), 0.0
    for step in range(2000):
        clock.now += 1.0
        healthy_step(ring)
        if ring.is_due(step):
            clock.copy_takes = next(lengths)
            ring.take(step, 1.0, {})
            spent += clock.copy_takes if step >= 100 else 0.0  # the cost is known by then
    assert 0.003 < spent / 1900 <= 0.01


def intervals_with_a_long_copy(monkeypatch, copies, usual, long, at):
    """Steps from each copy to the next; one of them, counted from 0, is long."""
    clock = Clock(monkeypatch, usual)
    ring, _ = make_ring(cost=0.01)
    intervals = []
    for copy in range(copies):
        clock.now += 100.0
        clock.copy_takes = long if copy == at else usual
        intervals.append(ring.take(100 * copy, 1.0, {}))
        prove(ring)
    return intervals


def test_a_single_long_copy_does_not_make_snapshots_rare(monkeypatch):
    intervals = intervals_with_a_long_copy(monkeypatch, copies=20, usual=0.1, long=50.0, at=10)
    assert set(intervals[4:]) == {12}


def test_a_slow_first_copy_does_not_make_the_next_one_rare(monkeypatch):
    """A young run has little to go back to. Copies into new memory are not timed."""
    clock = Clock(monkeypatch, 0.6)  # of which a next one would come after 64 steps
    ring, _ = make_ring(cost=0.01)
    taken = []
    for step in range(200):
        clock.now += 1.0
        healthy_step(ring)
        if ring.is_due(step):
            clock.copy_takes = 0.6 if len(taken) < 3 else 0.3
            taken.append(step)
            ring.take(step, 1.0, {})
    assert taken[:5] == [0, 8, 16, 48, 96]


def test_a_busy_moment_in_the_first_timed_copy_does_not_make_the_next_one_rare(monkeypatch):
    """One long pause of the machine in it, and a short run would get no further copy."""
    intervals = intervals_with_a_long_copy(monkeypatch, copies=9, usual=0.3, long=500.0, at=2)
    assert intervals[:2] == [8, 8], "into new memory"
    assert max(intervals[2:4]) <= 64, "as if it had taken no longer than those into new memory"
    assert set(intervals[4:]) == {32}


def test_ranks_can_agree_on_a_longer_interval():
    ring, _ = make_ring(every=8)
    ring.postpone(100)
    assert ring.is_due(0), "there is none to count from yet"
    ring.take(16, 1.0, {})
    ring.postpone(32)
    prove(ring)
    assert [ring.is_due(step) for step in (24, 47, 48)] == [False, False, True]
