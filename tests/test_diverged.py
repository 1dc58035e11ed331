"""A run that cannot be saved ends in `TrainingDiverged`, soon, and with the right cause named."""

import math
import pickle

import pytest
import torch

from resilient_optim import ARS, Budgets, Snapshots, TrainingDiverged
from resilient_optim.diagnosis import wrong_parameters
from resilient_optim.snapshot import Live
from tests.breaker_runs import Run
from tests.training import Task

EVERY_8 = Snapshots(every=8)


def not_a_number(step, y):
    return y * math.nan


def trained(name="adamw", steps=100, **settings):
    run = Run(name, **settings)
    run.train(steps)
    return run


def corrupt_and_train(run, steps):
    """Somebody overwrites the weights before every step."""
    for _ in range(steps):
        run.weight.fill_(math.nan)
        run.train(1)


def train_on_zeros(run, steps):
    """The loss is cut off from the model: no gradient arrives."""
    for step in range(run.now, run.now + steps):
        loss = run.task.loss(*run.task.batch(step))
        run.optimizer.zero_grad()
        (0.0 * loss).backward()
        run.optimizer.step(loss)


def spoil_gradients(run):
    run.task.model[2].weight.register_hook(lambda grad: grad * math.nan)
    run.train(40)


def spoil_lr(run, lr):
    run.set_lr(lr)
    run.train(40)


def random_targets(run):
    """Data of which nothing can be learned, at a far higher loss."""
    generator = torch.Generator().manual_seed(0)
    run.train(200, lambda step, y: 30.0 * torch.randn(y.shape, generator=generator))


PERSISTENT = {
    # What goes on and on; the cause, the number of steps until the end, and what the text says.
    "NaN losses": (lambda r: r.train(40, not_a_number), "bad data", 20, "the loss is not finite"),
    "NaN gradients": (spoil_gradients, "bad gradient", 20, "the gradient of 2.weight (norm nan)"),
    "NaN lr": (lambda r: spoil_lr(r, math.nan), "learning rate", 20, "is not finite"),
    "wild lr": (lambda r: spoil_lr(r, 1e6), "learning rate", 24, "ten thousand times"),
    "NaN weights": (lambda r: corrupt_and_train(r, 40), "corrupted weights", 6, "each of 5 roll"),
    "no gradient": (lambda r: train_on_zeros(r, 99), "stuck gradient", 59, "the same to the bit"),
    "random targets": (random_targets, "bad data", 150, "nothing was learned from them"),
}


@pytest.mark.parametrize("name", ["adamw", "sgd"])
@pytest.mark.parametrize("what", sorted(PERSISTENT))
def test_what_never_ends_ends_the_run_with_its_cause(what, name):
    happens, cause, within, words = PERSISTENT[what]
    run = trained(name, snapshot=EVERY_8)
    before = run.state()
    with pytest.raises(TrainingDiverged) as info:
        happens(run)
    error = info.value
    assert error.cause == cause
    assert 100 <= error.step < 100 + within
    assert words in str(error)
    assert f"at step {error.step}." in str(error) and f"Likely cause: {cause};" in str(error)
    assert error.decision.step == error.step and error.decision is run.optimizer.last
    assert error.decision is run.events[-1] or error.decision.reason == "quiet"
    if error.rolled_back_to is not None:
        assert f"The weights are what step {error.rolled_back_to} found." in str(error)
        assert run.state() == run.found[error.rolled_back_to]
    elif what in ("NaN losses", "NaN gradients", "NaN lr"):
        assert run.state() == before, "skipped steps, and trials, change nothing"
    assert torch.isfinite(run.task.weights()).all()
    twin = pickle.loads(pickle.dumps(error))
    assert str(twin) == str(error) and repr(vars(twin)) == repr(vars(error))


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_run_that_skips_from_its_first_step_is_loud_within_twenty(name):
    run = Run(name)
    error = run.train_until_diverged(30, not_a_number)
    assert (error.cause, error.step) == ("bad data", 19)
    assert run.state() == run.found[0]


