"""A new VHDX file ([MS-VHDX] section 2), fixed, dynamic or differencing.

Must not know where the file lies: whoever has it makes sure that it is complete, or not there.
"""

from array import array
from dataclasses import dataclass, replace
from enum import Enum
from uuid import UUID, uuid4

from construct import Int32ul, Int64ul

from .. import __version__
from .base import StorageError, StorageFault
from .chain import ParentPaths
from .image_file import ImageFile
from .vhdx_bat import Geometry
from .vhdx_format import (
    ABSOLUTE_PATH,
    BAT_ENTRY_BYTES,
    BAT_REGION,
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    DISK_BYTES_MAX,
    DISK_ID_ITEM,
    DISK_SIZE_ITEM,
    FILE_IDENTIFIER,
    FILE_IDENTIFIER_OFFSET,
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    HAS_PARENT,
    HEADER_OFFSETS,
    HEADER_SECTION_BYTES,
    IS_REQUIRED,
    IS_VIRTUAL_DISK,
    LEAVE_BLOCK_ALLOCATED,
    LOGICAL_SECTOR_ITEM,
    METADATA_ENTRY,
    METADATA_REGION,
    METADATA_SIGNATURE,
    METADATA_TABLE_BYTES,
    METADATA_TABLE_HEADER,
    MIB,
    NO_GUID,
    PARENT_LINKAGE,
    PARENT_LOCATOR_ENTRY,
    PARENT_LOCATOR_HEADER,
    PARENT_LOCATOR_ITEM,
    PHYSICAL_SECTOR_ITEM,
    REGION_ENTRY,
    REGION_SIGNATURE,
    REGION_TABLE_BYTES,
    REGION_TABLE_HEADER,
    REGION_TABLE_OFFSETS,
    RELATIVE_PATH,
    SECTOR_SIZES,
    VHDX_PARENT_LOCATOR,
    BlockState,
    sealed,
)
from .vhdx_header import Header

CREATOR = f"pyiscsi-target {__version__}"
METADATA_BYTES = MIB
_LOG_START = HEADER_SECTION_BYTES
# Small blocks are taken often, and a log that is full is written out before the next.
_LOG_BYTES_MAX = 4 * MIB
_LOG_FOR_BLOCKS_OF_BYTES = 32 * MIB  # of them a MiB of log serves for two GiB
_BAT_ENTRIES_AT_ONCE = 1 << 17


class Kind(Enum):
    """How a file has its blocks."""

    FIXED = "fixed"
    DYNAMIC = "dynamic"
    DIFFERENCING = "differencing"


DEFAULT_BLOCK_BYTES = {
    Kind.FIXED: 32 * MIB,
    Kind.DYNAMIC: 32 * MIB,
    Kind.DIFFERENCING: 2 * MIB,
}


@dataclass(frozen=True, slots=True)
class ParentLink:
    """The parent of a new child: its DataWriteGuid, and how to spell its path."""

    data_write_guid: UUID
    paths: ParentPaths


