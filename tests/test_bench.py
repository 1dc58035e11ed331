"""The overhead benchmark: its states, records, arithmetic and command, on tensors of no size."""

import argparse
import dataclasses
import io
import random

import pytest
import torch
from rich.console import Console

from nanogpt_demo.bench import cases, command, measure, methods, summary
from nanogpt_demo.bench.cases import BASES, CASES, Case, TensorSet, TrainingStep, tensors
from nanogpt_demo.bench.memory import bytes_of
from nanogpt_demo.bench.methods import VARIANTS, Variant, steady, variants_for
from nanogpt_demo.bench.picture import overhead_picture
from nanogpt_demo.readme import BLOCKS, provenance
from nanogpt_demo.spec import SIZES
from nanogpt_demo.store import Store
from resilient_optim import ARS

CPU = torch.device("cpu")
SHAPES = [(8, 4), (4,), (3,)]
TINY = tensors("tiny", SHAPES, ["adamw-fused", "lion"], rounds=3, steps=8)
FIELDS = {"kind", "case", "base", "device", "method", "state", "rounds", "steps", "in_state"} | {
    name + suffix for name in ("ms", "ratio_to_bare", "added") for suffix in ("", "_q1", "_q3")
}


def quiet_console():
    return Console(file=io.StringIO())


def quick_step(device):
    size = SIZES["quick"]
    return TrainingStep(size.config(cases.VOCAB), size.batch, device)


def timed(records):
    return [record for record in records if record["kind"] == "time"]


# -- what is stepped --------------------------------------------------------------------------


def test_gpt2_has_its_published_number_of_parameters():
    shapes = cases.gpt2_shapes()
    assert len(shapes) == 148
    assert sum(torch.Size(shape).numel() for shape in shapes) == 124_439_808


def test_gradients_come_back_after_a_method_has_changed_them():
    workload = TensorSet(SHAPES, CPU)
    model = workload.model()
    workload.gradients(model)
    before = [p.grad.clone() for p in model.parameters()]
    assert torch.cat([g.flatten() for g in before]).norm().item() == pytest.approx(0.5)
    for p in model.parameters():
        p.grad.zero_()
    model.zero_grad(set_to_none=True)
    workload.gradients(model)
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


@pytest.mark.parametrize("base", BASES)
def test_optimizers_of_a_tensor_set_work_on_the_same_moments(base):
    workload = TensorSet(SHAPES, CPU)
    model = workload.model()
    first, second = (BASES[base](model.parameters()) for _ in range(2))
    workload.share(first, model)
    workload.share(second, model)
    second.step()
    for p in model.parameters():
        assert first.state[p] and first.state[p] is second.state[p]


def test_methods_of_a_training_step_have_models_of_their_own():
    workload = quick_step(CPU)
    one, other = workload.model(), workload.model()
    assert all(torch.equal(a, b) and a is not b for a, b in zip(*map(list, (
        one.parameters(), other.parameters())), strict=True))  # fmt: skip
    workload.gradients(one)
    assert all(p.grad is not None for p in one.parameters())
    assert all(p.grad is None for p in other.parameters())


def test_the_planned_cases_are_those_of_the_issue():
    rows = {(case.name, base) for case in CASES for base in case.bases}
    assert {"20x1M", "200-tiny", "gpt2-124m", "gpt-step"} == {case for case, _ in rows}
    assert rows >= {(case, "adamw-fused") for case, _ in rows} | set(summary.PROMISED)
    for case in ("20x1M", "200-tiny"):
        assert {base for name, base in rows if name == case} == set(BASES)


# -- measuring --------------------------------------------------------------------------------


