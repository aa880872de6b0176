"""Malformed VHDs: each is refused with the structure and its place, at little cost."""

import struct
import tracemalloc
from array import array
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.chain import ParentPaths
from pyiscsi_target.storage.vhd import open_vhd
from pyiscsi_target.storage.vhd_create import ParentOfNew, new_dynamic, new_fixed
from pyiscsi_target.storage.vhd_format import (
    FOOTER_CHECKSUM,
    HEADER_CHECKSUM,
    NO_PARENT,
    checksum,
    parse_footer,
)
from pyiscsi_target.storage.vhd_image import (
    MAX_BLOCKS,
    free_places,
    read_layout,
    sorted_entries,
)
from tests.support.recording_file import RecordingFile
from tests.support.vhd_files import (
    contents,
    open_parent,
    read_all,
    small_child,
    small_dynamic,
    write_bytes,
)

BLOCK = 16 * 512
SIZE = 5 * BLOCK
HEADER = 512
TABLE = 1536
MEMORY_MAX = 64 << 20


def seal(raw: bytearray, start: int, length: int, field: int) -> None:
    """Put the right checksum into the structure."""
    raw[start + field : start + field + 4] = bytes(4)
    value = checksum(bytes(raw[start : start + length]), field)
    struct.pack_into(">I", raw, start + field, value)


def with_footer(raw: bytes, offset: int, value: bytes) -> bytes:
    """Both footers with a field changed."""
    changed = bytearray(raw)
    for start in (0, len(raw) - 512):
        changed[start + offset : start + offset + len(value)] = value
        seal(changed, start, 512, FOOTER_CHECKSUM)
    return bytes(changed)


def with_header(raw: bytes, offset: int, value: bytes) -> bytes:
    changed = bytearray(raw)
    changed[HEADER + offset : HEADER + offset + len(value)] = value
    seal(changed, HEADER, 1024, HEADER_CHECKSUM)
    return bytes(changed)


def with_entry(raw: bytes, block: int, entry: int) -> bytes:
    changed = bytearray(raw)
    struct.pack_into(">I", changed, TABLE + block * 4, entry)
    return bytes(changed)


async def filled() -> bytes:
    """A dynamic disk of five blocks, of which three are there."""
    file = RecordingFile(small_dynamic(SIZE, BLOCK))
    disk = open_vhd(file)
    for block in (3, 0, 1):
        await write_bytes(disk, block * BLOCK, bytes([block + 1]) * BLOCK)
    await disk.close()
    return file.killed()


def refuse(raw: bytes, message: str) -> None:
    file = RecordingFile(raw, "disk.vhd")
    with pytest.raises(StorageError, match=message) as caught:
        open_vhd(file)
    assert str(caught.value).startswith("disk.vhd: ")
    assert caught.value.fault is StorageFault.INVALID
    assert file.killed() == raw


FOOTER_FIELDS: list[tuple[int, bytes, str]] = [
    (12, struct.pack(">I", 0x20000), r"footer at byte \d+: version 2\.0"),
    (16, struct.pack(">Q", 0), "footer copy at byte 16: data offset 0"),
    (16, struct.pack(">Q", 1 << 63), "data offset 9223372036854775808 is not in the file"),
    (16, struct.pack(">Q", 700), "data offset 700"),
    (16, struct.pack(">Q", 1024), "dynamic disk header at byte 1024: the cookie"),
    (48, struct.pack(">Q", 0), "current size 0"),
    (48, struct.pack(">Q", (1 << 64) - 512), "current size"),
    (48, struct.pack(">Q", SIZE + BLOCK), "5 table entries, where 6 to"),
    (60, struct.pack(">I", 1), "disk type 1"),
    (84, b"\1", "saved state"),
]


@pytest.mark.parametrize(("offset", "value", "message"), FOOTER_FIELDS)
def test_footers(offset: int, value: bytes, message: str) -> None:
    refuse(with_footer(small_dynamic(SIZE, BLOCK), offset, value), message)


def test_a_fixed_disk_that_is_cut() -> None:
    raw = contents(new_fixed(SIZE))
    refuse(raw[512:], f"footer at byte {SIZE - 512 + 48}: current size {SIZE} does not fit")


@pytest.mark.parametrize("length", [0, 1, 510])
def test_files_that_are_too_short(length: int) -> None:
    refuse(bytes(length), "too few")


