"""VHDX disks: kinds, crashes that random steps seldom meet, want of space."""

import asyncio
import itertools

import pytest

from pyiscsi_target.storage.base import Extent, Provisioning, StorageError, StorageFault
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.images import MIB
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import (
    SECTOR,
    CrashingFile,
    Model,
    PowerLost,
    apply_step,
    check_crashes,
    differing,
    fill,
    made_child,
    new_file,
    open_disk,
    read,
    reopened,
    write,
)

MAPPED, DEALLOCATED = Provisioning.MAPPED, Provisioning.DEALLOCATED
TIB = 1 << 40


# The kinds


@pytest.mark.parametrize("sector_bytes", [512, 4096])
@pytest.mark.parametrize("block_bytes", [MIB, 2 * MIB, 32 * MIB])
@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])
async def test_what_was_written_is_read(kind: Kind, block_bytes: int, sector_bytes: int) -> None:
    size = 33 * MIB
    file = new_file(size, kind, block_bytes, sector_bytes)
    disk = open_disk(file)
    assert disk.size_bytes == size
    assert disk.capabilities.logical_block_bytes == sector_bytes
    assert await read(disk, 0, 4096) == bytes(4096)
    await write(disk, 0, fill(1, 4096))
    await write(disk, 32 * MIB - 8192, fill(2, 8192), fill(3, 8192))
    await write(disk, size - 4096, fill(4, 4096))
    await disk.close()
    disk = reopened(file.killed())
    expected = bytearray(size)
    expected[:4096] = fill(1, 4096)
    expected[32 * MIB - 8192 : 32 * MIB + 8192] = fill(2, 8192) + fill(3, 8192)
    expected[-4096:] = fill(4, 4096)
    assert differing(await read(disk, 0, size), expected) == []
    await disk.close()


async def test_a_slow_file_is_read_and_written_by_coroutines() -> None:
    file = new_file()
    file.slow = True
    disk = open_disk(file)
    await write(disk, MIB - 4096, fill(1, 8192))
    assert not disk.read_now(MIB, memoryview(bytearray(512)))
    assert await read(disk, MIB - 8192, 16384) == bytes(4096) + fill(1, 8192) + bytes(4096)
    await disk.flush()
    await disk.close()


async def test_zeroes_take_no_space() -> None:
    file = new_file()
    disk, size = open_disk(file), file.size_bytes
    await write(disk, 4096, bytes(MIB))
    await disk.deallocate(0, 8 * MIB)
    await disk.write_zeroes(512, 3 * MIB)
    assert file.size_bytes == size
    assert await disk.extents(0, 8 * MIB, 9) == [Extent(0, 8 * MIB, DEALLOCATED)]


async def test_extents_and_deallocation() -> None:
    disk = open_disk(new_file())
    await write(disk, 2 * MIB, fill(1, 2 * MIB))
    assert await disk.extents(0, 8 * MIB, 9) == [
        Extent(0, 2 * MIB, DEALLOCATED),
        Extent(2 * MIB, 2 * MIB, MAPPED),
        Extent(4 * MIB, 4 * MIB, DEALLOCATED),
    ]
    assert await disk.extents(512, 3 * MIB, 1) == [Extent(512, 2 * MIB - 512, DEALLOCATED)]
    await disk.deallocate(2 * MIB + 512, 2 * MIB)
    assert await disk.extents(0, 8 * MIB, 1) == [Extent(0, 2 * MIB, DEALLOCATED)]
    assert await read(disk, 2 * MIB, 2 * MIB) == fill(1, 512) + bytes(2 * MIB - 512)
    await disk.write_zeroes(0, 8 * MIB)  # keeps what is there
    assert (await disk.extents(0, 8 * MIB, 9))[1].state is MAPPED
    await disk.deallocate(0, 8 * MIB)
    assert await disk.extents(0, 8 * MIB, 9) == [Extent(0, 8 * MIB, DEALLOCATED)]


async def test_a_fixed_disk_keeps_its_blocks() -> None:
    file = new_file(kind=Kind.FIXED)
    disk = open_disk(file)
    size = file.size_bytes
    await write(disk, 0, fill(1, 8 * MIB))
    await disk.deallocate(0, 8 * MIB)
    assert await read(disk, 0, 8 * MIB) == bytes(8 * MIB)
    assert disk.capabilities.deallocate_granularity_bytes == 0
    assert await disk.extents(0, 8 * MIB, 9) == [Extent(0, 8 * MIB, MAPPED)]
    await disk.close()
    assert file.size_bytes == size


