"""The log that the nodes of the story keep on the shared disk: one numbered record a block.

A record says its number and who wrote it, fills its block with what follows from both, and ends
with a checksum, so a torn, stale or foreign block is never taken for it.
"""

import struct
from dataclasses import dataclass
from typing import Self

from crc32c import crc32c

_MAGIC = b"FAILOVER"
_HEADER = struct.Struct(">8sQ16s")  # magic, number, writer
_CHECKSUM = struct.Struct(">I")


@dataclass(frozen=True, slots=True)
class Record:
    """Record `number` (from 1), written by the node of this name."""

    number: int
    writer: str

    def encode(self, block_size: int) -> bytes:
        """One whole block of `block_size` bytes."""
        head = _HEADER.pack(_MAGIC, self.number, self.writer.encode())
        body = head * (block_size // len(head))
        body = body[: block_size - _CHECKSUM.size].ljust(block_size - _CHECKSUM.size, b"\0")
        return body + _CHECKSUM.pack(crc32c(body))

    @classmethod
    def decode(cls, block: bytes) -> Self | None:
        """The record in a block; None if there is none, or not all of it."""
        magic, number, writer = _HEADER.unpack_from(block)
        name = writer.rstrip(b"\0")
        if magic != _MAGIC or not name.isascii():
            return None
        record = cls(number, name.decode())
        return record if record.encode(len(block)) == block else None
