"""A disk in blocks that are somewhere in a file, or nowhere yet: the request path of such formats.

Splits requests at block ends, reads what is not there as zeroes or from the parent image, and has
the format make room before it writes. It must not know where a format keeps its metadata, nor when
that is on the medium: the order of writes is the format's.
"""

import asyncio
from abc import abstractmethod
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any, TypeVar

from .base import BackingStore, Buffer, Capabilities, StorageError, StorageFault
from .block_layout import BLOCKS_A_TURN, BlockLayout, Source
from .block_table import PAGE_MASK, PAGE_SHIFT, BlockTable
from .buffers import all_zero, fill_zeroes, slice_buffers
from .image_file import ImageFile

T = TypeVar("T")
ReadNow = Callable[[int, memoryview], bool]
WriteNow = Callable[[int, Sequence[Buffer]], bool]


class BlockImage(BlockLayout):
    """A disk in blocks that is read and written.

    Formats implement the methods that are abstract, and may count on this:

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
        super().__init__(file, size_bytes, block_bytes, capabilities, table, parent)
        self.changing = asyncio.Lock()
        self._file_read_now = file.read_now
        self._file_write_now = file.write_now
        self._may_write_now = False
        self._in_use: dict[int, set[int]] = {}
        self._users = count()
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
    async def _prepare(
        self, block: int, start: int, end: int, *, becomes_zero: bool = False
    ) -> int:
        """Let [start, end) of the block be written in place, and return the place of the block.

        Called (without `changing`) for blocks that the table does not show as there. When it
        returns the range is there for this process and every later one, with the content that it
        had before; nothing the caller may then lose of its own write may change that. With
        `becomes_zero` it may be zeroes already, for the caller is about to make it so.
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
        pieces = await self._known_pieces(block, start, start + len(into))
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
        blocks = -(-length_bytes >> self._shift) if length_bytes else 0
        return all(
            self.table[block + index] == at + (index << self._shift) for index in range(1, blocks)
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
        pieces = await self._known_pieces(block, start, end)
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
        position, end = offset_bytes, offset_bytes + length_bytes
        while position < end:
            whole: list[int] = []
            for _ in range(BLOCKS_A_TURN):
                if position < end:
                    position = await self._zero_next(position, end, whole, keep=keep)
            if whole:
                await uninterrupted(self._discard(whole))
            await asyncio.sleep(0)

    async def _zero_next(self, position: int, end: int, whole: list[int], *, keep: bool) -> int:
        """Zero what is at the position, and say how far; whole blocks are added to `whole`."""
        if (empty_end := await self._empty_until(position, end)) > position:
            return empty_end
        block, start = position >> self._shift, position & self._mask
        stop = min(self.block_bytes, start + end - position)
        if not await self._reads_zero(block, start, stop):
            if self._is_whole(block, start, stop) and not (keep and self.table[block] > 0):
                whole.append(block)
            else:
                await self._zero_part(block, start, stop, keep=keep)
        return position + stop - start

    async def _empty_until(self, position: int, end: int) -> int:
        """How far blocks that are not in the file surely read as zeroes."""
        block = position >> self._shift
        blocks = self._run_without_space(block)
        if not blocks:
            return position
        stop = min((block + blocks) << self._shift, end)
        if self.parent is None:
            return stop
        zeroes_end = position + await self._parent_zeroes(position, stop - position)
        return stop if zeroes_end == stop else zeroes_end & ~self._mask

    def _is_whole(self, block: int, start: int, end: int) -> bool:
        return not start and (
            end == self.block_bytes or (block << self._shift) + end >= self.size_bytes
        )

    async def _zero_part(self, block: int, start: int, end: int, *, keep: bool) -> None:
        with self._using(block):
            at = self.table[block]
            if at <= 0:
                at = await uninterrupted(self._prepare(block, start, end, becomes_zero=True))
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
            await asyncio.sleep(0)

    # Who uses what

    @contextmanager
    def _using(self, block: int) -> Iterator[None]:
        """The block's space is being read or written, perhaps by a thread."""
        user = next(self._users)
        users = self._in_use.setdefault(block, set())
        users.add(user)
        try:
            yield
        finally:
            users.discard(user)
            if not users:
                del self._in_use[block]
            self._released.set()

    async def _unused(self, blocks: Iterable[int]) -> None:
        """Wait for every read and write of these blocks that has begun; not for later ones."""
        begun = {block: frozenset(self._in_use.get(block, ())) for block in blocks}
        while any(users & self._in_use.get(block, set()) for block, users in begun.items()):
            self._released.clear()
            await self._released.wait()


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
