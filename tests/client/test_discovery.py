"""Discovery: what a portal offers."""

from pathlib import Path

import pytest

from pyiscsi_target.client import (
    BadAnswer,
    ConnectionLost,
    Credentials,
    DiscoveredTarget,
    Initiator,
    LoginRefused,
    Portal,
    TargetAddress,
    TimedOut,
    discover,
)
from pyiscsi_target.iscsi.events import SessionRequested
from tests.support.fake_target import fake_target
from tests.support.live import config_of, serving
from tests.support.memory import Policy
from tests.support.server import TARGET

IQN = "iqn.2026-11.lab.example"


async def test_the_server_tells_its_target_at_every_portal(tmp_path: Path) -> None:
    portals = ["127.0.0.1:0", "127.0.0.2:0"]
    config = config_of(tmp_path, server={"portals": portals})
    async with serving(config, tmp_path) as live:
        first, second = (Portal(*live.address(number)) for number in (0, 1))
        (found,) = await discover(first)
        assert found.name == TARGET
        assert found.addresses == (TargetAddress(first, 1), TargetAddress(second, 2))
        assert found.portals == [first, second]


async def test_names_addresses_and_their_absence() -> None:
    targets = {f"{IQN}:a": ["10.0.0.1:3260,1", "[2001:db8::1]:860,2"], f"{IQN}:b": []}
    async with fake_target(Policy(targets=targets)) as fake:
        assert await discover(fake.portal) == [
            DiscoveredTarget(
                f"{IQN}:a",
                (
                    TargetAddress(Portal("10.0.0.1"), 1),
                    TargetAddress(Portal("2001:db8::1", 860), 2),
                ),
            ),
            DiscoveredTarget(f"{IQN}:b", (TargetAddress(fake.portal),)),
        ]
        await fake.until(lambda: fake.losses == [None])


async def test_nothing_to_see() -> None:
    async with fake_target(Policy(targets={})) as fake:
        assert await discover(fake.portal) == []


async def test_an_address_that_is_none() -> None:
    async with fake_target(Policy(targets={f"{IQN}:a": ["nowhere:x,1"]})) as fake:
        with pytest.raises(BadAnswer, match=f"TargetAddress of {IQN}:a: 'nowhere:x'"):
            await discover(fake.portal)


async def test_credentials() -> None:
    known = Credentials("host", b"a secret of ours")
    async with fake_target(Policy(discovery_credentials=known)) as fake:
        assert len(await discover(fake.portal, Initiator(credentials=known))) == 1
        with pytest.raises(LoginRefused):
            await discover(fake.portal)


async def test_a_target_that_never_answers() -> None:
    async with fake_target() as fake:
        fake.silent = True
        with pytest.raises(ConnectionLost, match="no login within"):
            await discover(fake.portal, timeout_s=0.01)


async def test_a_target_that_answers_no_more() -> None:
    async with fake_target() as fake:

        def only_log_in(data: bytes) -> bytes:
            target = fake.targets[-1]
            logged_in = any(isinstance(event, SessionRequested) for event in target.events)
            return b"" if logged_in else target.feed(data)

        fake.script = only_log_in
        with pytest.raises(TimedOut, match="no answer to SendTargets"):
            await discover(fake.portal, timeout_s=0.5)
        await fake.until(lambda: bool(fake.losses))
