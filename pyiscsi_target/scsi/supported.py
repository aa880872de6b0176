"""REPORT SUPPORTED OPERATION CODES and ... TASK MANAGEMENT FUNCTIONS (SPC-5).

Both are read off tables: the command table of the logical unit, and the functions below. This
module knows no command by name.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from construct import BitsInteger, BitStruct, Byte, Const, Flag, Int16ub, Int32ub, Padding, Struct

from .sense import invalid_cdb_field
from .task import Result, Task

if TYPE_CHECKING:
    from .commands import Command
    from .logical_unit import LogicalUnit

RCTD = 0x80
REPD = 0x80

# REPORTING OPTIONS field
REPORT_ALL = 0
REPORT_OPCODE = 1
REPORT_SERVICE_ACTION = 2
REPORT_EITHER = 3

# SUPPORT field
NOT_SUPPORTED = 1
SUPPORTED_AS_STANDARD = 3

# SPC-5, Command timeouts descriptor
TIMEOUTS_DESCRIPTOR = Struct(
    "length" / Const(0x0A, Int16ub),
    Padding(1),
    "command_specific" / Const(0, Byte),
    "nominal_processing_timeout_s" / Int32ub,
    "recommended_timeout_s" / Int32ub,
)

# SPC-5, All_commands parameter data format
COMMAND_DESCRIPTOR = Struct(
    "opcode" / Byte,
    Padding(1),
    "service_action" / Int16ub,
    Padding(1),
    "flags" / BitStruct(Padding(6), "ctdp" / Flag, "servactv" / Flag),
    "cdb_length" / Int16ub,
)

# SPC-5, One_command parameter data format
ONE_COMMAND = Struct(
    Padding(1),
    "flags" / BitStruct("ctdp" / Flag, Padding(4), "support" / BitsInteger(3)),
    "cdb_size" / Int16ub,
)

# Parameter data of REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS: ABORT TASK, ABORT TASK SET, CLEAR
# TASK SET, LOGICAL UNIT RESET and QUERY TASK; QUERY ASYNCHRONOUS EVENT, QUERY TASK SET and I_T
# NEXUS RESET. No ACA, so no CLEAR ACA.
_FUNCTIONS = bytes((0b1101_1000, 0b0000_0111))
# TMFTMOV=0 and no timeouts: a function ends when the tasks that it aborts have ended.
_EXTENDED_LENGTH = 0x0C


def _timeouts(command: "Command") -> bytes:
    """Nothing here has a typical duration: only the time after which something is wrong."""
    descriptor: bytes = TIMEOUTS_DESCRIPTOR.build(
        {"nominal_processing_timeout_s": 0, "recommended_timeout_s": command.timeout_s}
    )
    return descriptor


def _command_descriptor(command: "Command", with_timeouts: bool) -> bytes:
    descriptor: bytes = COMMAND_DESCRIPTOR.build(
        {
            "opcode": command.opcode,
            "service_action": command.service_action or 0,
            "flags": {"ctdp": with_timeouts, "servactv": command.service_action is not None},
            "cdb_length": len(command.usage),
        }
    )
    return descriptor + (_timeouts(command) if with_timeouts else b"")


def _all_commands(commands: Sequence["Command"], with_timeouts: bool) -> bytes:
    descriptors = b"".join(_command_descriptor(command, with_timeouts) for command in commands)
    return len(descriptors).to_bytes(4, "big") + descriptors


def _find(
    commands: Sequence["Command"], options: int, opcode: int, service_action: int
) -> "Command | None":
    """The one command that the CDB asks about, None if it is not supported.

    Raises ScsiError where the reporting option does not suit the operation code.
    """
    rows = [command for command in commands if command.opcode == opcode]
    has_service_actions = any(command.service_action is not None for command in rows)
    if rows and options == REPORT_OPCODE and has_service_actions:
        raise invalid_cdb_field(2, 2)
    if rows and options == REPORT_SERVICE_ACTION and not has_service_actions:
        raise invalid_cdb_field(2, 2)
    # Without service actions the field is not looked at by option 1, and must be zero for 3.
    if options == REPORT_OPCODE:
        return rows[0] if rows else None
    for command in rows:
        if (command.service_action or 0) == service_action:
            return command
    return None


def _one_command(command: "Command | None", with_timeouts: bool) -> bytes:
    supported = command is not None
    usage = command.usage if command is not None else b""
    head: bytes = ONE_COMMAND.build(
        {
            "flags": {
                "ctdp": with_timeouts and supported,
                "support": SUPPORTED_AS_STANDARD if supported else NOT_SUPPORTED,
            },
            "cdb_size": len(usage),
        }
    )
    timeouts = _timeouts(command) if command is not None and with_timeouts else b""
    return head + usage + timeouts


def report_supported_opcodes(lu: "LogicalUnit", task: Task) -> Result:
    """REPORT SUPPORTED OPERATION CODES (SPC-5). Raises ScsiError."""
    cdb = task.cdb
    with_timeouts = bool(cdb[2] & RCTD)
    options = cdb[2] & 0x07
    if options > REPORT_EITHER:
        raise invalid_cdb_field(2, 2)
    if options == REPORT_ALL:
        data = _all_commands(lu.commands, with_timeouts)
    else:
        command = _find(lu.commands, options, cdb[3], cdb[4] << 8 | cdb[5])
        data = _one_command(command, with_timeouts)
    return Result(data=data[: int.from_bytes(cdb[6:10], "big")])


def report_supported_tmfs(lu: "LogicalUnit", task: Task) -> Result:
    """REPORT SUPPORTED TASK MANAGEMENT FUNCTIONS (SPC-5), basic or extended format."""
    cdb = task.cdb
    additional = _EXTENDED_LENGTH if cdb[2] & REPD else 0
    data = _FUNCTIONS + bytes((0, additional)) + bytes(additional)
    return Result(data=data[: int.from_bytes(cdb[6:10], "big")])
