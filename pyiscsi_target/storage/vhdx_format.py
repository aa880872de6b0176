"""The structures of a VHDX file ([MS-VHDX] v20240423), all little-endian.

Layouts and numbers alone: what fields must hold is checked where they are read.
"""

from enum import IntEnum
from uuid import UUID

import crc32c
from construct import (
    Adapter,
    Bytes,
    Const,
    Int16ul,
    Int32ul,
    Int64ul,
    Padded,
    Padding,
    Struct,
)

from .base import StorageError, StorageFault

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
TIB = 1 << 40

DISK_BYTES_MAX = 64 * TIB  # section 2.6.2.2
FILE_BYTES_MAX = 72 * TIB  # ours: room for a full disk and all that it needs; bounds our memory
BLOCK_BYTES_MIN, BLOCK_BYTES_MAX = MIB, 256 * MIB  # section 2.6.2.1
SECTOR_SIZES = (512, 4096)  # sections 2.6.2.4 and 2.6.2.5


class _GuidAdapter(Adapter):  # type: ignore[misc]
    def _decode(self, obj: bytes, context: object, path: object) -> UUID:
        return UUID(bytes_le=obj)

    def _encode(self, obj: UUID, context: object, path: object) -> bytes:
        return obj.bytes_le


Guid = _GuidAdapter(Bytes(16))
NO_GUID = UUID(int=0)

# Section 2.2.1: file type identifier

FILE_IDENTIFIER_OFFSET = 0
FILE_SIGNATURE = b"vhdxfile"
FILE_IDENTIFIER = Struct(
    "signature" / Const(FILE_SIGNATURE),
    "creator" / Bytes(512),  # UTF-16, perhaps ended by a NUL
)

# Section 2.2.2: headers

HEADER_OFFSETS = (64 * KIB, 128 * KIB)
HEADER_BYTES = 4 * KIB
HEADER_SIGNATURE = b"head"
HEADER = Padded(
    HEADER_BYTES,
    Struct(
        "signature" / Bytes(4),
        "checksum" / Int32ul,
        "sequence_number" / Int64ul,
        "file_write_guid" / Guid,
        "data_write_guid" / Guid,
        "log_guid" / Guid,
        "log_version" / Int16ul,
        "version" / Int16ul,
        "log_length" / Int32ul,
        "log_offset" / Int64ul,
    ),
)
HEADER_VERSION = 1
LOG_VERSION = 0

# Section 2.2.3: region table

REGION_TABLE_OFFSETS = (192 * KIB, 256 * KIB)
REGION_TABLE_BYTES = 64 * KIB
REGION_SIGNATURE = b"regi"
REGION_TABLE_HEADER = Struct(
    "signature" / Bytes(4),
    "checksum" / Int32ul,
    "entry_count" / Int32ul,
    Padding(4),
)
REGION_ENTRIES_MAX = 2047
REGION_ENTRY = Struct(
    "guid" / Guid,
    "file_offset" / Int64ul,
    "length" / Int32ul,
    "required" / Int32ul,
)
BAT_REGION = UUID("2DC27766-F623-4200-9D64-115E9BFD4A08")
METADATA_REGION = UUID("8B7CA206-4790-4B9A-B8FE-575F050F886E")
HEADER_SECTION_BYTES = MIB  # section 2.2: everything else lies behind it, in whole MiB

# Section 2.3.1: log entries

LOG_SECTOR_BYTES = 4 * KIB
LOG_SIGNATURE = b"loge"
LOG_ENTRY_HEADER = Struct(
    "signature" / Bytes(4),
    "checksum" / Int32ul,
    "entry_length" / Int32ul,
    "tail" / Int32ul,
    "sequence_number" / Int64ul,
    "descriptor_count" / Int32ul,
    Padding(4),
    "log_guid" / Guid,
    "flushed_file_offset" / Int64ul,
    "last_file_offset" / Int64ul,
)
LOG_DESCRIPTOR_BYTES = 32
ZERO_SIGNATURE = b"zero"
ZERO_DESCRIPTOR = Struct(  # section 2.3.1.2
    "signature" / Bytes(4),
    Padding(4),
    "zero_length" / Int64ul,
    "file_offset" / Int64ul,
    "sequence_number" / Int64ul,
)
DATA_DESCRIPTOR_SIGNATURE = b"desc"
DATA_DESCRIPTOR = Struct(  # section 2.3.1.3
    "signature" / Bytes(4),
    "trailing_bytes" / Bytes(4),
    "leading_bytes" / Bytes(8),
    "file_offset" / Int64ul,
    "sequence_number" / Int64ul,
)
DATA_SECTOR_SIGNATURE = b"data"
DATA_SECTOR = Struct(  # section 2.3.1.4
    "signature" / Bytes(4),
    "sequence_high" / Int32ul,
    "data" / Bytes(4084),
    "sequence_low" / Int32ul,
)

