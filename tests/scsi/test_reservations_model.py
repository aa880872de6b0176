"""Any sequence of requests of several initiators, beside a second and naive reading of SPC-5.

The model keeps a table of rows and works through the standard's sentences one after another; it
shares nothing with the state but the names of actions and types.
"""

from dataclasses import dataclass, field, replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pyiscsi_target.scsi.reservations import (
    NOTHING,
    Access,
    NexusKey,
    Request,
    ReservationType,
    ServiceAction,
    change,
)
from pyiscsi_target.scsi.sense import Asc, ReservationConflict, ScsiError

PORTS = (1, 2)
NEXUSES: list[NexusKey] = [(name, port) for name in ("a", "b", "c") for port in PORTS]
KEYS = (0, 1, 2, 3)
LOST, RELEASED, CLEARED = (
    Asc.REGISTRATIONS_PREEMPTED,
    Asc.RESERVATIONS_RELEASED,
    Asc.RESERVATIONS_PREEMPTED,
)


@dataclass
class Row:
    nexus: NexusKey
    key: int
    holds: bool = False


@dataclass
class Model:
    """`outcome` is "good", "conflict" or "check"; `told` and `ended` are of the last request."""

    rows: list[Row] = field(default_factory=list)
    kind: int = 0  # 0: no reservation
    generation: int = 0
    aptpl: bool = False
    told: dict[NexusKey, Asc] = field(default_factory=dict)
    ended: set[NexusKey] = field(default_factory=set)

    def row(self, nexus: NexusKey) -> Row | None:
        for row in self.rows:
            if row.nexus == nexus:
                return row
        return None

    def tell(self, asc: Asc, but: NexusKey) -> None:
        for row in self.rows:
            if row.nexus != but:
                self.told[row.nexus] = asc

    def hold(self, nexus: NexusKey, kind: int) -> None:
        self.kind = kind
        for row in self.rows:
            row.holds = kind in (7, 8) or row.nexus == nexus

    def free(self) -> None:
        self.kind = 0
        for row in self.rows:
            row.holds = False

    def request(self, nexus: NexusKey, asked: Request) -> str:
        self.told, self.ended = {}, set()
        if asked.action == 0x08:  # nothing is ever lost here
            return "check"
        mine = self.row(nexus)
        if asked.action == 0x06:
            return self.register(nexus, asked)
        if asked.action == 0x00:
            if (mine.key if mine else 0) != asked.key:
                return "conflict"
            return self.register(nexus, asked)
        if mine is None or mine.key != asked.key:
            return "conflict"
        handlers = {1: self.reserve, 2: self.release, 3: self.clear, 7: self.move}
        return handlers.get(asked.action, self.preempt)(mine, asked)

    def register(self, nexus: NexusKey, asked: Request) -> str:
        mine = self.row(nexus)
        if asked.action_key == 0:
            if mine is None:
                return "good"
            was_holder, kind = mine.holds, self.kind
            self.rows.remove(mine)
            if was_holder and kind in (5, 6):
                self.tell(RELEASED, nexus)
            if was_holder and (kind < 7 or not self.rows):
                self.free()
        elif mine is None:
            self.rows.append(Row(nexus, asked.action_key, holds=self.kind in (7, 8)))
        else:
            mine.key = asked.action_key
        self.generation += 1
        self.aptpl = asked.aptpl
        return "good"

    def reserve(self, mine: Row, asked: Request) -> str:
        if self.kind == 0:
            self.hold(mine.nexus, asked.scope_and_type)
            return "good"
        return "good" if mine.holds and self.kind == asked.scope_and_type else "conflict"

    def release(self, mine: Row, asked: Request) -> str:
        if self.kind == 0 or not mine.holds:
            return "good"
        if self.kind != asked.scope_and_type:
            return "check"
        if self.kind not in (1, 3):
            self.tell(RELEASED, mine.nexus)
        self.free()
        return "good"

    def clear(self, mine: Row, asked: Request) -> str:
        self.tell(CLEARED, mine.nexus)
        self.rows = []
        self.free()
        self.generation += 1
        return "good"

    def preempt(self, mine: Row, asked: Request) -> str:
        by_all = self.kind in (7, 8)
        if asked.action_key == 0 and not by_all:
            return "check"
        if by_all:
            takes = asked.action_key == 0
        else:
            takes = any(row.holds and row.key == asked.action_key for row in self.rows)
        if takes and by_all:
            victims = [row for row in self.rows if row is not mine]
        else:
            victims = [row for row in self.rows if row.key == asked.action_key]
            if not victims:
                return "conflict"
        if asked.action == 0x05:
            self.ended = {row.nexus for row in victims}
        for row in victims:
            if row is not mine or not takes:
                self.rows.remove(row)
        if takes:
            if self.kind != asked.scope_and_type:
                self.tell(RELEASED, mine.nexus)
            self.hold(mine.nexus, asked.scope_and_type)
        elif not self.rows:
            self.free()
        for row in victims:
            if row is not mine:
                self.told[row.nexus] = LOST
        self.generation += 1
        return "good"

    def move(self, mine: Row, asked: Request) -> str:
        if self.kind == 0:
            return "check"
        if not mine.holds or self.kind in (7, 8):
            return "conflict"
        assert asked.destination is not None
        if asked.action_key == 0 or asked.destination[0] == mine.nexus[0]:
            return "check"
        there = self.row(asked.destination)
        if there is None:
            there = Row(asked.destination, 0)
            self.rows.append(there)
        there.key = asked.action_key
        mine.holds, there.holds = False, True
        if asked.unregister:
            self.rows.remove(mine)
        self.generation += 1
        self.aptpl = asked.aptpl
        return "good"

    def may(self, nexus: NexusKey, access: Access) -> bool:
        mine = self.row(nexus)
        if access in (Access.RESERVE, Access.RELEASE) and self.rows:
            return bool(self.kind and mine and (mine.holds or self.kind >= 5))
        if self.kind == 0 or (mine and (mine.holds or self.kind >= 5)):
            return True
        if access is Access.WRITES:
            return False
        return access is not Access.READS or self.kind in (1, 5, 7)


