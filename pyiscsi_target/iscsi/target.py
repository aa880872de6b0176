"""One connection on the target's side: bytes in, events out, answers to buffers (RFC 7143).

A round is `writable`, `receive`, the owner's handling of the events, `settle`; what is to be sent
collects in `outgoing`. The phase decides which PDUs are read at all (the tables at the end).
No I/O, no clock, no SCSI: the owner executes commands and says when a ping or a logout is due.
"""

from collections.abc import Callable, Mapping
from functools import partial

from .constants import (
    BHS_LENGTH,
    CONTINUE,
    FINAL,
    IMMEDIATE,
    OPCODE_MASK,
    RESERVED_TAG,
    SERIAL_MASK,
    TRANSIT,
    AhsType,
    AsyncEvent,
    CommandFlag,
    LoginStatus,
    LogoutReason,
    LogoutResponseCode,
    Opcode,
    RejectReason,
    TaskManagement,
    TaskManagementResponse,
)
from .events import (
    ConnectionFailed,
    Event,
    LoggedOut,
    LoginFailed,
    PingAnswered,
    SessionRequested,
    TaskManagementRequested,
    TransferRequested,
)
from .framing import BAD_DIGEST, BufferPool, Framer
from .login import LOGIN_SEGMENT_LENGTH, Agreement, LoginPolicy, Reply, TargetLogin
from .pdu import (
    AsyncMessage,
    DataOut,
    LoginRequest,
    LoginResponse,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Reject,
    ScsiCommand,
    TaskManagementRequest,
    TaskManagementResult,
    TextRequest,
)
from .responses import Buffer, ResponseWriter
from .session import CommandWindow, serial_distance
from .text import ProtocolError
from .text_exchange import TextExchange
from .transfer import (
    INCORRECT_AMOUNT_OF_DATA,
    INVALID_FIELD_IN_COMMAND_IU,
    PROTOCOL_SERVICE_CRC_ERROR,
    UNEXPECTED_UNSOLICITED_DATA,
    Command,
    Transfer,
    TransferQueue,
)

CHECK_CONDITION = 0x02  # the SCSI status that the transport's own errors carry
LOGIN_REQUESTS_MAX = 64  # of one login: more is a peer that goes round in circles
ALL_FRAMES = 1 << 30

_READ = int(CommandFlag.READ)
_WRITE = int(CommandFlag.WRITE)
_SCSI_COMMAND = int(Opcode.SCSI_COMMAND)
_unpack_command = ScsiCommand.LAYOUT.unpack_from
_unpack_data_out = DataOut.LAYOUT.unpack_from


