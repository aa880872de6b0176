"""The composition root: a config in, a running server out; drain at the end."""

import asyncio
import contextlib
import errno
import logging
import secrets
import signal
import socket
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from .admin.metrics import LunCounters, Metrics, MetricsServer, sample_loop_lag
from .iscsi.constants import LoginStatus
from .iscsi.framing import RECEIVE_BUFFER_LENGTH, BufferPool
from .iscsi.login import Agreement
from .iscsi.target import TargetConnection
from .scsi.logical_unit import LogicalUnit
from .scsi.target_device import TargetDevice
from .server.config_model import Config
from .server.config_values import Endpoint
from .server.connection import ARENA_LENGTH, Connection
from .server.control import ControlServer, Handler
from .server.logs import log_event
from .server.operator_requests import OperatorRequests
from .server.overview import Overview, overview_of
from .server.policy import Peer, PeerPolicy, Portal
from .server.port_numbers import number_portals, number_ports
from .server.portal import ConnectionLimits, PortalListener, bind, bound_endpoint
from .server.served_disks import ServedDisks
from .server.sessions import Session, SessionRegistry
from .server.snapshot_requests import SnapshotRequests
from .server.state_store import StateError, StateStore
from .server.targets import ConfiguredTargets
from .storage.base import StorageError

WATCH_INTERVAL_S = 1.0
LOGOUT_GRACE_S = 1.0  # between the last word to an initiator that stays and the end

# What a host without IPv6 says to the wildcard that the default portals name.
_NO_IPV6 = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)

_log = logging.getLogger(__name__)


class StartError(Exception):
    """The server cannot start; the message says why and names what is in the way."""


