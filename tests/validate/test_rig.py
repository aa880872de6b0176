"""The rig: names, keys, scratch blocks, and that nobody else's registration is ever touched."""

import socket
from collections.abc import AsyncIterator

import pytest

from pyiscsi_target.client import ConnectionLost, Portal, Reservations, Session
from pyiscsi_target.scsi.reservations import Change, NexusKey, Request, ServiceAction, State
from pyiscsi_target.validate import gates, node_names, pr
from pyiscsi_target.validate.model import Finding, Skipped
from pyiscsi_target.validate.rig import KEY_MARK, Disk, Rig, reach
from tests.support.broken_target import REFUSED, Breaker
from tests.support.live import Live
from tests.support.server import TARGET
from tests.support.validation import options_for

FOREIGN_KEY = 0xF00D


@pytest.fixture
async def rig(live: Live) -> AsyncIterator[Rig]:
    made = Rig(options_for(live))
    await gates.disk(made)
    await gates.all_nodes(made)
    yield made
    assert await made.clean_up() == []


async def register_a_stranger(live: Live, key: int = FOREIGN_KEY) -> None:
    """Somebody else's registration, whose session is gone."""
    async with Session.connect(Portal(*live.address()), TARGET) as session:
        await session.ready(0)
        await Reservations(session, 0).register(key)


def registered(live: Live) -> list[int]:
    return list(live.app._units["disk"].reservations.registrations.values())


@pytest.mark.parametrize(
    ("given", "names"),
    [
        ((), [f"iqn.2026-11.org.pyiscsi-target:validate-node-{n}" for n in (1, 2, 3)]),
        (("iqn.a:node{n}",), ["iqn.a:node1", "iqn.a:node2", "iqn.a:node3"]),
        (("iqn.a:all",), ["iqn.a:all"] * 3),
        (("iqn.a:x", "iqn.a:y", "iqn.a:z"), ["iqn.a:x", "iqn.a:y", "iqn.a:z"]),
    ],
)
def test_names_of_nodes(given: tuple[str, ...], names: list[str]) -> None:
    assert list(node_names(3, given)) == names


def test_too_few_names() -> None:
    with pytest.raises(ValueError, match="2 initiator names for 3 nodes"):
        node_names(3, ("iqn.a:x", "iqn.a:y"))


@pytest.mark.parametrize(
    ("block_size", "block_count", "lba"),
    [
        (512, 1 << 20, 2046),
        (4096, 1 << 20, 254),
        (512, 2048, 2046),
        (512, 100, 98),
        (1 << 21, 10, 0),
        (512, 1, 0),
    ],
    ids=["512", "4096", "one MiB", "less", "blocks of 2 MiB", "one block"],
)
def test_scratch_blocks_lie_at_the_end_of_the_first_mib(
    block_size: int, block_count: int, lba: int
) -> None:
    disk = Disk(block_size, block_count, thin=True, reads_zeroes=True)
    assert disk.scratch_lba == lba


def test_keys_are_marked_and_never_the_same(live: Live) -> None:
    rig = Rig(options_for(live))
    keys = [node.key for node in rig.nodes] + [rig.new_key() for _ in range(20)]
    assert len(set(keys)) == 23
    assert all(0 < key < 1 << 64 and key & 0xFFFF_FFFF == KEY_MARK for key in keys)
    assert all(map(rig.is_own, keys))
    assert not rig.is_own(FOREIGN_KEY)
    other = Rig(options_for(live))
    assert not any(map(other.is_own, keys)), "another run has other keys"


async def test_only_own_registrations_go(live: Live, rig: Rig) -> None:
    await register_a_stranger(live)
    for node in rig.nodes:
        await pr.register(node.nexus, node.key)
    await rig.unregister_all()
    assert registered(live) == [FOREIGN_KEY]
    assert await rig.strangers() == [FOREIGN_KEY]


async def test_no_clear_takes_away_others(live: Live, rig: Rig) -> None:
    await pr.register(rig.first, rig.nodes[0].key)
    await register_a_stranger(live)
    with pytest.raises(Skipped, match="others have registered: 000000000000F00Dh"):
        await rig.clear(rig.first, rig.nodes[0].key)
    assert registered(live) == [rig.nodes[0].key, FOREIGN_KEY]
    rig.may_be_registered = True


async def test_registrations_that_stay(rig: Rig, breaker: Breaker) -> None:
    await pr.register(rig.first, rig.nodes[0].key)

    def never(state: State, requester: NexusKey, request: Request, right: Change) -> Change:
        return Change(state) if request.action is ServiceAction.CLEAR else Change(REFUSED)

    with breaker.patch.context() as patch:
        Breaker(patch, breaker.live).reservations(never)
        with pytest.raises(Finding):
            await rig.unregister_all()
        rig.may_be_registered = True
        (problem,) = await rig.clean_up()
        assert problem.startswith("reservations: ")
    await gates.all_nodes(rig)


async def test_a_second_path_is_kept(rig: Rig, live: Live) -> None:
    rig.paths = [Portal(*live.address(0)), Portal(*live.address(1))]
    path = await rig.second_path(rig.nodes[0])
    assert path.portal == rig.paths[1]
    assert await rig.second_path(rig.nodes[0]) is path
    path.drop()
    assert await rig.second_path(rig.nodes[0]) is path
    assert path.connected
    assert rig.node_facts()[0].nexuses == (
        (str(rig.paths[0]), "8056414c0101"),
        (str(rig.paths[1]), "8056414c0102"),
    )


async def test_the_scratch_blocks_are_put_back(rig: Rig) -> None:
    rig.scratch_before = await rig.read_scratch(rig.first)
    await rig.write_scratch(rig.first, b"\xaa" * 1024)
    assert rig.scratch_changed
    assert await rig.read_scratch(rig.nodes[1].nexus) == b"\xaa" * 1024
    await rig.restore_scratch()
    assert await rig.read_scratch(rig.nodes[1].nexus) == rig.scratch_before
    assert not rig.scratch_changed


async def test_reach() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        await reach(Portal("127.0.0.1", port), 5)
    with pytest.raises(ConnectionLost, match=f"127.0.0.1:{port}: Connection refused"):
        await reach(Portal("127.0.0.1", port), 5)
    with pytest.raises(ConnectionLost, match=r"nobody\.invalid:1: .*(not known|resolution)"):
        await reach(Portal("nobody.invalid", 1), 5)


async def test_reach_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(host: str, port: int) -> None:
        raise TimeoutError

    monkeypatch.setattr("asyncio.open_connection", never)
    with pytest.raises(ConnectionLost, match="no connection within 5 s"):
        await reach(Portal("127.0.0.1", 3260), 5)
