"""Task management functions among nexuses that share disks: function by TAS by who it concerns.

Four nexuses: `me`, who asks; `other` at the same target; `elsewhere`, who reaches the same disk
through another target; `idle`, who has nothing under way. Beside the disk at LUN 0 the target has a
second one at LUN 1, which `me` and `other` use too.
"""

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from pyiscsi_target.scsi.logical_unit import LogicalUnit
from pyiscsi_target.scsi.reservations import Reservation, ReservationType, State
from pyiscsi_target.scsi.sense import Asc
from pyiscsi_target.scsi.target_device import TargetDevice
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task
from pyiscsi_target.scsi.task_management import (
    TaskManagementFunction as Function,
)
from pyiscsi_target.scsi.task_management import (
    TaskManagementResponse as Response,
)
from tests.support.gated_disk import GatedStore, make_gated_disk, settle, start, task_for
from tests.support.memory_disk import make_nexus

WRITE = "2a 00 00000000 00 0001"
READ = "28 00 00000000 00 0001"
DATA = [bytes(512)]
LUN_1 = 1 << 48

CLEARED = Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
LU_RESET = Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED
WARM = Asc.SCSI_BUS_RESET_OCCURRED
COLD = Asc.POWER_ON_OCCURRED
LOSS = Asc.I_T_NEXUS_LOSS_OCCURRED
FIRST = Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED


@dataclass
class Work:
    """A nexus's tasks on one disk: one that executes and one whose data is in transfer."""

    executing: Task
    pending: "asyncio.Task[Result]"
    transferring: Task
    told: list[Task] = field(default_factory=list)  # what the transport heard of

    @property
    def tasks(self) -> tuple[Task, Task]:
        return self.executing, self.transferring


@dataclass
class Bench:
    target: TargetDevice
    another_target: TargetDevice
    disk: LogicalUnit
    second: LogicalUnit
    stores: list[GatedStore]
    me: Nexus
    other: Nexus
    elsewhere: Nexus
    idle: Nexus
    work: dict[tuple[str, int], Work] = field(default_factory=dict)

    def begin(self, name: str, lun: int, tag: int) -> None:
        nexus: Nexus = getattr(self, name)
        device = self.another_target if name == "elsewhere" else self.target
        executing = task_for(nexus, WRITE, DATA, tag=tag)
        transferring = task_for(nexus, WRITE, tag=tag + 1)
        executing.lun = transferring.lun = lun << 48
        work = Work(executing, start(device.execute(executing)), transferring)
        transferring.on_abort = lambda: work.told.append(transferring)
        device.register(transferring)
        self.work[name, lun] = work

    async def manage(self, function: Function, lun: int = 0, tag: int = 0) -> Response:
        """The response to `me`; nothing can have ended before it, so the gates open meanwhile."""
        managing = asyncio.ensure_future(self.target.manage(function, self.me, lun, tag))
        await settle()
        self.open_gates()
        return await managing

    def open_gates(self) -> None:
        for store in self.stores:
            store.gate.set()

    async def finish(self) -> None:
        """Let everything end, so that no coroutine is left."""
        self.open_gates()
        for work in self.work.values():
            await work.pending
        for device in (self.target, self.another_target):
            for work in self.work.values():
                device.finish(work.transferring)

    def heard(self, name: str, lu: LogicalUnit) -> list[Asc]:
        def attentions() -> Iterator[Asc]:
            while (asc := lu.attentions.take(getattr(self, name))) is not None:
                yield asc

        return list(attentions())


@pytest.fixture
async def bench() -> Bench:
    (disk, store), (second, second_store) = make_gated_disk(), make_gated_disk()
    stores = [store, second_store]
    me, other, elsewhere, idle = map(make_nexus, ("me", "other", "elsewhere", "idle"))
    made = Bench(
        TargetDevice("t"), TargetDevice("u"), disk, second, stores, me, other, elsewhere, idle
    )
    for nexus in (me, other, idle):
        nexus.luns.update({0: disk, 1: second})
        made.target.attach(nexus)
    elsewhere.luns[5] = disk
    made.another_target.attach(elsewhere)
    for lu in (disk, second):
        lu.attentions.pending.clear()
    for tag, (name, lun) in enumerate(
        (("me", 0), ("me", 1), ("other", 0), ("other", 1), ("elsewhere", 5))
    ):
        made.begin(name, lun, tag * 2)
    await settle()
    return made


