"""A VHDX disk's size: larger, or smaller where nothing is in what goes.

What the new size needs is put where the old one does not look; then one entry of the log changes
the size, together with the place of the BAT if that had to move.
"""

import asyncio
from array import array
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from itertools import count

from construct import Int64ul

from .base import BackingStore, StorageError, StorageFault
from .block_image import uninterrupted
from .block_layout import Source
from .block_table import UNKNOWN
from .buffers import all_zero
from .content import require_no_data
from .vhdx_bat import ENTRIES_PER_SECTOR, Bat, Geometry, placed
from .vhdx_blocks import OpenedFile, VhdxBlocks
from .vhdx_format import (
    BAT_ENTRY_BYTES,
    BAT_REGION,
    DISK_BYTES_MAX,
    DISK_SIZE_ITEM,
    LOG_SECTOR_BYTES,
    MIB,
    REGION_ENTRY,
    REGION_TABLE_BYTES,
    REGION_TABLE_HEADER,
    REGION_TABLE_OFFSETS,
    BlockState,
    sealed,
)
from .vhdx_metadata import Span

_COPY_BYTES = MIB
_BLOCKS_AT_ONCE = 4096


class VhdxResize(VhdxBlocks):
    """The part of a `VhdxDisk` that changes its size."""

    def __init__(self, opened: OpenedFile, parent: BackingStore | None) -> None:
        super().__init__(opened, parent)
        self._regions = opened.regions
        self._resizing = asyncio.Lock()

    async def resize(self, size_bytes: int) -> None:
        """See `BackingStore.resize`. A fixed disk takes the space of what it grows by."""
        self._require_writable()
        sector = self.metadata.logical_sector_bytes
        if not 0 < size_bytes <= DISK_BYTES_MAX or size_bytes % sector:
            raise self._refused(f"{size_bytes} bytes are not whole sectors of at most 64 TiB")
        if not self._writes_now:
            await uninterrupted(self._begin_writing())
        async with self._resizing:
            if size_bytes < self.size_bytes:
                await self._require_empty(size_bytes)
            if size_bytes != self.size_bytes:
                await uninterrupted(self._resize(size_bytes))

    def _refused(self, what: str) -> StorageError:
        return StorageError(StorageFault.INVALID, f"{self.file.name}: {what}")

    async def _require_empty(self, start_bytes: int) -> None:
        """Nothing but zeroes may lie behind this; of a large table little is looked at."""
        if self.parent is None:
            async for block in self._blocks_with_space(start_bytes >> self._shift):
                start = block << self._shift
                end = min(start + self.block_bytes, self.size_bytes)
                start = max(start, start_bytes)
                await require_no_data(self, self.file.name, start, end)
        else:  # its blocks without space may show the parent's data
            await require_no_data(self, self.file.name, start_bytes, self.size_bytes)

    async def _resize(self, size_bytes: int) -> None:
        if size_bytes < self.size_bytes:
            await self._discard_behind(size_bytes)
        else:
            await self._own_last_block()
        async with self.changing:
            await self._open_log()
            await self._settle()
            if size_bytes < self.size_bytes:
                await self._shrink(size_bytes)
            else:
                await self._clear_behind_end()
                await self._grow(size_bytes)
        await self.flush()

    async def _discard_behind(self, size_bytes: int) -> None:
        """Give back the blocks that go: they hold only zeroes."""
        blocks: list[int] = []
        async for block in self._blocks_with_space(-(-size_bytes >> self._shift)):
            blocks.append(block)
            if len(blocks) == _BLOCKS_AT_ONCE:
                await self._discard(blocks)
                blocks.clear()
        if blocks:
            await self._discard(blocks)

    async def _blocks_with_space(self, first: int) -> AsyncIterator[int]:
        """The blocks from the first on that have a place in the file, in order.

        What is not in memory of a large table is looked at, and let go of where it is empty.
        """
        block = first
        for turn in count(1):
            if block >= len(self.table):
                return
            if not turn % _BLOCKS_AT_ONCE:
                await asyncio.sleep(0)
            if absent := self._run_without_space(block):
                block += absent
            elif self.table[block] == UNKNOWN and (empty := await self._empty_entries(block)):
                block += empty
            else:
                if self.table[block] == UNKNOWN:
                    await self._load_entries(block)
                if placed(self.table[block])[0]:
                    yield block
                block += 1

    async def _empty_entries(self, block: int) -> int:
        """How many blocks from this one on have entries in a log sector of zeroes."""
        index, group = self._bat.geometry.index(block), self._bat.geometry.chunk_ratio + 1
        first = index - index % ENTRIES_PER_SECTOR
        sector = bytearray(LOG_SECTOR_BYTES)
        await self.file.read(self._bat.offset(first), memoryview(sector))
        end = first + ENTRIES_PER_SECTOR
        return 0 if any(sector) else end - end // group - block

    async def _settle(self) -> None:
        """Have the file's metadata in place as it is in memory."""
        await self.flush()
        if not self._log.is_applied:
            message = f"{self.file.name}: its log cannot be applied"
            raise StorageError(StorageFault.MEDIUM, message)

    @property
    def _parent_goes_on(self) -> bool:
        """Whether the parent has something behind the end, which must not come to light."""
        return self.parent is not None and self.parent.size_bytes > self.size_bytes

    async def _own_last_block(self) -> None:
        """Of the block that the end cuts, nothing on the disk comes from the parent any more."""
        start = self.size_bytes & self._mask
        if not start or not self._parent_goes_on:
            return
        block = self.size_bytes >> self._shift
        while (pieces := self._pieces(block, 0, start)) is None:
            await self._load(block)
        if any(piece.source is Source.PARENT for piece in pieces):
            await self._prepare(block, 0, start)

    async def _clear_behind_end(self) -> None:
        """What lies in the last block behind the disk may be anything, and becomes zeroes."""
        start = self.size_bytes & self._mask
        if not start:
            return
        block = self.size_bytes >> self._shift
        while self._pieces(block, 0, start) is None:
            await self._load(block)
        place, state = placed(self.table[block])
        if place:
            is_fixed = self.metadata.leave_block_allocated
            clear = self.file.zero if is_fixed else self.file.punch
            await clear(place + start, self.block_bytes - start)
            await self.file.flush()
        if self._parent_goes_on and state == BlockState.PARTIALLY_PRESENT:
            await self._commit({block: place})

    async def _shrink(self, size_bytes: int) -> None:
        await self._log.append(await self._size_sectors(size_bytes))
        self._take_size(size_bytes)
        self._take_geometry(self._geometry_of(size_bytes), self._bat.region)

    async def _grow(self, size_bytes: int) -> None:
        """The new blocks are as they must be before the size says that they are there."""
        geometry, before = self._geometry_of(size_bytes), self._bat
        region = before.region
        entries = min(geometry.entry_count, region.length // BAT_ENTRY_BYTES)
        await self._clear_entries_behind(entries)
        sectors = await self._size_sectors(size_bytes)
        moved = geometry.entry_count > entries
        if moved:
            region, table_sectors = await self._move_bat(geometry.entry_count)
            sectors |= table_sectors
        first_new = len(self.table)
        try:
            self._take_geometry(geometry, region)
            if self.metadata.leave_block_allocated:
                await self._allocate_all(first_new)
            elif self.parent is not None:
                await self._hide_parent(first_new)
            await self._log.append(sectors)
        except BaseException:
            self._take_geometry(before.geometry, before.region)
            if moved:
                self._space.give_back(region.start, region.length, clean=False)
            raise
        self._take_size(size_bytes)

    def _geometry_of(self, size_bytes: int) -> Geometry:
        return replace(self._bat.geometry, disk_bytes=size_bytes)

    def _take_geometry(self, geometry: Geometry, region: Span) -> None:
        """Have a BAT for so many blocks, at this place of the file."""
        self._resize_table(geometry.block_count)
        places = self._bitmaps.places
        del places[geometry.chunk_count :]
        places.extend(array("Q", bytes((geometry.chunk_count - len(places)) * BAT_ENTRY_BYTES)))
        self._bat_sectors.clear()
        self._bat = Bat(self.file.name, region, geometry, self.file.size_bytes)

    def _take_size(self, size_bytes: int) -> None:
        self.metadata = replace(self.metadata, disk_bytes=size_bytes)
        self._regions = replace(self._regions, bat=self._bat.region)
        self.size_bytes = size_bytes

    async def _hide_parent(self, first_block: int) -> None:
        """New blocks of a child read as zeroes, whatever a larger parent has there."""
        assert self.parent is not None
        end_block = min(len(self.table), -(-self.parent.size_bytes >> self._shift))
        for first in range(first_block, end_block, _BLOCKS_AT_ONCE):
            blocks = range(first, min(first + _BLOCKS_AT_ONCE, end_block))
            await self._commit(dict.fromkeys(blocks, ~int(BlockState.ZERO)))

    async def _size_sectors(self, size_bytes: int) -> dict[int, bytes]:
        """Log sectors with the Virtual Disk Size item (section 2.6.2.2) changed."""
        return await self._patched(
            {self.metadata.item(DISK_SIZE_ITEM).offset: Int64ul.build(size_bytes)}
        )

    async def _patched(self, patches: Mapping[int, bytes]) -> dict[int, bytes]:
        """Log sectors of the file with other bytes at some offsets."""
        found: dict[int, bytearray] = {}
        for offset, data in patches.items():
            for position, byte in enumerate(data, offset):
                at = position - position % LOG_SECTOR_BYTES
                if at not in found:
                    found[at] = bytearray(LOG_SECTOR_BYTES)
                    await self.file.read(at, memoryview(found[at]))
                found[at][position - at] = byte
        return {at: bytes(sector) for at, sector in found.items()}

    async def _clear_entries_behind(self, entry_count: int) -> None:
        """Entries behind the disk may be anything; a larger one will look at them.

        Those of blocks lie also between the disk's last block and its last sector bitmap.
        """
        geometry = self._bat.geometry
        first = geometry.index(geometry.block_count) // ENTRIES_PER_SECTOR
        sectors: dict[int, bytes] = {}
        for number in range(first, -(-entry_count // ENTRIES_PER_SECTOR)):
            at = number * ENTRIES_PER_SECTOR
            offset, sector = self._bat.offset(at), bytearray(LOG_SECTOR_BYTES)
            await self.file.read(offset, memoryview(sector))
            await self._load_all([at])
            wanted = self._bat.sector(number, self.table, self._bitmaps.places)
            if sector != wanted:
                sectors[offset] = bytes(wanted)
        if sectors:
            await self._log.append(sectors)
            await self._settle()

    async def _move_bat(self, entry_count: int) -> tuple[Span, dict[int, bytes]]:
        """Copy the BAT to where it has room; its new place, and the region tables that name it.

        The old place is not used again while the log may still write there: not before the file
        is opened again.
        """
        length = -(-entry_count * BAT_ENTRY_BYTES // MIB) * MIB
        old, used = self._bat.region, self._bat.geometry.entry_count * BAT_ENTRY_BYTES
        place = await self._space.take(length)
        try:
            await self.file.zero(place, length)  # metadata must never fail for want of space
            for at in range(0, used, _COPY_BYTES):
                part = memoryview(bytearray(min(_COPY_BYTES, used - at)))
                await self.file.read(old.start + at, part)
                if not all_zero((part,)):
                    await self.file.write(place + at, (part,))
            await self.file.flush()
            region = Span(old.name, place, length)
            return region, await self._region_sectors(region)
        except BaseException:
            self._space.give_back(place, length, clean=False)
            raise

    async def _region_sectors(self, bat: Span) -> dict[int, bytes]:
        """Log sectors of both region tables (section 2.2.3) with the BAT in another place."""
        table = bytearray(REGION_TABLE_BYTES)
        await self.file.read(self._regions.table_offset, memoryview(table))
        head, size = REGION_TABLE_HEADER.sizeof(), REGION_ENTRY.sizeof()
        for at in range(head, head + REGION_TABLE_HEADER.parse(table).entry_count * size, size):
            entry = REGION_ENTRY.parse(table[at : at + size])
            if entry.guid == BAT_REGION:
                entry.file_offset, entry.length = bat.start, bat.length
                table[at : at + size] = REGION_ENTRY.build(entry)
        content = sealed(table)
        return {
            offset + at: content[at : at + LOG_SECTOR_BYTES]
            for offset in REGION_TABLE_OFFSETS
            for at in range(0, REGION_TABLE_BYTES, LOG_SECTOR_BYTES)
        }

    async def _allocate_all(self, first_block: int) -> None:
        """A fixed disk has all its blocks: those that are new, too."""
        count = len(self.table) - first_block
        if count <= 0:
            return
        length = count << self._shift
        place = await self._space.take(length)
        try:
            await self.file.zero(place, length)
            await self._commit(
                {first_block + at: place + (at << self._shift) for at in range(count)}
            )
        except BaseException:
            self._space.give_back(place, length, clean=True)
            raise
