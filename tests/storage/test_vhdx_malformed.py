"""Damaged VHDX files: a clear error, or a disk that serves no wrong byte; never more than that.

Every field of every structure is given other values, its checksum made right again, so that what
it says is what is looked at.
"""

import asyncio
import contextlib
import random
import struct
import tracemalloc
from collections.abc import Iterator
from uuid import UUID

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.vhdx_create import Kind, NewDisk, create_vhdx
from pyiscsi_target.storage.vhdx_format import (
    BAT_REGION,
    CHECKSUM_OFFSET,
    HEADER_BYTES,
    HEADER_OFFSETS,
    LOG_ENTRY_HEADER,
    LOG_SECTOR_BYTES,
    METADATA_REGION,
    REGION_TABLE_BYTES,
    REGION_TABLE_OFFSETS,
    sealed,
)
from pyiscsi_target.storage.vhdx_header import read_headers
from tests.support.images import KIB, MIB
from tests.support.recording_file import RecordingFile
from tests.support.vhdx_disks import new_file, open_disk, read, reopened, write

LOG, METADATA, BAT, BLOCKS = MIB, 2 * MIB, 3 * MIB, 4 * MIB
SIZE = 4 * MIB
CONTENT = bytes((7,)) * 512
MEMORY_MAX = 64 * MIB
SPACE = 48 * MIB


def put(content: bytes, offset: int, data: bytes) -> bytes:
    changed = bytearray(content)
    changed[offset : offset + len(data)] = data
    return bytes(changed)


def put_sealed(content: bytes, start: int, length: int, offset: int, data: bytes) -> bytes:
    """Change a structure that has a checksum."""
    structure = bytearray(content[start : start + length])
    structure[offset : offset + len(data)] = data
    return put(content, start, sealed(structure))


async def _written(*, close: bool) -> bytes:
    file = new_file(SIZE)
    disk = open_disk(file)
    for at in (0, 2):
        await write(disk, at * MIB, CONTENT)
    await disk.flush()
    if close:
        await disk.close()
    return file.killed()


@pytest.fixture(scope="module")
def clean() -> bytes:
    """A closed disk with blocks 0 and 2."""
    return asyncio.run(_written(close=True))


@pytest.fixture(scope="module")
def dirty() -> bytes:
    """The same, with a log to replay."""
    return asyncio.run(_written(close=False))


def fails(content: bytes, match: str, at: int | None = None) -> None:
    """Opening is refused, naming the structure and where it is."""
    with pytest.raises(StorageError, match=match) as caught:
        reopened(content)
    assert caught.value.fault is StorageFault.INVALID
    assert str(caught.value).startswith("recorded: ")
    if at is not None:
        assert caught.value.offset_bytes == at
        assert f"at byte {at}" in str(caught.value)


VALUES_32 = (0, 1, 7, 4096, MIB, 0xFFFF_FFFF)
VALUES_64 = (2, 1 << 46, (1 << 64) - 1, (1 << 64) - MIB)


def values() -> Iterator[bytes]:
    yield from (struct.pack("<I", value) for value in VALUES_32)
    yield from (struct.pack("<Q", value) for value in VALUES_64)


REFUSALS = (StorageFault.INVALID, StorageFault.SHORT, StorageFault.OUT_OF_SPACE)


async def survives(content: bytes) -> bool:
    """Opening ends in an error of ours, or in a disk on which everything works; whether it did."""
    file = RecordingFile(content)
    file.space_bytes = SPACE
    try:
        disk = open_disk(file)
    except StorageError as error:
        if error.fault not in REFUSALS:
            raise
        return False
    size = min(disk.size_bytes, 2 * SIZE)
    with contextlib.suppress(StorageError):
        await read(disk, 0, size)
        await disk.write(size - 4096, [bytes((1,)) * 4096])
        await disk.deallocate(0, size)
        await disk.extents(0, disk.size_bytes, 8)
        await disk.close()
    return True


async def fuzz(variants: Iterator[bytes]) -> tuple[int, int]:
    """(how many opened, how many did not); none takes more memory than it may."""
    counts = [0, 0]
    for content in variants:
        tracemalloc.start()
        base = tracemalloc.get_traced_memory()[0]
        counts[await survives(content)] += 1
        peak = tracemalloc.get_traced_memory()[1] - base
        tracemalloc.stop()
        assert peak < MEMORY_MAX + 4 * SPACE  # the file itself is in memory here, with its changes
    return counts[1], counts[0]


