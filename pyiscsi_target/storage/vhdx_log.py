"""Writing the log of a VHDX file: how its metadata changes ([MS-VHDX] section 2.3).

A change is an entry in the log, written but not flushed: it outlives this process, and the next
flush of the file makes it as durable as the data that was written along with it. Only then is it
applied in place, and with the flush after that its space in the log is free. So an allocation
costs two writes, and a flush of the disk stays one flush of the file.

The ring is used as two halves. A half is begun only when everything in the other one has been
applied and flushed, and its first entry has no older tail. So an entry that is torn by a loss of
power never overlaps the sequence that is replayed in its stead, no entry wraps, and the log is
never without a complete sequence. Must not know what the sectors mean.
"""

import asyncio
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, auto
from itertools import islice
from uuid import UUID, uuid4

from .base import StorageError, StorageFault
from .image_file import ImageFile
from .vhdx_format import LOG_SECTOR_BYTES, MIB, NO_GUID, damaged
from .vhdx_header import Headers
from .vhdx_log_entry import SECTORS_PER_ENTRY_MAX, EntryHeader, build_entry, entry_length


class _State(Enum):
    WRITTEN = auto()
    DURABLE = auto()
    APPLIED = auto()
    DONE = auto()  # applied, and that is durable


@dataclass(slots=True)
class _Entry:
    offset: int
    sectors: Mapping[int, bytes]
    state: _State = _State.WRITTEN


@dataclass(frozen=True, slots=True)
class FlushMark:
    """What was in the file when a flush began."""

    written: tuple[_Entry, ...]
    applied: tuple[_Entry, ...]
    size_bytes: int


class LogWriter:
    """The log of a file that is open for writing. One caller at a time may `append`."""

    def __init__(self, file: ImageFile, headers: Headers) -> None:
        self._file = file
        self._headers = headers
        self._guid: UUID = NO_GUID
        self._half_bytes = headers.current.log_length // 2
        self._half = 1  # `begin` changes it
        self._position = 0  # in the half
        self._sequence_number = 0
        self._entries: deque[_Entry] = deque()
        self._durable_bytes = file.size_bytes  # how large the file is after a loss of power
        self._applying = asyncio.Lock()

    @property
    def is_durable(self) -> bool:
        """Whether everything appended is on the medium."""
        return not self._entries or self._entries[-1].state is not _State.WRITTEN

    @property
    def is_open(self) -> bool:
        """Whether the log has begun."""
        return self._guid != NO_GUID

    @property
    def is_applied(self) -> bool:
        """Whether everything appended is in place, too."""
        return all(entry.state in (_State.APPLIED, _State.DONE) for entry in self._entries)

    async def begin(self, data_write_guid: UUID | None = None) -> None:
        """Begin a log with an empty entry, and name it in the headers. Raises StorageError."""
        header = self._headers.current
        if header.log_length < MIB:
            raise damaged(self._file.name, "log", header.log_offset, "there is no room for a log")
        guid = uuid4()
        # If naming the log failed half-way before, the headers may name what is in the other half.
        self._half, self._position, self._sequence_number = self._half ^ 1, 0, 0
        self._entries.clear()
        # A process that died may have changed the size: so the flush is one of the size, too.
        await self._file.set_size(self._file.size_bytes)
        await self._append_entry({}, guid)
        await self.flush()
        await self._headers.update(data_write_guid=data_write_guid, log_guid=guid)
        self._guid = guid

    async def end(self) -> None:
        """Apply everything and take the log out of the headers. Raises StorageError."""
        if self._guid != NO_GUID:
            await self._retire()
            await self._headers.update(log_guid=NO_GUID)
            self._guid = NO_GUID

    async def append(self, sectors: Mapping[int, bytes]) -> None:
        """Have sectors of the file (by offset, LOG_SECTOR_BYTES each) changed, all or none.

        Returns when that cannot be lost with this process. Raises StorageError; nothing has
        changed then. More sectors than one entry takes are several changes.
        """
        left = iter(sectors.items())
        while part := dict(islice(left, SECTORS_PER_ENTRY_MAX)):
            await self._append_entry(part, self._guid)

    async def _append_entry(self, sectors: Mapping[int, bytes], guid: UUID) -> None:
        length = entry_length(len(sectors))
        if self._position + length > self._half_bytes:
            await self._retire()
            self._half, self._position = self._half ^ 1, 0
        offset = self._half * self._half_bytes + self._position
        header = EntryHeader(
            length=length,
            tail=self._entries[0].offset if self._entries else offset,
            sequence_number=self._sequence_number + 1,
            descriptor_count=len(sectors),
            log_guid=guid,
            flushed_file_offset=self._durable_bytes // MIB * MIB,
            last_file_offset=-(-self._file.size_bytes // MIB) * MIB,
        )
        entry = build_entry(header, sectors)
        at = self._headers.current.log_offset + offset
        if not self._file.write_now(at, (entry,)):
            await self._file.write(at, (entry,))
        self._sequence_number += 1
        self._position += length
        self._entries.append(_Entry(offset, sectors))

    async def _retire(self) -> None:
        """Have every entry applied, and that on the medium."""
        await self.flush()
        await self.apply()
        await self.flush()
        if self._entries:
            message = f"{self._file.name}: the log is full, and cannot be applied"
            raise StorageError(StorageFault.MEDIUM, message)

    # Flushing

    async def flush(self) -> None:
        """Flush the file, and know it."""
        mark = self.mark()
        await self._file.flush()
        self.flushed(mark)

    def mark(self) -> FlushMark:
        """To be taken before a flush of the file, and given to `flushed` when it succeeded."""
        return FlushMark(
            tuple(entry for entry in self._entries if entry.state is _State.WRITTEN),
            tuple(entry for entry in self._entries if entry.state is _State.APPLIED),
            self._file.size_bytes,
        )

    def flushed(self, mark: FlushMark) -> None:
        """Everything that was there at the mark is on the medium."""
        self._durable_bytes = max(self._durable_bytes, mark.size_bytes)
        for entry in mark.written:
            if entry.state is _State.WRITTEN:  # else a flush that ended earlier knew it
                entry.state = _State.DURABLE
        for entry in mark.applied:
            entry.state = _State.DONE
        while self._entries and self._entries[0].state is _State.DONE:
            self._entries.popleft()

    async def apply(self) -> None:
        """Make the changes of durable entries in place. Raises StorageError; it can be repeated."""
        async with self._applying:
            for entry in tuple(self._entries):
                if entry.state is _State.WRITTEN:
                    break
                if entry.state is _State.DURABLE:
                    for offset, sector in entry.sectors.items():
                        if not self._file.write_now(offset, (sector,)):
                            await self._file.write(offset, (sector,))
                    entry.state = _State.APPLIED


assert LOG_SECTOR_BYTES * (SECTORS_PER_ENTRY_MAX + 1) <= MIB // 2  # an entry fits into a half
