"""Memory for data in bulk."""

import ctypes
import mmap

import pytest

from pyiscsi_target.memory import page_aligned


@pytest.mark.parametrize("length", [1, 4096, 512 * 1024 + 48, 2 << 20])
def test_it_begins_with_a_page(length: int) -> None:
    memory = page_aligned(length)
    assert (len(memory), memory.itemsize, memory.readonly) == (length, 1, False)
    assert bytes(memory) == bytes(length)
    assert ctypes.addressof(ctypes.c_char.from_buffer(memory)) % mmap.PAGESIZE == 0
