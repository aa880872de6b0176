"""Whole validations: of a good target, a hostile one, one in use; and how they end."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.client import (
    ConnectionLost,
    Initiator,
    Portal,
    Reservations,
    Session,
    TargetUrl,
)
from pyiscsi_target.scsi.reservations import Change, NexusKey, Request, ServiceAction, State
from pyiscsi_target.scsi.target_device import TargetDevice
from pyiscsi_target.scsi.task import Result, Status, Task
from pyiscsi_target.server.targets import Acl
from pyiscsi_target.validate import (
    CHECKS,
    Check,
    CheckResult,
    Conclusion,
    Importance,
    Options,
    Report,
    Verdict,
    node_names,
    validate,
)
from pyiscsi_target.validate.model import Area, Finding, Observation, Skipped
from pyiscsi_target.validate.rig import Rig
from tests.support.broken_target import Breaker
from tests.support.fake_target import FakeTarget, fake_target
from tests.support.live import Live, config_of, serving
from tests.support.memory import TARGET_NAME
from tests.support.server import TARGET
from tests.support.validation import QUICK, checks_of, options_for, run


def not_passed(report: Report) -> dict[str, tuple[Verdict, str]]:
    return {
        r.check.id: (r.verdict, r.seen) for r in report.results if r.verdict is not Verdict.PASS
    }


PR_AREAS = (Area.REGISTRATION, Area.RESERVATION)


def broke(report: Report) -> list[str]:
    return [r.seen for r in report.results if "the check itself broke" in r.seen]


NO_ODX = {"odx": (Verdict.SKIP, "ODX is not offered (page 8Fh is not listed)")}


# A good target


async def test_this_server_is_ready(live: Live, tmp_path: Path) -> None:
    """All checks, with writes; afterwards everything is as it was."""
    image = tmp_path / "disk.img"
    before = random.Random(1).randbytes(image.stat().st_size)
    image.write_bytes(before)
    report = await validate(options_for(live, allow_writes=True))
    assert not_passed(report) == NO_ODX
    assert report.conclusion is Conclusion.READY
    assert [r.check.id for r in report.results] == [*(c.id for c in CHECKS), "clean-up"]
    assert image.read_bytes() == before
    reservations = live.app._units["disk"].reservations
    assert (reservations.registrations, reservations.reservation) == ({}, None)


@pytest.mark.parametrize("count", [2, 8])
async def test_few_and_many_nodes(live: Live, count: int) -> None:
    """Without writes: what would write is skipped, and only that."""
    report = await validate(options_for(live, initiator_names=node_names(count)))
    missing = not_passed(report)
    assert missing.pop("odx")
    assert {seen for _, seen in missing.values()} == {
        "writes to the disk; run again with --allow-writes"
    }
    assert report.conclusion is Conclusion.READY
    assert [len(node.nexuses) for node in report.nodes] == [2, 2, *[1] * (count - 2)]


async def test_one_portal_and_one_disk_of_4096_byte_blocks(tmp_path: Path) -> None:
    disk = {"path": "ram:", "size": "8 MiB", "block_size": 4096}
    async with serving(config_of(tmp_path, disks={"disk": disk}), tmp_path) as live:
        report = await validate(options_for(live, allow_writes=True))
    assert not_passed(report).keys() == {"names-unique", "same-on-paths", "odx"}
    assert report.target.block_size == 4096


async def test_one_name_for_all_nodes(live: Live) -> None:
    """Nexuses differ by ISID, so one name is enough where a target admits no more."""
    names = node_names(3, ("iqn.2026-11.lab.example:only",))
    report = await validate(options_for(live, initiator_names=names))
    assert report.conclusion is Conclusion.READY


async def test_what_the_head_of_the_report_says(live: Live) -> None:
    report = await run(live, "inquiry", lun=1)
    target = report.target
    assert (target.name, target.lun, target.disks) == (TARGET, 1, (0, 1))
    assert (target.vendor, target.product, target.revision) == ("PYISCSI", "Virtual Disk", "0001")
    assert len(target.serial) == 16
    assert (target.size_bytes, target.block_size) == (4 << 20, 512)
    assert len(target.portals) == 2
    assert report.duration_s > 0
    assert not report.interrupted


# A disk that cannot be written


@pytest.mark.parametrize("allow_writes", [False, True])
async def test_write_protection_fails_one_check(tmp_path: Path, allow_writes: bool) -> None:
    """What needs a write to succeed is skipped: the failure does not spread."""
    (tmp_path / "disk.img").write_bytes(bytes(4 << 20))
    disk = {"path": "disk.img", "read_only": True}
    async with serving(config_of(tmp_path, disks={"disk": disk}), tmp_path) as live:
        report = await validate(options_for(live, allow_writes=allow_writes))
    missing = not_passed(report)
    assert missing.pop("writable")[0] is Verdict.FAIL
    assert {verdict for verdict, _ in missing.values()} == {Verdict.SKIP}
    protected = {id for id, (_, seen) in missing.items() if "is write protected" in seen}
    assert missing.keys() - protected == {"names-unique", "same-on-paths", "odx"}
    assert protected >= {"registrants-write", "preempt-fences", "each-node", "late-writes", "unmap"}
    assert report.conclusion is Conclusion.NOT_READY


# A target that lets nobody in


async def test_a_target_that_does_not_exist_ends_at_the_login(live: Live) -> None:
    options = options_for(live)
    url = replace(options.url, target="iqn.2026-11.lab.example:nowhere")
    seen: list[str] = []
    report = await validate(
        replace(options, url=url), on_progress=lambda check, _: seen.append(check.id)
    )
    assert [r.check.id for r in report.results] == ["discovery", "login", "clean-up"]
    assert list(dict.fromkeys(seen)) == ["discovery", "login", "clean-up"]
    assert [r.verdict for r in report.results] == [Verdict.FAIL, Verdict.FAIL, Verdict.PASS]
    assert report.refused.startswith(f"no node can log in to {url.target}: 127.0.0.1:")
    assert "status 0203h: not found" in report.refused
    assert f"check the target's name (the portal offers {TARGET})" in report.refused
    assert report.headline == f"NOT READY for a cluster: {report.refused}"
    assert (report.interrupted, report.conclusion) == (False, Conclusion.NOT_READY)


# A disk that others use


async def test_a_disk_in_use_is_not_touched(live: Live) -> None:
    unit = live.app._units["disk"]
    async with Session.connect(Portal(*live.address()), TARGET) as session:
        await session.ready(0)
        await Reservations(session, 0).register(0xF00D)
        before, written = unit.reservations, unit.statistics.write_bytes
        report = await validate(options_for(live, allow_writes=True))
        assert unit.reservations == before
        assert unit.statistics.write_bytes == written
        assert await session.ready(0) == []
    assert report.conclusion is Conclusion.UNPROVEN
    assert report.counts[Verdict.FAIL] == 0
    in_use = [r for r in report.results if r.seen.startswith("the disk is in use: others are")]
    assert {r.check.area for r in in_use} >= {Area.RESERVATION, Area.ARBITRATION, Area.DATA}
    assert all((r.verdict, r.prevented) == (Verdict.SKIP, True) for r in in_use)
    assert report.results[-1].verdict is Verdict.PASS


async def test_others_come_in_the_midst_of_it(live: Live, breaker: Breaker) -> None:
    """What looks like a fault then is none; and their registration stays."""
    stranger = ("iqn.2026-11.lab.example:other,i,0x400001370000", 1)

    def one_more(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
        registrations = {**right.state.registrations, stranger: 0xF00D}
        return replace(right, state=replace(right.state, registrations=registrations))

    breaker.reservations(one_more, ServiceAction.RESERVE)
    report = await run(live, "register-all", "reserve", "one-owner", "clear")
    register_all, reserve, *rest = report.results[1:-1]
    assert register_all.verdict is Verdict.PASS
    assert (reserve.verdict, reserve.prevented) == (Verdict.PASS, False), "READ KEYS is not asked"
    assert {(r.verdict, r.prevented) for r in rest} == {(Verdict.SKIP, True)}
    assert stranger in live.app._units["disk"].reservations.registrations


async def test_a_failure_because_others_came_is_none(live: Live, breaker: Breaker) -> None:
    stranger = ("iqn.2026-11.lab.example:other,i,0x400001370000", 1)

    def one_more(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
        registrations = {**right.state.registrations, stranger: 0xF00D}
        return replace(right, state=replace(right.state, registrations=registrations))

    breaker.reservations(one_more, ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY)
    report = await run(live, "register", "clear")
    register, clear = report.results[1:3]
    assert (register.verdict, register.prevented) == (Verdict.SKIP, True)
    assert register.seen.startswith("others have registered during the validation: 0000")
    assert clear.seen == register.seen


# Hostile targets


async def hostile(fake: FakeTarget) -> Report:
    fields = {**QUICK, "timeout_s": 0.2}
    return await validate(Options(TargetUrl(fake.portal, TARGET_NAME), **fields))


def assert_first_fails(report: Report) -> None:
    """The first check that meets the fault tells it; nothing hangs on after that."""
    assert report.conclusion is Conclusion.NOT_READY
    assert not broke(report)
    assert len(report.results) == len(CHECKS) + 1


async def test_nobody_listens() -> None:
    with pytest.raises(ConnectionLost, match="Connection refused"):
        await validate(Options(TargetUrl(Portal("127.0.0.1", 1), TARGET_NAME)))


async def test_a_target_that_never_answers() -> None:
    async with fake_target() as fake:
        fake.silent = True
        report = await hostile(fake)
    assert_first_fails(report)
    discovery, login, stay = report.results[:3]
    assert "no login within 0.2 s" in discovery.seen
    assert login.verdict is Verdict.FAIL
    assert (stay.verdict, stay.prevented) == (Verdict.SKIP, True)
    assert "node 1 (iqn.2026-11.org.pyiscsi-target:validate-node-1) could not" in stay.seen


async def test_a_target_that_talks_nonsense() -> None:
    async with fake_target() as fake:
        fake.script = lambda data: random.Random(len(data)).randbytes(200)
        report = await hostile(fake)
    assert_first_fails(report)
    assert "protocol violated" in report.results[0].seen


async def test_a_target_that_hangs_up() -> None:
    async with fake_target() as fake:
        fake.script = lambda data: None
        report = await hostile(fake)
    assert_first_fails(report)


async def test_a_target_that_hangs_after_login(live: Live, breaker: Breaker) -> None:
    """Every command is taken and none is answered."""
    release = asyncio.Event()

    async def never(task: Task) -> Result:
        await release.wait()
        return Result()

    breaker.patch.setattr(TargetDevice, "execute", lambda device, task: never(task))
    report = await validate(options_for(live, timeout_s=0.2))
    release.set()
    assert report.conclusion is Conclusion.NOT_READY
    assert not broke(report)
    late = [r.seen for r in report.results if "no answer to a command to LUN" in r.seen]
    assert late


@pytest.mark.parametrize("seed", range(6))
async def test_a_target_that_answers_anything(live: Live, breaker: Breaker, seed: int) -> None:
    """Random data, statuses and sense: verdicts, and nothing else."""
    chance = random.Random(seed)
    real = TargetDevice.execute

    def execute(device: TargetDevice, task: Task) -> object:
        if chance.random() < 0.5:
            return real(device, task)
        status = chance.choice([*Status, 0x77, Status.GOOD, Status.GOOD])
        if status in (Status.BUSY, Status.TASK_SET_FULL):
            status = Status.GOOD
        data = chance.randbytes(chance.choice((0, 1, 4, 8, 36, 255, 1000)))
        sense = chance.randbytes(18) if chance.random() < 0.5 else b"\x70\0\x05" + bytes(15)
        return Result(status, data, sense if status == Status.CHECK_CONDITION else b"")

    breaker.patch.setattr(TargetDevice, "execute", execute)
    checks = [check for check in CHECKS if check.area is not Area.DATA]
    report = await validate(options_for(live, timeout_s=1.0), checks=checks)
    assert not broke(report)
    assert report.conclusion is Conclusion.NOT_READY


async def test_a_target_that_is_gone_in_the_midst(live: Live) -> None:
    def gone(check: Check, result: CheckResult | None) -> None:
        if check.id == "register":
            live.app._close_portals()
            for connection in list(live.app._connections):
                connection.close("gone")

    report = await validate(
        options_for(live, timeout_s=1.0),
        checks=checks_of("inquiry", "register", "reserve"),
        on_progress=gone,
    )
    await live.until(lambda: not live.app._connections)
    register, reserve = (r for r in report.results if r.check.area in PR_AREAS)
    assert register.verdict is Verdict.FAIL
    assert (reserve.verdict, reserve.prevented) == (Verdict.SKIP, True)
    assert "no connection" in reserve.seen
    assert not broke(report)


# One check


def check_that(run: Callable[[Rig], object], **fields: object) -> Check:
    async def function(rig: Rig) -> Observation | str:
        outcome = run(rig)
        if isinstance(outcome, Exception):
            raise outcome
        if isinstance(outcome, float):
            await asyncio.sleep(outcome)
        return outcome if isinstance(outcome, Observation) else "seen"

    importance = fields.pop("importance", Importance.REQUIRED)
    assert isinstance(importance, Importance)
    return Check(
        "x", Area.DEVICE, "A title", "a proof", "a clause", importance, function, fix="mend"
    )


async def judge_one(live: Live, check: Check, **more: Any) -> CheckResult:
    report = await validate(options_for(live, **more), checks=[check])
    return report.results[0]


@pytest.mark.parametrize(
    ("importance", "warns", "verdict"),
    [
        (Importance.REQUIRED, False, Verdict.FAIL),
        (Importance.REQUIRED, True, Verdict.WARN),
        (Importance.RECOMMENDED, False, Verdict.WARN),
        (Importance.INFORMATIONAL, False, Verdict.WARN),
    ],
)
async def test_what_a_finding_means(
    live: Live, importance: Importance, warns: bool, verdict: Verdict
) -> None:
    finding = Finding("three", "four", warns=warns)
    result = await judge_one(live, check_that(lambda rig: finding, importance=importance))
    assert (result.verdict, result.seen, result.expected) == (verdict, "three", "four")
    assert result.fix == "mend"


async def test_a_finding_knows_better_how_to_mend(live: Live) -> None:
    result = await judge_one(live, check_that(lambda rig: Finding("3", "4", fix="count")))
    assert result.fix == "count"


async def test_figures_are_kept(live: Live) -> None:
    result = await judge_one(live, check_that(lambda rig: Observation("fast", {"p50_s": 0.1})))
    assert (result.verdict, result.seen, dict(result.figures)) == (
        Verdict.PASS,
        "fast",
        {"p50_s": 0.1},
    )


async def test_what_a_target_said_is_made_harmless(live: Live) -> None:
    result = await judge_one(live, check_that(lambda rig: Finding("\x1b[2J\n", "\x07")))
    assert (result.seen, result.expected) == ("\ufffd[2J\ufffd", "\ufffd")


async def test_a_check_has_its_time(live: Live) -> None:
    result = await judge_one(live, check_that(lambda rig: 60.0), check_timeout_s=0.05)
    assert (result.verdict, result.seen) == (Verdict.FAIL, "not done within 0.05 s")


async def test_a_check_that_breaks_says_so(live: Live, caplog: pytest.LogCaptureFixture) -> None:
    live.allowed_error = "check x broke"
    result = await judge_one(live, check_that(lambda rig: ZeroDivisionError("0")))
    assert result.verdict is Verdict.FAIL
    assert result.seen == "the check itself broke (ZeroDivisionError: 0); please report this"
    assert "check x broke" in caplog.text


async def test_a_check_may_have_nothing_to_say(live: Live) -> None:
    result = await judge_one(live, check_that(lambda rig: Skipped("not here")))
    assert (result.verdict, result.seen, result.prevented) == (Verdict.SKIP, "not here", False)


# Its end


async def interrupt(live: Live, check_id: str, *, times: int = 1) -> Report:
    """Cancel when a check is about to run; `times` more than once also hits the clean-up."""

    def on_progress(check: Check, result: CheckResult | None) -> None:
        task = asyncio.current_task()
        if result is None and check.id == check_id:
            assert task is not None
            task.cancel()
            for again in range(1, times):
                asyncio.get_running_loop().call_later(0.001 * again, task.cancel)

    return await validate(options_for(live), on_progress=on_progress)


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize(
    "check_id", ["discovery", "login", "reserve", "preempt-paths", "loss", "simultaneous-failover"]
)
async def test_an_interrupted_validation_cleans_up(live: Live, check_id: str, times: int) -> None:
    report = await interrupt(live, check_id, times=times)
    assert report.interrupted
    done = [check.id for check in CHECKS].index(check_id)
    after = report.results[done:-1]
    assert {(r.verdict, r.seen, r.prevented) for r in after} == {
        (Verdict.SKIP, "interrupted", True)
    }
    assert report.results[-1].check.id == "clean-up"
    assert report.results[-1].verdict is Verdict.PASS
    reservations = live.app._units["disk"].reservations
    assert (reservations.registrations, reservations.reservation) == ({}, None)
    assert report.target.size_bytes == (None if check_id in ("discovery", "login") else 4 << 20)


async def test_an_interrupted_write_is_put_back(
    live: Live, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the midst of a check, while the scratch blocks hold something else."""
    image = tmp_path / "disk.img"
    before = random.Random(2).randbytes(image.stat().st_size)
    image.write_bytes(before)
    real = Rig.write_scratch

    async def write_and_stop(rig: Rig, *arguments: object, **more: object) -> None:
        await real(rig, *arguments, **more)  # type: ignore[arg-type]
        task = asyncio.current_task()
        if not rig.gave_up and task is not None and task is running:
            assert image.read_bytes() != before
            task.cancel()

    monkeypatch.setattr(Rig, "write_scratch", write_and_stop)
    running = asyncio.ensure_future(
        validate(options_for(live, allow_writes=True), checks=checks_of("shared-data"))
    )
    report = await running
    assert report.interrupted
    assert image.read_bytes() == before
    assert "the scratch blocks hold what they held" in report.results[-1].seen


