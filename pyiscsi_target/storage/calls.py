"""Positioned data calls of the operating system with one face on every platform.

The best set that the platform has is chosen when a file is opened. These are bare calls: short
counts and `OSError` are the caller's to handle, and so is where they run.
"""

import os
import threading
from collections.abc import Sequence
from io import FileIO
from typing import Protocol

from .base import Buffer

IOV_MAX: int = os.sysconf("SC_IOV_MAX") if hasattr(os, "sysconf") else 16


class PositionedCalls(Protocol):
    """Read and write at an offset.

    `thread_safe` is False where calls take turns, so that one on the event loop could wait for one
    in a thread; `durable_writes` says that `write_durably` needs no flush after it.
    """

    thread_safe: bool
    durable_writes: bool

    def read(self, fd: int, into: memoryview, offset_bytes: int) -> int:
        """Read up to `len(into)` bytes; 0 is the end of the file."""

    def write(self, fd: int, data: Sequence[Buffer], offset_bytes: int) -> int:
        """Write some of the first `IOV_MAX` buffers, and say how many bytes."""

    def write_durably(self, fd: int, data: Sequence[Buffer], offset_bytes: int) -> int:
        """As `write`, and on the medium where `durable_writes` says so."""


class VectoredCalls:
    """`preadv` and `pwritev` (Linux, the BSDs, macOS 11)."""

    thread_safe = True

    def __init__(self) -> None:
        self._dsync: int = getattr(os, "RWF_DSYNC", 0)
        self.durable_writes = bool(self._dsync)

    def read(self, fd: int, into: memoryview, offset_bytes: int) -> int:
        return os.preadv(fd, (into,), offset_bytes)

    def write(self, fd: int, data: Sequence[Buffer], offset_bytes: int) -> int:
        return os.pwritev(fd, data if len(data) <= IOV_MAX else data[:IOV_MAX], offset_bytes)

    def write_durably(self, fd: int, data: Sequence[Buffer], offset_bytes: int) -> int:
        return os.pwritev(fd, data[:IOV_MAX], offset_bytes, self._dsync)


class PlainCalls:
    """`pread` and `pwrite`, one buffer a call (older macOS and others)."""

    thread_safe = True
    durable_writes = False

    def read(self, fd: int, into: memoryview, offset_bytes: int) -> int:
        data = os.pread(fd, len(into), offset_bytes)
        into[: len(data)] = data
        return len(data)

    def write(self, fd: int, data: Sequence[Buffer], offset_bytes: int) -> int:
        return os.pwrite(fd, data[0], offset_bytes) if data else 0

    write_durably = write


class SeekingCalls:
    """`lseek`, then read or write, one call at a time (Windows)."""

    thread_safe = False
    durable_writes = False

    def __init__(self) -> None:
        self._position = threading.Lock()

    def read(self, fd: int, into: memoryview, offset_bytes: int) -> int:
        with self._position:
            os.lseek(fd, offset_bytes, os.SEEK_SET)
            with FileIO(fd, closefd=False) as file:
                return file.readinto(into)

    def write(self, fd: int, data: Sequence[Buffer], offset_bytes: int) -> int:
        with self._position:
            os.lseek(fd, offset_bytes, os.SEEK_SET)
            return os.write(fd, data[0]) if data else 0

    write_durably = write


def best_calls() -> PositionedCalls:
    """What this platform can do best."""
    if hasattr(os, "preadv") and hasattr(os, "pwritev"):
        return VectoredCalls()
    if hasattr(os, "pread") and hasattr(os, "pwrite"):
        return PlainCalls()
    return SeekingCalls()