async def test_opening_for_writing_changes_nothing_until_it_is_written() -> None:
    file = new_file()
    before = file.killed()
    disk = open_disk(file)
    await read(disk, 0, MIB)
    await disk.close()
    assert file.killed() == before


async def test_the_first_write_of_a_session_changes_what_identifies_the_content() -> None:
    file = new_file()
    guids = {open_disk(file).data_write_guid}
    for session in range(2):
        file = RecordingFile(file.killed())
        disk = open_disk(file)
        assert disk.data_write_guid in guids
        for at in range(2):
            await write(disk, at * MIB, fill(session + 1, 512))
        guids.add(disk.data_write_guid)
        await disk.close()
    assert len(guids) == 3


# Crashes


async def test_space_is_used_again_only_when_it_is_free_and_empty_for_good() -> None:
    file = new_file()
    disk, model = open_disk(file), Model(bytearray(8 * MIB))
    await apply_step(disk, model, "write", 0, fill(1))
    await apply_step(disk, model, "flush", 0, b"")
    await apply_step(disk, model, "deallocate", 0, fill(0))
    await apply_step(disk, model, "write", 3 * MIB + 4096, fill(2, 512))
    await check_crashes(file, model, 20, 1)
    size = file.size_bytes
    await apply_step(disk, model, "flush", 0, b"")
    await apply_step(disk, model, "write", 5 * MIB + 4096, fill(3, 512))
    assert file.size_bytes == size  # now it was
    await check_crashes(file, model, 20, 2)


async def test_space_that_nothing_names_is_not_trusted() -> None:
    file = new_file()
    disk = open_disk(file)
    await write(disk, 0, fill(1, MIB))
    await disk.close()
    content = bytearray(file.killed())
    content += fill(9, 2 * MIB)  # left over by somebody
    file = RecordingFile(bytes(content))
    disk, model = open_disk(file), Model(bytearray(fill(1, MIB) + bytes(7 * MIB)))
    for at in (1, 2, 3):
        await apply_step(disk, model, "write", at * MIB + 512, fill(at, 512))
        await check_crashes(file, model, 4, at)
        await apply_step(disk, model, "flush", 0, b"")
    assert await read(disk, 0, 8 * MIB) == model.content
    assert file.size_bytes <= len(content) + MIB


async def test_the_log_goes_round() -> None:
    """More changes than the log has room for, now and then crashing, with and without flushes."""
    file = new_file(3 * MIB)
    disk, model = open_disk(file), Model(bytearray(3 * MIB))
    for number in range(70):
        at = number % 3 * MIB
        await apply_step(disk, model, "write", at + 512, fill(number + 1, 512))
        if number == 50:
            await check_crashes(file, model, 2, number)
            await apply_step(disk, model, "flush", 0, b"")
        await apply_step(disk, model, "deallocate", at, fill(0))
        if number in (31, 62):
            await check_crashes(file, model, 1, number)
    assert await read(disk, 0, 3 * MIB) == model.content
    await disk.close()


async def test_replaying_can_be_cut_short_and_repeated() -> None:
    file = new_file(3 * MIB)
    disk, model = open_disk(file), Model(bytearray(3 * MIB))
    await apply_step(disk, model, "write", MIB - 512, fill(1, 1024))
    await apply_step(disk, model, "flush", 0, b"")
    await apply_step(disk, model, "write", 2 * MIB, fill(2, 512))
    torn = RecordingFile(file.killed())
    model.flush()
    disk = open_disk(torn)  # its recovery is flushed at its end, so crash in between
    for flushes in itertools.count():
        torn = CrashingFile(file.killed(), flushes)
        try:
            open_disk(torn)
        except PowerLost:
            await check_crashes(torn, model, 3, flushes)
        else:
            break
    assert flushes > 4


@pytest.mark.parametrize("lost", [0, 1, 2])
async def test_power_is_lost_while_writing_begins(lost: int) -> None:
    content = new_file(2 * MIB).killed()
    file = CrashingFile(content, lost)
    disk, model = open_disk(file), Model(bytearray(2 * MIB))
    with pytest.raises(PowerLost):
        await disk.write(0, [fill(1, 512)])
    await check_crashes(file, model, 5, lost)


