"""What RCA and ResonantCallback refuse, and say: the mistakes of users of other stoppers."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.optim.lr_scheduler import ExponentialLR

from resilient_optim import ARS
from resilient_optim.callback import ResonantCallback
from resilient_optim.callback_settings import OF_RCA
from resilient_optim.layer_variation import LayerVariationStopper
from resilient_optim.rca import RCA, RCAConfig
from tests.helpers import bits
from tests.test_callback import Run, quiet

# -- construction ---------------------------------------------------------------------------


@pytest.mark.parametrize("preset", ["default", "paper"])
@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("patience", "patience_steps is the number of epochs without improvement"),
        ("min_values", "warmup is .*patience_steps that of epochs without improvement"),
        ("factor", "lr_reduction_factor"),
        ("threshold", "min_delta"),
        ("monitor", "metrics={'accuracy': 'max'}"),
        ("restore_best_weights", "restored in any case"),
    ],
)
def test_names_of_other_stoppers_are_refused_and_ours_named(name, remedy, preset):
    with pytest.raises(TypeError, match=f"^{name} must not be given .*{name}=50; .*{remedy}"):
        ResonantCallback(preset=preset, **{name: 50})


def test_an_unknown_setting_is_told_all_that_can_be_set():
    with pytest.raises(TypeError, match="min_detla must be") as caught:
        ResonantCallback(min_detla=0.1)
    own, of_rca = str(caught.value).split("; it has ")[1].split(", and of RCA ")
    assert {"min_delta", "checkpoint_dir", "metrics", "signals"} < set(own.split(", "))
    assert tuple(of_rca.split(", ")) == OF_RCA


def test_every_setting_that_is_passed_on_reaches_rca_and_none_counts_epochs():
    """A setting of RCA that delays only its "stop" would not delay the callback's."""
    rest = {field.name for field in dataclasses.fields(RCAConfig)} - set(OF_RCA)
    assert rest == {"patience", "min_values"}
    given = dict(window=32, horizon=7, min_gain=0.1, min_gain_noise=0.2, significance=0.01)
    assert given.keys() == set(OF_RCA)
    made = ResonantCallback(**given).metrics["val_loss"].rca.config
    assert made == RCAConfig(**given)


@pytest.mark.parametrize("word", ["val_loss", "min", "max"])
def test_what_comes_first_in_other_stoppers_is_no_folder(word):
    with pytest.raises(ValueError, match=f"checkpoint_dir must be a folder, got '{word}'"):
        ResonantCallback(word)
    with pytest.raises(ValueError, match="checkpoint_dir must be a folder, got 'accuracy'"):
        ResonantCallback("accuracy", metrics={"accuracy": "max"})
    ResonantCallback(f"./{word}")


def test_a_checkpoint_dir_that_is_no_path_is_named():
    with pytest.raises(TypeError, match="checkpoint_dir must be a folder or None, got int; .*pati"):
        ResonantCallback(10)
    with pytest.raises(TypeError, match="checkpoint_dir must be a folder or None, got Linear"):
        ResonantCallback(torch.nn.Linear(1, 1))


def test_metrics_and_mode_at_construction():
    for metrics in ("accuracy", ["accuracy"]):
        with pytest.raises(TypeError, match="metrics must be a dict of modes by name, got"):
            ResonantCallback(metrics=metrics)
    with pytest.raises(ValueError, match="mode must be left out beside metrics, got 'max'"):
        ResonantCallback(metrics={"accuracy": "min"}, mode="max")


def test_the_published_rules_refuse_what_should_rise():
    """They see no improvement in a negative value: an accuracy that rises would end the run."""
    for given in ({"mode": "max"}, {"metrics": {"accuracy": "max"}}):
        with pytest.raises(ValueError, match="preset='paper' must have mode 'min', got"):
            ResonantCallback(preset="paper", **given)


def test_signals_are_a_sequence_of_what_can_be_asked():
    stopper = LayerVariationStopper(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="signals must be a sequence, got LayerVariationStopper"):
        ResonantCallback(signals=stopper)
    with pytest.raises(TypeError, match="signals must all have should_stop"):
        ResonantCallback(signals=[SimpleNamespace(should_stop=False)])  # as a Trainer's
    ResonantCallback(signals=(stopper,))


# -- a call ---------------------------------------------------------------------------------


class Stateful:
    """A model that is no Module."""

    def __init__(self):
        self.state = {"w": 1}

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = dict(state)


class Wrapped(Stateful):
    """An optimizer that is no Optimizer, as those of frameworks."""

    def __init__(self, optimizer):
        super().__init__()
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups


