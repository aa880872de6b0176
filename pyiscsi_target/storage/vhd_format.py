"""The structures of a VHD file, their checksums, and geometry.

"Virtual Hard Disk Image Format Specification" version 1.0 (Microsoft, October 2006), called VHD 1.0
here. All numbers are big-endian; time is counted in seconds since 2000 in UTC. This module turns
bytes into values and back; it reads no file, and where the structures lie and what to make of them
is the concern of `vhd_image`.
"""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import IntEnum
from typing import Any
from uuid import UUID

from construct import Array, Bytes, Const, Int8ub, Int16ub, Int32ub, Int64ub, Padding, Struct

SECTOR = 512
FOOTER_BYTES = 512
OLD_FOOTER_BYTES = 511  # VHD 1.0, "Hard Disk Footer Format": before Virtual PC 2004
HEADER_BYTES = 1024
UNUSED = 0xFFFFFFFF  # a BAT entry without a block
NO_OFFSET = 0xFFFFFFFFFFFFFFFF
VERSION_1_0 = 0x00010000
DEFAULT_BLOCK_BYTES = 2 << 20
ALIGNMENT_BYTES = 4096  # of the data of new blocks: pages of the host and of the disk are the same
DYNAMIC_MAX_BYTES = 2040 << 30  # what Hyper-V and QEMU take
DYNAMIC_READ_MAX_BYTES = 2 << 40  # what a block allocation table reaches
FIXED_MAX_BYTES = 16 << 40
MAX_CYLINDERS, MAX_HEADS, MAX_SECTORS_PER_TRACK = 65535, 16, 255
NO_PARENT = UUID(int=0)
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)

FOOTER_COOKIE = b"conectix"
HEADER_COOKIE = b"cxsparse"
FEATURE_RESERVED = 0x2  # always set
# Written by every tool that goes by `current_size`, so that readers which look at who made a file
# (QEMU takes unknown creators to mean the geometry) do likewise.
CREATOR_APPLICATION = b"win "
CREATOR_VERSION = 0x000A0000
CREATOR_HOST = b"Wi2k"
CHS_CREATORS = frozenset({b"vpc ", b"vs  ", b"qemu"})  # these mean the geometry

# VHD 1.0, "Hard Disk Footer Format"
FOOTER = Struct(
    "cookie" / Const(FOOTER_COOKIE),
    "features" / Int32ub,
    "file_format_version" / Int32ub,
    "data_offset" / Int64ub,
    "time_stamp" / Int32ub,
    "creator_application" / Bytes(4),
    "creator_version" / Int32ub,
    "creator_host" / Bytes(4),
    "original_size" / Int64ub,
    "current_size" / Int64ub,
    "cylinders" / Int16ub,
    "heads" / Int8ub,
    "sectors_per_track" / Int8ub,
    "disk_type" / Int32ub,
    "checksum" / Int32ub,
    "unique_id" / Bytes(16),
    "saved_state" / Int8ub,
    Padding(427),
)

# VHD 1.0, "Dynamic Disk Header Format": one of the eight parent locators
LOCATOR_ENTRY = Struct(
    "platform_code" / Bytes(4),
    "data_space" / Int32ub,
    "data_length" / Int32ub,
    Padding(4),
    "data_offset" / Int64ub,
)

# VHD 1.0, "Dynamic Disk Header Format"
HEADER = Struct(
    "cookie" / Const(HEADER_COOKIE),
    "data_offset" / Int64ub,
    "table_offset" / Int64ub,
    "header_version" / Int32ub,
    "max_table_entries" / Int32ub,
    "block_size" / Int32ub,
    "checksum" / Int32ub,
    "parent_unique_id" / Bytes(16),
    "parent_time_stamp" / Int32ub,
    Padding(4),
    "parent_unicode_name" / Bytes(512),
    "locators" / Array(8, LOCATOR_ENTRY),
    Padding(256),
)

FOOTER_CHECKSUM = 64  # byte offsets of the checksum fields
HEADER_CHECKSUM = 36
assert FOOTER.sizeof() == FOOTER_BYTES
assert HEADER.sizeof() == HEADER_BYTES


class DiskType(IntEnum):
    """VHD 1.0, "Hard Disk Footer Format": Disk Type."""

    FIXED = 2
    DYNAMIC = 3
    DIFFERENCING = 4


@dataclass(frozen=True, slots=True)
class Geometry:
    """Cylinders, heads and sectors per track."""

    cylinders: int
    heads: int
    sectors_per_track: int

    @property
    def size_bytes(self) -> int:
        return self.cylinders * self.heads * self.sectors_per_track * SECTOR


LARGEST_GEOMETRY = Geometry(MAX_CYLINDERS, MAX_HEADS, MAX_SECTORS_PER_TRACK)


