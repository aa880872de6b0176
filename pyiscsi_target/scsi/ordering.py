"""Which task may run now: task attributes (SAM-6 clause 8) and blocks that two tasks share.

`TaskSet` knows the tasks that did not finish at once, in the order of their arrival; `BlockRanges`
the blocks that they are working on. Neither knows what a command does.
"""

from asyncio import Future, get_running_loop, sleep
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager

from .task import Task, TaskAttribute


class TaskAborted(Exception):
    """The task was aborted while it waited; it must not touch the medium any more."""


async def pause(task: Task) -> None:
    """Let others run between two parts of a long command. Raises TaskAborted."""
    await sleep(0)
    if task.aborted:
        raise TaskAborted


class _Waiters:
    """Futures to be woken together, each of whose owners then looks again for itself."""

    __slots__ = ("_futures",)

    def __init__(self) -> None:
        self._futures: list[Future[None]] = []

    async def wait(self) -> None:
        future = get_running_loop().create_future()
        self._futures.append(future)
        await future

    def wake(self) -> None:
        if self._futures:
            futures, self._futures = self._futures, []
            for future in futures:
                if not future.done():
                    future.set_result(None)


# Column waits for row, if the row is older (SAM-6 clause 8.6; CTL's serialization table shows the
# same idea). UNTAGGED behaves as SIMPLE. A task waits for any HEAD OF QUEUE task, even a younger
# one, because that entered the task set at its head.
_SIMPLE_WAITS_FOR = frozenset({TaskAttribute.ORDERED})
_WAITS_FOR_OLDER: dict[int, frozenset[int]] = {
    TaskAttribute.UNTAGGED: _SIMPLE_WAITS_FOR,
    TaskAttribute.SIMPLE: _SIMPLE_WAITS_FOR,
    TaskAttribute.ORDERED: frozenset(TaskAttribute),
    TaskAttribute.HEAD_OF_QUEUE: frozenset(),
}
_BARRIERS = frozenset({TaskAttribute.ORDERED, TaskAttribute.HEAD_OF_QUEUE})


class TaskSet:
    """The unfinished tasks of a logical unit, of all nexuses (control mode page: TST=000b).

    A command that finishes within `execute` never enters. `unfinished` maps a task to whether it
    is executing (False: its data-out is still being transferred); `barriers` counts what makes
    others wait: ORDERED and HEAD OF QUEUE ones, and holds.
    """

    __slots__ = ("_holds", "_queued", "_waiters", "barriers", "unfinished")

    def __init__(self) -> None:
        self.unfinished: dict[Task, bool] = {}
        self.barriers = 0
        self._holds = 0
        self._queued: set[Task] = set()
        self._waiters = _Waiters()

    def enter(self, task: Task, *, executing: bool) -> None:
        """Take the task in at its place; one that entered for its transfer keeps that place."""
        if task not in self.unfinished and task.attribute in _BARRIERS:
            self.barriers += 1
        self.unfinished[task] = executing

    def finish(self, task: Task) -> None:
        """The task has ended, or never entered."""
        self._queued.discard(task)
        if self.unfinished.pop(task, None) is None:
            return
        if task.attribute in _BARRIERS:
            self.barriers -= 1
        self._waiters.wake()

    def must_wait(self, task: Task) -> bool:
        """Whether another task, or a hold, has to end before this one may start."""
        if self._holds:
            return True
        waits_for = _WAITS_FOR_OLDER[task.attribute]
        if not waits_for:
            return False
        older = True
        for other in self.unfinished:
            if other is task:
                older = False
            elif other.attribute == TaskAttribute.HEAD_OF_QUEUE or (
                older and other.attribute in waits_for
            ):
                return True
        return False

    def queue(self, task: Task) -> None:
        """The task has to wait for its `turn`: it has not begun."""
        self._queued.add(task)

    async def turn(self, task: Task) -> None:
        """Return when the task may start. Raises TaskAborted."""
        while not task.aborted and self.must_wait(task):
            await self._waiters.wait()
        self._queued.discard(task)
        if task.aborted:
            raise TaskAborted

    def select(self, chosen: Callable[[Task], bool]) -> list[Task]:
        """The unfinished tasks that `chosen` picks, oldest first."""
        return [task for task in self.unfinished if chosen(task)]

    def begun(self) -> Iterator[Task]:
        """The tasks that are executing and do not wait for their turn, aborted or not."""
        return (
            task
            for task, executing in self.unfinished.items()
            if executing and task not in self._queued
        )

    def alive(self) -> Iterator[Task]:
        """The unfinished tasks that nobody has aborted, oldest first."""
        return (task for task in self.unfinished if not task.aborted)

    def abort(self, tasks: Iterable[Task]) -> None:
        """Mark the tasks aborted. One in transfer is gone at once, the others end by themselves.

        Only the former has an owner to be told (`on_abort`); whoever awaits the others will see.
        """
        for task in tasks:
            task.aborted = True
            executing = self.unfinished[task]
            if not executing:
                self.finish(task)
                if task.on_abort is not None:
                    task.on_abort()
        self._waiters.wake()

    @asynccontextmanager
    async def hold(self) -> AsyncIterator[None]:
        """Let no task begin, whatever its attribute, and enter when all that had begun have ended.

        So nothing touches the medium inside; who comes meanwhile runs afterwards. One hold does not
        keep out another.
        """
        self._holds += 1
        self.barriers += 1
        try:
            await self.ended(list(self.begun()))
            yield
        finally:
            self._holds -= 1
            self.barriers -= 1
            self._waiters.wake()

    async def ended(self, tasks: Iterable[Task]) -> None:
        """Return when none of the tasks is unfinished any more."""
        for task in tasks:
            while task in self.unfinished:
                await self._waiters.wait()


