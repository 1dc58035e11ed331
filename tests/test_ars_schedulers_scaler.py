"""Learning-rate schedulers and GradScaler drive ARS as they drive the bare optimizer."""

import functools

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

from resilient_optim import ARS
from tests.helpers import CALM, Layers, bits, evaluate, optimizer_bits, scripted

RECIPES = {
    "LambdaLR": {"lr_lambda": lambda step: (step + 1) / 10},
    "MultiplicativeLR": {"lr_lambda": lambda step: 0.9},
    "StepLR": {"step_size": 3},
    "MultiStepLR": {"milestones": [2, 5]},
    "ExponentialLR": {"gamma": 0.9},
    "CosineAnnealingLR": {"T_max": 8},
    "CosineAnnealingWarmRestarts": {"T_0": 3},
    "CyclicLR": {"base_lr": 0.001, "max_lr": 0.1, "step_size_up": 3, "cycle_momentum": True},
    "OneCycleLR": {"max_lr": 0.1, "total_steps": 20},
    "ReduceLROnPlateau": {"patience": 1},
}


def sequential(optimizer):
    parts = [
        lr_scheduler.LinearLR(optimizer, 0.1, total_iters=3),
        lr_scheduler.ExponentialLR(optimizer, 0.9),
    ]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[3])


def chained(optimizer):
    return lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(optimizer), lr_scheduler.ExponentialLR(optimizer, 0.9)]
    )


def schedulers():
    """Every scheduler class of torch, found there so that a new one is included."""
    made = {"SequentialLR": sequential, "ChainedScheduler": chained}
    for name, kind in vars(lr_scheduler).items():
        if not isinstance(kind, type) or not issubclass(kind, lr_scheduler.LRScheduler):
            continue
        if name not in made and not name.startswith("_") and name != "LRScheduler":
            made[name] = functools.partial(kind, **RECIPES.get(name, {}))
    return sorted(made.items())


SCHEDULERS = [pytest.param(make, id=name) for name, make in schedulers()]


def sgd(model, **options):
    return torch.optim.SGD(model.parameters(), **{"lr": 0.05, "momentum": 0.8, **options})


def scheduled_run(make, wrap, base=sgd, order="wrap first", steps=12):
    """A run with a scheduler; returns what must not depend on whether ARS is there."""
    torch.manual_seed(0)
    model = Layers()
    optimizer = base(model)
    scheduler = make(optimizer) if order == "schedule first" else None
    if wrap:
        optimizer = ARS(optimizer, **CALM)
    scheduler = scheduler or make(optimizer)
    lrs = []
    for index in range(steps):
        loss = evaluate(model, optimizer, index)
        optimizer.step(loss) if wrap else optimizer.step()
        plateau = isinstance(scheduler, lr_scheduler.ReduceLROnPlateau)
        scheduler.step(loss.item()) if plateau else scheduler.step()
        lrs.append(float(optimizer.param_groups[0]["lr"]))
    return bits(model), optimizer_bits(optimizer), lrs


@pytest.mark.parametrize("order", ["wrap first", "schedule first"])
@pytest.mark.parametrize("make", SCHEDULERS)
def test_scheduled_run_is_the_bare_run(make, order):
    try:
        bare = scheduled_run(make, wrap=False)
    except TypeError as error:
        pytest.skip(f"a scheduler this test has no recipe for: {error}")
    assert len(set(bare[2])) > 1  # the scheduler does something in this run
    assert scheduled_run(make, wrap=True, order=order) == bare


@pytest.mark.parametrize("name", ["CyclicLR", "OneCycleLR"])
def test_cycled_betas_of_adam_are_the_bare_runs(name):
    make = functools.partial(getattr(lr_scheduler, name), **RECIPES[name])

    def adam(model):
        return torch.optim.AdamW(model.parameters(), lr=0.01)

    assert scheduled_run(make, True, adam) == scheduled_run(make, False, adam)


@pytest.mark.parametrize("options", [{"foreach": False}, {"fused": True}])
def test_scheduler_fills_the_users_learning_rate_tensor(options):
    def base(model):
        return sgd(model, lr=torch.tensor(0.05), **options)

    make = functools.partial(lr_scheduler.ExponentialLR, gamma=0.5)
    assert scheduled_run(make, True, base) == scheduled_run(make, False, base)


def test_scheduler_after_a_skipped_first_step_does_not_warn():
    """Warnings are errors here: torch warns of a scheduler that steps before the optimizer."""
    optimizer = ARS(sgd(Layers()))
    scheduler = lr_scheduler.ExponentialLR(optimizer, 0.5)
    optimizer.step(float("nan"))
    scheduler.step()
    assert optimizer.param_groups[0]["lr"] == 0.025


def phis(make_scheduler, steps=40):
    """Gate of each step of a calm young run."""
    p = nn.Parameter(torch.ones(2))
    optimizer = ARS(torch.optim.AdamW([p], lr=0.01), start_up=20)
    scheduler = make_scheduler(optimizer) if make_scheduler else None
    out = []
    for _ in range(steps):
        p.grad = torch.ones(2)
        optimizer.step(1.0)
        out.append(optimizer.last.phi)
        if scheduler:
            scheduler.step()
    return out


def test_without_a_warm_up_the_gate_opens_step_by_step():
    opening = phis(None)
    assert 0.0 < opening[0] <= 2 / 20
    assert all(a < b for a, b in zip(opening[:18], opening[1:19], strict=True))
    assert opening[20:] == [1.0] * 20