@dataclass(frozen=True, slots=True)
class Footer:
    """What a footer says, apart from constants. `time_stamp` in seconds since 2000."""

    disk_type: DiskType
    current_size: int
    original_size: int
    geometry: Geometry
    unique_id: UUID
    time_stamp: int
    data_offset: int = NO_OFFSET
    features: int = FEATURE_RESERVED
    creator_application: bytes = CREATOR_APPLICATION
    creator_version: int = CREATOR_VERSION
    creator_host: bytes = CREATOR_HOST
    saved_state: int = 0

    @property
    def size_bytes(self) -> int:
        """The size of the disk.

        `current_size`, but Virtual PC and its kin round disks to whole cylinders and show only
        what the geometry covers, unless that is as large as a geometry can be.
        """
        shown = self.geometry.size_bytes
        by_geometry = self.creator_application in CHS_CREATORS and self.geometry != LARGEST_GEOMETRY
        return shown if by_geometry and 0 < shown <= self.current_size else self.current_size


@dataclass(frozen=True, slots=True)
class Locator:
    """Where the header says that one spelling of the parent's path lies."""

    platform_code: bytes
    data_space: int
    data_length: int
    data_offset: int


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a dynamic or differencing disk says, apart from constants."""

    table_offset: int
    max_table_entries: int
    block_size: int
    parent_unique_id: UUID = NO_PARENT
    parent_time_stamp: int = 0
    parent_name: str = ""
    locators: tuple[Locator, ...] = ()


class FormatError(ValueError):
    """A structure is not what it must be, at the byte `field_offset` of it."""

    def __init__(self, field_offset: int, message: str) -> None:
        super().__init__(message)
        self.field_offset = field_offset


class DamagedError(FormatError):
    """It is not there, or its bytes have changed: cookie or checksum are wrong."""


def checksum(structure: bytes, field_offset: int) -> int:
    """The one's complement of the sum of all bytes but those of the checksum field itself."""
    total = sum(structure) - sum(structure[field_offset : field_offset + 4])
    return ~total & 0xFFFFFFFF


def _sealed(structure: bytes, field_offset: int) -> bytes:
    sealed = bytearray(structure)
    struct.pack_into(">I", sealed, field_offset, checksum(structure, field_offset))
    return bytes(sealed)


def _require_seal(structure: bytes, field_offset: int) -> None:
    (found,) = struct.unpack_from(">I", structure, field_offset)
    wanted = checksum(structure, field_offset)
    if found != wanted:
        message = f"checksum is {found:08x}, the bytes add up to {wanted:08x}"
        raise DamagedError(field_offset, message)


def parse_footer(raw: bytes) -> Footer:
    """The footer in 512 bytes, or in the 511 of old files. Raises FormatError.

    The caller judges sizes and offsets, which depend on the file.
    """
    raw = raw.ljust(FOOTER_BYTES, b"\0")
    _require_cookie(raw, FOOTER_COOKIE)
    _require_seal(raw, FOOTER_CHECKSUM)
    fields = FOOTER.parse(raw)
    _require_version(fields.file_format_version, 12)
    if fields.disk_type not in iter(DiskType):
        raise FormatError(60, f"disk type {fields.disk_type} is not fixed, dynamic or differencing")
    if fields.saved_state:
        raise FormatError(84, "the virtual machine is in a saved state; resume or discard it first")
    disk_type = DiskType(fields.disk_type)
    _require_size(fields.current_size, disk_type)
    return Footer(
        disk_type,
        fields.current_size,
        fields.original_size,
        Geometry(fields.cylinders, fields.heads, fields.sectors_per_track),
        UUID(bytes=fields.unique_id),
        fields.time_stamp,
        fields.data_offset,
        fields.features,
        fields.creator_application,
        fields.creator_version,
        fields.creator_host,
        fields.saved_state,
    )


def _require_cookie(raw: bytes, cookie: bytes) -> None:
    if not raw.startswith(cookie):
        raise DamagedError(0, f"the cookie is not {cookie.decode()!r}")


def _require_version(version: int, field_offset: int) -> None:
    if version >> 16 != VERSION_1_0 >> 16:  # minor versions stay compatible
        raise FormatError(field_offset, f"version {version >> 16}.{version & 0xFFFF} is not 1.0")


def _require_size(current_size: int, disk_type: DiskType) -> None:
    maximum = FIXED_MAX_BYTES if disk_type is DiskType.FIXED else DYNAMIC_READ_MAX_BYTES
    if not 0 < current_size <= maximum or current_size % SECTOR:
        raise FormatError(
            48, f"current size {current_size} is not of whole sectors, up to {maximum} bytes"
        )