class Application:
    """A server from `start` to `drain`. Lives on one event loop, which owns all its state."""

    def __init__(self, config: Config, base_dir: Path) -> None:
        """`base_dir` is the config file's folder: below it, missing folders are created."""
        self._config = config
        self._targets = ConfiguredTargets(config)
        self._stop = asyncio.Event()
        self._disks = ServedDisks(config.disks, base_dir)
        self._units = self._disks.units
        self._devices: dict[str, TargetDevice] = {}
        self._state: StateStore | None = None
        self._listeners: list[PortalListener] = []
        self._portals: list[Portal] = []
        self._ports: dict[tuple[str, int], int] = {}
        self._connections: set[Connection] = set()
        self._all_closed = asyncio.Event()
        self._limits = ConnectionLimits(
            config.server.max_connections, config.server.max_connections_per_address
        )
        self._receive_buffers = BufferPool(RECEIVE_BUFFER_LENGTH)
        self._arenas = BufferPool(ARENA_LENGTH)
        self._logins: Counter[str] = Counter()
        self._metrics: MetricsServer | None = None
        self._control = ControlServer(config.server.state_dir, self._requests())
        self._background: list[asyncio.Task[None]] = []
        self._sessions = SessionRegistry(
            self._devices,
            self._luns_for,
            {name: target.limits.max_sessions for name, target in config.targets.items()},
            self._ports,
        )

    def _requests(self) -> dict[str, Handler]:
        """What an operator may ask for."""
        changing = asyncio.Lock()
        of_disks = SnapshotRequests(self._disks, changing).handlers
        return {**OperatorRequests(self._units, changing).handlers, **of_disks}

    # Start

    async def start(self) -> None:
        """Open the disks, bind the portals, accept. Raises StartError having undone all of it."""
        self._handle_signals()
        try:
            self._open_disks()
            self._bind_portals()
            self._start_metrics()
            await self._start_control()
        except (StateError, StorageError) as error:
            await self._close_disks()
            raise StartError(str(error)) from error
        except StartError:
            self._close_portals()
            await self._close_disks()
            raise
        self._background.append(asyncio.create_task(self._watch()))
        self._background.append(asyncio.create_task(self._disks.watch()))
        self._warn_of_closed_targets()
        log_event(_log, logging.INFO, "ready", targets=len(self._devices), disks=len(self._units))

    def _open_disks(self) -> None:
        self._state = StateStore(self._config.server.state_dir)
        self._disks.open(self._state)
        for name in self._config.targets:
            self._devices[name] = TargetDevice(name)

    def _bind_portals(self) -> None:
        assert self._state is not None
        endpoints = self._config.server.portals
        numbers = number_portals(endpoints, self._state)
        self._number_ports(numbers)
        for number, endpoint in zip(numbers, endpoints, strict=True):
            try:
                listening = bind(endpoint)
            except OSError as error:
                if endpoint.host == "::" and error.errno in _NO_IPV6:
                    log_event(_log, logging.WARNING, "no_ipv6", portal=endpoint)
                    continue
                raise StartError(f"portal {endpoint}: {error.strerror or error}") from error
            portal = Portal(bound_endpoint(endpoint, listening), number)
            self._portals.append(portal)
            self._listeners.append(
                PortalListener(portal, listening, self._limits, self._make_connection)
            )
            log_event(_log, logging.INFO, "listening", portal=portal.endpoint, tag=number)
        if not self._portals:
            raise StartError("no portal could be opened")

    def _number_ports(self, portals: list[int]) -> None:
        """Tell disks and sessions their target ports, one for each portal of each target."""
        assert self._state is not None
        self._ports |= number_ports(list(self._config.targets), portals, self._state)
        for name, unit in self._units.items():
            unit.target_ports = tuple(
                number
                for (target, _), number in self._ports.items()
                if name in self._config.targets[target].disks
            )

    def _start_metrics(self) -> None:
        endpoint = self._config.server.metrics
        if endpoint is None:
            return
        metrics = Metrics(self)
        try:
            self._metrics = MetricsServer(metrics, endpoint.host, endpoint.port)
        except OSError as error:
            raise StartError(f"metrics {endpoint}: {error.strerror or error}") from error
        self._metrics.start()
        self._background.append(asyncio.create_task(sample_loop_lag(metrics.loop_lag.observe)))
        log_event(
            _log,
            logging.INFO,
            "metrics",
            address=Endpoint(endpoint.host, self._metrics.port),
        )

    async def _start_control(self) -> None:
        try:
            await self._control.start()
        except OSError as error:  # a file system without sockets is no reason not to serve
            log_event(_log, logging.WARNING, "no_control_socket", reason=error.strerror or error)

    def _warn_of_closed_targets(self) -> None:
        for name, target in self._config.targets.items():
            if not target.initiators:
                log_event(
                    _log,
                    logging.WARNING,
                    "target_admits_nobody",
                    target=name,
                    hint='add initiators = ["iqn..."] to the target',
                )

    def overview(self) -> Overview:
        """What is served, for a person."""
        sizes = self._disks.sizes_bytes()
        return overview_of(self._config, sizes, [portal.endpoint for portal in self._portals])

    # Connections and sessions (`ConnectionOwner`)

    def _make_connection(self, accepted: socket.socket, peer: Peer) -> Connection:
        policy = PeerPolicy(self._config, self._targets, self._portals, peer)
        engine = TargetConnection(policy, secrets.token_bytes, self._receive_buffers)
        connection = Connection(accepted, peer, engine, self, self._arenas)
        self._connections.add(connection)
        self._all_closed.clear()
        return connection

    async def open_session(self, agreement: Agreement, connection: Connection) -> Session:
        """See `ConnectionOwner.open_session`."""
        session = await self._sessions.open(agreement, connection, connection.peer.address)
        if not connection.closed:
            self._logins["accepted"] += 1
        return session

    def session_closed(self, session: Session, *, nexus_lost: bool) -> None:
        """See `ConnectionOwner.session_closed`."""
        self._sessions.close(session, nexus_lost=nexus_lost)

    def connection_ended(self, connection: Connection, session: Session | None) -> None:
        """See `ConnectionOwner.connection_ended`."""
        if session is not None:
            self._sessions.ended(session)
        self._limits.release(connection.peer.address)
        self._connections.discard(connection)
        if not self._connections:
            self._all_closed.set()

    def login_refused(self, status: LoginStatus) -> None:
        """See `ConnectionOwner.login_refused`."""
        self._logins[status.name.lower()] += 1

    def drop_sessions(self, device: TargetDevice, reason: str) -> None:
        """See `ConnectionOwner.drop_sessions`."""
        for session in list(self._sessions.by_tsih.values()):
            if session.device is device and isinstance(session.connection, Connection):
                session.connection.close(reason)

    def _luns_for(
        self, target: str, initiator_name: str, address: str
    ) -> dict[int, LogicalUnit] | None:
        admitted = self._targets.admit(target, initiator_name, address)
        if admitted is None:
            return None
        return {lun: self._units[disk] for lun, disk in admitted.items()}

    async def _watch(self) -> None:
        """End logins that take too long and connections whose initiator is gone."""
        server = self._config.server
        interval_s = min(WATCH_INTERVAL_S, server.ping_timeout_s / 2, server.login_timeout_s / 2)
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(interval_s)
            now_s = loop.time()
            for connection in list(self._connections):
                if connection.closed or not (connection.listening or connection.closing):
                    continue
                if not connection.logged_in:
                    if now_s - connection.opened_at_s > server.login_timeout_s:
                        log_event(_log, logging.WARNING, "login_timeout", peer=connection.peer)
                        connection.close("login timeout")
                elif connection.closing:
                    if now_s - connection.heard_at_s > server.ping_timeout_s:
                        connection.close("the last answer is not read")
                elif connection.pinged_at_s is not None and (
                    now_s - connection.pinged_at_s > server.ping_timeout_s
                ):
                    connection.close("no answer to a ping")
                elif now_s - connection.heard_at_s > server.ping_interval_s:
                    connection.ping(now_s)

    # Figures for metrics (`admin.metrics.Figures`)

    def sessions(self) -> Mapping[str, int]:
        """Open sessions by target name ("" for discovery)."""
        return self._sessions.count_by_target()

    def logins(self) -> Mapping[str, int]:
        """Logins so far by result."""
        return dict(self._logins)

    def luns(self) -> Iterator[LunCounters]:
        """Counters of each LUN of each target."""
        for name, target in self._config.targets.items():
            luns = set(target.luns.items())
            luns.update(pair for rule in target.initiators for pair in (rule.luns or {}).items())
            for lun, disk in sorted(luns):
                yield _counters(name, lun, self._units[disk])

    # Stop

    async def run_until_stopped(self) -> None:
        """Return at SIGTERM, Ctrl-C or `stop`."""
        await self._stop.wait()

    def _handle_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            try:
                loop.add_signal_handler(number, self._stop.set)
            except NotImplementedError:  # Windows: Ctrl-C comes as a plain signal
                signal.signal(number, lambda *_: loop.call_soon_threadsafe(self._stop.set))

    def stop(self) -> None:
        """Make `run_until_stopped` return."""
        self._stop.set()

    async def drain(self) -> None:
        """Stop accepting, ask initiators to log out, finish within the bound, flush, close."""
        timeout_s = self._config.server.drain_timeout_s
        log_event(_log, logging.INFO, "draining", connections=len(self._connections))
        self._close_portals()
        await self._control.close()
        for connection in list(self._connections):
            connection.request_logout(max(1, round(timeout_s)))
        await self._wait_for_connections(timeout_s)
        for connection in list(self._connections):
            connection.announce_drop()
            connection.close("server stops")
        await self._wait_for_connections(LOGOUT_GRACE_S)
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._metrics is not None:
            await asyncio.get_running_loop().run_in_executor(None, self._metrics.stop)
        await self._close_disks()
        log_event(_log, logging.INFO, "stopped")

    async def _wait_for_connections(self, timeout_s: float) -> None:
        if self._connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), timeout_s)

    def _close_portals(self) -> None:
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def _close_disks(self) -> None:
        await self._disks.close()
        if self._state is not None:
            self._state.close()
            self._state = None


def _counters(target: str, lun: int, unit: LogicalUnit) -> LunCounters:
    statistics = unit.statistics
    return LunCounters(
        target=target,
        lun=lun,
        disk=unit.name,
        read_commands=statistics.read_commands,
        write_commands=statistics.write_commands,
        other_commands=statistics.commands - statistics.read_commands - statistics.write_commands,
        read_bytes=statistics.read_bytes,
        written_bytes=statistics.write_bytes,
        errors=statistics.check_conditions,
    )
