"""Listening sockets: accept, bound the number of connections, watch over silent ones."""

import asyncio
import logging
import socket
from collections import Counter
from collections.abc import Callable

from .config_values import Endpoint
from .connection import Connection
from .logs import log_event
from .policy import Peer, Portal
from .targets import parse_address

BACKLOG = 128
ACCEPTS_PER_WAKE_UP = 64

_log = logging.getLogger(__name__)

MakeConnection = Callable[[socket.socket, Peer], Connection]


def bind(endpoint: Endpoint) -> socket.socket:
    """A socket that listens there. Raises OSError."""
    family = socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        address = socket.getaddrinfo(
            endpoint.host, endpoint.port, family, socket.SOCK_STREAM, 0, socket.AI_NUMERICHOST
        )[0][4]
        listening.bind(address)
        listening.listen(BACKLOG)
        listening.setblocking(False)
    except OSError:
        listening.close()
        raise
    return listening


def bound_endpoint(endpoint: Endpoint, listening: socket.socket) -> Endpoint:
    """The endpoint with the port that the system chose, where 0 was asked for."""
    return Endpoint(endpoint.host, listening.getsockname()[1])


class ConnectionLimits:
    """How many connections there are, and may be, from one address and in all."""

    def __init__(self, in_all: int, per_address: int) -> None:
        self._in_all = in_all
        self._per_address = per_address
        self._by_address: Counter[str] = Counter()

    def admit(self, address: str) -> bool:
        """Count a connection, unless it is one too many."""
        if self._by_address.total() >= self._in_all:
            return False
        if self._by_address[address] >= self._per_address:
            return False
        self._by_address[address] += 1
        return True

    def release(self, address: str) -> None:
        """A connection has ended."""
        self._by_address[address] -= 1
        if not self._by_address[address]:
            del self._by_address[address]


class PortalListener:
    """One bound portal."""

    def __init__(
        self,
        portal: Portal,
        listening: socket.socket,
        limits: ConnectionLimits,
        make_connection: MakeConnection,
    ) -> None:
        self.portal = portal
        self._socket = listening
        self._limits = limits
        self._make_connection = make_connection
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(listening, self._on_connection)

    def close(self) -> None:
        """Accept no more."""
        self._loop.remove_reader(self._socket)
        self._socket.close()

    def _on_connection(self) -> None:
        for _ in range(ACCEPTS_PER_WAKE_UP):
            try:
                accepted, remote = self._socket.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                log_event(_log, logging.ERROR, "accept_failed", reason=error.strerror)
                self._pause()
                return
            try:
                self._admit(accepted, remote)
            except OSError:  # the peer is gone already
                accepted.close()

    def _pause(self) -> None:
        """As when out of descriptors: the socket stays readable, so look away for a while."""
        self._loop.remove_reader(self._socket)
        self._loop.call_later(1.0, self._look_again)

    def _look_again(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._on_connection)

    def _admit(self, accepted: socket.socket, remote: tuple[str, int]) -> None:
        peer = Peer(
            address=str(parse_address(remote[0].partition("%")[0])),
            port=remote[1],
            local_address=accepted.getsockname()[0],
            portal=self.portal,
        )
        accepted.setblocking(False)
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not self._limits.admit(peer.address):
            log_event(_log, logging.WARNING, "connection_refused", peer=peer, reason="too many")
            accepted.close()
            return
        self._make_connection(accepted, peer)