async def test_what_could_not_be_put_back_is_told(live: Live, breaker: Breaker) -> None:
    """The target lets nobody in any more: a registration is left, and the report says so."""

    def on_progress(check: Check, result: CheckResult | None) -> None:
        if check.id == "loss" and result is None:
            breaker.patch.setattr(Acl, "admit", lambda *_: None)

    report = await validate(
        options_for(live), checks=checks_of("register", "loss"), on_progress=on_progress
    )
    clean_up = report.results[-1]
    assert clean_up.verdict is Verdict.FAIL
    assert "login of node 1" in clean_up.seen
    assert "run validate again with the same initiator names" in clean_up.fix


async def test_the_clean_up_tries_once(live: Live, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has its time, which is bounded: no second attempt comes after it."""
    attempts = []

    async def fails(rig: Rig) -> None:
        attempts.append(rig)
        raise Finding("other data", "what they held")

    def leave_changed(rig: Rig) -> str:
        rig.scratch_changed = True
        monkeypatch.setattr(Rig, "restore_scratch", fails)
        return "seen"

    report = await validate(options_for(live), checks=[check_that(leave_changed)])
    check, clean_up = report.results
    assert (check.verdict, clean_up.verdict) == (Verdict.FAIL, Verdict.FAIL)
    assert "scratch blocks: other data" in clean_up.seen
    # After the check, once more because it then counts as failed, and in the clean-up.
    assert len(attempts) == 3


async def test_the_next_run_removes_what_a_killed_one_left(live: Live) -> None:
    initiator = Initiator(node_names(2)[0], b"\x80VAL\x01\x01")
    async with Session.connect(Portal(*live.address()), TARGET, initiator) as session:
        await session.ready(0)
        await Reservations(session, 0).register(0xABCDEF0170795661)
    report = await run(live, "register")
    assert report.counts[Verdict.PASS] == len(report.results)
    assert not live.app._units["disk"].reservations.registrations
