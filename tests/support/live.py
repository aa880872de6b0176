"""A server inside the test's own event loop, with everything about it checked on the way out.

`serving` makes sure that the server ends as it began: nothing open, registered, held or counted any
more, and nothing logged that tells of a fault in the server itself.
"""

import asyncio
import contextlib
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyiscsi_target.app import Application
from pyiscsi_target.server.config import Config, load_config
from pyiscsi_target.storage.base import BackingStore, Buffer
from pyiscsi_target.storage.filters import FilterStore
from tests.support.peer import PATIENCE_S, Address, Peer
from tests.support.server import TARGET, toml_document

MIB = 1 << 20


def config_of(
    directory: Path,
    *,
    server: Mapping[str, Any] | None = None,
    disks: Mapping[str, Mapping[str, Any]] | None = None,
    targets: Mapping[str, Mapping[str, Any]] | None = None,
) -> Config:
    """A config read from a file in `directory`: by default one disk at LUN 0 of one open target."""
    disks = {"disk": {"path": "disk.img", "size": 64 * MIB}} if disks is None else disks
    targets = {TARGET: {}} if targets is None else targets
    tables: dict[str, Mapping[str, Any]] = {
        "server": {"portals": ["127.0.0.1:0"], "drain_timeout_s": PATIENCE_S, **(server or {})}
    }
    tables.update({f"disks.{name}": disk for name, disk in disks.items()})
    for name, target in targets.items():
        luns = dict(enumerate(disks))
        tables[f'targets."{name}"'] = {"luns": luns, "initiators": ["*"], **target}
    path = directory / "config.toml"
    path.write_text(toml_document(tables), encoding="utf-8")
    return load_config(path)


class HeldStore(FilterStore):
    """Reads and writes from byte `held_from` on wait for `gate`; `begun` tells which wait."""

    def __init__(self, inner: BackingStore, held_from: int) -> None:
        super().__init__(inner)
        self.held_from = held_from
        self.gate = asyncio.Event()
        self.begun: asyncio.Queue[tuple[str, int]] = asyncio.Queue()

    def _is_held(self, offset_bytes: int) -> bool:
        return offset_bytes >= self.held_from and not self.gate.is_set()

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        return not self._is_held(offset_bytes) and super().read_now(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return not self._is_held(offset_bytes) and super().write_now(offset_bytes, data)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        await self._wait("read", offset_bytes)
        await super().read(offset_bytes, into)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        await self._wait("write", offset_bytes)
        await super().write(offset_bytes, data, durable=durable)

    async def _wait(self, operation: str, offset_bytes: int) -> None:
        if self._is_held(offset_bytes):
            self.begun.put_nowait((operation, offset_bytes))
            await self.gate.wait()


class _Records(logging.Handler):
    """Keeps every record; it has no level, so debug messages come too."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@contextlib.contextmanager
def recording() -> Iterator[list[logging.LogRecord]]:
    """All that is logged by anyone within the block, at every level."""
    root, handler = logging.getLogger(), _Records()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        yield handler.records
    finally:
        root.removeHandler(handler)
        root.setLevel(level)


class Live:
    """A started application and its peers."""

    def __init__(self, app: Application, records: list[logging.LogRecord]) -> None:
        self.app = app
        self.records = records
        self.peers: list[Peer] = []
        self.allowed_error: str | None = None  # how a message may begin that tells of a fault
        self.faults: list[dict[str, Any]] = []  # what the loop's exception handler was told
        self.drained = False

    def address(self, portal: int = 0) -> Address:
        endpoint = self.app._portals[portal].endpoint
        return endpoint.host, endpoint.port

    async def connect(self, **more: Any) -> Peer:
        address = more.pop("address", None) or self.address()
        peer = await Peer.connect(address, **more)
        self.peers.append(peer)
        return peer

    async def log_in(self, target: str | None = TARGET, **more: Any) -> Peer:
        """A new session, its unit attentions taken."""
        options = {key: more.pop(key) for key in ("address", "source") if key in more}
        peer = await (await self.connect(**options)).log_in(target, **more)
        return await peer.ready() if target is not None else peer

    def hold(self, disk: str = "disk", held_from: int = 0) -> HeldStore:
        """Make a disk's operations wait from now on."""
        unit = self.app._units[disk]
        store = HeldStore(unit.store, held_from)
        unit.store = store
        return store

    def events(self, name: str) -> list[dict[str, Any]]:
        """The fields of each log line of this event."""
        return [
            getattr(record, "event_fields", {})
            for record in self.records
            if record.getMessage() == name
        ]

    async def until(self, condition: Callable[[], bool]) -> None:
        """Let the server run until something is so."""
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 - there is no event to be told by
                await asyncio.sleep(0)

    async def drain(self) -> None:
        self.drained = True
        await self.app.drain()

    def assert_quiet(self) -> None:
        """Nothing told of a fault in the server."""
        gc.collect()  # reports exceptions that nobody retrieved
        assert not self.faults, self.faults
        errors = {r.getMessage() for r in self.records if r.levelno >= logging.ERROR}
        if self.allowed_error is not None:
            errors = {error for error in errors if not error.startswith(self.allowed_error)}
        assert not errors

    def assert_nothing_left(self) -> None:
        """Everything that connections and sessions took was given back."""
        app = self.app
        assert not app._connections
        assert not app._limits._by_address
        assert not app._sessions.by_key
        assert not app._sessions.by_tsih
        for device in app._devices.values():
            assert not device._attached
        for unit in app._units.values():
            assert not unit.tasks.unfinished
            assert not unit.tasks.barriers
            assert not unit.ranges._ranges
            assert unit.reserved_by is None


@contextlib.asynccontextmanager
async def serving(config: Config, directory: Path) -> AsyncIterator[Live]:
    """A running server; drained at the end, when its peers are gone and all is given back."""
    with recording() as records:
        app = Application(config, directory)
        live = Live(app, records)
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda _, context: live.faults.append(context))
        await app.start()
        try:
            yield live
        finally:
            for peer in live.peers:
                peer.close()
            if not live.drained:
                await live.drain()
            loop.set_exception_handler(None)
        live.assert_quiet()
        live.assert_nothing_left()
