"""One disk in two targets, at two LUNs of one of them, through two portals: one reservation state.

Each target at each portal is a SCSI target port of its own, so one initiator port that logs in to
all four has four I_T nexuses, each with its own registration, unit attentions and tasks.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from pyiscsi_target.client import (
    Initiator,
    Portal,
    Reservations,
    ReservationType,
    Session,
    Status,
    TaskManagement,
)
from pyiscsi_target.client.commands import write_16
from pyiscsi_target.scsi import transport_ids
from tests.support.live import MIB, Live, config_of, serving
from tests.support.server import TARGET

SECOND = "iqn.2026-11.example.test:second"
LUN, SAME_LUN, LUN_AT_SECOND = 0, 3, 5
PATHS = [(TARGET, 0), (TARGET, 1), (SECOND, 0), (SECOND, 1)]
A = Initiator("iqn.2026-11.example.test:a", bytes(5) + b"\x0a")
B = Initiator("iqn.2026-11.example.test:b", bytes(5) + b"\x0b")
KEY_A, KEY_B = 0xA, 0xB
KIND = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
ALL = ReservationType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS
PREEMPTED, CLEARED, RELEASED = (0x2A, 0x05), (0x2A, 0x03), (0x2A, 0x04)
LU_RESET = (0x29, 0x03)
RESERVE_6, RELEASE_6 = bytes([0x16, 0, 0, 0, 0, 0]), bytes([0x17, 0, 0, 0, 0, 0])
BLOCK = 512


def lun_of(session: Session) -> int:
    return LUN if session.target == TARGET else LUN_AT_SECOND


def of(session: Session) -> Reservations:
    return Reservations(session, lun_of(session))


class Cluster:
    """A server, and who logs in to it."""

    def __init__(self, live: Live) -> None:
        self.live = live
        self.sessions: list[Session] = []

    async def connect(self, initiator: Initiator, target: str, portal: int) -> Session:
        session = await Session.connect(Portal(*self.live.address(portal)), target, initiator)
        self.sessions.append(session)
        await session.ready(lun_of(session))
        return session

    async def all_paths(self, initiator: Initiator) -> list[Session]:
        return [await self.connect(initiator, target, portal) for target, portal in PATHS]


@contextlib.asynccontextmanager
async def cluster_of(directory: Path) -> AsyncIterator[Cluster]:
    config = config_of(
        directory,
        server={"portals": ["127.0.0.1:0", "127.0.0.1:0"], "state_dir": directory / "state"},
        disks={"disk": {"path": "disk.img", "size": 64 * MIB}},
        targets={
            TARGET: {"luns": {LUN: "disk"}},
            SECOND: {"luns": {LUN_AT_SECOND: "disk"}},
        },
    )
    # A config file may give a disk only one LUN for each initiator; the engine does not mind more.
    target = config.targets[TARGET].model_copy(update={"luns": {LUN: "disk", SAME_LUN: "disk"}})
    config = config.model_copy(update={"targets": {**config.targets, TARGET: target}})
    async with serving(config, directory) as live:
        cluster = Cluster(live)
        try:
            yield cluster
        finally:
            for session in cluster.sessions:
                await session.close()


async def write_status(session: Session, lun: int | None = None) -> int:
    where = lun_of(session) if lun is None else lun
    return (await session.execute(where, write_16(0, 1), data_out=bytes(BLOCK))).status


async def relative_target_port(session: Session) -> int:
    """From the designators of VPD page 83h (SPC-5 clause 7.7.6)."""
    page = await session.vital_product_data(lun_of(session), 0x83)
    offset = 4
    while offset < len(page):
        kind, length = page[offset + 1] & 0x3F, page[offset + 3]
        if kind == 0x14:  # of the target port, relative target port identifier
            return int.from_bytes(page[offset + 6 : offset + 8])
        offset += 4 + length
    raise AssertionError("no relative target port identifier")


async def logical_unit_names(session: Session, lun: int) -> list[bytes]:
    page = await session.vital_product_data(lun, 0x83)
    names, offset = [], 4
    while offset < len(page):
        end = offset + 4 + page[offset + 3]
        if not page[offset + 1] & 0x30:
            names.append(page[offset:end])
        offset = end
    return names


async def test_every_path_sees_the_same(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        a = await cluster.connect(A, TARGET, 0)
        b = await cluster.all_paths(B)
        await of(a).register(KEY_A)
        await of(a).reserve(KEY_A, KIND)
        names = await logical_unit_names(a, LUN)
        assert await logical_unit_names(a, SAME_LUN) == names
        for path in b:
            assert await of(path).read_keys() == (1, [KEY_A])
            held = await of(path).read_reservation()
            assert held is not None
            assert (held.key, held.type) == (KEY_A, KIND)
            assert await write_status(path) == Status.RESERVATION_CONFLICT
            assert await logical_unit_names(path, lun_of(path)) == names
        assert await write_status(b[0], SAME_LUN) == Status.RESERVATION_CONFLICT
        assert await write_status(a, SAME_LUN) == Status.GOOD


async def test_initiators_that_see_the_disk_at_different_luns(tmp_path: Path) -> None:
    rules = [{"name": A.name, "luns": {1: "disk"}}, {"name": B.name, "luns": {2: "disk"}}]
    async with serving(
        config_of(tmp_path, targets={TARGET: {"initiators": rules}}), tmp_path
    ) as live:
        sessions = [await Session.connect(Portal(*live.address()), TARGET, who) for who in (A, B)]
        a, b = (Reservations(session, lun) for lun, session in enumerate(sessions, 1))
        for reservations in (a, b):
            await reservations.session.ready(reservations.lun)
        await a.register(KEY_A)
        await a.reserve(KEY_A, KIND)
        assert await write_status(b.session, 2) == Status.RESERVATION_CONFLICT
        await b.register(KEY_B)
        await b.preempt(KEY_B, KEY_A, KIND, abort=True)
        assert await a.session.ready(1) == [PREEMPTED]
        assert await write_status(a.session, 1) == Status.RESERVATION_CONFLICT
        assert await write_status(b.session, 2) == Status.GOOD
        for session in sessions:
            await session.close()


async def test_every_target_at_every_portal_is_a_port(tmp_path: Path) -> None:
    """READ FULL STATUS and VPD page 83h agree on which."""
    async with cluster_of(tmp_path) as cluster:
        a = await cluster.all_paths(A)
        for path in a:
            await of(path).register(KEY_A)
        ports = [await relative_target_port(path) for path in a]
        assert sorted(set(ports)) == sorted(ports) == [1, 2, 3, 4]
        _, registrations = await of(a[0]).read_full_status()
        assert [it.relative_target_port for it in registrations] == ports
        assert {(it.key, it.initiator_port) for it in registrations} == {(KEY_A, A.port_name)}
        await of(a[2]).reserve(KEY_A, KIND)
        _, registrations = await of(a[0]).read_full_status()
        assert [it.is_holder for it in registrations] == [False, False, True, False]


async def test_four_nexuses_of_one_initiator_port_are_four_registrants(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        a = await cluster.all_paths(A)
        await of(a[0]).register(KEY_A)
        await of(a[0]).reserve(KEY_A, KIND)
        for path in a[1:]:
            assert await write_status(path) == Status.RESERVATION_CONFLICT
            await of(path).register(KEY_A)
            assert await write_status(path) == Status.GOOD
        await of(a[2]).register(0, existing=KEY_A)
        assert [await write_status(path) for path in a] == [
            Status.GOOD,
            Status.GOOD,
            Status.RESERVATION_CONFLICT,
            Status.GOOD,
        ]


@pytest.mark.parametrize("abort", [False, True], ids=["PREEMPT", "AND_ABORT"])
async def test_a_preempt_drops_every_nexus_and_tells_each_once(tmp_path: Path, abort: bool) -> None:
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.all_paths(A), await cluster.connect(B, SECOND, 1)
        for path in a:
            await of(path).register(KEY_A)
        await of(a[0]).reserve(KEY_A, KIND)
        await of(b).register(KEY_B)
        await of(b).preempt(KEY_B, KEY_A, KIND, abort=abort)
        assert await of(b).read_keys() == (6, [KEY_B])
        for path in a:
            assert await path.ready(lun_of(path)) == [PREEMPTED]
            assert await write_status(path) == Status.RESERVATION_CONFLICT
        assert await a[0].ready(SAME_LUN) == [], "it was told at the other LUN of the disk"
        assert await b.ready(lun_of(b)) == []


@pytest.mark.parametrize(
    ("request_", "told"),
    [
        (lambda b: b.clear(KEY_B), CLEARED),
        (lambda b: b.release(KEY_B, ALL), RELEASED),
    ],
    ids=["CLEAR", "RELEASE"],
)
async def test_each_nexus_is_told_once(
    tmp_path: Path, request_: Callable[[Reservations], object], told: tuple[int, int]
) -> None:
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.all_paths(A), await cluster.connect(B, TARGET, 0)
        stranger = await cluster.connect(Initiator("iqn.2026-11.example.test:c"), TARGET, 0)
        for path in a:
            await of(path).register(KEY_A)
        await of(b).register(KEY_B)
        await of(b).reserve(KEY_B, ALL)
        await request_(of(b))  # type: ignore[misc]
        for path in a:
            assert await path.ready(lun_of(path)) == [told]
        assert await stranger.ready(LUN) == await b.ready(LUN) == []


async def test_registering_through_all_target_ports(tmp_path: Path) -> None:
    """ALL_TG_PT: one request, four registrations, of one initiator port."""
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.all_paths(A), await cluster.connect(B, TARGET, 0)
        await of(a[1]).register(KEY_A, all_target_ports=True)
        generation, registrations = await of(b).read_full_status()
        assert generation == 1
        assert sorted(it.relative_target_port for it in registrations) == [1, 2, 3, 4]
        await of(a[3]).reserve(KEY_A, KIND)
        assert [await write_status(path) for path in a] == [Status.GOOD] * 4
        assert await write_status(b) == Status.RESERVATION_CONFLICT
        await of(a[0]).register(0, existing=KEY_A, all_target_ports=True)
        assert await of(b).read_keys() == (2, [])


async def test_registering_other_initiator_ports(tmp_path: Path) -> None:
    """SPEC_I_PT registers them through the target port that was asked."""
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.connect(A, SECOND, 0), await cluster.all_paths(B)
        listed = [transport_ids.encode(B.port_name)]
        await of(a).register(KEY_A, transport_ids=listed)
        await of(a).reserve(KEY_A, KIND)
        access = {path: await write_status(path) for path in b}
        assert [path for path, status in access.items() if status == Status.GOOD] == [b[2]]
        _, registrations = await of(a).read_full_status()
        assert {(it.initiator_port, it.relative_target_port) for it in registrations} == {
            (A.port_name, await relative_target_port(a)),
            (B.port_name, await relative_target_port(b[2])),
        }


async def test_registering_other_initiator_ports_through_all_target_ports(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.connect(A, SECOND, 0), await cluster.all_paths(B)
        listed = [transport_ids.encode(B.port_name)]
        await of(a).register(KEY_A, transport_ids=listed, all_target_ports=True)
        await of(a).reserve(KEY_A, KIND)
        assert [await write_status(path) for path in b] == [Status.GOOD] * 4


@pytest.mark.parametrize("unregister", [False, True])
async def test_moving_the_reservation_to_another_target_port(
    tmp_path: Path, unregister: bool
) -> None:
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.connect(A, TARGET, 0), await cluster.all_paths(B)
        await of(a).register(KEY_A)
        await of(a).reserve(KEY_A, ReservationType.WRITE_EXCLUSIVE)
        await of(a).register_and_move(
            KEY_A,
            KEY_B,
            transport_ids.encode(B.port_name),
            await relative_target_port(b[3]),
            unregister=unregister,
        )
        assert [await write_status(path) for path in (a, *b)] == [
            Status.RESERVATION_CONFLICT,
            Status.RESERVATION_CONFLICT,
            Status.RESERVATION_CONFLICT,
            Status.RESERVATION_CONFLICT,
            Status.GOOD,
        ]
        assert await of(a).read_keys() == (2, [KEY_B] if unregister else [KEY_A, KEY_B])


async def test_a_reserve_conflicts_with_the_same_initiator_through_another_target(
    tmp_path: Path,
) -> None:
    """RESERVE(6) belongs to one nexus, and ends with it; other nexuses' ends change nothing."""
    async with cluster_of(tmp_path) as cluster:
        first, second = await cluster.connect(A, TARGET, 0), await cluster.connect(A, SECOND, 0)
        assert (await first.execute(SAME_LUN, RESERVE_6)).good
        assert await write_status(first) == Status.GOOD
        assert await write_status(second) == Status.RESERVATION_CONFLICT
        assert (await second.execute(LUN_AT_SECOND, RELEASE_6)).good
        assert await write_status(second) == Status.RESERVATION_CONFLICT
        await second.logout()
        await second.reconnect()
        attention = (await second.execute(LUN_AT_SECOND, bytes(6))).sense
        assert attention is not None
        assert attention.is_unit_attention
        assert await write_status(second) == Status.RESERVATION_CONFLICT
        first.drop()
        await cluster.live.until(lambda: bool(cluster.live.events("connection_lost")))
        assert await write_status(second) == Status.GOOD


