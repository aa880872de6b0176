"""One connection on the target's side: bytes in, events out, answers to buffers (RFC 7143).

A round is `writable`, `receive`, the owner's handling of the events, `settle`; what is to be sent
collects in `outgoing`. The phase decides which PDUs are read at all (the tables at the end).
No I/O, no clock, no SCSI: the owner executes commands and says when a ping or a logout is due.
"""

from collections.abc import Callable, Mapping
from functools import partial

from .constants import (
    BHS_LENGTH,
    FINAL,
    IMMEDIATE,
    OPCODE_MASK,
    RESERVED_TAG,
    SERIAL_MASK,
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
    LoginFailed,
    LogoutRequested,
    PingAnswered,
    SessionRequested,
    TaskManagementRequested,
    TransferFailed,
    TransferRequested,
)
from .framing import BAD_DIGEST, BufferPool, Framer
from .login import LOGIN_SEGMENT_LENGTH, Agreement, LoginPolicy
from .login_phase import LoginPhase
from .pdu import (
    AsyncMessage,
    DataOut,
    LoginRequest,
    LogoutRequest,
    LogoutResponse,
    NopIn,
    NopOut,
    Reject,
    ScsiCommand,
    TaskManagementRequest,
    TaskManagementResult,
    TextRequest,
    data_segment_length,
)
from .responses import Buffer, ResponseWriter
from .session import serial_distance
from .text import ProtocolError
from .text_exchange import TextExchange
from .transfer import (
    PROTOCOL_SERVICE_CRC_ERROR,
    UNEXPECTED_UNSOLICITED_DATA,
    Command,
    Transfer,
    TransferQueue,
    extended_cdb,
    refuse_data,
)

CHECK_CONDITION = 0x02  # the SCSI status that the transport's own errors carry
ALL_FRAMES = 1 << 30
IMMEDIATE_MAX = 32  # immediate commands that may be outstanding: the window does not bound them

