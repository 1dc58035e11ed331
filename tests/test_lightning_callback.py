"""Lightning: the callback resumes, logs, and stops on RCA's word."""

import importlib
import logging
import sys

import pytest

from resilient_optim import ARS
from tests.helpers import bits

pytest.importorskip("lightning")

import lightning.pytorch as pl  # noqa: E402

from resilient_optim.integrations import lightning as integration  # noqa: E402
from resilient_optim.integrations.lightning import ResilientCallback  # noqa: E402
from tests.lightning_run import BATCHES, Manual, Regression, Validated, adamw, calm, fit, flat, seen  # noqa: E402

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:GPU available but not used"),
]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_run_is_the_run_that_was_not_interrupted(tmp_path, accumulate):
    def start_up(parameters):
        return ARS(adamw(parameters))

    def run(**options):
        model, callback = Regression(start_up), ResilientCallback("ars/loss", min_values=99)
        options["accumulate_grad_batches"] = accumulate
        running, optimizer = fit(tmp_path, model, callback, **options)
        return running, model, optimizer, callback

    _, model, optimizer, callback = run(max_epochs=4)
    half, *_ = run(max_epochs=2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    _, resumed, other, second = run(max_epochs=4, ckpt_path=tmp_path / "half.ckpt")
    assert len(resumed.losses) == 2 * BATCHES
    assert bits(resumed) == bits(model)
    assert bits(other.state_dict()) == bits(optimizer.state_dict())  # with ARS's memory
    assert other.counters == optimizer.counters
    assert bits(second.state_dict()) == bits(callback.state_dict())
    assert optimizer.counters["damped"] > 0


class Record(pl.loggers.logger.DummyLogger):
    """A logger that keeps everything."""

    def __init__(self):
        super().__init__()
        self.rows = {}

    def log_metrics(self, metrics, step=None):
        self.rows.setdefault(step, {}).update(metrics)


def test_metrics_reach_the_logger_when_lightning_logs(tmp_path):
    logger, model = Record(), Regression(calm)
    fit(tmp_path, model, ResilientCallback(), logger=logger, log_every_n_steps=2, max_epochs=1)
    assert list(logger.rows) == [1, 3, 5]
    assert [row["ars/loss"] for row in logger.rows.values()] == model.losses[1::2]
    assert logger.rows[5]["ars/observed"] == 6.0


def test_two_optimizers_are_logged_apart(tmp_path):
    logger, model = Record(), Manual(lambda p: calm(p))
    model.configure_optimizers = lambda: [
        calm(model.net[0].parameters()),
        flat(model.net[2:].parameters()),
    ]
    fit(tmp_path, model, ResilientCallback(), logger=logger, log_every_n_steps=2, max_epochs=1)
    assert list(logger.rows) == [1, 3, 5]
    assert logger.rows[5]["ars/0/loss"] == model.losses[10]
    assert logger.rows[5]["ars/1/loss"] == model.losses[11]


def test_stops_within_an_epoch_on_the_training_loss(tmp_path):
    callback = ResilientCallback("ars/loss", min_values=12)
    running, _ = fit(tmp_path, Regression(flat), callback, batches=300)
    assert 10 < running.global_step < 300 and running.global_step % 10 == 0
    callback = ResilientCallback("ars/loss", min_values=12)
    running, _ = fit(tmp_path, Regression(flat), callback, batches=150, min_epochs=1)
    assert running.global_step == 150
    # Without validation 12 values are too few, unless one says so.
    callback = ResilientCallback("ars/loss")
    running, _ = fit(tmp_path, Regression(flat), callback, batches=150, max_epochs=1)
    assert running.global_step == 150 and callback.rca.config.min_values == 500


def test_stops_on_a_metric_after_validation(tmp_path):
    falling, level = Validated(calm, 0.8), Validated(adamw, 1.0)
    callback = ResilientCallback("val_loss")
    options = {"validate": True, "max_epochs": 30, "batches": 1}
    running, _ = fit(tmp_path, falling, callback, num_sanity_val_steps=1, **options)
    assert running.current_epoch == 30 and callback.rca.reading.step == 30
    # RCA is of use without ARS.
    callback = ResilientCallback("val_loss", min_values=20)
    running, _ = fit(tmp_path, level, callback, **options)
    assert 20 <= running.current_epoch < 30


def test_rca_is_told_the_training_loss_of_the_epoch_before(tmp_path, caplog):
    class Logging(Validated):
        def training_step(self, batch, batch_idx):
            self.log("train_loss", 0.1 * (1.0 + self.current_epoch), on_step=False, on_epoch=True)
            return super().training_step(batch, batch_idx)

    options = {"validate": True, "max_epochs": 3, "batches": 2}
    callback = ResilientCallback("val_loss", train_on="train_loss")
    fit(tmp_path, Logging(calm, 1.0), callback, **options)
    assert callback.rca.reading.train_share == pytest.approx(0.2)
    resumed = ResilientCallback("val_loss", train_on="train_loss")
    resumed.load_state_dict(callback.state_dict())
    assert resumed.state_dict() == callback.state_dict()
    assert resumed.state_dict()["train"] == pytest.approx(0.2)
    assert "train_on" not in caplog.text
    with caplog.at_level(logging.WARNING, "resilient_optim"):
        callback = ResilientCallback("val_loss", train_on="loss")
        fit(tmp_path, Logging(calm, 1.0), callback, **options)
    assert callback.rca.reading.train_share is None
    assert "train_on must be a logged metric, got 'loss' where there are" in caplog.text


def test_module_is_left_as_it_was(tmp_path):
    class Broken(Regression):
        def on_train_batch_end(self, *args):
            raise RuntimeError("no more")

    for kind in (Regression, Broken):
        model = kind(calm)
        try:
            # Of two callbacks one shows the loss, and the mean is not taken twice.
            callbacks = ResilientCallback(), ResilientCallback("ars/loss")
            _, optimizer = fit(tmp_path, model, *callbacks, accumulate_grad_batches=2)
            assert seen(optimizer)[0] == pytest.approx(sum(model.losses[:2]) / 2, rel=1e-6)
        except RuntimeError:
            assert kind is Broken
        assert "optimizer_step" not in vars(model)


def test_what_is_refused(tmp_path):
    with pytest.raises(TypeError, match="stop_on must be a metric's name or None, got 3"):
        ResilientCallback(3)
    with pytest.raises(TypeError, match="nonsense must be a setting"):
        ResilientCallback(nonsense=1)
    with pytest.raises(ValueError, match="mode must be one of"):
        ResilientCallback(mode="up")
    with pytest.raises(TypeError, match=r"must return an ARS, got \['AdamW'\]"):
        fit(tmp_path, Regression(adamw), ResilientCallback())
    with pytest.raises(ValueError, match="stop_on must be a logged metric, got 'loss'"):
        fit(tmp_path, Validated(calm, 1.0), ResilientCallback("loss"), validate=True)


def test_missing_framework_is_named(monkeypatch):
    monkeypatch.delitem(sys.modules, integration.__name__)
    monkeypatch.setitem(sys.modules, "lightning.pytorch", None)
    with pytest.raises(ImportError, match=r"pip install \"resilient-optim\[lightning\]\""):
        importlib.import_module(integration.__name__)
