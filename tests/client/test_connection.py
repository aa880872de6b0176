"""A connection in the full feature phase: what ends it, and who is told; windows and bounds."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest

from pyiscsi_target.client import (
    AsyncEvent,
    AsyncMessageReceived,
    ClientError,
    ConnectionLost,
    ProtocolViolated,
    RequestRejected,
    Session,
    TaskManagement,
    TimedOut,
)
from pyiscsi_target.iscsi.constants import BHS_LENGTH
from pyiscsi_target.iscsi.pdu import (
    AsyncMessage,
    LogoutRequest,
    LogoutResponse,
    Reject,
    ScsiCommand,
    ScsiResponse,
)
from tests.support.fake_target import FakeTarget, all_held, connect, fake_target, holding
from tests.support.memory import BLOCK_LENGTH, TEST_UNIT_READY, Policy, frame, write_10


@pytest.fixture
async def fake() -> AsyncIterator[FakeTarget]:
    async with fake_target() as running:
        yield running


class TestTheEnd:
    async def under_way(
        self, fake: FakeTarget, session: Session, error: type[ConnectionLost]
    ) -> "asyncio.Task[str]":
        """`everything_ends`, when the target has got all that may be sent and is silent."""
        fake.silent = True
        ends = asyncio.create_task(self.everything_ends(session, error))
        await fake.until(lambda: fake.swallowed_bytes >= 5 * BHS_LENGTH)
        return ends

    async def everything_ends(self, session: Session, error: type[ConnectionLost]) -> str:
        """What every request, sent or waiting for its turn, is told; the reason."""
        waiting = [
            session.submit(0, TEST_UNIT_READY).result(),
            *(session.execute(0, TEST_UNIT_READY) for _ in range(5)),
            session.ping(),
            session.task_management(TaskManagement.QUERY_TASK_SET),
        ]
        ends = await asyncio.gather(*waiting, return_exceptions=True)
        reasons = {end.reason for end in ends if type(end) is error}
        assert len(reasons) == 1, ends
        assert all(type(end) is error and end.portal == session.portal for end in ends)
        assert len({id(end) for end in ends}) == len(ends), "a traceback belongs to one"
        assert session.closed
        return reasons.pop()

    async def test_the_target_hangs_up(self, fake: FakeTarget) -> None:
        session = await connect(fake, queue_depth=2)
        ends = await self.under_way(fake, session, ConnectionLost)
        fake.transports[-1].close()
        assert await ends == "the target closed the connection"
        with pytest.raises(ConnectionLost, match=f"{fake.portal}: the target closed"):
            await session.ping()

    async def test_the_target_breaks_the_protocol(self, fake: FakeTarget) -> None:
        session = await connect(fake, queue_depth=2)
        ends = await self.under_way(fake, session, ProtocolViolated)
        fake.say(frame(ScsiResponse(itt=0x7777, stat_sn=99)))
        assert (await ends).startswith("protocol violated: ")
        await fake.until(lambda: bool(fake.losses))

    async def test_this_side_drops_it(self, fake: FakeTarget) -> None:
        session = await connect(fake, queue_depth=2)
        ends = await self.under_way(fake, session, ConnectionLost)
        session.drop()
        assert session.closed
        assert await ends == "dropped by this side"
        await fake.until(lambda: bool(fake.losses))
        assert isinstance(fake.losses[0], ConnectionResetError), "a RST, no FIN"

    async def test_there_is_nothing_to_drop_any_more(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        fake.transports[-1].close()
        await session.wait_closed()
        session.drop()
        assert session.closed

    async def test_an_announced_end_is_the_reason(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        fake.targets[-1].connection.announce_drop()
        fake.tell()
        fake.transports[-1].close()
        await session.wait_closed()
        with pytest.raises(ConnectionLost, match="as it had announced"):
            await session.ping()
        assert session.messages[-1].event in (
            AsyncEvent.CONNECTION_DROPPED,
            AsyncEvent.SESSION_DROPPED,
        )

    async def test_nobody_waits_for_what_is_lost(self, fake: FakeTarget) -> None:
        """A handle that was thrown away makes no complaint when the loop collects it."""
        session = await holding(fake)
        session.submit(0, TEST_UNIT_READY)
        await all_held(fake, 1)
        session.drop()
        await session.wait_closed()


class TestMessages:
    async def test_a_request_to_log_out_is_told(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        told: asyncio.Queue[AsyncMessageReceived] = asyncio.Queue()
        session.on_message = told.put_nowait
        fake.targets[-1].connection.request_logout(5)
        fake.tell()
        message = await told.get()
        assert (message.event, message.parameters[2]) == (AsyncEvent.LOGOUT_REQUESTED, 5)
        assert list(session.messages) == [message]
        await session.logout()

    async def test_only_the_last_ones_are_kept(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        stat_sn = session._connected.engine.writer.exp_stat_sn
        event = AsyncEvent.VENDOR_SPECIFIC
        for number in range(100):
            fake.say(frame(AsyncMessage(event=event, stat_sn=stat_sn + number, parameter1=number)))
        fake.transports[-1].close()
        await session.wait_closed()
        assert [message.parameters[0] for message in session.messages] == list(range(36, 100))

    async def test_the_targets_ping_is_answered(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        connection = fake.targets[-1].connection
        assert connection.ping()
        fake.tell()
        await fake.until(connection.ping)  # says no as long as the first one has no answer
        await session.close()


class TestTimeAndCancellation:
    async def test_a_command_that_is_late(self, fake: FakeTarget) -> None:
        session = await holding(fake)
        with pytest.raises(TimedOut, match=r"no answer to a command to LUN 0 within 0\.01 s"):
            await session.execute(0, TEST_UNIT_READY, timeout_s=0.01)
        command = session.submit(0, TEST_UNIT_READY)
        with pytest.raises(TimedOut):
            await command.result(0.01)
        await all_held(fake, 2)
        target = fake.targets[-1]
        fake.say(b"".join(target.answer(held) for held in target.commands[:]))
        assert (await command).good, "it ended after all"
        target.held = False
        assert (await session.execute(0, TEST_UNIT_READY)).good
        await session.logout()

    @pytest.mark.parametrize(
        "request_of",
        [Session.ping, lambda session: session.task_management(TaskManagement.QUERY_TASK_SET)],
    )
    async def test_other_requests_that_are_late(
        self, fake: FakeTarget, request_of: Callable[[Session], Awaitable[object]]
    ) -> None:
        session = await connect(fake)
        session.timeout_s = 0.01
        fake.silent = True
        with pytest.raises(TimedOut):
            await request_of(session)
        assert not session.closed

    async def test_a_logout_that_is_late_ends_the_connection(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        session.timeout_s = 0.01
        fake.silent = True
        with pytest.raises(TimedOut, match="no answer to Logout"):
            await session.logout()
        assert session.closed
        await fake.until(lambda: bool(fake.losses))

    async def test_close_never_fails(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        session.timeout_s = 0.01
        fake.silent = True
        await session.close()
        assert session.closed
        await session.close()

    async def test_a_cancelled_caller_leaves_its_command_alone(self, fake: FakeTarget) -> None:
        session = await holding(fake, queue_depth=1)
        first = asyncio.ensure_future(session.execute(0, TEST_UNIT_READY))
        await all_held(fake, 1)
        second = asyncio.ensure_future(session.execute(0, TEST_UNIT_READY))
        third = asyncio.ensure_future(session.execute(0, TEST_UNIT_READY))
        first.cancel()
        second.cancel()
        for cancelled in (first, second):
            with pytest.raises(asyncio.CancelledError):
                await cancelled
        target = fake.targets[-1]
        assert len(target.commands) == 1, "the room is taken until the target has answered"
        target.held = False
        fake.say(target.answer(target.commands[0]))
        assert (await third).good
        await session.logout()


class TestBounds:
    async def test_no_more_than_the_queue_depth_is_under_way(self, fake: FakeTarget) -> None:
        session = await holding(fake, queue_depth=3)
        running = asyncio.gather(*(session.execute(0, TEST_UNIT_READY) for _ in range(10)))
        target = fake.targets[-1]
        for _ in range(10):
            await fake.until(lambda: bool(target.commands))
            await session.ping()  # whatever was sent has arrived
            assert len(target.commands) <= 3
            fake.say(target.answer(target.commands[0]))
        assert all(result.good for result in await running)
        await session.logout()

    async def test_the_targets_window_is_kept(self) -> None:
        async with fake_target(Policy(queue_depth=2)) as fake:
            session = await holding(fake)
            commands = [session.submit(0, TEST_UNIT_READY) for _ in range(5)]
            await session.ping()
            target = fake.targets[-1]
            assert [held.itt for held in target.commands] == [one.tag for one in commands[:2]]
            target.held = False
            fake.say(b"".join(target.answer(held) for held in target.commands[:]))
            for command in commands:
                assert (await command).good
            await session.logout()

    async def test_a_target_that_does_not_read(self, fake: FakeTarget) -> None:
        """What it does not take is kept as references to the data, not as copies of it."""
        session = await connect(fake)
        connection = session._connected
        fake.transports[-1].pause_reading()
        data = bytes(BLOCK_LENGTH * 2048)
        commands = [session.submit(0, write_10(0, 2048), data_out=data) for _ in range(64)]
        assert not connection._may_write
        transport = connection._transport
        assert transport is not None
        assert transport.get_write_buffer_size() < 4 * len(data)
        assert sum(map(len, connection.engine.writer.outgoing)) > 10 * len(data)
        fake.transports[-1].resume_reading()
        for command in commands:
            assert (await command).good
        await session.logout()

    async def test_the_callers_buffer_is_free_at_once(self, fake: FakeTarget) -> None:
        session = await connect(fake)
        data = bytearray(b"x" * BLOCK_LENGTH)
        fake.transports[-1].pause_reading()
        command = session.submit(0, write_10(0, 1), data_out=data)
        data[:] = bytes(BLOCK_LENGTH)
        fake.transports[-1].resume_reading()
        assert (await command).good
        assert fake.targets[-1].disk.content[:BLOCK_LENGTH] == b"x" * BLOCK_LENGTH
        await session.logout()


async def test_a_refused_logout(fake: FakeTarget) -> None:
    session = await connect(fake)
    stat_sn = session._connected.engine.writer.exp_stat_sn
    fake.script = lambda data: frame(
        LogoutResponse(itt=LogoutRequest.unpack(data).itt, response=3, stat_sn=stat_sn)
    )
    with pytest.raises(ClientError, match="logout refused, code 3"):
        await session.logout()
    assert session.closed


async def test_a_rejected_request(fake: FakeTarget) -> None:
    session = await holding(fake)
    command = session.submit(0, TEST_UNIT_READY)
    await all_held(fake, 1)
    stat_sn = session._connected.engine.writer.exp_stat_sn
    rejected = ScsiCommand(itt=command.tag).pack()
    fake.say(frame(Reject(reason=9, stat_sn=stat_sn, exp_cmd_sn=2, max_cmd_sn=9), rejected))
    with pytest.raises(RequestRejected, match="invalid pdu field") as refused:
        await command
    assert refused.value.reason == 9
    assert not session.closed
    session.drop()
