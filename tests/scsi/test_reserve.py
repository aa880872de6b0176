"""RESERVE and RELEASE between two nexuses (SPC-2)."""

import pytest

from pyiscsi_target.scsi.reservations import Reservation, ReservationType, State
from pyiscsi_target.scsi.sense import ReservationConflict
from pyiscsi_target.scsi.task import Status
from tests.support.gated_disk import task_for
from tests.support.memory_disk import data_of, make_disk, make_nexus, run

ONE, TWO, THREE = make_nexus("one"), make_nexus("two"), make_nexus("three")
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


# Beside persistent reservations (SPC-2 clause 5.5.1, SPC-5 clause 5.14.3)

COMPATIBLE = ["16", "17", "56", "57"]
PERSISTENT = ["5e 00 00 00 00 00 00 00ff", "5e 02 00 00 00 00 00 00ff", "5f 01 05 00 00 00000018"]


@pytest.mark.parametrize("cdb", PERSISTENT)
def test_persistent_reservations_conflict_with_a_reserve_of_anybody(cdb: str) -> None:
    lu = make_disk()
    run(lu, ONE, "16")
    for nexus in (ONE, TWO):
        assert run(lu, nexus, cdb, [bytes(24)]).status == Status.RESERVATION_CONFLICT
        task = task_for(nexus, cdb)
        with pytest.raises(ReservationConflict):
            lu.data_out_length(task)
    run(lu, ONE, "17")
    assert run(lu, TWO, PERSISTENT[0]).status == Status.GOOD


@pytest.mark.parametrize("cdb", COMPATIBLE)
def test_a_registration_alone_makes_them_conflict(cdb: str) -> None:
    lu = make_disk(reservations=State({ONE.key: 1}))
    for nexus in (ONE, TWO):
        assert run(lu, nexus, cdb).status == Status.RESERVATION_CONFLICT
    assert run(lu, TWO, "2a 00 00000000 00 0001", [bytes(512)]).status == Status.GOOD


@pytest.mark.parametrize("kind", ReservationType)
@pytest.mark.parametrize("cdb", COMPATIBLE)
def test_those_with_full_access_are_told_good_and_nothing_changes(
    cdb: str, kind: ReservationType
) -> None:
    holder = None if kind in (7, 8) else ONE.key
    state = State({ONE.key: 1, TWO.key: 2}, Reservation(kind, holder))
    lu = make_disk(reservations=state)
    answers = [run(lu, nexus, cdb).status for nexus in (ONE, TWO, THREE)]
    registrant = Status.GOOD if kind >= 5 else Status.RESERVATION_CONFLICT
    assert answers == [Status.GOOD, registrant, Status.RESERVATION_CONFLICT]
    assert lu.reserved_by is None
    assert lu.reservations == state


# What each command may do: write exclusive, exclusive access (SPC-5 table 71, SBC-4 table 15)


@pytest.mark.parametrize(
    ("name", "cdb", "write_exclusive", "exclusive_access"),
    [
        ("TEST UNIT READY", "00", True, True),
        ("REQUEST SENSE", "03 00 00 00 ff", True, True),
        ("INQUIRY", "12 00 00 00ff", True, True),
        ("REPORT LUNS", "a0 00 00 000000 000000ff", True, True),
        ("LOG SENSE", "4d 00 40 00 00 0000 00ff", True, True),
        ("READ CAPACITY(10)", "25", True, True),
        ("READ CAPACITY(16)", "9e10 0000000000000000 00000020", True, True),
        ("REPORT SUPPORTED OPERATION CODES", "a30c 00 00 0000 000000ff", True, True),
        ("PERSISTENT RESERVE IN", PERSISTENT[0], True, True),
        ("PREVENT ALLOW, allow", "1e 00 00 00 00", True, True),
        ("START STOP UNIT, start", "1b 00 00 00 01", True, True),
        ("READ(10)", "28 00 00000000 00 0001", True, False),
        ("READ(16)", "88 00 0000000000000000 00000001", True, False),
        ("VERIFY(10)", "2f 00 00000000 00 0001", True, False),
        ("PRE-FETCH(10)", "34 00 00000000 00 0001", True, False),
        ("GET LBA STATUS", "9e12 0000000000000000 000000ff", True, False),
        ("MODE SENSE(6)", "1a 00 3f 00 ff", True, False),
        ("RECEIVE DIAGNOSTIC RESULTS", "1c 01 00 00ff", True, False),
        ("WRITE(10)", "2a 00 00000000 00 0000", False, False),
        ("WRITE(16)", "8a 00 0000000000000000 00000000", False, False),
        ("UNMAP", "42 00 00000000 00 0000", False, False),
        ("SYNCHRONIZE CACHE(10)", "35", False, False),
        ("MODE SELECT(6)", "15 10 00 00 00", False, False),
        ("SEND DIAGNOSTIC", "1d 04", False, False),
        ("PREVENT ALLOW, prevent", "1e 00 00 00 01", False, False),
        ("START STOP UNIT, stop", "1b 00 00 00 00", False, False),
    ],
)
@pytest.mark.parametrize("kind", ReservationType)
def test_what_a_persistent_reservation_lets_through(
    name: str, cdb: str, write_exclusive: bool, exclusive_access: bool, kind: ReservationType
) -> None:
    passes = exclusive_access if "EXCLUSIVE_ACCESS" in kind.name else write_exclusive
    holder = None if kind in (7, 8) else ONE.key
    lu = make_disk(reservations=State({ONE.key: 1, TWO.key: 2}, Reservation(kind, holder)))
    registrant = passes or kind >= 5
    for nexus, allowed in ((ONE, True), (TWO, registrant), (THREE, passes)):
        expected = Status.GOOD if allowed else Status.RESERVATION_CONFLICT
        assert run(lu, nexus, cdb).status == expected
