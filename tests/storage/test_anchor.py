"""Every format, over real files: anchored ranges are zeroes that have their space.

What is in the host's cache counts as data, so nothing is read before it is asked about. On a full
file system they can be written, flushed and closed, and nothing else can.
"""

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiscsi_target.storage.base import (
    BackingStore,
    Extent,
    Provisioning,
    StorageError,
    StorageFault,
)
from pyiscsi_target.storage.content import data_chunks
from pyiscsi_target.storage.create import NewImage, create_image, format_of
from pyiscsi_target.storage.create_child import create_child
from pyiscsi_target.storage.describe import mapped_shares
from pyiscsi_target.storage.extents import append
from pyiscsi_target.storage.open import open_image, open_store
from pyiscsi_target.storage.snapshots import take_snapshot
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.images import KIB, MIB
from tests.support.small_file_system import fill_up, small_file_system
from tests.support.vhdx_disks import read, write

MAPPED, DEALLOCATED, ANCHORED = (
    Provisioning.MAPPED,
    Provisioning.DEALLOCATED,
    Provisioning.ANCHORED,
)
SIZE = 8 * MIB
START, LENGTH = MIB + 64 * KIB, 2 * MIB  # neither begins nor ends with a block
END = START + LENGTH


@dataclass(frozen=True)
class Format:
    """A kind of disk, and what creates it; `child`: of a parent full of data."""

    name: str
    file: str
    kind: Kind = Kind.DYNAMIC
    child: bool = False
    discards: bool = False

    def create(self, directory: Path) -> None:
        image = directory / self.file
        parent = directory / f"parent{image.suffix}"
        has_blocks = self.kind is Kind.DYNAMIC and image.suffix != ".img"
        new = NewImage(format_of(image), self.kind, SIZE, MIB if has_blocks else 0)
        create_image(parent if self.child else image, new)
        if self.child:
            asyncio.run(_fill(parent))
            create_child(image, parent)

    def open(self, directory: Path) -> BackingStore:
        if self.discards:
            return open_store(
                self.file,
                size_bytes=None,
                read_only=False,
                base=directory,
                block_size=512,
                discards=True,
            )
        return open_image(directory / self.file, read_only=False)


async def _fill(image: Path) -> None:
    disk = open_image(image, read_only=False)
    await disk.write(0, [b"p" * SIZE])
    await disk.close()


FORMATS = (
    Format("raw", "disk.img"),
    Format("fixed raw", "disk.img", Kind.FIXED),
    Format("fixed VHD", "disk.vhd", Kind.FIXED),
    Format("dynamic VHD", "disk.vhd"),
    Format("differencing VHD", "disk.vhd", child=True),
    Format("fixed VHDX", "disk.vhdx", Kind.FIXED),
    Format("dynamic VHDX", "disk.vhdx"),
    Format("differencing VHDX", "disk.vhdx", child=True),
    Format("thrown away", "disk.img", discards=True),
)
formats = pytest.mark.parametrize("disk_format", FORMATS, ids=lambda each: each.name)
dynamic = pytest.mark.parametrize(
    "disk_format",
    [each for each in FORMATS if each.kind is not Kind.FIXED],
    ids=lambda each: each.name,
)


@contextlib.asynccontextmanager
async def opened(disk_format: Format, directory: Path) -> AsyncIterator[BackingStore]:
    store = disk_format.open(directory)
    try:
        if not store.capabilities.anchors:
            pytest.skip("the file system of the temporary directory cannot anchor")
        yield store
    finally:
        await store.close()


async def states(store: BackingStore, start: int = 0, end: int = SIZE) -> list[Extent]:
    """All extents of the range, however little each answer tells."""
    for limit in (1, 1000):
        found: list[Extent] = []
        position = start
        while position < end:
            for extent in await store.extents(position, end - position, limit):
                assert extent.offset_bytes == position
                append(found, extent)
                position += extent.length_bytes
    return found


