"""One accepted connection: its socket on one side, its session's logical units on the other.

Owns the non-blocking socket itself, because asyncio's transports join what they send. A wake-up
reads once, executes what came, and sends all answers in one call. What cannot finish at once runs
as a task of the event loop, and its answer leaves when it is there.
"""

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, ClassVar, Protocol

from ..iscsi.constants import LoginStatus, TaskManagement, TaskManagementResponse
from ..iscsi.events import (
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
from ..iscsi.framing import BufferPool
from ..iscsi.login import Agreement, LoginError
from ..iscsi.target import TargetConnection
from ..iscsi.transfer import Command
from ..memory import page_aligned
from ..scsi.target_device import TargetDevice
from ..scsi.task import Nexus, Result, Status, Task
from ..scsi.task_management import TaskManagementResponse as Response
from .logs import log_event
from .policy import Peer
from .sending import send_all_now, sender_of
from .sessions import Session
from .task_management import FUNCTIONS, RESPONSES

ARENA_LENGTH = 2 * 1024 * 1024  # bytes for the data-in of one wake-up
FLUSH_LENGTH = 1024 * 1024  # bytes of data-in after which answers leave within a wake-up
UNSENT_LENGTH_MAX = 8 * 1024 * 1024  # bytes queued above which nothing more is executed
PENDING_LENGTH_MAX = 64 * 1024 * 1024  # bytes of commands under way, likewise
BACKLOG_MAX = 1024  # events kept for later above which nothing more is read

_log = logging.getLogger(__name__)


class ConnectionOwner(Protocol):
    """The server, as a connection sees it."""

    async def open_session(self, agreement: Agreement, connection: "Connection") -> Session:
        """Open the session that a login agreed on. Raises LoginError."""
        ...

    def session_closed(self, session: Session, *, nexus_lost: bool) -> None:
        """The session's connection is gone."""
        ...

    def connection_ended(self, connection: "Connection", session: Session | None) -> None:
        """Nothing of the connection is left, nor of its session."""
        ...

    def login_refused(self, status: LoginStatus) -> None:
        """A login failed."""
        ...

    def drop_sessions(self, device: TargetDevice, reason: str) -> None:
        """TARGET COLD RESET: end every session of a target (SAM-6 clause 6.3.4)."""
        ...


class Connection:
    """An accepted socket until it is closed. Lives on one event loop."""

    def __init__(
        self,
        accepted: socket.socket,
        peer: Peer,
        engine: TargetConnection,
        owner: ConnectionOwner,
        arenas: BufferPool,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = accepted
        self.peer = peer
        self._engine = engine
        self._owner = owner
        self._arenas = arenas
        self._arena: memoryview | None = None
        self._arena_used = 0
        self._full_arenas: list[memoryview] = []
        self._unsent_length = 0
        self._send = sender_of(accepted)
        self._session: Session | None = None
        self._nexus: Nexus | None = None
        self._device: TargetDevice | None = None
        self._tasks: dict[int, Task] = {}
        self._running: set[asyncio.Task[None]] = set()
        self._pending_length = 0
        self._backlog: deque[Event] = deque()
        self._reading = True
        self._writing = False
        self.closing = False
        self.closed = False
        self._torn_down: asyncio.Task[None] | None = None
        self.opened_at_s = self.heard_at_s = self._loop.time()
        self.pinged_at_s: float | None = None
        self._loop.add_reader(accepted, self._on_readable)

    @property
    def listening(self) -> bool:
        """Whether silence is the peer's: not while our own work keeps us from reading."""
        return self._reading or self._writing

    @property
    def logged_in(self) -> bool:
        return self._session is not None

    # The socket

    def _on_readable(self) -> None:
        try:
            length = self._socket.recv_into(self._engine.writable())
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self.close(f"connection lost: {error.strerror or error}")
            return
        if not length:
            self.close("closed by the initiator")
            return
        self.heard_at_s = self._loop.time()
        try:
            self._handle(self._engine.receive(length))
            self._engine.settle()
            self._advance()
        except Exception as error:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        """A fault of our own: it costs this connection, and no other."""
        log_event(_log, logging.ERROR, "internal_error", peer=self.peer, exc=error)
        self.close("internal error")

    def _handle(self, events: Iterable[Event]) -> None:
        """Act on events in order, as far as the bounds on memory allow."""
        backlog = self._backlog
        for event in events:
            if self._unsent_length > FLUSH_LENGTH:
                self._flush()
            if self.closed:
                return
            if (backlog or self._congested()) and self._can_wait(event):
                self._postpone(event)
            elif event.__class__ is Command:
                self._execute(event)  # as in `_dispatch`: the hot path saves a call
            else:
                self._HANDLERS[event.__class__](self, event)

    def _congested(self) -> bool:
        """Whether no new command may begin."""
        return self._unsent_length > UNSENT_LENGTH_MAX or self._pending_length > PENDING_LENGTH_MAX

    def _can_wait(self, event: Event) -> bool:
        """Not what others wait for: data for a command that has its place, or the end of a jam."""
        if isinstance(event, Command):
            return event.transfer is None
        return not isinstance(event, PingAnswered | TaskManagementRequested)

    def _postpone(self, event: Event) -> None:
        """Keep an event for later; its data must outlive the round."""
        if isinstance(event, Command):
            event.data = [bytes(piece) for piece in event.data]
        self._backlog.append(event)

    def _stop_reading(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._socket)

    def _advance(self) -> None:
        """Send what is queued, work off what was postponed, read when nothing forbids it."""
        self._flush()
        while self._backlog and not (self.closed or self._congested()):
            self._dispatch(self._backlog.popleft())
            if self._unsent_length > FLUSH_LENGTH or not self._backlog:
                self._flush()
        if (
            self.closed
            or self.closing
            or self._unsent_length > UNSENT_LENGTH_MAX
            or len(self._backlog) > BACKLOG_MAX
        ):
            self._stop_reading()
        elif not self._reading:
            self._reading = True
            self.heard_at_s = self._loop.time()
            if self.pinged_at_s is not None:
                self.pinged_at_s = self.heard_at_s
            self._loop.add_reader(self._socket, self._on_readable)

    def _dispatch(self, event: Event) -> None:
        if event.__class__ is Command:
            self._execute(event)
        else:
            self._HANDLERS[event.__class__](self, event)

    def _flush(self) -> None:
        """Send what is queued; once all has left, its memory is free again."""
        if self.closed:
            return
        try:
            all_sent = send_all_now(self._send, self._engine.outgoing)
        except OSError as error:
            self.close(f"connection lost: {error.strerror or error}")
            return
        if not all_sent:
            self._unsent_length = sum(map(len, self._engine.outgoing))
            if not self._writing:
                self._writing = True
                self._loop.add_writer(self._socket, self._on_writable)
            return
        self._unsent_length = 0
        if self._arena is not None:
            self._arenas.give(self._arena)
            self._arena = None
            while self._full_arenas:
                self._arenas.give(self._full_arenas.pop())
        if self.closing and not self._backlog:
            self.close("done")

    def _on_writable(self) -> None:
        self.heard_at_s = self._loop.time()
        try:
            self._advance()
        except Exception as error:
            self._fail(error)
        if not (self.closed or self._engine.outgoing):
            self._writing = False
            self._loop.remove_writer(self._socket)

    def _allocate(self, length: int) -> memoryview:
        """Memory for data-in that is queued in this round: part of an arena, if one can hold it."""
        self._unsent_length += length
        start = self._arena_used
        if self._arena is None or start + length > ARENA_LENGTH:
            if length > ARENA_LENGTH:
                return page_aligned(length)
            if self._arena is not None:
                self._full_arenas.append(self._arena)
            self._arena = self._arenas.take()
            start = 0
        self._arena_used = start + length
        return self._arena[start : start + length]

    # SCSI commands

    def _execute(self, command: Command) -> None:
        if command.transfer is None:
            task = Task(
                self._nexus,  # type: ignore[arg-type]
                command.lun,
                command.cdb,
                command.data,
                command.attribute,
                command.itt,
                self._allocate,
            )
        else:
            task = self._tasks.pop(command.itt)
            if task.aborted:
                self._end_aborted(command, task)
                return
            task.on_abort = None
            task.data_out = command.data
        outcome = self._device.execute(task)  # type: ignore[union-attr]
        if outcome.__class__ is Result:
            self._engine.respond_now(
                command, outcome.status, outcome.data, outcome.sense, outcome.data_out_length
            )
        else:
            self._start(command, task, outcome)  # type: ignore[arg-type]

    def _start(self, command: Command, task: Task, outcome: Coroutine[Any, Any, Result]) -> None:
        """Let a command that would block run on its own; its data must outlive the round."""
        if command.transfer is None:
            task.data_out = [bytes(piece) for piece in command.data]
        self._tasks[command.itt] = task
        self._engine.defer(command)
        self._pending_length += command.expected_length
        self._run(self._finish(command, task, outcome))

    async def _finish(
        self, command: Command, task: Task, outcome: Coroutine[Any, Any, Result]
    ) -> None:
        result = await outcome
        self._pending_length -= command.expected_length
        self._tasks.pop(command.itt, None)
        if self.closed or self.closing:
            return
        if task.aborted:
            self._end_aborted(command, task)
        else:
            self._unsent_length += len(result.data) if result.data is not None else 0
            self._engine.respond(
                command, result.status, result.data, result.sense, result.data_out_length
            )
        self._advance()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        running = self._loop.create_task(work)
        self._running.add(running)
        running.add_done_callback(self._ran)

    def _ran(self, finished: asyncio.Task[None]) -> None:
        self._running.discard(finished)
        if not finished.cancelled() and (error := finished.exception()) is not None:
            self._fail(error)

    def _on_transfer_requested(self, event: TransferRequested) -> None:
        """Ask the device server how much data a command takes, before soliciting any."""
        command = event.command
        assert self._device is not None
        assert self._nexus is not None
        task = Task(self._nexus, command.lun, command.cdb, (), command.attribute, command.itt)
        wanted = self._device.data_out_length(task)
        if isinstance(wanted, Result):
            self._engine.respond(command, wanted.status, None, wanted.sense, 0)
            return
        self._tasks[command.itt] = task
        task.on_abort = lambda: self._abort_transfer(command)
        self._device.register(task)
        if self._engine.solicit(command, wanted) is not None:
            self._execute(command)

    def _abort_transfer(self, command: Command) -> None:
        task = self._tasks.get(command.itt)
        if task is not None and self._engine.command_of(command.itt) is command:
            del self._tasks[command.itt]
            self._end_aborted(command, task)
            self._loop.call_soon(self._go_on_after_abort)

    def _go_on_after_abort(self) -> None:
        """Another session may have caused it, and others may wait for the room that it left."""
        if not (self.closed or self.closing):
            self._engine.send_r2ts()
            self._advance()

    def _end_aborted(self, command: Command, task: Task) -> None:
        """No answer to an aborted command, but with TAS=1 when another nexus aborted it."""
        if task.answer_aborted:
            self._engine.respond(command, Status.TASK_ABORTED)
        else:
            self._engine.drop(command)

    def _on_transfer_failed(self, event: TransferFailed) -> None:
        task = self._tasks.pop(event.command.itt, None)
        if task is not None and self._device is not None:
            self._device.finish(task)

    def _on_task_management(self, event: TaskManagementRequested) -> None:
        """Act at once, for it may be what ends a jam; what came before it begins before it."""
        while self._backlog:
            self._dispatch(self._backlog.popleft())
        assert self._device is not None
        assert self._nexus is not None
        function = FUNCTIONS.get(event.function)
        if function is None:
            self._engine.task_management_response(event, TaskManagementResponse.NOT_SUPPORTED)
            return
        self._log(
            logging.INFO,
            "task_management",
            function=function.name.lower(),
            lun=f"{event.lun:016x}",
        )
        performed = self._device.manage(function, self._nexus, event.lun, event.referenced_task_tag)
        self._run(self._answer_task_management(event, performed))

    async def _answer_task_management(
        self, event: TaskManagementRequested, performed: Coroutine[Any, Any, Response]
    ) -> None:
        response = await performed
        if not (self.closed or self.closing):
            self._engine.task_management_response(event, RESPONSES[response])
            self._flush()
        if event.function == TaskManagement.TARGET_COLD_RESET:
            assert self._device is not None
            self._owner.drop_sessions(self._device, "target cold reset")

    # The session

    def _on_session_requested(self, event: SessionRequested) -> None:
        self._run(self._open_session(event.agreement))

    async def _open_session(self, agreement: Agreement) -> None:
        try:
            session = await self._owner.open_session(agreement, self)
        except LoginError as error:
            if not self.closed:
                self._on_login_failed(self._engine.refuse_session(error))
                self._flush()
            return
        if self.closed:
            return
        self._session, self._nexus, self._device = session, session.nexus, session.device
        if self.closing:  # the initiator spoiled its login while it waited
            return
        self._engine.accept_session(session.tsih)
        parameters = agreement.parameters
        self._log(
            logging.INFO,
            "login",
            tsih=session.tsih,
            header_digest=parameters.header_digest,
            data_digest=parameters.data_digest,
            chap=agreement.terms.credentials is not None,
        )
        self._flush()

    def _on_login_failed(self, event: LoginFailed) -> None:
        self._owner.login_refused(event.error.status)
        log_event(
            _log,
            logging.WARNING,
            "login_denied",
            initiator=event.initiator_name or None,
            peer=self.peer,
            status=f"{event.error.status:04x}",
            reason=event.error,
        )
        self._close_when_sent()

    def _on_logout_requested(self, event: LogoutRequested) -> None:
        """Answer last; what is still under way is terminated unanswered (section 11.14)."""
        self._log(logging.INFO, "logout", reason=event.reason.name.lower())
        self._engine.accept_logout(event)
        self._close_when_sent()

    def _on_ping_answered(self, event: PingAnswered) -> None:
        self.pinged_at_s = None

    def _on_failed(self, event: ConnectionFailed) -> None:
        self._log(logging.WARNING, "protocol_error", reason=event.error)
        self._close_when_sent()

    def _log(self, level: int, name: str, **fields: Any) -> None:
        agreement = self._session.agreement if self._session is not None else None
        log_event(
            _log,
            level,
            name,
            initiator=agreement.initiator_name if agreement else None,
            target=(agreement.terms.name or "discovery") if agreement else None,
            isid=agreement.isid.hex() if agreement else None,
            peer=self.peer,
            **fields,
        )

    def ping(self, now_s: float) -> None:
        """Ask whether the initiator is still there; a discovery session is just ended (7.4.3)."""
        if self._device is None:
            self.close("idle discovery session")
        elif self._engine.ping():
            self.pinged_at_s = now_s
            self._flush()

    def request_logout(self, within_s: int) -> None:
        """Ask the initiator to log out; just end what has no commands (section 7.4.3)."""
        if self._device is None:
            self.close("server stops")
        if self.closed or self.closing:
            return
        self._engine.request_logout(within_s)
        self._flush()

    def announce_drop(self) -> None:
        """Tell the initiator that the connection ends now."""
        if self._device is not None and not (self.closed or self.closing):
            self._engine.announce_drop()
            self._flush()

    # The end

    def _close_when_sent(self) -> None:
        """Read no more, and close once the last answer has left."""
        self.closing = True
        self._stop_reading()

    def close(self, reason: str, *, nexus_lost: bool = True) -> None:
        """Close the socket and abort what the session has under way. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self._stop_reading()
        if self._writing:
            self._loop.remove_writer(self._socket)
        self._socket.close()
        self._backlog.clear()
        self._arena = None
        self._full_arenas.clear()
        self._engine.outgoing.clear()
        if self._session is not None:
            if not self.closing:
                self._log(logging.WARNING, "connection_lost", reason=reason)
            self._owner.session_closed(self._session, nexus_lost=nexus_lost)
        self._torn_down = self._loop.create_task(self._wait_for_running())

    async def _wait_for_running(self) -> None:
        own = asyncio.current_task()
        while running := self._running - {own}:
            await asyncio.wait(running)
        self._owner.connection_ended(self, self._session)

    async def end(self, reason: str, *, nexus_lost: bool = True) -> None:
        """Close, and return when nothing of this connection runs any more."""
        self.close(reason, nexus_lost=nexus_lost)
        assert self._torn_down is not None
        await asyncio.shield(self._torn_down)

    _HANDLERS: ClassVar[dict[type, Callable[["Connection", Any], None]]] = {
        Command: _execute,
        SessionRequested: _on_session_requested,
        LoginFailed: _on_login_failed,
        TransferRequested: _on_transfer_requested,
        TransferFailed: _on_transfer_failed,
        TaskManagementRequested: _on_task_management,
        LogoutRequested: _on_logout_requested,
        PingAnswered: _on_ping_answered,
        ConnectionFailed: _on_failed,
    }
