"""A server inside the test's own event loop, and initiators that say exactly what they are told.

`serving` checks on its way out that the server is as it was: nothing open, registered, held or
counted any more, and nothing logged that tells of a fault in the server itself.
"""

import asyncio
import contextlib
import gc
import logging
import socket
import struct
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from pyiscsi_target.app import Application
from pyiscsi_target.iscsi.constants import (
    BHS_LENGTH,
    FINAL,
    IMMEDIATE,
    RESERVED_TAG,
    TRANSIT,
    CommandFlag,
    DataInFlag,
    LogoutReason,
    Opcode,
    TaskManagement,
)
from pyiscsi_target.iscsi.initiator import InitiatorConnection
from pyiscsi_target.iscsi.initiator_events import LoginFailed, LoginFinished
from pyiscsi_target.iscsi.initiator_login import InitiatorSettings
from pyiscsi_target.iscsi.pdu import (
    AsyncMessage,
    DataIn,
    DataOut,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    NopIn,
    NopOut,
    ReadyToTransfer,
    ScsiCommand,
    ScsiResponse,
    TaskManagementRequest,
    TextRequest,
    decode,
    stage_flags,
)
from pyiscsi_target.iscsi.text import Pairs, decode_pairs, encode_pairs
from pyiscsi_target.server.config import Config, load_config
from pyiscsi_target.storage.base import Buffer
from pyiscsi_target.storage.filters import FilterStore
from tests.support.memory import Randomness, frame, names
from tests.support.raw_initiator import PREFERRED_KEYS
from tests.support.server import TARGET, toml_document

INITIATOR = "iqn.2026-11.example.test:host"
ISID = bytes.fromhex("400001370000")
MIB = 1 << 20
PATIENCE_S = 20.0  # how long something that must happen may take

Address = tuple[str, int]


