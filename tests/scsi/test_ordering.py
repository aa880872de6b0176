"""Task attributes and shared blocks, seen from outside any command."""

import asyncio

import pytest

from pyiscsi_target.scsi.ordering import BlockRanges, TaskAborted, TaskSet, pause
from pyiscsi_target.scsi.task import Task, TaskAttribute
from tests.support.gated_disk import settle, task_for
from tests.support.memory_disk import make_nexus

UNTAGGED = TaskAttribute.UNTAGGED
SIMPLE = TaskAttribute.SIMPLE
ORDERED = TaskAttribute.ORDERED
HEAD = TaskAttribute.HEAD_OF_QUEUE


def make_task(attribute: TaskAttribute = SIMPLE) -> Task:
    return task_for(make_nexus(), "00", attribute=attribute)


@pytest.mark.parametrize(
    ("older", "younger", "waits"),
    [
        (SIMPLE, SIMPLE, False),
        (SIMPLE, UNTAGGED, False),
        (SIMPLE, ORDERED, True),
        (SIMPLE, HEAD, False),
        (UNTAGGED, ORDERED, True),
        (ORDERED, SIMPLE, True),
        (ORDERED, UNTAGGED, True),
        (ORDERED, ORDERED, True),
        (ORDERED, HEAD, False),
        (HEAD, SIMPLE, True),
        (HEAD, ORDERED, True),
        (HEAD, HEAD, False),
    ],
)
def test_which_task_waits_for_an_older_one(
    older: TaskAttribute, younger: TaskAttribute, waits: bool
) -> None:
    tasks = TaskSet()
    first, second = make_task(older), make_task(younger)
    tasks.enter(first, executing=True)
    assert tasks.must_wait(second) is waits
    tasks.enter(second, executing=True)
    assert tasks.must_wait(second) is waits
    tasks.finish(first)
    assert not tasks.must_wait(second)


def test_only_a_head_of_queue_task_goes_before_an_older_one() -> None:
    tasks = TaskSet()
    first = make_task(SIMPLE)
    tasks.enter(first, executing=True)
    tasks.enter(make_task(ORDERED), executing=True)
    assert not tasks.must_wait(first)
    tasks.enter(make_task(HEAD), executing=True)
    assert tasks.must_wait(first)


def test_a_task_keeps_the_place_it_had_when_its_transfer_began() -> None:
    tasks = TaskSet()
    first, second = make_task(SIMPLE), make_task(ORDERED)
    tasks.enter(first, executing=False)
    tasks.enter(second, executing=True)
    tasks.enter(first, executing=True)
    assert not tasks.must_wait(first)
    assert tasks.must_wait(second)


def test_barriers_count_what_makes_others_wait() -> None:
    tasks = TaskSet()
    ordered, simple = make_task(ORDERED), make_task()
    tasks.enter(ordered, executing=False)
    tasks.enter(ordered, executing=True)
    tasks.enter(simple, executing=True)
    assert tasks.barriers == 1
    tasks.finish(simple)
    tasks.finish(ordered)
    tasks.finish(ordered)
    assert tasks.barriers == 0
    assert not tasks.unfinished


async def test_turns_come_in_order() -> None:
    tasks = TaskSet()
    order: list[str] = []

    async def run(name: str, task: Task) -> None:
        await tasks.turn(task)
        order.append(name)
        tasks.finish(task)

    blocker = make_task()
    tasks.enter(blocker, executing=True)
    async with asyncio.TaskGroup() as group:
        for name, attribute in (("a", ORDERED), ("b", SIMPLE), ("c", SIMPLE), ("d", ORDERED)):
            task = make_task(attribute)
            tasks.enter(task, executing=True)
            group.create_task(run(name, task))
        await settle()
        assert order == []
        tasks.finish(blocker)
    assert order == ["a", "b", "c", "d"]


async def test_an_aborted_task_gets_no_turn() -> None:
    tasks = TaskSet()
    blocker, waiting = make_task(), make_task(ORDERED)
    tasks.enter(blocker, executing=True)
    tasks.enter(waiting, executing=True)
    pending = asyncio.ensure_future(tasks.turn(waiting))
    await settle()
    tasks.abort([waiting])
    with pytest.raises(TaskAborted):
        await pending
    assert waiting in tasks.unfinished  # until whoever ran it says so


async def test_a_task_aborted_in_transfer_ends_at_once_and_is_told() -> None:
    tasks = TaskSet()
    transferring, running = make_task(), make_task()
    told: list[str] = []
    transferring.on_abort = lambda: told.append("transferring")
    running.on_abort = lambda: told.append("running")
    tasks.enter(transferring, executing=False)
    tasks.enter(running, executing=True)
    tasks.abort([transferring, running])
    assert told == ["transferring"]
    assert transferring.aborted
    assert running.aborted
    assert list(tasks.unfinished) == [running]
    ended = asyncio.ensure_future(tasks.ended([transferring, running]))
    await settle()
    assert not ended.done()
    tasks.finish(running)
    await ended


# Blocks


@pytest.mark.parametrize(
    ("held", "wanted", "conflicts"),
    [
        ((0, 8, False), (0, 8, False), False),
        ((0, 8, False), (7, 9, True), True),
        ((0, 8, True), (7, 9, False), True),
        ((0, 8, True), (8, 9, True), False),
        ((8, 9, True), (0, 8, True), False),
        ((3, 4, True), (0, 8, False), True),
        ((0, 8, True), (4, 4, True), True),
        ((0, 8, True), (8, 8, False), False),
    ],
)
async def test_conflicts_of_ranges(
    held: tuple[int, int, bool], wanted: tuple[int, int, bool], conflicts: bool
) -> None:
    ranges = BlockRanges()
    await ranges.hold(make_task(), held[0], held[1], exclusive=held[2])
    assert ranges.conflicts(*wanted) is conflicts


async def test_blocks_are_served_in_the_order_of_asking() -> None:
    ranges = BlockRanges()
    order: list[str] = []

    async def use(name: str, first: int, end: int, exclusive: bool) -> None:
        held = await ranges.hold(make_task(), first, end, exclusive=exclusive)
        order.append(name)
        await settle()
        ranges.release(held)

    first = await ranges.hold(make_task(), 0, 8, exclusive=False)
    async with asyncio.TaskGroup() as group:
        group.create_task(use("exclusive", 0, 8, True))
        await settle()
        group.create_task(use("behind it", 4, 6, False))
        group.create_task(use("elsewhere", 8, 16, False))
        await settle()
        assert order == ["elsewhere"]
        assert ranges.exclusive_count == 1
        ranges.release(first)
    assert order == ["elsewhere", "exclusive", "behind it"]
    assert ranges.exclusive_count == 0
    assert not ranges.conflicts(0, 100, True)


async def test_an_aborted_wait_leaves_nothing_behind() -> None:
    ranges = BlockRanges()
    held = await ranges.hold(make_task(), 0, 8, exclusive=True)
    task = make_task()
    pending = asyncio.ensure_future(ranges.hold(task, 0, 8, exclusive=True))
    await settle()
    task.aborted = True
    ranges.wake()
    with pytest.raises(TaskAborted):
        await pending
    ranges.release(held)
    assert ranges.exclusive_count == 0
    assert not ranges.conflicts(0, 8, True)


async def test_pause_ends_an_aborted_task() -> None:
    task = make_task()
    await pause(task)
    task.aborted = True
    with pytest.raises(TaskAborted):
        await pause(task)
