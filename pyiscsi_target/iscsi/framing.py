"""Received bytes to PDUs (RFC 7143 section 11.2): lengths, padding, AHS, digests.

Memory is shared: a connection holds a receive buffer only while bytes of an unfinished PDU are in
it, so an idle connection costs none. Knows nothing of what the PDUs mean.
"""

from ..memory import page_aligned
from .constants import BHS_LENGTH
from .digest import DIGEST_LENGTH, matches
from .pdu import DATA_SEGMENT_LENGTH_MASK, LENGTHS
from .text import ProtocolError

RECEIVE_BUFFER_LENGTH = 512 * 1024  # bytes one wake-up can take from the socket
SMALL_REST_LENGTH = 16 * 1024  # bytes: a rest up to this is copied out and the buffer given back

# What stands for a data segment whose digest was wrong.
BAD_DIGEST = memoryview(b"")

# Offset of the header in the receive buffer, data segment, additional header segments.
Frame = tuple[int, memoryview | None, bytes]


class BufferPool:
    """Buffers of one size, used again: the last one given back is the first one taken."""

    __slots__ = ("_free", "_keep", "size_bytes")

    def __init__(self, size_bytes: int, keep: int = 8) -> None:
        self.size_bytes = size_bytes
        self._keep = keep
        self._free: list[memoryview] = []

    def take(self) -> memoryview:
        """A buffer with arbitrary content."""
        return self._free.pop() if self._free else page_aligned(self.size_bytes)

    def give(self, buffer: memoryview) -> None:
        """Take back a buffer that nobody reads any more."""
        if len(self._free) < self._keep and len(buffer) == self.size_bytes:
            self._free.append(buffer)


class Framer:
    """One connection's receive buffer and the PDUs in it.

    A round is `writable` (where the next bytes go), `frames` (what is complete now, valid until
    the round's end) and `settle` (the end). After `broken` is set nothing more is framed: a header
    that cannot be trusted leaves no way to find the next one.
    """

    __slots__ = (
        "_end",
        "_pool",
        "_rest",
        "_start",
        "broken",
        "data_digest",
        "header_digest",
        "max_segment_length",
        "memory",
    )

    def __init__(self, pool: BufferPool, max_segment_length: int) -> None:
        assert pool.size_bytes > SMALL_REST_LENGTH, "a rest must leave room to receive"
        self._pool = pool
        self._start = 0
        self._end = 0
        self._rest = b""
        self.memory: memoryview = _NO_MEMORY
        self.max_segment_length = max_segment_length
        self.header_digest = False
        self.data_digest = False
        self.broken: ProtocolError | None = None

    def writable(self) -> memoryview:
        """The free part of the receive buffer; never empty."""
        if self.memory is _NO_MEMORY:
            self.memory = self._pool.take()
            self._start = 0
            self._end = len(self._rest)
            self.memory[: self._end] = self._rest
            self._rest = b""
        return self.memory[self._end :]

    def received(self, length: int) -> None:
        """`length` bytes now stand at the beginning of what `writable` gave."""
        self._end += length

    def frames(self, limit: int) -> list[Frame]:
        """Up to `limit` complete PDUs, in order. Their views are valid until `settle`."""
        frames: list[Frame] = []
        memory, position, end = self.memory, self._start, self._end
        header_digest = self.header_digest
        fixed_length = BHS_LENGTH + DIGEST_LENGTH if header_digest else BHS_LENGTH
        while end - position >= fixed_length and len(frames) < limit and self.broken is None:
            (lengths,) = LENGTHS.unpack_from(memory, position)
            if lengths or header_digest:
                following = self._frame(frames, position, lengths)
                if not following:
                    break
                position = following
            else:
                frames.append((position, None, b""))
                position += BHS_LENGTH
        self._start = position
        return frames

    def _frame(self, frames: list[Frame], position: int, lengths: int) -> int:
        """Frame the PDU at `position` if it is complete; the position after it, or 0."""
        memory = self.memory
        data_length = lengths & DATA_SEGMENT_LENGTH_MASK
        if data_length > self.max_segment_length:
            self.broken = ProtocolError("DataSegmentLength is above what we declared")
            return 0
        header_end = position + BHS_LENGTH + (lengths >> 24) * 4
        data_start = header_end + DIGEST_LENGTH if self.header_digest else header_end
        if self.header_digest:
            if data_start > self._end:
                return 0
            if not matches(memory[position:header_end], memory, header_end):
                self.broken = ProtocolError("header digest error")
                return 0
        following = data_start + _framed_length(data_length, self.data_digest)
        if following > self._end:
            return 0
        data: memoryview | None = None
        if data_length:
            data = memory[data_start : data_start + data_length]
            if self.data_digest and not self._data_intact(data_start, following):
                data = BAD_DIGEST
        frames.append((position, data, bytes(memory[position + BHS_LENGTH : header_end])))
        return following

    def _data_intact(self, data_start: int, following: int) -> bool:
        """Padding is part of what the data digest covers (section 11.2.3)."""
        covered_end = following - DIGEST_LENGTH
        return matches(self.memory[data_start:covered_end], self.memory, covered_end)

    def settle(self) -> None:
        """End the round: keep the unfinished PDU, give back memory where possible."""
        if self.memory is _NO_MEMORY:
            return
        if self.broken is not None:
            self._start = self._end  # nothing of it can be framed any more
        memory, start, end = self.memory, self._start, self._end
        if end - start <= SMALL_REST_LENGTH:
            self._rest = bytes(memory[start:end])
            self._pool.give(memory)
            self.memory = _NO_MEMORY
            return
        needed = self._unfinished_length(start)
        if needed > len(memory):
            self.memory = page_aligned(needed)
        self.memory[: end - start] = memory[start:end]
        self._start, self._end = 0, end - start
        if self.memory is not memory:
            self._pool.give(memory)

    def _unfinished_length(self, position: int) -> int:
        lengths: int = LENGTHS.unpack_from(self.memory, position)[0]
        return (
            BHS_LENGTH
            + (lengths >> 24) * 4
            + DIGEST_LENGTH
            + _framed_length(lengths & DATA_SEGMENT_LENGTH_MASK, self.data_digest)
        )


_NO_MEMORY = memoryview(b"")


def _framed_length(data_length: int, data_digest: bool) -> int:
    """A data segment's length on the wire, with its padding and digest."""
    if not data_length:
        return 0
    padded = data_length + 3 & ~3
    return padded + DIGEST_LENGTH if data_digest else padded
