import errno
import os

import pytest

from pyiscsi_target.storage.base import StorageFault
from pyiscsi_target.storage.faults import open_error, storage_error


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.EIO, StorageFault.MEDIUM),
        (errno.ENOSPC, StorageFault.OUT_OF_SPACE),
        (errno.EDQUOT, StorageFault.OUT_OF_SPACE),
        (errno.EFBIG, StorageFault.OUT_OF_SPACE),
        (errno.EROFS, StorageFault.READ_ONLY),
        (errno.ESTALE, StorageFault.GONE),
        (errno.ENODEV, StorageFault.GONE),
        (errno.EBADF, StorageFault.GONE),
        (errno.ETIMEDOUT, StorageFault.MEDIUM),
    ],
)
def test_operations(code: int, fault: StorageFault) -> None:
    error = storage_error(OSError(code, "x"), "read", "/a/disk", 512)
    assert error.fault is fault
    assert error.offset_bytes == 512
    assert str(error) == f"/a/disk: read at byte 512: {os.strerror(code)}"


@pytest.mark.parametrize(
    ("code", "fault"),
    [
        (errno.ENOENT, StorageFault.MISSING),
        (errno.EBUSY, StorageFault.BUSY),
        (errno.EACCES, StorageFault.READ_ONLY),
        (errno.EISDIR, StorageFault.INVALID),
        (errno.ENOSPC, StorageFault.OUT_OF_SPACE),
    ],
)
def test_opening(code: int, fault: StorageFault) -> None:
    error = open_error(OSError(code, "x"), "/a/disk")
    assert error.fault is fault
    assert "/a/disk" in str(error)


def test_an_error_without_a_number_is_the_mediums() -> None:
    error = storage_error(OSError("odd"), "flush", "/a/disk")
    assert error.fault is StorageFault.MEDIUM
    assert str(error) == "/a/disk: flush: odd"
    assert error.offset_bytes is None
