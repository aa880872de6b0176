"""Copying a whole file: sharing its blocks where the file system can, else its data without holes.

All of this may block. Knows nothing of what is in the file.
"""

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path

from .base import StorageError, StorageFault
from .durability import sync_directory
from .faults import open_error
from .holes import data_runs

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_FICLONE = 0x4004_9409  # ioctl_ficlone(2): the same number wherever there is one
_CANNOT_SHARE = frozenset(
    {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EXDEV, errno.ENOSYS, errno.EPERM}
)
_COPY_BYTES = 4 << 20
WRITABLE = stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH

Progress = Callable[[int], None]
"""Told how many more bytes of data are copied."""


def replacement_for(path: Path) -> Path:
    """Where a file lies until it takes the place of `path`; by its suffix it can be opened there.

    Always the same, so that what a crash left there goes with the next one.
    """
    return path.with_name(f".{path.name}.tmp{path.suffix}")


def allocated_bytes(path: Path) -> int:
    """How much of the file is data, as far as the file system can tell. Raises StorageError."""
    try:
        with open(path, "rb") as file:
            return _allocated_bytes(file.fileno())
    except OSError as error:
        raise open_error(error, str(path)) from error


def clone_file(
    source: Path,
    target: Path,
    *,
    copy_limit_bytes: int | None = None,
    read_only: bool = False,
    progress: Progress | None = None,
) -> None:
    """Make `target` a copy of `source`, complete and on the medium, or not there.

    Replaces what is at `target`, at once; nobody may write to it if `read_only`. Where the files
    cannot share blocks and more data than `copy_limit_bytes` would have to be copied, nothing is
    done. Raises StorageError.
    """
    temporary = replacement_for(target)
    try:
        with open(source, "rb") as file, open(temporary, "wb") as copy:
            shutil.copymode(source, temporary)
            if not _share(file.fileno(), copy.fileno()):
                _check_limit(source, file.fileno(), copy_limit_bytes)
                _copy(file.fileno(), copy.fileno(), progress)
            if read_only:
                temporary.chmod(stat.S_IMODE(temporary.stat().st_mode) & ~WRITABLE)
            os.fsync(copy.fileno())
        temporary.replace(target)
        sync_directory(target.parent)
    except OSError as error:
        raise open_error(error, str(error.filename or target)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _share(source: int, target: int) -> bool:
    if fcntl is None:
        return False
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError as error:
        if error.errno not in _CANNOT_SHARE:
            raise
        return False
    return True


def _allocated_bytes(source: int) -> int:
    return sum(end - start for start, end in data_runs(source, 0, os.fstat(source).st_size))


def _check_limit(name: Path, source: int, limit_bytes: int | None) -> None:
    if limit_bytes is not None and (data_bytes := _allocated_bytes(source)) > limit_bytes:
        raise StorageError(
            StorageFault.INVALID,
            f"{name}: {data_bytes} bytes would have to be copied, for the file system cannot share"
            f" blocks; at most {limit_bytes} are copied",
        )


def _copy(source: int, target: int, progress: Progress | None) -> None:
    size_bytes = os.fstat(source).st_size
    os.ftruncate(target, size_bytes)
    for start, end in data_runs(source, 0, size_bytes):
        while start < end:
            data = memoryview(_read_at(source, start, min(end - start, _COPY_BYTES)))
            if not data:
                raise OSError(errno.EIO, "the file became shorter while it was copied")
            os.lseek(target, start, os.SEEK_SET)
            written = os.write(target, data)
            start += written
            if progress is not None:
                progress(written)


def _read_at(source: int, start: int, length: int) -> bytes:
    os.lseek(source, start, os.SEEK_SET)
    return os.read(source, length)
