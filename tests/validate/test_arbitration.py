"""Checks of the fight for a disk, each against a target that fails it."""

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
from pyiscsi_target.scsi.sense import invalid_cdb_field
from pyiscsi_target.validate import NODES_MAXIMUM, Verdict, node_names
from pyiscsi_target.validate.arbitration import CHECKS
from tests.support.broken_target import REFUSED, Breaker
from tests.support.live import Live
from tests.support.validation import (
    Breakage,
    assert_all_covered,
    assert_fails,
    judge,
    names,
    run,
)

PREEMPT, RESERVE = ServiceAction.PREEMPT, ServiceAction.RESERVE
WE_RO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


def refused(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return Change(REFUSED)


def nothing(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return Change(state)


def unsupported(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    raise invalid_cdb_field(1, 4)


def takes(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    """Whoever asks last owns the disk: as many winners as there are contenders."""
    kept = {n: k for n, k in state.registrations.items() if k != request.action_key}
    return Change(State(kept, Reservation(WE_RO, requester), state.generation + 1))


def keeps_quiet(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    """GOOD for the first, who does not become the owner all the same."""
    if right.state is REFUSED:
        return right
    return replace(right, state=replace(right.state, reservation=None))


def back_to_the_dead(breaker: Breaker) -> None:
    """A node that comes back may write as if nothing had happened."""
    breaker.access(lambda *_: False)


BROKEN: list[Breakage] = [
    ("dead-defender", lambda b: b.reservations(refused, PREEMPT)),
    ("dead-defender", lambda b: b.reservations(nothing, PREEMPT)),
    ("dead-defender", lambda b: b.reservations(unsupported, PREEMPT)),
    ("dead-defender", Breaker.forget_registrations),
    ("dead-defender", back_to_the_dead),
    ("living-defender", lambda b: b.reservations(nothing, PREEMPT)),
    ("living-defender", lambda b: b.reservations(takes, PREEMPT)),
    ("each-node", lambda b: b.reservations(refused, PREEMPT)),
    ("each-node", lambda b: b.reservations(nothing, PREEMPT)),
    ("each-node", Breaker.forget_registrations),
    ("all-at-once", lambda b: b.reservations(takes, RESERVE)),
    ("all-at-once", lambda b: b.reservations(refused, RESERVE)),
    ("all-at-once", lambda b: b.reservations(keeps_quiet, RESERVE)),
    ("simultaneous-failover", lambda b: b.reservations(takes, PREEMPT)),
    ("simultaneous-failover", lambda b: b.reservations(nothing, PREEMPT)),
    ("simultaneous-failover", lambda b: b.reservations(refused, PREEMPT)),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


STRANGER: NexusKey = ("iqn.2026-11.lab.example:other,i,0x400001370000", 1)


def with_stranger(state: State) -> State:
    return replace(state, registrations={**state.registrations, STRANGER: 0xF00D})


async def test_no_stranger_is_driven_away(live: Live, breaker: Breaker) -> None:
    """Somebody registers while the owner looks for challengers."""
    breaker.reservations(
        lambda state, requester, request, right: replace(right, state=with_stranger(right.state)),
        RESERVE,
    )
    result = await judge(live, "living-defender")
    assert (result.verdict, result.prevented) == (Verdict.SKIP, True)
    assert STRANGER in live.app._units["disk"].reservations.registrations


async def test_no_stranger_is_preempted(live: Live, breaker: Breaker) -> None:
    """Somebody has taken the disk while a challenger waits."""

    def taken(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
        if not state.registrations or not request.action_key:
            return right
        owned = Reservation(WE_RO, STRANGER)
        return replace(right, state=replace(with_stranger(right.state), reservation=owned))

    breaker.reservations(taken, ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY)
    result = await judge(live, "dead-defender")
    assert (result.verdict, result.prevented) == (Verdict.SKIP, True)
    assert result.seen == "others own the disk: 000000000000F00Dh"
    state = live.app._units["disk"].reservations
    assert state.reservation == Reservation(WE_RO, STRANGER)
    assert state.registrations == {STRANGER: 0xF00D}


async def test_two_winners_are_named(live: Live, breaker: Breaker) -> None:
    breaker.reservations(takes, RESERVE)
    result = await judge(live, "all-at-once")
    assert result.seen == "node 1, node 2, node 3 won at once"
    assert result.expected == "exactly one winner"


@pytest.mark.parametrize("count", [2, NODES_MAXIMUM])
async def test_as_few_and_as_many_nodes_as_may_be(live: Live, count: int) -> None:
    report = await run(live, *(check.id for check in CHECKS), initiator_names=node_names(count))
    assert report.counts[Verdict.PASS] == len(report.results)


async def test_the_failover_is_measured(live: Live) -> None:
    result = await judge(live, "dead-defender")
    assert result.figures["failover_s"] >= result.figures["challenge_wait_s"] == 0.02
