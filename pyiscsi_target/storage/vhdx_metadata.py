"""The region table and the metadata region of a VHDX file: what kind of disk it is.

Must not know blocks.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from construct import Int32ul, Int64ul

from .chain import ParentPaths
from .image_file import ImageFile
from .vhdx_format import (
    ABSOLUTE_PATH,
    BAT_REGION,
    BLOCK_BYTES_MAX,
    BLOCK_BYTES_MIN,
    DISK_BYTES_MAX,
    DISK_ID_ITEM,
    DISK_SIZE_ITEM,
    FILE_PARAMETERS,
    FILE_PARAMETERS_ITEM,
    HAS_PARENT,
    HEADER_SECTION_BYTES,
    IS_REQUIRED,
    IS_USER,
    LEAVE_BLOCK_ALLOCATED,
    LOGICAL_SECTOR_ITEM,
    METADATA_ENTRIES_MAX,
    METADATA_ENTRY,
    METADATA_ITEM_BYTES_MAX,
    METADATA_REGION,
    METADATA_SIGNATURE,
    METADATA_TABLE_BYTES,
    METADATA_TABLE_HEADER,
    METADATA_USER_ENTRIES_MAX,
    MIB,
    PARENT_LINKAGE,
    PARENT_LINKAGE_2,
    PARENT_LOCATOR_ENTRY,
    PARENT_LOCATOR_HEADER,
    PARENT_LOCATOR_ITEM,
    PHYSICAL_SECTOR_ITEM,
    REGION_ENTRIES_MAX,
    REGION_ENTRY,
    REGION_SIGNATURE,
    REGION_TABLE_BYTES,
    REGION_TABLE_HEADER,
    REGION_TABLE_OFFSETS,
    RELATIVE_PATH,
    SECTOR_SIZES,
    VHDX_PARENT_LOCATOR,
    VOLUME_PATH,
    checksum,
    damaged,
)
from .vhdx_header import Header


@dataclass(frozen=True, slots=True)
class Span:
    """A named range of the file that belongs to one structure."""

    name: str
    start: int
    length: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + self.length


@dataclass(frozen=True, slots=True)
class Regions:
    """Where everything but blocks is; `spans` are all regions and the log."""

    bat: Span
    metadata: Span
    spans: tuple[Span, ...]
    table_offset: int  # of the region table that says so


@dataclass(frozen=True, slots=True)
class Item:
    """A metadata item (section 2.6.1.2); `offset` counts from the start of the file."""

    item_id: UUID
    offset: int
    length: int
    flags: int


@dataclass(frozen=True, slots=True)
class Metadata:
    """What the known metadata items say (section 2.6.2)."""

    disk_bytes: int
    block_bytes: int
    leave_block_allocated: bool
    has_parent: bool
    logical_sector_bytes: int
    physical_sector_bytes: int
    disk_id: UUID
    items: tuple[Item, ...]
    locator: dict[str, str] = field(default_factory=dict)

    def item(self, item_id: UUID) -> Item:
        """The system item, which is there."""
        return next(item for item in self.items if item.item_id == item_id)

    @property
    def parent_paths(self) -> ParentPaths:
        """How the file spells its parent's path."""
        text = self.locator.get
        absolute = (text(VOLUME_PATH), text(ABSOLUTE_PATH))
        relative = text(RELATIVE_PATH)
        return ParentPaths((relative,) if relative else (), tuple(filter(None, absolute)))

    @property
    def parent_linkages(self) -> tuple[UUID, ...]:
        """The DataWriteGuids that the parent may have."""
        texts = (self.locator.get(key) for key in (PARENT_LINKAGE, PARENT_LINKAGE_2))
        return tuple(UUID(text) for text in texts if text is not None)


# Section 2.2.3: region table


def read_regions(file: ImageFile, header: Header) -> Regions:
    """Find the regions; nothing overlaps, and all of it is in the file. Raises StorageError."""
    for offset in REGION_TABLE_OFFSETS:
        data = file.read_blocking(offset, REGION_TABLE_BYTES)
        if _is_whole_table(data):
            return _parse_regions(file, header, offset, data)
    message = "neither this nor its copy is valid"
    raise damaged(file.name, "region table", REGION_TABLE_OFFSETS[0], message)


def _is_whole_table(data: bytes) -> bool:
    fields = REGION_TABLE_HEADER.parse(data)
    return bool(fields.signature == REGION_SIGNATURE and fields.checksum == checksum(data))


def damaged_region_tables(file: ImageFile) -> dict[int, bytes]:
    """What each damaged copy of an open file's region table must be, by its offset."""
    tables = {at: file.read_blocking(at, REGION_TABLE_BYTES) for at in REGION_TABLE_OFFSETS}
    good = next(data for data in tables.values() if _is_whole_table(data))
    return {at: good for at, data in tables.items() if not _is_whole_table(data)}


