"""The block allocation table of a VHDX file ([MS-VHDX] section 2.5): where each entry is, and what
it may say.

In memory an entry of a payload block is a value of a `BlockTable`: the place of a block that is
fully present, else `~entry`. Must not know the log, nor when anything is written.
"""

import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass

from .base import StorageError
from .block_table import UNKNOWN, BlockTable
from .vhdx_format import (
    BAT_ENTRY_BYTES,
    BAT_RESERVED_MASK,
    BAT_STATE_MASK,
    BITMAP_BYTES,
    BITMAP_SECTORS,
    FILE_BYTES_MAX,
    HEADER_SECTION_BYTES,
    LOG_SECTOR_BYTES,
    BlockState,
    damaged,
)
from .vhdx_metadata import Span
from .vhdx_space import SpaceMap

ENTRIES_PER_SECTOR = LOG_SECTOR_BYTES // BAT_ENTRY_BYTES
NOT_PRESENT = ~int(BlockState.NOT_PRESENT)  # in a table
_WITH_SPACE = frozenset({BlockState.FULLY_PRESENT, BlockState.PARTIALLY_PRESENT})
_KEEPS_SPACE = frozenset({BlockState.UNDEFINED, BlockState.UNMAPPED})  # if it names a place


@dataclass(frozen=True, slots=True)
class Geometry:
    """Numbers that follow from a disk's size, block size and sector size (sections 2.4, 2.5)."""

    disk_bytes: int
    block_bytes: int
    sector_bytes: int
    has_parent: bool

    @property
    def chunk_ratio(self) -> int:
        """Payload blocks for each sector bitmap block."""
        return BITMAP_SECTORS * self.sector_bytes // self.block_bytes

    @property
    def block_count(self) -> int:
        """Payload blocks."""
        return -(-self.disk_bytes // self.block_bytes)

    @property
    def chunk_count(self) -> int:
        """Sector bitmap blocks."""
        return -(-self.block_count // self.chunk_ratio)

    @property
    def entry_count(self) -> int:
        """Entries of the table; the last one counts a bitmap only where there can be bitmaps."""
        if self.has_parent:
            return self.bitmap_index(self.chunk_count - 1) + 1
        return self.index(self.block_count - 1) + 1

    def index(self, block: int) -> int:
        """The entry of a payload block."""
        return block + block // self.chunk_ratio

    def bitmap_index(self, chunk: int) -> int:
        """The entry of a chunk's sector bitmap block."""
        return chunk * (self.chunk_ratio + 1) + self.chunk_ratio

    @property
    def block_bitmap_bytes(self) -> int:
        """What of a sector bitmap block belongs to one payload block."""
        return self.block_bytes // self.sector_bytes // 8


class Bat:
    """Reads entries from the table's bytes, checked, and says which space they take."""

    def __init__(self, name: str, region: Span, geometry: Geometry, file_bytes: int) -> None:
        self.region = region
        self.geometry = geometry
        self._name = name
        self._file_bytes = file_bytes
        self._ratio = geometry.chunk_ratio
        if geometry.entry_count * BAT_ENTRY_BYTES > region.length:
            message = (
                f"Length {region.length} has no room for the {geometry.entry_count} entries"
                f" of a disk of {geometry.disk_bytes} bytes"
            )
            raise damaged(name, "BAT region", region.start, message)

    def offset(self, index: int) -> int:
        """Where in the file an entry is."""
        return self.region.start + index * BAT_ENTRY_BYTES

    def damaged(self, index: int, what: str) -> StorageError:
        """The error for a bad entry."""
        is_bitmap = index % (self._ratio + 1) == self._ratio
        group = index // (self._ratio + 1)
        block = f"sector bitmap {group}" if is_bitmap else f"payload block {index - group}"
        return damaged(self._name, f"BAT entry {index} ({block})", self.offset(index), what)

    def payload(self, index: int, entry: int) -> int:
        """The table's value for an entry of a payload block. Raises StorageError."""
        state = entry & BAT_STATE_MASK
        place = entry & ~(BAT_STATE_MASK | BAT_RESERVED_MASK)
        if state == BlockState.FULLY_PRESENT:
            self._require_place(index, entry, place, self.geometry.block_bytes)
            return place
        if state == BlockState.PARTIALLY_PRESENT:
            if not self.geometry.has_parent:
                raise self.damaged(index, "PARTIALLY_PRESENT in a disk without parent")
            self._require_place(index, entry, place, self.geometry.block_bytes)
            return ~entry
        if state == BlockState.UNMAPPED_EARLY:
            state = BlockState.UNMAPPED
        elif state not in BlockState._value2member_map_:
            raise self.damaged(index, f"there is no state {state}")
        if state in _KEEPS_SPACE and self._is_place(entry, place, self.geometry.block_bytes):
            return ~(place | state)
        return ~state

    def bitmap(self, index: int, entry: int) -> int:
        """The place of a sector bitmap block, 0 where there is none. Raises StorageError."""
        state = entry & BAT_STATE_MASK
        place = entry & ~(BAT_STATE_MASK | BAT_RESERVED_MASK)
        if state == BlockState.NOT_PRESENT:
            return 0
        if state != BlockState.FULLY_PRESENT:
            raise self.damaged(index, f"there is no state {state} of sector bitmaps")
        if not self.geometry.has_parent:
            raise self.damaged(index, "a sector bitmap in a disk without parent")
        self._require_place(index, entry, place, BITMAP_BYTES)
        return place

    def _is_place(self, entry: int, place: int, length: int) -> bool:
        return (
            not entry & BAT_RESERVED_MASK
            and place >= HEADER_SECTION_BYTES
            and place + length <= min(self._file_bytes, FILE_BYTES_MAX)
        )

    def _require_place(self, index: int, entry: int, place: int, length: int) -> None:
        if entry & BAT_RESERVED_MASK:
            raise self.damaged(index, f"reserved bits are set in {entry:#018x}")
        if not self._is_place(entry, place, length):
            message = f"bytes {place} to {place + length} are not in the file behind its headers"
            raise self.damaged(index, message)

    def scan(
        self, entries: "array[int]", first: int, space: SpaceMap
    ) -> Iterator[tuple[int, bool, int]]:
        """(block or chunk, whether it is a chunk, value) of entries that are not 0, in order.

        `first` is the index of the first of the entries. What they name is claimed.
        Raises StorageError, also where things overlap.
        """
        group = self._ratio + 1
        for index, entry in enumerate(entries, first):
            if not entry or index >= self.geometry.entry_count:
                continue
            chunk, within = divmod(index, group)
            if within == self._ratio:
                value = self.bitmap(index, entry)
                if value:
                    self._claim(index, value, BITMAP_BYTES, space)
                yield chunk, True, value
                continue
            if index - chunk >= self.geometry.block_count:
                continue  # behind the disk, before its last bitmap
            value = self.payload(index, entry)
            place, state = placed(value)
            if place and state in _WITH_SPACE:
                self._claim(index, place, self.geometry.block_bytes, space)
            elif place and not space.claim(place, self.geometry.block_bytes):
                value = ~state  # it was taken by another; what remains is the state
            yield index - chunk, False, value

    def _claim(self, index: int, place: int, length: int, space: SpaceMap) -> None:
        if not space.claim(place, length):
            message = f"bytes {place} to {place + length} overlap something else"
            raise self.damaged(index, message)

    def sector(self, number: int, table: BlockTable, bitmaps: "array[int]") -> bytearray:
        """One log sector of the table as it is in the file, from what is in memory."""
        entries = array("Q", bytes(LOG_SECTOR_BYTES))
        first = number * ENTRIES_PER_SECTOR
        last = min(first + ENTRIES_PER_SECTOR, self.geometry.entry_count)
        for index in range(first, last):
            chunk, within = divmod(index, self._ratio + 1)
            if within == self._ratio:
                place = bitmaps[chunk]
                entries[index - first] = place | BlockState.FULLY_PRESENT if place else 0
            elif index - chunk < len(table):  # else behind the disk, before its last bitmap
                value = table[index - chunk]
                assert value != UNKNOWN
                entries[index - first] = raw_entry(value)
        if sys.byteorder == "big":
            entries.byteswap()
        return bytearray(entries.tobytes())


def raw_entry(value: int) -> int:
    """The BAT entry that a table's value stands for."""
    return value | BlockState.FULLY_PRESENT if value > 0 else ~value


def placed(value: int) -> tuple[int, int]:
    """(place in the file or 0, state) of a table's value."""
    entry = raw_entry(value)
    return entry & ~(BAT_STATE_MASK | BAT_RESERVED_MASK), entry & BAT_STATE_MASK


def parse_entries(data: bytes | bytearray) -> "array[int]":
    """The entries in a piece of the table."""
    entries = array("Q", bytes(data))
    if sys.byteorder == "big":
        entries.byteswap()
    return entries