REQUESTS = st.builds(
    Request,
    st.sampled_from(ServiceAction),
    st.sampled_from(KEYS),
    st.sampled_from(KEYS),
    st.sampled_from([int(kind) for kind in ReservationType]),
    aptpl=st.booleans(),
    destination=st.sampled_from(NEXUSES),
    unregister=st.booleans(),
)

HOLDERS = (ServiceAction.REGISTER, ServiceAction.RELEASE, ServiceAction.REGISTER_AND_MOVE)
PREEMPTS = (ServiceAction.PREEMPT, ServiceAction.PREEMPT_AND_ABORT)


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.state, self.model = NOTHING, Model()

    def ask(self, nexus: NexusKey, request: Request) -> None:
        before = self.state
        told: dict[NexusKey, Asc] = {}
        ended: set[NexusKey] = set()
        try:
            result = change(before, nexus, request, PORTS)
            self.state, told, ended = result.state, dict(result.attentions), set(result.aborts)
            outcome = "good"
        except ReservationConflict:
            outcome = "conflict"
        except ScsiError:
            outcome = "check"
        assert outcome == self.model.request(nexus, request)
        assert (told, ended) == (self.model.told, self.model.ended)
        assert nexus not in told

    @rule(nexus=st.sampled_from(NEXUSES), request=REQUESTS)
    def anything(self, nexus: NexusKey, request: Request) -> None:
        self.ask(nexus, request)

    @rule(nexus=st.sampled_from(NEXUSES), key=st.sampled_from(KEYS[1:]))
    def join(self, nexus: NexusKey, key: int) -> None:
        self.ask(nexus, Request(ServiceAction.REGISTER_AND_IGNORE_EXISTING_KEY, 0, key))

    def ask_with_its_key(
        self, nexus: NexusKey, action: ServiceAction, request: Request, action_key: int
    ) -> None:
        row = self.model.row(nexus)
        key = row.key if row else 0
        self.ask(nexus, replace(request, action=action, key=key, action_key=action_key))

    @rule(nexus=st.sampled_from(NEXUSES), request=REQUESTS)
    def with_its_key(self, nexus: NexusKey, request: Request) -> None:
        self.ask_with_its_key(nexus, request.action, request, request.action_key)

    @rule(nexus=st.sampled_from(NEXUSES), request=REQUESTS)
    def reserve(self, nexus: NexusKey, request: Request) -> None:
        self.ask_with_its_key(nexus, ServiceAction.RESERVE, request, 0)

    @rule(number=st.integers(0, 5), request=REQUESTS, action=st.sampled_from(HOLDERS))
    def by_a_holder(self, number: int, request: Request, action: ServiceAction) -> None:
        holders = [row.nexus for row in self.model.rows if row.holds]
        if holders:
            kind = self.model.kind if request.aptpl else request.scope_and_type
            request = replace(request, scope_and_type=kind)
            nexus = holders[number % len(holders)]
            self.ask_with_its_key(nexus, action, request, request.action_key)

    @rule(by=st.integers(0, 5), of=st.integers(0, 5), request=REQUESTS)
    def preempt(self, by: int, of: int, request: Request) -> None:
        rows = self.model.rows
        if rows:
            victim = rows[of % len(rows)].key if self.model.kind < 7 or of else 0
            action = PREEMPTS[request.unregister]
            self.ask_with_its_key(rows[by % len(rows)].nexus, action, request, victim)

    @invariant()
    def the_same_is_registered_and_held(self) -> None:
        rows = {(row.nexus, row.key, row.holds) for row in self.model.rows}
        registered = self.state.registrations.items()
        assert rows == {(nexus, key, self.state.is_holder(nexus)) for nexus, key in registered}
        reservation = self.state.reservation
        assert self.model.kind == (reservation.type if reservation else 0)
        assert self.model.generation == self.state.generation
        assert self.model.aptpl == self.state.aptpl

    @invariant()
    def the_same_may_be_done(self) -> None:
        for nexus in NEXUSES:
            for access in Access:
                assert self.state.conflicts(nexus, access) is not self.model.may(nexus, access)


Machine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestReservations = Machine.TestCase
