"""Dynamic and differencing VHDs: blocks with sector bitmaps, and the order of every change.

VHD 1.0, "Block Allocation Table and Data Blocks" and "Implementing a Differencing Hard Disk". The
format has no log, so nothing may ever point at what is not yet on the medium:

  a new block        its place is empty, durable room (`vhd_space`); then the bitmap, then the table
  sectors of a child  the parent's bytes are copied and flushed before their bits are set, so that
                     the write which follows replaces them in place, and losing it loses nothing
  a freed block      its place is used again only behind a flush that its table entry came before

A guest's own bytes are therefore always written in place, into sectors which already exist with
their old content. Changes that wait for a flush share it (`_round`).
"""

from __future__ import annotations  # `array` takes no parameters before Python 3.12

import asyncio
import struct
from array import array
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field

from . import vhd_bitmap
from .base import BackingStore, Capabilities, StorageError
from .block_image import BlockImage
from .block_layout import Piece, Source
from .block_table import UNKNOWN, BlockTable
from .image_file import ImageFile
from .vhd_format import (
    SECTOR,
    UNUSED,
    Footer,
    Header,
    bitmap_bytes,
)
from .vhd_image import Layout, free_places
from .vhd_space import Space

ABSENT = -1  # in the table: the block is not in the file
PARTIAL = -2  # some sectors are, and the bitmap says which
FILL_BYTES = 64 * 1024  # of the parent are copied at least, so that small writes need few flushes
_COPY_BYTES = 1 << 20  # at once
_FREE_BLOCKS = 256  # at once
_BITMAP_MEMORY_BYTES = 16 << 20


@dataclass(slots=True, eq=False)
class _Change:
    """Sectors of a block that must be there; `zeroed`: all of them as zeroes, whatever they were.

    Everybody who asked awaits `done`.
    """

    block: int
    done: asyncio.Future[None]
    ranges: list[tuple[int, int]] = field(default_factory=list)
    zeroed: bool = False
    place: int = 0
    is_new: bool = False
    bitmap: bytearray = field(default_factory=bytearray)


