"""ARS's memory survives every way in which training runs are copied, saved and restored."""

import copy
import io
import logging
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)

from resilient_optim import ARS
from tests.helpers import CASES, Layers, bits, evaluate, optimizer_bits, scripted, train

OPTIONS = {
    "default": {},
    "full": {"full_state_dict": True},
    "flat": {"flatten_optimizer_state_dict": True},
}


def adamw(model, groups=1):
    params = list(model.parameters())
    chosen = [{"params": params}] if groups == 1 else [{"params": [p]} for p in params]
    return torch.optim.AdamW(chosen, lr=0.02)


def wrapped_run(batches=range(6), groups=1, **settings):
    torch.manual_seed(0)
    model = Layers()
    optimizer = ARS(adamw(model, groups), **settings)
    train(model, optimizer, batches)
    return model, optimizer


def assert_goes_on_alike(model, optimizer, other_model, other):
    """Both runs have the same future, among it a NaN, the end of the start-up and a spike."""
    for index in range(6, 100):
        decisions = []
        for m, o in ((model, optimizer), (other_model, other)):
            loss = evaluate(m, o, index).detach()
            o.step(math.nan if index == 8 else 50.0 if index == 90 else loss)
            decisions.append(repr(o.last))
        assert decisions[0] == decisions[1]
    assert bits(model) == bits(other_model)
    assert bits(optimizer.state_dict()) == bits(other.state_dict())
    assert optimizer.counters["skipped"] == 2


def through_torch_save(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
@pytest.mark.parametrize("scheduled", [False, True], ids=["plain", "scheduled"])
def test_copied_run_goes_on_alike(copied, scheduled):
    model, optimizer = wrapped_run()
    if scheduled:  # leaves a patched `step` on the instance
        torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    other_model, other = copied((model, optimizer))
    assert other.param_groups[0]["params"][0] is next(other_model.parameters())
    assert repr(other.last) == repr(optimizer.last)  # `==` fails for a copied NaN
    assert_goes_on_alike(model, optimizer, other_model, other)


def test_copy_is_independent():
    model, optimizer = wrapped_run()
    before = bits(optimizer.state_dict())
    train(*copy.deepcopy((model, optimizer)), range(3))
    assert bits(optimizer.state_dict()) == before


def test_copy_keeps_hooks_working():
    _, optimizer = copy.deepcopy(wrapped_run())
    fired = []
    optimizer.register_step_post_hook(lambda opt, args, kwargs: fired.append(0))
    optimizer.step(1.0)
    assert fired == [0]


def test_copy_keeps_a_reported_loss():
    _, optimizer = wrapped_run()
    optimizer.report(3.0)
    copied = copy.deepcopy(optimizer)
    copied.step()
    assert copied.last.loss == 3.0


@pytest.mark.parametrize("groups", [1, 2])
def test_saved_file_restores_the_run_safely(groups):
    model, optimizer = wrapped_run(groups=groups)
    saved = through_torch_save({"model": model.state_dict(), "optim": optimizer.state_dict()})
    other_model, other = wrapped_run(range(0), groups)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optim"])
    assert_goes_on_alike(model, optimizer, other_model, other)


@pytest.mark.parametrize("way", ["state dict", "deepcopy", "pickle"])
def test_restored_start_up_does_not_take_a_falling_rate_for_a_warm_up(way):
    def build():
        torch.manual_seed(0)
        model = Layers()
        optimizer = ARS(adamw(model), start_up=20)
        return model, optimizer, torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40)

    def go(model, optimizer, scheduler, batches):
        for index in batches:
            optimizer.step(evaluate(model, optimizer, index))
            scheduler.step()

    original = build()
    go(*original, range(6))
    resumed = build()
    if way == "state dict":
        for part, source in zip(resumed, original, strict=True):
            part.load_state_dict(copy.deepcopy(source.state_dict()))
    else:
        copied = copy.deepcopy if way == "deepcopy" else lambda p: pickle.loads(pickle.dumps(p))
        model, optimizer = copied(original[:2])
        resumed = model, optimizer, resumed[2]
        resumed[2].optimizer = optimizer
        resumed[2].load_state_dict(original[2].state_dict())
    go(*original, range(6, 10))
    go(*resumed, range(6, 10))
    assert repr(resumed[1].last) == repr(original[1].last)
    assert bits(resumed[0]) == bits(original[0])


def test_restored_run_goes_on_counting_its_skips(caplog):
    _, optimizer = wrapped_run()
    for _ in range(7):
        optimizer.step(math.nan)
    _, other = wrapped_run(range(0))
    other.load_state_dict(optimizer.state_dict())
    with caplog.at_level(logging.WARNING, logger="resilient_optim"):
        for p in other.param_groups[0]["params"]:
            p.grad = torch.zeros_like(p)
        for _ in range(3):
            assert caplog.messages == []
            other.step(math.nan)
    assert "10 steps in a row" in caplog.messages[0]


def test_every_group_holds_the_state():
    """torch.distributed.checkpoint keeps param groups and drops everything beside them."""
    _, optimizer = wrapped_run(groups=2)
    states = [group["ars"] for group in optimizer.state_dict()["param_groups"]]
    assert len(states) == 2
    assert bits(states[0]) == bits(states[1])
    assert states[0].dtype == torch.float64


def test_state_dict_already_taken_is_not_changed_by_later_steps():
    model, optimizer = wrapped_run()
    taken = optimizer.state_dict()["param_groups"]
    before = bits(taken)
    train(model, optimizer, range(6, 9))
    optimizer.state_dict()
    assert bits(taken) == before


