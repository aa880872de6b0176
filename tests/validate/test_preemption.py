"""Checks of PREEMPT, each against a target that fails it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pytest

from pyiscsi_target.scsi.reservations import (
    Change,
    NexusKey,
    Request,
    Reservation,
    ReservationType,
    ServiceAction,
    State,
)
from pyiscsi_target.scsi.sense import Asc, invalid_cdb_field
from pyiscsi_target.validate import Importance, Verdict, node_names
from pyiscsi_target.validate.preemption import CHECKS
from tests.support.broken_target import REFUSED, Breaker, Rule
from tests.support.live import Live
from tests.support.validation import (
    Breakage,
    assert_all_covered,
    assert_fails,
    names,
    run,
)

PREEMPT, AND_ABORT = ServiceAction.PREEMPT, ServiceAction.PREEMPT_AND_ABORT
IGNORE = ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY
WE_RO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


def victims(state: State, request: Request) -> dict[NexusKey, int]:
    return {n: key for n, key in state.registrations.items() if key == request.action_key}


def nothing(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return Change(state)


def no_new_owner(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return replace(right, state=replace(right.state, reservation=None))


def registration_stays(
    state: State, requester: NexusKey, request: Request, right: Change
) -> Change:
    return replace(right, state=replace(right.state, registrations=state.registrations))


def everybody_goes(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    registrations = {requester: state.registrations[requester]}
    return replace(right, state=replace(right.state, registrations=registrations))


def owner_is_replaced(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    """Whoever preempts whomever gets the reservation, known key or not."""
    kept = {n: k for n, k in state.registrations.items() if n not in victims(state, request)}
    return Change(State(kept, Reservation(WE_RO, requester), state.generation + 1))


def one_path_only(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    spared = dict([*victims(state, request).items()][1:])
    return replace(
        right, state=replace(right.state, registrations={**right.state.registrations, **spared})
    )


def refused_for_ever(breaker: Breaker) -> None:
    """Who was preempted cannot register any more."""
    outlaws: set[NexusKey] = set()

    def remember(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
        if request.action is PREEMPT:
            outlaws.update(victims(state, request))
            return right
        return Change(REFUSED) if requester in outlaws and request.action_key else right

    breaker.reservations(remember, PREEMPT, IGNORE)


def unsupported(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    raise invalid_cdb_field(1, 4)


def tells(who: Callable[[State, NexusKey, Change], Mapping[NexusKey, Asc]]) -> Rule:
    """Other unit attentions than the right ones."""
    return lambda state, requester, request, right: replace(
        right, attentions=who(state, requester, right)
    )


CODE = Asc.REGISTRATIONS_PREEMPTED
NOBODY = tells(lambda state, requester, right: {})
WRONG_CODE = tells(
    lambda state, requester, right: dict.fromkeys(right.attentions, Asc.RESERVATIONS_PREEMPTED)
)
REQUESTER_TOO = tells(lambda state, requester, right: {**right.attentions, requester: CODE})
EVERYBODY = tells(
    lambda state, requester, right: {n: CODE for n in state.registrations if n != requester}
)
ONE_PATH = tells(lambda state, requester, right: dict([*right.attentions.items()][:1]))

BROKEN: list[Breakage] = [
    ("preempt", lambda b: b.reservations(nothing, PREEMPT)),
    ("preempt", lambda b: b.reservations(no_new_owner, PREEMPT)),
    ("preempt", lambda b: b.reservations(registration_stays, PREEMPT)),
    ("preempt-bystanders", lambda b: b.reservations(everybody_goes, PREEMPT)),
    ("preempt-attention", lambda b: b.reservations(NOBODY, PREEMPT)),
    ("preempt-attention", lambda b: b.reservations(WRONG_CODE, PREEMPT)),
    ("preempt-attention", lambda b: b.reservations(REQUESTER_TOO, PREEMPT)),
    ("preempt-attention", lambda b: b.reservations(EVERYBODY, PREEMPT)),
    ("preempt-fences", lambda b: b.access(lambda *_: False)),
    ("preempt-fences", lambda b: b.reservations(registration_stays, PREEMPT)),
    ("preempt-return", refused_for_ever),
    ("preempt-registrant", lambda b: b.reservations(nothing, PREEMPT)),
    ("preempt-registrant", lambda b: b.reservations(no_new_owner, PREEMPT)),
    ("preempt-unknown", lambda b: b.reservations(owner_is_replaced, PREEMPT)),
    ("preempt-unknown", lambda b: b.reservations(nothing, PREEMPT)),
    ("preempt-paths", lambda b: b.reservations(one_path_only, PREEMPT)),
    ("preempt-paths-attention", lambda b: b.reservations(ONE_PATH, PREEMPT)),
    ("preempt-abort", lambda b: b.reservations(unsupported, AND_ABORT)),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_two_nodes_have_a_bystander_too(live: Live, breaker: Breaker) -> None:
    """The other path of one of them."""
    ids = ("preempt-bystanders", "preempt-attention")
    report = await run(live, *ids, initiator_names=node_names(2))
    assert report.counts[Verdict.PASS] == 4
    assert "path 2 of node 1 is registered" in report.results[1].seen
    breaker.reservations(EVERYBODY, PREEMPT)
    report = await run(live, *ids, initiator_names=node_names(2))
    attention = report.results[2]
    assert attention.check.importance is Importance.REQUIRED
    assert attention.verdict is Verdict.FAIL
    assert attention.seen == "path 2 of node 1 heard 2Ah/05h REGISTRATIONS PREEMPTED"
    assert attention.expected == "no unit attention"
