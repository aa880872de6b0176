"""Checks of what Windows' disk driver asks first, each against a target that fails it."""

import struct
from collections.abc import Callable

import pytest

from pyiscsi_target.client import Result as Answered
from pyiscsi_target.iscsi.initiator_events import CommandFinished
from pyiscsi_target.scsi.task import Result, Task
from pyiscsi_target.validate import Verdict
from pyiscsi_target.validate.device import CHECKS
from tests.support.broken_target import Breaker, illegal_request, with_bytes
from tests.support.live import Live
from tests.support.validation import Breakage, assert_all_covered, assert_fails, judge, names

INQUIRY, MODE_SENSE_6, READ_CAPACITY_10, REPORT_LUNS = 0x12, 0x1A, 0x25, 0xA0


def standard(**at: int) -> Callable[[Breaker], None]:
    """Standard INQUIRY data with other bytes."""
    return lambda b: b.answer(
        INQUIRY, lambda _, result: with_bytes(result, **at), when=lambda task: not task.cdb[1]
    )


def mode(page: int, **at: int) -> Callable[[Breaker], None]:
    """The answer to MODE SENSE(6) of one page with other bytes; without any it is refused."""
    return lambda b: b.answer(
        MODE_SENSE_6,
        lambda task, result: with_bytes(result, **at) if at else illegal_request(task, result),
        when=lambda task: task.cdb[2] == page,
    )


def luns(*numbers: int, length: int | None = None) -> Callable[[Breaker], None]:
    """Another list of LUNs; `length` is what it says of itself."""
    data = b"".join(struct.pack(">Q", number << 48) for number in numbers)
    whole = struct.pack(">I4x", len(data) if length is None else length) + data

    def answer(task: Task, result: Result) -> Result:
        return Result(data=whole[: int.from_bytes(task.cdb[6:10], "big")])

    return lambda b: b.answer(REPORT_LUNS, answer)


def lun_0_is_silent(breaker: Breaker) -> None:
    breaker.answer(INQUIRY, illegal_request, when=lambda task: task.lun == 0)


def no_residual(breaker: Breaker) -> None:
    real = Answered.of

    def of(event: CommandFinished) -> Answered:
        event.residual_bytes = 0
        return real(event)

    breaker.patch.setattr(Answered, "of", of)


def length_follows_allocation(breaker: Breaker) -> None:
    """LUN LIST LENGTH says what fitted, not what there is."""

    def answer(task: Task, result: Result) -> Result:
        data = bytes(result.data or b"")
        return Result(data=struct.pack(">I", len(data) - 8) + data[4:])

    breaker.answer(REPORT_LUNS, answer)


def size_by_node(breaker: Breaker) -> None:
    breaker.answer(
        0x9E,
        lambda _, result: with_bytes(result, _6=0x77),
        when=lambda task: task.nexus.initiator_name.endswith("-2"),
    )


def missing_page(code: int) -> Callable[[Breaker], None]:
    return lambda b: b.page(0x00, lambda _, pages: pages.replace(bytes([code]), b""))


BROKEN: list[Breakage] = [
    ("report-luns-16", length_follows_allocation),
    ("report-luns-16", lambda b: b.answer(REPORT_LUNS, lambda *_: Result(data=bytes(4)))),
    ("report-luns-16", lambda b: b.answer(REPORT_LUNS, illegal_request)),
    ("residual", no_residual),
    ("lun-0", lun_0_is_silent),
    ("luns", luns(0, 1, 1)),
    ("luns", luns(0, 1, length=17)),
    ("inquiry", standard(_2=3)),
    ("inquiry", standard(_3=1)),
    ("inquiry", standard(_4=200)),
    ("queueing", standard(_7=0)),
    ("queueing", standard(_60=0)),
    ("capacity", lambda b: b.answer(READ_CAPACITY_10, lambda _, r: with_bytes(r, _3=9))),
    ("capacity", lambda b: b.answer(READ_CAPACITY_10, lambda *_: Result(data=bytes(7)))),
    ("capacity", size_by_node),
    ("mode-caching", mode(0x08)),
    ("mode-caching", mode(0x08, _12=0x0A)),
    ("mode-caching", mode(0x08, _3=0xF0)),
    ("mode-all", mode(0x3F)),
    ("mode-exceptions", mode(0x1C)),
    ("writable", mode(0x08, _2=0x90)),
    ("dpofua", mode(0x08, _2=0x00)),
    ("vpd-block-limits", lambda b: b.page(0xB0, lambda _, content: content[:0x0C])),
    ("vpd-block-limits", missing_page(0xB0)),
    ("vpd-characteristics", lambda b: b.page(0xB1, lambda _, content: content + bytes(4))),
    ("vpd-provisioning", missing_page(0xB2)),
    ("vpd-provisioning", lambda b: b.page(0xB2, lambda *_: b"")),
    (
        "vpd-unlisted",
        lambda b: b.answer(
            INQUIRY, lambda *_: Result(data=b"\0\0\0\0"), when=lambda task: task.cdb[2] == 0xDF
        ),
    ),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_why_is_told(live: Live, breaker: Breaker) -> None:
    mode(0x08)(breaker)
    result = await judge(live, "mode-caching")
    assert result.seen == (
        "MODE SENSE(6) of page 08h: CHECK CONDITION, ILLEGAL REQUEST,"
        " 20h/00h INVALID COMMAND OPERATION CODE"
    )
    assert result.expected == "GOOD"


async def test_a_lun_that_windows_cannot_use(live: Live, breaker: Breaker) -> None:
    luns(0, 1, 0x4100)(breaker)
    result = await judge(live, "luns")
    assert result.verdict is Verdict.WARN, "the others can be used"
    assert result.seen == "LUN 100h"


async def test_blocks_of_an_odd_size(live: Live, breaker: Breaker) -> None:
    breaker.answer(READ_CAPACITY_10, lambda _, result: with_bytes(result, _6=4))
    breaker.answer(0x9E, lambda _, result: with_bytes(result, _10=4))
    result = await judge(live, "capacity")
    assert (result.verdict, result.seen) == (Verdict.WARN, "blocks of 1024 bytes")


async def test_every_page_is_listed(live: Live, breaker: Breaker) -> None:
    breaker.page(0x00, lambda *_: bytes(range(256)))
    assert (await judge(live, "vpd-unlisted")).verdict is Verdict.SKIP
