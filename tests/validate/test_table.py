"""The table as such: each row is whole, and none is there twice."""

import re

import pytest

from pyiscsi_target.validate import CHECKS, Check
from pyiscsi_target.validate.gates import free_disk, writes
from pyiscsi_target.validate.model import Area

# The storage tests of Windows' cluster validation that a target can be asked for.
WINDOWS_TESTS = {
    "",
    "List All Disks",
    "List Potential Cluster Disks",
    "Validate Disk Access Latency",
    "Validate Disk Arbitration",
    "Validate Disk Failover",
    "Validate File System",
    "Validate Microsoft MPIO-Based Disks",
    "Validate Multiple Arbitration",
    "Validate SCSI Device Vital Product Data (VPD)",
    "Validate SCSI-3 Persistent Reservation",
    "Validate Simultaneous Failover",
}


def test_no_id_twice() -> None:
    assert len({check.id for check in CHECKS}) == len(CHECKS)


def test_the_areas_come_in_their_order() -> None:
    areas = list(dict.fromkeys(check.area for check in CHECKS))
    assert areas == [area for area in Area if area is not Area.CLEAN_UP]


def test_every_test_of_windows_is_there() -> None:
    assert {check.windows for check in CHECKS} == WINDOWS_TESTS


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_a_row_is_whole(check: Check) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", check.id)
    assert check.title[0].isupper()
    assert check.proves
    assert check.clause or check.windows
    assert not check.title.endswith(".")


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.id)
def test_who_writes_has_the_disk_for_itself(check: Check) -> None:
    """A disk that others use is not written to."""
    if writes in check.gates:
        assert check.gates.index(free_disk) < check.gates.index(writes)
