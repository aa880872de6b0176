"""VHD structures against QEMU's and libvhdi's idea of them."""

from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.storage import vhd_format
from pyiscsi_target.storage.vhd_format import (
    LARGEST_GEOMETRY,
    DamagedError,
    DiskType,
    Footer,
    FormatError,
    Geometry,
    Header,
    Locator,
    bitmap_bytes,
    build_footer,
    build_header,
    checksum,
    geometry_of,
    parse_footer,
    parse_header,
    stamp_of,
)
from tests.support.process import run_tool

GIB = 1 << 30
ID = UUID("00112233-4455-6677-8899-aabbccddeeff")
FOOTER = Footer(DiskType.DYNAMIC, 1 << 30, 1 << 29, geometry_of(1 << 30), ID, 12345, 512)


def test_a_footer_survives_the_way_to_bytes_and_back() -> None:
    raw = build_footer(FOOTER)
    assert len(raw) == 512
    assert raw[:8] == b"conectix"
    assert parse_footer(raw) == FOOTER


def test_an_old_footer_lacks_its_last_byte() -> None:
    assert parse_footer(build_footer(FOOTER)[:511]) == FOOTER


def test_fields_lie_where_the_specification_says() -> None:
    raw = build_footer(FOOTER)
    assert raw[8:12] == bytes.fromhex("00000002")
    assert raw[12:16] == bytes.fromhex("00010000")
    assert int.from_bytes(raw[16:24]) == 512
    assert int.from_bytes(raw[24:28]) == 12345
    assert int.from_bytes(raw[40:48]) == 1 << 29
    assert int.from_bytes(raw[48:56]) == 1 << 30
    assert int.from_bytes(raw[60:64]) == 3
    assert raw[68:84] == ID.bytes


@given(st.integers(0, 511), st.integers(0, 7))
def test_any_changed_bit_of_a_footer_is_damage(byte: int, bit: int) -> None:
    raw = bytearray(build_footer(FOOTER))
    raw[byte] ^= 1 << bit
    with pytest.raises(DamagedError):
        parse_footer(bytes(raw))


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (12, bytes.fromhex("00020000"), "version 2.0"),
        (60, bytes.fromhex("00000005"), "disk type 5"),
        (84, b"\x01", "saved state"),
        (48, bytes(8), "current size 0"),
        (48, (513).to_bytes(8), "current size 513"),
        (48, (vhd_format.DYNAMIC_READ_MAX_BYTES + 512).to_bytes(8), "current size"),
    ],
)
def test_a_footer_that_means_what_we_cannot_do(offset: int, value: bytes, message: str) -> None:
    raw = bytearray(build_footer(FOOTER))
    raw[offset : offset + len(value)] = value
    raw[64:68] = checksum(bytes(raw), 64).to_bytes(4)
    with pytest.raises(FormatError, match=message) as caught:
        parse_footer(bytes(raw))
    assert not isinstance(caught.value, DamagedError)
    assert caught.value.field_offset == offset


def test_a_header_survives_the_way_to_bytes_and_back() -> None:
    locators = (Locator(b"W2ru", 512, 20, 4096), Locator(b"W2ku", 512, 30, 4608))
    header = Header(1536, 77, 2 << 20, ID, 99, "Elternplatte ü.vhd", locators)
    raw = build_header(header)
    assert len(raw) == 1024
    assert raw[:16] == b"cxsparse" + b"\xff" * 8
    assert raw[64:68] == b"\0E\0l"
    assert parse_header(raw) == header


def test_a_long_parent_name_is_cut_between_characters() -> None:
    name = "x" * 254 + "\U0001f4be"  # the surrogates would be the 255th and 256th unit
    assert parse_header(build_header(Header(1536, 1, 512, parent_name=name))).parent_name == (
        "x" * 254
    )


@pytest.mark.parametrize(
    ("offset", "value", "message"),
    [
        (24, bytes.fromhex("00000000"), "version 0.0"),
        (32, bytes(4), "block size 0"),
        (32, (513).to_bytes(4), "block size 513"),
        (32, (256).to_bytes(4), "block size 256"),
    ],
)
def test_a_header_that_means_what_we_cannot_do(offset: int, value: bytes, message: str) -> None:
    raw = bytearray(build_header(Header(1536, 1, 2 << 20)))
    raw[offset : offset + len(value)] = value
    raw[36:40] = checksum(bytes(raw), 36).to_bytes(4)
    with pytest.raises(FormatError, match=message):
        parse_header(bytes(raw))


@pytest.mark.parametrize(
    ("creator", "geometry", "size"),
    [
        (b"vpc ", Geometry(100, 16, 63), 100 * 16 * 63 * 512),
        (b"qemu", Geometry(100, 16, 63), 100 * 16 * 63 * 512),
        (b"qem2", Geometry(100, 16, 63), GIB),
        (b"win ", Geometry(100, 16, 63), GIB),
        (b"d2v ", Geometry(100, 16, 63), GIB),
        (b"tap\0", Geometry(100, 16, 63), GIB),
        (b"vbox", Geometry(100, 16, 63), GIB),
        (b"vpc ", LARGEST_GEOMETRY, GIB),
        (b"vpc ", Geometry(0, 16, 63), GIB),
        (b"vpc ", Geometry(65535, 16, 63), GIB),  # more than there is
    ],
)
def test_who_made_a_disk_says_how_large_it_is(
    creator: bytes, geometry: Geometry, size: int
) -> None:
    footer = Footer(
        DiskType.FIXED, GIB, GIB, geometry, ID, 0, creator_application=creator
    )  # fmt: skip
    assert footer.size_bytes == size


@pytest.mark.parametrize(
    ("size_bytes", "geometry"),
    [
        (3 << 20, Geometry(90, 4, 17)),
        (1 << 30, Geometry(2080, 16, 63)),
        (200 * GIB, LARGEST_GEOMETRY),
        (33_000_000 * 512 * 2, Geometry(65476, 16, 63)),
    ],
)
def test_geometry(size_bytes: int, geometry: Geometry) -> None:
    assert geometry_of(size_bytes) == geometry


@given(st.integers(68 * 512, 3 << 40))
def test_a_geometry_fits_its_fields_and_covers_most_of_the_disk(size_bytes: int) -> None:
    found = geometry_of(size_bytes)
    assert found.cylinders <= 65535
    assert found.heads <= 16
    assert found.sectors_per_track <= 255
    covered = min(size_bytes, LARGEST_GEOMETRY.size_bytes)
    one_cylinder = found.heads * found.sectors_per_track * 512
    assert covered - one_cylinder < found.size_bytes <= covered


@pytest.mark.parametrize("mebibytes", [1, 7, 33, 520, 8000, 70000])
def test_qemu_computes_the_same_geometry(mebibytes: int, tmp_path: Path) -> None:
    """Without `force_size` QEMU grows the disk until a geometry covers it exactly."""
    image = tmp_path / "q.vhd"
    run_tool(["qemu-img", "create", "-q", "-f", "vpc", image, f"{mebibytes}M"])
    footer = parse_footer(image.read_bytes()[-512:])
    assert geometry_of(footer.current_size) == footer.geometry


def test_bitmaps_are_whole_sectors() -> None:
    assert [bitmap_bytes(size) for size in (512, 2 << 20, 4 << 20, 256 << 20)] == [
        512, 512, 1024, 65536,
    ]  # fmt: skip


def test_time_begins_in_2000() -> None:
    assert stamp_of(946684800) == 0
    assert stamp_of(946684800 + 5.5) == 5
    assert stamp_of(0) == 0
