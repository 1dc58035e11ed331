"""Scaling and noise: the fast path against the reference and arithmetic done by hand."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resilient_optim import kernels
from resilient_optim.kernels import Noise, foreach, reference
from resilient_optim.kernels.philox import PhiloxNoise
from tests.helpers import bits

TOLERANCE = {
    # dtype: (relative, absolute). Both paths round the same two operations, scale and add, but
    # take sigma from float32 and from float64 norms: sigma differs by float32 rounding of a sum
    # (1e-6 of it), which shows in the element itself only where its last place is finer.
    torch.float64: (0.0, 1e-6),
    torch.float32: (2**-22, 1e-6),
    torch.complex64: (2**-22, 1e-6),
    torch.complex128: (0.0, 1e-6),
    # A last place of half precision: where the sum falls between two values, either is right.
    torch.float16: (2**-10, 1e-6),
    torch.bfloat16: (2**-7, 1e-6),
}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
CPU = torch.device("cpu")


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


LAYOUTS = {
    "matrix": lambda dtype: normal(7, 13, dtype=dtype),
    "odd": lambda dtype: normal(3, 1, 5, 11, dtype=dtype),
    "one": lambda dtype: normal(1, dtype=dtype),
    "scalar": lambda dtype: normal(dtype=dtype),
    "empty": lambda dtype: normal(0, 4, dtype=dtype),
    "transposed": lambda dtype: normal(6, 9, dtype=dtype).t(),
    "strided": lambda dtype: normal(8, 10, dtype=dtype)[::2, 1::3],
    "channels-last": lambda dtype: normal(2, 3, 4, 5, dtype=dtype).to(
        memory_format=torch.channels_last
    ),
    "slice": lambda dtype: normal(100, dtype=dtype)[3:64],
}


def copies(tensors):
    """Independent tensors of the same values, dtypes and strides."""
    return [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype).copy_(t) for t in tensors]


@every_dtype
@pytest.mark.parametrize("relative", [True, False], ids=["relative", "absolute"])
@pytest.mark.parametrize(("scale", "jitter"), [(0.3, 0.0), (1.0, 0.2), (0.3, 0.2), (0.0, 0.2)])
def test_foreach_meets_the_reference(dtype, scale, jitter, relative):
    fast = [make(dtype) for make in LAYOUTS.values()]
    slow = copies(fast)
    foreach.scale_and_jitter_(fast, scale, jitter, Noise(3), 17, relative)
    reference.scale_and_jitter_(slow, scale, jitter, Noise(3), 17, relative)
    rtol, atol = TOLERANCE[dtype]
    for name, a, b in zip(LAYOUTS, fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@every_dtype
def test_scaling_alone_is_exact(dtype):
    tensors = [make(dtype) for make in LAYOUTS.values()]
    expected = [t * 0.3 for t in tensors]
    kernels.scale_and_jitter_(tensors, 0.3)
    assert bits(tensors) == bits(expected)


def test_nothing_to_do_touches_nothing():
    tensors = [make(torch.float32) for make in LAYOUTS.values()]
    before = bits(tensors)
    kernels.scale_and_jitter_(tensors, 1.0)
    kernels.scale_and_jitter_([], 0.5, 0.5, Noise(0))
    assert bits(tensors) == before


def test_mixed_dtypes_in_one_call_are_each_as_alone():
    """The noise of a tensor depends on its place in the list, so the lists are equally long."""
    mixed = [normal(5, dtype=dtype) for dtype in TOLERANCE]
    kernels.scale_and_jitter_(mixed, 0.5, 0.1, Noise(0), 2)
    for place, dtype in enumerate(TOLERANCE):
        alone = [normal(5, dtype=dtype) for _ in TOLERANCE]
        kernels.scale_and_jitter_(alone, 0.5, 0.1, Noise(0), 2)
        assert bits(mixed[place]) == bits(alone[place])


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_relative_sigma_is_a_share_of_the_scaled_rms(scale):
    gradient = 40.0 * normal(200_000, seed=5)
    jittered = gradient.clone()
    kernels.scale_and_jitter_([jittered], scale, 0.1, Noise(1))
    noise = jittered.double() - scale * gradient.double()
    expected = 0.1 * scale * gradient.double().square().mean().sqrt()
    # The standard error of a standard deviation over n normals is sigma / sqrt(2 n) = 0.16 %.
    assert noise.std().item() == pytest.approx(expected.item(), rel=0.006)
    # ... and that of a mean sigma / sqrt(n) = 0.22 %.
    assert abs(noise.mean().item()) < 0.008 * expected


def test_relative_sigma_is_each_tensors_own():
    tensors = [torch.full((50_000,), 1e-3), torch.full((50_000,), 1e3)]
    kernels.scale_and_jitter_(tensors, 1.0, 0.1, Noise(1))
    small, large = (t.double().std().item() for t in tensors)
    assert small == pytest.approx(1e-4, rel=0.02)  # six standard errors of sigma / sqrt(2 n)
    assert large == pytest.approx(1e2, rel=0.02)


def test_absolute_sigma_is_in_units_of_the_gradient():
    tensor = torch.full((50_000,), 7.0)
    kernels.scale_and_jitter_([tensor], 1.0, 0.1, Noise(1), relative=False)
    assert tensor.double().std().item() == pytest.approx(0.1, rel=0.02)


def test_zero_gradient_gets_no_relative_noise():
    tensor = torch.zeros(100)
    kernels.scale_and_jitter_([tensor], 0.5, 0.1, Noise(1))
    assert bits(tensor) == bits(torch.zeros(100))


def test_complex_noise_is_independent_in_both_parts():
    tensor = torch.full((50_000,), 3 + 4j)
    kernels.scale_and_jitter_([tensor], 1.0, 0.1, Noise(1), relative=False)
    parts = torch.view_as_real(tensor).double().T
    assert parts.std(dim=1).tolist() == pytest.approx([0.1, 0.1], rel=0.02)
    assert abs(torch.corrcoef(parts)[0, 1].item()) < 5 / math.sqrt(50_000)


# -- gates: a factor and a noise for each tensor --------------------------------------------------


@every_dtype
@pytest.mark.parametrize("noise", [Noise(3), PhiloxNoise(3)], ids=["table", "philox"])
def test_foreach_gates_meet_the_reference(dtype, noise):
    fast = [make(dtype) for make in LAYOUTS.values()]
    slow = copies(fast)
    phi = [0.1 * (i + 2) for i in range(len(fast))]  # 1 in the last tensor but one
    sigma = [0.3 * (i % 3) for i in range(len(fast))]
    foreach.gate_(fast, phi, sigma, noise, 5)
    reference.gate_(slow, phi, sigma, noise, 5)
    rtol, atol = TOLERANCE[dtype]
    for name, a, b in zip(LAYOUTS, fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("path", [reference, foreach])
def test_gate_worked_out_by_hand(path):
    tensors = [torch.tensor([1.0, -2.0]), torch.tensor([3.0]).double(), torch.tensor([4.0]).half()]
    normal_of = [torch.cat(Noise(0).pieces(t.numel(), 9, i, CPU)) for i, t in enumerate(tensors)]
    expected = [0.5 * tensors[0] + 2.0 * normal_of[0], tensors[1] * 0.25, tensors[2] + normal_of[2]]
    path.gate_(tensors, [0.5, 0.25, 1.0], [2.0, 0.0, 1.0], Noise(0), 9)
    for found, wanted in zip(tensors, expected, strict=True):
        torch.testing.assert_close(found, wanted.to(found.dtype), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("path", [reference, foreach])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_rounded_once(path, dtype):
    """Scaling first would round 0.3 g before the noise is added, up to half a place more."""
    tensor = normal(4000, dtype=dtype)
    noise = torch.cat(Noise(0).pieces(4000, 0, 0, CPU))
    exact = 0.3 * tensor.double() + 0.01 * noise.double()
    path.gate_([tensor], [0.3], [0.01], Noise(0), 0)
    # Double arithmetic and float32 arithmetic fall on different sides of a tie but rarely.
    assert (tensor != exact.to(dtype)).sum() <= 4


@pytest.mark.parametrize("path", [reference, foreach])
def test_gate_is_plain_arithmetic(path):
    tensors = [torch.tensor([math.nan, math.inf, 1.0]), torch.tensor([math.nan, -0.0])]
    path.gate_(tensors, [0.0, 1.0], [0.0, 0.0], None, 0)
    assert str([t.tolist() for t in tensors]) == "[[nan, nan, 0.0], [nan, -0.0]]"


@given(
    sizes=st.lists(st.integers(0, 40), max_size=5),
    seed=st.integers(0, 2**64),
    step=st.integers(0, 2**40),
    data=st.data(),
)
def test_gates_of_any_tensors_agree(sizes, seed, step, data):
    dtypes = st.sampled_from([torch.float32, torch.float64, torch.complex64])
    fast = [normal(size, dtype=data.draw(dtypes)) for size in sizes]
    slow = copies(fast)
    numbers = st.lists(st.sampled_from([0.0, 1.0, 0.3, 2.0]), min_size=len(sizes))
    phi, sigma = data.draw(numbers), data.draw(numbers)
    foreach.gate_(fast, phi[: len(sizes)], sigma[: len(sizes)], PhiloxNoise(seed), step)
    reference.gate_(slow, phi, sigma, PhiloxNoise(seed), step)
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a, b, rtol=2**-22, atol=1e-6)


# -- the host program's random numbers ----------------------------------------------------------


def test_global_generators_are_left_alone():
    def states():
        numpy_state = np.random.get_state()
        return torch.get_rng_state().tolist(), random.getstate(), numpy_state[1].tolist()

    before = states()
    kernels.scale_and_jitter_([torch.ones(1000)], 0.5, 0.5, Noise(11))
    assert states() == before
