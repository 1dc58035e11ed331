"""Norms of weights and optimizer state: exact, in order, and without wide copies."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from resilient_optim.snapshot_norms import health_of, norms_of
from tests.test_snapshot import odd_tensors

HALF = [torch.float16, torch.bfloat16]


def test_norms_are_finite_exactly_where_the_tensors_are():
    odd = odd_tensors()
    norms = dict(zip(odd, norms_of(odd.values()).tolist(), strict=True))
    assert math.isnan(norms.pop("with NaN")) and norms["empty"] == 0.0
    for name, norm in norms.items():
        expected = float(torch.linalg.vector_norm(odd[name].to(torch.complex128)).real)
        assert norm == pytest.approx(expected, rel=1e-2), name
    assert norms_of([]).shape == (0,)


class Made(TorchDispatchMode):
    """Notes the tensors that operations make."""

    def __init__(self):
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if not function.is_view and function is not torch.ops.aten.detach.default:
            found = result if isinstance(result, (list, tuple)) else [result]
            self.largest = max([self.largest, *(t.numel() for t in found)])
        return result


every_float = pytest.mark.parametrize("dtype", [*HALF, torch.float32, torch.float64])


@every_float
def test_norms_are_taken_without_a_copy_of_the_tensors(dtype):
    tensors = [torch.randn(1000).to(dtype), torch.randn(40, 50).to(dtype), torch.ones(3)]
    with Made() as made:
        norms_of(tensors)
    assert made.largest == len(tensors), "no more than the norms themselves"


def values(dtype):
    generator = torch.Generator().manual_seed(0)
    large = 6e4 if dtype == torch.float16 else 1e18
    return [
        torch.randn(70, 90, generator=generator).to(dtype),
        torch.full((1000,), large).to(dtype),
        torch.full((9,), torch.finfo(dtype).tiny).to(dtype),
        torch.zeros(0, 3).to(dtype),
        torch.tensor(-2.0).to(dtype),
        torch.randn(8, 9, generator=generator).to(dtype).t(),
        torch.tensor([1.0, math.nan]).to(dtype),
        torch.tensor([1.0, -math.inf]).to(dtype),
    ]


@pytest.mark.parametrize("dtype", HALF)
def test_norms_of_half_precision_are_those_of_float32_copies(dtype):
    """But for the order in which a sum is rounded: a few units of float32's last digit."""
    expected = torch._foreach_norm([v.float() for v in values(dtype)])
    found = norms_of(values(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=0.0, equal_nan=True)


KINDS = [
    torch.float32, torch.bfloat16, torch.float64, torch.float16, torch.int8, torch.bool,
    torch.int64, torch.complex64, torch.float8_e4m3fn, torch.float32,
]  # fmt: skip


def test_norms_of_all_kinds_at_once_are_in_order_and_exact_where_nothing_is_rounded():
    tensors = [torch.full((4**n,), 1.0).to(dtype) for n, dtype in enumerate(KINDS, start=1)]
    assert norms_of(tensors).tolist() == [2.0**n for n in range(1, len(KINDS) + 1)]


def test_norms_of_full_precision_are_torchs_own():
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(n, generator=generator) for n in (1, 10, 1000, 100_000)]
    assert torch.equal(norms_of(tensors), torch.stack(torch._foreach_norm(tensors)))


# -- health: fewer numbers ---------------------------------------------------------------------


def test_small_tensors_of_all_kinds_are_judged_together():
    small = [torch.full((4,), 1.0).to(dtype) for dtype in KINDS for _ in range(3)]
    health = health_of(small, small)
    # Those of 8 bits and of whole numbers are made float32; complex numbers are taken apart.
    floats = {"float32": 6 + 4 * 3 + 3, "bfloat16": 3, "float64": 3, "float16": 3}
    sums = [4.0 * tensors for tensors in floats.values()]
    expected = [*(total**0.5 for total in sums), *sums]
    assert sorted(health.tolist()) == pytest.approx(sorted(expected), rel=1e-6)
    assert health_of([], []).shape == (0,)


@every_float
def test_health_is_taken_without_a_copy_of_large_tensors(dtype):
    tensors = [torch.randn(5000).to(dtype), torch.randn(80, 90).to(dtype), torch.ones(5000)]
    with Made() as made:
        health_of(tensors, tensors)
    assert made.largest == 2 * len(tensors), "no more than the numbers themselves"


@pytest.mark.parametrize("dtype", HALF)
def test_sums_of_half_precision_state_are_those_of_float32_copies(dtype):
    for value in values(dtype):
        expected = torch.linalg.vector_norm(value.float(), 1)
        (found,) = health_of([], [value])
        assert found.dtype == torch.float32
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0, equal_nan=True)


@pytest.mark.parametrize("size", [3, 5000], ids=["small", "large"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, 1e25])
def test_health_is_finite_only_where_all_tensors_are(size, bad):
    """A weight of 1e25 is broken, the second moment of a gradient of 1e12 is not."""
    for dtype in (torch.float32, torch.bfloat16):
        whole, broken = torch.ones(size).to(dtype), torch.ones(size).to(dtype)
        broken[1] = bad
        others = [torch.ones(2), whole]
        assert bool(health_of(others, others).isfinite().all())
        assert not bool(health_of([*others, broken], others).isfinite().all())
        assert bool(health_of(others, [*others, broken]).isfinite().all()) == math.isfinite(bad)
