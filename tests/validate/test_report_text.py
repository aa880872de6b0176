"""The report for a person, on a terminal and elsewhere."""

import io
import re

from rich.console import Console

from pyiscsi_target.validate.report_text import print_report
from tests.support.reports import report


def printed(*, terminal: bool, width: int = 120) -> str:
    stream = io.StringIO()
    print_report(
        report(), Console(file=stream, force_terminal=terminal, width=width, color_system=None)
    )
    return stream.getvalue()


def test_plain_lines() -> None:
    assert printed(terminal=False).splitlines() == [
        "target: iqn.2026-11.lab.example:cluster",
        "portals: 127.0.0.1:3260, [::1]:3260",
        "disk: LUN 0, LAB <script>alert(1)</script>\ufffd[2J{style}[bold] 0001, serial 0815",
        "size: 1073741824 bytes in blocks of 512",
        "nodes: iqn.2026-11.lab.example:node-1",
        "writes: allowed, on two scratch blocks",
        "",
        "Data",
        "  PASS  Reads are fast enough: serial <script>alert(1)</script>\ufffd[2J{style}[bold]",
        "",
        "Preemption",
        "  FAIL  The preempted node cannot write any more:"
        " node 2: WRITE of zero blocks: GOOD <b>&amp;",
        "        expected: RESERVATION CONFLICT",
        "        fix: do not use it",
        "        see: SPC-5 clause 5.14.11.4",
        "",
        "Device",
        "  WARN  Writes may force unit access: DPOFUA=0",
        "        expected: DPOFUA=1",
        "        see: SBC-4, Mode parameter header",
        "",
        "Reservations",
        "  SKIP  A node reserves, and all can read who owns the disk: the disk is in use",
        "NOT READY for a cluster: 1 check failed (1 passed, 1 warning, 1 skipped)",
    ]


def test_a_terminal_gets_tables_and_the_verdict_last() -> None:
    lines = printed(terminal=True).splitlines()
    assert lines[-1] == "NOT READY for a cluster: 1 check failed (1 passed, 1 warning, 1 skipped)"
    text = "\n".join(lines)
    assert "Preemption" in text
    assert re.search(r"│ FAIL │ The preempted node cannot .*│ node 2: WRITE of zero blocks", text)
    assert "expected: RESERVATION CONFLICT" in text


def test_a_target_moves_no_cursor_and_sets_no_markup() -> None:
    for terminal in (True, False):
        text = printed(terminal=terminal, width=200)
        assert "\x1b[2J" not in text
        assert "{style}[bold]" in text, "it is shown as it is"
