"""The gate kernel against the reference, and its noise against `philox.py`, bit for bit."""

import math

import pytest
import torch

pytest.importorskip("triton")

import triton
import triton.language as tl

from resilient_optim.kernels import foreach, gate, reference
from resilient_optim.kernels.noise import elements
from resilient_optim.kernels.philox import PhiloxNoise, philox_bits, philox_normals
from resilient_optim.kernels.table import Table
from tests.helpers import bits
from tests.interpreter import DEVICE, ON_GPU, interpreted
from tests.test_triton_norm import normal, shifted, zoo

TOLERANCE = {
    # dtype: (relative, absolute). A normal is up to 5.7 and has a few roundings of float32 in its
    # logarithm, root and cosine, which each machine does a little differently; the products with
    # phi and sigma and their sum add one rounding each.
    torch.float64: (1e-7, 4e-6),
    torch.float32: (2**-22, 4e-6),
    torch.complex64: (2**-22, 4e-6),
    torch.complex128: (1e-7, 4e-6),
    # A last place of half precision: where the sum falls between two values, either is right.
    torch.float16: (2**-10, 4e-6),
    torch.bfloat16: (2**-7, 4e-6),
}
every_dtype = pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
NOISE = PhiloxNoise(3, 1)


@pytest.fixture(autouse=True)
def _interpreter():
    with interpreted():
        yield


def copies(tensors):
    """Independent tensors of the same values, dtypes and strides, as dense as the originals."""
    out = []
    for tensor in tensors:
        memory = torch.empty_strided(
            tensor.shape, tensor.stride(), dtype=tensor.dtype, device=tensor.device
        )
        out.append(memory.copy_(tensor))
    return out


def gated(tensors, phi, sigma, step=17, block=256, noise=NOISE):
    """Apply the kernel; phi and sigma are lists of floats."""
    table = Table.of(tensors, block)
    gate.gate_(table, floats(phi), floats(sigma), noise.key, torch.tensor(step, device=DEVICE))


def floats(values):
    return torch.tensor(values, dtype=torch.float32, device=DEVICE)


def rounded(values):
    """What is left of Python's floats in float32."""
    return torch.tensor(values, dtype=torch.float32).tolist()


@every_dtype
@pytest.mark.parametrize("phi", [0.3, 1.0])
def test_kernel_meets_the_reference(dtype, phi):
    fast = zoo(dtype)
    slow, third = copies(fast), copies(fast)
    phis, sigmas = [phi] * len(fast), [0.1 * (i + 1) for i in range(len(fast))]
    gated(fast, phis, sigmas)
    reference.gate_(slow, rounded(phis), rounded(sigmas), NOISE, 17)
    foreach.gate_(third, rounded(phis), rounded(sigmas), NOISE, 17)
    rtol, atol = TOLERANCE[dtype]
    for a, b, c in zip(fast, slow, third, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)
        torch.testing.assert_close(c, b, rtol=rtol, atol=atol)


def test_mixed_list_in_one_launch_each_with_its_own_gate():
    fast = [t for dtype in TOLERANCE for t in (normal(9, 31, dtype=dtype), normal(3, dtype=dtype))]
    slow = copies(fast)
    phis = [0.1 * i for i in range(len(fast))]
    sigmas = [0.2 * (i % 3) for i in range(len(fast))]
    gated(fast, phis, sigmas, step=2**32 + 5)
    reference.gate_(slow, rounded(phis), rounded(sigmas), NOISE, 5)
    for a, b in zip(fast, slow, strict=True):
        rtol, atol = TOLERANCE[a.dtype]
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


@every_dtype
def test_scaling_alone_is_exact(dtype):
    fast = zoo(dtype)
    slow = copies(fast)
    (phi,) = rounded([0.3])
    gated(fast, [0.3] * len(fast), [0.0] * len(fast))
    for tensor in slow:
        tensor.mul_(phi)
    assert bits([t.cpu() for t in fast]) == bits([t.cpu() for t in slow])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_is_one_rounding_of_the_float32_product(dtype):
    tensor = torch.arange(2**16, device=DEVICE).to(torch.int16).view(dtype)[::7].contiguous()
    expected = (tensor.float() * torch.tensor(0.7, device=DEVICE)).to(dtype)
    gated([tensor], [0.7], [0.0], block=8192)
    finite = expected.isfinite()
    assert torch.equal(tensor[finite], expected[finite])
    assert torch.equal(tensor.isnan(), expected.isnan())
    assert torch.equal(tensor.isinf(), expected.isinf())


def test_open_gate_touches_nothing():
    """Not even memory that is not there: the address of the second tensor is made invalid."""
    tensors = [normal(300), normal(300)]
    before = bits([t.cpu() for t in tensors])
    table = Table.of(tensors, 256)
    table.address[1] = 8
    gate.gate_(table, floats([1, 1]), floats([0, 0]), 5, torch.tensor(0, device=DEVICE))
    assert bits([t.cpu() for t in tensors]) == before


def test_no_tensors_at_all():
    gated([], [], [])
    gated([normal(0)], [0.5], [0.5])


def test_arithmetic_is_plain():
    """A closed gate does not remove NaN and Inf, and a gate that is NaN shows."""
    tensor = floats([math.nan, math.inf, -2.0])
    gated([tensor], [0.0], [0.0])
    assert str(tensor.tolist()) == "[nan, nan, -0.0]"
    tensor = floats([1.0, 2.0])
    gated([tensor], [math.nan], [0.0])
    assert tensor.isnan().all()


