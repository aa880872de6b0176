"""What an `OSError` means for a disk: the one table from errno to `StorageFault`."""

import errno
import os

from .base import StorageError, StorageFault

FAULTS: dict[int, StorageFault] = {
    errno.ENOSPC: StorageFault.OUT_OF_SPACE,
    errno.EDQUOT: StorageFault.OUT_OF_SPACE,
    errno.EFBIG: StorageFault.OUT_OF_SPACE,
    errno.EROFS: StorageFault.READ_ONLY,
    errno.EPERM: StorageFault.READ_ONLY,
    errno.EACCES: StorageFault.READ_ONLY,
    errno.ENODEV: StorageFault.GONE,
    errno.ENXIO: StorageFault.GONE,
    errno.ESTALE: StorageFault.GONE,
    errno.EBADF: StorageFault.GONE,
}
"""Errors of operations on an open image; every other errno is the medium's fault."""

OPEN_FAULTS: dict[int, StorageFault] = {
    errno.ENOENT: StorageFault.MISSING,
    errno.ENOTDIR: StorageFault.MISSING,
    errno.ENXIO: StorageFault.MISSING,
    errno.ENODEV: StorageFault.MISSING,
    errno.EBUSY: StorageFault.BUSY,
    errno.ETXTBSY: StorageFault.BUSY,
    errno.EROFS: StorageFault.READ_ONLY,
    errno.EACCES: StorageFault.READ_ONLY,
    errno.EPERM: StorageFault.READ_ONLY,
    errno.ENOSPC: StorageFault.OUT_OF_SPACE,
    errno.EDQUOT: StorageFault.OUT_OF_SPACE,
    errno.EIO: StorageFault.MEDIUM,
}
"""Errors of opening an image; every other errno means that it cannot be what was configured."""


def _reason(error: OSError) -> str:
    return os.strerror(error.errno) if error.errno else str(error)


def storage_error(
    error: OSError, action: str, name: str, offset_bytes: int | None = None
) -> StorageError:
    """The `StorageError` for a failed `action` ("read", "write", ...) on the open image `name`."""
    fault = FAULTS.get(error.errno or 0, StorageFault.MEDIUM)
    where = "" if offset_bytes is None else f" at byte {offset_bytes}"
    return StorageError(fault, f"{name}: {action}{where}: {_reason(error)}", offset_bytes)


def open_error(error: OSError, name: str) -> StorageError:
    """The `StorageError` for an image `name` that could not be opened or created."""
    fault = OPEN_FAULTS.get(error.errno or 0, StorageFault.INVALID)
    return StorageError(fault, f"{name}: {_reason(error)}")
