"""What one peer may see and use, by where it came from and which portal it reached."""

from pathlib import Path

import pytest

from pyiscsi_target.iscsi.constants import LoginStatus
from pyiscsi_target.iscsi.login import LoginError
from pyiscsi_target.server.config_values import Endpoint
from pyiscsi_target.server.policy import Peer, PeerPolicy, Portal
from pyiscsi_target.server.targets import ConfiguredTargets
from tests.support.live import Live, config_of, serving
from tests.support.peer import INITIATOR, LoginRefused
from tests.support.raw_initiator import read_16
from tests.support.server import TARGET

SECOND = "iqn.2026-11.example.test:second"
OTHER = "iqn.2026-11.example.test:other"
ISID_2 = bytes(5) + b"\x02"


def policy(
    tmp_path: Path,
    portals: list[str],
    *,
    arrived_at: str,
    reached: int = 0,
    address: str = "198.51.100.7",
    targets: dict[str, dict[str, object]] | None = None,
) -> PeerPolicy:
    """The policy for a peer that came in on `arrived_at` through the portal `reached`."""
    config = config_of(tmp_path, targets=targets)
    bound = [Portal(Endpoint(host, 3260), n) for n, host in enumerate(portals, start=1)]
    peer = Peer(address, 50000, arrived_at, bound[reached])
    return PeerPolicy(config, ConfiguredTargets(config), bound, peer)


# Discovery: one line for each portal by which this peer can come


@pytest.mark.parametrize(
    ("portals", "arrived_at", "addresses"),
    [
        (["192.0.2.1"], "192.0.2.1", ["192.0.2.1:3260,1"]),
        (["192.0.2.1", "192.0.2.2"], "192.0.2.1", ["192.0.2.1:3260,1", "192.0.2.2:3260,2"]),
        (["0.0.0.0"], "192.0.2.1", ["192.0.2.1:3260,1"]),
        (["0.0.0.0"], "127.0.0.1", ["127.0.0.1:3260,1"]),
        (["::"], "2001:db8::1", ["[2001:db8::1]:3260,1"]),
        (["0.0.0.0", "::"], "192.0.2.1", ["192.0.2.1:3260,1"]),
        (["0.0.0.0", "::"], "2001:db8::1", ["[2001:db8::1]:3260,2"]),
        (["127.0.0.1", "192.0.2.1"], "192.0.2.1", ["192.0.2.1:3260,2"]),
        (["127.0.0.1", "192.0.2.1"], "127.0.0.1", ["127.0.0.1:3260,1", "192.0.2.1:3260,2"]),
        (["::1", "192.0.2.1"], "192.0.2.1", ["192.0.2.1:3260,2"]),
        (["2001:db8::1", "192.0.2.1"], "192.0.2.1", ["[2001:db8::1]:3260,1", "192.0.2.1:3260,2"]),
    ],
)
def test_addresses(
    tmp_path: Path, portals: list[str], arrived_at: str, addresses: list[str]
) -> None:
    told = policy(tmp_path, portals, arrived_at=arrived_at).send_targets(INITIATOR, None)
    assert told == [(TARGET, addresses)]


TWO_TARGETS: dict[str, dict[str, object]] = {
    TARGET: {"initiators": [INITIATOR]},
    SECOND: {"initiators": [OTHER, "198.51.100.0/24"]},
    "iqn.2026-11.example.test:closed": {"initiators": []},
}


@pytest.mark.parametrize(
    ("initiator", "address", "seen"),
    [
        (INITIATOR, "203.0.113.1", [TARGET]),
        (INITIATOR, "198.51.100.7", [TARGET, SECOND]),
        (OTHER, "203.0.113.1", [SECOND]),
        ("iqn.2026-11.example.test:stranger", "203.0.113.1", []),
    ],
)
def test_only_what_admits_the_initiator(
    tmp_path: Path, initiator: str, address: str, seen: list[str]
) -> None:
    rules = policy(
        tmp_path, ["192.0.2.1"], arrived_at="192.0.2.1", address=address, targets=TWO_TARGETS
    )
    assert [name for name, _ in rules.send_targets(initiator, None)] == seen
    for name in TWO_TARGETS:
        told = rules.send_targets(initiator, name)
        assert [name for name, _ in told] == ([name] if name in seen else [])


