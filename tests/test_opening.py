"""How long the opening takes: by optimizer, learning rate and width."""

import math
from pathlib import Path

import pytest
import torch

from nanogpt_demo.model import GPT
from nanogpt_demo.spec import SIZES
from resilient_optim import ARS, DefaultConfig
from resilient_optim.opening import LONGEST, STEPS_PER_REACH, opening_steps

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
