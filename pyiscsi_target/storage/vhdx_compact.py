"""A VHDX file made as short as its blocks allow.

The content of the disk does not change, so neither does its DataWriteGuid: children go on to fit.
"""

from collections.abc import Callable

from .buffers import all_zero
from .content import CHUNK_BYTES, first_data
from .vhdx_bat import placed
from .vhdx_format import BlockState
from .vhdx_identity import VhdxIdentity

Progress = Callable[[int, int], None]
"""(blocks done, blocks to do)."""


class VhdxCompact(VhdxIdentity):
    """The part of a `VhdxDisk` that changes the order of its blocks in the file."""

    async def compact(self, progress: Progress) -> None:
        """Free blocks of zeroes and close the gaps, so that the file is as short as can be.

        The power may go meanwhile. Nobody uses the disk, and it is to be closed then.
        Raises StorageError.
        """
        if self.metadata.leave_block_allocated:
            raise self._refused("only dynamic and differencing images can be compacted")
        await self.begin_merge()
        blocks = [block async for block in self._blocks_with_space(0)]
        for done, block in enumerate(blocks):
            progress(done, 2 * len(blocks))
            start = block * self.block_bytes
            end = min(start + self.block_bytes, self.size_bytes)
            if await first_data(self, start, end) is None:
                await self._discard([block])
        await self._space.clean_gaps()
        await self.flush()
        left = sorted(blocks, key=lambda block: placed(self.table[block])[0], reverse=True)
        for done, block in enumerate(left, start=len(blocks)):
            progress(done, 2 * len(blocks))
            if not await self._move_down(block):
                break
        await self._cut()

    async def _move_down(self, block: int) -> bool:
        """Move the block to the first room before it; False where there is none."""
        place, state = placed(self.table[block])
        if not place:
            return False
        async with self.changing:
            target = self._space.take_clean(self.block_bytes)
            if target is None:
                return False
            if target > place:
                self._space.give_back(target, self.block_bytes, clean=True)
                return False
            await self._copy(place, target)
            await self.file.flush()
            is_whole = state == BlockState.FULLY_PRESENT
            await self._commit({block: target if is_whole else ~(target | state)})
            self._space.give_back(place, self.block_bytes, clean=False)
        return True

    async def _copy(self, place: int, target: int) -> None:
        for start in range(0, self.block_bytes, CHUNK_BYTES):
            data = bytearray(min(CHUNK_BYTES, self.block_bytes - start))
            await self.file.read(place + start, memoryview(data))
            if not all_zero((data,)):
                await self.file.write(target + start, (data,))

    async def _cut(self) -> None:
        async with self.changing:
            await self._settle()
            await self._log.end()
            await self._space.cut()
            self._writes_now = False
