"""An image's file in memory that can lose power.

It records what is done to it since the last flush. `crash_states` then enumerates what the medium
may hold after the host has lost power: everything flushed is there; of what came later any part
may be there, in any order, cut at any sector; and the file may or may not have grown. `killed` is
what another process finds when only this one dies: everything that was written.
"""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pyiscsi_target.storage.base import (
    Buffer,
    Extent,
    Provisioning,
    StorageError,
    StorageFault,
)

SECTOR_BYTES = 512  # what a medium writes whole
LARGE_BYTES = 512 * 1024


@dataclass(frozen=True)
class Change:
    """`data` written at `offset_bytes`, or, where it is None, the size set to `offset_bytes`."""

    offset_bytes: int
    data: bytes | None


def apply_change(content: bytearray, change: Change) -> None:
    """Make the change."""
    if change.data is None:
        del content[change.offset_bytes :]
        content.extend(bytes(change.offset_bytes - len(content)))
        return
    end = change.offset_bytes + len(change.data)
    content.extend(bytes(max(0, end - len(content))))
    content[change.offset_bytes : end] = change.data


class RecordingFile:
    """An `ImageFile`. `slow` makes `..._now` refuse; `space_bytes` bounds the size it may have.

    `fail` is raised by the next write, size change or flush, and then forgotten.
    """

    anchors = False

    def __init__(
        self, content: bytes = b"", name: str = "recorded", *, read_only: bool = False
    ) -> None:
        self.name = name
        self.read_only = read_only
        self.durable = bytearray(content)
        self.content = bytearray(content)
        self.changes: list[Change] = []
        self.flushes = 0
        self.reserved: list[tuple[int, int]] = []
        self.closed = False
        self.slow = False
        self.space_bytes: int | None = None
        self.fail: StorageError | None = None

    # What a crash leaves

    def killed(self) -> bytes:
        """The file when the process has died."""
        return bytes(self.content)

    def prefixes(self) -> Iterator[bytes]:
        """The file after a loss of power that kept the first changes and lost the others."""
        content = bytearray(self.durable)
        yield bytes(content)
        for change in self.changes:
            apply_change(content, change)
            yield bytes(content)

    def crash_states(self, count: int, seed: int = 0) -> Iterator[bytes]:
        """All prefixes and all but one, then `count` random choices of sectors written or not."""
        yield from self.prefixes()
        for lost in range(len(self.changes)):
            yield self._with(self.changes[:lost] + self.changes[lost + 1 :])
        yield from self.random_states(count, seed)

    def random_states(self, count: int, seed: int = 0) -> Iterator[bytes]:
        """`count` random choices of sectors written or not."""
        source = random.Random(seed)
        for _ in range(count):
            yield self._with(self._random_part(source))

    def _with(self, changes: Sequence[Change]) -> bytes:
        content = bytearray(self.durable)
        for change in changes:
            apply_change(content, change)
        return bytes(content)

    def _random_part(self, source: random.Random) -> list[Change]:
        """Writes to one place stay in their order; between places there is none."""
        kept_share = source.choice((0.1, 0.5, 0.9))
        last: dict[int, Change] = {}
        sizes: list[Change] = []
        for change in self.changes:
            if change.data is None:
                sizes.append(change)
            else:
                for piece in sectors(change):
                    # A later write may replace an earlier one that was never on the medium.
                    if source.random() < kept_share:
                        last[piece.offset_bytes] = piece
        kept = list(last.values())
        source.shuffle(kept)
        return [*(size for size in sizes if source.random() < 0.5), *kept]

    # ImageFile

    @property
    def size_bytes(self) -> int:
        return len(self.content)

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        if self.closed or self.slow or offset_bytes + len(into) > len(self.content):
            return False
        into[:] = self.content[offset_bytes : offset_bytes + len(into)]
        return True

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        into[:] = self.read_blocking(offset_bytes, len(into))

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        if self.slow or self.read_only:
            return False
        self.write_blocking(offset_bytes, b"".join(data))
        return True

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        joined = b"".join(data)
        if durable:  # its own bytes alone; what they replace cannot come back
            end = offset_bytes + len(joined)
            self.changes = [
                kept for change in self.changes for kept in without(change, offset_bytes, end)
            ]
        self.write_blocking(offset_bytes, joined)
        if durable:
            apply_change(self.durable, Change(offset_bytes, joined))

    async def flush(self) -> None:
        self.flush_blocking()

    async def set_size(self, size_bytes: int) -> None:
        self.set_size_blocking(size_bytes)

    async def punch(self, offset_bytes: int, length_bytes: int) -> None:
        self.zero_blocking(offset_bytes, length_bytes)

    async def zero(self, offset_bytes: int, length_bytes: int) -> None:
        self.zero_blocking(offset_bytes, length_bytes)

    async def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        self.reserved.append((offset_bytes, offset_bytes + length_bytes))

    async def extents(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Extent]:
        return [Extent(at, end - at, Provisioning.MAPPED) for at, end in ranges[:limit]]

    async def available_bytes(self) -> int | None:
        return None if self.space_bytes is None else self.space_bytes - self.size_bytes

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        pass

    async def close(self) -> None:
        if not self.closed:
            if not self.read_only:
                self.flush_blocking()
            self.closed = True

    def read_blocking(self, offset_bytes: int, length_bytes: int) -> bytes:
        self._require_open()
        if offset_bytes + length_bytes > len(self.content):
            message = f"{self.name}: ends at byte {len(self.content)}"
            raise StorageError(StorageFault.SHORT, message, len(self.content))
        return bytes(self.content[offset_bytes : offset_bytes + length_bytes])

    def write_blocking(self, offset_bytes: int, data: Buffer) -> None:
        self._change(Change(offset_bytes, bytes(data)), offset_bytes + len(data))

    def flush_blocking(self) -> None:
        self._require_open()
        self._raise_failure()
        self.flushes += 1
        for change in self.changes:
            apply_change(self.durable, change)
        self.changes.clear()

    def set_size_blocking(self, size_bytes: int) -> None:
        self._change(Change(size_bytes, None), size_bytes)

    def zero_blocking(self, offset_bytes: int, length_bytes: int) -> None:
        """Like `fallocate` with KEEP_SIZE: what lies behind the end stays there."""
        end = min(offset_bytes + length_bytes, len(self.content))
        if offset_bytes < end:
            self.write_blocking(offset_bytes, bytes(end - offset_bytes))

    def close_blocking(self) -> None:
        self.closed = True

    def _change(self, change: Change, end_bytes: int) -> None:
        self._require_open()
        if self.read_only:
            raise StorageError(StorageFault.READ_ONLY, f"{self.name}: opened read-only")
        self._raise_failure()
        if self.space_bytes is not None and end_bytes > self.space_bytes:
            raise StorageError(StorageFault.OUT_OF_SPACE, f"{self.name}: no space", end_bytes)
        apply_change(self.content, change)
        self.changes.append(change)

    def _require_open(self) -> None:
        if self.closed:
            raise StorageError(StorageFault.GONE, f"{self.name}: closed")

    def _raise_failure(self) -> None:
        failure, self.fail = self.fail, None
        if failure is not None:
            raise failure