class TargetConnection:
    """The engine of one connection and, with one connection a session, of its session."""

    def __init__(
        self,
        policy: LoginPolicy,
        random_bytes: Callable[[int], bytes],
        pool: BufferPool,
        queue_depth: int = 128,
    ) -> None:
        self._policy = policy
        self._framer = Framer(pool, LOGIN_SEGMENT_LENGTH)
        self._login = TargetLogin(policy, random_bytes)
        self._login_requests = 0
        self._final_login: tuple[LoginRequest, Reply] | None = None
        self._queue_depth = queue_depth
        self._writer = ResponseWriter(int.from_bytes(random_bytes(4), "big"))
        self._readers: Mapping[int, _Reader] = self.LOGIN_READERS
        self._frame_limit = 1
        self._events: list[Event] = []
        self._commands: dict[int, Command] = {}
        self._transfers = TransferQueue()
        self._text: TextExchange | None = None
        self._ping_ttt = RESERVED_TAG
        self.agreement: Agreement | None = None
        self.acknowledged_stat_sn = 0
        self.closing = False
        self.outgoing = self._writer.outgoing
        self.writable = self._framer.writable
        self.settle = self._framer.settle

    # Receiving

    def receive(self, length: int) -> list[Event]:
        """Take in `length` bytes that stand where `writable` said; what they mean, in order."""
        events: list[Event] = []
        self._events = events
        framer = self._framer
        framer.received(length)
        while frames := framer.frames(self._frame_limit):
            memory = framer.memory
            for position, data, ahs in frames:
                reader = self._readers[memory[position] & OPCODE_MASK]
                try:
                    reader(self, position, data, ahs)
                except ProtocolError as error:
                    self._fail(error, position)
                if self.closing:
                    return events
        if framer.broken is not None:
            self._fail(framer.broken, None)
        return events

    def _fail(self, error: ProtocolError, position: int | None) -> None:
        """The peer broke the protocol: answer as the phase wants, then end the connection."""
        if self._readers is self.LOGIN_READERS:
            self._refuse_login(error, position)
            return
        if position is not None:
            self._reject(error.reason, position)
        self.closing = True
        self._events.append(ConnectionFailed(error))

    def _reject(self, reason: RejectReason, position: int) -> None:
        """Reject one PDU by its header and go on (section 11.17)."""
        header = bytes(self._framer.memory[position : position + BHS_LENGTH])
        self._writer.queue(Reject(reason=reason, stat_sn=self._writer.next_stat_sn()), header)

    def _refuse_unreadable(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        self._reject(RejectReason.COMMAND_NOT_SUPPORTED, position)

    def _intact(self, data: memoryview | None, position: int) -> bool:
        """Reject a PDU whose data digest was wrong; it counts as not received (section 7.8)."""
        if data is BAD_DIGEST:
            self._reject(RejectReason.DATA_DIGEST_ERROR, position)
            return False
        return True

    def _in_order(self, opcode: int, cmd_sn: int, action: Callable[[], None]) -> None:
        """Run `action` when its CmdSN is due; at once if it is immediate (section 4.2.2.1)."""
        if opcode & IMMEDIATE:
            action()
        else:
            self._writer.window.deliver(cmd_sn, action)

    # Login

    def _read_login(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        request = LoginRequest.unpack(self._framer.memory, position)
        self._login_requests += 1
        if self._login_requests > LOGIN_REQUESTS_MAX or self._final_login is not None:
            raise ProtocolError("too many login requests")
        if self._login_requests == 1:
            self._writer.window = CommandWindow(request.cmd_sn, self._queue_depth)
        reply = self._login.receive(request, bytes(data) if data is not None else b"")
        if not reply.agreed:
            self._send_login_response(request, reply.flags, reply.data)
            return
        assert self._login.agreement is not None
        self._final_login = request, reply
        self._events.append(SessionRequested(self._login.agreement))

    def _read_stray_pdu(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        if self._login_requests == 0:  # not an iSCSI initiator: no answer (section 6.3)
            self.closing = True
            self._events.append(ConnectionFailed(ProtocolError("the first PDU is no login")))
            return
        raise ProtocolError("not a login request", status=LoginStatus.INVALID_DURING_LOGIN)

    def _send_login_response(
        self, request: LoginRequest, flags: int, data: bytes = b"", status: int = 0, tsih: int = 0
    ) -> None:
        response = LoginResponse(
            flags=flags,
            isid=request.isid,
            tsih=tsih or request.tsih,
            itt=request.itt,
            stat_sn=self._writer.next_stat_sn(),
            status=status,
        )
        self._writer.queue(response, data)

    def _refuse_login(self, error: ProtocolError, position: int | None) -> None:
        if position is not None and self._login_requests:
            request = LoginRequest.unpack(self._framer.memory, position)
            self._send_login_response(request, request.flags & 0x0C, status=error.status)
        self.closing = True
        self._events.append(LoginFailed(self._login.initiator_name, error))

    def accept_session(self, tsih: int) -> None:
        """The server opened the session: send the last Login Response, begin full feature."""
        assert self._final_login is not None
        assert self._login.agreement is not None
        request, reply = self._final_login
        self.agreement = agreement = self._login.agreement
        assert reply.flags & TRANSIT
        self._send_login_response(request, reply.flags, reply.data, tsih=tsih)
        parameters = agreement.parameters
        self._framer.max_segment_length = parameters.max_recv_data_segment_length
        self._framer.header_digest = self._writer.header_digest = parameters.header_digest
        self._framer.data_digest = self._writer.data_digest = parameters.data_digest
        self._writer.limit_lengths(
            parameters.max_send_data_segment_length, parameters.max_burst_length
        )
        self._text = TextExchange(self._policy, agreement, self._writer)
        self._readers = self.DISCOVERY_READERS if agreement.discovery else self.NORMAL_READERS
        self._frame_limit = ALL_FRAMES

    def refuse_session(self, error: ProtocolError) -> LoginFailed:
        """The server did not open the session: say why and end the connection."""
        assert self._final_login is not None
        request, _ = self._final_login
        self._send_login_response(request, request.flags & 0x0C, status=error.status)
        self.closing = True
        return LoginFailed(self._login.initiator_name, error)

    # SCSI commands and their data

    def _read_command(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        opcode, flags, lengths, lun, itt, expected_length, cmd_sn, exp_stat_sn, cdb = (
            _unpack_command(self._framer.memory, position)
        )
        self.acknowledged_stat_sn = exp_stat_sn
        command = Command(itt, lun, cdb, flags, expected_length, cmd_sn)
        window = self._writer.window
        if (
            opcode == _SCSI_COMMAND
            and not lengths
            and not flags & _WRITE
            and cmd_sn == window.expected
            and cmd_sn != window.limit
            and not window.early
            and itt not in self._commands
        ):
            window.expected = (cmd_sn + 1) & SERIAL_MASK
            self._events.append(command)
            return
        self._read_other_command(command, opcode, position, data, ahs)

    def _read_other_command(
        self,
        command: Command,
        opcode: int,
        position: int,
        data: memoryview | None,
        ahs: bytes,
    ) -> None:
        """A command with data, AHS or the I bit, or one that is not the next of the window."""
        if not self._intact(data, position):
            return
        if opcode & IMMEDIATE:
            command.credit = 0
        elif not self._writer.window.admits(command.cmd_sn):
            return
        if command.itt in self._commands or command.itt == RESERVED_TAG:
            self._reject(RejectReason.TASK_IN_PROGRESS, position)
            return
        if ahs:
            command.cdb += _extended_cdb(ahs)
        refusal = self._accept_data(command, data)
        early = not opcode & IMMEDIATE and command.cmd_sn != self._writer.window.expected
        if early:
            command.data = [bytes(piece) for piece in command.data]
        registered = command.transfer is not None or early
        if registered:
            self._commands[command.itt] = command
        self._in_order(
            opcode, command.cmd_sn, partial(self._deliver_command, command, refusal, registered)
        )

    def _accept_data(self, command: Command, data: memoryview | None) -> bytes:
        """Take immediate data and see what is still to come; sense data if it is refused."""
        flags, expected = command.flags, command.expected_length
        length = len(data) if data is not None else 0
        if not flags & _WRITE:
            return UNEXPECTED_UNSOLICITED_DATA if length else b""
        if flags & _READ:
            return INVALID_FIELD_IN_COMMAND_IU  # bidirectional commands do not exist here
        assert self.agreement is not None
        parameters = self.agreement.parameters
        more_follows = not flags & FINAL
        if (length and not parameters.immediate_data) or (more_follows and parameters.initial_r2t):
            return UNEXPECTED_UNSOLICITED_DATA
        if length > expected or length > parameters.first_burst_length:
            return INCORRECT_AMOUNT_OF_DATA
        if data is not None:
            command.data.append(data)
        if length < expected:
            command.data = [bytes(piece) for piece in command.data]
            unsolicited_end = min(expected, parameters.first_burst_length) if more_follows else 0
            command.transfer = Transfer(length, unsolicited_end)
        return b""

    def _deliver_command(self, command: Command, refusal: bytes, registered: bool) -> None:
        if registered and self._commands.get(command.itt) is not command:
            return  # aborted while it waited for its turn
        if refusal:
            self.respond(command, CHECK_CONDITION, sense=refusal, data_out_length=0)
        elif command.transfer is not None:
            self._events.append(TransferRequested(command))
        else:
            self._commands.pop(command.itt, None)
            self._events.append(command)

    def solicit(self, command: Command, wanted: int) -> Command | None:
        """Ask for the data of a command up to `wanted` bytes; the command if it is all here."""
        transfer = command.transfer
        assert transfer is not None
        transfer.wanted = min(wanted, command.expected_length)
        if transfer.complete:
            del self._commands[command.itt]
            return command
        self._transfers.add(command)
        self._send_r2ts()
        return None

    def _send_r2ts(self) -> None:
        assert self.agreement is not None
        for r2t in self._transfers.due(self.agreement.parameters):
            r2t.stat_sn = self._writer.stat_sn
            self._writer.queue(r2t)

    def _read_data_out(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        _, flags, lengths, _, itt, ttt, exp_stat_sn, data_sn, offset = _unpack_data_out(
            self._framer.memory, position
        )
        self.acknowledged_stat_sn = exp_stat_sn
        length = lengths & 0xFFFFFF
        command = self._commands.get(itt)
        if command is None or command.transfer is None:
            return  # of a command that was answered or aborted meanwhile
        transfer = command.transfer
        if data is BAD_DIGEST:
            self._reject(RejectReason.DATA_DIGEST_ERROR, position)
            self.respond(command, CHECK_CONDITION, sense=PROTOCOL_SERVICE_CRC_ERROR)
            return
        transfer.receive(ttt, flags, data_sn, offset, length)
        if ttt != RESERVED_TAG:
            self._transfers.arrived(length)
        if data is not None:
            command.data.append(bytes(data))
        if transfer.complete:
            del self._commands[itt]
            self._events.append(command)
        elif transfer.wanted is not None and flags & FINAL:
            self._transfers.add(command)
        self._send_r2ts()

    def defer(self, command: Command) -> None:
        """The command's answer will come in a later round: its tag stays in use."""
        self._commands[command.itt] = command

    def respond(
        self,
        command: Command,
        status: int,
        data: Buffer | None = None,
        sense: bytes = b"",
        data_out_length: int | None = None,
    ) -> None:
        """Answer a command whose tag is in use, or end its transfer early."""
        self._commands.pop(command.itt, None)
        self._transfers.remove(command)
        self._writer.respond(command, status, data, sense, data_out_length)

    @property
    def respond_now(self) -> Callable[..., None]:
        """`respond` for a command that was complete on arrival and answered in its round."""
        return self._writer.respond

    def drop(self, command: Command) -> None:
        """End an aborted command without an answer; what still comes for it is discarded."""
        if self._commands.pop(command.itt, None) is not None:
            self._writer.window.complete(command.credit)
        self._transfers.remove(command)

    def command_of(self, itt: int) -> Command | None:
        """The unanswered command with this tag."""
        return self._commands.get(itt)

    # Task management, NOP, text, logout

    def _read_task_management(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        request = TaskManagementRequest.unpack(self._framer.memory, position)
        self._in_order(request.opcode, request.cmd_sn, partial(self._manage, request))

    def _manage(self, request: TaskManagementRequest) -> None:
        """What the transport can answer itself (section 11.5, RFC 7144); the rest is an event."""
        assert self.agreement is not None
        function = request.flags & 0x7F
        requested = TaskManagementRequested(
            request.itt,
            function,
            request.lun,
            request.referenced_task_tag,
            0 if request.opcode & IMMEDIATE else 1,
        )
        window = self._writer.window
        answer: TaskManagementResponse | None = None
        if function == TaskManagement.TASK_REASSIGN:
            answer = TaskManagementResponse.ALLEGIANCE_REASSIGNMENT_NOT_SUPPORTED
        elif function >= TaskManagement.QUERY_TASK and self.agreement.parameters.protocol_level < 2:
            answer = TaskManagementResponse.NOT_SUPPORTED
        elif (
            function == TaskManagement.ABORT_TASK
            and request.referenced_task_tag not in self._commands
            and serial_distance(request.cmd_sn, request.ref_cmd_sn) < 1 << 31
            and request.ref_cmd_sn != request.cmd_sn
            and window.admits(request.ref_cmd_sn)
        ):
            window.deliver(request.ref_cmd_sn, _nothing)  # it counts as received: 11.5.1
            answer = TaskManagementResponse.FUNCTION_COMPLETE
        if answer is None:
            self._events.append(requested)
        else:
            self.task_management_response(requested, answer)

    def task_management_response(self, request: TaskManagementRequested, response: int) -> None:
        """Answer a task management request."""
        self._writer.window.complete(request.credit)
        self._writer.queue(
            TaskManagementResult(
                response=response, itt=request.itt, stat_sn=self._writer.next_stat_sn()
            )
        )

    def _read_nop_out(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        request = NopOut.unpack(self._framer.memory, position)
        if not self._intact(data, position):
            return
        if request.itt != RESERVED_TAG:
            echo = bytes(data) if data is not None else b""
            self._in_order(request.opcode, request.cmd_sn, partial(self._echo, request, echo))
        elif not request.opcode & IMMEDIATE:
            raise ProtocolError("NOP-Out without a tag must be immediate")  # section 11.18
        elif request.ttt == self._ping_ttt != RESERVED_TAG:
            self._ping_ttt = RESERVED_TAG
            self._events.append(PingAnswered())

    def _echo(self, request: NopOut, data: bytes) -> None:
        if not request.opcode & IMMEDIATE:
            self._writer.window.complete(1)
        response = NopIn(lun=request.lun, itt=request.itt, stat_sn=self._writer.next_stat_sn())
        self._writer.queue(response, data[: self._writer.max_segment_length])

    def ping(self) -> bool:
        """Ask whether the initiator is there; False if the last ping is still unanswered."""
        if self._ping_ttt != RESERVED_TAG:
            return False
        self._ping_ttt = self._transfers.new_ttt()
        self._writer.queue(NopIn(ttt=self._ping_ttt, stat_sn=self._writer.stat_sn))
        return True

    def _read_text(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        request = TextRequest.unpack(self._framer.memory, position)
        if not self._intact(data, position):
            return
        text = bytes(data) if data is not None else b""
        header = bytes(self._framer.memory[position : position + BHS_LENGTH])
        self._in_order(
            request.opcode, request.cmd_sn, partial(self._exchange_text, request, text, header)
        )

    def _exchange_text(self, request: TextRequest, text: bytes, header: bytes) -> None:
        assert self._text is not None
        if not request.opcode & IMMEDIATE:
            self._writer.window.complete(1)
        if request.flags & FINAL and request.flags & CONTINUE:
            raise ProtocolError("F and C are both set")
        try:
            self._text.receive(request, text)
        except ProtocolError as error:
            self._writer.queue(
                Reject(reason=error.reason, stat_sn=self._writer.next_stat_sn()), header
            )

    def _read_logout(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        request = LogoutRequest.unpack(self._framer.memory, position)
        self._in_order(request.opcode, request.cmd_sn, partial(self._log_out, request))

    def _log_out(self, request: LogoutRequest) -> None:
        """Sections 11.14 and 11.15; at error recovery level 0 nothing can be recovered."""
        assert self.agreement is not None
        reason = request.flags & 0x7F
        if not request.opcode & IMMEDIATE:
            self._writer.window.complete(1)
        code = LogoutResponseCode.CLOSED
        if reason == LogoutReason.REMOVE_CONNECTION_FOR_RECOVERY:
            code = LogoutResponseCode.RECOVERY_NOT_SUPPORTED
        elif reason == LogoutReason.CLOSE_CONNECTION and request.cid != self.agreement.cid:
            code = LogoutResponseCode.CID_NOT_FOUND
        elif reason > LogoutReason.REMOVE_CONNECTION_FOR_RECOVERY:
            raise ProtocolError("unknown logout reason", RejectReason.INVALID_PDU_FIELD)
        response = LogoutResponse(
            response=code,
            itt=request.itt,
            stat_sn=self._writer.next_stat_sn(),
            time2wait_s=self.agreement.parameters.default_time2wait_s,
        )
        self._writer.queue(response)
        if code == LogoutResponseCode.CLOSED:
            self.closing = True
            self._events.append(LoggedOut(LogoutReason(reason)))

    def request_logout(self, within_s: int) -> None:
        """Ask the initiator to log out (Async Message event 1, section 11.9.1)."""
        message = AsyncMessage(
            event=AsyncEvent.LOGOUT_REQUESTED,
            parameter3=within_s,
            stat_sn=self._writer.next_stat_sn(),
        )
        self._writer.queue(message)

    def announce_drop(self) -> None:
        """Say that the connection is about to be dropped (Async Message event 2)."""
        assert self.agreement is not None
        message = AsyncMessage(
            event=AsyncEvent.CONNECTION_DROPPED,
            parameter1=self.agreement.cid,
            parameter2=self.agreement.parameters.default_time2wait_s,
            stat_sn=self._writer.next_stat_sn(),
        )
        self._writer.queue(message)

    # Which PDUs each phase reads. Everything else a phase names is refused by its own row.

    LOGIN_READERS: Mapping[int, "_Reader"] = {
        **dict.fromkeys(range(OPCODE_MASK + 1), _read_stray_pdu),
        Opcode.LOGIN_REQUEST: _read_login,
    }
    DISCOVERY_READERS: Mapping[int, "_Reader"] = {
        **dict.fromkeys(range(OPCODE_MASK + 1), _refuse_unreadable),
        Opcode.TEXT_REQUEST: _read_text,
        Opcode.LOGOUT_REQUEST: _read_logout,
        Opcode.NOP_OUT: _read_nop_out,
    }
    NORMAL_READERS: Mapping[int, "_Reader"] = {
        **DISCOVERY_READERS,
        Opcode.SCSI_COMMAND: _read_command,
        Opcode.DATA_OUT: _read_data_out,
        Opcode.TASK_MANAGEMENT_REQUEST: _read_task_management,
    }


_Reader = Callable[[TargetConnection, int, memoryview | None, bytes], None]


def _nothing() -> None:
    """What a CmdSN that counts as received does."""


def _extended_cdb(ahs: bytes) -> bytes:
    """What additional header segments add to the CDB (section 11.2.2). Raises ProtocolError."""
    offset, extension = 0, b""
    while offset < len(ahs):
        length = int.from_bytes(ahs[offset : offset + 2], "big")
        if offset + 3 + length > len(ahs) or length < 1:
            raise ProtocolError("AHS outside its header", RejectReason.INVALID_PDU_FIELD)
        if ahs[offset + 2] == AhsType.EXTENDED_CDB:
            extension += ahs[offset + 4 : offset + 3 + length]
        offset += (3 + length + 3) & ~3
    return extension
