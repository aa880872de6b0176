"""One connection on the initiator's side: requests to buffers, bytes to events (RFC 7143).

The mirror of `target`: the same layouts, key table and framing. What is to be sent collects in
`outgoing`; `receive` takes what came. It checks the target's numbering as strictly as the RFC words
it, so it also serves as the measure of the target's engine. No I/O, no clock, no retries.
"""

from collections.abc import Callable, Mapping
from functools import partial
from struct import Struct

from .constants import (
    BHS_LENGTH,
    CONTINUE,
    FINAL,
    IMMEDIATE,
    RESERVED_TAG,
    AhsType,
    CommandFlag,
    DataInFlag,
    LogoutReason,
    Opcode,
    TaskManagement,
)
from .framing import BAD_DIGEST, BufferPool, Framer
from .initiator_events import (
    AsyncMessageReceived,
    CommandFinished,
    InitiatorEvent,
    LoginFailed,
    LoginFinished,
    LogoutFinished,
    PingReturned,
    RequestRejected,
    TargetFailed,
    TaskManagementFinished,
    TextFinished,
)
from .initiator_login import InitiatorLogin, InitiatorSettings, LoginRefused
from .login import LOGIN_SEGMENT_LENGTH
from .pdu import (
    AsyncMessage,
    DataIn,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    ReadyToTransfer,
    Reject,
    ScsiCommand,
    ScsiResponse,
    TaskManagementRequest,
    TaskManagementResult,
    TextRequest,
    TextResponse,
    opcode_of,
)
from .requests import RequestWriter
from .responses import Buffer
from .text import Pairs, ProtocolError, TextAssembler, decode_pairs, encode_pairs

Header = tuple[memoryview, int]  # the receive buffer and where a header begins in it

CDB_IN_HEADER_LENGTH = 16
FRAMES_PER_ROUND = 256
_EXTENDED_CDB = Struct(">HBx")
_SENSE_LENGTH = Struct(">H")
_LOGIN_TAG = 0
# Bounds of what a target may say at once: the addresses of thousands of targets.
TEXT_LENGTH_MAXIMUM = 4 << 20
TEXT_PAIRS_MAXIMUM = 65536


class PendingCommand:
    """A SCSI command that has not ended. Lengths and offsets are bytes."""

    __slots__ = ("data_in", "data_out", "data_pdus", "header", "lun", "r2ts", "received")

    def __init__(self, header: ScsiCommand, data_out: memoryview, read_length: int) -> None:
        self.header = header
        self.lun = header.lun
        self.data_out = data_out
        self.data_in = bytearray(read_length)
        self.received = 0
        self.data_pdus = 0  # the next DataSN
        self.r2ts = 0  # the next R2TSN


