"""The control socket: how a command line on this host speaks with the running server.

A stream socket in the state directory (mode 0600): one request, a line of JSON, one answer, and the
connection ends. What can be asked for is the business of `handlers`; both sides of the exchange are
here. Platforms without sockets of files (Windows) have none.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .logs import log_event

SOCKET_NAME = "control"
LINE_LENGTH_MAXIMUM = 64 << 10  # of a request, in bytes
REQUEST_TIMEOUT_S = 5.0  # for the request to arrive
ANSWER_TIMEOUT_S = 5.0  # for the answer to be read
CONNECTIONS_MAXIMUM = 8
_UMASK = 0o177  # the socket's mode is 0600 from the first moment
_PATH_LENGTH_MAXIMUM = 100  # bytes of sockaddr_un that every platform has

Json = dict[str, Any]
Handler = Callable[[Json], Awaitable[Json]]

_log = logging.getLogger(__name__)


class ControlError(Exception):
    """A request was refused, or the conversation failed; the message is for the operator."""


class NotRunning(ControlError):
    """No server answers at this state directory."""


class ControlServer:
    """Listens and answers, from `start` to `close`."""

    def __init__(self, directory: Path, handlers: Mapping[str, Handler]) -> None:
        self._directory = directory
        self._handlers = handlers
        self._server: asyncio.Server | None = None
        self._conversations: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Listen. The state directory is locked by this server, so an old socket is a leftover.

        Raises OSError.
        """
        if not hasattr(socket, "AF_UNIX"):
            return
        (self._directory / SOCKET_NAME).unlink(missing_ok=True)
        with _short_path(self._directory) as path:
            before = os.umask(_UMASK)
            try:
                self._server = await asyncio.start_unix_server(
                    self._on_connection, path, limit=LINE_LENGTH_MAXIMUM
                )
            finally:
                os.umask(before)

    async def close(self) -> None:
        """Listen no more, and let what was asked end. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        self._server = None
        (self._directory / SOCKET_NAME).unlink(missing_ok=True)
        if self._conversations:
            await asyncio.wait(set(self._conversations))

    async def _on_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        conversation = asyncio.current_task()
        assert conversation is not None
        if len(self._conversations) < CONNECTIONS_MAXIMUM:
            self._conversations.add(conversation)
            try:
                await self._converse(reader, writer)
            finally:
                self._conversations.discard(conversation)
        else:
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            line = await asyncio.wait_for(reader.readline(), REQUEST_TIMEOUT_S)
            answer = await self._answer(line)
        except (TimeoutError, ValueError, RecursionError, OSError) as error:
            answer = {"error": f"not a request: {error}"}
        await _send(writer, json.dumps(answer).encode() + b"\n")

    async def _answer(self, line: bytes) -> Json:
        request = json.loads(line)
        if not isinstance(request, dict):
            raise ValueError("not an object")
        handler = self._handlers.get(str(request.get("request")))
        if handler is None:
            return {"error": f"this server has no request {request.get('request')!r}"}
        try:
            return await handler(request)
        except ControlError as error:
            return {"error": str(error)}
        except Exception as error:
            log_event(_log, logging.ERROR, "control_failed", request=request["request"], exc=error)
            return {"error": f"internal error: {type(error).__name__}; the server's log has more"}


async def _send(writer: asyncio.StreamWriter, line: bytes) -> None:
    """The last word of a conversation; who does not read it must not hold up the server's end."""
    writer.write(line)
    writer.close()
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            await writer.wait_closed()
    except OSError:  # a TimeoutError is one
        writer.transport.abort()


def ask(directory: Path, request: str, **arguments: object) -> Json:
    """The answer of the server that runs on the state directory. Blocks.

    Raises NotRunning, and ControlError with the server's reason where it refuses.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise NotRunning("this platform has no control socket")
    try:
        with socket.socket(socket.AF_UNIX) as connection, _short_path(directory) as path:
            connection.connect(path)
            connection.sendall(json.dumps({"request": request, **arguments}).encode() + b"\n")
            with connection.makefile("rb") as file:
                line = file.readline()
                if not line:
                    raise ConnectionResetError
    except (FileNotFoundError, ConnectionRefusedError, NotADirectoryError) as error:
        raise NotRunning(f"no server answers at {directory / SOCKET_NAME}") from error
    except ConnectionError as error:
        raise ControlError(f"{directory / SOCKET_NAME}: the server hung up") from error
    except OSError as error:
        raise ControlError(f"{directory / SOCKET_NAME}: {error.strerror or error}") from error
    answer: Json = json.loads(line)
    if "error" in answer:
        raise ControlError(str(answer["error"]))
    return answer


@contextlib.contextmanager
def _short_path(directory: Path) -> Iterator[str]:
    """The socket's path, by way of a descriptor where it is longer than an address may be."""
    path = str(directory / SOCKET_NAME)
    if len(os.fsencode(path)) <= _PATH_LENGTH_MAXIMUM or not os.path.isdir("/proc/self/fd"):
        yield path
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        yield f"/proc/self/fd/{descriptor}/{SOCKET_NAME}"
    finally:
        os.close(descriptor)
