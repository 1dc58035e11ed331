"""The published rules, the ones set by the noise, and what holds for any curve."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from resilient_optim import callback
from resilient_optim.callback import ResonantCallback
from resilient_optim.callback_metric import better
from resilient_optim.callback_settings import PRESETS, from_noise
from resilient_optim.rca import UNKNOWN

losses = st.lists(st.floats(0.01, 10.0), min_size=1, max_size=25)


def play(rca, values, lr=1.0):
    """Actions and learning rates on a recorded curve, up to the stop."""
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    seen = []
    for value in values:
        rca(val_loss=value, model=model, optimizer=optimizer)
        facts = rca.get_statistics()
        seen.append(facts | {"lr": optimizer.param_groups[0]["lr"], "stop": rca.should_stop()})
        if rca.should_stop():
            break
    return seen


# -- preset "paper" -------------------------------------------------------------------------


def as_published(values, patience=3, min_delta=0.01, cuts=2, factor=0.5, floor=1e-6, lr=1.0):
    """The published callback, transcribed rule by rule in the order in which it checks them."""
    history, best, best_epoch, waited, made, stop, seen = [], math.inf, 0, 0, 0, False, []
    for epoch, loss in enumerate(values, 1):
        history.append(loss)
        window = history[-10:]
        beta = omega = confidence = 0.0
        if len(history) >= 4:
            mean = sum(window) / len(window)
            steps = [window[i] - window[i - 1] for i in range(1, len(window))]
            beta = min(1.0, max(0.0, 1.0 - max(map(abs, steps)) / (mean + 1e-8)))
            turns = sum(steps[i] * steps[i - 1] < 0 for i in range(1, len(steps)))
            omega = min(12.0, max(1.0, 2.0 * math.pi * (turns / len(steps))))
            confidence = min(1.0, len(history) / 10.0)
            if len(window) >= 5:
                deviation = math.sqrt(sum((x - mean) ** 2 for x in window) / len(window))
                confidence *= 1.0 / (1.0 + deviation)
        if beta > 0.85 and 5.5 <= omega <= 6.5:
            state = "converging"
        elif beta > 0.7:
            state = "plateau"
        elif omega > 8.0 or beta < 0.3:
            state = "unstable"
        else:
            state = "improving"
        if best == math.inf or (best - loss) / best > min_delta:
            waited = 0
            if loss < best:
                best, best_epoch = loss, epoch
        else:
            waited += 1
        # 1. Patience used up: cut, or stop if that cannot be.
        if waited >= patience:
            smaller = max(lr * factor, floor)
            if made < cuts and smaller < lr:
                lr, made, waited = smaller, made + 1, 0
            else:
                stop = True
        # 2. Plateau.
        if state == "plateau" and beta > 0.85 and waited >= 2:
            stop = True
        elif state == "plateau" and beta > 0.80 and waited >= patience:
            stop = True
        # 3. Overfitting.
        last = history[-3:]
        if len(last) == 3 and last[0] < last[1] < last[2] and waited >= 2:
            stop = True
        # 4. Resonance.
        if beta > 0.85 and 4.5 <= omega <= 6.5 and confidence > 0.7:
            stop = True
        seen.append({
            "current_epoch": epoch, "best_epoch": best_epoch, "best_loss": best, "lr": lr,
            "lr_reductions": made, "epochs_since_improvement": waited, "beta": beta,
            "omega": omega, "confidence": confidence, "state": state, "stop": stop,
        })  # fmt: skip
        if stop:
            break
    return seen


def assert_as_published(values, lr=1.0, **given):
    found = play(ResonantCallback(preset="paper", verbose=False), values, lr)
    expected = as_published(values, lr=lr, **given)
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        for key, value in theirs.items():
            assert ours[key] == value, (key, ours, theirs)


@given(losses)
def test_paper_preset_is_the_published_callback_on_random_curves(values):
    assert_as_published(values)


@given(st.integers(0, 10_000), st.floats(0.0, 0.2), st.floats(0.0, 0.3))
@settings(max_examples=50)
def test_paper_preset_is_the_published_callback_on_noisy_descents(seed, noise, rate):
    random = np.random.default_rng(seed)
    values = (1.0 + np.exp(-rate * np.arange(40))) * np.exp(noise * random.normal(size=40))
    assert_as_published(values.tolist())


def test_paper_preset_at_the_least_lr():
    assert_as_published([1.0] * 20, lr=1.5e-6)


def test_paper_preset_restores_nothing_at_a_cut_and_the_best_at_the_end():
    model = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    with ResonantCallback(preset="paper", verbose=False) as rca:
        for epoch, value in enumerate([1.0, 2.0, 1.5, 2.0]):
            torch.nn.init.constant_(model.weight, epoch)
            rca(val_loss=value, model=model, optimizer=optimizer)
        assert rca.action == "reduce_lr" and model.weight.item() == 3.0
    assert model.weight.item() == 0.0
    assert optimizer.param_groups[0]["lr"] == 0.5


# -- presets by task, and by the noise ------------------------------------------------------


def test_presets_by_task_have_the_published_values():
    def of(preset, **given):
        rca = ResonantCallback(preset=preset, **given)
        return rca.patience_steps, rca.min_delta, rca.max_lr_reductions, rca.min_lr

    assert of("default") == of("paper") == of("easy") == (3, 0.01, 2, 1e-6)
    assert of("medium") == (4, 0.005, 2, 1e-6)
    assert of("hard") == (5, 0.005, 3, 1e-6)
    assert of("fine-tune") == (2, 0.005, 2, 1e-7)
    assert of("hard", patience_steps=7, min_lr=0.0) == (7, 0.005, 3, 0.0)
    assert all(ResonantCallback(preset=name).lr_reduction_factor == 0.5 for name in PRESETS)


def test_patience_and_threshold_by_the_noise():
    assert from_noise(0.0, 0.01, 0.3) == (1, 0.01)
    assert from_noise(0.005, 0.01, 0.3) == (6, 0.01)
    patience, threshold = from_noise(0.02, 0.01, 0.3)
    assert patience == 23 and threshold == pytest.approx(0.0195, rel=0.01)


@pytest.mark.parametrize("sigma", [0.004, 0.02])
def test_what_the_formula_promises_holds_in_simulation(sigma):
    """Noise passes the threshold in 5 % of comparisons; a gain shows with 95 % power."""
    patience, threshold = from_noise(sigma, 0.0001, 0.3)
    random = np.random.default_rng(0)
    noise = sigma * random.normal(size=(4000, 60))
    smoothed = noise[:, 0]
    for column in noise.T[1:]:
        smoothed = smoothed + 0.3 * (column - smoothed)
    passed = np.mean(smoothed[::2] - smoothed[1::2] > threshold)
    assert passed == pytest.approx(0.05, abs=0.015)
    before, after = noise[:, :patience], noise[:, patience : 2 * patience] - threshold
    gains = before.mean(axis=1) - after.mean(axis=1)
    power = np.mean(gains > 1.6449 * sigma * math.sqrt(2.0 / patience))
    assert power >= 0.94


def test_auto_preset_waits_longer_on_a_noisier_curve():
    random = np.random.default_rng(1)
    found = {}
    for sigma in (0.0, 0.005, 0.02):
        rca = ResonantCallback(preset="auto", verbose=False)
        for value in 1.0 + sigma * random.normal(size=32):
            rca(val_loss=float(value))
            if rca.seen < 8:
                assert rca.patience_steps == 8 and not rca.should_stop()
        found[sigma] = rca.patience_steps, rca.min_delta
    assert found[0.0] == (3, 0.01)
    assert found[0.0] < found[0.005] < found[0.02]
    assert 12 < found[0.02][0] <= 23 and 0.01 < found[0.02][1] < 0.03


# -- any curve ------------------------------------------------------------------------------


class Scripted:
    """An RCA whose recommendations come from a list."""

    script: list[str] = []

    def __init__(self, preset="default", *, mode="min"):
        self.mode, self.reading, self.step = mode, None, 0

    def update(self, value, *, train=None):
        says = self.script[self.step % len(self.script)]
        self.reading = UNKNOWN._replace(recommendation=says)
        self.step += 1


values = st.one_of(st.floats(-5.0, 5.0), st.sampled_from([math.nan, math.inf, -math.inf, 0.0]))
advice = st.sampled_from(["wait", "continue", "reduce_lr", "stop"])


@given(
    st.lists(values, min_size=1, max_size=40),
    st.lists(advice, min_size=1, max_size=40),
    st.integers(1, 5),
    st.integers(0, 3),
    st.integers(0, 3),
    st.sampled_from(["min", "max"]),
)
def test_no_cut_or_stop_before_patience_is_used_up(script, says, patience, cuts, cooldown, mode):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(callback, "RCA", Scripted)
        patch.setattr(Scripted, "script", says)
        rca = ResonantCallback(
            None, patience, max_lr_reductions=cuts, cooldown=cooldown, mode=mode, verbose=False
        )
        seen = play(rca, script)
    quiet = 0  # epochs without improvement since the last cut, the cooldown not counted
    made = 0
    for facts, value in zip(seen, script, strict=False):
        if facts["reason"].startswith("cooldown"):
            continue
        quiet = 0 if facts["action"] == "continue" else quiet + 1
        if facts["action"] in ("reduce_lr", "stop"):
            assert quiet >= patience
            assert facts["action"] == "reduce_lr" or made == cuts
            made += facts["action"] == "reduce_lr"
            quiet = 0
        assert facts["lr_reductions"] == made <= cuts
        assert facts["lr"] == 0.5**made
        assert math.isfinite(value) or facts["action"] != "continue"
    finite = [v for v in script[: len(seen)] if math.isfinite(v)]
    if finite:
        assert seen[-1]["best_loss"] == (min(finite) if mode == "min" else max(finite))


@given(losses, st.integers(-20, 20))
@settings(max_examples=30)
def test_actions_do_not_depend_on_the_unit_of_the_metric(curve, power):
    """A power of two, so that nothing is rounded anew."""
    plain, scaled = (
        play(ResonantCallback(verbose=False), [factor * x for x in curve * 2])
        for factor in (1.0, 2.0**power)
    )
    assert [f["action"] for f in plain] == [f["action"] for f in scaled]
    assert [f["lr"] for f in plain] == [f["lr"] for f in scaled]


@pytest.mark.parametrize("mode", ["min", "max"])
def test_better(mode):
    sign = 1.0 if mode == "min" else -1.0
    assert better(sign * 0.98, sign * 1.0, mode, 0.01) and not better(
        sign * 0.995, sign, mode, 0.01
    )
    assert better(-sign, 0.0, mode, 0.5) and not better(0.0, 0.0, mode)
    assert better(3.0, sign * math.inf, mode) and not better(math.nan, sign * math.inf, mode)
    assert not better(-sign * math.inf, 0.0, mode)
    assert better(-sign * 1.02, -sign * 1.0, mode, 0.01)  # below zero, too
