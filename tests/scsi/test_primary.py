import pytest

from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.primary import absent_request_sense
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task
from tests.support.memory_disk import (
    data_of,
    field_of,
    make_disk,
    make_nexus,
    run,
    sense_of,
    store_of,
)

TEST_UNIT_READY = "00"
REQUEST_SENSE = "03 00 00 00 FF 00"
REQUEST_DESCRIPTOR_SENSE = "03 01 00 00 FF 00"
STOP = "1B 00 00 00 00 00"
START = "1B 00 00 00 01 00"

INVALID_CDB = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)


def start_stop(lu: LogicalUnit, nexus: Nexus, options: int, *, modifier: int = 0) -> Result:
    return run(lu, nexus, bytes((0x1B, 0, 0, modifier, options, 0)))


def test_a_unit_that_runs_is_ready_and_has_nothing_to_report() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert run(lu, nexus, TEST_UNIT_READY).status == Status.GOOD
    assert data_of(run(lu, nexus, REQUEST_SENSE)).hex() == "700000000000000a" + "00" * 10
    assert data_of(run(lu, nexus, REQUEST_DESCRIPTOR_SENSE)).hex() == "72" + "00" * 7


@pytest.mark.parametrize("allocation_length", [0, 1, 17, 18])
def test_request_sense_truncates(allocation_length: int) -> None:
    lu, nexus = make_disk(), make_nexus()
    whole = data_of(run(lu, nexus, REQUEST_SENSE))
    cdb = bytes((0x03, 0, 0, 0, allocation_length, 0))
    assert data_of(run(lu, nexus, cdb)) == whole[:allocation_length]


def test_request_sense_tells_pending_attentions_one_by_one() -> None:
    lu, nexus = make_disk(), make_nexus()
    lu.attach(nexus, Asc.POWER_ON_OCCURRED)
    lu.attentions.establish(nexus, Asc.MODE_PARAMETERS_CHANGED)
    first = data_of(run(lu, nexus, REQUEST_SENSE))
    assert (first[2], first[12], first[13]) == (SenseKey.UNIT_ATTENTION, 0x29, 0x01)
    second = data_of(run(lu, nexus, REQUEST_DESCRIPTOR_SENSE))
    assert second[:4].hex() == "72062a01"
    assert data_of(run(lu, nexus, REQUEST_SENSE))[2] == SenseKey.NO_SENSE
    assert run(lu, nexus, TEST_UNIT_READY).status == Status.GOOD


def test_request_sense_where_no_logical_unit_is() -> None:
    task = Task(make_nexus(), 0, bytes.fromhex(REQUEST_SENSE).ljust(16, b"\0"))
    data = data_of(absent_request_sense(task))
    assert (data[2], data[12], data[13]) == (SenseKey.ILLEGAL_REQUEST, 0x25, 0x00)


def test_a_stop_flushes_and_the_unit_stays_ready() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert run(lu, nexus, STOP).status == Status.GOOD
    assert store_of(lu).flushes == 1
    assert run(lu, nexus, TEST_UNIT_READY).status == Status.GOOD
    assert data_of(run(lu, nexus, REQUEST_SENSE))[2] == SenseKey.NO_SENSE
    assert run(lu, nexus, START).status == Status.GOOD
    assert store_of(lu).flushes == 1


def test_no_flush_is_obeyed() -> None:
    lu, nexus = make_disk(), make_nexus()
    assert start_stop(lu, nexus, 0x04).status == Status.GOOD
    assert store_of(lu).flushes == 0


def test_a_stop_whose_flush_fails_says_so() -> None:
    lu, nexus = make_disk(), make_nexus()
    store_of(lu).failing = True
    assert sense_of(run(lu, nexus, STOP))[0] is SenseKey.MEDIUM_ERROR


@pytest.mark.parametrize(
    ("power_condition", "modifiers", "flushes"),
    [(0x1, 1, 0), (0x2, 3, 0), (0x3, 2, 1), (0x7, 1, 0), (0xA, 3, 0), (0xB, 2, 1)],
)
def test_power_conditions(power_condition: int, modifiers: int, flushes: int) -> None:
    nexus = make_nexus()
    for modifier in range(16):
        lu = make_disk()
        # LOEJ and START mean nothing beside a power condition.
        result = start_stop(lu, nexus, power_condition << 4 | 0x02, modifier=modifier)
        if modifier < modifiers:
            assert result.status == Status.GOOD
            assert store_of(lu).flushes == flushes
        else:
            assert field_of(result) == (3, 3, True)


