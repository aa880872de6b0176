"""Persistent reservations as pure state, told by three hosts (SPC-5 clause 5.14)."""

import pytest

from pyiscsi_target.scsi import reservations
from pyiscsi_target.scsi.reservations import (
    NOTHING,
    Access,
    Change,
    NexusKey,
    Request,
    Reservation,
    ReservationType,
    ServiceAction,
    State,
    change,
    purge,
)
from pyiscsi_target.scsi.sense import Asc, ReservationConflict, ScsiError

A, B, C = (f"iqn.2026-11.lab.example:{name},i,0x400001370000" for name in "abc")
ONE, TWO, THREE = (A, 1), (B, 1), (C, 1)
ONE_PATH_2, TWO_PATH_2 = (A, 2), (B, 2)
KEY_1, KEY_2, KEY_3, OTHER = 0x11, 0x22, 0x33, 0x99
ALL_KEYS = {ONE: KEY_1, TWO: KEY_2, THREE: KEY_3}

WE, EA, WE_RO, EA_RO, WE_AR, EA_AR = ReservationType
ALL_REGISTRANTS, REGISTRANTS_ONLY = (WE_AR, EA_AR), (WE_RO, EA_RO)
TYPES = list(ReservationType)

REGISTER = ServiceAction.REGISTER
IGNORE = ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY
RESERVE, RELEASE, CLEAR = ServiceAction.RESERVE, ServiceAction.RELEASE, ServiceAction.CLEAR
PREEMPT, ABORT = ServiceAction.PREEMPT, ServiceAction.PREEMPT_AND_ABORT
MOVE = ServiceAction.REGISTER_AND_MOVE
REPLACE = ServiceAction.REPLACE_LOST_RESERVATION

ALL_REGISTERED = State(ALL_KEYS, generation=3)


def held(kind: ReservationType, holder: NexusKey = ONE) -> State:
    """All three are registered, and one of them made a reservation."""
    key = ALL_KEYS[holder]
    return change(ALL_REGISTERED, holder, Request(RESERVE, key, scope_and_type=kind)).state


def refused(state: State, nexus: NexusKey, request: Request, ports: tuple[int, ...] = ()) -> Asc:
    with pytest.raises(ScsiError) as error:
        change(state, nexus, request, ports)
    return error.value.asc


def conflicts(state: State, nexus: NexusKey, request: Request) -> None:
    with pytest.raises(ReservationConflict):
        change(state, nexus, request)


# Registering


def test_register_change_the_key_and_unregister() -> None:
    first = change(NOTHING, ONE, Request(REGISTER, 0, KEY_1)).state
    assert first == State({ONE: KEY_1}, generation=1)
    second = change(first, ONE, Request(REGISTER, KEY_1, OTHER)).state
    assert second == State({ONE: OTHER}, generation=2)
    assert change(second, ONE, Request(REGISTER, OTHER, 0)).state == State(generation=3)


@pytest.mark.parametrize(
    ("nexus", "key"), [(ONE, 0), (ONE, KEY_2), (TWO, KEY_1)], ids=["none", "another's", "not mine"]
)
def test_register_wants_the_registered_key(nexus: NexusKey, key: int) -> None:
    conflicts(State({ONE: KEY_1}), nexus, Request(REGISTER, key, OTHER))


@pytest.mark.parametrize("action", [REGISTER, IGNORE])
def test_unregistering_the_unregistered_changes_nothing(action: ServiceAction) -> None:
    assert change(ALL_REGISTERED, ONE_PATH_2, Request(action, 0, 0)) == Change(ALL_REGISTERED)


def test_register_and_ignore_takes_any_key() -> None:
    first = change(NOTHING, ONE, Request(IGNORE, OTHER, KEY_1)).state
    second = change(first, ONE, Request(IGNORE, OTHER, KEY_2)).state
    assert second == State({ONE: KEY_2}, generation=2)
    assert change(second, ONE, Request(IGNORE, OTHER, 0)).state == State(generation=3)


