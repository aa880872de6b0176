"""Many requests at once on a VHD whose file takes its time: each in its turn, in any order.

Every task owns sectors that no other touches, so it knows what they hold; blocks it shares with
the others, which write, free and read them meanwhile.
"""

import asyncio
import random
from collections.abc import Sequence

import pytest

from pyiscsi_target.storage import vhd_space
from pyiscsi_target.storage.base import Buffer
from pyiscsi_target.storage.vhd_disk import VhdDisk
from tests.support.recording_file import JitteryFile, RecordingFile
from tests.support.vhd_files import open_blocks, open_parent, read_all, small_child, small_dynamic

SECTOR = 512
BLOCK = 16 * SECTOR
BLOCKS = 6
SIZE = BLOCKS * BLOCK
TASKS = 4


class Jittery(JitteryFile):
    """Writes of a block's data take longest at times."""

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        if sum(map(len, data)) > SECTOR and self._random.random() < 0.3:  # a block's data
            for _ in range(200):
                await asyncio.sleep(0)
        await super().write(offset_bytes, data, durable=durable)

    async def flush(self) -> None:
        await self._wait()
        await super().flush()
        await self._wait()

    async def punch(self, offset_bytes: int, length_bytes: int) -> None:
        await self._wait()
        await super().punch(offset_bytes, length_bytes)
        await self._wait()

    zero = punch


async def work(disk: VhdDisk, task: int, expected: bytearray, seed: int) -> None:
    """Write, zero and read this task's sectors of every block: four neighbours of sixteen."""
    source = random.Random(seed * 100 + task)
    for step in range(40):
        block = source.randrange(BLOCKS)
        first = task * 4 + source.randrange(4)
        count = source.randint(1, task * 4 + 4 - first)
        offset, length = block * BLOCK + first * SECTOR, count * SECTOR
        choice = source.random()
        if choice < 0.5:
            data = f"{task:04}{step:04}{block:08}".encode() * (length // 16)
            await disk.write(offset, (data,), durable=choice < 0.1)
            expected[offset : offset + length] = data
        elif choice < 0.7:
            await disk.deallocate(offset, length)
            expected[offset : offset + length] = bytes(length)
        else:
            found = await read_all(disk, offset, length)
            assert found == expected[offset : offset + length]


async def free_blocks(disk: VhdDisk, spare: range, seed: int) -> None:
    """Take blocks of its own into use and give them back, so that places change hands."""
    source = random.Random(seed)
    for step in range(60):
        block = source.choice(spare)
        data = f"spare{step:03}{block:08}".encode() * (BLOCK // 16)
        await disk.write(block * BLOCK, (data,))
        assert await read_all(disk, block * BLOCK, BLOCK) == data
        await disk.deallocate(block * BLOCK, BLOCK)
        assert await read_all(disk, block * BLOCK, BLOCK) == bytes(BLOCK)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("kind", ["dynamic", "child"])
async def test_requests_side_by_side(kind: str, seed: int) -> None:
    spare = range(BLOCKS, BLOCKS + 3)
    size = spare.stop * BLOCK
    find, raw = None, small_dynamic(size, BLOCK)
    expected = bytearray(size)
    if kind == "child":
        parent = RecordingFile(small_dynamic(size, BLOCK))
        above = open_blocks(parent)
        expected[: SIZE // 2] = random.Random(seed).randbytes(SIZE // 2)
        await above.write(0, (bytes(expected[: SIZE // 2]),))
        await above.close()
        find, raw = open_parent(parent.killed()), small_child(size, BLOCK, above.footer)
    file = Jittery(raw, seed)
    disk = open_blocks(file, find)
    await asyncio.gather(
        *(work(disk, task, expected, seed) for task in range(TASKS)),
        free_blocks(disk, spare, seed),
    )
    assert await read_all(disk) == expected
    assert await read_all(open_blocks(RecordingFile(file.killed()), find)) == expected
    await disk.flush()
    for state in file.crash_states(3):
        assert await read_all(open_blocks(RecordingFile(state), find)) == expected
    await disk.close()
    assert await read_all(open_blocks(RecordingFile(file.killed()), find)) == expected


@pytest.mark.parametrize("seed", range(4))
async def test_a_write_beside_the_freeing_of_its_block_never_lands_elsewhere(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the block holds then depends on who was first; all others hold what they held."""
    for name in ("FIRST_BATCH_BYTES", "LARGEST_BATCH_BYTES"):  # so that places are used again
        monkeypatch.setattr(vhd_space, name, 1)
    file = Jittery(small_dynamic(SIZE, BLOCK), seed)
    disk = open_blocks(file)
    source = random.Random(seed)
    for step in range(30):
        block, other = source.sample(range(BLOCKS), 2)
        before, mine, theirs = (bytes([step + 1 + more]) * BLOCK for more in (0, 60, 120))
        await disk.write(block * BLOCK, (before,))
        await asyncio.gather(
            disk.write(block * BLOCK, (mine,)),
            disk.deallocate(block * BLOCK, BLOCK),
            disk.write(other * BLOCK, (theirs,)),
        )
        found = await read_all(disk, block * BLOCK, BLOCK)
        assert found in (mine, bytes(BLOCK))
        assert await read_all(disk, other * BLOCK, BLOCK) == theirs
        for place in (block, other):
            await disk.deallocate(place * BLOCK, BLOCK)
    await disk.close()
