"""Logging in: credentials, digests, redirections, and targets that do not let us."""

import asyncio
from pathlib import Path

import pytest

from pyiscsi_target.client import (
    ConnectionLost,
    Credentials,
    Initiator,
    Limits,
    LoginRefused,
    Portal,
    ProtocolViolated,
    Session,
)
from pyiscsi_target.iscsi.pdu import LoginResponse
from tests.support.fake_target import FakeTarget, Script, fake_target
from tests.support.live import config_of, serving
from tests.support.memory import TARGET_NAME, Policy, frame
from tests.support.server import TARGET

OURS, THEIRS, WRONG = b"a secret of ours", b"a secret of theirs", b"the wrong secret"
ONE_WAY = Credentials("host", OURS)
MUTUAL = Credentials("host", OURS, "disk", THEIRS)


async def logged_in(fake: FakeTarget, initiator: Initiator | None = None) -> None:
    async with Session.connect(fake.portal, TARGET_NAME, initiator) as session:
        await session.ping()


class TestChap:
    @pytest.mark.parametrize("credentials", [ONE_WAY, MUTUAL])
    async def test_both_ways(self, credentials: Credentials) -> None:
        async with fake_target(Policy(credentials=MUTUAL)) as fake:
            await logged_in(fake, Initiator(credentials=credentials))

    @pytest.mark.parametrize("credentials", [None, Credentials("host", WRONG)])
    async def test_who_cannot_prove_it_is_refused(self, credentials: Credentials | None) -> None:
        async with fake_target(Policy(credentials=ONE_WAY)) as fake:
            with pytest.raises(LoginRefused) as refused:
                await logged_in(fake, Initiator(credentials=credentials))
        assert refused.value.status == 0x0201
        assert WRONG.decode() not in str(refused.value)

    @pytest.mark.parametrize(
        "theirs",
        [Credentials("host", OURS, "disk", WRONG), Credentials("host", OURS, "it", THEIRS)],
    )
    async def test_a_target_that_cannot_prove_it_is_left(self, theirs: Credentials) -> None:
        async with fake_target(Policy(credentials=theirs)) as fake:
            with pytest.raises(ProtocolViolated, match="did not prove who it is") as left:
                await logged_in(fake, Initiator(credentials=MUTUAL))
        assert "secret" not in str(left.value)

    async def test_a_target_that_asks_for_no_proof_is_left(self) -> None:
        async with fake_target() as fake:
            fake.script = lambda _: frame(LoginResponse(flags=0), b"AuthMethod=None\0")
            with pytest.raises(ProtocolViolated, match="AuthMethod=None in answer to CHAP"):
                await logged_in(fake, Initiator(credentials=ONE_WAY))

    async def test_with_the_server(self, tmp_path: Path) -> None:
        for name, secret in (("ours", OURS), ("theirs", THEIRS)):
            (tmp_path / name).write_bytes(secret)
            (tmp_path / name).chmod(0o600)
        chap = {
            "chap": {"user": "host", "secret_file": "ours"},
            "mutual_chap": {"user": "disk", "secret_file": "theirs"},
        }
        config = config_of(tmp_path, targets={TARGET: chap})
        async with serving(config, tmp_path) as live:
            portal = Portal(*live.address())
            async with Session.connect(portal, TARGET, Initiator(credentials=MUTUAL)) as session:
                await session.ready(0)
            with pytest.raises(LoginRefused, match="authentication failure"):
                await Session.connect(portal, TARGET)


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("data", [True, False])
async def test_digests(header: bool, data: bool) -> None:
    async with fake_target() as fake:
        initiator = Initiator(header_digest=header, data_digest=data)
        async with Session.connect(fake.portal, TARGET_NAME, initiator) as session:
            agreed = session.parameters
            assert (agreed.header_digest, agreed.data_digest) == (header, data)
            await session.ping()


async def test_a_digest_that_is_asked_for_is_not_done_without() -> None:
    async with fake_target(Policy(Limits(data_digest="None"))) as fake:
        with pytest.raises(ProtocolViolated, match="digest"):
            await logged_in(fake, Initiator(data_digest=True))


async def test_ipv6() -> None:
    async with fake_target(host="::1") as fake:
        await logged_in(fake)


# Redirections


def moved(status: int, address: str | None) -> Script:
    data = b"" if address is None else f"TargetAddress={address}\0".encode()
    return lambda _: frame(LoginResponse(status=status, flags=0), data)


@pytest.mark.parametrize("status", [0x0101, 0x0102])
async def test_a_moved_target_is_followed(status: int) -> None:
    async with fake_target() as old, fake_target() as new:
        old.script = moved(status, f"{new.portal},1")
        async with Session.connect(old.portal, TARGET_NAME) as session:
            await session.ping()
            assert (session.portal, session.connected_to) == (old.portal, new.portal)
        assert len(old.transports) == len(new.transports) == 1


async def test_going_round_in_circles_has_an_end() -> None:
    async with fake_target() as fake:
        fake.script = moved(0x0101, str(fake.portal))
        with pytest.raises(ConnectionLost, match="redirected more than 4 times"):
            await logged_in(fake)
        assert len(fake.transports) == 5


async def test_a_move_to_nowhere() -> None:
    async with fake_target() as fake:
        fake.script = moved(0x0101, "no:where:at:all")
        with pytest.raises(ConnectionLost, match="redirected to nowhere"):
            await logged_in(fake)
        fake.script = moved(0x0102, None)
        with pytest.raises(LoginRefused, match="moved permanently"):
            await logged_in(fake)


# Targets that never come to an answer


async def test_a_target_that_hangs() -> None:
    async with fake_target() as fake:
        fake.silent = True
        with pytest.raises(ConnectionLost, match=r"no login within 0\.05 s"):
            await Session.connect(fake.portal, TARGET_NAME, timeout_s=0.05)
        await fake.until(lambda: bool(fake.losses))


async def test_a_target_that_hangs_up() -> None:
    async with fake_target() as fake:
        fake.script = lambda _: None
        with pytest.raises(ConnectionLost, match="the target closed the connection"):
            await logged_in(fake)


async def test_a_server_of_another_protocol() -> None:
    async with fake_target() as fake:
        fake.script = lambda _: b"HTTP/1.1 400 Bad Request\r\n\r\n" * 3
        with pytest.raises(ProtocolViolated):
            await logged_in(fake)


async def test_who_gives_up_leaves_nothing_behind() -> None:
    async with fake_target() as fake:
        fake.silent = True
        task = asyncio.ensure_future(logged_in(fake))
        await fake.until(lambda: fake.heard.is_set())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await fake.until(lambda: bool(fake.losses))


@pytest.mark.parametrize("host", ["127.0.0.1", "host.invalid"])
async def test_no_way_to_the_portal(host: str) -> None:
    with pytest.raises(ConnectionLost, match=f"{host}:1: no connection: "):
        await Session.connect(Portal(host, 1), TARGET_NAME)
