"""Persistent reservations as a value: a state and a request in, a Change out (SPC-5 clause 5.14).

Pure: nothing here is stored, sent or aborted. `LogicalUnit` saves the new state, makes it current,
queues the unit attentions and aborts the tasks, in this order. A registrant is an I_T nexus by its
key (initiator port name and relative target port), so it outlives its sessions. This module knows
neither CDBs nor parameter lists.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum, IntEnum, auto

from .sense import (
    Asc,
    ReservationConflict,
    ScsiError,
    SenseKey,
    invalid_cdb_field,
    invalid_parameter_field,
)
from .transport_ids import device_name

NexusKey = tuple[str, int]  # initiator port name, relative target port: `Nexus.key`

# More is INSUFFICIENT REGISTRATION RESOURCES: a state is saved whole, so it must stay small.
REGISTRATIONS_MAXIMUM = 1024

_GENERATION_MASK = 0xFFFF_FFFF


class Access(Enum):
    """What a reservation of another I_T nexus makes of a command: a column of the command table.

    Under a RESERVE (SPC-2 table 10, SBC table 3) only ALWAYS and RELEASE pass. Under a persistent
    reservation (SPC-5 tables 71 and 72, SBC-4 table 15) ALWAYS and UNLESS_RESERVED pass, READS
    conflicts with the exclusive access types, WRITES with all types. RESERVE and RELEASE are those
    commands themselves, which conflict with any registration (SPC-2 clause 5.5.1, with the
    exceptions of SPC-5 clause 5.14.3); PERSISTENT are PERSISTENT RESERVE IN and OUT, which conflict
    with a RESERVE of any nexus, and otherwise judge for themselves.
    """

    ALWAYS = auto()
    UNLESS_RESERVED = auto()
    READS = auto()
    WRITES = auto()
    RESERVE = auto()
    RELEASE = auto()
    PERSISTENT = auto()


# What passes a RESERVE of another nexus.
PASSES_RESERVE = frozenset({Access.ALWAYS, Access.RELEASE})
_PASSES_PERSISTENT = frozenset({Access.ALWAYS, Access.UNLESS_RESERVED, Access.PERSISTENT})
_COMPATIBLE = frozenset({Access.RESERVE, Access.RELEASE})


class ServiceAction(IntEnum):
    """PERSISTENT RESERVE OUT service actions (SPC-5 clause 6.17)."""

    REGISTER = 0x00
    RESERVE = 0x01
    RELEASE = 0x02
    CLEAR = 0x03
    PREEMPT = 0x04
    PREEMPT_AND_ABORT = 0x05
    REGISTER_AND_IGNORE_EXISTING_KEY = 0x06
    REGISTER_AND_MOVE = 0x07
    REPLACE_LOST_RESERVATION = 0x08


class ReservationType(IntEnum):
    """The TYPE field (SPC-5 clause 6.16.3.4)."""

    WRITE_EXCLUSIVE = 0x1
    EXCLUSIVE_ACCESS = 0x3
    WRITE_EXCLUSIVE_REGISTRANTS_ONLY = 0x5
    EXCLUSIVE_ACCESS_REGISTRANTS_ONLY = 0x6
    WRITE_EXCLUSIVE_ALL_REGISTRANTS = 0x7
    EXCLUSIVE_ACCESS_ALL_REGISTRANTS = 0x8


_TYPES = frozenset(ReservationType)
_EXCLUSIVE_ACCESS = frozenset(
    {
        ReservationType.EXCLUSIVE_ACCESS,
        ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
        ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    }
)
_REGISTRANTS_ONLY = frozenset(
    {
        ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY,
        ReservationType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY,
    }
)
_ALL_REGISTRANTS = frozenset(
    {
        ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS,
        ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS,
    }
)
# Where every registrant has the holder's access, all of them care about a release.
_FOR_REGISTRANTS = _REGISTRANTS_ONLY | _ALL_REGISTRANTS


@dataclass(frozen=True, slots=True)
class Reservation:
    """The persistent reservation of a logical unit; `holder` is None where all registrants hold."""

    type: ReservationType
    holder: NexusKey | None

    @property
    def held_by_all(self) -> bool:
        """Whether every registrant is a reservation holder."""
        return self.type in _ALL_REGISTRANTS


@dataclass(frozen=True, slots=True)
class State:
    """All that is known of one logical unit's registrations and reservation.

    `registrations` maps I_T nexuses to their reservation keys (never zero) and is not changed once
    it is in a State; `generation` is PRGENERATION; `aptpl`: all of it survives a loss of power.
    `lost`: there was more, and it cannot be known any more (SPC-4 clause 5.13.5.3.2), so nobody has
    access until an initiator replaces it.
    """

    registrations: Mapping[NexusKey, int] = field(default_factory=dict)
    reservation: Reservation | None = None
    generation: int = 0
    aptpl: bool = False
    lost: bool = False

    def is_holder(self, nexus: NexusKey) -> bool:
        """Whether the nexus is a persistent reservation holder (SPC-5 clause 5.14.10)."""
        if self.reservation is None:
            return False
        if self.reservation.held_by_all:
            return nexus in self.registrations
        return self.reservation.holder == nexus

    def has_full_access(self, nexus: NexusKey) -> bool:
        """Whether the reservation gives the nexus all commands (SPC-5 table 70)."""
        if self.reservation is not None and self.reservation.type in _FOR_REGISTRANTS:
            return nexus in self.registrations
        return self.is_holder(nexus)

    @property
    def unhindered(self) -> frozenset[NexusKey] | None:
        """Who may do everything; None where there is nothing that could hinder anybody.

        Nobody, where there are registrations only: RESERVE and RELEASE conflict with those.
        """
        if not self.registrations:
            return frozenset() if self.lost else None
        return frozenset(filter(self.has_full_access, self.registrations))

    def conflicts(self, nexus: NexusKey, access: Access) -> bool:
        """Whether a command of the nexus ends in RESERVATION CONFLICT.

        For whom the reservation gives full access, RESERVE and RELEASE are GOOD and change nothing
        (SPC-5 clause 5.14.3, announced by the CRH bit).
        """
        if not self.registrations or self.has_full_access(nexus):
            return False
        if access in _COMPATIBLE:
            return True
        if self.reservation is None or access in _PASSES_PERSISTENT:
            return False
        return access is Access.WRITES or self.reservation.type in _EXCLUSIVE_ACCESS


NOTHING = State()


@dataclass(frozen=True, slots=True)
class Request:
    """A PERSISTENT RESERVE OUT, decoded (SPC-5 clause 6.17).

    `key` and `action_key` are RESERVATION KEY and SERVICE ACTION RESERVATION KEY;
    `scope_and_type` is byte 2 of the CDB; `initiator_ports` are those of SPEC_I_PT (None:
    SPEC_I_PT=0); `destination` and `unregister` are REGISTER AND MOVE's.
    """

    action: ServiceAction
    key: int = 0
    action_key: int = 0
    scope_and_type: int = 0
    aptpl: bool = False
    all_target_ports: bool = False
    initiator_ports: tuple[str, ...] | None = None
    destination: NexusKey | None = None
    unregister: bool = False


@dataclass(frozen=True, slots=True)
class Change:
    """What a request does: the state from now on, who is told what, whose tasks are aborted."""

    state: State
    attentions: Mapping[NexusKey, Asc] = field(default_factory=dict)
    aborts: frozenset[NexusKey] = frozenset()


def change(
    state: State, requester: NexusKey, request: Request, target_ports: Collection[int] = ()
) -> Change:
    """What a request of a nexus does to the state.

    `target_ports` are the relative target ports through which the logical unit can be reached.
    Raises ReservationConflict, and ScsiError for what a parameter may not be.
    """
    ports = {*target_ports, requester[1]}
    return _ACTIONS[request.action](state, requester, request, ports)


# Registering (SPC-5 clause 5.14.7)


def _register(state: State, requester: NexusKey, request: Request, ports: set[int]) -> Change:
    """SPC-5 table 73: the key must be the registered one, or zero where there is none."""
    registered = state.registrations
    held = registered.get(requester)
    if request.key != (held or 0):
        raise ReservationConflict
    if held is None and not request.action_key:
        return Change(state)
    own = _through(requester[0], request, requester, ports)
    # ALL_TG_PT is as if each target port had got the request: one conflict is one too many.
    if any(registered.get(nexus, request.key) != request.key for nexus in own):
        raise ReservationConflict
    if held is not None:
        if request.initiator_ports is not None:
            raise invalid_parameter_field(20, 3)
        return _set_keys(state, requester, request, [nexus for nexus in own if nexus in registered])
    for name in request.initiator_ports or ():
        listed = _through(name, request, requester, ports)
        if any(nexus in registered for nexus in listed if nexus not in own):
            raise invalid_parameter_field(24, 7)
        own += listed
    return _set_keys(state, requester, request, own)


def _register_and_ignore(
    state: State, requester: NexusKey, request: Request, ports: set[int]
) -> Change:
    """SPC-5 table 74: whatever is registered, the key is replaced or removed."""
    own = _through(requester[0], request, requester, ports)
    if not request.action_key:
        own = [nexus for nexus in own if nexus in state.registrations]
        if not own:
            return Change(state)
    return _set_keys(state, requester, request, own)


def _through(name: str, request: Request, requester: NexusKey, ports: set[int]) -> list[NexusKey]:
    """The nexuses of an initiator port: through the port asked, or all with ALL_TG_PT."""
    if request.all_target_ports:
        return [(name, port) for port in sorted(ports)]
    return [(name, requester[1])]


def _set_keys(
    state: State, requester: NexusKey, request: Request, nexuses: list[NexusKey]
) -> Change:
    state = _next(replace(state, aptpl=request.aptpl))
    if request.action_key:
        return Change(_registering(state, dict.fromkeys(nexuses, request.action_key)))
    return _unregister(state, requester, nexuses)


def _registering(state: State, keys: Mapping[NexusKey, int]) -> State:
    registrations = {**state.registrations, **keys}
    if len(registrations) > max(REGISTRATIONS_MAXIMUM, len(state.registrations)):
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_REGISTRATION_RESOURCES)
    return replace(state, registrations=registrations)


def _unregister(state: State, requester: NexusKey, nexuses: list[NexusKey]) -> Change:
    """SPC-5 clause 5.14.11.3: the holder's reservation goes with its registration."""
    remaining = {n: key for n, key in state.registrations.items() if n not in nexuses}
    reservation = state.reservation
    attentions: Mapping[NexusKey, Asc] = {}
    if reservation is not None and not _still_held(reservation, remaining):
        if reservation.type in _REGISTRANTS_ONLY:
            attentions = _tell(remaining, requester, Asc.RESERVATIONS_RELEASED)
        reservation = None
    return Change(replace(state, registrations=remaining, reservation=reservation), attentions)


