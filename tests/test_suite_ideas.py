"""The ideas that were tried do what they say, where they say, and nothing elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nanogpt_demo.suite import ideas, peers
from resilient_optim import ARS, LossBuffer
from resilient_optim.decision import Observation
from resilient_optim.policy_state import MATURE
from tests.helpers import Layers, bits

CALM = [1 + 0.1 * math.sin(7 * i) for i in range(40)]
SHIFT = [*CALM, *[5.0] * 8]  # the eighth is accepted as the new level


def train(kind: type, losses: list[float], base: str = "AdamW", **settings: Any) -> Any:
    """Steps with gradients of the model's own and the losses given."""
    torch.manual_seed(0)
    model = Layers()
    more = {"momentum": 0.9} if base == "SGD" else {}
    inner = getattr(torch.optim, base)(model.parameters(), lr=1e-2, **more)
    settings = {"start_up": 0, "norm_guard": False} | settings
    optimizer: Any = ideas.make(kind.__name__, inner, **settings)
    for step, loss in enumerate(losses):
        optimizer.zero_grad()
        model.loss(step).backward()
        optimizer.step(loss)
    optimizer.model = model
    return optimizer


def moments(optimizer: Any, name: str) -> list[torch.Tensor]:
    return [state[name] for state in optimizer.state.values()]


@pytest.mark.parametrize("name", peers.IDEAS)
def test_an_idea_leaves_a_healthy_mature_run_alone(name: str) -> None:
    kind = getattr(ideas, peers.IDEAS[name].source.split(".")[-1])
    assert bits(train(kind, CALM * 3).model) == bits(train(ARS, CALM * 3).model)


@pytest.mark.parametrize("base", ["AdamW", "SGD"])
def test_momentum_is_refreshed_at_the_new_level_and_only_there(base: str) -> None:
    name = "exp_avg" if base == "AdamW" else "momentum_buffer"
    share = 0.1 if base == "AdamW" else 1.0
    for losses, fresh in ((SHIFT[:-1], False), (SHIFT, True)):
        optimizer = train(ideas.MomentumRefreshed, losses, base)
        grads = [share * p.grad for p in optimizer.model.parameters()]
        same = [torch.allclose(a, b) for a, b in zip(moments(optimizer, name), grads, strict=True)]
        assert same == [fresh] * len(grads)
    if base == "AdamW":
        assert all(float(step) > 30 for step in moments(optimizer, "step"))


def test_refreshing_all_moments_starts_the_bias_correction_again() -> None:
    optimizer = train(ideas.MomentsRefreshed, SHIFT)
    assert [float(step) for step in moments(optimizer, "step")] == [1.0, 1.0]


def test_beta2_is_lowered_for_fifty_steps() -> None:
    for more, beta2 in ((0, 0.9), (49, 0.9), (50, 0.999)):
        optimizer = train(ideas.Forgetful, [*SHIFT, *[5.0] * more])
        assert optimizer.param_groups[0]["betas"] == (0.9, beta2)


def test_the_update_is_ramped_up_after_a_new_level() -> None:
    scales = [train(ideas.ReWarmed, [*SHIFT, *[5.0] * n]).last.update_scale for n in (0, 5, 9, 10)]
    assert scales == pytest.approx([0.3, 0.65, 0.93, 1.0])


@pytest.mark.parametrize("kind", [ideas.OwnDoing, ideas.OwnDoingUnbraked])
def test_surprises_are_our_own_doing_if_the_learning_rate_is_unusual(kind: type) -> None:
    def run(rate: float) -> Any:
        optimizer = train(kind, CALM, lr_jump=math.inf)
        optimizer.param_groups[0]["lr"] *= rate
        for _ in range(3):
            optimizer.step(5.0)
        zeroed = not any(bool(m.any()) for m in moments(optimizer, "exp_avg"))
        optimizer.step(1.0)
        return zeroed, optimizer.last.update_scale

    assert run(1.0) == (False, 1.0)
    zeroed, scale = run(3.0)
    assert zeroed
    assert (scale < 0.2) == (kind is ideas.OwnDoing)