def _parse_regions(file: ImageFile, header: Header, offset: int, data: bytes) -> Regions:
    count = REGION_TABLE_HEADER.parse(data).entry_count
    if count > REGION_ENTRIES_MAX:
        raise damaged(file.name, "region table", offset, f"EntryCount {count} is too large")
    known: dict[UUID, Span] = {}
    spans = [Span("log", header.log_offset, header.log_length)] if header.log_length else []
    for index in range(count):
        at = REGION_TABLE_HEADER.sizeof() + index * REGION_ENTRY.sizeof()
        entry = REGION_ENTRY.parse(data[at : at + REGION_ENTRY.sizeof()])
        span = _region_span(file, offset + at, entry)
        if entry.guid in known:
            raise damaged(file.name, "region table entry", offset + at, f"{entry.guid} is double")
        known[entry.guid] = span
        spans.append(span)
    _require_apart(file, spans)
    for guid, name in _REGIONS.items():
        if guid not in known:
            raise damaged(file.name, "region table", offset, f"there is no {name} region")
    return Regions(known[BAT_REGION], known[METADATA_REGION], tuple(spans), offset)


_REGIONS = {BAT_REGION: "BAT", METADATA_REGION: "metadata"}


def _region_span(file: ImageFile, at: int, entry: Any) -> Span:
    name = _REGIONS.get(entry.guid)
    if name is None and entry.required & 1:
        message = f"region {entry.guid} is required, and this program does not know it"
        raise damaged(file.name, "region table entry", at, message)
    span = Span(f"{name or entry.guid} region", entry.file_offset, entry.length)
    if span.start % MIB or span.length % MIB or not span.length:
        message = f"FileOffset {span.start} and Length {span.length} are not whole MiB"
        raise damaged(file.name, "region table entry", at, message)
    if span.start < HEADER_SECTION_BYTES or span.end > file.size_bytes:
        message = f"bytes {span.start} to {span.end} are not in the file behind its headers"
        raise damaged(file.name, "region table entry", at, message)
    return span


def _require_apart(file: ImageFile, spans: Iterable[Span]) -> None:
    end, before = 0, ""
    for span in sorted(spans, key=lambda span: span.start):
        if span.start < end:
            raise damaged(file.name, span.name, span.start, f"overlaps the {before}")
        end, before = span.end, span.name


# Section 2.6: metadata


def read_metadata(file: ImageFile, region: Span) -> Metadata:
    """Read and check the metadata. Raises StorageError."""
    items = _read_table(file, region)
    system = {item.item_id: item for item in items if not item.flags & IS_USER}
    for item in items:
        if item.flags & IS_REQUIRED and (item.flags & IS_USER or item.item_id not in _KNOWN):
            message = f"{item.item_id} is required, and this program does not know it"
            raise damaged(file.name, "metadata item", item.offset, message)
    flags, block_bytes = _read_file_parameters(file, region, system)
    has_parent = bool(flags & HAS_PARENT)
    logical = _read_sector_size(file, region, system, LOGICAL_SECTOR_ITEM)
    return Metadata(
        disk_bytes=_read_disk_size(file, region, system, logical),
        block_bytes=block_bytes,
        leave_block_allocated=bool(flags & LEAVE_BLOCK_ALLOCATED) and not has_parent,
        has_parent=has_parent,
        logical_sector_bytes=logical,
        physical_sector_bytes=_read_sector_size(file, region, system, PHYSICAL_SECTOR_ITEM),
        disk_id=UUID(bytes_le=_read_item(file, region, system, DISK_ID_ITEM)[1]),
        items=items,
        locator=_read_locator(file, region, system) if has_parent else {},
    )


def _read_table(file: ImageFile, region: Span) -> tuple[Item, ...]:
    data = file.read_blocking(region.start, METADATA_TABLE_BYTES)
    header = METADATA_TABLE_HEADER.parse(data)
    if header.signature != METADATA_SIGNATURE:
        message = f"the signature is {header.signature!r}, not {METADATA_SIGNATURE!r}"
        raise damaged(file.name, "metadata table", region.start, message)
    if header.entry_count > METADATA_ENTRIES_MAX:
        message = f"EntryCount {header.entry_count} is too large"
        raise damaged(file.name, "metadata table", region.start, message)
    items = []
    for index in range(header.entry_count):
        at = METADATA_TABLE_HEADER.sizeof() + index * METADATA_ENTRY.sizeof()
        entry = METADATA_ENTRY.parse(data[at : at + METADATA_ENTRY.sizeof()])
        items.append(_checked_item(file, region, region.start + at, entry))
    _require_distinct(file, region, items)
    return tuple(items)


def _checked_item(file: ImageFile, region: Span, at: int, entry: Any) -> Item:
    end = entry.offset + entry.length
    if entry.length > METADATA_ITEM_BYTES_MAX or end > region.length:
        message = f"bytes {entry.offset} to {end} of the metadata region are too many, or not in it"
        raise damaged(file.name, "metadata table entry", at, message)
    if entry.length and entry.offset < METADATA_TABLE_BYTES:
        message = f"Offset {entry.offset} is in the metadata table itself"
        raise damaged(file.name, "metadata table entry", at, message)
    return Item(entry.item_id, region.start + entry.offset, entry.length, entry.flags)


