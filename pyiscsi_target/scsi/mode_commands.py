"""MODE SENSE and MODE SELECT, 6 and 10 (SPC-5).

Lays out headers, block descriptors and pages, and validates whole parameter lists before anything
changes. What the pages hold is known to `mode_pages`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .mode_pages import (
    ALL_PAGES,
    ALL_SUBPAGES,
    PAGES,
    PAGES_BY_KEY,
    SUBPAGE_FORMAT,
    ModePage,
    PageKey,
)
from .sense import (
    Asc,
    ScsiError,
    SenseKey,
    invalid_cdb_field,
    invalid_parameter_field,
    parameter_list_length_error,
)
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

# CDB bits, byte 1
DBD_BIT = 3
LLBAA_BIT = 4
PF_BIT = 4
SP_BIT = 0

# DEVICE-SPECIFIC PARAMETER of direct access devices (SBC-4, Mode parameters)
WRITE_PROTECTED = 0x80
DPOFUA = 0x10

LONGLBA = 0x01
SHORT_DESCRIPTOR_LENGTH = 8
LONG_DESCRIPTOR_LENGTH = 16
_SHORT_MAXIMUM_BLOCKS = 0xFFFF_FFFF

PAGE_CONTROL_CHANGEABLE = 1
PAGE_CONTROL_DEFAULT = 2
PAGE_CONTROL_SAVED = 3


def _write_protected(lu: "LogicalUnit") -> bool:
    return lu.read_only or lu.mode.software_write_protect


# --- MODE SENSE ---


def _requested_pages(page_code: int, subpage: int) -> list[ModePage]:
    """The pages that PAGE CODE and SUBPAGE CODE ask for, in ascending order (SPC-5)."""
    if page_code == ALL_PAGES and subpage not in (0, ALL_SUBPAGES):
        raise invalid_cdb_field(3, 7)
    of_code = [page for page in PAGES if page_code in (ALL_PAGES, page.code)]
    if not of_code:
        raise invalid_cdb_field(2, 5)
    pages = [page for page in of_code if subpage in (ALL_SUBPAGES, page.subpage)]
    if not pages:
        raise invalid_cdb_field(3, 7)
    return pages


def _encode_pages(lu: "LogicalUnit", cdb: bytes) -> bytes:
    """The pages with the values that PAGE CONTROL asks for."""
    page_control = cdb[2] >> 6
    pages = _requested_pages(cdb[2] & ALL_PAGES, cdb[3])
    if page_control == PAGE_CONTROL_SAVED:
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.SAVING_PARAMETERS_NOT_SUPPORTED)
    bodies: Mapping[PageKey, bytes] = lu.mode.current
    if page_control == PAGE_CONTROL_CHANGEABLE:
        bodies = lu.mode.changeable
    elif page_control == PAGE_CONTROL_DEFAULT:
        bodies = lu.mode.defaults
    return b"".join(page.header(len(bodies[page.key])) + bodies[page.key] for page in pages)


def _block_descriptor(lu: "LogicalUnit", long: bool) -> bytes:
    """Long or short LBA mode parameter block descriptor (SBC-4)."""
    if long:
        return lu.block_count.to_bytes(8, "big") + bytes(4) + lu.block_size.to_bytes(4, "big")
    block_count = min(lu.block_count, _SHORT_MAXIMUM_BLOCKS)
    return block_count.to_bytes(4, "big") + lu.block_size.to_bytes(4, "big")


def _device_specific(lu: "LogicalUnit") -> int:
    return DPOFUA | (WRITE_PROTECTED if _write_protected(lu) else 0)


def mode_sense_6(lu: "LogicalUnit", task: Task) -> Result:
    """MODE SENSE(6) (SPC-5). Raises ScsiError."""
    cdb = task.cdb
    pages = _encode_pages(lu, cdb)
    descriptor = b"" if cdb[1] >> DBD_BIT & 1 else _block_descriptor(lu, long=False)
    rest = bytes((0, _device_specific(lu), len(descriptor))) + descriptor + pages
    return Result(data=(bytes((len(rest),)) + rest)[: cdb[4]])


def mode_sense_10(lu: "LogicalUnit", task: Task) -> Result:
    """MODE SENSE(10) (SPC-5). Raises ScsiError."""
    cdb = task.cdb
    pages = _encode_pages(lu, cdb)
    long = bool(cdb[1] >> LLBAA_BIT & 1)
    descriptor = b"" if cdb[1] >> DBD_BIT & 1 else _block_descriptor(lu, long)
    flags = LONGLBA if long and descriptor else 0
    header = bytes((0, _device_specific(lu), flags, 0)) + len(descriptor).to_bytes(2, "big")
    rest = header + descriptor + pages
    data = len(rest).to_bytes(2, "big") + rest
    return Result(data=data[: cdb[7] << 8 | cdb[8]])


# --- MODE SELECT ---


@dataclass(frozen=True, slots=True)
class _ListFormat:
    """Where the mode parameter header keeps what MODE SELECT looks at (SPC-5 clause 7.5)."""

    header_length: int
    medium_type: int
    flags: int | None  # the byte of LONGLBA
    descriptor_length: slice

    def descriptor_pointer(self) -> int:
        return int(self.descriptor_length.start)


_LIST_6 = _ListFormat(4, 1, None, slice(3, 4))
_LIST_10 = _ListFormat(8, 2, 4, slice(6, 8))


def _check_descriptor(lu: "LogicalUnit", parameters: bytes, offset: int, long: bool) -> None:
    """A block descriptor may only repeat what is: neither capacity nor block size can change.

    NUMBER OF LOGICAL BLOCKS may also be zero or all ones, which ask for no other capacity (SBC-4,
    mode parameter block descriptors).
    """
    counted = 8 if long else 4
    start_of_size = offset + (12 if long else 5)
    block_count = int.from_bytes(parameters[offset : offset + counted], "big")
    if block_count not in (0, lu.block_count, (1 << 8 * counted) - 1):
        raise invalid_parameter_field(offset, 7)
    end = offset + (LONG_DESCRIPTOR_LENGTH if long else SHORT_DESCRIPTOR_LENGTH)
    if int.from_bytes(parameters[start_of_size:end], "big") != lu.block_size:
        raise invalid_parameter_field(start_of_size, 7)


def _check_header(lu: "LogicalUnit", parameters: bytes, form: _ListFormat) -> int:
    """Check header and block descriptor; returns the offset of the first page."""
    if len(parameters) < form.header_length:
        raise parameter_list_length_error()
    if parameters[form.medium_type]:
        raise invalid_parameter_field(form.medium_type, 7)
    long = form.flags is not None and bool(parameters[form.flags] & LONGLBA)
    length = int.from_bytes(parameters[form.descriptor_length], "big")
    if not length:
        return form.header_length
    if length != (LONG_DESCRIPTOR_LENGTH if long else SHORT_DESCRIPTOR_LENGTH):
        raise invalid_parameter_field(form.descriptor_pointer(), 7)
    if len(parameters) < form.header_length + length:
        raise parameter_list_length_error()
    _check_descriptor(lu, parameters, form.header_length, long)
    return form.header_length + length


def _parse_page_header(parameters: bytes, offset: int) -> tuple[PageKey, int, int]:
    """A page's key, and offset and length of its body (SPC-5 clause 7.5)."""
    subpage_format = bool(parameters[offset] & SUBPAGE_FORMAT)
    header_length = 4 if subpage_format else 2
    if len(parameters) < offset + header_length:
        raise parameter_list_length_error()
    page_code = parameters[offset] & ALL_PAGES
    length = int.from_bytes(parameters[offset + header_length // 2 : offset + header_length], "big")
    key = (page_code, parameters[offset + 1] if subpage_format else 0)
    # A subpage of zero in the sub_page format is another spelling, not a page that exists.
    if key not in PAGES_BY_KEY or subpage_format != (key[1] != 0):
        raise invalid_parameter_field(offset, 5)
    return key, offset + header_length, length


def _check_pages(lu: "LogicalUnit", parameters: bytes, offset: int) -> dict[PageKey, bytes]:
    """The bodies of all pages from `offset` on, each checked against what may change."""
    bodies: dict[PageKey, bytes] = {}
    while offset < len(parameters):
        key, start, length = _parse_page_header(parameters, offset)
        if length != len(lu.mode.current[key]):
            raise invalid_parameter_field(offset + 1 if start - offset == 2 else offset + 2, 7)
        offset = start + length
        if offset > len(parameters):
            raise parameter_list_length_error()
        lu.mode.check(key, parameters[start:offset], start)
        bodies[key] = parameters[start:offset]
    return bodies


def _check_cdb(cdb: bytes, parameter_list_length: int) -> None:
    """PF and SP: only standard pages, nothing saved (SPC-5, MODE SELECT)."""
    if cdb[1] >> SP_BIT & 1:
        raise invalid_cdb_field(1, SP_BIT)
    if parameter_list_length and not cdb[1] >> PF_BIT & 1:
        raise invalid_cdb_field(1, PF_BIT)


def _joined(data_out: Sequence[bytes | bytearray | memoryview], length: int) -> bytes:
    """The parameter list; shorter than the CDB says where the initiator sent less."""
    parameters = b"".join(data_out)[:length]
    if len(parameters) < length:
        raise parameter_list_length_error()
    return parameters


async def _flush_cache(lu: "LogicalUnit", length: int) -> Result:
    """Finish a MODE SELECT that turned WCE off: nothing acknowledged may stay in the cache.

    Where that fails the command fails but WCE stays off, the safer of the two.
    """
    await lu.store.flush()
    return Result(data_out_length=length)


def _mode_select(lu: "LogicalUnit", task: Task, length: int, form: _ListFormat) -> Outcome:
    """Check everything, then change everything; the other nexuses learn of a change."""
    _check_cdb(task.cdb, length)
    if not length:
        return Result(data_out_length=0)
    parameters = _joined(task.data_out, length)
    first_page = _check_header(lu, parameters, form)
    bodies = _check_pages(lu, parameters, first_page)
    cached = lu.mode.write_cache_enabled
    if lu.mode.commit(bodies):
        lu.attentions.establish_for_others(Asc.MODE_PARAMETERS_CHANGED, but=task.nexus)
    if cached and not lu.mode.write_cache_enabled:
        return _flush_cache(lu, length)
    return Result(data_out_length=length)


def mode_select_6(lu: "LogicalUnit", task: Task) -> Outcome:
    """MODE SELECT(6) (SPC-5). Raises ScsiError."""
    return _mode_select(lu, task, task.cdb[4], _LIST_6)


def mode_select_10(lu: "LogicalUnit", task: Task) -> Outcome:
    """MODE SELECT(10) (SPC-5). Raises ScsiError."""
    return _mode_select(lu, task, task.cdb[7] << 8 | task.cdb[8], _LIST_10)
