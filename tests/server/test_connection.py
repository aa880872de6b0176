"""One connection: partial sends, bounds on memory, and commands that finish in their own time."""

import asyncio
import contextlib
import random
import socket
from pathlib import Path

import pytest

from pyiscsi_target.iscsi.constants import (
    FINAL,
    IMMEDIATE,
    RESERVED_TAG,
    Opcode,
    TaskManagement,
)
from pyiscsi_target.iscsi.pdu import DataOut, ScsiCommand, TaskManagementRequest
from pyiscsi_target.scsi.task import TaskAttribute
from pyiscsi_target.server import connection as server_connection
from pyiscsi_target.server.connection import ARENA_LENGTH, Connection
from tests.support.live import MIB, Live, config_of, serving
from tests.support.memory import frame
from tests.support.peer import Peer
from tests.support.raw_initiator import read_16, write_16

BLOCKS_PER_MIB = MIB // 512
HELD_FROM = 32 * MIB
HELD_LBA = HELD_FROM // 512


def fill(directory: Path, seed: int, length: int = 64 * MIB) -> bytes:
    """The random content of the disk image that the server will open."""
    content = random.Random(seed).randbytes(length)
    (directory / "disk.img").write_bytes(content)
    return content


def connection_of(live: Live) -> Connection:
    (connection,) = live.app._connections
    return connection


def queued_bytes(connection: Connection) -> int:
    return sum(map(len, connection._engine.outgoing))


def narrow(live: Live) -> None:
    """Let the server's sockets hold next to nothing; accepted ones inherit it."""
    for listener in live.app._listeners:
        listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)


# Sending


async def read_much(live: Live, content: bytes, commands: int) -> None:
    """Ask for far more than the sockets hold, let the server fill up, then read it all."""
    peer = await live.connect(receive_buffer=8192)
    await peer.log_in()
    await peer.ready()
    connection = connection_of(live)
    requests = [
        peer.scsi(read_16(n * BLOCKS_PER_MIB, BLOCKS_PER_MIB), read_bytes=MIB)
        for n in range(commands)
    ]
    peer.send_now(*[pdu for _, pdu in requests])
    await live.until(lambda: bool(connection._backlog))
    # One command more than the bound may be queued, and its headers.
    assert queued_bytes(connection) < server_connection.UNSENT_LENGTH_MAX + MIB + 65536
    for n, (tag, _) in enumerate(requests):
        done = await peer.finish(tag)
        assert done.status == 0
        assert done.data == content[n * MIB : (n + 1) * MIB]
        assert queued_bytes(connection) < server_connection.UNSENT_LENGTH_MAX + MIB + 65536
    assert peer.finished[-commands:] == [tag for tag, _ in requests]


async def test_a_slow_reader_gets_everything_in_bounded_memory(tmp_path: Path) -> None:
    content = fill(tmp_path, seed=1)
    async with serving(config_of(tmp_path), tmp_path) as live:
        narrow(live)
        await read_much(live, content, commands=24)
        await live.until(lambda: not connection_of(live)._engine.outgoing)
        connection, pool = connection_of(live), live.app._arenas
        assert connection._arena is None
        assert not connection._full_arenas
        arenas = [arena.obj for arena in pool._free]
        assert len(arenas) > server_connection.UNSENT_LENGTH_MAX // ARENA_LENGTH
        assert len(set(map(id, arenas))) == len(arenas)


async def test_without_sendmsg_the_same_bytes_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(connection: socket.socket) -> None:
        raise AttributeError("sendmsg")

    monkeypatch.setattr(socket.socket, "sendmsg", property(missing), raising=False)
    content = fill(tmp_path, seed=2)
    async with serving(config_of(tmp_path), tmp_path) as live:
        narrow(live)
        await read_much(live, content, commands=12)


async def test_more_answers_than_one_sendmsg_takes(tmp_path: Path) -> None:
    """A window's worth of reads in small segments: thousands of buffers at once."""
    content = fill(tmp_path, seed=3)
    keys = {"MaxRecvDataSegmentLength": "512"}
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in(keys=keys)
        requests = [peer.scsi(read_16(n * 64, 64), read_bytes=64 * 512) for n in range(100)]
        peer.send_now(*[pdu for _, pdu in requests])
        for n, (tag, _) in enumerate(requests):
            assert (await peer.finish(tag)).data == content[n * 32768 : (n + 1) * 32768]


