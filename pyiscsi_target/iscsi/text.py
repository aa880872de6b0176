"""The key=value codec of login and text PDUs (RFC 7143 sections 6.1 and 6.2).

Bytes to pairs and back, C-bit splitting in both directions, and the value notations. Knows no key.
"""

import base64
import binascii
import re

from .constants import LoginStatus, RejectReason

KEY_NAME_LENGTH = 63  # bytes, section 6.1
TEXT_VALUE_LENGTH = 255  # bytes; keys whose rows say so may be longer (section 6.1)
LARGE_BINARY_LENGTH = 1024  # bytes a large-binary-value may decode to (section 6.1)
TEXT_TOTAL_LENGTH = 65536  # bytes of one request that a C bit may spread over many PDUs
KEYS_PER_REQUEST = 256

_KEY_NAME = re.compile(rb"[A-Za-z][A-Za-z0-9.\-+@_#]{0,62}\Z")
_NUMBER = re.compile(r"(?:0[xX][0-9A-Fa-f]+|0|[1-9][0-9]*)\Z")
_NUMBER_DIGITS = 20  # more cannot be a 64-bit number

Pairs = list[tuple[str, str]]


class ProtocolError(Exception):
    """What a peer sent breaks RFC 7143; carries the answer for either phase.

    `reason` answers it in full feature phase (Reject), `status` during login (Login Response).
    """

    def __init__(
        self,
        message: str,
        reason: RejectReason = RejectReason.PROTOCOL_ERROR,
        status: LoginStatus = LoginStatus.INITIATOR_ERROR,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.status = status


def decode_pairs(data: bytes, pairs_maximum: int = KEYS_PER_REQUEST) -> Pairs:
    """The pairs of a whole request, in order. Raises ProtocolError.

    The last pair's NUL may be missing, as some initiators leave it out.
    """
    pairs: Pairs = []
    for item in data.split(b"\0"):
        if not item:
            continue
        name, equals, value = item.partition(b"=")
        if not equals or not _KEY_NAME.match(name):
            raise ProtocolError(f"not a key=value pair: {item[:32]!r}")
        try:
            pairs.append((name.decode("ascii"), value.decode("utf-8")))
        except UnicodeDecodeError:
            raise ProtocolError(f"the value of {name.decode('ascii')} is not UTF-8") from None
        if len(pairs) > pairs_maximum:
            raise ProtocolError("too many keys in one request")
    return pairs


def encode_pairs(pairs: Pairs) -> bytes:
    """The pairs as a data segment, each ended by NUL."""
    return b"".join(f"{name}={value}\0".encode() for name, value in pairs)


class TextAssembler:
    """Joins the data segments of one request that the C bit spreads over PDUs (section 6.2)."""

    __slots__ = ("_parts", "_total", "limit_bytes")

    def __init__(self, limit_bytes: int = TEXT_TOTAL_LENGTH) -> None:
        self.limit_bytes = limit_bytes
        self._parts: list[bytes] = []
        self._total = 0

    def add(self, data: bytes | bytearray | memoryview, *, more: bool) -> bytes | None:
        """The whole request once `more` (the C bit) is clear, else None. Raises ProtocolError."""
        self._total += max(1, len(data))  # empty parts must come to an end, too
        if self._total > self.limit_bytes:
            raise ProtocolError("a key=value request is too long")
        self._parts.append(bytes(data))
        if more:
            return None
        whole = b"".join(self._parts)
        self._parts = []
        self._total = 0
        return whole


def parse_number(value: str, lowest: int, highest: int) -> int:
    """A numerical-value, decimal or hexadecimal (section 6.1). ValueError if not in range."""
    if len(value) > _NUMBER_DIGITS or not _NUMBER.match(value):
        raise ValueError("not a number")
    number = int(value, 0)
    if not lowest <= number <= highest:
        raise ValueError(f"not within {lowest} to {highest}")
    return number


def parse_binary(value: str, limit_bytes: int = LARGE_BINARY_LENGTH) -> bytes:
    """A binary-value: 0x hexadecimal or 0b base64; its length is checked before it is decoded.

    ValueError if it is neither, or longer than `limit_bytes`.
    """
    prefix, digits = value[:2].lower(), value[2:]
    if prefix == "0x":
        if not digits or len(digits) > 2 * limit_bytes:
            raise ValueError("wrong length")
        return binascii.unhexlify(digits if len(digits) % 2 == 0 else "0" + digits)
    if prefix == "0b":
        if not digits or len(digits) > 4 * (limit_bytes // 3 + 1):
            raise ValueError("wrong length")
        try:
            decoded = base64.b64decode(digits, validate=True)
        except binascii.Error as error:
            raise ValueError("not base64") from error
        if len(decoded) > limit_bytes:
            raise ValueError("wrong length")
        return decoded
    raise ValueError("neither 0x nor 0b")


def format_binary(value: bytes) -> str:
    """A binary-value in hexadecimal."""
    return "0x" + value.hex()
