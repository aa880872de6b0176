"""The client against a target that somebody else wrote."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyiscsi_target.client import (
    CommandFailed,
    Initiator,
    Portal,
    ProtocolViolated,
    Reservations,
    ReservationType,
    Session,
    Status,
    TargetAddress,
    TaskManagement,
    discover,
)
from tests.support.server import TARGET
from tests.support.tgtd import tgtd

DISK = 1  # LUN 0 is a controller
BLOCK = 512
KEY = 0xABC
WE_RO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY


@pytest.fixture
def portal(tmp_path: Path) -> Iterator[Portal]:
    image = tmp_path / "disk.img"
    image.touch()
    os.truncate(image, 16 << 20)
    with tgtd([image]) as server:
        yield Portal(*server.address)


async def test_a_day_with_tgtd(portal: Portal) -> None:
    (found,) = await discover(portal)
    assert (found.name, found.addresses) == (TARGET, (TargetAddress(portal, 1),))
    async with (
        Session.connect(portal, TARGET) as session,
        Session.connect(portal, TARGET) as other,
    ):
        await session.ready(DISK)
        assert await session.report_luns() == [0, DISK]
        assert (await session.capacity(DISK)).size_bytes == 16 << 20
        data = os.urandom(1 << 20)
        await session.write(DISK, 5, data, fua=True)
        await session.flush(DISK)
        assert await session.read(DISK, 5, len(data) // BLOCK) == data
        await session.ping()

        reservations = Reservations(session, DISK)
        await reservations.register(KEY)
        await reservations.reserve(KEY, WE_RO)
        assert (await reservations.read_keys())[1] == [KEY]
        held = await reservations.read_reservation()
        assert held is not None
        assert (held.key, held.type) == (KEY, WE_RO)
        await other.ready(DISK)
        with pytest.raises(CommandFailed) as refused:
            await other.write(DISK, 0, bytes(BLOCK))
        assert refused.value.result.status == Status.RESERVATION_CONFLICT
        assert await session.task_management(TaskManagement.LOGICAL_UNIT_RESET, DISK) == 0

        other.drop()
        await other.reconnect()
        assert await other.ready(DISK) == [(0x29, 0x00)]


async def test_a_digest_that_tgtd_does_not_do(portal: Portal) -> None:
    with pytest.raises(ProtocolViolated, match="HeaderDigest=None"):
        await Session.connect(portal, TARGET, Initiator(header_digest=True))