@pytest.mark.parametrize("action", [REGISTER, IGNORE])
def test_aptpl_is_the_last_one_heard(action: ServiceAction) -> None:
    on = change(NOTHING, ONE, Request(action, 0, KEY_1, aptpl=True)).state
    assert on.aptpl
    assert change(on, ONE, Request(RESERVE, KEY_1, scope_and_type=WE)).state.aptpl
    assert not change(on, ONE, Request(action, KEY_1, KEY_1)).state.aptpl


def test_all_target_ports_register_together() -> None:
    request = Request(REGISTER, 0, KEY_1, all_target_ports=True)
    state = change(State({TWO: KEY_2}), ONE, request, (1, 2, 3)).state
    assert state.registrations == {TWO: KEY_2, ONE: KEY_1, (A, 2): KEY_1, (A, 3): KEY_1}
    request = Request(REGISTER, KEY_1, 0, all_target_ports=True)
    assert change(state, ONE, request, (1, 2, 3)).state.registrations == {TWO: KEY_2}
    request = Request(IGNORE, 0, 0, all_target_ports=True)
    assert change(state, (A, 3), request, (1, 2)).state.registrations == {TWO: KEY_2}


def test_all_target_ports_change_the_key_where_there_is_one() -> None:
    state = State({ONE: KEY_1, (A, 3): KEY_1})
    request = Request(REGISTER, KEY_1, OTHER, all_target_ports=True)
    assert change(state, ONE, request, (1, 2, 3)).state.registrations == {
        ONE: OTHER,
        (A, 3): OTHER,
    }


@pytest.mark.parametrize("key", [0, KEY_1])
def test_all_target_ports_conflict_where_one_port_does(key: int) -> None:
    state = State({ONE_PATH_2: KEY_2} | ({ONE: KEY_1} if key else {}))
    with pytest.raises(ReservationConflict):
        change(state, ONE, Request(REGISTER, key, OTHER, all_target_ports=True), (1, 2))


def test_specified_initiator_ports_register_too() -> None:
    request = Request(REGISTER, 0, KEY_1, initiator_ports=(A, B, C))
    assert change(NOTHING, ONE, request).state == State(
        {ONE: KEY_1, TWO: KEY_1, THREE: KEY_1}, generation=1
    )
    request = Request(REGISTER, 0, KEY_1, initiator_ports=(C,), all_target_ports=True)
    assert set(change(NOTHING, ONE, request, (1, 2)).state.registrations) == {
        ONE,
        ONE_PATH_2,
        THREE,
        (C, 2),
    }


def test_no_specified_initiator_port_may_be_registered() -> None:
    request = Request(REGISTER, 0, KEY_1, initiator_ports=(B, C))
    asc = refused(State({TWO: KEY_2}), ONE, request)
    assert asc is Asc.INVALID_FIELD_IN_PARAMETER_LIST


def test_the_registered_cannot_specify_initiator_ports() -> None:
    request = Request(REGISTER, KEY_1, OTHER, initiator_ports=(C,))
    assert refused(State({ONE: KEY_1}), ONE, request) is Asc.INVALID_FIELD_IN_PARAMETER_LIST


def test_registrations_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reservations, "REGISTRATIONS_MAXIMUM", 3)
    newcomer = ("iqn.2026-11.lab.example:d,i,0x400001370000", 1)
    for action in (REGISTER, IGNORE):
        asc = refused(ALL_REGISTERED, newcomer, Request(action, 0, OTHER))
        assert asc is Asc.INSUFFICIENT_REGISTRATION_RESOURCES
    change(ALL_REGISTERED, ONE, Request(REGISTER, KEY_1, OTHER))
    move = Request(MOVE, KEY_1, OTHER, destination=newcomer)
    assert refused(held(WE), ONE, move) is Asc.INSUFFICIENT_REGISTRATION_RESOURCES


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("action", [REGISTER, IGNORE])
def test_the_reservation_goes_with_its_holders(
    kind: ReservationType, action: ServiceAction
) -> None:
    result = change(held(kind), ONE, Request(action, KEY_1, 0))
    if kind in ALL_REGISTRANTS:
        assert result.state.reservation == Reservation(kind, None)
        assert not result.attentions
        left = change(result.state, TWO, Request(action, KEY_2, 0)).state
        assert change(left, THREE, Request(action, KEY_3, 0)).state == State(generation=6)
        return
    assert result.state.reservation is None
    told = {TWO, THREE} if kind in REGISTRANTS_ONLY else set()
    assert result.attentions == dict.fromkeys(told, Asc.RESERVATIONS_RELEASED)


