"""Room for blocks in a VHD file, and the footer that always stays behind the last of them.

A place is handed out only when the file's end, the footer behind it and the zeroes in it are on the
medium: then a table entry that points there may reach the medium at any time, before or after the
bytes that the block is written with. One flush serves a whole batch of places, and batches grow
while the disk does. This module must not know tables and bitmaps.
"""

import asyncio
from dataclasses import replace

from .base import StorageError, StorageFault
from .image_file import ImageFile
from .vhd_format import (
    CREATOR_APPLICATION,
    FOOTER_BYTES,
    SECTOR,
    UNUSED,
    Footer,
    build_footer,
    geometry_of,
    now_stamp,
)
from .vhd_image import aligned_place

FIRST_BATCH_BYTES = 64 << 20
LARGEST_BATCH_BYTES = 1 << 30  # of holes


def stamped(footer: Footer) -> Footer:
    """The footer after a change of the disk: children made before must not fit any more."""
    return replace(footer, time_stamp=max(now_stamp(), footer.time_stamp + 1) & 0xFFFFFFFF)


def adopted(footer: Footer, child: Footer) -> Footer:
    """The footer of the disk when children of its child are to fit it."""
    return replace(footer, unique_id=child.unique_id, time_stamp=child.time_stamp)


def resized(footer: Footer, size_bytes: int) -> Footer:
    """The footer of the disk with another size, which every reader takes from it alike."""
    geometry = geometry_of(size_bytes)
    return replace(
        footer,
        current_size=size_bytes,
        geometry=geometry,
        creator_application=CREATOR_APPLICATION,
    )


def require_size(name: str, size_bytes: int, maximum_bytes: int) -> None:
    """Raises StorageError (INVALID) unless a disk can have this size."""
    if not 0 < size_bytes <= maximum_bytes or size_bytes % SECTOR:
        message = (
            f"{name}: a VHD of this kind has whole sectors of {SECTOR} bytes, up to"
            f" {maximum_bytes} bytes, not {size_bytes}"
        )
        raise StorageError(StorageFault.INVALID, message)