async def pump(peer: Peer, pdus: bytes, limit: int) -> int:
    """Send without reading until the server takes no more, or `limit` bytes; how many went."""
    sent = refused = 0
    view = memoryview(pdus)
    while refused < 500:
        try:
            sent += peer.socket.send(view[sent % len(view) :]) if sent < limit else 0
            refused = 0 if sent < limit else refused + 1
        except BlockingIOError:
            refused += 1
        await asyncio.sleep(0)
    return sent


async def test_answers_to_pings_that_nobody_reads_are_bounded(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        narrow(live)
        peer = await live.log_in()
        _, pdu = peer.nop_out(bytes(65536))
        assert await pump(peer, pdu, 64 * MIB) < 64 * MIB
        assert queued_bytes(connection_of(live)) < 16 * MIB


async def test_answers_to_commands_that_nobody_reads_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_connection, "UNSENT_LENGTH_MAX", 262144)
    async with serving(config_of(tmp_path), tmp_path) as live:
        narrow(live)
        peer = await live.connect(receive_buffer=8192)
        await peer.log_in()
        await peer.ready()
        pdus = b"".join(peer.scsi(bytes(6))[1] for _ in range(120_000))
        await pump(peer, pdus, len(pdus))  # sockets may hold all of it
        assert queued_bytes(connection_of(live)) < MIB


# Commands that finish later


async def test_what_can_finish_does_not_wait_for_what_cannot(tmp_path: Path) -> None:
    content = fill(tmp_path, seed=4)
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold(held_from=HELD_FROM)
        slow = [peer.scsi(read_16(HELD_LBA + n * 8, 8), read_bytes=4096) for n in range(20)]
        quick = [peer.scsi(read_16(n * 8, 8), read_bytes=4096) for n in range(20)]
        peer.send_now(*[pdu for pair in zip(slow, quick, strict=True) for _, pdu in pair])
        for n, (tag, _) in enumerate(quick):
            assert (await peer.finish(tag)).data == content[n * 4096 : (n + 1) * 4096]
        assert store.begun.qsize() == 20
        store.gate.set()
        for n, (tag, _) in enumerate(slow):
            offset = HELD_FROM + n * 4096
            assert (await peer.finish(tag)).data == content[offset : offset + 4096]


async def test_a_write_under_way_keeps_its_data(tmp_path: Path) -> None:
    """Immediate data is copied before the receive buffer takes what comes next."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=bytes(5) + b"\x01")
        store = live.hold(held_from=HELD_FROM)
        data = random.Random(5).randbytes(65536)
        tag, pdu = peer.scsi(write_16(HELD_LBA, 128), data=data, immediate_bytes=65536)
        await peer.send(pdu)
        await store.begun.get()
        for session in (peer, other):
            noise = bytes([255]) * 65536
            assert (
                await session.command(write_16(0, 128), data=noise, immediate_bytes=65536)
            ).status == 0
        store.gate.set()
        assert (await peer.finish(tag)).status == 0
        assert (await peer.command(read_16(HELD_LBA, 128), read_bytes=65536)).data == data


async def test_postponed_commands_keep_their_data_and_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While too much is under way nothing more is executed; then all of it is, in order."""
    monkeypatch.setattr(server_connection, "PENDING_LENGTH_MAX", 4096)
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=bytes(5) + b"\x01")
        store = live.hold(held_from=HELD_FROM)
        source = random.Random(6)
        chunks = [source.randbytes(4096) for _ in range(30)]
        first, held = peer.scsi(
            write_16(HELD_LBA, 128), data=bytes([7]) * 65536, immediate_bytes=65536
        )
        writes = [
            # every block twice: the later of two writes must win
            peer.scsi(write_16(n % 15 * 8, 8), data=chunk, immediate_bytes=4096)
            for n, chunk in enumerate(chunks)
        ]
        peer.send_now(held, *[pdu for _, pdu in writes])
        await store.begun.get()
        noise = bytes([255]) * 65536
        assert (
            await other.command(write_16(4096, 128), data=noise, immediate_bytes=65536)
        ).status == 0
        assert (await other.command(read_16(0, 120), read_bytes=61440)).data == bytes(61440)
        store.gate.set()
        for tag in (first, *[tag for tag, _ in writes]):
            assert (await peer.finish(tag)).status == 0
        content = await peer.command(read_16(0, 120), read_bytes=61440)
        assert content.data == b"".join(chunks[15:])
        assert (await peer.command(read_16(HELD_LBA, 128), read_bytes=65536)).data == bytes(
            [7]
        ) * 65536