def test_neighbouring_memory_is_left_alone():
    whole = torch.zeros(1000, device=DEVICE)
    parts = [whole[4:11], whole[101:400], whole[512:777]]
    gated(parts, [1.0] * 3, [1.0] * 3)
    for part in parts:
        assert (part != 0).all()
        part.zero_()
    assert not whole.any()


def test_equal_runs_have_equal_bits_and_block_size_does_not_matter():
    results = []
    for block in (256, 256, 16, 8192):
        tensors = [normal(1021), normal(300).half(), normal(100)[1:]]
        gated(tensors, [0.5] * 3, [0.3] * 3, block=block)
        results.append(bits([t.cpu() for t in tensors]))
    assert results[1:] == results[:1] * 3


@pytest.mark.parametrize("key", [0, 1, 16, 2**31, 2**32 + 7, 2**63, 2**64 - 1])
def test_any_key_of_64_bits_will_do(key):
    tensor = torch.zeros(40, device=DEVICE)
    table = Table.of([tensor])
    gate.gate_(table, floats([1]), floats([1]), key, torch.tensor(9, device=DEVICE))
    torch.testing.assert_close(tensor.cpu(), philox_normals(key, 9, 0, 0, 40), rtol=0, atol=4e-6)


@pytest.mark.parametrize("varied", ["step", "seed", "stream", "place"])
def test_noise_changes_with(varied):
    noise = {"seed": PhiloxNoise(4, 1), "stream": PhiloxNoise(3, 2)}.get(varied, NOISE)
    first, second = torch.zeros(2, 64, device=DEVICE), torch.zeros(2, 64, device=DEVICE)
    gated([first[0], first[1]], [1.0] * 2, [1.0] * 2)
    gated([second[0], second[1]], [1.0] * 2, [1.0] * 2, 18 if varied == "step" else 17, noise=noise)
    other = first.flip(0) if varied == "place" else second
    assert not (first == other).any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.float64], ids=str)
@pytest.mark.parametrize("start", [2**31, 2**33, 2**34 - 2**13, 2**34, 2**40])
def test_elements_beyond_32_bits_are_found_and_get_their_own_noise(start, dtype):
    """The block is that of a huge tensor which would begin `start` elements before real memory.

    Proved: addresses and counters of a real launch are those of the far elements. 2^34 is where
    the high word of the counter begins.
    """
    tensor = torch.zeros(100, dtype=dtype, device=DEVICE)
    table = shifted(Table.of([tensor], 8192), tensor, start)
    gate.gate_(table, floats([1]), floats([1]), 77, torch.tensor(3, device=DEVICE))
    expected = philox_normals(77, 3, 0, start, 100).to(dtype)
    rtol = TOLERANCE[dtype][0]
    torch.testing.assert_close(tensor.cpu(), expected, rtol=rtol, atol=4e-6)


@triton.jit
def store_bits(out, low, high, step, tensor, key: tl.uint64, LANES: tl.constexpr):
    low, high = tl.load(low).to(tl.uint32), tl.load(high).to(tl.uint32)
    step, tensor = tl.load(step).to(tl.uint32), tl.load(tensor).to(tl.uint32)
    low += tl.arange(0, LANES).to(tl.uint32)
    r0, r1, r2, r3 = gate.bits(key, low, high, step, tensor)
    words = tl.join(tl.join(r0, r2), tl.join(r1, r3)).reshape(LANES * 4)
    tl.store(out + tl.arange(0, LANES * 4), words.to(tl.int64))


@pytest.mark.parametrize("start", [0, 8192, 2**33, 2**34 - 128, 2**34, 2**40])
@pytest.mark.parametrize("key", [0, 2**63 + 11])
def test_random_words_are_those_of_the_definition(start, key):
    step, tensor = 2**31 + 5, 3
    out = torch.zeros(64, dtype=torch.int64, device=DEVICE)
    words = [
        torch.tensor(word, device=DEVICE)
        for word in (start // 4 % 2**32, start // 4 // 2**32, step, tensor)
    ]
    with interpreted(store_bits) as (kernel,):
        kernel[(1,)](out, *words, key, LANES=16)
    assert torch.equal(out.cpu(), philox_bits(key, step, tensor, start, 64))


def test_permuted_tensors_are_the_memory_they_fill():
    flat = torch.zeros(60, device=DEVICE)
    gated([flat], [1.0], [1.0])
    permuted = torch.zeros(3, 4, 5, device=DEVICE).permute(2, 0, 1)
    gated([permuted], [1.0], [1.0])
    assert torch.equal(elements(permuted), flat)


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU: captures and replays a CUDA graph")
def test_step_counts_on_in_a_cuda_graph():
    tensor, step = torch.zeros(5000, device=DEVICE), torch.tensor(0, device=DEVICE)
    table, one = Table.of([tensor]), floats([1])
    gate.gate_(table, one, one, 7, step)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step.add_(1)
        tensor.zero_()
        gate.gate_(table, one, one, 7, step)
    for expected in (1, 2):
        graph.replay()
        torch.testing.assert_close(
            tensor.cpu(), philox_normals(7, expected, 0, 0, 5000), rtol=0, atol=4e-6
        )
