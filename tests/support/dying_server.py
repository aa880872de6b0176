"""A server that kills itself with SIGKILL at a step of saving reservations: a process of its own.

Processes are forked from one that has imported the server already (`multiprocessing`'s fork
server), so that many of them cost little. A step counts only once the server is armed.
"""

import asyncio
import contextlib
import multiprocessing
import os
import resource
import signal
import stat
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from pyiscsi_target.app import Application
from pyiscsi_target.client import Portal
from pyiscsi_target.scsi.logical_unit import LogicalUnit
from pyiscsi_target.server import served_disks, state_store
from pyiscsi_target.server.config import load_config
from pyiscsi_target.server.state_store import StateStore

PATIENCE_S = 30.0

# What a PERSISTENT RESERVE OUT does between its arrival and its answer.
STEPS = (
    "save called",
    "half written",
    "written",
    "synced",
    "displaced",  # the last generation is the previous one now, and there is no last
    "renamed",
    "folder synced",
    "saved",
    "committed",
)


# Not a death: while the server is armed, no file may grow beyond some bytes (RLIMIT_FSIZE).
DISK_FULL = "disk full"
_ROOM_BYTES = 100


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@contextlib.contextmanager
def _no_room() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM_BYTES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def _put(owner: Any, name: str, call: Callable[..., object]) -> None:
    setattr(owner, name, call)


class _Steps:
    """Wraps the calls that a save makes of the operating system."""

    def __init__(self, last: str, armed: Path) -> None:
        self._last = last
        self._armed = armed

    def reach(self, step: str) -> None:
        if self.is_last(step):
            _die()

    def is_last(self, step: str) -> bool:
        return step == self._last and self._armed.exists()

    def around(self, owner: Any, name: str, before: str, after: str) -> None:
        call = getattr(owner, name)

        def run(*args: Any) -> Any:
            self.reach(before)
            result = call(*args)
            self.reach(after)
            return result

        _put(owner, name, run)

    def install(self) -> None:
        self.around(StateStore, "save", "save called", "saved")
        self._wrap_write()
        self._wrap_fsync()
        self._wrap_replace()
        commit = LogicalUnit._commit

        async def run(*args: Any) -> None:
            await commit(*args)
            self.reach("committed")

        _put(LogicalUnit, "_commit", run)

    def _wrap_write(self) -> None:
        write: Callable[[Path, bytes], None] = state_store._write_durably

        def run(path: Path, content: bytes) -> None:
            if self.is_last("half written"):
                path.write_bytes(content[: len(content) // 2])
                _die()
            if self.is_last(DISK_FULL):
                with _no_room():
                    write(path, content)
            else:
                write(path, content)

        _put(state_store, "_write_durably", run)

    def _wrap_fsync(self) -> None:
        fsync = os.fsync

        def run(descriptor: int) -> None:
            is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
            self.reach("renamed" if is_folder else "written")
            fsync(descriptor)
            self.reach("folder synced" if is_folder else "synced")

        _put(os, "fsync", run)

    def _wrap_replace(self) -> None:
        replace = Path.replace

        def run(source: Path, target: Path) -> Path:
            result = replace(source, target)
            if target.suffix == ".1":
                self.reach("displaced")
            return result

        _put(Path, "replace", run)


def _run(config: Path, channel: Connection, last: str, armed: Path, boot_id: str | None) -> None:
    """The process: serve, and tell through which port."""
    _Steps(last, armed).install()
    if boot_id is not None:
        _put(served_disks, "read_boot_id", lambda: boot_id)
    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(_serve(config, channel))


async def _serve(config: Path, channel: Connection) -> None:
    app = Application(load_config(config), config.parent)
    await app.start()
    channel.send(app._portals[0].endpoint.port)
    await app.run_until_stopped()
    await app.drain()


_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


class DyingServer:
    """A running server; `arm` it, and it dies at its step."""

    def __init__(self, config: Path, last: str, boot_id: str | None) -> None:
        self._armed = config.parent / "armed"
        self._armed.unlink(missing_ok=True)
        receiver, sender = _context.Pipe(duplex=False)
        self._process = _context.Process(
            target=_run, args=(config, sender, last, self._armed, boot_id)
        )
        self._process.start()
        sender.close()
        try:
            if not receiver.poll(PATIENCE_S):
                raise AssertionError("the server does not start")
            self.portal = Portal("127.0.0.1", receiver.recv())
        except BaseException:
            self.kill()
            raise
        finally:
            receiver.close()

    def arm(self) -> None:
        self._armed.touch()

    def disarm(self) -> None:
        self._armed.unlink()

    def wait(self) -> int:
        """Its exit status, negative for a signal."""
        self._process.join(PATIENCE_S)
        status = self._process.exitcode
        assert status is not None, "the server lives on"
        return status

    def kill(self) -> None:
        self._process.kill()
        self._process.join()

    def stop(self) -> int:
        """SIGTERM; its exit status once it has drained."""
        self._process.terminate()
        return self.wait()


@contextlib.contextmanager
def dying_server(
    config: Path, last: str = "", *, boot_id: str | None = None
) -> Iterator[DyingServer]:
    """A server that dies at the step `last` (none of them: lives), and is gone afterwards."""
    server = DyingServer(config, last, boot_id)
    try:
        yield server
    finally:
        server.kill()