class InitiatorConnection:
    """A connection, and with one connection a session, the session too."""

    def __init__(
        self,
        settings: InitiatorSettings,
        random_bytes: Callable[[int], bytes],
        pool: BufferPool | None = None,
    ) -> None:
        self.settings = settings
        self.login = InitiatorLogin(settings, random_bytes)
        self.parameters = self.login.parameters
        self.writer = RequestWriter(settings.first_cmd_sn, self.parameters)
        self.tsih = settings.tsih
        self.commands: dict[int, PendingCommand] = {}
        self._forgotten: set[int] = set()
        self.closed = False
        self._framer = Framer(pool or BufferPool(1 << 17, keep=1), LOGIN_SEGMENT_LENGTH)
        self._events: list[InitiatorEvent] = []
        self._first_response = True
        self._last_tag = _LOGIN_TAG
        self._text = TextAssembler()
        self._text_tag = RESERVED_TAG
        self._text_unsent = b""

    # Requests

    def begin(self) -> None:
        """Queue the first Login Request."""
        self._send_login(*self.login.begin())

    def command(
        self,
        lun: int,
        cdb: bytes,
        *,
        data_out: Buffer = b"",
        read_length: int = 0,
        attribute: int = 1,
        immediate: bool = False,
    ) -> int:
        """Queue a SCSI command and what unsolicited data the agreement allows; its task tag.

        `lun` is the eight-byte LUN as an integer; either `data_out` or `read_length` bytes of
        data-in are expected to move. `CommandFinished` tells the end.
        """
        assert not (len(data_out) and read_length), "bidirectional commands do not exist here"
        itt = self._next_tag()
        view = memoryview(data_out)
        inline, unsolicited_end = self._unsolicited(len(view))
        flags = attribute | (CommandFlag.WRITE if len(view) else 0)
        flags |= CommandFlag.READ if read_length else 0
        flags |= FINAL if unsolicited_end == inline else 0
        header = ScsiCommand(
            _opcode(Opcode.SCSI_COMMAND, immediate=immediate),
            flags,
            0,
            lun,
            itt,
            len(view) or read_length,
            cdb=cdb[:CDB_IN_HEADER_LENGTH].ljust(CDB_IN_HEADER_LENGTH, b"\0"),
        )
        self.commands[itt] = PendingCommand(header, view, read_length)
        rest = partial(self.writer.send_data, itt, view, inline, unsolicited_end)
        self.writer.request(header, view[:inline], _extended_cdb(cdb), rest)
        return itt

    def nop_out(self, data: Buffer = b"", *, immediate: bool = True) -> int:
        """Queue a ping; `PingReturned` answers it."""
        itt = self._next_tag()
        self.writer.request(NopOut(_opcode(Opcode.NOP_OUT, immediate=immediate), itt=itt), data)
        return itt

    def text(self, pairs: Pairs) -> int:
        """Queue a Text Request, over as many PDUs as it takes; `TextFinished` answers it."""
        self._text_tag = self._next_tag()
        self._text = TextAssembler(TEXT_LENGTH_MAXIMUM)
        self._text_unsent = encode_pairs(pairs)
        self._send_text(RESERVED_TAG)
        return self._text_tag

    def send_targets(self, what: str = "All") -> int:
        """Ask for targets and their addresses (appendix C)."""
        return self.text([("SendTargets", what)])

    def task_management(
        self,
        function: TaskManagement,
        lun: int = 0,
        referenced_task_tag: int = RESERVED_TAG,
        ref_cmd_sn: int | None = None,
        *,
        immediate: bool = True,
    ) -> int:
        """Queue a task management request; `TaskManagementFinished` answers it.

        `ref_cmd_sn` None: that of the referenced command, where it has not ended (section 11.5.5).
        """
        if ref_cmd_sn is None:
            referenced = self.commands.get(referenced_task_tag)
            ref_cmd_sn = referenced.header.cmd_sn if referenced else 0
        itt = self._next_tag()
        opcode = _opcode(Opcode.TASK_MANAGEMENT_REQUEST, immediate=immediate)
        flags = FINAL | function
        request = TaskManagementRequest(opcode, flags, 0, lun, itt, referenced_task_tag)
        request.ref_cmd_sn = ref_cmd_sn
        self.writer.request(request)
        return itt

    def logout(self, reason: LogoutReason = LogoutReason.CLOSE_SESSION) -> int:
        """Queue a Logout Request for this connection; `LogoutFinished` answers it."""
        itt = self._next_tag()
        opcode = _opcode(Opcode.LOGOUT_REQUEST, immediate=True)
        cid = 0 if reason is LogoutReason.CLOSE_SESSION else self.settings.cid
        self.writer.request(LogoutRequest(opcode, FINAL | reason, 0, itt, cid))
        return itt

    def forget(self, itt: int) -> None:
        """Expect no end of this command any more: a task management request has ended it.

        If the target's window still holds it back, it is never sent. What a target sends for it
        all the same is passed over, unless `strict`.
        """
        if self.commands.pop(itt, None) is not None:
            self.writer.withdraw(itt)
            if not self.settings.strict:
                self._forgotten.add(itt)

    def take_outgoing(self) -> list[Buffer]:
        """What is to be sent, in order; the connection forgets it."""
        outgoing, self.writer.outgoing = self.writer.outgoing, []
        return outgoing

    def _next_tag(self) -> int:
        self._last_tag = (self._last_tag + 1) % RESERVED_TAG
        return self._last_tag

    def _unsolicited(self, expected: int) -> tuple[int, int]:
        """Where immediate data ends, and where all unsolicited data does (section 4.2.5.2)."""
        agreed = self.parameters
        burst = min(expected, agreed.first_burst_length)
        inline = min(burst, agreed.max_send_data_segment_length) if agreed.immediate_data else 0
        return inline, inline if agreed.initial_r2t else burst

    def _send_text(self, ttt: int) -> None:
        length = self.parameters.max_send_data_segment_length
        part, self._text_unsent = self._text_unsent[:length], self._text_unsent[length:]
        flags = CONTINUE if self._text_unsent else FINAL
        self.writer.request(
            TextRequest(Opcode.TEXT_REQUEST, flags, itt=self._text_tag, ttt=ttt), part
        )

    def _send_login(self, flags: int, data: bytes) -> None:
        settings = self.settings
        header = LoginRequest(
            flags=flags,
            lengths=len(data),
            isid=settings.isid,
            tsih=settings.tsih,
            itt=_LOGIN_TAG,
            cid=settings.cid,
            cmd_sn=self.writer.cmd_sn,
            exp_stat_sn=self.writer.exp_stat_sn,
        )
        self.writer.queue(header, data)

    # Answers

    def receive(self, data: Buffer) -> list[InitiatorEvent]:
        """The events of bytes that came, copied into the connection's own buffer."""
        events: list[InitiatorEvent] = []
        view = memoryview(data)
        while len(view) and not self.closed:
            room = self.writable()
            length = min(len(room), len(view))
            room[:length] = view[:length]
            events += self.received(length)
            view = view[length:]
        return events

    def writable(self) -> memoryview:
        """Where the next bytes go."""
        return self._framer.writable()

    def received(self, length: int) -> list[InitiatorEvent]:
        """The events of `length` bytes that now stand in what `writable` gave."""
        framer = self._framer
        framer.received(length)
        try:
            while frames := framer.frames(FRAMES_PER_ROUND if self.login.done else 1):
                for position, data, _ in frames:
                    self._dispatch((framer.memory, position), data)
            if framer.broken is not None:
                raise framer.broken
        except ProtocolError as error:
            self._fail(error)
        framer.settle()
        events, self._events = self._events, []
        return events

    def _fail(self, error: ProtocolError) -> None:
        self.closed = True
        if isinstance(error, LoginRefused):
            self._events.append(LoginFailed(error.status_code, error.target_address))
        else:
            self._events.append(TargetFailed(error))

    def _dispatch(self, header: Header, data: memoryview | None) -> None:
        if data is BAD_DIGEST:
            raise ProtocolError("data digest error")
        opcode = opcode_of(*header)
        table = _FULL_FEATURE if self.login.done else _LOGIN
        handler = table.get(opcode)
        if handler is None:
            raise ProtocolError(f"opcode {opcode:02x}h is not expected here")
        handler(self, header, data if data is not None else _NO_DATA)

    def _on_login(self, header: Header, data: memoryview) -> None:
        response = LoginResponse.unpack(*header)
        if not response.status and self._first_response:
            self._first_response = False
            self.writer.exp_stat_sn = response.stat_sn
        if not response.status:
            self.writer.account(response)
        following = self.login.receive(response, bytes(data))
        if following is not None:
            self._send_login(*following)
            return
        self.tsih = response.tsih
        self.writer.digests = True
        self._framer.max_segment_length = self.parameters.max_recv_data_segment_length
        self._framer.header_digest = self.parameters.header_digest
        self._framer.data_digest = self.parameters.data_digest
        self._events.append(LoginFinished(self.tsih, self.parameters, self.login.declared))

    def _command_of(self, itt: int) -> PendingCommand | None:
        """The command of a tag; None where it is forgotten."""
        pending = self.commands.get(itt)
        if pending is None and itt not in self._forgotten:
            raise ProtocolError(f"no command has task tag {itt:08x}h")
        return pending

    def _on_data_in(self, header: Header, data: memoryview) -> None:
        pdu = DataIn.unpack(*header)
        pending = self._command_of(pdu.itt)
        if pending is None:
            self._pass_over(pdu)
            return
        if pdu.data_sn != pending.data_pdus:
            raise ProtocolError("DataSN out of sequence")
        end = pdu.buffer_offset + len(data)
        if pdu.buffer_offset != pending.received or end > len(pending.data_in):
            raise ProtocolError("Data-In out of order or beyond the expected length")
        pending.data_in[pdu.buffer_offset : end] = data
        pending.received = end
        pending.data_pdus += 1
        if not pdu.flags & DataInFlag.STATUS:
            self.writer.move_window(pdu.exp_cmd_sn, pdu.max_cmd_sn)
            return
        if not pdu.flags & FINAL:
            raise ProtocolError("status in a Data-In without F")
        self.writer.account(pdu)
        self._finish(pdu.itt, 0, pdu.status, b"", _residual(pdu.flags, pdu.residual))

    def _pass_over(self, pdu: DataIn) -> None:
        if pdu.flags & DataInFlag.STATUS:
            self.writer.account(pdu)
        else:
            self.writer.move_window(pdu.exp_cmd_sn, pdu.max_cmd_sn)

    def _on_scsi_response(self, header: Header, data: memoryview) -> None:
        pdu = ScsiResponse.unpack(*header)
        pending = self._command_of(pdu.itt)
        self.writer.account(pdu)
        if pending is None:
            return
        counted = pdu.exp_data_sn == pending.data_pdus + pending.r2ts
        if self.settings.strict and not pdu.response and not counted:
            raise ProtocolError("ExpDataSN is not the number of Data-In and R2T PDUs")
        sense = b""
        if len(data) >= _SENSE_LENGTH.size:
            (length,) = _SENSE_LENGTH.unpack_from(data)
            sense = bytes(data[_SENSE_LENGTH.size : _SENSE_LENGTH.size + length])
        residual = _residual(pdu.flags, pdu.residual)
        self._finish(pdu.itt, pdu.response, pdu.status, sense, residual)

    def _finish(self, itt: int, response: int, status: int, sense: bytes, residual: int) -> None:
        pending = self.commands.pop(itt)
        data = memoryview(pending.data_in)[: pending.received]
        self._events.append(CommandFinished(itt, response, status, data, sense, residual))

    def _on_r2t(self, header: Header, data: memoryview) -> None:
        pdu = ReadyToTransfer.unpack(*header)
        pending = self._command_of(pdu.itt)
        self.writer.account(pdu, counts=False)
        if pending is None:
            return
        end = pdu.buffer_offset + pdu.desired_length
        if pdu.r2t_sn != pending.r2ts or pdu.ttt == RESERVED_TAG:
            raise ProtocolError("R2TSN out of sequence, or no Target Transfer Tag")
        if not 0 < pdu.desired_length <= self.parameters.max_burst_length:
            raise ProtocolError("Desired Data Transfer Length is 0 or above MaxBurstLength")
        if end > len(pending.data_out):
            raise ProtocolError("R2T beyond the command's data")
        pending.r2ts += 1
        self.writer.send_data(
            pdu.itt, pending.data_out, pdu.buffer_offset, end, pending.lun, pdu.ttt
        )

    def _on_nop_in(self, header: Header, data: memoryview) -> None:
        pdu = NopIn.unpack(*header)
        self.writer.account(pdu, counts=pdu.itt != RESERVED_TAG)
        if pdu.itt != RESERVED_TAG:
            self._events.append(PingReturned(pdu.itt, bytes(data)))
        if pdu.ttt != RESERVED_TAG:
            opcode = _opcode(Opcode.NOP_OUT, immediate=True)
            self.writer.request(NopOut(opcode, lun=pdu.lun, ttt=pdu.ttt), bytes(data))

    def _on_text(self, header: Header, data: memoryview) -> None:
        pdu = TextResponse.unpack(*header)
        self.writer.account(pdu)
        if pdu.itt != self._text_tag:
            raise ProtocolError("a Text Response that nothing asked for")
        final = bool(pdu.flags & FINAL)
        if final is not (pdu.ttt == RESERVED_TAG) or (final and pdu.flags & CONTINUE):
            raise ProtocolError("F, C and Target Transfer Tag do not fit together")
        if self._text_unsent and len(data):
            raise ProtocolError("the target answered a request that had the C bit set")
        whole = self._text.add(data, more=not final)
        if whole is None:
            self._send_text(pdu.ttt)
            return
        self._text_tag = RESERVED_TAG
        self._events.append(TextFinished(pdu.itt, decode_pairs(whole, TEXT_PAIRS_MAXIMUM)))

    def _on_task_management(self, header: Header, data: memoryview) -> None:
        pdu = TaskManagementResult.unpack(*header)
        self.writer.account(pdu)
        self._events.append(TaskManagementFinished(pdu.itt, pdu.response))

    def _on_logout(self, header: Header, data: memoryview) -> None:
        pdu = LogoutResponse.unpack(*header)
        self.writer.account(pdu)
        self.closed = not pdu.response
        waits = pdu.time2wait_s, pdu.time2retain_s
        self._events.append(LogoutFinished(pdu.itt, pdu.response, *waits))

    def _on_async(self, header: Header, data: memoryview) -> None:
        pdu = AsyncMessage.unpack(*header)
        self.writer.account(pdu)
        parameters = pdu.parameter1, pdu.parameter2, pdu.parameter3
        self._events.append(AsyncMessageReceived(pdu.event, pdu.lun, parameters, bytes(data)))

    def _on_reject(self, header: Header, data: memoryview) -> None:
        pdu = Reject.unpack(*header)
        self.writer.account(pdu)
        if len(data) < BHS_LENGTH:
            raise ProtocolError("a Reject without the header that is rejected")
        rejected = NopOut.unpack(data)
        if opcode_of(data) == Opcode.SCSI_COMMAND:
            self.commands.pop(rejected.itt, None)
        self._events.append(RequestRejected(pdu.reason, rejected.itt, bytes(data)))


