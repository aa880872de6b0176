"""Where the bytes of a disk in blocks are: in a file, in the parent image, or nowhere.

What follows from that alone is here: extents, and what a disk has of its own. Must not know how
blocks are read, written, or given space (`block_image`).
"""

import asyncio
from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from enum import Enum, auto
from typing import NamedTuple

from .base import BackingStore, Capabilities, Extent, Provisioning
from .block_table import BlockTable
from .buffers import fill_zeroes
from .extents import append, end_of, whole_blocks
from .image_file import ImageFile

BLOCKS_A_TURN = 256  # looked at before others have their turn of the event loop
_BLOCKS_MAX = 1 << 14  # looked at for one answer
_PARENT_EXTENTS = 64  # asked for at once


class Source(Enum):
    """Where bytes of a block come from."""

    FILE = auto()
    ZEROES = auto()
    PARENT = auto()


class Piece(NamedTuple):
    """A run of bytes of one block; `at_bytes` is its place in the file, if it is there."""

    length_bytes: int
    source: Source
    at_bytes: int = 0


class BlockLayout(BackingStore):
    """A disk of `size_bytes` in blocks of `block_bytes` (a power of two), living in `file`.

    Owns `file` and `parent`, the disk under a differencing one, which may be smaller (zeroes
    follow) or larger. Formats fill `table`, and give `_pieces` and `_load`, which get ranges within
    one block.
    """

    def __init__(
        self,
        file: ImageFile,
        size_bytes: int,
        block_bytes: int,
        capabilities: Capabilities,
        table: BlockTable,
        parent: BackingStore | None = None,
    ) -> None:
        self.size_bytes = size_bytes
        self.capabilities = capabilities
        self.file = file
        self.parent = parent
        self.block_bytes = block_bytes
        self.table = table
        self._shift = block_bytes.bit_length() - 1
        self._mask = block_bytes - 1

    @abstractmethod
    def _pieces(self, block: int, start: int, end: int) -> list[Piece] | None:
        """Where the bytes [start, end) of the block come from; None: `_load` it first."""

    @abstractmethod
    async def _load(self, block: int) -> None:
        """Bring into memory what `_pieces` needs for the block. Raises StorageError."""

    async def _known_pieces(self, block: int, start: int, end: int) -> list[Piece]:
        """As `_pieces`, which are loaded if need be. Raises StorageError."""
        while (pieces := self._pieces(block, start, end)) is None:
            await self._load(block)
        return pieces

    def _run_without_space(self, block: int) -> int:
        """How many blocks from this one on are surely not in the file (0: nobody knows)."""
        return 0

    def _split(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int, int]]:
        """(block, start and end within it, start within the request) of a request's parts."""
        position, end = offset_bytes, offset_bytes + length_bytes
        while position < end:
            block, start = position >> self._shift, position & self._mask
            stop = min(self.block_bytes, start + end - position)
            yield block, start, stop, position - offset_bytes
            position += stop - start

    # The parent

    def _of_parent(self, offset_bytes: int, into: memoryview) -> memoryview:
        """The part that the parent has; zeroes are put into the rest."""
        assert self.parent is not None
        count = max(0, min(len(into), self.parent.size_bytes - offset_bytes))
        fill_zeroes(into[count:])
        return into[:count]

    def _read_parent_now(self, offset_bytes: int, into: memoryview) -> bool:
        assert self.parent is not None
        part = self._of_parent(offset_bytes, into)
        return not part or self.parent.read_now(offset_bytes, part)

    async def _read_parent(self, offset_bytes: int, into: memoryview) -> None:
        assert self.parent is not None
        part = self._of_parent(offset_bytes, into)
        if part and not self.parent.read_now(offset_bytes, part):
            await self.parent.read(offset_bytes, part)

    async def _parent_extents(self, offset_bytes: int, length_bytes: int) -> AsyncIterator[Extent]:
        """What the parent has of the range: mapped, or deallocated (its space is no help to a write
        here). Raises StorageError.
        """
        assert self.parent is not None
        end = offset_bytes + length_bytes
        parent_end = min(end, self.parent.size_bytes)
        while offset_bytes < parent_end:
            length = parent_end - offset_bytes
            for extent in await self.parent.extents(offset_bytes, length, _PARENT_EXTENTS):
                is_mapped = extent.state is Provisioning.MAPPED
                state = extent.state if is_mapped else Provisioning.DEALLOCATED
                yield Extent(offset_bytes, extent.length_bytes, state)
                offset_bytes = end_of(extent)
        if offset_bytes < end:
            yield Extent(offset_bytes, end - offset_bytes, Provisioning.DEALLOCATED)

    async def _parent_zeroes(self, offset_bytes: int, length_bytes: int) -> int:
        """How many bytes from the offset on are surely zeroes in the parent, without reading it."""
        count = 0
        async for extent in self._parent_extents(offset_bytes, length_bytes):
            if extent.state is Provisioning.MAPPED:
                break
            count += extent.length_bytes
        return count

    async def _parent_is_zero(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether the parent surely has only zeroes in the range, without reading them."""
        return await self._parent_zeroes(offset_bytes, length_bytes) == length_bytes

    # Extents

    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        """See `BackingStore.extents`.

        A block that is in the file is in the state that the file has there.
        """
        found: list[Extent] = []
        end, seen = offset_bytes + length_bytes, 0
        while offset_bytes < end and seen < _BLOCKS_MAX and len(found) <= limit:
            pieces = await self._pieces_of_blocks(offset_bytes, end)
            seen += len(pieces)
            for extent in await self._extents_of(offset_bytes, pieces, limit):
                append(found, extent)
                offset_bytes = end_of(extent)
            await asyncio.sleep(0)
        return whole_blocks(found, self.capabilities.logical_block_bytes, end)[:limit]

    async def _pieces_of_blocks(self, offset_bytes: int, end_bytes: int) -> list[Piece]:
        """Pieces from the offset on, of some blocks."""
        found: list[Piece] = []
        while offset_bytes < end_bytes and len(found) < BLOCKS_A_TURN:
            pieces = await self._pieces_of_block(offset_bytes, end_bytes)
            found += pieces
            offset_bytes += sum(piece.length_bytes for piece in pieces)
        return found

    async def _pieces_of_block(self, offset_bytes: int, end_bytes: int) -> list[Piece]:
        """Pieces from the offset on, at least to the end of its block."""
        block, start = offset_bytes >> self._shift, offset_bytes & self._mask
        stop = min(self.block_bytes, end_bytes - (block << self._shift))
        if (at := self.table[block]) > 0:
            return [Piece(stop - start, Source.FILE, at + start)]
        if (count := self._run_without_space(block)) > 1:
            length = min(((block + count) << self._shift), end_bytes) - offset_bytes
            return [Piece(length, Source.ZEROES if self.parent is None else Source.PARENT)]
        return await self._known_pieces(block, start, stop)

    async def _extents_of(
        self, offset_bytes: int, pieces: Sequence[Piece], limit: int
    ) -> list[Extent]:
        """The extents of pieces, or about `limit` of them."""
        in_file = iter(await self._extents_in_file(pieces, limit))
        found: list[Extent] = []
        for piece in pieces:
            end = offset_bytes + piece.length_bytes
            match piece.source:
                case Source.ZEROES:
                    found.append(Extent(offset_bytes, piece.length_bytes, Provisioning.DEALLOCATED))
                case Source.PARENT:
                    async for extent in self._parent_extents(offset_bytes, piece.length_bytes):
                        append(found, extent)
                        if len(found) > limit:
                            return found
                case Source.FILE:
                    while offset_bytes < end:
                        if (part := next(in_file, None)) is None:
                            return found
                        found.append(Extent(offset_bytes, part.length_bytes, part.state))
                        offset_bytes += part.length_bytes
            offset_bytes = end
        return found

    async def _extents_in_file(self, pieces: Sequence[Piece], limit: int) -> list[Extent]:
        """What the file has where the pieces are that are in it."""
        ranges = [
            (piece.at_bytes, piece.at_bytes + piece.length_bytes)
            for piece in pieces
            if piece.source is Source.FILE
        ]
        if self.capabilities.anchors and ranges:
            return await self.file.extents(ranges, max(limit, len(ranges)))
        return [Extent(at, end - at, Provisioning.MAPPED) for at, end in ranges]

    async def own_runs(
        self, start_bytes: int, end_bytes: int
    ) -> AsyncIterator[tuple[int, int, Source]]:
        """(offset, length, FILE or ZEROES) of what does not come from the parent."""
        for block, start, end, first in self._split(start_bytes, end_bytes - start_bytes):
            offset = start_bytes + first
            for piece in await self._known_pieces(block, start, end):
                if piece.source is not Source.PARENT:
                    yield offset, piece.length_bytes, piece.source
                offset += piece.length_bytes

    # The rest

    async def available_bytes(self) -> int | None:
        """See `BackingStore.available_bytes`."""
        return await self.file.available_bytes()

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.prefetch`."""
        for block, start, end, _ in self._split(offset_bytes, length_bytes):
            for piece in await self._known_pieces(block, start, end):
                if piece.source is Source.FILE:
                    await self.file.prefetch(piece.at_bytes, piece.length_bytes)

    def close_blocking(self) -> None:
        """See `BackingStore.close_blocking`."""
        self.file.close_blocking()
        if self.parent is not None:
            self.parent.close_blocking()
