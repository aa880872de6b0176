"""A target behind a real socket that does what a test tells it, wrong things too.

Each connection has a `memory.Target` of its own: an engine without a server. `silent` makes it
hang, `script` answers in its place, `say` sends whatever bytes.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from pyiscsi_target.client import Initiator, Portal, Session
from tests.support.memory import TARGET_NAME, Policy, Target

PATIENCE_S = 10.0
Script = Callable[[bytes], bytes | None]  # what came -> what is sent; None: hang up


class FakeTarget:
    """The listening end. `targets` and `transports` are those of the connections so far."""

    def __init__(self, policy: Policy | None) -> None:
        self.policy = policy or Policy()
        self.script: Script | None = None
        self.silent = False
        self.swallowed_bytes = 0  # what came while it was silent
        self.targets: list[Target] = []
        self.transports: list[asyncio.Transport] = []
        self.losses: list[Exception | None] = []  # how connections ended, None: by FIN
        self.heard = asyncio.Event()  # set by each piece of bytes and each end
        self.portal = Portal("", 0)

    def say(self, data: bytes) -> None:
        """Send these bytes to who connected last."""
        self.transports[-1].write(data)

    def tell(self) -> None:
        """Send what the last connection's engine has to say by now."""
        self.say(self.targets[-1].sent())

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until something is so; it is looked at whenever something comes."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():
                self.heard.clear()
                await self.heard.wait()


class _Served(asyncio.Protocol):
    def __init__(self, fake: FakeTarget) -> None:
        self._fake = fake
        self._target = Target(fake.policy)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._fake.targets.append(self._target)
        self._fake.transports.append(self._transport)

    def data_received(self, data: bytes) -> None:
        fake = self._fake
        if fake.script is not None:
            self._send(fake.script(data))
        elif fake.silent:
            fake.swallowed_bytes += len(data)
        else:
            self._send(self._target.feed(data))
            if self._target.closed:
                self._transport.close()
        fake.heard.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fake.losses.append(exc)
        self._fake.heard.set()

    def _send(self, data: bytes | None) -> None:
        if data is None:
            self._transport.close()
        elif data:
            self._transport.write(data)


@contextlib.asynccontextmanager
async def fake_target(
    policy: Policy | None = None, *, host: str = "127.0.0.1"
) -> AsyncIterator[FakeTarget]:
    """A fake target on a free port; everything is closed at the end."""
    fake = FakeTarget(policy)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Served(fake), host, 0)
    fake.portal = Portal(host, server.sockets[0].getsockname()[1])
    try:
        yield fake
    finally:
        server.close()
        for transport in fake.transports:
            transport.abort()
        await fake.until(lambda: len(fake.losses) == len(fake.transports))
        await server.wait_closed()


# Sessions with it


async def connect(fake: FakeTarget, **fields: Any) -> Session:
    """A session; `fields` are the Initiator's."""
    return await Session.connect(fake.portal, TARGET_NAME, Initiator(**fields))


async def holding(fake: FakeTarget, **fields: Any) -> Session:
    """A session whose target keeps its commands."""
    session = await connect(fake, **fields)
    fake.targets[-1].held = True
    return session


async def all_held(fake: FakeTarget, count: int) -> None:
    """Wait until the target keeps so many commands."""
    await fake.until(lambda: len(fake.targets[-1].commands) == count)