# Every field


async def test_every_field_of_the_headers(clean: bytes) -> None:
    def variants() -> Iterator[bytes]:
        for at in range(8, 84, 4):
            for data in values():
                one = put_sealed(clean, HEADER_OFFSETS[0], HEADER_BYTES, at, data)
                yield put_sealed(one, HEADER_OFFSETS[1], HEADER_BYTES, at, data)

    opened, refused = await fuzz(variants())
    assert opened
    assert refused


async def test_every_field_of_the_region_table(clean: bytes) -> None:
    def variants() -> Iterator[bytes]:
        for at in range(8, 16 + 2 * 32, 4):
            for data in values():
                content = clean
                for table in REGION_TABLE_OFFSETS:
                    content = put_sealed(content, table, REGION_TABLE_BYTES, at, data)
                yield content

    opened, refused = await fuzz(variants())
    assert opened
    assert refused


async def test_every_field_of_the_metadata(clean: bytes) -> None:
    def variants() -> Iterator[bytes]:
        fields = [*range(0, 32 + 5 * 32, 4), *range(64 * KIB, 64 * KIB + 40, 4)]
        for at in fields:
            for data in values():
                yield put(clean, METADATA + at, data)

    opened, refused = await fuzz(variants())
    assert opened
    assert refused


async def test_every_field_of_the_bat(clean: bytes) -> None:
    def variants() -> Iterator[bytes]:
        for at in range(0, 40, 4):
            for data in values():
                yield put(clean, BAT + at, data)
        for state in range(8):
            for place in (0, 1, 4, 5, 6, 7, 1 << 30, (1 << 44) - 1):
                yield put(clean, BAT + 8, struct.pack("<Q", place << 20 | state))

    opened, refused = await fuzz(variants())
    assert opened
    assert refused


async def test_every_field_of_the_log(dirty: bytes) -> None:
    """Entries stay valid by their checksum."""

    def variants() -> Iterator[bytes]:
        starts = [at for at in range(LOG, LOG + MIB, 4 * KIB) if dirty[at : at + 4] == b"loge"]
        assert len(starts) > 2
        for start in (starts[0], starts[-1]):
            (length,) = struct.unpack_from("<I", dirty, start + 8)
            for at in range(8, 128, 4):
                for data in values():
                    yield put_sealed(dirty, start, length, at, data)

    opened, refused = await fuzz(variants())
    assert opened
    assert refused


async def test_random_bytes_anywhere(clean: bytes, dirty: bytes) -> None:
    source = random.Random(5)
    ranges = [(0, 4096), *((at, 128) for at in HEADER_OFFSETS), (LOG, 64 * KIB), (BAT, 64)]
    ranges += [
        (METADATA, 256),
        (METADATA + 64 * KIB, 64),
        *((at, 96) for at in REGION_TABLE_OFFSETS),
    ]

    def variants() -> Iterator[bytes]:
        for _ in range(300):
            content = source.choice((clean, dirty))
            for _ in range(source.randrange(1, 4)):
                start, length = source.choice(ranges)
                content = put(content, start + source.randrange(length), source.randbytes(4))
            yield content

    await fuzz(variants())


async def test_files_cut_short(clean: bytes, dirty: bytes) -> None:
    for length in (0, 8, 64 * KIB, MIB - 1, MIB, 2 * MIB, 3 * MIB, 4 * MIB, len(clean) - MIB):
        fails(clean[:length], "recorded")
        if length <= 3 * MIB:  # else its log can say again how long it was
            fails(dirty[:length], "recorded")


# What errors say


def test_not_a_vhdx_file(clean: bytes) -> None:
    fails(put(clean, 0, b"conectix"), "file type identifier at byte 0", 0)


def test_one_good_header_is_enough(clean: bytes) -> None:
    for offset in HEADER_OFFSETS:
        reopened(put(clean, offset + 100, b"x"))
    content = put(put(clean, HEADER_OFFSETS[0], b"x"), HEADER_OFFSETS[1], b"x")
    fails(content, "header at byte 65536: neither", HEADER_OFFSETS[0])


def test_headers_of_one_number(clean: bytes) -> None:
    content = clean
    for offset in HEADER_OFFSETS:
        content = put_sealed(content, offset, HEADER_BYTES, 8, struct.pack("<Q", 5))
    reopened(content)  # they say the same
    fails(put_sealed(content, HEADER_OFFSETS[0], HEADER_BYTES, 16, b"x" * 16), "same Sequence")