def test_surprises_after_an_outlier_gradient_are_our_own_doing() -> None:
    for norm, expected in ((1.0, False), (1e3, True)):
        optimizer = train(ideas.OwnDoing, [])
        optimizer.config = ARS(torch.optim.SGD([torch.zeros(1)]), start_up=0).config
        optimizer._memory.policy = MATURE._replace(level=1.0, scale=0.1, alert=float(norm > 1))
        optimizer._decide(1.0, None)
        assert optimizer.warned is expected and optimizer.ours() is expected


def see(kind: Any, norm: float, loss: float = 1.0, **state: Any) -> Any:
    """One step of the rules of an idea: the decision and the state after it."""
    policy = state.pop("policy", MATURE)._replace(**{"log_norm": 0.0, **state})
    return kind().decide(policy, LossBuffer(64), Observation(1, loss, norm))


def test_the_opening_and_the_hold_of_a_young_run() -> None:
    young = {"policy": ideas.PolicyState(young_steps=3, healthy=3)}
    assert see(ideas.DefaultConfig, 1.5, **young)[0].phi == pytest.approx(5 / 30)
    assert see(ideas.NoOpening, 1.5, **young)[0].phi == 1.0
    assert see(ideas.NoOpening, 1.5, **young)[0].grad_scale == pytest.approx(1 / 1.5)
    assert see(ideas.LooseHold, 1.5, **young)[0].grad_scale == 1.0
    assert see(ideas.LooseHold, 8.0, **young)[0].grad_scale == pytest.approx(1 / 4)
    assert see(ideas.OpeningByNorm, 1.5, **young)[1].healthy == 6
    assert see(ideas.OpeningByNorm, 0.5, **young)[1].healthy == 4
    assert see(ideas.OpenAtOnce, 1.5, **young)[0].phi == 1.0
    assert see(ideas.OpenAtOnce, 1.5, **young)[0].grad_scale == pytest.approx(1 / 1.5)
    opened = {"policy": ideas.PolicyState(young_steps=20, healthy=20, open=True)}
    assert see(ideas.ShortHold, 1.0, **opened)[1].young_steps == -1
    assert see(ideas.DefaultConfig, 1.0, **opened)[1].young_steps == 21


@pytest.mark.parametrize(
    ("alert", "lasting", "full"), [(3.0, 64, 64), (1.5, 64, 16), (0.5, 16, 16)]
)
def test_how_fast_the_alert_dies_down(alert: float, lasting: int, full: int) -> None:
    for kind, rate in ((ideas.LastingAlert, lasting), (ideas.LastingFullAlert, full)):
        assert see(kind, 1.0, alert=alert)[1].alert == pytest.approx(alert - 1 / rate)


@pytest.mark.parametrize(
    ("norm", "held", "loose"), [(1.0, 1, 1), (1.2, 1 / 1.2, 1), (2, 0.5, 0.65), (8, 1 / 8, 1 / 8)]
)
def test_a_loose_alert_leaves_usual_noise_alone(norm: float, held: float, loose: float) -> None:
    alarmed = {"alert": 2.0, "log_norm_sigma": math.log(1.3)}  # at six of them begin outliers
    assert see(ideas.DefaultConfig, norm, **alarmed)[0].grad_scale == pytest.approx(held)
    decision = see(ideas.LooseAlert, norm, **alarmed)[0]
    assert decision.grad_scale == pytest.approx(loose)
    assert decision.touched == (loose < 1.0) == (decision.action == "damp")


def test_a_new_level_may_end_the_alert() -> None:
    sick = {"alert": 3.0, "streak": 7.5, "level": 1.0, "scale": 0.1}
    assert see(ideas.DefaultConfig, 3.0, 5.0, **sick)[1].alert == 3.0
    assert see(ideas.AlertEnds, 3.0, 5.0, **sick)[1].alert == 0.0
    assert see(ideas.FreshReference, 3.0, 5.0, **sick)[1].log_norm == pytest.approx(math.log(3.0))
    assert see(ideas.AlertEnds, 3.0, 1.0, **sick)[1].alert > 2.0