def test_terms_of_a_target(tmp_path: Path) -> None:
    targets: dict[str, dict[str, object]] = {
        TARGET: {
            "alias": "two disks",
            "header_digest": "required",
            "data_digest": "off",
            "limits": {"first_burst_length": "128 KiB", "queue_depth": 7},
        }
    }
    portals = ["192.0.2.1", "192.0.2.2"]
    rules = policy(tmp_path, portals, arrived_at="192.0.2.2", reached=1, targets=targets)
    terms = rules.target_terms(INITIATOR, TARGET)
    assert (terms.name, terms.alias, terms.portal_group_tag) == (TARGET, "two disks", 2)
    assert (terms.limits.header_digest, terms.limits.data_digest) == ("CRC32C", "None")
    assert terms.limits.first_burst_length == 128 * 1024
    assert terms.queue_depth == 7
    assert terms.credentials is None


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("iqn.2026-11.example.test:nowhere", LoginStatus.NOT_FOUND),
        ("iqn.2026-11.example.test:closed", LoginStatus.AUTHORIZATION_FAILURE),
        (SECOND, LoginStatus.AUTHORIZATION_FAILURE),
    ],
)
def test_refusals(tmp_path: Path, target: str, status: LoginStatus) -> None:
    rules = policy(
        tmp_path,
        ["192.0.2.1"],
        arrived_at="192.0.2.1",
        address="203.0.113.1",
        targets=TWO_TARGETS,
    )
    with pytest.raises(LoginError) as refused:
        rules.target_terms(INITIATOR, target)
    assert refused.value.status == status


# The same by real logins


async def seen_by(live: Live, **more: object) -> dict[str, list[str]]:
    """Target name -> addresses, as a discovery session is told."""
    session = await live.log_in(None, **more)
    told: dict[str, list[str]] = {}
    name = ""
    for key, value in await session.discover():
        if key == "TargetName":
            name = value
            told[name] = []
        else:
            told[name].append(value)
    await session.log_out()
    return told


async def test_two_portals_are_two_portal_groups(tmp_path: Path) -> None:
    server = {"portals": ["127.0.0.1:0", "127.0.0.2:0"]}
    async with serving(config_of(tmp_path, server=server), tmp_path) as live:
        (_, one), (_, two) = live.address(0), live.address(1)
        addresses = [f"127.0.0.1:{one},1", f"127.0.0.2:{two},2"]
        for portal in (0, 1):
            address = live.address(portal)
            assert await seen_by(live, address=address) == {TARGET: addresses}
            peer = await live.connect(address=address)
            response, data = await peer.login_exchange()
            assert not response.status
            assert f"TargetPortalGroupTag={portal + 1}\0".encode() in data
        # The same initiator port through two target ports: two I_T nexuses, two sessions.
        assert live.app.sessions() == {TARGET: 2}


async def test_a_wildcard_tells_the_address_that_the_peer_came_in_on(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server={"portals": ["0.0.0.0:0"]}), tmp_path) as live:
        _, port = live.address()
        for host in ("127.0.0.1", "127.0.0.3"):
            told = await seen_by(live, address=(host, port))
            assert told == {TARGET: [f"{host}:{port},1"]}


async def test_ipv6(tmp_path: Path) -> None:
    async with serving(config_of(tmp_path, server={"portals": ["[::]:0"]}), tmp_path) as live:
        _, port = live.address()
        assert await seen_by(live, address=("::1", port)) == {TARGET: [f"[::1]:{port},1"]}
        session = await live.log_in(address=("::1", port))
        assert (await session.command(bytes(6))).status == 0
        (login,) = [line for line in live.events("login") if line["target"] == TARGET]
        assert str(login["peer"]).startswith("[::1]:")


