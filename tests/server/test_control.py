"""The control socket: both ends of it, and what strangers to the protocol get."""

import asyncio
import json
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from pyiscsi_target.server import control
from pyiscsi_target.server.control import (
    LINE_LENGTH_MAXIMUM,
    ControlError,
    ControlServer,
    Json,
    NotRunning,
    ask,
)


async def echo(request: Json) -> Json:
    return {"echo": request}


async def refuse(request: Json) -> Json:
    raise ControlError("not today")


async def fail(request: Json) -> Json:
    raise RuntimeError("with a detail")


HANDLERS: dict[str, Callable[[Json], Awaitable[Json]]] = {
    "echo": echo,
    "refuse": refuse,
    "fail": fail,
}


@pytest.fixture(params=["short", "long" * 40])
async def directory(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Path]:
    """A state directory with a server; the path of the second is too long for a socket address."""
    directory = tmp_path / request.param
    directory.mkdir()
    server = ControlServer(directory, HANDLERS)
    await server.start()
    yield directory
    await server.close()
    assert not list(directory.iterdir())


async def say(directory: Path, line: bytes, *, end: bool = False) -> Json:
    """Whatever is said, as it is; the answer."""
    with control._short_path(directory) as path:
        reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    if end:
        writer.write_eof()
    answer = await reader.readline()
    assert not await reader.read()  # one answer, and the connection ends
    writer.close()
    await writer.wait_closed()
    decoded: Json = json.loads(answer)
    return decoded


async def test_a_request_and_its_answer(directory: Path) -> None:
    answer = await asyncio.to_thread(ask, directory, "echo", initiator="ü")
    assert answer == {"echo": {"request": "echo", "initiator": "ü"}}


async def test_nobody_else_may_connect(directory: Path) -> None:
    assert stat.S_IMODE((directory / control.SOCKET_NAME).stat().st_mode) == 0o600


async def test_a_refusal_carries_the_reason(directory: Path) -> None:
    with pytest.raises(ControlError, match=r"^not today$"):
        await asyncio.to_thread(ask, directory, "refuse")


async def test_a_fault_tells_its_kind_and_no_more(
    directory: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ControlError, match=r"^internal error: RuntimeError; [^(]*log has more$"):
        await asyncio.to_thread(ask, directory, "fail")
    assert "with a detail" in caplog.text
    assert await asyncio.to_thread(ask, directory, "echo")


@pytest.mark.parametrize(
    "line",
    [
        b"\n",
        b"hello\n",
        b"[]\n",
        b"{}\n",
        b'{"request": []}\n',
        b'{"request": "stop"}\n',
        b"\xff\n",
        b"[" * (LINE_LENGTH_MAXIMUM - 1) + b"\n",
    ],
)
async def test_what_is_no_request(directory: Path, line: bytes) -> None:
    assert set(await say(directory, line)) == {"error"}


async def test_an_unfinished_line(directory: Path) -> None:
    assert set(await say(directory, b'{"request', end=True)) == {"error"}


async def test_a_line_without_end(directory: Path) -> None:
    with control._short_path(directory) as path:
        reader, writer = await asyncio.open_unix_connection(path)
    writer.write(b"x" * (3 * LINE_LENGTH_MAXIMUM))
    assert b"error" in await reader.readline()
    writer.transport.abort()


async def test_silence_ends(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_TIMEOUT_S", 0.01)
    assert set(await say(directory, b"")) == {"error"}


async def test_one_conversation_too_many(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "CONNECTIONS_MAXIMUM", 0)
    with pytest.raises(ControlError, match="hung up"):
        await asyncio.to_thread(ask, directory, "echo")


async def test_a_leftover_socket_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as leftover, control._short_path(tmp_path) as path:
        leftover.bind(path)
    with pytest.raises(NotRunning):
        ask(tmp_path, "echo")
    server = ControlServer(tmp_path, HANDLERS)
    await server.start()
    assert await asyncio.to_thread(ask, tmp_path, "echo")
    await server.close()
    await server.close()


async def test_what_was_asked_is_answered_before_the_end(tmp_path: Path) -> None:
    begun, gate = asyncio.Event(), asyncio.Event()

    async def slow(request: Json) -> Json:
        begun.set()
        await gate.wait()
        return {"done": True}

    server = ControlServer(tmp_path, {"slow": slow})
    await server.start()
    asked = asyncio.create_task(asyncio.to_thread(ask, tmp_path, "slow"))
    await begun.wait()
    closing = asyncio.create_task(server.close())
    gate.set()
    assert await asked == {"done": True}
    await closing


async def test_who_does_not_read_his_answer_does_not_hold_up_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(control, "ANSWER_TIMEOUT_S", 0.01)
    begun = asyncio.Event()

    async def much(request: Json) -> Json:
        begun.set()
        return {"much": "x" * (64 << 20)}

    server = ControlServer(tmp_path, {"much": much})
    await server.start()
    with socket.socket(socket.AF_UNIX) as deaf:
        with control._short_path(tmp_path) as path:
            deaf.connect(path)
        deaf.sendall(b'{"request": "much"}\n')
        await begun.wait()
        await server.close()


@pytest.mark.parametrize("directory", ["absent", "a file"])
def test_no_server(tmp_path: Path, directory: str) -> None:
    (tmp_path / "a file").touch()
    with pytest.raises(NotRunning, match="no server answers"):
        ask(tmp_path / directory, "echo")
