"""A disk whose changes are thrown away: they go into a temporary file, the image stays as it was.

Any kind of image can lie below, opened read-only, and below several overlays at once. Nothing here
survives the process, so nothing is ever flushed.
"""

from collections.abc import Sequence
from dataclasses import replace

from .base import BackingStore, Buffer
from .block_image import BlockImage
from .block_layout import Piece, Source
from .block_table import BlockTable
from .image_file import ImageFile

BLOCK_BYTES = 64 * 1024
ABSENT, ZEROED = -1, -2  # in the table: the block is the image's; it is all zeroes
_ALIGNMENT_BYTES = 4096


class OverlayStore(BlockImage):
    """`image`, with what is written to it kept in `file`; owns both.

    `file` is empty, can have holes, and has no name that anybody would find it by. Raises
    StorageError.
    """

    def __init__(self, image: BackingStore, file: ImageFile) -> None:
        capabilities = replace(
            image.capabilities,
            read_only=False,
            volatile=True,
            deallocate_granularity_bytes=_ALIGNMENT_BYTES,
            anchors=file.anchors,
        )
        block_count = -(-image.size_bytes // BLOCK_BYTES)
        file.set_size_blocking(_place(block_count))
        table = BlockTable(block_count, ABSENT)
        super().__init__(file, image.size_bytes, BLOCK_BYTES, capabilities, table, image)
        self._discarded: set[int] = set()  # and not emptied yet
        self._writes_now = True
        self._closed = False

    def _pieces(self, block: int, start: int, end: int) -> list[Piece]:
        state = self.table[block]
        if state > 0:
            return [Piece(end - start, Source.FILE, state + start)]
        return [Piece(end - start, Source.ZEROES if state == ZEROED else Source.PARENT)]

    async def _load(self, block: int) -> None:
        raise AssertionError("every block is known")

    def _run_without_space(self, block: int) -> int:
        return self.table.filler_run(block)

    async def _prepare(
        self, block: int, start: int, end: int, *, becomes_zero: bool = False
    ) -> int:
        async with self.changing:
            await self._empty(block)
            if self.table[block] == ABSENT and not self._is_whole(block, start, end):
                await self._copy_up(block)
            self.table[block] = _place(block)
            return _place(block)

    async def _empty(self, block: int) -> None:
        """Nothing of what was discarded is left in the block's place."""
        if block in self._discarded:
            await self.file.punch(_place(block), BLOCK_BYTES)
            self._discarded.discard(block)

    async def _copy_up(self, block: int) -> None:
        offset = block * BLOCK_BYTES
        length = min(BLOCK_BYTES, self.size_bytes - offset)
        if not await self._parent_is_zero(offset, length):
            data = bytearray(length)
            await self._read_parent(offset, memoryview(data))
            await self.file.write(_place(block), (data,))

    async def _discard(self, blocks: Sequence[int]) -> None:
        async with self.changing:
            there = [block for block in blocks if self.table[block] > 0]
            self._discarded.update(there)
            for block in blocks:
                self.table[block] = ZEROED
        await self._unused(there)
        async with self.changing:
            for block in there:
                if block not in self._in_use:  # else who writes to it next empties it
                    await self._empty(block)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        """See `BackingStore.write`; there is no medium that a write could be durable on."""
        await super().write(offset_bytes, data)

    async def flush(self) -> None:
        """Nothing is to be kept."""

    async def close(self) -> None:
        """See `BackingStore.close`."""
        if not self._closed:
            self._closed = True
            assert self.parent is not None
            try:
                await self.file.close()
            finally:
                await self.parent.close()


def _place(block: int) -> int:
    """Blocks lie in the file as in the disk; the first block of the file is not used, for a place
    is never 0."""
    return (block + 1) * BLOCK_BYTES
