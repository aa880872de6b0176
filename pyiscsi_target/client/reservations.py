"""Persistent reservations as an initiator asks for them (SPC-5 clauses 6.16 and 6.17).

`Reservations(session, lun)` has a method for each service action. Keys are integers of 64 bits.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntFlag
from typing import NamedTuple

from ..scsi import transport_ids
from ..scsi.reservations import ReservationType, ServiceAction
from ..scsi.sense import ScsiError
from ..scsi.task import TaskAttribute
from . import commands
from .errors import BadAnswer
from .session import Session

READ_KEYS, READ_RESERVATION, REPORT_CAPABILITIES, READ_FULL_STATUS = range(4)

_ALLOCATION_LENGTH = 8192  # bytes
_ALLOCATION_LENGTH_MAXIMUM = 0xFFFF
_HEADER = struct.Struct(">II")  # PRGENERATION, ADDITIONAL LENGTH
_KEY = struct.Struct(">Q")
_RESERVATION = struct.Struct(">Q5xB2x")
_CAPABILITIES = struct.Struct(">HBBH")
_FULL_STATUS = struct.Struct(">Q4xBB4xHI")
_LIST = struct.Struct(">QQ4xBxxx")  # RESERVATION KEY, SERVICE ACTION RESERVATION KEY, flags
_MOVE_LIST = struct.Struct(">QQxBHI")
_R_HOLDER, _ALL_TG_PT_OF_STATUS = 0x01, 0x02
_UNREG, _MOVE_APTPL = 0x02, 0x01


class ListFlag(IntFlag):
    """Byte 20 of the basic parameter list (SPC-5 clause 6.17.3)."""

    SPEC_I_PT = 0x08
    ALL_TG_PT = 0x04
    APTPL = 0x01


class HeldReservation(NamedTuple):
    """What READ RESERVATION tells. `key` is 0 for the all registrants types."""

    generation: int
    key: int
    type: int


@dataclass(frozen=True, slots=True)
class ReservationCapabilities:
    """REPORT CAPABILITIES (SPC-5 clause 6.16.4); `types` are those of the type mask, if valid."""

    replace_lost_reservation: bool
    compatible_reservation_handling: bool
    specify_initiator_ports: bool
    all_target_ports: bool
    persist_through_power_loss: bool
    persist_through_power_loss_activated: bool
    allow_commands: int
    types: frozenset[int] | None
    raw: bytes


@dataclass(frozen=True, slots=True)
class Registration:
    """One descriptor of READ FULL STATUS (SPC-5 clause 6.16.5).

    `initiator_port` is the name in an iSCSI TransportID, None where it is another's.
    """

    key: int
    is_holder: bool
    all_target_ports: bool
    type: int
    scope: int
    relative_target_port: int
    transport_id: bytes

    @property
    def initiator_port(self) -> str | None:
        """`iqn...,i,0x...`, in lower case."""
        try:
            return transport_ids.decode(self.transport_id, 0).name
        except ScsiError:
            return None


class Reservations:
    """The persistent reservations of one logical unit, as this session's nexus.

    Commands go with the HEAD OF QUEUE attribute, as Windows sends them. Each call raises
    CommandFailed unless GOOD (`error.result.status` is 18h for a RESERVATION CONFLICT), BadAnswer
    for data that contradicts itself, and what `Session.execute` raises.
    """

    def __init__(self, session: Session, lun: int) -> None:
        self.session = session
        self.lun = lun

    # PERSISTENT RESERVE IN

    async def read_keys(self) -> tuple[int, list[int]]:
        """PRGENERATION and the key of each registration."""
        generation, body = await self._read(READ_KEYS, "READ KEYS")
        if len(body) % _KEY.size:
            raise BadAnswer(f"READ KEYS: {len(body)} bytes are not whole keys")
        return generation, [key for (key,) in _KEY.iter_unpack(body)]

    async def read_reservation(self) -> HeldReservation | None:
        """The reservation; None if there is none."""
        generation, body = await self._read(READ_RESERVATION, "READ RESERVATION")
        if not body:
            return None
        if len(body) != _RESERVATION.size:
            raise BadAnswer(f"READ RESERVATION: a descriptor of {len(body)} bytes")
        key, scope_and_type = _RESERVATION.unpack(body)
        if scope_and_type >> 4:
            raise BadAnswer(f"READ RESERVATION: scope {scope_and_type >> 4:X}h, not LU_SCOPE")
        return HeldReservation(generation, key, scope_and_type)

    async def report_capabilities(self) -> ReservationCapabilities:
        """What the logical unit can do of all this."""
        raw = await self._in(REPORT_CAPABILITIES, "REPORT CAPABILITIES", _ALLOCATION_LENGTH)
        if len(raw) < _CAPABILITIES.size:
            raise BadAnswer(f"REPORT CAPABILITIES: {len(raw)} bytes")
        _, capable, activated, mask = _CAPABILITIES.unpack_from(raw)
        return ReservationCapabilities(
            replace_lost_reservation=bool(capable & 0x80),
            compatible_reservation_handling=bool(capable & 0x10),
            specify_initiator_ports=bool(capable & 0x08),
            all_target_ports=bool(capable & 0x04),
            persist_through_power_loss=bool(capable & 0x01),
            persist_through_power_loss_activated=bool(activated & 0x01),
            allow_commands=activated >> 4 & 0x07,
            types=_types_of(mask) if activated & 0x80 else None,
            raw=raw,
        )

    async def read_full_status(self) -> tuple[int, list[Registration]]:
        """PRGENERATION and every registration with its initiator port."""
        generation, body = await self._read(READ_FULL_STATUS, "READ FULL STATUS")
        return generation, _registrations(body)

    async def _read(self, action: int, name: str) -> tuple[int, bytes]:
        """PRGENERATION and what follows the header, whole."""
        length = _ALLOCATION_LENGTH
        data = await self._in(action, name, length)
        if _length_of(data, name) > length:
            length = min(_length_of(data, name), _ALLOCATION_LENGTH_MAXIMUM)
            data = await self._in(action, name, length)
        if _length_of(data, name) > len(data):
            raise BadAnswer(f"{name}: {len(data)} bytes of {_length_of(data, name)}")
        generation, _ = _HEADER.unpack_from(data)
        return generation, data[_HEADER.size : _length_of(data, name)]

    async def _in(self, action: int, name: str, length: int) -> bytes:
        return await self.session.good(
            f"PERSISTENT RESERVE IN, {name}",
            self.lun,
            commands.persistent_reserve_in(action, length),
            read_length=length,
            attribute=TaskAttribute.HEAD_OF_QUEUE,
        )

    # PERSISTENT RESERVE OUT

    async def register(
        self,
        key: int,
        *,
        existing: int = 0,
        aptpl: bool = False,
        all_target_ports: bool = False,
        transport_ids: Sequence[bytes] | None = None,
    ) -> None:
        """REGISTER `key` in place of `existing` (0: not registered yet); key 0 unregisters.

        `transport_ids` (SPEC_I_PT) registers those initiator ports too: `Initiator.transport_id`.
        """
        flags = _flags(aptpl, all_target_ports)
        parameters = _LIST.pack(existing, key, flags)
        if transport_ids is not None:
            ids = b"".join(transport_ids)
            parameters = _LIST.pack(existing, key, flags | ListFlag.SPEC_I_PT)
            parameters += len(ids).to_bytes(4, "big") + ids
        await self._out(ServiceAction.REGISTER, parameters)

    async def register_and_ignore(
        self, key: int, *, aptpl: bool = False, all_target_ports: bool = False
    ) -> None:
        """REGISTER AND IGNORE EXISTING KEY; key 0 unregisters."""
        parameters = _LIST.pack(0, key, _flags(aptpl, all_target_ports))
        await self._out(ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY, parameters)

    async def reserve(self, key: int, type: ReservationType) -> None:
        """RESERVE, as registered with `key`."""
        await self._out(ServiceAction.RESERVE, _LIST.pack(key, 0, 0), type)

    async def release(self, key: int, type: ReservationType) -> None:
        """RELEASE; GOOD, and nothing happens, where this nexus holds no reservation."""
        await self._out(ServiceAction.RELEASE, _LIST.pack(key, 0, 0), type)

    async def clear(self, key: int) -> None:
        """CLEAR the reservation and all registrations."""
        await self._out(ServiceAction.CLEAR, _LIST.pack(key, 0, 0))

    async def preempt(
        self, key: int, victim_key: int, type: ReservationType, *, abort: bool = False
    ) -> None:
        """PREEMPT whoever registered `victim_key`; `abort`: their tasks, too (AND ABORT)."""
        action = ServiceAction.PREEMPT_AND_ABORT if abort else ServiceAction.PREEMPT
        await self._out(action, _LIST.pack(key, victim_key, 0), type)

    async def register_and_move(
        self,
        key: int,
        new_key: int,
        transport_id: bytes,
        relative_target_port: int,
        *,
        unregister: bool = False,
        aptpl: bool = False,
    ) -> None:
        """REGISTER AND MOVE: the reservation goes to another nexus, registered with `new_key`."""
        flags = (_UNREG if unregister else 0) | (_MOVE_APTPL if aptpl else 0)
        head = _MOVE_LIST.pack(key, new_key, flags, relative_target_port, len(transport_id))
        await self._out(ServiceAction.REGISTER_AND_MOVE, head + transport_id)

    async def replace_lost(self, key: int, type: ReservationType, *, aptpl: bool = False) -> None:
        """REPLACE LOST RESERVATION: a unit that has lost what it knew begins anew.

        This nexus registers with `key` and holds the reservation.
        """
        parameters = _LIST.pack(0, key, _flags(aptpl, all_target_ports=False))
        await self._out(ServiceAction.REPLACE_LOST_RESERVATION, parameters, type)

    async def _out(self, action: ServiceAction, parameters: bytes, kind: int = 0) -> None:
        await self.session.good(
            f"PERSISTENT RESERVE OUT, {action.name.replace('_', ' ')}",
            self.lun,
            commands.persistent_reserve_out(action, kind, len(parameters)),
            data_out=parameters,
            attribute=TaskAttribute.HEAD_OF_QUEUE,
        )


def _flags(aptpl: bool, all_target_ports: bool) -> ListFlag:
    flags = ListFlag.APTPL if aptpl else ListFlag(0)
    return flags | (ListFlag.ALL_TG_PT if all_target_ports else ListFlag(0))


def _length_of(data: bytes, name: str) -> int:
    """How long the whole parameter data is, in bytes, from its beginning."""
    if len(data) < _HEADER.size:
        raise BadAnswer(f"{name}: {len(data)} bytes")
    return _HEADER.size + int.from_bytes(data[4:8], "big")


def _types_of(mask: int) -> frozenset[int]:
    """Bit n of the first byte is type n, of the second type 8 and up (SPC-5 table 175)."""
    return frozenset(kind for kind in range(16) if mask & 1 << (kind + 8 if kind < 8 else kind - 8))


def _registrations(body: bytes) -> list[Registration]:
    found = []
    offset = 0
    while offset < len(body):
        if len(body) - offset < _FULL_STATUS.size:
            raise BadAnswer("READ FULL STATUS: part of a descriptor")
        key, flags, scope_and_type, port, length = _FULL_STATUS.unpack_from(body, offset)
        offset += _FULL_STATUS.size
        if length > len(body) - offset:
            raise BadAnswer("READ FULL STATUS: a TransportID beyond the end")
        found.append(
            Registration(
                key,
                bool(flags & _R_HOLDER),
                bool(flags & _ALL_TG_PT_OF_STATUS),
                scope_and_type & 0x0F,
                scope_and_type >> 4,
                port,
                body[offset : offset + length],
            )
        )
        offset += length
    return found
