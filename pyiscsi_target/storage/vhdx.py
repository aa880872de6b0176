"""A disk in a VHDX file ([MS-VHDX] v20240423), fixed, dynamic or differencing.

Joins what the other `vhdx_*` modules know, and decides in which order things reach the medium:

- Metadata changes through the log alone (`vhdx_log`): what was acknowledged survives this process.
- A new block is space that reads as zeroes whatever happens: behind the end of the file, or freed,
  punched and flushed before. So it does not matter whether its data or its entry is lost.
- A freed block's space is used again only when that it is free, and empty, is on the medium.
- A sector of a child is its own only when it is on the medium there: what the parent has is
  copied, and flushed, before the bit is set. Then writing it is writing in place.

What must not be known here: who reads and writes.
"""

from array import array
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from uuid import UUID, uuid4

from .base import BackingStore, Capabilities, StorageError, StorageFault
from .block_image import UNKNOWN, BlockImage, BlockTable, Piece, Source
from .chain import ParentPaths
from .image_file import ImageFile
from .vhdx_bat import (
    ENTRIES_PER_SECTOR,
    NOT_PRESENT,
    Bat,
    Geometry,
    SpaceMap,
    parse_entries,
    placed,
    raw_entry,
)
from .vhdx_bitmap import SectorBitmaps, runs
from .vhdx_format import (
    BAT_ENTRY_BYTES,
    BITMAP_BYTES,
    HEADER_SECTION_BYTES,
    LOG_SECTOR_BYTES,
    MIB,
    BlockState,
    damaged,
)
from .vhdx_header import Headers, read_headers
from .vhdx_log import LogWriter
from .vhdx_metadata import Metadata, read_metadata, read_regions
from .vhdx_replay import OverlaidFile, replay

_TABLE_ENTRIES_MAX = 1 << 22  # kept in memory from the start; larger tables are loaded in pages
_COPY_BYTES = MIB  # what is copied from a parent at once
_COPY_ALIGNMENT_BYTES = 64 * 1024  # and at least, so that not every small write costs a flush
_BAT_SECTORS_MAX = 256  # kept as they are in the log
_GAPS_MAX = 1024  # cleaned at first need

FindParent = Callable[[ParentPaths], BackingStore]


def open_vhdx(
    file: ImageFile, *, find_parent: FindParent | None = None, punches: bool = True
) -> "VhdxDisk":
    """The disk in an open, locked file, which it owns from now on. Blocking, for startup.

    A file that was not closed cleanly is repaired by its log; a read-only one in memory.
    `find_parent` opens the parent of a differencing disk, read-only; `punches` says whether the
    file takes holes. Raises StorageError (INVALID naming structure and offset, or what reading and
    the parent raise); the file is still the caller's then.
    """
    headers = read_headers(file)
    file = replay(file, headers)
    regions = read_regions(file, headers.current)
    metadata = read_metadata(file, regions.metadata)
    geometry = Geometry(
        metadata.disk_bytes,
        metadata.block_bytes,
        metadata.logical_sector_bytes,
        metadata.has_parent,
    )
    bat = Bat(file.name, regions.bat, geometry, file.size_bytes)
    space = SpaceMap()
    space.claim(0, HEADER_SECTION_BYTES)
    for span in regions.spans:
        space.claim(span.start, span.length)
    table, places = _read_bat(file, bat, space)
    if isinstance(file, OverlaidFile):
        _require_no_payload(file, bat, table)
    parent = _open_parent(file, metadata, find_parent) if metadata.has_parent else None
    return VhdxDisk(file, headers, metadata, bat, table, places, space, parent, punches=punches)


