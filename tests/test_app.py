"""The whole server in one event loop: starting, watching over connections, draining."""

import asyncio
import base64
import contextlib
import os
import random
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target import app as app_module
from pyiscsi_target.app import Application, StartError
from pyiscsi_target.iscsi.chap import Credentials
from pyiscsi_target.iscsi.constants import AsyncEvent
from pyiscsi_target.iscsi.initiator_events import LoginFailed, LoginFinished
from pyiscsi_target.iscsi.initiator_login import InitiatorSettings
from pyiscsi_target.server import connection as server_connection
from pyiscsi_target.server import served_disks
from pyiscsi_target.server.logs import JsonFormatter, KeyValueFormatter
from tests.support.live import MIB, Live, config_of, recording, serving
from tests.support.peer import INITIATOR, LoginRefused, engine_login
from tests.support.raw_initiator import read_16, write_16
from tests.support.server import TARGET

BLOCK = 512

# Starting, and undoing it


@contextlib.contextmanager
def port_taken() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def descriptors() -> set[str]:
    return {
        os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if _is_open(fd)
    }


def _is_open(fd: str) -> bool:
    return os.path.lexists(f"/proc/self/fd/{fd}")


async def refuses_to_start(tmp_path: Path, **tables: Any) -> str:
    """The message of a start that fails; nothing of it may be left."""
    threads, tasks = set(threading.enumerate()), asyncio.all_tasks()
    before = descriptors()
    app = Application(config_of(tmp_path, **tables), tmp_path)
    with pytest.raises(StartError) as refused:
        await app.start()
    assert set(threading.enumerate()) <= threads
    assert asyncio.all_tasks() <= tasks
    assert {name for name in descriptors() - before if "eventpoll" not in name} == set()
    return str(refused.value)


