"""Validations in a test: against a live server, quick, of a few checks or of all."""

from collections.abc import Callable, Sequence
from typing import Any

from pyiscsi_target.client import Portal, TargetUrl
from pyiscsi_target.validate import (
    CHECKS,
    Check,
    CheckResult,
    Importance,
    Options,
    Report,
    Verdict,
    validate,
)
from tests.support.broken_target import Breaker
from tests.support.live import Live
from tests.support.server import TARGET

QUICK: dict[str, Any] = {
    "challenge_wait_s": 0.02,
    "settle_s": 0.01,
    "rounds": 3,
    "latency_samples": 20,
    "timeout_s": 20.0,
    "idle": True,
}

# The id of a check, and what makes it fail.
Breakage = tuple[str, Callable[[Breaker], None]]


def options_for(live: Live, *, lun: int | None = None, **more: Any) -> Options:
    """Quick options for the server's first portal."""
    return Options(TargetUrl(Portal(*live.address()), TARGET, lun), **{**QUICK, **more})


def checks_of(*ids: str) -> list[Check]:
    """Checks by their ids, in the table's order; discovery is first, for it finds the portals."""
    wanted = {"discovery", *ids}
    chosen = [check for check in CHECKS if check.id in wanted]
    assert len(chosen) == len(wanted), wanted
    return chosen


async def run(live: Live, *ids: str, **more: Any) -> Report:
    """A report on these checks."""
    return await validate(options_for(live, **more), checks=checks_of(*ids))


async def judge(live: Live, check_id: str, **more: Any) -> CheckResult:
    """What becomes of one check; everything must be put back afterwards."""
    report = await run(live, check_id, **more)
    (result,) = (r for r in report.results if r.check.id == check_id)
    return result


async def assert_fails(
    live: Live, breaker: Breaker, breakage: Breakage, **more: Any
) -> CheckResult:
    """A broken server does not pass, and the reason is told."""
    check_id, break_it = breakage
    break_it(breaker)
    result = await judge(live, check_id, **more)
    required = result.check.importance is Importance.REQUIRED
    assert result.verdict in ((Verdict.FAIL,) if required else (Verdict.WARN,)), result
    assert result.expected
    assert "the check itself broke" not in result.seen
    return result


def assert_all_covered(checks: Sequence[Check], breakages: Sequence[Breakage]) -> None:
    """There is a target for each check that does not pass it."""
    assert {check.id for check in checks} == {check_id for check_id, _ in breakages}


def names(breakages: Sequence[Breakage]) -> list[str]:
    """Ids for parametrized tests, one for each breakage."""
    return [f"{check_id}-{number}" for number, (check_id, _) in enumerate(breakages)]