def build_footer(footer: Footer) -> bytes:
    """The 512 bytes of the footer."""
    values: dict[str, Any] = {
        "features": footer.features,
        "file_format_version": VERSION_1_0,
        "data_offset": footer.data_offset,
        "time_stamp": footer.time_stamp,
        "creator_application": footer.creator_application,
        "creator_version": footer.creator_version,
        "creator_host": footer.creator_host,
        "original_size": footer.original_size,
        "current_size": footer.current_size,
        "cylinders": footer.geometry.cylinders,
        "heads": footer.geometry.heads,
        "sectors_per_track": footer.geometry.sectors_per_track,
        "disk_type": footer.disk_type,
        "checksum": 0,
        "unique_id": footer.unique_id.bytes,
        "saved_state": footer.saved_state,
    }
    return _sealed(FOOTER.build(values), FOOTER_CHECKSUM)


def parse_header(raw: bytes) -> Header:
    """The header of a dynamic or differencing disk in 1024 bytes. Raises FormatError."""
    _require_cookie(raw, HEADER_COOKIE)
    _require_seal(raw, HEADER_CHECKSUM)
    fields = HEADER.parse(raw)
    _require_version(fields.header_version, 24)
    block_size = fields.block_size
    if block_size < SECTOR or block_size & (block_size - 1):
        raise FormatError(32, f"block size {block_size} is not a power of two of 512 or more")
    return Header(
        fields.table_offset,
        fields.max_table_entries,
        block_size,
        UUID(bytes=fields.parent_unique_id),
        fields.parent_time_stamp,
        fields.parent_unicode_name.decode("utf-16-be", "replace").split("\0")[0],
        tuple(
            Locator(entry.platform_code, entry.data_space, entry.data_length, entry.data_offset)
            for entry in fields.locators
            if entry.platform_code != bytes(4)
        ),
    )


def build_header(header: Header) -> bytes:
    """The 1024 bytes of the header. A parent name that is too long is cut."""
    empty = Locator(bytes(4), 0, 0, 0)
    locators = (*header.locators, *[empty] * (8 - len(header.locators)))
    values: dict[str, Any] = {
        "data_offset": NO_OFFSET,
        "table_offset": header.table_offset,
        "header_version": VERSION_1_0,
        "max_table_entries": header.max_table_entries,
        "block_size": header.block_size,
        "checksum": 0,
        "parent_unique_id": header.parent_unique_id.bytes,
        "parent_time_stamp": header.parent_time_stamp,
        "parent_unicode_name": _unicode_name(header.parent_name),
        "locators": [
            {
                "platform_code": locator.platform_code,
                "data_space": locator.data_space,
                "data_length": locator.data_length,
                "data_offset": locator.data_offset,
            }
            for locator in locators
        ],
    }
    return _sealed(HEADER.build(values), HEADER_CHECKSUM)


def header_with_table(raw: bytes, table_offset: int, max_table_entries: int) -> bytes:
    """The header with its table elsewhere; only the first of its sectors changes."""
    changed = bytearray(raw)
    struct.pack_into(">Q", changed, 16, table_offset)
    struct.pack_into(">I", changed, 28, max_table_entries)
    return _sealed(bytes(changed), HEADER_CHECKSUM)


def header_with_parent(raw: bytes, unique_id: UUID, time_stamp: int) -> bytes:
    """The header with its parent known by these; only the first of its sectors changes."""
    changed = bytearray(raw)
    changed[40:56] = unique_id.bytes
    struct.pack_into(">I", changed, 56, time_stamp)
    return _sealed(bytes(changed), HEADER_CHECKSUM)


def _unicode_name(name: str) -> bytes:
    whole = name.encode("utf-16-be")[:510]
    return whole.decode("utf-16-be", "ignore").encode("utf-16-be").ljust(512, b"\0")


def bitmap_bytes(block_size: int) -> int:
    """The length of a block's sector bitmap, padded to whole sectors.

    VHD 1.0, "Block Allocation Table and Data Blocks". Sector 0 is the most significant bit.
    """
    bits = block_size // SECTOR
    return -(-bits // (8 * SECTOR)) * SECTOR


def now_stamp() -> int:
    """The time stamp of this moment."""
    return stamp_of(datetime.now(UTC).timestamp())


def stamp_of(unix_time_s: float) -> int:
    """The time stamp of a moment in Unix time; 0 where it lies before 2000."""
    return min(max(0, int(unix_time_s - EPOCH.timestamp())), 0xFFFFFFFF)


def geometry_of(size_bytes: int) -> Geometry:
    """The geometry that a disk of this size is given (VHD 1.0, appendix "CHS Calculation")."""
    sectors = min(size_bytes // SECTOR, LARGEST_GEOMETRY.size_bytes // SECTOR)
    if sectors >= 65535 * 16 * 63:
        return Geometry(sectors // 255 // 16, 16, 255)
    tracks = sectors // 17
    heads = max(4, (tracks + 1023) // 1024)
    if tracks < heads * 1024 and heads <= 16:
        return Geometry(tracks // heads, heads, 17)
    tracks = sectors // 31
    if tracks < 16 * 1024:
        return Geometry(tracks // 16, 16, 31)
    return Geometry(sectors // 63 // 16, 16, 63)
