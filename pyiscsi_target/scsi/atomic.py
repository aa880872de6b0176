"""COMPARE AND WRITE, ORWRITE and WRITE ATOMIC: nothing else sees or changes their blocks midway.

They use their blocks exclusively, see `ordering.BlockRanges`.
"""

from typing import TYPE_CHECKING

from . import limits
from .block import (
    FUA,
    check_transfer,
    decode_extent,
    holding,
    is_durable,
    lba_out_of_range,
    read_back,
    whole_blocks,
    wrong_data_out_length,
)
from .sense import Asc, ScsiError, SenseKey, invalid_cdb_field
from .task import Buffer, Outcome, Result, Task
from .verify import first_difference

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit


async def _write(lu: "LogicalUnit", task: Task, lba: int, data: list[Buffer]) -> None:
    durable = is_durable(lu, task.cdb[1] & FUA)
    lu.statistics.write_commands += 1
    lu.statistics.write_bytes += sum(map(len, data))
    if durable or not lu.store.write_now(lba * lu.block_size, data):
        await lu.store.write(lba * lu.block_size, data, durable=durable)


# COMPARE AND WRITE (SBC-4 clause 5.3): NUMBER OF LOGICAL BLOCKS is byte 13


def _compare_and_write_extent(lu: "LogicalUnit", cdb: bytes) -> tuple[int, int]:
    lba, blocks = int.from_bytes(cdb[2:10], "big"), cdb[13]
    if lba + blocks > lu.block_count:
        raise lba_out_of_range()
    if blocks > limits.MAXIMUM_COMPARE_AND_WRITE_LENGTH:
        raise invalid_cdb_field(13, 7)
    return lba, blocks


def compare_and_write_length(lu: "LogicalUnit", cdb: bytes) -> int:
    """Bytes of data-out: the blocks to compare with, then the blocks to write."""
    _, blocks = _compare_and_write_extent(lu, cdb)
    return 2 * blocks * lu.block_size


def compare_and_write(lu: "LogicalUnit", task: Task) -> Outcome:
    """COMPARE AND WRITE; refused unless exactly both halves of the data arrived.

    A number of blocks that wrapped in its eight bits (256 is sent as zero) is refused like this.
    """
    length = compare_and_write_length(lu, task.cdb)
    if sum(map(len, task.data_out)) != length:
        raise invalid_cdb_field(13, 7)
    if not length:
        return Result(data_out_length=0)
    return _compare_and_write(lu, task, length)


async def _compare_and_write(lu: "LogicalUnit", task: Task, length: int) -> Result:
    lba, blocks = _compare_and_write_extent(lu, task.cdb)
    data = b"".join(task.data_out)
    half = length // 2
    async with holding(lu, task, lba, blocks, exclusive=True):
        found = bytes(await read_back(lu, lba, blocks))
        difference = first_difference(found, data[:half])
        if difference is not None:
            raise ScsiError(
                SenseKey.MISCOMPARE,
                Asc.MISCOMPARE_DURING_VERIFY_OPERATION,
                information=difference,  # an offset in bytes here, not an LBA
            )
        await _write(lu, task, lba, [memoryview(data)[half:]])
    return Result(data_out_length=length)


def orwrite(lu: "LogicalUnit", task: Task) -> Outcome:
    """ORWRITE(16) (SBC-4 clause 5.12)."""
    check_transfer(lu, task.cdb, *decode_extent(task.cdb))
    return _orwrite(lu, task)


async def _orwrite(lu: "LogicalUnit", task: Task) -> Result:
    lba, blocks = decode_extent(task.cdb)
    length = blocks * lu.block_size
    mask = b"".join(whole_blocks(task.data_out, length, lu.block_size))
    if mask:
        async with holding(lu, task, lba, blocks, exclusive=True):
            found = await read_back(lu, lba, len(mask) // lu.block_size)
            joined = int.from_bytes(found, "little") | int.from_bytes(mask, "little")
            await _write(lu, task, lba, [joined.to_bytes(len(mask), "little")])
    return Result(data_out_length=length)


# WRITE ATOMIC(16) (SBC-4 clause 5.46): TRANSFER LENGTH is bytes 12 and 13; no atomic boundaries


def _write_atomic_extent(lu: "LogicalUnit", cdb: bytes) -> tuple[int, int]:
    lba, blocks = int.from_bytes(cdb[2:10], "big"), cdb[12] << 8 | cdb[13]
    if lba + blocks > lu.block_count:
        raise lba_out_of_range()
    if blocks * lu.block_size > limits.MAXIMUM_ATOMIC_TRANSFER_LENGTH_BYTES:
        raise invalid_cdb_field(12, 7)
    return lba, blocks


def write_atomic_length(lu: "LogicalUnit", cdb: bytes) -> int:
    """Bytes of data-out of a WRITE ATOMIC(16)."""
    _, blocks = _write_atomic_extent(lu, cdb)
    return blocks * lu.block_size


def write_atomic(lu: "LogicalUnit", task: Task) -> Outcome:
    """WRITE ATOMIC(16); refused when not all of its data arrived, for half of it is not atomic."""
    length = write_atomic_length(lu, task.cdb)
    if sum(map(len, task.data_out)) < length:
        raise wrong_data_out_length()
    return _write_atomic(lu, task, length)


async def _write_atomic(lu: "LogicalUnit", task: Task, length: int) -> Result:
    lba, blocks = _write_atomic_extent(lu, task.cdb)
    data: list[Buffer] = list(whole_blocks(task.data_out, length, lu.block_size))
    if data:
        async with holding(lu, task, lba, blocks, exclusive=True):
            await _write(lu, task, lba, data)
    return Result(data_out_length=length)
