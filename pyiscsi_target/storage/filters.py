"""Stores that wear another store: for tests, and to see how clients live with a bad disk.

A filter passes everything on except for what it is there to change. It must not know what kind of
store it wears.
"""

import time
from collections.abc import Callable, Sequence
from enum import Enum, auto

from .base import BackingStore, Buffer, Extent, StorageError, StorageFault
from .workers import Workers


class FilterStore(BackingStore):
    """Passes every operation on to `inner`."""

    def __init__(self, inner: BackingStore) -> None:
        self.inner = inner
        self.size_bytes = inner.size_bytes
        self.capabilities = inner.capabilities

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        return self.inner.read_now(offset_bytes, into)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        await self.inner.read(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return self.inner.write_now(offset_bytes, data)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        await self.inner.write(offset_bytes, data, durable=durable)

    async def flush(self) -> None:
        await self.inner.flush()

    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        await self.inner.deallocate(offset_bytes, length_bytes)

    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        await self.inner.write_zeroes(offset_bytes, length_bytes)

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        await self.inner.anchor(offset_bytes, length_bytes)

    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        return await self.inner.extents(offset_bytes, length_bytes, limit)

    async def resize(self, size_bytes: int) -> None:
        await self.inner.resize(size_bytes)
        self.size_bytes = self.inner.size_bytes

    async def available_bytes(self) -> int | None:
        return await self.inner.available_bytes()

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        await self.inner.prefetch(offset_bytes, length_bytes)

    async def close(self) -> None:
        await self.inner.close()


class DelayStore(FilterStore):
    """A disk that blocks for `delay_s` in every read and write.

    It sleeps in threads of its own, as calls of a disk that hangs would, so only so many delays
    pass side by side. Nothing is ever answered at once. `name` is for messages, `sleep` for tests.
    """

    def __init__(
        self,
        inner: BackingStore,
        delay_s: float,
        name: str = "delay",
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(inner)
        self._delay_s = delay_s
        self._sleep = sleep
        self._workers = Workers(name)

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        return False

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        await self._workers.run(self._sleep, self._delay_s)
        if not self.inner.read_now(offset_bytes, into):
            await self.inner.read(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return False

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        await self._workers.run(self._sleep, self._delay_s)
        if durable or not self.inner.write_now(offset_bytes, data):
            await self.inner.write(offset_bytes, data, durable=durable)

    async def close(self) -> None:
        await self._workers.close()
        await self.inner.close()


class Operation(Enum):
    """What an `ErrorStore` may refuse."""

    READ = auto()
    WRITE = auto()
    FLUSH = auto()
    ALLOCATE = auto()  # deallocate, write_zeroes and anchor


Judge = Callable[[Operation, int, int], StorageFault | None]
"""(operation, offset_bytes, length_bytes) -> the fault to raise, or None to let it pass."""


def one_in(count: int, fault: StorageFault = StorageFault.MEDIUM) -> Judge:
    """A judge that refuses every `count`th read or write, beginning with the `count`th."""
    seen = 0

    def judge(operation: Operation, offset_bytes: int, length_bytes: int) -> StorageFault | None:
        nonlocal seen
        if operation not in (Operation.READ, Operation.WRITE):
            return None
        seen += 1
        return fault if seen % count == 0 else None

    return judge


class ErrorStore(FilterStore):
    """A disk on which operations fail as `judge` decides; a refused one has changed nothing.

    Nothing is answered at once, so that every operation is judged exactly once.
    """

    def __init__(self, inner: BackingStore, judge: Judge) -> None:
        super().__init__(inner)
        self.judge = judge

    def _check(self, operation: Operation, offset_bytes: int, length_bytes: int) -> None:
        fault = self.judge(operation, offset_bytes, length_bytes)
        if fault is not None:
            message = f"{operation.name.lower()} at byte {offset_bytes}: {fault.name} on purpose"
            raise StorageError(fault, message, offset_bytes)

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        return False

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        self._check(Operation.READ, offset_bytes, len(into))
        if not self.inner.read_now(offset_bytes, into):
            await self.inner.read(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return False

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        self._check(Operation.WRITE, offset_bytes, sum(map(len, data)))
        if durable or not self.inner.write_now(offset_bytes, data):
            await self.inner.write(offset_bytes, data, durable=durable)

    async def flush(self) -> None:
        self._check(Operation.FLUSH, 0, self.size_bytes)
        await self.inner.flush()

    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        self._check(Operation.ALLOCATE, offset_bytes, length_bytes)
        await self.inner.deallocate(offset_bytes, length_bytes)

    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        self._check(Operation.ALLOCATE, offset_bytes, length_bytes)
        await self.inner.write_zeroes(offset_bytes, length_bytes)

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        self._check(Operation.ALLOCATE, offset_bytes, length_bytes)
        await self.inner.anchor(offset_bytes, length_bytes)
