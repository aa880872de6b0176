"""LUNs in front of logical units, and what I_T nexuses hear when they come and go."""

import pytest

from pyiscsi_target.scsi.report_luns import WELL_KNOWN_REPORT_LUNS
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.target_device import TargetDevice, lun_number
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task
from tests.support.gated_disk import make_gated_disk, settle, start
from tests.support.memory_disk import data_of, make_disk, make_nexus, sense_of

BLOCK = 512
TEST_UNIT_READY = "00"
INQUIRY = "12 00 00 00ff"
REQUEST_SENSE = "03 00 00 00 ff"
REPORT_LUNS = "a0 00 00 000000 000000ff"
READ = "28 00 00000000 00 0001"
WRITE = "2a 00 00000000 00 0001"
POWER_ON = Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED
NO_LUN = (SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED)


def execute(device: TargetDevice, nexus: Nexus, cdb: str, lun: int = 0) -> Result:
    outcome = device.execute(make_task(nexus, cdb, lun))
    assert isinstance(outcome, Result)
    return outcome


def make_task(nexus: Nexus, cdb: str, lun: int = 0) -> Task:
    return Task(nexus, lun, bytes.fromhex(cdb).ljust(16, b"\0"))


def attached(nexus: Nexus) -> TargetDevice:
    """A device that `nexus` is attached to, its POWER ON conditions taken."""
    device = TargetDevice("iqn.2026-11.lab.example:disks")
    device.attach(nexus)
    for lu in nexus.luns.values():
        lu.attentions.take(nexus)
    return device


@pytest.fixture
def nexus() -> Nexus:
    nexus = make_nexus()
    nexus.luns.update({0: make_disk(size_bytes=1 << 20), 5: make_disk(size_bytes=1 << 21)})
    return nexus


@pytest.mark.parametrize(
    ("lun", "number"),
    [
        (0x0000_0000_0000_0000, 0),
        (0x0005_0000_0000_0000, 5),
        (0x00FF_0000_0000_0000, 255),
        (0x4005_0000_0000_0000, 5),
        (0x4100_0000_0000_0000, 256),
        (0x7FFF_0000_0000_0000, 0x3FFF),
        (0x0100_0000_0000_0000, -1),
        (0x8005_0000_0000_0000, -1),
        (0xC101_0000_0000_0000, -1),
        (0x0005_0001_0000_0000, -1),
        (0x0000_0000_0000_0001, -1),
    ],
)
def test_lun_number(lun: int, number: int) -> None:
    assert lun_number(lun) == number


@pytest.mark.parametrize("lun", [0x0005 << 48, 0x4005 << 48], ids=["peripheral", "flat"])
def test_the_lun_chooses_the_unit(nexus: Nexus, lun: int) -> None:
    device = attached(nexus)
    assert data_of(execute(device, nexus, "25", lun)).hex() == "00000fff00000200"
    assert data_of(execute(device, nexus, "25")).hex() == "000007ff00000200"


def test_a_nexus_reaches_only_its_own_luns(nexus: Nexus) -> None:
    device = attached(nexus)
    other = make_nexus("other")
    other.luns[5] = nexus.luns[0]
    device.attach(other)
    assert sense_of(execute(device, other, TEST_UNIT_READY)) == NO_LUN
    assert sense_of(execute(device, other, TEST_UNIT_READY, 5 << 48))[1] is POWER_ON


@pytest.mark.parametrize("lun", [1 << 48, 0x8000 << 48, 1], ids=["free", "unknown", "deeper"])
def test_a_lun_where_nothing_is(nexus: Nexus, lun: int) -> None:
    device = attached(nexus)
    assert data_of(execute(device, nexus, INQUIRY, lun))[0] == 0x7F
    sense = data_of(execute(device, nexus, REQUEST_SENSE, lun))
    assert (sense[2], sense[12]) == (SenseKey.ILLEGAL_REQUEST, 0x25)
    for cdb in (TEST_UNIT_READY, READ, WRITE, REPORT_LUNS, "25"):
        assert sense_of(execute(device, nexus, cdb, lun)) == NO_LUN
    assert device.data_out_length(make_task(nexus, WRITE, lun)) == 0