def test_another_registrant_may_go() -> None:
    state = change(held(WE_RO), TWO, Request(REGISTER, KEY_2, 0)).state
    assert state.reservation == Reservation(WE_RO, ONE)


def test_a_changed_key_leaves_the_reservation() -> None:
    state = change(held(WE), ONE, Request(REGISTER, KEY_1, OTHER)).state
    assert state.reservation == Reservation(WE, ONE)
    conflicts(state, TWO, Request(PREEMPT, KEY_2, KEY_1, WE))
    assert change(state, TWO, Request(PREEMPT, KEY_2, OTHER, WE)).state.is_holder(TWO)


# What all but registering want


@pytest.mark.parametrize("action", sorted(set(ServiceAction) - {REGISTER, IGNORE, REPLACE}))
@pytest.mark.parametrize(
    ("nexus", "key"),
    [(ONE, KEY_2), (ONE, 0), (ONE_PATH_2, KEY_1), (ONE_PATH_2, 0)],
    ids=["wrong key", "no key", "another path", "unregistered"],
)
def test_a_registrant_with_its_key(action: ServiceAction, nexus: NexusKey, key: int) -> None:
    request = Request(action, key, KEY_2, WE, destination=THREE)
    conflicts(held(WE), nexus, request)
    conflicts(ALL_REGISTERED, nexus, request)
    conflicts(NOTHING, nexus, request)


# Reserving


@pytest.mark.parametrize("kind", TYPES)
def test_one_reservation_at_a_time(kind: ReservationType) -> None:
    state = held(kind)
    assert state.generation == ALL_REGISTERED.generation
    assert [state.is_holder(nexus) for nexus in (ONE, TWO, ONE_PATH_2)] == [
        True,
        kind in ALL_REGISTRANTS,
        False,
    ]
    assert change(state, ONE, Request(RESERVE, KEY_1, scope_and_type=kind)) == Change(state)
    again = Request(RESERVE, KEY_2, scope_and_type=kind)
    if kind in ALL_REGISTRANTS:
        assert change(state, TWO, again) == Change(state)
    else:
        conflicts(state, TWO, again)
    for other in set(TYPES) - {kind}:
        conflicts(state, ONE, Request(RESERVE, KEY_1, scope_and_type=other))


@pytest.mark.parametrize("scope_and_type", [0x0, 0x2, 0x4, 0x9, 0xF, 0x11, 0x25])
def test_only_what_exists_can_be_reserved(scope_and_type: int) -> None:
    for request in (
        Request(RESERVE, KEY_1, scope_and_type=scope_and_type),
        Request(PREEMPT, KEY_1, KEY_1, scope_and_type=scope_and_type),
    ):
        state = held(WE) if request.action is PREEMPT else ALL_REGISTERED
        assert refused(state, ONE, request) is Asc.INVALID_FIELD_IN_CDB


# Releasing


@pytest.mark.parametrize("kind", TYPES)
def test_release(kind: ReservationType) -> None:
    result = change(held(kind), ONE, Request(RELEASE, KEY_1, scope_and_type=kind))
    assert result.state == ALL_REGISTERED
    told = {TWO, THREE} if kind not in (WE, EA) else set()
    assert result.attentions == dict.fromkeys(told, Asc.RESERVATIONS_RELEASED)


@pytest.mark.parametrize("kind", TYPES)
def test_release_by_another(kind: ReservationType) -> None:
    result = change(held(kind), TWO, Request(RELEASE, KEY_2, scope_and_type=kind))
    if kind in ALL_REGISTRANTS:
        assert set(result.attentions) == {ONE, THREE}
        assert result.state.reservation is None
    else:
        assert result == Change(held(kind))


