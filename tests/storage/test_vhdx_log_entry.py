"""Entries of the log: what is built is understood, and nothing else is."""

import random
from uuid import UUID

import pytest

from pyiscsi_target.storage.vhdx_format import LOG_SECTOR_BYTES, MIB, ZERO_DESCRIPTOR, sealed
from pyiscsi_target.storage.vhdx_log_entry import (
    EntryHeader,
    Update,
    build_entry,
    entry_length,
    parse_header,
    parse_updates,
)

GUID = UUID(int=7)


def entry(count: int, number: int = (5 << 32) + 9) -> tuple[EntryHeader, dict[int, bytes], bytes]:
    source = random.Random(count)
    sectors = {at * 3 * LOG_SECTOR_BYTES: source.randbytes(LOG_SECTOR_BYTES) for at in range(count)}
    header = EntryHeader(entry_length(count), 4096, number, count, GUID, 2 * MIB, 3 * MIB)
    return header, sectors, build_entry(header, sectors)


@pytest.mark.parametrize("count", [0, 1, 2, 126])
def test_round_trip(count: int) -> None:
    header, sectors, data = entry(count)
    assert len(data) == header.length
    assert parse_header(data, GUID, MIB) == header
    assert parse_updates(header, data) == [Update(at, sector) for at, sector in sectors.items()]


def test_every_bit_counts() -> None:
    header, _, data = entry(1)
    source = random.Random(1)
    for at in [*range(4, 8), *(source.randrange(len(data)) for _ in range(300))]:
        changed = bytearray(data)
        changed[at] ^= 1 << source.randrange(8)
        assert parse_updates(header, bytes(changed)) is None


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (0, b"logx"),
        (8, bytes(4)),  # EntryLength
        (8, b"\x01\x20\0\0"),
        (8, b"\0\0\0\x02"),
        (12, b"\x01\0\0\0"),  # Tail
        (12, b"\0\0\x10\0"),
        (16, bytes(8)),  # SequenceNumber
        (24, b"\xff\0\0\0"),  # DescriptorCount
        (32, bytes(16)),  # LogGuid
    ],
)
def test_headers_that_cannot_be(offset: int, value: bytes) -> None:
    _, _, data = entry(1)
    changed = bytearray(data)
    changed[offset : offset + len(value)] = value
    assert parse_header(bytes(changed), GUID, MIB) is None


@pytest.mark.parametrize(
    ("offset", "value"),
    [
        (64, b"desk"),
        (64 + 16, b"\x01"),  # FileOffset
        (64 + 24, b"\x01"),  # SequenceNumber
        (4096, b"date"),
        (4096 + 4, b"\x01"),  # SequenceHigh
        (8192 - 4, b"\x01"),  # SequenceLow
    ],
)
def test_parts_that_do_not_fit_make_the_entry_invalid(offset: int, value: bytes) -> None:
    header, _, data = entry(1)
    changed = bytearray(data)
    changed[offset : offset + len(value)] = value
    assert parse_updates(header, sealed(changed)) is None


@pytest.mark.parametrize(
    ("length", "place", "number", "valid"),
    [(8192, 4096, 9, True), (8191, 4096, 9, False), (8192, 1, 9, False), (8192, 4096, 8, False)],
)
def test_zero_descriptors(length: int, place: int, number: int, valid: bool) -> None:
    header, _, data = entry(1, number=9)
    fields = {"signature": b"zero", "zero_length": length, "file_offset": place}
    changed = bytearray(data)
    changed[64:96] = ZERO_DESCRIPTOR.build(fields | {"sequence_number": number})
    found = parse_updates(header, sealed(changed))
    assert found == ([Update(place, None, length)] if valid else None)
