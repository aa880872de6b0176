"""VERIFY and WRITE AND VERIFY: what is on the medium is readable, and is what it should be.

Long ranges are read in pieces, so that one command neither pins memory nor stalls others.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from . import limits
from .block import (
    check_transfer,
    decode_extent,
    holding,
    lba_out_of_range,
    read_back,
    transfer_length_bytes,
    whole_blocks,
    wrong_data_out_length,
)
from .ordering import pause
from .sense import Asc, ScsiError, SenseKey, invalid_cdb_field
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

# BYTCHK, bits 2 and 1 of byte 1 (SBC-4 table 128)
MEDIUM_ONLY = 0b00
COMPARE_ALL = 0b01
COMPARE_ONE_BLOCK = 0b11

Expected = Callable[[int, int], bytes]  # first block and block count, relative -> their bytes


def _byte_check(cdb: bytes) -> int:
    byte_check = cdb[1] >> 1 & 0b11
    if byte_check == 0b10:
        raise invalid_cdb_field(1, 2)
    return byte_check


def verify_length(lu: "LogicalUnit", cdb: bytes) -> int:
    """Bytes of data-out of a VERIFY: none, all the blocks, or one."""
    lba, blocks = decode_extent(cdb)
    byte_check = _byte_check(cdb)
    if byte_check == COMPARE_ALL:
        return transfer_length_bytes(lu, cdb, lba, blocks)
    if lba + blocks > lu.block_count:
        raise lba_out_of_range()
    return lu.block_size if byte_check == COMPARE_ONE_BLOCK and blocks else 0


def verify(lu: "LogicalUnit", task: Task) -> Outcome:
    """VERIFY(10), (12) and (16) (SBC-4 clauses 5.33 to 5.35)."""
    length = verify_length(lu, task.cdb)
    if length and sum(map(len, task.data_out)) < length:
        raise wrong_data_out_length()
    return _verify(lu, task, length)


async def _verify(lu: "LogicalUnit", task: Task, length: int) -> Result:
    lba, blocks = decode_extent(task.cdb)
    byte_check = _byte_check(task.cdb)
    size = lu.block_size
    reference = b"".join(task.data_out)[:length]
    expected: Expected | None = None
    if byte_check == COMPARE_ALL:
        expected = lambda first, count: reference[first * size : (first + count) * size]  # noqa: E731
    elif byte_check == COMPARE_ONE_BLOCK:
        expected = lambda _first, count: reference * count  # noqa: E731
    async with holding(lu, task, lba, blocks):
        await _compare(lu, task, lba, blocks, expected)
    return Result(data_out_length=length)


async def _compare(
    lu: "LogicalUnit", task: Task, lba: int, blocks: int, expected: Expected | None
) -> None:
    """Read the blocks and compare them with what is `expected` (None: with nothing).

    Raises ScsiError MISCOMPARE with the LBA of the first block that differs as INFORMATION.
    """
    statistics = lu.statistics
    statistics.verify_commands += 1
    step = limits.OPTIMAL_TRANSFER_LENGTH_BYTES // lu.block_size
    for first in range(0, blocks, step):
        count = min(step, blocks - first)
        found = bytes(await read_back(lu, lba + first, count))
        statistics.verify_bytes += len(found)
        if expected is not None:
            difference = first_difference(found, expected(first, count))
            if difference is not None:
                statistics.verify_errors += 1
                raise ScsiError(
                    SenseKey.MISCOMPARE,
                    Asc.MISCOMPARE_DURING_VERIFY_OPERATION,
                    information=lba + first + difference // lu.block_size,
                )
        await pause(task)


def first_difference(found: bytes, expected: bytes) -> int | None:
    """The offset of the first byte that differs, None if there is none."""
    if found == expected:
        return None
    first, end = 0, len(found)
    while end - first > 1:
        middle = (first + end) // 2
        if found[first:middle] == expected[first:middle]:
            first = middle
        else:
            end = middle
    return first


def write_and_verify_length(lu: "LogicalUnit", cdb: bytes) -> int:
    """Bytes of data-out of a WRITE AND VERIFY."""
    return transfer_length_bytes(lu, cdb, *decode_extent(cdb))


def write_and_verify(lu: "LogicalUnit", task: Task) -> Outcome:
    """WRITE AND VERIFY(10), (12) and (16) (SBC-4 clauses 5.49 to 5.51); BYTCHK has one bit here."""
    check_transfer(lu, task.cdb, *decode_extent(task.cdb))
    return _write_and_verify(lu, task)


async def _write_and_verify(lu: "LogicalUnit", task: Task) -> Result:
    lba, blocks = decode_extent(task.cdb)
    size = lu.block_size
    length = blocks * size
    async with holding(lu, task, lba, blocks):
        data = whole_blocks(task.data_out, length, size)
        if data:
            written = b"".join(data)
            lu.statistics.write_commands += 1
            lu.statistics.write_bytes += len(written)
            # Verified is what the medium holds, so the write must have got there.
            await lu.store.write(lba * size, data, durable=True)
            expected: Expected | None = None
            if _byte_check(task.cdb) == COMPARE_ALL:
                expected = lambda first, count: written[first * size : (first + count) * size]  # noqa: E731
            await _compare(lu, task, lba, len(written) // size, expected)
    return Result(data_out_length=length)
