"""What type checkers see of the public names: run by mypy, against the installed wheel.

`assert_type` fails where a type is another than the one written here, `Any` included.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.axes import Axes
from torch import Tensor
from typing_extensions import assert_type

import resilient_optim as ro
from resilient_optim import integrations, report, schedules

model = torch.nn.Linear(4, 1)
optimizer = ro.ARS(
    torch.optim.AdamW(model.parameters()),
    model=model,
    snapshot=ro.Snapshots(every=50),
    budgets=ro.Budgets(rollbacks=3),
    on_event=lambda decision: print(decision.step),
    event_log=Path("events.jsonl"),
    start_up=0,
)
base: torch.optim.Optimizer = optimizer
assert_type(optimizer.config, ro.DefaultConfig | ro.PaperConfig)
assert_type(optimizer.last, ro.Decision | None)
assert_type(optimizer.counters, Counter[str])
assert_type(optimizer.loss_buffer, ro.LossBuffer)
assert_type(optimizer.loss_buffer.losses.values, npt.NDArray[np.float64])
assert_type(optimizer.monitor, ro.Reading)
assert_type(optimizer.metrics(), dict[str, float])
assert_type(optimizer.resume(), int)
assert_type(optimizer.report(0.5), None)
assert_type(ro.__version__, str)

decision = ro.Decision(0, "apply", "quiet", 0.5)
assert_type(decision.reason, str)
assert_type(decision.grad_norm, float | None)
assert_type(decision.rolled_back_to, int | None)
assert_type(decision.touched, bool)

try:
    optimizer.step(torch.tensor(0.5))
except ro.TrainingDiverged as error:
    assert_type(error.cause, str)
    assert_type(error.step, int)
    assert_type(error.decision, ro.Decision)

rca = ro.RCA(mode="max", min_values=20)
assert_type(rca.update(0.5), ro.Reading)
assert_type(rca.reading, ro.Reading | None)
assert_type(rca.update(0.5).recommendation, str)
assert_type(ro.RCAConfig().window, int)

with ro.ResonantCallback(Path("checkpoints"), metrics={"accuracy": "max"}) as callback:
    callback(model=model, optimizer=optimizer, metrics={"accuracy": 0.5})
    assert_type(callback.should_stop(), bool)
    assert_type(callback.best_epoch, int)
    assert_type(callback.best_loss, float)
    assert_type(callback.lr_reductions, int)

stopper = ro.LayerVariationStopper(model)
assert_type(stopper.end_epoch(), bool)
assert_type(stopper.names, list[str])

wsd = schedules.WSD(optimizer, 100, decay_steps=20)
assert_type(wsd.factor(3), float)
assert_type(wsd.get_last_lr(), list[float | Tensor])
phases = schedules.PhaseSchedule(optimizer, "[1e-3,0] lin[0,9]", weight_decay=["[5e-5,0]"])
assert_type(phases.lr, list[str | None])
rewarm = schedules.ReWarm(phases, optimizer, warmup_steps=10, decay_steps=90)
assert_type(rewarm.age, float | None)
assert_type(schedules.parse_phases("[0,0]")(0.5), float)
assert_type(schedules.plot("[0,0]", steps=10), Axes)
assert_type(schedules.refined_decay([1.0, 2.0]), npt.NDArray[np.float64])

assert_type(report.write("events.jsonl", Path("reports")), tuple[Path, Path])
assert_type(integrations.find(optimizer), ro.ARS | None)
assert_type(integrations.unwrap(optimizer), ro.ARS)