def _still_held(reservation: Reservation, registrations: Mapping[NexusKey, int]) -> bool:
    if reservation.held_by_all:
        return bool(registrations)
    return reservation.holder in registrations


def _register_and_move(
    state: State, requester: NexusKey, request: Request, ports: set[int]
) -> Change:
    """The holder gives registration and reservation to another nexus (SPC-5 clause 5.14.8)."""
    _check_key(state, requester, request)
    reservation, destination = state.reservation, request.destination
    if reservation is None:
        raise invalid_cdb_field(1, 4)
    if reservation.held_by_all or reservation.holder != requester:
        raise ReservationConflict
    if not request.action_key:
        raise invalid_parameter_field(8, 7)
    assert destination is not None
    if destination[1] not in ports:
        raise invalid_parameter_field(18, 7)
    if destination[0] == requester[0]:
        raise invalid_parameter_field(24, 7)
    moved = _registering(state, {destination: request.action_key})
    registrations = dict(moved.registrations)
    if request.unregister:
        del registrations[requester]
    return Change(
        State(
            registrations,
            replace(reservation, holder=destination),
            _next(state).generation,
            request.aptpl,
        )
    )


# Reserving and releasing (SPC-5 clauses 5.14.9 and 5.14.11)


def _reserve(state: State, requester: NexusKey, request: Request, ports: set[int]) -> Change:
    _check_key(state, requester, request)
    wanted = _type_of(request)
    if state.reservation is None:
        return Change(replace(state, reservation=_reservation(wanted, requester)))
    if not state.is_holder(requester) or state.reservation.type != wanted:
        raise ReservationConflict
    return Change(state)


