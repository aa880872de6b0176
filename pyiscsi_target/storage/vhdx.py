"""A disk in a VHDX file ([MS-VHDX] v20240423): opening it, changing its size, closing it.

Requests for its content are those of `vhdx_blocks`.
"""

from array import array
from bisect import bisect_left
from collections.abc import Callable, Sequence
from uuid import UUID

from .base import BackingStore, Buffer, StorageError, StorageFault
from .block_table import UNKNOWN, BlockTable
from .chain import ParentPaths
from .finding import Finding, Remedy
from .image_file import ImageFile
from .vhdx_bat import NOT_PRESENT, Bat, Geometry, parse_entries, placed
from .vhdx_blocks import TABLE_ENTRIES_MAX, OpenedFile
from .vhdx_compact import VhdxCompact
from .vhdx_format import BAT_ENTRY_BYTES, HEADER_SECTION_BYTES, MIB, BlockState, damaged
from .vhdx_header import damaged_headers, read_headers
from .vhdx_metadata import Metadata, damaged_region_tables, read_metadata, read_regions
from .vhdx_replay import OverlaidFile, replay
from .vhdx_space import SpaceMap

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
    own_guid = headers.current.data_write_guid
    parent = _open_parent(file, metadata, own_guid, find_parent) if metadata.has_parent else None
    opened = OpenedFile(
        file, headers, regions, metadata, bat, table, places, space, punches=punches
    )
    return VhdxDisk(opened, parent)


def _read_bat(file: ImageFile, bat: Bat, space: SpaceMap) -> tuple[BlockTable, "array[int]"]:
    """The blocks and sector bitmaps of the file, checked and claimed."""
    geometry = bat.geometry
    replayed = sorted(file.overlay) if isinstance(file, OverlaidFile) else []
    keeps = geometry.entry_count <= TABLE_ENTRIES_MAX
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
            if replayed:
                _require_no_payload(file, number, placed(value)[0], geometry, replayed)
            if placed(value)[1] == BlockState.PARTIALLY_PRESENT:
                partial.add(number // geometry.chunk_ratio)
    for chunk in partial:
        if not places[chunk]:
            message = "not present, and blocks of its chunk are PARTIALLY_PRESENT"
            raise bat.damaged(geometry.bitmap_index(chunk), message)
    return table, places


def _require_no_payload(
    file: ImageFile, block: int, place: int, geometry: Geometry, replayed: Sequence[int]
) -> None:
    """What is replayed in memory must not be payload, which is read without looking there."""
    at = bisect_left(replayed, place)
    if place and at < len(replayed) and replayed[at] < place + geometry.block_bytes:
        message = f"an entry writes into payload block {block}"
        raise damaged(file.name, "log", replayed[at], message)


def _open_parent(
    file: ImageFile, metadata: Metadata, own_guid: UUID, find_parent: FindParent | None
) -> BackingStore:
    if find_parent is None:
        message = f"{file.name}: a differencing disk, opened without its parent"
        raise StorageError(StorageFault.MISSING, message)
    parent = find_parent(metadata.parent_paths)
    problem = _parent_problem(parent, metadata, own_guid)
    if problem:
        parent.close_blocking()
        message = f"{file.name}: its parent {metadata.parent_paths.name!r} {problem}"
        raise StorageError(StorageFault.INVALID, message)
    return parent


def _parent_problem(parent: BackingStore, metadata: Metadata, own_guid: UUID) -> str:
    """Why it is not the parent. With the child's own DataWriteGuid it is: see `vhdx_identity`."""
    if not isinstance(parent, VhdxDisk):
        return "is no VHDX file"
    if parent.data_write_guid not in (*metadata.parent_linkages, own_guid):
        linkages = " or ".join(map(str, metadata.parent_linkages))
        return (
            f"was changed since, or is another: its DataWriteGuid is {parent.data_write_guid},"
            f" not {linkages}"
        )
    if parent.metadata.logical_sector_bytes != metadata.logical_sector_bytes:
        return f"has sectors of {parent.metadata.logical_sector_bytes} bytes"
    return ""


class VhdxDisk(VhdxCompact):
    """An open VHDX file. See `open_vhdx`."""

    def __init__(self, opened: OpenedFile, parent: BackingStore | None) -> None:
        self._moves_blocks = False
        super().__init__(opened, parent)
        self._closed = False

    # A fixed disk whose blocks lie one behind the other needs no table

    def _bind(self) -> None:
        super()._bind()
        base, read_file, write_file = self._linear_base(), self.file.read_now, self.file.write_now
        if base is None:
            return

        def read_now(offset_bytes: int, into: memoryview) -> bool:
            return read_file(base + offset_bytes, into)

        def write_now(offset_bytes: int, data: Sequence[Buffer]) -> bool:
            return write_file(base + offset_bytes, data)

        self.read_now = read_now  # type: ignore[method-assign]
        if self._writes_now:
            self.write_now = write_now  # type: ignore[method-assign]

    def _linear_base(self) -> int | None:
        """Where such a disk begins in the file."""
        if not self.metadata.leave_block_allocated or self._moves_blocks:
            return None
        base, step, first = self.table[0], self.block_bytes, 0
        for page in self.table.pages:
            count = min(len(page), len(self.table) - first)
            start = base + first * step
            if base <= 0 or page[:count] != array("q", range(start, start + count * step, step)):
                return None
            first += count
        return base

    async def _resize(self, size_bytes: int) -> None:
        self._moves_blocks = True  # a fixed disk's go, or come, while it is used
        self._bind()
        try:
            await super()._resize(size_bytes)
        finally:
            self._moves_blocks = False
            self._bind()

    # Merging, checking and repairing

    async def begin_merge(self) -> None:
        """See `VhdxIdentity.begin_merge`."""
        await super().begin_merge()
        self._bind()

    async def findings(self) -> list[Finding]:
        """What is odd about an open disk, but no reason to refuse it. Raises StorageError."""
        found = [
            Finding(f"the header at byte {offset} is damaged; the other is not", Remedy.REPAIR)
            for offset in damaged_headers(self.file)
        ]
        found += [
            Finding(
                f"the region table at byte {offset} is damaged; the other is not", Remedy.REPAIR
            )
            for offset in damaged_region_tables(self.file)
        ]
        if self._space.unused_bytes >= MIB:
            text = f"{self._space.unused_bytes // MIB} MiB of the file belong to nothing"
            found.append(Finding(text, Remedy.COMPACT))
        if isinstance(self.file, OverlaidFile):
            text = "the log has changes that are not in their places yet"
            found.append(Finding(text, Remedy.REPAIR))
        return found

    async def repair(self) -> None:
        """Write both headers anew, and a damaged copy of the region table from the other.

        The log was replayed when the file was opened.
        """
        async with self.changing:
            await self._headers.update()
            for offset, table in damaged_region_tables(self.file).items():
                await self.file.write(offset, (table,))
            await self.file.flush()

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
                    await self._space.cut()
        finally:
            await self.file.close()
            if self.parent is not None:
                await self.parent.close()