@pytest.mark.parametrize("base", BASES)
def test_every_method_is_measured_in_its_state(base):
    records = measure.measure(TINY, base, CPU)
    times = timed(records)
    wanted = [(variant.method, variant.state) for variant in variants_for(base)]
    assert [(record["method"], record["state"]) for record in times] == wanted
    assert ("spam" in [method for method, _ in wanted]) == base.startswith("adamw")
    for record in times:
        assert record.keys() == FIELDS and record["in_state"] >= measure.IN_STATE
        assert 0 < record["ms_q1"] <= record["ms"] <= record["ms_q3"]
        assert record["ratio_to_bare"] == pytest.approx(1 + record["added"], rel=1e-3)


def test_states_are_checked_on_what_ars_did():
    with measure.attached(TINY, "adamw-fused", CPU) as bench:
        bench.warm_up()
        before = {t.variant: dict(t.subject.ars.counters) for t in bench.turns if t.subject.ars}
        bench.round(random.Random(0))
        for turns in bench.turns:
            if turns.subject.ars is None:
                continue
            now, steps = turns.subject.ars.counters, TINY.steps
            rose = {name: now[name] - count for name, count in before[turns.variant].items()}
            assert rose["observed"] == steps and rose["skipped"] == 0
            state, paper = turns.variant.state, turns.variant.method == "ars-paper"
            assert rose["touched"] == (0 if state == "quiet" else steps)
            assert rose["bounded"] == (steps if state == "bounded" else 0)
            assert rose["damped"] == (steps if state == "damped" else 0)
            assert rose["jittered"] == (steps if state == "jittered" else 0) or paper


def test_noise_alone_adds_noise_and_decides_nothing():
    (alone,) = (v for v in VARIANTS if v.method == summary.NOISE_ALONE)
    model = TensorSet([(400, 30)], CPU).model()
    (p,) = model.parameters()
    p.grad, before = torch.ones_like(p), p.detach().clone()
    alone.attach(model, torch.optim.SGD([p], lr=1.0)).step(torch.tensor(float("nan")))
    added = p.grad - 1.0
    assert added.std().item() == pytest.approx(methods.JITTER, rel=0.05)
    assert abs(added.mean().item()) < 0.01 and torch.equal(p.detach(), before - p.grad)


def test_a_wrong_state_raises(monkeypatch):
    loud = next(v for v in VARIANTS if v.state == "jittered")
    calm = dataclasses.replace(loud, losses=steady)
    monkeypatch.setattr(measure, "variants_for", lambda base: [measure.BARE, calm])
    with pytest.raises(measure.WrongStateError, match="ars on tiny, adamw-fused must be jittered"):
        measure.measure(TINY, "adamw-fused", CPU)


def test_in_a_training_step_the_passes_are_timed_and_the_added_time_is_not_theirs():
    case = Case("step", quick_step, ("adamw-fused",), rounds=2)
    times = {summary.label(r): r for r in timed(measure.measure(case, "adamw-fused", CPU))}
    assert times["bare"]["added"] == 0.0 and times["bare"]["ratio_to_bare"] == 1.0
    assert times["bare"]["ms"] > 0.5  # a forward and a backward pass of 0.1 million parameters
    assert set(times) >= {"clip", *summary.RIVALS, summary.QUIET}


def test_queued_steps_are_timed_as_a_whole(monkeypatch):
    """As on a GPU: nothing is waited for between the steps of a turn."""
    case = Case("step", quick_step, ("adamw-fused",), rounds=1, steps=3)
    with measure.attached(case, "adamw-fused", CPU) as bench:
        assert not bench._queues
        bench.warm_up()
        looks, now = [], bench._now
        monkeypatch.setattr(bench, "_now", lambda: looks.append(now()) or looks[-1])
        bench._queues = True
        given = {turns.variant: turns.given for turns in bench.turns}
        bench.round(random.Random(0))
    assert len(looks) == 2 * len(bench.turns), "the clock is read at both ends of a turn"
    for turns in bench.turns:
        assert turns.given == given[turns.variant] + 3 and len(turns.checked) == 1
        assert turns.whole == turns.step and turns.whole[0] > 0