def _release(state: State, requester: NexusKey, request: Request, ports: set[int]) -> Change:
    _check_key(state, requester, request)
    reservation = state.reservation
    if reservation is None or not state.is_holder(requester):
        return Change(state)
    if request.scope_and_type != reservation.type:
        asc = Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, asc)
    told = state.registrations if reservation.type in _FOR_REGISTRANTS else ()
    attentions = _tell(told, requester, Asc.RESERVATIONS_RELEASED)
    return Change(replace(state, reservation=None), attentions)


def _clear(state: State, requester: NexusKey, request: Request, ports: set[int]) -> Change:
    _check_key(state, requester, request)
    attentions = _tell(state.registrations, requester, Asc.RESERVATIONS_PREEMPTED)
    return Change(replace(_next(state), registrations={}, reservation=None), attentions)


# Preempting (SPC-5 clauses 5.14.11.4 and 5.14.11.5)


def _preempt(state: State, requester: NexusKey, request: Request, ports: set[int]) -> Change:
    _check_key(state, requester, request)
    identified = _identified(state, requester, request.action_key)
    if not _takes_over(state, request.action_key):
        if not identified:
            raise ReservationConflict
        return _remove(state, requester, identified)
    remaining = {
        nexus: key
        for nexus, key in state.registrations.items()
        if nexus == requester or nexus not in identified
    }
    taken = _reservation(_type_of(request), requester)
    attentions = _tell(identified, requester, Asc.REGISTRATIONS_PREEMPTED)
    if state.reservation is not None and state.reservation.type != taken.type:
        attentions |= _tell(remaining, requester, Asc.RESERVATIONS_RELEASED)
    after = replace(_next(state), registrations=remaining, reservation=taken)
    return Change(after, attentions, identified)


