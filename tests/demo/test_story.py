"""The story at a good server, and at servers that get something wrong: then it must fail."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pyiscsi_target.client import (
    ClientError,
    CommandFailed,
    Portal,
    Reservations,
    Result,
    Session,
    Status,
)
from pyiscsi_target.demo.records import Record
from pyiscsi_target.demo.story import (
    WINDOWS,
    Event,
    Kind,
    Node,
    Outcome,
    Story,
    StoryFailed,
    Timing,
    node_at,
)
from pyiscsi_target.scsi.reservations import State
from pyiscsi_target.storage.base import Buffer
from tests.support.fast_story import FAST
from tests.support.live import Live, config_of, serving
from tests.support.server import TARGET

BLOCK = 512
LUN = 0


class Played:
    """A story at a running server. `at` has something happen when an event is told."""

    def __init__(self, live: Live) -> None:
        portal = Portal(*live.address())
        a, b = (node_at(name, portal, TARGET, LUN) for name in "AB")
        self.live = live
        self.unit = live.app._units["disk"]
        self.events: list[Event] = []
        self.story = Story(a, b, FAST, self._tell)
        self._hooks: dict[tuple[Kind, str], Callable[[], None]] = {}

    def at(self, kind: Kind, who: str, hook: Callable[[], None]) -> None:
        self._hooks[kind, who] = hook

    def _tell(self, event: Event) -> None:
        self.events.append(event)
        if hook := self._hooks.pop((event.kind, event.who), None):
            hook()

    def put(self, lba: int, block: bytes) -> None:
        """Write behind the back of everybody."""
        assert self.unit.store.write_now(lba * BLOCK, [block])

    def forget(self, node: Node | None = None) -> None:
        """The server forgets a node's registration, or all that it knew of reservations."""
        state = State()
        if node is not None:
            known = self.unit.reservations
            others = {nexus: key for nexus, key in known.registrations.items() if key != node.key}
            state = replace(known, registrations=others)
        self.unit._reservations = state
        self.unit._renew_unhindered()

    async def play(self) -> Outcome:
        return await self.story.play()

    async def fails(self, complaint: str) -> None:
        with pytest.raises(StoryFailed, match=complaint):
            await self.play()
        assert self.story.a.session.closed
        assert self.story.b.session.closed
        assert not self.story.a.chores
        assert not self.story.b.chores


@pytest.fixture
async def played(tmp_path: Path) -> AsyncIterator[Played]:
    async with serving(config_of(tmp_path), tmp_path) as live:
        yield Played(live)


async def test_all_is_as_it_should_be(played: Played) -> None:
    outcome = await played.play()
    records = [event.disk for event in played.events if event.kind is Kind.RECORD]
    gone = {outcome.last_record_of_a + 1} if outcome.under_way_arrived else set()
    numbers = set(range(1, outcome.last_record + 1)) - gone
    assert [int(number) for number in records] == sorted(numbers)
    assert outcome.first_record_of_b == outcome.last_record_of_a + 1 + len(gone)
    assert outcome.challenge_s >= FAST.challenge_s
    assert min(outcome.noticed_s, outcome.target_s) > 0
    assert outcome.gap_s == pytest.approx(
        outcome.noticed_s + outcome.challenge_s + outcome.target_s
    )


async def test_it_is_told_in_order(played: Played) -> None:
    await played.play()
    assert [event.at_s for event in played.events] == sorted(e.at_s for e in played.events)
    told = [f"{e.who} {e.text}" for e in played.events if e.kind is not Kind.RECORD]
    beginnings = [
        "A logs in",
        "B logs in",
        "A registers key 000000414D736674",
        "B registers key 000000424D736674",
        "A reserves",
        "A POWER PULLED",
        "B misses 2 heartbeats",
        "B challenges",
        "B nobody defends",
        "B preempts A",
        "B reads back all",
        "A is back",
        "A record",
        "A registers key 000000414D736674",
        "A reads all",
    ]
    assert len(told) == len(beginnings)
    for line, beginning in zip(told, beginnings, strict=True):
        assert line.startswith(beginning)


