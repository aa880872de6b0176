"""The bytes of a new VHD: what a file of each kind begins as.

VHD 1.0 as in `vhd_format`. This module writes no file: it says how long the file is and what it
holds where; everything else in it is zeroes.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from uuid import UUID, uuid4

from . import vhd_locators
from .base import StorageError, StorageFault
from .chain import ParentPaths
from .vhd_format import (
    DEFAULT_BLOCK_BYTES,
    DYNAMIC_MAX_BYTES,
    FIXED_MAX_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    NO_OFFSET,
    SECTOR,
    DiskType,
    Footer,
    Header,
    Locator,
    build_footer,
    build_header,
    geometry_of,
    now_stamp,
)
from .vhd_image import MAX_BLOCKS

BLOCK_BYTES_MIN = 512 << 10  # what Hyper-V makes besides 2 MiB
BLOCK_BYTES_MAX = 256 << 20
_TABLE_OFFSET = FOOTER_BYTES + HEADER_BYTES


@dataclass(frozen=True, slots=True)
class NewVhd:
    """A file to be: its length, and its bytes at their offsets where they are not zeroes."""

    file_bytes: int
    pieces: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class ParentOfNew:
    """What a child records of its parent."""

    name: str
    unique_id: UUID
    time_stamp: int
    paths: ParentPaths


def new_fixed(size_bytes: int) -> NewVhd:
    """A fixed disk: its bytes, then the footer. Raises StorageError (INVALID)."""
    _require_size(size_bytes, FIXED_MAX_BYTES)
    footer = build_footer(_new_footer(DiskType.FIXED, size_bytes))
    return NewVhd(size_bytes + FOOTER_BYTES, ((size_bytes, footer),))


def new_dynamic(
    size_bytes: int,
    block_bytes: int = DEFAULT_BLOCK_BYTES,
    *,
    parent: ParentOfNew | None = None,
) -> NewVhd:
    """A dynamic disk without blocks, or with a `parent` a differencing one.

    Copy of the footer, header, table, parent locators, footer. Raises StorageError (INVALID).
    """
    _require_size(size_bytes, DYNAMIC_MAX_BYTES)
    entries = -(-size_bytes // block_bytes)
    _require_blocks(block_bytes, entries)
    table_bytes = _whole_sectors(entries * 4)
    data = vhd_locators.encode(parent.paths) if parent else {}
    located = tuple(_locate(data, _TABLE_OFFSET + table_bytes))
    header = Header(_TABLE_OFFSET, entries, block_bytes)
    if parent:
        header = Header(
            _TABLE_OFFSET,
            entries,
            block_bytes,
            parent.unique_id,
            parent.time_stamp,
            parent.name,
            located,
        )
    end = max((_TABLE_OFFSET + table_bytes, *(at.data_offset + at.data_space for at in located)))
    disk_type = DiskType.DIFFERENCING if parent else DiskType.DYNAMIC
    footer = build_footer(_new_footer(disk_type, size_bytes))
    pieces = (
        (0, footer),
        (FOOTER_BYTES, build_header(header)),
        (_TABLE_OFFSET, b"\xff" * table_bytes),
        *((at.data_offset, data[at.platform_code]) for at in located),
        (end, footer),
    )
    return NewVhd(end + FOOTER_BYTES, pieces)


def _new_footer(disk_type: DiskType, size_bytes: int) -> Footer:
    return Footer(
        disk_type,
        size_bytes,
        size_bytes,
        geometry_of(size_bytes),
        uuid4(),
        now_stamp(),
        NO_OFFSET if disk_type is DiskType.FIXED else FOOTER_BYTES,
    )


def _require_size(size_bytes: int, maximum: int) -> None:
    if not 0 < size_bytes <= maximum or size_bytes % SECTOR:
        raise StorageError(
            StorageFault.INVALID,
            f"a VHD of this kind has whole sectors of {SECTOR} bytes up to {maximum} bytes,"
            f" not {size_bytes}",
        )


def _require_blocks(block_bytes: int, entries: int) -> None:
    allowed = BLOCK_BYTES_MIN <= block_bytes <= BLOCK_BYTES_MAX
    if not allowed or block_bytes & (block_bytes - 1) or entries > MAX_BLOCKS:
        raise StorageError(
            StorageFault.INVALID,
            f"a VHD's block size is a power of two from {BLOCK_BYTES_MIN} to {BLOCK_BYTES_MAX}"
            f" bytes, not {block_bytes}",
        )


def _whole_sectors(length_bytes: int) -> int:
    return -(-length_bytes // SECTOR) * SECTOR


def _locate(data: Mapping[bytes, bytes], offset: int) -> Iterator[Locator]:
    """`data_space` in bytes, as Virtual PC and Hyper-V count it (VHD 1.0 says sectors)."""
    for code, raw in data.items():
        space = _whole_sectors(len(raw))
        yield Locator(code, space, len(raw), offset)
        offset += space