@dataclass(frozen=True, slots=True)
class NewDisk:
    """What a new VHDX file is to be; 0 is the usual block size of the kind."""

    disk_bytes: int
    kind: Kind = Kind.DYNAMIC
    block_bytes: int = 0
    logical_sector_bytes: int = 512
    physical_sector_bytes: int = 4096
    parent: ParentLink | None = None
    disk_id: UUID | None = None  # a child has that of its parent
    log_bytes: int = 0  # 0: enough for the block size

    @property
    def blocks_of_bytes(self) -> int:
        """The block size."""
        return self.block_bytes or DEFAULT_BLOCK_BYTES[self.kind]

    @property
    def metadata_start(self) -> int:
        """Where the metadata region begins, behind the log."""
        enough = min(_LOG_FOR_BLOCKS_OF_BYTES // self.blocks_of_bytes * MIB, _LOG_BYTES_MAX)
        return _LOG_START + (self.log_bytes or max(enough, MIB))

    @property
    def bat_start(self) -> int:
        """Where the BAT region begins."""
        return self.metadata_start + METADATA_BYTES

    @property
    def geometry(self) -> Geometry:
        """What follows for the BAT."""
        return Geometry(
            self.disk_bytes,
            self.blocks_of_bytes,
            self.logical_sector_bytes,
            self.kind is Kind.DIFFERENCING,
        )

    def problem(self) -> str:
        """Why there can be no such disk, or nothing."""
        size = self.blocks_of_bytes
        if not BLOCK_BYTES_MIN <= size <= BLOCK_BYTES_MAX or size & (size - 1):
            return f"the block size {size} is not a power of 2 from 1 to 256 MiB"
        for sector in (self.logical_sector_bytes, self.physical_sector_bytes):
            if sector not in SECTOR_SIZES:
                return f"the sector size {sector} is neither 512 nor 4096"
        if not 0 < self.disk_bytes <= DISK_BYTES_MAX:
            return f"the size {self.disk_bytes} is not above 0 and at most 64 TiB"
        if self.disk_bytes % self.logical_sector_bytes:
            return f"the size {self.disk_bytes} is not one of whole sectors"
        if (self.kind is Kind.DIFFERENCING) != (self.parent is not None):
            return "a differencing disk needs a parent, and no other has one"
        return ""


def create_vhdx(file: ImageFile, disk: NewDisk) -> None:
    """Make the empty `file` a VHDX file, complete and on the medium when this returns. Blocking.

    The file is none before the last write, and is to be deleted where this fails.
    Raises StorageError (INVALID where there can be no such disk).
    """
    problem = disk.problem()
    if problem:
        raise StorageError(StorageFault.INVALID, f"{file.name}: {problem}")
    geometry = disk.geometry
    bat_bytes = -(-geometry.entry_count * BAT_ENTRY_BYTES // MIB) * MIB
    blocks_start = disk.bat_start + bat_bytes
    is_fixed = disk.kind is Kind.FIXED
    payload_bytes = geometry.block_count * geometry.block_bytes if is_fixed else 0
    file.set_size_blocking(blocks_start + payload_bytes)
    # Metadata must never fail for want of space; of the payload that is what fixed means.
    file.zero_blocking(_LOG_START, blocks_start + payload_bytes - _LOG_START)
    if is_fixed:
        _write_fixed_bat(file, disk, blocks_start)
    _write_metadata(file, disk)
    table = _region_table(disk, bat_bytes)
    for offset in REGION_TABLE_OFFSETS:
        file.write_blocking(offset, table)
    log_bytes = disk.metadata_start - _LOG_START
    header = Header(0, uuid4(), uuid4(), NO_GUID, _LOG_START, log_bytes)
    for number, offset in enumerate(HEADER_OFFSETS):
        file.write_blocking(offset, replace(header, sequence_number=number).build())
    file.flush_blocking()
    file.write_blocking(FILE_IDENTIFIER_OFFSET, _identifier())
    file.flush_blocking()


def _identifier() -> bytes:
    creator = CREATOR.encode("utf-16-le").ljust(512, b"\0")
    built: bytes = FILE_IDENTIFIER.build({"creator": creator})
    return built


def _region_table(disk: NewDisk, bat_bytes: int) -> bytes:
    table = bytearray(REGION_TABLE_BYTES)
    regions = (
        (BAT_REGION, disk.bat_start, bat_bytes),
        (METADATA_REGION, disk.metadata_start, METADATA_BYTES),
    )
    head = {"signature": REGION_SIGNATURE, "checksum": 0, "entry_count": len(regions)}
    parts = REGION_TABLE_HEADER.build(head) + b"".join(
        REGION_ENTRY.build({"guid": guid, "file_offset": start, "length": length, "required": 1})
        for guid, start, length in regions
    )
    table[: len(parts)] = parts
    return sealed(table)


def _write_fixed_bat(file: ImageFile, disk: NewDisk, start: int) -> None:
    """All blocks, one behind the other; entries of sector bitmaps stay empty."""
    geometry = disk.geometry
    ratio = geometry.chunk_ratio
    step = max(1, _BAT_ENTRIES_AT_ONCE // ratio) * ratio  # whole chunks
    for first in range(0, geometry.block_count, step):
        entries: list[int] = []
        for block in range(first, min(first + step, geometry.block_count)):
            if block % ratio == 0 and block > first:
                entries.append(0)
            entries.append(start + block * geometry.block_bytes | BlockState.FULLY_PRESENT)
        data = array("Q", entries)
        if Int32ul.build(1) != array("I", [1]).tobytes():
            data.byteswap()
        at = disk.bat_start + geometry.index(first) * BAT_ENTRY_BYTES
        file.write_blocking(at, data.tobytes())


def _write_metadata(file: ImageFile, disk: NewDisk) -> None:
    flags = {Kind.FIXED: LEAVE_BLOCK_ALLOCATED, Kind.DYNAMIC: 0, Kind.DIFFERENCING: HAS_PARENT}
    parameters = {"block_size": disk.blocks_of_bytes, "flags": flags[disk.kind]}
    virtual = IS_VIRTUAL_DISK | IS_REQUIRED
    items = [
        (FILE_PARAMETERS_ITEM, IS_REQUIRED, FILE_PARAMETERS.build(parameters)),
        (DISK_SIZE_ITEM, virtual, Int64ul.build(disk.disk_bytes)),
        (DISK_ID_ITEM, virtual, (disk.disk_id or uuid4()).bytes_le),
        (LOGICAL_SECTOR_ITEM, virtual, Int32ul.build(disk.logical_sector_bytes)),
        (PHYSICAL_SECTOR_ITEM, virtual, Int32ul.build(disk.physical_sector_bytes)),
    ]
    if disk.parent is not None:
        items.append((PARENT_LOCATOR_ITEM, IS_REQUIRED, build_locator(disk.parent)))
    head = {"signature": METADATA_SIGNATURE, "entry_count": len(items)}
    table, content = [METADATA_TABLE_HEADER.build(head)], b""
    for item_id, item_flags, data in items:
        offset = METADATA_TABLE_BYTES + len(content)
        entry = {"item_id": item_id, "offset": offset, "length": len(data), "flags": item_flags}
        table.append(METADATA_ENTRY.build(entry))
        content += data
    file.write_blocking(disk.metadata_start, b"".join(table))
    file.write_blocking(disk.metadata_start + METADATA_TABLE_BYTES, content)


def build_locator(parent: ParentLink) -> bytes:
    """A Parent Locator item (section 2.6.2.6)."""
    values = {PARENT_LINKAGE: f"{{{parent.data_write_guid}}}"}
    if parent.paths.relative:
        values[RELATIVE_PATH] = parent.paths.relative[0]
    if parent.paths.absolute:
        values[ABSOLUTE_PATH] = parent.paths.absolute[0]
    head = {"locator_type": VHDX_PARENT_LOCATOR, "key_value_count": len(values)}
    parts = [PARENT_LOCATOR_HEADER.build(head)]
    at = PARENT_LOCATOR_HEADER.sizeof() + len(values) * PARENT_LOCATOR_ENTRY.sizeof()
    strings = b""
    for key, value in values.items():
        key_bytes, value_bytes = key.encode("utf-16-le"), value.encode("utf-16-le")
        entry = {
            "key_offset": at + len(strings),
            "value_offset": at + len(strings) + len(key_bytes),
            "key_length": len(key_bytes),
            "value_length": len(value_bytes),
        }
        parts.append(PARENT_LOCATOR_ENTRY.build(entry))
        strings += key_bytes + value_bytes
    return b"".join(parts) + strings
