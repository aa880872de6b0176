"""The lock that keeps two servers from writing one image.

Several read-only openers may share an image; a writer shares it with nobody. The lock belongs to
the file itself (whatever name, link or alias it was opened by) and ends with its last descriptor,
so a killed process leaves nothing behind.

Linux: open file description locks, on the bytes that QEMU locks too (`block/file-posix.c`: byte
100 + p is locked by who uses permission p, byte 200 + p by who does not share it; permission 1 is
writing). So an image in use by a virtual machine is refused, a virtual machine refuses an image
that is served, and `qemu-img -U` may still look at it. Elsewhere `flock`; on Windows one byte far
behind the data, by writers only. Where a file system knows no locks, a warning is logged.
"""

import errno
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .base import StorageError, StorageFault
from .faults import open_error

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:  # everywhere else
    msvcrt = None  # type: ignore[assignment]

WRITES = 101
DOES_NOT_SHARE_WRITING = 201
_WINDOWS_LOCK_BYTE = 1 << 62

_FLOCK = struct.Struct("@hhqqi4x")  # l_type, l_whence, l_start, l_len, l_pid
_CONFLICT = frozenset({errno.EAGAIN, errno.EACCES, errno.EDEADLK})
_UNSUPPORTED = frozenset({errno.EINVAL, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})

_log = logging.getLogger(__name__)


def lock_image(fd: int, name: str, *, shared: bool) -> None:
    """Lock the open image, `shared` with other readers or alone. Raises StorageError (BUSY)."""
    try:
        if not (_lock_description(fd, shared) or _lock_file(fd, shared) or _lock_byte(fd, shared)):
            _log.warning("%s: this file system has no locks; make sure nobody else writes it", name)
    except OSError as error:
        if error.errno not in _CONFLICT:
            raise
        raise StorageError(StorageFault.BUSY, f"{name}: in use by another process") from error


@contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the lock of a closed image meanwhile. Raises StorageError (BUSY, MISSING, ...)."""
    try:
        fd = os.open(path, os.O_RDONLY if shared else os.O_RDWR)
    except OSError as error:
        raise open_error(error, str(path)) from error
    try:
        lock_image(fd, str(path), shared=shared)
        yield
    finally:
        os.close(fd)


def _lock_description(fd: int, shared: bool) -> bool:
    """Linux; False where the platform or the file system cannot."""
    if not hasattr(fcntl, "F_OFD_SETLK"):
        return False
    try:
        if shared:
            _set_lock(fd, fcntl.F_RDLCK, DOES_NOT_SHARE_WRITING)
            if _is_locked(fd, WRITES):
                raise BlockingIOError(errno.EAGAIN, "a writer has it open")
        else:
            _set_lock(fd, fcntl.F_WRLCK, WRITES)
            _set_lock(fd, fcntl.F_WRLCK, DOES_NOT_SHARE_WRITING)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _set_lock(fd: int, kind: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(kind, 0, byte, 1, 0))


def _is_locked(fd: int, byte: int) -> bool:
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)


def _lock_file(fd: int, shared: bool) -> bool:
    """The BSDs and macOS; False where the platform or the file system cannot."""
    if not hasattr(fcntl, "flock"):
        return False
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _UNSUPPORTED:
            return False
        raise
    return True


def _lock_byte(fd: int, shared: bool) -> bool:
    """Windows, which has no shared locks here: readers take none."""
    if msvcrt is None:
        return False
    if not shared:
        os.lseek(fd, _WINDOWS_LOCK_BYTE, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
    return True