def forget_cached(file: Path) -> None:
    """What opening it has read."""
    with file.open("rb") as opened_file:
        os.posix_fadvise(opened_file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@formats
async def test_anchored_is_zero_until_it_is_written(disk_format: Format, tmp_path: Path) -> None:
    await asyncio.to_thread(disk_format.create, tmp_path)
    async with opened(disk_format, tmp_path) as store:
        for offset in (START - 4096, START, END - 4096, END):
            await write(store, offset, b"d" * 4096)
        await store.anchor(START, LENGTH)
        assert await states(store, START, END) == [Extent(START, LENGTH, ANCHORED)]
        assert await read(store, START - 4096, 4096) == b"d" * 4096
        assert await read(store, START, LENGTH) == bytes(LENGTH)
        assert await read(store, END, 4096) == b"d" * 4096
        await store.anchor(START, LENGTH)  # again is as once
        await write(store, 2 * MIB, b"n" * 64 * KIB)
        assert (await states(store, 2 * MIB, 2 * MIB + 64 * KIB))[0].state is MAPPED
        assert await read(store, 2 * MIB, 64 * KIB) == b"n" * 64 * KIB
        await store.flush()
    if disk_format.discards:
        return
    async with opened(disk_format, tmp_path) as store:
        found = await states(store, START, END)
        assert [extent.state for extent in found] == [ANCHORED, MAPPED, ANCHORED]
        assert await read(store, START, 2 * MIB - START) == bytes(2 * MIB - START)
        assert await read(store, 2 * MIB, 64 * KIB) == b"n" * 64 * KIB


@dynamic
async def test_anchored_space_can_be_given_back(disk_format: Format, tmp_path: Path) -> None:
    await asyncio.to_thread(disk_format.create, tmp_path)
    async with opened(disk_format, tmp_path) as store:
        await store.anchor(START, LENGTH)
        await store.deallocate(START, LENGTH)
        assert await states(store, START, END) == [Extent(START, LENGTH, DEALLOCATED)]
        assert await read(store, START, LENGTH) == bytes(LENGTH)


@pytest.mark.parametrize(
    "disk_format",
    [each for each in FORMATS if each.kind is Kind.FIXED],
    ids=lambda each: each.name,
)
async def test_a_fixed_disk_is_anchored_from_the_start(disk_format: Format, tmp_path: Path) -> None:
    await asyncio.to_thread(disk_format.create, tmp_path)
    async with opened(disk_format, tmp_path) as store:
        forget_cached(tmp_path / disk_format.file)
        assert await states(store) == [Extent(0, SIZE, ANCHORED)]
        assert await mapped_shares(store, 2) == [1.0, 1.0]
        assert [chunk async for chunk in data_chunks(store, 0, SIZE)] == []
        await write(store, 4 * MIB, b"d" * 64 * KIB)
        assert await states(store) == [
            Extent(0, 4 * MIB, ANCHORED),
            Extent(4 * MIB, 64 * KIB, MAPPED),
            Extent(4 * MIB + 64 * KIB, 4 * MIB - 64 * KIB, ANCHORED),
        ]


@pytest.mark.parametrize("name", ["disk.vhd", "disk.vhdx"])
async def test_a_hole_in_a_block_has_no_space(name: str, tmp_path: Path) -> None:
    disk_format = Format(name, name)
    await asyncio.to_thread(disk_format.create, tmp_path)
    async with opened(disk_format, tmp_path) as store:
        await write(store, 0, b"d" * 64 * KIB)
        await store.flush()
        assert await states(store, 0, MIB) == [
            Extent(0, 64 * KIB, MAPPED),
            Extent(64 * KIB, MIB - 64 * KIB, DEALLOCATED),
        ]


@pytest.mark.parametrize("name", ["disk.vhd", "disk.vhdx"])
async def test_a_parents_space_is_not_its_childs(name: str, tmp_path: Path) -> None:
    """A write to the child would have to find its own."""
    disk_format = Format(name, name)
    await asyncio.to_thread(disk_format.create, tmp_path)
    async with opened(disk_format, tmp_path) as store:
        await write(store, 0, b"d" * MIB)
        await store.anchor(MIB, 2 * MIB)
    await asyncio.to_thread(take_snapshot, tmp_path / name, "start")
    async with opened(disk_format, tmp_path) as store:
        assert await states(store) == [
            Extent(0, MIB, MAPPED),
            Extent(MIB, SIZE - MIB, DEALLOCATED),
        ]
        await write(store, MIB, b"c" * 4096)
        assert await read(store, 0, 2 * MIB) == b"d" * MIB + b"c" * 4096 + bytes(MIB - 4096)


async def test_a_closed_or_read_only_disk_anchors_nothing(tmp_path: Path) -> None:
    for disk_format in (FORMATS[0], FORMATS[3], FORMATS[6]):
        await asyncio.to_thread(disk_format.create, tmp_path)
        store = open_image(tmp_path / disk_format.file, read_only=True)
        with pytest.raises(StorageError) as caught:
            await store.anchor(0, MIB)
        assert caught.value.fault is StorageFault.READ_ONLY
        await store.close()


# Full file systems


@pytest.fixture(params=["ext4", "xfs", "btrfs"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with small_file_system(tmp_path, request.param) as directory:
        yield directory


async def write_elsewhere(store: BackingStore) -> None:
    for offset in range(5 * MIB, SIZE, 64 * KIB):
        await write(store, offset, b"x" * 64 * KIB)
    await store.flush()


@dynamic
async def test_a_full_file_system_takes_what_is_anchored(disk_format: Format, small: Path) -> None:
    await asyncio.to_thread(disk_format.create, small)
    data = os.urandom(LENGTH)
    async with opened(disk_format, small) as store:
        await store.anchor(START, LENGTH)
        await store.flush()
        await asyncio.to_thread(fill_up, small)
        with pytest.raises(StorageError) as caught:
            await write_elsewhere(store)
        assert caught.value.fault is StorageFault.OUT_OF_SPACE
        for offset in range(0, LENGTH, 64 * KIB):
            await write(store, START + offset, data[offset : offset + 64 * KIB])
        await store.flush()
        assert await read(store, START, LENGTH) == data
    if not disk_format.discards:
        async with opened(disk_format, small) as store:
            assert await read(store, START, LENGTH) == data


@dynamic
async def test_a_full_file_system_anchors_nothing(disk_format: Format, small: Path) -> None:
    await asyncio.to_thread(disk_format.create, small)
    async with opened(disk_format, small) as store:
        await write(store, 0, b"d" * 4096)
        await store.flush()
        await asyncio.to_thread(fill_up, small)
        with pytest.raises(StorageError) as caught:
            await store.anchor(START, 6 * MIB)
        assert caught.value.fault is StorageFault.OUT_OF_SPACE
        assert await read(store, 0, 4096) == b"d" * 4096
