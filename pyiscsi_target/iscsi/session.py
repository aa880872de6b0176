"""The command window of a session (RFC 7143 section 4.2.2.1): CmdSN, ExpCmdSN, MaxCmdSN.

With one connection a session the window lives beside the connection. MaxCmdSN moves on when a
command is answered, not when it arrives, so `depth` bounds what an initiator can have outstanding.
"""

from collections.abc import Callable

from .constants import SERIAL_MASK


def serial_distance(later: int, earlier: int) -> int:
    """How far `later` is ahead of `earlier` in serial-number arithmetic (RFC 1982)."""
    return (later - earlier) & SERIAL_MASK


class CommandWindow:
    """What CmdSN may come next, and what came early and waits for the gap before it to close."""

    __slots__ = ("early", "expected", "limit")

    def __init__(self, first_cmd_sn: int, depth: int) -> None:
        self.expected = first_cmd_sn  # ExpCmdSN
        self.limit = (first_cmd_sn + depth) & SERIAL_MASK  # MaxCmdSN + 1
        self.early: dict[int, Callable[[], None]] = {}

    @property
    def max_cmd_sn(self) -> int:
        return (self.limit - 1) & SERIAL_MASK

    def admits(self, cmd_sn: int) -> bool:
        """Whether `cmd_sn` is inside the window and not here already."""
        inside = serial_distance(cmd_sn, self.expected) < serial_distance(self.limit, self.expected)
        return inside and cmd_sn not in self.early

    def deliver(self, cmd_sn: int, action: Callable[[], None]) -> None:
        """Run `action` in the order of CmdSN: now, later, or never when outside the window.

        What lies outside, and what comes twice, is silently ignored (section 4.2.2.1).
        """
        if not self.admits(cmd_sn):
            return
        if cmd_sn != self.expected:
            self.early[cmd_sn] = action
            return
        self._count(action)
        while (early := self.early.pop(self.expected, None)) is not None:
            self._count(early)

    def _count(self, action: Callable[[], None]) -> None:
        """Count the expected CmdSN, then act: an answer acknowledges what it answers."""
        self.expected = (self.expected + 1) & SERIAL_MASK
        action()

    def retract(self) -> None:
        """The command being delivered is rejected: it is not received after all (section 7.3).

        Undoes its count and its `complete`, before any answer has told of them.
        """
        self.expected = (self.expected - 1) & SERIAL_MASK
        self.limit = (self.limit - 1) & SERIAL_MASK

    def widen(self, depth: int) -> None:
        """Let up to `depth` commands be outstanding, none of which has arrived yet."""
        self.limit = (self.expected + depth) & SERIAL_MASK

    def complete(self, credit: int) -> None:
        """An answer is going out: open the window by what its command took."""
        self.limit = (self.limit + credit) & SERIAL_MASK