def test_a_peer_may_answer_to_real_gradients():
    """But not ARS, whose state is what is measured."""
    case = Case("step", quick_step, ("adamw-fused",), rounds=1)
    with measure.attached(case, "adamw-fused", CPU) as bench:
        for turns in bench.turns:
            turns.whole, turns.step, turns.checked = [1.0], [1.0], [False]
            if turns.subject.ars is None:
                assert bench._times(turns, turns)["in_state"] == 0.0
            else:
                with pytest.raises(measure.WrongStateError):
                    bench._times(turns, turns)


def test_a_method_is_closed_even_if_the_measurement_fails():
    closed = []

    def fail():
        raise RuntimeError("broken")

    def attach(model, optimizer):
        subject = measure.Subject(lambda loss: fail(), close=lambda: closed.append(True))
        return subject

    broken = Variant("broken", "any", attach)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measure, "variants_for", lambda base: [broken])
        with pytest.raises(RuntimeError, match="broken"):
            measure.measure(TINY, "adamw-fused", CPU)
    assert closed == [True]


def test_bytes_are_those_of_the_arrays():
    weight = torch.nn.Parameter(torch.zeros(5))
    ars = ARS(torch.optim.SGD([weight], lr=0.1), window_size=32)
    found = bytes_of(ars)
    assert found["buffer"] == 2 * 2 * 32 * 8  # two windows, each twice as long, of float64
    assert found["state"] == ars.param_groups[0]["ars"].numel() * 8
    assert found["table"] == found["other"] == 0
    table = ars._noise.table(CPU)
    ars.snapshot = [torch.zeros(10)]
    assert bytes_of(ars)["table"] == table.numel() * 4
    assert bytes_of(ars)["other"] == 40


# -- the command ------------------------------------------------------------------------------


def run_command(folder, fresh=False):
    console = quiet_console()
    options = argparse.Namespace(out=folder, fresh=fresh)
    assert command.main(options, "python -m nanogpt_demo bench", console) == 0
    return console.file.getvalue()


def test_the_command_measures_saves_draws_and_goes_on(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "CASES", (tensors("20x1M", SHAPES, ["adamw-fused"], rounds=2),))
    monkeypatch.setattr(command.torch.cuda, "is_available", lambda: False)
    assert "promise" in run_command(tmp_path)
    store = Store(tmp_path, "overhead")
    first = store.read()
    assert {"command", "commit", "environment", "records", "summary"} == set(first)
    assert store.picture.stat().st_size > 10_000
    assert first["environment"]["threads"] == torch.get_num_threads()
    assert first["summary"] == summary.summarise(first["records"])
    assert all("commit" in record for record in first["records"])

    more = (*command.CASES, tensors("200-tiny", SHAPES, ["adamw-fused"], rounds=2))
    monkeypatch.setattr(command, "CASES", more)
    assert "20x1M, adamw-fused: done already" in run_command(tmp_path)
    second = store.read()
    assert second["records"][: len(first["records"])] == first["records"]
    assert list(second["summary"]["ratios"]) == ["20x1M, adamw-fused", "200-tiny, adamw-fused"]

    assert "done already" not in run_command(tmp_path, fresh=True)
    third = store.read()
    assert len(third["records"]) == len(second["records"])
    assert third["records"] != second["records"]
    for name in ("overhead-table", "overhead-checks", "overhead-provenance"):
        kind, make = BLOCKS[name]
        assert kind == "overhead" and make(third)
    assert "bench" in provenance(third)


def test_results_of_another_device_are_not_mixed_in(tmp_path):
    Store(tmp_path, "overhead").change(
        lambda document: document["records"].append(
            {"device": "NVIDIA X", "case": "a", "base": "b"}
        )
    )
    results = command.Results(Store(tmp_path, "overhead"), "bench", "cpu")
    with pytest.raises(ValueError, match="out must hold results of cpu, got NVIDIA X"):
        results.rows()


def test_nothing_is_drawn_without_a_fused_row(tmp_path):
    overhead_picture({"records": []}, tmp_path / "none.png")
    assert not list(tmp_path.iterdir())
