"""What a backing store is: byte ranges, declared capabilities, and errors by their kind.

A store validates nothing about SCSI: the device server checks ranges once, before the store, which
relies on it. All offsets and lengths are bytes and multiples of the disk's block size; buffers are
`bytes`, `bytearray` or one-dimensional views of bytes, so that `len` counts bytes.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

Buffer = bytes | bytearray | memoryview


class StorageFault(Enum):
    """Why a store could not do what it was asked."""

    MEDIUM = auto()  # EIO and its kin: the medium could not be read or written
    OUT_OF_SPACE = auto()  # ENOSPC, EDQUOT, a provisioning limit
    READ_ONLY = auto()  # EROFS, EPERM on a write
    SHORT = auto()  # the file is shorter than the disk (truncated behind our back)
    GONE = auto()  # the file or device is not there any more (ENODEV, ENXIO, ESTALE, EBADF)
    BUSY = auto()  # another process holds the image (on open)
    MISSING = auto()  # no such file (on open)
    INVALID = auto()  # the image or its size is not what it must be (on open)


class StorageError(Exception):
    """An operation on a store failed; `OSError` never leaves `storage/`.

    `fault` says what kind, `offset_bytes` where (None if unknown), the message names the file.
    """

    def __init__(self, fault: StorageFault, message: str, offset_bytes: int | None = None) -> None:
        super().__init__(message)
        self.fault = fault
        self.offset_bytes = offset_bytes


class Provisioning(Enum):
    """What backs a range (SBC-4 clause 4.7, logical block provisioning states).

    What is deallocated or anchored reads as zeroes. Anchored has its space, so that writing it
    cannot fail for want of that.
    """

    MAPPED = 0
    DEALLOCATED = 1
    ANCHORED = 2


@dataclass(frozen=True, slots=True)
class Extent:
    """A run of `length_bytes` bytes at `offset_bytes` in one provisioning state."""

    offset_bytes: int
    length_bytes: int
    state: Provisioning


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a store can do, declared once at open.

    `deallocate_granularity_bytes` is 0 where `deallocate` only writes zeroes; it is a property of
    the medium, the same whether the store may be written or not. Without `anchors` no extent is
    anchored.
    """

    read_only: bool = False
    volatile: bool = False  # the content dies with the process (`ram:`)
    deallocate_granularity_bytes: int = 0
    anchors: bool = False  # the medium can keep space for what holds no data, and tell where
    physical_block_bytes: int = 512  # what the medium prefers
    logical_block_bytes: int = 512  # the least that a block device addresses


class BackingStore(ABC):
    """A disk's bytes.

    Every operation exists once as `..._now`, which either completes without blocking or returns
    False having done nothing visible, and once as a coroutine, which may run in a thread. Callers
    try `_now` first; a store that can never answer at once just returns False.
    """

    size_bytes: int
    capabilities: Capabilities

    @abstractmethod
    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        """Fill all of `into` from `offset_bytes` if that cannot block.

        Returns False where it would block (the content of `into` is then undefined).
        Raises StorageError.
        """

    @abstractmethod
    async def read(self, offset_bytes: int, into: memoryview) -> None:
        """Fill all of `into` from `offset_bytes`. Raises StorageError."""

    @abstractmethod
    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        """Write the buffers one after the other at `offset_bytes` if that should not block.

        Returns False where it might block; nothing was written then. Raises StorageError.
        On return the bytes are in the host's cache (they survive this process, not the host).
        """

    @abstractmethod
    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        """Write the buffers; `durable`: return only when they are on the medium (FUA).

        The caller keeps `data` unchanged until this returns. Raises StorageError.
        """

    @abstractmethod
    async def flush(self) -> None:
        """Return when every completed write is on the medium (fdatasync). Raises StorageError.

        After a failed flush every later flush fails the same way until the store is opened again:
        the host reports a failed write-back once, so nothing later can prove that it was made good.
        Reads and writes go on, and a durable write vouches for its own bytes alone.
        """

    @abstractmethod
    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes, giving its space back where the store can."""

    @abstractmethod
    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes and keep it allocated where the store can."""

    @abstractmethod
    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        """Make the range read as zeroes and have all its space. Asked only with `anchors`.

        Raises StorageError: OUT_OF_SPACE where there is none; part of it may be zeroes then.
        """

    @abstractmethod
    async def extents(self, offset_bytes: int, length_bytes: int, limit: int) -> list[Extent]:
        """The first `limit` extents of the range, in order, without gaps, adjacent ones merged.

        At least one, and of whole blocks. May cover less than the range: when there are more than
        `limit`, or where looking further would take long.
        """

    async def resize(self, size_bytes: int) -> None:
        """Make the disk larger (with zeroes), or smaller where nothing is in what goes.

        `size_bytes` is the new size once it is durable. Nobody uses what goes meanwhile. Raises
        StorageError: INVALID, and nothing has changed, where the disk cannot take that size.
        """
        raise StorageError(StorageFault.INVALID, "this kind of disk has the size that it has")

    async def available_bytes(self) -> int | None:
        """How much the medium can still take for blocks that are not mapped; None: who knows."""
        return None

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:  # noqa: B027
        """Bring the range into the host's cache, or do nothing."""

    @abstractmethod
    async def close(self) -> None:
        """Flush, unlock and close. Idempotent."""

    def close_blocking(self) -> None:  # noqa: B027
        """Close at once, without a flush: where opening goes no further and nothing was written."""
