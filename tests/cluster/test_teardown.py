"""Two nodes, one disk: what a node had under way when the other preempted it never lands later.

A owns the disk and has a write at some stage; its connection ends in some way, or does not; B
preempts, with and without AND ABORT, writes over everything, and finds it so for good.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from pyiscsi_target.iscsi.constants import FINAL, CommandFlag, Opcode
from pyiscsi_target.iscsi.pdu import DataOut, ScsiCommand
from pyiscsi_target.scsi.task import TaskAttribute
from tests.support.live import MIB, HeldStore, Live, config_of, serving
from tests.support.memory import frame
from tests.support.peer import Peer
from tests.support.raw_initiator import read_16, write_16
from tests.support.reserving import (
    PREEMPT,
    PREEMPT_AND_ABORT,
    REGISTER,
    RESERVE,
    persistent_reserve_out,
    reserve_out,
)

BLOCK = 512
ISID_A, ISID_B = bytes(5) + b"\x0a", bytes(5) + b"\x0b"
KEY_A, KEY_B = 0xA, 0xB
SIZE = MIB  # what the contested writes cover
HELD_FROM = 32 * MIB  # a slow region, for what others have to wait for
SLOW_LBA = HELD_FROM // BLOCK
OF_A, OF_B, OLD = b"a", b"b", b"\0"


async def settle() -> None:
    """Let everything run that can run, sockets too."""
    for _ in range(50):
        await asyncio.sleep(0)


class Node:
    """A, with its store; a stage leaves bytes in `late` that its host would still send."""

    def __init__(self, live: Live, peer: Peer, store: HeldStore) -> None:
        self.live = live
        self.peer = peer
        self.store = store
        self.late = b""

    async def begin(self, cdb: bytes, data: bytes, attribute: int = 1) -> None:
        """A command whose data all comes with it."""
        _, pdu = self.peer.scsi(
            cdb, data=data, immediate_bytes=len(data), attribute=attribute, serve=False
        )
        await self.peer.send(pdu)


# Stages: each returns when the server has come so far with A's write


async def before_data_out(node: Node) -> None:
    """R2T is out, and nothing has come."""
    data = OF_A * SIZE
    _, pdu = node.peer.scsi(write_16(0, SIZE // BLOCK), data=data, serve=False)
    await node.peer.send(pdu)
    node.late = node.peer.data_out(await node.peer.r2t(), data)


async def amid_data_out(node: Node) -> None:
    """Half of the burst has come, up to the middle of a PDU."""
    await before_data_out(node)
    half = len(node.late) // 2 + 1000
    await node.peer.send(node.late[:half])
    node.late = node.late[half:]
    await settle()


async def before_the_last_byte(node: Node) -> None:
    await before_data_out(node)
    await node.peer.send(node.late[:-1])
    node.late = node.late[-1:]
    await settle()


async def amid_unsolicited_data(node: Node) -> None:
    """The first burst was announced with the command; a part of it has come, then nothing."""
    length = 64 * 1024
    peer = node.peer
    command = ScsiCommand(
        Opcode.SCSI_COMMAND,
        CommandFlag.WRITE | 1,  # F=0: unsolicited Data-Out follows
        0,
        0,
        peer.next_tag(),
        length,
        peer.cmd_sn,
        peer.exp_stat_sn,
        write_16(0, length // BLOCK),
    )
    peer.cmd_sn += 1
    pdus = [
        frame(
            DataOut(
                Opcode.DATA_OUT,
                FINAL if offset else 0,
                0,
                0,
                command.itt,
                0xFFFFFFFF,
                0,
                number,
                offset,
            ),
            OF_A * (length // 2),
        )
        for number, offset in enumerate((0, length // 2))
    ]
    await peer.send(frame(command), pdus[0])
    node.late = pdus[1]
    await settle()


async def waiting_for_its_turn(node: Node) -> None:
    """An ORDERED write behind one that the disk is slow with."""
    await node.begin(write_16(SLOW_LBA, 1), OF_A * BLOCK)
    await node.store.begun.get()
    await node.begin(write_16(0, 8), OF_A * 8 * BLOCK, int(TaskAttribute.ORDERED))
    await settle()


async def waiting_for_its_blocks(node: Node) -> None:
    """A write behind a COMPARE AND WRITE of the same blocks that the disk is slow with."""
    compare_and_write = bytes([0x89, 0, *SLOW_LBA.to_bytes(8), 0, 0, 0, 1, 0, 0])
    await node.begin(compare_and_write, OLD * BLOCK + OF_A * BLOCK)
    await node.store.begun.get()
    await node.begin(write_16(SLOW_LBA, 8), OF_A * 8 * BLOCK)
    await settle()


async def running(node: Node) -> None:
    """In the hands of a worker thread, from where nothing can be taken back."""
    await node.begin(write_16(SLOW_LBA, 8), OF_A * 8 * BLOCK)
    await node.store.begun.get()


async def running_durably(node: Node) -> None:
    """With FUA."""
    cdb = bytearray(write_16(SLOW_LBA, 8))
    cdb[1] |= 0x08
    await node.begin(bytes(cdb), OF_A * 8 * BLOCK)
    await node.store.begun.get()


Stage = Callable[[Node], Awaitable[None]]
IN_TRANSFER: list[Stage] = [
    before_data_out,
    amid_data_out,
    before_the_last_byte,
    amid_unsolicited_data,
]
BEHIND_A_SLOW_DISK: list[Stage] = [
    waiting_for_its_turn,
    waiting_for_its_blocks,
    running,
    running_durably,
]
STAGES = IN_TRANSFER + BEHIND_A_SLOW_DISK


# Ends of A's connection


async def no_end(node: Node) -> None:
    """A hangs: nothing is heard of it, but its connection stands."""


async def reset(node: Node) -> None:
    node.peer.reset()
    await node.live.until(lambda: bool(node.live.events("connection_lost")))


async def close(node: Node) -> None:
    node.peer.close()
    await node.live.until(lambda: bool(node.live.events("connection_lost")))


async def log_out(node: Node) -> None:
    await node.peer.log_out()


async def log_in_again(node: Node) -> None:
    """Session reinstatement, which waits for the old session's writes."""
    again = await node.live.connect()
    await again.send(again.login_request(isid=ISID_A))
    await node.live.until(lambda: bool(node.live.events("connection_lost")))


