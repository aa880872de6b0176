"""VHDX files lose their gaps and nothing else, also when the power goes meanwhile."""

import random

import pytest

from pyiscsi_target.storage.base import StorageError
from pyiscsi_target.storage.vhdx import VhdxDisk
from pyiscsi_target.storage.vhdx_create import Kind
from tests.support.images import MIB
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import new_file, open_disk, read, reopened, write

BLOCKS = 8
SIZE = BLOCKS * MIB


class Watched(RecordingFile):
    """Keeps a share of what a crash may leave."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.states: set[bytes] = set()
        self._random = random.Random(4)

    def flush_blocking(self) -> None:
        for state in self.crash_states(3):
            if self._random.random() < 0.4:
                self.states.add(state)
        super().flush_blocking()


async def with_gaps(file: RecordingFile, parent: VhdxDisk | None = None) -> bytes:
    """The file with blocks in another order, some freed and one of zeroes; returns its content."""
    disk = open_disk(file, parent)
    order = list(range(BLOCKS))
    random.Random(1).shuffle(order)
    for block in order:
        await write(disk, block * MIB + 4096, bytes([block + 1]) * 65536)
    for block in (order[0], order[3], order[4]):
        await disk.deallocate(block * MIB, MIB)
    await write(disk, order[1] * MIB + 4096, bytes(65536))
    content = await read(disk, 0, SIZE)
    await disk.close()
    return content


def forget(done: int, total: int) -> None:
    assert 0 <= done <= total


async def test_the_file_becomes_as_short_as_its_blocks() -> None:
    file = new_file(SIZE)
    content = await with_gaps(file)
    before = len(file.killed())
    file = RecordingFile(file.killed())
    disk = open_disk(file)
    identity = disk.data_write_guid
    await disk.compact(forget)
    await disk.close()
    short = file.killed()
    assert len(short) == before - 4 * MIB
    again = reopened(short)
    assert again.data_write_guid == identity
    assert await read(again, 0, SIZE) == content
    await again.compact(forget)
    await again.close()
    assert again.file.size_bytes == len(short)


@pytest.mark.parametrize("kind", ["dynamic", "child"])
async def test_the_power_goes_meanwhile(kind: str) -> None:
    above = None
    if kind == "child":
        of_parent = new_file(SIZE)
        disk = open_disk(of_parent)
        await write(disk, 0, random.Random(2).randbytes(SIZE // 2))
        await disk.close()
        above = of_parent.killed()

    def parent() -> VhdxDisk | None:
        return reopened(above) if above else None

    empty = new_file(SIZE, parent=parent())
    content = await with_gaps(empty, parent())
    file = Watched(empty.killed())
    disk = open_disk(file, parent())
    await disk.compact(forget)
    await disk.close()
    assert file.size_bytes <= len(empty.killed())
    assert len(file.states) > 10
    for state in (*file.states, file.killed()):
        assert await read(reopened(state, parent()), 0, SIZE) == content


async def test_a_fixed_disk_has_no_gaps() -> None:
    disk = open_disk(new_file(SIZE, Kind.FIXED))
    with pytest.raises(StorageError, match="only dynamic and differencing"):
        await disk.compact(forget)
