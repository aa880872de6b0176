"""Zeroes and differences in buffers, at the edges of the parts that are looked at."""

import pytest

from pyiscsi_target.storage.buffers import all_zero, first_nonzero, same

EDGES = [0, 1, 65535, 65536, 131071, 131072, 140000]
LENGTH = 140001


@pytest.mark.parametrize("at", EDGES)
def test_one_byte_is_found(at: int) -> None:
    data = bytearray(LENGTH)
    assert first_nonzero(memoryview(data)) is None
    assert all_zero((data, data))
    data[at] = 1
    data[-1] |= 2
    assert first_nonzero(memoryview(data)) == at
    assert not all_zero((bytes(9), data))


@pytest.mark.parametrize("at", EDGES)
def test_one_byte_differs(at: int) -> None:
    left, right = bytearray(b"x" * LENGTH), bytearray(b"x" * LENGTH)
    assert same(memoryview(left), memoryview(right))
    right[at] = 0
    assert not same(memoryview(left), memoryview(right))