@pytest.mark.parametrize("length", [511, 512, 4096])
def test_files_without_any_footer(length: int) -> None:
    refuse(bytes(length), "footer at byte .*: the cookie is not 'conectix'")


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (16, struct.pack(">Q", 0), "dynamic disk header at byte 528: table offset 0"),
        (16, struct.pack(">Q", 1 << 62), "the table would end at"),
        (16, struct.pack(">Q", 512), "overlaps"),
        (16, struct.pack(">Q", 1537), "table offset 1537"),
        (24, struct.pack(">I", 7), "dynamic disk header at byte 536: version 0.7"),
        (28, struct.pack(">I", 4), "4 table entries, where 5"),
        (28, struct.pack(">I", 0xFFFFFFFF), "4294967295 table entries"),
        (32, struct.pack(">I", 0), "block size 0"),
        (32, struct.pack(">I", 0x80000001), "block size 2147483649"),
        (32, struct.pack(">I", 512), "5 table entries, where 80"),
    ],
)
def test_headers(offset: int, value: bytes, message: str) -> None:
    refuse(with_header(small_dynamic(SIZE, BLOCK), offset, value), message)


def test_a_damaged_header() -> None:
    raw = bytearray(small_dynamic(SIZE, BLOCK))
    raw[HEADER + 900] ^= 1
    refuse(bytes(raw), "dynamic disk header at byte 548: checksum is")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (0, r"block allocation table at byte 1552: block 4 at byte 0 overlaps the footer copy"),
        (1, "overlaps the dynamic disk header"),
        (3, "overlaps the block allocation table"),
        (0xFFFFFFFE, "is not within the file"),
    ],
)
def test_blocks_where_they_cannot_be(entry: int, message: str) -> None:
    raw = small_dynamic(SIZE, BLOCK)
    roomy = raw[:-512] + bytes(4 * BLOCK) + raw[-512:]
    refuse(with_entry(roomy, 4, entry), message)


async def test_blocks_that_overlap() -> None:
    raw = await filled()
    (first,) = struct.unpack_from(">I", raw, TABLE)
    for entry in (first, first + 1, first + 16, first - 16):
        refuse(with_entry(raw, 4, entry), "overlaps|not within")
    refuse(with_entry(raw, 4, first), "block 0 at byte .* overlaps another")


async def test_a_block_over_the_footer() -> None:
    raw = await filled()
    refuse(with_entry(raw, 4, (len(raw) - 512) // 512 - 16), "overlaps")


def a_child() -> tuple[bytes, Callable[[ParentPaths], object]]:
    parent = contents(new_fixed(SIZE))
    return small_child(SIZE, BLOCK, parse_footer(parent[-512:])), open_parent(parent)


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (8, struct.pack(">I", 1 << 20), "parent locator 'W2ru' at byte .*1048576 bytes"),
        (8, struct.pack(">I", 0xFFFF), "parent locator 'W2ru'"),
        (16, struct.pack(">Q", 1 << 63), "parent locator 'W2ru' at byte 9223372036854775808"),
        (16, struct.pack(">Q", 100), "overlaps|footer copy"),
    ],
)
def test_locators(offset: int, value: bytes, message: str) -> None:
    raw, _ = a_child()
    refuse(with_header(raw, 576 + offset, value), message)


FIELDS = st.one_of(
    st.tuples(
        st.just("footer"),
        st.sampled_from([(8, 4), (12, 4), (16, 8), (24, 4), (28, 4), (32, 4), (36, 4), (40, 8),
                         (48, 8), (56, 2), (58, 1), (59, 1), (60, 4), (68, 16), (84, 1)]),
    ),
    st.tuples(
        st.just("header"),
        st.sampled_from([(8, 8), (16, 8), (24, 4), (28, 4), (32, 4), (40, 16), (56, 4), (64, 64),
                         *((576 + 24 * number + at, width) for number in range(3)
                           for at, width in ((0, 4), (4, 4), (8, 4), (16, 8)))]),
    ),
    st.tuples(st.just("table"), st.tuples(st.integers(0, 4), st.just(4))),
    st.tuples(st.just("anything"), st.tuples(st.integers(0, 4095), st.just(2))),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.sampled_from([0, 1, 2, 3, 4, 511, 512, 513, BLOCK, SIZE, 1 << 31, 1 << 32, (1 << 64) - 1]),
    st.integers(0, 200),
)


def change(raw: bytes, what: str, where: tuple[int, int], number: int) -> bytes:
    at, width = where
    value = (number % (1 << 8 * width)).to_bytes(width)
    if what == "footer":
        return with_footer(raw, at, value)
    if what == "header":
        return with_header(raw, at, value)
    if what == "table":
        return with_entry(raw, at, number % (1 << 32))
    return raw[:at] + value + raw[at + width :]


