"""Checks of who a disk is, each against a target that fails it."""

import itertools
from collections import defaultdict
from pathlib import Path

import pytest

from pyiscsi_target.scsi import vpd
from pyiscsi_target.scsi.task import Nexus
from pyiscsi_target.validate import Verdict
from pyiscsi_target.validate.identity import CHECKS, Designator, parse_designators
from pyiscsi_target.validate.model import Finding
from tests.support.broken_target import Breaker, illegal_request, with_bytes
from tests.support.live import Live, config_of, serving
from tests.support.validation import Breakage, assert_all_covered, assert_fails, names, run

T10, EUI64, NAA, RELATIVE_PORT, NAME = 1, 2, 3, 4, 8
BINARY, ASCII, UTF8 = 1, 2, 3


def descriptor(kind: int, code_set: int, value: bytes, association: int = 0) -> bytes:
    return bytes((code_set, association << 4 | kind, 0, len(value))) + value


GOOD_NAA = descriptor(NAA, BINARY, bytes.fromhex("3000000000000001"))
GOOD_EUI = descriptor(EUI64, BINARY, bytes.fromhex("0200000000000001"))
GOOD_PORT = descriptor(RELATIVE_PORT, BINARY, bytes((0, 0, 0, 1)), association=1)


def another_name(unique: int) -> bytes:
    return descriptor(NAA, BINARY, (3 << 60 | unique).to_bytes(8, "big"))


def new_name_for_each_session(breaker: Breaker) -> None:
    numbers: dict[int, int] = defaultdict(itertools.count(1).__next__)
    seen: list[Nexus] = []  # kept, so that no two have the same id

    def content(nexus: Nexus, real: bytes) -> bytes:
        seen.append(nexus)
        return another_name(numbers[id(nexus)])

    breaker.page(0x83, content)


BROKEN: list[Breakage] = [
    ("vpd-pages", lambda b: b.page(0x00, lambda _, pages: pages[::-1])),
    ("vpd-pages", lambda b: b.page(0x00, lambda _, pages: b"\x80" + pages)),
    ("vpd-pages", lambda b: b.page(0x00, lambda _, pages: pages.replace(b"\x83", b""))),
    ("vpd-pages", lambda b: b.page(0x00, lambda _, pages: pages + b"\xff")),
    ("vpd-pages", lambda b: b.page(0x00, lambda _, pages: b"")),
    (
        "vpd-pages",
        lambda b: b.answer(
            0x12,
            lambda _, result: with_bytes(result, _3=200),
            when=lambda task: task.cdb[2] == 0x80,
        ),
    ),
    ("serial-number", lambda b: b.page(0x80, lambda *_: b"    ")),
    ("serial-number", lambda b: b.page(0x80, lambda *_: b"S\x1b[2J")),
    ("serial-number", lambda b: b.page(0x00, lambda _, pages: pages.replace(b"\x80", b""))),
    ("world-wide-name", lambda b: b.designations(lambda lu: descriptor(T10, ASCII, b"LAB"))),
    ("world-wide-name", lambda b: b.designations(lambda lu: b"")),
    (
        "world-wide-name",
        lambda b: b.answer(0x12, illegal_request, when=lambda task: task.cdb[2] == 0x83),
    ),
    (
        "designators-sound",
        lambda b: b.designations(lambda lu: GOOD_NAA + descriptor(EUI64, ASCII, bytes(8))),
    ),
    ("designators-sound", lambda b: b.page(0x83, lambda _, content: content + b"\x01\x03\x00\x08")),
    ("names-unique", lambda b: b.designations(lambda lu: GOOD_NAA)),
    (
        "same-for-nodes",
        lambda b: b.page(0x83, lambda n, _: another_name(hash(n.initiator_name) % 99)),
    ),
    ("same-for-nodes", lambda b: b.page(0x80, lambda n, _: n.initiator_name[-8:].encode())),
    ("same-on-paths", lambda b: b.page(0x83, lambda n, _: another_name(n.relative_target_port))),
    ("same-after-reconnect", new_name_for_each_session),
    ("target-port", lambda b: b.patch.setattr(vpd, "target_designations", lambda nexus: b"")),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


@pytest.mark.parametrize(
    ("raw", "flaw"),
    [
        (GOOD_NAA, ""),
        (GOOD_EUI, ""),
        (descriptor(NAA, BINARY, b"\x60" + bytes(15)), ""),
        (descriptor(NAME, UTF8, b"naa.3000000000000001\0\0\0\0"), ""),
        (descriptor(NAME, UTF8, b"disk"), "a SCSI name string that is none"),
        (descriptor(NAME, ASCII, b"naa."), "SCSI name with code set 2 instead of 3"),
        (descriptor(NAA, ASCII, bytes(8)), "NAA with code set 2 instead of 1"),
        (descriptor(NAA, BINARY, b""), "NAA of an unknown kind (nothing)"),
        (descriptor(NAA, BINARY, b"\x10" + bytes(7)), "NAA of an unknown kind (10 00"),
        (descriptor(NAA, BINARY, b"\x60" + bytes(7)), "NAA of 8 bytes"),
        (descriptor(EUI64, BINARY, bytes(9)), "EUI-64 of 9 bytes"),
        (descriptor(T10, ASCII, b"LAB"), "type 1 is no world wide name"),
    ],
)
def test_what_a_world_wide_name_is(raw: bytes, flaw: str) -> None:
    (parsed,) = parse_designators(raw)
    assert parsed.flaw.startswith(flaw)
    assert bool(parsed.flaw) == bool(flaw)


def test_designators_are_parsed() -> None:
    found = parse_designators(GOOD_NAA + GOOD_PORT)
    assert found == [
        Designator(0, NAA, BINARY, bytes.fromhex("3000000000000001")),
        Designator(1, RELATIVE_PORT, BINARY, bytes((0, 0, 0, 1))),
    ]


@pytest.mark.parametrize("raw", [b"\x01", GOOD_NAA[:-1], GOOD_NAA + b"\x01\x03\x00"])
def test_a_page_that_ends_within_a_descriptor(raw: bytes) -> None:
    with pytest.raises(Finding, match="beyond the page"):
        parse_designators(raw)


async def test_two_portals_with_one_port_number(live: Live, breaker: Breaker) -> None:
    """Paths that cannot be told apart."""
    assert (await run(live, "second-session", "target-port")).counts[Verdict.PASS] == 4
    breaker.patch.setattr(vpd, "target_designations", lambda nexus: GOOD_PORT)
    report = await run(live, "second-session", "target-port")
    (result,) = (r for r in report.results if r.check.id == "target-port")
    assert result.verdict is Verdict.WARN
    assert result.seen.startswith("relative target port 1 at ")


async def test_one_disk_and_one_portal(tmp_path: Path) -> None:
    """There is nothing to compare."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        report = await run(live, "names-unique", "same-on-paths")
    results = {r.check.id: (r.verdict, r.seen, r.prevented) for r in report.results}
    assert results["names-unique"] == (Verdict.SKIP, "the target shows one disk only", False)
    assert results["same-on-paths"] == (Verdict.SKIP, "there is one path to the target only", False)
