"""Vital product data pages: one registry row per page (SPC-5 clause 7.7 and SBC-4).

A row builds the page's content for a logical unit as seen through a nexus; the header and the list
of supported pages follow from the registry. This module knows no CDB.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from construct import (
    BitsInteger,
    BitStruct,
    Byte,
    Const,
    Flag,
    GreedyBytes,
    Int8ub,
    Int16ub,
    Int32ub,
    Int64ub,
    Nibble,
    Padding,
    Prefixed,
    Struct,
)

from . import limits

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit
    from .task import Nexus

PROTOCOL_ISCSI = 0x5  # SPC-5, PROTOCOL IDENTIFIER values

# SPC-5 clause 7.7.6, designation descriptor
CODE_SET_BINARY = 1
CODE_SET_ASCII = 2
CODE_SET_UTF8 = 3
ASSOCIATION_LOGICAL_UNIT = 0
ASSOCIATION_TARGET_PORT = 1
ASSOCIATION_TARGET_DEVICE = 2
DESIGNATOR_T10_VENDOR_ID = 1
DESIGNATOR_EUI64 = 2
DESIGNATOR_NAA = 3
DESIGNATOR_RELATIVE_TARGET_PORT = 4
DESIGNATOR_TARGET_PORT_GROUP = 5
DESIGNATOR_SCSI_NAME_STRING = 8

TARGET_PORT_GROUP = 1  # all ports are alike until there are access states to tell apart

MEDIUM_NON_ROTATING = 1
PROVISIONING_FULL = 0
PROVISIONING_THIN = 2

PAGE = Struct("peripheral" / Byte, "page_code" / Byte, "content" / Prefixed(Int16ub, GreedyBytes))

# SPC-5 clause 7.7.6, designation descriptor
DESIGNATION_DESCRIPTOR = Struct(
    "kind"
    / BitStruct(
        "protocol_identifier" / Nibble,
        "code_set" / Nibble,
        "piv" / Flag,
        Padding(1),
        "association" / BitsInteger(2),
        "designator_type" / Nibble,
    ),
    Padding(1),
    "designator" / Prefixed(Byte, GreedyBytes),
)

# SPC-5, Extended INQUIRY Data VPD page
EXTENDED_INQUIRY = Struct(
    "protection" / Byte,
    "queueing"
    / BitStruct(
        Padding(2),
        "uask_sup" / Flag,
        "group_sup" / Flag,
        "prior_sup" / Flag,
        "headsup" / Flag,
        "ordsup" / Flag,
        "simpsup" / Flag,
    ),
    "cache"
    / BitStruct(Padding(4), "wu_sup" / Flag, "crd_sup" / Flag, "nv_sup" / Flag, "v_sup" / Flag),
    Padding(60 - 3),
)

# SBC-4, Block Limits VPD page; lengths are in logical blocks
BLOCK_LIMITS = Struct(
    "flags" / BitStruct(Padding(7), "wsnz" / Flag),
    "maximum_compare_and_write_length" / Int8ub,
    "optimal_transfer_length_granularity" / Int16ub,
    "maximum_transfer_length" / Int32ub,
    "optimal_transfer_length" / Int32ub,
    "maximum_prefetch_length" / Const(0, Int32ub),
    "maximum_unmap_lba_count" / Int32ub,
    "maximum_unmap_block_descriptor_count" / Int32ub,
    "optimal_unmap_granularity" / Int32ub,
    "unmap_alignment" / BitStruct("ugavalid" / Flag, "granularity_alignment" / BitsInteger(31)),
    "maximum_write_same_length" / Int64ub,
    "maximum_atomic_transfer_length" / Int32ub,
    "atomic_alignment" / Int32ub,
    "atomic_transfer_length_granularity" / Int32ub,
    "maximum_atomic_transfer_length_with_atomic_boundary" / Int32ub,
    "maximum_atomic_boundary_size" / Int32ub,
)

# SBC-4, Block Device Characteristics VPD page; Windows accepts only a page length of 3Ch
BLOCK_DEVICE_CHARACTERISTICS = Struct("medium_rotation_rate" / Int16ub, Padding(0x3C - 2))

# SBC-4, Logical Block Provisioning VPD page
LOGICAL_BLOCK_PROVISIONING = Struct(
    "threshold_exponent" / Int8ub,
    "flags"
    / BitStruct(
        "lbpu" / Flag,
        "lbpws" / Flag,
        "lbpws10" / Flag,
        "lbprz" / BitsInteger(3),
        "anc_sup" / Flag,
        "dp" / Flag,
    ),
    "type" / BitStruct("minimum_percentage" / BitsInteger(5), "provisioning_type" / BitsInteger(3)),
    "threshold_percentage" / Int8ub,
)


def _designation(
    association: int,
    designator_type: int,
    code_set: int,
    designator: bytes,
    *,
    protocol_identifier: int | None = None,
) -> bytes:
    kind = {
        "protocol_identifier": protocol_identifier or 0,
        "code_set": code_set,
        "piv": protocol_identifier is not None,
        "association": association,
        "designator_type": designator_type,
    }
    built: bytes = DESIGNATION_DESCRIPTOR.build({"kind": kind, "designator": designator})
    return built


def scsi_name_string(name: str) -> bytes:
    """UTF-8, null-terminated, padded with nulls to a multiple of four (SPC-5, SCSI name string)."""
    encoded = name.encode() + b"\0"
    return encoded + bytes(-len(encoded) % 4)


def logical_unit_designations(lu: "LogicalUnit") -> bytes:
    """The names of the logical unit: the same on every path, for ever."""
    unit, identity = ASSOCIATION_LOGICAL_UNIT, lu.identity
    t10 = identity.vendor_field + identity.product_field + identity.serial_field
    name = scsi_name_string(identity.logical_unit_name)
    return b"".join(
        (
            _designation(unit, DESIGNATOR_NAA, CODE_SET_BINARY, identity.naa),
            _designation(unit, DESIGNATOR_EUI64, CODE_SET_BINARY, identity.eui64),
            _designation(unit, DESIGNATOR_T10_VENDOR_ID, CODE_SET_ASCII, t10),
            _designation(unit, DESIGNATOR_SCSI_NAME_STRING, CODE_SET_UTF8, name),
        )
    )


def target_designations(nexus: "Nexus") -> bytes:
    """The names of the target port that the command came through, and of its target device.

    An iSCSI target port name is the target name, `,t,0x` and the portal group tag (RFC 7143
    section 4.4.2), so the device name is what precedes the comma.
    """
    port_name = scsi_name_string(nexus.target_port_name)
    device_name = scsi_name_string(nexus.target_port_name.partition(",")[0])
    port = (
        (DESIGNATOR_RELATIVE_TARGET_PORT, CODE_SET_BINARY, nexus.relative_target_port),
        (DESIGNATOR_TARGET_PORT_GROUP, CODE_SET_BINARY, TARGET_PORT_GROUP),
    )
    names = (
        (ASSOCIATION_TARGET_PORT, port_name),
        (ASSOCIATION_TARGET_DEVICE, device_name),
    )
    numbered = [
        _designation(
            ASSOCIATION_TARGET_PORT,
            designator_type,
            code_set,
            number.to_bytes(4, "big"),
            protocol_identifier=PROTOCOL_ISCSI,
        )
        for designator_type, code_set, number in port
    ]
    named = [
        _designation(
            association,
            DESIGNATOR_SCSI_NAME_STRING,
            CODE_SET_UTF8,
            name,
            protocol_identifier=PROTOCOL_ISCSI,
        )
        for association, name in names
    ]
    return b"".join(numbered + named)


def _supported_pages(lu: "LogicalUnit", nexus: "Nexus") -> bytes:
    """Supported VPD Pages (SPC-5): ascending, beginning with page 00h."""
    return bytes(sorted(PAGES))


def _unit_serial_number(lu: "LogicalUnit", nexus: "Nexus") -> bytes:
    """Unit Serial Number (SPC-5)."""
    return lu.identity.serial_field


def _device_identification(lu: "LogicalUnit", nexus: "Nexus") -> bytes:
    """Device Identification (SPC-5 clause 7.7.6)."""
    return logical_unit_designations(lu) + target_designations(nexus)


def _extended_inquiry(lu: "LogicalUnit", nexus: "Nexus") -> bytes:
    """Extended INQUIRY Data (SPC-5): all task attributes but ACA; the host caches."""
    queueing = {
        "uask_sup": False,
        "group_sup": False,
        "prior_sup": False,
        "headsup": True,
        "ordsup": True,
        "simpsup": True,
    }
    cache = {
        "wu_sup": False,
        "crd_sup": False,
        "nv_sup": False,
        "v_sup": lu.settings.write_cache,
    }
    content: bytes = EXTENDED_INQUIRY.build({"protection": 0, "queueing": queueing, "cache": cache})
    return content


def _unmap_limits(lu: "LogicalUnit") -> dict[str, object]:
    """The UNMAP fields of page B0h: all zero where UNMAP is not supported."""
    granularity = lu.store.capabilities.deallocate_granularity_bytes // lu.block_size
    return {
        "maximum_unmap_lba_count": lu.thin and limits.MAXIMUM_UNMAP_LBA_COUNT,
        "maximum_unmap_block_descriptor_count": (
            lu.thin and limits.MAXIMUM_UNMAP_BLOCK_DESCRIPTOR_COUNT
        ),
        "optimal_unmap_granularity": lu.thin and max(granularity, 1),
        "unmap_alignment": {"ugavalid": lu.thin, "granularity_alignment": 0},
    }


def _block_limits(lu: "LogicalUnit", nexus: "Nexus") -> bytes:
    """Block Limits (SBC-4): what the handlers enforce."""
    block_size = lu.block_size
    boundary = limits.MAXIMUM_ATOMIC_TRANSFER_LENGTH_WITH_ATOMIC_BOUNDARY
    content: bytes = BLOCK_LIMITS.build(
        {
            "flags": {"wsnz": False},  # zero blocks reach to the end of the medium
            "maximum_compare_and_write_length": limits.MAXIMUM_COMPARE_AND_WRITE_LENGTH,
            "optimal_transfer_length_granularity": (
                max(lu.settings.physical_block_size // block_size, 1)
            ),
            "maximum_transfer_length": limits.MAXIMUM_TRANSFER_LENGTH_BYTES // block_size,
            "optimal_transfer_length": limits.OPTIMAL_TRANSFER_LENGTH_BYTES // block_size,
            **_unmap_limits(lu),
            "maximum_write_same_length": limits.MAXIMUM_WRITE_SAME_LENGTH_BYTES // block_size,
            "maximum_atomic_transfer_length": (
                limits.MAXIMUM_ATOMIC_TRANSFER_LENGTH_BYTES // block_size
            ),
            "atomic_alignment": limits.ATOMIC_ALIGNMENT,
            "atomic_transfer_length_granularity": limits.ATOMIC_TRANSFER_LENGTH_GRANULARITY,
            "maximum_atomic_transfer_length_with_atomic_boundary": boundary,
            "maximum_atomic_boundary_size": limits.MAXIMUM_ATOMIC_BOUNDARY_SIZE,
        }
    )
    return content


def _block_device_characteristics(lu: "LogicalUnit", nexus: "Nexus") -> bytes:
    """Block Device Characteristics (SBC-4)."""
    content: bytes = BLOCK_DEVICE_CHARACTERISTICS.build(
        {"medium_rotation_rate": MEDIUM_NON_ROTATING}
    )
    return content


def _logical_block_provisioning(lu: "LogicalUnit", nexus: "Nexus") -> bytes:
    """Logical Block Provisioning (SBC-4): UNMAP and WRITE SAME unmap, or anchor where the medium
    can; either reads as zeroes."""
    thin = lu.thin
    flags = {
        "lbpu": thin,
        "lbpws": thin,
        "lbpws10": thin,
        "lbprz": int(thin),
        "anc_sup": lu.anchors,
        "dp": False,
    }
    set_blocks = limits.THRESHOLD_SET_BYTES // lu.block_size
    content: bytes = LOGICAL_BLOCK_PROVISIONING.build(
        {
            "threshold_exponent": set_blocks.bit_length() - 1 if thin else 0,
            "flags": flags,
            "type": {
                "minimum_percentage": 0,
                "provisioning_type": PROVISIONING_THIN if thin else PROVISIONING_FULL,
            },
            "threshold_percentage": 0,
        }
    )
    return content


PAGES: Mapping[int, Callable[["LogicalUnit", "Nexus"], bytes]] = {
    0x00: _supported_pages,
    0x80: _unit_serial_number,
    0x83: _device_identification,
    0x86: _extended_inquiry,
    0xB0: _block_limits,
    0xB1: _block_device_characteristics,
    0xB2: _logical_block_provisioning,
}


def encode_page(peripheral: int, page_code: int, content: bytes) -> bytes:
    """A whole page: PERIPHERAL QUALIFIER and DEVICE TYPE, PAGE CODE, PAGE LENGTH, content."""
    page: bytes = PAGE.build({"peripheral": peripheral, "page_code": page_code, "content": content})
    return page