async def starts(tmp_path: Path) -> None:
    """The same disks and state can be served: nobody holds their locks."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        assert (await live.log_in()).finished


async def test_a_port_in_use(tmp_path: Path) -> None:
    with port_taken() as portal:
        server = {"portals": ["127.0.0.1:0", portal]}
        assert portal in await refuses_to_start(tmp_path, server=server)
    await starts(tmp_path)


async def test_a_metrics_port_in_use(tmp_path: Path) -> None:
    with port_taken() as address:
        assert address in await refuses_to_start(tmp_path, server={"metrics": address})
    await starts(tmp_path)


async def test_a_busy_image(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    shared = {"disk": {"path": tmp_path / "disk.img", "size": 64 * MIB}}
    async with serving(config_of(tmp_path / "other", disks=shared), tmp_path / "other") as live:
        disks = {"free": {"path": "free.img", "size": MIB}, **shared}
        assert "disk.img" in await refuses_to_start(tmp_path, disks=disks)
        assert (await live.log_in()).finished
    await starts(tmp_path)


async def test_a_state_directory_in_use(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path):
        (tmp_path / "other").mkdir()
        server = {"state_dir": tmp_path / "state"}
        disks = {"other": {"path": "other.img", "size": MIB}}
        message = await refuses_to_start(tmp_path / "other", server=server, disks=disks)
        assert str(tmp_path / "state") in message


async def test_a_missing_image(tmp_path: Path) -> None:
    message = await refuses_to_start(tmp_path, disks={"disk": {"path": "nowhere.img"}})
    assert "nowhere.img" in message


async def test_an_image_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "disk.img").write_bytes(bytes(MIB))
    assert "disk.img" in await refuses_to_start(tmp_path)


async def test_a_state_directory_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("in the way")
    assert "state" in await refuses_to_start(tmp_path)


async def test_a_target_that_admits_nobody_is_told(tmp_path: Path) -> None:
    config = config_of(tmp_path, targets={TARGET: {"initiators": []}})
    async with serving(config, tmp_path) as live:
        (warning,) = live.events("target_admits_nobody")
        assert warning["target"] == TARGET


async def test_identities_survive_a_restart(tmp_path: Path) -> None:
    pages = []
    for _ in range(2):
        async with serving(config_of(tmp_path), tmp_path) as live:
            peer = await live.log_in()
            inquiry = bytes([0x12, 1, 0x83, 0, 255, 0])
            pages.append((await peer.command(inquiry, read_bytes=255)).data)
    assert pages[0] == pages[1]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it(tmp_path: Path, number: signal.Signals) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        running = asyncio.create_task(live.app.run_until_stopped())
        await asyncio.sleep(0)
        assert not running.done()
        signal.raise_signal(number)
        await running


async def test_stop_stops_it(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        live.app.stop()
        await live.app.run_until_stopped()


# Watching

SHORT = {"ping_interval_s": 0.1, "ping_timeout_s": 0.1}


@pytest.mark.parametrize("sent", [b"", b"\x43\x87", b"GET / HTTP/1.1\r\n\r\n"])
async def test_the_login_deadline(tmp_path: Path, sent: bytes) -> None:
    async with serving(config_of(tmp_path, server={"login_timeout_s": 0.1}), tmp_path) as live:
        peer = await live.connect()
        await peer.send(sent)
        await peer.ended()
        assert len(live.events("login_timeout")) == 1


async def test_an_answered_step_of_a_login_does_not_move_the_deadline(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server={"login_timeout_s": 0.1}), tmp_path) as live:
        peer = await live.connect()
        request = bytearray(peer.login_request())
        request[1] &= 0x7F  # T=0: the login goes on
        await peer.send(bytes(request))
        response, _ = await peer.receive()
        assert response.status == 0
        await peer.ended()
        assert len(live.events("login_timeout")) == 1


async def test_the_deadline_is_for_logins_alone(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server={"login_timeout_s": 0.1}), tmp_path) as live:
        session = await live.log_in()
        stranger = await live.connect()
        await stranger.ended()  # later than the session's own deadline
        assert (await session.command(bytes(6))).status == 0


async def test_a_peer_that_answers_pings_stays(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        peer = await live.log_in()
        while len(peer.pings) < 5:
            await peer.take_one()
        assert (await peer.command(bytes(6))).status == 0
        assert not live.events("connection_lost")


async def test_a_dead_peer_is_given_up(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        peer = await live.log_in()
        peer.answers_pings = False
        await peer.take_all()
        (lost,) = live.events("connection_lost")
        assert lost["reason"] == "no answer to a ping"
        assert len(peer.pings) == 1
        assert live.app.sessions() == {}


async def test_a_discovery_session_that_is_idle_is_ended(tmp_path: Path) -> None:
    """It is not pinged (RFC 7143 section 7.4.3)."""
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        peer = await live.log_in(None)
        await peer.take_all()
        assert not peer.pings


async def test_a_dead_peer_with_commands_in_flight(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold()
        _, pdu = peer.scsi(write_16(0, 1), data=bytes(BLOCK), immediate_bytes=BLOCK)
        await peer.send(pdu)
        await store.begun.get()
        await peer.ended()
        store.gate.set()
        await live.until(lambda: not live.app._connections)


async def test_a_wrong_answer_to_a_ping_does_not_count(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        peer = await live.log_in()
        peer.answers_pings = False
        ping = None
        while ping is None:
            await peer.take_one()
            ping = peer.pings[0] if peer.pings else None
        ping.ttt ^= 1
        await peer.answer_ping(ping)
        await peer.ended()
        assert live.events("connection_lost")[0]["reason"] == "no answer to a ping"


async def test_a_peer_whose_answer_is_not_read_yet_is_not_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a slow disk keeps the server from reading, silence says nothing of the peer."""
    monkeypatch.setattr(server_connection, "PENDING_LENGTH_MAX", 4096)
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold()
        reads = [peer.scsi(read_16(n * 128, 128), read_bytes=65536) for n in range(2)]
        peer.send_now(*[pdu for _, pdu in reads])
        await store.begun.get()
        answering = asyncio.gather(*[peer.finish(reads[0][0])])
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.8):  # several times what a dead peer is given
                await live.until(lambda: bool(live.events("connection_lost")))
        store.gate.set()
        await answering
        assert (await peer.finish(reads[1][0])).status == 0


