"""Sense data as an initiator reads it: both formats to one value (SPC-5 clause 4.4).

Takes what any target sends: short, padded or unknown data gives what can be read of it.
"""

import struct
from dataclasses import dataclass
from typing import Self

from ..scsi.sense import Asc, FieldPointer, SenseKey

_FIXED = frozenset({0x70, 0x71})  # current and deferred
_DESCRIPTOR = frozenset({0x72, 0x73})
_FIXED_LENGTH = 18  # bytes, up to the sense key specific data
_DESCRIPTOR_HEADER_LENGTH = 8
_VALID = 0x80
_SKSV = 0x80
_IN_CDB = 0x40
_BIT_VALID = 0x08

_INFORMATION, _COMMAND_SPECIFIC, _SENSE_KEY_SPECIFIC = 0x00, 0x01, 0x02

_KEY_NAMES = {key.value: key.name.replace("_", " ") for key in SenseKey}
_ASC_NAMES = {asc.value: asc.name.replace("_", " ") for asc in Asc}


@dataclass(frozen=True, slots=True)
class Sense:
    """Decoded sense data. `information` and `command_specific` are None where not valid.

    `field` points at the byte (and bit) in error, of an ILLEGAL REQUEST that says so.
    """

    key: int
    asc: int
    ascq: int
    information: int | None = None
    command_specific: int | None = None
    field: FieldPointer | None = None
    deferred: bool = False

    @property
    def code(self) -> tuple[int, int]:
        """Additional sense code and qualifier."""
        return self.asc, self.ascq

    @property
    def is_unit_attention(self) -> bool:
        """Whether the sense key is UNIT ATTENTION."""
        return self.key == SenseKey.UNIT_ATTENTION

    @classmethod
    def decode(cls, raw: bytes) -> Self | None:
        """What fixed or descriptor format sense data says; None if it is neither."""
        kind = raw[0] & 0x7F if raw else 0
        if kind in _FIXED:
            return cls._fixed(raw.ljust(_FIXED_LENGTH, b"\0"))
        if kind in _DESCRIPTOR:
            return cls._descriptor(raw.ljust(_DESCRIPTOR_HEADER_LENGTH, b"\0"))
        return None

    @classmethod
    def _fixed(cls, raw: bytes) -> Self:
        information, specific = struct.unpack_from(">3xI1xI", raw)
        key = raw[2] & 0x0F
        return cls(
            key,
            raw[12],
            raw[13],
            information if raw[0] & _VALID else None,
            specific or None,
            _field_pointer(key, raw[15:18]),
            deferred=raw[0] & 0x7F == 0x71,
        )

    @classmethod
    def _descriptor(cls, raw: bytes) -> Self:
        key = raw[1] & 0x0F
        found = _descriptors(raw)
        information = found.get(_INFORMATION, b"")
        specific = found.get(_COMMAND_SPECIFIC, b"")
        valid = len(information) == 12 and bool(information[2] & _VALID)
        return cls(
            key,
            raw[2],
            raw[3],
            int.from_bytes(information[4:], "big") if valid else None,
            int.from_bytes(specific[4:], "big") if len(specific) == 12 else None,
            _field_pointer(key, found.get(_SENSE_KEY_SPECIFIC, b"")[4:7]),
            deferred=raw[0] & 0x7F == 0x73,
        )

    def __str__(self) -> str:
        key = _KEY_NAMES.get(self.key, f"sense key {self.key:X}h")
        name = _ASC_NAMES.get(self.code)
        return f"{key}, {self.asc:02X}h/{self.ascq:02X}h" + (f" {name}" if name else "")


def _descriptors(raw: bytes) -> dict[int, bytes]:
    """The whole descriptors by type, the first of each."""
    found: dict[int, bytes] = {}
    offset = _DESCRIPTOR_HEADER_LENGTH
    end = min(len(raw), offset + raw[7])
    while offset + 2 <= end:
        following = offset + 2 + raw[offset + 1]
        if following > end:
            break
        found.setdefault(raw[offset], raw[offset:following])
        offset = following
    return found


def _field_pointer(key: int, specific: bytes) -> FieldPointer | None:
    """SPC-5 clause 4.4.2.4.2, if these three bytes are one."""
    if key != SenseKey.ILLEGAL_REQUEST or len(specific) < 3 or not specific[0] & _SKSV:
        return None
    bit = specific[0] & 0x07 if specific[0] & _BIT_VALID else None
    byte = int.from_bytes(specific[1:3], "big")
    return FieldPointer(byte, bit, in_cdb=bool(specific[0] & _IN_CDB))
