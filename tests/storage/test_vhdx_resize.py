"""VHDX disks of another size, and what a check finds in them."""

import itertools

import pytest

from pyiscsi_target.storage.base import Provisioning, StorageError, StorageFault
from pyiscsi_target.storage.finding import Remedy
from pyiscsi_target.storage.vhdx import VhdxDisk
from pyiscsi_target.storage.vhdx_create import Kind
from pyiscsi_target.storage.vhdx_format import HEADER_OFFSETS, REGION_TABLE_OFFSETS, BlockState
from tests.support.images import GIB, MIB
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import (
    CrashingFile,
    Model,
    PowerLost,
    apply_step,
    check_crashes,
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


# Sizes


@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])
async def test_a_disk_grows_and_shrinks(kind: Kind) -> None:
    file = new_file(2 * MIB + 512, kind)
    disk, model = open_disk(file), Model(bytearray(2 * MIB + 512))
    await apply_step(disk, model, "write", 2 * MIB, fill(1, 512))
    await disk.resize(5 * MIB)
    model = Model(bytearray(model.content.ljust(5 * MIB, b"\0")))
    assert disk.size_bytes == 5 * MIB
    assert await read(disk, 0, 5 * MIB) == model.content
    await apply_step(disk, model, "write", 4 * MIB - 512, fill(2, 1024))
    await check_crashes(file, model, 5, 1)
    with pytest.raises(StorageError, match="holds data at byte 41943"):
        await disk.resize(4 * MIB)
    await disk.deallocate(4 * MIB - 512, 1024)
    await disk.resize(3 * MIB)
    await disk.close()
    disk = reopened(file.killed())
    assert disk.size_bytes == 3 * MIB
    assert await read(disk, 0, 3 * MIB) == model.content[: 3 * MIB]
    await disk.resize(4 * MIB)
    assert await read(disk, 3 * MIB, MIB) == bytes(MIB)
    await disk.close()


@pytest.mark.parametrize("size_bytes", [0, 513, 64 * TIB + 512])
async def test_sizes_that_cannot_be(size_bytes: int) -> None:
    disk = open_disk(new_file())
    with pytest.raises(StorageError) as caught:
        await disk.resize(size_bytes)
    assert caught.value.fault is StorageFault.INVALID


@pytest.mark.parametrize("size_bytes", [5 * MIB, 400 * GIB])
async def test_power_is_lost_while_a_disk_grows(size_bytes: int) -> None:
    """The second size needs a larger BAT, which moves."""
    for flushes in itertools.count():
        file = CrashingFile(new_file(2 * MIB + 512).killed(), 100)
        disk, model = open_disk(file), Model(bytearray(2 * MIB + 512))
        await apply_step(disk, model, "write", 2 * MIB, fill(1, 512))
        await apply_step(disk, model, "flush", 0, b"")
        file.flushes_left = flushes
        try:
            await disk.resize(size_bytes)
        except PowerLost:
            for content in (file.killed(), *file.crash_states(5, flushes)):
                found = reopened(content)
                assert found.size_bytes in (2 * MIB + 512, size_bytes)
                assert await read(found, 0, 2 * MIB + 512) == model.content
                assert await read(found, found.size_bytes - 512, 512) in (bytes(512), fill(1, 512))
        else:
            break
    file.flushes_left = 100
    await write(disk, size_bytes - 512, fill(2, 512))
    await disk.close()
    disk = reopened(file.killed())
    assert await read(disk, 0, 2 * MIB + 512) == model.content
    assert await read(disk, size_bytes - 1024, 1024) == bytes(512) + fill(2, 512)


