"""ResonantCallback, rule by rule: RCA is replaced by one that says what the test wants."""

import math

import pytest
import torch

from resilient_optim import callback
from resilient_optim.callback import ResonantCallback
from resilient_optim.rca import UNKNOWN
from tests.helpers import Layers, bits, train


class Told:
    """An RCA that recommends what it is told; shared by all metrics unless told by mode."""

    says = {"min": "stop", "max": "stop"}

    def __init__(self, preset="default", *, mode="min", **settings):
        self.preset, self.mode, self.settings, self.reading = preset, mode, settings, None

    def update(self, value, *, train=None):
        self.reading = UNKNOWN._replace(value=value, recommendation=self.says[self.mode])
        return self.reading


@pytest.fixture
def told(monkeypatch):
    monkeypatch.setattr(callback, "RCA", Told)
    monkeypatch.setattr(Told, "says", dict(Told.says))
    return Told.says


class Run:
    """A model and an optimizer with two groups; `epoch(value)` trains a little and reports."""

    def __init__(self, rca, **given):
        torch.manual_seed(0)
        self.rca, self.given, self.steps = rca, given, 0
        self.model = Layers()
        pairs = zip(self.model.parameters(), (0.1, 0.4), strict=True)
        groups = [{"params": [p], "lr": lr} for p, lr in pairs]
        self.optimizer = torch.optim.SGD(groups, momentum=0.9)

    def epoch(self, value, **given):
        train(self.model, self.optimizer, range(self.steps, self.steps + 2))
        self.steps += 2
        self.trained = bits(self.model)
        named = {"metrics": value} if isinstance(value, dict) else {"val_loss": value}
        self.rca(model=self.model, optimizer=self.optimizer, **named, **self.given, **given)
        return self.rca.action

    @property
    def lrs(self):
        return [group["lr"] for group in self.optimizer.param_groups]


def quiet(**given):
    return ResonantCallback(**{"verbose": False, "ema_alpha": 1.0} | given)


def test_lr_is_cut_first_then_the_run_stops(told):
    run = Run(quiet())
    actions = [run.epoch(1.0) for _ in range(10)]
    assert actions == ["continue"] + ["wait", "wait", "reduce_lr"] * 2 + ["wait", "wait", "stop"]
    assert run.lrs == [0.025, 0.1]
    assert run.rca.get_statistics()["lr_reductions"] == 2
    assert run.rca.should_stop()


@pytest.mark.parametrize("directory", [None, "best"])
def test_each_cut_returns_to_the_best_weights_and_optimizer_state(told, directory, tmp_path):
    run = Run(quiet(checkpoint_dir=directory and tmp_path / directory))
    run.epoch(1.0)
    run.epoch(0.5)
    best = run.trained
    state = bits(run.optimizer.state_dict()["state"])
    assert [run.epoch(0.6) for _ in range(3)] == ["wait", "wait", "reduce_lr"]
    assert bits(run.model) == best != run.trained
    assert bits(run.optimizer.state_dict()["state"]) == state
    assert run.lrs == [0.05, 0.2]


def test_best_epoch_of_the_cut_itself_is_kept(told):
    """The raw value is the best when the smoothed one has not improved for long enough."""
    run = Run(quiet(min_delta=0.2))
    for value in (1.0, 0.99, 0.98, 0.97):
        run.epoch(value)
    assert run.rca.action == "reduce_lr"
    assert run.rca.get_statistics()["best_epoch"] == 4
    assert bits(run.model) == run.trained


@pytest.mark.parametrize("says", ["wait", "continue"])
def test_nothing_is_done_while_rca_is_against_it(told, says):
    told["min"] = says
    run = Run(quiet())
    assert {run.epoch(1.0) for _ in range(30)} <= {"continue", "wait"}
    assert not run.rca.should_stop()