def test_versions(clean: bytes) -> None:
    content = clean
    for offset in HEADER_OFFSETS:
        content = put_sealed(content, offset, HEADER_BYTES, 66, struct.pack("<H", 2))
    fails(content, "Version 2 is not 1")


def test_one_good_region_table_is_enough(clean: bytes) -> None:
    for offset in REGION_TABLE_OFFSETS:
        reopened(put(clean, offset + CHECKSUM_OFFSET, b"xxxx"))
    content = clean
    for offset in REGION_TABLE_OFFSETS:
        content = put(content, offset + CHECKSUM_OFFSET, b"xxxx")
    fails(content, "region table at byte 196608: neither", REGION_TABLE_OFFSETS[0])


def region(content: bytes, index: int, entry: bytes) -> bytes:
    for offset in REGION_TABLE_OFFSETS:
        table = bytearray(content[offset : offset + REGION_TABLE_BYTES])
        struct.pack_into("<I", table, 8, max(index + 1, 2))
        table[16 + index * 32 : 48 + index * 32] = entry
        content = put(content, offset, sealed(table))
    return content


@pytest.mark.parametrize(
    ("guid", "place", "length", "required", "match"),
    [
        (bytes(16), 5 * MIB, MIB, 1, "is required, and this program does not know it"),
        (BAT_REGION.bytes_le, 5 * MIB, MIB, 1, "is double"),
        (bytes(16), MIB, MIB, 0, "overlaps the"),
        (bytes(16), BLOCKS, MIB, 0, "overlap something else"),
        (bytes(16), 5 * MIB + 512, MIB, 0, "not whole MiB"),
        (bytes(16), 500 * MIB, MIB, 0, "not in the file"),
    ],
)
def test_a_third_region(
    clean: bytes, guid: bytes, place: int, length: int, required: int, match: str
) -> None:
    fails(region(clean, 2, guid + struct.pack("<QII", place, length, required)), match)


def test_an_unknown_region_that_is_not_required_is_kept(clean: bytes) -> None:
    content = clean + bytes(MIB)
    entry = bytes(range(16)) + struct.pack("<QII", len(clean), MIB, 0)
    reopened(region(content, 2, entry))


def test_a_region_is_missing(clean: bytes) -> None:
    entry = bytes(range(16)) + struct.pack("<QII", METADATA, MIB, 0)
    index = 0 if clean[REGION_TABLE_OFFSETS[0] + 16 :].startswith(METADATA_REGION.bytes_le) else 1
    fails(region(clean, index, entry), "there is no metadata region")


def metadata_entry(content: bytes, flags: int, offset: int = 80 * KIB, length: int = 8) -> bytes:
    """A sixth item."""
    entry = bytes(range(16)) + struct.pack("<IIII", offset, length, flags, 0)
    content = put(content, METADATA + 10, struct.pack("<H", 6))
    return put(content, METADATA + 32 + 5 * 32, entry)


async def test_metadata_items_that_are_not_known(clean: bytes) -> None:
    reopened(metadata_entry(clean, 0))
    fails(metadata_entry(clean, 4), "is required, and this program does not know it")
    fails(metadata_entry(clean, 5), "is required")
    fails(metadata_entry(clean, 0, offset=64 * KIB), "overlaps the")
    fails(metadata_entry(clean, 0, offset=100), "in the metadata table itself")
    fails(metadata_entry(clean, 0, offset=MIB), "not in it")


def bat_entry(content: bytes, block: int, place: int, state: int) -> bytes:
    return put(content, BAT + block * 8, struct.pack("<Q", place | state))


@pytest.mark.parametrize(
    ("place", "state", "match"),
    [
        (BLOCKS, 6, r"BAT entry 1 \(payload block 1\) at byte 3145736: .* overlap"),
        (BAT, 6, "overlap"),
        (0, 6, "not in the file"),
        (400 * MIB, 6, "not in the file"),
        (BLOCKS + 512, 6, "reserved bits"),
        (5 * MIB, 7, "PARTIALLY_PRESENT in a disk without parent"),
        (5 * MIB, 4, "there is no state 4"),
    ],
)
def test_entries_of_the_bat(clean: bytes, place: int, state: int, match: str) -> None:
    fails(bat_entry(clean, 1, place, state), match)