@pytest.mark.parametrize(
    "make",
    [
        lambda o: lr_scheduler.CosineAnnealingLR(o, 40),
        lambda o: lr_scheduler.ExponentialLR(o, 0.9),
        lambda o: lr_scheduler.StepLR(o, 5, 0.1),
        lambda o: lr_scheduler.ConstantLR(o, factor=1.0),
    ],
    ids=["cosine", "exponential", "steps", "constant"],
)
def test_falling_or_constant_rate_is_no_warm_up(make):
    assert phis(make) == phis(None)


@pytest.mark.parametrize(
    ("make", "slowed"),
    [
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, (step + 1) / 10)), 1),
        (lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 10)), 1),
        (lambda o: lr_scheduler.LinearLR(o, 0.01, total_iters=10), 1),
        # This one rises slowly at first: by half after two steps.
        (lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=50), 2),
        (sequential, 1),
    ],
    ids=["ramp", "ramp-from-0", "LinearLR", "OneCycleLR", "SequentialLR"],
)
def test_own_warm_up_is_left_to_itself_once_it_shows(make, slowed):
    seen = phis(make)
    assert max(seen[:slowed]) < 1.0
    assert seen[slowed:] == [1.0] * (40 - slowed)


def test_a_warm_up_of_one_group_leaves_the_other_its_start_up():
    assert phis(lambda o: lr_scheduler.LambdaLR(o, lambda step: 1.0 + (step == 3) * 1e-7)) == phis(
        None
    )
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ARS(torch.optim.SGD([{"params": [p]}, {"params": [q]}], lr=1e-3), start_up=30)
    ramp = lr_scheduler.LambdaLR(optimizer, [lambda step: min(1.0, step / 10), lambda step: 1.0])
    for _ in range(5):
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        optimizer.step(1.0)
        ramp.step()
    assert optimizer.last.phi < 1.0


def test_a_group_added_in_start_up_does_not_open_the_gate():
    p, q = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = ARS(torch.optim.SGD([p], lr=1e-3), start_up=30)
    for step in range(6):
        if step == 3:
            optimizer.add_param_group({"params": [q], "lr": 0.1})
        p.grad, q.grad = torch.ones(2), torch.ones(2)
        optimizer.step(1.0)
    assert optimizer.last.phi < 1.0


# -- GradScaler ---------------------------------------------------------------------------------

BASES = {
    "AdamW": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02),
    "AdamW-fused": lambda model: torch.optim.AdamW(model.parameters(), lr=0.02, fused=True),
    "SGD": sgd,
    "SGD-fused": lambda model: sgd(model, fused=True),
}
every_base = pytest.mark.parametrize("base", BASES.values(), ids=BASES.keys())


def scaled_run(base, wrap, clip=False, pass_loss=None, inf_at=None, steps=6):
    """Training with a gradient scaler; `wrap` makes the optimizer from the base."""
    torch.manual_seed(0)
    model = Layers()
    optimizer = wrap(base(model))
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    scales = []
    for index in range(steps):
        optimizer.zero_grad()
        loss = model.loss(index)
        scaler.scale(loss).backward()
        if index == inf_at:
            next(model.parameters()).grad[0, 0] = torch.inf
        if clip:
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(model.parameters(), 0.3)
        if pass_loss == "positional":
            scaler.step(optimizer, loss)
        elif pass_loss == "keyword":
            scaler.step(optimizer, loss=loss)
        else:
            scaler.step(optimizer)
        scaler.update()
        scales.append(scaler.get_scale())
    return bits(model), optimizer_bits(optimizer), scales


@pytest.mark.parametrize("pass_loss", ["positional", "keyword"])
@pytest.mark.parametrize("inf_at", [None, 3], ids=["finite", "inf-step"])
@pytest.mark.parametrize("clip", [False, True], ids=["", "unscale-clip"])
@every_base
def test_scaled_run_is_the_bare_scaled_run(base, clip, inf_at, pass_loss):
    bare = scaled_run(base, lambda o: o, clip, None, inf_at)
    wrapped = scaled_run(base, lambda o: ARS(o, **CALM), clip, pass_loss, inf_at)
    assert wrapped == bare
    assert (bare[2][-1] == 512.0) == (inf_at is not None)


@pytest.mark.parametrize(
    "verdict",
    [{"update_scale": 0.5}, {"grad_scale": 0.3}, {"grad_scale": 0.5, "chi": 0.5}],
    ids=["update", "gradient", "jitter"],
)
@every_base
def test_what_ars_does_is_the_same_with_and_without_a_scaler(base, verdict):
    """Gradients reach it unscaled: scales are powers of two, so not even rounding differs."""

    def wrap(optimizer):
        return scripted(optimizer, **verdict)

    scaled = scaled_run(base, wrap, pass_loss="positional")
    torch.manual_seed(0)
    model = Layers()
    optimizer = wrap(base(model))
    for index in range(6):
        optimizer.step(evaluate(model, optimizer, index))
    assert scaled[:2] == (bits(model), optimizer_bits(optimizer))


@every_base
def test_norm_under_a_scaler_is_of_the_unscaled_gradient(base):
    norms = []

    def wrap(optimizer):
        wrapped = ARS(optimizer)
        wrapped.register_step_post_hook(lambda *_: norms.append(wrapped.last.grad_norm))
        return wrapped

    scaled_run(base, wrap, pass_loss="positional", steps=1)
    torch.manual_seed(0)
    model = Layers()
    model.loss(0).backward()
    expected = torch.cat([p.grad.flatten() for p in model.parameters()]).norm().item()
    assert norms == pytest.approx([expected], rel=1e-6)  # float32 sums of 28 terms
