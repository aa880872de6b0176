"""UNMAP and GET LBA STATUS: logical block provisioning management (SBC-4 clause 4.7).

Deallocated and anchored blocks read as zeroes (LBPRZ=1); anchored ones have their space, so that a
write of them does not fail for want of it. Not every medium can do that (ANC_SUP).
"""

from typing import TYPE_CHECKING

from construct import Int16ub, Int32ub, Int64ub, Padding, Struct

from ..storage.base import Provisioning
from ..storage.extents import end_of, whole_blocks
from . import limits
from .block import flush, holding, lba_out_of_range
from .ordering import pause
from .sense import invalid_parameter_field, parameter_list_length_error
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

ANCHOR = 0x01  # of UNMAP's byte 1
_ANCHORED_AT_ONCE_BYTES = 1 << 27  # so that a command can be aborted between two parts of it

# SBC-4 tables 120 and 121
UNMAP_HEADER = Struct(
    "unmap_data_length" / Int16ub,
    "block_descriptor_data_length" / Int16ub,
    Padding(4),
)
UNMAP_DESCRIPTOR = Struct("lba" / Int64ub, "blocks" / Int32ub, Padding(4))

# SBC-4 tables 53 and 54
LBA_STATUS_HEADER = Struct("parameter_data_length" / Int32ub, Padding(4))
LBA_STATUS_DESCRIPTOR = Struct("lba" / Int64ub, "blocks" / Int32ub, "provisioning_status" / Int32ub)
_STATUS_SHIFT = 24  # the status is the low half of the first of its four bytes
_BLOCKS_MAX = 0xFFFF_FFFF
_EXTENTS_MAX = 1024  # an answer may be shorter than the allocation length allows


def unmap(lu: "LogicalUnit", task: Task) -> Outcome:
    """UNMAP (SBC-4 clause 5.32). Nothing is unmapped unless all of the list is valid."""
    length = int.from_bytes(task.cdb[7:9], "big")
    if not length:
        return Result(data_out_length=0)
    data = b"".join(task.data_out)[:length]
    extents = [(lba, blocks) for lba, blocks in _parse_unmap_list(lu, data) if blocks]
    return _unmap(lu, task, extents, length)


def _parse_unmap_list(lu: "LogicalUnit", data: bytes) -> list[tuple[int, int]]:
    """The (LBA, blocks) pairs of an UNMAP parameter list. Raises ScsiError."""
    if len(data) < UNMAP_HEADER.sizeof():
        raise parameter_list_length_error()
    header = UNMAP_HEADER.parse(data)
    size = UNMAP_DESCRIPTOR.sizeof()
    first = UNMAP_HEADER.sizeof()
    # An incomplete last descriptor is ignored, one that the list lengths cut off is an error.
    count = header.block_descriptor_data_length // size
    if header.unmap_data_length + 2 > len(data) or first + count * size > len(data):
        raise parameter_list_length_error()
    if count > limits.MAXIMUM_UNMAP_BLOCK_DESCRIPTOR_COUNT:
        raise invalid_parameter_field(2, 7)
    extents = []
    total = 0
    for offset in range(first, first + count * size, size):
        descriptor = UNMAP_DESCRIPTOR.parse(data[offset : offset + size])
        if descriptor.lba + descriptor.blocks > lu.block_count:
            raise lba_out_of_range()
        total += descriptor.blocks
        if total > limits.MAXIMUM_UNMAP_LBA_COUNT:
            raise invalid_parameter_field(offset + 8, 7)
        extents.append((descriptor.lba, descriptor.blocks))
    return extents


async def _unmap(
    lu: "LogicalUnit", task: Task, extents: list[tuple[int, int]], length: int
) -> Result:
    size = lu.block_size
    for lba, blocks in extents:
        async with holding(lu, task, lba, blocks):
            if task.cdb[1] & ANCHOR:
                await anchor(lu, task, lba, blocks)
            else:
                await lu.store.deallocate(lba * size, blocks * size)
        await pause(task)
    if extents and not lu.mode.write_cache_enabled:
        await flush(lu)
    return Result(data_out_length=length)


async def anchor(lu: "LogicalUnit", task: Task, lba: int, blocks: int) -> None:
    """Let blocks read as zeroes and have their space; the task holds them. Raises StorageError."""
    step = _ANCHORED_AT_ONCE_BYTES // lu.block_size
    for first in range(lba, lba + blocks, step):
        count = min(step, lba + blocks - first)
        await lu.store.anchor(first * lu.block_size, count * lu.block_size)
        await pause(task)


def get_lba_status(lu: "LogicalUnit", task: Task) -> Outcome:
    """GET LBA STATUS (SBC-4 clause 5.6), from the starting LBA as far as the answer has room."""
    lba = int.from_bytes(task.cdb[2:10], "big")
    if lba >= lu.block_count:
        raise lba_out_of_range()
    return _get_lba_status(lu, task, lba)


async def _get_lba_status(lu: "LogicalUnit", task: Task, lba: int) -> Result:
    allocation_length = int.from_bytes(task.cdb[10:14], "big")
    room = (allocation_length - LBA_STATUS_HEADER.sizeof()) // LBA_STATUS_DESCRIPTOR.sizeof()
    extents = await _extents(lu, lba, max(1, min(room, _EXTENTS_MAX)))
    body = b"".join(
        LBA_STATUS_DESCRIPTOR.build(
            {
                "lba": first,
                "blocks": min(end - first, _BLOCKS_MAX),
                "provisioning_status": state.value << _STATUS_SHIFT,
            }
        )
        for first, end, state in extents
    )
    header = LBA_STATUS_HEADER.build({"parameter_data_length": len(body) + 4})
    return Result(data=(header + body)[:allocation_length])


async def _extents(lu: "LogicalUnit", lba: int, limit: int) -> list[tuple[int, int, Provisioning]]:
    """First LBA, end LBA and state; descriptors that a 32-bit count cannot hold end the list."""
    if not lu.thin:
        return [(lba, lu.block_count, Provisioning.MAPPED)]
    size = lu.block_size
    end_bytes = lu.block_count * size
    found = await lu.store.extents(lba * size, end_bytes - lba * size, limit)
    extents = []
    for extent in whole_blocks(found, size, end_bytes):
        first, end = extent.offset_bytes // size, end_of(extent) // size
        extents.append((first, end, extent.state))
        if end - first > _BLOCKS_MAX:
            break
    return extents