# Section 2.5.1: entries of the block allocation table

BAT_ENTRY_BYTES = 8
BAT_STATE_MASK = 0x7
BAT_RESERVED_MASK = 0xF_FFF8
BITMAP_BYTES = MIB  # section 2.4: one sector bitmap block
BITMAP_SECTORS = BITMAP_BYTES * 8


class BlockState(IntEnum):
    """States of payload blocks (section 2.5.1.1); sector bitmaps know 0 and 6 of them."""

    NOT_PRESENT = 0
    UNDEFINED = 1
    ZERO = 2
    UNMAPPED = 3
    UNMAPPED_EARLY = 5  # what files from before the final format have for UNMAPPED
    FULLY_PRESENT = 6
    PARTIALLY_PRESENT = 7


# Section 2.6.1: metadata table

METADATA_SIGNATURE = b"metadata"
METADATA_TABLE_BYTES = 64 * KIB
METADATA_TABLE_HEADER = Struct(
    "signature" / Bytes(8),
    Padding(2),
    "entry_count" / Int16ul,
    Padding(20),
)
METADATA_ENTRIES_MAX = 2047
METADATA_USER_ENTRIES_MAX = 1024
METADATA_ITEM_BYTES_MAX = MIB
METADATA_ENTRY = Struct(
    "item_id" / Guid,
    "offset" / Int32ul,
    "length" / Int32ul,
    "flags" / Int32ul,
    Padding(4),
)
IS_USER, IS_VIRTUAL_DISK, IS_REQUIRED = 0x1, 0x2, 0x4

# Section 2.6.2: known metadata items

FILE_PARAMETERS_ITEM = UUID("CAA16737-FA36-4D43-B3B6-33F0AA44E76B")
FILE_PARAMETERS = Struct("block_size" / Int32ul, "flags" / Int32ul)
LEAVE_BLOCK_ALLOCATED, HAS_PARENT = 0x1, 0x2
DISK_SIZE_ITEM = UUID("2FA54224-CD1B-4876-B211-5DBED83BF4B8")
DISK_ID_ITEM = UUID("BECA12AB-B2E6-4523-93EF-C309E000C746")
LOGICAL_SECTOR_ITEM = UUID("8141BF1D-A96F-4709-BA47-F233A8FAAB5F")
PHYSICAL_SECTOR_ITEM = UUID("CDA348C7-445D-4471-9CC9-E9885251C556")
PARENT_LOCATOR_ITEM = UUID("A8D35F2D-B30B-454D-ABF7-D3D84834AB0C")

# Section 2.6.2.6: parent locator

PARENT_LOCATOR_HEADER = Struct("locator_type" / Guid, Padding(2), "key_value_count" / Int16ul)
PARENT_LOCATOR_ENTRY = Struct(
    "key_offset" / Int32ul,
    "value_offset" / Int32ul,
    "key_length" / Int16ul,
    "value_length" / Int16ul,
)
VHDX_PARENT_LOCATOR = UUID("B04AEFB7-D19E-4A81-B789-25B8E9445913")
PARENT_LINKAGE, PARENT_LINKAGE_2 = "parent_linkage", "parent_linkage2"
RELATIVE_PATH, VOLUME_PATH = "relative_path", "volume_path"
ABSOLUTE_PATH = "absolute_win32_path"

CHECKSUM_OFFSET = 4  # in every structure that has one


def checksum(structure: bytes | bytearray | memoryview) -> int:
    """CRC-32C of a structure, its checksum field taken as zero."""
    view = memoryview(structure)
    crc = crc32c.crc32c(view[:CHECKSUM_OFFSET])
    crc = crc32c.crc32c(bytes(4), crc)
    return crc32c.crc32c(view[CHECKSUM_OFFSET + 4 :], crc)


def sealed(structure: bytearray) -> bytes:
    """The structure with its checksum filled in."""
    structure[CHECKSUM_OFFSET : CHECKSUM_OFFSET + 4] = Int32ul.build(checksum(structure))
    return bytes(structure)


def damaged(name: str, structure: str, offset_bytes: int, what: str) -> StorageError:
    """The error for a structure at a place in the file that is not what it must be."""
    message = f"{name}: {structure} at byte {offset_bytes}: {what}"
    return StorageError(StorageFault.INVALID, message, offset_bytes)
