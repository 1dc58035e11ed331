"""Triton kernels: the square sums of many tensors of mixed types, in two launches.

Each block of the table is summed by one program, then the blocks of each tensor by another, always
in the same order: no atomics, equal bits at every run. See `reference.square_sums`.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import launch
from .table import BLOCK, Table

LANES = 256 if torch.version.hip else 128
"""Threads of a program: four warps, of 64 on AMD; each works on 16 bytes at a time."""


def square_sums(table: Table) -> tuple[Tensor, Tensor]:
    """Sum of squares of each tensor, and whether it holds NaN or Inf; see `reference.square_sums`.

    Elements are squared and summed within a block in float32, those of float64 tensors in float64;
    blocks are summed in float64. Nothing is allocated: the results are the table's, valid until the
    next call with it.

    Returns:
        Sums, float64, and flags, int32 of 0 or 1; both of shape (len(table),), on its device.
    """
    blocks = *table.places, table.partial, table.partial_flag
    if table.blocks:
        launch(_block_kernel, table.blocks, blocks, {"BLOCK": table.block, "LANES": LANES})
    tensors = table.first_block, *blocks[-2:], table.square_sum, table.nonfinite
    if len(table):
        launch(_tensor_kernel, len(table), tensors, {"LANES": LANES})
    return table.square_sum, table.nonfinite


def signatures(
    lanes: int = LANES,
) -> dict[str, tuple[Any, dict[str, str], dict[str, int], dict[Any, Any]]]:
    """What `triton.compiler.ASTSource` needs: function, signature, constants and attributes.

    Args:
        lanes: threads of a program on the target, see `LANES`.
    """
    block = {
        **dict.fromkeys(["address", "numel"], "*i64"),
        **dict.fromkeys(["dtype", "block_tensor"], "*i32"),
        **{"block_start": "*i64", "partial": "*fp64", "partial_flag": "*i32"},
        **dict.fromkeys(["BLOCK", "LANES"], "constexpr"),
    }
    tensor = {"first_block": "*i64", "partial": "*fp64", "partial_flag": "*i32"}
    tensor |= {"square_sum": "*fp64", "nonfinite": "*i32", "LANES": "constexpr"}
    return {
        "norm_block": (_block_kernel, block, {"BLOCK": BLOCK, "LANES": lanes}, {}),
        "norm_tensor": (_tensor_kernel, tensor, {"LANES": lanes}, {}),
    }


@triton.jit
def locate(address, numel, block_tensor, block_start, BLOCK: tl.constexpr):
    """What this program works on: tensor, its address, first element of the block, its length.

    Last comes how many of the block's elements can be had in accesses of 16 bytes, whatever the
    type: all but the last seven at most, none if the tensor does not start at a multiple of 16.
    """
    block = tl.program_id(0)
    tensor = tl.load(block_tensor + block)
    start = tl.multiple_of(tl.load(block_start + block), BLOCK)
    count = tl.minimum(tl.load(numel + tensor) - start, BLOCK).to(tl.int32)
    memory = tl.load(address + tensor)
    wide = tl.where(memory % 16 == 0, count // 8 * 8, 0)
    return tensor, memory, start, count, wide


@triton.jit(do_not_specialize=list(range(7)))
def _block_kernel(
    address,
    numel,
    dtype,
    block_tensor,
    block_start,
    partial,
    partial_flag,
    BLOCK: tl.constexpr,
    LANES: tl.constexpr,
):
    tensor, memory, start, count, wide = locate(address, numel, block_tensor, block_start, BLOCK)
    code = tl.load(dtype + tensor)
    partial += tl.program_id(0)
    partial_flag += tl.program_id(0)
    # The codes are those of table.DTYPE_CODE.
    if code == 0:
        _sum_block(memory, start, count, wide, partial, partial_flag, tl.float32, LANES)
    elif code == 1:
        _sum_block(memory, start, count, wide, partial, partial_flag, tl.bfloat16, LANES)
    elif code == 2:
        _sum_block(memory, start, count, wide, partial, partial_flag, tl.float16, LANES)
    else:
        _sum_block(memory, start, count, wide, partial, partial_flag, tl.float64, LANES)


@triton.jit
def _sum_block(
    memory, start, count, wide, partial, partial_flag, DTYPE: tl.constexpr, LANES: tl.constexpr
):
    # Two pointers, as only one may carry the hint; where it would be wrong, `wide` is 0.
    hinted = tl.multiple_of(memory.to(tl.pointer_type(DTYPE)), 16) + start
    total, bad = _sum_span(hinted, 0, wide, LANES)
    if wide < count:
        plain = memory.to(tl.pointer_type(DTYPE)) + start
        rest, rest_bad = _sum_span(plain, wide, count, LANES)
        total += rest
        bad |= rest_bad
    tl.store(partial, total.to(tl.float64))
    tl.store(partial_flag, bad)


@triton.jit
def _sum_span(pointer, first, last, LANES: tl.constexpr):
    SUM: tl.constexpr = tl.float64 if pointer.dtype.element_ty == tl.float64 else tl.float32
    # One access of 16 bytes per lane, two of them under way at a time. Types of different width
    # share no chunk size for a reason: common indices would be given one common layout.
    CHUNK: tl.constexpr = LANES * 128 // pointer.dtype.element_ty.primitive_bitwidth
    squares = tl.zeros([CHUNK], SUM)
    bad = tl.zeros([CHUNK], tl.int32)
    for offset in range(first, last, 2 * CHUNK):
        for half in tl.static_range(2):
            at = offset + half * CHUNK + tl.arange(0, CHUNK)
            x = tl.load(pointer + at, mask=at < last, other=0.0).to(SUM)
            squares += x * x
            bad |= tl.where(tl.abs(x) < float("inf"), 0, 1)
    return tl.sum(squares), tl.max(bad)


@triton.jit(do_not_specialize=list(range(5)))
def _tensor_kernel(first_block, partial, partial_flag, square_sum, nonfinite, LANES: tl.constexpr):
    CHUNK: tl.constexpr = LANES * 8
    tensor = tl.program_id(0)
    total = tl.zeros([CHUNK], tl.float64)
    bad = tl.zeros([CHUNK], tl.int32)
    last = tl.load(first_block + tensor + 1)
    for offset in range(tl.load(first_block + tensor), last, CHUNK):
        at = offset + tl.arange(0, CHUNK)
        total += tl.load(partial + at, mask=at < last, other=0.0)
        bad |= tl.load(partial_flag + at, mask=at < last, other=0)
    tl.store(square_sum + tensor, tl.sum(total))
    tl.store(nonfinite + tensor, tl.max(bad))
