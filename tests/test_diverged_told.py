"""What is said of a rollback and of the end of a run is true; log and report keep it."""

import math
import re

import torch

from resilient_optim import Snapshots, TrainingDiverged, report
from resilient_optim.events import read_events
from tests.breaker_runs import Run

EVERY_8 = Snapshots(every=8)


def not_a_number(step, y):
    return y * math.nan


def trained(steps=100, **settings):
    run = Run(**settings)
    run.train(steps)
    return run


def test_what_was_tried_is_what_the_counters_say_and_each_step_is_told_once():
    """Ten skips, a trial of the good state on three batches, skips to the twentieth in a row."""
    run = trained(snapshot=EVERY_8)
    error = run.train_until_diverged(40, not_a_number)
    assert "Seen: 20 steps in a row were left out, this one included" in str(error)
    assert "Tried: 16 times skipped, 3 times shown a batch to a good state." in str(error)
    assert run.optimizer.counters["skipped"] == 19
    both = trained(snapshot=EVERY_8)  # the trouble passes during the trial, and comes back
    error = both.train_until_diverged(40, lambda s, y: y if 110 <= s < 116 else y * math.nan)
    assert "Tried: 13 times skipped, 3 times shown a batch to a good state, 3 times" in str(error)
    assert "3 times shown a batch to the present state once more. Likely" in str(error)
    assert both.optimizer.counters["skipped"] == 19
    bare = trained(snapshot=False)
    assert "Tried: 19 times skipped. Likely" in str(bare.train_until_diverged(40, not_a_number))
    assert bare.optimizer.counters["skipped"] == 19


def weights_are(error):
    return re.search(r"\. (The weights are .*?\.) Latest", str(error))[1]


def test_it_says_what_the_weights_are_and_why_no_earlier_state_was_put_back():
    run = trained(snapshot=False)
    run.weight[0, 0] = math.nan
    error = run.train_until_diverged(40)
    none = "no earlier state was put back, as there is no snapshot."
    assert weights_are(error) == f"The weights are not finite; {none}"
    assert error.rolled_back_to is None and not torch.isfinite(run.weight).all()
    error = trained(snapshot=False).train_until_diverged(40, not_a_number)
    assert weights_are(error) == f"The weights are finite; {none}"
    error = trained(snapshot=EVERY_8).train_until_diverged(40, not_a_number)
    assert weights_are(error) == "The weights are finite; no earlier state was put back."


def test_too_little_memory_for_snapshots_is_told_as_none(monkeypatch):
    monkeypatch.setattr("resilient_optim.snapshot_ring.free_memory", lambda: 0.0)
    run = trained(snapshot="auto")
    run.weight[0, 0] = math.nan
    error = run.train_until_diverged(40)
    assert weights_are(error).endswith("put back, as there is no snapshot.")


def test_a_run_that_goes_on_after_its_end_keeps_its_diagnosis(tmp_path, caplog):
    run = trained(event_log=tmp_path / "log")
    errors = []
    for _ in range(80):
        try:
            run.train(1, not_a_number)
        except TrainingDiverged as error:
            errors.append(error)
    run.train(30)
    assert {error.step for error in errors} == {119} and len(errors) == 61
    assert all("Tried: 16 times skipped, 3 times" in str(error) for error in errors)
    told = [r for r in caplog.records if r.levelname == "ERROR"]
    assert [r.getMessage() for r in told] == ["ARS gives up at step 119: bad data"]
    events = read_events(tmp_path / "log")
    assert [event["step"] for event in events] == list(range(149))
    (given_up,) = [event for event in events if "diagnosis" in event]
    assert given_up["step"] == 119 and given_up["diagnosis"] == str(errors[0])
    assert given_up["cause"] == "bad data" and given_up["action"] == "skip"
    report.html(tmp_path / "log", tmp_path / "run.html")
    assert "<h2>Diagnosis</h2>" in (tmp_path / "run.html").read_text()


def test_only_corrupted_weights_call_for_whoever_changes_them_on_purpose(caplog):
    spiral, corrupted = Run("sgd", snapshot=EVERY_8), Run("sgd", snapshot=EVERY_8)
    spiral.train(120)
    while not spiral.rollbacks() and spiral.now < 270:
        spiral.set_lr(1.1 * spiral.base.param_groups[0]["lr"])
        spiral.train(1)
    corrupted.train(120)
    corrupted.weight.fill_(math.nan)
    corrupted.train(1)
    first, second = [r.getMessage() for r in caplog.records if "rolled back" in r.getMessage()]
    assert "learning rate (loss" in first and first.endswith("approaches the learning rate slowly.")
    assert "corrupted weights (loss" in second and second.endswith("by accept_weights().")
