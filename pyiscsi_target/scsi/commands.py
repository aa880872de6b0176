"""THE command table: one row per command, and all that the rest of the device server asks of it.

Dispatch, the check for reserved bits, the gates (unit attention, reservations, ejected, write
protection), the length of the data-out and REPORT SUPPORTED OPERATION CODES are all driven by these
rows. Rows know their handlers by name only; what a command does is in its room.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from . import (
    atomic,
    block,
    cache,
    capacity,
    diagnostics,
    inquiry,
    log_pages,
    mode_commands,
    primary,
    provisioning,
    report_luns,
    reservation_commands,
    reserve,
    supported,
    verify,
    write_same,
)
from .reservations import Access, ServiceAction
from .task import Outcome, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

# Operation codes whose byte 1 holds a service action (SPC-5 clause 4.2.5.1)
SERVICE_ACTIONS = frozenset({0x5E, 0x5F, 0x9E, 0xA3})
SERVICE_ACTION_MASK = 0x1F

Handler = Callable[["LogicalUnit", Task], Outcome]
DataOutLength = Callable[["LogicalUnit", bytes], int]


@dataclass(frozen=True, slots=True)
class Command:
    """One command.

    `usage` is the CDB usage data of SPC-5 clause 6.36.3: the operation code, then the bits that the
    handler evaluates (the SERVICE ACTION field holds its value); its length is the CDB's. Not every
    disk evaluates all of them: see `commands_for`. `writes`: refused on a write protected medium.
    `data_out_length` gives the bytes of data-out that a CDB asks for, or raises ScsiError; None: no
    data-out. `timeout_s` is the recommended one.
    """

    usage: bytes
    name: str
    handler: Handler
    access: Access
    writes: bool = False
    passes_unit_attention: bool = False
    allowed_while_ejected: bool = False
    thin_only: bool = False  # part of logical block provisioning management (LBPME=1)
    thin_bits: int = 0  # of byte 1, evaluated only with LBPME=1
    anchor_bits: int = 0  # of byte 1, evaluated only with ANC_SUP=1
    timeout_s: int = 30
    data_out_length: DataOutLength | None = None
    harmless: Callable[[bytes], bool] | None = None  # CDBs that pass whatever `access` says
    allowed_while_lost: bool = False  # while persistent reservation information is lost
    opcode: int = field(init=False)
    service_action: int | None = field(init=False)
    length: int = field(init=False)
    forbidden: int = field(init=False)  # the CDB's reserved bits, as a big-endian integer

    def __post_init__(self) -> None:
        opcode, length = self.usage[0], len(self.usage)
        allowed = bytearray(self.usage)
        allowed[0] = 0xFF
        service_action = None
        if opcode in SERVICE_ACTIONS:
            service_action = self.usage[1] & SERVICE_ACTION_MASK
            allowed[1] |= SERVICE_ACTION_MASK
        object.__setattr__(self, "opcode", opcode)
        object.__setattr__(self, "service_action", service_action)
        object.__setattr__(self, "length", length)
        object.__setattr__(
            self, "forbidden", int.from_bytes(allowed, "big") ^ ((1 << 8 * length) - 1)
        )


_usage = bytes.fromhex


def _list_length_at(first: int, end: int) -> DataOutLength:
    """The PARAMETER LIST LENGTH field in these bytes of the CDB."""
    return lambda _lu, cdb: int.from_bytes(cdb[first:end], "big")


# The group number is evaluated and means nothing: no statistics are kept by group (GROUP_SUP=0).
# Bits left out are refused: RDPROTECT and its kin (no protection information), RARC, NACA.
_SPC: tuple[Command, ...] = (
    Command(
        _usage("00 00 00 00 00 00"),
        "TEST UNIT READY",
        primary.test_unit_ready,
        Access.UNLESS_RESERVED,
    ),
    Command(
        _usage("03 01 00 00 FF 00"),
        "REQUEST SENSE",
        primary.request_sense,
        Access.ALWAYS,
        passes_unit_attention=True,
        allowed_while_ejected=True,
        allowed_while_lost=True,
    ),
    Command(
        _usage("12 01 FF FF FF 00"),
        "INQUIRY",
        inquiry.inquiry,
        Access.ALWAYS,
        passes_unit_attention=True,
        allowed_while_ejected=True,
        allowed_while_lost=True,
    ),
    Command(
        _usage("15 11 00 00 FF 00"),
        "MODE SELECT(6)",
        mode_commands.mode_select_6,
        Access.WRITES,
        allowed_while_ejected=True,
        data_out_length=_list_length_at(4, 5),
    ),
    Command(
        _usage("16 00 00 00 00 00"),
        "RESERVE(6)",
        reserve.reserve,
        Access.RESERVE,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("17 00 00 00 00 00"),
        "RELEASE(6)",
        reserve.release,
        Access.RELEASE,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("1A 08 FF FF FF 00"),
        "MODE SENSE(6)",
        mode_commands.mode_sense_6,
        Access.READS,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("1B 01 00 0F F7 00"),
        "START STOP UNIT",
        primary.start_stop_unit,
        Access.WRITES,
        allowed_while_ejected=True,
        harmless=lambda cdb: cdb[4] & 0xF1 == 0x01,  # START=1, POWER CONDITION=0
    ),
    Command(
        _usage("1C 01 FF FF FF 00"),
        "RECEIVE DIAGNOSTIC RESULTS",
        diagnostics.receive_diagnostic_results,
        Access.READS,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("1D F7 00 FF FF 00"),
        "SEND DIAGNOSTIC",
        diagnostics.send_diagnostic,
        Access.WRITES,
        allowed_while_ejected=True,
        data_out_length=_list_length_at(3, 5),
    ),
    Command(
        _usage("1E 00 00 00 03 00"),
        "PREVENT ALLOW MEDIUM REMOVAL",
        primary.prevent_allow,
        Access.WRITES,
        allowed_while_ejected=True,
        harmless=lambda cdb: cdb[4] & 0x03 == 0,  # PREVENT=0
    ),
    Command(
        _usage("4D 00 FF FF 00 FF FF FF FF 00"),
        "LOG SENSE",
        log_pages.log_sense,
        Access.ALWAYS,
        allowed_while_ejected=True,
        allowed_while_lost=True,
    ),
    Command(
        _usage("55 11 00 00 00 00 00 FF FF 00"),
        "MODE SELECT(10)",
        mode_commands.mode_select_10,
        Access.WRITES,
        allowed_while_ejected=True,
        data_out_length=_list_length_at(7, 9),
    ),
    Command(
        _usage("56 00 00 00 00 00 00 00 00 00"),
        "RESERVE(10)",
        reserve.reserve,
        Access.RESERVE,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("57 00 00 00 00 00 00 00 00 00"),
        "RELEASE(10)",
        reserve.release,
        Access.RELEASE,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("5A 18 FF FF 00 00 00 FF FF 00"),
        "MODE SENSE(10)",
        mode_commands.mode_sense_10,
        Access.READS,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("A0 00 FF 00 00 00 FF FF FF FF 00 00"),
        "REPORT LUNS",
        report_luns.report_luns,
        Access.ALWAYS,
        passes_unit_attention=True,
        allowed_while_ejected=True,
        allowed_while_lost=True,
    ),
    Command(
        _usage("A3 0C 87 FF FF FF FF FF FF FF 00 00"),
        "REPORT SUPPORTED OPERATION CODES",
        supported.report_supported_opcodes,
        Access.ALWAYS,
        allowed_while_ejected=True,
    ),
    Command(
        _usage("A3 0D 80 00 00 00 FF FF FF FF 00 00"),
        "REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS",
        supported.report_supported_tmfs,
        Access.ALWAYS,
        allowed_while_ejected=True,
    ),
)

_SBC: tuple[Command, ...] = (
    Command(_usage("08 1F FF FF FF 00"), "READ(6)", block.read_6, Access.READS),
    Command(_usage("28 18 FF FF FF FF 3F FF FF 00"), "READ(10)", block.read_10, Access.READS),
    Command(_usage("A8 18 FF FF FF FF FF FF FF FF 3F 00"), "READ(12)", block.read_12, Access.READS),
    Command(
        _usage("88 18 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "READ(16)",
        block.read_16,
        Access.READS,
    ),
    Command(
        _usage("0A 1F FF FF FF 00"),
        "WRITE(6)",
        block.write_6,
        Access.WRITES,
        writes=True,
        data_out_length=block.write_length_6,
    ),
    Command(
        _usage("2A 18 FF FF FF FF 3F FF FF 00"),
        "WRITE(10)",
        block.write_10,
        Access.WRITES,
        writes=True,
        data_out_length=block.write_length,
    ),
    Command(
        _usage("AA 18 FF FF FF FF FF FF FF FF 3F 00"),
        "WRITE(12)",
        block.write_12,
        Access.WRITES,
        writes=True,
        data_out_length=block.write_length,
    ),
    Command(
        _usage("8A 18 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "WRITE(16)",
        block.write_16,
        Access.WRITES,
        writes=True,
        data_out_length=block.write_length,
    ),
    Command(
        _usage("2E 12 FF FF FF FF 3F FF FF 00"),
        "WRITE AND VERIFY(10)",
        verify.write_and_verify,
        Access.WRITES,
        writes=True,
        timeout_s=60,
        data_out_length=verify.write_and_verify_length,
    ),
    Command(
        _usage("AE 12 FF FF FF FF FF FF FF FF 3F 00"),
        "WRITE AND VERIFY(12)",
        verify.write_and_verify,
        Access.WRITES,
        writes=True,
        timeout_s=60,
        data_out_length=verify.write_and_verify_length,
    ),
    Command(
        _usage("8E 12 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "WRITE AND VERIFY(16)",
        verify.write_and_verify,
        Access.WRITES,
        writes=True,
        timeout_s=60,
        data_out_length=verify.write_and_verify_length,
    ),
    Command(
        _usage("2F 16 FF FF FF FF 3F FF FF 00"),
        "VERIFY(10)",
        verify.verify,
        Access.READS,
        timeout_s=300,
        data_out_length=verify.verify_length,
    ),
    Command(
        _usage("AF 16 FF FF FF FF FF FF FF FF 3F 00"),
        "VERIFY(12)",
        verify.verify,
        Access.READS,
        timeout_s=300,
        data_out_length=verify.verify_length,
    ),
    Command(
        _usage("8F 16 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "VERIFY(16)",
        verify.verify,
        Access.READS,
        timeout_s=300,
        data_out_length=verify.verify_length,
    ),
    Command(
        _usage("41 18 FF FF FF FF 3F FF FF 00"),
        "WRITE SAME(10)",
        write_same.write_same,
        Access.WRITES,
        writes=True,
        thin_bits=write_same.UNMAP,
        anchor_bits=write_same.ANCHOR,
        timeout_s=120,
        data_out_length=write_same.write_same_length,
    ),
    Command(
        _usage("93 19 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "WRITE SAME(16)",
        write_same.write_same,
        Access.WRITES,
        writes=True,
        thin_bits=write_same.UNMAP,
        anchor_bits=write_same.ANCHOR,
        timeout_s=120,
        data_out_length=write_same.write_same_length,
    ),
    Command(
        _usage("42 01 00 00 00 00 3F FF FF 00"),
        "UNMAP",
        provisioning.unmap,
        Access.WRITES,
        writes=True,
        thin_only=True,
        anchor_bits=provisioning.ANCHOR,
        timeout_s=120,
        data_out_length=_list_length_at(7, 9),
    ),
    Command(
        _usage("89 18 FF FF FF FF FF FF FF FF 00 00 00 FF 3F 00"),
        "COMPARE AND WRITE",
        atomic.compare_and_write,
        Access.WRITES,
        writes=True,
        data_out_length=atomic.compare_and_write_length,
    ),
    Command(
        _usage("8B 18 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "ORWRITE(16)",
        atomic.orwrite,
        Access.WRITES,
        writes=True,
        data_out_length=block.write_length,
    ),
    Command(
        _usage("9C 18 FF FF FF FF FF FF FF FF 00 00 FF FF 3F 00"),
        "WRITE ATOMIC(16)",
        atomic.write_atomic,
        Access.WRITES,
        writes=True,
        data_out_length=atomic.write_atomic_length,
    ),
    Command(_usage("34 02 FF FF FF FF 3F FF FF 00"), "PRE-FETCH(10)", cache.prefetch, Access.READS),
    Command(
        _usage("90 02 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "PRE-FETCH(16)",
        cache.prefetch,
        Access.READS,
    ),
    Command(
        _usage("35 02 FF FF FF FF 3F FF FF 00"),
        "SYNCHRONIZE CACHE(10)",
        cache.synchronize_cache,
        Access.WRITES,
        timeout_s=120,
    ),
    Command(
        _usage("91 02 FF FF FF FF FF FF FF FF FF FF FF FF 3F 00"),
        "SYNCHRONIZE CACHE(16)",
        cache.synchronize_cache,
        Access.WRITES,
        timeout_s=120,
    ),
    Command(
        _usage("25 00 00 00 00 00 00 00 00 00"),
        "READ CAPACITY(10)",
        capacity.read_capacity_10,
        Access.ALWAYS,
    ),
    Command(
        _usage("9E 10 00 00 00 00 00 00 00 00 FF FF FF FF 00 00"),
        "READ CAPACITY(16)",
        capacity.read_capacity_16,
        Access.ALWAYS,
    ),
    Command(
        _usage("9E 12 FF FF FF FF FF FF FF FF FF FF FF FF 00 00"),
        "GET LBA STATUS",
        provisioning.get_lba_status,
        Access.READS,
    ),
)

# One handler for all of PERSISTENT RESERVE OUT. Where SCOPE and TYPE mean nothing they are ignored.
_PERSISTENT: tuple[Command, ...] = (
    *(
        Command(
            _usage(f"5E {service_action:02X} 00 00 00 00 00 FF FF 00"),
            f"PERSISTENT RESERVE IN, {name}",
            handler,
            Access.PERSISTENT,
            allowed_while_ejected=True,
        )
        for service_action, (name, handler) in enumerate(
            (
                ("READ KEYS", reservation_commands.read_keys),
                ("READ RESERVATION", reservation_commands.read_reservation),
                ("REPORT CAPABILITIES", reservation_commands.report_capabilities),
                ("READ FULL STATUS", reservation_commands.read_full_status),
            )
        )
    ),
    *(
        Command(
            _usage(f"5F {action:02X} FF 00 00 FF FF FF FF 00"),
            f"PERSISTENT RESERVE OUT, {action.name.replace('_', ' ')}",
            reservation_commands.persistent_reserve_out,
            Access.PERSISTENT,
            allowed_while_ejected=True,
            data_out_length=reservation_commands.parameter_list_length,
            allowed_while_lost=action is ServiceAction.REPLACE_LOST_RESERVATION,
        )
        for action in ServiceAction
    ),
)

COMMANDS: tuple[Command, ...] = tuple(
    sorted(_SPC + _PERSISTENT + _SBC, key=lambda row: (row.opcode, row.service_action or 0))
)


def commands_for(*, thin: bool, anchors: bool) -> tuple[Command, ...]:
    """The rows of a disk: `thin` with LBPME=1, `anchors` with ANC_SUP=1 (SBC-4 clause 4.7)."""
    return tuple(
        _without(row, (0 if thin else row.thin_bits) | (0 if anchors else row.anchor_bits))
        for row in COMMANDS
        if thin or not row.thin_only
    )


def _without(row: Command, bits: int) -> Command:
    """The row with these bits of byte 1 reserved."""
    if not bits:
        return row
    usage = bytes((row.usage[0], row.usage[1] & ~bits)) + row.usage[2:]
    return replace(row, usage=usage)
