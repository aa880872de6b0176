"""One entry of a VHDX file's log, built and taken apart ([MS-VHDX] section 2.3.1).

Must not know where in the log an entry lies, nor what comes before it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from .vhdx_format import (
    DATA_DESCRIPTOR,
    DATA_DESCRIPTOR_SIGNATURE,
    DATA_SECTOR,
    DATA_SECTOR_SIGNATURE,
    LOG_DESCRIPTOR_BYTES,
    LOG_ENTRY_HEADER,
    LOG_SECTOR_BYTES,
    LOG_SIGNATURE,
    ZERO_DESCRIPTOR,
    ZERO_SIGNATURE,
    checksum,
    sealed,
)

ENTRY_BYTES_MAX = 16 << 20  # what is believed; entries have some KiB
SECTORS_PER_ENTRY_MAX = 126  # of ours: one sector of descriptors

_LEADING_BYTES, _TRAILING_BYTES = 8, 4


@dataclass(frozen=True, slots=True)
class Update:
    """What an entry does to the file: `data` (one log sector) or `zero_bytes` at `file_offset`."""

    file_offset: int
    data: bytes | None
    zero_bytes: int = 0

    @property
    def length_bytes(self) -> int:
        """How much of the file it changes."""
        return self.zero_bytes if self.data is None else len(self.data)


@dataclass(frozen=True, slots=True)
class EntryHeader:
    """The header of an entry that begins like one (section 2.3.1.1)."""

    length: int
    tail: int
    sequence_number: int
    descriptor_count: int
    log_guid: UUID
    flushed_file_offset: int
    last_file_offset: int


def parse_header(sector: bytes, log_guid: UUID, log_length: int) -> EntryHeader | None:
    """The header of an entry of this log, or None where there is none that could be valid."""
    if not sector.startswith(LOG_SIGNATURE):
        return None
    fields = LOG_ENTRY_HEADER.parse(sector)
    possible = (
        fields.log_guid == log_guid
        and fields.sequence_number > 0
        and LOG_SECTOR_BYTES <= fields.entry_length <= min(log_length, ENTRY_BYTES_MAX)
        and not fields.entry_length % LOG_SECTOR_BYTES
        and not fields.tail % LOG_SECTOR_BYTES
        and fields.tail < log_length
        and _descriptor_bytes(fields.descriptor_count) <= fields.entry_length
    )
    if not possible:
        return None
    return EntryHeader(
        fields.entry_length,
        fields.tail,
        fields.sequence_number,
        fields.descriptor_count,
        fields.log_guid,
        fields.flushed_file_offset,
        fields.last_file_offset,
    )


def parse_updates(header: EntryHeader, entry: bytes) -> list[Update] | None:
    """What the whole entry does, or None where any part of it is not valid."""
    if LOG_ENTRY_HEADER.parse(entry).checksum != checksum(entry):
        return None
    updates: list[Update] = []
    data_at = _descriptor_bytes(header.descriptor_count)
    for index in range(header.descriptor_count):
        at = LOG_ENTRY_HEADER.sizeof() + index * LOG_DESCRIPTOR_BYTES
        descriptor = entry[at : at + LOG_DESCRIPTOR_BYTES]
        sector = entry[data_at : data_at + LOG_SECTOR_BYTES]
        if descriptor.startswith(ZERO_SIGNATURE):
            update = _parse_zero(header, descriptor)
        else:
            update = _parse_data(header, descriptor, sector)
            data_at += LOG_SECTOR_BYTES
        if update is None:
            return None
        updates.append(update)
    return updates


def _descriptor_bytes(count: int) -> int:
    """Bytes of the sectors that header and descriptors take."""
    length: int = LOG_ENTRY_HEADER.sizeof() + count * LOG_DESCRIPTOR_BYTES
    return -(-length // LOG_SECTOR_BYTES) * LOG_SECTOR_BYTES


def _parse_zero(header: EntryHeader, descriptor: bytes) -> Update | None:
    fields = ZERO_DESCRIPTOR.parse(descriptor)
    valid = (
        fields.sequence_number == header.sequence_number
        and not fields.zero_length % LOG_SECTOR_BYTES
        and not fields.file_offset % LOG_SECTOR_BYTES
    )
    return Update(fields.file_offset, None, fields.zero_length) if valid else None


def _parse_data(header: EntryHeader, descriptor: bytes, sector: bytes) -> Update | None:
    if not descriptor.startswith(DATA_DESCRIPTOR_SIGNATURE) or len(sector) < LOG_SECTOR_BYTES:
        return None
    fields: Any = DATA_DESCRIPTOR.parse(descriptor)
    content: Any = DATA_SECTOR.parse(sector)
    number = content.sequence_high << 32 | content.sequence_low
    valid = (
        content.signature == DATA_SECTOR_SIGNATURE
        and fields.sequence_number == header.sequence_number == number
        and not fields.file_offset % LOG_SECTOR_BYTES
    )
    if not valid:
        return None
    return Update(fields.file_offset, fields.leading_bytes + content.data + fields.trailing_bytes)


def entry_length(sector_count: int) -> int:
    """How long an entry is that writes so many sectors."""
    return _descriptor_bytes(sector_count) + sector_count * LOG_SECTOR_BYTES


def build_entry(header: EntryHeader, sectors: Mapping[int, bytes]) -> bytes:
    """An entry that writes each of the `sectors` (of LOG_SECTOR_BYTES) at its file offset."""
    number = header.sequence_number
    parts = [
        LOG_ENTRY_HEADER.build(
            {
                "signature": LOG_SIGNATURE,
                "checksum": 0,
                "entry_length": header.length,
                "tail": header.tail,
                "sequence_number": number,
                "descriptor_count": len(sectors),
                "log_guid": header.log_guid,
                "flushed_file_offset": header.flushed_file_offset,
                "last_file_offset": header.last_file_offset,
            }
        )
    ]
    for offset, data in sectors.items():
        descriptor = {
            "signature": DATA_DESCRIPTOR_SIGNATURE,
            "trailing_bytes": data[-_TRAILING_BYTES:],
            "leading_bytes": data[:_LEADING_BYTES],
            "file_offset": offset,
            "sequence_number": number,
        }
        parts.append(DATA_DESCRIPTOR.build(descriptor))
    used = LOG_ENTRY_HEADER.sizeof() + len(sectors) * LOG_DESCRIPTOR_BYTES
    parts.append(bytes(_descriptor_bytes(len(sectors)) - used))
    for data in sectors.values():
        content = {
            "signature": DATA_SECTOR_SIGNATURE,
            "sequence_high": number >> 32,
            "data": data[_LEADING_BYTES:-_TRAILING_BYTES],
            "sequence_low": number & 0xFFFF_FFFF,
        }
        parts.append(DATA_SECTOR.build(content))
    return sealed(bytearray(b"".join(parts)))
