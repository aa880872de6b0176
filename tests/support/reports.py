"""A report with one result of each verdict, and with things in it that must not get through."""

from dataclasses import replace
from datetime import UTC, datetime

from pyiscsi_target.validate import CHECKS, Check, CheckResult, Report, Verdict
from pyiscsi_target.validate.model import NodeFacts, TargetFacts

EVIL = "<script>alert(1)</script>\x1b[2J{style}[bold]"


def _check(check_id: str) -> Check:
    return next(check for check in CHECKS if check.id == check_id)


RESULTS = (
    CheckResult(
        _check("read-latency"),
        Verdict.PASS,
        f"serial {EVIL}",
        figures={"p50_s": 0.001, "samples": 20.0},
    ),
    CheckResult(
        _check("preempt-fences"),
        Verdict.FAIL,
        "node 2: WRITE of zero blocks: GOOD <b>&amp;",
        "RESERVATION CONFLICT",
        "do not use it",
        duration_s=0.25,
    ),
    CheckResult(_check("dpofua"), Verdict.WARN, "DPOFUA=0", "DPOFUA=1"),
    CheckResult(_check("reserve"), Verdict.SKIP, "the disk is in use", prevented=True),
)


def report(*, disk: bool = True) -> Report:
    target = TargetFacts("127.0.0.1:3260", "iqn.2026-11.lab.example:cluster")
    if disk:
        target = replace(
            target,
            portals=("127.0.0.1:3260", "[::1]:3260"),
            lun=0,
            disks=(0, 1),
            vendor="LAB",
            product=EVIL,
            revision="0001",
            serial="0815",
            size_bytes=1 << 30,
            block_size=512,
        )
    return Report(
        target,
        (NodeFacts(1, "iqn.2026-11.lab.example:node-1", (("127.0.0.1:3260", "8056414c0101"),)),),
        RESULTS,
        datetime(2026, 11, 1, 12, tzinfo=UTC),
        3.25,
        writes_allowed=True,
    )
