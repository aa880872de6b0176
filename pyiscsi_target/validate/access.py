"""What a node that is not registered may do under the reservation that clusters use.

A table of commands, none of which can do harm even where the target wrongly accepts it: they move
no data, or (only where writing is allowed) write back what the scratch blocks hold.
"""

from collections.abc import Callable
from dataclasses import dataclass

from ..client import Result, Status, commands
from ..client.reservations import READ_KEYS, READ_RESERVATION
from . import requests
from .nodes import Nexus
from .requests import Request, is_illegal_request
from .rig import Rig


@dataclass(frozen=True, slots=True)
class Access:
    """A command, made for a rig, None where the disk does not have it.

    `optional`: a target may not know it, and may say so before it looks at the reservation.
    """

    make: Callable[[Rig], Request | None]
    optional: bool = False


def data_neutral_write(rig: Rig) -> Request:
    """A WRITE that changes nothing whether it is refused or not.

    Without leave to write: of zero blocks, which is no error and writes nothing (SBC-4, WRITE(10)).
    With it: of the very data that the first scratch block holds.
    """
    assert rig.disk is not None
    block_size, lba = rig.disk.block_size, rig.disk.scratch_lba
    data = b""
    if rig.scratch_before is not None:
        data = rig.scratch_before[:block_size]
    return requests.write(lba, data, block_size)


def _read(rig: Rig) -> Request:
    assert rig.disk is not None
    return requests.read(rig.disk.scratch_lba, 1, rig.disk.block_size)


def _unmap_nothing(rig: Rig) -> Request | None:
    assert rig.disk is not None
    return requests.unmap() if rig.disk.thin else None


def _pr_in(action: int, name: str) -> Access:
    command = commands.persistent_reserve_in(action, 256)
    return Access(lambda rig: Request(name, command, read_length=256))


# SPC-5 tables 71 and 72, SBC-4 table 15, in the columns of Write Exclusive - Registrants Only
ALLOWED = (
    Access(lambda rig: Request("TEST UNIT READY", commands.test_unit_ready())),
    Access(lambda rig: requests.inquiry()),
    Access(lambda rig: requests.inquiry(0x83)),
    Access(lambda rig: requests.report_luns(256)),
    Access(lambda rig: requests.read_capacity_10()),
    Access(lambda rig: requests.read_capacity_16()),
    Access(_read),
    _pr_in(READ_KEYS, "READ KEYS"),
    _pr_in(READ_RESERVATION, "READ RESERVATION"),
)
CONFLICTING = (
    Access(data_neutral_write),
    Access(lambda rig: requests.synchronize_cache(), optional=True),
    Access(_unmap_nothing),
    Access(lambda rig: requests.mode_select_6_nothing(), optional=True),
)


async def wrongly_refused(rig: Rig, nexus: Nexus) -> list[str]:
    """What the nexus should be able to do and cannot."""
    return await _try(rig, nexus, ALLOWED, lambda result: result.good)


async def wrongly_accepted(rig: Rig, nexus: Nexus) -> list[str]:
    """What should end in RESERVATION CONFLICT and does not."""
    return await _try(rig, nexus, CONFLICTING, is_conflict)


def is_conflict(result: Result) -> bool:
    """Whether the reservation was in the way."""
    return result.status == Status.RESERVATION_CONFLICT


async def _try(
    rig: Rig, nexus: Nexus, table: tuple[Access, ...], right: Callable[[Result], bool]
) -> list[str]:
    wrong: list[str] = []
    for access in table:
        request = access.make(rig)
        if request is None:
            continue
        result = await nexus.send(request)
        if right(result) or (access.optional and is_illegal_request(result)):
            continue
        wrong.append(f"{request.name}: {result}")
    return wrong