_READ = int(CommandFlag.READ)
_WRITE = int(CommandFlag.WRITE)
_DIRECTION_AND_FINAL = _READ | _WRITE | FINAL
_WRITE_AND_FINAL = _WRITE | FINAL
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
    ) -> None:
        self._policy = policy
        self._framer = Framer(pool, LOGIN_SEGMENT_LENGTH)
        self._writer = ResponseWriter(int.from_bytes(random_bytes(4), "big"))
        self._login = LoginPhase(policy, random_bytes, self._writer)
        self._readers: Mapping[int, _Reader] = self.LOGIN_READERS
        self._frame_limit = 1
        self._events: list[Event] = []
        self._commands: dict[int, Command] = {}
        self._immediate_length = 0  # bytes a command may bring along: less than any AHS's length
        self._transfers = TransferQueue()
        self._management: set[int] = set()
        self._text: TextExchange | None = None
        self._ping_ttt = RESERVED_TAG
        self.agreement: Agreement | None = None
        self._stopped = False
        self.outgoing = self._writer.outgoing
        self.writable = self._framer.writable
        self.settle = self._framer.settle
        self.respond_now = self._writer.respond  # for what was complete and is answered at once

    # Receiving

    def receive(self, length: int) -> list[Event]:
        """Take in `length` bytes that stand where `writable` said; what they mean, in order."""
        events: list[Event] = []
        if self._stopped:
            return events
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
                if self._stopped:
                    return events
        if framer.broken is not None:
            self._fail(framer.broken, None)
        return events

    def _fail(self, error: ProtocolError, position: int | None) -> None:
        """The peer broke the protocol: answer as the phase wants, then end the connection."""
        if self._login.begun and self._readers is self.LOGIN_READERS:
            self._events.append(self.refuse_session(error))
            return
        if position is not None and self.agreement is not None:
            self._reject(error.reason, position)
        self._stopped = True
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
        agreement = self._login.receive(request, bytes(data) if data is not None else b"")
        if agreement is not None:
            self._events.append(SessionRequested(agreement))

    def _read_stray_pdu(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        raise ProtocolError("not a login request", status=LoginStatus.INVALID_DURING_LOGIN)

    def accept_session(self, tsih: int) -> None:
        """The server opened the session: send the last Login Response, begin full feature."""
        self.agreement = agreement = self._login.accept(tsih)
        parameters = agreement.parameters
        self._framer.max_segment_length = parameters.max_recv_data_segment_length
        self._framer.header_digest = self._writer.header_digest = parameters.header_digest
        self._framer.data_digest = self._writer.data_digest = parameters.data_digest
        self._writer.limit_lengths(
            parameters.max_send_data_segment_length, parameters.max_burst_length
        )
        if parameters.immediate_data:
            self._immediate_length = parameters.first_burst_length
        self._text = TextExchange(self._policy, agreement, self._writer)
        self._readers = self.DISCOVERY_READERS if agreement.discovery else self.NORMAL_READERS
        self._frame_limit = ALL_FRAMES

    def refuse_session(self, error: ProtocolError) -> LoginFailed:
        """The server did not open the session: say why and end the connection."""
        self._login.refuse(error.status)
        self._stopped = True
        return LoginFailed(self._login.initiator_name, error)

    # SCSI commands and their data

    def _read_command(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        opcode, flags, lengths, lun, itt, expected_length, cmd_sn, _, cdb = _unpack_command(
            self._framer.memory, position
        )
        command = Command(itt, lun, cdb, flags, expected_length, cmd_sn)
        window = self._writer.window
        if (
            opcode == _SCSI_COMMAND
            and cmd_sn == window.expected
            and cmd_sn != window.limit
            and not window.early
            and itt not in self._commands
            and itt != RESERVED_TAG
        ):
            direction = flags & _DIRECTION_AND_FINAL
            if not lengths and not direction & _WRITE:
                window.expected = (cmd_sn + 1) & SERIAL_MASK
                self._events.append(command)
                return
            if (
                direction == _WRITE_AND_FINAL
                and 0 < lengths == expected_length <= self._immediate_length
                and data is not BAD_DIGEST
            ):
                window.expected = (cmd_sn + 1) & SERIAL_MASK
                command.data.append(data)  # type: ignore[arg-type]
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
        """A command that needs more than its header: data still to come, AHS, the I bit, a wait."""
        if not self._intact(data, position):
            return
        if opcode & IMMEDIATE:
            command.credit = 0
            if sum(not other.credit for other in self._commands.values()) >= IMMEDIATE_MAX:
                self._reject(RejectReason.IMMEDIATE_COMMAND_REJECT, position)
                return
        elif not self._writer.window.admits(command.cmd_sn):
            return
        if command.itt in self._commands or command.itt == RESERVED_TAG:
            self._reject(RejectReason.TASK_IN_PROGRESS, position)
            return
        if ahs:
            command.cdb += extended_cdb(ahs)
        refusal = self._accept_data(command, data)
        early = not opcode & IMMEDIATE and command.cmd_sn != self._writer.window.expected
        if early:
            command.credit = 0  # until its turn comes
            command.data = [bytes(piece) for piece in command.data]
        registered = command.transfer is not None or early
        if registered:
            self._commands[command.itt] = command
        self._in_order(
            opcode,
            command.cmd_sn,
            partial(self._deliver_command, command, opcode, refusal, registered),
        )

    def _accept_data(self, command: Command, data: memoryview | None) -> bytes:
        """Take immediate data and see what is still to come; sense data if it is refused."""
        expected = command.expected_length
        length = len(data) if data is not None else 0
        if not command.flags & _WRITE:
            return UNEXPECTED_UNSOLICITED_DATA if length else b""
        assert self.agreement is not None
        refusal = refuse_data(command, length, self.agreement.parameters)
        unsolicited_end = 0
        if not command.flags & FINAL:
            unsolicited_end = min(expected, self.agreement.parameters.first_burst_length)
        if unsolicited_end > length or (length < expected and not refusal):
            command.transfer = Transfer(length, unsolicited_end)
        if data is not None and not refusal:
            command.data.append(data if command.transfer is None else bytes(data))
        return refusal

    def _deliver_command(
        self, command: Command, opcode: int, refusal: bytes, registered: bool
    ) -> None:
        command.credit = 0 if opcode & IMMEDIATE else 1
        if registered and self._commands.get(command.itt) is not command:
            self._writer.window.complete(command.credit)  # aborted while it waited for its turn
            return
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
        self.send_r2ts()
        return None

    def send_r2ts(self) -> None:
        """Ask for the data that may be asked for now; due after transfers were aborted."""
        assert self.agreement is not None
        for r2t in self._transfers.due(self.agreement.parameters):
            r2t.stat_sn = self._writer.stat_sn
            self._writer.queue(r2t)

    def _read_data_out(self, position: int, data: memoryview | None, ahs: bytes) -> None:
        _, flags, lengths, _, itt, ttt, _, data_sn, offset = _unpack_data_out(
            self._framer.memory, position
        )
        length = data_segment_length(lengths)
        command = self._commands.get(itt)
        if command is None or command.transfer is None:
            return  # of a command that was answered or aborted meanwhile
        transfer = command.transfer
        if transfer.answer is not None:
            self._discard(transfer, flags)
            return
        if data is BAD_DIGEST or not transfer.in_sequence(data_sn):
            if data is BAD_DIGEST:
                self._reject(RejectReason.DATA_DIGEST_ERROR, position)
            self._fail_transfer(command, transfer, flags)
            return
        transfer.receive(ttt, flags, offset, length)
        if ttt != RESERVED_TAG:
            self._transfers.arrived(transfer, length)
        if data is not None:
            command.data.append(bytes(data))
        if transfer.complete:
            del self._commands[itt]
            self._events.append(command)
        elif transfer.wanted is not None and flags & FINAL:
            self._transfers.add(command)
        self.send_r2ts()

    def _fail_transfer(self, command: Command, transfer: Transfer, flags: int) -> None:
        """Data is missing, and level 0 has no recovery: end the command (sections 7.8, 7.9)."""
        if command.cmd_sn in self._writer.window.early:
            raise ProtocolError("data is missing of a command whose turn has not come")
        self.respond(command, CHECK_CONDITION, sense=PROTOCOL_SERVICE_CRC_ERROR)
        self._events.append(TransferFailed(command))
        self._discard(transfer, flags)
        self.send_r2ts()

    def _discard(self, transfer: Transfer, flags: int) -> None:
        """Wait for the end of the open sequences, then give the answer that waits for it."""
        transfer.discard(flags)
        if transfer.answer is not None and not transfer.bursts:
            transfer.answer()
            self.send_r2ts()

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
        """Answer a command, at once or when the data that it was to send has come."""
        transfer = command.transfer
        if transfer is not None and transfer.bursts:
            command.data.clear()
            self._transfers.remove(command)
            transfer.answer = partial(
                self._end_early, command, status, sense, data_out_length
            )  # it waits for the sequences that are open (section 11.4.2)
            return
        self._forget(command)
        self._writer.respond(command, status, data, sense, data_out_length)

    def _end_early(
        self, command: Command, status: int, sense: bytes, data_out_length: int | None
    ) -> None:
        if self._commands.pop(command.itt, None) is not None:
            self._writer.respond(command, status, None, sense, data_out_length)

    def drop(self, command: Command) -> None:
        """End an aborted command without an answer; what still comes for it is discarded."""
        self._forget(command)
        self._writer.window.complete(command.credit)

    def _forget(self, command: Command) -> None:
        if self._commands.get(command.itt) is command:
            del self._commands[command.itt]
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
        elif function == TaskManagement.ABORT_TASK and (
            request.referenced_task_tag in self._management
        ):
            answer = TaskManagementResponse.FUNCTION_REJECTED  # no SCSI task (section 11.6.1)
        elif (
            function == TaskManagement.ABORT_TASK
            and request.referenced_task_tag not in self._commands
            and serial_distance(request.cmd_sn, request.ref_cmd_sn) < 1 << 31
            and request.ref_cmd_sn != request.cmd_sn
            and window.admits(request.ref_cmd_sn)
        ):
            window.deliver(request.ref_cmd_sn, partial(window.complete, 1))  # section 11.6.1
            answer = TaskManagementResponse.FUNCTION_COMPLETE
        if answer is None:
            self._management.add(request.itt)
            self._events.append(requested)
        else:
            self.task_management_response(requested, answer)

    def task_management_response(self, request: TaskManagementRequested, response: int) -> None:
        """Answer a task management request."""
        self._management.discard(request.itt)
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
        response = NopIn(itt=request.itt, stat_sn=self._writer.next_stat_sn())
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
        window = self._writer.window
        credit = 0 if request.opcode & IMMEDIATE else 1
        try:
            window.complete(credit)
            self._text.receive(request, text)
        except ProtocolError as error:
            if credit:
                window.retract()
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
        highest = LogoutReason.REMOVE_CONNECTION_FOR_RECOVERY
        if reason > (LogoutReason.CLOSE_SESSION if self.agreement.discovery else highest):
            raise ProtocolError("no such logout here", RejectReason.INVALID_PDU_FIELD)
        if not request.opcode & IMMEDIATE:
            self._writer.window.complete(1)
        if reason == LogoutReason.REMOVE_CONNECTION_FOR_RECOVERY:
            code = LogoutResponseCode.RECOVERY_NOT_SUPPORTED
            self._send_logout_response(request.itt, code)
        elif reason == LogoutReason.CLOSE_CONNECTION and request.cid != self.agreement.cid:
            self._send_logout_response(request.itt, LogoutResponseCode.CID_NOT_FOUND)
        else:
            self._stopped = True
            self._writer.window.early.clear()
            self._events.append(LogoutRequested(request.itt, LogoutReason(reason)))

    def accept_logout(self, event: LogoutRequested) -> None:
        """Answer a logout: nothing may be sent after this."""
        self._send_logout_response(event.itt, LogoutResponseCode.CLOSED)

    def _send_logout_response(self, itt: int, code: LogoutResponseCode) -> None:
        assert self.agreement is not None
        self._writer.queue(
            LogoutResponse(
                response=code,
                itt=itt,
                stat_sn=self._writer.next_stat_sn(),
                time2wait_s=self.agreement.parameters.default_time2wait_s,
            )
        )

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
    }
    NORMAL_READERS: Mapping[int, "_Reader"] = {
        **DISCOVERY_READERS,
        Opcode.NOP_OUT: _read_nop_out,
        Opcode.SCSI_COMMAND: _read_command,
        Opcode.DATA_OUT: _read_data_out,
        Opcode.TASK_MANAGEMENT_REQUEST: _read_task_management,
    }


_Reader = Callable[[TargetConnection, int, memoryview | None, bytes], None]