def test_improvement_is_relative_smoothed_and_adds_up(told):
    run = Run(quiet(min_delta=0.01))
    values = [1.0, 0.996, 0.992, 0.988, 0.984, 0.980, 0.976]
    assert [run.epoch(v) for v in values] == ["continue", "wait", "wait"] * 2 + ["continue"]
    smooth = Run(quiet(min_delta=0.01, ema_alpha=0.3))
    smooth.epoch(1.0)
    assert smooth.epoch(0.97) == "wait"  # smoothed: 0.991
    assert smooth.epoch(0.97) == "continue"
    assert smooth.rca.get_statistics()["smoothed"] == pytest.approx(0.9847)


def test_cooldown_and_warmup(told):
    run = Run(quiet(warmup=2, cooldown=2, patience_steps=1, max_lr_reductions=1))
    actions = [run.epoch(1.0) for _ in range(8)]
    assert actions == ["wait", "wait", "continue", "reduce_lr", "wait", "wait", "stop", "stop"]
    assert "warm-up" not in run.rca.reason


def test_best_of_the_warmup_is_kept(told):
    run = Run(quiet(warmup=2))
    run.epoch(0.1)
    best = run.trained
    run.epoch(0.2)
    run.rca.finalize()
    assert bits(run.model) == best


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_non_finite_is_never_an_improvement(told, bad, mode):
    run = Run(quiet(mode=mode))
    assert run.epoch(bad) == "wait"
    assert run.rca.get_statistics()["best_epoch"] == 0
    assert run.epoch(1.0) == "continue"
    best = run.trained
    told["min"] = told["max"] = "continue"  # RCA's old opinion is not asked of a broken run
    assert [run.epoch(bad) for _ in range(3)] == ["wait", "wait", "reduce_lr"]
    assert bits(run.model) == best
    assert run.rca.get_statistics()["best_loss"] == 1.0
    assert "not finite" in run.rca.reason


def test_a_run_that_is_never_finite_stops(told):
    run = Run(quiet())
    assert [run.epoch(math.nan) for _ in range(9)][-1] == "stop"
    run.rca.finalize()  # nothing to restore


def test_higher_is_better(told):
    run = Run(quiet(mode="max"))
    assert [run.epoch(v) for v in (0.5, 0.6, 0.7, 0.1)] == ["continue"] * 3 + ["wait"]
    assert run.rca.get_statistics()["best_loss"] == 0.7


@pytest.mark.parametrize("value", [torch.tensor(0.5), torch.tensor([0.5]), 0.5])
def test_val_loss_may_be_a_tensor(told, value):
    run = Run(quiet())
    run.epoch(value)
    assert run.rca.get_statistics()["best_loss"] == 0.5


def test_several_metrics_improve_together_or_alone_and_stop_only_together(told):
    metrics = {"val_loss": "min", "accuracy": "max"}
    run = Run(quiet(metrics=metrics, max_lr_reductions=0))
    for k in range(6):  # the loss is flat, accuracy improves
        assert run.epoch({"val_loss": 1.0, "accuracy": 0.1 * k + 0.1}) == "continue"
    told["max"] = "continue"
    flat = {"val_loss": 1.0, "accuracy": 0.6}
    assert {run.epoch(flat) for _ in range(6)} == {"wait"}
    told["max"] = "reduce_lr"
    assert run.epoch(flat) == "stop"
    assert run.rca.get_statistics()["best_epoch"] == 1  # of the first metric


def test_best_epoch_is_that_of_the_first_metric(told):
    run = Run(quiet(metrics={"accuracy": "max", "val_loss": "min"}))
    for accuracy, loss in ((0.5, 1.0), (0.7, 1.1), (0.6, 0.2)):
        run.epoch({"accuracy": accuracy, "val_loss": loss})
    assert run.rca.get_statistics()["best_epoch"] == 2


class Signal:
    stop = False

    def should_stop(self):
        return self.stop


def test_signals_have_to_agree(told):
    signal = Signal()
    run = Run(quiet(signals=[signal], max_lr_reductions=0))
    assert {run.epoch(1.0) for _ in range(8)} == {"continue", "wait"}
    signal.stop = True
    assert run.epoch(1.0) == "stop"


