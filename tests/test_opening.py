"""How long the opening takes: by optimizer, learning rate and width."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nanogpt_demo.model import GPT
from nanogpt_demo.spec import SIZES
from resilient_optim import ARS, DefaultConfig
from resilient_optim.gates import LONGEST_OPENING as LONGEST
from resilient_optim.gates import SHORTEST_OPENING as SHORTEST_BY_GRADIENT
from resilient_optim.gates import STEPS_PER_REACH
from resilient_optim.loss_buffer import LossBuffer
from resilient_optim.memory import Memory
from resilient_optim.opening import momentum_gain, opening_steps
from resilient_optim.policy_state import PolicyState
from tests.helpers import Layers, train
from tests.policy_run import Run

GUIDE = Path(__file__).resolve().parent.parent / "resilient_optim" / "guide.md"
SHORTEST = DefaultConfig.start_up


def linear(width, outputs=4):
    return torch.nn.Linear(width, outputs)


def adam(module, lr=3e-3):
    return torch.optim.AdamW(module.parameters(), lr=lr)


@pytest.mark.parametrize("lr, width", [(3e-3, 1024), (1e-3, 3072), (torch.tensor(3e-3), 1024)])
def test_adam_at_a_high_rate_on_wide_layers_opens_more_slowly(lr, width):
    assert opening_steps(adam(linear(width), lr)) == math.ceil(STEPS_PER_REACH * 3.072)


@pytest.mark.parametrize("lr, width", [(3e-3, 256), (2e-5, 4096), (0.0, 4096), (torch.nan, 4096)])
def test_narrow_layers_and_low_rates_open_as_ever(lr, width):
    optimizer = adam(linear(width))
    optimizer.param_groups[0]["lr"] = lr
    assert opening_steps(optimizer) == SHORTEST


@pytest.mark.parametrize("lr", [1.0, math.inf])
def test_no_rate_makes_the_opening_endless(lr):
    steps = opening_steps(adam(linear(4096), lr))
    assert steps == (LONGEST if math.isfinite(lr) else SHORTEST)


def test_the_widest_layer_of_the_fastest_group_counts():
    slow, fast = linear(8192), linear(2048)
    groups = [{"params": [*slow.parameters()], "lr": 1e-6}, {"params": [*fast.parameters()]}]
    assert opening_steps(torch.optim.Adam(groups, lr=1e-3)) == math.ceil(25 * 2.048)


def test_steps_in_proportion_to_the_gradient_need_no_more():
    assert opening_steps(torch.optim.SGD(linear(4096).parameters(), lr=1.0)) == SHORTEST
    assert opening_steps(adam(torch.nn.LayerNorm(4096), 1.0)) == SHORTEST


def test_convolutions_which_are_normalised_as_a_rule_need_no_more():
    assert opening_steps(adam(torch.nn.Conv2d(512, 8, 3), 1e-2)) == SHORTEST


def test_a_rate_that_the_optimizer_finds_itself_is_not_taken_for_one():
    prodigy = pytest.importorskip("pytorch_optimizer").Prodigy
    assert opening_steps(prodigy(linear(4096).parameters(), lr=1.0)) == SHORTEST


def test_the_opening_of_nanogpt_is_that_of_the_guide():
    model = GPT(SIZES["nanogpt"].config(vocab_size=65))
    assert f"{opening_steps(adam(model, 3e-3))} for nanoGPT's" in GUIDE.read_text("utf-8")


def test_layers_that_have_no_shape_yet_are_passed_over():
    lazy = torch.nn.LazyLinear(4)
    assert opening_steps(adam(torch.nn.Sequential(lazy, linear(1024)))) == 77


def test_the_settings_say_which_opening_it_is_and_a_given_one_counts():
    assert ARS(adam(linear(1024))).config.start_up == 77
    assert ARS(adam(linear(1024)), start_up=12).config.start_up == 12
    ARS(adam(linear(1024)), preset="paper")


@pytest.mark.parametrize(
    ("settings", "gain"),
    [
        ({}, 1.0),
        ({"momentum": 0.9}, 10.0),
        ({"momentum": 0.9, "nesterov": True}, 10.0),
        ({"momentum": 1.0}, LONGEST),
        ({"maximize": True}, 0.0),
    ],
)
def test_what_momentum_makes_of_a_step_of_sgd(settings, gain):
    optimizer = torch.optim.SGD(linear(4).parameters(), lr=0.1, **settings)
    assert momentum_gain(optimizer) == pytest.approx(gain)
    assert ARS(optimizer).config.momentum_gain == pytest.approx(gain)


@pytest.mark.parametrize(("name", "value"), [("lr", 0.2), ("momentum", 0.5)])
def test_groups_that_differ_do_not_tell_whose_the_gradient_is(name, value):
    groups = [{"params": [*linear(4).parameters()]} for _ in range(2)]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    assert momentum_gain(optimizer) == 1.0
    groups[1][name] = optimizer.param_groups[1][name] = value
    assert momentum_gain(optimizer) == 0.0
    memory = Memory(LossBuffer(64), PolicyState())
    memory.see_lrs(optimizer.param_groups)
    assert memory.common_lr == (0.0 if name == "lr" else 0.1)


@pytest.mark.parametrize("kind", ["RMSprop", "Adagrad", "Rprop", "AdamW"])
def test_only_steps_in_proportion_to_the_gradient_open_by_it(kind):
    optimizer = getattr(torch.optim, kind)(linear(4).parameters(), lr=0.1)
    assert momentum_gain(optimizer) == ARS(optimizer).config.momentum_gain == 0.0


def test_a_given_opening_is_not_chosen_anew():
    optimizer = torch.optim.SGD(linear(4).parameters(), lr=0.1)
    assert ARS(optimizer, start_up=12).config.momentum_gain == 0.0
    assert ARS(optimizer, momentum_gain=3.0).config.momentum_gain == 3.0


@pytest.mark.parametrize(
    ("lr", "norm", "loss", "steps"),
    [
        (0.1, 1.0, 2.0, 13),  # 25 steps for each time that the loss would be taken away
        (0.1, 0.1, 2.0, SHORTEST_BY_GRADIENT),
        (0.1, 20.0, 2.0, LONGEST),
        (0.1, 1.0, 0.0, SHORTEST),  # of a loss that is not positive there is no share
        (0.1, 1.0, -2.0, SHORTEST),
        (0.1, 0.0, 2.0, SHORTEST),
        (0.1, None, 2.0, SHORTEST),
        (0.0, 1.0, 2.0, SHORTEST),
    ],
)
def test_the_first_gradient_of_sgd_says_how_long_the_opening_is(lr, norm, loss, steps):
    run = Run(start_up=SHORTEST, lr=lr, momentum_gain=10.0)
    assert run.see(loss, norm).update_scale == pytest.approx(2 / steps)
    assert run.state.opening_steps == steps
    run.see(loss / 2, 3.0)
    assert run.state.opening_steps == steps


def test_a_gradient_that_is_bounded_reaches_less_far():
    run = Run(start_up=SHORTEST, lr=0.1, momentum_gain=10.0, max_norm=0.5)
    run.see(2.0, 1.0)
    assert run.state.opening_steps == 7


def test_a_first_step_that_is_left_out_chooses_no_opening():
    run = Run(start_up=SHORTEST, lr=0.1, momentum_gain=10.0)
    for loss, norm in ((math.nan, 1.0), (2.0, math.inf)):
        assert run.see(loss, norm).action == "skip"
        assert run.state.opening_steps == 0
    run.see(2.0, 1.0)
    assert run.state.opening_steps == 13


@given(lr=st.floats(1e-12, 1e12), norm=st.floats(1e-100, 1e300), loss=st.floats(1e-300, 1e300))
def test_no_first_gradient_makes_an_opening_out_of_bounds(lr, norm, loss):
    run = Run(start_up=SHORTEST, lr=lr, momentum_gain=10.0)
    run.see(loss, norm)
    assert SHORTEST_BY_GRADIENT <= run.state.opening_steps <= LONGEST


def test_sgd_at_a_rate_far_too_high_is_held_back_longer():
    opened = []
    for lr in (0.01, 1.0):
        torch.manual_seed(0)
        model = Layers()
        optimizer = ARS(torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9))
        train(model, optimizer, range(3))
        opened.append(optimizer.last.update_scale)
    assert opened[1] < 0.1 < opened[0]
