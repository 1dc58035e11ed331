"""The bytes that the GPU kernels move, and the time that memory alone needs for them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Any, NamedTuple

from nanogpt_demo.bench.cases import gpt2_shapes
from resilient_optim.kernels.table import BLOCK, DTYPE_CODE

NOTE = "prediction: bytes / bandwidth, not a measurement"
GROUPS = 2  # of parameters, as is usual: with weight decay and without
ITEMSIZE: dict[str, int] = {
    str(dtype).removeprefix("torch."): dtype.itemsize for dtype in DTYPE_CODE
}
ELEMENTS: int = BLOCK  # of a block
PREDICTED = ("float32", "bfloat16")

Record = dict[str, Any]


class Device(NamedTuple):
    """A GPU whose speed is predicted.

    Attributes:
        target: what kernels are compiled for.
        bytes_per_s: bandwidth of its memory, as published.
        source: where.
    """

    target: str
    bytes_per_s: float
    source: str


DEVICES = {
    "A100 SXM 80 GB": Device("sm_80", 2039e9, "NVIDIA A100 data sheet, 80GB SXM: 2,039 GB/s"),
    "H100 SXM": Device("sm_90", 3350e9, "NVIDIA H100 data sheet, H100 SXM: 3.35 TB/s"),
    "MI300X": Device("gfx942", 5300e9, "AMD Instinct MI300X data sheet: 5.3 TB/s"),
}


@dataclass(frozen=True)
class Traffic:
    """What a kernel moves, with every number counted once for each program that uses it.

    Memory sees less of it where a cache is shared, as of the table's entries for a large tensor.

    Attributes:
        passes: how often it reads or writes each element of the gradients.
        block: bytes for each block of the table.
        tensor: bytes for each tensor.
        fixed: bytes for each launch.
    """

    passes: int
    block: int = 0
    tensor: int = 0
    fixed: int = 0

    def per_element(self, dtype: str) -> float:
        """Bytes per element of full blocks."""
        return self.passes * ITEMSIZE[dtype] + self.block / ELEMENTS

    def moved(self, numels: list[int], dtype: str) -> int:
        """Bytes of a launch on tensors of these sizes."""
        blocks = sum(math.ceil(numel / ELEMENTS) for numel in numels)
        elements = self.passes * ITEMSIZE[dtype] * sum(numels)
        return elements + self.block * blocks + self.tensor * len(numels) + self.fixed


def traffic() -> dict[str, Traffic]:
    """The traffic of each kernel, counted in its source with the types of its signature."""
    from resilient_optim.kernels import gate, guard, guard_rules, norm

    _, block, _, _ = norm.signatures()["norm_block"]
    _, tensor, _, _ = norm.signatures()["norm_tensor"]
    _, scale, _, _ = gate.signatures()["gate"]
    _, judge, constants, _ = guard.signatures()["guard"]
    per_tensor = ["sums", "sums", "numels", "phi_out", "sigma_out"]
    # First and proven rates are read and written.
    rates = ["lrs", "first_lrs", "first_lrs", "proven_lrs", "proven_lrs", "lr_out"]
    # The whole state is read, and at most written: a full window moves by one.
    state = 2 * (guard_rules.LOSSES.value + 2 * constants["SIZE"])
    numbers = ["state"] * state + ["settings"] * len(guard.SETTINGS)
    numbers += ["told"] * (len(guard.TELLS) + 2) + ["loss_in", "skip_out", "step_out"]
    return {
        # A block of the table touches each of the arrays once.
        "norm_block": Traffic(1, block=_bytes(block, list(block))),
        "norm_tensor": Traffic(
            0,
            block=_bytes(tensor, ["partial", "partial_flag"]),
            tensor=_bytes(tensor, ["first_block", "first_block", "square_sum", "nonfinite"]),
        ),
        "gate": Traffic(2, block=_bytes(scale, list(scale))),
        "guard": Traffic(
            0,
            tensor=_bytes(judge, per_tensor),
            fixed=_bytes(judge, numbers) + GROUPS * _bytes(judge, rates),
        ),
    }


def _bytes(signature: dict[str, str], names: list[str]) -> int:
    """Size of one number of each of the named arrays; arguments that are no arrays have none."""
    types = [signature[name] for name in names if signature[name].startswith("*")]
    return sum(int(re.sub(r"\D", "", kind)) // 8 for kind in types)


def predictions(known: dict[str, Traffic]) -> list[Record]:
    """How long each operation takes at least, on the gradients of GPT-2.

    The guard is left without a time: it is one program, whose latency bytes say nothing of.
    """
    numels = [math.prod(shape) for shape in gpt2_shapes()]
    # Of a quiet gate each program sees that it has nothing to do.
    operations = {
        "norm": [known["norm_block"], known["norm_tensor"]],
        "gate": [known["gate"]],
        "gate, quiet": [Traffic(0, block=known["gate"].block)],
        "guard": [known["guard"]],
    }
    found: list[Record] = []
    for operation, kernels in operations.items():
        for dtype in PREDICTED:
            size = sum(kernel.moved(numels, dtype) for kernel in kernels)
            least = sum(kernel.passes for kernel in kernels) * ITEMSIZE[dtype] * sum(numels)
            for name, device in DEVICES.items():
                ms = None if operation == "guard" else 1e3 * size / device.bytes_per_s
                what = {"operation": operation, "dtype": dtype, "device": name}
                sizes = {"target": device.target, "bytes": size, "minimum_bytes": least}
                told = {"predicted_ms": ms, "note": NOTE}
                found.append({"kind": "prediction", **what, **sizes, **told})
    return found