def test_loading_does_not_change_the_loaded_dict():
    model, optimizer = wrapped_run()
    saved = copy.deepcopy(optimizer.state_dict())
    before = bits(saved["param_groups"])  # torch itself goes on to use the loaded "state"
    optimizer.load_state_dict(saved)
    train(model, optimizer, range(3))
    optimizer.state_dict()
    assert bits(saved["param_groups"]) == before


@pytest.mark.parametrize("kind", ["AdamW", "SGD", "Adagrad", "LBFGS"])
def test_checkpoint_of_a_bare_run_starts_without_start_up_and_memory(kind):
    case = next(case for case in CASES if case.name == kind)
    bare_model, bare = case.build()
    train(bare_model, bare, range(5), case.takes_closure)
    model, optimizer = case.build_wrapped()
    train(model, optimizer, range(9), case.takes_closure)  # memory that must go
    model.load_state_dict(bare_model.state_dict())
    optimizer.load_state_dict(copy.deepcopy(bare.state_dict()))
    assert len(optimizer.loss_buffer.losses) == 0
    assert optimizer.counters["observed"] == 0
    train(model, optimizer, range(5, 10), case.takes_closure)
    train(bare_model, bare, range(5, 10), case.takes_closure)
    assert bits(model) == bits(bare_model)


def test_bare_optimizer_takes_a_checkpoint_of_ars():
    model, optimizer = wrapped_run(start_up=0)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    bare_model = Layers()
    bare = adamw(bare_model)
    bare_model.load_state_dict(saved[0])
    bare.load_state_dict(saved[1])
    train(model, optimizer, range(6, 10))
    train(bare_model, bare, range(6, 10))
    assert bits(model) == bits(bare_model)
    assert optimizer_bits(optimizer) == optimizer_bits(bare)


@pytest.mark.parametrize("window", [32, 200])
def test_other_window_keeps_the_newest_losses(window):
    model, optimizer = wrapped_run(range(60))
    other = ARS(adamw(model), window_size=window)
    other.load_state_dict(optimizer.state_dict())
    kept = min(window, 60)
    assert list(other.loss_buffer.losses.values) == list(
        optimizer.loss_buffer.losses.values[-kept:]
    )
    assert list(other.loss_buffer.log_norms.values) == list(
        optimizer.loss_buffer.log_norms.values[-kept:]
    )
    assert other.counters == optimizer.counters


def test_newer_state_is_refused_before_anything_changes():
    model, optimizer = wrapped_run()
    newer = copy.deepcopy(optimizer.state_dict())
    newer["param_groups"][0]["lr"] = 0.5
    newer["param_groups"][0]["ars"][0] = 99.0
    before = bits(optimizer.state_dict())
    with pytest.raises(ValueError, match="version 5, got 99; load it with the version of"):
        optimizer.load_state_dict(newer)
    assert bits(optimizer.state_dict()) == before


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("mode", OPTIONS)
def test_distributed_checkpoint_restores_the_run(mode, groups):
    options = StateDictOptions(**OPTIONS[mode])
    model, optimizer = wrapped_run(groups=groups)
    saved = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    other_model, other = wrapped_run(range(0), groups)
    other_model.load_state_dict(copy.deepcopy(model.state_dict()))
    set_optimizer_state_dict(other_model, other, saved, options=options)
    assert_goes_on_alike(model, optimizer, other_model, other)


def test_dummy_step_of_distributed_checkpoint_leaves_the_run_alone():
    """It creates the base's state by a step with zero gradients, and must teach ARS nothing."""
    model, optimizer = wrapped_run(range(0))
    get_optimizer_state_dict(model, optimizer)
    other_model, other = wrapped_run(range(0))
    assert bits(model) == bits(other_model)
    assert optimizer.last is None
    assert len(optimizer.loss_buffer.losses) == 0
    assert all(state["exp_avg"].abs().max() == 0.0 for state in optimizer.state.values())
    evaluate(model, optimizer, 0)
    optimizer.step(1.0)
    assert optimizer.last.phi < 1.0  # still a young run


def test_wrapping_a_base_under_way_has_no_start_up():
    model = Layers()
    base = adamw(model)
    train(model, base, range(2))
    optimizer = ARS(base)
    train(model, optimizer, range(2, 4))
    assert optimizer.counters["touched"] == 0


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_copied_run_keeps_its_noise(copied):
    """The jitter depends on seed and step alone, so the seed is all there is to keep."""
    grads = []
    for original in (True, False):
        p = nn.Parameter(torch.ones(8))
        p.grad = torch.ones(8)
        optimizer = scripted(torch.optim.SGD([p], lr=0.1), seed=5, chi=0.5)
        if not original:
            optimizer = copied(optimizer)
            p = optimizer.param_groups[0]["params"][0]
            p.grad = torch.ones(8)
        optimizer.step(1.0)
        grads.append(p.grad)
    assert bits(grads[0]) == bits(grads[1])
    assert not torch.equal(grads[0], torch.ones(8))


def test_wrapping_a_base_that_carries_a_memory_goes_on_from_it():
    model, optimizer = wrapped_run()
    bare = adamw(model)
    bare.load_state_dict(optimizer.state_dict())
    again = ARS(bare)
    assert again.counters == optimizer.counters
    assert bits(again.loss_buffer.losses.padded()) == bits(optimizer.loss_buffer.losses.padded())