def _read_bat(file: ImageFile, bat: Bat, space: SpaceMap) -> tuple[BlockTable, "array[int]"]:
    """The blocks and sector bitmaps of the file, checked and claimed."""
    geometry = bat.geometry
    keeps = geometry.entry_count <= _TABLE_ENTRIES_MAX
    table = BlockTable(geometry.block_count, NOT_PRESENT if keeps else UNKNOWN)
    places = array("Q", bytes(geometry.chunk_count * BAT_ENTRY_BYTES))
    partial: set[int] = set()
    total = geometry.entry_count * BAT_ENTRY_BYTES
    empty = bytes(64 * 1024)
    for at in range(0, total, len(empty)):
        data = file.read_blocking(bat.region.start + at, min(len(empty), total - at))
        if data == empty:
            continue
        first = at // BAT_ENTRY_BYTES
        for number, is_bitmap, value in bat.scan(parse_entries(data), first, space):
            if is_bitmap:
                places[number] = value
                continue
            if keeps:
                table[number] = value
            if placed(value)[1] == BlockState.PARTIALLY_PRESENT:
                partial.add(number // geometry.chunk_ratio)
    for chunk in partial:
        if not places[chunk]:
            message = "not present, and blocks of its chunk are PARTIALLY_PRESENT"
            raise bat.damaged(geometry.bitmap_index(chunk), message)
    return table, places


def _require_no_payload(file: OverlaidFile, bat: Bat, table: BlockTable) -> None:
    """What is replayed in memory must not be payload, which is read without looking there."""
    size = bat.geometry.block_bytes
    for block in range(len(table)):
        place, _ = placed(table[block]) if table[block] != UNKNOWN else (0, 0)
        if place and any(place <= offset < place + size for offset in file.overlay):
            message = f"an entry writes into payload block {block}"
            raise damaged(file.name, "log", min(file.overlay), message)


def _open_parent(
    file: ImageFile, metadata: Metadata, find_parent: FindParent | None
) -> BackingStore:
    if find_parent is None:
        message = f"{file.name}: a differencing disk, opened without its parent"
        raise StorageError(StorageFault.MISSING, message)
    parent = find_parent(metadata.parent_paths)
    problem = _parent_problem(parent, metadata)
    if problem:
        parent.close_blocking()
        message = f"{file.name}: its parent {metadata.parent_paths.name!r} {problem}"
        raise StorageError(StorageFault.INVALID, message)
    return parent


def _parent_problem(parent: BackingStore, metadata: Metadata) -> str:
    if not isinstance(parent, VhdxDisk):
        return "is no VHDX file"
    if parent.data_write_guid not in metadata.parent_linkages:
        linkages = " or ".join(map(str, metadata.parent_linkages))
        return (
            f"was changed since, or is another: its DataWriteGuid is {parent.data_write_guid},"
            f" not {linkages}"
        )
    if parent.metadata.logical_sector_bytes != metadata.logical_sector_bytes:
        return f"has sectors of {parent.metadata.logical_sector_bytes} bytes"
    return ""


class VhdxDisk(BlockImage):
    """An open VHDX file. See `open_vhdx`."""

    def __init__(
        self,
        file: ImageFile,
        headers: Headers,
        metadata: Metadata,
        bat: Bat,
        table: BlockTable,
        places: "array[int]",
        space: SpaceMap,
        parent: BackingStore | None,
        *,
        punches: bool,
    ) -> None:
        self.metadata = metadata
        capabilities = _capabilities(file, metadata, punches=punches)
        size, block = metadata.disk_bytes, metadata.block_bytes
        super().__init__(file, size, block, capabilities, table, parent)
        self._headers = headers
        self._bat = bat
        self._bitmaps = SectorBitmaps(file, bat.geometry, places)
        self._space = space
        self._log = LogWriter(file, headers)
        self._freed: list[tuple[int, int]] = []  # punched, and not flushed since
        self._bat_sectors: dict[int, bytes] = {}
        self._punches = punches
        self._looked_for_gaps = False
        self._closed = False
        self._base = self._linear_base()
        if self._base is not None:
            self.read_now = self._linear_read_now()  # type: ignore[method-assign, assignment]

    @property
    def data_write_guid(self) -> UUID:
        """Identifies the content: what children of this disk know it by (section 2.2.2)."""
        return self._headers.current.data_write_guid

    # A fixed disk whose blocks lie one behind the other

    def _linear_base(self) -> int | None:
        """Where such a disk begins in the file."""
        if not self.metadata.leave_block_allocated:
            return None
        base, step, first = self.table[0], self.block_bytes, 0
        for page in self.table.pages:
            count = min(len(page), len(self.table) - first)
            start = base + first * step
            if base <= 0 or page[:count] != array("q", range(start, start + count * step, step)):
                return None
            first += count
        return base

    def _linear_read_now(self) -> Callable[[int, memoryview], bool]:
        read_now, base = self.file.read_now, self._base
        assert base is not None

        def read(offset_bytes: int, into: memoryview) -> bool:
            return read_now(base + offset_bytes, into)

        return read

    def _linear_write_now(self) -> Callable[[int, Sequence[bytes | bytearray | memoryview]], bool]:
        write_now, base = self.file.write_now, self._base
        assert base is not None

        def write(offset_bytes: int, data: Sequence[bytes | bytearray | memoryview]) -> bool:
            return write_now(base + offset_bytes, data)

        return write

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
        return self._bat.geometry.entry_count > _TABLE_ENTRIES_MAX

    # Changing metadata, with `changing` held

    async def _begin_writing(self) -> None:
        async with self.changing:
            if self._writes_now:
                return
            if self._base is None:
                await self._log.begin(uuid4())
            else:  # there may never be anything to log
                await self._headers.update(data_write_guid=uuid4())
                self.write_now = self._linear_write_now()  # type: ignore[method-assign, assignment]
            self._writes_now = True

    async def _commit(
        self,
        values: Mapping[int, int],
        places: Mapping[int, int] | None = None,
        bitmaps: Mapping[int, bytes] | None = None,
    ) -> None:
        """Give blocks other values of the table, chunks a place of their bitmap, and set bits.

        Raises StorageError; nothing has changed then, unless there are thousands of blocks.
        """
        if not self._log.is_open:
            await self._log.begin()
        await self._load_all(values)
        index = self._bat.geometry.index
        entries = {index(block): raw_entry(value) for block, value in values.items()}
        for chunk, place in (places or {}).items():
            at = self._bat.geometry.bitmap_index(chunk)
            entries[at] = place | BlockState.FULLY_PRESENT
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

    async def _load_all(self, blocks: Mapping[int, int]) -> None:
        """Have in memory what shares log sectors of the BAT with these blocks."""
        if not self._is_paged:
            return
        for block in blocks:
            index = self._bat.geometry.index(block)
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

    async def _take_space(self, length_bytes: int) -> int:
        """Space that reads as zeroes, and will after any loss of power."""
        if not self._looked_for_gaps:
            self._looked_for_gaps = True
            await self._clean_gaps()
        place = self._space.take_clean(length_bytes)
        if place is None:
            end = max(self.file.size_bytes, self._space.end_bytes)
            place = -(-end // MIB) * MIB
            await self.file.set_size(place + length_bytes)
            self._space.claim(place, length_bytes)
        return place

    async def _clean_gaps(self) -> None:
        """Space that nothing names may hold anything; punch it, so that it can be used one day."""
        if not self._punches:
            return
        for start, length in list(islice(self._space.gaps(self.file.size_bytes), _GAPS_MAX)):
            try:
                await self.file.punch(start, length)
            except StorageError:
                return
            self._freed.append((start, length // MIB * MIB))

    # Making room for writes

    async def _prepare(self, block: int, start: int, end: int) -> int:
        async with self.changing:
            if self.table[block] == UNKNOWN:
                await self._load(block)
            value = self.table[block]
            if value > 0:  # by another write, meanwhile
                return value
            place, state = placed(value)
            if state == BlockState.PARTIALLY_PRESENT:
                return await self._own_more(block, place, start, end)
            if state == BlockState.NOT_PRESENT and not await self._parent_is_empty(block):
                return await self._own_first(block, start, end)
            if place:  # its own, with what it held before
                await self.file.punch(place, self.block_bytes)
                await self.file.flush()
                await self._commit({block: place})
                return place
            place = await self._take_space(self.block_bytes)
            try:
                await self._commit({block: place})
            except BaseException:
                self._space.free(place, self.block_bytes, clean=True)
                raise
            return place

    async def _parent_is_empty(self, block: int) -> bool:
        """Whether all of the block reads as zeroes without being in the file."""
        offset = block << self._shift
        length = min(self.block_bytes, self.size_bytes - offset)
        return self.parent is None or await self._parent_is_zero(offset, length)

    def _copied_range(self, block: int, start: int, end: int) -> tuple[int, int]:
        """The range of a block, as bits of its sectors, that is copied for a write of a part."""
        size, unit = self.metadata.logical_sector_bytes, _COPY_ALIGNMENT_BYTES
        disk_end = self.size_bytes - (block << self._shift)
        stop = min(-(-end // unit) * unit, self.block_bytes, disk_end)
        return start // unit * unit // size, stop // size

    async def _own_first(self, block: int, start: int, end: int) -> int:
        """A block of which nothing is the child's own becomes partly so."""
        chunk = block // self._bat.geometry.chunk_ratio
        place = await self._take_space(self.block_bytes)
        bitmap = self._bitmaps.places[chunk]
        places: dict[int, int] = {}
        try:
            if not bitmap:
                places[chunk] = await self._take_space(BITMAP_BYTES)
                self._bitmaps.places[chunk] = places[chunk]
            await self._bitmaps.load(block, 0, self._block_sectors)
            await self._copy_and_set(block, place, start, end, 0, places)
        except BaseException:
            self._space.free(place, self.block_bytes, clean=False)
            if places:
                self._bitmaps.places[chunk] = 0
                self._space.free(places[chunk], BITMAP_BYTES, clean=True)
            raise
        return place

    async def _own_more(self, block: int, place: int, start: int, end: int) -> int:
        """More of a block becomes the child's own."""
        await self._bitmaps.load(block, 0, self._block_sectors)
        old = self._bitmaps.bits(block, 0, self._block_sectors)
        size = self.metadata.logical_sector_bytes
        first, last = start // size, -(-end // size)
        if all(is_own for _, is_own in runs(old >> first, last - first)):
            return place
        await self._copy_and_set(block, place, start, end, old, {})
        return place

    async def _copy_and_set(
        self, block: int, place: int, start: int, end: int, old: int, places: Mapping[int, int]
    ) -> None:
        """Copy what is missing in the range from the parent, then set the bits beside `old`."""
        size, count = self.metadata.logical_sector_bytes, self._block_sectors
        first, last = self._copied_range(block, start, end)
        sector = first
        for length, is_own in runs(old >> first, last - first):
            if not is_own:
                await self._copy_from_parent(block, place, sector * size, (sector + length) * size)
            sector += length
        await self.flush()
        new = old | (1 << (last - first)) - 1 << first
        disk_sectors = min(count, (self.size_bytes - (block << self._shift)) // size)
        full = (1 << disk_sectors) - 1
        if new & full == full:
            await self._commit({block: place}, places)
            return
        value = ~(place | BlockState.PARTIALLY_PRESENT)
        stored = self._bitmaps.bits(block, 0, count)
        changed = (stored ^ new) & (1 << count) - 1
        sectors: dict[int, bytes] = {}
        if changed:
            low, high = (changed & -changed).bit_length() - 1, changed.bit_length()
            part = new >> low & (1 << (high - low)) - 1
            sectors = self._bitmaps.changed(block, low, high, part)
        await self._commit({block: value}, places, sectors)

    async def _copy_from_parent(self, block: int, place: int, start: int, end: int) -> None:
        buffer = memoryview(bytearray(min(end - start, _COPY_BYTES)))
        for at in range(start, end, len(buffer)):
            part = buffer[: min(len(buffer), end - at)]
            await self._read_parent((block << self._shift) + at, part)
            await self.file.write(place + at, (part,))

    def _metadata_is_durable(self) -> bool:
        return self._log.is_durable

    # Zeroing

    async def _zero(self, offset_bytes: int, length_bytes: int, *, keep: bool) -> None:
        """As the base's; a fixed disk keeps its blocks (LeaveBlockAllocated, section 2.6.2.1)."""
        keep = keep or self.metadata.leave_block_allocated
        await super()._zero(offset_bytes, length_bytes, keep=keep)

    async def _discard(self, blocks: Sequence[int]) -> None:
        state = BlockState.UNMAPPED if self.parent is None else BlockState.ZERO
        freed: list[int] = []
        async with self.changing:
            left = iter(blocks)
            while part := tuple(islice(left, SMALL_CHANGE_BLOCKS)):
                for block in part:
                    if self.table[block] == UNKNOWN:
                        await self._load(block)
                taken = [place for block in part if (place := placed(self.table[block])[0])]
                await self._commit(dict.fromkeys(part, ~int(state)))
                freed += taken
        await self._unused(blocks)
        for place in freed:
            await self.file.punch(place, self.block_bytes)
            self._freed.append((place, self.block_bytes))

    # Flushing and closing

    async def flush(self) -> None:
        """See `BackingStore.flush`."""
        if self.capabilities.read_only:
            return
        mark = self._log.mark()
        freed, self._freed = self._freed, []
        try:
            await self.file.flush()
        except BaseException:
            self._freed += freed
            raise
        self._log.flushed(mark)
        for start, length in freed:
            self._space.free(start, length, clean=True)
        try:
            await self._log.apply()
        except StorageError:
            return  # the log has it; who needs the log's room will hear of it
        if self._log.is_applied:
            self._bitmaps.forget()

    async def close(self) -> None:
        """See `BackingStore.close`."""
        if self._closed:
            return
        self._closed = True
        try:
            if self._writes_now:
                async with self.changing:
                    self._writes_now = False
                    await self.flush()
                    await self._log.end()
        finally:
            await self.file.close()
            if self.parent is not None:
                await self.parent.close()


SMALL_CHANGE_BLOCKS = 64  # in as many sectors of the BAT at most: one entry of the log


def _capabilities(file: ImageFile, metadata: Metadata, *, punches: bool) -> Capabilities:
    granularity = 4096 if punches else metadata.block_bytes
    return Capabilities(
        read_only=file.read_only,
        deallocate_granularity_bytes=0 if metadata.leave_block_allocated else granularity,
        physical_block_bytes=max(metadata.physical_sector_bytes, metadata.logical_sector_bytes),
        logical_block_bytes=metadata.logical_sector_bytes,
    )