async def refusal(live: Live, target: str, **more: object) -> int:
    with pytest.raises(LoginRefused) as refused:
        await live.log_in(target, **more)
    return refused.value.status


async def test_admitted_by_address(tmp_path: Path) -> None:
    targets = {TARGET: {"initiators": ["127.0.0.2"]}}
    async with serving(config_of(tmp_path, targets=targets), tmp_path) as live:
        assert await live.log_in(source="127.0.0.2")
        assert await refusal(live, TARGET) == LoginStatus.AUTHORIZATION_FAILURE
        assert await seen_by(live) == {}
        assert list(await seen_by(live, source="127.0.0.2")) == [TARGET]
        (denied,) = live.events("login_denied")
        assert denied["status"] == "0202"
        assert str(denied["peer"]).startswith("127.0.0.1:")


TWO_DISKS = {
    "small": {"path": "small.img", "size": "1 MiB"},
    "large": {"path": "large.img", "size": "2 MiB"},
}


async def test_each_initiator_sees_its_own_luns(tmp_path: Path) -> None:
    targets = {
        TARGET: {
            "luns": {0: "small"},
            "initiators": [{"name": OTHER, "luns": {3: "large"}}, INITIATOR],
        }
    }
    config = config_of(tmp_path, disks=TWO_DISKS, targets=targets)
    async with serving(config, tmp_path) as live:
        mine = await live.log_in()
        report_luns = bytes([0xA0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0])
        theirs = await (await live.connect()).log_in(initiator=OTHER)
        while (await theirs.command(bytes(6), lun=3)).status:
            pass
        luns = {}
        for session in (mine, theirs):
            done = await session.command(report_luns, read_bytes=256)
            luns[session] = done.data[8:]
        assert luns == {mine: bytes(8), theirs: bytes([0, 3]) + bytes(6)}
        capacity = bytes([0x9E, 0x10, *bytes(8), 0, 0, 0, 32])
        done = await theirs.command(capacity, lun=3, read_bytes=32)
        assert int.from_bytes(done.data[:8], "big") + 1 == 4096
        for session, lun in ((mine, 3), (theirs, 0), (theirs, 7)):
            done = await session.command(read_16(0, 1), lun=lun, read_bytes=512)
            assert done.asc == (0x25, 0x00), "LOGICAL UNIT NOT SUPPORTED"


@pytest.mark.parametrize(
    "spelling",
    [TARGET.upper(), "Iqn" + TARGET[3:], TARGET.replace("disks", "di\u017fks")],
)
async def test_a_target_by_another_spelling_of_its_name(tmp_path: Path, spelling: str) -> None:
    """Names compare by their normal form (RFC 3722): it is the same target and session."""
    async with serving(config_of(tmp_path), tmp_path) as live:
        first = await live.log_in()
        second = await live.log_in(spelling)
        await first.ended()
        assert (await second.command(bytes(6))).status == 0
        assert live.app.sessions() == {TARGET: 1}


async def test_an_initiator_by_another_spelling_of_its_name(tmp_path: Path) -> None:
    targets = {TARGET: {"initiators": [INITIATOR]}}
    async with serving(config_of(tmp_path, targets=targets), tmp_path) as live:
        first = await live.log_in()
        await live.log_in(initiator=INITIATOR.upper())
        await first.ended()
        second = INITIATOR.replace("host", "ho\u017ft")
        with pytest.raises(LoginRefused, match="0200h"):
            await live.log_in(initiator=second)
        assert live.app.sessions() == {TARGET: 1}


async def test_the_queue_depth_of_a_target(tmp_path: Path) -> None:
    targets = {TARGET: {"limits": {"queue_depth": 7}}}
    async with serving(config_of(tmp_path, targets=targets), tmp_path) as live:
        peer = await live.log_in()
        assert peer.max_cmd_sn - peer.cmd_sn + 1 == 7
