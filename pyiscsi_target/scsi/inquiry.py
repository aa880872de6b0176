"""INQUIRY: standard data and vital product data (SPC-5, INQUIRY command).

Also answers for the addresses where no disk is: a LUN without logical unit, and the REPORT LUNS
well-known logical unit. Page contents live in `vpd`.
"""

from typing import TYPE_CHECKING

from construct import BitsInteger, BitStruct, Byte, Bytes, Const, Flag, Int16ub, Padding, Struct

from . import vpd
from .identifiers import ANONYMOUS, Identity
from .sense import invalid_cdb_field
from .task import Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

EVPD = 0x01

# PERIPHERAL QUALIFIER and PERIPHERAL DEVICE TYPE (SPC-5, Standard INQUIRY data)
PERIPHERAL_DISK = 0x00
PERIPHERAL_WELL_KNOWN = 0x1E
PERIPHERAL_ABSENT = 0x7F

# SPC-4: the newest that initiators in the field know by number
VERSION_SPC_4 = 0x06

# SPC-5, VERSION DESCRIPTOR values: SAM, transport, SPC, device type
VERSION_DESCRIPTORS = (
    0x00A0,  # SAM-5
    0x0960,  # iSCSI
    0x0460,  # SPC-4
    0x04C0,  # SBC-3
    0x0600,  # SBC-4
)
_VERSION_DESCRIPTOR_COUNT = 8

# SPC-5, Standard INQUIRY data
STANDARD_INQUIRY = Struct(
    "peripheral" / Byte,
    "medium" / BitStruct("rmb" / Flag, "lu_cong" / Const(False, Flag), Padding(6)),
    "version" / Const(VERSION_SPC_4, Byte),
    "format"
    / BitStruct(
        Padding(2),
        "normaca" / Const(False, Flag),
        "hisup" / Const(True, Flag),
        "response_data_format" / Const(2, BitsInteger(4)),
    ),
    "additional_length" / Const(96 - 5, Byte),
    "capabilities"
    / BitStruct(
        "sccs" / Flag,
        Padding(1),
        "tpgs" / BitsInteger(2),
        "third_party_copy" / Flag,
        Padding(2),
        "protect" / Flag,
    ),
    "ports" / Const(0, Byte),  # ENCSERV and MULTIP
    "queueing" / BitStruct(Padding(6), "cmdque" / Flag, Padding(1)),
    "vendor" / Bytes(8),
    "product" / Bytes(16),
    "revision" / Bytes(4),
    Padding(22),  # vendor specific and reserved, to byte 57
    "version_descriptors" / Int16ub[_VERSION_DESCRIPTOR_COUNT],
    Padding(22),
)

_CAPABILITIES = {"sccs": False, "tpgs": 0, "third_party_copy": False, "protect": False}


def standard_data(peripheral: int, identity: Identity, *, removable: bool = False) -> bytes:
    """Standard INQUIRY data, 96 bytes (SPC-5, Standard INQUIRY data)."""
    unused = _VERSION_DESCRIPTOR_COUNT - len(VERSION_DESCRIPTORS)
    data: bytes = STANDARD_INQUIRY.build(
        {
            "peripheral": peripheral,
            "medium": {"rmb": removable},
            "capabilities": _CAPABILITIES,
            "queueing": {"cmdque": True},
            "vendor": identity.vendor_field,
            "product": identity.product_field,
            "revision": identity.revision_field,
            "version_descriptors": [*VERSION_DESCRIPTORS, *([0] * unused)],
        }
    )
    return data


_ABSENT_DATA = standard_data(PERIPHERAL_ABSENT, ANONYMOUS)
_WELL_KNOWN_DATA = standard_data(PERIPHERAL_WELL_KNOWN, ANONYMOUS)


def _requested(task: Task) -> tuple[int | None, int]:
    """The requested VPD page (None: standard data) and the allocation length."""
    cdb = task.cdb
    allocation_length = cdb[3] << 8 | cdb[4]
    if cdb[1] & EVPD:
        return cdb[2], allocation_length
    if cdb[2]:
        raise invalid_cdb_field(2, 7)
    return None, allocation_length


def inquiry(lu: "LogicalUnit", task: Task) -> Result:
    """INQUIRY to a disk. Raises ScsiError for a page that it does not have."""
    page_code, allocation_length = _requested(task)
    if page_code is None:
        data = standard_data(PERIPHERAL_DISK, lu.identity, removable=lu.settings.removable)
    elif page_code in vpd.PAGES:
        content = vpd.PAGES[page_code](lu, task.nexus)
        data = vpd.encode_page(PERIPHERAL_DISK, page_code, content)
    else:
        raise invalid_cdb_field(2, 7)
    return Result(data=data[:allocation_length])


def absent_inquiry(task: Task) -> Result:
    """INQUIRY to a LUN where nothing is: peripheral qualifier 011b, device type 1Fh."""
    page_code, allocation_length = _requested(task)
    if page_code is None:
        return Result(data=_ABSENT_DATA[:allocation_length])
    if page_code:
        raise invalid_cdb_field(2, 7)
    return Result(data=vpd.encode_page(PERIPHERAL_ABSENT, 0, b"\0")[:allocation_length])


def well_known_inquiry(task: Task) -> Result:
    """INQUIRY to the REPORT LUNS well-known logical unit (SPC-5, Well known logical units)."""
    page_code, allocation_length = _requested(task)
    pages = {0x00: bytes((0x00, 0x83)), 0x83: vpd.target_designations(task.nexus)}
    if page_code is None:
        return Result(data=_WELL_KNOWN_DATA[:allocation_length])
    if page_code not in pages:
        raise invalid_cdb_field(2, 7)
    data = vpd.encode_page(PERIPHERAL_WELL_KNOWN, page_code, pages[page_code])
    return Result(data=data[:allocation_length])
