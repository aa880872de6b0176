"""What an image format needs of the file that it lives in.

`FileIo` is such a file; tests put one in memory in its place, which can lose power. Formats must
not know which of them they have.
"""

from collections.abc import Sequence
from typing import Protocol

from .base import Buffer, Extent


class ImageFile(Protocol):
    """A file of bytes that can grow, shrink, and have holes.

    Every method raises StorageError. A write is in the host's cache when it returns, and survives
    this process; what survives the host is what was written before a flush that has returned.
    Bytes between the old and a new end of the file read as zeroes.

    The `..._blocking` methods are for opening, creating and checking, where there is no event loop
    that could be held up. Writing, flushing and changing the size need a file that is not
    `read_only`.
    """

    @property
    def name(self) -> str:
        """The file's name, for messages."""

    @property
    def read_only(self) -> bool:
        """Whether nothing may be written."""

    @property
    def anchors(self) -> bool:
        """Whether `zero` and `reserve` keep space, and `extents` tells where that is so."""

    @property
    def size_bytes(self) -> int:
        """The file's length now."""

    def read_now(self, offset_bytes: int, into: memoryview, /) -> bool:
        """Fill all of `into` if that cannot block, else return False."""

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into`; SHORT at the end of the file."""

    def write_now(self, offset_bytes: int, data: Sequence[Buffer], /) -> bool:
        """Write all buffers if that should not block, else return False."""

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        """Write all buffers; `durable`: return when they are on the medium."""

    async def flush(self) -> None:
        """Return when every write and change of size that has completed is on the medium."""

    async def set_size(self, size_bytes: int) -> None:
        """Grow (with zeroes, taking no space yet) or shrink the file."""

    async def punch(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes and give its space back where that is possible."""

    async def zero(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes and keep its space."""

    async def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        """Have space for all of the range, whose content stays. Asked only with `anchors`."""

    async def extents(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Extent]:
        """The first `limit` extents of the ranges (start, end), one range after the other.

        Without gaps; what nobody knows, or lies behind the end of the file, is mapped.
        """

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        """Bring the range into the host's cache, or do nothing."""

    async def available_bytes(self) -> int | None:
        """How much the file can still grow; None where nobody knows."""

    async def close(self) -> None:
        """Flush and close. Idempotent."""

    def read_blocking(self, offset_bytes: int, length_bytes: int) -> bytes:
        """The bytes of the range; SHORT where the file ends before it."""

    def write_blocking(self, offset_bytes: int, data: Buffer) -> None:
        """Write the buffer."""

    def flush_blocking(self) -> None:
        """As `flush`."""

    def set_size_blocking(self, size_bytes: int) -> None:
        """As `set_size`."""

    def zero_blocking(self, offset_bytes: int, length_bytes: int) -> None:
        """As `zero`."""

    def close_blocking(self) -> None:
        """Close without a flush: after an error while opening, or where nothing was written."""
