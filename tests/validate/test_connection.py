"""Checks of discovery and login, each against a target that fails it."""

import itertools
from pathlib import Path

import pytest

from pyiscsi_target.client import Credentials, LoginRefused, Portal, Session
from pyiscsi_target.iscsi.constants import LoginStatus
from pyiscsi_target.server import sessions
from pyiscsi_target.server.config_values import Endpoint
from pyiscsi_target.server.policy import PeerPolicy
from pyiscsi_target.server.targets import Acl
from pyiscsi_target.validate import Verdict
from pyiscsi_target.validate.connection import CHECKS
from pyiscsi_target.validate.nodes import Nexus
from tests.support.broken_target import Breaker
from tests.support.live import Live, config_of, serving
from tests.support.server import TARGET
from tests.support.validation import (
    Breakage,
    assert_all_covered,
    assert_fails,
    judge,
    names,
    run,
)


def refuse(suffix: str) -> object:
    """Initiators whose name ends like this are not admitted."""
    real = Acl.admit

    def admit(acl: Acl, initiator_name: str, address: str) -> object:
        return None if initiator_name.endswith(suffix) else real(acl, initiator_name, address)

    return admit


def one_session_for_all(breaker: Breaker) -> None:
    breaker.patch.setattr(sessions, "session_key", lambda agreement: ("", agreement.terms.name, 1))


def sessions_stay_for_ever(breaker: Breaker) -> None:
    count = itertools.count()
    keys: dict[int, tuple[str, str | None, int]] = {}

    def key(agreement: object) -> tuple[str, str | None, int]:
        return keys.setdefault(id(agreement), (str(next(count)), "", 1))

    breaker.patch.setattr(sessions, "session_key", key)


def advertise(host: str, port: int) -> object:
    """One more address than the target has."""
    real = PeerPolicy.send_targets

    def send_targets(policy: PeerPolicy, name: str, wanted: str | None) -> object:
        found = real(policy, name, wanted)
        return [(target, [*places, f"{Endpoint(host, port)},1"]) for target, places in found]

    return send_targets


def one_session_for_a_name(breaker: Breaker) -> None:
    breaker.patch.setattr(
        sessions,
        "session_key",
        lambda agreement: (agreement.initiator_name, agreement.terms.name, 1),
    )


BROKEN: list[Breakage] = [
    ("discovery", lambda b: b.patch.setattr(Acl, "admit", refuse("-2"))),
    ("login", lambda b: b.patch.setattr(Acl, "admit", refuse("-3"))),
    ("sessions-stay", one_session_for_all),
    ("portal-group", lambda b: b.patch.setattr(Session, "declared", {})),
    ("portals", lambda b: b.patch.setattr(PeerPolicy, "send_targets", advertise("127.0.0.1", 1))),
    ("portals", lambda b: b.patch.setattr(PeerPolicy, "send_targets", advertise("0.0.0.0", 1))),
    ("second-session", one_session_for_a_name),
    ("reinstatement", sessions_stay_for_ever),
]


@pytest.mark.parametrize("breakage", BROKEN, ids=names(BROKEN))
async def test_it_fails(live: Live, breaker: Breaker, breakage: Breakage) -> None:
    await assert_fails(live, breaker, breakage)


def test_every_check_can_fail() -> None:
    assert_all_covered(CHECKS, BROKEN)


async def test_a_refused_node_is_named(live: Live, breaker: Breaker) -> None:
    breaker.patch.setattr(Acl, "admit", refuse("-3"))
    report = await run(live, "login", "read-keys")
    login, read_keys = report.results[1:3]
    assert "node 3 (iqn.2026-11.org.pyiscsi-target:validate-node-3) could not" in login.seen
    assert "0202h: authorization failure" in login.seen
    assert "--initiator-name" in login.fix
    assert (read_keys.verdict, read_keys.prevented) == (Verdict.SKIP, True)
    assert read_keys.seen == login.seen


