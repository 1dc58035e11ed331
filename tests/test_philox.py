"""The definition of the GPU noise: published vectors, plain-integer arithmetic, far offsets."""

import copy
import math
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from resilient_optim.kernels.noise import mix
from resilient_optim.kernels.philox import (
    PhiloxNoise,
    philox_4x32,
    philox_bits,
    philox_normals,
)
from tests.helpers import bits

CPU = torch.device("cpu")
WORD = 2**32
PI = 0x299F31D0_A4093822  # key words 0xa4093822, 0x299f31d0, least significant first

KNOWN = [
    # kat_vectors of Random123 (Salmon et al.), philox4x32 with 10 rounds: counter, key, output.
    ([0, 0, 0, 0], 0, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([WORD - 1] * 4, 2**64 - 1, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        PI,
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def by_hand(counter, key):
    """Philox once more, in Python's unbounded integers."""
    x, k = list(counter), [key % WORD, key // WORD % WORD]
    for _ in range(10):
        a, b = 0xD2511F53 * x[0], 0xCD9E8D57 * x[2]
        x = [b // WORD ^ x[1] ^ k[0], b % WORD, a // WORD ^ x[3] ^ k[1], a % WORD]
        k = [(k[0] + 0x9E3779B9) % WORD, (k[1] + 0xBB67AE85) % WORD]
    return x


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_published_vectors(counter, key, expected):
    words = philox_4x32([torch.tensor([word]) for word in counter], key)
    assert [word.item() for word in words] == expected
    assert by_hand(counter, key) == expected


@given(
    key=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**40),
    tensor=st.integers(0, WORD - 1),
    start=st.integers(0, 2**50),
    numel=st.integers(0, 9),
)
def test_bits_of_any_element_follow_from_its_place(key, step, tensor, start, numel):
    """Offsets beyond 2^31 and 2^33 (where the counter's high word begins) included."""
    expected = [
        by_hand([i // 4 % WORD, i // 4 // WORD, step % WORD, tensor], key)[i % 4]
        for i in range(start, start + numel)
    ]
    assert philox_bits(key, step, tensor, start, numel).tolist() == expected


@pytest.mark.parametrize("start", [0, 2**31 - 2, 2**33 - 2, 2**34 - 3, 2**40 + 1])
def test_high_word_counts_on_where_the_low_one_ends(start):
    whole = philox_bits(5, 6, 7, start, 12)
    parts = [philox_bits(5, 6, 7, start + i, 1) for i in range(12)]
    assert torch.equal(whole, torch.cat(parts))
    assert len(set(whole.tolist())) == 12


def test_normals_worked_out_by_hand():
    def uniform(word):
        signed = word - WORD if word >= WORD // 2 else word
        return (~signed if signed < 0 else signed) * 4.6566127342e-10

    r = [uniform(word) for word in philox_bits(1, 2, 3, 0, 4).tolist()]
    expected = []
    for u, v in ((r[0], r[1]), (r[2], r[3])):
        radius = math.sqrt(-2 * math.log(u))
        expected += [radius * math.cos(2 * math.pi * v), radius * math.sin(2 * math.pi * v)]
    found = philox_normals(1, 2, 3, 0, 4)
    assert found.dtype == torch.float32
    assert found.tolist() == pytest.approx(expected, abs=2e-6)  # float32 arithmetic, |n| < 7


@pytest.mark.parametrize("start", range(6))
@pytest.mark.parametrize("numel", [0, 1, 2, 7])
def test_normals_can_be_had_from_anywhere(start, numel):
    whole = philox_normals(9, 8, 7, 0, 16)
    assert bits(philox_normals(9, 8, 7, start, numel)) == bits(whole[start : start + numel])


def test_smallest_uniform_gives_a_finite_normal(monkeypatch):
    """u = 0 would be an infinite radius: the definition takes 1e-7 instead, 5.7 sigma."""
    zeros = torch.zeros(4, dtype=torch.int64)
    monkeypatch.setattr("resilient_optim.kernels.philox.philox_bits", lambda *args: zeros)
    assert philox_normals(0, 0, 0, 0, 4).abs().max().item() == pytest.approx(5.678, abs=1e-3)


def test_noise_is_keyed_by_seed_and_stream():
    def drawn(*noise):
        return bits(PhiloxNoise(*noise).pieces(50, 3, 1, CPU))

    assert PhiloxNoise(4, 2).key == mix(4, 2)
    assert drawn(4) == drawn(4, 0) == bits([philox_normals(mix(4, 0), 3, 1, 0, 50)])
    assert len({str(drawn(*noise)) for noise in [(4, 0), (4, 1), (5, 0), (0, 4), (-1, 0)]}) == 5


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda n: pickle.loads(pickle.dumps(n))])
def test_copied_noise_is_the_same_noise(copied):
    noise = PhiloxNoise(7, 3)
    assert copied(noise) == noise


def test_global_generators_are_left_alone():
    before = torch.get_rng_state()
    PhiloxNoise(0).pieces(100, 0, 0, CPU)
    assert torch.equal(torch.get_rng_state(), before)
