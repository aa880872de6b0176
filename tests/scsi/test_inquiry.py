import struct

import pytest

from pyiscsi_target.scsi import inquiry
from pyiscsi_target.scsi.logical_unit import DiskSettings
from pyiscsi_target.scsi.sense import Asc, ScsiError, SenseKey
from pyiscsi_target.scsi.task import Task
from tests.support.memory_disk import data_of, field_of, make_disk, make_nexus, run, sense_of

STANDARD = "12 00 00 00 FF 00"


def test_standard_data_of_a_disk() -> None:
    data = data_of(run(make_disk(), make_nexus(), STANDARD))
    assert data[:8] == bytes.fromhex("00 00 06 12 5B 00 00 02")
    assert data[8:36] == b"PYISCSI Virtual Disk    0001"
    assert struct.unpack(">8H", data[58:74]) == (
        *(0x00A0, 0x0960, 0x0460, 0x04C0, 0x0600),
        *(0, 0, 0),
    )
    assert len(data) == 96 == data[4] + 5


def test_a_removable_disk_says_so() -> None:
    lu = make_disk(DiskSettings(removable=True))
    assert data_of(run(lu, make_nexus(), STANDARD))[1] == 0x80


def test_any_allocation_length_gives_a_prefix() -> None:
    lu, nexus = make_disk(), make_nexus()
    whole = data_of(run(lu, nexus, "12 00 00 FF FF 00"))
    for allocation_length in range(256):
        cdb = bytes((0x12, 0, 0, 0, allocation_length, 0))
        assert data_of(run(lu, nexus, cdb)) == whole[:allocation_length]


def test_a_vpd_page_is_truncated_without_touching_its_length() -> None:
    data = data_of(run(make_disk(), make_nexus(), "12 01 83 00 06 00"))
    assert len(data) == 6
    assert int.from_bytes(data[2:4], "big") > 6


@pytest.mark.parametrize("cdb", ["12 00 01 01 00 00", "12 01 8F 00 FF 00", "12 01 FF 00 FF 00"])
def test_a_page_that_does_not_exist_is_refused_with_its_field(cdb: str) -> None:
    result = run(make_disk(), make_nexus(), cdb)
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert field_of(result) == (2, 7, True)


def _task(cdb: str) -> Task:
    return Task(make_nexus(), 0, bytes.fromhex(cdb).ljust(16, b"\0"))


def test_where_no_logical_unit_is() -> None:
    assert data_of(inquiry.absent_inquiry(_task(STANDARD)))[:3] == bytes.fromhex("7F 00 06")
    assert data_of(inquiry.absent_inquiry(_task("12 01 00 00 FF 00"))).hex() == "7f00000100"
    with pytest.raises(ScsiError, match="INVALID_FIELD_IN_CDB"):
        inquiry.absent_inquiry(_task("12 01 83 00 FF 00"))


def test_the_well_known_logical_unit_names_only_port_and_device() -> None:
    assert data_of(inquiry.well_known_inquiry(_task(STANDARD)))[0] == 0x1E
    pages = data_of(inquiry.well_known_inquiry(_task("12 01 00 00 FF 00")))
    assert pages.hex() == "1e0000020083"
    names = data_of(inquiry.well_known_inquiry(_task("12 01 83 00 FF 00")))
    assert b"iqn.2026-11.lab.example:disks" in names
    assert b"naa." not in names
    with pytest.raises(ScsiError, match="INVALID_FIELD_IN_CDB"):
        inquiry.well_known_inquiry(_task("12 01 80 00 FF 00"))
