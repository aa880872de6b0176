"""Two nodes, two paths each, and a disk of moods: rounds in which one is fenced while it writes.

The owner of the disk writes 4 KiB blocks at queue depth, each stamped with who wrote it and when;
the challenger preempts it at some moment and reads everything as soon as it has its GOOD. Whatever
the owner's connections do meanwhile, a second look when nothing can be under way any more must show
the same; what was acknowledged must be there, whole; what was refused must not. The roles change
with every round.

Every decision comes from a seed; what threads and sockets make of it does not.
"""

import asyncio
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from pyiscsi_target.client import (
    ConnectionLost,
    Initiator,
    Limits,
    Portal,
    Reservations,
    ReservationType,
    Result,
    Session,
    Status,
    TaskAborted,
    TaskManagement,
)
from pyiscsi_target.client.commands import write_16
from pyiscsi_target.storage.base import BackingStore, Buffer
from pyiscsi_target.storage.filters import FilterStore
from pyiscsi_target.storage.workers import Workers

BLOCK_BYTES = 512
WRITE_BYTES = 4096
WRITE_BLOCKS = WRITE_BYTES // BLOCK_BYTES
SLOTS_A_PATH = 12  # the most writes that a path has under way
PATHS = 2
SLOTS = SLOTS_A_PATH * PATHS
SLOWEST_S = 0.003
SETTLED_BY_ONE = (ReservationType.WRITE_EXCLUSIVE, ReservationType.EXCLUSIVE_ACCESS)
REFUSALS = (Status.RESERVATION_CONFLICT, Status.TASK_ABORTED, Status.CHECK_CONDITION)


class Violation(AssertionError):
    """A promise of fencing was broken."""


def demand(kept: bool, promise: str) -> None:
    if not kept:
        raise Violation(promise)


class MoodyStore(FilterStore):
    """Writes at once or in threads of its own, in two halves with a pause before each."""

    def __init__(self, inner: BackingStore, source: random.Random) -> None:
        super().__init__(inner)
        self.slow_share = 0.0
        self.under_way = 0
        self._source = source
        self._workers = Workers("moody")
        self._idle = asyncio.Event()

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return self._source.random() >= self.slow_share and super().write_now(offset_bytes, data)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        self.under_way += 1
        self._idle.clear()
        whole = memoryview(b"".join(data))
        half = len(whole) // 2
        try:
            for start, part in ((0, whole[:half]), (half, whole[half:])):
                await self._workers.run(time.sleep, self._source.random() * SLOWEST_S)
                await super().write(offset_bytes + start, [part], durable=durable)
        finally:
            self.under_way -= 1
            if not self.under_way:
                self._idle.set()

    async def idle(self) -> None:
        """Return when no write is under way."""
        while self.under_way:
            await self._idle.wait()

    async def close(self) -> None:
        await self._workers.close()
        await super().close()


@dataclass
class Write:
    """One write of a round, and how it ended: a status, or None where nobody knows."""

    stamp: bytes
    begun_after_good: bool
    status: int | None = None


