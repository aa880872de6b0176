"""READ and WRITE, and what all commands that address logical blocks share (SBC-4 clause 5).

The handlers here are the hot path: they answer within `execute` when the store can, and turn into
a coroutine only where they would block. The rarer block commands have rooms of their own.
"""

import struct
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from ..storage.base import StorageError
from .sense import Asc, ScsiError, SenseKey, invalid_cdb_field
from .task import Buffer, Outcome, Result, Task, fresh_buffer

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

DPO = 0x10  # accepted, and without effect: the host's page cache has no such hint
FUA = 0x08

_decode_10 = struct.Struct(">xBIxH").unpack_from
_decode_12 = struct.Struct(">xBII").unpack_from
_decode_16 = struct.Struct(">xBQI").unpack_from

# First byte of the TRANSFER LENGTH (or the like) by group code, the CDB's three highest bits
_LENGTH_OFFSET = {0: 4, 1: 7, 2: 7, 4: 10, 5: 6}


def decode_extent(cdb: bytes) -> tuple[int, int]:
    """The LBA and the number of blocks of any 10, 12 or 16 byte CDB in the usual layout."""
    group = cdb[0] >> 5
    decode = _decode_16 if group == 4 else _decode_12 if group == 5 else _decode_10
    _, lba, blocks = decode(cdb)
    return lba, blocks


def lba_out_of_range() -> ScsiError:
    """ILLEGAL REQUEST, LOGICAL BLOCK ADDRESS OUT OF RANGE."""
    return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)


def too_many_blocks(cdb: bytes) -> ScsiError:
    """INVALID FIELD IN CDB for a length above the limits of VPD page B0h."""
    return invalid_cdb_field(_LENGTH_OFFSET[cdb[0] >> 5], 7)


def wrong_data_out_length() -> ScsiError:
    """The data-out is not what the CDB asks for, and part of it would be useless."""
    return ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)


def check_transfer(lu: "LogicalUnit", cdb: bytes, lba: int, blocks: int) -> None:
    """Raise ScsiError unless the blocks exist and are no more than one transfer may have."""
    if lba + blocks > lu.block_count:
        raise lba_out_of_range()
    if blocks > lu.maximum_transfer_blocks:
        raise too_many_blocks(cdb)


@asynccontextmanager
async def holding(
    lu: "LogicalUnit", task: Task, lba: int, blocks: int, *, exclusive: bool = False
) -> AsyncIterator[None]:
    """Use blocks from a coroutine, shared or exclusively. Raises TaskAborted."""
    held = await lu.ranges.hold(task, lba, lba + blocks, exclusive=exclusive)
    try:
        yield
    finally:
        lu.ranges.release(held)


# READ (SBC-4 clauses 5.16 to 5.19)


def read_6(lu: "LogicalUnit", task: Task) -> Outcome:
    """READ(6); a TRANSFER LENGTH of zero means 256 blocks."""
    lba, blocks = _decode_6(task.cdb)
    return _read(lu, task, 0, lba, blocks)


def read_10(lu: "LogicalUnit", task: Task) -> Outcome:
    """READ(10)."""
    flags, lba, blocks = _decode_10(task.cdb)
    return _read(lu, task, flags & FUA, lba, blocks)


def read_12(lu: "LogicalUnit", task: Task) -> Outcome:
    """READ(12)."""
    flags, lba, blocks = _decode_12(task.cdb)
    return _read(lu, task, flags & FUA, lba, blocks)


def read_16(lu: "LogicalUnit", task: Task) -> Outcome:
    """READ(16)."""
    flags, lba, blocks = _decode_16(task.cdb)
    return _read(lu, task, flags & FUA, lba, blocks)


def _decode_6(cdb: bytes) -> tuple[int, int]:
    return (cdb[1] & 0x1F) << 16 | cdb[2] << 8 | cdb[3], cdb[4] or 256


def _read(lu: "LogicalUnit", task: Task, fua: int, lba: int, blocks: int) -> Outcome:
    if lba + blocks > lu.block_count or blocks > lu.maximum_transfer_blocks:
        check_transfer(lu, task.cdb, lba, blocks)
    size = lu.block_size
    length = blocks * size
    statistics = lu.statistics
    statistics.read_commands += 1
    statistics.read_bytes += length
    ranges = lu.ranges
    if not (fua or (ranges.exclusive_count and ranges.conflicts(lba, lba + blocks, False))):
        if not length:
            return Result()
        into = task.allocate(length)
        if lu.store.read_now(lba * size, into):
            return Result(0, into)
    return _read_later(lu, task, lba, blocks, fua)


