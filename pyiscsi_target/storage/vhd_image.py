"""Where the structures of a VHD file lie, read and checked: nothing behind here doubts them.

VHD 1.0 as in `vhd_format`. Every error names the file, the structure and its offset in the file.
This module only reads; it must not know how blocks are served or changed.
"""

from __future__ import annotations  # `array` takes no parameters before Python 3.12

import heapq
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TypeVar

from .base import StorageError, StorageFault
from .vhd_format import (
    ALIGNMENT_BYTES,
    CREATOR_APPLICATION,
    FOOTER_BYTES,
    HEADER_BYTES,
    OLD_FOOTER_BYTES,
    SECTOR,
    UNUSED,
    DamagedError,
    DiskType,
    Footer,
    FormatError,
    Header,
    bitmap_bytes,
    parse_footer,
    parse_header,
)
from .vhd_locators import CODES, MAX_LENGTH_BYTES

Read = Callable[[int, int], bytes]
"""(offset_bytes, length_bytes) -> exactly those bytes of the file."""

MAX_BLOCKS = 4 << 20  # 2040 GiB in blocks of 512 KiB; the table takes 16 MiB
FREE_PLACES_MAX = 64 << 10  # remembered of a file full of gaps
# These keep nothing of their own between the structures and the first block, as XenServer does.
PLAIN_CREATORS = frozenset({CREATOR_APPLICATION, b"qemu", b"qem2", b"vpc "})
SORT_BLOCKS = 512 << 10  # sorted at once, so that the numbers take few MiB

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Extent:
    what: str
    start_bytes: int
    end_bytes: int


@dataclass(slots=True)
class Layout:
    """A VHD's structures.

    `footer_offset` is that of an intact footer at the end, None where only the copy at the start
    of a dynamic disk is left. For fixed disks the rest is empty. `table` has all entries of the
    BAT, perhaps more than the disk has blocks; `metadata` says where the structures but the footer
    begin and end, in whole sectors, and `data_end_bytes` where the last of them, or block, ends.
    """

    footer: Footer
    footer_offset: int | None
    copy_intact: bool = True
    header: Header | None = None
    table: array[int] = field(default_factory=lambda: array("I"))
    locator_data: dict[bytes, bytes] = field(default_factory=dict)
    data_end_bytes: int = 0
    metadata: tuple[tuple[int, int], ...] = ()

    @property
    def block_bytes(self) -> int:
        """The block size of a disk that has blocks."""
        assert self.header is not None
        return self.header.block_size


def read_layout(read: Read, file_bytes: int, name: str) -> Layout:
    """Read and check all of the file's structures. Raises StorageError (INVALID)."""
    return _Reader(read, file_bytes, name).layout()