async def test_a_connection_that_does_not_read_its_last_answer_is_closed(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        for listener in live.app._listeners:
            listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        peer = await live.connect(receive_buffer=4096)
        await peer.log_in()
        await peer.ready()
        reads = [peer.scsi(read_16(0, 2048), read_bytes=MIB)[1] for _ in range(3)]
        _, logout = peer.logout_request()
        await peer.send(*reads, logout)
        await live.until(lambda: not live.app._connections)


async def test_a_peer_that_never_reads_is_given_up(tmp_path: Path) -> None:
    """The ping stands behind megabytes that nobody takes, and the server has stopped reading."""
    async with serving(config_of(tmp_path, server=SHORT), tmp_path) as live:
        for listener in live.app._listeners:
            listener._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        peer = await live.connect(receive_buffer=4096)
        await peer.log_in()
        await peer.ready()
        reads = [peer.scsi(read_16(0, 2048), read_bytes=MIB)[1] for _ in range(30)]
        await peer.send(*reads)
        await live.until(lambda: not live.app._connections)


# Draining


async def test_it_asks_for_logout_and_ends_when_all_have_gone(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peers = [await live.log_in(isid=bytes(5) + bytes([n])) for n in range(3)]
        drain = asyncio.create_task(live.drain())
        for peer in peers:
            while not peer.messages:
                await peer.take_one()
            assert peer.messages[0].event == AsyncEvent.LOGOUT_REQUESTED
            assert peer.messages[0].parameter3 > 0, "how many seconds there are"
            assert not drain.done()
            await peer.log_out()
        await drain
        assert [line["reason"] for line in live.events("logout")] == ["close_session"] * 3


async def test_nobody_new_is_accepted(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        drain = asyncio.create_task(live.drain())
        await peer.take_one()
        with pytest.raises(OSError, match=r"(?i)refused|failed"):
            await live.connect()
        await peer.log_out()
        await drain


async def test_a_login_under_way_is_ended_at_once(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.connect()
        await peer.send(peer.login_request()[:100])
        await live.until(lambda: bool(live.app._connections))
        drain = asyncio.create_task(live.drain())
        await peer.ended()
        await drain


async def test_what_is_in_flight_finishes(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(MIB)
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        moving, transfer = peer.scsi(write_16(0, 2048), data=data, serve=False)
        await peer.send(transfer)
        r2t = await peer.r2t()
        store = live.hold(held_from=32 * MIB)
        flying, write = peer.scsi(write_16(65536, 8), data=data[:4096], immediate_bytes=4096)
        await peer.send(write)
        await store.begun.get()
        drain = asyncio.create_task(live.drain())
        while not peer.messages:
            await peer.take_one()
        await peer.send(peer.data_out(r2t, data))
        store.gate.set()
        assert (await peer.finish(moving)).status == 0
        assert (await peer.finish(flying)).status == 0
        assert not drain.done()
        await peer.log_out()
        await drain
    content = (tmp_path / "disk.img").read_bytes()
    assert content[:MIB] == data
    assert content[32 * MIB : 32 * MIB + 4096] == data[:4096]


async def test_an_initiator_that_stays_is_left_behind(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server={"drain_timeout_s": 0.2}), tmp_path) as live:
        peer = await live.log_in()
        drain = asyncio.create_task(live.drain())
        await peer.take_all()
        events = [message.event for message in peer.messages]
        assert events == [AsyncEvent.LOGOUT_REQUESTED, AsyncEvent.CONNECTION_DROPPED]
        await drain


async def test_a_command_that_never_ends_does_not_hold_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "LOGOUT_GRACE_S", 0.1)
    async with serving(config_of(tmp_path, server={"drain_timeout_s": 0.1}), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold()
        _, pdu = peer.scsi(read_16(0, 1), read_bytes=BLOCK)
        await peer.send(pdu)
        await store.begun.get()
        async with asyncio.timeout(10):
            await live.drain()
        store.held_from = 1 << 62
        store.gate.set()
        live.allowed_error = "storage of disk"  # it finds the image closed
        await live.until(lambda: not live.app._connections)


async def test_a_discovery_session_is_not_waited_for(tmp_path: Path) -> None:
    """It takes no async message (RFC 7143 section 7.4.3), and has nothing to finish."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in(None)
        drain = asyncio.create_task(live.drain())
        await peer.ended()
        await drain
        assert not peer.messages


async def test_with_nobody_there(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        await live.drain()
        assert live.events("stopped")


# Figures


async def test_figures(tmp_path: Path) -> None:
    server = {"metrics": "127.0.0.1:0"}
    targets = {TARGET: {"luns": {0: "disk"}, "initiators": [INITIATOR]}}
    async with serving(config_of(tmp_path, server=server, targets=targets), tmp_path) as live:
        peer = await live.log_in()
        await peer.command(read_16(0, 8), read_bytes=4096)
        await peer.command(write_16(0, 1), data=bytes(BLOCK), immediate_bytes=BLOCK)
        with pytest.raises(LoginRefused, match="0202"):
            await live.log_in(initiator=INITIATOR + "x")
        (line,) = live.events("metrics")
        text = await asyncio.to_thread(_get, f"http://{line['address']}/metrics")
        assert 'pyiscsi_logins_total{result="accepted"} 1.0' in text
        assert 'pyiscsi_logins_total{result="authorization_failure"} 1.0' in text
        (unit,) = live.app.luns()
        assert (unit.read_bytes, unit.written_bytes) == (4096, BLOCK)
        assert live.app.sessions() == {TARGET: 1}


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


# Secrets

SECRET, MUTUAL, WRONG = b"correct-horse-battery", b"staple-in-the-target", b"not-the-right-secret"


@pytest.fixture
def with_chap(tmp_path: Path) -> dict[str, Any]:
    for name, secret in (("one", SECRET), ("two", MUTUAL)):
        (tmp_path / name).write_bytes(secret)
        (tmp_path / name).chmod(0o600)
    return {
        "chap": {"user": "host", "secret_file": "one"},
        "mutual_chap": {"user": "disk", "secret_file": "two"},
    }


def attempts(target: str | None) -> list[tuple[InitiatorSettings, bool]]:
    """Settings of an initiator, and whether they let it in."""

    def settings(credentials: Credentials | None, name: str | None = target) -> InitiatorSettings:
        return InitiatorSettings(INITIATOR, name, credentials=credentials)

    good = Credentials("host", SECRET)
    return [
        *[
            (settings(Credentials("host", SECRET, "disk", MUTUAL, algorithms=(algorithm,))), True)
            for algorithm in "5678"
        ],
        (settings(good), True),
        (settings(Credentials("host", WRONG)), False),
        (settings(Credentials("guest", SECRET)), False),
        (settings(Credentials("disk", MUTUAL)), False),
        (settings(None), False),
    ]


def spellings(secret: bytes) -> set[str]:
    return {
        secret.decode(),
        secret.hex(),
        secret.hex().upper(),
        base64.b64encode(secret).decode().rstrip("="),
        repr(secret),
    }


async def test_no_secret_is_logged(tmp_path: Path, with_chap: dict[str, Any]) -> None:
    config = config_of(tmp_path, server={"discovery": with_chap}, targets={TARGET: with_chap})
    with recording() as records:
        async with serving(config, tmp_path) as live:
            for target in (TARGET, None):
                for settings, admitted in attempts(target):
                    outcome = await engine_login(live.address(), settings)
                    assert isinstance(outcome, LoginFinished if admitted else LoginFailed)
            assert len(live.events("login")) == 10
            assert {line["status"] for line in live.events("login_denied")} == {"0201"}
            assert live.app.logins() == {"accepted": 10, "authentication_failure": 8}
    shown = [repr(config), str(config), *map(repr, vars(live.app).values())]
    for record in records:
        shown += [f.format(record) for f in (KeyValueFormatter(), JsonFormatter())]
        shown.append(str(vars(record)))
    everything = "\n".join(shown)
    for secret in (SECRET, MUTUAL, WRONG):
        for spelling in spellings(secret):
            assert spelling not in everything


async def test_who_failed_is_logged(tmp_path: Path, with_chap: dict[str, Any]) -> None:
    async with serving(config_of(tmp_path, targets={TARGET: with_chap}), tmp_path) as live:
        settings = InitiatorSettings(INITIATOR, TARGET, credentials=Credentials("host", WRONG))
        assert isinstance(await engine_login(live.address(), settings), LoginFailed)
        (denied,) = live.events("login_denied")
        assert denied["initiator"] == INITIATOR
        assert str(denied["peer"]).startswith("127.0.0.1:")


async def test_a_line_for_every_login_and_logout(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        await peer.log_out()
        for name in ("login", "logout"):
            (line,) = live.events(name)
            assert (line["initiator"], line["target"]) == (INITIATOR, TARGET)
        await seen_in_discovery(live)


async def seen_in_discovery(live: Live) -> None:
    session = await live.log_in(None)
    await session.log_out()
    assert live.events("logout")[-1]["target"] == "discovery"


# Space


async def test_a_file_system_that_runs_low_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, to who is there, and the session goes on."""
    monkeypatch.setattr(served_disks, "WATCH_INTERVAL_S", 0.001)
    disk = {"path": "disk.img", "size": MIB, "space_warning": 0}
    async with serving(config_of(tmp_path, disks={"disk": disk}), tmp_path) as live:
        peer = await live.log_in()
        unit = live.app._units["disk"]
        unit.settings = replace(unit.settings, space_warning_bytes=1 << 50)
        await live.until(lambda: bool(unit.attentions.pending))
        assert (await peer.command(bytes(6))).asc == (0x38, 0x07)
        assert not (await peer.command(bytes(6))).status


async def test_a_file_that_is_not_at_its_path_any_more_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written goes on into a file without a name: whoever looks after it must know."""
    monkeypatch.setattr(served_disks, "WATCH_INTERVAL_S", 0.001)
    disk = {"path": "disk.img", "size": MIB}

    def heard(count: int) -> bool:
        return len(live.events("disk_file_lost")) == count

    async with serving(config_of(tmp_path, disks={"disk": disk}), tmp_path) as live:
        live.allowed_error = "disk_file_lost"
        image = tmp_path / "disk.img"
        for count in (1, 2):
            image.rename(tmp_path / "elsewhere")
            await live.until(partial(heard, count))
            assert live.events("disk_file_lost")[-1]["disk"] == "disk"
            (tmp_path / "elsewhere").rename(image)
            await live.until(lambda: not live.app._disks._lost)
