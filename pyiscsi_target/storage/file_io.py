"""Input and output of one open file: at once where that cannot block, else in a thread.

This is the only place where data meets the operating system (with its parts `calls`, `holes` and
`durability`); images of every format stand on it. It maps `OSError` to `StorageError`, and knows
neither what the bytes mean nor how large a disk is.

Reads on the event loop:
  memory          plain reads: they never block
  RWF_NOWAIT      from the page cache or not at all (Linux files and block devices)
  otherwise       plain reads while the file has been fast (`pace`)
Writes on the event loop: plain writes to memory, and to a file while it has been fast. Where calls
must take turns (no `pread`), everything runs in a thread.
"""

import errno
import os
import stat
import time
from collections.abc import Sequence
from itertools import islice

from .base import Buffer, Extent, Provisioning, StorageError, StorageFault
from .calls import best_calls
from .durability import Durability, sync_file
from .extents import append, end_of
from .faults import storage_error
from .holes import PUNCH, RESERVE, ZERO, allocate_mode, data_end, extents
from .pace import SLOW_S, Pace
from .workers import Workers

_ZEROES = memoryview(bytes(64 * 1024))
_ZERO_WRITE_BYTES = 1024 * 1024  # a call


def remaining(data: Sequence[Buffer], written_bytes: int) -> list[Buffer]:
    """What is left of the buffers after their first `written_bytes`; no empty ones."""
    left: list[Buffer] = []
    for buffer in data:
        length = len(buffer)
        if written_bytes >= length:
            written_bytes -= length
        elif written_bytes:
            left.append(memoryview(buffer)[written_bytes:])
            written_bytes = 0
        else:
            left.append(buffer)
    return left


def _takes_nowait(fd: int) -> bool:
    """Whether the file can be asked for what is in the page cache alone."""
    flag = getattr(os, "RWF_NOWAIT", None)
    if flag is None or not hasattr(os, "preadv"):
        return False
    try:
        os.preadv(fd, (bytearray(1),), 0, flag)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return True


