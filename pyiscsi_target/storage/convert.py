"""Copying what a disk holds to another disk, which then holds the very same.

Holes stay holes. Must not know formats: both are open stores.
"""

from collections.abc import Callable, Iterator

from ..memory import page_aligned
from .base import BackingStore, StorageError, StorageFault
from .buffers import all_zero, same
from .content import CHUNK_BYTES, data_chunks, read_into

_GRAIN_BYTES = 64 << 10  # of zeroes that become a hole

Progress = Callable[[int], None]
"""Told up to which byte of the disk the work is done."""


async def copy_disk(source: BackingStore, target: BackingStore, progress: Progress) -> None:
    """Copy all that is not zero, and flush. `target` holds nothing but zeroes, and is large enough.

    Raises StorageError.
    """
    buffer = page_aligned(CHUNK_BYTES)
    unit = target.capabilities.logical_block_bytes
    async for offset, length in data_chunks(source, 0, source.size_bytes):
        progress(offset)
        data = buffer[:length]
        await read_into(source, offset, data)
        for start, end in _data_in(data):
            rest = -end % unit  # of a raw file that ends within a block
            pieces = (data[start:end], bytes(rest)) if rest else (data[start:end],)
            if not target.write_now(offset + start, pieces):
                await target.write(offset + start, pieces)
    await target.flush()
    progress(source.size_bytes)


def _data_in(data: memoryview) -> Iterator[tuple[int, int]]:
    """(start, end) of runs that are not all zeroes."""
    start = 0
    for at in range(0, len(data), _GRAIN_BYTES):
        if all_zero((data[at : at + _GRAIN_BYTES],)):
            if start < at:
                yield start, at
            start = at + _GRAIN_BYTES
    if start < len(data):
        yield start, len(data)


async def verify_copy(source: BackingStore, target: BackingStore, progress: Progress) -> None:
    """Read both and compare, wherever either of them has data. Raises StorageError (MEDIUM)."""
    ours, theirs = page_aligned(CHUNK_BYTES), page_aligned(CHUNK_BYTES)
    # Where both are holes, both are zeroes.
    for store in (source, target):
        async for offset, length in data_chunks(store, 0, source.size_bytes):
            progress(offset if store is source else source.size_bytes)
            left, right = ours[:length], theirs[:length]
            await read_into(source, offset, left)
            await read_into(target, offset, right)
            if not same(left, right):
                message = f"the copy differs within {length} bytes at byte {offset}"
                raise StorageError(StorageFault.MEDIUM, message, offset)
    progress(source.size_bytes)
