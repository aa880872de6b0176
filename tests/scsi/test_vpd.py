import struct
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from pyiscsi_target.scsi import limits, vpd
from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.task import Nexus
from pyiscsi_target.storage.base import Capabilities
from tests.support.memory_disk import SEED, data_of, make_disk, make_nexus, run


def read_page(lu: LogicalUnit, page_code: int, nexus: Nexus | None = None) -> bytes:
    """A page's content, its header checked."""
    data = data_of(run(lu, nexus or make_nexus(), bytes((0x12, 1, page_code, 0xFF, 0xFF))))
    assert data[:2] == bytes((0x00, page_code))
    assert len(data) == 4 + int.from_bytes(data[2:4], "big")
    return data[4:]


@dataclass(frozen=True)
class Designation:
    protocol: int | None
    code_set: int
    association: int
    type: int
    designator: bytes


def designations(content: bytes) -> Iterator[Designation]:
    while content:
        head, kind, length = content[0], content[1], content[3]
        protocol = head >> 4 if kind & 0x80 else None
        designator = content[4 : 4 + length]
        yield Designation(protocol, head & 0x0F, kind >> 4 & 3, kind & 0x0F, designator)
        content = content[4 + length :]


def test_the_list_of_pages_is_ascending_and_every_page_can_be_read() -> None:
    lu = make_disk()
    pages = read_page(lu, 0x00)
    assert pages == bytes.fromhex("00 80 83 86 B0 B1 B2")
    for page_code in pages:
        assert read_page(lu, page_code)


def test_serial_number() -> None:
    assert read_page(make_disk(), 0x80) == f"{SEED:016X}".encode()


def test_device_identification_names_unit_port_and_device() -> None:
    found = list(designations(read_page(make_disk(), 0x83, make_nexus(port=3))))
    assert [(item.association, item.type, item.code_set) for item in found] == [
        (0, 3, 1),
        (0, 2, 1),
        (0, 1, 2),
        (0, 8, 3),
        (1, 4, 1),
        (1, 5, 1),
        (1, 8, 3),
        (2, 8, 3),
    ]
    assert [item.protocol for item in found] == [None] * 4 + [5] * 4
    naa, eui64, t10, unit, port, group, port_name, device_name = (item.designator for item in found)
    assert naa.hex() == "323456789abcdef1"
    assert eui64.hex() == "123456789abcdef1"
    assert t10 == b"PYISCSI Virtual Disk    123456789ABCDEF1"
    assert unit.rstrip(b"\0") == b"naa.323456789ABCDEF1"
    assert (port, group) == (struct.pack(">I", 3), struct.pack(">I", 1))
    assert port_name.rstrip(b"\0") == b"iqn.2026-11.lab.example:disks,t,0x0001"
    assert device_name.rstrip(b"\0") == b"iqn.2026-11.lab.example:disks"
    for name in (unit, port_name, device_name):
        assert name.endswith(b"\0")
        assert len(name) % 4 == 0


def test_the_names_of_the_unit_are_the_same_on_every_path() -> None:
    lu = make_disk()
    paths = [
        [item for item in designations(read_page(lu, 0x83, nexus)) if item.association == 0]
        for nexus in (make_nexus(port=1), make_nexus("iqn.2026-11.lab.example:node2", port=2))
    ]
    assert paths[0] == paths[1]
    assert len(paths[0]) == 4


@pytest.mark.parametrize("length", range(9))
def test_scsi_name_strings_end_in_a_null_and_fill_words(length: int) -> None:
    encoded = vpd.scsi_name_string("x" * length)
    assert encoded == b"x" * length + b"\0" * (4 - length % 4)


@pytest.mark.parametrize("write_cache", [False, True])
def test_extended_inquiry_tells_of_attributes_and_cache(write_cache: bool) -> None:
    content = read_page(make_disk(DiskSettings(write_cache=write_cache)), 0x86)
    assert len(content) == 0x3C
    assert content[:3] == bytes((0x00, 0x07, int(write_cache)))


@pytest.mark.parametrize("block_size", [512, 4096])
def test_block_limits_are_those_that_the_handlers_enforce(block_size: int) -> None:
    settings = DiskSettings(block_size, 4096, thin=True)
    capabilities = Capabilities(deallocate_granularity_bytes=65536)
    content = read_page(make_disk(settings, capabilities=capabilities), 0xB0)
    assert len(content) == 0x3C
    assert struct.unpack(">BBHIIIIIIIQIIIII", content) == (
        0x00,  # WSNZ=0
        limits.MAXIMUM_COMPARE_AND_WRITE_LENGTH,
        4096 // block_size,
        limits.MAXIMUM_TRANSFER_LENGTH_BYTES // block_size,
        limits.OPTIMAL_TRANSFER_LENGTH_BYTES // block_size,
        0,
        limits.MAXIMUM_UNMAP_LBA_COUNT,
        limits.MAXIMUM_UNMAP_BLOCK_DESCRIPTOR_COUNT,
        65536 // block_size,
        0x8000_0000,
        limits.MAXIMUM_WRITE_SAME_LENGTH_BYTES // block_size,
        limits.MAXIMUM_ATOMIC_TRANSFER_LENGTH_BYTES // block_size,
        *(0, 0, 0, 0),
    )


@pytest.mark.parametrize(
    "lu",
    [
        make_disk(DiskSettings(thin=False)),
        make_disk(DiskSettings(thin=True), capabilities=Capabilities()),
    ],
    ids=["configured", "store without holes"],
)
def test_a_thick_disk_claims_nothing_of_unmap(lu: LogicalUnit) -> None:
    assert read_page(lu, 0xB0)[16:32] == bytes(16)
    assert read_page(lu, 0xB2) == bytes(4)


@pytest.mark.parametrize(("block_size", "exponent"), [(512, 11), (4096, 8)])
def test_a_thin_disk_claims_all_ways_to_unmap_and_reads_zeroes(
    block_size: int, exponent: int
) -> None:
    lu = make_disk(DiskSettings(block_size, 4096, thin=True))
    assert read_page(lu, 0xB2) == bytes((exponent, 0b1110_0100, 0x02, 0))
    assert block_size << exponent == limits.THRESHOLD_SET_BYTES


def test_a_medium_that_keeps_space_anchors() -> None:
    capabilities = Capabilities(deallocate_granularity_bytes=4096, anchors=True)
    assert read_page(make_disk(capabilities=capabilities), 0xB2)[1] == 0b1110_0110
    thick = make_disk(DiskSettings(thin=False), capabilities=capabilities)
    assert read_page(thick, 0xB2) == bytes(4)


def test_block_device_characteristics_have_the_length_that_windows_wants() -> None:
    assert read_page(make_disk(), 0xB1) == b"\0\x01" + bytes(0x3A)