class FileIo:
    """One open file or block device, owned: `close` closes the descriptor.

    `name` is for messages. `memory`: the file is memory, so nothing blocks and nothing is durable.
    `anchors`: what `can_anchor` says of it. `limit_bytes`: it does not become longer than this.
    Buffers are `bytes`, `bytearray` or one-dimensional views of bytes.
    """

    __slots__ = (
        "_allocation_unit_bytes",
        "_calls",
        "_closed",
        "_durability",
        "_fd",
        "_limit_bytes",
        "_memory",
        "_read_pace",
        "_resized",
        "_workers",
        "_write_pace",
        "anchors",
        "name",
        "read_now",
        "read_only",
        "write_now",
    )

    def __init__(
        self,
        fd: int,
        name: str,
        *,
        read_only: bool = False,
        memory: bool = False,
        allocation_unit_bytes: int = 1,
        anchors: bool = False,
        limit_bytes: int | None = None,
        read_pace: Pace | None = None,
        write_pace: Pace | None = None,
    ) -> None:
        self.name = name
        self.read_only = read_only
        self.anchors = anchors
        self._fd = fd
        self._closed = False
        self._resized = False
        self._limit_bytes = limit_bytes
        self._memory = memory
        self._allocation_unit_bytes = allocation_unit_bytes
        self._calls = best_calls()
        self._read_pace = read_pace or Pace()
        self._write_pace = write_pace or Pace()
        self._workers = Workers(name)
        self._durability = Durability(self._sync, self._workers, name)
        self._choose_now()

    def _choose_now(self) -> None:
        self.read_now = self._read_paced
        self.write_now = self._write_paced
        if not self._calls.thread_safe:
            self.read_now = self._read_never
            self.write_now = self._write_never
        elif self._memory:
            self.read_now = self._read_plainly
            self.write_now = self._write_plainly
        elif _takes_nowait(self._fd):
            self.read_now = self._read_cached
        if self.read_only:
            self.write_now = self._write_never

    # Reads

    def _read_cached(self, offset_bytes: int, into: memoryview) -> bool:
        try:
            return os.preadv(self._fd, (into,), offset_bytes, os.RWF_NOWAIT) == len(into)
        except OSError:  # mostly EAGAIN; the read in a thread finds out what the others are
            return False

    def _read_plainly(self, offset_bytes: int, into: memoryview) -> bool:
        try:
            return self._calls.read(self._fd, into, offset_bytes) == len(into)
        except OSError:
            return False

    def _read_paced(self, offset_bytes: int, into: memoryview) -> bool:
        pace = self._read_pace
        if pace.wary:
            return pace.carefully(self._read_plainly, offset_bytes, into)
        started_s = pace.clock()
        filled = self._read_plainly(offset_bytes, into)
        if pace.clock() - started_s > SLOW_S:
            pace.slow_call()
        return filled

    def _read_never(self, offset_bytes: int, into: memoryview) -> bool:
        return False

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into` in a thread. Raises StorageError (SHORT at the end of the file)."""
        elapsed_s = await self._workers.run(self._read_all, offset_bytes, into)
        self._read_pace.threaded_call(elapsed_s)

    def _read_all(self, offset_bytes: int, into: memoryview) -> float:
        started_s = time.monotonic()
        while into:
            try:
                count = self._calls.read(self._fd, into, offset_bytes)
            except OSError as error:
                raise storage_error(error, "read", self.name, offset_bytes) from error
            if not count:
                raise StorageError(
                    StorageFault.SHORT, f"{self.name}: ends at byte {offset_bytes}", offset_bytes
                )
            offset_bytes += count
            into = into[count:]
        return time.monotonic() - started_s

    # Writes

    def _write_paced(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        pace = self._write_pace
        if pace.wary:
            return pace.carefully(self._write_plainly, offset_bytes, data)
        started_s = pace.clock()
        try:
            return self._write_plainly(offset_bytes, data)
        finally:  # a failure may have taken its time
            if pace.clock() - started_s > SLOW_S:
                pace.slow_call()

    def _write_plainly(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        try:
            count = self._calls.write(self._fd, data, offset_bytes)
        except OSError as error:
            raise storage_error(error, "write", self.name, offset_bytes) from error
        if count != (len(data[0]) if len(data) == 1 else sum(map(len, data))):
            self._write_all(offset_bytes + count, remaining(data, count))
        return True

    def _write_never(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return False

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        """Write the buffers in a thread; `durable`: and return when they are on the medium."""
        self._require_writable()
        if durable and not self._memory:
            await self._write_durably(offset_bytes, data)
            return
        elapsed_s = await self._workers.run(self._write_all, offset_bytes, remaining(data, 0))
        self._write_pace.threaded_call(elapsed_s)

    async def _write_durably(self, offset_bytes: int, data: Sequence[Buffer]) -> None:
        if not self._calls.durable_writes:
            await self._workers.run(self._write_all, offset_bytes, remaining(data, 0))
            await self._durability.flush()
            return
        try:
            await self._workers.run(self._write_all_durably, offset_bytes, remaining(data, 0))
        except StorageError as error:
            # Was it the write that failed, or the sync after it, which may speak of older writes?
            await self._workers.run(self._write_all, offset_bytes, remaining(data, 0))
            if isinstance(error.__cause__, OSError):
                self._durability.put_in_doubt(error.__cause__)
            raise

    def _write_all(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> float:
        started_s = time.monotonic()
        write = self._calls.write_durably if durable else self._calls.write
        while data:
            try:
                count = write(self._fd, data, offset_bytes)
                if not count:
                    raise OSError(errno.EIO, "nothing was written")
            except OSError as error:
                raise storage_error(error, "write", self.name, offset_bytes) from error
            offset_bytes += count
            data = remaining(data, count)
        return time.monotonic() - started_s

    def _write_all_durably(self, offset_bytes: int, data: Sequence[Buffer]) -> float:
        return self._write_all(offset_bytes, data, durable=True)

    def _require_writable(self) -> None:
        if self.read_only:
            raise StorageError(StorageFault.READ_ONLY, f"{self.name}: opened read-only")

    # Durability

    async def flush(self) -> None:
        """Return when every write that has completed is on the medium. Raises StorageError."""
        if not (self._memory or self.read_only):
            await self._durability.flush()

    def _sync(self) -> None:
        if not self._resized:
            sync_file(self._fd)
            return
        # A new size is metadata, which a sync of the data alone need not write.
        self._resized = False
        try:
            sync_file(self._fd, whole=True)
        except OSError:
            self._resized = True
            raise

    # Size

    @property
    def size_bytes(self) -> int:
        """The length of the file or block device now. Raises StorageError."""
        try:
            status = os.fstat(self._fd)
            if stat.S_ISREG(status.st_mode):
                return status.st_size
            return os.lseek(self._fd, 0, os.SEEK_END)
        except OSError as error:
            raise storage_error(error, "find size", self.name) from error

    async def set_size(self, size_bytes: int) -> None:
        """Grow the file (with a hole) or shrink it, in a thread. Raises StorageError."""
        await self._workers.run(self.set_size_blocking, size_bytes)

    async def available_bytes(self) -> int | None:
        """How much the file system has left for this process, or the file's limit if that is less;
        None for memory and devices.
        """
        if self._memory or self._allocation_unit_bytes > 1 or not hasattr(os, "fstatvfs"):
            return None
        return await self._workers.run(self._available_bytes)

    def _available_bytes(self) -> int:
        try:
            found = os.fstatvfs(self._fd)
        except OSError as error:
            raise storage_error(error, "ask for space", self.name) from error
        left_bytes = found.f_bavail * found.f_frsize
        if self._limit_bytes is None:
            return left_bytes
        return max(0, min(left_bytes, self._limit_bytes - self.size_bytes))

    # Blocking calls, for opening, creating and checking images

    def read_blocking(self, offset_bytes: int, length_bytes: int) -> bytes:
        """The bytes of the range. Raises StorageError (SHORT at the end of the file)."""
        data = bytearray(length_bytes)
        self._read_all(offset_bytes, memoryview(data))
        return bytes(data)

    def write_blocking(self, offset_bytes: int, data: Buffer) -> None:
        """Write the buffer. Raises StorageError."""
        self._require_writable()
        self._write_all(offset_bytes, remaining((data,), 0))

    def flush_blocking(self) -> None:
        """Put everything written on the medium. Raises StorageError."""
        if self._memory or self.read_only:
            return
        try:
            self._sync()
        except OSError as error:
            raise self._durability.put_in_doubt(error) from error

    def set_size_blocking(self, size_bytes: int) -> None:
        """Grow the file (with a hole) or shrink it. Raises StorageError."""
        self._require_writable()
        limit_bytes = self._limit_bytes
        if limit_bytes is not None and size_bytes > max(limit_bytes, self.size_bytes):
            message = f"{self.name}: may not grow beyond its limit of {limit_bytes} bytes"
            raise StorageError(StorageFault.OUT_OF_SPACE, message, size_bytes)
        try:
            os.ftruncate(self._fd, size_bytes)
        except OverflowError:  # more than an offset can say
            error = OSError(errno.EFBIG, os.strerror(errno.EFBIG))
            raise storage_error(error, "resize", self.name) from None
        except OSError as error:
            raise storage_error(error, "resize", self.name, size_bytes) from error
        self._resized = True

    def zero_blocking(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes and keep its space. Raises StorageError."""
        self._require_writable()
        if length_bytes:
            self._zero_range(ZERO, offset_bytes, length_bytes)

    def close_blocking(self) -> None:
        """Close without a flush: after an error, or where nothing was written. Idempotent."""
        if not self._closed:
            self._closed = True
            fd, self._fd = self._fd, -1
            os.close(fd)

    # Allocation

    async def punch(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes and give its space back where that is possible."""
        await self._zero(PUNCH, offset_bytes, length_bytes)

    async def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes and keep its space."""
        await self._zero(ZERO, offset_bytes, length_bytes)

    async def _zero(self, mode: int, offset_bytes: int, length_bytes: int) -> None:
        self._require_writable()
        if length_bytes:
            await self._workers.run(self._zero_range, mode, offset_bytes, length_bytes)

    def _zero_range(self, mode: int, offset_bytes: int, length_bytes: int) -> None:
        """`fallocate` whole allocation units, and zeroes for the rest.

        A file's unit is one byte: the kernel itself zeroes the partial blocks of a hole. Block
        devices refuse anything but whole logical blocks.
        """
        unit = self._allocation_unit_bytes
        end = offset_bytes + length_bytes
        inner_start, inner_end = -(-offset_bytes // unit) * unit, end // unit * unit
        if inner_start >= inner_end or not self._allocate(mode, inner_start, inner_end):
            self._write_zeroes(offset_bytes, end)
            return
        self._write_zeroes(offset_bytes, inner_start)
        self._write_zeroes(inner_end, end)

    def _allocate(self, mode: int, start_bytes: int, end_bytes: int) -> bool:
        try:
            return allocate_mode(self._fd, mode, start_bytes, end_bytes - start_bytes)
        except OSError as error:
            raise storage_error(error, "allocate", self.name, start_bytes) from error

    def _write_zeroes(self, start_bytes: int, end_bytes: int) -> None:
        while start_bytes < end_bytes:
            length = min(end_bytes - start_bytes, _ZERO_WRITE_BYTES)
            whole, rest = divmod(length, len(_ZEROES))
            self._write_all(start_bytes, remaining([_ZEROES] * whole + [_ZEROES[:rest]], 0))
            start_bytes += length

    async def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        """Have space for all of the range, whose content stays; where the file `anchors`."""
        self._require_writable()
        end = offset_bytes + length_bytes
        await self._workers.run(self._allocate, RESERVE, offset_bytes, end)

    async def extents(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Extent]:
        """The first `limit` extents of the ranges (start, end); what nobody knows is mapped."""
        return await self._workers.run(self._find_extents, ranges, limit)

    def _find_extents(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Extent]:
        size_bytes = self.size_bytes if self._calls.thread_safe else 0
        found: list[Extent] = []
        data_start = data_stop = 0  # a run in which no range needs to be asked about
        for start, end in ranges[:limit]:
            if data_start <= start and end <= data_stop:
                found.append(Extent(start, end - start, Provisioning.MAPPED))
            else:
                known_end = max(start, min(end, size_bytes))
                found += self._range_extents(start, known_end, end, limit - len(found))
                last = found[-1]
                if last.state is Provisioning.MAPPED and start < known_end == end_of(last):
                    data_start, data_stop = last.offset_bytes, data_end(self._fd, known_end - 1)
            if len(found) == limit:
                break
        return found

    def _range_extents(self, start: int, known_end: int, end: int, limit: int) -> list[Extent]:
        """Of one range; what lies behind the end of the file cannot be read, and is no hole."""
        try:
            known = extents(self._fd, start, known_end, anchors=self.anchors)
            found = list(islice(known, limit))
        except OSError as error:
            raise storage_error(error, "find data", self.name, start) from error
        if known_end < end and (not found or end_of(found[-1]) == known_end):
            append(found, Extent(known_end, end - known_end, Provisioning.MAPPED))
        return found[:limit]

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        """Ask the kernel to read the range into its cache; where it cannot, nothing happens."""
        if hasattr(os, "posix_fadvise") and not self._memory:
            await self._workers.run(self._advise, offset_bytes, length_bytes)

    def _advise(self, offset_bytes: int, length_bytes: int) -> None:
        try:
            os.posix_fadvise(self._fd, offset_bytes, length_bytes, os.POSIX_FADV_WILLNEED)
        except OSError as error:
            raise storage_error(error, "prefetch", self.name, offset_bytes) from error

    async def close(self) -> None:
        """Wait for what runs, flush, and close (which unlocks). Idempotent. Raises StorageError."""
        if self._closed:
            return
        self._closed = True
        try:
            await self.flush()
        finally:
            await self._workers.close()
            fd, self._fd = self._fd, -1
            os.close(fd)