async def test_the_loss_of_one_session_leaves_the_other_alone(tmp_path: Path) -> None:
    """Two sessions of one initiator port, with one ISID, at two targets: two nexuses."""
    async with cluster_of(tmp_path) as cluster:
        first, second = await cluster.connect(A, TARGET, 0), await cluster.connect(A, SECOND, 0)
        b = await cluster.connect(B, TARGET, 0)
        for path in (first, second):
            await of(path).register(KEY_A)
        await of(first).reserve(KEY_A, KIND)
        await of(b).register(KEY_B)
        store = cluster.live.hold(held_from=32 * MIB)
        writing = second.submit(
            LUN_AT_SECOND, write_16(32 * MIB // BLOCK, 1), data_out=b"a" * BLOCK
        )
        await store.begun.get()
        first.drop()
        await cluster.live.until(lambda: bool(cluster.live.events("connection_lost")))
        assert not writing.done
        assert len((await of(b).read_keys())[1]) == 3, "registrations outlive their sessions"
        store.gate.set()
        assert (await writing).good
        assert await second.ready(LUN_AT_SECOND) == []
        assert await write_status(second) == Status.GOOD


async def test_an_abort_through_one_target_reaches_tasks_of_another(tmp_path: Path) -> None:
    """PREEMPT AND ABORT waits for the writes of each nexus that it preempts."""
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.all_paths(A), await cluster.connect(B, TARGET, 0)
        for path in a:
            await of(path).register(KEY_A)
        await of(a[0]).reserve(KEY_A, KIND)
        await of(b).register(KEY_B)
        store = cluster.live.hold(held_from=32 * MIB)
        writes = []
        for number, path in enumerate(a):
            lba = 32 * MIB // BLOCK + number
            writes.append(path.submit(lun_of(path), write_16(lba, 1), data_out=b"a" * BLOCK))
            await store.begun.get()
        fence = asyncio.create_task(of(b).preempt(KEY_B, KEY_A, KIND, abort=True))
        unit = cluster.live.app._units["disk"]
        await cluster.live.until(lambda: len(unit.reservations.registrations) == 1)
        assert all(task.aborted for task in unit.tasks.begun() if task.cdb[0] == 0x8A)
        assert not fence.done()
        store.gate.set()
        await fence
        for path in a:
            assert await path.ready(lun_of(path)) == [PREEMPTED]
        assert not any(write.done for write in writes)


async def test_a_reset_is_heard_once_by_each_nexus(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        a, b = await cluster.all_paths(A), await cluster.connect(B, SECOND, 1)
        assert await b.task_management(TaskManagement.LOGICAL_UNIT_RESET, LUN_AT_SECOND) == 0
        for path in (*a, b):
            assert await path.ready(lun_of(path)) == [LU_RESET]
        assert await a[0].ready(SAME_LUN) == []


async def test_registrations_find_their_ports_after_a_restart(tmp_path: Path) -> None:
    async with cluster_of(tmp_path) as cluster:
        a = await cluster.all_paths(A)
        for path in (a[1], a[2]):
            await of(path).register(KEY_A)
        await of(a[1]).reserve(KEY_A, KIND)
        before = await of(a[0]).read_full_status()
    async with cluster_of(tmp_path) as cluster:
        a = await cluster.all_paths(A)
        assert await of(a[0]).read_full_status() == before
        assert [await write_status(path) for path in a] == [
            Status.RESERVATION_CONFLICT,
            Status.GOOD,
            Status.GOOD,
            Status.RESERVATION_CONFLICT,
        ]