_NO_DATA = memoryview(b"")


def _opcode(opcode: Opcode, *, immediate: bool) -> int:
    return opcode | IMMEDIATE if immediate else opcode


def _extended_cdb(cdb: bytes) -> bytes:
    """The Extended CDB AHS of a CDB above 16 bytes, padded (section 11.2.2.3)."""
    rest = cdb[CDB_IN_HEADER_LENGTH:]
    if not rest:
        return b""
    head = _EXTENDED_CDB.pack(len(rest) + 1, AhsType.EXTENDED_CDB)
    return head + rest + bytes(-len(rest) % 4)


def _residual(flags: int, count: int) -> int:
    """Positive for an overflow, negative for an underflow (section 11.4.5)."""
    if flags & DataInFlag.OVERFLOW and flags & DataInFlag.UNDERFLOW:
        raise ProtocolError("overflow and underflow at once")
    if flags & DataInFlag.OVERFLOW:
        return count
    if flags & DataInFlag.UNDERFLOW:
        return -count
    if count:
        raise ProtocolError("a residual count without its flag")
    return 0


Handler = Callable[[InitiatorConnection, Header, memoryview], None]

_LOGIN: Mapping[int, Handler] = {Opcode.LOGIN_RESPONSE: InitiatorConnection._on_login}
_FULL_FEATURE: Mapping[int, Handler] = {
    Opcode.NOP_IN: InitiatorConnection._on_nop_in,
    Opcode.SCSI_RESPONSE: InitiatorConnection._on_scsi_response,
    Opcode.TASK_MANAGEMENT_RESPONSE: InitiatorConnection._on_task_management,
    Opcode.TEXT_RESPONSE: InitiatorConnection._on_text,
    Opcode.DATA_IN: InitiatorConnection._on_data_in,
    Opcode.LOGOUT_RESPONSE: InitiatorConnection._on_logout,
    Opcode.R2T: InitiatorConnection._on_r2t,
    Opcode.ASYNC_MESSAGE: InitiatorConnection._on_async,
    Opcode.REJECT: InitiatorConnection._on_reject,
}
