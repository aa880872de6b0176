"""A VHDX disk's size: larger, or smaller where nothing is in what goes.

What the new size needs is put where the old one does not look; then one entry of the log changes
the size, together with the place of the BAT if that had to move.
"""

from array import array
from collections.abc import Mapping
from dataclasses import replace

from construct import Int64ul

from .base import BackingStore, Provisioning, StorageError, StorageFault
from .block_image import all_zero, uninterrupted
from .vhdx_bat import ENTRIES_PER_SECTOR, Bat, placed
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
_EXTENTS_AT_ONCE = 64
_HIDDEN_AT_ONCE = 64  # in as many sectors of the BAT at most: one entry of the log


class VhdxResize(VhdxBlocks):
    """The part of a `VhdxDisk` that changes its size."""

    def __init__(self, opened: OpenedFile, parent: BackingStore | None) -> None:
        super().__init__(opened, parent)
        self._regions = opened.regions

    async def resize(self, size_bytes: int) -> None:
        """See `BackingStore.resize`. A fixed disk takes the space of what it grows by."""
        self._require_writable()
        sector = self.metadata.logical_sector_bytes
        if not 0 < size_bytes <= DISK_BYTES_MAX or size_bytes % sector:
            raise self._refused(f"{size_bytes} bytes are not whole sectors of at most 64 TiB")
        if not self._writes_now:
            await uninterrupted(self._begin_writing())
        if size_bytes < self.size_bytes:
            await self._require_empty(size_bytes)
        if size_bytes != self.size_bytes:
            await uninterrupted(self._resize(size_bytes))

    def _refused(self, what: str, offset_bytes: int | None = None) -> StorageError:
        return StorageError(StorageFault.INVALID, f"{self.file.name}: {what}", offset_bytes)

    async def _require_empty(self, start_bytes: int) -> None:
        """Nothing but zeroes may lie behind this."""
        offset = start_bytes
        while offset < self.size_bytes:
            found = await self.extents(offset, self.size_bytes - offset, _EXTENTS_AT_ONCE)
            for extent in found:
                if extent.state is Provisioning.MAPPED:
                    await self._require_zeroes(offset, extent.length_bytes)
                offset += extent.length_bytes

    async def _require_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        for at in range(offset_bytes, offset_bytes + length_bytes, _COPY_BYTES):
            part = memoryview(bytearray(min(_COPY_BYTES, offset_bytes + length_bytes - at)))
            await self.read(at, part)
            if not all_zero((part,)):
                raise self._refused(f"holds data behind byte {at}, so it cannot shrink", at)

    async def _resize(self, size_bytes: int) -> None:
        old_bytes = self.size_bytes
        if size_bytes < old_bytes:
            await self._discard_behind(size_bytes)
        elif self._parent_end_bytes > old_bytes:
            await self._own_last_block()
        async with self.changing:
            await self._open_log()
            await self._settle()
            if size_bytes > old_bytes:
                await self._clear_behind_end()
            await self._change_size(size_bytes)
        await self.flush()

    async def _discard_behind(self, size_bytes: int) -> None:
        """Give back the blocks that go: they hold only zeroes."""
        block, blocks = -(-size_bytes >> self._shift), []
        while block < len(self.table):
            count = self._run_without_space(block)
            if not count:
                blocks.append(block)
            block += max(1, count)
        if blocks:
            await self._discard(blocks)

    # The parent of a child may be larger than it is: what it has there is not the child's

    @property
    def _parent_end_bytes(self) -> int:
        return 0 if self.parent is None else self.parent.size_bytes

    async def _own_last_block(self) -> None:
        """Of the block that the disk's end cuts, nothing comes from the parent any more."""
        block, cut = self.size_bytes >> self._shift, self.size_bytes & self._mask
        if not cut:
            return
        while self._pieces(block, 0, cut) is None:
            await self._load(block)
        if not await self._reads_zero(block, 0, cut):
            await self._prepare(block, 0, cut)
        async with self.changing:
            place, state = placed(self.table[block])
            if state == BlockState.PARTIALLY_PRESENT:  # though all of it is the child's own
                await self._commit({block: place})

    async def _hide_parent(self, first_block: int) -> None:
        """Blocks from this one on are zeroes, before there are such blocks."""
        end = min(len(self.table), -(-self._parent_end_bytes >> self._shift))
        for start in range(first_block, end, _HIDDEN_AT_ONCE):
            blocks = range(start, min(start + _HIDDEN_AT_ONCE, end))
            await self._commit(dict.fromkeys(blocks, ~int(BlockState.ZERO)))

    async def _settle(self) -> None:
        """Have the file's metadata in place as it is in memory."""
        await self.flush()
        if not self._log.is_applied:
            message = f"{self.file.name}: its log cannot be applied"
            raise StorageError(StorageFault.MEDIUM, message)

    async def _clear_behind_end(self) -> None:
        """What lies in the last block behind the disk may be anything."""
        start = self.size_bytes & self._mask
        if not start:
            return
        block = self.size_bytes >> self._shift
        while self._pieces(block, 0, start) is None:
            await self._load(block)
        place, _ = placed(self.table[block])
        if place:
            await self.file.zero(place + start, self.block_bytes - start)
            await self.file.flush()

    async def _change_size(self, size_bytes: int) -> None:
        before = (self.metadata, self._bat, self._regions, len(self._bitmaps.places))
        geometry = replace(self._bat.geometry, disk_bytes=size_bytes)
        sectors = await self._size_sectors(size_bytes)
        region = self._bat.region
        if geometry.entry_count * BAT_ENTRY_BYTES > region.length:
            region, moved = await self._move_bat(geometry.entry_count)
            sectors |= moved
        else:
            await self._clear_entries_behind(geometry.entry_count)
        old_blocks = len(self.table)
        self.table.resize(geometry.block_count)
        places = self._bitmaps.places
        del places[geometry.chunk_count :]
        places.extend(array("Q", bytes((geometry.chunk_count - len(places)) * BAT_ENTRY_BYTES)))
        self._bat_sectors.clear()
        self._bat = Bat(self.file.name, region, geometry, self.file.size_bytes)
        try:
            if self.metadata.leave_block_allocated:
                await self._allocate_all(old_blocks)
            await self._hide_parent(old_blocks)
            await self._log.append(sectors)
        except BaseException:
            self.metadata, self._bat, self._regions, count = before
            self.table.resize(old_blocks)
            self._bat_sectors.clear()
            del places[count:]
            places.extend(array("Q", bytes((count - len(places)) * BAT_ENTRY_BYTES)))
            raise
        self.metadata = replace(self.metadata, disk_bytes=size_bytes)
        self._regions = replace(self._regions, bat=region)
        self.size_bytes = size_bytes

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
        """Entries behind the old end may be anything; the new size will look at them."""
        used = self._bat.geometry.entry_count
        first, last = used // ENTRIES_PER_SECTOR, -(-entry_count // ENTRIES_PER_SECTOR)
        sectors: dict[int, bytes] = {}
        for number in range(first, last):
            offset = self._bat.offset(number * ENTRIES_PER_SECTOR)
            sector = bytearray(LOG_SECTOR_BYTES)
            await self.file.read(offset, memoryview(sector))
            kept = max(0, used - number * ENTRIES_PER_SECTOR) * BAT_ENTRY_BYTES
            if any(sector[kept:]):
                sectors[offset] = bytes(sector[:kept]).ljust(LOG_SECTOR_BYTES, b"\0")
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
        place = await self._take_space(length)
        for at in range(0, used, _COPY_BYTES):
            part = memoryview(bytearray(min(_COPY_BYTES, used - at)))
            await self.file.read(old.start + at, part)
            if not all_zero((part,)):
                await self.file.write(place + at, (part,))
        await self.file.flush()
        region = Span(old.name, place, length)
        return region, await self._region_sectors(region)

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
        place = await self._take_space(length)
        try:
            await self.file.zero(place, length)
            await self._commit(
                {first_block + at: place + (at << self._shift) for at in range(count)}
            )
        except BaseException:
            self._space.free(place, length, clean=True)
            raise