def _require_distinct(file: ImageFile, region: Span, items: list[Item]) -> None:
    if sum(bool(item.flags & IS_USER) for item in items) > METADATA_USER_ENTRIES_MAX:
        raise damaged(file.name, "metadata table", region.start, "too many user items")
    if len({(item.item_id, item.flags & IS_USER) for item in items}) < len(items):
        raise damaged(file.name, "metadata table", region.start, "an ItemId is there twice")
    _require_apart(
        file,
        (Span(f"metadata item {item.item_id}", item.offset, item.length) for item in items),
    )


_KNOWN = {  # name, bytes (0: any number)
    FILE_PARAMETERS_ITEM: ("File Parameters", FILE_PARAMETERS.sizeof()),
    DISK_SIZE_ITEM: ("Virtual Disk Size", 8),
    DISK_ID_ITEM: ("Virtual Disk ID", 16),
    LOGICAL_SECTOR_ITEM: ("Logical Sector Size", 4),
    PHYSICAL_SECTOR_ITEM: ("Physical Sector Size", 4),
    PARENT_LOCATOR_ITEM: ("Parent Locator", 0),
}


def _read_item(
    file: ImageFile, region: Span, items: dict[UUID, Item], item_id: UUID
) -> tuple[Item, bytes]:
    name, length = _KNOWN[item_id]
    item = items.get(item_id)
    if item is None:
        raise damaged(file.name, "metadata table", region.start, f"there is no {name} item")
    if length and item.length != length:
        message = f"{name} has {item.length} bytes, not {length}"
        raise damaged(file.name, "metadata item", item.offset, message)
    return item, file.read_blocking(item.offset, item.length)


def _read_file_parameters(
    file: ImageFile, region: Span, items: dict[UUID, Item]
) -> tuple[int, int]:
    item, data = _read_item(file, region, items, FILE_PARAMETERS_ITEM)
    fields = FILE_PARAMETERS.parse(data)
    size: int = fields.block_size
    if not BLOCK_BYTES_MIN <= size <= BLOCK_BYTES_MAX or size & (size - 1):
        message = f"BlockSize {size} is not a power of 2 from 1 to 256 MiB"
        raise damaged(file.name, "File Parameters", item.offset, message)
    return fields.flags, size


def _read_sector_size(file: ImageFile, region: Span, items: dict[UUID, Item], item_id: UUID) -> int:
    item, data = _read_item(file, region, items, item_id)
    size: int = Int32ul.parse(data)
    if size not in SECTOR_SIZES:
        message = f"{size} bytes are neither 512 nor 4096"
        raise damaged(file.name, _KNOWN[item_id][0], item.offset, message)
    return size


def _read_disk_size(
    file: ImageFile, region: Span, items: dict[UUID, Item], sector_bytes: int
) -> int:
    item, data = _read_item(file, region, items, DISK_SIZE_ITEM)
    size: int = Int64ul.parse(data)
    if not 0 < size <= DISK_BYTES_MAX or size % sector_bytes:
        message = f"{size} bytes are not whole sectors of at most 64 TiB"
        raise damaged(file.name, "Virtual Disk Size", item.offset, message)
    return size


# Section 2.6.2.6: parent locator

_LOCATOR_ENTRIES_MAX = 64  # five keys are known


def _read_locator(file: ImageFile, region: Span, items: dict[UUID, Item]) -> dict[str, str]:
    item, data = _read_item(file, region, items, PARENT_LOCATOR_ITEM)

    def require(condition: bool, what: str) -> None:
        if not condition:
            raise damaged(file.name, "Parent Locator", item.offset, what)

    first, size = PARENT_LOCATOR_HEADER.sizeof(), PARENT_LOCATOR_ENTRY.sizeof()
    require(len(data) >= first, f"{len(data)} bytes have no room for its header")
    header = PARENT_LOCATOR_HEADER.parse(data)
    require(
        header.locator_type == VHDX_PARENT_LOCATOR,
        f"LocatorType {header.locator_type} is not that of VHDX parents",
    )
    count = header.key_value_count
    require(
        count <= _LOCATOR_ENTRIES_MAX and first + count * size <= len(data),
        f"KeyValueCount {count} is too large",
    )
    found: dict[str, str] = {}
    for at in range(first, first + count * size, size):
        entry = PARENT_LOCATOR_ENTRY.parse(data[at : at + size])
        key_end = entry.key_offset + entry.key_length
        value_end = entry.value_offset + entry.value_length
        require(max(key_end, value_end) <= len(data), f"the entry at byte {at} of it points out")
        try:
            key = data[entry.key_offset : key_end].decode("utf-16-le")
            value = data[entry.value_offset : value_end].decode("utf-16-le")
        except UnicodeDecodeError:
            require(False, f"the entry at byte {at} of it is not UTF-16")
        require(key not in found, f"the key {key!r} is there twice")
        found[key] = value
    require(PARENT_LINKAGE in found, f"there is no {PARENT_LINKAGE}")
    for key in (PARENT_LINKAGE, PARENT_LINKAGE_2):
        require(_is_guid(found.get(key)), f"{key} {found.get(key)!r} is no GUID")
    return found


def _is_guid(text: str | None) -> bool:
    try:
        return text is None or bool(UUID(text))
    except ValueError:
        return False
