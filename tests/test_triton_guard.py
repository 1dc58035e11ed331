"""The guard kernel against the policy: every decision, and everything remembered after it."""

import math
import random
from collections import Counter, defaultdict
from dataclasses import fields

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from resilient_optim import DefaultConfig
from resilient_optim.decision import Observation
from resilient_optim.kernels import guard, guard_rules
from resilient_optim.loss_buffer import LossBuffer
from resilient_optim.memory import COUNTERS, HEADER, Memory
from resilient_optim.policy_state import MATURE, PolicyState
from tests.interpreter import DEVICE, interpreted

SETTINGS = {
    "default": {},
    "jitter": {"jitter_scale": 0.1, "rho_threshold": 0.55, "max_norm": 2.0, "window_size": 40},
    "grown-up": {"start_up": 0, "patience": 3, "window_size": 33},
    "sgd": {"momentum_gain": 10.0},
    "no norm": {"norm_guard": False, "alert_threshold": math.inf, "lr_jump": math.inf},
}
LR = "non-finite learning rate"
REASONS = {
    "default": set(guard.REASONS) - {"resonance"},
    "jitter": set(guard.REASONS),
    "grown-up": set(guard.REASONS) - {"start-up", "resonance"},
    "sgd": set(guard.REASONS) - {"resonance"},
    "no norm": {"quiet", "start-up", "surprise", "new level", "non-finite loss", LR},
}
STEPS = 420
COMPILED = guard.guard_kernel  # before an interpreted one takes its place
GROUPS = 3


@pytest.fixture(autouse=True)
def _interpreter():
    with interpreted():
        yield


def trace(seed):
    """Losses, norms and learning rates of a run to which everything happens."""
    rng = random.Random(seed)
    for step in range(STEPS):
        loss = 3 * math.exp(-step / 60) + 1 + 0.05 * rng.gauss(0, 1)
        if rng.random() < 0.04:
            loss += 3 * rng.random()
        if 200 <= step < 290:  # an oscillation
            loss += 0.5 * (step % 2)
        if step >= 330:  # a new level
            loss += 3
        norm = math.exp(rng.gauss(0, 0.3)) * (30 if rng.random() < 0.03 else 1)
        if 300 <= step < 312:  # outliers in a row
            norm = 40.0
        if 180 <= step < 190:  # a constant in place of the loss
            loss, norm = 1.0, 0.0
        if step % 61 == 7:
            norm = math.inf
        if step % 67 == 11:
            loss = math.nan
        factor = 5.0 if 150 <= step < 160 or step >= 390 else 1.0
        lrs = [1e-3 * factor, 1e-2, 2e-3 * (step + 1) / STEPS]
        if step % 71 == 5:
            lrs[1] = math.nan if step % 2 else math.inf
        yield loss, norm, lrs[: GROUPS if step > 20 else GROUPS - 1]


def host_steps(settings, seed=0):
    """Each step on the host: memory before, what is seen, the decision and the memory after."""
    config = DefaultConfig(**settings)
    memory = Memory(LossBuffer(config.history), config.first_state(young=True))
    for loss, norm, lrs in trace(seed):
        before = np.stack(memory.pack(GROUPS))
        memory.see_lrs([{"lr": lr} for lr in lrs])
        warms_up = memory.policy.young_steps >= 0 and memory.notices_warmup()
        measured = norm if config.norm_guard else None
        of_lrs = memory.lr_ratio, memory.lr_ratios, memory.common_lr
        seen = Observation(memory.counters["observed"], loss, measured, warms_up, *of_lrs)
        decision, memory.policy = config.decide(memory.policy, memory.buffer, seen)
        memory.remember(decision)
        yield before, seen, lrs, decision, np.stack(memory.pack(GROUPS))