def test_nothing_to_release() -> None:
    request = Request(RELEASE, KEY_1, scope_and_type=WE)
    assert change(ALL_REGISTERED, ONE, request) == Change(ALL_REGISTERED)


@pytest.mark.parametrize("scope_and_type", [WE_RO, 0x0, 0x11])
def test_release_of_what_is_not_held(scope_and_type: int) -> None:
    request = Request(RELEASE, KEY_1, scope_and_type=scope_and_type)
    assert refused(held(WE), ONE, request) is Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION


# Clearing


@pytest.mark.parametrize("kind", TYPES)
def test_any_registrant_may_clear(kind: ReservationType) -> None:
    result = change(held(kind), TWO, Request(CLEAR, KEY_2))
    assert result.state == State(generation=4)
    assert result.attentions == dict.fromkeys((ONE, THREE), Asc.RESERVATIONS_PREEMPTED)


# Preempting


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("wanted", TYPES)
def test_preempt_the_holder(kind: ReservationType, wanted: ReservationType) -> None:
    """By its key, and by zero where all registrants hold the reservation."""
    by_all = kind in ALL_REGISTRANTS
    result = change(held(kind), TWO, Request(ABORT, KEY_2, 0 if by_all else KEY_1, wanted))
    lost = {ONE, THREE} if by_all else {ONE}
    assert result.state.registrations == {
        nexus: key for nexus, key in ALL_KEYS.items() if nexus not in lost
    }
    assert result.state.reservation == Reservation(
        wanted, None if wanted in ALL_REGISTRANTS else TWO
    )
    assert result.state.generation == 4
    expected = dict.fromkeys(lost, Asc.REGISTRATIONS_PREEMPTED)
    if wanted != kind and not by_all:
        expected[THREE] = Asc.RESERVATIONS_RELEASED
    assert result.attentions == expected
    assert result.aborts == lost


@pytest.mark.parametrize("kind", TYPES)
def test_preempt_a_registrant(kind: ReservationType) -> None:
    """Type and scope mean nothing, the reservation stays."""
    result = change(held(kind), ONE, Request(PREEMPT, KEY_1, KEY_3, 0xFF))
    assert result.state.registrations == {ONE: KEY_1, TWO: KEY_2}
    assert result.state.reservation == held(kind).reservation
    assert result.attentions == {THREE: Asc.REGISTRATIONS_PREEMPTED}
    assert not result.aborts


def test_preempt_without_a_reservation_makes_none() -> None:
    result = change(ALL_REGISTERED, ONE, Request(ABORT, KEY_1, KEY_2, WE_RO))
    assert result.state == State({ONE: KEY_1, THREE: KEY_3}, generation=4)
    assert result.aborts == {TWO}


def test_preempt_every_path_of_a_key() -> None:
    state = State({ONE: KEY_1, ONE_PATH_2: KEY_1, TWO: KEY_2}, Reservation(WE_RO, ONE_PATH_2))
    result = change(state, TWO, Request(ABORT, KEY_2, KEY_1, WE_RO))
    assert result.state == State({TWO: KEY_2}, Reservation(WE_RO, TWO), 1)
    assert set(result.attentions) == result.aborts == {ONE, ONE_PATH_2}


def test_preempt_the_own_key_from_another_path() -> None:
    state = State({ONE: KEY_1, ONE_PATH_2: KEY_1}, Reservation(WE_RO, ONE_PATH_2))
    result = change(state, ONE, Request(ABORT, KEY_1, KEY_1, WE_RO))
    assert result.state == State({ONE: KEY_1}, Reservation(WE_RO, ONE), 1)
    assert result.attentions == {ONE_PATH_2: Asc.REGISTRATIONS_PREEMPTED}
    assert result.aborts == {ONE, ONE_PATH_2}


def test_the_holder_changes_the_type() -> None:
    result = change(held(WE), ONE, Request(PREEMPT, KEY_1, KEY_1, EA_AR))
    assert result.state == State(ALL_KEYS, Reservation(EA_AR, None), 4)
    assert result.attentions == dict.fromkeys((TWO, THREE), Asc.RESERVATIONS_RELEASED)


