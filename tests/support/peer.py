"""One connection of an initiator that says exactly what it is told, on the test's own event loop.

Requests are framed and numbered by one call and sent by another, so that a test decides what
travels together; nothing is received before it is asked for.
"""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Mapping
from typing import Any, Self

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
    Stage,
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
    TaskManagementRequest,
    TextRequest,
    decode,
    stage_flags,
)
from pyiscsi_target.iscsi.text import Pairs, decode_pairs, encode_pairs
from pyiscsi_target.storage.base import Buffer
from tests.support.memory import Randomness, frame, names
from tests.support.raw_initiator import PREFERRED_KEYS
from tests.support.server import TARGET

INITIATOR = "iqn.2026-11.example.test:host"
ISID = bytes.fromhex("400001370000")
SEGMENT_LENGTH = 262144  # bytes of a Data-Out's data segment
PATIENCE_S = 10.0  # how long something that must happen may take

Address = tuple[str, int]


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
        try:
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if receive_buffer is not None:
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            if source is not None:
                connection.bind((source, 0))
            await asyncio.get_running_loop().sock_connect(connection, address)
        except BaseException:
            connection.close()
            raise
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
        if not isinstance(pdu, DataIn | ReadyToTransfer) or pdu.flags & DataInFlag.STATUS:
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
        flags = TRANSIT | stage_flags(Stage.OPERATIONAL, Stage.FULL_FEATURE)
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
        """The whole sequence that an R2T asks for."""
        end = r2t.buffer_offset + r2t.desired_length
        pdus = []
        for number, offset in enumerate(range(r2t.buffer_offset, end, SEGMENT_LENGTH)):
            following = min(offset + SEGMENT_LENGTH, end)
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

    def logout_request(
        self, reason: LogoutReason = LogoutReason.CLOSE_SESSION
    ) -> tuple[int, bytes]:
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

    async def take_all(self) -> None:
        """Take what comes until the server hangs up."""
        with contextlib.suppress(ConnectionError):
            while True:
                await self.take_one()

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

    async def manage(
        self, function: TaskManagement, *, lun: int = 0, tag: int = RESERVED_TAG
    ) -> int:
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
