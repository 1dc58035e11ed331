"""The table of tensors, and the norm kernels against the reference."""

import math

import pytest
import torch

pytest.importorskip("triton")

from resilient_optim.kernels import norm, reference
from resilient_optim.kernels.table import Table, _layout
from tests.helpers import bits
from tests.interpreter import DEVICE, ON_GPU, interpreted

REAL = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
every_dtype = pytest.mark.parametrize("dtype", [*REAL, torch.complex64, torch.complex128], ids=str)


@pytest.fixture(autouse=True)
def _interpreter():
    with interpreted():
        yield


def normal(*shape, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(DEVICE, dtype)


def zoo(dtype):
    """Shapes, alignments and layouts; lengths around 8 and around a block of 256."""
    return [
        normal(7, 13, dtype=dtype),
        normal(dtype=dtype),
        normal(0, 4, dtype=dtype),
        normal(1, dtype=dtype),
        normal(8, dtype=dtype),
        normal(256, dtype=dtype),
        normal(600, dtype=dtype)[1:],  # does not start at a multiple of 16 bytes
        normal(300, dtype=dtype)[8:290],
        normal(6, 9, dtype=dtype).t(),
        normal(2, 3, 4, 5, dtype=dtype).to(memory_format=torch.channels_last),
        normal(1021, dtype=dtype),
    ]


def table_of(tensors, block=256):
    return Table.of(tensors, block)


# -- the table ----------------------------------------------------------------------------------


def test_table_says_where_everything_lies():
    tensors = [normal(600), normal(0), normal(5, dtype=torch.float64), normal(257).half()[1:]]
    table = table_of(tensors)
    assert table.address.tolist() == [t.data_ptr() for t in tensors]
    assert table.numel.tolist() == [600, 0, 5, 256]
    assert table.dtype.tolist() == [0, 0, 3, 2]
    assert table.first_block.tolist() == [0, 3, 3, 4, 5]
    assert table.block_tensor.tolist() == [0, 0, 0, 2, 3]
    assert table.block_start.tolist() == [0, 256, 512, 0, 0]
    assert (len(table), table.blocks, table.block) == (4, 5, 256)
    for array in (table.address, table.block_start):
        assert (array.device, array.dtype) == (tensors[0].device, torch.int64)
    assert table.block_tensor.dtype == table.dtype.dtype == torch.int32


def test_complex_tensors_are_twice_as_many_real_ones():
    table = table_of([normal(5, dtype=torch.complex64), normal(3, 2, dtype=torch.complex128).t()])
    assert table.numel.tolist() == [10, 12]
    assert table.dtype.tolist() == [0, 3]


def test_offsets_of_a_huge_tensor_have_64_bits():
    """The table does not look into tensors: one without memory will do."""
    huge = torch.empty(2**34 + 5, device="meta")
    _, numel, first_block, block_start, block_tensor, _ = _layout([huge, huge], 2**30)
    assert numel.tolist() == [2**34 + 5] * 2
    assert first_block.tolist() == [0, 17, 34]
    assert block_start.tolist() == [i * 2**30 for i in range(17)] * 2
    assert block_tensor.tolist() == [0] * 17 + [1] * 17


def test_table_fits_the_same_tensors_only():
    tensors = [normal(6, 4), normal(5).half()]
    table = table_of(tensors)
    assert table.fits(tensors)
    assert table.fits([tensors[0].view(6, 4), tensors[1]])
    assert not table.fits(tensors[:1])
    assert not table.fits(tensors[::-1])
    assert not table.fits([tensors[0].clone(), tensors[1]])
    assert not table.fits([tensors[0].t(), tensors[1]])
    assert not table.fits([tensors[0], tensors[1].view(torch.bfloat16)])
    assert not table.fits([tensors[0].to_sparse(), tensors[1]])
    assert table_of([]).fits([])


def test_a_table_follows_tensors_that_have_moved():
    """Aligned or not: a gradient is made anew in each step."""
    table = table_of([normal(600), normal(5, 4).half()])
    memory, places = normal(700), [array.data_ptr() for array in table.places]
    moved = [memory[1:601], normal(5, 4).half()]
    assert table.follow(moved) and table.fits(moved)
    assert table.address.tolist() == [t.data_ptr() for t in moved]
    assert [array.data_ptr() for array in table.places] == places, "what is launched is the same"
    sums, _ = norm.square_sums(table)
    torch.testing.assert_close(sums.cpu(), reference.square_sums(moved)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    "others",
    [
        [normal(600)],
        [normal(601), normal(5, 4).half()],
        [normal(600), normal(5, 4)],
        [normal(600), normal(4, 5).half().t()],
        [normal(600).to_sparse(), normal(5, 4).half()],
        [torch.empty(600, device="meta"), normal(5, 4).half()],
    ],
    ids=["fewer", "longer", "of another type", "of other strides", "sparse", "elsewhere"],
)
def test_a_table_does_not_follow_other_tensors(others):
    tensors = [normal(600), normal(5, 4).half()]
    table = table_of(tensors)
    before = table.address.tolist()
    assert not table.follow(others)
    assert table.fits(tensors) and table.address.tolist() == before


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda: normal(8, 10)[::2, 1::3], r"tensors\[1\] must be without gaps.*\(20, 3\)"),
        (lambda: normal(3).expand(4, 3), r"tensors\[1\] must be without gaps.*\(0, 1\)"),
        (lambda: normal(4, 4).as_strided((3, 3), (2, 2)), r"tensors\[1\] must be without gaps"),
        (lambda: normal(3, 3).to_sparse(), r"tensors\[1\] must be dense, got torch.float32 of lay"),
        (
            lambda: torch.ones(3, dtype=torch.int64),
            r"tensors\[1\] must be complex or one of.*int64",
        ),
        (lambda: normal(3, dtype=torch.complex64).conj(), r"tensors\[1\] must be resolved"),
        (lambda: torch.ones(3, device="meta"), r"tensors\[1\] must be on .* like .*, got meta"),
    ],
)
def test_tensors_that_have_no_place_in_a_table(bad, message):
    with pytest.raises(ValueError, match=message):
        table_of([normal(3), bad()])


