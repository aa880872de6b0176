"""Task management: its numbers, and what it does to commands that are under way."""

import asyncio
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiscsi_target.iscsi.constants import TaskManagement
from pyiscsi_target.iscsi.constants import TaskManagementResponse as Code
from pyiscsi_target.scsi.task_management import TaskManagementFunction as Function
from pyiscsi_target.scsi.task_management import TaskManagementResponse as Response
from pyiscsi_target.server.task_management import FUNCTIONS, RESPONSES
from tests.support.live import MIB, HeldStore, config_of, serving
from tests.support.peer import Peer
from tests.support.raw_initiator import read_16, write_16
from tests.support.reserving import REGISTER, RESERVE, reserve_out
from tests.support.server import TARGET

# RFC 7143 section 11.5.1 and RFC 7144 section 4.1
NUMBERS = {
    Function.ABORT_TASK: 1,
    Function.ABORT_TASK_SET: 2,
    Function.CLEAR_ACA: 3,
    Function.CLEAR_TASK_SET: 4,
    Function.LOGICAL_UNIT_RESET: 5,
    Function.TARGET_WARM_RESET: 6,
    Function.TARGET_COLD_RESET: 7,
    Function.QUERY_TASK: 9,
    Function.QUERY_TASK_SET: 10,
    Function.I_T_NEXUS_RESET: 11,
    Function.QUERY_ASYNC_EVENT: 12,
}


@pytest.mark.parametrize("function", Function)
def test_every_function_has_its_number(function: Function) -> None:
    assert FUNCTIONS[NUMBERS[function]] is function


def test_only_task_reassign_has_no_function() -> None:
    """The engine answers it itself: nothing can be reassigned at error recovery level 0."""
    assert set(TaskManagement) - FUNCTIONS.keys() == {TaskManagement.TASK_REASSIGN}
    assert len(FUNCTIONS) == len(Function)


# RFC 7143 section 11.6.1 and RFC 7144 section 4.2
CODES = {
    Response.FUNCTION_COMPLETE: 0,
    Response.TASK_DOES_NOT_EXIST: 1,
    Response.INCORRECT_LOGICAL_UNIT_NUMBER: 2,
    Response.FUNCTION_NOT_SUPPORTED: 5,
    Response.FUNCTION_SUCCEEDED: 7,
    Response.FUNCTION_REJECTED: 255,
}


@pytest.mark.parametrize("response", Response)
def test_every_response_has_its_code(response: Response) -> None:
    assert RESPONSES[response] == CODES[response]
    assert isinstance(RESPONSES[response], Code)


# Through real sockets: what is in flight, in transfer and queued

BLOCK = 512
OTHER_ISID = bytes(5) + b"\x01"
COMPLETE, NO_SUCH_TASK, NO_SUCH_LUN, SUCCEEDED = 0, 1, 2, 7
BUS_DEVICE_RESET, CLEARED_BY_ANOTHER = (0x29, 0x03), (0x2F, 0x00)
TASK_ABORTED = 0x40
CONTROL_PAGE = 0x0A
ABORTING = [
    TaskManagement.ABORT_TASK,
    TaskManagement.ABORT_TASK_SET,
    TaskManagement.CLEAR_TASK_SET,
    TaskManagement.LOGICAL_UNIT_RESET,
    TaskManagement.TARGET_WARM_RESET,
]


async def settle() -> None:
    """Let everything run that can run, sockets too."""
    for _ in range(50):
        await asyncio.sleep(0)


