"""A disk in blocks that are somewhere in a file, or nowhere yet: the request path of such formats.

Splits requests at block ends, reads what is not there as zeroes or from the parent image, and has
the format make room before it writes. It must not know where a format keeps its metadata, nor when
that is on the medium: the order of writes is the format's.
"""

import asyncio
from abc import abstractmethod
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar

from .base import (
    BackingStore,
    Buffer,
    Capabilities,
    Extent,
    Provisioning,
    StorageError,
    StorageFault,
)
from .block_table import PAGE_MASK, PAGE_SHIFT, BlockTable
from .extents import append, end_of, whole_blocks
from .image_file import ImageFile

T = TypeVar("T")
ReadNow = Callable[[int, memoryview], bool]
WriteNow = Callable[[int, Sequence[Buffer]], bool]

_ZEROES = bytes(64 * 1024)
_EXTENT_BLOCKS_MAX = 1 << 18  # looked at for one answer, so that it cannot hold up the event loop
_EXTENT_LOOKS_MAX = 1 << 14  # likewise, where the file is asked about each of them
_EXTENT_BLOCKS_AT_ONCE = 256  # by one call


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


class BlockImage(BackingStore):
    """A disk of `size_bytes` in blocks of `block_bytes` (a power of two), living in `file`.

    Owns `file` and `parent`, the disk under a differencing one, which may be smaller (zeroes
    follow) or larger. Formats fill `table`, implement the methods that raise NotImplementedError
    or are abstract, and may count on this:

    - `_pieces` and `_prepare` are given ranges within one block.
    - A change of the metadata is made while `changing` is held; requests read the table without it.
    - `_begin_writing`, `_prepare` and `_discard` run to their end even if the request is cancelled.
    - Whoever frees a block's space awaits `_unused(block)` after it took it out of the table.
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
        self.changing = asyncio.Lock()
        self._file_read_now = file.read_now
        self._file_write_now = file.write_now
        self._shift = block_bytes.bit_length() - 1
        self._mask = block_bytes - 1
        self._may_write_now = False
        self._in_use: Counter[int] = Counter()
        self._released = asyncio.Event()
        self._bind()

    @property
    def _writes_now(self) -> bool:
        """Whether the format lets blocks be written in place yet."""
        return self._may_write_now

    @_writes_now.setter
    def _writes_now(self, value: bool) -> None:
        self._may_write_now = value
        self._bind()

    # What a format supplies

    @abstractmethod
    def _pieces(self, block: int, start: int, end: int) -> list[Piece] | None:
        """Where the bytes [start, end) of the block come from; None: `_load` it first."""

    @abstractmethod
    async def _load(self, block: int) -> None:
        """Bring into memory what `_pieces` needs for the block. Raises StorageError."""

    @abstractmethod
    async def _prepare(self, block: int, start: int, end: int) -> int:
        """Let [start, end) of the block be written in place, and return the place of the block.

        Called (without `changing`) for blocks that the table does not show as there. When it
        returns the range is there for this process and every later one, with the content that it
        had before; nothing the caller may then lose of its own write may change that.
        Raises StorageError, with nothing changed but perhaps space taken.
        """

    @abstractmethod
    async def _discard(self, blocks: Sequence[int]) -> None:
        """Make whole blocks read as zeroes and give their space back."""

    async def _begin_writing(self) -> None:
        """Called before the first change of the content; not again once `_writes_now` is set."""

    def _metadata_is_durable(self) -> bool:
        """Whether all changes of the metadata that `_prepare` made are on the medium."""
        return True

    # Reading

    def _bind(self) -> None:
        """Make `read_now` and `write_now` of what they need; again when the table has grown.

        Every look-up in `self` would be felt.
        """
        bind = self._bind_paged if self.table.flat is None else self._bind_flat
        read_now, write_now = bind()
        self.read_now = read_now  # type: ignore[method-assign, assignment]
        self.write_now = (  # type: ignore[method-assign]
            write_now if self._may_write_now else _refuse  # type: ignore[assignment]
        )

    def _resize_table(self, block_count: int) -> None:
        """More or fewer blocks: the table has other pages then."""
        self.table.resize(block_count)
        self._bind()

    def _bind_flat(self) -> tuple[ReadNow, WriteNow]:
        """For a table of one page."""
        flat, shift, mask, size = self.table.pages[0], self._shift, self._mask, self.block_bytes
        read_file, read_parts = self._file_read_now, self._read_parts_now
        write_file, write_parts = self._file_write_now, self._write_parts_now

        def read_now(offset_bytes: int, into: memoryview) -> bool:
            at = flat[offset_bytes >> shift]
            within = offset_bytes & mask
            if at > 0 and within + len(into) <= size:
                return read_file(at + within, into)
            return read_parts(offset_bytes, into)

        def write_now(offset_bytes: int, data: Sequence[Buffer]) -> bool:
            at = flat[offset_bytes >> shift]
            within = offset_bytes & mask
            if at > 0 and len(data) == 1 and within + len(data[0]) <= size:
                return write_file(at + within, data)
            return write_parts(offset_bytes, data)

        return read_now, write_now

    def _bind_paged(self) -> tuple[ReadNow, WriteNow]:
        pages, page_shift, page_mask = self.table.pages, PAGE_SHIFT, PAGE_MASK
        shift, mask, size = self._shift, self._mask, self.block_bytes
        read_file, read_parts = self._file_read_now, self._read_parts_now
        write_file, write_parts = self._file_write_now, self._write_parts_now

        def read_now(offset_bytes: int, into: memoryview) -> bool:
            block = offset_bytes >> shift
            at = pages[block >> page_shift][block & page_mask]
            within = offset_bytes & mask
            if at > 0 and within + len(into) <= size:
                return read_file(at + within, into)
            return read_parts(offset_bytes, into)

        def write_now(offset_bytes: int, data: Sequence[Buffer]) -> bool:
            block = offset_bytes >> shift
            at = pages[block >> page_shift][block & page_mask]
            within = offset_bytes & mask
            if at > 0 and len(data) == 1 and within + len(data[0]) <= size:
                return write_file(at + within, data)
            return write_parts(offset_bytes, data)

        return read_now, write_now

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        """See `BackingStore.read_now`; `_bind` makes a faster one."""
        return self._read_parts_now(offset_bytes, into)

    def _read_parts_now(self, offset_bytes: int, into: memoryview) -> bool:
        return all(
            self._read_block_now(block, start, into[first : first + end - start])
            for block, start, end, first in self._split(offset_bytes, len(into))
        )

    def _read_block_now(self, block: int, start: int, into: memoryview) -> bool:
        pieces = self._pieces(block, start, start + len(into))
        if pieces is None:
            return False
        offset = (block << self._shift) + start
        for piece in pieces:
            part, into = into[: piece.length_bytes], into[piece.length_bytes :]
            if piece.source is Source.ZEROES:
                fill_zeroes(part)
            elif piece.source is Source.FILE:
                if not self._file_read_now(piece.at_bytes, part):
                    return False
            elif not self._read_parent_now(offset, part):
                return False
            offset += piece.length_bytes
        return True

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        """See `BackingStore.read`."""
        for block, start, end, first in self._split(offset_bytes, len(into)):
            await self._read_block(block, start, into[first : first + end - start])

    async def _read_block(self, block: int, start: int, into: memoryview) -> None:
        while (pieces := self._pieces(block, start, start + len(into))) is None:
            await self._load(block)
        offset = (block << self._shift) + start
        with self._using(block):
            for piece in pieces:
                part, into = into[: piece.length_bytes], into[piece.length_bytes :]
                if piece.source is Source.ZEROES:
                    fill_zeroes(part)
                elif piece.source is Source.PARENT:
                    await self._read_parent(offset, part)
                elif not self._file_read_now(piece.at_bytes, part):
                    await self.file.read(piece.at_bytes, part)
                offset += piece.length_bytes

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

    # Writing

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        """See `BackingStore.write_now`; `_bind` makes a faster one."""
        return self._may_write_now and self._write_parts_now(offset_bytes, data)

    def _write_parts_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        block, within = offset_bytes >> self._shift, offset_bytes & self._mask
        at = self.table[block]
        if at <= 0:
            return False
        length = sum(map(len, data))
        if within + length <= self.block_bytes or self._is_one_run(block, at, within + length):
            return self._file_write_now(at + within, data)
        return False

    def _is_one_run(self, block: int, at: int, length_bytes: int) -> bool:
        """Whether the blocks of the range from the start of `block` lie one behind the other."""
        count = -(-length_bytes >> self._shift) if length_bytes else 0
        return all(
            self.table[block + index] == at + (index << self._shift) for index in range(1, count)
        )

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        """See `BackingStore.write`."""
        self._require_writable()
        if not self._writes_now:
            await uninterrupted(self._begin_writing())
        parts = list(self._split(offset_bytes, sum(map(len, data))))
        alone = len(parts) == 1
        for block, start, end, first in parts:
            part = data if alone else slice_buffers(data, first, end - start)
            await self._write_block(block, start, end, part, durable=durable and alone)
        if durable and not (alone and self._metadata_is_durable()):
            await self.flush()

    async def _write_block(
        self, block: int, start: int, end: int, data: Sequence[Buffer], *, durable: bool
    ) -> None:
        with self._using(block):  # from before the place is known, or it could be freed meanwhile
            at = self.table[block]
            if at <= 0:
                if all_zero(data) and await self._reads_zero(block, start, end):
                    return
                at = await uninterrupted(self._prepare(block, start, end))
            if durable or not self._file_write_now(at + start, data):
                await self.file.write(at + start, data, durable=durable)

    async def _reads_zero(self, block: int, start: int, end: int) -> bool:
        """Whether the range is known to hold nothing but zeroes, and takes no space."""
        while (pieces := self._pieces(block, start, end)) is None:
            await self._load(block)
        return all(piece.source is Source.ZEROES for piece in pieces)

    def _require_writable(self) -> None:
        if self.capabilities.read_only:
            raise StorageError(StorageFault.READ_ONLY, f"{self.file.name}: opened read-only")

    # Zeroing

    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.deallocate`."""
        await self._zero(offset_bytes, length_bytes, keep=False)

    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.write_zeroes`."""
        await self._zero(offset_bytes, length_bytes, keep=True)

    async def _zero(self, offset_bytes: int, length_bytes: int, *, keep: bool) -> None:
        self._require_writable()
        if not self._writes_now:
            await uninterrupted(self._begin_writing())
        whole: list[int] = []
        absent = 0  # blocks below this one take no space
        for block, start, end, _ in self._split(offset_bytes, length_bytes):
            if block < absent:
                continue
            if self.parent is None and (count := self._run_without_space(block)):
                absent = block + count
                continue
            if await self._reads_zero(block, start, end):
                continue
            if self._is_whole(block, start, end) and not (keep and self.table[block] > 0):
                whole.append(block)
            else:
                await self._zero_part(block, start, end, keep=keep)
        if whole:
            await uninterrupted(self._discard(whole))

    def _is_whole(self, block: int, start: int, end: int) -> bool:
        return not start and (
            end == self.block_bytes or (block << self._shift) + end >= self.size_bytes
        )

    async def _zero_part(self, block: int, start: int, end: int, *, keep: bool) -> None:
        with self._using(block):
            at = self.table[block]
            if at <= 0:
                at = await uninterrupted(self._prepare(block, start, end))
            zero = self.file.zero if keep else self.file.punch
            await zero(at + start, end - start)

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.anchor`. What its file has no space for is zeroes, too, afterwards."""
        if self.parent is not None:  # or its data would be copied, only to be zeroed
            await self._zero(offset_bytes, length_bytes, keep=True)
        self._require_writable()
        if not self._writes_now:
            await uninterrupted(self._begin_writing())
        for block, start, end, _ in self._split(offset_bytes, length_bytes):
            await self._zero_part(block, start, end, keep=True)

    # Extents

    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        """See `BackingStore.extents`.

        A block that is in the file is in the state that the file has there.
        """
        found: list[Extent] = []
        end = offset_bytes + length_bytes
        seen, seen_max = 0, _EXTENT_LOOKS_MAX if self.capabilities.anchors else _EXTENT_BLOCKS_MAX
        while offset_bytes < end and seen < seen_max and len(found) <= limit:
            pieces = await self._pieces_of_blocks(offset_bytes, end)
            seen += len(pieces)
            for extent in await self._extents_of(offset_bytes, pieces, limit):
                append(found, extent)
                offset_bytes = end_of(extent)
        return whole_blocks(found, self.capabilities.logical_block_bytes, end)[:limit]

    async def _pieces_of_blocks(self, offset_bytes: int, end_bytes: int) -> list[Piece]:
        """Pieces from the offset on, of some blocks."""
        found: list[Piece] = []
        while offset_bytes < end_bytes and len(found) < _EXTENT_BLOCKS_AT_ONCE:
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
        if self.parent is None and (count := self._run_without_space(block)) > 1:
            length = min(((block + count) << self._shift), end_bytes) - offset_bytes
            return [Piece(length, Source.ZEROES)]
        while (pieces := self._pieces(block, start, stop)) is None:
            await self._load(block)
        return pieces

    async def _extents_of(
        self, offset_bytes: int, pieces: Sequence[Piece], limit: int
    ) -> list[Extent]:
        """The extents of pieces, as far as `limit` extents of the file reach."""
        in_file = iter(await self._extents_in_file(pieces, limit))
        found: list[Extent] = []
        for piece in pieces:
            end = offset_bytes + piece.length_bytes
            if piece.source is not Source.FILE:
                found += await self._piece_extents(offset_bytes, piece)
                offset_bytes = end
            while offset_bytes < end:
                if (extent := next(in_file, None)) is None:
                    return found
                found.append(Extent(offset_bytes, extent.length_bytes, extent.state))
                offset_bytes += extent.length_bytes
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

    def _run_without_space(self, block: int) -> int:
        """How many blocks from this one on are surely not in the file (0: nobody knows)."""
        return 0

    async def _piece_extents(self, offset_bytes: int, piece: Piece) -> list[Extent]:
        """The extents of a piece that is not in the file."""
        absent = Provisioning.DEALLOCATED
        if piece.source is Source.ZEROES:
            return [Extent(offset_bytes, piece.length_bytes, absent)]
        assert self.parent is not None
        found: list[Extent] = []
        end = offset_bytes + piece.length_bytes
        parent_end = min(end, self.parent.size_bytes)
        while offset_bytes < parent_end:
            for extent in await self.parent.extents(offset_bytes, parent_end - offset_bytes, 64):
                # The parent's space is no help to a write, which needs some here.
                state = extent.state if extent.state is Provisioning.MAPPED else absent
                append(found, Extent(offset_bytes, extent.length_bytes, state))
                offset_bytes = end_of(extent)
        if offset_bytes < end:
            append(found, Extent(offset_bytes, end - offset_bytes, absent))
        return found

    async def _parent_is_zero(self, offset_bytes: int, length_bytes: int) -> bool:
        """Whether the parent surely has only zeroes in the range, without reading them."""
        piece = Piece(length_bytes, Source.PARENT)
        extents = await self._piece_extents(offset_bytes, piece)
        return all(extent.state is not Provisioning.MAPPED for extent in extents)

    async def own_runs(
        self, start_bytes: int, end_bytes: int
    ) -> AsyncIterator[tuple[int, int, Source]]:
        """(offset, length, FILE or ZEROES) of what does not come from the parent."""
        for block, start, end, first in self._split(start_bytes, end_bytes - start_bytes):
            while (pieces := self._pieces(block, start, end)) is None:
                await self._load(block)
            offset = start_bytes + first
            for piece in pieces:
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
            while (pieces := self._pieces(block, start, end)) is None:
                await self._load(block)
            for piece in pieces:
                if piece.source is Source.FILE:
                    await self.file.prefetch(piece.at_bytes, piece.length_bytes)

    def close_blocking(self) -> None:
        """See `BackingStore.close_blocking`."""
        self.file.close_blocking()
        if self.parent is not None:
            self.parent.close_blocking()

    @contextmanager
    def _using(self, block: int) -> Iterator[None]:
        """The block's space is being read or written, perhaps by a thread."""
        self._in_use[block] += 1
        try:
            yield
        finally:
            self._in_use[block] -= 1
            if not self._in_use[block]:
                del self._in_use[block]
                self._released.set()

    async def _unused(self, blocks: Iterable[int]) -> None:
        """Wait for every read and write of these blocks that has begun."""
        waiting = set(blocks)
        while waiting := {block for block in waiting if block in self._in_use}:
            self._released.clear()
            await self._released.wait()

    def _split(self, offset_bytes: int, length_bytes: int) -> Iterator[tuple[int, int, int, int]]:
        """(block, start and end within it, start within the request) of a request's parts."""
        position, end = offset_bytes, offset_bytes + length_bytes
        while position < end:
            block, start = position >> self._shift, position & self._mask
            stop = min(self.block_bytes, start + end - position)
            yield block, start, stop, position - offset_bytes
            position += stop - start


