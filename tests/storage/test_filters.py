import asyncio
import threading
from collections.abc import AsyncIterator

import pytest

from pyiscsi_target.storage.base import BackingStore, Extent, StorageError, StorageFault
from pyiscsi_target.storage.filters import (
    DelayStore,
    ErrorStore,
    FilterStore,
    Operation,
    one_in,
)
from pyiscsi_target.storage.workers import THREADS_PER_STORE
from tests.storage.conftest import Opener


@pytest.fixture
async def inner(opener: Opener) -> AsyncIterator[BackingStore]:
    store = opener("ram:")
    yield store
    await store.close()


async def test_a_filter_passes_everything_on(inner: BackingStore) -> None:
    store, into = FilterStore(inner), memoryview(bytearray(512))
    assert (store.size_bytes, store.capabilities) == (inner.size_bytes, inner.capabilities)
    assert store.write_now(0, [b"a" * 512])
    await store.write(512, [b"b" * 512], durable=True)
    assert store.read_now(0, into)
    assert into == b"a" * 512
    await store.read(512, into)
    assert into == b"b" * 512
    await store.deallocate(0, 4096)
    await store.write(4096, [b"c" * 8192])
    await store.write_zeroes(4096, 4096)
    await store.prefetch(0, 4096)
    await store.flush()
    extents: list[Extent] = await store.extents(0, inner.size_bytes, 10)
    assert extents == await inner.extents(0, inner.size_bytes, 10)
    await store.close()
    assert not inner.read_now(0, into)


class Time:
    """A sleep that really blocks its thread, until told; `begun` counts the sleepers."""

    def __init__(self) -> None:
        self.asked_s: list[float] = []
        self.threads: set[int] = set()
        self.begun = threading.Semaphore(0)
        self.over = threading.Event()

    def sleep(self, delay_s: float) -> None:
        self.asked_s.append(delay_s)
        self.threads.add(threading.get_ident())
        self.begun.release()
        assert self.over.wait(10)

    def wait_for_sleepers(self, count: int) -> None:
        for _ in range(count):
            assert self.begun.acquire(timeout=10)


async def test_a_delay_blocks_the_threads_of_its_store_alone(inner: BackingStore) -> None:
    time = Time()
    store, into = DelayStore(inner, 0.05, sleep=time.sleep), memoryview(bytearray(512))
    assert not store.write_now(0, [b"a" * 512])
    assert not store.read_now(0, into)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        group.create_task(store.write(0, [b"a" * 512]))
        for block in range(1, 3 * THREADS_PER_STORE):
            group.create_task(store.write(512 * block, [b"b" * 512], durable=True))
        await asyncio.to_thread(time.wait_for_sleepers, THREADS_PER_STORE)
        assert time.asked_s == [0.05] * THREADS_PER_STORE
        await inner.read(0, into)  # what is not delayed goes on meanwhile
        assert into == bytes(512)
        time.over.set()
    await store.read(0, into)
    assert into == b"a" * 512
    assert len(time.asked_s) == 3 * THREADS_PER_STORE + 1
    assert len(time.threads) <= THREADS_PER_STORE
    assert threading.get_ident() not in time.threads
    await store.close()


async def test_closing_a_slow_disk_waits_and_ends_its_threads(inner: BackingStore) -> None:
    time = Time()
    store = DelayStore(inner, 0.05, "slow", time.sleep)
    reading = asyncio.create_task(store.read(0, memoryview(bytearray(512))))
    await asyncio.to_thread(time.wait_for_sleepers, 1)
    closing = asyncio.create_task(store.close())
    await asyncio.sleep(0)
    assert not closing.done()
    time.over.set()
    await closing
    await asyncio.gather(reading, return_exceptions=True)
    assert not [each for each in threading.enumerate() if each.name.startswith("store slow")]
    with pytest.raises(StorageError, match="slow: closed"):
        await store.write(0, [bytes(512)])


async def test_every_third_operation_fails(inner: BackingStore) -> None:
    store = ErrorStore(inner, one_in(3))
    into = memoryview(bytearray(512))
    await store.write(0, [b"a" * 512])
    await store.read(0, into)
    with pytest.raises(StorageError) as caught:
        await store.write(512, [b"b" * 512])
    assert caught.value.fault is StorageFault.MEDIUM
    assert caught.value.offset_bytes == 512
    await store.read(512, into)
    assert into == bytes(512)
    await store.flush()  # not counted
    await store.write(0, [bytes(512)])
    with pytest.raises(StorageError):
        await store.read(0, into)


async def test_what_fails_is_judged_by_operation_and_range(inner: BackingStore) -> None:
    seen: list[tuple[Operation, int, int]] = []

    def judge(operation: Operation, offset_bytes: int, length_bytes: int) -> StorageFault | None:
        seen.append((operation, offset_bytes, length_bytes))
        return StorageFault.OUT_OF_SPACE if offset_bytes == 512 else None

    store = ErrorStore(inner, judge)
    await store.write(0, [bytes(512)] * 2)
    assert not store.read_now(0, memoryview(bytearray(512)))
    assert not store.write_now(0, [bytes(512)])
    await store.flush()
    await store.deallocate(1024, 512)
    for refused in (
        store.write(512, [bytes(512)]),
        store.read(512, memoryview(bytearray(512))),
        store.deallocate(512, 512),
        store.write_zeroes(512, 512),
        store.anchor(512, 512),
    ):
        with pytest.raises(StorageError) as caught:
            await refused
        assert caught.value.fault is StorageFault.OUT_OF_SPACE
    assert seen[:3] == [
        (Operation.WRITE, 0, 1024),
        (Operation.FLUSH, 0, inner.size_bytes),
        (Operation.ALLOCATE, 1024, 512),
    ]
