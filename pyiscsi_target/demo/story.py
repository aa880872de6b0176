"""The story of a failover as two cluster nodes live it: steps over client sessions, told as events.

Node A holds the quorum and writes numbered records; its power is pulled; node B challenges, takes
over, reads every acknowledged record back and goes on; A comes back and is refused until it
registers. Whatever is not as it should be raises StoryFailed. The arbitration is that of Windows
with persistent reservations: the owner looks at the registered keys at every renewal and preempts a
challenge that it finds; a challenge that stands for longer than two renewals has no opponent.

Knows neither who serves the disk nor who watches.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NoReturn

from ..client import (
    CommandFailed,
    Initiator,
    Portal,
    Reservations,
    ReservationType,
    Session,
    Status,
    commands,
)
from .records import Record

TYPE = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
CHALLENGE = 1 << 63  # what a node sets in its key while it challenges
MSFT = int.from_bytes(b"Msft", "big")  # the low half of the keys of Windows nodes
CHUNK_BLOCKS = 128  # read back at once


class StoryFailed(Exception):
    """Something is not as it should be; the message says what."""


class Kind(Enum):
    """What sort of event it is: how it is shown."""

    STEP = auto()
    RECORD = auto()
    WAIT = auto()
    POWER = auto()
    REFUSED = auto()
    GOOD = auto()


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened `at_s` seconds after the beginning; `who` is a node's name.

    `disk` says what it has made of the disk, in a word or two: "12" for record 12.
    """

    at_s: float
    who: str
    kind: Kind
    text: str
    disk: str = ""


@dataclass(frozen=True, slots=True)
class Timing:
    """How long things take, in seconds. The defaults make a story of about fourteen seconds.

    A node beats every `heartbeat_s`, and is missed after `heartbeats_missed` of them. The owner
    renews every `renew_s`; a challenger waits `challenge_s`, which is more than two renewals.
    Records are written every `record_s`: by A for `lead_s`, by B for `alone_s` before A is back,
    for `refused_s` until A registers, and for `together_s` after that.
    """

    record_s: float = 0.2
    lead_s: float = 4.0
    heartbeat_s: float = 0.2
    heartbeats_missed: int = 5
    renew_s: float = 0.9
    challenge_s: float = 2.1
    alone_s: float = 3.0
    refused_s: float = 1.5
    together_s: float = 1.5

    @property
    def silence_s(self) -> float:
        """How long a node must be silent to be missed."""
        return self.heartbeat_s * self.heartbeats_missed


# Arbitration as Windows does it, and the heartbeats of Windows Server 2016 and later.
WINDOWS = Timing(heartbeat_s=1.0, heartbeats_missed=10, renew_s=3.0, challenge_s=7.0, lead_s=6.0)


@dataclass(slots=True)
class Wait:
    """What is waited for, since when and for how long."""

    what: str
    since_s: float
    length_s: float