async def test_a_child_grows_with_zeroes_even_where_its_parent_has_more() -> None:
    _, parent, _ = await made_child()
    small = new_file(MIB // 2, parent=parent)
    child = open_disk(small, parent)
    assert await read(child, 0, MIB // 2) == fill(200, MIB // 2)
    await child.resize(3 * MIB)
    assert await read(child, 0, 3 * MIB) == fill(200, MIB // 2) + bytes(3 * MIB - MIB // 2)
    await child.close()


class FailingFile(RecordingFile):
    """The `nth` change of it, or flush, fails; 0: none."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.nth = 0

    def _raise_failure(self) -> None:
        self.nth -= 1
        if not self.nth:
            raise StorageError(StorageFault.MEDIUM, "injected")


async def disk_to_resize(kind: str) -> tuple[FailingFile, VhdxDisk | None, bytes]:
    """A disk of half a block more than two, of which the last whole one is zeroes for sure.

    A child's parent has data everywhere, and goes on behind the end.
    """
    size, parent = 2 * MIB + MIB // 2, None
    if kind == "child":
        parent_file = new_file(6 * MIB)
        below = open_disk(parent_file)
        for block in range(6):
            await write(below, block * MIB, fill(200 + block))
        await below.close()
        parent = reopened(parent_file.killed())
    made = new_file(size, Kind.FIXED if kind == "fixed" else Kind.DYNAMIC, parent=parent)
    file = FailingFile(made.killed())
    disk = open_disk(file, parent)
    await write(disk, 0, fill(1))
    await disk.deallocate(MIB, size - MIB)
    await write(disk, MIB, fill(3, 512))
    await disk.deallocate(MIB, MIB)
    await disk.flush()
    return file, parent, fill(1) + bytes(size - MIB)


@pytest.mark.parametrize("kind", ["dynamic", "fixed", "child"])
@pytest.mark.parametrize("size_bytes", [5 * MIB, 6 * MIB, MIB])
async def test_a_resize_that_fails_changes_nothing_and_can_be_repeated(
    kind: str, size_bytes: int
) -> None:
    for nth in itertools.count(1):
        file, parent, before = await disk_to_resize(kind)
        disk = open_disk(file, parent)
        assert disk.size_bytes == len(before)
        after = before[:size_bytes].ljust(size_bytes, b"\0")
        file.nth = nth
        try:
            await disk.resize(size_bytes)
        except StorageError:
            seen = after if disk.size_bytes == size_bytes else before
            assert await read(disk, 0, len(seen)) == seen
            for content in (file.killed(), *file.crash_states(3, nth)):
                found = reopened(content, parent)
                wanted = after if found.size_bytes == size_bytes else before
                assert await read(found, 0, found.size_bytes) == wanted
            file.nth = 0
            last = disk.size_bytes - 512  # all of the disk can be written, and stays
            await write(disk, last, fill(9, 512))
            await disk.flush()
            assert await read(reopened(file.killed(), parent), last, 512) == fill(9, 512)
            await write(disk, last, bytes(512))
            # Space that changes hands now must not be seen by its former owner.
            await disk.deallocate(0, MIB)
            await disk.flush()
            await write(disk, 0, fill(7, 512))
            await disk.resize(size_bytes)
            after = fill(7, 512) + bytes(size_bytes - 512)
        else:
            break
        assert await read(disk, 0, size_bytes) == after
        await disk.close()
        assert await read(reopened(file.killed(), parent), 0, size_bytes) == after
    assert nth > 3


async def test_entries_of_others_behind_the_end_do_not_come_to_light() -> None:
    """Between a child's last block and its last sector bitmap there is room for some."""
    below = new_file(2 * MIB)
    await write(open_disk(below), 0, fill(8))
    parent = reopened(below.killed())
    file = new_file(2 * MIB, parent=parent)
    child = open_disk(file, parent)
    await write(child, 0, fill(1))
    place = child.table[0]
    await child.close()
    content = bytearray(file.killed())
    at = child._bat.offset(child._bat.geometry.index(3))
    content[at : at + 8] = (place | BlockState.FULLY_PRESENT).to_bytes(8, "little")
    file = RecordingFile(bytes(content))
    child = open_disk(file, parent)
    await child.resize(4 * MIB)
    await child.close()
    child = reopened(file.killed(), parent)
    assert await read(child, 3 * MIB, MIB) == bytes(MIB)
    assert await read(child, 0, MIB) == fill(1)


@pytest.mark.parametrize("size_bytes", [3 * MIB, 300 * GIB])
@pytest.mark.parametrize("start_bytes", [MIB // 2, MIB, MIB + 512])
async def test_power_is_lost_while_a_child_grows(start_bytes: int, size_bytes: int) -> None:
    """What its parent has there is not seen at any time. The second size moves the BAT."""
    _, parent, _ = await made_child()
    original = new_file(start_bytes, parent=parent).killed()
    content = fill(200, min(start_bytes, MIB)) + fill(201, max(0, start_bytes - MIB))
    for flushes in itertools.count():
        file = CrashingFile(original, flushes)
        disk = open_disk(file, parent)
        try:
            await disk.resize(size_bytes)
        except PowerLost:
            pass
        else:
            break
        for state in (file.killed(), *file.crash_states(5, flushes)):
            found = reopened(state, parent)
            assert found.size_bytes in (start_bytes, size_bytes)
            length = min(found.size_bytes, 4 * MIB)
            assert await read(found, 0, length) == content.ljust(length, b"\0")
    assert flushes > 3
    assert await read(disk, 0, 3 * MIB) == content.ljust(3 * MIB, b"\0")


# What a check says


async def test_findings_and_repair() -> None:
    file = new_file()
    disk = open_disk(file)
    assert await disk.findings() == []
    await write(disk, 0, fill(1, 512))
    await disk.close()
    content = bytearray(file.killed() + bytes(2 * MIB))
    for offset in (HEADER_OFFSETS[1], REGION_TABLE_OFFSETS[1]):
        content[offset] ^= 1
    file = RecordingFile(bytes(content))
    disk = open_disk(file)
    assert [(finding.remedy, finding.text) for finding in await disk.findings()] == [
        (Remedy.REPAIR, "the header at byte 131072 is damaged; the other is not"),
        (Remedy.REPAIR, "the region table at byte 262144 is damaged; the other is not"),
        (Remedy.COMPACT, "2 MiB of the file belong to nothing"),
    ]
    await disk.repair()
    assert [finding.remedy for finding in await disk.findings()] == [Remedy.COMPACT]
    assert await read(disk, 0, 512) == fill(1, 512)
    await disk.close()
    disk = reopened(file.killed())
    await write(disk, MIB, fill(2, 512))
    left = RecordingFile(disk.file.killed(), read_only=True)  # type: ignore[attr-defined]
    found = await open_disk(left).findings()
    assert [finding.text for finding in found if finding.remedy is Remedy.REPAIR] == [
        "the log has changes that are not in their places yet"
    ]
