"""Persistent reservations as a cluster's nodes use them, and what must come of it.

Windows registers with REGISTER AND IGNORE EXISTING KEY and reserves Write Exclusive - Registrants
Only. Whatever is not as it must be is a Finding that says whose request it was.
"""

from collections.abc import Awaitable
from typing import TypeVar

from ..client import BadAnswer, CommandFailed, HeldReservation, ReservationType, Status
from ..scsi.sense import Asc
from .model import Finding
from .nodes import Nexus
from .wording import Attention, describe_attentions, describe_key, describe_keys

WE_RO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY  # what Windows and fence_scsi reserve with

REGISTRATION_PREEMPTED: Attention = Asc.REGISTRATIONS_PREEMPTED.value
RESERVATION_PREEMPTED: Attention = Asc.RESERVATIONS_PREEMPTED.value
RESERVATION_RELEASED: Attention = Asc.RESERVATIONS_RELEASED.value

T = TypeVar("T")


async def done(nexus: Nexus, what: str, pending: Awaitable[T], *, fix: str = "") -> T:
    """What a request answers, which must be GOOD and make sense. Raises Finding."""
    try:
        return await pending
    except CommandFailed as error:
        raise Finding(f"{what} by {nexus}: {error.result}", "GOOD", fix=fix) from None
    except BadAnswer as error:
        raise Finding(f"{what} by {nexus}: {error}", "data as SPC-5 lays it out") from None


async def refused(nexus: Nexus, what: str, pending: Awaitable[object], *, fix: str = "") -> None:
    """A request that must end in RESERVATION CONFLICT. Raises Finding."""
    seen = "GOOD"
    try:
        await pending
    except CommandFailed as error:
        if error.result.status == Status.RESERVATION_CONFLICT:
            return
        seen = str(error.result)
    raise Finding(f"{what} by {nexus}: {seen}", "RESERVATION CONFLICT", fix=fix)


# Requests that must succeed


async def read_keys(nexus: Nexus) -> tuple[int, list[int]]:
    """PRGENERATION and the registered keys."""
    return await done(nexus, "READ KEYS", nexus.reservations.read_keys())


async def read_reservation(nexus: Nexus) -> HeldReservation | None:
    """The reservation, None where there is none."""
    return await done(nexus, "READ RESERVATION", nexus.reservations.read_reservation())


async def register(nexus: Nexus, key: int) -> None:
    """REGISTER AND IGNORE EXISTING KEY; key 0 unregisters."""
    what = f"REGISTER AND IGNORE EXISTING KEY{'' if key else ' of zero'}"
    await done(nexus, what, nexus.reservations.register_and_ignore(key))


async def reserve(nexus: Nexus, key: int) -> None:
    """RESERVE."""
    await done(nexus, "RESERVE", nexus.reservations.reserve(key, WE_RO))


async def hold(nexus: Nexus, key: int) -> None:
    """Register and reserve: what makes a node the owner of the disk."""
    await register(nexus, key)
    await reserve(nexus, key)


async def release(nexus: Nexus, key: int) -> None:
    """RELEASE."""
    await done(nexus, "RELEASE", nexus.reservations.release(key, WE_RO))


async def clear(nexus: Nexus, key: int) -> None:
    """CLEAR: every registration and the reservation go. Only with no key of others there."""
    await done(nexus, "CLEAR", nexus.reservations.clear(key))


async def preempt(nexus: Nexus, key: int, victim_key: int, *, abort: bool = False) -> None:
    """PREEMPT, or PREEMPT AND ABORT, of whoever holds `victim_key`."""
    what = "PREEMPT AND ABORT" if abort else "PREEMPT"
    await done(nexus, what, nexus.reservations.preempt(key, victim_key, WE_RO, abort=abort))


# What must be so


async def expect_keys(nexus: Nexus, *keys: int) -> int:
    """These keys are registered, one for each nexus, and no others; PRGENERATION."""
    generation, found = await read_keys(nexus)
    if sorted(found) != sorted(keys):
        raise Finding(f"READ KEYS by {nexus}: {describe_keys(found)}", describe_keys(keys))
    return generation


async def expect_holder(nexus: Nexus, key: int | None) -> None:
    """The reservation is that of `key`, with Windows' type; None: there is none."""
    found = await read_reservation(nexus)
    seen = None if found is None else (found.key, found.type)
    wanted = None if key is None else (key, int(WE_RO))
    if seen != wanted:
        raise Finding(f"READ RESERVATION by {nexus}: {_holding(seen)}", _holding(wanted))


def _holding(reservation: tuple[int, int] | None) -> str:
    if reservation is None:
        return "no reservation"
    return f"key {describe_key(reservation[0])}, type {reservation[1]}"


async def expect_attentions(nexus: Nexus, *codes: Attention) -> None:
    """What the nexus has been told since it was last asked: this and nothing else."""
    heard = await nexus.take_attentions()
    if heard != list(codes):
        raise Finding(f"{nexus} heard {describe_attentions(heard)}", describe_attentions(codes))
