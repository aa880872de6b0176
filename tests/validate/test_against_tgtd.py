"""The validator against a target that somebody else wrote; docs/validate-tgtd.md says the same."""

import os
from pathlib import Path

from pyiscsi_target.client import Portal, TargetUrl
from pyiscsi_target.validate import CHECKS, Conclusion, Options, Report, Verdict, validate
from tests.support.server import TARGET
from tests.support.tgtd import tgtd
from tests.support.validation import QUICK

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "validate-tgtd.md"
SIZE_BYTES = 64 << 20


def documented() -> dict[str, str]:
    """Check id -> verdict, as the output in the documentation has it."""
    lines = DOCUMENT.read_text(encoding="utf-8").splitlines()
    found = {}
    for check in CHECKS:
        (line,) = (line for line in lines if line[8:].startswith(f"{check.title}: "))
        found[check.id] = line[:8].strip().lower()
    return found


def ids_of(report: Report, verdict: Verdict) -> set[str]:
    return {result.check.id for result in report.results if result.verdict is verdict}


async def test_the_verdict(tmp_path: Path) -> None:
    image = tmp_path / "shared.img"
    image.touch()
    os.truncate(image, SIZE_BYTES)
    with tgtd([image]) as server:
        url = TargetUrl(Portal(*server.address), TARGET)
        report = await validate(Options(url, allow_writes=True, **{**QUICK, "idle": False}))
    assert report.conclusion is Conclusion.NOT_READY
    assert ids_of(report, Verdict.FAIL) == {
        "wrong-key",
        "preempt-attention",
        "preempt-paths-attention",
        "loss-return",
        "loss-registrant",
        "loss-everybody",
        "loss-logout",
        "loss-replaced",
        "loss-release",
    }
    assert ids_of(report, Verdict.WARN) == {
        "target-port",
        "vpd-characteristics",
        "aptpl",
        "full-status",
        "release-attention",
        "owner-unregisters-attention",
        "preempt-abort",
    }
    assert report.results[-1].verdict is Verdict.PASS
    assert not any(image.read_bytes()), "the scratch blocks are as they were"
    seen = {result.check.id: result.verdict.value for result in report.results[:-1]}
    assert seen == documented()