def _takes_over(state: State, key: int) -> bool:
    """Whether the key identifies the holder: zero does where all registrants hold."""
    if state.reservation is None:
        return False
    if state.reservation.holder is None:
        return key == 0
    return state.registrations[state.reservation.holder] == key


def _identified(state: State, requester: NexusKey, key: int) -> frozenset[NexusKey]:
    """The nexuses that a PREEMPT is about. Raises ScsiError where zero identifies nobody."""
    if key:
        return frozenset(nexus for nexus, held in state.registrations.items() if held == key)
    if state.reservation is None or not state.reservation.held_by_all:
        raise invalid_parameter_field(8, 7)
    return frozenset(state.registrations) - {requester}


def _remove(state: State, requester: NexusKey, identified: frozenset[NexusKey]) -> Change:
    """Registrations go, the requester's too if it has the key; the reservation is another's."""
    remaining = {n: key for n, key in state.registrations.items() if n not in identified}
    reservation = state.reservation
    if reservation is not None and not _still_held(reservation, remaining):
        reservation = None
    after = replace(_next(state), registrations=remaining, reservation=reservation)
    return Change(after, _tell(identified, requester, Asc.REGISTRATIONS_PREEMPTED), identified)


# Recovering (SPC-4 clause 5.13.11.3)


def _replace_lost(state: State, requester: NexusKey, request: Request, ports: set[int]) -> Change:
    """A new start: the requester's registration and reservation, and nothing else."""
    if not state.lost:
        asc = Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION
        raise ScsiError(SenseKey.ILLEGAL_REQUEST, asc)
    if request.key:
        raise ReservationConflict
    if not request.action_key:
        raise invalid_parameter_field(8, 7)
    if request.all_target_ports:
        raise invalid_parameter_field(20, 2)
    registrations = {requester: request.action_key}
    taken = _reservation(_type_of(request), requester)
    return Change(State(registrations, taken, 0, request.aptpl))


def purge(state: State, initiator: str) -> Change:
    """What the operator does to the registrations of an initiator that does not come back.

    `initiator` is an initiator port name, or an initiator name for all of its ports; letters' case
    does not count (RFC 3722). For everybody else it is a PREEMPT AND ABORT of those registrations,
    and their reservation is released.
    """
    initiator = initiator.lower()  # as a login and a TransportID store it
    purged = frozenset(
        nexus for nexus in state.registrations if initiator in (nexus[0], device_name(nexus[0]))
    )
    if not purged:
        return Change(state)
    nobody = ("", 0)
    result = _unregister(_next(state), nobody, list(purged))
    told = _tell(purged, nobody, Asc.REGISTRATIONS_PREEMPTED)
    return Change(result.state, {**result.attentions, **told}, purged)


def _preempt_and_keep_tasks(
    state: State, requester: NexusKey, request: Request, ports: set[int]
) -> Change:
    return replace(_preempt(state, requester, request, ports), aborts=frozenset())


# What the actions share


def _check_key(state: State, requester: NexusKey, request: Request) -> None:
    """All but the registering actions are for registrants with their own key (clause 5.14.1)."""
    if state.registrations.get(requester) != request.key:
        raise ReservationConflict


def _type_of(request: Request) -> ReservationType:
    """The TYPE, of LU_SCOPE; there is no other scope (SPC-5 clause 6.16.3.3)."""
    if request.scope_and_type >> 4:
        raise invalid_cdb_field(2, 7)
    if request.scope_and_type not in _TYPES:
        raise invalid_cdb_field(2, 3)
    return ReservationType(request.scope_and_type)


def _reservation(wanted: ReservationType, requester: NexusKey) -> Reservation:
    return Reservation(wanted, None if wanted in _ALL_REGISTRANTS else requester)


def _next(state: State) -> State:
    return replace(state, generation=state.generation + 1 & _GENERATION_MASK)


def _tell(nexuses: Iterable[NexusKey], requester: NexusKey, asc: Asc) -> dict[NexusKey, Asc]:
    """Who asked knows; the others are told."""
    return {nexus: asc for nexus in nexuses if nexus != requester}


_Action = Callable[[State, NexusKey, Request, set[int]], Change]
_ACTIONS: Mapping[ServiceAction, _Action] = {
    ServiceAction.REGISTER: _register,
    ServiceAction.RESERVE: _reserve,
    ServiceAction.RELEASE: _release,
    ServiceAction.CLEAR: _clear,
    ServiceAction.PREEMPT: _preempt_and_keep_tasks,
    ServiceAction.PREEMPT_AND_ABORT: _preempt,
    ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY: _register_and_ignore,
    ServiceAction.REGISTER_AND_MOVE: _register_and_move,
    ServiceAction.REPLACE_LOST_RESERVATION: _replace_lost,
}