@dataclass
class Node:
    """A host with two paths, one of which sends no data before it is asked for it."""

    name: str
    paths: list[Session]
    key: int = 0
    fenced: bool = False  # the other has its GOOD
    stopping: bool = False
    acknowledged: int = 0
    writes: dict[int, list[Write]] = field(default_factory=dict)  # by slot

    def stamp(self, slot: int, number: int) -> bytes:
        """A block that says what it is in each of its 16 bytes."""
        words = (self.key, slot, number, ord(self.name))
        return b"".join(word.to_bytes(4) for word in words) * (WRITE_BYTES // 16)

    async def register(self, key: int) -> None:
        """Down every path, as MPIO does; a lost one is made anew first."""
        self.key, self.fenced, self.stopping, self.acknowledged = key, False, False, 0
        self.writes = {}
        for path in self.paths:
            if path.closed:
                await path.reconnect()
            await path.ready(0)
            await Reservations(path, 0).register_and_ignore(key)

    async def write_on(self, path: Session, slot: int) -> None:
        """Write to a slot again and again, one at a time, until it is refused or cut off."""
        history = self.writes[slot] = []
        refusals = 0
        while not self.stopping and refusals < 3:
            write = Write(self.stamp(slot, len(history)), self.fenced)
            history.append(write)
            try:
                result = await path.execute(
                    0, write_16(slot * WRITE_BLOCKS, WRITE_BLOCKS), data_out=write.stamp
                )
            except (ConnectionLost, TaskAborted):
                return
            self._note(write, result)
            refusals += not result.good

    def _note(self, write: Write, result: Result) -> None:
        write.status = result.status
        if result.good:
            self.acknowledged += 1
            demand(not write.begun_after_good, "a write begun after the fence was acknowledged")
        else:
            demand(result.status in REFUSALS, f"a write ended with {result}")

    async def end_all(self) -> None:
        """Return when nothing of this node is under way: by its own word, or by a new login."""
        for path in self.paths:
            if path.closed:
                await path.reconnect()
            await path.task_management(TaskManagement.ABORT_TASK_SET)


class Rounds:
    """A series of rounds on one disk."""

    def __init__(self, store: MoodyStore, nodes: list[Node], source: random.Random) -> None:
        self.store = store
        self.owner, self.challenger = nodes
        self.source = source
        self.number = 0
        self.kind = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
        self.seen: dict[str, int] = {}  # how often what was to be tried has happened

    @classmethod
    async def begin(
        cls, portal: Portal, target: str, store: MoodyStore, source: random.Random
    ) -> "Rounds":
        nodes = []
        for name in "ab":
            paths = []
            for number in range(PATHS):
                unasked = number == 0
                limits = Limits(initial_r2t=not unasked, immediate_data=unasked)
                isid = bytes([0x80, 0, 0, 0, number, ord(name)])
                initiator = Initiator(f"iqn.2026-11.example.test:{name}", isid, limits=limits)
                paths.append(await Session.connect(portal, target, initiator))
            nodes.append(Node(name, paths))
        rounds = cls(store, nodes, source)
        await rounds.owner.register(0xFFFF)
        await Reservations(rounds.owner.paths[0], 0).reserve(0xFFFF, rounds.kind)
        return rounds

    async def play(self) -> None:
        """One round. Raises Violation."""
        self.number += 1
        source, owner, challenger = self.source, self.owner, self.challenger
        self.store.slow_share = source.choice((0.0, 0.1, 0.5, 1.0))
        owner_key = owner.key
        await challenger.register(0x1000 + self.number)
        for path in owner.paths:
            await path.ready(0)
        before = await self._read(owner)

        writers = self._start_writers()
        fence = asyncio.create_task(self._fence(owner_key))
        end = asyncio.create_task(self._end_of_owner())
        at_good = await fence
        await end
        for _ in range(source.randrange(4)):
            await asyncio.sleep(0)
        await owner.end_all()
        owner.stopping = True
        await asyncio.gather(*writers)
        await self.store.idle()
        later = await self._read(challenger)

        demand(later == at_good, "the disk changed after the GOOD of the preempt")
        self._check(before, at_good)
        self._count()
        self.owner, self.challenger = challenger, owner

    def _start_writers(self) -> list["asyncio.Task[None]"]:
        depth = self.source.randint(1, SLOTS_A_PATH)
        paths = 1 if self.kind in SETTLED_BY_ONE else PATHS  # there the holder is one nexus
        return [
            asyncio.create_task(self.owner.write_on(path, number * SLOTS_A_PATH + slot))
            for number, path in enumerate(self.owner.paths[:paths])
            for slot in range(depth)
        ]

    async def _moment(self) -> None:
        """Until the owner has got on by so many writes, or so many turns of the loop."""
        enough = self.owner.acknowledged + self.source.choice((0, 0, 1, 5, 20))
        turns = self.source.randrange(60)
        while self.owner.acknowledged < enough or turns > 0:
            turns -= 1
            if turns < -2000:  # the owner has been cut off
                return
            await asyncio.sleep(0)

    async def _fence(self, owner_key: int) -> bytes:
        """Preempt, and what the disk holds the moment after."""
        challenger = self.challenger
        abort = self.source.random() < 0.8
        self.kind = self.source.choice(list(ReservationType))
        await self._moment()
        await Reservations(challenger.paths[0], 0).preempt(
            challenger.key, owner_key, self.kind, abort=abort
        )
        self.owner.fenced = True
        return await self._read(challenger)

    async def _end_of_owner(self) -> None:
        """What becomes of the owner's connections: mostly nothing, sometimes the power goes."""
        cut = self.source.choice((0, 0, 0, 0, 0, 0, 1, 2))
        await self._moment()
        for path in self.source.sample(self.owner.paths, cut):
            path.drop()

    async def _read(self, node: Node) -> bytes:
        return await node.paths[0].read(0, 0, SLOTS * WRITE_BLOCKS)

    def _check(self, before: bytes, after: bytes) -> None:
        for slot, history in self.owner.writes.items():
            place = slice(slot * WRITE_BYTES, (slot + 1) * WRITE_BYTES)
            allowed = [before[place]]
            for write in history:
                if write.status == Status.GOOD:
                    allowed = [write.stamp]
                elif write.status in (None, Status.TASK_ABORTED):
                    allowed.append(write.stamp)  # it may have been done, whole
            demand(
                after[place] in allowed,
                f"round {self.number}, slot {slot}: {after[place][:32].hex()} ..., not one of "
                + ", ".join(block[:16].hex() for block in allowed),
            )

    def _count(self) -> None:
        """What this round tried, so that a test can demand that everything was."""
        writes = [write for history in self.owner.writes.values() for write in history]
        for name, count in (
            ("acknowledged", sum(write.status == Status.GOOD for write in writes)),
            ("cut off", sum(write.status is None for write in writes)),
            ("conflicts", sum(write.status == Status.RESERVATION_CONFLICT for write in writes)),
            ("attentions", sum(write.status == Status.CHECK_CONDITION for write in writes)),
            ("task aborted", sum(write.status == Status.TASK_ABORTED for write in writes)),
            ("after good", sum(write.begun_after_good for write in writes)),
        ):
            self.seen[name] = self.seen.get(name, 0) + count

    async def end(self) -> None:
        for node in (self.owner, self.challenger):
            for path in node.paths:
                await path.close()
