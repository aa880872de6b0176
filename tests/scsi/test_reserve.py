"""RESERVE and RELEASE between two nexuses (SPC-2)."""

import pytest

from pyiscsi_target.scsi.task import Status
from tests.support.memory_disk import data_of, make_disk, make_nexus, run

ONE, TWO = make_nexus("one"), make_nexus("two")
RESERVE = {6: "16", 10: "56"}
RELEASE = {6: "17", 10: "57"}


@pytest.mark.parametrize("size", [6, 10])
def test_reserve_and_release(size: int) -> None:
    lu = make_disk()
    assert run(lu, ONE, RESERVE[size]).status == Status.GOOD
    assert run(lu, ONE, RESERVE[size]).status == Status.GOOD
    assert run(lu, TWO, RESERVE[size]).status == Status.RESERVATION_CONFLICT
    assert run(lu, TWO, RELEASE[size]).status == Status.GOOD
    assert lu.reserved_by is ONE
    assert run(lu, ONE, RELEASE[size]).status == Status.GOOD
    assert run(lu, TWO, RESERVE[size]).status == Status.GOOD
    assert lu.reserved_by is TWO


@pytest.mark.parametrize(
    ("name", "cdb", "passes"),
    [
        ("INQUIRY", "12 00 00 00ff", True),
        ("REQUEST SENSE", "03 00 00 00 ff", True),
        ("REPORT LUNS", "a0 00 00 000000 000000ff", True),
        ("LOG SENSE", "4d 00 40 00 00 0000 00ff", True),
        ("READ CAPACITY(10)", "25", True),
        ("READ CAPACITY(16)", "9e10 0000000000000000 00000020", True),
        ("PREVENT ALLOW, allow", "1e 00 00 00 00", True),
        ("START STOP UNIT, start", "1b 00 00 00 01", True),
        ("RELEASE(6)", "17", True),
        ("TEST UNIT READY", "00", False),
        ("PREVENT ALLOW, prevent", "1e 00 00 00 01", False),
        ("START STOP UNIT, stop", "1b 00 00 00 00", False),
        ("MODE SENSE(6)", "1a 00 3f 00 ff", False),
        ("MODE SELECT(6)", "15 10 00 00 00", False),
        ("READ(10)", "28 00 00000000 00 0001", False),
        ("WRITE(16)", "8a 00 0000000000000000 00000000", False),
        ("SYNCHRONIZE CACHE(10)", "35", False),
        ("RESERVE(10)", "56", False),
    ],
)
def test_what_another_nexus_may_do(name: str, cdb: str, passes: bool) -> None:
    lu = make_disk()
    run(lu, ONE, "16")
    expected = Status.GOOD if passes else Status.RESERVATION_CONFLICT
    assert run(lu, TWO, cdb).status == expected
    assert run(lu, ONE, cdb).status == Status.GOOD


def test_the_reservation_goes_with_its_nexus() -> None:
    lu = make_disk()
    run(lu, ONE, "16")
    lu.detach(TWO)
    assert lu.reserved_by is ONE
    lu.detach(ONE)
    assert len(data_of(run(lu, TWO, "28 00 00000000 00 0001"))) == 512
