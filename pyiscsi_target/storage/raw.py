"""A disk whose bytes are those of one file or block device, from the first to the last.

Knows the size of the disk and nothing of how bytes are moved (`file_io`).
"""

from collections.abc import Iterable, Iterator, Sequence

from .base import (
    BackingStore,
    Buffer,
    Capabilities,
    Extent,
    Provisioning,
    StorageError,
    StorageFault,
)
from .image_file import ImageFile


class RawStore(BackingStore):
    """The first `size_bytes` of `file`, which it owns. `block_size` only rounds extents."""

    def __init__(
        self, file: ImageFile, size_bytes: int, capabilities: Capabilities, block_size: int = 512
    ) -> None:
        self.size_bytes = size_bytes
        self.capabilities = capabilities
        self.file = file
        self._block_size = block_size

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        """See `BackingStore.read_now`."""
        return self.file.read_now(offset_bytes, into)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        """See `BackingStore.read`."""
        await self.file.read(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        """See `BackingStore.write_now`."""
        return self.file.write_now(offset_bytes, data)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        """See `BackingStore.write`."""
        await self.file.write(offset_bytes, data, durable=durable)

    async def flush(self) -> None:
        """See `BackingStore.flush`."""
        await self.file.flush()

    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.deallocate`."""
        await self.file.punch(offset_bytes, length_bytes)

    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.write_zeroes`."""
        await self.file.zero(offset_bytes, length_bytes)

    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        """See `BackingStore.extents`."""
        runs = await self.file.data_runs(offset_bytes, length_bytes, limit)
        end = offset_bytes + length_bytes
        # With `limit` runs there may be more behind them, so nothing is known after the last.
        known_end = runs[-1][1] if len(runs) == limit else end
        whole = _whole_blocks(runs, offset_bytes, end, self._block_size)
        return list(_extents(whole, offset_bytes, known_end))[:limit]

    async def resize(self, size_bytes: int) -> None:
        """See `BackingStore.resize`; a block device cannot."""
        if size_bytes < self.size_bytes:
            data = await self.file.data_runs(size_bytes, self.size_bytes - size_bytes, 1)
            if data:
                message = f"{self.file.name}: holds data at byte {data[0][0]}, so it cannot shrink"
                raise StorageError(StorageFault.INVALID, message, data[0][0])
        await self.file.set_size(size_bytes)
        await self.file.flush()
        self.size_bytes = size_bytes

    async def available_bytes(self) -> int | None:
        """See `BackingStore.available_bytes`."""
        return await self.file.available_bytes()

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.prefetch`."""
        await self.file.prefetch(offset_bytes, length_bytes)

    async def close(self) -> None:
        """See `BackingStore.close`."""
        await self.file.close()

    def close_blocking(self) -> None:
        """See `BackingStore.close_blocking`."""
        self.file.close_blocking()


def _whole_blocks(
    runs: Iterable[tuple[int, int]], start_bytes: int, end_bytes: int, block_size: int
) -> Iterator[tuple[int, int]]:
    """The runs grown to whole blocks, for a file system's block may be smaller than the disk's."""
    pending: tuple[int, int] | None = None
    for run_start, run_end in runs:
        run_start = max(start_bytes, run_start // block_size * block_size)
        run_end = min(end_bytes, -(-run_end // block_size) * block_size)
        if pending is not None and run_start <= pending[1]:
            run_start = pending[0]
        elif pending is not None:
            yield pending
        pending = run_start, run_end
    if pending is not None:
        yield pending


def _extents(
    runs: Iterable[tuple[int, int]], start_bytes: int, known_end_bytes: int
) -> Iterator[Extent]:
    position = start_bytes
    for run_start, run_end in runs:
        if position < run_start:
            yield Extent(position, run_start - position, Provisioning.DEALLOCATED)
        yield Extent(run_start, run_end - run_start, Provisioning.MAPPED)
        position = run_end
    if position < known_end_bytes:
        yield Extent(position, known_end_bytes - position, Provisioning.DEALLOCATED)