@pytest.mark.parametrize("preset", ["default", "paper"])
def test_without_snapshots_it_ends_as_well(preset):
    run = trained(snapshot=False, preset=preset)
    with pytest.raises(TrainingDiverged) as info:
        corrupt_and_train(run, 40)
    assert (info.value.cause, info.value.rolled_back_to) == ("corrupted weights", None)
    assert "weights are not finite in 0.weight (norm nan)" in str(info.value)
    assert info.value.step == 119


def test_without_the_model_a_parameter_is_named_by_its_place():
    run = trained(model=None, snapshot=False)
    with pytest.raises(TrainingDiverged, match=r"in parameter 0 of group 0, shape \(16, 8\)"):
        corrupt_and_train(run, 40)


def test_parameters_have_their_names_in_the_model_or_their_places_in_the_groups():
    a, b = torch.nn.Linear(3, 2), torch.nn.Linear(2, 1)
    groups = [{"params": a.parameters()}, {"params": b.parameters()}]
    live = Live(torch.optim.SGD(groups, lr=0.1))
    assert live.names()[3] == "parameter 1 of group 1, shape (1,)"
    named = Live(live.base, torch.nn.ModuleDict({"a": a, "b": b}))
    assert named.names() == ["a.weight", "a.bias", "b.weight", "b.bias"]


# -- budgets -------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [1, 2, 7, 20, 33])
def test_steps_in_a_row_are_skipped_up_to_the_budget(budget):
    run = trained(budgets=Budgets(skips_in_a_row=budget))
    assert run.train_until_diverged(50, not_a_number).step == 100 + budget - 1


def test_a_share_of_skipped_steps_ends_the_run_though_none_are_many_in_a_row():
    run = trained(budgets=Budgets(skip_share=0.3))
    error = run.train_until_diverged(200, lambda s, y: y * (math.nan if s % 5 else 1.0))
    # An average over a hundred steps, of four in five: 0.8 * (1 - 0.99**k) > 0.3
    assert 100 + 44 <= error.step <= 100 + 52
    patient = trained(budgets=Budgets(skip_share=0.85))
    patient.train(200, lambda s, y: y * (math.nan if s % 5 else 1.0))
    assert patient.optimizer.counters["nonfinite"] == 160


@pytest.mark.parametrize("rollbacks", [0, 1, 3, 8])
def test_rollbacks_in_short_order_end_the_run_beyond_the_budget(rollbacks):
    run = trained(snapshot=EVERY_8, budgets=Budgets(rollbacks=rollbacks))
    with pytest.raises(TrainingDiverged) as info:
        corrupt_and_train(run, 40)
    assert run.optimizer.counters["rollbacks"] == rollbacks
    assert info.value.step == 100 + rollbacks
    assert f"Tried: {rollbacks} times rolled back" in str(info.value) or not rollbacks


def test_wide_budgets_let_the_run_go_on():
    patient = Budgets(10**6, 1.0, 10**6, math.inf, math.inf)
    for what in ("NaN losses", "NaN lr", "NaN weights", "no gradient", "random targets"):
        run = trained(snapshot=EVERY_8, budgets=patient)
        PERSISTENT[what][0](run)
        assert run.optimizer.counters["observed"] >= 140, what


def test_a_stuck_gradient_is_put_up_with_for_as_long_as_the_budget_says():
    run = trained(budgets=Budgets(stuck_steps=math.inf))
    train_on_zeros(run, 120)
    soon = trained(budgets=Budgets(stuck_steps=10))
    with pytest.raises(TrainingDiverged) as info:
        train_on_zeros(soon, 120)
    assert info.value.step == 112


def test_gradients_of_one_length_are_not_stuck():
    task = Task(0)
    optimizer = ARS(torch.optim.SGD(task.model.parameters(), lr=1e-3))
    for step in range(200):
        loss = task.loss(*task.batch(step))
        optimizer.zero_grad()
        loss.backward()
        for p in task.model.parameters():
            p.grad.sign_()
        optimizer.step(loss)
    assert optimizer.last.grad_norm == pytest.approx(math.sqrt(161))