class Space:
    """Places (of the data of a block, behind its bitmap) in a file whose footer is at `end_bytes`.

    `free` lists places that nothing uses, whatever they hold; `missing` is how many blocks of the
    disk have no place yet.
    """

    def __init__(
        self,
        file: ImageFile,
        footer: Footer,
        end_bytes: int,
        *,
        block_bytes: int,
        bitmap_bytes: int,
        free: list[int],
        missing: int,
    ) -> None:
        self.footer = footer
        self._file = file
        self._end_bytes = end_bytes
        self._block_bytes = block_bytes
        self._bitmap_bytes = bitmap_bytes
        self._free = free
        self._missing = missing
        self._ready: list[int] = []
        self._batch = max(1, FIRST_BATCH_BYTES // block_bytes)
        self._lock = asyncio.Lock()
        self._refilling: asyncio.Task[None] | None = None

    async def take(self) -> int:
        """A place that is all zeroes, on the medium. Raises StorageError."""
        while not self._ready:
            self._refill_soon()
            assert self._refilling is not None
            await asyncio.shield(self._refilling)
        self._missing -= 1
        place = self._ready.pop()
        if len(self._ready) < min(self._batch // 2, self._missing):
            self._refill_soon()
        return place

    def give_back(self, place: int) -> None:
        """Nothing refers to the place any more, and nobody reads or writes it."""
        self._missing += 1
        self._free.append(place)

    def drain(self) -> list[int]:
        """All places that are not in use; none of them is handed out any more."""
        places = self._free + self._ready
        self._free, self._ready = [], []
        return places

    async def stamp(self) -> None:
        """Note in both footers, on the medium, that the disk changes. Raises StorageError."""
        async with self._lock:
            await self._replace(stamped(self.footer))

    async def _replace(self, footer: Footer) -> None:
        """Never both at once: one of them is always whole."""
        for offset in (self._end_bytes, 0):
            await self._file.write(offset, (build_footer(footer),))
            await self._file.flush()
        self.footer = footer

    async def insert(self, structure: bytes) -> int:
        """Put whole sectors on the medium, behind what there is, and return where.

        Raises StorageError.
        """
        async with self._lock:
            at = -(-self._end_bytes // SECTOR) * SECTOR  # other tools' files end where they end
            end = at + len(structure)
            await self._file.set_size(end + FOOTER_BYTES)
            await self._file.write(end, (build_footer(self.footer),))
            await self._file.write(at, (structure,))
            await self._file.flush()
            self._end_bytes = end
            return at

    async def adopt(self, child: Footer) -> None:
        """Be known by what the child is, on the medium. Raises StorageError."""
        async with self._lock:
            await self._replace(adopted(self.footer, child))

    async def resize(self, size_bytes: int, missing: int, *, stamps: bool = True) -> None:
        """Note the new size of the disk in both footers, on the medium. Raises StorageError."""
        async with self._lock:
            footer = stamped(self.footer) if stamps else self.footer
            await self._replace(resized(footer, size_bytes))
            self._missing = missing

    async def close(self, used_end_bytes: int) -> None:
        """Let the file end with the footer behind what is used. Raises StorageError."""
        if self._refilling is not None:
            await asyncio.wait((self._refilling,))
        async with self._lock:
            end = min(used_end_bytes, self._end_bytes)
            if end + FOOTER_BYTES == self._file.size_bytes:
                return
            try:
                await self._file.write(end, (build_footer(self.footer),))
            except StorageError as error:
                if error.fault is StorageFault.OUT_OF_SPACE:
                    return  # it stays longer than it needs to be
                raise
            await self._file.flush()
            await self._file.set_size(end + FOOTER_BYTES)
            self._end_bytes = end

    # Making places ready

    def _refill_soon(self) -> None:
        if self._refilling is None or self._refilling.done():
            self._refilling = asyncio.ensure_future(self._refill())
            self._refilling.add_done_callback(_forget_failure)

    async def _refill(self) -> None:
        async with self._lock:
            count = max(1, min(self._batch, self._missing - len(self._ready)))
            try:
                places = await self._make_ready(count)
            except StorageError as error:
                if error.fault is not StorageFault.OUT_OF_SPACE or count == 1:
                    raise
                self._batch = 1  # there may be room for the block that is wanted
                places = await self._make_ready(1)
            else:
                largest = max(1, LARGEST_BATCH_BYTES // self._block_bytes)
                self._batch = min(self._batch * 2, largest)
            self._ready[:0] = reversed(places)
        if not self._ready:
            message = f"{self._file.name}: block tables reach no further than 2 TiB into the file"
            raise StorageError(StorageFault.OUT_OF_SPACE, message)

    async def _make_ready(self, count: int) -> list[int]:
        """Up to `count` places of zeroes, on the medium."""
        reused = [self._free.pop() for _ in range(min(count, len(self._free)))]
        try:
            for place in reused:
                length = self._bitmap_bytes + self._block_bytes
                await self._file.punch(place - self._bitmap_bytes, length)
            grown = await self._grow(count - len(reused))
            await self._file.flush()
        except BaseException:
            self._free += reused
            raise
        return [*reused, *grown]

    async def _grow(self, count: int) -> list[int]:
        """Up to `count` places behind the end, and the footer behind them."""
        places: list[int] = []
        end = self._end_bytes
        for _ in range(count):
            place = aligned_place(end, self._bitmap_bytes)
            if place // SECTOR >= UNUSED:
                break
            places.append(place)
            end = place + self._block_bytes
        if places:
            await self._file.set_size(end + FOOTER_BYTES)
            await self._file.write(end, (build_footer(self.footer),))
            # Lost before the new one is on the medium, this one is made up for by the copy.
            await self._file.write(self._end_bytes, (bytes(FOOTER_BYTES),))
            self._end_bytes = end
        return places


def _forget_failure(task: asyncio.Task[None]) -> None:
    """Who waits for places hears of it; nobody else needs to."""
    if not task.cancelled():
        task.exception()