def config_of(
    directory: Path,
    *,
    server: Mapping[str, Any] | None = None,
    disks: Mapping[str, Mapping[str, Any]] | None = None,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """A config read from a file in `directory`: by default one disk at LUN 0 of one open target."""
    disks = {"disk": {"path": "disk.img", "size": 64 * MIB}} if disks is None else disks
    targets = {TARGET: {}} if targets is None else targets
    tables: dict[str, Mapping[str, Any]] = {
        "server": {"portals": ["127.0.0.1:0"], "drain_timeout_s": PATIENCE_S, **(server or {})}
    }
    tables.update({f"disks.{name}": disk for name, disk in disks.items()})
    for name, target in targets.items():
        luns = dict(enumerate(disks))
        tables[f'targets."{name}"'] = {"luns": luns, "initiators": ["*"], **target}
    path = directory / "config.toml"
    path.write_text(toml_document(tables), encoding="utf-8")
    return load_config(path)


class HeldStore(FilterStore):
    """Reads and writes from byte `held_from` on wait for `gate`; `begun` tells which wait."""

    def __init__(self, inner: Any, held_from: int) -> None:
        super().__init__(inner)
        self.held_from = held_from
        self.gate = asyncio.Event()
        self.begun: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def _is_held(self, offset_bytes: int) -> bool:
        return offset_bytes >= self.held_from and not self.gate.is_set()

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        return not self._is_held(offset_bytes) and super().read_now(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Any) -> bool:
        return not self._is_held(offset_bytes) and super().write_now(offset_bytes, data)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        await self._wait("read", offset_bytes)
        await super().read(offset_bytes, into)

    async def write(self, offset_bytes: int, data: Any, *, durable: bool = False) -> None:
        await self._wait("write", offset_bytes)
        await super().write(offset_bytes, data, durable=durable)

    async def _wait(self, operation: str, offset_bytes: int) -> None:
        if self._is_held(offset_bytes):
            self.begun.put_nowait((operation, offset_bytes))
            await self.gate.wait()


class LoginRefused(Exception):
    """The target answered a login with this status class and detail."""

    def __init__(self, status: int) -> None:
        super().__init__(f"login status {status:04x}h")
        self.status = status


class Done:
    """The end of a request: the last PDU and all the data that came for it."""

    def __init__(self, pdu: Any, data: bytes) -> None:
        self.pdu = pdu
        self.data = data

    @property
    def status(self) -> int:
        status: int = self.pdu.status
        return status

    @property
    def asc(self) -> tuple[int, int]:
        """Additional sense code and qualifier of a CHECK CONDITION in fixed format."""
        return self.data[2 + 12], self.data[2 + 13]


class Peer:
    """One connection of an initiator. Nothing is received before it is asked for."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.cmd_sn = 1
        self.exp_stat_sn = 0
        self.max_cmd_sn = 0
        self.tsih = 0
        self.answers_pings = True
        self.pings: list[NopIn] = []
        self.messages: list[AsyncMessage] = []
        self.r2ts: list[ReadyToTransfer] = []
        self.finished: list[int] = []  # task tags in the order of their ends
        self._loop = asyncio.get_running_loop()
        self._tag = 0
        self._writes: dict[int, memoryview] = {}  # served when R2Ts ask for it
        self._data_in: dict[int, bytearray] = {}
        self._done: dict[int, Done] = {}

    @classmethod
    async def connect(
        cls, address: Address, *, source: str | None = None, receive_buffer: int | None = None
    ) -> Self:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        connection = socket.socket(family, socket.SOCK_STREAM)
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if receive_buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        if source is not None:
            connection.bind((source, 0))
        await asyncio.get_running_loop().sock_connect(connection, address)
        return cls(connection)

    def close(self) -> None:
        self.socket.close()

    def reset(self) -> None:
        """Close by RST, as a crashed host would."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    # Bytes

    async def send(self, *pdus: bytes) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._loop.sock_sendall(self.socket, b"".join(pdus))

    def send_now(self, *pdus: bytes) -> None:
        """Send all before the server runs again, so that it takes them in one round."""
        data = b"".join(pdus)
        assert self.socket.send(data) == len(data)

    async def receive(self) -> tuple[Any, bytes]:
        """The next PDU, decoded, and its data segment."""
        header = await self._receive_exactly(BHS_LENGTH)
        pdu: Any = decode(header)
        length = pdu.lengths & 0xFFFFFF
        data = await self._receive_exactly(length + 3 & ~3) if length else b""
        if isinstance(pdu, LoginResponse | ScsiResponse) or getattr(pdu, "stat_sn", 0):
            self.exp_stat_sn = pdu.stat_sn + 1
        self.max_cmd_sn = pdu.max_cmd_sn
        return pdu, data[:length]

    async def _receive_exactly(self, length: int) -> bytes:
        received = bytearray()
        async with asyncio.timeout(PATIENCE_S):
            while len(received) < length:
                piece = await self._loop.sock_recv(self.socket, length - len(received))
                if not piece:
                    raise ConnectionError("the target closed the connection")
                received += piece
        return bytes(received)

    async def ended(self) -> None:
        """Read on until the server hangs up."""
        with contextlib.suppress(ConnectionError):
            async with asyncio.timeout(PATIENCE_S):
                while await self._loop.sock_recv(self.socket, 65536):
                    pass

    # Login

    async def log_in(
        self,
        target: str | None = TARGET,
        *,
        initiator: str = INITIATOR,
        isid: bytes = ISID,
        keys: Mapping[str, str] | None = None,
        **fields: int,
    ) -> Self:
        """To the full feature phase in one exchange. Raises LoginRefused."""
        response, _ = await self.login_exchange(
            target, initiator=initiator, isid=isid, keys=keys, **fields
        )
        if response.status:
            raise LoginRefused(response.status)
        self.tsih = response.tsih
        return self

    async def login_exchange(
        self,
        target: str | None = TARGET,
        *,
        initiator: str = INITIATOR,
        isid: bytes = ISID,
        keys: Mapping[str, str] | None = None,
        **fields: int,
    ) -> tuple[LoginResponse, bytes]:
        await self.send(self.login_request(target, initiator, isid, keys, **fields))
        response, data = await self.receive()
        assert isinstance(response, LoginResponse)
        return response, data

    def login_request(
        self,
        target: str | None = TARGET,
        initiator: str = INITIATOR,
        isid: bytes = ISID,
        keys: Mapping[str, str] | None = None,
        **fields: int,
    ) -> bytes:
        offered = {**PREFERRED_KEYS, **(keys or {})}
        if target is None:
            pairs = [("InitiatorName", initiator), ("SessionType", "Discovery")]
        else:
            pairs = names(target, initiator) + list(offered.items())
        flags = TRANSIT | stage_flags(1, 3)  # type: ignore[arg-type]
        request = LoginRequest(flags=flags, isid=isid, cmd_sn=self.cmd_sn, **fields)
        return frame(request, encode_pairs(pairs))

    # Requests: each is framed and numbered here, and sent by `send` or `send_now`

    def next_tag(self) -> int:
        self._tag += 1
        return self._tag

    def scsi(
        self,
        cdb: bytes,
        *,
        read_bytes: int = 0,
        data: Buffer = b"",
        immediate_bytes: int = 0,
        lun: int = 0,
        attribute: int = 1,
        serve: bool = True,
        immediate: bool = False,
    ) -> tuple[int, bytes]:
        """A command's tag and bytes; `serve` answers its R2Ts from `data` when they are seen."""
        tag = self.next_tag()
        flags = FINAL | attribute
        flags |= CommandFlag.READ if read_bytes else 0
        flags |= CommandFlag.WRITE if len(data) else 0
        command = ScsiCommand(
            Opcode.SCSI_COMMAND | (IMMEDIATE if immediate else 0),
            flags,
            0,
            lun << 48,
            tag,
            read_bytes or len(data),
            self.cmd_sn,
            self.exp_stat_sn,
            cdb.ljust(16, b"\0"),
        )
        if not immediate:
            self.cmd_sn += 1
        if serve:
            self._writes[tag] = memoryview(data)
        self._data_in[tag] = bytearray()
        return tag, frame(command, bytes(data[:immediate_bytes]))

    def data_out(self, r2t: ReadyToTransfer, data: Buffer) -> bytes:
        """The whole sequence that an R2T asks for, in segments of 256 KiB."""
        end = r2t.buffer_offset + r2t.desired_length
        pdus = []
        for number, offset in enumerate(range(r2t.buffer_offset, end, 262144)):
            following = min(offset + 262144, end)
            header = DataOut(
                Opcode.DATA_OUT,
                FINAL if following == end else 0,
                0,
                r2t.lun,
                r2t.itt,
                r2t.ttt,
                self.exp_stat_sn,
                number,
                offset,
            )
            pdus.append(frame(header, bytes(memoryview(data)[offset:following])))
        return b"".join(pdus)

    def management(
        self, function: TaskManagement, *, lun: int = 0, tag: int = RESERVED_TAG
    ) -> tuple[int, bytes]:
        """An immediate task management request's tag and bytes."""
        itt = self.next_tag()
        opcode = Opcode.TASK_MANAGEMENT_REQUEST | IMMEDIATE
        request = TaskManagementRequest(opcode, FINAL | function, 0, lun << 48, itt, tag)
        request.cmd_sn = request.ref_cmd_sn = self.cmd_sn
        request.exp_stat_sn = self.exp_stat_sn
        return itt, frame(request)

    def nop_out(self, data: bytes = b"") -> tuple[int, bytes]:
        itt = self.next_tag()
        opcode = Opcode.NOP_OUT | IMMEDIATE
        return itt, frame(NopOut(opcode, itt=itt, cmd_sn=self.cmd_sn), data)

    def text(self, pairs: Pairs) -> tuple[int, bytes]:
        itt = self.next_tag()
        request = TextRequest(itt=itt, cmd_sn=self.cmd_sn, exp_stat_sn=self.exp_stat_sn)
        self.cmd_sn += 1
        return itt, frame(request, encode_pairs(pairs))

    def logout_request(self, reason: LogoutReason = LogoutReason.CLOSE_SESSION) -> tuple[int, bytes]:
        itt = self.next_tag()
        opcode = Opcode.LOGOUT_REQUEST | IMMEDIATE
        return itt, frame(LogoutRequest(opcode, FINAL | reason, itt=itt, cmd_sn=self.cmd_sn))

    # Whole exchanges

    async def finish(self, tag: int) -> Done:
        """Take what comes, serving R2Ts and pings, until the request `tag` has ended."""
        while tag not in self._done:
            await self.take_one()
        return self._done.pop(tag)

    async def take_one(self) -> Any:
        """Receive one PDU and do with it what an initiator does; the PDU."""
        pdu, data = await self.receive()
        match pdu:
            case DataIn():
                self._data_in[pdu.itt] += data
                if pdu.flags & DataInFlag.STATUS:
                    self._end(pdu, bytes(self._data_in.pop(pdu.itt)))
            case ReadyToTransfer():
                if pdu.itt in self._writes:
                    await self.send(self.data_out(pdu, self._writes[pdu.itt]))
                else:
                    self.r2ts.append(pdu)
            case AsyncMessage():
                self.messages.append(pdu)
            case NopIn() if pdu.ttt != RESERVED_TAG:
                self.pings.append(pdu)
                if self.answers_pings:
                    await self.answer_ping(pdu)
            case _:
                self._end(pdu, data)
        return pdu

    def _end(self, pdu: Any, data: bytes) -> None:
        self.finished.append(pdu.itt)
        self._done[pdu.itt] = Done(pdu, data)

    async def answer_ping(self, ping: NopIn) -> None:
        opcode = Opcode.NOP_OUT | IMMEDIATE
        await self.send(frame(NopOut(opcode, lun=ping.lun, ttt=ping.ttt, cmd_sn=self.cmd_sn)))

    async def command(self, cdb: bytes, **more: Any) -> Done:
        tag, pdu = self.scsi(cdb, **more)
        await self.send(pdu)
        return await self.finish(tag)

    async def ready(self) -> Self:
        """Take the unit attentions that a new nexus is told."""
        while (await self.command(bytes(6))).status:
            pass
        return self

    async def r2t(self) -> ReadyToTransfer:
        """The next R2T of a command that is not served."""
        while not self.r2ts:
            await self.take_one()
        return self.r2ts.pop(0)

    async def manage(self, function: TaskManagement, *, lun: int = 0, tag: int = RESERVED_TAG) -> int:
        """The response to a task management request."""
        itt, pdu = self.management(function, lun=lun, tag=tag)
        await self.send(pdu)
        response: int = (await self.finish(itt)).pdu.response
        return response

    async def discover(self, what: str = "All") -> Pairs:
        itt, pdu = self.text([("SendTargets", what)])
        await self.send(pdu)
        return decode_pairs((await self.finish(itt)).data)

    async def log_out(self) -> None:
        itt, pdu = self.logout_request()
        await self.send(pdu)
        await self.finish(itt)
        await self.ended()
        self.close()


async def engine_login(
    address: Address, settings: InitiatorSettings
) -> LoginFinished | LoginFailed:
    """Log in by the package's own initiator: for exchanges of several steps, like CHAP."""
    peer = await Peer.connect(address)
    loop = asyncio.get_running_loop()
    engine = InitiatorConnection(settings, Randomness(3))
    engine.begin()
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                await peer.send(*map(bytes, engine.take_outgoing()))
                data = await loop.sock_recv(peer.socket, 65536)
                assert data, "the target closed the connection without an answer"
                for event in engine.receive(data):
                    if isinstance(event, LoginFinished | LoginFailed):
                        return event
    finally:
        peer.close()


class _Records(logging.Handler):
    """Keeps every record; it has no level, so debug messages come too."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def recording() -> Iterable[list[logging.LogRecord]]:  # type: ignore[misc]
    """All that is logged by anyone within the block, at every level."""
    root, handler = logging.getLogger(), _Records()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.records
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


class Live:
    """A started application and its peers."""

    def __init__(self, app: Application, records: list[logging.LogRecord]) -> None:
        self.app = app
        self.records = records
        self.peers: list[Peer] = []
        self.allowed_errors: set[str] = set()
        self.faults: list[dict[str, Any]] = []  # what the loop's exception handler was told

    def address(self, portal: int = 0) -> Address:
        endpoint = self.app._portals[portal].endpoint
        return endpoint.host, endpoint.port

    async def connect(self, **more: Any) -> Peer:
        address = more.pop("address", None) or self.address()
        peer = await Peer.connect(address, **more)
        self.peers.append(peer)
        return peer

    async def log_in(self, target: str | None = TARGET, **more: Any) -> Peer:
        """A new session, its unit attentions taken."""
        options = {key: more.pop(key) for key in ("address", "source") if key in more}
        peer = await (await self.connect(**options)).log_in(target, **more)
        return await peer.ready() if target is not None else peer

    def hold(self, disk: str = "disk", held_from: int = 0) -> HeldStore:
        """Make a disk's operations wait from now on."""
        unit = self.app._units[disk]
        store = HeldStore(unit.store, held_from)
        unit.store = store
        return store

    def events(self, name: str) -> list[dict[str, Any]]:
        """The fields of each log line of this event."""
        return [
            getattr(record, "event_fields", {})
            for record in self.records
            if record.getMessage() == name
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the server run until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - there is no event to be told by
                await asyncio.sleep(0)

    def assert_quiet(self) -> None:
        """Nothing told of a fault in the server."""
        gc.collect()  # reports exceptions that nobody retrieved
        assert not self.faults, self.faults
        errors = {r.getMessage() for r in self.records if r.levelno >= logging.ERROR}
        assert errors <= self.allowed_errors, errors

    def assert_nothing_left(self) -> None:
        """Everything that connections and sessions took was given back."""
        app = self.app
        assert not app._connections
        assert not app._limits._by_address
        assert not app._sessions.by_key
        assert not app._sessions.by_tsih
        for device in app._devices.values():
            assert not device._attached
        for unit in app._units.values():
            assert not unit.tasks.unfinished
            assert not unit.tasks.barriers
            assert not unit.ranges._ranges
            assert unit.reserved_by is None


@contextlib.asynccontextmanager
async def serving(config: Config, directory: Path) -> AsyncIterator[Live]:
    """A running server; drained at the end, when its peers are gone and all is given back."""
    with recording() as records:
        app = Application(config, directory)
        live = Live(app, records)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: live.faults.append(context))
        await app.start()
        try:
            yield live
        finally:
            for peer in live.peers:
                peer.close()
            await app.drain()
            loop.set_exception_handler(None)
        live.assert_quiet()
        live.assert_nothing_left()