@pytest.mark.parametrize("block", [0, 8, 100, -16])
def test_blocks_are_powers_of_two(block):
    with pytest.raises(ValueError, match=f"block must be a power of two, at least 16, got {block}"):
        Table.of([], block)


# -- the kernels --------------------------------------------------------------------------------


@every_dtype
def test_sums_meet_the_reference(dtype):
    tensors = zoo(dtype)
    sums, flags = norm.square_sums(table_of(tensors))
    expected, _ = reference.square_sums(tensors)
    # Half of the 24 bits of float32 in the worst of cases; a block sums 256 squares at most.
    torch.testing.assert_close(sums.cpu(), expected, rtol=1e-6, atol=0)
    assert flags.tolist() == [0] * len(tensors)
    assert (sums.dtype, flags.dtype) == (torch.float64, torch.int32)


def test_mixed_list_in_one_launch():
    tensors = [tensor for dtype in REAL for tensor in zoo(dtype)]
    tensors = tensors[::2] + tensors[1::2]
    sums, _ = norm.square_sums(table_of(tensors, 1024))
    torch.testing.assert_close(sums.cpu(), reference.square_sums(tensors)[0], rtol=1e-6, atol=0)


def test_float64_is_summed_in_float64():
    large = torch.full((3,), 1e100, dtype=torch.float64, device=DEVICE)
    tensors = [normal(700, dtype=torch.float64), large]
    sums, flags = norm.square_sums(table_of(tensors))
    torch.testing.assert_close(sums.cpu(), reference.square_sums(tensors)[0], rtol=1e-14, atol=0)
    assert flags.tolist() == [0, 0]


@pytest.mark.parametrize("tensors", [[], [torch.zeros(0)], [torch.zeros(0), torch.zeros(0, 3)]])
def test_nothing_sums_to_zero(tensors):
    table = table_of([tensor.to(DEVICE) for tensor in tensors])
    table.square_sum.fill_(7.0)
    sums, flags = norm.square_sums(table)
    assert sums.tolist() == [0.0] * len(tensors)
    assert flags.tolist() == [0] * len(tensors)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", REAL, ids=str)