class _Reader:
    def __init__(self, read: Read, file_bytes: int, name: str) -> None:
        self._read = read
        self._file_bytes = file_bytes
        self._name = name

    def layout(self) -> Layout:
        if self._file_bytes < OLD_FOOTER_BYTES:
            raise self._invalid("footer", 0, f"the file has {self._file_bytes} bytes, too few")
        layout = self._footers()
        if layout.footer.disk_type is DiskType.FIXED:
            self._check_fixed(layout)
            return layout
        header = self._header(layout.footer)
        layout.header = header
        layout.table = self._table(layout.footer, header)
        extents = self._metadata(layout, header)
        if layout.footer.disk_type is DiskType.DIFFERENCING:
            layout.locator_data = self._locators(header, extents)
        self._check_extents(extents)
        blocks_end = self._check_blocks(layout.table, header, extents)
        layout.metadata = tuple(
            (extent.start_bytes, -(-extent.end_bytes // SECTOR) * SECTOR)
            for extent in extents
            if extent.what != "footer"
        )
        layout.data_end_bytes = max(blocks_end, *(end for _, end in layout.metadata))
        return layout

    # Footers

    def _footers(self) -> Layout:
        """The footer at the end, or in its place the copy that only dynamic disks have.

        Only damage makes the copy speak: a footer whose checksum is right means what it says.
        """
        try:
            offset, footer = self._tail()
        except DamagedError as damage:
            return Layout(self._copy_instead(damage), None)
        if footer.disk_type is DiskType.FIXED:
            return Layout(footer, offset)
        try:
            copy_intact = parse_footer(self._read(0, FOOTER_BYTES)) == footer
        except FormatError:
            copy_intact = False
        return Layout(footer, offset, copy_intact)

    def _tail(self) -> tuple[int, Footer]:
        damage: DamagedError | None = None
        for length in (FOOTER_BYTES, OLD_FOOTER_BYTES):
            offset = self._file_bytes - length
            if offset < 0:
                continue
            try:
                return offset, self._parsed("footer", offset, parse_footer, length)
            except DamagedError as error:
                damage = damage or error
        raise damage or DamagedError(0, "there is none")

    def _copy_instead(self, damage: DamagedError) -> Footer:
        footer: Footer | None = None
        with suppress(DamagedError):
            if self._file_bytes >= FOOTER_BYTES:
                footer = self._parsed("footer copy", 0, parse_footer, FOOTER_BYTES)
        if footer is None or footer.disk_type is DiskType.FIXED:
            offset = max(0, self._file_bytes - FOOTER_BYTES)
            raise self._invalid("footer", offset, str(damage), damage.field_offset)
        return footer

    def _check_fixed(self, layout: Layout) -> None:
        assert layout.footer_offset is not None
        size_bytes = layout.footer.size_bytes
        if size_bytes > layout.footer_offset:
            message = f"current size {size_bytes} does not fit before it"
            raise self._invalid("footer", layout.footer_offset, message, 48)

    # Header, block allocation table and parent locators

    def _header(self, footer: Footer) -> Header:
        offset = footer.data_offset
        if offset % SECTOR or not FOOTER_BYTES <= offset <= self._file_bytes - HEADER_BYTES:
            raise self._invalid("footer copy", 0, f"data offset {offset} is not in the file", 16)
        try:
            return self._parsed("dynamic disk header", offset, parse_header, HEADER_BYTES)
        except DamagedError as error:
            message = str(error)
            raise self._invalid(
                "dynamic disk header", offset, message, error.field_offset
            ) from None

    def _table(self, footer: Footer, header: Header) -> array[int]:
        where = footer.data_offset
        entries = header.max_table_entries
        blocks = -(-footer.size_bytes // header.block_size)
        if not blocks <= entries <= MAX_BLOCKS:
            message = f"{entries} table entries, where {blocks} to {MAX_BLOCKS} are wanted"
            raise self._header_error(where, 28, message)
        end = header.table_offset + header.max_table_entries * 4
        if header.table_offset % SECTOR or header.table_offset < FOOTER_BYTES:
            raise self._header_error(where, 16, f"table offset {header.table_offset}")
        if end > self._file_bytes:
            raise self._header_error(where, 16, f"the table would end at {end}, behind the file")
        table = array("I", self._read(header.table_offset, entries * 4))
        if sys.byteorder == "little":
            table.byteswap()
        return table

    def _header_error(self, offset: int, field_offset: int, message: str) -> StorageError:
        return self._invalid("dynamic disk header", offset, message, field_offset)

    def _metadata(self, layout: Layout, header: Header) -> list[_Extent]:
        table_end = header.table_offset + header.max_table_entries * 4
        start = layout.footer.data_offset
        extents = [
            _Extent("footer copy", 0, FOOTER_BYTES),
            _Extent("dynamic disk header", start, start + HEADER_BYTES),
            _Extent("block allocation table", header.table_offset, table_end),
        ]
        if layout.footer_offset is not None:
            extents.append(_Extent("footer", layout.footer_offset, self._file_bytes))
        return extents

    def _locators(self, header: Header, extents: list[_Extent]) -> dict[bytes, bytes]:
        data: dict[bytes, bytes] = {}
        for locator in header.locators:
            offset, length = locator.data_offset, locator.data_length
            if not length:
                continue
            what = f"parent locator {locator.platform_code.decode('ascii', 'replace')!r}"
            is_used = locator.platform_code in CODES
            if length > MAX_LENGTH_BYTES or offset + length > self._file_bytes:
                if is_used:
                    raise self._invalid(what, offset, f"{length} bytes are not in the file")
                continue
            extents.append(_Extent(what, offset, offset + length))
            if is_used:
                data.setdefault(locator.platform_code, self._read(offset, length))
        return data

    # Overlaps

    def _check_extents(self, extents: list[_Extent]) -> None:
        ordered = sorted(extents, key=lambda extent: extent.start_bytes)
        for before, after in pairwise(ordered):
            if after.start_bytes < before.end_bytes:
                raise self._invalid(after.what, after.start_bytes, f"overlaps the {before.what}")

    def _check_blocks(self, table: array[int], header: Header, extents: list[_Extent]) -> int:
        """Refuse blocks that overlap anything; say where the last one ends (0 without any)."""
        sectors = (header.block_size + bitmap_bytes(header.block_size)) // SECTOR
        end = -sectors
        for start in sorted_entries(table):
            if start < end:
                raise self._block_error(header, table, start, "overlaps another")
            end = start + sectors
            if end * SECTOR > self._file_bytes:
                raise self._block_error(header, table, start, "is not within the file")
        for extent in extents:
            self._check_beside(extent, table, sectors, header, end)
        return max(0, end * SECTOR)

    def _check_beside(
        self, extent: _Extent, table: array[int], sectors: int, header: Header, end: int
    ) -> None:
        if extent.start_bytes >= end * SECTOR or extent.end_bytes <= min(table) * SECTOR:
            return
        first = extent.start_bytes // SECTOR - sectors  # the last start that ends before it
        last = -(-extent.end_bytes // SECTOR)
        for start in table:
            if first < start < last and start != UNUSED:
                raise self._block_error(header, table, start, f"overlaps the {extent.what}")

    def _block_error(
        self, header: Header, table: array[int], entry: int, message: str
    ) -> StorageError:
        block = table.index(entry)
        return self._invalid(
            "block allocation table",
            header.table_offset,
            f"block {block} at byte {entry * SECTOR} {message}",
            block * 4,
        )

    # Errors

    def _parsed(self, what: str, offset: int, parse: Callable[[bytes], T], length: int) -> T:
        try:
            return parse(self._read(offset, length))
        except DamagedError:
            raise
        except FormatError as error:
            raise self._invalid(what, offset, str(error), error.field_offset) from None

    def _invalid(self, what: str, offset: int, message: str, field_offset: int = 0) -> StorageError:
        where = offset + field_offset
        return StorageError(
            StorageFault.INVALID, f"{self._name}: {what} at byte {where}: {message}", where
        )


def free_places(layout: Layout, end_bytes: int) -> list[int]:
    """Where the data of further blocks could go among those there are, before `end_bytes`."""
    assert layout.header is not None
    bitmap, block = bitmap_bytes(layout.header.block_size), layout.header.block_size
    is_plain = layout.footer.creator_application in PLAIN_CREATORS
    begin = FOOTER_BYTES if is_plain else min(min(layout.table) * SECTOR, end_bytes)
    blocks = (
        (entry * SECTOR, entry * SECTOR + bitmap + block) for entry in sorted_entries(layout.table)
    )
    structures = sorted(extent for extent in layout.metadata if extent[1] > begin)
    places: list[int] = []
    position = begin
    for start, end in heapq.merge(blocks, structures, [(end_bytes, end_bytes)]):
        while len(places) < FREE_PLACES_MAX:
            place = aligned_place(position, bitmap)
            if place + block > start:
                place = position + bitmap  # a gap that another tool's block has left
            if place + block > start:
                break
            places.append(place)
            position = place + block
        position = max(position, -(-end // SECTOR) * SECTOR)
    return places


def aligned_place(position: int, bitmap: int) -> int:
    """The first good place for data whose bitmap may begin at `position`."""
    return -(-(position + bitmap) // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


def sorted_entries(table: array[int]) -> Iterator[int]:
    """The used entries in order, in bounded memory."""
    runs: list[Iterable[int]] = []
    for first in range(0, len(table), SORT_BLOCKS):
        used = [entry for entry in table[first : first + SORT_BLOCKS] if entry != UNUSED]
        runs.append(array("I", sorted(used)))
    return heapq.merge(*runs) if len(runs) > 1 else iter(runs[0] if runs else ())