def parts():
    model = torch.nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def refusals():
    model, sgd = parts()
    schedule = ExponentialLR(sgd, 0.9)
    swapped = "model and optimizer must not be swapped, got model=SGD and optimizer=Linear"
    return {
        "swapped": ((sgd, model), swapped),
        "no model": ((sgd,), "model must be a model, got the optimizer SGD; .*optimizer="),
        "twice": ((sgd, sgd), "model must be a model, got the optimizer SGD"),
        "number": ((5,), r"model must have state_dict\(\) and load_state_dict\(\), got int"),
        "weights": ((model.state_dict(),), "model must have .*got OrderedDict; pass the torch.nn"),
        "class": ((torch.nn.Linear,), "model must have .*got the class Linear"),
        "optimizer": ((None, 5), "optimizer must have param_groups.*got int; pass .*ARS"),
        "model twice": ((model, model), "optimizer must have param_groups.*got Linear"),
        "optimizer class": ((None, torch.optim.SGD), "optimizer must have .*got the class SGD"),
        "stateless": (
            (model, SimpleNamespace(param_groups=[])), "optimizer must have .*got SimpleNamespace",
        ),
        "scheduler": ((model, sgd, 3), "scheduler must be an lr scheduler, got int"),
        "scheduler swapped": ((model, sgd, sgd), "scheduler must be an lr scheduler, got SGD"),
        "scheduler alone": (
            (model, None, schedule), "optimizer must be given with a scheduler, got None and Expo",
        ),
    }  # fmt: skip


@pytest.mark.parametrize("case", refusals())
def test_what_is_no_model_optimizer_or_scheduler_is_refused_before_anything_changes(case):
    given, message = refusals()[case]
    model, optimizer, scheduler = (*given, None, None)[:3]
    rca = quiet()
    before = bits(rca.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        rca(1.0, model, optimizer, scheduler=scheduler)
    assert bits(rca.state_dict()) == before
    if scheduler is None:
        with pytest.raises(TypeError, match=message):
            rca.finalize(model, optimizer)


def test_what_behaves_like_a_model_or_an_optimizer_is_one():
    model, sgd = parts()
    rca = quiet()
    for given in ((model, ARS(sgd)), (model, Wrapped(sgd)), (Stateful(), sgd), (model, None)):
        rca(1.0, *given)
    rca(1.0, None, SimpleNamespace(param_groups=sgd.param_groups))  # its lr can be cut
    odd = torch.nn.Linear(2, 1)
    odd.param_groups = lambda: []
    rca(0.5, odd, sgd)
    assert rca.get_statistics()["best_epoch"] == 6


def test_values_are_given_once_and_by_name():
    rca = quiet()
    with pytest.raises(ValueError, match="val_loss must be given at every call, got None"):
        rca(val_loss=None)
    with pytest.raises(ValueError, match="val_loss must be given once, got 1.0 and, in m.* 2.0"):
        rca(1.0, metrics={"val_loss": 2.0})
    with pytest.raises(TypeError, match="metrics must be a dict of values by name, got 0.5"):
        rca(metrics=0.5)
    other = quiet(metrics={"accuracy": "max"})
    with pytest.raises(ValueError, match=r"metrics must be \['accuracy'\], got \[\]; pass the val"):
        other()
    with pytest.raises(TypeError, match="accuracy must be a float or .*got None"):
        other(metrics={"accuracy": None})
    assert rca.seen == other.seen == 0


def test_a_best_state_that_cannot_be_restored_is_said(caplog):
    run = Run(quiet())
    run.epoch(1.0)
    best = run.trained
    run.epoch(2.0)
    resumed = quiet()
    resumed.load_state_dict(run.rca.state_dict())
    resumed.finalize()
    assert "the best state is not restored; pass the model to finalize" in caplog.text
    caplog.clear()
    with resumed:
        resumed.finalize(run.model, run.optimizer)
    assert bits(run.model) == best
    assert not caplog.records


# -- Lightning ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")  # of the framework, when it is loaded
@pytest.mark.parametrize("given", [{"patience": 5}, {"mode": "max"}])
def test_settings_of_a_stop_need_something_to_stop_on(given):
    pytest.importorskip("lightning")
    from resilient_optim.integrations.lightning import ResilientCallback

    with pytest.raises(ValueError, match="stop_on must be given with settings of RCA, got None"):
        ResilientCallback(**given)
    ResilientCallback("val_loss", **given)


# -- RCA ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "got"),
    [("x", "'x'"), ("0.5", "'0.5'"), (None, "None"), (True, "True"), ([1.0], r"\[1.0\]"),
     (torch.ones(2), r"a torch.float32 tensor of shape \(2,\)"), (1j, "1j"),
     (torch.ones((), dtype=torch.complex64), "a torch.complex64 tensor of .*")],
)  # fmt: skip
@pytest.mark.parametrize("preset", ["default", "paper"])
def test_rca_takes_numbers_and_says_so(value, got, preset):
    rca = RCA(preset)
    before = rca.state_dict()
    with pytest.raises(TypeError, match=f"^value must be a float or .*, got {got}; give one num"):
        rca.update(value)
    assert rca.state_dict() == before


@pytest.mark.parametrize(
    "value",
    [1, np.float32(1.0), np.int64(1), torch.ones(1, 1), torch.ones((), requires_grad=True)],
)
def test_rca_takes_every_kind_of_number(value):
    assert RCA().update(value).value == 1.0
    assert math.isnan(RCA().update(torch.tensor(math.nan)).value)


def test_a_window_is_one_run():
    with pytest.raises(ValueError, match=r"values must be of shape \(n,\), got \(2, 20\)"):
        RCA().read(np.ones((2, 20)))


def test_a_horizon_in_values_may_be_of_numpy():
    curve = np.exp(-np.arange(40) / 20)
    plain, other = (RCA(horizon=kind(5)).read(curve) for kind in (int, np.int64))
    assert plain == other
    assert plain.gain < RCA(horizon=5.0).read(curve).gain  # a share of the values seen
