"""LUNs as numbers and as the eight bytes that travel (SAM-6 clause 4.7)."""

from ..scsi.report_luns import encode_lun as encode_number

FLAT_MAXIMUM = 0x3FFF
_SINGLE_LEVEL = (1 << 48) - 1  # the six bytes that a single level LUN has as zeroes
_PERIPHERAL, _FLAT = 0b00, 0b01


def encode_lun(lun: int) -> int:
    """The eight bytes, as an integer, of a LUN's number.

    What `decode_lun` gave is understood too. Raises ValueError for what is neither.
    """
    if 0 <= lun <= FLAT_MAXIMUM:
        return encode_number(lun)
    if lun >> 64 or not lun >> 32:
        raise ValueError(f"{lun} is no LUN")
    return lun


def decode_lun(raw: int) -> int:
    """The number of a single level LUN; any other (well known, on another bus) as it is."""
    method, value = raw >> 62, raw >> 48 & FLAT_MAXIMUM
    if raw & _SINGLE_LEVEL:
        return raw
    if method == _PERIPHERAL and value <= 0xFF:
        return value
    return value if method == _FLAT else raw
