"""What a VHDX file's log still has to do to it, found and done ([MS-VHDX] sections 2.3.2, 2.3.3).

Must not know what the updates mean, beyond that they are metadata: they keep away from the headers
and from the log itself.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .base import Buffer, Extent, Provisioning, StorageError, StorageFault
from .image_file import ImageFile
from .vhdx_format import (
    FILE_BYTES_MAX,
    GIB,
    HEADER_SECTION_BYTES,
    LOG_SECTOR_BYTES,
    LOG_SIGNATURE,
    MIB,
    NO_GUID,
    REGION_TABLE_BYTES,
    REGION_TABLE_OFFSETS,
    damaged,
)
from .vhdx_header import Header, Headers
from .vhdx_log_entry import EntryHeader, Update, parse_header, parse_updates

_LOG_BYTES_MAX = 256 * MIB  # what is searched; logs have some MiB
_SUMS_BYTES_MIN = 64 * MIB  # of checksums, and four times the log
_ZERO_BYTES_MAX = 4 * GIB  # what all zero descriptors together may clear
_OVERLAY_BYTES_MAX = 32 * MIB  # what is replayed in memory
_REGION_TABLES = (REGION_TABLE_OFFSETS[0], REGION_TABLE_OFFSETS[-1] + REGION_TABLE_BYTES)


@dataclass(frozen=True, slots=True)
class ActiveSequence:
    """The entries of the active sequence, from tail to head, as (offset in the log, header)."""

    entries: tuple[tuple[int, EntryHeader], ...]

    @property
    def head(self) -> EntryHeader:
        """The newest entry."""
        return self.entries[-1][1]


class Log:
    """The log of a file as it was left."""

    def __init__(self, file: ImageFile, header: Header) -> None:
        self._file = file
        self._header = header
        # Entries that claim to overlap would be summed up again at every sector.
        self._sums_left_bytes = 4 * header.log_length + _SUMS_BYTES_MIN

    def _read(self, offset: int, length: int) -> bytes:
        """Bytes of the ring."""
        start, size = self._header.log_offset, self._header.log_length
        first = min(length, size - offset)
        data = self._file.read_blocking(start + offset, first)
        return data + self._file.read_blocking(start, length - first) if first < length else data

    def _entry(self, offset: int) -> tuple[EntryHeader, list[Update]] | None:
        """The valid entry at the offset, if there is one."""
        sector = self._read(offset, LOG_SECTOR_BYTES)
        header = parse_header(sector, self._header.log_guid, self._header.log_length)
        if header is None:
            return None
        self._sums_left_bytes -= header.length
        if self._sums_left_bytes < 0:
            raise self._damaged("its entries overlap one another")
        updates = parse_updates(header, self._read(offset, header.length))
        return None if updates is None else (header, updates)

    def active_sequence(self) -> ActiveSequence | None:
        """What must be replayed (section 2.3.3); None where nothing was ever logged.

        Raises StorageError where there were entries of which no sequence is left, or where the
        file has been cut short.
        """
        self._require_bounded()
        best: ActiveSequence | None = None
        offset = 0
        while offset < self._header.log_length:
            found, offset = self._sequence_from(offset)
            if found is not None and (
                best is None or found.head.sequence_number > best.head.sequence_number
            ):
                best = found
        if best is None and self._has_traces():
            raise self._damaged("no complete sequence of entries is left")
        if best is not None and best.head.flushed_file_offset > self._file.size_bytes:
            raise self._damaged(
                f"the file had {best.head.flushed_file_offset} bytes and has now"
                f" {self._file.size_bytes}: it was cut short"
            )
        if best is not None and best.head.last_file_offset > FILE_BYTES_MAX:
            raise self._damaged(f"LastFileOffset {best.head.last_file_offset} is too large")
        return best

    def _require_bounded(self) -> None:
        if self._header.log_length > _LOG_BYTES_MAX:
            raise self._damaged(f"{self._header.log_length} bytes are more than any log has")

    def _sequence_from(self, start: int) -> tuple[ActiveSequence | None, int]:
        """The complete sequence whose first entry is at `start`, and where to look on.

        A sequence without its tail is passed over as a whole: no end of it has the tail either.
        """
        entries: list[tuple[int, EntryHeader]] = []
        offset = end = start
        while (found := self._entry(offset % self._header.log_length)) is not None:
            header = found[0]
            if entries and header.sequence_number != entries[-1][1].sequence_number + 1:
                break
            entries.append((offset % self._header.log_length, header))
            offset = end = offset + header.length
        if not entries:
            return None, start + LOG_SECTOR_BYTES
        tail = entries[-1][1].tail
        for index, (at, _) in enumerate(entries):
            if at == tail:
                return ActiveSequence(tuple(entries[index:])), end
        return None, end

    def _has_traces(self) -> bool:
        """Whether entries of this log were written, valid or not."""
        guid = self._header.log_guid.bytes_le
        for start in range(0, self._header.log_length, MIB):
            data = self._read(start, MIB)
            for at in range(0, MIB, LOG_SECTOR_BYTES):
                if data.startswith(LOG_SIGNATURE, at) and guid in data[at : at + 64]:
                    return True
        return False

    def updates(self, sequence: ActiveSequence) -> Iterator[Update]:
        """All updates of the sequence, in order. Raises StorageError where one is not allowed."""
        zero_bytes = 0
        for offset, _ in sequence.entries:
            found = self._entry(offset)
            if found is None:  # it was valid a moment ago
                raise self._damaged(f"the entry at byte {offset} of it changes")
            for update in found[1]:
                self._require_allowed(update)
                zero_bytes += update.zero_bytes
                if zero_bytes > _ZERO_BYTES_MAX:
                    raise self._damaged("it clears more than any metadata takes")
                yield update

    def _require_allowed(self, update: Update) -> None:
        start, end = update.file_offset, update.file_offset + update.length_bytes
        log_start = self._header.log_offset
        in_tables = _REGION_TABLES[0] <= start and end <= _REGION_TABLES[1]
        if not in_tables and start < HEADER_SECTION_BYTES:
            raise self._damaged(f"an entry writes into the headers, at byte {start}")
        if start < log_start + self._header.log_length and log_start < end:
            raise self._damaged(f"an entry writes into the log itself, at byte {start}")
        if end > FILE_BYTES_MAX:
            raise self._damaged(f"an entry writes at byte {start}, where no VHDX file has anything")

    def _damaged(self, what: str) -> StorageError:
        return damaged(self._file.name, "log", self._header.log_offset, what)


def replay(file: ImageFile, headers: Headers) -> ImageFile:
    """Do what the log holds, and return the file to go on with.

    A file that cannot be written is not touched: what the log holds is put over it in memory.
    Raises StorageError.
    """
    header = headers.current
    if header.log_guid == NO_GUID:
        return file
    log = Log(file, header)
    sequence = log.active_sequence()
    if file.read_only:
        return file if sequence is None else _replay_in_memory(file, log, sequence)
    headers.update_blocking()
    if sequence is not None:
        _replay_in_file(file, log, sequence)
    headers.update_blocking(log_guid=NO_GUID)
    return file


def _replay_in_file(file: ImageFile, log: Log, sequence: ActiveSequence) -> None:
    for update in log.updates(sequence):
        if update.file_offset + update.length_bytes > file.size_bytes:
            file.set_size_blocking(update.file_offset + update.length_bytes)
        if update.data is None:
            file.zero_blocking(update.file_offset, update.zero_bytes)
        else:
            file.write_blocking(update.file_offset, update.data)
    if sequence.head.last_file_offset > file.size_bytes:
        file.set_size_blocking(sequence.head.last_file_offset)
    file.flush_blocking()


def _replay_in_memory(file: ImageFile, log: Log, sequence: ActiveSequence) -> "OverlaidFile":
    overlay: dict[int, bytes] = {}
    for update in log.updates(sequence):
        data = update.data
        for offset in range(
            update.file_offset, update.file_offset + update.length_bytes, LOG_SECTOR_BYTES
        ):
            overlay[offset] = data if data is not None else bytes(LOG_SECTOR_BYTES)
            if len(overlay) * LOG_SECTOR_BYTES > _OVERLAY_BYTES_MAX:
                raise _must_be_written(file, "its log is too large to be replayed in memory")
    end = max((offset + LOG_SECTOR_BYTES for offset in overlay), default=0)
    if max(end, sequence.head.last_file_offset) > file.size_bytes:
        raise _must_be_written(file, "its log makes the file larger")
    return OverlaidFile(file, overlay)


def _must_be_written(file: ImageFile, why: str) -> StorageError:
    message = f"{file.name}: was not closed cleanly, and {why}: open it once for writing"
    return StorageError(StorageFault.INVALID, message)


class OverlaidFile:
    """A read-only `ImageFile` with other sectors in some places, which the `..._now` do not see.

    `overlay` has the sectors (of LOG_SECTOR_BYTES) by their offset.
    """

    read_only = True
    anchors = False

    def __init__(self, file: ImageFile, overlay: dict[int, bytes]) -> None:
        self.name = file.name
        self.overlay = overlay
        self._file = file

    @property
    def size_bytes(self) -> int:
        return self._file.size_bytes

    def read_now(self, offset_bytes: int, into: memoryview) -> bool:
        return self._file.read_now(offset_bytes, into)

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        return False

    async def flush(self) -> None:
        pass

    async def extents(self, ranges: Sequence[tuple[int, int]], limit: int) -> list[Extent]:
        """The log may have put data where the file has a hole."""
        return [Extent(at, end - at, Provisioning.MAPPED) for at, end in ranges[:limit]]

    async def available_bytes(self) -> int | None:
        return await self._file.available_bytes()

    async def prefetch(self, offset_bytes: int, length_bytes: int) -> None:
        await self._file.prefetch(offset_bytes, length_bytes)

    async def close(self) -> None:
        await self._file.close()

    def close_blocking(self) -> None:
        self._file.close_blocking()

    def _lay_over(self, offset_bytes: int, into: memoryview) -> None:
        first = offset_bytes - offset_bytes % LOG_SECTOR_BYTES
        for at in range(first, offset_bytes + len(into), LOG_SECTOR_BYTES):
            sector = self.overlay.get(at)
            if sector is not None:
                start, end = max(at, offset_bytes), min(at + len(sector), offset_bytes + len(into))
                into[start - offset_bytes : end - offset_bytes] = sector[start - at : end - at]

    def read_blocking(self, offset_bytes: int, length_bytes: int) -> bytes:
        data = bytearray(self._file.read_blocking(offset_bytes, length_bytes))
        self._lay_over(offset_bytes, memoryview(data))
        return bytes(data)

    async def read(self, offset_bytes: int, into: memoryview) -> None:
        await self._file.read(offset_bytes, into)
        self._lay_over(offset_bytes, into)

    def _refuse(self) -> StorageError:
        return StorageError(StorageFault.READ_ONLY, f"{self.name}: opened read-only")

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        raise self._refuse()

    async def set_size(self, size_bytes: int) -> None:
        raise self._refuse()

    async def punch(self, offset_bytes: int, length_bytes: int) -> None:
        raise self._refuse()

    async def zero(self, offset_bytes: int, length_bytes: int) -> None:
        raise self._refuse()

    async def reserve(self, offset_bytes: int, length_bytes: int) -> None:
        raise self._refuse()

    def write_blocking(self, offset_bytes: int, data: Buffer) -> None:
        raise self._refuse()

    def flush_blocking(self) -> None:
        pass

    def set_size_blocking(self, size_bytes: int) -> None:
        raise self._refuse()

    def zero_blocking(self, offset_bytes: int, length_bytes: int) -> None:
        raise self._refuse()
