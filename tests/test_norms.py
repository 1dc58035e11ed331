"""Norms and square sums: the fast path against the reference and arithmetic done by hand."""

import math

import pytest
import torch

from resilient_optim.kernels import foreach, reference
from tests.test_kernels import LAYOUTS, every_dtype, normal

# -- square sums --------------------------------------------------------------------------------


@every_dtype
def test_square_sums_agree(dtype):
    tensors = [make(dtype) for make in LAYOUTS.values()]
    fast, slow = foreach.square_sums(tensors), reference.square_sums(tensors)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=0)


@pytest.mark.parametrize("path", [reference, foreach])
def test_square_sums_worked_out_by_hand(path):
    tensors = [torch.tensor([3.0, 4.0]).half(), torch.tensor([]), torch.tensor([3 + 4j, 2j])]
    tensors += [torch.tensor([1.0, math.nan]), torch.tensor([[math.inf]]).bfloat16()]
    sums, flags = path.square_sums(tensors)
    assert (sums.dtype, flags.dtype) == (torch.float64, torch.int32)
    assert sums[:3].tolist() == pytest.approx([25.0, 0.0, 29.0], rel=1e-6)
    assert str(sums[3:].tolist()) == "[nan, inf]"
    assert flags.tolist() == [0, 0, 0, 1, 1]
    assert [len(r) for r in path.square_sums([])] == [0, 0]


@pytest.mark.parametrize("path", [reference, foreach])
def test_overflow_of_squares_is_told_from_bad_values(path):
    """Documented: fast paths overflow from 1.8e19 in float32, the reference in float64 only."""
    huge = [torch.full((2,), 1e25), torch.tensor([1e200], dtype=torch.float64)]
    sums, flags = path.square_sums(huge)
    assert sums[0].item() == (pytest.approx(2e50) if path is reference else math.inf)
    assert sums[1].item() == math.inf
    assert flags.tolist() == [0, 0]


# -- global norm --------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [reference.global_norm, foreach.global_norm])
def test_norm_worked_out_by_hand(norm):
    tensors = [
        torch.tensor([3.0, 4.0], dtype=torch.float16),
        torch.tensor([[12.0]], dtype=torch.bfloat16),
        torch.tensor([], dtype=torch.float32),
        torch.tensor(84.0, dtype=torch.float64),
        torch.tensor([3 + 4j, 0j]),
    ]
    assert float(norm(tensors)) == pytest.approx(math.sqrt(85**2 + 25), rel=1e-6)


@every_dtype
def test_norms_agree(dtype):
    tensors = [make(dtype) for make in LAYOUTS.values()]
    fast, slow = foreach.global_norm(tensors), reference.global_norm(tensors)
    # Sums of a few hundred float32 squares; half precision is summed in float32 as well.
    assert float(fast) == pytest.approx(float(slow), rel=1e-6)


@pytest.mark.parametrize("norm", [reference.global_norm, foreach.global_norm])
@pytest.mark.parametrize("tensors", [[], [torch.zeros(0)], [torch.zeros(3), torch.zeros(0, 2)]])
def test_norm_of_nothing_is_zero(norm, tensors):
    assert float(norm(tensors)) == 0.0


@pytest.mark.parametrize("norm", [reference.global_norm, foreach.global_norm])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_summed_in_float32(norm, dtype):
    many = torch.full((10_000,), 0.5, dtype=dtype)  # a sum of squares in half stops growing
    large = torch.full((4,), 2.0**14, dtype=dtype)  # whose squares overflow float16
    assert float(norm([many])) == pytest.approx(50.0, rel=1e-5)
    assert float(norm([large])) == 2.0**15


@pytest.mark.parametrize("norm", [reference.global_norm, foreach.global_norm])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@every_dtype
def test_one_bad_value_shows_in_the_norm(norm, bad, dtype):
    tensors = [make(dtype) for make in LAYOUTS.values()]
    assert math.isfinite(norm(tensors))
    tensors[0][-1, -1] = bad
    assert not math.isfinite(norm(tensors))
    assert not math.isfinite(norm(tensors[:1]))


def test_norm_beyond_float32_is_infinite_and_in_float64_exact():
    """Documented: squares of float32 overflow above 1.8e19. A huge gradient is skipped, then."""
    huge = torch.full((2,), 1e25)
    assert float(foreach.global_norm([huge])) == math.inf
    assert float(foreach.global_norm([huge.double()])) == pytest.approx(math.sqrt(2) * 1e25)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("n", [foreach.SMALL + 1, foreach.DOT_SIZE, 3 * foreach.DOT_SIZE + 5])
def test_long_norms_keep_their_digits(n, dtype):
    """Torch's own norm of a long float32 vector is off by a tenth of a per cent and more."""
    tensors = [normal(n, dtype=dtype, seed=n), normal(3, dtype=dtype)]
    exact = float(reference.global_norm(tensors))
    assert float(foreach.global_norm(tensors)) == pytest.approx(exact, rel=5e-6)
    expected = reference.norms(tensors).tolist()
    assert foreach.norms(tensors).tolist() == pytest.approx(expected, rel=5e-6)


def test_each_norm_is_that_of_its_tensor():
    """Long and short, of several types, measured this way or that: none takes another's place."""
    small, long = foreach.SMALL, foreach.DOT_SIZE
    sizes = [3, 2 * long + 7, small + 1, 5, long, small + 9]
    kinds = [torch.float32, torch.float64, torch.float32, torch.bfloat16]
    tensors = [
        (1 + index) * normal(size, dtype=kinds[index % len(kinds)], seed=index)
        for index, size in enumerate(sizes)
    ]
    expected = reference.norms(tensors).tolist()
    for chosen in (range(len(sizes)), [1, 2, 4], [5, 2], [4, 1]):
        found = foreach.norms([tensors[index] for index in chosen]).tolist()
        assert found == pytest.approx([expected[index] for index in chosen], rel=5e-6)
