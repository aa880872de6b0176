"""Queued buffers to a non-blocking socket, never joined: one `sendmsg` takes what it can."""

import socket
from collections.abc import Callable

from ..iscsi.responses import Buffer

IOV_MAX = 1024  # buffers that one sendmsg takes (POSIX; the same on Linux, macOS and the BSDs)
PLAIN_SEND_LENGTH = 64 * 1024  # bytes joined for one send where there is no sendmsg

Send = Callable[[list[Buffer]], int]


def sender_of(connection: socket.socket) -> Send:
    """A function that sends the beginning of a list of buffers and tells how many bytes left."""
    if hasattr(connection, "sendmsg"):
        return connection.sendmsg

    def send_plain(buffers: list[Buffer]) -> int:
        chunk = bytearray()
        for buffer in buffers:
            chunk += memoryview(buffer)[: PLAIN_SEND_LENGTH - len(chunk)]
            if len(chunk) == PLAIN_SEND_LENGTH:
                break
        return connection.send(chunk)

    return send_plain


def send_all_now(send: Send, buffers: list[Buffer]) -> bool:
    """Send from the front of `buffers` until they are gone (True) or the socket is full (False).

    What was sent is removed; a buffer sent in part is replaced by its rest. Raises OSError.
    """
    while buffers:
        window = buffers if len(buffers) <= IOV_MAX else buffers[:IOV_MAX]
        try:
            sent = send(window)
        except (BlockingIOError, InterruptedError):
            return False
        if sent == sum(map(len, window)):
            del buffers[: len(window)]
        else:
            _remove(buffers, sent)
    return True


def _remove(buffers: list[Buffer], sent: int) -> None:
    count = 0
    while sent >= len(buffers[count]):
        sent -= len(buffers[count])
        count += 1
    if sent:
        buffers[count] = memoryview(buffers[count])[sent:]
    del buffers[:count]
