"""A list of tensors as arrays on their device, so that one launch serves them all.

Plain torch: no kernel here, and nothing is copied of the tensors but where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .noise import elements

BLOCK = 8192
"""Elements that one program works on; 12 bytes of table for each such block."""

DTYPE_CODE = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2, torch.float64: 3}
"""How kernels tell the types apart; complex tensors go by the type of their parts."""

ALIGNMENT = 16
"""Bytes of the widest access of a GPU, at which each array begins."""


class Table:
    """Where the elements of some tensors lie, cut into blocks; build it with `Table.of`.

    It holds addresses, not tensors: the caller keeps those alive, and asks `fits` before each use.
    All arrays are on `device`; a block never spans two tensors, an empty tensor has none.

    Attributes:
        device: of the tensors and the arrays.
        block: elements per block.
        address: int64 [n], in bytes.
        numel: int64 [n], real elements.
        first_block: int64 [n + 1], tensor i has the blocks first_block[i] to first_block[i + 1].
        block_start: int64 [blocks], first element of the block within its tensor.
        block_tensor: int32 [blocks], the tensor of each block.
        dtype: int32 [n], see `DTYPE_CODE`.
        places: what `norm.locate` goes by and the types, in the order of the kernels' parameters.
        partial: float64 [blocks], scratch of the norm kernel.
        partial_flag: int32 [blocks], scratch of the norm kernel.
        square_sum: float64 [n], its result.
        nonfinite: int32 [n], its result.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device, block: int) -> None:
        self.device = device
        self.block = block
        self._keys = _keys(tensors)
        # The source of the copy lives as long as the table, and so until it has arrived.
        self._source, arrays = _on_device(_layout(tensors, block), device)
        self.address, self.numel, self.first_block, self.block_start = arrays[:4]
        self.block_tensor, self.dtype = arrays[4:]
        self.places = self.address, self.numel, self.dtype, self.block_tensor, self.block_start
        blocks, n = len(self.block_tensor), len(self.address)
        self.partial = torch.empty(blocks, dtype=torch.float64, device=device)
        self.partial_flag = torch.empty(blocks, dtype=torch.int32, device=device)
        self.square_sum = torch.empty(n, dtype=torch.float64, device=device)
        self.nonfinite = torch.empty(n, dtype=torch.int32, device=device)

    @classmethod
    def of(cls, tensors: Sequence[Tensor], block: int = BLOCK) -> Table:
        """The table of some tensors; on CUDA it is sent in one copy, without a synchronisation.

        Args:
            tensors: dense float32, bfloat16, float16, float64 or complex tensors of one device, of
                any shapes.
            block: elements per block; a power of two, at least 16.

        Raises:
            ValueError: if a tensor is of another kind, has gaps between its elements or is on
                another device, naming its place in the list; or for a bad block size.
        """
        if block < 16 or block & (block - 1):
            raise ValueError(f"block must be a power of two, at least 16, got {block}")
        device = tensors[0].device if tensors else torch.device("cpu")
        for index, tensor in enumerate(tensors):
            _check(tensor, index, device)
        return cls(tensors, device, block)

    def __len__(self) -> int:
        return len(self.address)

    @property
    def blocks(self) -> int:
        """Number of blocks."""
        return len(self.block_tensor)

    def fits(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these tensors lie where the table says, with the same types and strides."""
        return self._keys == _keys(tensors)

    def follow(self, tensors: Sequence[Tensor]) -> bool:
        """Make this the table of other tensors of the same sizes and types, as next step's are.

        Only addresses are sent, which takes a twentieth of what a new table does.

        Args:
            tensors: of the kinds that `of` takes.

        Returns:
            Whether they are such; nothing is changed if not.
        """
        keys = _keys(tensors)
        if self._keys[1:] != keys[1:] or any(t.device != self.device for t in tensors):
            return False
        addresses = torch.tensor(keys[0], dtype=torch.int64, pin_memory=self.device.type == "cuda")
        self.address.copy_(addresses, non_blocking=True)
        self._keys = keys
        return True


def _keys(tensors: Sequence[Tensor]) -> tuple[list[Any], ...]:
    # Lists of one property each: this is asked in every step, and a call for each tensor shows.
    layouts = [tensor.layout for tensor in tensors]
    if any(layout is not torch.strided for layout in layouts):
        return (layouts,)  # a sparse tensor has no address; no table is of one
    return (
        [tensor.data_ptr() for tensor in tensors],
        [tensor.numel() for tensor in tensors],
        [tensor.dtype for tensor in tensors],
        [tensor.stride() for tensor in tensors],
    )


def _check(tensor: Tensor, index: int, device: torch.device) -> None:
    name = f"tensors[{index}]"
    if tensor.layout is not torch.strided:
        raise ValueError(f"{name} must be dense, got {tensor.dtype} of layout {tensor.layout}")
    if tensor.is_conj() or tensor.is_neg():
        raise ValueError(f"{name} must be resolved, got a lazily conjugated or negated tensor")
    view = elements(tensor)
    if view.dtype not in DTYPE_CODE:
        known = ", ".join(map(str, DTYPE_CODE))
        raise ValueError(f"{name} must be complex or one of {known}, got {tensor.dtype}")
    if not view.is_contiguous():
        raise ValueError(
            f"{name} must be without gaps or overlaps between its elements, got {tensor.dtype} "
            f"of shape {tuple(tensor.shape)} with strides {tensor.stride()}"
        )
    if tensor.device != device:
        raise ValueError(f"{name} must be on {device} like tensors[0], got {tensor.device}")


def _layout(tensors: Sequence[Tensor], block: int) -> list[Tensor]:
    """The arrays of a table, on the CPU, in the order in which `Table` unpacks them."""
    views = [elements(tensor) for tensor in tensors]
    address = torch.tensor([view.data_ptr() for view in views], dtype=torch.int64)
    numel = torch.tensor([view.numel() for view in views], dtype=torch.int64)
    dtype = torch.tensor([DTYPE_CODE[view.dtype] for view in views], dtype=torch.int32)
    blocks = (numel + block - 1) // block
    first_block = torch.cat([blocks.new_zeros(1), blocks.cumsum(0)])
    block_tensor = torch.repeat_interleave(blocks)
    block_start = (torch.arange(len(block_tensor)) - first_block[block_tensor]) * block
    return [address, numel, first_block, block_start, block_tensor.int(), dtype]


def _on_device(arrays: list[Tensor], device: torch.device) -> tuple[Tensor, list[Tensor]]:
    """Copies of the arrays sent as one buffer; also its source, to be kept until they arrived."""
    sizes = [array.nbytes for array in arrays]
    padded = [-(-size // ALIGNMENT) * ALIGNMENT for size in sizes]
    source = torch.empty(sum(padded), dtype=torch.uint8, pin_memory=device.type == "cuda")
    for part, array in zip(torch.split(source, padded), arrays, strict=True):
        part[: array.nbytes].view(array.dtype).copy_(array)
    target = source.to(device, non_blocking=True)
    parts = zip(torch.split(target, padded), arrays, strict=True)
    return source, [part[: array.nbytes].view(array.dtype) for part, array in parts]
