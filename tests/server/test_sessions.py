"""Opening and replacing sessions, by real logins while commands are in flight."""

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from pyiscsi_target.iscsi.constants import LoginStatus, TaskManagement
from pyiscsi_target.iscsi.keys import Limits, Parameters
from pyiscsi_target.iscsi.login import Agreement, LoginError, Terms
from pyiscsi_target.scsi.target_device import TargetDevice
from pyiscsi_target.scsi.task import TaskAttribute
from pyiscsi_target.server.sessions import Session, SessionRegistry
from tests.support.gated_disk import make_gated_disk
from tests.support.live import MIB, HeldStore, Live, config_of, serving
from tests.support.peer import INITIATOR, ISID, LoginRefused, Peer
from tests.support.raw_initiator import read_16, write_16
from tests.support.server import TARGET

OTHER_ISID = bytes(5) + b"\x01"
BLOCK = 512
RESERVE_6, RELEASE_6 = bytes([0x16, 0, 0, 0, 0, 0]), bytes([0x17, 0, 0, 0, 0, 0])
UNIT_ATTENTION_NEXUS_LOSS = (0x29, 0x07)
CONFLICT = 0x18


async def begin_write(peer: Peer, store: HeldStore, data: bytes, lba: int = 0) -> int:
    """A write with immediate data that the store has begun and holds; its tag."""
    tag, pdu = peer.scsi(write_16(lba, len(data) // BLOCK), data=data, immediate_bytes=len(data))
    await peer.send(pdu)
    await store.begun.get()
    return tag


async def log_in_meanwhile(live: Live, peer: Peer, tsih: int = 0) -> "asyncio.Task[Peer]":
    """A login that is under way: the server has taken its request in."""
    login = asyncio.create_task(peer.log_in(tsih=tsih))
    before = len(live.events("connection_lost"))
    await live.until(lambda: login.done() or len(live.events("connection_lost")) > before)
    return login


async def settle() -> None:
    """Let everything run that can run, sockets too."""
    for _ in range(50):
        await asyncio.sleep(0)


# Session reinstatement (RFC 7143 section 6.3.5)


async def test_reinstatement_answers_when_the_old_commands_have_ended(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        new = await live.connect()
        login = await log_in_meanwhile(live, new)
        await settle()
        assert not login.done()
        store.gate.set()
        await login
        await old.ended()
        done = await new.command(bytes(6))
        assert done.asc == UNIT_ATTENTION_NEXUS_LOSS
        assert (await new.command(read_16(0, 1), read_bytes=BLOCK)).data == b"o" * BLOCK
        assert new.tsih != old.tsih


async def test_a_write_in_transfer_is_never_applied_after_reinstatement(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        data = bytes([7]) * MIB
        _, pdu = old.scsi(write_16(0, MIB // BLOCK), data=data, serve=False)
        await old.send(pdu)
        burst = old.data_out(await old.r2t(), data)
        await old.send(burst[:-BLOCK])
        new = await live.log_in()
        with contextlib.suppress(ConnectionError):
            await old.send(burst[-BLOCK:])
        await old.ended()
        assert (await new.command(read_16(0, 2048), read_bytes=MIB)).data == bytes(MIB)


@pytest.mark.parametrize("end", ["reset", "close"])
async def test_a_login_after_a_lost_connection_waits_for_its_commands(
    tmp_path: Path, end: str
) -> None:
    """The old write must not land on what the new session has written by then."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        getattr(old, end)()
        await live.until(lambda: bool(live.events("connection_lost")))
        new = await live.connect()
        login = asyncio.create_task(new.log_in())
        await settle()
        assert not login.done()
        store.gate.set()
        await (await login).ready()
        await new.command(write_16(0, 1), data=b"n" * BLOCK, immediate_bytes=BLOCK)
        assert (await new.command(read_16(0, 1), read_bytes=BLOCK)).data == b"n" * BLOCK


async def test_a_login_after_a_logout_waits_for_what_was_under_way(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        await old.log_out()
        new = await live.connect()
        login = asyncio.create_task(new.log_in())
        await settle()
        assert not login.done()
        store.gate.set()
        await login


async def test_another_initiator_does_not_wait(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        old.reset()
        await live.until(lambda: bool(live.events("connection_lost")))
        assert await live.log_in(isid=OTHER_ISID)
        assert await live.log_in(initiator=INITIATOR + "2")
        store.gate.set()


async def test_the_last_of_many_reinstatements_wins(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        peers = [await live.connect() for _ in range(5)]
        logins = [asyncio.create_task(peer.log_in()) for peer in peers]
        await settle()
        store.gate.set()
        await asyncio.gather(*logins, return_exceptions=True)
        await live.until(lambda: len(live.app._connections) == 1)
        (session,) = live.app._sessions.by_key.values()
        (winner,) = [peer for peer in peers if peer.tsih == session.tsih]
        assert (await (await winner.ready()).command(bytes(6))).status == 0


async def test_a_login_that_gives_up_while_it_waits_leaves_nothing(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        new = await live.connect()
        await new.send(new.login_request())
        await live.until(lambda: bool(live.events("connection_lost")))
        new.reset()
        await settle()
        store.gate.set()
        await live.until(lambda: not live.app._connections)
        live.assert_nothing_left()
        assert live.app.logins() == {"accepted": 1}


async def test_reinstatement_releases_what_the_old_session_held(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        assert (await old.command(RESERVE_6)).status == 0
        assert (await other.command(read_16(0, 1), read_bytes=BLOCK)).status == CONFLICT
        await live.log_in()
        assert (await other.command(read_16(0, 1), read_bytes=BLOCK)).status == 0


async def test_different_isids_are_sessions_side_by_side(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        one, two = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        assert one.tsih != two.tsih
        assert (await one.command(bytes(6))).status == 0
        assert (await two.command(bytes(6))).status == 0


async def test_a_discovery_session_replaces_no_normal_one(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        normal = await live.log_in()
        await live.log_in(None)
        assert (await normal.command(bytes(6))).status == 0


# Connection reinstatement (section 6.3.4): the same session goes on over a new connection


async def test_connection_reinstatement_keeps_the_nexus(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        assert (await old.command(RESERVE_6)).status == 0
        new = await (await live.connect()).log_in(tsih=old.tsih, cid=0)
        await old.ended()
        assert new.tsih == old.tsih
        assert (await new.command(bytes(6))).status == 0, "no unit attention: no nexus was lost"
        assert (await other.command(read_16(0, 1), read_bytes=BLOCK)).status == CONFLICT
        await new.command(RELEASE_6)


async def test_connection_reinstatement_waits_for_what_is_in_flight(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        new = await live.connect()
        login = await log_in_meanwhile(live, new, tsih=old.tsih)
        await settle()
        assert not login.done()
        store.gate.set()
        await login


async def test_connection_reinstatement_ends_transfers(tmp_path: Path) -> None:
    """An ordered command of the new connection does not wait for data that cannot come."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        _, pdu = old.scsi(write_16(0, 2048), data=bytes([7]) * MIB, serve=False)
        await old.send(pdu)
        await old.r2t()
        new = await (await live.connect()).log_in(tsih=old.tsih)
        done = await new.command(
            read_16(0, 1), read_bytes=BLOCK, attribute=int(TaskAttribute.ORDERED)
        )
        assert done.status == 0


async def test_connection_reinstatement_aborts_what_waits_for_a_transfer(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        old = await live.log_in()
        _, transfer = old.scsi(write_16(0, 2048), data=bytes([7]) * MIB, serve=False)
        _, waits = old.scsi(
            write_16(0, 1),
            data=bytes([8]) * BLOCK,
            immediate_bytes=BLOCK,
            attribute=int(TaskAttribute.ORDERED),
        )
        await old.send(transfer)
        await old.r2t()
        await old.send(waits)
        new = await (await live.connect()).log_in(tsih=old.tsih)
        assert (await new.command(read_16(0, 1), read_bytes=BLOCK)).data == bytes(BLOCK)


async def test_a_reinstating_connection_that_gives_up_ends_the_session(tmp_path: Path) -> None:
    """Nobody is left to speak for the nexus, so what it reserved is free."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        old, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        assert (await old.command(RESERVE_6)).status == 0
        store = live.hold()
        await begin_write(old, store, b"o" * BLOCK)
        new = await live.connect()
        await new.send(new.login_request(tsih=old.tsih))
        await live.until(lambda: bool(live.events("connection_lost")))
        new.reset()
        await settle()
        store.gate.set()
        await live.until(lambda: len(live.app._connections) == 1)
        assert (await other.command(read_16(0, 1), read_bytes=BLOCK)).status == 0


# Logins for one session that wait for each other: the registry alone, with connections that end
# when they are told to


class FakeConnection:
    """A connection that ends as `Connection` does: closed at once, gone when `work` is done."""

    def __init__(self, registry: SessionRegistry) -> None:
        self.registry = registry
        self.session: Session | None = None
        self.closed = False
        self.work = asyncio.Event()

    def close(self, *, nexus_lost: bool = True) -> None:
        if not self.closed:
            self.closed = True
            if self.session is not None:
                self.registry.close(self.session, nexus_lost=nexus_lost)

    async def end(self, reason: str, *, nexus_lost: bool) -> None:
        self.close(nexus_lost=nexus_lost)
        await self.work.wait()

    async def log_in(self, tsih: int = 0) -> None:
        agreement = Agreement(INITIATOR, ISID, tsih, 0, Terms(TARGET, Limits()), Parameters())
        with contextlib.suppress(LoginError):
            session = await self.registry.open(agreement, self, "192.0.2.1")
            if not self.closed:
                self.session = session


def make_registry() -> SessionRegistry:
    lu, _ = make_gated_disk()
    devices, ports = {TARGET: TargetDevice(TARGET)}, {(TARGET, 1): 1}
    return SessionRegistry(devices, lambda *_: {0: lu}, {}, ports)


def assert_consistent(registry: SessionRegistry, connections: list[FakeConnection]) -> None:
    """One session at most, that of a living connection; its nexus alone is attached."""
    device = registry.devices[TARGET]
    open_sessions = list(registry.by_key.values())
    assert len(open_sessions) <= 1
    assert open_sessions == [c.session for c in connections if c.session and not c.closed]
    assert list(registry.by_tsih.values()) == open_sessions
    assert list(device._attached) == [session.nexus for session in open_sessions]
    for nexus, units in device._attached.items():
        assert all(list(lu.attentions.nexuses) == [nexus] for lu in units)


async def test_a_session_that_another_login_ended_cannot_be_continued() -> None:
    """Three logins wait for the old connection: to continue, to begin anew, to continue."""
    registry = make_registry()
    old, *later = connections = [FakeConnection(registry) for _ in range(4)]
    await old.log_in()
    assert old.session is not None
    logins = [
        asyncio.create_task(connection.log_in(tsih))
        for connection, tsih in zip(later, (old.session.tsih, 0, old.session.tsih), strict=True)
    ]
    await settle()
    for connection in connections:
        connection.work.set()
    await asyncio.gather(*logins)
    assert_consistent(registry, connections)
    assert later[1].session is not None
    assert later[2].session is None


async def test_a_login_that_is_gone_ends_nobody() -> None:
    registry = make_registry()
    old, first, second = connections = [FakeConnection(registry) for _ in range(3)]
    await old.log_in()
    logins = [asyncio.create_task(connection.log_in()) for connection in (first, second)]
    await settle()
    second.close()
    old.work.set()
    await asyncio.gather(*logins)
    assert_consistent(registry, connections)
    assert first.session is not None
    assert not first.closed


async def test_logins_for_one_session_in_any_order() -> None:
    for seed in range(300):
        await log_in_at_random(random.Random(seed))


async def log_in_at_random(source: random.Random) -> None:
    registry = make_registry()
    connections: list[FakeConnection] = []
    logins: list[asyncio.Task[None]] = []
    for _ in range(10):
        connection = FakeConnection(registry)
        connections.append(connection)
        tsih = source.choice([0, 0, *registry.by_tsih, *registry.by_tsih])
        logins.append(asyncio.create_task(connection.log_in(tsih)))
        for _ in range(source.randrange(3)):
            await asyncio.sleep(0)
        if source.random() < 0.3:
            source.choice(connections).close()
        for other in connections:
            if source.random() < 0.3:
                other.work.set()
    for connection in connections:
        connection.work.set()
    await asyncio.gather(*logins)
    for session in list(registry.by_key.values()):
        assert isinstance(session.connection, FakeConnection)
        if session.connection.closed:
            registry.ended(session)
    assert_consistent(registry, connections)


# Refusals


async def refusal(live: Live, **more: object) -> int:
    peer = await live.connect()
    with pytest.raises(LoginRefused) as refused:
        await peer.log_in(**more)  # type: ignore[arg-type]
    await peer.ended()
    return refused.value.status


async def test_an_unknown_tsih(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        status = await refusal(live, tsih=peer.tsih + 1)
        assert status == LoginStatus.SESSION_DOES_NOT_EXIST
        assert (await peer.command(bytes(6))).status == 0


@pytest.mark.parametrize(
    "fields", [{"isid": OTHER_ISID}, {"initiator": INITIATOR + "2"}, {"target": None}]
)
async def test_the_tsih_of_another_session(tmp_path: Path, fields: dict[str, object]) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        status = await refusal(live, tsih=peer.tsih, **fields)
        assert status == LoginStatus.SESSION_DOES_NOT_EXIST
        assert (await peer.command(bytes(6))).status == 0


async def test_a_second_connection_in_a_session(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        status = await refusal(live, tsih=peer.tsih, cid=1)
        assert status == LoginStatus.TOO_MANY_CONNECTIONS
        assert (await peer.command(bytes(6))).status == 0


async def test_sessions_of_a_target_are_limited(tmp_path: Path) -> None:
    second = "iqn.2026-11.example.test:second"
    targets: dict[str, dict[str, object]] = {
        TARGET: {"limits": {"max_sessions": 2}},
        second: {"luns": {}},
    }
    async with serving(config_of(tmp_path, targets=targets), tmp_path) as live:
        one = await live.log_in()
        await live.log_in(isid=OTHER_ISID)
        third = bytes(5) + b"\x02"
        assert await refusal(live, isid=third) == LoginStatus.OUT_OF_RESOURCES
        await live.log_in()  # a reinstatement is no session more
        await one.ended()
        await (await live.connect()).log_in(second, isid=third)
        await live.log_in(None, isid=third)
        (newest,) = [s for s in live.app._sessions.by_key.values() if s.agreement.isid == ISID]
        assert newest.connection is not None
        assert live.app.sessions() == {TARGET: 2, second: 1, "": 1}


async def test_a_session_that_ends_makes_room(tmp_path: Path) -> None:
    targets = {TARGET: {"limits": {"max_sessions": 1}}}
    async with serving(config_of(tmp_path, targets=targets), tmp_path) as live:
        for n in range(3):
            peer = await live.log_in(isid=bytes(5) + bytes([n]))
            await peer.log_out()


async def test_tsihs_are_unique_and_wrap(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        first = await live.log_in()
        live.app._sessions._last_tsih = 0xFFFE
        others = [await live.log_in(isid=bytes(5) + bytes([n + 1])) for n in range(3)]
        tsihs = [first.tsih, *[peer.tsih for peer in others]]
        assert len(set(tsihs)) == 4
        assert 0 not in tsihs


# Orders of events by chance


async def test_logins_cuts_and_commands_in_any_order(tmp_path: Path) -> None:
    """A few initiator ports come, go and replace each other; nothing is left at the end."""
    for seed in range(6):
        await come_and_go(tmp_path, random.Random(seed))


async def come_and_go(tmp_path: Path, source: random.Random) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        store = live.hold(held_from=32 * MIB)
        isids = [bytes(5) + bytes([n]) for n in range(3)]
        tasks: list[asyncio.Task[None]] = []
        sessions: list[Peer] = []

        async def come(isid: bytes) -> None:
            peer = await live.connect()
            tsih = source.choice([0, 0, *[old.tsih for old in sessions[-2:]]])
            try:
                await peer.log_in(isid=isid, tsih=tsih)
                sessions.append(peer)
                for _ in range(4):
                    tag, pdu = peer.scsi(
                        write_16(source.choice([0, 65536 + 8]), 8),
                        data=bytes(4096),
                        immediate_bytes=source.choice([0, 4096]),
                        serve=source.random() < 0.5,
                        attribute=source.choice([1, 1, 2, 3]),
                    )
                    await peer.send(pdu)
                    if source.random() < 0.3:
                        await peer.manage(TaskManagement.ABORT_TASK, tag=tag)
            except (LoginRefused, ConnectionError):
                return

        for _ in range(25):
            tasks.append(asyncio.create_task(come(source.choice(isids))))
            for _ in range(source.randrange(40)):
                await asyncio.sleep(0)
            if sessions and source.random() < 0.4:
                sessions.pop(source.randrange(len(sessions))).reset()
        store.gate.set()
        for peer in live.peers:
            if source.random() < 0.5:
                peer.close()
        for peer in sessions:
            peer.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
