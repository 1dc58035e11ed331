"""Triton kernel: g <- phi * g + sigma * noise, over many tensors of mixed types in one launch.

The noise is that of `philox.py`, computed where it is added. See `reference.gate_`.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .norm import LANES, locate
from .table import BLOCK, Table


def gate_(table: Table, phi: Tensor, sigma: Tensor, key: int, step: Tensor) -> None:
    """In place, for each tensor i of the table: g <- phi[i] * g + sigma[i] * noise.

    Computed in float32, for float64 tensors in float64, and rounded once. Plain arithmetic: phi = 0
    does not remove a NaN. Where phi is 1 and sigma 0 no memory is touched; where sigma is 0 no
    noise is computed.

    Args:
        table: of the tensors.
        phi: factors, float32 of shape (len(table),), on the table's device.
        sigma: standard deviations in units of the gradients, float32 like phi.
        key: of the noise, 64 bits, see `philox.PhiloxNoise.key`.
        step: int64 scalar on the table's device, so that a CUDA graph can count on; selects fresh
            noise by its low 32 bits.
    """
    if not table.blocks:
        return
    arguments = *table.places, phi, sigma, step, key
    launch(_gate_kernel, table.blocks, arguments, {"BLOCK": table.block, "LANES": LANES})


def signatures(
    lanes: int = LANES,
) -> dict[str, tuple[Any, dict[str, str], dict[str, int], dict[Any, Any]]]:
    """See `norm.signatures`."""
    signature = {
        **dict.fromkeys(["address", "numel"], "*i64"),
        **dict.fromkeys(["dtype", "block_tensor"], "*i32"),
        **{"block_start": "*i64", "phi": "*fp32", "sigma": "*fp32", "step": "*i64", "key": "u64"},
        **dict.fromkeys(["BLOCK", "LANES"], "constexpr"),
    }
    return {"gate": (_gate_kernel, signature, {"BLOCK": BLOCK, "LANES": lanes}, {})}


@triton.jit(do_not_specialize=list(range(9)))
def _gate_kernel(
    address,
    numel,
    dtype,
    block_tensor,
    block_start,
    phi,
    sigma,
    step,
    key: tl.uint64,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    tensor, memory, start, count, wide = locate(address, numel, block_tensor, block_start, BLOCK)
    phi = tl.load(phi + tensor)
    sigma = tl.load(sigma + tensor)
    step = tl.load(step).to(tl.uint32)
    code = tl.load(dtype + tensor)
    if (phi != 1.0) | (sigma != 0.0):
        # The codes are those of table.DTYPE_CODE.
        if code == 0:
            _gate_block(
                memory, start, count, wide, phi, sigma, key, step, tensor, tl.float32, LANES
            )
        elif code == 1:
            _gate_block(
                memory, start, count, wide, phi, sigma, key, step, tensor, tl.bfloat16, LANES
            )
        elif code == 2:
            _gate_block(
                memory, start, count, wide, phi, sigma, key, step, tensor, tl.float16, LANES
            )
        else:
            _gate_block(
                memory, start, count, wide, phi, sigma, key, step, tensor, tl.float64, LANES
            )


@triton.jit
def _gate_block(
    memory,
    start,
    count,
    wide,
    phi,
    sigma,
    key,
    step,
    tensor,
    DTYPE: tl.constexpr,
    LANES: tl.constexpr,
):
    # Two pointers, as only one may carry the hint; where it would be wrong, `wide` is 0.
    hinted = tl.multiple_of(memory.to(tl.pointer_type(DTYPE)), 16) + start
    plain = memory.to(tl.pointer_type(DTYPE)) + start
    if sigma == 0.0:
        _scale_span(hinted, 0, wide, phi, LANES)
        _scale_span(plain, wide, count, phi, LANES)
    else:
        _noise_span(hinted, start, 0, wide, phi, sigma, key, step, tensor, LANES)
        _noise_span(plain, start, wide, count, phi, sigma, key, step, tensor, LANES // 2)


@triton.jit
def _scale_span(pointer, first, last, phi, LANES: tl.constexpr):
    TYPE: tl.constexpr = pointer.dtype.element_ty
    WIDE: tl.constexpr = tl.float64 if TYPE == tl.float64 else tl.float32
    CHUNK: tl.constexpr = LANES * 128 // TYPE.primitive_bitwidth
    for offset in range(first, last, 2 * CHUNK):
        # Two loads under way before the first store: the compiler may not reorder them itself.
        a = offset + tl.arange(0, CHUNK)
        b = offset + CHUNK + tl.arange(0, CHUNK)
        first_half = phi.to(WIDE) * tl.load(pointer + a, mask=a < last).to(WIDE)
        second_half = phi.to(WIDE) * tl.load(pointer + b, mask=b < last).to(WIDE)
        tl.store(pointer + a, first_half.to(TYPE), mask=a < last)
        tl.store(pointer + b, second_half.to(TYPE), mask=b < last)


@triton.jit
def _noise_span(pointer, start, first, last, phi, sigma, key, step, tensor, LANES: tl.constexpr):
    TYPE: tl.constexpr = pointer.dtype.element_ty
    WIDE: tl.constexpr = tl.float64 if TYPE == tl.float64 else tl.float32
    QUADS: tl.constexpr = 2 if TYPE.primitive_bitwidth == 16 else 1  # per lane
    CHUNK: tl.constexpr = LANES * QUADS * 4
    low, high = (start >> 2).to(tl.uint32), (start >> 34).to(tl.uint32)
    for offset in range(first, last, CHUNK):
        at = offset + tl.arange(0, CHUNK)
        quad = low + (offset >> 2)
        noise = sigma.to(WIDE) * normals(key, quad, high, step, tensor, LANES, QUADS).to(WIDE)
        g = phi.to(WIDE) * tl.load(pointer + at, mask=at < last).to(WIDE) + noise
        tl.store(pointer + at, g.to(TYPE), mask=at < last)


@triton.jit
def normals(key, low, high, step, tensor, LANES: tl.constexpr, QUADS: tl.constexpr):
    """Normals of the 4 * LANES * QUADS elements from that of counter (low, high, step, tensor).

    A lane draws QUADS neighbouring quads, 1 or 2: as many elements as one access of 16 bytes takes.
    Each is drawn whole and joined at the end, so that no thread needs what another has drawn.
    """
    # The low word does not carry into the high one within a block: 2^32 is a multiple of its size.
    lane = tl.arange(0, LANES)
    if QUADS == 2:
        a0, a1, a2, a3 = quad_normals(key, low + (2 * lane).to(tl.uint32), high, step, tensor)
        b0, b1, b2, b3 = quad_normals(key, low + (2 * lane + 1).to(tl.uint32), high, step, tensor)
        n0, n1, n2, n3 = tl.join(a0, b0), tl.join(a1, b1), tl.join(a2, b2), tl.join(a3, b3)
    else:
        n0, n1, n2, n3 = quad_normals(key, low + lane.to(tl.uint32), high, step, tensor)
    return tl.join(tl.join(n0, n2), tl.join(n1, n3)).reshape(LANES * QUADS * 4)


@triton.jit
def quad_normals(key, low, high, step, tensor):
    """Four normals for each counter (low, high, step, tensor)."""
    r0, r1, r2, r3 = bits(key, low, high, step, tensor)
    n0, n1 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(r0), tl.uint_to_uniform_float(r1))
    n2, n3 = tl.pair_uniform_to_normal(tl.uint_to_uniform_float(r2), tl.uint_to_uniform_float(r3))
    return n0, n1, n2, n3


@triton.jit
def bits(key, low, high, step, tensor):
    """Four random words of 32 bits for each counter (low, high, step, tensor)."""
    return tl.philox(key, low, high, step, tensor.to(tl.uint32))
