"""Flushing one file: shared flushes, and failures that are never forgotten.

Linux reports a failed write-back once; the pages are then clean and a later `fdatasync` succeeds
although the data is lost. So the rule here: once a sync of a file has failed, what was written
before is in doubt, and every later flush fails the same way until the file is opened again. Reads
and writes go on. A durable write that succeeds is on the medium and says so; one that fails puts
the file in doubt, for the error may have been that of an earlier cached write.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path

from .base import StorageError
from .faults import storage_error
from .workers import Workers

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


def sync_file(fd: int, *, whole: bool = False) -> None:
    """Put the file's data, and the metadata that finds it (`whole`: all), on the medium."""
    full_sync = getattr(fcntl, "F_FULLFSYNC", None)
    if full_sync is not None:  # macOS: fsync does not empty the drive's own cache
        fcntl.fcntl(fd, full_sync)
    elif hasattr(os, "fdatasync") and not whole:
        os.fdatasync(fd)
    else:
        os.fsync(fd)


def sync_directory(directory: Path) -> None:
    """Make what was created, renamed and removed in the directory durable. Raises OSError."""
    if os.name != "posix":  # where directories cannot be opened there is no need
        return
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class Durability:
    """The flushes of one file, and whether its content is in doubt."""

    __slots__ = ("_begun", "_doubt", "_name", "_next", "_sync", "_workers")

    def __init__(self, sync: Callable[[], None], workers: Workers, name: str) -> None:
        self._sync = sync
        self._workers = workers
        self._name = name
        self._begun: asyncio.Future[None] | None = None
        self._next: asyncio.Future[None] | None = None
        self._doubt: StorageError | None = None

    async def flush(self) -> None:
        """Return when everything written before this call is on the medium.

        Flushes that are asked for while one runs share the next one: it begins after all of them
        were asked for. Raises StorageError.
        """
        if self._next is None:
            self._next = asyncio.ensure_future(self._round(self._begun))
        await asyncio.shield(self._next)
        if self._doubt is not None:
            raise StorageError(self._doubt.fault, str(self._doubt))

    async def _round(self, before: asyncio.Future[None] | None) -> None:
        if before is not None:
            await asyncio.wait((before,))
        self._begun, self._next = self._next, None
        if self._doubt is not None:
            return
        try:
            await self._workers.run(self._sync)
        except OSError as error:
            self.put_in_doubt(error)

    def put_in_doubt(self, error: OSError) -> StorageError:
        """A sync of the file failed; what every flush will say from now on."""
        failure = storage_error(error, "flush", self._name)
        self._doubt = StorageError(
            failure.fault, f"{failure} (cached writes may be lost; in doubt until opened again)"
        )
        return self._doubt
