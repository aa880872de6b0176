"""The commands that the checks send, and what must come back: Findings from answers.

Only commands that cannot do harm: where one could write, its caller says what. Knows no check.
"""

import struct
from collections.abc import Awaitable
from dataclasses import dataclass

from ..client import Result, commands
from ..scsi.sense import SenseKey
from ..scsi.task import Status
from .model import Finding

_LBA_10_MAXIMUM = 0xFFFF_FFFF
CACHING_PAGE = 0x08  # mode page (SBC-4)


@dataclass(frozen=True, slots=True)
class Request:
    """A command to send: CDB, data-out, and how much data-in is expected, in bytes."""

    name: str
    cdb: bytes
    data_out: bytes = b""
    read_length: int = 0


def inquiry(page: int | None = None, allocation_length: int = 255) -> Request:
    """INQUIRY: standard data, or a vital product data page."""
    name = "INQUIRY" if page is None else f"INQUIRY of page {page:02X}h"
    return Request(name, commands.inquiry(allocation_length, page), read_length=allocation_length)


def report_luns(allocation_length: int) -> Request:
    """REPORT LUNS of all logical units but the well-known ones."""
    return Request(
        "REPORT LUNS", commands.report_luns(allocation_length), read_length=allocation_length
    )


def read_capacity_10() -> Request:
    """READ CAPACITY(10), eight bytes."""
    return Request("READ CAPACITY(10)", bytes([0x25, *bytes(9)]), read_length=8)


def read_capacity_16() -> Request:
    """READ CAPACITY(16), 32 bytes."""
    return Request("READ CAPACITY(16)", commands.read_capacity_16(32), read_length=32)


def mode_sense_6(page: int, allocation_length: int = 192) -> Request:
    """MODE SENSE(6), with Windows' buffer of 192 bytes."""
    name = f"MODE SENSE(6) of page {page:02X}h"
    command = bytes([0x1A, 0, page, 0, allocation_length, 0])
    return Request(name, command, read_length=allocation_length)


def mode_select_6_nothing() -> Request:
    """MODE SELECT(6) with an empty parameter list, which changes nothing (SPC-5)."""
    return Request("MODE SELECT(6) of nothing", bytes([0x15, 0x10, 0, 0, 0, 0]))


def read(lba: int, block_count: int, block_size: int) -> Request:
    """READ(10), or READ(16) where the address is too wide."""
    command = _medium_cdb(0x28, 0x88, lba, block_count)
    return Request(f"READ of LBA {lba}", command, read_length=block_count * block_size)


def write(lba: int, data: bytes, block_size: int, *, fua: bool = False) -> Request:
    """WRITE(10), or WRITE(16) where the address is too wide; `data` may be empty: no block."""
    command = _medium_cdb(0x2A, 0x8A, lba, len(data) // block_size, commands.FUA if fua else 0)
    name = f"WRITE of LBA {lba}" if data else "WRITE of zero blocks"
    return Request(name + (" with FUA" if fua else ""), command, data)


def synchronize_cache() -> Request:
    """SYNCHRONIZE CACHE(10) of the whole medium, as Windows sends it."""
    return Request("SYNCHRONIZE CACHE(10)", commands.synchronize_cache_10())


def get_lba_status(lba: int) -> Request:
    """GET LBA STATUS, with room for one descriptor."""
    command = struct.pack(">BBQIxx", 0x9E, 0x12, lba, 24)
    return Request("GET LBA STATUS", command, read_length=24)


def unmap(*extents: tuple[int, int]) -> Request:
    """UNMAP of (LBA, number of blocks); an empty list unmaps nothing (SBC-4)."""
    descriptors = b"".join(struct.pack(">QI4x", lba, count) for lba, count in extents)
    data = struct.pack(">HH4x", len(descriptors) + 6, len(descriptors)) + descriptors
    name = "UNMAP" if extents else "UNMAP of nothing"
    return Request(name, struct.pack(">B6xHx", 0x42, len(data)), data)


def _medium_cdb(opcode_10: int, opcode_16: int, lba: int, count: int, flags: int = 0) -> bytes:
    if lba <= _LBA_10_MAXIMUM:
        return struct.pack(">BBIxHx", opcode_10, flags, lba, count)
    return struct.pack(">BBQIxx", opcode_16, flags, lba, count)


# What must come back


async def good(pending: Awaitable[Result], what: str, *, fix: str = "") -> Result:
    """The result, which must be GOOD. Raises Finding."""
    result = await pending
    if not result.good:
        raise Finding(f"{what}: {result}", "GOOD", fix=fix)
    return result


async def conflict(pending: Awaitable[Result], what: str, *, fix: str = "") -> None:
    """The command must end in RESERVATION CONFLICT. Raises Finding."""
    result = await pending
    if result.status != Status.RESERVATION_CONFLICT:
        raise Finding(f"{what}: {result}", "RESERVATION CONFLICT", fix=fix)


def is_illegal_request(result: Result, asc: int | None = None) -> bool:
    """Whether the target refused the command as such."""
    sense = result.sense
    return (
        result.status == Status.CHECK_CONDITION
        and sense is not None
        and sense.key == SenseKey.ILLEGAL_REQUEST
        and asc in (None, sense.asc)
    )
