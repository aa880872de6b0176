"""Commands under way: their handles, and what task management makes of them."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from pyiscsi_target.client import TaskAborted, TaskManagement
from tests.support.fake_target import FakeTarget, all_held, fake_target, holding
from tests.support.memory import TEST_UNIT_READY, Policy


@pytest.fixture
async def fake() -> AsyncIterator[FakeTarget]:
    async with fake_target() as running:
        yield running


async def test_a_handle_can_be_awaited_by_several(fake: FakeTarget) -> None:
    session = await holding(fake)
    command = session.submit(0, TEST_UNIT_READY)
    waiting = [asyncio.ensure_future(command.result()) for _ in range(3)]
    await all_held(fake, 1)
    waiting[0].cancel()
    assert not command.done
    fake.say(fake.targets[-1].answer(fake.targets[-1].commands[0]))
    assert (await waiting[1]).good
    assert (await waiting[2]).good
    assert (await command).good
    assert command.done
    await session.logout()


class TestTaskManagement:
    async def test_an_aborted_command_ends_here_too(self, fake: FakeTarget) -> None:
        session = await holding(fake)
        commands = [session.submit(0, TEST_UNIT_READY) for _ in range(2)]
        await all_held(fake, 2)
        response = await session.task_management(TaskManagement.ABORT_TASK, 0, commands[0].tag)
        assert response == 0
        with pytest.raises(TaskAborted, match="ABORT_TASK"):
            await commands[0]
        assert not commands[1].done
        response = await session.task_management(TaskManagement.LOGICAL_UNIT_RESET, 0)
        assert response == 0
        with pytest.raises(TaskAborted, match="LOGICAL_UNIT_RESET"):
            await commands[1]
        fake.targets[-1].held = False
        assert (await session.execute(0, TEST_UNIT_READY)).good
        await session.logout()

    async def test_what_it_does_not_concern_goes_on(self, fake: FakeTarget) -> None:
        session = await holding(fake)
        elsewhere = session.submit(1, TEST_UNIT_READY)
        await all_held(fake, 1)
        target = fake.targets[-1]
        target.manage = lambda request: 0
        for function in (TaskManagement.QUERY_TASK_SET, TaskManagement.LOGICAL_UNIT_RESET):
            assert await session.task_management(function, 0) == 0
        assert not elsewhere.done
        target.manage = lambda request: 5
        assert await session.task_management(TaskManagement.TARGET_WARM_RESET) == 5
        assert not elsewhere.done, "the function is not supported"
        target.manage = lambda request: 0
        assert await session.task_management(TaskManagement.TARGET_WARM_RESET) == 0
        with pytest.raises(TaskAborted):
            await elsewhere
        session.drop()

    async def test_a_reset_does_not_touch_what_was_not_sent(self) -> None:
        async with fake_target(Policy(queue_depth=1)) as fake:
            session = await holding(fake)
            sent, unsent = (session.submit(0, TEST_UNIT_READY) for _ in range(2))
            await all_held(fake, 1)
            fake.targets[-1].held = False
            await session.task_management(TaskManagement.LOGICAL_UNIT_RESET)
            with pytest.raises(TaskAborted):
                await sent
            assert (await unsent).good
            await session.logout()


async def test_an_answer_to_an_aborted_command_is_passed_over(fake: FakeTarget) -> None:
    session = await holding(fake)
    command = session.submit(0, TEST_UNIT_READY)
    await all_held(fake, 1)
    target = fake.targets[-1]
    target.manage = lambda request: 0  # says that it is done, and does not do it
    await session.task_management(TaskManagement.ABORT_TASK, 0, command.tag)
    with pytest.raises(TaskAborted):
        await command
    fake.say(target.answer(target.commands[0]))
    await session.ping()
    await session.logout()
