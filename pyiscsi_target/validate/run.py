"""A validation from beginning to end: the checks in their order, each bounded, and the clean-up.

Whatever a target does, a check ends with a verdict; whatever ends the validation, what these nodes
registered is taken away again.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from ..client import ClientError
from ..client.answers import inquiry_length
from . import requests
from .gates import free_disk
from .identity import SERIAL_NUMBER, read_page
from .model import (
    Area,
    Check,
    CheckResult,
    Finding,
    Importance,
    Observation,
    Report,
    Skipped,
    TargetFacts,
    Verdict,
)
from .rig import Options, Rig, reach
from .table import CHECKS
from .wording import describe_keys, printable

CLEAN_UP_TIMEOUT_S = 60.0

_log = logging.getLogger(__name__)

Progress = Callable[[Check, CheckResult | None], None]


def no_progress(check: Check, result: CheckResult | None) -> None:
    """Tell nobody."""


async def validate(
    options: Options, *, checks: Sequence[Check] = CHECKS, on_progress: Progress = no_progress
) -> Report:
    """Run the checks against a target, and clean up.

    `on_progress` is called with each check before it runs (None) and after. Cancelling ends the
    validation early: it cleans up all the same and returns the report of what was done, with
    `interrupted` set. Where every node's login is refused it ends there, and the report says so
    with `refused`. Raises ConnectionLost where nobody listens at the portal.
    """
    await reach(options.url.portal, options.timeout_s)
    rig = Rig(options)
    started_at, begun_s = datetime.now(UTC), time.monotonic()
    results: list[CheckResult] = []
    interrupted = False
    try:
        for check in checks:
            on_progress(check, None)
            results.append(await _judge(check, rig))
            on_progress(check, results[-1])
            if rig.refused:
                break
        about = await _about(rig)
    except asyncio.CancelledError:
        interrupted = True
        about = _known(rig)
        _forget_cancelling()
    if not rig.refused:
        results += [_interrupted(check) for check in checks[len(results) :]]
    results.append(await _clean_up(rig))
    on_progress(results[-1].check, results[-1])
    return Report(
        target=about,
        nodes=rig.node_facts(),
        results=results,
        started_at=started_at,
        duration_s=time.monotonic() - begun_s,
        writes_allowed=options.allow_writes,
        interrupted=interrupted,
        refused=printable(rig.refused, limit=_SEEN_MAXIMUM),
    )


def _forget_cancelling() -> None:
    """Take the cancellation as heard: the report is still to come."""
    task = asyncio.current_task()
    if task is not None:
        task.uncancel()


# One check


async def _judge(check: Check, rig: Rig) -> CheckResult:
    begun_s = time.monotonic()
    result = await _attempt(check, rig)
    if result.verdict is Verdict.FAIL and free_disk in check.gates:
        result = await _excuse(result, rig)
    return replace(
        result,
        seen=printable(result.seen, limit=_SEEN_MAXIMUM),
        expected=printable(result.expected, limit=_SEEN_MAXIMUM),
        duration_s=time.monotonic() - begun_s,
    )


_SEEN_MAXIMUM = 2000  # characters


async def _attempt(check: Check, rig: Rig) -> CheckResult:
    """Run a check, and turn whatever comes of it into a result."""
    try:
        async with asyncio.timeout(rig.options.check_timeout_s):
            for gate in check.gates:
                await gate(rig)
            outcome = await check.run(rig)
            await _restore(rig)
    except Skipped as skip:
        return CheckResult(check, Verdict.SKIP, skip.reason, prevented=skip.prevented)
    except Finding as finding:
        if check is not _CLEAN_UP:  # that has tried, and its time is bounded
            await _restore_if_possible(rig)
        return _found(check, finding)
    except (ClientError, TimeoutError) as error:
        rig.drop_all()
        seen = str(error) or f"not done within {rig.options.check_timeout_s:g} s"
        return _found(check, Finding(seen, "an answer to every command"))
    except Exception as error:
        _log.exception("check %s broke", check.id)
        rig.drop_all()
        seen = f"the check itself broke ({type(error).__name__}: {error}); please report this"
        return _found(check, Finding(seen, "an answer that can be understood"))
    if isinstance(outcome, str):
        outcome = Observation(outcome)
    return CheckResult(check, Verdict.PASS, outcome.seen, figures=outcome.figures)


def _found(check: Check, finding: Finding) -> CheckResult:
    required = check.importance is Importance.REQUIRED and not finding.warns
    return CheckResult(
        check,
        Verdict.FAIL if required else Verdict.WARN,
        finding.seen,
        finding.expected,
        finding.fix or check.fix,
    )


async def _restore(rig: Rig) -> None:
    """Put the scratch blocks back after each check that changed them, not only at the end."""
    if rig.scratch_changed:
        await free_disk(rig)  # a reservation may keep even node 1 from writing
        await rig.restore_scratch()


async def _restore_if_possible(rig: Rig) -> None:
    try:
        async with asyncio.timeout(rig.options.check_timeout_s):
            await _restore(rig)
    except (ClientError, TimeoutError, Finding, Skipped):
        _log.debug("scratch blocks are left to the clean-up", exc_info=True)


async def _excuse(result: CheckResult, rig: Rig) -> CheckResult:
    """A failure means nothing if somebody else has come and registered meanwhile."""
    try:
        others = await rig.strangers() if rig.first.connected else []
    except (ClientError, Finding):
        return result
    if not others:
        return result
    rig.in_use = f"others have registered during the validation: {describe_keys(others)}"
    return replace(
        result, verdict=Verdict.SKIP, seen=rig.in_use, expected="", fix="", prevented=True
    )


def _interrupted(check: Check) -> CheckResult:
    return CheckResult(check, Verdict.SKIP, "interrupted", prevented=True)


# The end

_CLEAN_UP = Check(
    "clean-up",
    Area.CLEAN_UP,
    "Everything is as it was found",
    "no registration, reservation or data of the validation is left",
    "",
    Importance.REQUIRED,
    lambda rig: _put_back(rig),
    fix="run validate again with the same initiator names: it removes what it finds of itself",
)


async def _put_back(rig: Rig) -> str:
    async with asyncio.timeout(CLEAN_UP_TIMEOUT_S):
        problems = await rig.clean_up()
    if problems:
        raise Finding("; ".join(problems), "nothing is left behind")
    touched = "the scratch blocks hold what they held" if rig.scratch_before else "nothing written"
    return f"no registrations left, {touched}"


async def _clean_up(rig: Rig) -> CheckResult:
    """The clean-up goes to its end even if the validation is cancelled once more."""
    cleaning = asyncio.ensure_future(_judge(_CLEAN_UP, rig))
    while True:
        try:
            return await asyncio.shield(cleaning)
        except asyncio.CancelledError:
            if cleaning.cancelled():
                raise
            _forget_cancelling()


def _known(rig: Rig) -> TargetFacts:
    """What is known of the target without asking, for the head of the report."""
    url, disk = rig.options.url, rig.disk
    return TargetFacts(
        str(url.portal),
        url.target,
        portals=tuple(map(str, rig.portals)),
        lun=rig.first.lun if disk is not None else None,
        disks=tuple(rig.disks),
        block_size=disk.block_size if disk is not None else None,
        size_bytes=disk.block_size * disk.block_count if disk is not None else None,
    )


async def _about(rig: Rig) -> TargetFacts:
    """The same, and who the disk says it is."""
    about = _known(rig)
    if rig.disk is None:
        return about
    try:
        data = bytes((await rig.first.send(requests.inquiry())).data)
        inquiry_length(data)
        vendor, product, revision = (_text(data[a:b]) for a, b in ((8, 16), (16, 32), (32, 36)))
        about = replace(about, vendor=vendor, product=product, revision=revision)
        return replace(about, serial=_text(await read_page(rig.first, SERIAL_NUMBER)))
    except (ClientError, Finding):
        return about


def _text(field: bytes) -> str:
    return printable(field).strip()
