"""PERSISTENT RESERVE IN and OUT (SPC-5 clauses 6.16 and 6.17): bytes from and to `reservations`.

What a request does is the business of `reservations`, that it is done of `LogicalUnit`.
"""

import struct
from typing import TYPE_CHECKING

from . import transport_ids
from .reservations import NexusKey, Request, ReservationType, ServiceAction, State
from .sense import invalid_parameter_field, parameter_list_length_error
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit

# PERSISTENT RESERVE IN

_HEADER = struct.Struct(">II")  # PRGENERATION, ADDITIONAL LENGTH
_RESERVATION = struct.Struct(">Q5xB2x")  # key, scope and type
_FULL_STATUS = struct.Struct(">Q4xBB4xHI")  # key, R_HOLDER, scope and type, port, length
_CAPABILITIES = struct.Struct(">HBBH2x")

R_HOLDER = 0x01

# Bytes 2 and 3 of REPORT CAPABILITIES. REPLACE LOST RESERVATION works (RLR_C); a RESERVE of SPC-2
# meets the exceptions (CRH); all of SPEC_I_PT, ALL_TG_PT and APTPL work. ALLOW COMMANDS 011b: TEST
# UNIT READY passes all types, and MODE SENSE, RECEIVE DIAGNOSTIC RESULTS and their kin pass the
# write exclusive types.
RLR_C, CRH, SIP_C, ATP_C, PTPL_C = 0x80, 0x10, 0x08, 0x04, 0x01
TMV, ALLOW_COMMANDS, PTPL_A = 0x80, 0b011 << 4, 0x01


def _type_mask() -> int:
    """PERSISTENT RESERVATION TYPE MASK: types 0 to 7 in the first byte, 8 and up in the second."""
    return sum(
        1 << (kind + 8 if kind < 8 else kind - 8)  # bit n of a byte is type n
        for kind in ReservationType
    )


_TYPE_MASK = _type_mask()


def _answer(task: Task, data: bytes) -> Result:
    return Result(data=data[: task.cdb[7] << 8 | task.cdb[8]])


def _with_header(state: State, body: bytes) -> bytes:
    return _HEADER.pack(state.generation, len(body)) + body


def read_keys(lu: "LogicalUnit", task: Task) -> Result:
    """READ KEYS: one key for each registered nexus, whoever asks."""
    keys = b"".join(key.to_bytes(8, "big") for key in lu.reservations.registrations.values())
    return _answer(task, _with_header(lu.reservations, keys))


def read_reservation(lu: "LogicalUnit", task: Task) -> Result:
    """READ RESERVATION; the key is zero where all registrants hold it."""
    state, body = lu.reservations, b""
    if state.reservation is not None:
        holder = state.reservation.holder
        key = state.registrations[holder] if holder is not None else 0
        body = _RESERVATION.pack(key, state.reservation.type)
    return _answer(task, _with_header(state, body))


def report_capabilities(lu: "LogicalUnit", task: Task) -> Result:
    """REPORT CAPABILITIES."""
    capable = RLR_C | CRH | SIP_C | ATP_C | PTPL_C
    activated = TMV | ALLOW_COMMANDS | (PTPL_A if lu.reservations.aptpl else 0)
    return _answer(task, _CAPABILITIES.pack(_CAPABILITIES.size, capable, activated, _TYPE_MASK))


def read_full_status(lu: "LogicalUnit", task: Task) -> Result:
    """READ FULL STATUS: a descriptor with a TransportID for each registered nexus.

    ALL_TG_PT=0 in each: a registration through all target ports is one for each of them.
    """
    state = lu.reservations
    body = b"".join(_full_status(state, *entry) for entry in state.registrations.items())
    return _answer(task, _with_header(state, body))


def _full_status(state: State, nexus: NexusKey, key: int) -> bytes:
    transport_id = transport_ids.encode(nexus[0])
    flags, kind = 0, 0
    if state.reservation is not None and state.is_holder(nexus):
        flags, kind = R_HOLDER, state.reservation.type
    return _FULL_STATUS.pack(key, flags, kind, nexus[1], len(transport_id)) + transport_id


# PERSISTENT RESERVE OUT

_KEYS = struct.Struct(">QQ")
_FLAGS_AT = 20  # basic parameter list (SPC-5 clause 6.17.3)
_SPEC_I_PT, _ALL_TG_PT, _APTPL = 0x08, 0x04, 0x01
_MOVE_FLAGS_AT = 17  # REGISTER AND MOVE parameter list (SPC-5 clause 6.17.4)
_UNREG = 0x02
_MOVE_PORT = slice(18, 20)
_MOVE_LENGTH = slice(20, 24)
_SPEC_I_PT_LENGTH = slice(24, 28)

