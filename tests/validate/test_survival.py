"""Checks of what a lost connection may not take away, each against a target that fails it."""

import pytest

from pyiscsi_target.scsi.reservations import NexusKey, State
from pyiscsi_target.validate import Verdict
from pyiscsi_target.validate.survival import CHECKS
from tests.support.broken_target import Breaker
from tests.support.live import Live
from tests.support.validation import Breakage, assert_all_covered, assert_fails, names, run


def same_node_is_registered(state: State, nexus: NexusKey) -> bool:
    name = nexus[0].partition(",")[0]
    return any(other[0].partition(",")[0] == name for other in state.registrations)


BROKEN: list[Breakage] = [
    ("loss", Breaker.forget_registrations),
    ("loss", lambda b: b.access(lambda *_: False)),
    ("loss-return", Breaker.key_registrations_to_sessions),
    ("loss-return", Breaker.forget_registrations),
    ("loss-registrant", Breaker.key_registrations_to_sessions),
    ("loss-registrant", Breaker.forget_registrations),
    ("loss-everybody", Breaker.key_registrations_to_sessions),
    ("loss-everybody", Breaker.forget_registrations),
    ("loss-logout", Breaker.key_registrations_to_sessions),
    ("loss-logout", Breaker.forget_registrations),
    ("loss-replaced", Breaker.key_registrations_to_sessions),
    ("loss-replaced", Breaker.forget_registrations),
    ("loss-release", Breaker.key_registrations_to_sessions),
    ("loss-isid", lambda b: b.full_access(same_node_is_registered)),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_what_no_nexus_can_take_away_is_cleared(live: Live, breaker: Breaker) -> None:
    """Registrations of sessions that are gone for ever: CLEAR, for all of them are ours."""
    breaker.key_registrations_to_sessions()
    report = await run(live, "loss-everybody", "loss-logout")
    assert report.results[-1].verdict is Verdict.PASS
    assert not live.app._units["disk"].reservations.registrations
