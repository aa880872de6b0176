"""A disk in memory and a shorthand for commands, for tests of the device server."""

import asyncio
from collections.abc import Sequence

from pyiscsi_target.scsi.identifiers import Identity
from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.reservation_store import ReservationStore
from pyiscsi_target.scsi.reservations import NOTHING, State
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task
from pyiscsi_target.storage.base import (
    BackingStore,
    Buffer,
    Capabilities,
    Extent,
    Provisioning,
    StorageError,
    StorageFault,
)

SEED = 0x1234_5678_9ABC_DEF1
TARGET_PORT = "iqn.2026-11.lab.example:disks,t,0x0001"


class MemoryStore(BackingStore):
    """Bytes in memory. `failing` makes every operation fail; `flushes` counts."""

    def __init__(self, size_bytes: int, capabilities: Capabilities | None = None) -> None:
        self.size_bytes = size_bytes
        self.capabilities = capabilities or Capabilities(deallocate_granularity_bytes=4096)
        self.content = bytearray(size_bytes if size_bytes < 1 << 28 else 0)
        self.mapped: list[Extent] = []
        self.failing = False
        self.flushes = 0

    def _check(self) -> None:
        if self.failing:
            raise StorageError(StorageFault.MEDIUM, "injected", 0)

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        self._check()
        into[:] = self.content[offset_bytes : offset_bytes + len(into)]
        return True

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        self.read_now(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        self._check()
        joined = b"".join(data)
        self.content[offset_bytes : offset_bytes + len(joined)] = joined
        return True

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        self.write_now(offset_bytes, data)

    async def flush(self) -> None:
        self._check()
        self.flushes += 1

    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        await self.write_zeroes(offset_bytes, length_bytes)

    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        self._check()
        self.content[offset_bytes : offset_bytes + length_bytes] = bytes(length_bytes)

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        await self.write_zeroes(offset_bytes, length_bytes)

    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        """What `mapped` lists, else one mapped extent; `mapped` must cover the disk."""
        self._check()
        found = [extent for extent in self.mapped if extent.offset_bytes >= offset_bytes]
        return found[:limit] or [Extent(offset_bytes, length_bytes, Provisioning.MAPPED)]

    async def resize(self, size_bytes: int) -> None:
        self._check()
        self.size_bytes = size_bytes

    async def close(self) -> None:
        pass


def make_nexus(name: str = "iqn.2026-11.lab.example:node1", *, port: int = 1) -> Nexus:
    """A nexus through one target port, without LUNs."""
    return Nexus(name, f"{name},i,0x400001370000", TARGET_PORT, port, {})


def make_disk(
    settings: DiskSettings | None = None,
    *,
    size_bytes: int = 1 << 20,
    capabilities: Capabilities | None = None,
    reservations: State = NOTHING,
    reservation_store: ReservationStore | None = None,
) -> LogicalUnit:
    """A logical unit over a `MemoryStore`."""
    store = MemoryStore(size_bytes, capabilities)
    identity = Identity.from_seed(SEED)
    return LogicalUnit(
        "disk", store, identity, settings or DiskSettings(), reservation_store, reservations
    )


def store_of(lu: LogicalUnit) -> MemoryStore:
    """The store of a disk made here."""
    assert isinstance(lu.store, MemoryStore)
    return lu.store


def run(lu: LogicalUnit, nexus: Nexus, cdb: bytes | str, data_out: Sequence[Buffer] = ()) -> Result:
    """Execute one command to its end. `cdb` may be hex; it is padded to 16 bytes."""
    raw = bytes.fromhex(cdb) if isinstance(cdb, str) else cdb
    outcome = lu.execute(Task(nexus, 0, raw.ljust(16, b"\0"), data_out))
    return outcome if isinstance(outcome, Result) else asyncio.run(_await(outcome))


async def _await(pending: object) -> Result:
    result = await pending  # type: ignore[misc]
    assert isinstance(result, Result)
    return result


def data_of(result: Result) -> bytes:
    """The data-in of a command that ended well."""
    assert result.status == Status.GOOD, result.sense.hex()
    data = result.data or b""
    return b"".join(data) if isinstance(data, list) else bytes(data)


def sense_of(result: Result) -> tuple[SenseKey, Asc]:
    """Sense key and additional sense code of a CHECK CONDITION in fixed format."""
    assert result.status == Status.CHECK_CONDITION
    return SenseKey(result.sense[2] & 0x0F), Asc((result.sense[12], result.sense[13]))


def field_of(result: Result) -> tuple[int, int | None, bool]:
    """Byte, bit and whether in the CDB, of the field pointer in fixed format sense data."""
    flags = result.sense[15]
    assert flags & 0x80
    bit = flags & 0x07 if flags & 0x08 else None
    return int.from_bytes(result.sense[16:18], "big"), bit, bool(flags & 0x40)
