"""The request path over blocks, with the simplest of formats in it."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

import pytest

from pyiscsi_target.storage.base import Buffer, Capabilities, Extent, Provisioning, StorageError
from pyiscsi_target.storage.block_image import BlockImage, uninterrupted
from pyiscsi_target.storage.block_layout import Piece, Source
from pyiscsi_target.storage.block_table import UNKNOWN, BlockTable
from pyiscsi_target.storage.buffers import all_zero, fill_zeroes, slice_buffers
from tests.support.memory_disk import MemoryStore
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import read, write

BLOCK = 4096
MAPPED, DEALLOCATED = Provisioning.MAPPED, Provisioning.DEALLOCATED
ANCHORED = Provisioning.ANCHORED
ABSENT = -1


class Blocks(BlockImage):
    """Block n lies at (n + 1) blocks when it is there; loading takes a while."""

    def __init__(
        self,
        count: int,
        parent: MemoryStore | None = None,
        *,
        known: bool = True,
        file_type: type[RecordingFile] = RecordingFile,
        sector: int = 512,
    ):
        table = BlockTable(count, ABSENT if known else UNKNOWN)
        file = file_type(bytes((count + 1) * BLOCK))
        capabilities = Capabilities(anchors=file.anchors, logical_block_bytes=sector)
        super().__init__(file, count * BLOCK, BLOCK, capabilities, table, parent)
        self.recorded = file
        self.prepared: list[tuple[int, int, int]] = []
        self.discarded: list[int] = []
        self.begun = 0
        self.is_durable = True

    def _pieces(self, block: int, start: int, end: int) -> list[Piece] | None:
        at = self.table[block]
        if at == UNKNOWN:
            return None
        if at > 0:
            return [Piece(end - start, Source.FILE, at + start)]
        return [Piece(end - start, Source.PARENT if self.parent else Source.ZEROES)]

    async def _load(self, block: int) -> None:
        await asyncio.sleep(0)
        self.table[block] = ABSENT

    async def _begin_writing(self) -> None:
        self.begun += 1
        self._writes_now = True

    async def _prepare(
        self, block: int, start: int, end: int, *, becomes_zero: bool = False
    ) -> int:
        await asyncio.sleep(0)
        self.prepared.append((block, start, end))
        self.table[block] = (block + 1) * BLOCK
        return self.table[block]

    async def _discard(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self.table[block] = ABSENT
        await self._unused(blocks)
        self.discarded += blocks

    def _metadata_is_durable(self) -> bool:
        return self.is_durable

    async def flush(self) -> None:
        await self.file.flush()

    async def close(self) -> None:
        await self.file.close()


async def test_requests_are_split_at_blocks() -> None:
    disk = Blocks(4)
    data = bytes(range(256)) * 40
    await write(disk, BLOCK - 512, data[:1024], data[1024:])
    assert disk.prepared == [(0, BLOCK - 512, BLOCK), (1, 0, BLOCK), (2, 0, BLOCK), (3, 0, 1536)]
    assert disk.begun == 1
    assert await read(disk, 0, 4 * BLOCK) == bytes(BLOCK - 512) + data + bytes(2560)
    assert disk.write_now(0, [data[:BLOCK], data[BLOCK:]])  # one run in the file
    assert await read(disk, 0, len(data)) == data


async def test_blocks_apart_are_not_written_at_once() -> None:
    disk = Blocks(4)
    await write(disk, 0, b"a" * 4 * BLOCK)
    disk.table[1], disk.table[2] = disk.table[2], disk.table[1]
    assert not disk.write_now(BLOCK - 512, [b"b" * 1024])
    assert not disk.write_now(BLOCK - 512, [b"b" * 512, b"b" * 512])
    assert disk.write_now(BLOCK - 512, [b"b" * 512])
    await write(disk, 2 * BLOCK - 512, b"c" * 1024)
    assert await read(disk, 2 * BLOCK - 1024, 2048) == b"a" * 512 + b"c" * 1024 + b"a" * 512


async def test_blocks_are_loaded_first() -> None:
    disk = Blocks(2, known=False)
    into = memoryview(bytearray(b"x" * 1024))
    assert not disk.read_now(BLOCK - 512, into)
    await disk.read(BLOCK - 512, into)
    assert into == bytes(1024)
    assert disk.read_now(BLOCK - 512, into)


async def test_zeroes_are_not_written_where_there_are_zeroes() -> None:
    disk = Blocks(2)
    await write(disk, 0, bytes(BLOCK), bytes(512))
    await disk.deallocate(0, 2 * BLOCK)
    assert disk.prepared == []
    assert disk.discarded == []


async def test_a_smaller_parent_is_read_up_to_its_end() -> None:
    parent = MemoryStore(BLOCK + 512)
    parent.content[:] = b"p" * (BLOCK + 512)
    disk = Blocks(3, parent)
    assert await read(disk, 0, 3 * BLOCK) == b"p" * (BLOCK + 512) + bytes(2 * BLOCK - 512)
    assert await disk.extents(0, 3 * BLOCK, 9) == [
        Extent(0, BLOCK + 512, MAPPED),
        Extent(BLOCK + 512, 2 * BLOCK - 512, DEALLOCATED),
    ]
    await write(disk, 2 * BLOCK, b"c" * 512)
    assert (await disk.extents(2 * BLOCK, BLOCK, 9))[0].state is MAPPED


async def test_deallocation_of_whole_blocks_and_parts() -> None:
    disk = Blocks(4)
    await write(disk, 0, b"a" * 4 * BLOCK)
    await disk.deallocate(512, 2 * BLOCK)
    assert disk.discarded == [1]
    assert await read(disk, 0, 3 * BLOCK) == b"a" * 512 + bytes(2 * BLOCK) + b"a" * (BLOCK - 512)
    await disk.write_zeroes(2 * BLOCK, 2 * BLOCK)
    assert disk.discarded == [1]  # what is there stays there
    assert await disk.extents(0, 4 * BLOCK, 1) == [Extent(0, BLOCK, MAPPED)]


async def test_space_is_not_given_up_while_a_read_of_it_runs() -> None:
    disk = Blocks(2)
    await write(disk, 0, b"a" * BLOCK)
    gate = asyncio.Event()
    original = disk.file.read

    async def slow_read(offset_bytes: int, into: memoryview) -> None:
        await gate.wait()
        await original(offset_bytes, into)

    disk.recorded.slow = True
    disk.recorded.read = slow_read  # type: ignore[method-assign]
    disk._file_read_now = lambda offset_bytes, into: False
    reading = asyncio.ensure_future(disk.read(0, memoryview(bytearray(512))))
    await asyncio.sleep(0)
    discarding = asyncio.ensure_future(disk.deallocate(0, BLOCK))
    for _ in range(9):
        await asyncio.sleep(0)
    assert disk.discarded == []
    gate.set()
    await asyncio.gather(reading, discarding)
    assert disk.discarded == [0]


class AnchoringFile(RecordingFile):
    """A file system with blocks of 1 KiB that has never written the second of each four."""

    anchors = True

    async def extents(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Extent]:
        found: list[Extent] = []
        for start, end in ranges:
            while start < end and len(found) < limit:
                stop = min(end, (start // 1024 + 1) * 1024)
                state = ANCHORED if start // 1024 % 4 == 1 else MAPPED
                found.append(Extent(start, stop - start, state))
                start = stop
        return found


def anchoring(count: int, parent: MemoryStore | None = None, *, sector: int = 512) -> Blocks:
    return Blocks(count, parent, file_type=AnchoringFile, sector=sector)


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 5, 6, 9])
async def test_a_block_is_as_the_file_is_there(limit: int) -> None:
    disk = anchoring(4)
    for block in (0, 2):
        await disk._prepare(block, 0, BLOCK)
    expected = [
        Extent(0, 1024, MAPPED),
        Extent(1024, 1024, ANCHORED),
        Extent(2048, 2048, MAPPED),
        Extent(4096, 4096, DEALLOCATED),
        Extent(8192, 1024, MAPPED),
        Extent(9216, 1024, ANCHORED),
        Extent(10240, 2048, MAPPED),
        Extent(12288, 4096, DEALLOCATED),
    ]
    assert await disk.extents(0, 4 * BLOCK, limit) == expected[:limit]
    assert await disk.extents(1536, 1024, 9) == [
        Extent(1536, 512, ANCHORED),
        Extent(2048, 512, MAPPED),
    ]


async def test_extents_are_whole_sectors() -> None:
    disk = anchoring(2, sector=4096)
    await disk._prepare(0, 0, BLOCK)
    expected = [Extent(0, 4096, MAPPED), Extent(4096, 4096, DEALLOCATED)]
    assert await disk.extents(0, 2 * BLOCK, 9) == expected
    assert await disk.extents(0, 2 * BLOCK, 1) == expected[:1]


async def test_anchoring_prepares_all_blocks_and_zeroes_them() -> None:
    disk = anchoring(4)
    await disk.write(BLOCK, [b"d" * BLOCK])
    await disk.anchor(512, 2 * BLOCK)
    assert disk.begun == 1
    assert [block for block, _, _ in disk.prepared] == [1, 0, 2]
    assert await read(disk, 0, 4 * BLOCK) == bytes(4 * BLOCK)
    assert disk.table[3] == ABSENT


async def test_what_a_parent_anchors_is_zeroes_without_space() -> None:
    parent = MemoryStore(BLOCK)
    parent.mapped = [Extent(0, 1024, ANCHORED), Extent(1024, BLOCK - 1024, DEALLOCATED)]
    disk = anchoring(1, parent)
    assert await disk.extents(0, BLOCK, 9) == [Extent(0, BLOCK, DEALLOCATED)]
    assert await disk._parent_is_zero(0, BLOCK)


@pytest.mark.parametrize(("is_durable", "length", "flushes"), [(True, 512, 0), (False, 512, 1)])
async def test_a_durable_write_needs_durable_metadata(
    is_durable: bool, length: int, flushes: int
) -> None:
    disk = Blocks(2)
    disk.is_durable = is_durable
    await disk.write(0, [b"d" * length], durable=True)
    assert disk.recorded.flushes == flushes
    assert disk.recorded.durable[BLOCK : BLOCK + length] == b"d" * length


async def test_a_durable_write_of_several_blocks_is_flushed_once() -> None:
    disk = Blocks(2)
    await disk.write(512, [b"d" * BLOCK], durable=True)
    assert disk.recorded.flushes == 1
    assert disk.recorded.durable[BLOCK + 512 : 2 * BLOCK + 512] == b"d" * BLOCK


async def test_a_cancelled_preparation_ends_first() -> None:
    disk = Blocks(2)
    task = asyncio.ensure_future(disk.write(0, [b"a" * 512]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert disk.begun == 1
    done = []

    async def work() -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        done.append(1)

    task = asyncio.ensure_future(uninterrupted(work()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert done == [1]


async def test_a_read_only_disk_takes_no_writes() -> None:
    disk = Blocks(2)
    disk.capabilities = Capabilities(read_only=True)
    assert not disk.write_now(0, [bytes(512)])
    for attempt in (disk.write(0, [bytes(512)]), disk.deallocate(0, 512)):
        with pytest.raises(StorageError, match="read-only"):
            await attempt


def test_buffers() -> None:
    data: list[Buffer] = [b"abc", bytearray(b"de"), memoryview(b"fgh")]
    for start in range(8):
        for length in range(1, 9 - start):
            joined = b"".join(bytes(part) for part in slice_buffers(data, start, length))
            assert joined == b"abcdefgh"[start : start + length]
    assert all_zero([bytes(100_000), bytearray(1)])
    for at in (0, 70_000, 99_999):
        changed = bytearray(100_000)
        changed[at] = 1
        assert not all_zero([b"", changed])
    into = memoryview(bytearray(b"x" * 150_000))
    fill_zeroes(into[1:])
    assert bytes(into) == b"x" + bytes(149_999)


# Others have their turn, and what is known of many blocks at once is used


async def turns_beside(work: Coroutine[Any, Any, object]) -> int:
    """How often another task has its turn meanwhile."""
    count, task = 0, asyncio.ensure_future(work)
    while not task.done():
        await asyncio.sleep(0)
        count += 1
    await task
    return count


class Counted(MemoryStore):
    """A disk of zeroes that knows so, and counts how often it is asked."""

    asked = 0

    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        self.asked += 1
        return [Extent(offset_bytes, length_bytes, DEALLOCATED)]


async def test_a_large_range_does_not_hold_up_the_event_loop() -> None:
    disk = Blocks(4096)
    for block in range(4096):
        disk.table[block] = (block + 1) * BLOCK
    assert await turns_beside(disk.extents(0, disk.size_bytes, 64)) >= 16
    assert await turns_beside(disk.deallocate(0, disk.size_bytes)) >= 16
    assert sorted(disk.discarded) == list(range(4096))


async def test_what_is_known_of_a_parent_is_asked_once() -> None:
    class Known(Blocks):
        def _run_without_space(self, block: int) -> int:
            return self.table.filler_run(block)

    parent = Counted(BLOCK << 14)
    disk = Known(1 << 14, parent)
    await disk.deallocate(512, disk.size_bytes - 512)
    assert not disk.discarded
    assert parent.asked == 1
    found = await disk.extents(0, disk.size_bytes, 64)
    assert found == [Extent(0, disk.size_bytes, DEALLOCATED)]
    assert parent.asked == 2


async def test_who_comes_later_is_not_waited_for() -> None:
    """Else an UNMAP would wait for ever on a block that others go on writing."""
    disk = Blocks(2)
    first, later = disk._using(0), disk._using(0)
    first.__enter__()
    waiting = asyncio.ensure_future(disk._unused([0, 1]))
    await asyncio.sleep(0)
    later.__enter__()
    assert not waiting.done()
    first.__exit__(None, None, None)
    await asyncio.wait_for(waiting, 10)
    later.__exit__(None, None, None)
    await disk._unused([0])
