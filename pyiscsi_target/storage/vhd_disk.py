"""Dynamic and differencing VHDs as a whole: their size, and the order of blocks in the file.

How single requests are served, and the order of the writes which that takes, is in `vhd_blocks`.
"""

from __future__ import annotations  # `array` takes no parameters before Python 3.12

import struct
from array import array
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from itertools import islice

from . import vhd_bitmap
from .base import BackingStore, StorageError, StorageFault
from .block_table import UNKNOWN
from .buffers import all_zero
from .content import CHUNK_BYTES, first_data, require_no_data
from .finding import Finding, Remedy
from .vhd_blocks import VhdBlocks
from .vhd_format import (
    DYNAMIC_MAX_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    SECTOR,
    UNUSED,
    header_with_table,
)
from .vhd_image import MAX_BLOCKS, Layout, free_places
from .vhd_space import require_size

MOVED_AT_ONCE = 32  # blocks, which share two flushes
HIDDEN_AT_ONCE_BYTES = 1 << 30  # of a parent, whose blocks share flushes

Progress = Callable[[int, int], None]
"""(blocks done, blocks to do)."""


class VhdDisk(VhdBlocks):
    """An open dynamic or differencing disk. Owns `file` and `parent`."""

    _merging = False  # the disk changes, but its children go on to fit

    async def resize(self, size_bytes: int) -> None:
        """See `BackingStore.resize`."""
        require_size(self.file.name, size_bytes, DYNAMIC_MAX_BYTES)
        self._require_writable()
        blocks = -(-size_bytes // self.block_bytes)
        if blocks > MAX_BLOCKS:
            message = f"{self.file.name}: a VHD has {MAX_BLOCKS} blocks at most, not {blocks}"
            raise StorageError(StorageFault.INVALID, message)
        await require_no_data(self, self.file.name, size_bytes, self.size_bytes)
        # What lies behind the end must never come to light, nor keep its space.
        low = min(size_bytes, self.size_bytes)
        behind = range(-(-low // self.block_bytes), len(self.table))
        if size_bytes > self.size_bytes:
            await self._free(behind)
        async with self.changing:
            await self._clear_behind(low)
            if blocks > len(self._entries):
                await self._move_table(blocks)
        if self.parent is not None and min(size_bytes, self.parent.size_bytes) > self.size_bytes:
            await self._hide_parent(size_bytes)
        async with self.changing:
            taken = sum(entry != UNUSED for entry in self._entries)
            await self._space.resize(size_bytes, blocks - taken, stamps=not self._merging)
            self.footer = self._space.footer
            self.size_bytes = size_bytes
        if size_bytes == low:  # only now: until then they hide what the parent has there
            await self._free(behind)

    async def _clear_behind(self, size_bytes: int) -> None:
        """The rest of a block that the end of the disk cuts is zeroes."""
        block, cut = divmod(size_bytes, self.block_bytes)
        if cut and self._entries[block] != UNUSED:
            await self.file.punch(self._place(block) + cut, self.block_bytes - cut)

    async def _hide_parent(self, size_bytes: int) -> None:
        """Where the parent has more than this disk is long, zeroes are its own, on the medium.

        They are behind its end until the footers say that it is longer.
        """
        assert self.parent is not None
        old_bytes, block = self.size_bytes, self.size_bytes // self.block_bytes
        if self.table[block] > UNKNOWN:
            self.table[block] = UNKNOWN  # its bits behind the end are not known yet
        self.size_bytes = size_bytes
        try:
            end = min(size_bytes, self.parent.size_bytes)
            for start in range(old_bytes, end, HIDDEN_AT_ONCE_BYTES):
                length = min(HIDDEN_AT_ONCE_BYTES, end - start)
                await self._zero(start, length, keep=False)
            await self.flush()
        finally:
            self.size_bytes = old_bytes

    async def _move_table(self, entries: int) -> None:
        """A longer table at the end of the file; the header says where, in one sector."""
        header = self.layout.header
        assert header is not None
        per_sector = SECTOR // 4
        entries = -(-entries // per_sector) * per_sector
        longer = self._entries + array("I", [UNUSED]) * (entries - len(self._entries))
        at = await self._space.insert(struct.pack(f">{entries}I", *longer))
        raw = bytearray(HEADER_BYTES)
        offset = self.footer.data_offset
        await self.file.read(offset, memoryview(raw))
        moved = header_with_table(bytes(raw), at, entries)
        await self.file.write(offset, (moved[:SECTOR],))  # the rest has not changed
        await self.file.flush()
        self.layout.header = replace(header, table_offset=at, max_table_entries=entries)
        self.layout.metadata += ((at, at + entries * 4),)
        self._entries.extend(longer[len(self._entries) :])
        self._resize_table(entries)

    # Merging

    async def begin_merge(self) -> None:
        """Let the disk be written although children of it must go on to fit, until `stamp`."""
        self._require_writable()
        self._merging = self._writes_now = True

    async def stamp(self) -> None:
        """Children made before do not fit any more, on the medium. Raises StorageError."""
        await self._space.stamp()
        self.footer = self._space.footer

    async def adopt(self, child: BackingStore) -> None:
        """Be known by what the child is, on the medium: its children fit this disk from now on."""
        assert isinstance(child, VhdDisk)
        await self._space.adopt(child.footer)
        self.footer = self._space.footer

    # Checking

    async def findings(self) -> list[Finding]:
        """What is odd about an open disk, but no reason to refuse it. Raises StorageError."""
        found = footer_findings(self.layout)
        unused = len(free_places(self.layout, self.file.size_bytes - FOOTER_BYTES))
        if unused:
            text = f"room for {unused} blocks of {self.block_bytes} bytes is not in use"
            found.append(Finding(text, Remedy.COMPACT))
        if self.parent is None:
            found += [finding async for finding in self._stale_blocks()]
        return found

    async def _stale_blocks(self) -> AsyncIterator[Finding]:
        """A dynamic disk's sectors are zeroes where their bits are clear; QEMU ignores the bits."""
        for block, entry in enumerate(self._entries):
            if entry == UNUSED or block << self._shift >= self.size_bytes:
                continue
            bitmap = await self._read_bitmap(block)
            for first, end in vhd_bitmap.clear_runs(bitmap, 0, self._sectors(block)):
                if not await self._is_zero_in_file(block, first, end):
                    yield Finding(
                        f"block {block} holds bytes in sectors that its bitmap calls unused: they"
                        f" are read as zeroes here, but not by every tool",
                        Remedy.NONE,
                    )
                    break

    async def _is_zero_in_file(self, block: int, first: int, end: int) -> bool:
        """Whether the file has only zeroes in these sectors of the block."""
        start, stop = (self._place(block) + sector * SECTOR for sector in (first, end))
        for at in range(start, stop, CHUNK_BYTES):
            data = bytearray(min(CHUNK_BYTES, stop - at))
            await self.file.read(at, memoryview(data))
            if not all_zero((data,)):
                return False
        return True

    # Compacting

    async def compact(self, progress: Progress) -> None:
        """Free blocks of zeroes and close the gaps, so that the file is as short as can be.

        The power may go meanwhile. Nobody uses the disk, and it is to be closed then.
        Raises StorageError.
        """
        await self.begin_merge()  # the content does not change: children go on to fit
        used = [block for block, entry in enumerate(self._entries) if entry != UNUSED]
        for done, block in enumerate(used):
            progress(done, 2 * len(used))
            start = block * self.block_bytes
            end = min(start + self.block_bytes, self.size_bytes)
            if await self._is_over_hole(block) and await first_data(self, start, end) is None:
                await self._discard([block])
        await self.flush()  # before the places of those that were freed hold anything else
        moves = iter(self._moves())
        done = len(used)
        while batch := list(islice(moves, MOVED_AT_ONCE)):
            await self._move(batch)
            done += len(batch)
            progress(done, 2 * len(used))
        await self._space.close(self._used_end())

    def _moves(self) -> list[tuple[int, int]]:
        """(block, its new place): the last blocks into the first gaps."""
        free = sorted(self._space.drain())
        last = sorted(
            (block for block, entry in enumerate(self._entries) if entry != UNUSED),
            key=self._place,
            reverse=True,
        )
        return [
            (block, place)
            for block, place in zip(last, free, strict=False)
            if place < self._place(block)
        ]

    async def _move(self, moves: Sequence[tuple[int, int]]) -> None:
        async with self.changing:
            for block, place in moves:
                await self._copy_block(block, place)
            await self.file.flush()
            for block, place in moves:
                self._changes += 1
                await self._enter(block, [(place - self._bitmap_bytes) // SECTOR])
                if self.table[block] > UNKNOWN:
                    self.table[block] = place
            await self.file.flush()

    async def _copy_block(self, block: int, place: int) -> None:
        """Bitmap and data, of which only what is not zero."""
        length = self._bitmap_bytes + self.block_bytes
        source, target = self._place(block) - self._bitmap_bytes, place - self._bitmap_bytes
        await self.file.punch(target, length)
        for start in range(0, length, CHUNK_BYTES):
            data = bytearray(min(CHUNK_BYTES, length - start))
            await self.file.read(source + start, memoryview(data))
            if not all_zero((data,)):
                await self.file.write(target + start, (data,))


def footer_findings(layout: Layout) -> list[Finding]:
    """What is wrong with the footers; the disk is known by the one that is left."""
    found = []
    if layout.footer_offset is None:
        found.append(Finding("the footer at the end is damaged; its copy is not", Remedy.REPAIR))
    if not layout.copy_intact:
        text = "the copy of the footer at the start is damaged; the one at the end is not"
        found.append(Finding(text, Remedy.REPAIR))
    return found
