"""The gates in front of the commands, failures, ordering by attribute, and aborts."""

import asyncio
import logging

import pytest

from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.sense import Asc, ReservationConflict, ScsiError, SenseKey
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task, TaskAttribute
from pyiscsi_target.storage.base import Capabilities, StorageError, StorageFault
from tests.support.gated_disk import make_gated_disk, settle, start, task_for
from tests.support.memory_disk import data_of, make_disk, make_nexus, run, sense_of, store_of

BLOCK = 512
ONE, TWO = make_nexus("one"), make_nexus("two")
TEST_UNIT_READY = "00"
INQUIRY = "12 00 00 00ff"
REQUEST_SENSE = "03 00 00 00 ff"
REPORT_LUNS = "a0 00 00 000000 000000ff"
MIB = 1 << 20
READ = "28 00 00000000 00 0001"
WRITE = "2a 00 00000000 00 0001"
CAPACITY = "25"
NOT_READY = (
    SenseKey.NOT_READY,
    Asc.MEDIUM_NOT_PRESENT,
)


def attached(*nexuses: Nexus) -> LogicalUnit:
    lu = make_disk()
    for nexus in nexuses:
        lu.attentions.attach(nexus)
    return lu


# Unit attentions


def test_a_unit_attention_is_reported_once_instead_of_the_command() -> None:
    lu = attached(ONE)
    lu.attentions.establish(ONE, Asc.POWER_ON_OCCURRED)
    before = bytes(store_of(lu).content)
    result = run(lu, ONE, WRITE, [b"\1" * BLOCK])
    assert sense_of(result) == (SenseKey.UNIT_ATTENTION, Asc.POWER_ON_OCCURRED)
    assert store_of(lu).content == before
    assert run(lu, ONE, WRITE, [b"\1" * BLOCK]).status == Status.GOOD


@pytest.mark.parametrize("cdb", [INQUIRY, REPORT_LUNS], ids=["INQUIRY", "REPORT LUNS"])
def test_commands_that_pass_a_unit_attention_leave_it(cdb: str) -> None:
    lu = attached(ONE)
    lu.attentions.establish(ONE, Asc.POWER_ON_OCCURRED)
    assert run(lu, ONE, cdb).status == Status.GOOD
    assert sense_of(run(lu, ONE, TEST_UNIT_READY))[1] is Asc.POWER_ON_OCCURRED


def test_request_sense_reports_a_unit_attention_as_data() -> None:
    lu = attached(ONE)
    lu.attentions.establish(ONE, Asc.POWER_ON_OCCURRED)
    sense = data_of(run(lu, ONE, REQUEST_SENSE))
    assert sense[2] == SenseKey.UNIT_ATTENTION
    assert run(lu, ONE, TEST_UNIT_READY).status == Status.GOOD


def test_one_nexus_does_not_see_the_attention_of_another() -> None:
    lu = attached(ONE, TWO)
    lu.attentions.establish(ONE, Asc.POWER_ON_OCCURRED)
    assert run(lu, TWO, READ).status == Status.GOOD


@pytest.mark.parametrize("cdb", ["5c", "9e1f"], ids=["operation code", "service action"])
def test_a_unit_attention_comes_before_an_invalid_command(cdb: str) -> None:
    lu = attached(ONE)
    lu.attentions.establish(ONE, Asc.POWER_ON_OCCURRED)
    assert sense_of(run(lu, ONE, cdb))[0] is SenseKey.UNIT_ATTENTION
    assert sense_of(run(lu, ONE, cdb))[0] is SenseKey.ILLEGAL_REQUEST


def test_mode_select_tells_the_others() -> None:
    lu = attached(ONE, TWO)
    page = bytes.fromhex("0a0a 06 10 0000 0000 0000 0000")  # control mode page, D_SENSE=1
    assert run(lu, ONE, "15 10 00 00 10", [bytes(4) + page]).status == Status.GOOD
    result = run(lu, TWO, TEST_UNIT_READY)
    assert result.sense[:4].hex() == "72062a01"
    assert run(lu, ONE, TEST_UNIT_READY).status == Status.GOOD
    assert run(lu, TWO, TEST_UNIT_READY).status == Status.GOOD


async def test_a_new_size_is_told_to_all() -> None:
    lu = attached(ONE, TWO)
    await asyncio.gather(*(lu.resize(2 * MIB) for _ in range(2)))
    for nexus in (ONE, TWO):
        assert sense_of(run(lu, nexus, READ))[1] is Asc.CAPACITY_DATA_HAS_CHANGED
        assert run(lu, nexus, CAPACITY).data == bytes.fromhex("00000fff00000200")


