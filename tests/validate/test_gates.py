"""What has to be so before a check begins; and why it cannot begin where it is not."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from pyiscsi_target.client import Initiator, Portal, Reservations, Session
from pyiscsi_target.iscsi.constants import LoginStatus
from pyiscsi_target.iscsi.login import LoginError
from pyiscsi_target.scsi.task import Result
from pyiscsi_target.server import sessions
from pyiscsi_target.server.targets import Acl
from pyiscsi_target.validate import gates, node_names, pr
from pyiscsi_target.validate.model import Finding, Skipped
from pyiscsi_target.validate.rig import KEY_MARK, Rig
from tests.support.broken_target import Breaker, illegal_request
from tests.support.live import Live, config_of, serving
from tests.support.server import TARGET
from tests.support.validation import options_for

OLD_KEY = 0xABCDEF << 40 | KEY_MARK  # of an earlier run


@pytest.fixture
async def rig(live: Live) -> AsyncIterator[Rig]:
    made = Rig(options_for(live))
    yield made
    assert await made.clean_up() == []


async def test_the_first_disk_is_taken(rig: Rig) -> None:
    await gates.disk(rig)
    assert rig.disks == [0, 1]
    assert rig.disk is not None
    assert (rig.disk.block_size, rig.disk.block_count, rig.disk.thin) == (512, 8192, True)
    assert {nexus.lun for nexus in rig.nexuses()} == {0}
    assert not rig.nodes[1].nexus.connected, "one node is enough to look at it"


async def test_the_disk_that_was_asked_for(live: Live) -> None:
    rig = Rig(options_for(live, lun=1))
    await gates.disk(rig)
    assert {nexus.lun for nexus in rig.nexuses()} == {1}
    path = await rig.second_path(rig.nodes[1])
    assert path.lun == 1
    await rig.clean_up()


async def test_there_is_no_such_disk(live: Live) -> None:
    rig = Rig(options_for(live, lun=7))
    with pytest.raises(Skipped, match=r"LUN 7 is no disk of this target \(disks: 0, 1\)") as skip:
        await gates.disk(rig)
    assert skip.value.prevented
    await rig.clean_up()


async def test_there_is_no_disk_at_all(tmp_path: Path) -> None:
    config = config_of(tmp_path, targets={TARGET: {"luns": {}}})
    async with serving(config, tmp_path) as live:
        rig = Rig(options_for(live))
        with pytest.raises(Skipped, match="shows no disk") as skip:
            await gates.disk(rig)
        assert skip.value.prevented
        await rig.clean_up()


async def test_what_is_no_disk_is_passed_over(rig: Rig, breaker: Breaker) -> None:
    breaker.answer(0x12, illegal_request, when=lambda task: task.lun == 0)
    await gates.disk(rig)
    assert rig.disks == [1]


async def test_more_disks_than_are_looked_at(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gates, "_DISKS_MAXIMUM", 1)
    await gates.disk(rig)
    assert rig.disks == [0]


async def test_a_node_that_cannot_come_back(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to notice says so; from then on nothing can be asked."""
    await gates.all_nodes(rig)
    rig.nodes[1].nexus.drop()
    monkeypatch.setattr(Acl, "admit", lambda *_: None)
    with pytest.raises(Finding, match="node 2 could not log in"):
        await gates.all_nodes(rig)
    with pytest.raises(Skipped, match="node 2 could not log in") as skip:
        await gates.first_node(rig)
    assert skip.value.prevented


async def test_every_check_begins_with_a_clean_disk(rig: Rig, live: Live) -> None:
    await gates.free_disk(rig)
    await rig.second_path(rig.nodes[0])
    for node in rig.nodes:
        for nexus in node.nexuses:
            await pr.register(nexus, node.key)
    await pr.reserve(rig.first, rig.nodes[0].key)
    await pr.clear(rig.nodes[1].nexus, rig.nodes[1].key)
    await pr.register(rig.first, rig.nodes[0].key)
    await gates.free_disk(rig)
    assert not live.app._units["disk"].reservations.registrations
    for nexus in rig.nexuses():
        assert await nexus.take_attentions() == [], "nothing is left over"


async def test_a_disk_in_use_is_left_alone(rig: Rig, live: Live) -> None:
    unit = live.app._units["disk"]
    async with Session.connect(Portal(*live.address()), TARGET) as session:
        await session.ready(0)
        foreign = Reservations(session, 0)
        await foreign.register(0xF00D)
        await foreign.reserve(0xF00D, pr.WE_RO)
        before = unit.reservations
        for _ in range(2):
            with pytest.raises(Skipped, match=r"in use: others.*000000000000F00Dh") as skip:
                await gates.free_disk(rig)
            assert skip.value.prevented
        assert unit.reservations == before
        assert await session.ready(0) == [], "nobody was told anything"