@dataclass(frozen=True)
class Row:
    """What a function of `me` on LUN 0 (of tag 0, which executes there) is to do.

    `mine`, `theirs`, `second`: which tasks it aborts of `me` and of the others on the disk, and
    whether those of both on the second disk go too. `reset` is heard by every nexus on each disk
    that is reached, `loss` by `me` alone; else CLEARED by those whose tasks went, with TAS=0.
    """

    function: Function
    mine: str
    theirs: bool
    second: bool = False
    reset: Asc | None = None
    loss: bool = False


MATRIX = [
    Row(Function.ABORT_TASK, "one", False),
    Row(Function.ABORT_TASK_SET, "all", False),
    Row(Function.CLEAR_TASK_SET, "all", True),
    Row(Function.LOGICAL_UNIT_RESET, "all", True, reset=LU_RESET),
    Row(Function.TARGET_WARM_RESET, "all", True, second=True, reset=WARM),
    Row(Function.TARGET_COLD_RESET, "all", True, second=True, reset=COLD),
    Row(Function.I_T_NEXUS_RESET, "all", False, second=True, loss=True),
    Row(Function.QUERY_TASK, "none", False),
    Row(Function.QUERY_TASK_SET, "none", False),
    Row(Function.QUERY_ASYNC_EVENT, "none", False),
]
every_function = pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.function.name)
both_tas = pytest.mark.parametrize("tas", [False, True], ids=["TAS=0", "TAS=1"])


def aborted_by(row: Row, name: str, lun: int) -> tuple[bool, bool]:
    """Whether the executing and the transferring task of a nexus go."""
    if name == "me":
        on_disk = {"none": (False, False), "one": (True, False), "all": (True, True)}[row.mine]
        return on_disk if lun == 0 else (row.second, row.second)
    if lun == 1:
        return (row.second and row.theirs,) * 2
    return (row.theirs, row.theirs)


@every_function
@both_tas
async def test_which_tasks_go_and_how_they_are_answered(bench: Bench, row: Row, tas: bool) -> None:
    """SAM-6 table 44, SPC-5 clause 7.5.8: only others' tasks are answered, and only with TAS=1."""
    for lu in (bench.disk, bench.second):
        lu.mode.task_aborted_status = tas
    await bench.manage(row.function)
    for (name, lun), work in bench.work.items():
        expected = aborted_by(row, name, lun)
        assert (work.executing.aborted, work.transferring.aborted) == expected, (name, lun)
        assert work.told == ([work.transferring] if expected[1] else []), (name, lun)
        for task in work.tasks:
            assert task.answer_aborted is (task.aborted and tas and name != "me"), (name, lun)
        status = (await work.pending).status
        answered = work.executing.aborted and tas and name != "me"
        assert (status == Status.TASK_ABORTED) is answered, (name, lun)
    await bench.finish()


@every_function
@both_tas
async def test_who_hears_of_it(bench: Bench, row: Row, tas: bool) -> None:
    """SAM-6 table 44 and clause 6.3: once each, whichever target a nexus came through."""
    for lu in (bench.disk, bench.second):
        lu.mode.task_aborted_status = tas
    await bench.manage(row.function)
    for lu, names, reached in (
        (bench.disk, ("me", "other", "elsewhere", "idle"), True),
        (bench.second, ("me", "other", "idle"), row.second),
    ):
        for name in names:
            expected: list[Asc] = []
            if reached and row.reset is not None:
                expected = [row.reset]
            elif reached and row.loss and name == "me":
                expected = [LOSS]
            elif reached and row.theirs and not tas and name in ("other", "elsewhere"):
                expected = [CLEARED]
            assert bench.heard(name, lu) == expected, (name, lu is bench.disk)
    await bench.finish()


@every_function
async def test_the_response_comes_when_what_it_aborted_has_ended(bench: Bench, row: Row) -> None:
    """An operation that runs cannot be taken back."""
    managing = asyncio.ensure_future(bench.target.manage(row.function, bench.me, 0))
    await settle()
    assert managing.done() is (row.mine == "none")
    await bench.finish()
    expected = {
        Function.QUERY_TASK: Response.FUNCTION_SUCCEEDED,
        Function.QUERY_TASK_SET: Response.FUNCTION_SUCCEEDED,
    }
    assert await managing is expected.get(row.function, Response.FUNCTION_COMPLETE)
    for lu in (bench.disk, bench.second):
        assert not lu.tasks.unfinished


@every_function
async def test_without_any_task(bench: Bench, row: Row) -> None:
    """There is nothing to wait for; only ABORT TASK misses what it should have aborted."""
    await bench.finish()
    expected = {Function.ABORT_TASK: Response.TASK_DOES_NOT_EXIST}
    response = await bench.target.manage(row.function, bench.me, 0)
    assert response is expected.get(row.function, Response.FUNCTION_COMPLETE)
    assert bench.heard("other", bench.disk) == ([row.reset] if row.reset else [])


