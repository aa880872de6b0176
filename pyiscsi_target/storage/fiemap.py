"""Which parts of a file have space and were never written, as Linux's file systems tell (FIEMAP).

linux/fiemap.h and Documentation/filesystems/fiemap.rst. Where the platform or the file system
cannot tell, `is_supported` says so. All of this may block.
"""

import errno
import struct
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

FS_IOC_FIEMAP = 0xC020660B

# struct fiemap: start, length, flags, mapped extents, room for extents, reserved
_HEADER = struct.Struct("=QQIIII")
# struct fiemap_extent: logical, physical, length, two reserved, flags, three reserved
_EXTENT = struct.Struct("=QQQ16xI12x")
_EXTENTS_AT_ONCE = 128

EXTENT_LAST = 0x0001
EXTENT_UNKNOWN = 0x0002  # no place yet
EXTENT_DELALLOC = 0x0004  # likewise
EXTENT_UNWRITTEN = 0x0800
EXTENT_SHARED = 0x2000  # writing it takes other space
_KIND = EXTENT_UNWRITTEN | EXTENT_UNKNOWN | EXTENT_DELALLOC | EXTENT_SHARED

_CANNOT = frozenset({errno.EOPNOTSUPP, errno.ENOTTY, errno.ENOSYS, errno.EINVAL})


def is_supported(fd: int) -> bool:
    """Whether the file system tells. Changes nothing, whatever the file is open for."""
    if fcntl is None:
        return False
    try:
        _ask(fd, 0, 1, 0)
    except OSError as error:
        if error.errno in _CANNOT:
            return False
        raise
    return True


def unwritten_runs(fd: int, start_bytes: int, end_bytes: int) -> Iterator[tuple[int, int]]:
    """(start, end) of what has its own space in the range and was never written. Raises OSError.

    What is still in the host's cache alone counts as never written: ask SEEK_DATA first.
    """
    pending: tuple[int, int] | None = None
    for start, end in _unwritten_extents(fd, start_bytes, end_bytes):
        if pending is not None and pending[1] == start:
            pending = pending[0], end
            continue
        if pending is not None:
            yield pending
        pending = start, end
    if pending is not None:
        yield pending


def _unwritten_extents(fd: int, start_bytes: int, end_bytes: int) -> Iterator[tuple[int, int]]:
    """Such extents of the medium; those of one run of the file may lie apart."""
    position = start_bytes
    while position < end_bytes:
        before = position
        for first, length, flags in _ask(fd, position, end_bytes - position, _EXTENTS_AT_ONCE):
            start, end = max(first, position), min(first + length, end_bytes)
            if start >= end:
                continue
            if flags & _KIND == EXTENT_UNWRITTEN:
                yield start, end
            position = end_bytes if flags & EXTENT_LAST else end
        if position == before:  # no extent there
            return


def _ask(fd: int, start: int, length: int, count: int) -> list[tuple[int, int, int]]:
    """(offset, length, flags) of the first `count` extents in the range."""
    answer = bytearray(_HEADER.size + count * _EXTENT.size)
    _HEADER.pack_into(answer, 0, start, length, 0, 0, count, 0)
    fcntl.ioctl(fd, FS_IOC_FIEMAP, answer, True)
    mapped = _HEADER.unpack_from(answer)[3]
    extents = []
    for index in range(min(mapped, count)):
        logical, _, size, flags = _EXTENT.unpack_from(answer, _HEADER.size + index * _EXTENT.size)
        extents.append((logical, size, flags))
    return extents