async def test_what_can_be_seen_at_the_end(played: Played) -> None:
    await played.play()
    a, b = played.story.a, played.story.b
    assert played.story.holder is b
    assert (a.registered, b.registered, a.wait, b.wait) == (True, True, None, None)
    assert not b.challenging
    assert set(played.unit.reservations.registrations.values()) == {a.key, b.key}


async def test_a_challenge_to_an_owner_that_lives_is_defended(played: Played) -> None:
    """Without this the wait of the challenge would prove nothing."""
    story = played.story
    for step in (Story._log_in, Story._register, Story._take_quorum, Story._work):
        await step(story)
    assert not await story.challenge(story.b)
    assert [event.text for event in played.events if event.kind is Kind.GOOD][-1].startswith(
        "defends"
    )
    assert played.events[-1].text == "is preempted: the owner lives"
    assert not story.b.registered
    assert await story._stop_chores(story.a) == []
    for node in (story.a, story.b):
        await node.session.close()


class TestServersThatAreWrong:
    async def test_reservations_end_with_the_connection(self, played: Played) -> None:
        played.at(Kind.POWER, "A", played.forget)
        await played.fails("forgotten the reservation of the node that lost its power")

    async def test_a_registration_ends_with_the_connection(
        self, played: Played, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def only_b(self: Reservations) -> tuple[int, list[int]]:
            return 3, [played.story.b.key]

        played.at(Kind.POWER, "A", lambda: monkeypatch.setattr(Reservations, "read_keys", only_b))
        await played.fails("forgotten the registration of the node that lost its power")

    async def test_somebody_is_registered_already(self, played: Played) -> None:
        async with Session.connect(played.story.a.session.portal, TARGET) as other:
            await other.ready(LUN)
            await Reservations(other, LUN).register(1)
            await played.fails("somebody is registered with the disk already")

    async def test_a_registration_is_not_kept(
        self, played: Played, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def nothing(self: Reservations, key: int, **_: object) -> None:
            """GOOD, and nothing done."""

        monkeypatch.setattr(Reservations, "register", nothing)
        await played.fails("the registered keys are not those of the two nodes")

    async def test_a_reservation_cannot_be_seen(
        self, played: Played, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def none(self: Reservations) -> None:
            """There is no reservation."""

        monkeypatch.setattr(Reservations, "read_reservation", none)
        await played.fails("cannot be seen by node B")

    async def test_a_challenge_is_lost_without_a_defender(self, played: Played) -> None:
        def arm() -> None:
            played.at(Kind.WAIT, "B", lambda: played.forget(played.story.b))

        played.at(Kind.WAIT, "B", arm)  # the first is the heartbeats', the second the challenge
        await played.fails("a node without power has defended its reservation")

    async def test_a_preemption_does_nothing(
        self, played: Played, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        async def nothing(self: Reservations, *_: object) -> None:
            """GOOD, and nothing done."""

        monkeypatch.setattr(Reservations, "preempt", nothing)
        await played.fails("others than node B are registered")

    async def test_a_preemption_gives_no_reservation(
        self, played: Played, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        preempt = Reservations.preempt

        async def and_release(self: Reservations, key: int, victim: int, kind: Any) -> None:
            await preempt(self, key, victim, kind)
            await self.release(key, kind)

        monkeypatch.setattr(Reservations, "preempt", and_release)
        await played.fails("node B does not hold the reservation")

    async def test_an_acknowledged_record_is_lost(self, played: Played) -> None:
        played.at(Kind.POWER, "A", lambda: played.put(1, bytes(BLOCK)))
        await played.fails("record 1 was acknowledged to node A and is lost")

    async def test_a_record_is_overwritten(self, played: Played) -> None:
        other = Record(1, "C").encode(BLOCK)
        played.at(Kind.POWER, "A", lambda: played.put(1, other))
        await played.fails("record 1 of node A was overwritten by node C")

    async def test_a_record_appears_that_nobody_has_written(self, played: Played) -> None:
        def write_two() -> None:
            following = len(played.story.records) + 1
            for number in (following, following + 1):
                played.put(number, Record(number, "A").encode(BLOCK))

        played.at(Kind.POWER, "A", write_two)
        await played.fails("is on the disk, and nobody has written it")

    async def test_the_fenced_node_may_write(
        self, played: Played, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def open_the_gate() -> None:
            monkeypatch.setattr(State, "conflicts", lambda *_: False)

        played.at(Kind.GOOD, "B", open_the_gate)
        await played.fails("the write of a node that was preempted was not refused")

    async def test_a_refused_write_is_done_all_the_same(
        self, played: Played, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write = Session.write

        async def always(self: Session, lun: int, lba: int, data: Buffer, **how: bool) -> None:
            try:
                await write(self, lun, lba, data, **how)
            except CommandFailed:
                played.put(lba, bytes(data))
                raise

        monkeypatch.setattr(Session, "write", always)
        await played.fails("a write that was refused has changed the disk")

    async def test_the_new_owner_loses_its_reservation(self, played: Played) -> None:
        played.at(Kind.REFUSED, "A", played.forget)
        await played.fails("node B has lost its reservation")

    async def test_a_record_is_lost_after_the_takeover(self, played: Played) -> None:
        played.at(Kind.REFUSED, "A", lambda: played.put(2, bytes(BLOCK)))
        await played.fails("record 2 was acknowledged to node [AB] and is lost")

    async def test_there_is_more_at_the_end_than_was_written(self, played: Played) -> None:
        def write_one_more() -> None:
            following = len(played.story.records) + 1
            played.put(following, Record(following, "B").encode(BLOCK))
            played.at(Kind.RECORD, "B", write_one_more)

        played.at(Kind.RECORD, "B", write_one_more)
        await played.fails("records are on the disk")


async def test_an_error_while_the_owner_renews_ends_the_story(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(self: Reservations) -> None:
        raise ClientError("renewal")

    played.at(Kind.GOOD, "A", lambda: monkeypatch.setattr(Reservations, "read_keys", fails))
    with pytest.raises(ClientError, match="renewal"):
        await played.play()


async def test_an_error_while_the_new_owner_renews_ends_the_story(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    read_keys = Reservations.read_keys

    async def fails(self: Reservations) -> tuple[int, list[int]]:
        if self.session is played.story.b.session:
            raise ClientError("renewal")
        return await read_keys(self)

    played.at(Kind.REFUSED, "A", lambda: monkeypatch.setattr(Reservations, "read_keys", fails))
    with pytest.raises(ClientError, match="renewal"):
        await played.play()


async def test_another_refusal_than_a_conflict_is_an_error(
    played: Played, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = Session.write

    async def medium_error(self: Session, lun: int, lba: int, data: Buffer, **how: bool) -> None:
        if played.story.a.state == "back" and self is played.story.a.session:
            raise CommandFailed("WRITE(16)", lun, Result(Status.CHECK_CONDITION))
        await write(self, lun, lba, data, **how)

    monkeypatch.setattr(Session, "write", medium_error)
    with pytest.raises(CommandFailed, match="CHECK CONDITION"):
        await played.play()


async def test_who_stops_watching_leaves_nothing_behind(played: Played) -> None:
    playing = asyncio.create_task(played.play())
    challenging = asyncio.Event()
    played.at(Kind.WAIT, "B", challenging.set)
    await challenging.wait()
    playing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await playing
    assert played.story.b.session.closed


def test_the_challenger_waits_for_more_than_two_renewals() -> None:
    for timing in (Timing(), WINDOWS):
        assert timing.challenge_s > 2 * timing.renew_s
        assert timing.silence_s == timing.heartbeat_s * timing.heartbeats_missed
