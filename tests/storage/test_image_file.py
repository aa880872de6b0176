"""Every kind of image file keeps the same promises."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.file_io import FileIo
from pyiscsi_target.storage.image_file import ImageFile
from tests.support.recording_file import RecordingFile


@pytest.fixture(params=["file", "recorded"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ImageFile]:
    """Eight KiB of `a`."""
    made: ImageFile
    if request.param == "recorded":
        made = RecordingFile(b"a" * 8192)
    else:
        path = tmp_path / "image"
        path.write_bytes(b"a" * 8192)
        made = FileIo(os.open(path, os.O_RDWR), str(path))
    yield made
    made.close_blocking()


async def test_size(file: ImageFile) -> None:
    assert file.size_bytes == 8192
    await file.set_size(12288)
    assert file.read_blocking(4096, 8192) == b"a" * 4096 + bytes(4096)
    file.set_size_blocking(4096)
    assert file.size_bytes == 4096
    await file.set_size(8192)
    assert file.read_blocking(4096, 4096) == bytes(4096)
    await file.flush()
    file.flush_blocking()


async def test_reads_end_at_the_end(file: ImageFile) -> None:
    into = memoryview(bytearray(1024))
    assert not file.read_now(7680, into)
    with pytest.raises(StorageError) as caught:
        file.read_blocking(7680, 1024)
    assert caught.value.fault is StorageFault.SHORT
    with pytest.raises(StorageError) as caught:
        await file.read(7680, into)
    assert caught.value.fault is StorageFault.SHORT


async def test_writes_and_zeroes(file: ImageFile) -> None:
    file.write_blocking(0, b"b" * 512)
    await file.write(8192, [b"c" * 512, b"d" * 512])
    file.zero_blocking(1024, 512)
    await file.punch(2048, 512)
    await file.zero(3072, 512)
    assert file.read_blocking(0, 9216) == (
        b"b" * 512
        + b"a" * 512
        + (bytes(512) + b"a" * 512) * 3
        + b"a" * 4096
        + b"c" * 512
        + b"d" * 512
    )


async def test_zeroing_does_not_lengthen(file: ImageFile) -> None:
    await file.punch(4096, 1 << 20)
    assert file.size_bytes == 8192
    assert file.read_blocking(4096, 4096) == bytes(4096)


async def test_a_closed_file_is_gone(file: ImageFile) -> None:
    await file.close()
    for attempt in (
        lambda: file.read_blocking(0, 512),
        lambda: file.write_blocking(0, bytes(512)),
        lambda: file.set_size_blocking(512),
    ):
        with pytest.raises(StorageError) as caught:
            attempt()
        assert caught.value.fault is StorageFault.GONE