async def test_anchoring_reserves_the_metadata_too() -> None:
    """In other programs' files there may be holes where log, BAT and bitmaps will be written."""
    file, parent, _ = await made_child()
    disk = open_disk(file, parent)
    await disk.write(512, [fill(1, 512)])  # the block's sectors are told apart by a bitmap
    file.reserved.clear()
    await disk.anchor(64 * 1024, 64 * 1024)
    assert await read(disk, 0, 128 * 1024) == (
        fill(200, 512) + fill(1, 512) + fill(200, 63 * 1024) + bytes(64 * 1024)
    )
    header, bat, bitmap = disk._headers.current, disk._bat.region.start, disk._bitmaps.places[0]
    assert bitmap
    assert file.reserved == [
        (header.log_offset, header.log_offset + header.log_length),
        (bat, bat + MIB),
        (bitmap, bitmap + MIB),
    ]
    await disk.close()


async def test_a_read_only_file_is_replayed_in_memory() -> None:
    file = new_file(4 * MIB)
    disk, model = open_disk(file), Model(bytearray(4 * MIB))
    for at in range(3):
        await apply_step(disk, model, "write", at * MIB + 512, fill(at + 1, 512))
    content = file.killed()
    read_only = RecordingFile(content, read_only=True)
    disk = open_disk(read_only)
    assert await read(disk, 0, 4 * MIB) == model.content
    assert [extent.state for extent in await disk.extents(0, 4 * MIB, 9)] == [MAPPED, DEALLOCATED]
    assert not disk.capabilities.anchors
    assert not disk.write_now(0, [bytes(512)])
    for attempt in (disk.write(0, [bytes(512)]), disk.deallocate(0, 512), disk.resize(8 * MIB)):
        with pytest.raises(StorageError) as caught:
            await attempt
        assert caught.value.fault is StorageFault.READ_ONLY
    await disk.flush()
    await disk.close()
    assert read_only.killed() == content


async def test_a_read_only_file_whose_log_makes_it_larger_is_refused() -> None:
    file = new_file(4 * MIB)
    disk = open_disk(file)
    await write(disk, 0, fill(1, 512))
    await disk.flush()
    await write(disk, MIB, fill(1, 512))  # the log says that the file has been larger by a block
    content = file.killed()[: -2 * MIB]
    with pytest.raises(StorageError, match="cut short"):
        reopened(content)
    file = new_file(4 * MIB)
    disk = open_disk(file)
    await write(disk, 0, fill(1, 512))
    content = file.killed()[:-MIB]  # not flushed: the file need not have grown
    with pytest.raises(StorageError, match="open it once for writing"):
        open_disk(RecordingFile(content, read_only=True))
    assert await read(reopened(content), 0, 512) == bytes(512)


# Failures


async def test_want_of_space_is_an_error_and_nothing_else() -> None:
    file = new_file()
    disk, model = open_disk(file), Model(bytearray(8 * MIB))
    await apply_step(disk, model, "write", 0, fill(1))
    file.space_bytes = file.size_bytes
    for _ in range(2):
        with pytest.raises(StorageError) as caught:
            await disk.write(2 * MIB, [fill(2, 4096)])
        assert caught.value.fault is StorageFault.OUT_OF_SPACE
    await apply_step(disk, model, "write", 4096, fill(3, 4096))
    await apply_step(disk, model, "deallocate", 0, fill(0))
    await apply_step(disk, model, "flush", 0, b"")
    await apply_step(disk, model, "write", 5 * MIB, fill(4, 4096))
    file.space_bytes = None
    await apply_step(disk, model, "write", 2 * MIB, fill(5, 4096))
    await check_crashes(file, model, 5, 1)
    assert await read(disk, 0, 8 * MIB) == model.content


