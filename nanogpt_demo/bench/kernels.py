"""How near the Triton kernels come to the speed at which a GPU copies memory.

Times are the GPU's own, of work that is queued already when it begins: what the host takes to
launch it is not in them, see `measure` for that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanogpt_demo.bench.cases import SEED, Shape
from nanogpt_demo.bench.measure import quartiles
from nanogpt_demo.markdown import markdown
from nanogpt_demo.store import Document

COPIED = 1 << 28
"""Float32 numbers of the copy, 1 GiB, and of what is overwritten before each call: beyond all
caches."""

REPEATS = 51
WARMUP = 5
AHEAD = 2_000_000
"""Clock cycles for which the GPU is kept waiting, so that all is queued before it begins."""

DTYPES = (torch.float32, torch.bfloat16)
SCALE, JITTER = 0.999, 1e-3


@dataclass(frozen=True)
class Operation:
    """What is measured.

    Attributes:
        name: of the operation.
        kernel: ours, or torch's for the same.
        call: queues it.
        size: bytes that have to move.
    """

    name: str
    kernel: str
    call: Callable[[], Any]
    size: int


def measure_kernels(shapes: dict[str, list[Shape]], device: torch.device) -> list[dict[str, Any]]:
    """Measure copy, kernels, and what torch has for the same, in one run.

    Bytes are those that have to move: a gradient is read once for a norm, and read and written
    where it is changed. A gate that is open has nothing to move, and neither has the guard.

    Args:
        shapes: sets of tensors, by name of the case.
        device: a CUDA device.

    Returns:
        Flat records: microseconds (median and quartiles), bytes a second, and that as a share of
        the copy's.
    """
    clock = Clock(device)
    found = [clock.record("1 GiB", torch.float32, _copy(device))]
    for case, members in shapes.items():
        for dtype in DTYPES:
            grads = [torch.randn(shape, device=device, dtype=dtype) for shape in members]
            found += [clock.record(case, dtype, one) for one in operations(grads)]
    speed = found[0]["bytes_per_s"]
    return [record | {"share_of_copy": record["bytes_per_s"] / speed} for record in found]


def _copy(device: torch.device) -> Operation:
    source = torch.randn(COPIED, device=device)
    target = torch.empty_like(source)
    return Operation("copy", "torch", lambda: target.copy_(source), 2 * source.nbytes)


def operations(grads: list[Tensor]) -> Iterator[Operation]:
    """The operations on some gradients.

    Args:
        grads: dense tensors where the kernels can run.
    """
    from resilient_optim.kernels import PhiloxNoise, Table, gate, norm

    size, device = sum(grad.nbytes for grad in grads), grads[0].device
    table, key = Table.of(grads), PhiloxNoise(SEED).key
    step = torch.tensor(0, device=device)

    def factors(value: float) -> Tensor:
        return torch.full((len(grads),), value, device=device)

    def gated(phi: float, sigma: float) -> Callable[[], None]:
        return partial(gate.gate_, table, factors(phi), factors(sigma), key, step)

    yield Operation("norm", "ours", lambda: norm.square_sums(table), size)
    yield Operation("norm", "torch", lambda: torch.nn.utils.get_total_norm(grads), size)
    yield Operation("gate, open", "ours", gated(1.0, 0.0), 0)
    yield Operation("gate, scaling", "ours", gated(SCALE, 0.0), 2 * size)
    yield Operation("gate, scaling", "torch", lambda: torch._foreach_mul_(grads, SCALE), 2 * size)
    yield Operation("gate, scaling and noise", "ours", gated(SCALE, JITTER), 2 * size)
    yield Operation("guard", "ours", _judgement(table), 0)


def _judgement(table: Any) -> Callable[[], None]:
    """The guard on a full window of losses, for the gradients of a table."""
    from resilient_optim import ARS
    from resilient_optim.kernels import guard

    params = [torch.nn.Parameter(torch.zeros(1, device=table.device))]
    ars = ARS(torch.optim.AdamW(params, fused=True), backend="triton", snapshot=False)
    losses = torch.rand(200, generator=torch.Generator().manual_seed(SEED))
    params[0].grad = torch.ones_like(params[0])
    for loss in losses.to(table.device):
        ars.step(loss)
    own: Any = ars._device
    sums = torch.ones(len(table), dtype=torch.float64, device=table.device)
    phi, sigma = torch.ones(2, len(table), device=table.device)
    rest = sums, table.numel, phi, sigma, own.config.history, own.config.norm_guard
    return partial(guard.judge_, own.guard, own._loss, *rest)


class Clock:
    """Times queued work by a GPU's own clock.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        """Take memory larger than the caches."""
        self.device = device
        self._other = torch.empty(COPIED, device=device)

    def record(self, case: str, dtype: torch.dtype, what: Operation) -> dict[str, Any]:
        """Measure one operation."""
        seconds = [self._seconds(what.call) for _ in range(WARMUP + REPEATS)][WARMUP:]
        times = quartiles("us", 1e6 * np.array(seconds))
        return {
            "kind": "kernel",
            "operation": what.name,
            "kernel": what.kernel,
            "case": case,
            "dtype": str(dtype).removeprefix("torch."),
            "device": torch.cuda.get_device_name(self.device),
            **times,
            "bytes": what.size,
            "bytes_per_s": 1e6 * what.size / times["us"],
        }

    def _seconds(self, call: Callable[[], Any]) -> float:
        began: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        done: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda._sleep(AHEAD)  # type: ignore[no-untyped-call]
        self._other.zero_()  # what the call reads is not in the cache
        began.record()
        call()
        done.record()
        torch.cuda.synchronize()
        return float(began.elapsed_time(done)) / 1e3


def gpu_kernels_table(document: Document) -> str:
    """Microseconds, and the share of the copy's speed, by operation and set of gradients."""
    records = document["records"]
    copy, *others = records
    places = list(dict.fromkeys((r["case"], r["dtype"]) for r in others))
    cells = {(r["operation"], r["kernel"], r["case"], r["dtype"]): _cell(r) for r in others}
    body = [
        [f"{name}, {kernel}", *(cells[(name, kernel) + place] for place in places)]
        for name, kernel in dict.fromkeys((r["operation"], r["kernel"]) for r in others)
    ]
    return (
        f"Copy of {copy['case']}: {copy['bytes_per_s'] / 1e12:.2f} TB/s, read and written.\n\n"
        + markdown(["µs (share of the copy's speed)", *(f"{c}, {d}" for c, d in places)], body)
    )


def _cell(record: dict[str, Any]) -> str:
    share = f" ({record['share_of_copy']:.2f})" if record["bytes"] else ""
    return f"{record['us']:.3g}{share}"