class VhdBlocks(BlockImage):
    """An open dynamic or differencing disk. Owns `file` and `parent`."""

    def __init__(
        self,
        file: ImageFile,
        layout: Layout,
        capabilities: Capabilities,
        parent: BackingStore | None = None,
    ) -> None:
        assert layout.header is not None
        assert layout.footer_offset is not None or capabilities.read_only
        header: Header = layout.header
        self.layout = layout
        self.footer: Footer = layout.footer
        self._entries: array[int] = layout.table
        self._bitmap_bytes = bitmap_bytes(header.block_size)
        self._bitmaps: OrderedDict[int, bytearray] = OrderedDict()
        self._bitmaps_max = max(8, _BITMAP_MEMORY_BYTES // self._bitmap_bytes)
        # Of metadata, counted before and after each; and how many of them are on the medium.
        self._changes = 0
        self._durable_changes = 0
        self._waiting: dict[int, _Change] = {}
        self._working: asyncio.Task[None] | None = None
        self._closed = False
        table = BlockTable(len(self._entries), ABSENT)
        missing = 0
        shift = header.block_size.bit_length() - 1
        for block, entry in enumerate(self._entries):
            if entry != UNUSED:
                table[block] = UNKNOWN
            elif block << shift < layout.footer.size_bytes:
                missing += 1
        super().__init__(
            file, layout.footer.size_bytes, header.block_size, capabilities, table, parent
        )
        end = layout.footer_offset if layout.footer_offset is not None else 0
        self._space = Space(
            file,
            layout.footer,
            end,
            block_bytes=header.block_size,
            bitmap_bytes=self._bitmap_bytes,
            free=[] if capabilities.read_only else free_places(layout, end),
            missing=missing,
        )

    # Where sectors are

    def _place(self, block: int) -> int:
        return self._entries[block] * SECTOR + self._bitmap_bytes

    def _sectors(self, block: int) -> int:
        """How many sectors of the block are on the disk, whose last block may be cut."""
        return min(self.block_bytes, self.size_bytes - block * self.block_bytes) // SECTOR

    def _elsewhere(self) -> Source:
        return Source.ZEROES if self.parent is None else Source.PARENT

    def _pieces(self, block: int, start: int, end: int) -> list[Piece] | None:
        state = self.table[block]
        if state == ABSENT:
            return [Piece(end - start, self._elsewhere())]
        if state > 0:
            return [Piece(end - start, Source.FILE, state + start)]
        bitmap = self._bitmaps.get(block)
        if bitmap is None:
            return None
        place = self._place(block)
        pieces: list[Piece] = []
        for is_set, first, stop in vhd_bitmap.runs(bitmap, start // SECTOR, -(-end // SECTOR)):
            low, high = max(start, first * SECTOR), min(end, stop * SECTOR)
            source = Source.FILE if is_set else self._elsewhere()
            pieces.append(Piece(high - low, source, place + low if is_set else 0))
        return pieces

    async def _load(self, block: int) -> None:
        changes = self._changes
        bitmap = await self._read_bitmap(block)
        if changes != self._changes:  # perhaps of this very bitmap
            async with self.changing:
                await self._load_quietly(block)
        elif self._is_unknown(block):
            self._know(block, bitmap)

    async def _load_quietly(self, block: int) -> None:
        """Know the block's bitmap; `changing` is held."""
        if self._is_unknown(block):
            self._know(block, await self._read_bitmap(block))

    def _is_unknown(self, block: int) -> bool:
        state = self.table[block]
        return state == UNKNOWN or (state == PARTIAL and block not in self._bitmaps)

    async def _read_bitmap(self, block: int) -> bytearray:
        bitmap = bytearray(self._bitmap_bytes)
        into, offset = memoryview(bitmap), self._entries[block] * SECTOR
        if not self.file.read_now(offset, into):
            await self.file.read(offset, into)
        return bitmap

    def _know(self, block: int, bitmap: bytearray) -> None:
        """Bring table and memory into line with the bitmap that is in the file."""
        if vhd_bitmap.clear_runs(bitmap, 0, self._sectors(block)):
            self.table[block] = PARTIAL
            self._bitmaps[block] = bitmap
            self._bitmaps.move_to_end(block)
            if len(self._bitmaps) > self._bitmaps_max:
                self._bitmaps.popitem(last=False)
        else:
            self._bitmaps.pop(block, None)
            self.table[block] = self._place(block)

    def _run_without_space(self, block: int) -> int:
        count = self.table.filler_run(block)
        if not count:
            while block + count < len(self.table) and self.table[block + count] == ABSENT:
                count += 1
        return count

    # Making room

    async def _begin_writing(self) -> None:
        async with self.changing:
            if not self._writes_now:
                await self._space.stamp()
                self.footer = self._space.footer
                self._writes_now = True

    def _metadata_is_durable(self) -> bool:
        return self._durable_changes == self._changes

    async def _prepare(
        self, block: int, start: int, end: int, *, becomes_zero: bool = False
    ) -> int:
        first, stop = start // SECTOR, -(-end // SECTOR)
        # Asked again afterwards: until the caller runs, the block may have been freed.
        while not (place := self._where_present(block, first, stop)):
            await self._change(block, first, stop)
        return place

    def _where_present(self, block: int, first: int, end: int) -> int:
        """The place of a block whose sectors [first, end) are there; 0 if they are not."""
        if self.table[block] > 0:
            return self.table[block]
        bitmap = self._bitmaps.get(block)
        if bitmap is None or vhd_bitmap.clear_runs(bitmap, first, end):
            return 0
        return self._place(block)

    async def _change(self, block: int, first: int, end: int, *, zeroed: bool = False) -> None:
        change = self._waiting.get(block)
        if change is None:
            change = _Change(block, asyncio.get_running_loop().create_future())
            self._waiting[block] = change
        change.ranges.append((first, end))
        change.zeroed |= zeroed
        if self._working is None or self._working.done():
            self._working = asyncio.ensure_future(self._work())
        await asyncio.shield(change.done)

    async def _work(self) -> None:
        """Rounds, until nobody waits: what is asked for while one runs goes into the next."""
        while self._waiting:
            changes, self._waiting = self._waiting, {}
            async with self.changing:
                await self._round(list(changes.values()))

    async def _round(self, changes: list[_Change]) -> None:
        """Fill what is missing, flush once if that wrote anything, then say that it is there."""
        must_flush = False
        filled: list[_Change] = []
        for change in changes:
            try:
                await self._find_room(change)
                must_flush |= await self._fill(change)
                filled.append(change)
            except Exception as error:
                self._fail(change, error)
        try:
            if must_flush:
                await self.file.flush()
        except StorageError as error:
            for change in filled:
                self._fail(change, error)
            return
        for change in filled:
            try:
                await self._commit(change)
            except Exception as error:
                self._fail(change, error)

    def _fail(self, change: _Change, error: Exception) -> None:
        if change.is_new:
            self._space.give_back(change.place)
        change.done.set_exception(error)
        change.done.exception()  # perhaps nobody waits any more

    async def _find_room(self, change: _Change) -> None:
        """Where the block is or is to be, and which of its sectors are there."""
        block = change.block
        if self.table[block] == ABSENT:
            change.place = await self._space.take()
            change.is_new = True
            change.bitmap = bytearray(self._bitmap_bytes)
            return
        await self._load_quietly(block)
        change.place = self._place(block)
        known = self._bitmaps.get(block)
        change.bitmap = bytearray(known) if known else self._all_set()

    def _all_set(self) -> bytearray:
        return bytearray(b"\xff" * self._bitmap_bytes)

    async def _fill(self, change: _Change) -> bool:
        """Put the old content where it is missing; says whether that has to be flushed.

        A disk without a parent, or over a hole of it, gets whole blocks at once.
        """
        sectors = self._sectors(change.block)
        if change.zeroed:
            change.ranges = [(0, sectors)]
            if not change.is_new:
                await self.file.punch(change.place, self.block_bytes)
            return not change.is_new
        if self.parent is None or (change.is_new and await self._is_over_hole(change.block)):
            change.ranges = [(0, sectors)]
            if change.is_new:
                return False  # zeroes, in a place of nothing but zeroes
        missing = _missing(change, sectors)
        for first, end in missing:
            await self._copy_down(change, first * SECTOR, end * SECTOR)
        return bool(missing)

    async def _is_over_hole(self, block: int) -> bool:
        """Whether the block would read as zeroes if it were not in the file."""
        if self.parent is None:
            return True
        return await self._parent_is_zero(block * self.block_bytes, self._sectors(block) * SECTOR)

    async def _copy_down(self, change: _Change, start: int, end: int) -> None:
        """Copy [start, end) of the block from the parent, or zeroes where there is none."""
        offset = change.block * self.block_bytes
        if self.parent is None or await self._parent_is_zero(offset + start, end - start):
            await self.file.punch(change.place + start, end - start)
            return
        while start < end:
            data = bytearray(min(_COPY_BYTES, end - start))
            await self._read_parent(offset + start, memoryview(data))
            await self.file.write(change.place + start, (data,))
            start += len(data)

    async def _commit(self, change: _Change) -> None:
        """Set the bits, then enter a new block in the table."""
        for first, end in change.ranges:
            vhd_bitmap.set_run(change.bitmap, first, end)
        if not vhd_bitmap.clear_runs(change.bitmap, 0, self._sectors(change.block)):
            change.bitmap = self._all_set()
        self._changes += 1
        bitmap_at = change.place - self._bitmap_bytes
        await self._put(bitmap_at, change.bitmap)
        if change.is_new:
            change.is_new = False  # whatever comes, the file may refer to the place now
            await self._enter(change.block, [bitmap_at // SECTOR])
        self._changes += 1  # a flush that began meanwhile need not have taken it
        self._know(change.block, change.bitmap)
        change.done.set_result(None)

    async def _enter(self, block: int, entries: Sequence[int]) -> None:
        """Put entries into the table, from that of `block` on."""
        assert self.layout.header is not None
        raw = struct.pack(f">{len(entries)}I", *entries)
        await self._put(self.layout.header.table_offset + block * 4, raw)
        self._entries[block : block + len(entries)] = array("I", entries)

    async def _put(self, offset: int, data: bytes | bytearray) -> None:
        if not self.file.write_now(offset, (data,)):
            await self.file.write(offset, (data,))

    # Giving room back

    async def _discard(self, blocks: Sequence[int]) -> None:
        free: list[int] = []
        zeroed: list[int] = []
        for block in blocks:
            (free if await self._is_over_hole(block) else zeroed).append(block)
        await asyncio.gather(
            *(self._change(block, 0, self._sectors(block), zeroed=True) for block in zeroed)
        )
        for start in range(0, len(free), _FREE_BLOCKS):
            await self._free(free[start : start + _FREE_BLOCKS])

    async def _free(self, blocks: Sequence[int]) -> None:
        places: dict[int, int] = {}
        async with self.changing:
            for block in blocks:
                if self.table[block] == ABSENT:
                    continue
                place = self._place(block)
                self._changes += 1
                await self._enter(block, [UNUSED])
                self._changes += 1  # as in `_commit`
                self.table[block] = ABSENT
                self._bitmaps.pop(block, None)
                places[block] = place
        await self._unused(places)
        for place in places.values():
            await self.file.punch(place, self.block_bytes)
            self._space.give_back(place)

    # The rest

    async def flush(self) -> None:
        """See `BackingStore.flush`."""
        changes = self._changes
        await self.file.flush()
        self._durable_changes = max(self._durable_changes, changes)

    async def close(self) -> None:
        """See `BackingStore.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._working is not None:
                await asyncio.wait((self._working,))
            if self._writes_now:
                await self._space.close(self._used_end())
        finally:
            try:
                await self.file.close()
            finally:
                if self.parent is not None:
                    await self.parent.close()

    def _used_end(self) -> int:
        """Where the last block or structure ends."""
        structures = max(end for _, end in self.layout.metadata)
        last = max((entry for entry in self._entries if entry != UNUSED), default=None)
        if last is None:
            return structures
        return max(structures, last * SECTOR + self._bitmap_bytes + self.block_bytes)


def _missing(change: _Change, sectors: int) -> list[tuple[int, int]]:
    """The sectors to fill: what is wanted, in whole `FILL_BYTES`, and not there. Disjoint."""
    grain = FILL_BYTES // SECTOR
    bitmap = bytearray(change.bitmap)
    missing: list[tuple[int, int]] = []
    for index, (first, end) in enumerate(change.ranges):
        wide = first // grain * grain, min(sectors, -(-end // grain) * grain)
        change.ranges[index] = wide
        missing += vhd_bitmap.clear_runs(bitmap, *wide)
        vhd_bitmap.set_run(bitmap, *wide)
    return missing
