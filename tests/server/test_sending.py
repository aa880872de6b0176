"""Queued buffers to a socket: everything, in order, however little it takes at a time."""

import random
import socket
from collections.abc import Iterator

import pytest

from pyiscsi_target.server.sending import (
    IOV_MAX,
    PLAIN_SEND_LENGTH,
    Send,
    send_all_now,
    sender_of,
)


class PlainSocket(socket.socket):
    """A socket of a platform without `sendmsg`."""

    @property
    def sendmsg(self) -> None:  # type: ignore[override]
        raise AttributeError("sendmsg")


Ends = tuple[socket.socket, socket.socket]


def connected(kind: type[socket.socket]) -> Ends:
    ours, theirs = socket.socketpair()
    wrapped = kind(ours.family, ours.type, ours.proto, fileno=ours.detach())
    wrapped.setblocking(False)
    return wrapped, theirs


@pytest.fixture(params=[socket.socket, PlainSocket])
def ends(request: pytest.FixtureRequest) -> Iterator[Ends]:
    ours, theirs = connected(request.param)
    with ours, theirs:
        yield ours, theirs


def pieces(seed: int, count: int, longest: int) -> list[bytes | bytearray | memoryview]:
    """Buffers of every type and length, empty ones among them."""
    source = random.Random(seed)
    kinds = (bytes, bytearray, lambda data: memoryview(data))
    return [
        source.choice(kinds)(source.randbytes(source.randrange(longest + 1))) for _ in range(count)
    ]


def drain(ours: socket.socket, theirs: socket.socket, buffers: list[object]) -> bytes:
    """Send until nothing is left, reading a little between; what arrived."""
    send, received = sender_of(ours), bytearray()
    while not send_all_now(send, buffers):  # type: ignore[arg-type]
        received += theirs.recv(50_000)
    ours.shutdown(socket.SHUT_WR)
    while data := theirs.recv(1 << 20):
        received += data
    return bytes(received)


@pytest.mark.parametrize(
    ("count", "longest"), [(1, 0), (1, 1), (3, 2_000_000), (64, 70_000), (3 * IOV_MAX + 7, 900)]
)
def test_all_arrives_in_order(ends: Ends, count: int, longest: int) -> None:
    ours, theirs = ends
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    buffers = pieces(count, count, longest)
    expected = b"".join(buffers)
    assert drain(ours, theirs, buffers) == expected  # type: ignore[arg-type]
    assert buffers == []


def test_what_the_socket_does_not_take_stays_queued(ends: Ends) -> None:
    ours, _ = ends
    data = bytes(range(256)) * 16384
    buffers: list[bytes | bytearray | memoryview] = [data, b"tail"]
    assert not send_all_now(sender_of(ours), buffers)
    left = b"".join(buffers)
    assert 0 < len(left) < len(data)
    assert (data + b"tail").endswith(left)


def test_a_full_socket_takes_nothing(ends: Ends) -> None:
    ours, _ = ends
    send = sender_of(ours)
    assert not send_all_now(send, [bytes(1 << 23)])
    buffers: list[bytes | bytearray | memoryview] = [b"one", b"two"]
    assert not send_all_now(send, buffers)
    assert buffers == [b"one", b"two"]


def test_more_buffers_than_one_call_takes(ends: Ends) -> None:
    """The kernel refuses a longer list with EMSGSIZE."""
    ours, theirs = ends
    buffers: list[bytes | bytearray | memoryview] = [bytes([n & 255]) for n in range(5 * IOV_MAX)]
    expected = b"".join(buffers)
    assert send_all_now(sender_of(ours), buffers)
    assert theirs.recv(1 << 20) == expected


def test_a_lost_connection_is_an_error(ends: Ends) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(OSError, match=r"(?i)pipe|reset"):
        send_all_now(sender_of(ours), [b"x"])


def test_one_plain_send_joins_no_more_than_its_share() -> None:
    ours, theirs = connected(PlainSocket)
    with ours, theirs:
        sent = sender_of(ours)([b"", bytes(10), bytes(10), bytes(1 << 20)])
        assert sent == PLAIN_SEND_LENGTH


def counting(limit: int) -> tuple[Send, bytearray]:
    """A sender that takes `limit` bytes a call, cutting buffers where it likes."""
    taken = bytearray()

    def send(buffers: list[bytes | bytearray | memoryview]) -> int:
        data = b"".join(buffers)[:limit]
        taken.extend(data)
        return len(data)

    return send, taken


@pytest.mark.parametrize("limit", [1, 2, 3, 5, 7, 1000])
def test_every_cut_between_and_within_buffers(limit: int) -> None:
    send, taken = counting(limit)
    buffers: list[bytes | bytearray | memoryview] = [b"ab", b"", b"c", bytearray(b"defg"), b"", b""]
    assert send_all_now(send, buffers)
    assert taken == b"abcdefg"
