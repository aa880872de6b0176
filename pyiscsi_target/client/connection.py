"""One connection as an asyncio protocol: the engine's requests out, its events to who waits.

Every request has a future under its task tag. When the connection ends, for whatever reason, all of
them end with ConnectionLost. Knows no SCSI command and no session that outlives it.
"""

import asyncio
import os
import secrets
import socket
import struct
from collections.abc import Callable, Mapping
from typing import Any, cast

from ..iscsi.constants import AsyncEvent
from ..iscsi.initiator import InitiatorConnection
from ..iscsi.initiator_events import (
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
from ..iscsi.initiator_login import InitiatorSettings
from .address import Portal
from .errors import ConnectionLost, LoginRefused, ProtocolViolated, TimedOut
from .errors import RequestRejected as Rejected

Answer = asyncio.Future[Any]  # of the engine's event that ends a request
OnMessage = Callable[[AsyncMessageReceived], None]
Answered = CommandFinished | PingReturned | TextFinished | TaskManagementFinished | LogoutFinished

# SO_LINGER on, for no time: closing sends RST and forgets what was not sent (socket(7)).
_NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)
_FAREWELLS = {
    AsyncEvent.CONNECTION_DROPPED: "the target dropped the connection, as it had announced",
    AsyncEvent.SESSION_DROPPED: "the target dropped the session, as it had announced",
}