@every_function
async def test_a_lun_where_nothing_is(bench: Bench, row: Row) -> None:
    response = await bench.manage(row.function, lun=4 << 48)
    if row.second:  # the LUN means nothing to what concerns the whole target
        assert response is Response.FUNCTION_COMPLETE
    else:
        assert response is Response.INCORRECT_LOGICAL_UNIT_NUMBER
        assert not any(task.aborted for work in bench.work.values() for task in work.tasks)
    await bench.finish()


async def test_clear_aca_is_not_supported(bench: Bench) -> None:
    assert await bench.manage(Function.CLEAR_ACA) is Response.FUNCTION_NOT_SUPPORTED
    await bench.finish()


# What resets leave and take (SAM-6 clause 6.3.3, SPC-5 clause 5.14.1, SPC-2 clause 5.5.1)

PERSISTENT = State(
    {("me,i,0x400001370000", 1): 1, ("other,i,0x400001370000", 1): 2},
    Reservation(ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY, ("me,i,0x400001370000", 1)),
    generation=5,
)


@every_function
async def test_persistent_reservations_outlive_every_function(row: Row) -> None:
    target, (lu, store) = TargetDevice("t"), make_gated_disk(PERSISTENT)
    store.gate.set()
    nexus = make_nexus("other")
    nexus.luns[0] = lu
    target.attach(nexus)
    await target.manage(row.function, nexus, 0)
    assert lu.reservations == PERSISTENT


@every_function
@pytest.mark.parametrize("holder", ["me", "other", "elsewhere"])
async def test_a_reserve_is_released_by_resets(bench: Bench, row: Row, holder: str) -> None:
    """And by the loss of its own nexus, which an I_T nexus reset is."""
    nexus: Nexus = getattr(bench, holder)
    bench.disk.reserved_by = nexus
    await bench.manage(row.function)
    released = row.reset is not None or (row.loss and holder == "me")
    assert bench.disk.reserved_by is (None if released else nexus)
    await bench.finish()


@every_function
@pytest.mark.parametrize("preventer", ["me", "other"])
async def test_prevention_of_removal_ends_likewise(bench: Bench, row: Row, preventer: str) -> None:
    nexus: Nexus = getattr(bench, preventer)
    bench.disk.prevented_by.add(nexus)
    await bench.manage(row.function)
    released = row.reset is not None or (row.loss and preventer == "me")
    assert (nexus in bench.disk.prevented_by) is not released
    await bench.finish()


@every_function
async def test_mode_parameters_return_to_their_saved_values_by_resets(
    bench: Bench, row: Row
) -> None:
    bench.disk.mode.task_aborted_status = True
    await bench.manage(row.function)
    assert bench.disk.mode.task_aborted_status is (row.reset is None)
    await bench.finish()


async def test_a_target_reset_leaves_units_that_the_nexus_cannot_reach(bench: Bench) -> None:
    private, _ = make_gated_disk()
    bench.other.luns[7] = private
    bench.target.luns_changed(bench.other)
    private.attentions.pending.clear()
    await bench.manage(Function.TARGET_WARM_RESET)
    assert bench.heard("other", private) == []
    await bench.finish()


async def test_two_luns_of_one_disk_hear_once(bench: Bench) -> None:
    """The condition is the logical unit's; so is the task set, whichever LUN a task came by."""
    bench.me.luns[9] = bench.disk
    bench.target.luns_changed(bench.me)
    bench.disk.attentions.pending.clear()
    assert await bench.manage(Function.LOGICAL_UNIT_RESET, lun=9 << 48) is (
        Response.FUNCTION_COMPLETE
    )
    assert all(task.aborted for task in bench.work["me", 0].tasks)
    assert bench.heard("me", bench.disk) == [LU_RESET]
    await bench.finish()


# ABORT TASK and the queries, one task at a time


@pytest.mark.parametrize("tag", [4, 8, 77])  # the others' tags, and nobody's
async def test_abort_task_of_a_task_that_is_not_there(bench: Bench, tag: int) -> None:
    assert await bench.manage(Function.ABORT_TASK, tag=tag) is Response.TASK_DOES_NOT_EXIST
    assert not any(task.aborted for work in bench.work.values() for task in work.tasks)
    await bench.finish()


async def test_abort_task_on_another_lun(bench: Bench) -> None:
    assert await bench.manage(Function.ABORT_TASK, lun=LUN_1) is Response.TASK_DOES_NOT_EXIST
    await bench.finish()


