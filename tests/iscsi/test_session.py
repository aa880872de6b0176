"""The command window: order, early arrival, and the wrap of CmdSN at 2**32."""

from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.iscsi.session import CommandWindow, serial_distance

WRAP = 1 << 32
STARTS = pytest.mark.parametrize("start", [0, 1, 1000, WRAP - 1, WRAP - 2, 1 << 31])


class Arrivals:
    """A window that keeps who was delivered, in order, by distance from its first CmdSN."""

    def __init__(self, start: int, depth: int) -> None:
        self.start = start
        self.window = CommandWindow(start, depth)
        self.delivered: list[int] = []

    def arrive(self, *distances: int) -> list[int]:
        for distance in distances:
            cmd_sn = (self.start + distance) % WRAP
            self.window.deliver(cmd_sn, partial(self.delivered.append, distance))
        return self.delivered

    @property
    def expected(self) -> int:
        return serial_distance(self.window.expected, self.start)


@pytest.mark.parametrize(
    ("later", "earlier", "distance"),
    [(5, 3, 2), (3, 3, 0), (0, WRAP - 1, 1), (2, WRAP - 3, 5), (3, 5, WRAP - 2)],
)
def test_serial_distance(later: int, earlier: int, distance: int) -> None:
    assert serial_distance(later, earlier) == distance


@STARTS
class TestOrder:
    def test_what_comes_in_order_is_delivered_at_once(self, start: int) -> None:
        arrivals = Arrivals(start, 8)
        assert arrivals.arrive(0) == [0]
        assert arrivals.arrive(1) == [0, 1]
        assert arrivals.expected == 2

    def test_what_comes_early_waits_for_the_gap(self, start: int) -> None:
        arrivals = Arrivals(start, 8)
        assert arrivals.arrive(3, 1) == []
        assert arrivals.expected == 0
        assert arrivals.arrive(0) == [0, 1]
        assert arrivals.expected == 2
        assert arrivals.arrive(2) == [0, 1, 2, 3]
        assert not arrivals.window.early

    def test_what_comes_twice_is_ignored(self, start: int) -> None:
        arrivals = Arrivals(start, 8)
        assert arrivals.arrive(0, 0, 2, 2, 1, 1, 2) == [0, 1, 2]

    @pytest.mark.parametrize("outside", [-1, -5, 4, 5, 1 << 31])
    def test_what_lies_outside_is_ignored(self, start: int, outside: int) -> None:
        arrivals = Arrivals(start, 4)
        assert arrivals.arrive(outside) == []
        assert arrivals.arrive(0, 1, 2, 3) == [0, 1, 2, 3]
        assert not arrivals.window.early

    def test_the_window_closes_until_something_is_answered(self, start: int) -> None:
        arrivals = Arrivals(start, 2)
        assert arrivals.arrive(0, 1, 2) == [0, 1]
        assert arrivals.window.max_cmd_sn == (arrivals.window.expected - 1) % WRAP
        arrivals.window.complete(1)
        assert arrivals.arrive(2, 3) == [0, 1, 2]

    def test_an_immediate_command_gives_no_credit(self, start: int) -> None:
        window = CommandWindow(start, 2)
        before = window.max_cmd_sn
        window.complete(0)
        assert window.max_cmd_sn == before

    def test_an_action_sees_itself_counted(self, start: int) -> None:
        """What an action sends acknowledges its own command (section 4.2.2.1)."""
        window = CommandWindow(start, 4)
        seen: list[int] = []
        for cmd_sn in (start + 1, start):
            window.deliver(cmd_sn % WRAP, lambda: seen.append(window.expected))
        assert seen == [(start + 1) % WRAP, (start + 2) % WRAP]


@given(
    start=st.integers(0, WRAP - 1),
    depth=st.integers(1, 8),
    arrivals=st.lists(st.integers(-3, 12), max_size=60),
)
def test_against_a_model(start: int, depth: int, arrivals: list[int]) -> None:
    """Each command once, in order, whatever arrives; answered as soon as it is delivered."""
    subject = Arrivals(start, depth)
    waiting: set[int] = set()
    due = 0
    limit = depth
    for distance in arrivals:
        if due <= distance < limit:
            waiting.add(distance)
        subject.arrive(distance)
        while due in waiting:
            due += 1
        assert subject.delivered == list(range(due))
        assert subject.expected == due
        answered = due + depth - limit
        subject.window.complete(answered)
        limit += answered
        assert len(subject.window.early) < depth