def test_the_end_is_told_even_if_it_comes_out_of_a_trial():
    run = trained("sgd", steps=120, snapshot=EVERY_8, budgets=Budgets(rollbacks=0))
    with pytest.raises(TrainingDiverged) as info:
        for _ in range(100):
            run.set_lr(1.05 * run.base.param_groups[0]["lr"])
            run.train(1)
    assert info.value.cause == "learning rate"
    assert run.state() == run.found[info.value.rolled_back_to]
    assert info.value.decision is run.events[-1] is run.optimizer.last


@pytest.mark.parametrize("unit", [1e10, 1e12])
def test_a_healthy_run_is_healthy_in_any_unit_of_the_loss(unit):
    task = Task(0)
    optimizer = ARS(torch.optim.AdamW(task.model.parameters(), lr=3e-3), snapshot=EVERY_8)
    for step in range(140):
        loss = unit * task.loss(*task.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(loss)
    assert optimizer.counters["rollbacks"] == 0


def more_buffers(run):
    run.task.model.register_buffer("cache", torch.zeros(8))


def longer_buffer(run):
    run.task.model.cache = torch.zeros(8)


def group_of_the_base(run):
    run.base.add_param_group({"params": [torch.nn.Parameter(torch.ones(3))]})


def wider_layer(run):
    first, last = run.task.model[0], run.task.model[2]
    first.weight.data, first.bias.data = torch.randn(17, 8), torch.zeros(17)
    last.weight.data = torch.randn(1, 17)
    run.optimizer.zero_grad()
    run.base.state.clear()


@pytest.mark.parametrize(
    "change",
    [
        more_buffers,
        longer_buffer,
        group_of_the_base,
        wider_layer,
    ],
)
@pytest.mark.parametrize("fault", [not_a_number, None], ids=["NaN loss", "NaN weights"])
def test_a_run_whose_tensors_are_others_since_the_last_snapshot_goes_on_or_ends_clearly(
    change, fault
):
    run = Run(snapshot=Snapshots(every=1000))
    run.task.model.register_buffer("cache", torch.zeros(4))
    run.train(20)
    change(run)
    run.train(5)
    if fault is None:
        run.weight.fill_(math.nan)
    try:
        run.train(40, fault)
    except TrainingDiverged as error:
        assert error.cause in ("bad data", "corrupted weights")


# -- the arguments, and the text ---------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, error, words",
    [
        ({"snapshot": "always"}, ValueError, ["snapshot", "'auto', True, False", "'always'"]),
        ({"snapshot": None}, TypeError, ["snapshot", "Snapshots(...)", "None"]),
        ({"snapshot": 8}, TypeError, ["snapshot", "8"]),
        ({"budgets": 3}, TypeError, ["budgets", "3", "Budgets(rollbacks=3)"]),
        ({"model": "gpt"}, TypeError, ["model", "torch.nn.Module", "str"]),
    ],
)
def test_wrong_arguments_are_named_with_their_value(settings, error, words):
    with pytest.raises(error) as info:
        ARS(torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1), **settings)
    assert all(word in str(info.value) for word in words)


def test_the_worst_parameters_are_named_with_what_they_were():
    def norms(*values):
        return torch.tensor(values).numpy()

    names = ["a", "b", "c", "d", "e"]
    history = [(8, norms(1.0, 2.0, 3.0, 4.0, 5.0)), (16, norms(1.5, 2.5, 3.5, 4.5, 5.5))]
    text = wrong_parameters(norms(1.0, math.nan, 3.0, math.inf, 0.0), names, history)
    assert text == (
        "b (norm nan; 2 at step 8, 2.5 at step 16), d (norm inf; 4 at step 8, 4.5 at step 16)"
    )
    assert wrong_parameters(norms(1.0, 9.0, 3.0), names, []) == "b (norm 9)"
    many = wrong_parameters(norms(*[math.nan] * 5), names, [])
    assert many == "a (norm nan), b (norm nan), c (norm nan), and 2 more"
    assert wrong_parameters(norms(), names, []) == ""
