"""What ResonantCallback says and is told: loggers, schedules and their owners, bad arguments."""

import logging
import math

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, ReduceLROnPlateau

from resilient_optim.callback import ResonantCallback
from tests.helpers import bits
from tests.test_callback import Run, quiet, told  # noqa: F401 (a fixture)

pytestmark = pytest.mark.usefixtures("told")


class Writer:
    def __init__(self):
        self.seen = []

    def add_scalar(self, tag, value, step):
        self.seen.append((tag, value, step))


class Wandb:
    def __init__(self):
        self.seen = []

    def log(self, values):
        self.seen.append(values)


def test_loggers():
    for logger in (Writer(), Wandb()):
        Run(quiet(logger=logger)).epoch(0.5, epoch=7)
        if isinstance(logger, Writer):
            assert ("rca/val_loss", 0.5, 7) in logger.seen
            found = {tag: value for tag, value, _ in logger.seen}
        else:
            (found,) = logger.seen
        assert found["rca/best_loss"] == 0.5 and found["rca/current_epoch"] == 7
        assert all(type(x) is float and math.isfinite(x) for x in found.values())


def test_one_line_an_epoch_and_nothing_printed(caplog, capsys):
    with caplog.at_level(logging.INFO):
        Run(quiet(verbose=True)).epoch(0.5)
        (record,) = caplog.records
        assert "epoch 1: val_loss 0.5" in record.message and "continue (improved)" in record.message
        Run(quiet()).epoch(0.5)
    assert len(caplog.records) == 1
    assert capsys.readouterr() == ("", "")


def test_schedule_goes_on_at_a_smaller_scale_and_its_owner_is_named_once(caplog):
    run = Run(quiet(max_lr_reductions=1))
    scheduler = LambdaLR(run.optimizer, lambda epoch: 1.0 / (1 + epoch))
    with caplog.at_level(logging.INFO):
        for epoch in range(6):
            run.epoch(1.0, scheduler=scheduler)
            scheduler.step()
            share = 1.0 / (2 + epoch) * (0.5 if epoch >= 3 else 1.0)
            assert run.lrs == pytest.approx([0.1 * share, 0.4 * share])
    assert [r.message for r in caplog.records] == [
        "RCA: LambdaLR owns the lr; a cut rescales its base lrs, and it goes on at that scale"
    ]


def test_restoring_does_not_turn_a_schedule_back():
    run = Run(quiet(max_lr_reductions=1))
    scheduler = CosineAnnealingLR(run.optimizer, T_max=10)
    for _ in range(4):
        run.epoch(1.0, scheduler=scheduler)
        scheduler.step()
    assert run.rca.lr_reductions == 1
    whole = 0.5 * 0.1 * (1 + math.cos(math.pi * 4 / 10))
    assert run.lrs[0] == pytest.approx(0.5 * whole)


def test_reduce_lr_on_plateau_makes_the_cuts_itself(caplog):
    run = Run(quiet(max_lr_reductions=2, patience_steps=2))
    scheduler = ReduceLROnPlateau(run.optimizer, factor=0.1, patience=3)
    actions = []
    with caplog.at_level(logging.INFO):
        for _ in range(16):
            actions.append(run.epoch(1.0, scheduler=scheduler))
            if run.rca.should_stop():
                break
            scheduler.step(1.0)
    assert actions[-1] == "stop" and "reduce_lr" not in actions
    assert run.lrs == pytest.approx([0.001, 0.004])
    assert run.rca.lr_reductions == 2
    assert "ReduceLROnPlateau owns the lr" in caplog.text
    eager = Run(quiet(max_lr_reductions=0, patience_steps=2))
    scheduler = ReduceLROnPlateau(eager.optimizer, patience=30)
    assert [eager.epoch(1.0, scheduler=scheduler) for _ in range(3)][-1] == "stop"


@pytest.mark.parametrize("compiled", [False, True])
def test_wrapped_models_are_kept_and_restored(compiled):
    run = Run(quiet())
    inner = run.model
    if compiled:
        run.model = torch.compile(inner, backend="eager")
        run.model.loss = inner.loss
    run.epoch(1.0)
    best = bits(inner)
    run.epoch(2.0)
    run.rca.finalize()
    assert bits(inner) == best


BAD = {
    "patience_steps": (0, "patience_steps must be an integer of at least 1, got 0"),
    "min_delta": (-0.1, "min_delta must be"),
    "ema_alpha": (0.0, "ema_alpha must be"),
    "max_lr_reductions": (-1, "max_lr_reductions must be"),
    "lr_reduction_factor": (1.0, "lr_reduction_factor must be"),
    "min_lr": (-1.0, "min_lr must be"),
    "verbose": (1, "verbose must be True or False"),
    "cooldown": (-1, "cooldown must be"),
    "warmup": (1.5, "warmup must be"),
    "mode": ("down", "mode and metrics must name 'min' or 'max'"),
    "metrics": ({}, "mode and metrics must name"),
    "preset": ("hardest", "preset must be one of .*got 'hardest'"),
    "logger": (3, "logger must have add_scalar or log, got int"),
    "process_group": (True, "process_group must be a ProcessGroup, None or False, got True"),
    "signals": ([3], "signals must all have should_stop"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_are_named(name):
    value, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        ResonantCallback(**{name: value})


def test_bad_values_are_named_before_anything_changes():
    rca = quiet()
    with pytest.raises(TypeError, match="val_loss must be a float or .*got 'low'"):
        rca(val_loss="low")
    with pytest.raises(TypeError, match="val_loss must be .*shape .2,.*pass its mean"):
        rca(val_loss=torch.ones(2))
    with pytest.raises(ValueError, match=r"metrics must be \['val_loss'\], got \['accuracy'\]"):
        rca(metrics={"accuracy": 1.0})
    with pytest.raises(ValueError, match="val_loss must be given at every call, got None; pass"):
        rca()
    with pytest.raises(TypeError, match="epoch must be an integer, got 1.5"):
        rca(val_loss=1.0, epoch=1.5)
    with pytest.raises(TypeError, match="val_loss must be .* got True"):
        rca(val_loss=True)
    assert rca.get_statistics()["current_epoch"] == 0
