"""The benchmark of the kernels on a GPU: what it measures, tried without one, and its table."""

import pytest
import torch

pytest.importorskip("triton")

from nanogpt_demo.bench.kernels import gpu_kernels_table, measure_kernels, operations
from tests.helpers import bits
from tests.interpreter import DEVICE, ON_GPU

pytestmark = pytest.mark.usefixtures("kernels_run_here")


def gradients():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(n, generator=generator).to(DEVICE) for n in (300, 5)]


def test_each_operation_does_what_its_bytes_are_counted_for():
    grads = gradients()
    changed = {}
    for one in operations(grads):
        before = bits(grads)
        one.call()
        changed[one.name, one.kernel] = bits(grads) != before
        assert one.size == {"norm": 1, "gate, open": 0, "guard": 0}.get(one.name, 2) * 4 * 305
    scaling = ["gate, scaling", "gate, scaling and noise"]
    assert {name for (name, _), has in changed.items() if has} == set(scaling)
    assert [kernel for name, kernel in changed if name == "norm"] == ["ours", "torch"]


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU: times by its clock")
def test_kernels_are_measured():
    records = measure_kernels({"small": [(300,), (5,)]}, DEVICE)
    assert records[0]["operation"] == "copy" and records[0]["share_of_copy"] == 1.0
    assert all(0 < r["us_q1"] <= r["us"] <= r["us_q3"] for r in records)
    assert "guard, ours" in gpu_kernels_table({"records": records})


def test_the_table_has_a_row_for_each_operation():
    fields = {"kernel": "ours", "dtype": "float32", "us": 12.0, "bytes": 100, "share_of_copy": 0.5}
    copy = {"operation": "copy", "case": "1 GiB", "bytes_per_s": 3e12} | fields
    norm = {"operation": "norm", "case": "20x1M"} | fields
    guard = {"operation": "guard", "case": "20x1M"} | fields | {"bytes": 0}
    table = gpu_kernels_table({"records": [copy, norm, guard]})
    assert "3.00 TB/s" in table
    assert "| norm, ours | 12 (0.50) |" in table and "| guard, ours | 12 |" in table