def test_a_registrant_may_preempt_itself() -> None:
    result = change(held(WE), TWO, Request(PREEMPT, KEY_2, KEY_2, WE))
    assert result.state.registrations == {ONE: KEY_1, THREE: KEY_3}
    assert not result.attentions
    alone = State({ONE: KEY_1}, Reservation(WE_AR, None))
    assert change(alone, ONE, Request(PREEMPT, KEY_1, KEY_1, WE)).state == State(generation=1)


@pytest.mark.parametrize("action", [PREEMPT, ABORT])
@pytest.mark.parametrize("kind", [None, *TYPES])
def test_preempt_of_a_key_that_nobody_has(
    action: ServiceAction, kind: ReservationType | None
) -> None:
    state = ALL_REGISTERED if kind is None else held(kind)
    conflicts(state, ONE, Request(action, KEY_1, OTHER, WE))
    if kind not in ALL_REGISTRANTS:
        asc = refused(state, ONE, Request(action, KEY_1, 0, WE))
        assert asc is Asc.INVALID_FIELD_IN_PARAMETER_LIST


# Moving


@pytest.mark.parametrize("kind", [WE, EA, WE_RO, EA_RO])
@pytest.mark.parametrize("unregister", [False, True])
def test_move_to_a_newcomer(kind: ReservationType, unregister: bool) -> None:
    request = Request(MOVE, KEY_1, OTHER, destination=TWO_PATH_2, unregister=unregister, aptpl=True)
    result = change(held(kind), ONE, request, (1, 2))
    keys = {TWO: KEY_2, THREE: KEY_3, TWO_PATH_2: OTHER} | ({} if unregister else {ONE: KEY_1})
    assert result == Change(State(keys, Reservation(kind, TWO_PATH_2), 4, aptpl=True))


def test_move_to_a_registrant_replaces_its_key() -> None:
    state = change(held(WE), ONE, Request(MOVE, KEY_1, OTHER, destination=TWO)).state
    assert state.registrations == {ONE: KEY_1, TWO: OTHER, THREE: KEY_3}
    assert state.is_holder(TWO)


def test_move_is_for_the_one_holder() -> None:
    move = Request(MOVE, KEY_1, OTHER, destination=THREE)
    assert refused(ALL_REGISTERED, ONE, move) is Asc.INVALID_FIELD_IN_CDB
    conflicts(held(WE, TWO), ONE, move)
    for kind in ALL_REGISTRANTS:
        conflicts(held(kind), ONE, move)


@pytest.mark.parametrize(
    ("action_key", "destination"),
    [(0, THREE), (OTHER, ONE), (OTHER, ONE_PATH_2), (OTHER, (C, 7))],
    ids=["no key", "itself", "itself by another path", "no such port"],
)
def test_what_cannot_be_moved(action_key: int, destination: NexusKey) -> None:
    request = Request(MOVE, KEY_1, action_key, destination=destination)
    asc = refused(held(WE), ONE, request, (1, 2))
    assert asc is Asc.INVALID_FIELD_IN_PARAMETER_LIST


# Lost information

LOST = State(lost=True)


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("aptpl", [False, True])
def test_a_lost_reservation_is_replaced(kind: ReservationType, aptpl: bool) -> None:
    assert LOST.unhindered == frozenset()
    result = change(LOST, TWO, Request(REPLACE, 0, KEY_2, kind, aptpl=aptpl))
    holder = None if kind in ALL_REGISTRANTS else TWO
    assert result == Change(State({TWO: KEY_2}, Reservation(kind, holder), 0, aptpl))


