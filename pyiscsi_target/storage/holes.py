"""Allocation of a file's ranges: punching holes, zeroing, and finding what is allocated.

Works on Linux files and block devices alike (block devices take the same `fallocate` since Linux
4.9: a hole is a discard that is sure to read as zeroes, or an error). Where the platform, the file
system or the device cannot, the functions say so by returning False or None, and the caller writes
zeroes. All of these may block.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE

_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})


def _load_fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's `fallocate` (`os.posix_fallocate` has no modes), None where there is none."""
    try:
        library = ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):
        return None
    # The 64 in the name means offsets of 64 bits on 32-bit systems too.
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    found: Callable[[int, int, int, int], int] = function
    return found


fallocate = _load_fallocate()


def allocate_mode(fd: int, mode: int, offset_bytes: int, length_bytes: int) -> bool:
    """`fallocate` with `mode` (`PUNCH` or `ZERO`); False where that is not supported.

    Raises OSError for every real failure.
    """
    if fallocate is None:
        return False
    while fallocate(fd, mode, offset_bytes, length_bytes):
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def can_punch(fd: int, size_bytes: int) -> bool:
    """Whether the file (not block device) takes holes: tried harmlessly, behind its end.

    A file that is open for reading alone cannot be asked, and most file systems take them.
    """
    unit = 1 << 20
    behind = -(-size_bytes // unit) * unit
    try:
        return allocate_mode(fd, PUNCH, behind, unit)
    except OSError as error:
        return error.errno == errno.EBADF


def data_runs(fd: int, start_bytes: int, end_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, end) of every run that holds data in the range, by SEEK_DATA and SEEK_HOLE.

    Where the platform or the file cannot tell, all of the range is data.
    """
    seek_data, seek_hole = getattr(os, "SEEK_DATA", None), getattr(os, "SEEK_HOLE", None)
    position = start_bytes
    while position < end_bytes:
        if seek_data is None or seek_hole is None:
            yield position, end_bytes
            return
        try:
            start = os.lseek(fd, position, seek_data)
            if start >= end_bytes:
                return
            end = os.lseek(fd, start, seek_hole)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data from here to the end of the file
                return
            if error.errno not in _CANNOT:
                raise
            start, end = position, end_bytes
        yield start, min(end, end_bytes)
        position = end
