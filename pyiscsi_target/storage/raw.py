"""A disk whose bytes are those of one file or block device, from the first to the last.

Knows the size of the disk and nothing of how bytes are moved (`file_io`).
"""

from collections.abc import Sequence

from .base import BackingStore, Buffer, Capabilities, Extent
from .content import require_no_data
from .extents import whole_blocks
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

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.anchor`."""
        await self.file.zero(offset_bytes, length_bytes)

    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        """See `BackingStore.extents`."""
        end = offset_bytes + length_bytes
        found = await self.file.extents([(offset_bytes, end)], limit)
        return whole_blocks(found, self._block_size, end)[:limit]

    async def resize(self, size_bytes: int) -> None:
        """See `BackingStore.resize`; a block device cannot."""
        if size_bytes < self.size_bytes:
            await require_no_data(self, self.file.name, size_bytes, self.size_bytes)
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