def without(change: Change, start_bytes: int, end_bytes: int) -> Iterator[Change]:
    """What a write does outside of a range."""
    at, data = change.offset_bytes, change.data
    if data is None or at >= end_bytes or at + len(data) <= start_bytes:
        yield change
        return
    if at < start_bytes:
        yield Change(at, data[: start_bytes - at])
    if at + len(data) > end_bytes:
        yield Change(end_bytes, data[end_bytes - at :])


def sectors(change: Change) -> Iterator[Change]:
    """A write cut at the medium's sectors, or, to be quick, a large one at larger pieces."""
    data = change.data or b""
    start, size = 0, SECTOR_BYTES if len(data) < LARGE_BYTES else LARGE_BYTES // 8
    while start < len(data):
        at = change.offset_bytes + start
        end = start + size - at % size
        yield Change(at, data[start:end])
        start = end


class JitteryFile(RecordingFile):
    """Nothing is done at once, and everything a random while later."""

    def __init__(self, content: bytes, seed: int) -> None:
        super().__init__(content)
        self.slow = True
        self._random = random.Random(seed)

    async def _wait(self) -> None:
        for _ in range(self._random.randrange(6)):
            await asyncio.sleep(0)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        await self._wait()
        await super().read(offset_bytes, into)
        await self._wait()

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        await self._wait()
        await super().write(offset_bytes, data, durable=durable)
        await self._wait()