@pytest.mark.parametrize("state", [0, 1, 2, 3, 5])
async def test_blocks_that_are_not_there_read_as_zeroes(clean: bytes, state: int) -> None:
    """Whatever place they name; one that is theirs alone is theirs when they are written."""
    for place in (0, BLOCKS, len(clean), 1 << 50):
        file = RecordingFile(bat_entry(clean + bytes((9,)) * MIB, 1, place, state))
        disk = open_disk(file)
        assert await read(disk, 0, 3 * MIB) == (
            CONTENT + bytes(2 * MIB - 512) + CONTENT + bytes(MIB - 512)
        )
        await write(disk, MIB + 512, CONTENT)
        await disk.close()
        disk = reopened(file.killed())
        assert await read(disk, MIB, 2048) == bytes(512) + CONTENT + bytes(1024)


def test_a_sector_bitmap_in_a_disk_without_parent() -> None:
    content = new_file(5000 * MIB).killed() + bytes(MIB)
    fails(bat_entry(content, 4096, len(content) - MIB, 6), r"\(sector bitmap 0\)")
    fails(bat_entry(content, 4096, len(content) - MIB, 3), "no state 3 of sector bitmaps")


async def test_a_partial_block_without_its_bitmap(clean: bytes) -> None:
    parent = reopened(clean)
    content = new_file(SIZE, parent=parent).killed() + bytes(MIB)
    with pytest.raises(StorageError, match=r"BAT entry 4096 \(sector bitmap 0\)"):
        reopened(bat_entry(content, 0, len(content) - MIB, 7), parent)


# The log


async def test_an_empty_log_is_no_damage(dirty: bytes) -> None:
    disk = reopened(put(dirty, LOG, bytes(MIB)))
    assert disk.size_bytes == SIZE


def test_a_log_without_a_whole_sequence(dirty: bytes) -> None:
    content = dirty
    for at in range(LOG, LOG + MIB, 4 * KIB):
        if content[at : at + 4] == b"loge":
            content = put(content, at + 60, b"torn")
    fails(content, "log at byte 1048576: no complete sequence", LOG)


def test_a_log_that_writes_where_it_must_not(dirty: bytes) -> None:
    start = max(at for at in range(LOG, LOG + MIB, 4 * KIB) if dirty[at : at + 4] == b"loge")
    (length,) = struct.unpack_from("<I", dirty, start + 8)
    for place, match in (
        (0, "into the headers"),
        (HEADER_OFFSETS[0], "into the headers"),
        (LOG + 4096, "into the log"),
        (1 << 60, "where no VHDX file"),
    ):
        content = put_sealed(dirty, start, length, 64 + 16, struct.pack("<Q", place))
        fails(content, match, LOG)


@pytest.mark.parametrize("kind", [Kind.FIXED, Kind.DYNAMIC])
async def test_stale_entries_of_another_log_are_left_alone(kind: Kind) -> None:
    """Two sessions: the second's log lies over the first's."""
    file = new_file(SIZE, kind)
    for session in range(2):
        disk = open_disk(file)
        for at in range(3 - session):
            await write(disk, at * MIB, bytes((session + 1,)) * 512)
        await disk.flush()
        file = RecordingFile(file.killed())
    disk = open_disk(file)
    for at, expected in ((0, 2), (1, 2), (2, 1)):
        assert await read(disk, at * MIB, 512) == bytes((expected,)) * 512


def test_a_log_of_entries_that_overlap_is_not_summed_up_for_ever() -> None:
    """Each sector claims to begin an entry as long as the log."""
    size, file, guid = 16 * MIB, RecordingFile(), UUID(int=7)
    create_vhdx(file, NewDisk(8 * MIB, log_bytes=size))
    read_headers(file).update_blocking(log_guid=guid)
    fields = {
        "signature": b"loge",
        "checksum": 1,
        "entry_length": size,
        "tail": 0,
        "sequence_number": 1,
        "descriptor_count": 0,
        "log_guid": guid,
        "flushed_file_offset": 0,
        "last_file_offset": 0,
    }
    sector = LOG_ENTRY_HEADER.build(fields).ljust(LOG_SECTOR_BYTES, b"\0")
    file.write_blocking(MIB, sector * (size // LOG_SECTOR_BYTES))
    fails(file.killed(), "its entries overlap one another")