class BlockRange:
    """Blocks from `first` up to but not including `end`, used by one task."""

    __slots__ = ("end", "exclusive", "first")

    def __init__(self, first: int, end: int, exclusive: bool) -> None:
        self.first = first
        self.end = end
        self.exclusive = exclusive

    def conflicts(self, first: int, end: int, exclusive: bool) -> bool:
        """Whether another use of the blocks `first` to `end` must wait for this one."""
        return (exclusive or self.exclusive) and self.first < end and first < self.end


class BlockRanges:
    """The blocks in use by tasks in flight, in the order in which they were asked for.

    COMPARE AND WRITE, ORWRITE and WRITE ATOMIC use theirs exclusively (SBC-4 clauses 5.3, 5.21 and
    4.29); all other commands share and run side by side, even where they overlap. A task that
    finishes within `execute` only asks `conflicts`: nothing can come between its steps.
    `exclusive_count` counts exclusive uses, held or waiting: the hot path's test.
    """

    __slots__ = ("_ranges", "_waiters", "exclusive_count")

    def __init__(self) -> None:
        self._ranges: list[BlockRange] = []
        self._waiters = _Waiters()
        self.exclusive_count = 0

    def conflicts(self, first: int, end: int, exclusive: bool) -> bool:
        """Whether a use of these blocks would have to wait now."""
        return any(other.conflicts(first, end, exclusive) for other in self._ranges)

    async def hold(self, task: Task, first: int, end: int, *, exclusive: bool) -> BlockRange:
        """Return when the blocks are free for this use; give the range to `release` afterwards.

        Served in the order of asking among those that conflict. Raises TaskAborted.
        """
        wanted = BlockRange(first, end, exclusive)
        self._ranges.append(wanted)
        self.exclusive_count += exclusive
        try:
            while not task.aborted and self._is_behind_another(wanted):
                await self._waiters.wait()
            if task.aborted:
                raise TaskAborted
        except BaseException:
            self.release(wanted)
            raise
        return wanted

    def release(self, held: BlockRange) -> None:
        """End a use."""
        self._ranges.remove(held)
        self.exclusive_count -= held.exclusive
        self._waiters.wake()

    def wake(self) -> None:
        """Make waiting tasks look again, because some were aborted."""
        self._waiters.wake()

    def _is_behind_another(self, wanted: BlockRange) -> bool:
        if not self.exclusive_count:
            return False
        for other in self._ranges:
            if other is wanted:
                return False
            if other.conflicts(wanted.first, wanted.end, wanted.exclusive):
                return True
        raise AssertionError("the range was withdrawn while it waited")
