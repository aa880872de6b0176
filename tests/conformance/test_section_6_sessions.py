"""RFC 7143 sections 6.3.1, 6.3.4 and 6.3.5: what ISID, TSIH and CID of a login mean together."""

from dataclasses import dataclass, field

import pytest

from pyiscsi_target.iscsi.constants import LoginStatus
from pyiscsi_target.iscsi.keys import Limits, Parameters
from pyiscsi_target.iscsi.login import Agreement, LoginError, Terms
from pyiscsi_target.scsi.task import Nexus
from pyiscsi_target.server.sessions import Session, SessionRegistry
from tests.support.memory import INITIATOR_NAME, ISID, TARGET_NAME

OTHER_TARGET = "iqn.2026-11.lab.example:other"
OTHER_ISID = bytes.fromhex("400001370001")


@dataclass
class Device:
    """What a session tells of its nexus."""

    attached: list[Nexus] = field(default_factory=list)
    lost: list[Nexus] = field(default_factory=list)

    def attach(self, nexus: Nexus) -> None:
        self.attached.append(nexus)

    def is_attached(self, nexus: Nexus) -> bool:
        return nexus in self.attached and nexus not in self.lost

    def abort_tasks(self, nexus: Nexus) -> None:
        """Nothing is ever under way here."""

    def detach(self, nexus: Nexus, *, lost: bool) -> None:
        assert lost
        if self.is_attached(nexus):
            self.lost.append(nexus)


@dataclass(eq=False)
class Connection:
    registry: SessionRegistry
    session: Session | None = None
    closed: bool = False

    async def end(self, reason: str, *, nexus_lost: bool) -> None:
        self.closed = True
        assert self.session is not None
        self.registry.close(self.session, nexus_lost=nexus_lost)


@dataclass
class Server:
    device: Device = field(default_factory=Device)

    def __post_init__(self) -> None:
        devices = {TARGET_NAME: self.device, OTHER_TARGET: self.device}
        ports = {(name, group): group for name in devices for group in (1, 2)}
        self.registry = SessionRegistry(devices, lambda *who: {}, {}, ports)  # type: ignore[arg-type]

    async def log_in(
        self,
        isid: bytes = ISID,
        tsih: int = 0,
        cid: int = 0,
        *,
        target: str | None = TARGET_NAME,
        initiator: str = INITIATOR_NAME,
        group: int = 1,
    ) -> Connection:
        """A connection whose login came as far as its session."""
        connection = Connection(self.registry)
        agreement = Agreement(
            initiator, isid, tsih, cid, Terms(target, Limits(), group), Parameters()
        )
        connection.session = await self.registry.open(agreement, connection, "127.0.0.1")
        return connection


def tsih_of(connection: Connection) -> int:
    assert connection.session is not None
    return connection.session.tsih


async def refusal(server: Server, isid: bytes, tsih: int, cid: int) -> int:
    with pytest.raises(LoginError) as raised:
        await server.log_in(isid, tsih, cid)
    return raised.value.status


async def test_6_3_1_a_new_isid_without_tsih_opens_a_session() -> None:
    server = Server()
    first, second = await server.log_in(), await server.log_in(OTHER_ISID)
    assert 0 != tsih_of(first) != tsih_of(second) != 0
    assert not first.closed


@pytest.mark.parametrize("isid", [ISID, OTHER_ISID])
async def test_6_3_1_a_tsih_that_is_not_the_isids(isid: bytes) -> None:
    server = Server()
    first = await server.log_in()
    wrong = tsih_of(first) if isid == OTHER_ISID else tsih_of(first) + 1
    assert await refusal(server, isid, wrong, 0) == LoginStatus.SESSION_DOES_NOT_EXIST
    assert not first.closed


async def test_6_3_5_session_reinstatement() -> None:
    server = Server()
    first = await server.log_in(cid=1)
    second = await server.log_in(cid=2)
    assert first.closed
    assert not second.closed
    assert first.session is not None
    assert server.device.lost == [first.session.nexus]
    assert len(server.device.attached) == 2
    assert list(server.registry.by_tsih) == [tsih_of(second)]


async def test_6_3_4_connection_reinstatement() -> None:
    server = Server()
    first = await server.log_in(cid=1)
    second = await server.log_in(tsih=tsih_of(first), cid=1)
    assert first.closed
    assert not second.closed
    assert tsih_of(second) == tsih_of(first)
    assert first.session is not None
    assert second.session is not None
    assert second.session.nexus is first.session.nexus
    assert server.device.lost == [], "the nexus lives on"


async def test_6_3_1_a_second_connection_is_one_too_many() -> None:
    server = Server()
    first = await server.log_in(cid=1)
    assert await refusal(server, ISID, tsih_of(first), 2) == LoginStatus.TOO_MANY_CONNECTIONS
    assert not first.closed


@pytest.mark.parametrize(
    "other",
    [
        {"target": OTHER_TARGET},
        {"initiator": "iqn.2026-11.lab.example:other-host"},
        {"group": 2},
        {"target": None},
    ],
)
async def test_4_4_3_an_isid_is_unique_per_initiator_target_and_group(
    other: dict[str, object],
) -> None:
    server = Server()
    first = await server.log_in()
    second = await server.log_in(**other)  # type: ignore[arg-type]
    assert not first.closed
    assert tsih_of(first) != tsih_of(second)


async def test_7_4_2_a_discovery_session_is_reinstated_like_any_other() -> None:
    server = Server()
    first = await server.log_in(target=None)
    second = await server.log_in(target=None)
    assert (first.closed, second.closed) == (True, False)
    assert server.device.attached == []