def _refuse(offset_bytes: int, data: Sequence[Buffer]) -> bool:
    return False


async def uninterrupted(work: Coroutine[Any, Any, T]) -> T:
    """Do the work to its end; a cancellation arrives when it is done."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.exception()  # nobody is left to hear of it
        raise cancelled
    return task.result()


def fill_zeroes(into: memoryview) -> None:
    """Fill the buffer with zeroes."""
    for start in range(0, len(into), len(_ZEROES)):
        part = into[start : start + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]


def all_zero(data: Sequence[Buffer]) -> bool:
    """Whether there is nothing but zeroes in the buffers."""
    for buffer in data:
        if buffer and (buffer[0] or buffer[-1]):
            return False
    for buffer in data:
        view = memoryview(buffer)
        for start in range(0, len(view), len(_ZEROES)):
            part = bytes(view[start : start + len(_ZEROES)])
            if part != _ZEROES[: len(part)]:
                return False
    return True


def slice_buffers(data: Sequence[Buffer], start: int, length: int) -> list[Buffer]:
    """The `length` bytes from `start` on of the buffers one after the other, without copying."""
    found: list[Buffer] = []
    for buffer in data:
        if start < len(buffer):
            part = memoryview(buffer)[start : start + length]
            found.append(part)
            length -= len(part)
            if not length:
                break
        start = max(0, start - len(buffer))
    return found