ENDS = [no_end, reset, close, log_out, log_in_again]


def pairs(stages: Sequence[Stage], ends: Sequence[Stage]) -> pytest.MarkDecorator:
    """All of them; but where half a PDU was sent, nothing but its other half can follow."""
    cut = (amid_data_out, before_the_last_byte)
    both = [(s, e) for s in stages for e in ends if not (s in cut and e is log_out)]
    ids = [f"{s.__name__}-{e.__name__}" for s, e in both]
    return pytest.mark.parametrize(("stage", "end"), both, ids=ids)


@pytest.mark.parametrize("action", [PREEMPT, PREEMPT_AND_ABORT], ids=["PREEMPT", "AND_ABORT"])
@pairs(STAGES, ENDS)
async def test_nothing_of_the_preempted_lands_after_good(
    tmp_path: Path, stage: Stage, end: Stage, action: int
) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        a, b = await live.log_in(isid=ISID_A), await live.log_in(isid=ISID_B)
        await reserve_out(a, REGISTER, 0, KEY_A)
        await reserve_out(b, REGISTER, 0, KEY_B)
        await reserve_out(a, RESERVE, KEY_A)
        node = Node(live, a, live.hold(held_from=HELD_FROM))
        await stage(node)
        await end(node)

        fence = asyncio.create_task(persistent_reserve_out(b, action, KEY_B, KEY_A))
        unit = live.app._units["disk"]
        await live.until(lambda: len(unit.reservations.registrations) == 1)
        await settle()
        if stage in BEHIND_A_SLOW_DISK:
            assert not fence.done(), "GOOD while a write of the preempted is running"
        else:
            assert (await fence).status == 0
        node.store.gate.set()
        assert (await fence).status == 0
        await write_over_all(b)
        if end is no_end and node.late:
            with contextlib.suppress(ConnectionError):
                await a.send(node.late)
        await settle()
        assert await whose(b, 0) == OF_B
        assert await whose(b, SLOW_LBA) == OF_B