def device_step(config, before, loss, norm, lrs):
    """The same step on the device: what it tells, and the memory after it."""
    groups = len(lrs)

    def array(values, dtype=torch.float64):
        return torch.tensor(values, dtype=dtype, device=DEVICE)

    settings = [getattr(config, name) for name in guard.SETTINGS]
    arrays = guard.Guard(
        state=array(before[0, :-2]),
        first_lrs=array(before[:groups, -2]),
        proven_lrs=array(before[:groups, -1]),
        settings=array([math.inf if value is None else float(value) for value in settings]),
        lrs=array(lrs),
        told=array([0.0] * (len(guard.TELLS) + 2)),
        skip=array(0.0, torch.float32),
        step_lrs=array([0.0] * groups, torch.float32),
        step=array(0, torch.int64),
    )
    # The square of the norm in three parts, of gradients of 10, 1 and no elements.
    sums = array([0.75 * norm**2, 0.25 * norm**2, 0.0])
    phi, sigma = array([0.0] * 3, torch.float32), array([0.0] * 3, torch.float32)
    guard.judge_(
        arrays, array(loss), sums, array([10, 1, 0], torch.int64), phi, sigma,
        window_size=config.history, measures_norm=config.norm_guard,
    )  # fmt: skip
    told = arrays.told.tolist()
    assert told[0] == told[-1] == before[0, guard_rules.OBSERVED.value] + 1  # the sequence number
    told = dict(zip(guard.TELLS, told[1:-1], strict=True))
    lrs = torch.stack([arrays.first_lrs, arrays.proven_lrs], dim=1).cpu().numpy()
    state = np.tile(arrays.state.cpu().numpy(), (groups, 1))
    return told, np.concatenate([state, lrs], axis=1), arrays, phi.tolist(), sigma.tolist()


def chosen(settings):
    """A few steps for each reason, and of each kind of step that is not told apart by it."""
    kinds = defaultdict(list)
    for step in host_steps(settings):
        decision = step[3]
        turn = decision.step % 8 == 0
        kinds[decision.reason, decision.action, step[1].grad_norm == 0.0, turn].append(step)
    rng = random.Random(1)
    return [step for steps in kinds.values() for step in rng.sample(steps, min(3, len(steps)))]


@pytest.mark.parametrize("young_steps", [0, 6, 40, 97, 104])
@pytest.mark.parametrize("norm", [1.0, 10.0])
def test_the_gate_of_an_unruly_run_opens_as_the_policys(young_steps, norm):
    config = DefaultConfig()
    policy = PolicyState(young_steps=young_steps, healthy=3, log_norm=0.0)
    memory = Memory(LossBuffer(config.history), policy)
    before = np.stack(memory.pack(1))
    decision, after = config.decide(policy, memory.buffer, Observation(1, 2.0, norm))
    before[0, guard_rules.OBSERVED.value] = 1
    told, remembered, *_ = device_step(config, before, 2.0, norm, [0.1])
    assert told["phi"] == pytest.approx(decision.phi)
    assert bool(remembered[0, guard_rules.OPEN.value]) == after.open
    assert remembered[0, guard_rules.HEALTHY.value] == after.healthy


@pytest.mark.parametrize("gain", [0.0, 1.0, 10.0])
@pytest.mark.parametrize("loss", [2.0, 1e-300, 0.0, -1.0])
@pytest.mark.parametrize("norm", [0.0, 1e-100, 0.3, 4.0, 1e100])
@pytest.mark.parametrize("lr", [0.0, 0.1])
def test_an_opening_by_the_first_gradient_is_the_policys(lr, norm, loss, gain):
    for lrs, max_norm in (([lr, lr], None), ([lr, lr], 0.2), ([lr / 2, lr], None)):
        config = DefaultConfig(momentum_gain=gain, max_norm=max_norm)
        memory = Memory(LossBuffer(config.history), PolicyState())
        before = np.stack(memory.pack(2))
        memory.see_lrs([{"lr": lr} for lr in lrs])
        seen = Observation(0, loss, norm, lr=memory.common_lr)
        decision, after = config.decide(memory.policy, memory.buffer, seen)
        told, remembered, *_ = device_step(config, before, loss, norm, lrs)
        assert remembered[0, guard_rules.OPENING_STEPS.value] == after.opening_steps > 0
        assert told["phi"] == pytest.approx(decision.phi)


