import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from pyiscsi_target.storage.base import StorageError, StorageFault
from pyiscsi_target.storage.workers import Workers


@pytest.fixture
async def workers() -> AsyncIterator[Workers]:
    made = Workers("disk", limit=1)
    yield made
    await made.close()


class Gate:
    """A call that says when it has begun and ends when told."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.may_end = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.begun.set()
        self.may_end.wait(10)
        self.ended = True
        return "done"

    async def has_begun(self) -> None:
        await asyncio.to_thread(self.begun.wait, 10)


async def test_returns_the_result_of_another_thread(workers: Workers) -> None:
    assert await workers.run(threading.get_ident) != threading.get_ident()


async def test_raises_what_the_call_raises(workers: Workers) -> None:
    with pytest.raises(ZeroDivisionError):
        await workers.run(divmod, 1, 0)


async def test_a_store_that_hangs_does_not_hold_up_another(workers: Workers) -> None:
    gate, other = Gate(), Workers("other", limit=1)
    hanging = asyncio.create_task(workers.run(gate))
    await gate.has_begun()
    assert await other.run(lambda: 1) == 1
    gate.may_end.set()
    assert await hanging == "done"
    await other.close()


async def test_no_more_threads_than_the_limit() -> None:
    workers, running, most = Workers("disk", limit=3), 0, 0
    lock = threading.Lock()
    barrier = threading.Barrier(3)

    def call() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        barrier.wait(10)
        with lock:
            running -= 1

    await asyncio.gather(*(workers.run(call) for _ in range(9)))
    assert most == 3
    await workers.close()


async def test_a_cancelled_call_that_has_begun_is_waited_for(workers: Workers) -> None:
    gate = Gate()
    task = asyncio.create_task(workers.run(gate))
    await gate.has_begun()
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
    gate.may_end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert gate.ended


async def test_a_cancelled_call_that_waits_never_runs(workers: Workers) -> None:
    gate, waiting = Gate(), Gate()
    first = asyncio.create_task(workers.run(gate))
    await gate.has_begun()
    second = asyncio.create_task(workers.run(waiting))
    await asyncio.sleep(0)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    gate.may_end.set()
    await first
    await workers.close()
    assert not waiting.begun.is_set()


async def test_close_waits_and_then_refuses(workers: Workers) -> None:
    gate = Gate()
    task = asyncio.create_task(workers.run(gate))
    await gate.has_begun()
    closing = asyncio.create_task(workers.close())
    await asyncio.sleep(0)
    assert not closing.done()
    gate.may_end.set()
    await closing
    assert await task == "done"
    with pytest.raises(StorageError) as caught:
        await workers.run(gate)
    assert caught.value.fault is StorageFault.GONE


async def test_threads_start_when_needed_and_end_at_close() -> None:
    before = threading.active_count()
    workers = Workers("disk", limit=4)
    assert threading.active_count() == before
    await workers.run(lambda: None)
    assert threading.active_count() == before + 1
    await workers.close()
    assert threading.active_count() == before