@dataclass(slots=True)
class Node:
    """One node: who it is, its session, and what can be seen of it."""

    name: str
    session: Session
    lun: int
    state: str = "off"
    registered: bool = False
    challenging: bool = False
    last_record: int | None = None
    last_beat_s: float = 0.0
    wait: Wait | None = None
    chores: list["asyncio.Task[None]"] = field(default_factory=list)

    @property
    def key(self) -> int:
        """Its reservation key, as it is now."""
        return ord(self.name) << 32 | MSFT | (CHALLENGE if self.challenging else 0)

    @property
    def reservations(self) -> Reservations:
        """The disk's persistent reservations, seen from here."""
        return Reservations(self.session, self.lun)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How it went. The failover is from A's last acknowledged record to B's first.

    `noticed_s` to `target_s` are its parts: until the missing heartbeats were enough, the
    challenge, and what the target took for the takeover, the reading back and the first record.
    """

    last_record_of_a: int
    first_record_of_b: int
    last_record: int
    under_way_arrived: bool
    noticed_s: float
    challenge_s: float
    target_s: float

    @property
    def gap_s(self) -> float:
        """How long nobody wrote."""
        return self.noticed_s + self.challenge_s + self.target_s


def node_at(name: str, portal: Portal, target: str, lun: int) -> Node:
    """A node that is not connected yet. Its ISID is its own for ever: the same nexus each time."""
    initiator = Initiator(
        f"iqn.2026-11.org.pyiscsi-target:node-{name.lower()}",
        isid=bytes([0x80, 0, 0, 0, 0, ord(name)]),
    )
    return Node(name, Session(portal, target, initiator), lun)


class Story:
    """One failover. `play` it once; `a`, `b`, `holder` and `records` show where it is."""

    def __init__(self, a: Node, b: Node, timing: Timing, tell: Callable[[Event], None]) -> None:
        self.a = a
        self.b = b
        self.timing = timing
        self.holder: Node | None = None
        self.records: dict[int, Node] = {}  # those that were acknowledged, and by whom written
        self._tell = tell
        self._loop = asyncio.get_running_loop()
        self._began_s = self._loop.time()
        self._block_size = 0
        self._under_way = 0  # the number of the record that was on its way when the power went
        self._acknowledged_s: dict[int, float] = {}
        self._noticed_s = 0.0
        self._challenged_s = 0.0

    def now_s(self) -> float:
        """Seconds since the beginning."""
        return self._loop.time() - self._began_s

    async def play(self) -> Outcome:
        """From the first login to the last look. Raises StoryFailed, ClientError."""
        try:
            for step in _STEPS:
                await step(self)
        finally:
            for node in (self.a, self.b):
                await self._stop_chores(node)
                await node.session.close()
        return self._outcome()

    # What the steps are made of

    def _say(self, node: Node, kind: Kind, text: str, disk: str = "") -> None:
        self._tell(Event(self.now_s(), node.name, kind, text, disk))

    def _start_chores(self, node: Node) -> None:
        node.chores = [
            asyncio.create_task(self._beat(node)),
            asyncio.create_task(self._defend(node)),
        ]

    async def _stop_chores(self, node: Node) -> list[BaseException]:
        """What has gone wrong with them, if anything."""
        for chore in node.chores:
            chore.cancel()
        ends = await asyncio.gather(*node.chores, return_exceptions=True)
        node.chores.clear()
        return [end for end in ends if isinstance(end, Exception)]

    @contextlib.asynccontextmanager
    async def _waiting(self, node: Node, what: str, length_s: float) -> AsyncIterator[None]:
        node.wait = Wait(what, self.now_s(), length_s)
        try:
            yield
        finally:
            node.wait = None

    async def _keys(self, node: Node) -> set[int]:
        _, keys = await node.reservations.read_keys()
        return set(keys)

    async def _expect_holder(self, witness: Node, holder: Node, otherwise: str) -> None:
        held = await witness.reservations.read_reservation()
        if held is None or (held.key, held.type) != (holder.key, TYPE):
            _fail(otherwise)

    async def _write(self, node: Node) -> None:
        """Append one record, and have it on the medium."""
        number = len(self.records) + 1
        data = Record(number, node.name).encode(self._block_size)
        await node.session.write(node.lun, number, data, fua=True)
        self._acknowledged_s[number] = self.now_s()
        self.records[number] = node
        node.last_record = number
        self._say(node, Kind.RECORD, f"writes record {number}", str(number))

    async def _write_for(self, node: Node, length_s: float) -> None:
        until_s = self.now_s() + length_s
        while self.now_s() < until_s:
            await self._write(node)
            await asyncio.sleep(self.timing.record_s)

    async def _read_log(self, node: Node) -> list[Record]:
        """The records from the first one on, to where the log ends."""
        found: list[Record] = []
        while True:
            data = await node.session.read(node.lun, 1 + len(found), CHUNK_BLOCKS)
            for start in range(0, len(data), self._block_size):
                record = Record.decode(data[start : start + self._block_size])
                if record is None or record.number != len(found) + 1:
                    return found
                found.append(record)

    def _check_log(self, found: list[Record]) -> None:
        """Every acknowledged record is there, as its writer wrote it."""
        for number, writer in self.records.items():
            if number > len(found):
                _fail(f"record {number} was acknowledged to node {writer.name} and is lost")
            if found[number - 1].writer != writer.name:
                _fail(
                    f"record {number} of node {writer.name} was overwritten by node "
                    f"{found[number - 1].writer}"
                )

    async def _beat(self, node: Node) -> None:
        """The chore of a node that lives: heartbeats to the other one."""
        while True:
            node.last_beat_s = self.now_s()
            await asyncio.sleep(self.timing.heartbeat_s)

    async def _defend(self, node: Node) -> None:
        """The chore of the owner: renew, and preempt whoever challenges."""
        while True:
            await asyncio.sleep(self.timing.renew_s)
            for key in await self._keys(node):
                if key & CHALLENGE:
                    await node.reservations.preempt(node.key, key, TYPE)
                    self._say(node, Kind.GOOD, "defends: preempts the challenger")

    # The steps

    async def _log_in(self) -> None:
        for node in (self.a, self.b):
            await node.session.reconnect()
            await node.session.ready(node.lun)
            node.state = "up"
            self._say(node, Kind.STEP, "logs in")
        self._block_size = (await self.a.session.capacity(self.a.lun)).block_size
        await self.b.session.capacity(self.b.lun)

    async def _register(self) -> None:
        if await self._keys(self.a):
            _fail("somebody is registered with the disk already")
        for node in (self.a, self.b):
            await node.reservations.register(node.key, aptpl=True)
            node.registered = True
            self._say(node, Kind.STEP, f"registers key {node.key:016X}")
        if await self._keys(self.b) != {self.a.key, self.b.key}:
            _fail("the registered keys are not those of the two nodes")

    async def _take_quorum(self) -> None:
        await self.a.reservations.reserve(self.a.key, TYPE)
        await self._expect_holder(self.b, self.a, "node A's reservation cannot be seen by node B")
        self.holder = self.a
        self._say(self.a, Kind.GOOD, "reserves: holds the quorum", "A holds")

    async def _work(self) -> None:
        self.a.state = "writing"
        self._start_chores(self.a)
        await self._write_for(self.a, self.timing.lead_s)

    async def _pull_the_power(self) -> None:
        a = self.a
        if errors := await self._stop_chores(a):
            raise errors[0]
        self._under_way = len(self.records) + 1
        data = Record(self._under_way, a.name).encode(self._block_size)
        a.session.submit(a.lun, commands.write_16(self._under_way, 1, fua=True), data_out=data)
        a.session.drop()
        a.state = "no power"
        self._say(a, Kind.POWER, f"POWER PULLED in record {self._under_way}")

    async def _notice(self) -> None:
        b, timing = self.b, self.timing
        b.state = "misses node A"
        silent_until_s = self.a.last_beat_s + timing.silence_s
        async with self._waiting(b, "heartbeats", timing.silence_s):
            await asyncio.sleep(max(0.0, silent_until_s - self.now_s()))
        self._say(b, Kind.WAIT, f"misses {timing.heartbeats_missed} heartbeats of A")
        otherwise = "the disk has forgotten the reservation of the node that lost its power"
        await self._expect_holder(b, self.a, otherwise)
        if self.a.key not in await self._keys(b):
            _fail("the disk has forgotten the registration of the node that lost its power")
        self._noticed_s = self.now_s()

    async def challenge(self, node: Node) -> bool:
        """Challenge the owner, as arbitration has it; whether nobody has defended.

        The challenge is a changed key, which an owner that lives finds and preempts.
        """
        await node.reservations.register(node.key | CHALLENGE, existing=node.key)
        node.challenging = True
        node.state = "challenging"
        self._say(node, Kind.WAIT, f"challenges, waits {self.timing.challenge_s:g} s")
        async with self._waiting(node, "challenge", self.timing.challenge_s):
            await asyncio.sleep(self.timing.challenge_s)
        await node.session.ready(node.lun)  # a defended challenge is told as a unit attention
        undefended = node.key in await self._keys(node)
        if not undefended:
            node.challenging = node.registered = False
            node.state = "defended against"
            self._say(node, Kind.REFUSED, "is preempted: the owner lives")
        return undefended

    async def _challenge(self) -> None:
        if not await self.challenge(self.b):
            _fail("a node without power has defended its reservation")
        self._say(self.b, Kind.STEP, "nobody defends the disk")
        self._challenged_s = self.now_s()

    async def _take_over(self) -> None:
        a, b = self.a, self.b
        await b.reservations.preempt(b.key, a.key, TYPE)
        a.registered = False
        await b.reservations.register(b.key & ~CHALLENGE, existing=b.key)
        b.challenging = False
        if await self._keys(b) != {b.key}:
            _fail("after the preemption others than node B are registered")
        await self._expect_holder(b, b, "after the preemption node B does not hold the reservation")
        self.holder = b
        b.state = "holds the disk"
        self._say(b, Kind.GOOD, "preempts A: holds the quorum", "B holds")

    async def _read_back(self) -> None:
        acknowledged = len(self.records)
        found = await self._read_log(self.b)
        self._check_log(found)
        if len(found) > self._under_way:
            _fail(f"record {len(found)} is on the disk, and nobody has written it")
        if len(found) == self._under_way:  # unacknowledged, and allowed to arrive
            self.records[self._under_way] = self.a
        self._say(self.b, Kind.GOOD, f"reads back all {acknowledged} records")

    async def _go_on(self) -> None:
        self.b.state = "writing"
        self._start_chores(self.b)
        await self._write_for(self.b, self.timing.alone_s)

    async def _come_back(self) -> None:
        a = self.a
        await a.session.reconnect()
        await a.session.ready(a.lun)
        a.state = "back"
        self._say(a, Kind.STEP, "is back: the same nexus")
        number = self._under_way
        before = await self.b.session.read(self.b.lun, number, 1)
        stale = Record(number, "stale").encode(self._block_size)
        try:
            await a.session.write(a.lun, number, stale, fua=True)
        except CommandFailed as refused:
            if refused.result.status != Status.RESERVATION_CONFLICT:
                raise
        else:
            _fail("the write of a node that was preempted was not refused")
        if await self.b.session.read(self.b.lun, number, 1) != before:
            _fail("a write that was refused has changed the disk")
        a.state = "refused"
        self._say(a, Kind.REFUSED, f"record {number}: RESERVATION CONFLICT", "refused")

    async def _join_again(self) -> None:
        a = self.a
        await self._write_for(self.b, self.timing.refused_s)
        await a.reservations.register(a.key, aptpl=True)
        a.registered = True
        a.state = "registered"
        self._say(a, Kind.STEP, f"registers key {a.key:016X}")
        await self._write(a)
        await self._write_for(self.b, self.timing.together_s)
        if errors := await self._stop_chores(self.b):
            raise errors[0]

    async def _look_at_it_all(self) -> None:
        await self._expect_holder(self.a, self.b, "node B has lost its reservation")
        found = await self._read_log(self.a)
        self._check_log(found)
        if len(found) != len(self.records):
            _fail(f"{len(found)} records are on the disk, {len(self.records)} were written")
        self._say(self.a, Kind.GOOD, f"reads all {len(found)} records")

    # The figures

    def _outcome(self) -> Outcome:
        last_of_a = self._under_way - 1
        first_of_b = min(number for number, writer in self.records.items() if writer is self.b)
        return Outcome(
            last_record_of_a=last_of_a,
            first_record_of_b=first_of_b,
            last_record=len(self.records),
            under_way_arrived=self.records[self._under_way] is self.a,
            noticed_s=self._noticed_s - self._acknowledged_s[last_of_a],
            challenge_s=self._challenged_s - self._noticed_s,
            target_s=self._acknowledged_s[first_of_b] - self._challenged_s,
        )


def _fail(what: str) -> NoReturn:
    raise StoryFailed(what)


_STEPS = (
    Story._log_in,
    Story._register,
    Story._take_quorum,
    Story._work,
    Story._pull_the_power,
    Story._notice,
    Story._challenge,
    Story._take_over,
    Story._read_back,
    Story._go_on,
    Story._come_back,
    Story._join_again,
    Story._look_at_it_all,
)
