"""WRITE SAME: one block of data, or zeroes, or nothing at all, for a whole range (SBC-4 5.52)."""

from typing import TYPE_CHECKING

from . import limits
from .block import (
    decode_extent,
    flush,
    holding,
    lba_out_of_range,
    too_many_blocks,
    wrong_data_out_length,
)
from .ordering import pause
from .provisioning import anchor
from .sense import invalid_cdb_field
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

ANCHOR = 0x10
UNMAP = 0x08
NDOB = 0x01  # no data-out buffer: zeroes; WRITE SAME(10) has no such bit


def write_same_length(lu: "LogicalUnit", cdb: bytes) -> int:
    """Bytes of data-out: one block, or none with NDOB=1. Raises ScsiError for a bad CDB."""
    _extent(lu, cdb)
    return _data_length(lu, cdb)


def _data_length(lu: "LogicalUnit", cdb: bytes) -> int:
    return 0 if cdb[1] & NDOB else lu.block_size


def _extent(lu: "LogicalUnit", cdb: bytes) -> tuple[int, int]:
    """The LBA and the number of blocks to write. Raises ScsiError for a bad CDB.

    A NUMBER OF LOGICAL BLOCKS of zero means all blocks from the LBA to the end of the medium, so
    there must be one (WSNZ=0; SBC-4 clauses 5.52 and 6.6.4).
    """
    lba, blocks = decode_extent(cdb)
    if lba + max(blocks, 1) > lu.block_count:
        raise lba_out_of_range()
    blocks = blocks or lu.block_count - lba
    if blocks * lu.block_size > limits.MAXIMUM_WRITE_SAME_LENGTH_BYTES:
        raise too_many_blocks(cdb)
    if cdb[1] & ANCHOR and not cdb[1] & UNMAP:
        raise invalid_cdb_field(1, 4)
    return lba, blocks


def write_same(lu: "LogicalUnit", task: Task) -> Outcome:
    """WRITE SAME(10) and (16)."""
    lba, blocks = _extent(lu, task.cdb)
    if sum(map(len, task.data_out)) != _data_length(lu, task.cdb):
        raise wrong_data_out_length()
    return _write_same(lu, task, lba, blocks)


async def _write_same(lu: "LogicalUnit", task: Task, lba: int, blocks: int) -> Result:
    size = lu.block_size
    lu.statistics.write_commands += 1
    lu.statistics.write_bytes += blocks * size
    pattern = b"".join(task.data_out) or bytes(size)
    async with holding(lu, task, lba, blocks):
        if pattern != bytes(size):
            # Deallocated blocks would read as zeroes (LBPRZ=1), not as this: UNMAP or not, write.
            await _repeat(lu, task, lba, blocks, pattern)
        elif task.cdb[1] & ANCHOR:
            await anchor(lu, task, lba, blocks)
        elif task.cdb[1] & UNMAP:
            await lu.store.deallocate(lba * size, blocks * size)
        else:
            await lu.store.write_zeroes(lba * size, blocks * size)
        if not lu.mode.write_cache_enabled:
            await flush(lu)
    return Result(data_out_length=_data_length(lu, task.cdb))


async def _repeat(lu: "LogicalUnit", task: Task, lba: int, blocks: int, pattern: bytes) -> None:
    step = min(limits.OPTIMAL_TRANSFER_LENGTH_BYTES // lu.block_size, blocks)
    repeated = memoryview(pattern * step)
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        piece = [repeated[: count * lu.block_size]]
        offset = (lba + first) * lu.block_size
        if not lu.store.write_now(offset, piece):
            await lu.store.write(offset, piece)
        await pause(task)