async def test_a_smaller_size_waits_for_those_who_use_what_goes() -> None:
    lu, medium = make_gated_disk()
    last = f"2a 00 {lu.block_count - 1:08x} 00 0001"
    writing = start(lu.execute(task_for(ONE, last, [bytes(512)])))
    await settle()
    size_bytes = medium.size_bytes
    shrinking = asyncio.create_task(lu.resize(size_bytes // 2))
    await settle()
    urgent = task_for(TWO, last, [bytes(512)], TaskAttribute.HEAD_OF_QUEUE)
    later = [start(lu.execute(task)) for task in (task_for(TWO, READ, []), urgent)]
    await settle()
    assert medium.size_bytes == size_bytes
    assert not any(task.done() for task in later)
    medium.gate.set()
    await shrinking
    assert (await writing).status == Status.GOOD
    assert (await later[0]).status == Status.GOOD
    assert sense_of(await later[1])[1] is Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE
    assert lu.block_count == size_bytes // 2 // 512


async def test_a_size_that_cannot_be() -> None:
    lu = attached(ONE)
    store_of(lu).failing = True
    with pytest.raises(StorageError):
        await lu.resize(MIB // 2)
    assert lu.block_count == MIB // 512
    assert not lu.attentions.pending


def test_low_space_is_told_to_all_once() -> None:
    lu = make_disk(DiskSettings(space_warning_bytes=MIB))
    for nexus in (ONE, TWO):
        lu.attentions.attach(nexus)
    low = {nexus: [Asc.THIN_PROVISIONING_SOFT_THRESHOLD_REACHED] for nexus in (ONE, TWO)}
    for available_bytes in (None, MIB):
        lu.notice_space(available_bytes)
        assert not lu.attentions.pending
    lu.notice_space(MIB - 1)
    assert lu.attentions.pending == low
    lu.attentions.pending.clear()
    lu.notice_space(0)
    assert not lu.attentions.pending
    lu.notice_space(MIB)
    lu.notice_space(0)
    assert lu.attentions.pending == low


# Ejected, write protected


def test_a_unit_without_medium_refuses_the_medium_only() -> None:
    lu = make_disk()
    lu.ejected = True
    for cdb in (TEST_UNIT_READY, READ, CAPACITY, "35"):
        assert sense_of(run(lu, TWO, cdb)) == NOT_READY
    for cdb in (INQUIRY, REQUEST_SENSE, REPORT_LUNS, "1a 00 3f 00 ff", "16", "17"):
        assert run(lu, TWO, cdb).status == Status.GOOD
    lu.ejected = False
    assert run(lu, TWO, READ).status == Status.GOOD


WRITES = {
    "WRITE(6)": ("0a 00 0000 01", 1),
    "WRITE(10)": (WRITE, 1),
    "WRITE(12)": ("aa 00 00000000 00000001", 1),
    "WRITE(16)": ("8a 00 0000000000000000 00000001", 1),
    "WRITE AND VERIFY(10)": ("2e 00 00000000 00 0001", 1),
    "WRITE SAME(10)": ("41 00 00000000 00 0001", 1),
    "WRITE SAME(16)": ("93 00 0000000000000000 00000001", 1),
    "UNMAP": ("42 00 00000000 00 0000", 0),
    "COMPARE AND WRITE": ("89 00 0000000000000000 000000 01", 2),
    "ORWRITE(16)": ("8b 00 0000000000000000 00000001", 1),
    "WRITE ATOMIC(16)": ("9c 00 0000000000000000 0000 0001", 1),
}


@pytest.mark.parametrize(
    ("settings", "capabilities"),
    [
        (DiskSettings(read_only=True), Capabilities(deallocate_granularity_bytes=4096)),
        (DiskSettings(), Capabilities(read_only=True, deallocate_granularity_bytes=4096)),
    ],
    ids=["by configuration", "by the store"],
)
def test_a_read_only_disk_refuses_writes(
    settings: DiskSettings, capabilities: Capabilities
) -> None:
    lu = make_disk(settings, capabilities=capabilities)
    for cdb, blocks in WRITES.values():
        result = run(lu, ONE, cdb, [b"\1" * blocks * BLOCK])
        assert sense_of(result) == (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)
    assert not any(store_of(lu).content)
    for cdb in (READ, "35", "2f 00 00000000 00 0001"):
        assert run(lu, ONE, cdb).status == Status.GOOD


@pytest.mark.parametrize("name", WRITES)
def test_software_write_protection(name: str) -> None:
    lu = make_disk()
    cdb, blocks = WRITES[name]
    data = [bytes(blocks * BLOCK)]
    lu.mode.software_write_protect = True
    assert sense_of(run(lu, ONE, cdb, data)) == (
        SenseKey.DATA_PROTECT,
        Asc.LOGICAL_UNIT_SOFTWARE_WRITE_PROTECTED,
    )
    lu.mode.software_write_protect = False
    assert run(lu, ONE, cdb, data).status == Status.GOOD


# Before data is solicited


def test_data_out_length_passes_the_gates() -> None:
    lu = attached(ONE, TWO)
    write = task_for(ONE, "2a 00 00000000 00 0003")
    assert lu.data_out_length(write) == 3 * BLOCK
    assert lu.data_out_length(task_for(ONE, READ)) == 0
    with pytest.raises(ScsiError, match="LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE"):
        lu.data_out_length(task_for(ONE, "2a 00 000007ff 00 0003"))
    with pytest.raises(ScsiError, match="INVALID_FIELD_IN_CDB"):
        lu.data_out_length(task_for(ONE, "2a 20 00000000 00 0003"))
    with pytest.raises(ScsiError, match="INVALID_COMMAND_OPERATION_CODE"):
        lu.data_out_length(task_for(ONE, "83"))
    lu.attentions.establish(ONE, Asc.POWER_ON_OCCURRED)
    with pytest.raises(ScsiError, match="POWER_ON_OCCURRED"):
        lu.data_out_length(write)
    run(lu, TWO, "16")
    with pytest.raises(ReservationConflict):
        lu.data_out_length(write)


@pytest.mark.parametrize(
    ("cdb", "length"),
    [
        ("15 10 00 00 18", 24),
        ("55 10 00 00000000 0102", 0x102),
        ("1d 10 00 0020", 32),
        ("42 00 00000000 00 0018", 24),
        ("41 00 00000000 00 0009", BLOCK),
        ("93 01 0000000000000000 00000009", 0),
        ("89 00 0000000000000000 000000 03", 6 * BLOCK),
        ("9c 00 0000000000000000 0000 0003", 3 * BLOCK),
        ("8b 00 0000000000000000 00000003", 3 * BLOCK),
        ("2f 00 00000000 00 0003", 0),
        ("2f 02 00000000 00 0003", 3 * BLOCK),
        ("2f 06 00000000 00 0003", BLOCK),
        ("2e 00 00000000 00 0003", 3 * BLOCK),
    ],
)
def test_data_out_length_of(cdb: str, length: int) -> None:
    assert make_disk().data_out_length(task_for(ONE, cdb)) == length


# Failures


def test_an_unexpected_error_is_an_internal_target_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lu = make_disk()
    lu.store.read_now = None  # type: ignore[method-assign,assignment]
    with caplog.at_level(logging.ERROR):
        result = run(lu, ONE, READ)
    assert sense_of(result) == (SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
    assert "unexpected error in command 28h" in caplog.text
    assert caplog.records[0].exc_info is not None


def test_an_unexpected_error_in_a_coroutine_too() -> None:
    lu = make_disk()
    lu.store.flush = None  # type: ignore[method-assign,assignment]
    assert sense_of(run(lu, ONE, "35")) == (
        SenseKey.HARDWARE_ERROR,
        Asc.INTERNAL_TARGET_FAILURE,
    )
    assert not lu.tasks.unfinished


def test_refusals_are_counted() -> None:
    lu = make_disk()
    run(lu, ONE, READ)
    run(lu, ONE, "5c")
    run(lu, ONE, "28 00 ffffffff 00 0001")
    assert lu.statistics.commands == 3
    assert lu.statistics.check_conditions == 2


# Ordering by attribute

SIMPLE, ORDERED = TaskAttribute.SIMPLE, TaskAttribute.ORDERED
HEAD, ACA = TaskAttribute.HEAD_OF_QUEUE, TaskAttribute.ACA


def write_at(lba: int, attribute: TaskAttribute = SIMPLE, nexus: Nexus = ONE) -> Task:
    return task_for(nexus, f"2a 00 {lba:08x} 00 0001", [bytes([lba]) * BLOCK], attribute)


@pytest.mark.parametrize("attribute", [ORDERED, HEAD])
def test_an_idle_unit_runs_any_attribute_at_once(attribute: TaskAttribute) -> None:
    lu = make_disk()
    assert isinstance(lu.execute(write_at(1, attribute)), Result)
    assert not lu.tasks.unfinished


@pytest.mark.parametrize("attribute", [4, 5, 7])
def test_attributes_that_mean_nothing_here(attribute: int) -> None:
    task = write_at(1)
    task.attribute = attribute
    result = make_disk().execute(task)
    assert isinstance(result, Result)
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_MESSAGE_ERROR)


async def test_an_ordered_task_separates_what_is_around_it() -> None:
    lu, store = make_gated_disk()
    tasks = [write_at(1), write_at(2, nexus=TWO), write_at(3, ORDERED, TWO), write_at(4)]
    pending = [start(lu.execute(task)) for task in tasks]
    await settle()
    assert store.log == [("write", BLOCK), ("write", 2 * BLOCK)]
    head = start(lu.execute(write_at(5, HEAD)))
    await settle()
    assert store.log[2:] == [("write", 5 * BLOCK)]
    store.gate.set()
    for result in [*pending, head]:
        assert (await result).status == Status.GOOD
    assert store.log[3:] == [("write", 3 * BLOCK), ("write", 4 * BLOCK)]
    assert not lu.tasks.unfinished
    assert lu.tasks.barriers == 0


async def test_an_ordered_task_waits_for_an_older_transfer() -> None:
    lu, store = make_gated_disk()
    store.slow_writes_only = True
    transferring = write_at(1)
    lu.tasks.enter(transferring, executing=False)
    ordered = start(lu.execute(task_for(ONE, READ, attribute=ORDERED)))
    younger = start(lu.execute(task_for(TWO, READ)))
    await settle()
    assert not ordered.done()
    store.gate.set()
    writing = start(lu.execute(transferring))
    await writing
    assert (await ordered).status == Status.GOOD
    assert (await younger).status == Status.GOOD


async def test_a_task_that_had_to_wait_passes_the_gates_again() -> None:
    lu, store = make_gated_disk()
    writing = start(lu.execute(write_at(1)))
    waiting = start(lu.execute(write_at(2, ORDERED, TWO)))
    await settle()
    lu.reserved_by = ONE
    store.gate.set()
    await writing
    assert (await waiting).status == Status.RESERVATION_CONFLICT
    assert store.log == [("write", BLOCK)]


async def test_a_registered_task_leaves_the_task_set_when_it_finishes_at_once() -> None:
    lu = make_disk()
    task = write_at(1)
    lu.tasks.enter(task, executing=False)
    assert isinstance(lu.execute(task), Result)
    assert not lu.tasks.unfinished


# Aborts


async def test_an_aborted_task_that_waits_never_runs() -> None:
    lu, store = make_gated_disk()
    writing = start(lu.execute(write_at(1)))
    waiting_task = write_at(2, ORDERED)
    waiting = start(lu.execute(waiting_task))
    await settle()
    lu.abort([waiting_task], by=ONE)
    result = await asyncio.wait_for(waiting, 10)
    assert waiting_task.aborted
    assert result.status != Status.TASK_ABORTED
    store.gate.set()
    await writing
    assert store.log == [("write", BLOCK)]


@pytest.mark.parametrize(
    ("by", "tas", "answered"),
    [(ONE, True, False), (TWO, True, True), (TWO, False, False), (None, True, False)],
)
async def test_task_aborted_status(by: Nexus | None, tas: bool, answered: bool) -> None:
    lu, store = make_gated_disk()
    lu.mode.task_aborted_status = tas
    task = write_at(1)
    writing = start(lu.execute(task))
    await settle()
    lu.abort([task], by=by)
    store.gate.set()
    result = await writing
    assert task.answer_aborted is answered
    assert (result.status == Status.TASK_ABORTED) is answered


def test_detach_forgets_the_nexus() -> None:
    lu = make_disk()
    lu.attach(ONE, Asc.POWER_ON_OCCURRED)
    run(lu, ONE, INQUIRY)
    lu.attentions.take(ONE)
    run(lu, ONE, "1e 00 00 00 01")
    run(lu, ONE, "16")
    lu.detach(ONE)
    assert not lu.prevented_by
    assert lu.reserved_by is None
    lu.attentions.establish_for_others(Asc.MODE_PARAMETERS_CHANGED)
    assert not lu.attentions.pending


def test_reset_puts_everything_back() -> None:
    lu = attached(ONE, TWO)
    run(lu, ONE, "1e 00 00 00 01")
    run(lu, ONE, "1b 00 00 00 00")
    run(lu, ONE, "16")
    lu.mode.software_write_protect = True
    lu.reset(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    for nexus in (ONE, TWO):
        assert sense_of(run(lu, nexus, WRITE))[1] is Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED
        assert run(lu, nexus, WRITE, [bytes(BLOCK)]).status == Status.GOOD
    assert not lu.prevented_by


async def test_a_size_that_is_new_but_perhaps_not_for_good(monkeypatch: pytest.MonkeyPatch) -> None:
    """The last flush failed: the store has that size, so whoever reads must know it."""
    lu = attached(ONE)
    store = store_of(lu)
    resize = store.resize

    async def resize_and_fail(size_bytes: int) -> None:
        await resize(size_bytes)
        raise StorageError(StorageFault.MEDIUM, "injected")

    monkeypatch.setattr(store, "resize", resize_and_fail)
    with pytest.raises(StorageError, match="injected"):
        await lu.resize(MIB // 2)
    assert lu.block_count == MIB // 2 // 512
    assert sense_of(run(lu, ONE, READ))[1] is Asc.CAPACITY_DATA_HAS_CHANGED
