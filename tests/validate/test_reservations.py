"""Checks of reserving and releasing, each against a target that fails it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from pyiscsi_target.scsi import reservations as rules
from pyiscsi_target.scsi.reservations import (
    Access,
    Change,
    NexusKey,
    Request,
    Reservation,
    ReservationType,
    ServiceAction,
    State,
)
from pyiscsi_target.scsi.sense import Asc, ReservationConflict, invalid_cdb_field
from pyiscsi_target.scsi.task import Result
from pyiscsi_target.validate import Verdict
from pyiscsi_target.validate.reservations import CHECKS
from tests.support.broken_target import Breaker, Rule, illegal_request, with_bytes
from tests.support.live import Live
from tests.support.validation import Breakage, assert_all_covered, assert_fails, judge, names

PR_IN = 0x5E
READ_RESERVATION = 1
RESERVE, RELEASE, CLEAR = ServiceAction.RESERVE, ServiceAction.RELEASE, ServiceAction.CLEAR
IGNORE = ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY
WE_RO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
MODE_SELECT_6 = 0x15


def nothing(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return Change(state)


def everybody_owns(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return Change(replace(state, reservation=Reservation(WE_RO, requester)))


def no_key_needed(breaker: Breaker) -> None:
    breaker.patch.setattr(rules, "_check_key", lambda *_: None)


def any_registered_key(breaker: Breaker) -> None:
    def check(state: State, requester: NexusKey, request: Request) -> None:
        if request.key not in state.registrations.values():
            raise ReservationConflict

    breaker.patch.setattr(rules, "_check_key", check)


def conflicts(judge: Callable[[State, NexusKey, Access], bool]) -> Callable[[Breaker], None]:
    return lambda b: b.access(judge)


def releases_all(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return Change(State(generation=state.generation))


def released_by_anybody(
    state: State, requester: NexusKey, request: Request, right: Change
) -> Change:
    return Change(replace(state, reservation=None))


def unregisters_all(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return right if request.action_key else Change(State(generation=state.generation))


def clears_reservation_only(
    state: State, requester: NexusKey, request: Request, right: Change
) -> Change:
    return Change(replace(state, reservation=None), right.attentions)


def tells(who: Callable[[State, NexusKey, Change], Mapping[NexusKey, Asc]]) -> Rule:
    """Other unit attentions than the right ones."""
    return lambda state, requester, request, right: replace(
        right, attentions=who(state, requester, right)
    )


def five_only(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    if request.scope_and_type != WE_RO:
        raise invalid_cdb_field(2, 3)
    return right


def same_node_is_registered(state: State, nexus: NexusKey) -> bool:
    name = nexus[0].partition(",")[0]
    return any(other[0].partition(",")[0] == name for other in state.registrations)


def read_reservation(**at: int) -> Callable[[Breaker], None]:
    return lambda b: b.answer(
        PR_IN,
        lambda _, result: with_bytes(result, **at) if len(result.data or b"") > 8 else result,
        when=lambda task: task.cdb[1] == READ_RESERVATION,
    )


NOBODY = tells(lambda state, requester, right: {})
REQUESTER_TOO = tells(
    lambda state, requester, right: {
        **right.attentions,
        requester: Asc.RESERVATIONS_RELEASED,
    }
)
WRONG_CODE = tells(
    lambda state, requester, right: dict.fromkeys(right.attentions, Asc.REGISTRATIONS_PREEMPTED)
)

BROKEN: list[Breakage] = [
    ("windows-sequence", lambda b: b.reservations(nothing, RELEASE)),
    ("windows-sequence", lambda b: b.reservations(clears_reservation_only, CLEAR)),
    ("windows-sequence", lambda b: b.reservations(nothing, ServiceAction.PREEMPT)),
    ("reserve", read_reservation(_21=0x01)),
    ("reserve", read_reservation(_21=0x15)),
    ("reserve", read_reservation(_15=0xEE)),
    ("reserve", read_reservation(_7=0x08)),
    ("reserve", read_reservation(_7=0)),
    ("one-owner", lambda b: b.reservations(everybody_owns, RESERVE)),
    ("wrong-key", no_key_needed),
    ("outsiders-refused", any_registered_key),
    (
        "outsiders-read",
        conflicts(lambda s, nexus, access: access is Access.READS and not s.has_full_access(nexus)),
    ),
    ("outsiders-write", conflicts(lambda *_: False)),
    ("outsiders-write", lambda b: b.answer(0x35, lambda *_: Result())),
    ("outsiders-write", lambda b: b.answer(0x2A, illegal_request)),
    ("registrants-write", lambda b: b.full_access(State.is_holder)),
    ("paths-apart", lambda b: b.full_access(same_node_is_registered)),
    ("release", lambda b: b.reservations(releases_all, RELEASE)),
    ("release-attention", lambda b: b.reservations(NOBODY, RELEASE)),
    ("release-attention", lambda b: b.reservations(WRONG_CODE, RELEASE)),
    ("release-attention", lambda b: b.reservations(REQUESTER_TOO, RELEASE)),
    ("release-others", lambda b: b.reservations(released_by_anybody, RELEASE)),
    ("owner-unregisters", lambda b: b.reservations(unregisters_all, IGNORE)),
    ("owner-unregisters-attention", lambda b: b.reservations(NOBODY, IGNORE)),
    ("clear", lambda b: b.reservations(clears_reservation_only, CLEAR)),
    ("clear-attention", lambda b: b.reservations(NOBODY, CLEAR)),
    ("clear-attention", lambda b: b.reservations(WRONG_CODE, CLEAR)),
    ("clear-attention", lambda b: b.reservations(REQUESTER_TOO, CLEAR)),
    ("other-types", lambda b: b.reservations(five_only, RESERVE)),
    ("other-types", read_reservation(_21=0x05)),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_who_passed_what_is_told(live: Live, breaker: Breaker) -> None:
    conflicts(lambda *_: False)(breaker)
    result = await judge(live, "outsiders-write")
    assert result.seen == (
        "unregistered: WRITE of zero blocks: GOOD; SYNCHRONIZE CACHE(10): GOOD;"
        " UNMAP of nothing: GOOD; MODE SELECT(6) of nothing: GOOD"
    )
    assert "do not use this target" in result.fix


async def test_an_unknown_mode_select_is_no_hole(live: Live, breaker: Breaker) -> None:
    """A target need not know it; then it need not look at the reservation either."""
    breaker.answer(MODE_SELECT_6, illegal_request)
    assert (await judge(live, "outsiders-write")).verdict is Verdict.PASS


async def test_what_is_known_must_conflict(live: Live, breaker: Breaker) -> None:
    breaker.answer(0x2A, illegal_request)
    result = await judge(live, "outsiders-write")
    assert result.verdict is Verdict.FAIL
    assert "WRITE of zero blocks: CHECK CONDITION" in result.seen
