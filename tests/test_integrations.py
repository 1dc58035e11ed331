"""What the integrations have in common."""

from types import SimpleNamespace

import pytest

from resilient_optim import RCA
from resilient_optim.integrations import check_train_on


def test_a_training_loss_goes_with_a_validation_loss():
    check_train_on(None, None, RCA(mode="max"))
    check_train_on("train_loss", "val_loss", RCA())


@pytest.mark.parametrize(
    ("train_on", "stop_on", "settings", "error", "words"),
    [
        (3, "val_loss", {}, TypeError, "a metric's name or None, got 3"),
        ("train_loss", None, {}, ValueError, "go with a validation loss of another name"),
        ("train_loss", "ars/loss", {}, ValueError, "got 'train_loss' beside stop_on='ars/loss'"),
        ("val_loss", "val_loss", {}, ValueError, "got 'val_loss' beside stop_on='val_loss'"),
        ("train_loss", "val_loss", {"mode": "max"}, ValueError, "left out with mode 'max'"),
        ("train_loss", "val_loss", {"preset": "paper"}, ValueError, "and preset 'paper'"),
    ],
)
def test_one_that_rca_could_not_go_by_is_refused(train_on, stop_on, settings, error, words):
    with pytest.raises(error, match=words):
        check_train_on(train_on, stop_on, RCA(**settings))


def test_rca_is_told_the_mean_training_loss_since_the_last_evaluation():
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    from resilient_optim.integrations.transformers import ResilientTrainerCallback

    callback = ResilientTrainerCallback(train_on="loss")
    control = SimpleNamespace(should_training_stop=False)
    state = SimpleNamespace(global_step=1, log_history=[{"loss": 0.9}, {"eval_loss": 2.0}])

    def log(**logs):
        state.log_history.append(logs)
        callback.on_log(None, state, control, logs)
        return callback.rca.reading.train_share

    callback.on_train_begin(None, state, control)  # a resumed run
    assert callback.rca.reading.train_share == pytest.approx(0.45)
    log(loss=0.5)
    log(loss=float("nan"))
    log(loss=0.7)
    assert log(eval_loss=1.0) == pytest.approx(0.6)
    assert log(eval_loss=1.0) == pytest.approx(0.6)  # none since then
    log(loss=0.2)
    assert log(eval_loss=1.0) == pytest.approx(0.2)