@pytest.mark.parametrize("kind", ["fixed", "dynamic", "child"])
@settings(max_examples=200, deadline=None)
@given(changes=st.lists(st.tuples(FIELDS, NUMBERS), min_size=1, max_size=3))
async def test_whatever_a_field_says_it_is_an_error_or_a_disk(
    kind: str, changes: list[tuple[tuple[str, tuple[int, int]], int]]
) -> None:
    find = None
    raw = contents(new_fixed(SIZE)) if kind == "fixed" else await filled()
    if kind == "child":
        raw, find = a_child()
    for (what, where), number in changes:
        raw = change(raw, what, where, number)
    file = RecordingFile(raw, "disk.vhd")
    file.space_bytes = len(raw) + 65536  # nothing is made room for beyond reason
    try:
        disk = open_vhd(file, find_parent=find)  # type: ignore[arg-type]
    except StorageError as error:
        if "disk.vhd" not in str(error):
            raise
        return
    assert len(await read_all(disk, 0, min(disk.size_bytes, SIZE))) <= SIZE
    await disk.close()


def huge(entries: int, block: int, table: Callable[[int], bytes]) -> tuple[int, int]:
    """Read a sparse dynamic disk with this table; (peak of memory, blocks)."""
    size = entries * block
    new = new_dynamic(1 << 30, 2 << 20)
    raw = contents(new)
    raw = with_footer(raw, 48, struct.pack(">Q", size))
    raw = with_header(raw, 28, struct.pack(">II", entries, block))
    file_bytes = 4 << 40

    def read(offset: int, length: int) -> bytes:
        if offset == TABLE:
            return table(length)
        if offset >= file_bytes - 512:
            return raw[-512:]
        return raw[offset : offset + length].ljust(length, b"\0")

    tracemalloc.start()
    try:
        layout = read_layout(read, file_bytes, "huge.vhd")
        return tracemalloc.get_traced_memory()[1], len(layout.table)
    finally:
        tracemalloc.stop()


def test_the_largest_table_takes_little_memory() -> None:
    peak, entries = huge(MAX_BLOCKS, 512 << 10, lambda length: b"\xff" * length)
    assert entries == MAX_BLOCKS
    assert peak < MEMORY_MAX


def test_a_full_table_is_checked_in_little_memory() -> None:
    entries = (1 << 40) >> 21
    stride = 4096 + 1

    def table(length: int) -> bytes:
        places = array("I", (10000 + number * stride for number in reversed(range(entries))))
        places.byteswap()
        return places.tobytes()

    peak, found = huge(entries, 2 << 20, table)
    assert found == entries
    assert peak < MEMORY_MAX


def test_entries_are_sorted_in_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyiscsi_target.storage.vhd_image.SORT_BLOCKS", 3)
    table = array("I", [7, 0xFFFFFFFF, 3, 9, 1, 0xFFFFFFFF, 5])
    assert list(sorted_entries(table)) == [1, 3, 5, 7, 9]


@pytest.mark.parametrize(("creator", "before"), [(b"win ", 1), (b"tap\0", 0)])
async def test_free_places_lie_where_nothing_is(creator: bytes, before: int) -> None:
    """XenServer keeps a map of its own before the first block."""
    raw = with_footer(await filled(), 28, creator)
    layout = read_layout(lambda offset, length: raw[offset : offset + length], len(raw), "d")
    assert layout.footer_offset is not None
    assert free_places(layout, layout.footer_offset) == []
    first, second, third = sorted(entry for entry in layout.table if entry != 0xFFFFFFFF)
    layout.table[layout.table.index(second)] = 0xFFFFFFFF
    assert free_places(layout, layout.footer_offset) == [(second + 1) * 512]
    layout.table[layout.table.index(third)] = 0xFFFFFFFF
    assert len(free_places(layout, layout.footer_offset)) == 2
    layout.table[layout.table.index(first)] = 0xFFFFFFFF
    assert len(free_places(layout, layout.footer_offset)) == 3 * before


def test_a_child_without_any_path() -> None:
    footer = parse_footer(contents(new_fixed(SIZE))[-512:])
    parent = ParentOfNew("", NO_PARENT, footer.time_stamp, ParentPaths())
    raw = contents(new_dynamic(SIZE, parent=parent))
    layout = read_layout(lambda offset, length: raw[offset : offset + length], len(raw), "c")
    assert layout.locator_data == {}
    refuse(raw, "its parent '\\?' is not looked for")