@pytest.mark.parametrize(
    ("level", "streak", "streak_after"), [(2.0, 0.0, 1.0), (2.0, 6.5, 7.0), (math.inf, 2.0, 5 / 3)]
)
def test_far_outliers_count_as_surprises_as_the_policys_do(level, streak, streak_after):
    config = DefaultConfig()
    policy = MATURE._replace(level=level, log_norm=0.0, log_norm_sigma=0.1, outliers=2)
    memory = Memory(LossBuffer(config.history), policy._replace(streak=streak))
    before = np.stack(memory.pack(1))
    decision, after = config.decide(memory.policy, memory.buffer, Observation(1, 2.0, 10.0))
    before[0, guard_rules.OBSERVED.value] = 1
    told, remembered, *_ = device_step(config, before, 2.0, 10.0, [0.1])
    assert (decision.action == "skip") == bool(told["skip"]) == math.isfinite(level)
    assert remembered[0, guard_rules.STREAK.value] == pytest.approx(after.streak)
    assert after.streak == pytest.approx(streak_after)
    assert remembered[0, guard_rules.OUTLIERS.value] == after.outliers == 3


@pytest.mark.parametrize("name", SETTINGS)
def test_every_decision_is_the_policys(name):
    config = DefaultConfig(**SETTINGS[name])
    reasons = Counter()
    for before, seen, lrs, decision, after in chosen(SETTINGS[name]):
        norm = 1.0 if seen.grad_norm is None else seen.grad_norm
        told, remembered, arrays, phi, sigma = device_step(config, before, seen.loss, norm, lrs)
        reasons[decision.reason] += 1
        assert guard.REASONS[int(told["reason"])] == decision.reason
        for field in ("z", "rho", "psi", "phi", "chi", "update_scale", "grad_scale"):
            expected = getattr(decision, field)
            assert told[field] == pytest.approx(expected, rel=1e-9, nan_ok=True), field
        assert told["step"] == seen.step
        assert told["loss"] == pytest.approx(seen.loss, nan_ok=True)
        assert bool(told["skip"]) == (decision.action == "skip") == bool(arrays.skip)
        assert bool(told["new_level"]) == decision.new_level
        np.testing.assert_allclose(remembered, after[: len(lrs)], rtol=1e-9, atol=1e-12)
        acts = decision.action != "skip"
        scales = decision.group_scales(len(lrs)) if acts else [1.0] * len(lrs)
        taken = [lr * scale for lr, scale in zip(lrs, scales, strict=True)]
        assert arrays.step_lrs.tolist() == pytest.approx(taken, rel=1e-6, nan_ok=True)
        assert phi == pytest.approx([decision.grad_scale if acts else 1.0] * 3, rel=1e-6)
        rms = [norm * math.sqrt(0.075), norm * math.sqrt(0.25), 0.0]
        strength = decision.chi * decision.grad_scale if acts else 0.0
        assert sigma == pytest.approx([strength * r if strength else 0.0 for r in rms], rel=1e-6)
        assert arrays.step.item() == seen.step
    unseen = "a new reason needs a place in guard.REASONS, and a step of `trace` that shows it"
    assert set(reasons) == REASONS[name], unseen


def test_layout_is_that_of_the_packed_memory():
    """The kernel reads the policy's numbers where `Memory.pack` puts them."""
    missing = [name for name in PolicyState._fields if not hasattr(guard_rules, name.upper())]
    assert not missing, "give each a constant in guard_rules.py, and keep it in its functions"
    names = [*PolicyState._fields, *COUNTERS, "skips"]
    for place, name in enumerate(names, start=HEADER):
        assert getattr(guard_rules, name.upper(), place) == place
    assert guard_rules.LOSSES == HEADER + len(names)


def test_every_setting_reaches_the_kernel():
    """One that is forgotten would be obeyed on the host only."""
    constants = {"window_size", "norm_guard"}  # of the launch, see `judge_`
    settings = {field.name for field in fields(DefaultConfig)}
    missing = "name it in guard.SETTINGS, load it in guard_rules.decide, try it in SETTINGS here"
    assert settings == {*guard.SETTINGS, *constants}, missing


def test_every_part_of_the_verdict_has_a_place():
    """`guard_kernel` writes the verdict after the number of the step, then the counters."""
    for place, name in enumerate(guard.VERDICT, start=1):
        assert getattr(guard_rules, f"TOLD_{name.upper()}", None) == place, (
            "and tell it in guard.py"
        )
    assert guard_rules.TOLD_COUNTERS == 1 + len(guard.VERDICT)


def test_the_kernel_is_compiled_once():
    """Another address or length would wait for the compiler in mid-run."""
    varying = [p.name for p in COMPILED.params if not (p.is_constexpr or p.do_not_specialize)]
    assert varying == []
