"""The file identifier and the two headers of a VHDX file: which is current, and how it changes.

Must not know what the log or the regions hold.
"""

from dataclasses import dataclass, replace
from typing import Any
from uuid import UUID, uuid4

from .base import StorageError, StorageFault
from .image_file import ImageFile
from .vhdx_format import (
    FILE_BYTES_MAX,
    FILE_IDENTIFIER,
    FILE_IDENTIFIER_OFFSET,
    FILE_SIGNATURE,
    HEADER,
    HEADER_BYTES,
    HEADER_OFFSETS,
    HEADER_SECTION_BYTES,
    HEADER_SIGNATURE,
    HEADER_VERSION,
    LOG_VERSION,
    MIB,
    NO_GUID,
    checksum,
    damaged,
    sealed,
)


@dataclass(frozen=True, slots=True)
class Header:
    """What the current header says (section 2.2.2)."""

    sequence_number: int
    file_write_guid: UUID
    data_write_guid: UUID
    log_guid: UUID
    log_offset: int
    log_length: int

    def build(self) -> bytes:
        """The structure as it is in the file."""
        fields = {
            "signature": HEADER_SIGNATURE,
            "checksum": 0,
            "sequence_number": self.sequence_number,
            "file_write_guid": self.file_write_guid,
            "data_write_guid": self.data_write_guid,
            "log_guid": self.log_guid,
            "log_version": LOG_VERSION,
            "version": HEADER_VERSION,
            "log_length": self.log_length,
            "log_offset": self.log_offset,
        }
        return sealed(bytearray(HEADER.build(fields)))


class Headers:
    """Both headers of a file, updated in turn (section 2.2.2.1).

    An update writes the header that is not current, and flushes; done twice, both are up to date.
    """

    def __init__(self, file: ImageFile, current: Header, current_index: int) -> None:
        self.current = current
        self._file = file
        self._index = current_index
        self._is_ours = False  # whether the FileWriteGuid is of this session

    async def update(
        self, *, data_write_guid: UUID | None = None, log_guid: UUID | None = None
    ) -> None:
        """Change both headers; the first time the file gets a new FileWriteGuid, too.

        Raises StorageError; one header is valid then, and may be the changed one.
        """
        self._change(data_write_guid, log_guid)
        for _ in HEADER_OFFSETS:
            offset, structure = self._next()
            await self._file.write(offset, (structure,))
            await self._file.flush()
            self._index ^= 1

    def update_blocking(self, *, log_guid: UUID | None = None) -> None:
        """As `update`."""
        self._change(None, log_guid)
        for _ in HEADER_OFFSETS:
            self._file.write_blocking(*self._next())
            self._file.flush_blocking()
            self._index ^= 1

    def _change(self, data_write_guid: UUID | None, log_guid: UUID | None) -> None:
        header = self.current
        if not self._is_ours:
            header = replace(header, file_write_guid=uuid4())
            self._is_ours = True
        if data_write_guid is not None:
            header = replace(header, data_write_guid=data_write_guid)
        if log_guid is not None:
            header = replace(header, log_guid=log_guid)
        self.current = header

    def _next(self) -> tuple[int, bytes]:
        self.current = replace(self.current, sequence_number=self.current.sequence_number + 1)
        return HEADER_OFFSETS[self._index ^ 1], self.current.build()


def read_headers(file: ImageFile) -> Headers:
    """Check that this is a VHDX file and find its current header. Raises StorageError."""
    if file.size_bytes < HEADER_SECTION_BYTES:
        message = f"has {file.size_bytes} bytes, less than the header section"
        raise damaged(file.name, "VHDX file", file.size_bytes, message)
    if file.size_bytes > FILE_BYTES_MAX:
        message = f"has {file.size_bytes} bytes, more than any VHDX file needs"
        raise damaged(file.name, "VHDX file", FILE_BYTES_MAX, message)
    read_creator(file)
    found = [
        (header.sequence_number, index, header)
        for index, offset in enumerate(HEADER_OFFSETS)
        if (header := _read_header(file, offset)) is not None
    ]
    if not found:
        raise damaged(file.name, "header", HEADER_OFFSETS[0], "neither this nor the other is valid")
    if len(found) == 2 and found[0][0] == found[1][0] and found[0][2] != found[1][2]:
        raise damaged(
            file.name, "header", HEADER_OFFSETS[0], "both headers have the same SequenceNumber"
        )
    _, index, fields = max(found, key=lambda item: item[0])
    return Headers(file, _checked(file, HEADER_OFFSETS[index], fields), index)


def damaged_headers(file: ImageFile) -> list[int]:
    """The offsets of the headers that are not valid; of a file that opens, one at most."""
    return [offset for offset in HEADER_OFFSETS if _read_header(file, offset) is None]


def read_creator(file: ImageFile) -> str:
    """Who made the file, for people alone (section 2.2.1). Raises StorageError."""
    data = file.read_blocking(FILE_IDENTIFIER_OFFSET, FILE_IDENTIFIER.sizeof())
    if not data.startswith(FILE_SIGNATURE):
        message = f"the signature is {data[:8]!r}, not {FILE_SIGNATURE!r}"
        raise damaged(file.name, "file type identifier", FILE_IDENTIFIER_OFFSET, message)
    creator: bytes = FILE_IDENTIFIER.parse(data).creator
    return creator.decode("utf-16-le", "replace").partition("\0")[0]


def _read_header(file: ImageFile, offset: int) -> Any:
    data = file.read_blocking(offset, HEADER_BYTES)
    fields = HEADER.parse(data)
    valid = fields.signature == HEADER_SIGNATURE and fields.checksum == checksum(data)
    return fields if valid else None


def _checked(file: ImageFile, offset: int, fields: Any) -> Header:
    def require(condition: bool, what: str) -> None:
        if not condition:
            raise damaged(file.name, "header", offset, what)

    require(fields.version == HEADER_VERSION, f"Version {fields.version} is not {HEADER_VERSION}")
    require(
        fields.log_version == LOG_VERSION or fields.log_guid == NO_GUID,
        f"LogVersion {fields.log_version} is not {LOG_VERSION}, and there is a log to replay",
    )
    log_end = fields.log_offset + fields.log_length
    for name, value in (("LogOffset", fields.log_offset), ("LogLength", fields.log_length)):
        require(not value % MIB, f"{name} {value} is not a multiple of 1 MiB")
    if fields.log_length or fields.log_guid != NO_GUID:
        require(fields.log_length > 0, "LogLength is 0, and there is a log to replay")
        require(fields.log_offset >= HEADER_SECTION_BYTES, "the log is in the header section")
        require(log_end <= file.size_bytes, f"the log ends at byte {log_end}, behind the file")
    if fields.sequence_number >= (1 << 64) - 8:
        raise StorageError(
            StorageFault.INVALID,
            f"{file.name}: header at byte {offset}: SequenceNumber has no room for an update",
            offset,
        )
    return Header(
        fields.sequence_number,
        fields.file_write_guid,
        fields.data_write_guid,
        fields.log_guid,
        fields.log_offset,
        fields.log_length,
    )
