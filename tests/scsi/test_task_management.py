"""Task management functions between two nexuses."""

import asyncio
from dataclasses import dataclass

import pytest

from pyiscsi_target.scsi.logical_unit import LogicalUnit
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
DATA = [bytes(512)]


@dataclass
class Bench:
    """Two nexuses on one slow disk, each with one write in flight (tags 1 and 2)."""

    device: TargetDevice
    lu: LogicalUnit
    store: GatedStore
    one: Nexus
    two: Nexus
    tasks: list[Task]
    pending: "list[asyncio.Task[Result]]"

    async def open_gate(self) -> list[Result]:
        self.store.gate.set()
        return [await result for result in self.pending]

    def aborted(self) -> list[bool]:
        return [task.aborted for task in self.tasks]

    def heard(self) -> list[Asc | None]:
        return [self.lu.attentions.take(nexus) for nexus in (self.one, self.two)]


@pytest.fixture
async def bench() -> Bench:
    lu, store = make_gated_disk()
    device = TargetDevice("t")
    one, two = make_nexus("one"), make_nexus("two")
    tasks, pending = [], []
    for tag, nexus in enumerate((one, two), 1):
        nexus.luns[0] = lu
        device.attach(nexus)
        lu.attentions.take(nexus)
        task = task_for(nexus, WRITE, DATA, tag=tag)
        tasks.append(task)
        pending.append(start(device.execute(task)))
    await settle()
    return Bench(device, lu, store, one, two, tasks, pending)


CLEARED = Asc.COMMANDS_CLEARED_BY_ANOTHER_INITIATOR
RESET = Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED


@pytest.mark.parametrize(
    ("function", "aborted", "heard"),
    [
        (Function.ABORT_TASK, [True, False], [None, None]),
        (Function.ABORT_TASK_SET, [True, False], [None, None]),
        (Function.CLEAR_TASK_SET, [True, True], [None, CLEARED]),
        (Function.LOGICAL_UNIT_RESET, [True, True], [RESET, RESET]),
        (
            Function.TARGET_WARM_RESET,
            [True, True],
            [Asc.SCSI_BUS_RESET_OCCURRED, Asc.SCSI_BUS_RESET_OCCURRED],
        ),
        (
            Function.TARGET_COLD_RESET,
            [True, True],
            [Asc.POWER_ON_OCCURRED, Asc.POWER_ON_OCCURRED],
        ),
        (Function.I_T_NEXUS_RESET, [True, False], [Asc.I_T_NEXUS_LOSS_OCCURRED, None]),
    ],
)
async def test_what_a_function_aborts_and_who_hears_of_it(
    bench: Bench, function: Function, aborted: list[bool], heard: list[Asc | None]
) -> None:
    managing = asyncio.ensure_future(bench.device.manage(function, bench.one, 0, tag=1))
    await settle()
    assert bench.aborted() == aborted
    assert not managing.done()  # an operation that runs cannot be taken back
    await bench.open_gate()
    assert await managing is Response.FUNCTION_COMPLETE
    assert bench.heard() == heard
    assert not bench.lu.tasks.unfinished


@pytest.mark.parametrize("tas", [False, True])
async def test_clear_task_set_tells_the_other_nexus_in_one_way(bench: Bench, tas: bool) -> None:
    bench.lu.mode.task_aborted_status = tas
    managing = asyncio.ensure_future(bench.device.manage(Function.CLEAR_TASK_SET, bench.one, 0))
    await settle()
    mine, theirs = await bench.open_gate()
    await managing
    assert mine.status == Status.GOOD
    assert not bench.tasks[0].answer_aborted
    assert bench.tasks[1].answer_aborted is tas
    assert (theirs.status == Status.TASK_ABORTED) is tas
    assert bench.heard() == [None, None if tas else CLEARED]


@pytest.mark.parametrize(("tag", "nexus"), [(2, "one"), (7, "one"), (1, "two")])
async def test_abort_task_of_a_task_that_is_not_there(bench: Bench, tag: int, nexus: str) -> None:
    requester = bench.one if nexus == "one" else bench.two
    response = await bench.device.manage(Function.ABORT_TASK, requester, 0, tag)
    assert response is Response.TASK_DOES_NOT_EXIST
    assert bench.aborted() == [False, False]
    await bench.open_gate()


async def test_abort_task_of_a_task_in_transfer_completes_at_once(bench: Bench) -> None:
    told = []
    transferring = task_for(bench.one, WRITE, tag=9)
    transferring.on_abort = lambda: told.append("transport")
    bench.device.register(transferring)
    response = await bench.device.manage(Function.ABORT_TASK, bench.one, 0, 9)
    assert response is Response.FUNCTION_COMPLETE
    assert told == ["transport"]
    await bench.open_gate()


@pytest.mark.parametrize(
    ("function", "tag", "response"),
    [
        (Function.QUERY_TASK, 1, Response.FUNCTION_SUCCEEDED),
        (Function.QUERY_TASK, 2, Response.FUNCTION_COMPLETE),
        (Function.QUERY_TASK_SET, 0, Response.FUNCTION_SUCCEEDED),
        (Function.QUERY_ASYNC_EVENT, 0, Response.FUNCTION_COMPLETE),
        (Function.CLEAR_ACA, 0, Response.FUNCTION_NOT_SUPPORTED),
    ],
)
async def test_functions_that_abort_nothing(
    bench: Bench, function: Function, tag: int, response: Response
) -> None:
    assert await bench.device.manage(function, bench.one, 0, tag) is response
    assert bench.aborted() == [False, False]
    await bench.open_gate()
    after = await bench.device.manage(Function.QUERY_TASK_SET, bench.one, 0)
    assert after is Response.FUNCTION_COMPLETE


@pytest.mark.parametrize(
    "function",
    [
        Function.ABORT_TASK,
        Function.ABORT_TASK_SET,
        Function.CLEAR_TASK_SET,
        Function.LOGICAL_UNIT_RESET,
        Function.QUERY_TASK,
        Function.QUERY_TASK_SET,
    ],
)
async def test_a_lun_where_nothing_is(bench: Bench, function: Function) -> None:
    response = await bench.device.manage(function, bench.one, 4 << 48, 1)
    assert response is Response.INCORRECT_LOGICAL_UNIT_NUMBER
    assert bench.aborted() == [False, False]
    await bench.open_gate()


async def test_a_target_reset_leaves_units_that_the_nexus_cannot_reach(bench: Bench) -> None:
    private, _ = make_gated_disk()
    bench.two.luns[1] = private
    bench.device.luns_changed(bench.two)
    while private.attentions.take(bench.two):
        pass
    bench.store.gate.set()
    await bench.device.manage(Function.TARGET_WARM_RESET, bench.one, 0)
    assert private.attentions.take(bench.two) is None
    await bench.open_gate()


async def test_a_reset_frees_reservations(bench: Bench) -> None:
    bench.lu.reserved_by = bench.two
    bench.store.gate.set()
    await bench.device.manage(Function.LOGICAL_UNIT_RESET, bench.one, 0)
    assert bench.lu.reserved_by is None
    await bench.open_gate()