async def test_a_reserve_of_others_is_left_alone(rig: Rig, live: Live) -> None:
    async with Session.connect(Portal(*live.address()), TARGET) as session:
        await session.ready(0)
        await gates.disk(rig)
        assert (await session.execute(0, bytes([0x16, 0, 0, 0, 0, 0]))).good
        with pytest.raises(Skipped, match=r"cannot be read: READ KEYS.*CONFLICT") as skip:
            await gates.free_disk(rig)
        assert skip.value.prevented


async def test_leftovers_of_a_killed_run_are_removed(rig: Rig, live: Live) -> None:
    """The same nexus comes again, so it can unregister itself."""
    for node in rig.nodes[:2]:
        async with Session.connect(
            Portal(*live.address()), TARGET, node.nexus.initiator
        ) as session:
            await session.ready(0)
            await Reservations(session, 0).register(OLD_KEY)
    await gates.free_disk(rig)
    assert not live.app._units["disk"].reservations.registrations


async def test_leftovers_under_another_name_stay(rig: Rig, live: Live) -> None:
    async with Session.connect(
        Portal(*live.address()), TARGET, Initiator("iqn.2026-11.lab.example:other")
    ) as session:
        await session.ready(0)
        await Reservations(session, 0).register(OLD_KEY)
    with pytest.raises(Skipped, match=f"{OLD_KEY:016X}h"):
        await gates.free_disk(rig)
    assert list(live.app._units["disk"].reservations.registrations.values()) == [OLD_KEY]


async def test_one_session_a_name(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sessions.SessionRegistry, "_new_tsih", _no_more_than(3, sessions.SessionRegistry._new_tsih)
    )
    await gates.free_disk(rig)
    with pytest.raises(Skipped, match="a second session of one node is refused") as skip:
        await gates.second_paths(rig)
    assert skip.value.prevented


def _no_more_than(count: int, real: object) -> object:
    def new_tsih(registry: sessions.SessionRegistry, agreement: object) -> object:
        if len(registry.by_tsih) >= count:
            raise LoginError(LoginStatus.OUT_OF_RESOURCES, "too many sessions")
        return real(registry, agreement)  # type: ignore[operator]

    return new_tsih


async def test_a_third_nexus(live: Live) -> None:
    two, three = (Rig(options_for(live, initiator_names=node_names(n))) for n in (2, 3))
    for rig, paths in ((two, [2, 2]), (three, [1, 1, 1])):
        await gates.free_disk(rig)
        await gates.third_nexus(rig)
        assert [len(node.nexuses) for node in rig.nodes] == paths
        await rig.clean_up()


@pytest.mark.parametrize("offset", [510, 1 << 16, (128 << 10) - 1])
async def test_a_disk_with_data_may_be_used(live: Live, tmp_path: Path, offset: int) -> None:
    """A host without registrations cannot be seen, its file system can."""
    with (tmp_path / "disk.img").open("r+b") as image:
        image.seek(offset)
        image.write(b"\x55")
    for idle in (False, True):
        rig = Rig(options_for(live, idle=idle))
        if idle:
            await gates.free_disk(rig)
        else:
            with pytest.raises(Skipped, match=r"holds data.*--idle") as skip:
                await gates.free_disk(rig)
            assert skip.value.prevented
        assert await rig.clean_up() == []


async def test_a_disk_without_data_needs_no_word(live: Live) -> None:
    rig = Rig(options_for(live, idle=False))
    await gates.free_disk(rig)
    assert rig.may_be_registered
    await rig.clean_up()


async def test_leave_to_write(live: Live, rig: Rig) -> None:
    await gates.free_disk(rig)
    assert rig.scratch_before is None
    with pytest.raises(Skipped, match="run again with --allow-writes") as skip:
        await gates.writes(rig)
    assert not skip.value.prevented, "it was the user's choice"
    await rig.clean_up()
    writing = Rig(options_for(live, allow_writes=True))
    await gates.free_disk(writing)
    await gates.writes(writing)
    assert writing.scratch_before == bytes(1024)
    await writing.clean_up()


async def test_a_protected_disk_takes_no_writes(live: Live, breaker: Breaker) -> None:
    rig = Rig(options_for(live, allow_writes=True))
    await gates.free_disk(rig)
    await gates.unprotected(rig)
    for flags, protected in ((0x10, False), (0x90, True)):
        header = Result(data=bytes([3, 0, flags, 0]))
        breaker.answer(0x1A, lambda *_, header=header: header)
        assert await gates.write_protected(rig.first) is protected
    for gate in (gates.unprotected, gates.writes):
        with pytest.raises(Skipped, match="is write protected") as skip:
            await gate(rig)
        assert skip.value.prevented
    breaker.answer(0x1A, illegal_request)
    await gates.unprotected(rig)  # whoever cannot say it may still take writes
    await rig.clean_up()


async def test_a_disk_without_capacity(rig: Rig, breaker: Breaker) -> None:
    breaker.answer(0x9E, lambda *_: Result(data=b""))
    with pytest.raises(Exception, match=r"READ CAPACITY\(16\)"):
        await gates.disk(rig)