@pytest.mark.parametrize("function", ABORTING)
async def test_a_task_in_flight(tmp_path: Path, function: TaskManagement) -> None:
    """It is never answered, and the function is answered only when it has ended."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold()
        tag, pdu = peer.scsi(write_16(0, 1), data=b"x" * BLOCK, immediate_bytes=BLOCK)
        await peer.send(pdu)
        await store.begun.get()
        answer = asyncio.create_task(peer.manage(function, tag=tag))
        await settle()
        assert not answer.done()
        store.gate.set()
        assert await answer == COMPLETE
        await peer.ready()
        assert tag not in peer.finished


@pytest.mark.parametrize("function", ABORTING)
async def test_a_task_in_transfer(tmp_path: Path, function: TaskManagement) -> None:
    """What still comes for it is discarded, and nothing of it is written."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        data = bytes([7]) * MIB
        tag, pdu = peer.scsi(write_16(0, MIB // BLOCK), data=data, serve=False)
        await peer.send(pdu)
        burst = peer.data_out(await peer.r2t(), data)
        itt, request = peer.management(function, tag=tag)
        half = len(burst) // 2  # two of its four PDUs
        await peer.send(burst[:half], request, burst[half:])
        assert (await peer.finish(itt)).pdu.response == COMPLETE
        await peer.ready()
        assert tag not in peer.finished
        done = await peer.command(read_16(0, MIB // BLOCK), read_bytes=MIB)
        assert done.data == bytes(MIB)


async def test_an_aborted_transfer_opens_the_window_again(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        room = peer.max_cmd_sn - peer.cmd_sn
        for _ in range(3):
            tag, pdu = peer.scsi(write_16(0, 8), data=bytes(4096), serve=False)
            await peer.send(pdu)
            await peer.r2t()
            assert await peer.manage(TaskManagement.ABORT_TASK, tag=tag) == COMPLETE
        assert peer.max_cmd_sn - peer.cmd_sn == room


async def test_an_abort_lets_the_next_transfer_begin(tmp_path: Path) -> None:
    """Sixteen megabytes may be under way by R2T; a command that ends makes room."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        data = bytes([7]) * MIB
        writes = [peer.scsi(write_16(n * 2048, 2048), data=data, serve=False) for n in range(17)]
        await peer.send(*[pdu for _, pdu in writes])
        for _ in range(16):
            await peer.r2t()
        assert await peer.manage(TaskManagement.ABORT_TASK, tag=writes[0][0]) == COMPLETE
        assert (await peer.r2t()).itt == writes[16][0]


TWO_DISKS = {
    "one": {"path": "one.img", "size": 64 * MIB},
    "two": {"path": "two.img", "size": 64 * MIB},
}


async def fill_up(peer: Peer) -> None:
    """Sixteen writes to LUN 0 that ask for all that may be under way, and one to LUN 1."""
    data = bytes([7]) * MIB
    writes = [
        peer.scsi(write_16(n * 2048, 2048), data=data, serve=False, lun=n // 16) for n in range(17)
    ]
    await peer.send(*[pdu for _, pdu in writes])
    for _ in range(16):
        await peer.r2t()


async def test_a_reset_by_another_lets_the_next_transfer_begin(tmp_path: Path) -> None:
    """What it made room for is told at once, not with whatever is sent next."""
    async with serving(config_of(tmp_path, disks=TWO_DISKS), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        while (await peer.command(bytes(6), lun=1)).status:
            pass
        await fill_up(peer)
        assert await other.manage(TaskManagement.LOGICAL_UNIT_RESET) == COMPLETE
        assert (await peer.r2t()).lun == 1 << 48


async def test_a_task_that_is_not_there(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        assert await peer.manage(TaskManagement.ABORT_TASK, tag=12345) == NO_SUCH_TASK
        assert await peer.manage(TaskManagement.ABORT_TASK_SET) == COMPLETE
        assert await peer.manage(TaskManagement.ABORT_TASK_SET, lun=9) == NO_SUCH_LUN


async def test_a_query_finds_what_is_in_flight(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in(keys={"iSCSIProtocolLevel": "2"})
        store = live.hold()
        tag, pdu = peer.scsi(read_16(0, 1), read_bytes=BLOCK)
        await peer.send(pdu)
        await store.begun.get()
        assert await peer.manage(TaskManagement.QUERY_TASK, tag=tag) == SUCCEEDED
        store.gate.set()
        assert (await peer.finish(tag)).status == 0
        assert await peer.manage(TaskManagement.QUERY_TASK, tag=tag) == COMPLETE


async def test_what_is_sent_after_a_function_is_not_touched_by_it(tmp_path: Path) -> None:
    """Section 4.2.2.1: it ends what came before; a later command is answered (one segment)."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer = await live.log_in()
        store = live.hold()
        before, first = peer.scsi(read_16(0, 1), read_bytes=BLOCK)
        itt, request = peer.management(TaskManagement.ABORT_TASK_SET)
        after, second = peer.scsi(read_16(8, 1), read_bytes=BLOCK)
        peer.send_now(first, request, second)
        await store.begun.get()
        await settle()
        store.gate.set()
        assert (await peer.finish(itt)).pdu.response == COMPLETE
        assert (await peer.finish(after)).status == 0
        assert before not in peer.finished


async def test_a_reset_reaches_the_other_sessions(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        store = live.hold()
        flying, one = other.scsi(read_16(0, 1), read_bytes=BLOCK)
        moving, two = other.scsi(write_16(8, 8), data=bytes(4096), serve=False)
        await other.send(one, two)
        await store.begun.get()
        await other.r2t()
        answer = asyncio.create_task(peer.manage(TaskManagement.LOGICAL_UNIT_RESET))
        await settle()
        store.gate.set()
        assert await answer == COMPLETE
        for session in (peer, other):
            assert (await session.command(bytes(6))).asc == BUS_DEVICE_RESET
        assert not {flying, moving} & set(other.finished)


async def test_clear_task_set_tells_the_others(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        moving, pdu = other.scsi(write_16(8, 8), data=bytes(4096), serve=False)
        await other.send(pdu)
        await other.r2t()
        assert await peer.manage(TaskManagement.CLEAR_TASK_SET) == COMPLETE
        assert (await other.command(bytes(6))).asc == CLEARED_BY_ANOTHER
        assert (await peer.command(bytes(6))).status == 0
        assert moving not in other.finished


async def set_task_aborted_status(peer: Peer) -> None:
    """TAS=1 in the control mode page (SPC-5 clause 7.5.8)."""
    sense = await peer.command(bytes([0x1A, 0x08, CONTROL_PAGE, 0, 24, 0]), read_bytes=24)
    page = bytearray(sense.data[4:])
    page[0] &= 0x3F
    page[5] |= 0x40
    parameters = bytes(4) + bytes(page)
    select = bytes([0x15, 0x10, 0, 0, len(parameters), 0])
    done = await peer.command(select, data=parameters, immediate_bytes=len(parameters))
    assert done.status == 0


async def test_with_tas_the_others_are_answered(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        await set_task_aborted_status(peer)
        await other.ready()
        store = live.hold()
        flying, pdu = other.scsi(read_16(0, 1), read_bytes=BLOCK)
        await other.send(pdu)
        await store.begun.get()
        answer = asyncio.create_task(peer.manage(TaskManagement.CLEAR_TASK_SET))
        await settle()
        store.gate.set()
        assert await answer == COMPLETE
        assert (await other.finish(flying)).status == TASK_ABORTED
        assert (await other.command(bytes(6))).status == 0


async def test_with_tas_a_transfer_of_another_is_answered(tmp_path: Path) -> None:
    """When the data that it was to send has come (RFC 7143 section 11.4.2)."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        await set_task_aborted_status(peer)
        await other.ready()
        data = bytes([7]) * 4096
        moving, pdu = other.scsi(write_16(8, 8), data=data, serve=False)
        await other.send(pdu)
        r2t = await other.r2t()
        cleared = asyncio.create_task(peer.manage(TaskManagement.CLEAR_TASK_SET))
        await settle()
        await other.send(other.data_out(r2t, data))
        assert await cleared == COMPLETE
        assert (await other.finish(moving)).status == TASK_ABORTED


async def test_with_tas_a_command_that_has_not_asked_yet_is_answered(tmp_path: Path) -> None:
    """It waits for room among the transfers, so no data is due before its answer."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        await set_task_aborted_status(peer)
        await other.ready()
        data = bytes([7]) * MIB
        writes = [other.scsi(write_16(0, 2048), data=data, serve=False) for _ in range(17)]
        await other.send(*[pdu for _, pdu in writes])
        for _ in range(16):
            await other.r2t()
        cleared = asyncio.create_task(peer.manage(TaskManagement.CLEAR_TASK_SET))
        assert (await other.finish(writes[16][0])).status == TASK_ABORTED
        assert await cleared == COMPLETE


async def test_target_cold_reset_drops_every_session(tmp_path: Path) -> None:
    second = "iqn.2026-11.example.test:second"
    async with serving(config_of(tmp_path, targets={TARGET: {}, second: {}}), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        elsewhere = await live.log_in(second)
        discovery = await live.log_in(None)
        assert await peer.manage(TaskManagement.TARGET_COLD_RESET) == COMPLETE
        await peer.ended()
        await other.ended()
        assert (await elsewhere.ready()).finished
        assert await discovery.discover()
        assert live.app.sessions() == {second: 1, "": 1}


async def test_target_cold_reset_with_commands_in_flight(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        peer, other = await live.log_in(), await live.log_in(isid=OTHER_ISID)
        store = live.hold()
        for session in (peer, other):
            _, pdu = session.scsi(read_16(0, 1), read_bytes=BLOCK)
            await session.send(pdu)
            await store.begun.get()
        answer = asyncio.create_task(peer.manage(TaskManagement.TARGET_COLD_RESET))
        await settle()
        store.gate.set()
        assert await answer == COMPLETE
        await other.ended()


# Three sessions on one disk: who asks, another at the same target, and one that comes through
# another target. Each has a write in flight and one in transfer.

SECOND = "iqn.2026-11.example.test:second"
SILENT = None
GOOD = 0


class Sharer:
    """A session with a write in flight (block 0) and one that waits for Data-Out (block 8)."""

    def __init__(self, peer: Peer, number: int) -> None:
        self.peer = peer
        self.data = bytes([number]) * BLOCK
        self.lba = number * 16
        self.flying = self.moving = 0
        self.burst = b""

    async def begin(self, store: HeldStore) -> None:
        self.flying, one = self.peer.scsi(
            write_16(self.lba, 1), data=self.data, immediate_bytes=BLOCK
        )
        self.moving, two = self.peer.scsi(write_16(self.lba + 8, 1), data=self.data, serve=False)
        await self.peer.send(one, two)
        await store.begun.get()
        self.burst = self.peer.data_out(await self.peer.r2t(), self.data)

    async def outcome(self, tag: int) -> int | None:
        """The status of a command that has ended; None: there was no answer."""
        await self.attentions()  # what was sent before has come
        return (await self.peer.finish(tag)).status if tag in self.peer.finished else SILENT

    async def attentions(self) -> list[tuple[int, int]]:
        heard = []
        while (done := await self.peer.command(bytes(6))).status:
            heard.append(done.asc)
        return heard


@dataclass(frozen=True)
class Row:
    """Who hears what of a function, with TAS=0, and whether the tasks of others go."""

    function: TaskManagement
    me: tuple[int | None, int | None]  # the ends of the writes in flight and in transfer
    others_go: bool = False
    i_hear: tuple[int, int] | None = None
    they_hear: tuple[int, int] | None = None
    they_hear_with_tas: tuple[int, int] | None = None
    response: int = COMPLETE


BUS_RESET, NEXUS_LOSS, POWER_ON = (0x29, 0x02), (0x29, 0x07), (0x29, 0x01)
MATRIX = [
    Row(TaskManagement.ABORT_TASK, (SILENT, GOOD)),
    Row(TaskManagement.ABORT_TASK_SET, (SILENT, SILENT)),
    Row(TaskManagement.CLEAR_TASK_SET, (SILENT, SILENT), True, None, CLEARED_BY_ANOTHER),
    Row(
        TaskManagement.LOGICAL_UNIT_RESET,
        (SILENT, SILENT),
        True,
        *(BUS_DEVICE_RESET,) * 3,
    ),
    Row(TaskManagement.TARGET_WARM_RESET, (SILENT, SILENT), True, *(BUS_RESET,) * 3),
    Row(TaskManagement.I_T_NEXUS_RESET, (SILENT, SILENT), False, NEXUS_LOSS),
    Row(TaskManagement.QUERY_TASK, (GOOD, GOOD), response=SUCCEEDED),
    Row(TaskManagement.QUERY_TASK_SET, (GOOD, GOOD), response=SUCCEEDED),
    Row(TaskManagement.QUERY_ASYNCHRONOUS_EVENT, (GOOD, GOOD)),
]


@pytest.mark.parametrize("tas", [False, True], ids=["TAS=0", "TAS=1"])
@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.function.name)
async def test_a_function_among_three_sessions(tmp_path: Path, row: Row, tas: bool) -> None:
    config = config_of(tmp_path, targets={TARGET: {}, SECOND: {}})
    async with serving(config, tmp_path) as live:
        level_2 = {"iSCSIProtocolLevel": "2"}
        me = Sharer(await live.log_in(keys=level_2), 1)
        other = Sharer(await live.log_in(isid=OTHER_ISID), 2)
        elsewhere = Sharer(await live.log_in(SECOND, isid=OTHER_ISID), 3)
        if tas:
            await set_task_aborted_status(me.peer)
        others = [other, elsewhere]
        for sharer in others:
            await sharer.attentions()
        store = live.hold()
        for sharer in (me, *others):
            await sharer.begin(store)
        asked = asyncio.create_task(me.peer.manage(row.function, tag=me.flying))
        await live.until(lambda: bool(live.events("task_management")))
        store.gate.set()
        assert await asked == row.response
        assert await me.attentions() == ([row.i_hear] if row.i_hear else [])
        they_hear = row.they_hear_with_tas if tas else row.they_hear
        for sharer in others:
            assert await sharer.attentions() == ([they_hear] if they_hear else [])
        theirs: int | None = GOOD
        if row.others_go:
            theirs = TASK_ABORTED if tas else SILENT
        for sharer in (me, *others):
            await sharer.peer.send(sharer.burst)  # late data is thrown away, or completes
        await live.until(lambda: not live.app._units["disk"].tasks.unfinished)
        for sharer, ends in ((me, row.me), (other, (theirs,) * 2), (elsewhere, (theirs,) * 2)):
            assert (await sharer.outcome(sharer.flying), await sharer.outcome(sharer.moving)) == (
                ends
            )
            written = await me.peer.command(read_16(sharer.lba + 8, 1), read_bytes=BLOCK)
            assert written.data == (sharer.data if ends[1] == GOOD else bytes(BLOCK))


async def test_a_cold_reset_is_heard_through_another_target(tmp_path: Path) -> None:
    """Its sessions stay; those that are dropped hear of the power on, not of their loss."""
    config = config_of(tmp_path, targets={TARGET: {}, SECOND: {}})
    async with serving(config, tmp_path) as live:
        peer, elsewhere = await live.log_in(), Sharer(await live.log_in(SECOND), 1)
        moving, pdu = elsewhere.peer.scsi(write_16(0, 1), data=b"x" * BLOCK, serve=False)
        await elsewhere.peer.send(pdu)
        await elsewhere.peer.r2t()
        assert await peer.manage(TaskManagement.TARGET_COLD_RESET) == COMPLETE
        await peer.ended()
        assert await elsewhere.attentions() == [POWER_ON]
        assert moving not in elsewhere.peer.finished
        again = Sharer(await (await live.connect()).log_in(), 2)
        assert await again.attentions() == [(0x29, 0x00)]


async def test_reservations_and_resets(tmp_path: Path) -> None:
    """A RESERVE of SPC-2 ends with a reset by anybody, a persistent reservation with none."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        holder, other = (
            Sharer(await live.log_in(), 1),
            Sharer(await live.log_in(isid=OTHER_ISID), 2),
        )
        for function in (TaskManagement.LOGICAL_UNIT_RESET, TaskManagement.TARGET_WARM_RESET):
            assert (await holder.peer.command(RESERVE_6)).status == GOOD
            assert (await other.peer.command(read_16(0, 1), read_bytes=BLOCK)).status == CONFLICT
            assert await other.peer.manage(TaskManagement.CLEAR_TASK_SET) == COMPLETE
            assert (await other.peer.command(read_16(0, 1), read_bytes=BLOCK)).status == CONFLICT
            assert await other.peer.manage(function) == COMPLETE
            await other.attentions()
            assert (await other.peer.command(read_16(0, 1), read_bytes=BLOCK)).status == GOOD
            await holder.attentions()
        await reserve_out(holder.peer, REGISTER, 0, 0xA)
        await reserve_out(holder.peer, RESERVE, 0xA)
        for function in (TaskManagement.LOGICAL_UNIT_RESET, TaskManagement.TARGET_WARM_RESET):
            assert await other.peer.manage(function) == COMPLETE
            await other.attentions()
            assert await write_status(other.peer) == CONFLICT
            await holder.attentions()
            assert await write_status(holder.peer) == GOOD
        assert await holder.peer.manage(TaskManagement.TARGET_COLD_RESET) == COMPLETE
        await holder.peer.ended()
        other = Sharer(await live.log_in(isid=OTHER_ISID), 2)
        assert await write_status(other.peer) == CONFLICT
        assert await write_status(await live.log_in()) == GOOD


RESERVE_6 = bytes([0x16, 0, 0, 0, 0, 0])
CONFLICT = 0x18


async def write_status(peer: Peer) -> int:
    done = await peer.command(write_16(0, 1), data=bytes(BLOCK), immediate_bytes=BLOCK)
    return done.status
