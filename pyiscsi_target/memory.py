"""Memory for data in bulk, which the kernel fills and empties at full speed."""

import mmap
import sys


def page_aligned(length_bytes: int) -> memoryview:
    """Zeroes in pages of their own.

    Many processors copy at a quarter of their speed to where the place in the page is 1 to 31 bytes
    behind that of the source (AMD Zen 3 and 4, `rep movsb`). The page cache and the buffers of
    sockets begin with a page; a large `bytearray` begins 16 bytes behind one.
    """
    if sys.platform == "win32":
        return memoryview(mmap.mmap(-1, length_bytes))
    return memoryview(mmap.mmap(-1, length_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))
