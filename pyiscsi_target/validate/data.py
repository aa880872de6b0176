"""Checks of the data itself: what one node writes the others read, soon enough, and never too late.

Whatever writes, writes to the two scratch blocks, and only where that is allowed.
"""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from functools import partial

from ..client import CommandFailed
from ..scsi.sense import Asc
from . import pr, requests
from .access import is_conflict
from .device import has_write_cache
from .gates import free_disk, writes
from .model import Area, Check, Finding, Importance, Observation, Skipped
from .nodes import Nexus
from .requests import is_illegal_request
from .rig import SCRATCH_BLOCKS, Rig

# What a fight for the disk can bear: Windows' defender acts every 3 s.
_WORST_MAXIMUM_S = 3.0
_P99_MAXIMUM_S = 1.0
_RESERVATION_SAMPLES = 50
_FENCED_WRITES = 32
_FENCED_ANSWERS_S = 0.5  # aborted commands are not answered at all (TAS=0)


# Latency


async def _measure(
    what: str, count: int, operation: Callable[[], Awaitable[object]]
) -> Observation:
    """How long an operation takes, one at a time. Raises Finding where that is too long."""
    durations_s = []
    for _ in range(count):
        begun_s = time.perf_counter()
        await operation()
        durations_s.append(time.perf_counter() - begun_s)
    durations_s.sort()
    p50_s, p99_s, worst_s = durations_s[count // 2], durations_s[count * 99 // 100], durations_s[-1]
    figures = {"p50_s": p50_s, "p99_s": p99_s, "worst_s": worst_s, "samples": float(count)}
    seen = (
        f"{what}: half within {_ms(p50_s)}, 99 % within {_ms(p99_s)}, worst {_ms(worst_s)}"
        f" ({count} samples)"
    )
    if p99_s > _P99_MAXIMUM_S or worst_s > _WORST_MAXIMUM_S:
        limits = f"99 % within {_ms(_P99_MAXIMUM_S)}, none above {_ms(_WORST_MAXIMUM_S)}"
        raise Finding(seen, limits)
    return Observation(seen, figures)


def _ms(duration_s: float) -> str:
    return f"{duration_s * 1000:.3g} ms"


async def read_latency(rig: Rig) -> Observation:
    """Reads of a block, one after the other."""
    return await _measure(
        "reads", rig.options.latency_samples, partial(rig.read_scratch, rig.first)
    )


async def write_latency(rig: Rig) -> Observation:
    """Writes with FUA of what the blocks hold anyway; without where FUA is not known."""
    before = await rig.read_scratch(rig.first)
    fua = not is_illegal_request(await rig.first.send(_scratch_write(rig, before, fua=True)))
    return await _measure(
        f"writes {'with' if fua else 'without'} FUA",
        rig.options.latency_samples,
        partial(rig.write_scratch, rig.first, before, fua=fua),
    )


async def reservation_latency(rig: Rig) -> Observation:
    """REGISTER AND IGNORE EXISTING KEY, which many targets write to a disk."""
    key = rig.nodes[0].key
    return await _measure(
        "registrations", _RESERVATION_SAMPLES, partial(pr.register, rig.first, key)
    )


# Data


def _scratch_write(rig: Rig, data: bytes, *, fua: bool = False) -> requests.Request:
    assert rig.disk is not None
    return requests.write(rig.disk.scratch_lba, data, rig.disk.block_size, fua=fua)


def _pattern(rig: Rig) -> bytes:
    """New content for the scratch blocks."""
    assert rig.disk is not None
    return secrets.token_bytes(SCRATCH_BLOCKS * rig.disk.block_size)


async def _expect_scratch(rig: Rig, nexus: Nexus, wanted: bytes, what: str) -> None:
    found = await rig.read_scratch(nexus)
    if found != wanted:
        at = next(i for i, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b)
        raise Finding(f"{nexus} reads other data from byte {at} on", what)


async def shared(rig: Rig) -> str:
    """Each node in turn writes, and all nodes read it."""
    for writer in rig.nodes:
        data = _pattern(rig)
        await rig.write_scratch(writer.nexus, data)
        for reader in rig.nodes:
            await _expect_scratch(rig, reader.nexus, data, f"what {writer} has written")
    return f"{len(rig.nodes)} nodes read what each of them wrote"


async def force_unit_access(rig: Rig) -> str:
    """A write that is on the medium when it is answered."""
    data = _pattern(rig)
    result = await rig.first.send(_scratch_write(rig, data, fua=True))
    if is_illegal_request(result):
        raise Finding(f"WRITE with FUA: {result}", "GOOD; Windows turns its write cache off")
    rig.scratch_changed = True
    if not result.good:
        raise Finding(f"WRITE with FUA: {result}", "GOOD")
    await _expect_scratch(rig, rig.nodes[1].nexus, data, "what was written with FUA")
    return "written with FUA and read by another node"


async def flush(rig: Rig) -> str:
    """SYNCHRONIZE CACHE(10), as Windows sends it where WCE=1."""
    request = requests.synchronize_cache()
    result = await rig.first.send(request)
    if is_illegal_request(result) and not await has_write_cache(rig.first):
        raise Skipped("there is no write cache (WCE=0), and no command to flush it")
    if not result.good:
        raise Finding(f"{request.name}: {result}", "GOOD")
    return "GOOD"


async def out_of_range(rig: Rig) -> str:
    """A read beyond the end of the disk."""
    assert rig.disk is not None
    request = requests.read(rig.disk.block_count, 1, rig.disk.block_size)
    result = await rig.first.send(request)
    asc, ascq = Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE.value
    if not is_illegal_request(result) or result.sense is None or result.sense.code != (asc, ascq):
        raise Finding(f"{request.name}: {result}", "ILLEGAL REQUEST, 21h/00h")
    return str(result)


async def failover_keeps_data(rig: Rig) -> str:
    """What the dead owner was told to be written, the new owner reads."""
    owner, heir = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    data = _pattern(rig)
    fua = not is_illegal_request(await owner.nexus.send(_scratch_write(rig, b"", fua=True)))
    await rig.write_scratch(owner.nexus, data, fua=fua)
    await rig.lose(owner.nexus)
    await pr.register(heir.nexus, heir.key)
    await pr.preempt(heir.nexus, heir.key, owner.key)
    await _expect_scratch(rig, heir.nexus, data, "what the dead owner had written")
    data = _pattern(rig)
    await rig.write_scratch(heir.nexus, data)
    await owner.nexus.connect()
    await _expect_scratch(rig, owner.nexus, data, "what the new owner has written")
    return "nothing that was acknowledged is lost"


async def refused_writes_change_nothing(rig: Rig) -> str:
    """A write that conflicts leaves no trace on the disk."""
    owner, outsider = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    data = _pattern(rig)
    await rig.write_scratch(owner.nexus, data)
    result = await outsider.nexus.send(_scratch_write(rig, _pattern(rig)))
    if not is_conflict(result):
        raise Finding(f"WRITE by {outsider}, not registered: {result}", "RESERVATION CONFLICT")
    await _expect_scratch(rig, owner.nexus, data, "what the owner has written")
    return "RESERVATION CONFLICT, and the owner's data is there"


async def no_late_writes(rig: Rig) -> str:
    """Writes are under way when the node is put out: after GOOD none of them reaches the disk."""
    assert rig.disk is not None
    challenger, victim = rig.nodes[:2]
    await pr.hold(victim.nexus, victim.key)
    await pr.register(challenger.nexus, challenger.key)
    rig.scratch_changed = True
    under_way = []
    for _ in range(_FENCED_WRITES):
        request = _scratch_write(rig, _pattern(rig))
        under_way.append(
            victim.nexus.session.submit(victim.nexus.lun, request.cdb, data_out=request.data_out)
        )
    try:
        await challenger.nexus.reservations.preempt(
            challenger.key, victim.key, pr.WE_RO, abort=True
        )
    except CommandFailed as error:
        raise Skipped(f"PREEMPT AND ABORT: {error.result}") from None
    fenced = await rig.read_scratch(challenger.nexus)
    ends = [asyncio.ensure_future(command.result()) for command in under_way]
    answered, silent = await asyncio.wait(ends, timeout=_FENCED_ANSWERS_S)
    victim.nexus.drop()
    await asyncio.gather(*ends, return_exceptions=True)
    await _expect_scratch(rig, challenger.nexus, fenced, "no change after PREEMPT AND ABORT")
    done = sum(1 for end in answered if end.exception() is None and end.result().good)
    return (
        f"of {len(ends)} writes {done} were done, {len(answered) - done} refused or aborted,"
        f" {len(silent)} not answered; none came late"
    )


_LATENCY_TEST = "Validate Disk Access Latency"
_FAILOVER_TEST = "Validate Disk Failover"

CHECKS = (
    Check(
        "read-latency",
        Area.DATA,
        "Reads are fast enough",
        "no read takes so long that a living owner looks dead",
        "",
        Importance.RECOMMENDED,
        read_latency,
        (free_disk,),
        windows=_LATENCY_TEST,
    ),
    Check(
        "write-latency",
        Area.DATA,
        "Writes are fast enough",
        "no write takes so long that a living owner looks dead",
        "",
        Importance.RECOMMENDED,
        write_latency,
        (free_disk, writes),
        windows=_LATENCY_TEST,
    ),
    Check(
        "reservation-latency",
        Area.DATA,
        "Reservations are fast enough",
        "an owner can defend the disk in time",
        "",
        Importance.RECOMMENDED,
        reservation_latency,
        (free_disk,),
        windows=_LATENCY_TEST,
    ),
    Check(
        "out-of-range",
        Area.DATA,
        "A read beyond the end is refused",
        "the disk ends where READ CAPACITY says",
        "SBC-4, READ(10) command",
        Importance.RECOMMENDED,
        out_of_range,
        (free_disk,),
    ),
    Check(
        "flush",
        Area.DATA,
        "The write cache can be flushed",
        "SYNCHRONIZE CACHE(10) for the whole disk",
        "SBC-4, SYNCHRONIZE CACHE(10) command",
        Importance.REQUIRED,
        flush,
        (free_disk,),
    ),
    Check(
        "shared-data",
        Area.DATA,
        "All nodes see the same data",
        "what one node writes the others read: it is one disk, without stale caches",
        "SAM-6 clause 4.6",
        Importance.REQUIRED,
        shared,
        (free_disk, writes),
        windows="Validate File System",
    ),
    Check(
        "fua",
        Area.DATA,
        "Writes through the cache work",
        "FUA is understood and what was written can be read",
        "SBC-4, WRITE(10) command",
        Importance.RECOMMENDED,
        force_unit_access,
        (free_disk, writes),
    ),
    Check(
        "refused-writes",
        Area.DATA,
        "A refused write changes nothing",
        "RESERVATION CONFLICT comes before the data, not after it",
        "SPC-5 clause 5.14.1",
        Importance.REQUIRED,
        refused_writes_change_nothing,
        (free_disk, writes),
        windows=_FAILOVER_TEST,
        fix="do not use this target for a cluster: it does not protect the disk",
    ),
    Check(
        "failover-data",
        Area.DATA,
        "A failover loses nothing",
        "the new owner reads what the dead one was told to be written, and the other way round",
        "SBC-4, WRITE(10) command",
        Importance.REQUIRED,
        failover_keeps_data,
        (free_disk, writes),
        windows=_FAILOVER_TEST,
    ),
    Check(
        "late-writes",
        Area.DATA,
        "No write of a fenced node comes late",
        "after PREEMPT AND ABORT is GOOD, nothing of the victim reaches the disk",
        "SPC-5 clause 5.14.11.5",
        Importance.REQUIRED,
        no_late_writes,
        (free_disk, writes),
        windows=_FAILOVER_TEST,
        fix="do not use this target for a cluster: it does not protect the disk",
    ),
)
