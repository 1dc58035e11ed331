"""What ARS promises around every optimizer that torch has, compared bit for bit."""

import copy
import math
from dataclasses import replace

import pytest
import torch

from tests.helpers import (
    CALM,
    CASES,
    Case,
    bits,
    evaluate,
    gradient_bits,
    optimizer_bits,
    scripted,
    train,
)

every_optimizer = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)

NAN, INF = math.nan, math.inf


def assert_same_run(model, optimizer, other_model, other_optimizer):
    assert bits(model) == bits(other_model)
    assert optimizer_bits(optimizer) == optimizer_bits(other_optimizer)


def test_the_matrix_holds_what_torch_has():
    names = {case.kind.__name__ for case in CASES}
    assert {"Adam", "AdamW", "SGD", "LBFGS", "SparseAdam", "Adafactor", "RMSprop"} <= names


@every_optimizer
def test_quiet_run_is_the_bare_run(case: Case):
    model, bare = case.build()
    wrapped_model, wrapped = case.build_wrapped(**CALM)
    train(model, bare, range(40), case.takes_closure)
    train(wrapped_model, wrapped, range(40), case.takes_closure)
    assert wrapped.counters["observed"] == 40
    assert wrapped.counters["touched"] == 0
    assert_same_run(model, bare, wrapped_model, wrapped)


@every_optimizer
def test_training_through_ars_changes_the_weights(case: Case):
    # Guards the other tests of this file: a wrapper or problem that does nothing passes them.
    model, optimizer = case.build_wrapped()
    before = bits(model)
    train(model, optimizer, range(2), case.takes_closure)
    assert all(before[key] != value for key, value in bits(model).items())


@pytest.mark.parametrize("fault", ["NaN loss", "Inf loss", "NaN gradient", "Inf gradient"])
@every_optimizer
def test_skipped_step_changes_nothing(case: Case, fault: str):
    model, optimizer = case.build_wrapped(start_up=0)
    train(model, optimizer, range(3), case.takes_closure)
    bad_value = NAN if "NaN" in fault else INF

    def closure():
        loss = evaluate(model, optimizer, 3)
        if "loss" in fault:
            return loss.detach() * bad_value
        last = list(model.parameters())[-1].grad
        (last._values() if last.is_sparse else last)[-1, -1] = bad_value
        return loss

    if case.takes_closure:
        with torch.no_grad():
            before = bits(model), optimizer_bits(optimizer)
            optimizer.step(closure)
        kept = gradient_bits(model)
    else:
        loss = closure()
        kept = gradient_bits(model)
        before = bits(model), optimizer_bits(optimizer)
        optimizer.step(loss)
    assert optimizer.last.action == "skip"
    assert "non-finite" in optimizer.last.reason
    assert (bits(model), optimizer_bits(optimizer)) == before
    assert all(p.grad is not None for p in model.parameters())
    assert gradient_bits(model) == kept


@every_optimizer
def test_run_goes_on_after_a_skip_as_if_the_batch_had_never_come(case: Case):
    model, bare = case.build()
    wrapped_model, wrapped = case.build_wrapped(start_up=0)
    train(model, bare, range(6), case.takes_closure)
    train(wrapped_model, wrapped, range(3), case.takes_closure)
    wrapped.step(lambda: evaluate(wrapped_model, wrapped, 99) * NAN)
    train(wrapped_model, wrapped, range(3, 6), case.takes_closure)
    assert wrapped.counters["skipped"] == 1
    assert_same_run(model, bare, wrapped_model, wrapped)