def test_standby_obeys_no_flush() -> None:
    lu = make_disk()
    assert start_stop(lu, make_nexus(), 0x34).status == Status.GOOD
    assert store_of(lu).flushes == 0


@pytest.mark.parametrize("power_condition", [0x4, 0x5, 0x6, 0x8, 0x9, 0xC, 0xD, 0xE, 0xF])
def test_reserved_power_conditions(power_condition: int) -> None:
    result = start_stop(make_disk(), make_nexus(), power_condition << 4)
    assert sense_of(result) == INVALID_CDB
    assert field_of(result) == (4, 7, True)


@pytest.mark.parametrize("options", [0x02, 0x03])
def test_a_fixed_medium_cannot_be_ejected_or_loaded(options: int) -> None:
    lu = make_disk()
    result = start_stop(lu, make_nexus(), options)
    assert sense_of(result) == INVALID_CDB
    assert field_of(result) == (4, 1, True)
    assert not lu.ejected


EJECT, LOAD = 0x02, 0x03
NO_MEDIUM = (SenseKey.NOT_READY, Asc.MEDIUM_NOT_PRESENT)


@pytest.fixture
def removable() -> LogicalUnit:
    return make_disk(DiskSettings(removable=True))


@pytest.mark.parametrize(("no_flush", "flushes"), [(0x00, 1), (0x04, 0)])
def test_an_ejected_medium_is_flushed_and_gone_until_it_is_loaded(
    removable: LogicalUnit, no_flush: int, flushes: int
) -> None:
    lu, nexus = removable, make_nexus()
    for _ in range(2):
        assert start_stop(lu, nexus, EJECT | no_flush).status == Status.GOOD
    assert store_of(lu).flushes == flushes
    lu.reset(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    start_stop(lu, nexus, 0x10)
    assert sense_of(run(lu, nexus, START)) == NO_MEDIUM
    assert sense_of(run(lu, nexus, TEST_UNIT_READY)) == NO_MEDIUM
    data = data_of(run(lu, nexus, REQUEST_SENSE))
    assert (data[2], data[12]) == (SenseKey.NOT_READY, 0x3A)
    assert start_stop(lu, nexus, LOAD).status == Status.GOOD
    assert run(lu, nexus, TEST_UNIT_READY).status == Status.GOOD


def test_a_stopped_medium_can_be_ejected(removable: LogicalUnit) -> None:
    nexus = make_nexus()
    assert run(removable, nexus, STOP).status == Status.GOOD
    assert start_stop(removable, nexus, EJECT).status == Status.GOOD
    assert sense_of(run(removable, nexus, TEST_UNIT_READY)) == NO_MEDIUM


def test_a_medium_that_cannot_be_flushed_stays(removable: LogicalUnit) -> None:
    store_of(removable).failing = True
    assert sense_of(start_stop(removable, make_nexus(), EJECT))[0] is SenseKey.MEDIUM_ERROR
    assert not removable.ejected


def test_the_others_learn_of_a_loaded_medium(removable: LogicalUnit) -> None:
    lu, mine, other = removable, make_nexus(), make_nexus("iqn.2026-11.lab.example:node2")
    lu.attentions.attach(mine)
    lu.attentions.attach(other)
    start_stop(lu, mine, LOAD)
    assert not lu.attentions.pending
    start_stop(lu, mine, EJECT)
    start_stop(lu, mine, LOAD)
    assert lu.attentions.take(other) is Asc.NOT_READY_TO_READY_CHANGE_MEDIUM_MAY_HAVE_CHANGED
    assert lu.attentions.take(mine) is None


def test_one_nexus_that_prevents_removal_is_enough(removable: LogicalUnit) -> None:
    lu, one, other = removable, make_nexus(), make_nexus("iqn.2026-11.lab.example:node2")
    prevented = (SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED)
    for nexus in (one, other):
        assert run(lu, nexus, "1E 00 00 00 01 00").status == Status.GOOD
    assert run(lu, one, "1E 00 00 00 00 00").status == Status.GOOD
    assert sense_of(start_stop(lu, one, EJECT)) == prevented
    assert sense_of(start_stop(lu, one, LOAD)) == prevented
    assert run(lu, one, STOP).status == Status.GOOD
    assert run(lu, other, "1E 00 00 00 00 00").status == Status.GOOD
    assert start_stop(lu, one, EJECT).status == Status.GOOD


@pytest.mark.parametrize("prevent", [2, 3])
def test_obsolete_prevent_values(prevent: int) -> None:
    lu = make_disk()
    result = run(lu, make_nexus(), bytes((0x1E, 0, 0, 0, prevent, 0)))
    assert field_of(result) == (4, 1, True)
    assert not lu.prevented_by
