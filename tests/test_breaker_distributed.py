"""The circuit breaker on several ranks: what one of them meets with, all of them act on."""

import math

import pytest
import torch
import torch.distributed as dist

from tests import breaker_ranks as checks
from tests.breaker_ranks import FAULT
from tests.processes import run_ranks, sharded_on_cpu

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The results of all checks on both ranks; one start of two processes serves all tests."""
    folder = tmp_path_factory.mktemp("ranks")
    run_ranks(checks.worker, folder, checks.RANKS)

    def results(check):
        both = [
            torch.load(folder / f"{check.__name__}-{rank}.pt", weights_only=True)
            for rank in range(checks.RANKS)
        ]
        for result in both:
            assert result is None or "raised" not in result, result
        return both

    return results


def rollbacks(result):
    return [(step, to) for step, action, _, to in result["seen"] if action == "rollback"]


@pytest.mark.parametrize("check", [checks.nan_weights, checks.scaled_weights])
def test_weights_of_one_rank_take_all_back(ranks, check):
    a, b = ranks(check)
    assert rollbacks(a) == [(FAULT, 24)]
    assert a["finite"] and a["good"] > FAULT
    assert a == b  # what was seen, the weights, what is remembered


def test_a_trial_of_the_good_state_is_held_together(ranks):
    a, b = ranks(checks.trial)
    reasons = [reason for _, _, reason, _ in a["seen"]]
    assert reasons[FAULT + 9 : FAULT + 13] == ["probe"] * 4
    assert rollbacks(a) == [] and reasons[FAULT + 13 :].count("probe") == 0
    assert a["counters"]["skipped"] == 13 and a["finite"]
    assert a == b


def test_all_ranks_give_up_at_once(ranks):
    a, b = ranks(checks.spent)
    assert (a["step"], a["cause"]) == (FAULT + 19, "bad data")
    assert a == b


def test_the_slowest_sets_the_pace(ranks):
    a, b = ranks(checks.cadence)
    assert a["taken"] == b["taken"]
    assert max(y - x for x, y in zip(a["taken"], a["taken"][1:], strict=False)) >= 16
    assert a == b


def test_ranks_go_on_from_a_file_that_all_have(ranks):
    for result in ranks(checks.resumed):
        assert result == {"files": [48, 40, 32], "start": 40, "same": True, "again": 0}


@sharded_on_cpu
def test_a_shard_takes_the_model_back(ranks):
    a, b = ranks(checks.sharded)
    assert rollbacks(a) == [(FAULT, 24)]
    assert a["seen"] == b["seen"] and a["weights"] == b["weights"]
    assert a["in place"] and a["sharded"]
    assert [step for step, loss in enumerate(a["losses"]) if math.isnan(loss)] == [FAULT]
    assert "directory must be None for sharded parameters, got '" in a["error"]


def test_there_is_always_a_file_that_all_have(ranks):
    events = sorted(sum([result["events"] for result in ranks(checks.slow_disk)], []))
    files, common = [set(), set()], []
    for _, rank, found in events:
        files[rank] = set(found)
        common.append(files[0] & files[1])
    begun = next(i for i, both in enumerate(common) if both)
    assert all(common[begun:])


def test_a_bad_snapshot_of_one_rank_is_no_ones_good_one(ranks):
    a, b = ranks(checks.nan_where_nobody_looks)
    assert len(rollbacks(a)) == 1 and rollbacks(a) == rollbacks(b)
    assert a["finite"] and b["finite"]
    assert a == b


def test_no_rank_tries_what_another_cannot(ranks):
    a, b = ranks(checks.no_memory_for_a_trial)
    assert "probe" not in [reason for _, _, reason, _ in a["seen"]]
    assert a["counters"]["skipped"] == 12
    assert a == b


def test_a_copy_that_one_rank_cannot_make_is_dropped_by_all(ranks):
    a, b = ranks(checks.no_memory_once)
    assert len(rollbacks(a)) == 1 and a["finite"]
    assert a == b


def test_without_a_first_state_no_rank_rolls_back(ranks):
    a, b = ranks(checks.no_memory_at_first)
    assert a["diverged"][0] == b["diverged"][0] == FAULT + 19


def test_all_ranks_name_one_cause(ranks):
    a, b = ranks(checks.no_memory_at_first)
    assert a["diverged"][1] == b["diverged"][1] == "corrupted weights"


@pytest.mark.parametrize("check", [checks.scarce_at_first, checks.scarce_later])
def test_scarce_memory_of_one_rank_counts_for_all(ranks, check):
    a, b = ranks(check)
    if "diverged" in a:  # without a single good state
        a, b = a["diverged"][0], b["diverged"][0]
    assert a == b


def test_weights_may_be_bad_from_the_start(ranks):
    a, b = ranks(checks.nan_at_the_start)
    assert a["diverged"][0] == b["diverged"][0] == 19


def test_ranks_that_hear_of_it_at_different_times(ranks):
    a, b = ranks(checks.late_words)
    if a is None:
        pytest.skip("interpreted kernels only, and Triton")
    assert a["weights"] == b["weights"]
    assert a["counters"]["observed"] >= 14
