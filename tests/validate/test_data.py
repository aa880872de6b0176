"""Checks of the data, each against a target that fails it; and that none of it is left changed."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyiscsi_target.scsi.reservations import (
    Change,
    NexusKey,
    Request,
    ServiceAction,
    State,
)
from pyiscsi_target.scsi.task import Result, Task
from pyiscsi_target.validate import Conclusion, Verdict, data
from pyiscsi_target.validate.data import CHECKS
from pyiscsi_target.validate.gates import writes
from tests.support.broken_target import CONFLICT, Breaker, illegal_request, with_bytes
from tests.support.live import Live
from tests.support.validation import (
    Breakage,
    assert_all_covered,
    assert_fails,
    judge,
    names,
    run,
)

READ_10, WRITE_10, SYNCHRONIZE_CACHE, PR_OUT = 0x28, 0x2A, 0x35, 0x5F
FUA = 0x08
BLOCK = 512
SCRATCH_LBA = 2046


def too_slow(breaker: Breaker) -> None:
    breaker.patch.setattr(data, "_P99_MAXIMUM_S", 0.0)


def end_is_open(breaker: Breaker) -> None:
    """Reads beyond the end give zeroes."""

    def answer(task: Task) -> Result | None:
        lba = int.from_bytes(task.cdb[2:6], "big")
        return Result(data=bytes(BLOCK)) if lba >= 8192 else None

    breaker.instead(READ_10, answer)


def stale_for(node: str) -> Callable[[Breaker], None]:
    """A node reads what was there in the beginning: zeroes."""

    def bend(breaker: Breaker) -> None:
        breaker.instead(
            READ_10,
            lambda task: (
                Result(data=bytes(2 * BLOCK)) if task.nexus.initiator_name.endswith(node) else None
            ),
        )

    return bend


def no_fua(breaker: Breaker) -> None:
    breaker.instead(
        WRITE_10, lambda task: illegal_request(task, CONFLICT) if task.cdb[1] & FUA else None
    )


def fua_writes_nothing(breaker: Breaker) -> None:
    breaker.instead(WRITE_10, lambda task: Result() if task.cdb[1] & FUA else None)


def refused_and_done(breaker: Breaker) -> None:
    """RESERVATION CONFLICT, and the data is on the disk all the same."""
    unit = breaker.live.app._units["disk"]

    def answer(task: Task, result: Result) -> Result:
        if result.status == CONFLICT.status and any(map(len, task.data_out)):
            lba = int.from_bytes(task.cdb[2:6], "big")
            assert unit.store.write_now(lba * BLOCK, task.data_out)
        return result

    breaker.answer(WRITE_10, answer)


def late_write(breaker: Breaker) -> None:
    """Something of the victim reaches the disk after the first read of the new owner."""
    unit = breaker.live.app._units["disk"]
    fenced: list[bool] = []

    def remember(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
        fenced.append(True)
        return right

    def answer(task: Task, result: Result) -> Result:
        if fenced:
            result = Result(result.status, bytes(result.data or b""))
            assert unit.store.write_now(SCRATCH_LBA * BLOCK, [b"late" * (BLOCK // 4)])
        return result

    breaker.reservations(remember, ServiceAction.PREEMPT_AND_ABORT)
    breaker.answer(READ_10, answer)


BROKEN: list[Breakage] = [
    ("read-latency", too_slow),
    ("write-latency", too_slow),
    ("reservation-latency", too_slow),
    ("out-of-range", end_is_open),
    ("flush", lambda b: b.answer(SYNCHRONIZE_CACHE, illegal_request)),
    ("shared-data", stale_for("-2")),
    ("fua", no_fua),
    ("fua", fua_writes_nothing),
    ("refused-writes", lambda b: b.access(lambda *_: False)),
    ("refused-writes", refused_and_done),
    ("failover-data", stale_for("-2")),
    ("late-writes", late_write),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage, allow_writes=True)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_without_a_cache_there_is_nothing_to_flush(live: Live, breaker: Breaker) -> None:
    breaker.answer(SYNCHRONIZE_CACHE, illegal_request)
    breaker.answer(0x1A, lambda _, result: with_bytes(result, _14=0))
    result = await judge(live, "flush")
    assert (result.verdict, result.prevented) == (Verdict.SKIP, False)


# Where writing is not allowed, or what it leaves


@pytest.fixture
def content(tmp_path: Path, live: Live) -> Iterator[bytes]:
    """The disk is full of what must be there afterwards, bit for bit."""
    image = tmp_path / "disk.img"
    before = random.Random(3).randbytes(image.stat().st_size)
    image.write_bytes(before)
    yield before
    assert image.read_bytes() == before


WRITING = [check.id for check in CHECKS if writes in check.gates]


async def test_nothing_is_written_without_leave(live: Live, content: bytes) -> None:
    report = await run(live, *(check.id for check in CHECKS))
    skipped = [r.check.id for r in report.results if r.verdict is Verdict.SKIP]
    assert skipped == WRITING
    assert report.conclusion is Conclusion.READY, "it was not asked for"
    assert live.app._units["disk"].statistics.write_bytes == 0
    assert not report.writes_allowed


async def test_what_was_written_is_put_back(live: Live, content: bytes) -> None:
    report = await run(live, *WRITING, allow_writes=True)
    assert report.counts[Verdict.PASS] == len(WRITING) + 2
    assert live.app._units["disk"].statistics.write_bytes > 0
    assert "the scratch blocks hold what they held" in report.results[-1].seen


@pytest.mark.parametrize("breakage", BROKEN[5:-1], ids=names(BROKEN[5:-1]))
async def test_a_failure_leaves_nothing_either(
    live: Live, breaker: Breaker, content: bytes, breakage: Breakage
) -> None:
    await assert_fails(live, breaker, breakage, allow_writes=True)


async def test_a_refused_write_is_tried_with_the_data_that_is_there(
    live: Live, breaker: Breaker, content: bytes
) -> None:
    """With leave to write, a real block is sent: a target that takes it changes nothing."""
    sent: list[bytes] = []

    def remember(task: Task) -> None:
        sent.append(b"".join(map(bytes, task.data_out)))

    breaker.instead(WRITE_10, remember)
    breaker.access(lambda *_: False)
    result = await judge(live, "outsiders-write", allow_writes=True)
    assert result.verdict is Verdict.FAIL
    assert f"WRITE of LBA {SCRATCH_LBA}: GOOD" in result.seen
    assert sent == [content[SCRATCH_LBA * BLOCK :][:BLOCK]]
