"""kill -9 at each step of a PERSISTENT RESERVE OUT, and a restart: real processes, real files.

What was answered GOOD is there; what was not has happened as a whole or not at all. Which of the
two is known: the rename decides.
"""

import signal
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyiscsi_target.client import (
    ConnectionLost,
    Initiator,
    Portal,
    Reservations,
    ReservationType,
    Session,
)
from tests.support.dying_server import STEPS, dying_server
from tests.support.live import config_of
from tests.support.server import TARGET

KEY_A, KEY_B = 0xA, 0xB
KIND = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
A = Initiator("iqn.2026-11.example.test:a", bytes(5) + b"\x0a")
B = Initiator("iqn.2026-11.example.test:b", bytes(5) + b"\x0b")


@dataclass(frozen=True)
class State:
    """PRGENERATION, the keys by initiator port, and the key of the reservation's holder."""

    generation: int
    keys: dict[str, int]
    holder: int | None = None


NOTHING = State(0, {})
BOTH = {A.port_name: KEY_A, B.port_name: KEY_B}


@dataclass(frozen=True)
class Case:
    """One service action: what is there before and after it, and the request of its nexus."""

    before: State
    after: State
    request: Callable[[Reservations, Reservations, bool], Awaitable[None]]


CASES = {
    "REGISTER": Case(
        State(1, {B.port_name: KEY_B}),
        State(2, BOTH),
        lambda a, b, aptpl: a.register(KEY_A, aptpl=aptpl),
    ),
    "RESERVE": Case(State(2, BOTH), State(2, BOTH, KEY_A), lambda a, b, _: a.reserve(KEY_A, KIND)),
    "PREEMPT": Case(
        State(2, BOTH, KEY_A),
        State(3, {B.port_name: KEY_B}, KEY_B),
        lambda a, b, _: b.preempt(KEY_B, KEY_A, KIND),
    ),
    "CLEAR": Case(State(2, BOTH, KEY_A), State(3, {}), lambda a, b, _: b.clear(KEY_B)),
}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)
both_aptpl = pytest.mark.parametrize("aptpl", [False, True], ids=["APTPL=0", "APTPL=1"])


class Cluster:
    """Both nodes' reservations at one running server."""

    def __init__(self, a: Session, b: Session) -> None:
        self.sessions = (a, b)
        self.a, self.b = Reservations(a, 0), Reservations(b, 0)

    @classmethod
    async def connect(cls, portal: Portal) -> "Cluster":
        sessions = [await Session.connect(portal, TARGET, who) for who in (A, B)]
        for session in sessions:
            await session.ready(0)
        return cls(*sessions)

    async def make(self, state: State, aptpl: bool) -> None:
        await self.b.register(KEY_B, aptpl=aptpl)
        if A.port_name in state.keys:
            await self.a.register(KEY_A, aptpl=aptpl)
        if state.holder == KEY_A:
            await self.a.reserve(KEY_A, KIND)

    async def state(self) -> State:
        generation, registrations = await self.b.read_full_status()
        reservation = await self.b.read_reservation()
        return State(
            generation,
            {it.initiator_port or "": it.key for it in registrations},
            reservation.key if reservation is not None else None,
        )

    async def close(self) -> None:
        for session in self.sessions:
            await session.close()


async def state_after_restart(config: Path, boot_id: str | None = None) -> State:
    with dying_server(config, boot_id=boot_id) as server:
        cluster = await Cluster.connect(server.portal)
        found = await cluster.state()
        await cluster.close()
        assert server.stop() == 0
    return found


async def die_at(config: Path, case: Case, aptpl: bool, step: str) -> None:
    """Run the request into the death of the server."""
    with dying_server(config, step) as server:
        cluster = await Cluster.connect(server.portal)
        await cluster.make(case.before, aptpl)
        assert await cluster.state() == case.before
        server.arm()
        with pytest.raises(ConnectionLost):
            await case.request(cluster.a, cluster.b, aptpl)
        assert server.wait() == -signal.SIGKILL
        await cluster.close()


@pytest.fixture
def config(tmp_path: Path) -> Path:
    config_of(tmp_path, server={"state_dir": tmp_path / "state"})
    return tmp_path / "config.toml"


@every_case
@both_aptpl
@pytest.mark.parametrize("step", STEPS)
async def test_a_kill_at_any_step(config: Path, case: Case, aptpl: bool, step: str) -> None:
    await die_at(config, case, aptpl, step)
    done = STEPS.index(step) >= STEPS.index("renamed")
    assert await state_after_restart(config) == (case.after if done else case.before)


@every_case
@both_aptpl
async def test_a_kill_right_after_the_answer(config: Path, case: Case, aptpl: bool) -> None:
    with dying_server(config) as server:
        cluster = await Cluster.connect(server.portal)
        await cluster.make(case.before, aptpl)
        await case.request(cluster.a, cluster.b, aptpl)
        server.kill()
        await cluster.close()
    assert await state_after_restart(config) == case.after


@pytest.mark.parametrize("step", ["displaced", "committed"])
@both_aptpl
async def test_a_host_that_loses_its_power(config: Path, step: str, aptpl: bool) -> None:
    """APTPL=1 outlives it, with PRGENERATION zero (SPC-5 clause 6.16.2); APTPL=0 does not."""
    case = CASES["PREEMPT"]
    await die_at(config, case, aptpl, step)
    kept = case.before if step == "displaced" else case.after
    expected = State(0, kept.keys, kept.holder) if aptpl else NOTHING
    assert await state_after_restart(config, boot_id="another boot") == expected


async def test_a_server_that_died_in_saving_saves_again(config: Path) -> None:
    """What a save left behind is in nobody's way."""
    case = CASES["PREEMPT"]
    for step in ("half written", "displaced", "half written", "renamed"):
        with dying_server(config, step) as server:
            cluster = await Cluster.connect(server.portal)
            await cluster.b.register_and_ignore(KEY_B, aptpl=True)
            await cluster.a.register_and_ignore(KEY_A, aptpl=True)
            server.arm()
            with pytest.raises(ConnectionLost):
                await case.request(cluster.a, cluster.b, True)
            server.wait()
            await cluster.close()
    found = await state_after_restart(config)
    assert found.keys == {B.port_name: KEY_B}