def test_lun_0_reports_luns_even_when_nothing_is_there() -> None:
    nexus = make_nexus()
    nexus.luns[3] = make_disk()
    device = attached(nexus)
    luns = data_of(execute(device, nexus, REPORT_LUNS))
    assert luns.hex() == "0000000800000000" + "0003000000000000"
    assert data_of(execute(device, nexus, INQUIRY))[0] == 0x7F
    assert sense_of(execute(device, nexus, TEST_UNIT_READY)) == NO_LUN
    assert sense_of(execute(device, nexus, "a0 00 77 000000 000000ff"))[1] is (
        Asc.INVALID_FIELD_IN_CDB
    )


def test_the_report_luns_well_known_unit(nexus: Nexus) -> None:
    device = attached(nexus)
    lun = WELL_KNOWN_REPORT_LUNS
    assert execute(device, nexus, TEST_UNIT_READY, lun).status == Status.GOOD
    assert data_of(execute(device, nexus, INQUIRY, lun))[0] == 0x1E
    assert data_of(execute(device, nexus, REQUEST_SENSE, lun))[2] == SenseKey.NO_SENSE
    assert len(data_of(execute(device, nexus, REPORT_LUNS, lun))) == 8 + 2 * 8
    assert sense_of(execute(device, nexus, READ, lun)) == (
        SenseKey.ILLEGAL_REQUEST,
        Asc.INVALID_COMMAND_OPERATION_CODE,
    )


# I_T nexuses


def test_a_new_nexus_hears_of_the_power_on_on_every_unit(nexus: Nexus) -> None:
    device = TargetDevice("t")
    device.attach(nexus)
    for lun in (0, 5 << 48):
        assert sense_of(execute(device, nexus, READ, lun)) == (
            SenseKey.UNIT_ATTENTION,
            POWER_ON,
        )
        assert execute(device, nexus, READ, lun).status == Status.GOOD


def test_a_nexus_that_comes_back_hears_of_the_loss(nexus: Nexus) -> None:
    device = attached(nexus)
    device.detach(nexus, lost=True)
    again = make_nexus()
    again.luns.update(nexus.luns)
    device.attach(again)
    assert sense_of(execute(device, again, READ))[1] is Asc.I_T_NEXUS_LOSS_OCCURRED
    stranger = make_nexus("stranger")
    stranger.luns.update(nexus.luns)
    device.attach(stranger)
    assert sense_of(execute(device, stranger, READ))[1] is POWER_ON


