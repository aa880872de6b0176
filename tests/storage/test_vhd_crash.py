"""VHDs after kill -9 and after a loss of power at any instant.

A disk is written at random while every state is collected that its file may be left in. Each must
open, and each sector hold what it held when it was last flushed or something written since.
"""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from pyiscsi_target.storage.base import BackingStore, Buffer
from pyiscsi_target.storage.chain import ParentPaths
from tests.support.recording_file import RecordingFile
from tests.support.vhd_files import (
    open_blocks,
    open_parent,
    read_all,
    small_child,
    small_dynamic,
    write_bytes,
)

SECTOR = 512
BLOCK = 16 * SECTOR
BLOCKS = 7
SIZE = BLOCKS * BLOCK - 3 * SECTOR  # the last block is cut
SECTORS = SIZE // SECTOR
RANDOM_STATES = 4

FindParent = Callable[[ParentPaths], BackingStore] | None


@dataclass
class State:
    """A file that a crash may leave, and for each sector what it may hold."""

    file: bytes
    allowed: list[set[bytes]]


class Watched(RecordingFile):
    """Tells before each flush what a crash may leave, for then it forgets."""

    before_flush: Callable[[], None] = staticmethod(lambda: None)

    def flush_blocking(self) -> None:
        self.before_flush()
        super().flush_blocking()


