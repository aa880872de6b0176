"""Sessions against a running server: everyday commands, the ends of a session, its errors."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyiscsi_target.client import (
    CommandFailed,
    ConnectionLost,
    Initiator,
    LoginRefused,
    Portal,
    Reservations,
    ReservationType,
    Session,
    Status,
)
from tests.support.live import MIB, Live, config_of, serving
from tests.support.server import TARGET

BLOCK = 512
POWER_ON = (0x29, 0x00)


@pytest.fixture
async def live(tmp_path: Path) -> AsyncIterator[Live]:
    async with serving(config_of(tmp_path), tmp_path) as running:
        yield running


def portal_of(live: Live) -> Portal:
    return Portal(*live.address())


class TestCommands:
    async def test_a_disk_tells_who_and_how_large_it_is(self, live: Live) -> None:
        async with Session.connect(portal_of(live), TARGET) as session:
            print(await session.ready(0))
            assert await session.ready(0) == []
            assert await session.report_luns() == [0]
            assert (await session.inquiry(0))[8:16] == b"PYISCSI "
            pages = await session.vital_product_data(0, 0x00)
            assert 0x83 in pages[4:]
            capacity = await session.capacity(0)
            assert (capacity.block_size, capacity.size_bytes) == (BLOCK, 64 * MIB)

    @pytest.mark.parametrize("blocks", [1, 8, 1024, 8192])
    async def test_what_is_written_is_read(self, live: Live, blocks: int) -> None:
        data = bytes(range(256)) * (blocks * BLOCK // 256)
        async with Session.connect(portal_of(live), TARGET) as session:
            await session.ready(0)
            await session.write(0, 77, data, fua=True)
            await session.flush(0)
            assert await session.read(0, 77, blocks) == data

    async def test_many_commands_at_once(self, live: Live) -> None:
        async with Session.connect(portal_of(live), TARGET) as session:
            await session.ready(0)
            writes = (session.write(0, n, bytes([n % 256]) * BLOCK) for n in range(1000))
            await asyncio.gather(*writes)
            reads = await asyncio.gather(*(session.read(0, n, 1) for n in range(1000)))
            assert [data[0] for data in reads] == [n % 256 for n in range(1000)]


class TestTheSameNexusAgain:
    @pytest.mark.parametrize("drop", [True, False])
    async def test_a_registration_outlives_the_connection(self, live: Live, drop: bool) -> None:
        session = await Session.connect(portal_of(live), TARGET)
        await session.ready(0)
        await Reservations(session, 0).register(0xABC)
        await Reservations(session, 0).reserve(0xABC, ReservationType.WRITE_EXCLUSIVE)
        if drop:
            session.drop()
            assert session.closed
            with pytest.raises(ConnectionLost, match="dropped by this side"):
                await session.read(0, 0, 1)
        first_tsih = session.tsih
        await session.reconnect()
        assert session.tsih != first_tsih
        await session.ready(0)
        await session.write(0, 0, bytes(BLOCK))
        _, (registration,) = await Reservations(session, 0).read_full_status()
        assert registration.initiator_port == session.initiator.port_name
        assert (registration.key, registration.is_holder) == (0xABC, True)
        await session.logout()

    async def test_another_isid_is_another_nexus(self, live: Live) -> None:
        async with (
            Session.connect(portal_of(live), TARGET) as holder,
            Session.connect(portal_of(live), TARGET) as other,
        ):
            await holder.ready(0)
            await other.ready(0)
            await Reservations(holder, 0).register(1)
            await Reservations(holder, 0).reserve(1, ReservationType.WRITE_EXCLUSIVE)
            with pytest.raises(CommandFailed) as refused:
                await other.write(0, 0, bytes(BLOCK))
            assert refused.value.result.status == Status.RESERVATION_CONFLICT
            assert str(refused.value) == "WRITE(16) to LUN 0: RESERVATION CONFLICT"


async def test_a_refused_login_says_why(live: Live) -> None:
    with pytest.raises(LoginRefused, match="not found") as refused:
        await Session.connect(portal_of(live), "iqn.2026-11.example.test:nothing")
    assert refused.value.status == 0x0203


async def test_a_portal_where_nobody_listens(live: Live) -> None:
    portal = portal_of(live)
    await live.drain()
    with pytest.raises(ConnectionLost, match=f"{portal}: no connection"):
        await Session.connect(portal, TARGET, Initiator())
