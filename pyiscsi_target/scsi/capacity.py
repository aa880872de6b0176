"""READ CAPACITY: how many blocks of which size, and how they lie on the medium."""

from typing import TYPE_CHECKING

from construct import BitsInteger, BitStruct, Bytes, Flag, Int32ub, Int64ub, Padding, Struct

from .task import Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

_LBA_10_MAX = 0xFFFF_FFFF

# SBC-4 table 71
CAPACITY_10 = Struct("returned_lba" / Int32ub, "block_length" / Int32ub)

# SBC-4 table 74
CAPACITY_16 = Struct(
    "returned_lba" / Int64ub,
    "block_length" / Int32ub,
    "flags"
    / BitStruct(
        Padding(2),
        "rc_basis" / BitsInteger(2),
        "p_type" / BitsInteger(3),
        "prot_en" / Flag,
        "p_i_exponent" / BitsInteger(4),
        "logical_blocks_per_physical_block_exponent" / BitsInteger(4),
        "lbpme" / Flag,
        "lbprz" / Flag,
        "lowest_aligned_lba" / BitsInteger(14),
    ),
    "reserved" / Bytes(16),
)


def read_capacity_10(lu: "LogicalUnit", task: Task) -> Result:
    """READ CAPACITY(10); FFFFFFFFh sends the initiator to READ CAPACITY(16)."""
    last_lba = min(lu.block_count - 1, _LBA_10_MAX)
    data: bytes = CAPACITY_10.build({"returned_lba": last_lba, "block_length": lu.block_size})
    return Result(data=data)


def read_capacity_16(lu: "LogicalUnit", task: Task) -> Result:
    """READ CAPACITY(16)."""
    per_physical = max(lu.settings.physical_block_size // lu.block_size, 1)
    data: bytes = CAPACITY_16.build(
        {
            "returned_lba": lu.block_count - 1,
            "block_length": lu.block_size,
            "flags": {
                "rc_basis": 0,
                "p_type": 0,
                "prot_en": False,
                "p_i_exponent": 0,
                "logical_blocks_per_physical_block_exponent": per_physical.bit_length() - 1,
                "lbpme": lu.thin,
                "lbprz": lu.thin,  # what is deallocated reads as zeroes
                "lowest_aligned_lba": 0,
            },
            "reserved": bytes(16),
        }
    )
    return Result(data=data[: int.from_bytes(task.cdb[10:14], "big")])