async def write_over_all(b: Peer) -> None:
    for lba in (0, SLOW_LBA):
        done = await b.command(write_16(lba, SIZE // BLOCK), data=OF_B * SIZE)
        assert done.status == 0


async def whose(b: Peer, lba: int) -> bytes:
    """The one byte that the contested blocks are full of."""
    data = (await b.command(read_16(lba, SIZE // BLOCK), read_bytes=SIZE)).data
    assert data == data[:1] * SIZE, "of both"
    return data[:1]


@pairs(IN_TRANSFER, ENDS[1:])
async def test_a_write_in_transfer_is_never_applied_in_part(
    tmp_path: Path, stage: Stage, end: Stage
) -> None:
    """Not even where nobody preempts: a write that was not complete did not happen."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        a, b = await live.log_in(isid=ISID_A), await live.log_in(isid=ISID_B)
        node = Node(live, a, live.hold(held_from=HELD_FROM))
        await stage(node)
        await end(node)
        await settle()
        assert await whose(b, 0) == OLD
        assert not live.app._units["disk"].tasks.unfinished


@pytest.mark.parametrize("end", ENDS[1:4], ids=lambda end: end.__name__)
async def test_what_waits_behind_a_lost_write_does_not_wait_for_ever(
    tmp_path: Path, end: Stage
) -> None:
    """An ORDERED command of B behind A's transfer goes on as soon as A is gone."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        a, b = await live.log_in(isid=ISID_A), await live.log_in(isid=ISID_B)
        node = Node(live, a, live.hold(held_from=HELD_FROM))
        await before_data_out(node)
        cdb, attribute = write_16(0, SIZE // BLOCK), int(TaskAttribute.ORDERED)
        writing = asyncio.create_task(b.command(cdb, data=OF_B * SIZE, attribute=attribute))
        await settle()
        assert not writing.done()
        await end(node)
        assert (await writing).status == 0
        assert await whose(b, 0) == OF_B


async def test_a_preempt_at_the_head_of_the_queue_passes_a_hanging_transfer(
    tmp_path: Path,
) -> None:
    """SPC-4 clause 5.13.11.2.4.2 fears a task set that a failed initiator blocks; this one is not:
    clusters send PREEMPT with HEAD OF QUEUE, and what is in transfer waits by itself."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        a, b = await live.log_in(isid=ISID_A), await live.log_in(isid=ISID_B)
        await reserve_out(a, REGISTER, 0, KEY_A)
        await reserve_out(b, REGISTER, 0, KEY_B)
        await reserve_out(a, RESERVE, KEY_A)
        node = Node(live, a, live.hold(held_from=HELD_FROM))
        await before_data_out(node)
        _, ordered = a.scsi(
            write_16(0, 1),
            data=OF_A * BLOCK,
            immediate_bytes=BLOCK,
            attribute=int(TaskAttribute.ORDERED),
        )
        await a.send(ordered)
        await reserve_out(b, PREEMPT, KEY_B, KEY_A)
        await write_over_all_of_transfer(b)
        await a.send(node.late)
        await settle()
        assert await whose(b, 0) == OF_B


async def write_over_all_of_transfer(b: Peer) -> None:
    """As HEAD OF QUEUE: A's ORDERED write is before it and waits for A's transfer."""
    done = await b.command(
        write_16(0, SIZE // BLOCK),
        data=OF_B * SIZE,
        attribute=int(TaskAttribute.HEAD_OF_QUEUE),
    )
    assert done.status == 0