def test_cuts_end_at_min_lr(told):
    run = Run(quiet(patience_steps=1, max_lr_reductions=9, min_lr=0.1))
    assert [run.epoch(1.0) for _ in range(4)] == ["continue", "reduce_lr", "reduce_lr", "stop"]
    assert run.lrs == [0.1, 0.1]


def test_without_an_optimizer_it_only_stops(told):
    rca = quiet()
    model = Layers()
    for _ in range(4):
        rca(val_loss=1.0, model=model)
    assert rca.should_stop() and rca.get_statistics()["lr_reductions"] == 0
    bare = quiet()
    for value in (1.0, 0.8, 0.8, 0.79, 0.79):
        bare(val_loss=value)
    assert bare.get_statistics()["best_loss"] == 0.79
    assert bare.get_statistics()["current_epoch"] == 5
    bare.finalize()


def test_stop_restores_the_best_and_calls_after_it_leave_the_model_alone(told):
    run = Run(quiet(max_lr_reductions=0, patience_steps=1))
    run.epoch(1.0)
    best = run.trained
    assert run.epoch(1.1) == "stop"
    assert bits(run.model) == best
    assert run.epoch(1.2) == "stop"
    assert bits(run.model) == run.trained != best
    run.rca.finalize()
    assert bits(run.model) == best


def test_a_run_that_ends_in_the_epoch_after_a_cut_is_restored_too(told):
    run = Run(quiet(patience_steps=1))
    with pytest.raises(ValueError), run.rca:
        run.epoch(1.0)
        best = run.trained
        assert run.epoch(1.0) == "reduce_lr"
        train(run.model, run.optimizer, range(50, 52))
        raise ValueError
    assert bits(run.model) == best


def test_finalize_twice_is_finalize_once(told):
    run = Run(quiet())
    run.epoch(1.0)
    run.epoch(2.0)
    run.rca.finalize()
    train(run.model, run.optimizer, range(50, 52))
    after = bits(run.model)
    run.rca.finalize()
    assert bits(run.model) == after


@pytest.mark.parametrize("directory", [None, "best"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, None])
def test_with_restores_the_best_however_it_ends(told, directory, error, tmp_path):
    with ResonantCallback(directory and tmp_path, verbose=False) as rca:
        pass  # an empty run is no problem
    run = Run(quiet(checkpoint_dir=directory and tmp_path))
    try:
        with run.rca:
            run.epoch(1.0)
            best = run.trained
            run.epoch(2.0)
            if error:
                raise error("in the middle of an epoch")
    except (ValueError, KeyboardInterrupt) as caught:
        assert type(caught) is error
    assert bits(run.model) == best
    assert rca.get_statistics()["best_epoch"] == 0


def test_the_error_of_the_run_is_not_replaced_by_that_of_restoring(told, caplog):
    run = Run(quiet())
    with pytest.raises(ZeroDivisionError), run.rca:
        run.epoch(1.0)
        run.model.extra = torch.nn.Linear(1, 1)
        raise ZeroDivisionError
    assert "could not be restored" in caplog.text
    with pytest.raises(RuntimeError, match="Missing key"), run.rca:
        pass


def test_failed_write_keeps_the_old_best(told, tmp_path, monkeypatch):
    run = Run(quiet(checkpoint_dir=tmp_path))
    run.epoch(1.0)
    best = run.trained

    def full(*args):
        raise OSError("full")

    with pytest.raises(OSError, match="full"), run.rca:
        with monkeypatch.context() as patch:
            patch.setattr("os.replace", full)
            run.epoch(0.5)
    assert bits(run.model) == best
    assert run.rca.get_statistics()["best_loss"] == 1.0


def test_constructor_touches_no_disk(tmp_path):
    ResonantCallback(tmp_path / "new")
    assert not list(tmp_path.iterdir())
