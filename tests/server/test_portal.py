"""Listening sockets: binding, limits on connections, and running out of descriptors."""

import asyncio
import errno
import logging
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.server.config_values import Endpoint
from pyiscsi_target.server.policy import Peer as Ends
from pyiscsi_target.server.policy import Portal
from pyiscsi_target.server.portal import (
    ConnectionLimits,
    PortalListener,
    bind,
    bound_endpoint,
)
from tests.support.live import Live, config_of, recording, serving
from tests.support.peer import Peer

LOOPBACK = Endpoint("127.0.0.1", 0)


# Binding


def test_a_free_port_is_bound_and_told() -> None:
    with bind(LOOPBACK) as listening:
        bound = bound_endpoint(LOOPBACK, listening)
        assert bound.port != 0
        assert listening.getsockname() == ("127.0.0.1", bound.port)
        assert not listening.getblocking()


def test_a_port_in_use_is_an_error() -> None:
    with bind(LOOPBACK) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            bind(Endpoint("127.0.0.1", port))


def test_an_address_that_is_not_ours_is_an_error() -> None:
    with pytest.raises(OSError, match=r"(?i)assign|address"):
        bind(Endpoint("192.0.2.1", 0))


def test_both_wildcards_share_a_port() -> None:
    """The IPv6 socket takes IPv6 alone, so the default portals do not collide."""
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with bind(Endpoint("0.0.0.0", 0)) as ipv4:
        port = ipv4.getsockname()[1]
        with bind(Endpoint("::", port)) as ipv6:
            assert ipv6.getsockname()[1] == port


# Limits


def test_limits_in_all() -> None:
    limits = ConnectionLimits(in_all=3, per_address=2)
    assert [limits.admit(a) for a in ("a", "a", "b", "c")] == [True, True, True, False]
    limits.release("a")
    assert limits.admit("c")
    assert not limits.admit("a")


def test_limits_by_address() -> None:
    limits = ConnectionLimits(in_all=10, per_address=2)
    assert [limits.admit("a") for _ in range(3)] == [True, True, False]
    assert limits.admit("b")
    limits.release("a")
    assert limits.admit("a")


def test_limits_remember_nobody_who_is_gone() -> None:
    limits = ConnectionLimits(in_all=10, per_address=2)
    for n in range(100):
        limits.admit(str(n % 2))
        limits.release(str(n % 2))
    for _ in range(3):
        limits.admit("a")
    limits.release("a")
    limits.release("a")
    assert not limits._by_address


async def refused(live: Live, **more: str) -> bool:
    """Whether a newcomer is turned away without a word."""
    peer = await live.connect(**more)
    try:
        await peer.send(peer.login_request())
        await peer.receive()
    except ConnectionError:
        return True
    return False


async def test_connections_in_all(tmp_path: Path) -> None:
    config = config_of(tmp_path, server={"max_connections": 2})
    async with serving(config, tmp_path) as live:
        first = await live.log_in()
        await live.connect()  # one that says nothing counts too
        await live.until(lambda: len(live.app._connections) == 2)
        assert await refused(live)
        assert await refused(live, source="127.0.0.2")
        await first.log_out()
        await live.until(lambda: len(live.app._connections) == 1)
        assert not await refused(live)
        assert len(live.events("connection_refused")) == 2


async def test_connections_by_address(tmp_path: Path) -> None:
    config = config_of(tmp_path, server={"max_connections_per_address": 2})
    async with serving(config, tmp_path) as live:
        first = await live.log_in()
        await live.connect()
        await live.until(lambda: len(live.app._connections) == 2)
        assert await refused(live)
        assert not await refused(live, source="127.0.0.2")
        first.reset()
        await live.until(lambda: len(live.app._connections) == 2)
        assert not await refused(live)


async def test_a_crowd_at_once(tmp_path: Path) -> None:
    """More than one wake-up accepts."""
    config = config_of(tmp_path, server={"max_connections_per_address": 70})
    async with serving(config, tmp_path) as live:
        peers = [await live.connect() for _ in range(100)]
        await live.until(lambda: len(live.events("connection_refused")) == 30)
        assert len(live.app._connections) == 70
        for peer in peers:
            peer.close()
        await live.until(lambda: not live.app._connections)


async def test_a_connection_that_is_gone_before_it_is_accepted(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        for _ in range(20):
            peer = await Peer.connect(live.address())
            peer.reset()
        assert (await live.log_in()).finished
        await live.until(lambda: len(live.app._connections) == 1)


# Trouble in accept


class Troubled(socket.socket):
    """A listening socket whose `accept` fails as long as `error` says so."""

    error: int | None = None
    asked = 0

    def accept(self) -> tuple[socket.socket, tuple[str, int]]:
        self.asked += 1
        if self.error is not None:
            raise OSError(self.error, "on purpose")
        return super().accept()


class Listening:
    """A listener over a `Troubled` socket, and the timers that it sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with bind(LOOPBACK) as plain:
            self.socket = Troubled(fileno=plain.detach())
        self.socket.setblocking(False)
        self.accepted: list[tuple[socket.socket, Ends]] = []
        self.timers: list[Callable[[], object]] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_later", lambda _, callback: self.timers.append(callback))
        portal = Portal(bound_endpoint(LOOPBACK, self.socket), 1)
        self.listener = PortalListener(portal, self.socket, ConnectionLimits(9, 9), self._made)

    def _made(self, accepted: socket.socket, ends: Ends) -> Any:
        self.accepted.append((accepted, ends))

    def close(self) -> None:
        self.listener.close()
        for accepted, _ in self.accepted:
            accepted.close()


async def turn(times: int = 20) -> None:
    for _ in range(times):
        await asyncio.sleep(0)


@pytest.mark.parametrize("error", [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM])
async def test_out_of_descriptors_it_looks_away_for_a_while(
    monkeypatch: pytest.MonkeyPatch, error: int
) -> None:
    listening = Listening(monkeypatch)
    listening.socket.error = error
    with recording() as records, socket.create_connection(listening.socket.getsockname()):
        await turn()
        assert listening.socket.asked == 1, "no busy loop over what stays readable"
        assert [r.getMessage() for r in records if r.levelno == logging.ERROR] == ["accept_failed"]
        listening.socket.error = None
        (look_again,) = listening.timers
        look_again()
        await turn()
        assert len(listening.accepted) == 1
        listening.close()


async def test_closed_while_it_looks_away(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening(monkeypatch)
    listening.socket.error = errno.EMFILE
    with recording(), socket.create_connection(listening.socket.getsockname()):
        await turn()
        listening.close()
        (look_again,) = listening.timers
        look_again()
        await turn()
    assert listening.socket.asked == 1


async def test_one_that_went_away_stops_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening(monkeypatch)
    listening.socket.error = errno.ECONNABORTED
    with socket.create_connection(listening.socket.getsockname()):
        await turn(3)
        listening.socket.error = None
        await turn()
        assert len(listening.accepted) == 1
        assert not listening.timers
        listening.close()


async def test_what_a_connection_knows_of_its_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening(monkeypatch)
    with socket.create_connection(listening.socket.getsockname()) as theirs:
        await turn()
        ((accepted, ends),) = listening.accepted
        assert (ends.address, ends.port) == theirs.getsockname()
        assert ends.local_address == "127.0.0.1"
        assert str(ends) == "{}:{}".format(*theirs.getsockname())
        assert not accepted.getblocking()
        assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        listening.close()


async def test_a_listener_that_is_closed_accepts_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    listening = Listening(monkeypatch)
    address = listening.socket.getsockname()
    listening.close()
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(address)