class Connection(asyncio.BufferedProtocol):
    """A TCP connection from its login to its end. Made by `open_connection`."""

    def __init__(
        self, portal: Portal, settings: InitiatorSettings, queue_depth: int, on_message: OnMessage
    ) -> None:
        self.portal = portal
        self.engine = InitiatorConnection(settings, secrets.token_bytes)
        self.gone = asyncio.Event()
        self.login: asyncio.Future[LoginFinished] = asyncio.get_running_loop().create_future()
        self._room = asyncio.Semaphore(queue_depth)
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._answers: dict[int, Answer] = {}
        self._may_write = False
        self._farewell = "the target closed the connection"
        self._error: ConnectionLost | None = None  # why it ended, or is about to

    # Requests

    @property
    def closed(self) -> bool:
        """Whether nothing can be asked any more."""
        return self._error is not None

    def ask(self, queue: Callable[[InitiatorConnection], int]) -> tuple[int, Answer]:
        """Send the request that `queue` makes; its task tag and the future of its end.

        Raises ConnectionLost.
        """
        if self._error is not None:
            raise self._loss()
        tag = queue(self.engine)
        answer: Answer = asyncio.get_running_loop().create_future()
        self._answers[tag] = answer
        self._flush()
        return tag, answer

    async def ask_in_turn(self, queue: Callable[[InitiatorConnection], int]) -> Answer:
        """`ask`, as soon as fewer than the queue depth of such requests are under way."""
        await self._room.acquire()
        try:
            _, answer = self.ask(queue)
        except BaseException:
            self._room.release()
            raise
        answer.add_done_callback(lambda _: self._room.release())
        return answer

    async def wait(self, answer: Answer, what: str, timeout_s: float) -> Any:
        """The event that ends a request. Cancelling the caller leaves the request alone.

        Raises ConnectionLost, RequestRejected, TimedOut.
        """
        try:
            async with asyncio.timeout(timeout_s):
                return await asyncio.shield(answer)
        except TimeoutError:
            raise self.late(what, timeout_s) from None

    def late(self, what: str, timeout_s: float) -> TimedOut:
        """The error of a request that has no answer yet."""
        return TimedOut(f"{self.portal}: no answer to {what} within {timeout_s:g} s")

    def give_up(self, tag: int, error: Exception) -> None:
        """Expect no answer to a command any more: who waits for it gets `error`."""
        self.engine.forget(tag)
        self._fail(self._answers.pop(tag, None), error)

    # The end

    def end(self, reason: str) -> None:
        """Close without a word, keeping what is in the system's buffers on its way."""
        self._end(ConnectionLost(self.portal, reason))

    def cut(self, reason: str) -> None:
        """Close as a host does whose power is pulled: by RST, and what was not sent is lost."""
        if self._transport is not None and not self._transport.is_closing():
            own = cast(socket.socket, self._transport.get_extra_info("socket"))
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.end(reason)

    def _end(self, error: ConnectionLost) -> None:
        if self._error is None:
            self._error = error
        if self._transport is not None:
            self._transport.abort()

    def _loss(self) -> ConnectionLost:
        """Why the connection ended, new for each who is told: a traceback belongs to one."""
        assert self._error is not None
        return type(self._error)(self.portal, self._error.reason)

    @staticmethod
    def _fail(answer: Answer | None, error: Exception) -> None:
        if answer is not None and not answer.done():
            answer.set_exception(error)
            answer.exception()  # nobody need be waiting: no complaint about that

    # asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._may_write = True
        self.engine.begin()
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = self._farewell if exc is None else _describe(exc)
        self._end(ConnectionLost(self.portal, reason))
        for answer in (cast(Answer, self.login), *self._answers.values()):
            self._fail(answer, self._loss())
        self._answers.clear()
        self.gone.set()

    def pause_writing(self) -> None:
        """The peer does not read: requests wait in the engine, as references to their data."""
        self._may_write = False

    def resume_writing(self) -> None:
        self._may_write = True
        self._flush()

    def get_buffer(self, sizehint: int) -> memoryview:
        return self.engine.writable()

    def buffer_updated(self, nbytes: int) -> None:
        for event in self.engine.received(nbytes):
            _HANDLERS[type(event)](self, event)
        self._flush()

    def _flush(self) -> None:
        if not self._may_write or self._error is not None or self._transport is None:
            return
        if self._transport.is_closing():  # `connection_lost` is about to say why
            return
        if outgoing := self.engine.take_outgoing():
            self._transport.writelines(outgoing)

    # Events of the engine

    def _on_login_finished(self, event: LoginFinished) -> None:
        if not self.login.done():
            self.login.set_result(event)

    def _on_login_failed(self, event: LoginFailed) -> None:
        refusal = LoginRefused(self.portal, event.status, event.target_address)
        self._fail(cast(Answer, self.login), refusal)
        self.end("login refused")

    def _on_answer(self, event: Answered) -> None:
        answer = self._answers.pop(event.itt, None)
        if answer is not None and not answer.done():
            answer.set_result(event)

    def _on_logout(self, event: LogoutFinished) -> None:
        self._on_answer(event)
        if not event.response:
            self.end("logged out")

    def _on_reject(self, event: RequestRejected) -> None:
        self._fail(self._answers.pop(event.itt, None), Rejected(self.portal, event.reason))

    def _on_async_message(self, event: AsyncMessageReceived) -> None:
        for announced, farewell in _FAREWELLS.items():
            if event.event == announced:
                self._farewell = farewell
        self._on_message(event)

    def _on_failed(self, event: TargetFailed) -> None:
        self._end(ProtocolViolated(self.portal, f"protocol violated: {event.error}"))


_HANDLERS: Mapping[type[InitiatorEvent], Callable[[Connection, Any], None]] = {
    LoginFinished: Connection._on_login_finished,
    LoginFailed: Connection._on_login_failed,
    CommandFinished: Connection._on_answer,
    PingReturned: Connection._on_answer,
    TextFinished: Connection._on_answer,
    TaskManagementFinished: Connection._on_answer,
    LogoutFinished: Connection._on_logout,
    RequestRejected: Connection._on_reject,
    AsyncMessageReceived: Connection._on_async_message,
    TargetFailed: Connection._on_failed,
}


def _describe(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


async def open_connection(
    portal: Portal, settings: InitiatorSettings, queue_depth: int, on_message: OnMessage
) -> Connection:
    """A connection in the full feature phase. Has no time-out of its own.

    Raises LoginRefused, also where the target has moved; ConnectionLost.
    """
    connection = Connection(portal, settings, queue_depth, on_message)
    try:
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: connection, portal.host, portal.port)
        await connection.login
    except OSError as error:
        raise ConnectionLost(portal, f"no connection: {_describe(error)}") from None
    except BaseException:
        connection.end("login given up")
        raise
    return connection