async def test_work_goes_on_when_a_large_answer_leaves_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was postponed is taken up however the bound is left again."""
    monkeypatch.setattr(server_connection, "PENDING_LENGTH_MAX", 4096)
    monkeypatch.setattr(server_connection, "UNSENT_LENGTH_MAX", 4096)
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold(held_from=HELD_FROM)
        large, first = peer.scsi(read_16(HELD_LBA, 128), read_bytes=65536)
        after, second = peer.scsi(read_16(0, 1), read_bytes=512)
        peer.send_now(first, second)
        await store.begun.get()
        store.gate.set()
        assert len((await peer.finish(large)).data) == 65536
        assert (await peer.finish(after)).status == 0


async def test_data_comes_for_a_write_that_others_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However much is pending: ORDERED commands wait for it, so it must not wait for them."""
    monkeypatch.setattr(server_connection, "PENDING_LENGTH_MAX", 4096)
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        data = bytes([7]) * 4096
        first, write = peer.scsi(write_16(0, 8), data=data, serve=False)
        await peer.send(write)
        r2t = await peer.r2t()
        ordered = [
            peer.scsi(read_16(0, 128), read_bytes=65536, attribute=int(TaskAttribute.ORDERED))
            for _ in range(3)
        ]
        await peer.send(*[pdu for _, pdu in ordered])
        for _ in range(50):
            await asyncio.sleep(0)
        await peer.send(peer.data_out(r2t, data))
        assert (await peer.finish(first)).status == 0
        for tag, _ in ordered:
            assert (await peer.finish(tag)).data[:4096] == data


# The end of a connection


