"""TransportIDs of iSCSI initiator ports (SPC-5 clause 7.6.4.6): bytes from and to port names.

What arrives describes its own length, so every length is checked against what there is. Knows no
command and no nexus.
"""

import re
import struct
from dataclasses import dataclass

from .sense import invalid_parameter_field

_HEADER = struct.Struct(">BxH")  # TPID FORMAT and PROTOCOL IDENTIFIER, ADDITIONAL LENGTH
_ISCSI = 0x5
_DEVICE_FORMAT = 0b00  # an initiator device name
_PORT_FORMAT = 0b01  # an initiator port name
_ADDITIONAL_MINIMUM = 20
_ADDITIONAL_MAXIMUM = 244  # 223 bytes of name, 17 of separator and ISID, a NUL, padding

_PORT_NAME = re.compile(r"(?P<device>[^,]+),i,0x[0-9a-f]{12}")
_DEVICE_NAME = re.compile(r"[^,]+")


@dataclass(frozen=True, slots=True)
class TransportId:
    """An initiator port by its name, or all those of an initiator device (`is_port` False)."""

    name: str
    is_port: bool
    length_bytes: int


def device_name(initiator_port_name: str) -> str:
    """The iSCSI name in an initiator port name (RFC 7143 section 4.2.7)."""
    return initiator_port_name.partition(",")[0]


def encode(initiator_port_name: str) -> bytes:
    """The TransportID of an initiator port, its name terminated and padded with zeroes."""
    name = initiator_port_name.encode()
    length = max(_ADDITIONAL_MINIMUM, (len(name) + 1 + 3) // 4 * 4)
    return _HEADER.pack(_PORT_FORMAT << 6 | _ISCSI, length) + name.ljust(length, b"\0")


def decode(parameters: bytes, offset: int) -> TransportId:
    """The TransportID at `offset` of a parameter list.

    Names are compared without regard to case (RFC 7143 section 4.2.7.2). Raises ScsiError pointing
    at the field that is wrong.
    """
    if len(parameters) - offset < _HEADER.size:
        raise invalid_parameter_field(offset, 7)
    kind, length = _HEADER.unpack_from(parameters, offset)
    if kind & 0x0F != _ISCSI:
        raise invalid_parameter_field(offset, 3)
    end = offset + _HEADER.size + length
    if not _ADDITIONAL_MINIMUM <= length <= _ADDITIONAL_MAXIMUM or length % 4:
        raise invalid_parameter_field(offset + 2, 7)
    if end > len(parameters):
        raise invalid_parameter_field(offset + 2, 7)
    pattern = {_DEVICE_FORMAT: _DEVICE_NAME, _PORT_FORMAT: _PORT_NAME}.get(kind >> 6)
    if pattern is None:
        raise invalid_parameter_field(offset, 7)
    name = _name(parameters[offset + _HEADER.size : end], offset + _HEADER.size)
    if not pattern.fullmatch(name):
        raise invalid_parameter_field(offset + _HEADER.size, 7)
    return TransportId(name, pattern is _PORT_NAME, _HEADER.size + length)


def _name(raw: bytes, offset: int) -> str:
    text, terminator, _ = raw.partition(b"\0")
    try:
        name = text.decode().lower()
    except UnicodeDecodeError:
        raise invalid_parameter_field(offset, 7) from None
    if not terminator:
        raise invalid_parameter_field(offset, 7)
    return name
