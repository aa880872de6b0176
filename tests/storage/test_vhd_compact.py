"""VHDs lose their gaps and nothing else, also when the power goes meanwhile."""

import random

import pytest

from pyiscsi_target.storage.vhd_disk import MOVED_AT_ONCE
from tests.support.recording_file import RecordingFile
from tests.support.vhd_files import (
    open_blocks,
    open_parent,
    read_all,
    small_child,
    small_dynamic,
    write_bytes,
)

BLOCK = 16 * 512
SIZE = 40 * BLOCK + 512


class Watched(RecordingFile):
    """Keeps what a crash may leave."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.states: set[bytes] = set()

    def flush_blocking(self) -> None:
        self.states.update(self.crash_states(3))
        super().flush_blocking()


async def with_gaps(raw: bytes) -> tuple[bytes, bytearray]:
    """A file with every block, in which every third is freed and one is zeroes; its content."""
    file = RecordingFile(raw)
    disk = open_blocks(file)
    source = random.Random(1)
    content = bytearray(source.randbytes(SIZE))
    order = list(range(0, SIZE, BLOCK))
    source.shuffle(order)
    for at in order:
        await write_bytes(disk, at, bytes(content[at : at + BLOCK]))
    for at in range(0, SIZE, 3 * BLOCK):
        length = min(BLOCK, SIZE - at)
        await disk.deallocate(at, length)
        content[at : at + length] = bytes(length)
    await write_bytes(disk, BLOCK, bytes(BLOCK))
    content[BLOCK : 2 * BLOCK] = bytes(BLOCK)
    await disk.close()
    return file.killed(), content


def forget(done: int, total: int) -> None:
    assert 0 <= done <= total


async def test_the_file_becomes_as_short_as_its_blocks() -> None:
    raw, content = await with_gaps(small_dynamic(SIZE, BLOCK))
    disk = open_blocks(RecordingFile(raw))
    await disk.compact(forget)
    await disk.close()
    short = disk.file.killed()  # type: ignore[attr-defined]
    used = sum(any(content[at : at + BLOCK]) for at in range(0, SIZE, BLOCK))
    assert len(short) <= used * (BLOCK + 4096) + 8192 < len(raw)
    assert disk.footer.time_stamp == open_blocks(RecordingFile(raw)).footer.time_stamp
    again = open_blocks(RecordingFile(short))
    assert await read_all(again) == content
    await again.compact(forget)
    await again.close()
    assert len(again.file.killed()) == len(short)  # type: ignore[attr-defined]


async def test_the_power_goes_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyiscsi_target.storage.vhd_disk.MOVED_AT_ONCE", 3)
    assert MOVED_AT_ONCE > 3
    raw, content = await with_gaps(small_dynamic(SIZE, BLOCK))
    file = Watched(raw)
    disk = open_blocks(file)
    await disk.compact(forget)
    await disk.close()
    assert len(file.states) > 20
    for state in file.states:
        assert await read_all(open_blocks(RecordingFile(state))) == content


async def test_the_power_goes_before_freed_blocks_are_free() -> None:
    """Their places hold others' data only when nothing on the medium refers to them any more."""
    file = RecordingFile(small_dynamic(4 * BLOCK, BLOCK))
    disk = open_blocks(file)
    for block in range(4):
        await write_bytes(disk, block * BLOCK, bytes((65 + block,)) * BLOCK)
    await write_bytes(disk, 0, bytes(BLOCK))
    content = await read_all(disk)
    await disk.close()
    watched = Watched(file.killed())
    disk = open_blocks(watched)
    await disk.compact(forget)
    await disk.close()
    assert len(watched.states) > 5
    for state in watched.states:
        assert await read_all(open_blocks(RecordingFile(state))) == content


async def test_a_child_keeps_its_bitmaps() -> None:
    parent = RecordingFile(small_dynamic(SIZE, BLOCK))
    above = open_blocks(parent)
    await write_bytes(above, 0, random.Random(2).randbytes(SIZE - 2 * BLOCK))
    await above.close()
    find = open_parent(parent.killed())
    file = RecordingFile(small_child(SIZE, BLOCK, above.footer))
    disk = open_blocks(file, find)
    for at in (5 * BLOCK, 40 * BLOCK, 2 * BLOCK + 512):
        await write_bytes(disk, at, b"c" * 512)
    await disk.deallocate(40 * BLOCK, 512)  # over a hole of the parent: a gap in the middle
    content = await read_all(disk)
    await disk.close()
    length = len(file.killed())
    disk = open_blocks(RecordingFile(file.killed()), find)
    await disk.compact(forget)
    await disk.close()
    short = disk.file.killed()  # type: ignore[attr-defined]
    assert len(short) < length
    assert await read_all(open_blocks(RecordingFile(short), find)) == content
