"""The overview on a terminal and in a pipe."""

import io

import pytest
from rich.console import Console

from pyiscsi_target.cli.overview_table import print_overview
from pyiscsi_target.server.overview import Overview, TargetRow

NAME = "iqn.2026-11.lab.example:a-rather-long-name-that-must-stay-whole"
OVERVIEW = Overview(
    (TargetRow(NAME, ("0: quorum, 1 GiB", "1: data, 10 GiB"), ("iqn.[ab]*",), ()),),
    ("[::1]:3260", "127.0.0.1:3260"),
)


def printed(*, terminal: bool, width: int) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=width, color_system=None)
    print_overview(OVERVIEW, console)
    return stream.getvalue()


def test_plain_lines_have_no_width() -> None:
    assert printed(terminal=False, width=20).splitlines() == [
        NAME,
        "  luns: 0: quorum, 1 GiB; 1: data, 10 GiB",
        "  admitted: iqn.[ab]*",
        "  terms: -",
        "portals: [::1]:3260, 127.0.0.1:3260",
    ]


@pytest.mark.parametrize("text", [NAME, "0: quorum, 1 GiB", "iqn.[ab]*", "[::1]:3260"])
def test_a_table_shows_everything(text: str) -> None:
    assert text in printed(terminal=True, width=160)


def test_a_narrow_terminal_cuts_nothing_off() -> None:
    assert "\u2026" not in printed(terminal=True, width=60)