async def _read_later(lu: "LogicalUnit", task: Task, lba: int, blocks: int, fua: int) -> Result:
    into = fresh_buffer(blocks * lu.block_size)
    async with holding(lu, task, lba, blocks):
        if fua:
            await flush(lu)  # newer data in the volatile cache goes to the medium first
        if into:
            await lu.store.read(lba * lu.block_size, into)
    return Result(0, into)


async def flush(lu: "LogicalUnit") -> None:
    """Flush the store; a failure is a failed write whatever the command was."""
    try:
        await lu.store.flush()
    except StorageError as error:
        raise lu.storage_failure(error, writing=True) from error


async def read_back(lu: "LogicalUnit", lba: int, blocks: int) -> memoryview:
    """Read blocks for a command that also writes; a failure is a failed read."""
    into = fresh_buffer(blocks * lu.block_size)
    try:
        if not lu.store.read_now(lba * lu.block_size, into):
            await lu.store.read(lba * lu.block_size, into)
    except StorageError as error:
        raise lu.storage_failure(error, writing=False) from error
    return into


# WRITE (SBC-4 clauses 5.45 to 5.48)


def write_6(lu: "LogicalUnit", task: Task) -> Outcome:
    """WRITE(6); a TRANSFER LENGTH of zero means 256 blocks."""
    lba, blocks = _decode_6(task.cdb)
    return _write(lu, task, 0, lba, blocks)


def write_10(lu: "LogicalUnit", task: Task) -> Outcome:
    """WRITE(10)."""
    flags, lba, blocks = _decode_10(task.cdb)
    return _write(lu, task, flags & FUA, lba, blocks)


def write_12(lu: "LogicalUnit", task: Task) -> Outcome:
    """WRITE(12)."""
    flags, lba, blocks = _decode_12(task.cdb)
    return _write(lu, task, flags & FUA, lba, blocks)


def write_16(lu: "LogicalUnit", task: Task) -> Outcome:
    """WRITE(16)."""
    flags, lba, blocks = _decode_16(task.cdb)
    return _write(lu, task, flags & FUA, lba, blocks)


def write_length_6(lu: "LogicalUnit", cdb: bytes) -> int:
    """Bytes of data-out of a WRITE(6)."""
    return transfer_length_bytes(lu, cdb, *_decode_6(cdb))


def write_length(lu: "LogicalUnit", cdb: bytes) -> int:
    """Bytes of data-out of a WRITE(10), (12) or (16) and of those that look the same."""
    return transfer_length_bytes(lu, cdb, *decode_extent(cdb))


def transfer_length_bytes(lu: "LogicalUnit", cdb: bytes, lba: int, blocks: int) -> int:
    """The bytes of `blocks`, once they have passed `check_transfer`."""
    check_transfer(lu, cdb, lba, blocks)
    return blocks * lu.block_size


def _write(lu: "LogicalUnit", task: Task, fua: int, lba: int, blocks: int) -> Outcome:
    if lba + blocks > lu.block_count or blocks > lu.maximum_transfer_blocks:
        check_transfer(lu, task.cdb, lba, blocks)
    size = lu.block_size
    length = blocks * size
    data = task.data_out
    if (len(data[0]) if len(data) == 1 else sum(map(len, data))) != length:
        data = whole_blocks(data, length, size)
    statistics = lu.statistics
    statistics.write_commands += 1
    statistics.write_bytes += length
    ranges = lu.ranges
    if not (
        fua
        or (ranges.exclusive_count and ranges.conflicts(lba, lba + blocks, False))
        or not lu.mode.write_cache_enabled
    ) and (not data or lu.store.write_now(lba * size, data)):
        return Result(0, None, b"", length)
    return _write_later(lu, task, lba, blocks, fua)


async def _write_later(lu: "LogicalUnit", task: Task, lba: int, blocks: int, fua: int) -> Result:
    length = blocks * lu.block_size
    async with holding(lu, task, lba, blocks):
        data = whole_blocks(task.data_out, length, lu.block_size)
        if data:
            await lu.store.write(lba * lu.block_size, data, durable=is_durable(lu, fua))
    return Result(data_out_length=length)


def is_durable(lu: "LogicalUnit", fua: int) -> bool:
    """Whether a write must be on the medium before its status: FUA=1 or WCE=0."""
    return bool(fua) or not lu.mode.write_cache_enabled


def whole_blocks(data: Sequence[Buffer], length: int, block_size: int) -> list[memoryview]:
    """The whole blocks among the first `length` bytes of what arrived.

    RFC 7143 section 11.4.5.1: a shorter transfer than the CDB asks for is an overflow, whose blocks
    that arrived are written; of a longer one the rest is not used.
    """
    left = min(length, sum(map(len, data))) // block_size * block_size
    kept: list[memoryview] = []
    for buffer in data:
        if not left:
            break
        piece = memoryview(buffer)[:left]
        kept.append(piece)
        left -= len(piece)
    return kept
