"""CRC32C digests as they stand on the wire (RFC 7143 sections 11.2.3 and 13.1)."""

from struct import Struct

from crc32c import crc32c

DIGEST_LENGTH = 4

# The CRC's bits are reflected, so its bytes go out least significant first.
_WIRE = Struct("<I")

unpack_digest = _WIRE.unpack_from


def digest(*parts: bytes | bytearray | memoryview) -> bytes:
    """The four bytes that follow `parts` on the wire."""
    value = 0
    for part in parts:
        value = crc32c(part, value)
    return _WIRE.pack(value)


def matches(
    covered: bytes | bytearray | memoryview, wire: bytes | bytearray | memoryview, offset: int
) -> bool:
    """Whether the digest at `offset` of `wire` is that of `covered`."""
    return bool(crc32c(covered) == unpack_digest(wire, offset)[0])
