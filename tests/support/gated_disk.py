"""A disk whose operations wait to be let through, for tests of what overlaps in time."""

import asyncio
from collections.abc import Sequence

from pyiscsi_target.scsi.identifiers import Identity
from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.reservations import NOTHING, State
from pyiscsi_target.scsi.task import Nexus, Outcome, Result, Task, TaskAttribute
from pyiscsi_target.storage.base import Buffer
from tests.support.memory_disk import SEED, MemoryStore


class GatedStore(MemoryStore):
    """Nothing can be done now; a coroutine waits until `gate` is set. `log` lists what was begun.

    `slow_writes_only` lets reads through at once.
    """

    def __init__(self, size_bytes: int) -> None:
        super().__init__(size_bytes)
        self.gate = asyncio.Event()
        self.slow_writes_only = False
        self.log: list[tuple[str, int]] = []

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        if not self.slow_writes_only:
            return False
        return super().read_now(offset_bytes, into)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        self.log.append(("read", offset_bytes))
        await self.gate.wait()
        super().read_now(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return False

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        self.log.append(("write", offset_bytes))
        await self.gate.wait()
        super().write_now(offset_bytes, data)


def make_gated_disk(reservations: State = NOTHING) -> tuple[LogicalUnit, GatedStore]:
    """A 1 MiB disk of 512-byte blocks over a `GatedStore`."""
    store = GatedStore(1 << 20)
    identity = Identity.from_seed(SEED)
    lu = LogicalUnit("gated", store, identity, DiskSettings(), reservations=reservations)
    return lu, store


def start(outcome: Outcome) -> "asyncio.Task[Result]":
    """Let a command that did not finish at once run on by itself."""
    assert not isinstance(outcome, Result)
    return asyncio.get_running_loop().create_task(outcome)


async def settle() -> None:
    """Let everything run that can run."""
    for _ in range(20):
        await asyncio.sleep(0)


def task_for(
    nexus: Nexus,
    cdb: str,
    data_out: Sequence[Buffer] = (),
    attribute: TaskAttribute = TaskAttribute.SIMPLE,
    tag: int = 0,
) -> Task:
    """A task for LUN 0; `cdb` is hex, padded to 16 bytes."""
    return Task(nexus, 0, bytes.fromhex(cdb).ljust(16, b"\0"), data_out, attribute, tag)
