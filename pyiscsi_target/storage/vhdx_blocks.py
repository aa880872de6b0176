"""The blocks of an open VHDX file: finding them, making room, giving it back.

Decides in which order things reach the medium:

- Metadata changes through the log alone (`vhdx_log`): what was acknowledged survives this process.
- A new block is space that reads as zeroes whatever happens: behind the end of the file, or freed,
  punched and flushed before. So it does not matter whether its data or its entry is lost.
- A freed block's space is used again only when that it is free, and empty, is on the medium.
- A sector of a child is its own only when it is on the medium there: what the parent has is
  copied, and flushed, before the bit is set. Then writing it is writing in place.

Must not know how a file is opened, nor who reads and writes.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from uuid import UUID, uuid4

from .base import BackingStore, Capabilities, StorageError
from .block_image import BlockImage
from .block_layout import Piece, Source
from .block_table import UNKNOWN, BlockTable
from .image_file import ImageFile
from .vhdx_bat import ENTRIES_PER_SECTOR, Bat, parse_entries, placed, raw_entry
from .vhdx_bitmap import SectorBitmaps, runs
from .vhdx_format import (
    BAT_ENTRY_BYTES,
    BITMAP_BYTES,
    LOG_SECTOR_BYTES,
    MIB,
    BlockState,
)
from .vhdx_header import Headers
from .vhdx_log import LogWriter
from .vhdx_metadata import Metadata, Regions
from .vhdx_space import Space, SpaceMap

TABLE_ENTRIES_MAX = 1 << 22  # kept in memory from the start; larger tables are loaded in pages
_COPY_BYTES = MIB  # what is copied from a parent at once
_COPY_ALIGNMENT_BYTES = 64 * 1024  # and at least, so that not every small write costs a flush
_BAT_SECTORS_MAX = 256  # kept as they are in the log
_BLOCKS_AT_ONCE = 64  # in as many sectors of the BAT at most: one entry of the log


@dataclass(slots=True)
class OpenedFile:
    """What was read of a VHDX file. `places` are those of the chunks' sector bitmaps."""

    file: ImageFile
    headers: Headers
    regions: Regions
    metadata: Metadata
    bat: Bat
    table: BlockTable
    places: "array[int]"
    space: SpaceMap
    punches: bool  # whether the file takes holes


@dataclass(frozen=True, slots=True)
class Wish:
    """A range of a block that somebody waits to write in place, or to zero."""

    block: int
    start: int
    end: int
    becomes_zero: bool = False


@dataclass(slots=True)
class OwnPart:
    """What is to be a child's own of a block at a place; `own` has a bit for each sector."""

    block: int
    place: int
    own: int
    is_new: bool = False  # its space was taken for this, and is clean but for what was copied
    copied: bool = False  # something of it is not on the medium yet


@dataclass(slots=True)
class Plan:
    """What is to become of blocks, before the file says so.

    `empty`: the place of each block that reads as zeroes until it is written, of which `punched`
    had it already; `parts`: children's.
    """

    empty: dict[int, int] = field(default_factory=dict)
    punched: set[int] = field(default_factory=set)
    parts: dict[int, OwnPart] = field(default_factory=dict)

    @property
    def must_flush(self) -> bool:
        """Whether something of it is not on the medium yet."""
        return bool(self.punched) or any(part.copied for part in self.parts.values())