async def test_cut_while_commands_are_in_flight(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold(held_from=HELD_FROM)
        reads = [peer.scsi(read_16(HELD_LBA + n, 1), read_bytes=512)[1] for n in range(8)]
        _, write = peer.scsi(write_16(HELD_LBA + 64, 1), data=bytes(512), immediate_bytes=512)
        await peer.send(*reads, write)
        for _ in range(9):
            await store.begun.get()
        peer.reset()
        await live.until(lambda: bool(live.events("connection_lost")))
        assert live.app._connections, "the connection is there until its commands have ended"
        store.gate.set()
        await live.until(lambda: not live.app._connections)


@pytest.mark.parametrize("sent_bytes", [0, 48, 48 + 4096])
async def test_cut_within_a_solicited_burst(tmp_path: Path, sent_bytes: int) -> None:
    content = fill(tmp_path, seed=7, length=8 * MIB)
    disks = {"disk": {"path": "disk.img"}}
    async with serving(config_of(tmp_path, disks=disks), tmp_path) as live:
        peer = await live.log_in()
        data = bytes(MIB)
        _, pdu = peer.scsi(write_16(0, BLOCKS_PER_MIB), data=data, serve=False)
        await peer.send(pdu)
        burst = peer.data_out(await peer.r2t(), data)
        await peer.send(burst[:sent_bytes])
        peer.reset()
        await live.until(lambda: not live.app._connections)
        again = await live.log_in()
        torn = await again.command(read_16(0, BLOCKS_PER_MIB), read_bytes=MIB)
        assert torn.data == content[:MIB], "not a block of it was written"


async def test_cut_while_answers_are_queued(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        narrow(live)
        peer = await live.log_in()
        pdus = [
            peer.scsi(read_16(n * BLOCKS_PER_MIB, BLOCKS_PER_MIB), read_bytes=MIB)[1]
            for n in range(30)
        ]
        await peer.send(*pdus)
        await live.until(lambda: bool(connection_of(live)._backlog))
        peer.reset()
        await live.until(lambda: not live.app._connections)


async def test_nothing_is_begun_once_a_send_has_failed(tmp_path: Path) -> None:
    """A read and a write come in one round, and the answer to the read finds nobody there."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold(held_from=HELD_FROM)
        _, read = peer.scsi(read_16(0, 2 * BLOCKS_PER_MIB), read_bytes=2 * MIB)
        _, write = peer.scsi(write_16(HELD_LBA, 1), data=bytes([1]) * 512, immediate_bytes=512)
        peer.send_now(read, write)
        peer.reset()
        await live.until(lambda: bool(live.events("connection_lost")))
        await asyncio.sleep(0)
        assert store.begun.empty()
        store.gate.set()


async def test_a_half_closed_connection_is_closed(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        peer.socket.shutdown(socket.SHUT_WR)
        await peer.ended()
        (lost,) = live.events("connection_lost")
        assert lost["reason"] == "closed by the initiator"


async def test_nothing_is_executed_after_a_logout(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        logout, bye = peer.logout_request()
        _, write = peer.scsi(write_16(0, 1), data=bytes([1]) * 512, immediate_bytes=512)
        peer.send_now(bye, write)
        assert (await peer.finish(logout)).pdu.response == 0
        await peer.ended()
        again = await live.log_in()
        assert (await again.command(read_16(0, 1), read_bytes=512)).data == bytes(512)


async def test_a_logout_terminates_what_is_under_way(tmp_path: Path) -> None:
    """RFC 7143 section 11.14: nothing is answered after the Logout Response."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold()
        _, read = peer.scsi(read_16(0, 1), read_bytes=512)
        await peer.send(read)
        await store.begun.get()
        logout, bye = peer.logout_request()
        await peer.send(bye)
        assert (await peer.finish(logout)).pdu.response == 0
        store.gate.set()
        await peer.ended()
        assert peer.finished[-1] == logout


async def log_out_unread(live: Live) -> Peer:
    """A peer that has logged out and reads nothing, so that its connection cannot end yet."""
    narrow(live)
    peer = await live.connect(receive_buffer=8192)
    await peer.log_in()
    await peer.ready()
    reads = [peer.scsi(read_16(0, BLOCKS_PER_MIB), read_bytes=MIB)[1] for _ in range(4)]
    await peer.send(*reads, peer.logout_request()[1])
    return peer


async def test_nothing_follows_the_logout_response(tmp_path: Path) -> None:
    """Neither the answer to a command that ends only now nor one to task management."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        narrow(live)
        peer = await live.connect(receive_buffer=8192)
        await peer.log_in()
        await peer.ready()
        store = live.hold(held_from=HELD_FROM)
        held = peer.scsi(read_16(HELD_LBA, 1), read_bytes=512)
        reads = [peer.scsi(read_16(0, BLOCKS_PER_MIB), read_bytes=MIB)[1] for _ in range(4)]
        logout, bye = peer.logout_request()
        await peer.send(held[1], *reads, peer.management(TaskManagement.ABORT_TASK_SET)[1], bye)
        await live.until(lambda: connection_of(live).closing)
        store.gate.set()
        for _ in range(20):
            await asyncio.sleep(0)
        await peer.take_all()
        assert peer.finished[-1] == logout


async def test_a_drain_says_nothing_after_the_logout_response(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await log_out_unread(live)
        await live.until(lambda: connection_of(live).closing)
        drain = asyncio.create_task(live.drain())
        await peer.take_all()
        await drain
        assert not peer.messages


async def test_an_unforeseen_error_ends_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What state it left is unknown, so the initiator begins anew; it is logged as our fault."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        (device,) = live.app._devices.values()
        monkeypatch.setattr(device, "execute", lambda task: 1 // 0)
        _, pdu = peer.scsi(bytes(6))
        await peer.send(pdu)
        await peer.ended()
        live.allowed_error = "internal_error"
        assert len(live.events("internal_error")) == 1


async def test_a_protocol_error_ends_the_session_alone(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=bytes(5) + b"\x01")
        await peer.send(bytes([Opcode.SCSI_COMMAND, 0x80, 0, 0, 0, 0xFF, 0xFF, 0xFF]) + bytes(40))
        await peer.ended()
        (failed,) = live.events("protocol_error")
        assert "DataSegmentLength" in str(failed["reason"])
        assert (await other.command(bytes(6))).status == 0


@pytest.mark.parametrize("seed", range(6))
async def test_noise_in_the_full_feature_phase(tmp_path: Path, seed: int) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        noise = bytearray(random.Random(seed).randbytes(48 * 400))
        for start in range(0, len(noise), 48):  # mostly framed: opcodes, no data, any fields
            noise[start] &= 0x7F
            noise[start + 4 : start + 8] = bytes(4)
        await peer.send(bytes(noise))
        peer.close()
        await live.until(lambda: not live.app._connections)
        again = await live.log_in()
        assert (await again.command(read_16(0, 1), read_bytes=512)).status == 0


# Careless initiators


def careless_pdu(source: random.Random, peer: Peer) -> bytes:
    """A PDU whose fields are each possible, in combinations that need not be."""
    tag = source.randrange(4)
    flags = source.choice([FINAL, FINAL, 0])
    lun = source.choice([0, 0, 0, 1 << 48, 0xC101 << 48])
    length = source.choice([0, 0, 512, 4096, 65536])
    immediate = IMMEDIATE if source.random() < 0.2 else 0
    data = bytes(source.choice([0, 0, 512, 4096]))
    kind = source.randrange(9)
    if kind < 4:
        lba = source.choice([0, 8, HELD_LBA, HELD_LBA + 8])
        cdb = source.choice([read_16, write_16])(lba, source.choice([0, 1, 8, 128]))
        flags |= source.choice([0x40, 0x20, 0x20, 0x60, 0]) | source.choice([1, 1, 2, 3, 4])
        opcode = Opcode.SCSI_COMMAND | immediate
        pdu = ScsiCommand(opcode, flags, 0, lun, tag, length, peer.cmd_sn, cdb=cdb)
        if not immediate:
            peer.cmd_sn += source.choice([1, 1, 1, 1, 0, 2])
        return frame(pdu, data)
    if kind < 6:
        ttt = source.choice([RESERVED_TAG, source.randrange(8)])
        offset = source.choice([0, 512, 4096])
        return frame(DataOut(Opcode.DATA_OUT, flags, 0, lun, tag, ttt, 0, 0, offset), data)
    if kind == 6:
        function = source.randrange(1, 7)
        opcode = Opcode.TASK_MANAGEMENT_REQUEST | IMMEDIATE
        request = TaskManagementRequest(opcode, FINAL | function, 0, lun, 50 + tag, tag)
        request.cmd_sn = peer.cmd_sn
        request.ref_cmd_sn = peer.cmd_sn - source.randrange(3)
        return frame(request)
    if kind == 7:
        return peer.nop_out(data)[1]
    return peer.text([("SendTargets", source.choice(["All", "", "x"]))])[1]


async def be_careless(live: Live, source: random.Random) -> None:
    peer = await live.log_in()
    with contextlib.suppress(OSError):
        for _ in range(60):
            await peer.send(*[careless_pdu(source, peer) for _ in range(source.randrange(1, 12))])
            await asyncio.sleep(0)
    peer.close()


@pytest.mark.parametrize("seed", range(4))
async def test_careless_initiators(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Whatever they mix up: no fault of ours, nothing left behind, others served."""
    source = random.Random(seed)
    monkeypatch.setattr(server_connection, "PENDING_LENGTH_MAX", source.choice([4096, 1 << 26]))
    async with serving(config_of(tmp_path), tmp_path) as live:
        honest = await live.log_in(initiator="iqn.2026-11.example.test:honest")
        store = live.hold(held_from=HELD_FROM)
        for _ in range(10):
            await be_careless(live, source)
            store.gate.set()
            await live.until(lambda: len(live.app._connections) == 1)
            store.gate.clear()
            await honest.ready()
            done = await honest.command(read_16(16, 1), read_bytes=512)
            assert (done.status, len(done.data)) == (0, 512)
        store.gate.set()