def test_what_replaces_nothing() -> None:
    assert (
        refused(held(WE), ONE, Request(REPLACE, 0, KEY_1, WE))
        is Asc.INVALID_RELEASE_OF_PERSISTENT_RESERVATION
    )
    conflicts(LOST, ONE, Request(REPLACE, KEY_1, KEY_1, WE))
    for request, asc in (
        (Request(REPLACE, 0, 0, WE), Asc.INVALID_FIELD_IN_PARAMETER_LIST),
        (
            Request(REPLACE, 0, KEY_1, WE, all_target_ports=True),
            Asc.INVALID_FIELD_IN_PARAMETER_LIST,
        ),
        (Request(REPLACE, 0, KEY_1, 0x2), Asc.INVALID_FIELD_IN_CDB),
        (Request(REPLACE, 0, KEY_1, 0x15), Asc.INVALID_FIELD_IN_CDB),
    ):
        assert refused(LOST, ONE, request) is asc


# What an operator may do


@pytest.mark.parametrize("kind", TYPES)
def test_an_orphan_is_purged(kind: ReservationType) -> None:
    """As by PREEMPT AND ABORT, and nobody takes over."""
    result = purge(held(kind), A)
    stays = kind in ALL_REGISTRANTS
    expected = Reservation(kind, None) if stays else None
    assert result.state == State({TWO: KEY_2, THREE: KEY_3}, expected, 4)
    told = {ONE: Asc.REGISTRATIONS_PREEMPTED}
    if kind in REGISTRANTS_ONLY:
        told |= dict.fromkeys((TWO, THREE), Asc.RESERVATIONS_RELEASED)
    assert result.attentions == told
    assert result.aborts == {ONE}


def test_an_initiator_is_purged_by_port_or_with_all_its_ports() -> None:
    device, other_isid = A.partition(",")[0], f"{A[:-2]}01"
    state = State({ONE: 1, ONE_PATH_2: 2, (other_isid, 1): 3, TWO: 4})
    assert purge(state, device).state.registrations == {TWO: 4}
    assert purge(state, other_isid).aborts == {(other_isid, 1)}
    assert purge(state, A).aborts == {ONE, ONE_PATH_2}
    assert purge(state, A.upper()) == purge(state, A)
    assert purge(state, device[:-1]) == Change(state)


# PRGENERATION


def test_the_generation_wraps() -> None:
    state = State(generation=0xFFFF_FFFF)
    assert change(state, ONE, Request(REGISTER, 0, KEY_1)).state.generation == 0


# Who may do what (SPC-5 table 71)

HOLDER, REGISTERED, STRANGER = ONE, TWO, ONE_PATH_2
F, T = False, True
# ALWAYS UNLESS_RESERVED READS WRITES RESERVE RELEASE PERSISTENT
ALL_PASS = (F, F, F, F, F, F, F)
READS_PASS = (F, F, F, T, T, T, F)
NONE_PASS = (F, F, T, T, T, T, F)
COMPATIBLE_ONLY = (F, F, F, F, T, T, F)


@pytest.mark.parametrize(
    ("kind", "registered", "stranger"),
    [
        (None, COMPATIBLE_ONLY, COMPATIBLE_ONLY),
        (WE, READS_PASS, READS_PASS),
        (EA, NONE_PASS, NONE_PASS),
        (WE_RO, ALL_PASS, READS_PASS),
        (EA_RO, ALL_PASS, NONE_PASS),
        (WE_AR, ALL_PASS, READS_PASS),
        (EA_AR, ALL_PASS, NONE_PASS),
    ],
)
def test_the_access_table(
    kind: ReservationType | None, registered: tuple[bool, ...], stranger: tuple[bool, ...]
) -> None:
    state = ALL_REGISTERED if kind is None else held(kind)

    def row(nexus: NexusKey) -> tuple[bool, ...]:
        return tuple(state.conflicts(nexus, access) for access in Access)

    assert row(HOLDER) == (ALL_PASS if kind else registered)
    assert row(REGISTERED) == registered
    assert row(STRANGER) == stranger
    unhindered = frozenset(nexus for nexus in (*ALL_KEYS, STRANGER) if not any(row(nexus)))
    assert state.unhindered == unhindered


def test_nobody_is_hindered_where_nobody_is_registered() -> None:
    assert NOTHING.unhindered is None
    assert not any(NOTHING.conflicts(ONE, access) for access in Access)
