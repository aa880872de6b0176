"""Errors say who, what and why."""

import pytest

from pyiscsi_target.client import (
    ClientError,
    CommandFailed,
    ConnectionLost,
    LoginRefused,
    Portal,
    ProtocolViolated,
    RequestRejected,
    Result,
    TimedOut,
)

PORTAL = Portal("::1", 3260)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConnectionLost(PORTAL, "reset"), "[::1]:3260: reset"),
        (ProtocolViolated(PORTAL, "StatSN"), "[::1]:3260: StatSN"),
        (
            LoginRefused(PORTAL, 0x0201),
            "[::1]:3260: login refused, status 0201h: authentication failure",
        ),
        (
            LoginRefused(PORTAL, 0x0102),
            "[::1]:3260: login refused, status 0102h: target moved permanently",
        ),
        (LoginRefused(PORTAL, 0x0999), "[::1]:3260: login refused, status 0999h: unknown status"),
        (RequestRejected(PORTAL, 4), "[::1]:3260: request rejected, reason 04h: protocol error"),
        (RequestRejected(PORTAL, 99), "[::1]:3260: request rejected, reason 63h: unknown reason"),
        (CommandFailed("WRITE(16)", 3, Result(0x18)), "WRITE(16) to LUN 3: RESERVATION CONFLICT"),
    ],
)
def test_messages(error: ClientError, text: str) -> None:
    assert isinstance(error, ClientError)
    assert str(error) == text


def test_being_late_is_a_time_out_for_those_who_know_no_more() -> None:
    assert issubclass(TimedOut, TimeoutError)
