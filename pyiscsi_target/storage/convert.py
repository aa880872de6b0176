"""Copying what a disk holds to another disk, which then holds the very same.

Holes stay holes. Must not know formats: both are open stores.
"""

from collections.abc import Callable

from .base import BackingStore, StorageError, StorageFault
from .buffers import all_zero
from .content import CHUNK_BYTES, data_chunks, read_into

Progress = Callable[[int], None]
"""Told up to which byte of the disk the work is done."""


async def copy_disk(source: BackingStore, target: BackingStore, progress: Progress) -> None:
    """Copy all that is not zero, and flush. `target` holds nothing but zeroes, and is large enough.

    Raises StorageError.
    """
    buffer = bytearray(CHUNK_BYTES)
    unit = target.capabilities.logical_block_bytes
    async for offset, length in data_chunks(source, 0, source.size_bytes):
        progress(offset)
        data = memoryview(buffer)[:length]
        await read_into(source, offset, data)
        if all_zero((data,)):
            continue
        rest = -length % unit  # of a raw file that ends within a block
        pieces = (data, bytes(rest)) if rest else (data,)
        if not target.write_now(offset, pieces):
            await target.write(offset, pieces)
    await target.flush()
    progress(source.size_bytes)


async def verify_copy(source: BackingStore, target: BackingStore, progress: Progress) -> None:
    """Read both and compare, wherever either of them has data. Raises StorageError (MEDIUM)."""
    ours, theirs = bytearray(CHUNK_BYTES), bytearray(CHUNK_BYTES)
    # Where both are holes, both are zeroes.
    for store in (source, target):
        async for offset, length in data_chunks(store, 0, source.size_bytes):
            progress(offset if store is source else source.size_bytes)
            left, right = memoryview(ours)[:length], memoryview(theirs)[:length]
            await read_into(source, offset, left)
            await read_into(target, offset, right)
            if left != right:
                message = f"the copy differs within {length} bytes at byte {offset}"
                raise StorageError(StorageFault.MEDIUM, message, offset)
    progress(source.size_bytes)
