"""A command's end as a value and as a text."""

import pytest

from pyiscsi_target.client import Result
from pyiscsi_target.iscsi.initiator_events import CommandFinished

SENSE = bytes.fromhex("700006000000000a000000002a05000000000000")[:18]


def test_the_engines_event_becomes_a_value() -> None:
    event = CommandFinished(7, 0, 2, memoryview(b"abc"), SENSE, -5)
    result = Result.of(event)
    assert result == Result(2, b"abc", SENSE, -5, 0)
    assert isinstance(result.data, bytes)
    assert result.sense is not None
    assert result.sense.code == (0x2A, 0x05)


@pytest.mark.parametrize(
    ("result", "good", "text"),
    [
        (Result(0), True, "GOOD"),
        (Result(0, response=1), False, "target failure, response 01h"),
        (Result(0x18), False, "RESERVATION CONFLICT"),
        (Result(0x40), False, "TASK ABORTED"),
        (Result(0x77), False, "status 77h"),
        (
            Result(2, raw_sense=SENSE),
            False,
            "CHECK CONDITION, UNIT ATTENTION, 2Ah/05h REGISTRATIONS PREEMPTED",
        ),
        (Result(2), False, "CHECK CONDITION"),
    ],
)
def test_for_a_person(result: Result, good: bool, text: str) -> None:
    assert result.good is good
    assert str(result) == text