@pytest.mark.parametrize("writes", range(4))
async def test_a_failed_write_of_metadata_changes_nothing(writes: int) -> None:
    file = new_file(4 * MIB)
    disk, model = open_disk(file), Model(bytearray(4 * MIB))
    await apply_step(disk, model, "write", 0, fill(1, 512))
    failing = FailAfter(file, writes)
    try:
        await disk.write(2 * MIB, [fill(2, 512)])
        await disk.deallocate(0, MIB)
    except StorageError as error:
        assert "on purpose" in str(error)  # noqa: PT017
    failing.stop()
    # What was asked for may have happened.
    for sector in range(MIB // SECTOR):
        model.later.setdefault(sector, set()).add(bytes(SECTOR))
    found = await read(disk, 0, 4 * MIB)
    model.content[:] = found
    assert model.wrong_after_power_loss(found[: 2 * MIB] + bytes(2 * MIB)) == []
    await apply_step(disk, model, "write", 3 * MIB, fill(3, 512))
    await apply_step(disk, model, "flush", 0, b"")
    await check_crashes(file, model, 5, 1)


class FailAfter:
    """Makes the file refuse every change after the first `count`."""

    def __init__(self, file: RecordingFile, count: int) -> None:
        self._file, self._left, self._original = file, count, file._change
        file._change = self._change  # type: ignore[method-assign]

    def _change(self, change: object, end_bytes: int) -> None:
        if not self._left:
            raise StorageError(StorageFault.MEDIUM, "on purpose")
        self._left -= 1
        self._original(change, end_bytes)  # type: ignore[arg-type]

    def stop(self) -> None:
        self._file._change = self._original  # type: ignore[method-assign]


async def test_after_a_failed_flush_nothing_is_applied() -> None:
    file = new_file(4 * MIB)
    disk, model = open_disk(file), Model(bytearray(4 * MIB))
    await apply_step(disk, model, "write", 0, fill(1, 512))
    file.fail = StorageError(StorageFault.MEDIUM, "on purpose")
    with pytest.raises(StorageError, match="on purpose"):
        await disk.flush()
    await check_crashes(file, model, 5, 1)
    await disk.close()


async def test_cancelled_writes_leave_nothing_half_made() -> None:
    file = new_file(8 * MIB)
    disk, model = open_disk(file), Model(bytearray(8 * MIB))
    for block in range(8):
        data = fill(block + 1, 512)
        task = asyncio.ensure_future(disk.write(block * MIB, [data]))
        for _ in range(block):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        model.put(block * MIB, data)
    found = await read(disk, 0, 8 * MIB)
    for block in range(8):
        assert found[block * MIB : block * MIB + 512] in (bytes(512), fill(block + 1, 512))
    model.content[:] = found
    await check_crashes(file, model, 5, 1)


async def test_many_writes_at_once() -> None:
    file = new_file(8 * MIB)
    file.slow = True
    disk, model = open_disk(file), Model(bytearray(8 * MIB))
    steps = [(number * 512 * 257 % (8 * MIB), fill(number % 250 + 1, 512)) for number in range(99)]
    await asyncio.gather(*(disk.write(at, [data]) for at, data in steps))
    for at, data in steps:
        model.put(at, data)
    assert await read(disk, 0, 8 * MIB) == model.content
    await check_crashes(file, model, 3, 1)
    assert file.size_bytes == new_file(8 * MIB).size_bytes + 8 * MIB


# Children


async def test_a_child_reads_its_parent_and_keeps_what_is_its_own() -> None:
    file, parent, model = await made_child()
    child = open_disk(file, parent)
    assert await read(child, 0, 4 * MIB) == model.content
    await apply_step(child, model, "write", MIB - 512, fill(1, 1024))
    await apply_step(child, model, "deallocate", 4096, fill(0, 4096))
    await apply_step(child, model, "write", 3 * MIB, fill(2, 512))
    assert await read(child, 0, 4 * MIB) == model.content
    await check_crashes(file, model, 10, 1, parent)
    await apply_step(child, model, "deallocate", 0, fill(0))
    await apply_step(child, model, "write", 512, fill(3, 512))
    assert await read(child, 0, 4 * MIB) == model.content
    await check_crashes(file, model, 10, 2, parent)
    assert await child.extents(0, 4 * MIB, 9) == [
        Extent(0, 2 * MIB, MAPPED),
        Extent(2 * MIB, MIB, DEALLOCATED),
        Extent(3 * MIB, MIB, MAPPED),
    ]


async def test_a_block_that_is_all_its_own_needs_no_bitmap() -> None:
    file, parent, model = await made_child()
    child = open_disk(file, parent)
    await apply_step(child, model, "write", 0, fill(1, MIB))
    await apply_step(child, model, "write", MIB, fill(2, MIB // 2))
    await apply_step(child, model, "write", MIB + MIB // 2, fill(3, MIB // 2))
    assert child.write_now(512, [fill(4, 512)])
    assert child.write_now(MIB + 512, [fill(4, 512)])
    model.put(512, fill(4, 512))
    model.put(MIB + 512, fill(4, 512))
    await check_crashes(file, model, 10, 1, parent)


async def test_space_into_which_a_failed_write_copied_is_not_clean() -> None:
    file, parent, _ = await made_child()
    child = open_disk(file, parent)
    await write(child, 3 * MIB, fill(1, 512))
    file.slow = True
    file.fail = None
    original = file.flush_blocking

    def fails() -> None:
        raise StorageError(StorageFault.MEDIUM, "on purpose")

    file.flush_blocking = fails  # type: ignore[method-assign]
    with pytest.raises(StorageError, match="on purpose"):
        await child.write(0, [fill(2, 512)])
    file.flush_blocking = original  # type: ignore[method-assign]
    await write(child, 2 * MIB + 512, fill(3, 512))
    assert await read(child, 2 * MIB, MIB) == bytes(512) + fill(3, 512) + bytes(MIB - 1024)
    assert await read(child, 0, MIB) == fill(200, MIB)


async def test_sectors_that_are_not_a_childs_own_may_hold_anything_in_its_file() -> None:
    """As another program may have left them. The parent has the first half of the block."""
    parent_file = new_file(4 * MIB)
    disk = open_disk(parent_file)
    await write(disk, 0, fill(200, 4096))
    await disk.close()
    file = new_file(4 * MIB, block_bytes=2 * MIB, parent=reopened(parent_file.killed()))
    child = open_disk(file, reopened(parent_file.killed()))
    await write(child, 0, fill(1, 512))
    await child.close()
    content = bytearray(file.killed())
    place = content.rindex(fill(1, 512))
    for at in (MIB // 2, MIB + MIB // 2):
        content[place + at : place + at + MIB // 4] = fill(0xEE, MIB // 4)
    child = open_disk(RecordingFile(bytes(content)), reopened(parent_file.killed()))
    expected = bytearray(fill(1, 512) + fill(200, 4096 - 512) + bytes(2 * MIB - 4096))
    for at in (MIB // 2, MIB + MIB // 2):
        await write(child, at + 512, fill(2, 512))
        expected[at + 512 : at + 1024] = fill(2, 512)
    assert await read(child, 0, 2 * MIB) == expected
    await child.close()


async def test_a_child_knows_its_parent() -> None:
    file, parent, _ = await made_child()
    content = parent.file.killed()  # type: ignore[attr-defined]
    changed = RecordingFile(content)
    disk = open_disk(changed)
    await write(disk, 0, fill(9, 512))
    await disk.close()
    with pytest.raises(StorageError, match=r"parent 'parent.vhdx' was changed since") as caught:
        open_disk(RecordingFile(file.killed()), reopened(changed.killed()))
    assert caught.value.fault is StorageFault.INVALID
    with pytest.raises(StorageError, match="without its parent"):
        open_disk(RecordingFile(file.killed()))
    disk = open_disk(new_file(4 * MIB, sector_bytes=4096))
    child = new_file(4 * MIB, parent=disk)
    with pytest.raises(StorageError, match="sectors of 4096"):
        open_disk(child, disk)


async def test_a_grandchild() -> None:
    file, parent, model = await made_child()
    child = open_disk(file, parent)
    await apply_step(child, model, "write", 512, fill(1, 512))
    await child.close()
    child = reopened(file.killed(), reopened(parent.file.killed()))  # type: ignore[attr-defined]
    grand_file = new_file(6 * MIB, parent=child)
    grandchild = open_disk(grand_file, child)
    model = Model(bytearray(model.content + bytes(2 * MIB)))
    assert await read(grandchild, 0, 6 * MIB) == model.content
    await apply_step(grandchild, model, "write", 0, fill(5, 512))
    await apply_step(grandchild, model, "write", 4 * MIB - 512, fill(6, 1024))
    assert await read(grandchild, 0, 6 * MIB) == model.content
    await grandchild.close()


async def test_unmapping_a_part_of_what_the_parent_has_copies_none_of_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So it works where there is no room left."""
    file, parent, model = await made_child()
    child = open_disk(file, parent)
    await apply_step(child, model, "write", 0, fill(1, 512))
    copied: list[int] = []

    async def count(offset: int, place: int, length: int) -> None:
        copied.append(length)

    with monkeypatch.context() as watched:
        watched.setattr(child, "_copy_from_parent", count)
        for at in (128 * 1024, MIB + 512 * 1024):  # in a block that is there in part, and in none
            await apply_step(child, model, "deallocate", at, bytes(256 * 1024))
    assert not copied
    await check_crashes(file, model, 20, 1, parent)
    await apply_step(child, model, "deallocate", 900 * 1024, bytes(200 * 1024 + 512))
    await check_crashes(file, model, 20, 2, parent)
    await child.close()
