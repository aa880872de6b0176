"""What a report concludes from its results."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from pyiscsi_target.validate import CHECKS, CheckResult, Conclusion, Importance, Report, Verdict
from pyiscsi_target.validate.model import TargetFacts

REQUIRED = next(check for check in CHECKS if check.importance is Importance.REQUIRED)
RECOMMENDED = next(check for check in CHECKS if check.importance is Importance.RECOMMENDED)

PASSED = CheckResult(REQUIRED, Verdict.PASS, "well")
FAILED = CheckResult(REQUIRED, Verdict.FAIL, "not well", "well")
WARNED = CheckResult(RECOMMENDED, Verdict.WARN, "so so", "well")
NOT_OFFERED = CheckResult(REQUIRED, Verdict.SKIP, "not offered")
PREVENTED = CheckResult(REQUIRED, Verdict.SKIP, "in use", prevented=True)
PREVENTED_EXTRA = CheckResult(RECOMMENDED, Verdict.SKIP, "in use", prevented=True)


def report(*results: CheckResult, interrupted: bool = False) -> Report:
    return Report(
        TargetFacts("127.0.0.1:3260", "iqn.2026-11.lab.example:x"),
        (),
        results,
        datetime(2026, 11, 1, tzinfo=UTC),
        1.5,
        writes_allowed=False,
        interrupted=interrupted,
    )


@pytest.mark.parametrize(
    ("results", "conclusion", "headline"),
    [
        (
            (PASSED, WARNED, NOT_OFFERED, PREVENTED_EXTRA),
            Conclusion.READY,
            "READY for a cluster: no check failed (1 passed, 1 warning, 2 skipped)",
        ),
        (
            (PASSED, FAILED, PREVENTED),
            Conclusion.NOT_READY,
            "NOT READY for a cluster: 1 check failed (1 passed, 0 warnings, 1 skipped)",
        ),
        (
            (FAILED, FAILED),
            Conclusion.NOT_READY,
            "NOT READY for a cluster: 2 checks failed (0 passed, 0 warnings, 0 skipped)",
        ),
        (
            (PASSED, PREVENTED),
            Conclusion.UNPROVEN,
            "UNPROVEN: 1 required check could not be run (1 passed, 0 warnings, 1 skipped)",
        ),
    ],
    ids=["ready", "one failed", "two failed", "unproven"],
)
def test_what_it_concludes(
    results: tuple[CheckResult, ...], conclusion: Conclusion, headline: str
) -> None:
    whole = report(*results)
    assert whole.conclusion is conclusion
    assert whole.headline == headline


def test_what_was_interrupted_is_not_proven() -> None:
    whole = report(PASSED, interrupted=True)
    assert whole.conclusion is Conclusion.UNPROVEN
    assert whole.headline.startswith("UNPROVEN: interrupted before the end")
    assert replace(whole, results=[FAILED]).conclusion is Conclusion.NOT_READY


def test_every_verdict_is_counted() -> None:
    assert report(PASSED, PASSED, WARNED).counts == {
        Verdict.PASS: 2,
        Verdict.FAIL: 0,
        Verdict.WARN: 1,
        Verdict.SKIP: 0,
    }