class VhdxBlocks(BlockImage):
    """The request path of an open VHDX file; closing and resizing are `vhdx.VhdxDisk`'s."""

    def __init__(self, opened: OpenedFile, parent: BackingStore | None) -> None:
        metadata, file = opened.metadata, opened.file
        self.metadata = metadata
        super().__init__(
            file,
            metadata.disk_bytes,
            metadata.block_bytes,
            _capabilities(opened),
            opened.table,
            parent,
        )
        self._headers = opened.headers
        self._bat = opened.bat
        self._bitmaps = SectorBitmaps(file, opened.bat.geometry, opened.places)
        self._space = Space(file, opened.space, punches=opened.punches)
        self._log = LogWriter(file, opened.headers)
        self._bat_sectors: dict[int, bytes] = {}
        self._wishes: list[Wish] = []

    @property
    def data_write_guid(self) -> UUID:
        """Identifies the content: what children of this disk know it by (section 2.2.2)."""
        return self._headers.current.data_write_guid

    # Where blocks are

    def _pieces(self, block: int, start: int, end: int) -> list[Piece] | None:
        value = self.table[block]
        if value > 0:
            return [Piece(end - start, Source.FILE, value + start)]
        if value == UNKNOWN:
            return None
        place, state = placed(value)
        if state == BlockState.PARTIALLY_PRESENT:
            return self._partial_pieces(block, place, start, end)
        absent = state == BlockState.NOT_PRESENT and self.parent is not None
        return [Piece(end - start, Source.PARENT if absent else Source.ZEROES)]

    def _partial_pieces(self, block: int, place: int, start: int, end: int) -> list[Piece] | None:
        size = self.metadata.logical_sector_bytes
        first, last = start // size, -(-end // size)
        if not self._bitmaps.is_known(block, first, last):
            return None
        pieces, position = [], start
        for length, is_own in runs(self._bitmaps.bits(block, first, last), last - first):
            source = Source.FILE if is_own else Source.PARENT
            pieces.append(Piece(length * size, source, place + position))
            position += length * size
        return pieces

    async def _load(self, block: int) -> None:
        if self.table[block] == UNKNOWN:
            await self._load_entries(block)
        if placed(self.table[block])[1] == BlockState.PARTIALLY_PRESENT:
            await self._bitmaps.load(block, 0, self._block_sectors)

    @property
    def _block_sectors(self) -> int:
        return self.block_bytes // self.metadata.logical_sector_bytes

    async def _load_entries(self, block: int) -> None:
        """Look at the log sector of the BAT with the block's entry."""
        ratio, index = self._bat.geometry.chunk_ratio, self._bat.geometry.index(block)
        first = index - index % ENTRIES_PER_SECTOR
        data = bytearray(LOG_SECTOR_BYTES)
        await self.file.read(self._bat.offset(first), memoryview(data))
        for at, entry in enumerate(parse_entries(data), first):
            chunk, within = divmod(at, ratio + 1)
            number = at - chunk
            known = within == ratio or number >= len(self.table)
            if not known and self.table[number] == UNKNOWN:  # else it was changed meanwhile
                self.table[number] = self._bat.payload(at, entry)

    def _run_without_space(self, block: int) -> int:
        return 0 if self._is_paged else self.table.filler_run(block)

    @property
    def _is_paged(self) -> bool:
        return self.table.filler == UNKNOWN

    # Changing metadata, with `changing` held

    async def _begin_writing(self) -> None:
        async with self.changing:
            if self._writes_now:
                return
            if self.metadata.leave_block_allocated:  # there may never be anything to log
                await self._headers.update(data_write_guid=uuid4())
            else:
                await self._log.begin(uuid4())
            self._writes_now = True

    async def _open_log(self) -> None:
        if not self._log.is_open:
            await self._log.begin()

    async def _commit(
        self,
        values: Mapping[int, int],
        places: Mapping[int, int] | None = None,
        bitmaps: Mapping[int, bytes] | None = None,
    ) -> None:
        """Give blocks other values of the table, chunks a place of their bitmap, and set bits.

        Raises StorageError; nothing has changed then, unless there are thousands of blocks.
        """
        await self._open_log()
        index = self._bat.geometry.index
        entries = {index(block): raw_entry(value) for block, value in values.items()}
        for chunk, place in (places or {}).items():
            at = self._bat.geometry.bitmap_index(chunk)
            entries[at] = place | BlockState.FULLY_PRESENT
        await self._load_all(entries)
        sectors = self._changed_bat(entries)
        await self._log.append(
            {self._bat.offset(at * ENTRIES_PER_SECTOR): data for at, data in sectors.items()}
            | dict(bitmaps or {})
        )
        if len(self._bat_sectors) > _BAT_SECTORS_MAX:
            self._bat_sectors.clear()
        self._bat_sectors.update(sectors)
        for block, value in values.items():
            self.table[block] = value
        for chunk, place in (places or {}).items():
            self._bitmaps.places[chunk] = place
        self._bitmaps.store(bitmaps or {})

    async def _load_all(self, entries: Iterable[int]) -> None:
        """Have in memory what shares log sectors of the BAT with these entries."""
        if not self._is_paged:
            return
        for index in entries:
            first = index - index % ENTRIES_PER_SECTOR
            group = self._bat.geometry.chunk_ratio + 1
            for at in range(first, first + ENTRIES_PER_SECTOR):
                number = at - at // group
                if number < len(self.table) and self.table[number] == UNKNOWN:
                    await self._load_entries(number)

    def _changed_bat(self, entries: Mapping[int, int]) -> dict[int, bytes]:
        """Log sectors of the BAT, by number, with other entries."""
        found: dict[int, bytearray] = {}
        for index, entry in entries.items():
            number, within = divmod(index, ENTRIES_PER_SECTOR)
            if number not in found:
                known = self._bat_sectors.get(number)
                found[number] = (
                    self._bat.sector(number, self.table, self._bitmaps.places)
                    if known is None
                    else bytearray(known)
                )
            at = within * BAT_ENTRY_BYTES
            found[number][at : at + BAT_ENTRY_BYTES] = entry.to_bytes(BAT_ENTRY_BYTES, "little")
        return {number: bytes(sector) for number, sector in found.items()}

    # Making room for writes

    async def _prepare(
        self, block: int, start: int, end: int, *, becomes_zero: bool = False
    ) -> int:
        """Wishes that come while others are granted are granted together, with one flush."""
        wish = Wish(block, start, end, becomes_zero)
        self._wishes.append(wish)
        try:
            while True:
                async with self.changing:
                    if await self._is_granted(wish):
                        return placed(self.table[block])[0]
                    try:
                        await self._grant(self._wishes)
                    except StorageError:
                        await self._grant([wish])  # for the others' failures are not its own
        finally:
            self._wishes.remove(wish)

    async def _is_granted(self, wish: Wish) -> bool:
        """Whether the range can be written in place. (A discard may have come in between.)"""
        while (pieces := self._pieces(wish.block, wish.start, wish.end)) is None:
            await self._load(wish.block)
        return all(piece.source is Source.FILE for piece in pieces)

    async def _grant(self, wishes: Sequence[Wish]) -> None:
        """Make room for all of them, or some. Raises StorageError."""
        plan = Plan()
        try:
            for wish in tuple(wishes):
                if wish.block not in plan.empty and not await self._is_granted(wish):
                    await self._plan(wish, plan)
            if plan.must_flush:
                await self.flush()
            await self._carry_out(plan)
        finally:
            self._give_up(plan)

    async def _plan(self, wish: Wish, plan: Plan) -> None:
        """Space for the block, and in it what the parent has around the wish."""
        part = plan.parts.get(wish.block)
        if part is None:
            place, state = placed(self.table[wish.block])
            if state == BlockState.PARTIALLY_PRESENT:
                part = OwnPart(wish.block, place, await self._own_bits(wish.block))
            elif state == BlockState.NOT_PRESENT and not await self._parent_is_empty(wish.block):
                part = await self._plan_first(wish.block)
            else:
                await self._plan_empty(wish.block, place, plan)
                return
            plan.parts[wish.block] = part
        first, last = self._copied_range(wish)
        if wish.becomes_zero:  # what the parent has there is not wanted
            size = self.metadata.logical_sector_bytes
            zero_first, zero_last = wish.start // size, wish.end // size
            await self._copy_missing(part, first, zero_first)
            await self._zero_missing(part, zero_first, zero_last)
            first = zero_last
        await self._copy_missing(part, first, last)

    async def _plan_empty(self, block: int, place: int, plan: Plan) -> None:
        """Space for a block that reads as zeroes; `place` is where it has some already, or 0."""
        if place:  # with what it held before
            await self.file.punch(place, self.block_bytes)
            plan.punched.add(block)
        plan.empty[block] = place or await self._space.take(self.block_bytes)

    async def _carry_out(self, plan: Plan) -> None:
        """All that the blocks are to hold is on the medium: let the file say so.

        Each commit is one entry of the log, so it is done or not.
        """
        while block_places := dict(islice(plan.empty.items(), _BLOCKS_AT_ONCE)):
            await self._commit(block_places)
            for block in block_places:
                del plan.empty[block]
        for block in list(plan.parts):
            await self._own(plan.parts[block])
            del plan.parts[block]

    def _give_up(self, plan: Plan) -> None:
        """Take back what was planned and not carried out."""
        for block, place in plan.empty.items():
            if block not in plan.punched:
                self._space.give_back(place, self.block_bytes, clean=True)
        for part in plan.parts.values():
            self._give_up_part(part)

    def _give_up_part(self, part: OwnPart) -> None:
        if part.is_new:
            self._space.give_back(part.place, self.block_bytes, clean=not part.copied)

    async def _parent_is_empty(self, block: int) -> bool:
        """Whether all of the block reads as zeroes without being in the file."""
        offset = block << self._shift
        length = min(self.block_bytes, self.size_bytes - offset)
        return self.parent is None or await self._parent_is_zero(offset, length)

    def _copied_range(self, wish: Wish) -> tuple[int, int]:
        """The range of a block, as bits of its sectors, that is copied for a write of a part."""
        size, unit = self.metadata.logical_sector_bytes, _COPY_ALIGNMENT_BYTES
        disk_end = self.size_bytes - (wish.block << self._shift)
        stop = min(-(-wish.end // unit) * unit, self.block_bytes, disk_end)
        return wish.start // unit * unit // size, stop // size

    async def _plan_first(self, block: int) -> OwnPart:
        """Space for a block of which nothing is the child's own, and for its bitmap."""
        part = OwnPart(block, await self._space.take(self.block_bytes), 0, is_new=True)
        chunk = block // self._bat.geometry.chunk_ratio
        try:
            if not self._bitmaps.places[chunk]:
                await self._add_bitmap(chunk)
        except BaseException:
            self._give_up_part(part)
            raise
        return part

    async def _add_bitmap(self, chunk: int) -> None:
        """A sector bitmap block of zeroes: nothing of the chunk is the child's own yet.

        It takes its space at once: metadata must never fail for want of it.
        """
        place = await self._space.take(BITMAP_BYTES)
        try:
            await self.file.zero(place, BITMAP_BYTES)
            await self._commit({}, {chunk: place})
        except BaseException:
            self._space.give_back(place, BITMAP_BYTES, clean=True)
            raise

    async def _own_bits(self, block: int) -> int:
        """The block's bits; they are in memory until the caller awaits something."""
        while not self._bitmaps.is_known(block, 0, self._block_sectors):
            await self._bitmaps.load(block, 0, self._block_sectors)
        return self._bitmaps.bits(block, 0, self._block_sectors)

    async def _copy_missing(self, part: OwnPart, first: int, last: int) -> None:
        """Copy what is not the child's own among these sectors from the parent."""
        size, sector = self.metadata.logical_sector_bytes, first
        for length, is_own in runs(part.own >> first, last - first):
            offset = (part.block << self._shift) + sector * size
            is_clean = part.is_new and await self._parent_is_zero(offset, length * size)
            if not is_own and not is_clean:
                part.copied = True
                start = part.place + sector * size
                await self._copy_from_parent(offset, start, length * size)
            sector += length
        part.own |= _mask(first, last)

    async def _zero_missing(self, part: OwnPart, first: int, last: int) -> None:
        """These sectors become the child's own as zeroes."""
        size, mask = self.metadata.logical_sector_bytes, _mask(first, last)
        if not part.is_new and part.own & mask != mask:
            part.copied = True
            await self.file.punch(part.place + first * size, (last - first) * size)
        part.own |= mask

    async def _own(self, part: OwnPart) -> None:
        """What is the child's own is on the medium: now it becomes visible."""
        size, count, block = self.metadata.logical_sector_bytes, self._block_sectors, part.block
        disk_sectors = min(count, (self.size_bytes - (block << self._shift)) // size)
        full = (1 << disk_sectors) - 1
        if part.own & full == full:
            await self._commit({block: part.place})
            return
        changed = await self._own_bits(block) ^ part.own
        sectors: dict[int, bytes] = {}
        if changed:
            low, high = (changed & -changed).bit_length() - 1, changed.bit_length()
            bits = part.own >> low & (1 << (high - low)) - 1
            sectors = self._bitmaps.changed(block, low, high, bits)
        await self._commit({block: ~(part.place | BlockState.PARTIALLY_PRESENT)}, {}, sectors)

    async def _copy_from_parent(self, offset: int, place: int, length: int) -> None:
        buffer = memoryview(bytearray(min(length, _COPY_BYTES)))
        for at in range(0, length, len(buffer)):
            part = buffer[: min(len(buffer), length - at)]
            await self._read_parent(offset + at, part)
            if not self.file.write_now(place + at, (part,)):
                await self.file.write(place + at, (part,))

    def _metadata_is_durable(self) -> bool:
        return self._log.is_durable

    # Zeroing

    async def _zero(self, offset_bytes: int, length_bytes: int, *, keep: bool) -> None:
        """As the base's; a fixed disk keeps its blocks (LeaveBlockAllocated, section 2.6.2.1)."""
        keep = keep or self.metadata.leave_block_allocated
        await super()._zero(offset_bytes, length_bytes, keep=keep)

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.anchor`."""
        await super().anchor(offset_bytes, length_bytes)
        await self._reserve_metadata(offset_bytes, offset_bytes + length_bytes)

    async def _reserve_metadata(self, start_bytes: int, end_bytes: int) -> None:
        """Log, BAT and bitmaps have their space, too: in other programs' files they may be holes.

        Else the change that made room might not find its place any more.
        """
        header, geometry = self._headers.current, self._bat.geometry
        await self.file.reserve(header.log_offset, header.log_length)
        bat_bytes = -(-geometry.entry_count * BAT_ENTRY_BYTES // MIB) * MIB
        await self.file.reserve(self._bat.region.start, bat_bytes)
        chunk_bytes = geometry.chunk_ratio * self.block_bytes
        for chunk in range(start_bytes // chunk_bytes, -(-end_bytes // chunk_bytes)):
            if place := self._bitmaps.places[chunk]:
                await self.file.reserve(place, BITMAP_BYTES)

    async def _discard(self, blocks: Sequence[int]) -> None:
        state = BlockState.UNMAPPED if self.parent is None else BlockState.ZERO
        freed: list[int] = []
        try:
            async with self.changing:
                left = iter(blocks)
                while part := tuple(islice(left, _BLOCKS_AT_ONCE)):
                    for block in part:
                        if self.table[block] == UNKNOWN:
                            await self._load(block)
                    taken = [place for block in part if (place := placed(self.table[block])[0])]
                    await self._commit(dict.fromkeys(part, ~int(state)))
                    freed += taken
        finally:  # of those that are out of the table, whatever became of the others
            await self._unused(blocks)
            await self._space.release(freed, self.block_bytes)

    # Flushing and closing

    async def flush(self) -> None:
        """See `BackingStore.flush`."""
        if self.capabilities.read_only:
            return
        mark = self._log.mark()
        await self._space.flush()
        self._log.flushed(mark)
        try:
            await self._log.apply()
        except StorageError:
            return  # the log has it; who needs the log's room will hear of it
        if self._log.is_applied:
            self._bitmaps.forget()


def _mask(first: int, last: int) -> int:
    """The bits [first, last) are set."""
    return (1 << (last - first)) - 1 << first


def _capabilities(opened: OpenedFile) -> Capabilities:
    metadata = opened.metadata
    granularity = 4096 if opened.punches else metadata.block_bytes
    return Capabilities(
        read_only=opened.file.read_only,
        deallocate_granularity_bytes=0 if metadata.leave_block_allocated else granularity,
        anchors=opened.file.anchors,
        physical_block_bytes=max(metadata.physical_sector_bytes, metadata.logical_sector_bytes),
        logical_block_bytes=metadata.logical_sector_bytes,
    )
