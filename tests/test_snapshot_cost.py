"""The benchmark of snapshots measures a run by its own time."""

import io
import json

import torch
from rich.console import Console

from nanogpt_demo import snapshot_cost
from nanogpt_demo.bench.cases import tensors
from resilient_optim import Snapshots

CASE = tensors("tiny", [(8, 8)] * 4, ["adamw-fused"], rounds=2)


def test_the_turn_of_the_other_is_no_time_of_the_run(monkeypatch):
    run = snapshot_cost.Run(CASE, Snapshots(every=10**6))
    run.block(3)
    (step, at), running = run.ring._taken_at, run.running
    clock = snapshot_cost.time.perf_counter
    monkeypatch.setattr(snapshot_cost.time, "perf_counter", lambda: clock() + 1000.0)
    run.block(1)
    later, moved = run.ring._taken_at
    assert later == step
    assert 1000.0 <= moved - at < 1001.0
    assert run.running - running < 1.0


def test_a_record_says_what_copies_cost(monkeypatch):
    monkeypatch.setattr(snapshot_cost, "SECONDS", 0.05)
    torch.manual_seed(0)
    record = snapshot_cost.measure(CASE, Console(file=io.StringIO()))
    assert 0.0 < record["copying"] < 1.0 and record["steps"] >= 64
    assert record["held"] >= record["state"] > 4 * 64 * 4 * 3
    table = snapshot_cost.snapshots_table({"records": [json.loads(json.dumps(record))]})
    assert f"| {100 * record['copying']:.2f} % |" in table
