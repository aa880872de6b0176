"""The commands that checks send, byte by byte; none of them can do harm by itself."""

from collections.abc import Awaitable

import pytest

from pyiscsi_target.client import Result, Status
from pyiscsi_target.validate import requests
from pyiscsi_target.validate.model import Finding
from pyiscsi_target.validate.requests import Request, good, is_illegal_request


@pytest.mark.parametrize(
    ("request_", "cdb", "read_length"),
    [
        (requests.inquiry(), "12 00 00 00 ff 00", 255),
        (requests.inquiry(0x83, 4096), "12 01 83 10 00 00", 4096),
        (requests.report_luns(16), "a0 00 00 00 00 00 00 00 00 10 00 00", 16),
        (requests.read_capacity_10(), "25 00 00 00 00 00 00 00 00 00", 8),
        (requests.mode_sense_6(0x3F), "1a 00 3f 00 c0 00", 192),
        (requests.mode_select_6_nothing(), "15 10 00 00 00 00", 0),
        (requests.read(7, 2, 512), "28 00 00 00 00 07 00 00 02 00", 1024),
        (
            requests.read(1 << 32, 1, 4096),
            "88 00 00 00 00 01 00 00 00 00 00 00 00 01 00 00",
            4096,
        ),
        (requests.write(7, bytes(1024), 512), "2a 00 00 00 00 07 00 00 02 00", 0),
        (requests.write(7, b"", 512), "2a 00 00 00 00 07 00 00 00 00", 0),
        (requests.write(7, bytes(512), 512, fua=True), "2a 08 00 00 00 07 00 00 01 00", 0),
        (requests.synchronize_cache(), "35 00 00 00 00 00 00 00 00 00", 0),
        (requests.get_lba_status(7), "9e 12 00 00 00 00 00 00 00 07 00 00 00 18 00 00", 24),
        (requests.unmap(), "42 00 00 00 00 00 00 00 08 00", 0),
        (requests.unmap((7, 2)), "42 00 00 00 00 00 00 00 18 00", 0),
    ],
    ids=lambda value: value.name if isinstance(value, Request) else "",
)
def test_cdbs(request_: Request, cdb: str, read_length: int) -> None:
    assert request_.cdb.hex(" ") == cdb
    assert request_.read_length == read_length


def test_the_list_of_unmap() -> None:
    assert requests.unmap().data_out.hex(" ") == "00 06 00 00 00 00 00 00"
    assert requests.unmap((7, 2)).data_out.hex(" ") == (
        "00 16 00 10 00 00 00 00 00 00 00 00 00 00 00 07 00 00 00 02 00 00 00 00"
    )


async def answers(result: Result) -> Result:
    return result


INVALID_FIELD = bytes.fromhex("7000050000000000000000002400")


async def test_good_or_a_finding() -> None:
    assert (await good(answers(Result(Status.GOOD, b"data")), "READ")).data == b"data"
    with pytest.raises(Finding, match="READ: RESERVATION CONFLICT") as caught:
        await good(answers(Result(Status.RESERVATION_CONFLICT)), "READ", fix="register")
    assert (caught.value.expected, caught.value.fix) == ("GOOD", "register")


async def test_a_target_failure_is_not_good() -> None:
    pending: Awaitable[Result] = answers(Result(Status.GOOD, response=1))
    with pytest.raises(Finding, match="target failure, response 01h"):
        await good(pending, "READ")


@pytest.mark.parametrize(
    ("result", "illegal"),
    [
        (Result(Status.CHECK_CONDITION, raw_sense=INVALID_FIELD), True),
        (Result(Status.CHECK_CONDITION), False),
        (Result(Status.CHECK_CONDITION, raw_sense=b"\x70\0\x06" + bytes(15)), False),
        (Result(Status.RESERVATION_CONFLICT, raw_sense=INVALID_FIELD), False),
        (Result(Status.GOOD), False),
    ],
)
def test_what_an_illegal_request_is(result: Result, illegal: bool) -> None:
    assert is_illegal_request(result) is illegal