class Rig:
    """A disk, what it must hold, and what it may hold after a crash."""

    def __init__(self, raw: bytes, find_parent: FindParent, start: bytes, seed: int) -> None:
        self.random = random.Random(seed)
        self.find_parent = find_parent
        self.current = [start[at : at + SECTOR] for at in range(0, SIZE, SECTOR)]
        self.allowed = [{sector} for sector in self.current]
        self.states: list[State] = []
        self.written = 0
        self.adopt(raw)

    def adopt(self, raw: bytes) -> None:
        self.file = Watched(raw)
        self.file.before_flush = self.collect
        self.disk = open_blocks(self.file, self.find_parent)

    def collect(self) -> None:
        """Keep what a crash in this instant may leave."""
        seed = self.random.random()
        allowed = [set(sector) for sector in self.allowed]
        states = self.file.crash_states(RANDOM_STATES, hash(seed))
        self.states += [State(state, allowed) for state in dict.fromkeys(states)]

    async def step(self) -> None:
        choice = self.random.choice(("write", "write", "write", "many", "zero", "durable", "flush"))
        await getattr(self, choice)()
        self.collect()

    def _range(self) -> tuple[int, int]:
        first = self.random.randrange(SECTORS)
        longest = self.random.choice((1, 3, 16, 40))
        return first, min(SECTORS, first + self.random.randint(1, longest))

    def _data(self, first: int, end: int) -> bytes:
        self.written += 1
        return b"".join(
            f"{self.written:08}{sector:08}".encode() * 32 for sector in range(first, end)
        )

    def _may_be(self, first: int, data: bytes) -> None:
        for index in range(len(data) // SECTOR):
            self.allowed[first + index].add(data[index * SECTOR : (index + 1) * SECTOR])

    def _is(self, first: int, data: bytes, *, durable: bool = False) -> None:
        for index in range(len(data) // SECTOR):
            sector = data[index * SECTOR : (index + 1) * SECTOR]
            self.current[first + index] = sector
            if durable:
                self.allowed[first + index] = {sector}

    async def write(self, *, durable: bool = False) -> None:
        first, end = self._range()
        data = self._data(first, end)
        self._may_be(first, data)
        await write_bytes(self.disk, first * SECTOR, data, durable=durable)
        self._is(first, data, durable=durable)

    async def durable(self) -> None:
        await self.write(durable=True)

    async def many(self) -> None:
        """Several at once, side by side."""
        width = SECTORS // 5
        writes = []
        for first in range(0, SECTORS - width, width):
            first += self.random.randrange(width // 2)
            data = self._data(first, first + self.random.randint(1, width // 2))
            self._may_be(first, data)
            writes.append((first, data))
        await asyncio.gather(
            *(write_bytes(self.disk, first * SECTOR, data) for first, data in writes)
        )
        for first, data in writes:
            self._is(first, data)

    async def zero(self) -> None:
        first, end = self._range()
        if self.random.random() < 0.6:  # whole blocks
            first = first // 16 * 16
            end = min(SECTORS, -(-end // 16) * 16)
        zeroes = bytes((end - first) * SECTOR)
        self._may_be(first, zeroes)
        call = self.random.choice((self.disk.deallocate, self.disk.write_zeroes))
        await call(first * SECTOR, len(zeroes))
        self._is(first, zeroes)

    async def flush(self) -> None:
        await self.disk.flush()
        self.allowed = [{sector} for sector in self.current]

    async def check_all(self) -> None:
        """Every state opens and holds what it may; and goes on to work."""
        for state in self.states:
            await check(state, self.find_parent)
        self.states.clear()


async def check(state: State, find_parent: FindParent) -> None:
    disk = open_blocks(RecordingFile(state.file), find_parent)
    content = await read_all(disk)
    for sector, allowed in enumerate(state.allowed):
        found = content[sector * SECTOR : (sector + 1) * SECTOR]
        assert found in allowed, f"sector {sector} holds {found[:16]!r}"


async def run(rig: Rig) -> None:
    for _ in range(4):
        for _ in range(8):
            await rig.step()
            assert await read_all(rig.disk) == b"".join(rig.current)
        await rig.check_all()
        rig.adopt(await survivor(rig))


async def survivor(rig: Rig) -> bytes:
    """Some end of the process or the power; the rig's expectations become those of what is left."""
    if rig.random.random() < 0.3:
        await rig.disk.close()
        await rig.check_all()
        raw = rig.file.killed()
        assert len(raw) % SECTOR == 0
    elif rig.random.random() < 0.5:
        raw = rig.file.killed()
    else:
        raw = rig.random.choice(list(rig.file.crash_states(RANDOM_STATES, 1)))
        content = await read_all(open_blocks(RecordingFile(raw), rig.find_parent))
        rig.current = [content[at : at + SECTOR] for at in range(0, SIZE, SECTOR)]
    # What was written but not flushed may still get lost, yet this is what the medium holds now.
    rig.allowed = [{sector} for sector in rig.current]
    rig.states.clear()
    return raw


def parent_content() -> bytes:
    """Data in every other block, as a fixed disk that is a block shorter than its child."""
    source = random.Random(7)
    return b"".join(
        source.randbytes(BLOCK) if block % 2 else bytes(BLOCK) for block in range(BLOCKS - 1)
    )


@pytest.mark.parametrize("seed", range(6))
async def test_a_dynamic_disk(seed: int) -> None:
    await run(Rig(small_dynamic(SIZE, BLOCK), None, bytes(SIZE), seed))


async def make_parent(content: bytes) -> bytes:
    file = RecordingFile(small_dynamic(len(content), BLOCK))
    disk = open_blocks(file)
    for offset in range(0, len(content), BLOCK):
        await write_bytes(disk, offset, content[offset : offset + BLOCK])
    await disk.close()
    return file.killed()


@pytest.mark.parametrize("seed", range(6))
async def test_a_differencing_disk(seed: int) -> None:
    content = parent_content()
    parent = await make_parent(content)
    footer = open_blocks(RecordingFile(parent, read_only=True)).footer
    child = small_child(SIZE, BLOCK, footer)
    await run(Rig(child, open_parent(parent), content.ljust(SIZE, b"\0"), seed))


async def test_a_crash_of_a_foreign_disk_whose_bitmaps_have_gaps() -> None:
    """Stale bytes under clear bits must never show, not even while the block is completed."""
    file = RecordingFile(small_dynamic(SIZE, BLOCK))
    disk = open_blocks(file)
    await write_bytes(disk, 0, b"\x11" * BLOCK)
    await disk.close()
    raw = bytearray(file.killed())
    place = disk.table[0]
    raw[place - SECTOR : place - SECTOR + 2] = b"\xf0\x00"  # only four sectors count
    start = b"\x11" * (4 * SECTOR) + bytes(SIZE - 4 * SECTOR)
    for seed in range(3):
        rig = Rig(bytes(raw), None, start, seed)
        assert await read_all(rig.disk) == start
        await run(rig)


class SlowBitmap(RecordingFile):
    """Writing at `slow_at` waits for `gate`."""

    slow_at = -1

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.slow = True
        self.gate, self.waiting = asyncio.Event(), asyncio.Event()

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        if offset_bytes == self.slow_at:
            self.waiting.set()
            await self.gate.wait()
        await super().write(offset_bytes, data, durable=durable)


async def test_a_flush_in_the_midst_of_an_allocation_does_not_make_it_durable() -> None:
    file = SlowBitmap(small_dynamic(4 * BLOCK, BLOCK))
    disk = open_blocks(file)
    await disk.write(0, (b"a" * BLOCK,))
    await disk.flush()
    file.slow_at = disk._space._ready[-1] - SECTOR
    writing = asyncio.ensure_future(disk.write(BLOCK, (b"F" * SECTOR,), durable=True))
    await file.waiting.wait()
    await disk.flush()  # somebody else's
    file.gate.set()
    await writing
    for content in file.crash_states(20):
        assert await read_all(open_blocks(RecordingFile(content)), BLOCK, SECTOR) == b"F" * SECTOR