BASIC_LENGTH = 24
# More than any initiator sends: a hundred TransportIDs and more.
LIST_LENGTH_MAXIMUM = 32 << 10

_BASIC_ONLY = frozenset(ServiceAction) - {ServiceAction.REGISTER, ServiceAction.REGISTER_AND_MOVE}


def _action(cdb: bytes) -> ServiceAction:
    return ServiceAction(cdb[1] & 0x1F)


def parameter_list_length(lu: "LogicalUnit", cdb: bytes) -> int:
    """PARAMETER LIST LENGTH: 24 bytes unless TransportIDs may follow. Raises ScsiError."""
    length = int.from_bytes(cdb[5:9], "big")
    if not BASIC_LENGTH <= length <= LIST_LENGTH_MAXIMUM:
        raise parameter_list_length_error()
    if length != BASIC_LENGTH and _action(cdb) in _BASIC_ONLY:
        raise parameter_list_length_error()
    return length


def persistent_reserve_out(lu: "LogicalUnit", task: Task) -> Outcome:
    """PERSISTENT RESERVE OUT, all service actions. Raises ScsiError."""
    length = parameter_list_length(lu, task.cdb)
    parameters = b"".join(task.data_out)[:length]
    if len(parameters) < length:
        raise parameter_list_length_error()
    if _action(task.cdb) is ServiceAction.REGISTER_AND_MOVE:
        request = _move_request(lu, parameters)
    else:
        request = _basic_request(lu, _action(task.cdb), task.cdb[2], parameters)
    return lu.change_reservations(task, request)


def _basic_request(
    lu: "LogicalUnit", action: ServiceAction, scope_and_type: int, parameters: bytes
) -> Request:
    key, action_key = _KEYS.unpack_from(parameters)
    flags = parameters[_FLAGS_AT]
    initiator_ports = None
    if flags & _SPEC_I_PT:
        if action is not ServiceAction.REGISTER:
            raise invalid_parameter_field(_FLAGS_AT, 3)
        initiator_ports = _listed_ports(lu, parameters)
    elif len(parameters) != BASIC_LENGTH:
        raise parameter_list_length_error()
    return Request(
        action,
        key,
        action_key,
        scope_and_type,
        aptpl=bool(flags & _APTPL),
        all_target_ports=bool(flags & _ALL_TG_PT),
        initiator_ports=initiator_ports,
    )


def _listed_ports(lu: "LogicalUnit", parameters: bytes) -> tuple[str, ...]:
    """The initiator ports of SPEC_I_PT's TransportIDs, which fill the list to its end."""
    _check_length(parameters, _SPEC_I_PT_LENGTH)
    ports: dict[str, None] = {}
    offset = _SPEC_I_PT_LENGTH.stop
    while offset < len(parameters):
        transport_id = transport_ids.decode(parameters, offset)
        ports.update(dict.fromkeys(_ports_of(lu, transport_id, offset)))
        offset += transport_id.length_bytes
    return tuple(ports)


def _move_request(lu: "LogicalUnit", parameters: bytes) -> Request:
    key, action_key = _KEYS.unpack_from(parameters)
    flags = parameters[_MOVE_FLAGS_AT]
    _check_length(parameters, _MOVE_LENGTH)
    offset = _MOVE_LENGTH.stop
    transport_id = transport_ids.decode(parameters, offset)
    if offset + transport_id.length_bytes != len(parameters):
        raise invalid_parameter_field(_MOVE_LENGTH.start, 7)
    ports = _ports_of(lu, transport_id, offset)
    if len(ports) != 1:  # a reservation has one holder
        raise invalid_parameter_field(offset, 7)
    return Request(
        ServiceAction.REGISTER_AND_MOVE,
        key,
        action_key,
        aptpl=bool(flags & _APTPL),
        destination=(ports[0], int.from_bytes(parameters[_MOVE_PORT], "big")),
        unregister=bool(flags & _UNREG),
    )


def _check_length(parameters: bytes, field: slice) -> None:
    """The TRANSPORTID (PARAMETER DATA) LENGTH must be that of the rest of the list."""
    if len(parameters) < field.stop:
        raise parameter_list_length_error()
    if int.from_bytes(parameters[field], "big") != len(parameters) - field.stop:
        raise parameter_list_length_error()


def _ports_of(lu: "LogicalUnit", transport_id: transport_ids.TransportId, offset: int) -> list[str]:
    """The initiator ports that a TransportID means: of a device, all that are known.

    Raises ScsiError where there is none.
    """
    if transport_id.is_port:
        return [transport_id.name]
    ports = lu.known_initiator_ports()
    found = [port for port in ports if transport_ids.device_name(port) == transport_id.name]
    if not found:
        raise invalid_parameter_field(offset + 4, 7)
    return found
