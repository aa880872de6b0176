"""What a disk holds, whatever keeps it: runs of data, and whether there is anything but zeroes."""

from collections.abc import AsyncIterator

from ..memory import page_aligned
from .base import BackingStore, Provisioning, StorageError, StorageFault
from .buffers import first_nonzero

CHUNK_BYTES = 1 << 20
_EXTENTS = 1024  # asked for at once


async def data_chunks(
    store: BackingStore, start_bytes: int, end_bytes: int
) -> AsyncIterator[tuple[int, int]]:
    """(offset, length) of at most `CHUNK_BYTES` of each run that is mapped. Raises StorageError."""
    position = start_bytes
    while position < end_bytes:
        for extent in await store.extents(position, end_bytes - position, _EXTENTS):
            position = extent.offset_bytes + extent.length_bytes
            if extent.state is Provisioning.MAPPED:
                for offset in range(extent.offset_bytes, position, CHUNK_BYTES):
                    yield offset, min(CHUNK_BYTES, position - offset)


async def read_into(store: BackingStore, offset_bytes: int, into: memoryview) -> None:
    """At once where that is possible. Raises StorageError."""
    if not store.read_now(offset_bytes, into):
        await store.read(offset_bytes, into)


async def first_data(store: BackingStore, start_bytes: int, end_bytes: int) -> int | None:
    """Where the first byte in the range is that is not zero. Raises StorageError."""
    buffer = page_aligned(CHUNK_BYTES)
    async for offset, length in data_chunks(store, start_bytes, end_bytes):
        into = buffer[:length]
        await read_into(store, offset, into)
        if (at := first_nonzero(into)) is not None:
            return offset + at
    return None


async def require_no_data(store: BackingStore, name: str, start_bytes: int, end_bytes: int) -> None:
    """Raise StorageError (INVALID) where the disk cannot lose this range."""
    at = await first_data(store, start_bytes, end_bytes)
    if at is not None:
        message = f"{name}: holds data at byte {at}, so it cannot shrink"
        raise StorageError(StorageFault.INVALID, message, at)
