"""Sessions against a running server: everyday commands, the ends of a session, its errors."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.client import (
    AsyncEvent,
    BadAnswer,
    CommandFailed,
    ConnectionLost,
    Initiator,
    LoginRefused,
    Portal,
    Reservations,
    ReservationType,
    Result,
    Session,
    Status,
    commands,
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
            assert await session.ready(0) == [POWER_ON]
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


async def test_one_that_is_not_connected_yet(live: Live) -> None:
    session = Session(portal_of(live), TARGET, Initiator())
    assert session.closed
    session.drop()
    await session.close()
    await session.wait_closed()
    with pytest.raises(ConnectionLost, match="not connected yet"):
        await session.ping()
    await session.reconnect()
    await session.ping()
    await session.logout()
    assert session.closed


async def test_a_block_that_fails_logs_out_too(live: Live) -> None:
    with pytest.raises(ZeroDivisionError):
        async with Session.connect(portal_of(live), TARGET):
            raise ZeroDivisionError
    await live.until(lambda: bool(live.events("logout")))


async def test_a_unit_that_is_not_there(live: Live) -> None:
    async with Session.connect(portal_of(live), TARGET) as session:
        with pytest.raises(CommandFailed, match="LOGICAL UNIT NOT SUPPORTED"):
            await session.ready(7)


async def test_what_cannot_be_sent(live: Live) -> None:
    async with Session.connect(portal_of(live), TARGET) as session:
        await session.ready(0)
        with pytest.raises(ValueError, match="not whole blocks"):
            await session.write(0, 0, bytes(BLOCK + 1))
        with pytest.raises(ValueError, match="one direction"):
            await session.execute(0, bytes(6), data_out=b"x", read_length=1)
        with pytest.raises(ValueError, match="no LUN"):
            session.submit(-1, bytes(6))
        assert (await session.execute(0, bytes(6))).good


async def test_any_command_and_its_residual(live: Live) -> None:
    async with Session.connect(portal_of(live), TARGET) as session:
        await session.ready(0)
        result = await session.execute(0, commands.inquiry(255), read_length=1000)
        assert result.good
        assert result.residual_bytes == len(result.data) - 1000
        result = await session.execute(0, b"\xff" + bytes(15))
        assert result.status == Status.CHECK_CONDITION
        assert result.sense is not None
        assert result.sense.code == (0x20, 0x00)


async def test_a_unit_attention_is_for_the_caller(live: Live) -> None:
    async with Session.connect(portal_of(live), TARGET) as session:
        with pytest.raises(CommandFailed) as refused:
            await session.capacity(0)
        sense = refused.value.result.sense
        assert sense is not None
        assert sense.is_unit_attention


async def test_a_drop_in_the_middle_of_writes(live: Live) -> None:
    """The server's own checks at the end of `serving` see that nothing of them is left."""
    store = live.hold()
    session = await Session.connect(portal_of(live), TARGET)
    await session.ready(0)
    data = bytes(4 * MIB)  # more than comes unsolicited
    writes = [asyncio.create_task(session.write(0, 0, data)) for _ in range(4)]
    await store.begun.get()
    session.drop()
    for end in await asyncio.gather(*writes, return_exceptions=True):
        assert isinstance(end, ConnectionLost)
    await live.until(lambda: bool(live.events("connection_lost")))
    store.gate.set()
    await session.reconnect()
    await session.ready(0)
    await session.write(0, 0, b"y" * BLOCK)
    assert await session.read(0, 0, 1) == b"y" * BLOCK
    await session.logout()


async def test_a_new_login_ends_what_the_old_one_was_at(live: Live) -> None:
    store = live.hold()
    session = await Session.connect(portal_of(live), TARGET)
    await session.ready(0)
    await session.capacity(0)
    write = asyncio.create_task(session.write(0, 0, bytes(BLOCK)))
    await store.begun.get()
    again = asyncio.create_task(session.reconnect())
    with pytest.raises(ConnectionLost):
        await write
    store.gate.set()
    await again
    await session.ready(0)
    await session.logout()


async def test_a_server_that_stops_says_so(live: Live) -> None:
    session = await Session.connect(portal_of(live), TARGET)
    asked = asyncio.Event()
    session.on_message = lambda message: asked.set()
    drain = asyncio.create_task(live.drain())
    await asked.wait()
    assert session.messages[-1].event == AsyncEvent.LOGOUT_REQUESTED
    await session.logout()
    await drain


async def test_two_sessions_share_a_disk_and_nothing_else(live: Live) -> None:
    async with (
        Session.connect(portal_of(live), TARGET) as first,
        Session.connect(portal_of(live), TARGET) as second,
    ):
        await first.ready(0)
        await second.ready(0)
        await first.write(0, 5, b"1" * BLOCK)
        assert await second.read(0, 5, 1) == b"1" * BLOCK
        assert first.tsih != second.tsih
        first.drop()
        await second.ping()
        assert not second.closed


# Answers that are not what they should be, or longer than most


class Answering(Session):
    """Every command is GOOD and answers the same, cut to what was asked for."""

    def __init__(self, data: bytes) -> None:
        super().__init__(Portal("127.0.0.1"), TARGET, Initiator())
        self.data = data
        self.asked: list[int] = []

    async def execute(self, lun: int, cdb: bytes, **how: Any) -> Result:
        self.asked.append(how["read_length"])
        return Result(0, self.data[: how["read_length"]])


async def test_a_long_page_is_asked_for_again() -> None:
    page = b"\0\x83\x20\x00" + bytes(0x2000)
    session = Answering(page + b"more")
    assert await session.vital_product_data(0, 0x83) == page
    assert session.asked == [4096, 0x2004]


async def test_a_page_that_is_longer_than_it_can_be() -> None:
    session = Answering(b"\0\x83\xff\xff" + bytes(70000))
    with pytest.raises(BadAnswer, match="65535 bytes of 65539"):
        await session.vital_product_data(0, 0x83)


async def test_a_list_of_luns_that_ends_early() -> None:
    with pytest.raises(BadAnswer, match="16 bytes of 4294967303"):
        await Answering(b"\xff" * 16).report_luns()


async def test_a_read_that_brings_less() -> None:
    session = Answering(bytes(100))
    session._block_sizes[0] = BLOCK
    with pytest.raises(BadAnswer, match="100 bytes instead of 512"):
        await session.read(0, 0, 1)


async def test_attentions_without_an_end() -> None:
    class Attentive(Answering):
        async def execute(self, lun: int, cdb: bytes, **how: Any) -> Result:
            return Result(2, raw_sense=bytes.fromhex("700006") + bytes(15))

    with pytest.raises(CommandFailed, match="UNIT ATTENTION"):
        await Attentive(b"").ready(0)
