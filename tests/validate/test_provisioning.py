"""Checks of thin provisioning and copy offload, each against a target that fails it."""

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiscsi_target.scsi.task import Nexus, Result, Task
from pyiscsi_target.validate import Verdict
from pyiscsi_target.validate.provisioning import CHECKS
from tests.support.broken_target import Breaker, illegal_request, with_bytes
from tests.support.live import MIB, Live, config_of, serving
from tests.support.validation import (
    Breakage,
    assert_all_covered,
    assert_fails,
    judge,
    names,
    run,
)

INQUIRY, UNMAP, SERVICE_ACTION_IN = 0x12, 0x42, 0x9E
READ_CAPACITY_16, GET_LBA_STATUS = 0x10, 0x12
BLOCK, SCRATCH_LBA = 512, 2046


def copy_descriptor(kind: int, content: bytes) -> bytes:
    return struct.pack(">HH", kind, len(content)) + content


def commands_descriptor(*commands: bytes) -> bytes:
    listed = b"".join(commands)
    return copy_descriptor(0x0001, bytes([len(listed)]) + listed)


LIMITS = copy_descriptor(0x0000, bytes(0x20))
COMMANDS = commands_descriptor(b"\x83\x02\x10\x11", b"\x84\x01\x07")


def offering_copies(page: bytes, *, flag: int = 0x08) -> Callable[[Breaker], None]:
    """A disk with page 8Fh and the 3PC bit."""

    def bend(breaker: Breaker) -> None:
        breaker.page(0x8F, lambda *_: page)
        breaker.answer(
            INQUIRY,
            lambda _, result: with_bytes(result, _5=flag),
            when=lambda task: not task.cdb[1],
        )

    return bend


def not_thin(task: Task, result: Result) -> Result:
    return with_bytes(result, _14=0)


def is_capacity(task: Task) -> bool:
    return task.cdb[1] == READ_CAPACITY_16


def is_lba_status(task: Task) -> bool:
    return task.cdb[1] == GET_LBA_STATUS


def other_page(code: int, position: int, value: int) -> Callable[[Breaker], None]:
    def content(nexus: Nexus, real: bytes) -> bytes:
        return real[:position] + bytes([value]) + real[position + 1 :]

    return lambda b: b.page(code, content)


def unmaps_more(breaker: Breaker) -> None:
    unit = breaker.live.app._units["disk"]

    def answer(task: Task, result: Result) -> Result:
        assert unit.store.write_now((SCRATCH_LBA - 1) * BLOCK, [b"\xee" * BLOCK])
        return result

    breaker.answer(UNMAP, answer)


def unmaps_to_garbage(breaker: Breaker) -> None:
    unit = breaker.live.app._units["disk"]

    def answer(task: Task, result: Result) -> Result:
        assert unit.store.write_now(SCRATCH_LBA * BLOCK, [b"\xee" * BLOCK])
        return result

    breaker.answer(UNMAP, answer)


BROKEN: list[Breakage] = [
    ("thin", other_page(0xB2, 2, 0)),
    ("thin", lambda b: b.page(0x00, lambda _, pages: pages.replace(b"\xb2", b""))),
    ("thin", lambda b: b.answer(SERVICE_ACTION_IN, not_thin, when=is_capacity)),
    ("thin", lambda b: b.page(0xB0, lambda _, real: real[:16] + bytes(8) + real[24:])),
    ("thin", lambda b: b.page(0xB0, lambda _, real: real[:12])),
    ("lba-status", lambda b: b.answer(SERVICE_ACTION_IN, illegal_request, when=is_lba_status)),
    (
        "lba-status",
        lambda b: b.answer(
            SERVICE_ACTION_IN, lambda *_: Result(data=bytes(24)), when=is_lba_status
        ),
    ),
    (
        "lba-status",
        lambda b: b.answer(SERVICE_ACTION_IN, lambda *_: Result(data=bytes(8)), when=is_lba_status),
    ),
    ("unmap", unmaps_more),
    ("unmap", unmaps_to_garbage),
    ("unmap", lambda b: b.answer(UNMAP, illegal_request)),
    ("odx", offering_copies(LIMITS + COMMANDS, flag=0)),
    ("odx", offering_copies(COMMANDS)),
    ("odx", offering_copies(LIMITS)),
    ("odx", offering_copies(LIMITS + commands_descriptor(b"\x83\x01\x10"))),
    ("odx", offering_copies(LIMITS + b"\0")),
    ("odx", offering_copies(LIMITS[:-1])),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage, allow_writes=True)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_copies_that_are_offered_whole(live: Live, breaker: Breaker) -> None:
    offering_copies(LIMITS + COMMANDS)(breaker)
    result = await judge(live, "odx")
    assert (result.verdict, result.seen) == (
        Verdict.PASS,
        "2 descriptors, all commands of ODX",
    )


async def test_a_full_disk_is_as_good(tmp_path: Path) -> None:
    """Nothing is offered, so nothing is missing."""
    disk = {"path": "disk.img", "size": 4 * MIB, "thin": False}
    async with serving(config_of(tmp_path, disks={"disk": disk}), tmp_path) as live:
        report = await run(live, *(check.id for check in CHECKS), allow_writes=True)
    found = {r.check.id: (r.verdict, r.prevented) for r in report.results}
    assert {found[check.id] for check in CHECKS} == {(Verdict.SKIP, False)}


async def test_a_disk_that_unmaps_in_larger_pieces(live: Live, breaker: Breaker) -> None:
    """UNMAP of less than that may leave the data as it is."""
    breaker.instead(UNMAP, lambda task: Result())
    result = await judge(live, "unmap", allow_writes=True)
    assert result.verdict is Verdict.PASS
    assert "smaller than what the disk can deallocate" in result.seen