async def test_abort_task_of_a_task_in_transfer_completes_at_once(bench: Bench) -> None:
    response = await bench.target.manage(Function.ABORT_TASK, bench.me, 0, 1)
    assert response is Response.FUNCTION_COMPLETE
    assert bench.work["me", 0].told
    await bench.finish()


@pytest.mark.parametrize(
    ("tag", "response"),
    [
        (0, Response.FUNCTION_SUCCEEDED),
        (1, Response.FUNCTION_SUCCEEDED),
        (2, Response.FUNCTION_COMPLETE),  # at LUN 1
        (4, Response.FUNCTION_COMPLETE),  # another's
    ],
)
async def test_query_task(bench: Bench, tag: int, response: Response) -> None:
    assert await bench.target.manage(Function.QUERY_TASK, bench.me, 0, tag) is response
    await bench.finish()


@pytest.mark.parametrize("query", [Function.QUERY_TASK, Function.QUERY_TASK_SET])
async def test_a_query_does_not_count_what_is_aborted(bench: Bench, query: Function) -> None:
    """Though it has not ended yet, it is no longer in the task set."""
    aborting = asyncio.ensure_future(bench.target.manage(Function.ABORT_TASK_SET, bench.me, 0))
    await settle()
    assert await bench.target.manage(query, bench.me, 0) is Response.FUNCTION_COMPLETE
    await bench.finish()
    await aborting


async def test_query_async_event_tells_of_a_unit_attention(bench: Bench) -> None:
    """SAM-6 clause 7.10; asking does not clear it."""
    bench.disk.attentions.establish(bench.me, LU_RESET)
    for _ in range(2):
        response = await bench.target.manage(Function.QUERY_ASYNC_EVENT, bench.me, 0)
        assert response is Response.FUNCTION_SUCCEEDED
    response = await bench.target.manage(Function.QUERY_ASYNC_EVENT, bench.me, LUN_1)
    assert response is Response.FUNCTION_COMPLETE
    assert bench.heard("me", bench.disk) == [LU_RESET]
    await bench.finish()


# Aborts on top of aborts


@pytest.mark.parametrize("later", [Function.CLEAR_TASK_SET, Function.LOGICAL_UNIT_RESET])
@both_tas
async def test_a_task_that_its_own_nexus_aborted_stays_unanswered(
    bench: Bench, later: Function, tas: bool
) -> None:
    """And that nexus is not told that another cleared it."""
    bench.disk.mode.task_aborted_status = tas
    own = asyncio.ensure_future(bench.target.manage(Function.ABORT_TASK_SET, bench.other, 0))
    await settle()
    await bench.manage(later)
    assert (await bench.work["other", 0].pending).status != Status.TASK_ABORTED
    assert not bench.work["other", 0].executing.answer_aborted
    assert CLEARED not in bench.heard("other", bench.disk)
    assert await own is Response.FUNCTION_COMPLETE
    await bench.finish()


async def test_a_task_that_another_cleared_stays_answered(bench: Bench) -> None:
    bench.disk.mode.task_aborted_status = True
    clearing = asyncio.ensure_future(bench.target.manage(Function.CLEAR_TASK_SET, bench.me, 0))
    await settle()
    own = asyncio.ensure_future(bench.target.manage(Function.ABORT_TASK_SET, bench.other, 0))
    await settle()
    bench.open_gates()
    assert (await bench.work["other", 0].pending).status == Status.TASK_ABORTED
    assert await own is await clearing is Response.FUNCTION_COMPLETE
    await bench.finish()


async def test_an_abort_waits_for_what_was_aborted_before(bench: Bench) -> None:
    """A lost nexus has left a write behind; a reset by another is complete only when it ended."""
    bench.target.detach(bench.other, lost=True)
    resetting = asyncio.ensure_future(
        bench.target.manage(Function.LOGICAL_UNIT_RESET, bench.idle, 0)
    )
    for store in bench.stores:
        assert store.log
    await settle()
    assert not resetting.done()
    bench.open_gates()
    assert await resetting is Response.FUNCTION_COMPLETE
    assert bench.work["other", 0].pending.done()
    await bench.finish()


async def test_after_a_cold_reset_a_new_session_hears_of_a_power_on(bench: Bench) -> None:
    bench.target.detach(bench.other, lost=True)
    bench.target.attach(bench.other)
    assert bench.heard("other", bench.disk) == [LOSS]
    await bench.manage(Function.TARGET_COLD_RESET)
    bench.target.detach(bench.other, lost=True)
    bench.target.attach(bench.other)
    assert bench.heard("other", bench.disk) == [FIRST]
    await bench.finish()
