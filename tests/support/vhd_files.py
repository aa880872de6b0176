"""VHDs in memory and in files, also with blocks that are smaller than anybody makes them."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from pyiscsi_target.storage import vhd_create
from pyiscsi_target.storage.base import BackingStore
from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.image_file import ImageFile
from pyiscsi_target.storage.vhd import FixedVhd, open_vhd
from pyiscsi_target.storage.vhd_create import NewVhd, ParentOfNew
from pyiscsi_target.storage.vhd_disk import VhdDisk
from pyiscsi_target.storage.vhd_format import Footer
from tests.support.recording_file import RecordingFile

PATHS = ParentPaths((".\\parent.vhd",), ("C:\\parent.vhd",))


def contents(new: NewVhd) -> bytes:
    """The new file's bytes."""
    raw = bytearray(new.file_bytes)
    for offset, data in new.pieces:
        raw[offset : offset + len(data)] = data
    return bytes(raw)


def put(path: Path, new: NewVhd) -> Path:
    """Write the new file, sparse."""
    with path.open("wb") as file:
        file.truncate(new.file_bytes)
        for offset, data in new.pieces:
            file.seek(offset)
            file.write(data)
    return path


@contextlib.contextmanager
def small_blocks() -> Iterator[None]:
    """New images may have blocks of any size."""
    with mock.patch.object(vhd_create, "BLOCK_BYTES_MIN", 512):
        yield


def small_dynamic(size_bytes: int, block_bytes: int) -> bytes:
    """A new dynamic disk."""
    with small_blocks():
        return contents(vhd_create.new_dynamic(size_bytes, block_bytes))


def small_child(size_bytes: int, block_bytes: int, footer: Footer) -> bytes:
    """A new child of the disk with this footer."""
    parent = ParentOfNew("parent.vhd", footer.unique_id, footer.time_stamp, PATHS)
    with small_blocks():
        return contents(vhd_create.new_dynamic(size_bytes, block_bytes, parent=parent))


def open_blocks(
    file: ImageFile, find_parent: Callable[[ParentPaths], BackingStore] | None = None
) -> VhdDisk:
    """Open a dynamic or differencing disk."""
    disk = open_vhd(file, find_parent=find_parent)
    assert isinstance(disk, VhdDisk)
    return disk


def open_parent(raw: bytes) -> Callable[[ParentPaths], FixedVhd | VhdDisk]:
    """A `find_parent` that always finds this one."""

    def find(paths: ParentPaths) -> FixedVhd | VhdDisk:
        disk = open_vhd(RecordingFile(raw, "parent.vhd", read_only=True))
        assert isinstance(disk, FixedVhd | VhdDisk)
        return disk

    return find


async def read_all(disk: BackingStore, offset: int = 0, length: int | None = None) -> bytes:
    """All bytes of the disk, or some."""
    data = bytearray(disk.size_bytes - offset if length is None else length)
    if not disk.read_now(offset, memoryview(data)):
        await disk.read(offset, memoryview(data))
    return bytes(data)


async def write_bytes(
    disk: BackingStore, offset: int, data: bytes, *, durable: bool = False
) -> None:
    """As the device server does: at once, if that is possible."""
    if durable or not disk.write_now(offset, (data,)):
        await disk.write(offset, (data,), durable=durable)