def test_the_memory_of_nexuses_is_bounded(nexus: Nexus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyiscsi_target.scsi.target_device._REMEMBERED_NEXUSES", 2)
    device = TargetDevice("t")
    heard = []
    for name in ("a", "b", "a", "c", "a", "b"):
        visitor = make_nexus(name)
        visitor.luns.update(nexus.luns)
        device.attach(visitor)
        heard.append(sense_of(execute(device, visitor, READ))[1])
        device.detach(visitor, lost=False)
    new, known = POWER_ON, Asc.I_T_NEXUS_LOSS_OCCURRED
    assert heard == [new, new, known, new, known, new]


def test_detach_ends_what_the_nexus_held(nexus: Nexus) -> None:
    device = attached(nexus)
    execute(device, nexus, "16")
    execute(device, nexus, "1e 00 00 00 01")
    device.detach(nexus, lost=False)
    assert nexus.luns[0].reserved_by is None
    assert not nexus.luns[0].prevented_by
    device.detach(nexus, lost=True)


async def test_detach_aborts_the_tasks_of_the_nexus_alone() -> None:
    lu, store = make_gated_disk()
    nexus, other = make_nexus("one"), make_nexus("two")
    nexus.luns[0] = other.luns[0] = lu
    device = attached(nexus)
    device.attach(other)
    lu.attentions.take(other)
    mine, theirs = make_task(nexus, READ), make_task(other, READ)
    pending = [start(device.execute(task)) for task in (mine, theirs)]
    transferring = make_task(nexus, WRITE)
    device.register(transferring)
    await settle()
    device.detach(nexus, lost=True)
    assert mine.aborted
    assert transferring.aborted
    assert not theirs.aborted
    store.gate.set()
    for result in pending:
        await result
    assert not lu.tasks.unfinished


def test_luns_changed(nexus: Nexus) -> None:
    device = attached(nexus)
    removed = nexus.luns.pop(5)
    nexus.luns[1] = make_disk()
    removed.reserved_by = nexus
    device.luns_changed(nexus)
    assert removed.reserved_by is None
    assert nexus not in removed.attentions.nexuses
    assert sense_of(execute(device, nexus, READ))[1] is Asc.REPORTED_LUNS_DATA_HAS_CHANGED
    assert execute(device, nexus, READ).status == Status.GOOD
    assert sense_of(execute(device, nexus, READ, 1 << 48))[1] is POWER_ON
    assert sense_of(execute(device, nexus, READ, 1 << 48))[1] is (
        Asc.REPORTED_LUNS_DATA_HAS_CHANGED
    )
    assert sense_of(execute(device, nexus, READ, 5 << 48)) == NO_LUN


def test_luns_changed_of_a_nexus_that_is_not_attached_is_nothing(nexus: Nexus) -> None:
    TargetDevice("t").luns_changed(nexus)
    assert nexus not in nexus.luns[0].attentions.nexuses


@pytest.mark.parametrize(
    "asked", [0, 5 << 48, WELL_KNOWN_REPORT_LUNS], ids=["LUN 0", "LUN 5", "well-known"]
)
def test_report_luns_settles_the_change_for_all_luns(nexus: Nexus, asked: int) -> None:
    device = attached(nexus)
    device.luns_changed(nexus)
    data_of(execute(device, nexus, REPORT_LUNS, asked))
    assert execute(device, nexus, READ).status == Status.GOOD
    assert execute(device, nexus, READ, 5 << 48).status == Status.GOOD


# The transfer of data-out


def test_data_out_length(nexus: Nexus) -> None:
    device = attached(nexus)
    assert device.data_out_length(make_task(nexus, "2a 00 00000000 00 0004")) == 4 * BLOCK
    assert device.data_out_length(make_task(nexus, READ)) == 0


def test_data_out_length_refuses_what_must_not_run(nexus: Nexus) -> None:
    device = attached(nexus)
    refusal = device.data_out_length(make_task(nexus, "2a 00 00000800 00 0001"))
    assert isinstance(refusal, Result)
    assert sense_of(refusal)[1] is Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE
    nexus.luns[0].reserved_by = make_nexus("holder")
    refusal = device.data_out_length(make_task(nexus, WRITE))
    assert isinstance(refusal, Result)
    assert refusal.status == Status.RESERVATION_CONFLICT


def test_data_out_length_does_not_raise_what_nobody_expected(nexus: Nexus) -> None:
    device = attached(nexus)
    nexus.luns[0].block_count = None  # type: ignore[assignment]
    refusal = device.data_out_length(make_task(nexus, WRITE))
    assert isinstance(refusal, Result)
    assert sense_of(refusal) == (SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)


def test_a_registered_task_is_in_the_task_set_until_it_finishes(nexus: Nexus) -> None:
    device = attached(nexus)
    task = make_task(nexus, WRITE)
    device.register(task)
    assert list(nexus.luns[0].tasks.unfinished) == [task]
    device.finish(task)
    assert not nexus.luns[0].tasks.unfinished
    elsewhere = make_task(nexus, WRITE, 9 << 48)
    device.register(elsewhere)
    device.finish(elsewhere)
