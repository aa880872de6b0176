"""The command descriptor blocks of everyday commands: arguments to bytes (SPC-5, SBC-4)."""

import struct

FUA = 0x08


def test_unit_ready() -> bytes:
    """TEST UNIT READY (SPC-5 clause 6.44)."""
    return bytes(6)


def inquiry(allocation_length: int, page: int | None = None) -> bytes:
    """INQUIRY for standard data, or for a vital product data page (SPC-5 clause 6.6)."""
    return struct.pack(">BBBHx", 0x12, page is not None, page or 0, allocation_length)


def report_luns(allocation_length: int) -> bytes:
    """REPORT LUNS, SELECT REPORT 00h (SPC-5 clause 6.32)."""
    return struct.pack(">B5xIxx", 0xA0, allocation_length)


def read_capacity_16(allocation_length: int) -> bytes:
    """READ CAPACITY(16) (SBC-4 clause 5.21)."""
    return struct.pack(">BB8xIxx", 0x9E, 0x10, allocation_length)


def read_16(lba: int, block_count: int, *, fua: bool = False) -> bytes:
    """READ(16) (SBC-4 clause 5.18)."""
    return struct.pack(">BBQIxx", 0x88, FUA if fua else 0, lba, block_count)


def write_16(lba: int, block_count: int, *, fua: bool = False) -> bytes:
    """WRITE(16) (SBC-4 clause 5.42); `fua`: on the medium before GOOD."""
    return struct.pack(">BBQIxx", 0x8A, FUA if fua else 0, lba, block_count)


def synchronize_cache_10() -> bytes:
    """SYNCHRONIZE CACHE(10) for the whole medium (SBC-4 clause 5.33)."""
    return struct.pack(">B9x", 0x35)


def persistent_reserve_in(service_action: int, allocation_length: int) -> bytes:
    """PERSISTENT RESERVE IN (SPC-5 clause 6.16)."""
    return struct.pack(">BB5xHx", 0x5E, service_action, allocation_length)


def persistent_reserve_out(service_action: int, kind: int, list_length: int) -> bytes:
    """PERSISTENT RESERVE OUT, LU scope (SPC-5 clause 6.17)."""
    return struct.pack(">BBBxxIx", 0x5F, service_action, kind, list_length)
