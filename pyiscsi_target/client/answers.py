"""The data that everyday commands answer with: bytes to values (SPC-5, SBC-4).

Every length in them is checked against what came. Raises BadAnswer.
"""

import struct
from dataclasses import dataclass

from ..scsi.capacity import CAPACITY_16
from .errors import BadAnswer
from .lun import decode_lun

_STANDARD_INQUIRY_MINIMUM = 36  # bytes (SPC-5 clause 6.6.2)
CAPACITY_LENGTH = CAPACITY_16.sizeof()  # bytes
_PAGE_HEADER = struct.Struct(">BBH")  # peripheral, page code, page length
_LUN_LIST_HEADER_LENGTH = 8
_LUN_LENGTH = 8


@dataclass(frozen=True, slots=True)
class Capacity:
    """READ CAPACITY(16) (SBC-4 clause 5.21); `block_size` in bytes.

    `physical_exponent`: 2 to this power logical blocks make a physical one. `thin` is LBPME,
    `reads_zeroes` LBPRZ. `raw` is all that came.
    """

    block_count: int
    block_size: int
    physical_exponent: int
    lowest_aligned_lba: int
    thin: bool
    reads_zeroes: bool
    raw: bytes

    @property
    def size_bytes(self) -> int:
        """What fits on the disk."""
        return self.block_count * self.block_size


def decode_capacity(raw: bytes) -> Capacity:
    """READ CAPACITY(16) parameter data; what is missing of it beyond byte 12 is zero."""
    if len(raw) < 12:
        raise BadAnswer(f"READ CAPACITY(16): {len(raw)} bytes")
    fields = CAPACITY_16.parse(raw.ljust(CAPACITY_LENGTH, b"\0"))
    flags = fields.flags
    if not fields.block_length:
        raise BadAnswer("READ CAPACITY(16): blocks of no bytes")
    return Capacity(
        fields.returned_lba + 1,
        fields.block_length,
        flags.logical_blocks_per_physical_block_exponent,
        flags.lowest_aligned_lba,
        flags.lbpme,
        flags.lbprz,
        raw,
    )


def lun_list_length(raw: bytes) -> int:
    """How long the whole REPORT LUNS parameter data is, in bytes, from its beginning."""
    if len(raw) < _LUN_LIST_HEADER_LENGTH:
        raise BadAnswer(f"REPORT LUNS: {len(raw)} bytes")
    return _LUN_LIST_HEADER_LENGTH + int.from_bytes(raw[:4], "big")


def decode_luns(raw: bytes) -> list[int]:
    """REPORT LUNS parameter data (SPC-5 clause 6.32)."""
    end = lun_list_length(raw)
    if end > len(raw) or end % _LUN_LENGTH:
        raise BadAnswer("REPORT LUNS: LUN LIST LENGTH is not that of the list")
    luns = struct.unpack_from(f">{end // _LUN_LENGTH - 1}Q", raw, _LUN_LIST_HEADER_LENGTH)
    return [decode_lun(lun) for lun in luns]


def inquiry_length(raw: bytes) -> int:
    """How long the whole standard INQUIRY data is, in bytes, from its beginning."""
    if len(raw) < _STANDARD_INQUIRY_MINIMUM:
        raise BadAnswer(f"INQUIRY: {len(raw)} bytes, {_STANDARD_INQUIRY_MINIMUM} at least belong")
    return 5 + raw[4]


def page_length(raw: bytes, page: int) -> int:
    """How long a whole vital product data page is, in bytes, from its beginning."""
    if len(raw) < _PAGE_HEADER.size:
        raise BadAnswer(f"vital product data page {page:02X}h: {len(raw)} bytes")
    _, code, length = _PAGE_HEADER.unpack_from(raw)
    if code != page:
        raise BadAnswer(f"vital product data page {page:02X}h: page {code:02X}h came")
    return _PAGE_HEADER.size + int(length)
