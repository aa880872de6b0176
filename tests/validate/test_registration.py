"""Checks of registering, each against a target that fails it."""

from dataclasses import replace

import pytest

from pyiscsi_target.scsi.reservations import Change, NexusKey, Request, ServiceAction, State
from pyiscsi_target.scsi.sense import invalid_cdb_field
from pyiscsi_target.scsi.task import Result, Task
from pyiscsi_target.validate import Verdict
from pyiscsi_target.validate.registration import CHECKS
from tests.support.broken_target import REFUSED, Breaker, illegal_request, with_bytes
from tests.support.live import Live
from tests.support.validation import Breakage, assert_all_covered, assert_fails, judge, names

PR_IN, PR_OUT = 0x5E, 0x5F
REGISTER = ServiceAction.REGISTER
IGNORE = ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY
READ_KEYS, REPORT_CAPABILITIES, READ_FULL_STATUS = 0, 2, 3


def nothing(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return Change(state)


def one_at_a_time(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    mine = {n: key for n, key in right.state.registrations.items() if n == requester}
    return Change(replace(right.state, registrations=mine))


def one_for_a_name(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    def name(nexus: NexusKey) -> str:
        return nexus[0].partition(",")[0]

    others = right.state.registrations.items()
    kept = {n: k for n, k in others if n == requester or name(n) != name(requester)}
    return Change(replace(right.state, registrations=kept))


def any_key(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    registrations = {**state.registrations, requester: request.action_key}
    return Change(replace(state, registrations=registrations))


def unregister_all(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return right if request.action_key else Change(State(generation=state.generation))


def unregister_once(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return right if request.action_key or requester in state.registrations else Change(REFUSED)


def never_counting(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return replace(right, state=replace(right.state, generation=7))


def no_aptpl(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    if request.aptpl:
        raise invalid_cdb_field(20, 0)
    return right


def aptpl_forgotten(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
    return replace(right, state=replace(right.state, aptpl=False))


def wrong_length_is_good(task: Task) -> Result | None:
    length = int.from_bytes(task.cdb[5:9], "big")
    return Result() if length != 24 else None


def odd_keys(breaker: Breaker) -> None:
    breaker.answer(PR_IN, lambda *_: Result(data=bytes.fromhex("00000001 00000007") + bytes(7)))


def truncated(task: Task, result: Result) -> Result:
    """ADDITIONAL LENGTH says what fitted."""
    return with_bytes(result, _7=len(result.data or b"") - 8)


def announced_too_much(breaker: Breaker) -> None:
    breaker.answer(PR_IN, lambda *_: Result(data=bytes.fromhex("00000001 00000020") + bytes(8)))


BROKEN: list[Breakage] = [
    ("read-keys", lambda b: b.answer(PR_IN, illegal_request)),
    ("read-keys", lambda b: b.answer(PR_IN, lambda *_: Result(data=bytes(3)))),
    ("read-keys", odd_keys),
    ("read-keys", announced_too_much),
    ("register", lambda b: b.reservations(nothing, IGNORE)),
    ("register", lambda b: b.answer(PR_OUT, illegal_request)),
    ("register-all", lambda b: b.reservations(one_at_a_time, IGNORE)),
    ("register-key", lambda b: b.reservations(any_key, REGISTER)),
    ("register-key", lambda b: b.reservations(nothing, REGISTER)),
    ("unregister", lambda b: b.reservations(unregister_all, IGNORE)),
    ("unregister-twice", lambda b: b.reservations(unregister_once, IGNORE)),
    ("generation", lambda b: b.reservations(never_counting)),
    ("same-key-paths", lambda b: b.reservations(one_for_a_name, IGNORE)),
    ("keys-truncated", lambda b: b.answer(PR_IN, truncated)),
    ("list-length", lambda b: b.instead(PR_OUT, wrong_length_is_good)),
    ("aptpl", lambda b: b.reservations(no_aptpl, IGNORE)),
    ("aptpl", lambda b: b.reservations(aptpl_forgotten, IGNORE)),
    (
        "capabilities",
        lambda b: b.answer(
            PR_IN,
            lambda _, result: with_bytes(result, _4=0x0A),
            when=lambda task: task.cdb[1] == REPORT_CAPABILITIES,
        ),
    ),
    (
        "capabilities",
        lambda b: b.answer(
            PR_IN,
            lambda _, result: with_bytes(result, _3=0),
            when=lambda task: task.cdb[1] == REPORT_CAPABILITIES,
        ),
    ),
    (
        "full-status",
        lambda b: b.answer(
            PR_IN,
            lambda _, result: with_bytes(result, _8=(result.data or bytes(9))[8] ^ 0xFF),
            when=lambda task: task.cdb[1] == READ_FULL_STATUS,
        ),
    ),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_who_asked_what_is_told(live: Live, breaker: Breaker) -> None:
    breaker.reservations(nothing, IGNORE)
    result = await judge(live, "register")
    assert result.seen == "READ KEYS by node 2: no key"
    assert result.expected.endswith("70795661h"), "the key of node 1"


async def test_without_capabilities_aptpl_is_believed(live: Live, breaker: Breaker) -> None:
    breaker.answer(PR_IN, illegal_request, when=lambda task: task.cdb[1] == REPORT_CAPABILITIES)
    result = await judge(live, "aptpl")
    assert (result.verdict, result.seen) == (Verdict.PASS, "accepted")