def test_one_bad_value_anywhere_is_flagged_in_its_tensor_alone(bad, dtype):
    places = [0, 7, 255, 256, 512, 519, 520, 522]  # first, last, ends of blocks, in the tail
    tensors = [normal(523, dtype=dtype) for _ in places] + [normal(523, dtype=dtype)]
    for tensor, place in zip(tensors, places, strict=False):
        tensor[place] = bad
    sums, flags = norm.square_sums(table_of(tensors))
    assert flags.tolist() == [1] * len(places) + [0]
    assert [math.isfinite(total) for total in sums.tolist()] == [False] * len(places) + [True]


@pytest.mark.parametrize("place", [0, 5])
def test_bad_value_in_a_tensor_that_is_not_aligned(place):
    tensor = normal(7)[1:]
    tensor[place] = math.nan
    assert norm.square_sums(table_of([tensor]))[1].tolist() == [1]


def test_finite_tensor_whose_squares_overflow_is_infinite_but_not_flagged():
    def full(size, value, dtype=torch.float32):
        return torch.full((size,), value, dtype=dtype, device=DEVICE)

    huge = [full(3, 1e25), full(300, 3e38), full(5, 3e38, torch.bfloat16)]
    large = full(9, 2.0**15, torch.float16)  # its squares overflow float16, not float32
    sums, flags = norm.square_sums(table_of([*huge, large]))
    assert sums.tolist() == [math.inf] * 3 + [9 * 2.0**30]
    assert flags.tolist() == [0] * 4


def test_sums_have_equal_bits_at_every_run():
    tensors = zoo(torch.float32)
    table = table_of(tensors)
    first = bits([r.cpu().clone() for r in norm.square_sums(table)])
    assert bits([r.cpu() for r in norm.square_sums(table)]) == first
    assert bits([r.cpu() for r in norm.square_sums(table_of(tensors))]) == first


@pytest.mark.parametrize("block", [16, 512, 8192])
def test_sums_do_not_depend_on_the_block_size_beyond_rounding(block):
    tensors = zoo(torch.float32)
    sums, _ = norm.square_sums(table_of(tensors, block))
    torch.testing.assert_close(sums.cpu(), reference.square_sums(tensors)[0], rtol=1e-6, atol=0)


def test_results_are_the_tables_own_and_renewed_by_each_call():
    tensor = torch.ones(10, device=DEVICE)
    table = table_of([tensor])
    sums, _ = norm.square_sums(table)
    tensor.mul_(2)
    again, _ = norm.square_sums(table)
    assert again.data_ptr() == sums.data_ptr()
    assert sums.tolist() == [40.0]


def test_more_blocks_than_one_pass_of_the_second_kernel_takes(monkeypatch):
    monkeypatch.setattr(norm, "LANES", 16)  # 128 blocks a pass
    tensor = torch.ones(16 * 150 + 3, device=DEVICE)
    assert norm.square_sums(table_of([tensor], 16))[0].tolist() == [16 * 150 + 3]


@pytest.mark.parametrize("start", [2**31, 2**33, 2**35 + 2**13])
def test_kernel_finds_elements_beyond_32_bits(start):
    """The block is that of a huge tensor which would begin `start` elements before real memory."""
    tensor = normal(100)
    sums, _ = norm.square_sums(shifted(table_of([tensor], 8192), tensor, start))
    torch.testing.assert_close(sums.cpu(), reference.square_sums([tensor])[0], rtol=1e-6, atol=0)


def shifted(table, tensor, start):
    """The table of one small tensor made the end of a tensor `start` elements longer."""
    table.address -= start * tensor.element_size()
    table.numel += start
    table.block_start += start
    return table


@pytest.mark.skipif(not ON_GPU, reason="needs a GPU: sends the table and replays a graph there")
def test_square_sums_in_a_cuda_graph():
    tensor = torch.ones(100_000, device=DEVICE)
    norm.square_sums(Table.of([tensor]))  # compiles
    graph = torch.cuda.CUDAGraph()
    table = Table.of([tensor])
    with torch.cuda.graph(graph):
        sums, _ = norm.square_sums(table)
    tensor.mul_(2)
    graph.replay()
    assert sums.tolist() == [400_000.0]
