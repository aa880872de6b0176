"""Parameter data of everyday commands, whole and broken."""

import contextlib
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.client import BadAnswer, answers

CAPACITY = struct.pack(">QIBBH16x", 1023, 4096, 0, 0x03, 0xC007)


def test_capacity() -> None:
    capacity = answers.decode_capacity(CAPACITY)
    assert (capacity.block_count, capacity.block_size, capacity.size_bytes) == (1024, 4096, 1 << 22)
    assert (capacity.physical_exponent, capacity.lowest_aligned_lba) == (3, 7)
    assert (capacity.thin, capacity.reads_zeroes, capacity.raw) == (True, True, CAPACITY)


def test_a_short_capacity_says_nothing_of_the_rest() -> None:
    capacity = answers.decode_capacity(CAPACITY[:12])
    assert (capacity.block_count, capacity.thin, capacity.physical_exponent) == (1024, False, 0)


def test_luns() -> None:
    raw = struct.pack(">I4x3Q", 24, 0, 1 << 48, 0xC101 << 48)
    assert answers.decode_luns(raw + bytes(8)) == [0, 1, 0xC101 << 48]


@pytest.mark.parametrize(
    "broken",
    [
        lambda: answers.decode_capacity(CAPACITY[:11]),
        lambda: answers.decode_capacity(bytes(32)),
        lambda: answers.decode_luns(bytes(7)),
        lambda: answers.decode_luns(struct.pack(">I4xQ", 16, 0)),
        lambda: answers.decode_luns(struct.pack(">I4xQ", 4, 0)),
        lambda: answers.inquiry_length(bytes(35)),
        lambda: answers.page_length(b"\0\x83\0", 0x83),
        lambda: answers.page_length(b"\0\x80\0\0", 0x83),
    ],
)
def test_what_contradicts_itself(broken: Callable[[], object]) -> None:
    with pytest.raises(BadAnswer):
        broken()


def test_lengths() -> None:
    assert answers.inquiry_length(bytes(4) + b"\x5b" + bytes(31)) == 96
    assert answers.page_length(b"\0\x83\x01\x00", 0x83) == 260


@given(st.binary(max_size=64))
def test_any_bytes_give_a_value_or_that_error(raw: bytes) -> None:
    for decode in (answers.decode_capacity, answers.decode_luns, answers.inquiry_length):
        with contextlib.suppress(BadAnswer):
            decode(raw)
