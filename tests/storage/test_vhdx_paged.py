"""VHDX disks whose table is too large to be in memory as a whole, and bitmaps likewise."""

import asyncio
import tracemalloc

import pytest

from pyiscsi_target.storage import vhdx_bitmap
from pyiscsi_target.storage.base import Provisioning
from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.vhdx import VhdxDisk, open_vhdx
from pyiscsi_target.storage.vhdx_create import Kind, NewDisk, ParentLink, create_vhdx
from tests.support.images import MIB
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import fill, made_child, open_disk, read, reopened, write

TIB = 1 << 40


async def test_a_disk_of_64_tib_takes_little() -> None:
    for block_bytes in (MIB, 32 * MIB):
        file = SparseFile()
        disk = sparse_disk(file, 64 * TIB, block_bytes)
        await write(disk, 64 * TIB - 4096, fill(1, 4096))
        assert await read(disk, 64 * TIB - 8192, 8192) == bytes(4096) + fill(1, 4096)
        await disk.close()
        disk = open_vhdx(file)
        assert await read(disk, 64 * TIB - 8192, 8192) == bytes(4096) + fill(1, 4096)
        extents = await disk.extents(63 * TIB, TIB, 4)
        assert extents[0].state is Provisioning.DEALLOCATED


class SparseFile(RecordingFile):
    """A large file, of which only pages that hold something are kept; it cannot crash."""

    def __init__(self) -> None:
        super().__init__()
        self.pages: dict[int, bytearray] = {}
        self.length = 0

    @property
    def size_bytes(self) -> int:
        return self.length

    def set_size_blocking(self, size_bytes: int) -> None:
        self.length = size_bytes

    def zero_blocking(self, offset_bytes: int, length_bytes: int) -> None:
        first, last = offset_bytes >> 16, offset_bytes + length_bytes >> 16
        for page in [page for page in self.pages if first <= page < last]:
            del self.pages[page]

    def write_blocking(self, offset_bytes: int, data: bytes | bytearray | memoryview) -> None:
        for at, byte_count, start in self._parts(offset_bytes, len(data)):
            page = self.pages.setdefault(at >> 16, bytearray(1 << 16))
            page[at & 0xFFFF : (at & 0xFFFF) + byte_count] = data[start : start + byte_count]

    def read_blocking(self, offset_bytes: int, length_bytes: int) -> bytes:
        assert offset_bytes + length_bytes <= self.length
        empty = bytes(1 << 16)
        return b"".join(
            self.pages.get(at >> 16, empty)[at & 0xFFFF : (at & 0xFFFF) + byte_count]
            for at, byte_count, _ in self._parts(offset_bytes, length_bytes)
        )

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        into[:] = self.read_blocking(offset_bytes, len(into))
        return True

    @staticmethod
    def _parts(offset_bytes: int, length_bytes: int) -> list[tuple[int, int, int]]:
        parts, at, end = [], offset_bytes, offset_bytes + length_bytes
        while at < end:
            count = min((1 << 16) - (at & 0xFFFF), end - at)
            parts.append((at, count, at - offset_bytes))
            at += count
        return parts


def sparse_disk(file: SparseFile, size_bytes: int, block_bytes: int) -> VhdxDisk:
    create_vhdx(file, NewDisk(size_bytes, block_bytes=block_bytes))
    return open_vhdx(file)


async def test_a_large_child_of_a_large_parent() -> None:
    """The entries of its sector bitmaps lie in other parts of the table than its blocks'."""
    size = 16 * TIB
    below = SparseFile()
    parent = sparse_disk(below, size, 2 * MIB)
    places = (0, 5 * TIB, size - 2 * MIB)
    for number, at in enumerate(places):
        await write(parent, at, fill(100 + number, 4096))
    await parent.close()
    below.closed, below.read_only = False, True
    parent = open_vhdx(below)
    file = SparseFile()
    link = ParentLink(parent.data_write_guid, ParentPaths((".\\parent.vhdx",)))
    create_vhdx(file, NewDisk(size, Kind.DIFFERENCING, 2 * MIB, parent=link))
    child = open_vhdx(file, find_parent=lambda paths: parent)
    for number, at in enumerate(places):
        await write(child, at + 512, fill(number + 1, 512))
        await write(child, at + MIB, fill(number + 1, 512))
    for number, at in enumerate(places):
        expected = fill(100 + number, 512) + fill(number + 1, 512) + fill(100 + number, 3072)
        assert await read(child, at, 4096) == expected
        assert await read(child, at + MIB, 1024) == fill(number + 1, 512) + bytes(512)
    await child.close()


async def test_bitmaps_that_are_forgotten_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vhdx_bitmap, "_SECTORS_MAX", 0)  # at every flush
    file, parent, _ = await made_child()
    child = open_disk(file, parent)

    async def write_some(number: int) -> None:
        for at in range(number * 512, 2 * MIB, 256 * 1024):
            await child.write(at, [fill(number + 1, 512)])
            await child.flush()

    await asyncio.gather(*(write_some(number) for number in range(4)))
    for number in range(4):
        for at in range(number * 512, 2 * MIB, 256 * 1024):
            assert await read(child, at, 512) == fill(number + 1, 512)
    await child.close()
    assert await read(reopened(file.killed(), parent), 0, 512) == fill(1, 512)


async def test_a_large_disk_shrinks_and_is_compacted_in_little_memory() -> None:
    file = SparseFile()
    disk = sparse_disk(file, 12 * TIB, MIB)
    for at in (0, 3 * TIB, 11 * TIB):
        await write(disk, at, fill(1, 512))
    await disk.deallocate(11 * TIB, MIB)
    await write(disk, 10 * TIB, bytes(511) + b"x")
    await disk.write_zeroes(10 * TIB, 64 * 1024)  # a block of zeroes that has its place
    tracemalloc.start()
    await disk.resize(TIB * 4)
    assert disk.size_bytes == 4 * TIB
    await disk.close()
    file.closed = False
    disk = open_vhdx(file)
    await disk.compact(lambda done, total: None)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 64 * MIB
    assert await read(disk, 0, 512) == await read(disk, 3 * TIB, 512) == fill(1, 512)
    await disk.close()
