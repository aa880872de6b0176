"""Many requests at once on a VHDX disk whose file takes its time.

Every task owns sectors in blocks that it shares with the others, and one block, which it frees now
and then; so it knows what it must read, while space changes hands.
"""

import asyncio
import random
from collections.abc import Sequence

import pytest

from pyiscsi_target.storage.base import BackingStore, Buffer
from pyiscsi_target.storage.vhdx import VhdxDisk
from tests.support.images import KIB, MIB
from tests.support.recording_file import JitteryFile, RecordingFile
from tests.support.vhdx_disks import (
    SECTOR,
    Model,
    check_crashes,
    new_file,
    open_disk,
    read,
    reopened,
    write,
)

TASKS = 4
SHARED = 2  # blocks, before those of one task
SIZE = (SHARED + TASKS) * MIB
ROUNDS = 12


class Jittery(JitteryFile):
    """A flush need not take what came after it was asked for."""

    async def punch(self, offset_bytes: int, length_bytes: int) -> None:
        await self._wait()
        await super().punch(offset_bytes, length_bytes)

    async def flush(self) -> None:
        before = len(self.changes)
        await self._wait()
        late = self.changes[before:]  # a flush need not take what came after it was asked for
        del self.changes[before:]
        await super().flush()
        self.changes += late


async def one_task(disk: VhdxDisk, model: Model, number: int, source: random.Random) -> None:
    own = (SHARED + number) * MIB
    for _ in range(ROUNDS):
        at = source.randrange(SHARED * MIB // SECTOR // TASKS) * TASKS + number
        offset = source.choice((at * SECTOR, own + source.randrange(MIB // SECTOR) * SECTOR))
        data = source.randbytes(SECTOR)
        match source.randrange(8):
            case 0 if offset >= own:
                await disk.deallocate(own, MIB)
                model.put(own, bytes(MIB))
            case 1:
                await disk.write_zeroes(offset, SECTOR)
                model.put(offset, bytes(SECTOR))
            case 2:
                await disk.flush()
            case 3:
                await disk.write(offset, [data], durable=True)
                model.put(offset, data)
            case _:
                await write(disk, offset, data)
                model.put(offset, data)
        assert await read(disk, offset, SECTOR) == model.content[offset : offset + SECTOR]
        assert await read(disk, own, MIB) == model.content[own : own + MIB]


def parent_of(kind: str) -> VhdxDisk | None:
    if kind == "dynamic":
        return None
    file = new_file(SIZE)
    disk = open_disk(file)
    for block in (0, 2, 3):
        disk_bytes = bytes((block + 1,)) * 128 * KIB
        asyncio.run(disk.write(block * MIB, [disk_bytes] * 5))
    return reopened(file.killed())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["dynamic", "child"])
def test_everyone_reads_what_it_wrote(kind: str, seed: int) -> None:
    parent = parent_of(kind)
    file = Jittery(new_file(SIZE, parent=parent).killed(), seed)
    asyncio.run(_race(file, parent, seed))


async def _race(file: Jittery, parent: BackingStore | None, seed: int) -> None:
    disk = open_disk(file, parent)
    model = Model(bytearray(SIZE if parent is None else await read(parent, 0, SIZE)))
    source = random.Random(seed)
    tasks = (
        one_task(disk, model, number, random.Random(source.random())) for number in range(TASKS)
    )
    await asyncio.gather(*tasks)
    assert await read(disk, 0, SIZE) == model.content
    await disk.flush()
    model.flush()
    await check_crashes(file, model, 3, seed, parent)


async def test_writes_that_need_the_parent_share_flushes() -> None:
    file = new_file(4 * MIB)
    disk = open_disk(file)
    await write(disk, 0, b"p" * 4 * MIB)
    await disk.close()
    parent = reopened(file.killed())
    child_file = Jittery(new_file(4 * MIB, parent=parent).killed(), 1)
    child = open_disk(child_file, parent)
    await child.write(0, [b"c" * SECTOR])
    before = child_file.flushes
    writes = [child.write(128 * KIB * number, [b"c" * SECTOR]) for number in range(1, 32)]
    await asyncio.gather(*writes)
    assert child_file.flushes - before <= 3
    expected = bytearray(b"p" * 4 * MIB)
    for number in range(32):
        expected[128 * KIB * number : 128 * KIB * number + SECTOR] = b"c" * SECTOR
    assert await read(child, 0, 4 * MIB) == expected


async def test_a_write_that_takes_its_time_does_not_hit_the_next_owner_of_the_space() -> None:
    file = RecordingFile(new_file(4 * MIB).killed())
    disk = open_disk(file)
    await write(disk, 0, b"a" * SECTOR)
    gate, original = asyncio.Event(), file.write

    async def late_write(
        offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        if data[0] == b"late" * 128:
            await gate.wait()
        await original(offset_bytes, data, durable=durable)

    file.slow = True
    file.write = late_write  # type: ignore[method-assign]
    late = asyncio.ensure_future(disk.write(SECTOR, [b"late" * 128]))
    await asyncio.sleep(0)
    freeing = asyncio.ensure_future(disk.deallocate(0, MIB))
    for number in range(1, 3):
        for _ in range(20):
            await asyncio.sleep(0)
        await disk.flush()
        await disk.write(number * MIB, [b"b" * SECTOR])
    gate.set()
    await asyncio.gather(late, freeing)
    await disk.flush()
    await disk.write(3 * MIB, [b"c" * SECTOR])
    for number, byte in ((1, b"b"), (2, b"b"), (3, b"c")):
        assert await read(disk, number * MIB, 2 * SECTOR) == byte * SECTOR + bytes(SECTOR)
