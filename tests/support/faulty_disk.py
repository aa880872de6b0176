"""A disk that fails on demand and tells what it was asked, for tests of the device server."""

from collections.abc import Sequence

from pyiscsi_target.scsi.identifiers import Identity
from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.storage.base import Buffer, Capabilities, StorageError, StorageFault
from tests.support.memory_disk import SEED, MemoryStore


class FaultyStore(MemoryStore):
    """`fault` fails reads and writes, `read_fault` reads alone, `flush_fault` flushes.

    `now` is whether operations can be done without blocking; `durable_writes` and `deallocated`
    record offsets, `prefetched` ranges.
    """

    def __init__(self, size_bytes: int, capabilities: Capabilities | None = None) -> None:
        super().__init__(size_bytes, capabilities)
        self.now = True
        self.fault: StorageFault | None = None
        self.read_fault: StorageFault | None = None
        self.flush_fault: StorageFault | None = None
        self.fault_offset_bytes: int | None = None
        self.durable_writes: list[int] = []
        self.deallocated: list[tuple[int, int]] = []
        self.zeroed: list[tuple[int, int]] = []
        self.anchored: list[tuple[int, int]] = []
        self.prefetched: list[tuple[int, int]] = []

    def _raise(self, fault: StorageFault | None) -> None:
        if fault is not None:
            raise StorageError(fault, "injected", self.fault_offset_bytes)

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        if not self.now:
            return False
        self._raise(self.fault or self.read_fault)
        return super().read_now(offset_bytes, into)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        self._raise(self.fault or self.read_fault)
        super().read_now(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        if not self.now:
            return False
        self._raise(self.fault)
        return super().write_now(offset_bytes, data)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        self._raise(self.fault)
        if durable:
            self.durable_writes.append(offset_bytes)
        super().write_now(offset_bytes, data)

    async def flush(self) -> None:
        self._raise(self.flush_fault)
        await super().flush()

    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        self._raise(self.fault)
        self.deallocated.append((offset_bytes, length_bytes))
        await super().write_zeroes(offset_bytes, length_bytes)

    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        self._raise(self.fault)
        self.zeroed.append((offset_bytes, length_bytes))
        await super().write_zeroes(offset_bytes, length_bytes)

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        self._raise(self.fault)
        self.anchored.append((offset_bytes, length_bytes))
        await super().write_zeroes(offset_bytes, length_bytes)

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        self.prefetched.append((offset_bytes, length_bytes))


def make_faulty_disk(
    settings: DiskSettings | None = None, capabilities: Capabilities | None = None
) -> tuple[LogicalUnit, FaultyStore]:
    """A 1 MiB disk over a `FaultyStore`."""
    store = FaultyStore(1 << 20, capabilities)
    settings = settings or DiskSettings()
    return LogicalUnit("faulty", store, Identity.from_seed(SEED), settings), store
