"""Allocation of a file's ranges: punching holes, zeroing, reserving, and finding what is allocated.

Works on Linux files and block devices alike (block devices take the same `fallocate` since Linux
4.9: a hole is a discard that is sure to read as zeroes, or an error). Where the platform, the file
system or the device cannot, the functions say so by returning False or None, and the caller writes
zeroes. All of these may block.
"""

import ctypes
import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from . import fiemap
from .base import Extent, Provisioning

FALLOC_FL_KEEP_SIZE = 0x01
FALLOC_FL_PUNCH_HOLE = 0x02
FALLOC_FL_ZERO_RANGE = 0x10

PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
ZERO = FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE
RESERVE = FALLOC_FL_KEEP_SIZE

_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL, errno.ENOTTY})
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_TRIAL_BYTES = 1 << 16
_STATFS_BYTES = 512  # struct statfs has about 120, and begins with the type
_WRITE_ELSEWHERE = frozenset({0x9123683E, 0xCA451A4E})  # linux/magic.h: btrfs, bcachefs


def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None, use_errno=True)
    except (OSError, TypeError):  # Windows
        return None


def _load_fallocate() -> Callable[[int, int, int, int], int] | None:
    """The C library's `fallocate` (`os.posix_fallocate` has no modes), None where there is none."""
    library = _c_library()
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
    """`fallocate` with `mode` (`PUNCH`, `ZERO` or `RESERVE`); False where that is not supported.

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


def data_end(fd: int, position: int) -> int:
    """Where the data that is at the position ends; the position itself where nobody knows."""
    seek_hole = getattr(os, "SEEK_HOLE", None)
    try:
        return position if seek_hole is None else os.lseek(fd, position, seek_hole)
    except OSError:
        return position


def can_anchor(fd: int, directory: Path) -> bool:
    """Whether the file's range can have space without data, and the file system tells so.

    Tried on a file without a name in `directory`, which must be the file's own; where none can be
    made the answer is no.
    """
    flag = getattr(os, "O_TMPFILE", None)
    try:
        if flag is None or not fiemap.is_supported(fd):
            return False
        trial = os.open(directory, flag | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        return _anchors_trial(trial)
    finally:
        os.close(trial)


def writes_elsewhere(fd: int) -> bool:
    """Whether replacing bytes takes new space, so that a full file system refuses even that."""
    function = getattr(_c_library(), "fstatfs", None)
    answer = ctypes.create_string_buffer(_STATFS_BYTES)
    if function is None or function(fd, answer):
        return False
    return ctypes.c_ulong.from_buffer(answer).value & 0xFFFF_FFFF in _WRITE_ELSEWHERE


def _anchors_trial(fd: int) -> bool:
    try:
        os.ftruncate(fd, _TRIAL_BYTES)
        if not allocate_mode(fd, ZERO, 0, _TRIAL_BYTES):
            return False
        return list(fiemap.unwritten_runs(fd, 0, _TRIAL_BYTES)) == [(0, _TRIAL_BYTES)]
    except OSError as error:
        return error.errno in _FULL  # it would, if there were space


def extents(fd: int, start_bytes: int, end_bytes: int, *, anchors: bool) -> Iterator[Extent]:
    """The extents of a range of a file; with `anchors` what has space in its holes is anchored.

    SEEK_DATA knows of data that is only in the host's cache, FIEMAP does not: so the latter is
    asked of holes alone.
    """
    position = start_bytes
    for start, end in data_runs(fd, start_bytes, end_bytes):
        yield from _hole_extents(fd, position, start, anchors=anchors)
        yield Extent(start, end - start, Provisioning.MAPPED)
        position = end
    yield from _hole_extents(fd, position, end_bytes, anchors=anchors)


def _hole_extents(fd: int, start_bytes: int, end_bytes: int, *, anchors: bool) -> Iterator[Extent]:
    position = start_bytes
    for start, end in fiemap.unwritten_runs(fd, start_bytes, end_bytes) if anchors else ():
        if position < start:
            yield Extent(position, start - position, Provisioning.DEALLOCATED)
        yield Extent(start, end - start, Provisioning.ANCHORED)
        position = end
    if position < end_bytes:
        yield Extent(position, end_bytes - position, Provisioning.DEALLOCATED)
