"""Whether calls that might block may run on the event loop: the policy, without the calls.

A store that cannot ask the kernel "only if it does not block" borrows time from the event loop that
every other disk needs. Calls of a fast file cost microseconds and are simply made. One that takes
longer than `SLOW_S` makes the store wary, and says no more than that: on a busy machine the thread
was mostly just descheduled. A wary store looks, around each call, whether the thread really waited.
Such a slow call adds its duration to the store's debt; debt is forgiven at `REPAYMENT` of real
time, and above `CREDIT_S` the store works in threads until all is repaid. So a slow store takes at
most a small share of the loop, and a busy processor changes nothing.

This module must not know what is being paced.
"""

import time
from collections.abc import Callable
from itertools import count
from typing import ParamSpec

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

SLOW_S = 0.003  # a call on the loop above this is slow
SLOW_IN_THREAD_S = 0.025  # in a thread, whose measure includes waits for the interpreter lock
CREDIT_S = 0.010  # debt that is tolerated
REPAYMENT = 1 / 30  # seconds of debt forgiven in a second
LONGEST_PAUSE_S = 60.0
WARY_CALLS = 64  # fast calls in a row that restore confidence

P = ParamSpec("P")


def count_waits() -> Callable[[], int]:
    """A counter of how often the calling thread has waited (voluntary context switches).

    Where the platform does not count them, it says that the thread always waits.
    """
    thread: int | None = getattr(resource, "RUSAGE_THREAD", None)
    if thread is None:
        return count().__next__
    usage, known = resource.getrusage, thread
    return lambda: usage(known).ru_nvcsw


class Pace:
    """Says whether a call may run on the event loop.

    While not `wary`, the hot path makes its calls, measures them with `clock`, and reports only
    those above `SLOW_S`. While `wary`, it makes them through `carefully`.
    """

    __slots__ = ("_calls_left", "_debt_s", "_debt_since_s", "_resume_s", "_waits", "clock", "wary")

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        waits: Callable[[], int] | None = None,
    ) -> None:
        self.clock = clock
        self.wary = False
        self._waits = waits or count_waits()
        self._calls_left = 0
        self._resume_s = float("-inf")
        self._debt_s = 0.0
        self._debt_since_s = 0.0

    def slow_call(self) -> None:
        """A call on the event loop took longer than `SLOW_S`."""
        self.wary = True
        self._calls_left = WARY_CALLS

    def carefully(self, call: Callable[P, bool], *args: P.args, **kwargs: P.kwargs) -> bool:
        """Make the call and answer as it did, or answer False while the store must not."""
        started_s = self.clock()
        if started_s < self._resume_s:
            return False
        waits = self._waits()
        try:
            return call(*args, **kwargs)
        finally:  # a failure may have taken its time
            elapsed_s = self.clock() - started_s
            if elapsed_s > SLOW_S and self._waits() != waits:
                self._waited(elapsed_s)
            else:
                self._calls_left -= 1
                self.wary = self._calls_left > 0

    def threaded_call(self, elapsed_s: float) -> None:
        """A call in a thread took this long: a store that is still slow stays there."""
        if elapsed_s > SLOW_IN_THREAD_S:
            self._owe(self.clock(), elapsed_s)

    def _waited(self, elapsed_s: float) -> None:
        now_s = self.clock()
        repaid_s = (now_s - self._debt_since_s) * REPAYMENT
        self._owe(now_s, max(0.0, self._debt_s - repaid_s) + elapsed_s)

    def _owe(self, now_s: float, debt_s: float) -> None:
        self.slow_call()
        self._debt_s = debt_s
        self._debt_since_s = now_s
        if debt_s > CREDIT_S:
            pause_s = min(debt_s / REPAYMENT, LONGEST_PAUSE_S)
            self._resume_s = max(self._resume_s, now_s + pause_s)