async def test_a_dead_portal_is_no_path(live: Live, breaker: Breaker) -> None:
    """What is not reached is told once, and nothing else fails for it."""
    breaker.patch.setattr(PeerPolicy, "send_targets", lambda *_: [(TARGET, ["127.0.0.1:1,2"])])
    report = await run(live, "portals", "second-session", "same-on-paths", "preempt-paths")
    _, portals, second, same, paths, _ = report.results
    assert portals.verdict is Verdict.WARN
    assert portals.seen.startswith("127.0.0.1:1: no connection")
    assert (second.verdict, second.seen) == (
        Verdict.PASS,
        "two sessions of node 1 at the one portal",
    )
    assert (same.verdict, same.prevented) == (Verdict.SKIP, False)
    assert paths.verdict is Verdict.PASS
    assert report.target.portals == (f"127.0.0.1:{live.address()[1]}", "127.0.0.1:1")


CREDENTIALS = Credentials("node", b"twelve bytes")


@pytest.mark.parametrize("guarded", [False, True], ids=["open", "with CHAP"])
async def test_chap(tmp_path: Path, guarded: bool) -> None:
    """Discovery has an authentication of its own, or none."""
    secret = tmp_path / "secret"
    secret.write_bytes(CREDENTIALS.secret)
    secret.chmod(0o600)
    chap = {"chap": {"user": CREDENTIALS.name, "secret_file": secret}}
    config = config_of(
        tmp_path, server={"discovery": chap if guarded else {}}, targets={TARGET: chap}
    )
    async with serving(config, tmp_path) as live:
        report = await run(live, "login", "portals", credentials=CREDENTIALS)
        assert report.counts[Verdict.PASS] == 4
        report = await run(live, "login", credentials=Credentials("node", b"another one."))
    assert "0201h: authentication failure" in report.results[1].seen


async def test_portals_are_found(live: Live) -> None:
    result = await judge(live, "portals")
    assert result.verdict is Verdict.PASS
    assert all(f":{live.address(portal)[1]}" in result.seen for portal in (0, 1))


async def test_the_second_session_takes_another_portal(live: Live) -> None:
    result = await judge(live, "second-session")
    assert result.verdict is Verdict.PASS
    assert f"127.0.0.1:{live.address(1)[1]}" in result.seen


# Nobody gets in


async def test_some_nodes_are_refused(live: Live, breaker: Breaker) -> None:
    """The target is there: the validation goes on and says what it can."""
    breaker.patch.setattr(Acl, "admit", refuse("node-1"))
    report = await run(live, "login", "inquiry")
    assert report.refused == ""
    assert [r.check.id for r in report.results] == ["discovery", "login", "inquiry", "clean-up"]
    assert "node 1" in report.results[1].seen


async def test_nodes_that_are_not_admitted(live: Live, breaker: Breaker) -> None:
    breaker.patch.setattr(Acl, "admit", lambda *_: None)
    report = await run(live, "login", "inquiry")
    assert "status 0202h: authorization failure" in report.refused
    assert "--initiator-name" in report.refused


@pytest.mark.parametrize(
    ("status", "advice"),
    [
        (LoginStatus.AUTHENTICATION_FAILURE, "authentication failure; give --chap-file"),
        (LoginStatus.AUTHORIZATION_FAILURE, "authorization failure; admit the nodes' initiator"),
        (LoginStatus.NOT_FOUND, "not found; check the target's name, or admit"),
        (LoginStatus.SERVICE_UNAVAILABLE, "service unavailable; see whether the target is enabled"),
        (0x02FF, "unknown status; admit the nodes' initiator"),
    ],
)
async def test_what_to_do_about_a_refusal(
    live: Live, monkeypatch: pytest.MonkeyPatch, status: int, advice: str
) -> None:
    async def refused(nexus: Nexus) -> None:
        raise LoginRefused(Portal("192.0.2.1"), status)

    monkeypatch.setattr(Nexus, "connect", refused)
    report = await run(live, "login", "inquiry")
    assert [r.check.id for r in report.results] == ["discovery", "login", "clean-up"]
    assert report.refused.startswith(f"no node can log in to {TARGET}: 192.0.2.1:3260: login")
    assert advice in report.refused
    assert report.refused.count("login refused") == 1, "the same reason once"
    assert report.results[1].fix in report.refused


async def test_a_portal_that_shows_nothing(
    live: Live, breaker: Breaker, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refused(nexus: Nexus) -> None:
        raise LoginRefused(nexus.portal, LoginStatus.NOT_FOUND)

    monkeypatch.setattr(Nexus, "connect", refused)
    breaker.patch.setattr(Acl, "admit", lambda *_: None)
    report = await run(live, "login")
    assert "the portal offers no target at all" in report.refused