@pytest.mark.parametrize("settings", [{"start_up": 0}, {}], ids=["mature", "young"])
@every_optimizer
def test_restored_run_is_the_uninterrupted_run(case: Case, settings: dict):
    model, optimizer = case.build_wrapped(**settings)
    train(model, optimizer, range(4), case.takes_closure)
    saved = copy.deepcopy((model.state_dict(), optimizer.state_dict()))
    train(model, optimizer, range(4, 10), case.takes_closure)

    resumed_model, resumed = case.build_wrapped(**settings)
    resumed_model.load_state_dict(saved[0])
    resumed.load_state_dict(saved[1])
    train(resumed_model, resumed, range(4, 10), case.takes_closure)
    assert bits(resumed_model) == bits(model)
    assert bits(resumed.state_dict()) == bits(optimizer.state_dict())


# A quasi-Newton or line-search step is not linear in lr.
BRAKED = [pytest.param(case, id=case.name) for case in CASES if not case.takes_closure]


@pytest.mark.parametrize("case", BRAKED)
def test_damped_step_moves_by_phi_times_the_bare_step(case: Case):
    if "weight_decay" in case.build()[1].defaults:
        case = replace(case, options={**case.options, "weight_decay": 0.0})
    model, base = case.build()
    train(model, base, range(3))
    bare_model, bare = case.build()
    bare_model.load_state_dict(model.state_dict())
    bare.load_state_dict(copy.deepcopy(base.state_dict()))
    start = [p.detach().clone() for p in model.parameters()]

    damped = scripted(base, phi=0.25, update_scale=0.25)
    damped.step(evaluate(model, damped, 3))
    evaluate(bare_model, bare, 3)
    bare.step()

    for before, p, q in zip(start, model.parameters(), bare_model.parameters(), strict=True):
        # Weights below 2 are rounded to 2^-24, which p - before inherits.
        torch.testing.assert_close(p - before, 0.25 * (q - before), rtol=1e-4, atol=2**-23)
        assert (q - before).abs().max() > 2**-14  # the step is large against that


def damped_and_seen(kind, **options):
    """A damped run of one step by a subclass of `kind` that notes the learning rate it used."""
    seen = []

    class Noted(kind):
        def step(self, closure=None):
            seen.append(float(self.param_groups[0]["lr"]))
            raise RuntimeError("out of memory")

    p = torch.nn.Parameter(torch.ones(2))
    optimizer = scripted(Noted([p], **options), phi=0.5, update_scale=0.5)
    p.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="out of memory"):
        optimizer.step(1.0)
    return optimizer, seen


def test_learning_rate_is_back_when_the_base_step_raises():
    optimizer, seen = damped_and_seen(torch.optim.SGD, lr=0.5)
    assert seen == [0.25]
    assert optimizer.param_groups[0]["lr"] == 0.5


def test_learning_rate_tensor_is_back_as_the_same_object():
    lr = torch.tensor(0.5)
    optimizer, seen = damped_and_seen(torch.optim.SGD, lr=lr)
    assert seen == [0.25]
    assert optimizer.param_groups[0]["lr"] is lr
    assert lr.item() == 0.5


@every_optimizer
def test_learning_rate_is_back_after_a_damped_step(case: Case):
    model, base = case.build()
    before = base.param_groups[0]["lr"]
    optimizer = scripted(base, phi=0.5, update_scale=0.5)
    train(model, optimizer, range(2), case.takes_closure)
    assert optimizer.counters["damped"] == 2
    assert optimizer.param_groups[0]["lr"] is before
    assert bits(before) == bits(case.build()[1].param_groups[0]["lr"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_fresh_run_opens_gently(case: Case):
    model, optimizer = case.build_wrapped(start_up=20)
    train(model, optimizer, range(1), case.takes_closure)
    assert optimizer.last.phi <= 2 / 20


def test_start_up_may_be_switched_off_on_load():
    case = CASES[0]
    model, optimizer = case.build_wrapped(start_up=20)
    train(model, optimizer, range(3), case.takes_closure)
    assert optimizer.last.phi < 1.0
    _, again = case.build_wrapped(start_up=0)
    again.load_state_dict(optimizer.state_dict())
    train(model, again, range(3, 4), case.takes_closure)
    assert again.last.phi == 1.0
