"""RCA and its callback, told the training loss beside that of validation."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_optim.callback import ResonantCallback
from resilient_optim.rca import RCA
from resilient_optim.rca_reading import BY_HEART, patience_at, share_of_best


def stop_step(train, **given):
    """At which of the values of a constant curve RCA says stop first."""
    monitor = RCA(**given)
    for step in range(1, 80):
        if monitor.update(1.0, train=train).recommendation == "stop":
            return step
    return None


@pytest.mark.parametrize(
    ("train", "waits"),
    [(None, 12), (0.0, 11), (0.2499, 11), (BY_HEART, 24), (1.5, 24), (math.nan, 12), (-0.1, 12)],
)
def test_how_long_rca_waits_goes_by_the_training_loss(train, waits):
    # By heart it would be 6, but nothing is stopped before 12 values.
    assert stop_step(train) == 1 + waits
    assert stop_step(train, patience=0) == 12


def test_the_share_is_of_the_best_value_so_far():
    monitor = RCA()
    assert monitor.update(2.0, train=1.0).train_share == 0.5
    assert monitor.update(4.0, train=torch.tensor(0.5)).train_share == 0.25
    assert monitor.update(1.0, train=0.5).train_share == 0.5
    assert monitor.update(1.0).train_share is None
    for train, best in ((0.5, -1.0), (0.5, 0.0), (0.5, math.inf), (-0.1, 1.0), (math.nan, 1.0)):
        assert share_of_best(train, best) is None
    assert patience_at(7, None) == 7 and patience_at(7, 0.1) == 3.5 and patience_at(7, 0.3) == 14


def test_the_share_is_of_each_value_also_where_the_reading_is_not_formed_anew():
    monitor = RCA()
    monitor.update(1.0, train=0.1)
    assert monitor.update(math.nan, train=0.2).train_share == 0.2
    assert monitor.update(math.nan).train_share is None
    shares = [monitor.update(1.0, train=step / 5000).train_share for step in range(5000)]
    assert shares == [step / 5000 for step in range(5000)]


def test_after_a_shift_the_share_is_of_the_best_since():
    monitor = RCA()
    for _ in range(30):
        monitor.update(1.0, train=0.5)
    assert monitor.update(10.0, train=0.5, shifted=True).train_share == 0.05
    assert monitor.reading.recommendation == "wait"


@pytest.mark.parametrize("given", [{"mode": "max"}, {"preset": "paper"}])
def test_a_training_loss_is_compared_with_a_loss_only(given):
    monitor = RCA(**given)
    (named,) = given.items()
    message = f"train must be left out with {named[0]} '{named[1]}', got 0.5"
    with pytest.raises(ValueError, match=message):
        monitor.update(1.0, train=0.5)
    with pytest.raises(TypeError, match="train must be a float or .*got 'low'"):
        RCA().update(1.0, train="low")
    assert monitor.reading is None and monitor.state_dict()["recent"] == []


@given(
    st.lists(st.tuples(st.floats(0.01, 4.0), st.floats(0.0, 4.0)), min_size=1, max_size=60),
    st.integers(-20, 20),
    st.floats(0, 1),
)
@settings(max_examples=30)
def test_scale_changes_nothing_and_a_resumed_monitor_goes_on_identically(pairs, exponent, where):
    here, there, cut = RCA(), RCA(), int(where * len(pairs))
    for index, (value, train) in enumerate(pairs):
        if index == cut:
            state, there = there.state_dict(), RCA()
            there.load_state_dict(state)
        a = here.update(value, train=train)
        b = there.update(value, train=train)
        assert a == b
    scaled = RCA()
    for value, train in pairs:
        c = scaled.update(2.0**exponent * value, train=2.0**exponent * train)
    assert (c.recommendation, c.train_share) == (a.recommendation, a.train_share)


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.1, 0.9]))
@settings(max_examples=20)
def test_a_flat_curve_is_stopped_whatever_the_training_loss(seed, train):
    monitor, values = RCA(), np.random.default_rng(seed).normal(size=256) + 20.0
    assert any(monitor.update(x, train=20 * train).recommendation == "stop" for x in values)


def test_a_state_from_before_there_was_a_share_can_be_loaded():
    monitor, copy = RCA(), RCA()
    monitor.update(1.0, train=0.5)
    state = monitor.state_dict()
    state["reading"] = state["reading"][:-1]
    copy.load_state_dict(state)
    assert copy.reading == monitor.reading._replace(train_share=None)


def test_a_resumed_callback_goes_on_identically():
    def epochs(rca, first, last):
        for epoch in range(first, last):
            rca(1.0 + epoch % 3 / 8, train_loss=0.1 + epoch % 2)
        return rca

    here = epochs(ResonantCallback(verbose=False), 0, 30)
    there = ResonantCallback(verbose=False)
    there.load_state_dict(epochs(ResonantCallback(verbose=False), 0, 11).state_dict())
    assert epochs(there, 11, 30).get_statistics() == here.get_statistics()


def test_the_callback_passes_it_on():
    actions = {}
    for train in (None, 0.1, 0.9):
        rca = ResonantCallback(verbose=False, process_group=False)
        while not rca.should_stop() and rca.seen < 80:
            rca(1.0, train_loss=train)
        actions[train] = rca.seen
        assert rca.get_statistics()["train_share"] == train
    assert actions == {None: 13, 0.1: 12, 0.9: 25}


@pytest.mark.parametrize(
    "given", [{"mode": "max"}, {"preset": "paper"}, {"metrics": {"accuracy": "max"}}]
)
def test_the_callback_wants_a_validation_loss_to_compare_with(given):
    rca = ResonantCallback(verbose=False, **given)
    values = {"metrics": {"accuracy": 0.5}} if "metrics" in given else {"val_loss": 0.5}
    with pytest.raises(ValueError, match="train_loss must be left out with.* got 0.5; "):
        rca(**values, train_loss=0.5)
    with pytest.raises(TypeError, match="train_loss must be a float or .*got 'low'"):
        ResonantCallback()(0.5, train_loss="low")
    assert rca.seen == 0


def test_of_several_metrics_the_validation_loss_is_compared():
    rca = ResonantCallback(metrics={"accuracy": "max", "val_loss": "min"}, verbose=False)
    rca(metrics={"accuracy": 0.5, "val_loss": 2.0}, train_loss=1.0)
    shares = {name: metric.rca.reading.train_share for name, metric in rca.metrics.items()}
    assert shares == {"accuracy": None, "val_loss": 0.5}


def test_what_is_told_goes_to_the_logger():
    class Logger:
        def log(self, scalars):
            self.scalars = scalars

    logger = Logger()
    ResonantCallback(verbose=False, logger=logger)(2.0, train_loss=0.5)
    assert logger.scalars["rca/train_share"] == 0.25
