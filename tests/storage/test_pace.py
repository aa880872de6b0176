import threading
from collections.abc import Callable

import pytest

from pyiscsi_target.storage import pace as module
from pyiscsi_target.storage.pace import (
    CREDIT_S,
    LONGEST_PAUSE_S,
    REPAYMENT,
    SLOW_IN_THREAD_S,
    SLOW_S,
    WARY_CALLS,
    Pace,
    count_waits,
)


class Machine:
    """A clock and a thread that waits only in the calls made here."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits = 0
        self.calls = 0

    def clock(self) -> float:
        return self.now_s

    def takes(self, elapsed_s: float, *, waiting: bool = True) -> Callable[[], bool]:
        def call() -> bool:
            self.calls += 1
            self.now_s += elapsed_s
            self.waits += waiting
            return True

        return call


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def pace(machine: Machine) -> Pace:
    made = Pace(machine.clock, lambda: machine.waits)
    made.slow_call()
    return made


def pause_s(pace: Pace, machine: Machine) -> float:
    """How long the store stays in threads from now on, to a millisecond."""
    began_s, made = machine.now_s, machine.calls
    while not pace.carefully(machine.takes(0.0, waiting=False)):
        assert machine.calls == made
        machine.now_s += 0.001
    paused_s, machine.now_s = machine.now_s - began_s, began_s
    return paused_s


def test_begins_with_confidence() -> None:
    assert not Pace().wary


def test_a_slow_call_makes_wary_and_no_more(pace: Pace, machine: Machine) -> None:
    assert pace.wary
    assert pause_s(pace, machine) == 0


def test_fast_calls_restore_confidence(pace: Pace, machine: Machine) -> None:
    for _ in range(WARY_CALLS):
        assert pace.wary
        assert pace.carefully(machine.takes(SLOW_S * 0.9))
    assert not pace.wary


def test_the_answer_is_that_of_the_call(pace: Pace) -> None:
    assert pace.carefully(lambda: True)
    assert not pace.carefully(lambda: False)
    with pytest.raises(ZeroDivisionError):
        pace.carefully(lambda: bool(1 // 0))


def test_a_busy_processor_changes_nothing(pace: Pace, machine: Machine) -> None:
    for _ in range(WARY_CALLS):
        assert pace.carefully(machine.takes(0.05, waiting=False))
    assert not pace.wary


def test_a_failure_that_took_its_time_counts(pace: Pace, machine: Machine) -> None:
    def fails() -> bool:
        machine.takes(0.05)()
        raise OSError

    with pytest.raises(OSError):  # noqa: PT011
        pace.carefully(fails)
    assert pause_s(pace, machine) == pytest.approx(0.05 / REPAYMENT, abs=0.002)


def test_one_short_wait_is_forgiven(pace: Pace, machine: Machine) -> None:
    assert pace.carefully(machine.takes(CREDIT_S * 0.9))
    assert pause_s(pace, machine) == 0
    assert pace.wary


def test_a_stall_is_paid_back_in_full(pace: Pace, machine: Machine) -> None:
    assert pace.carefully(machine.takes(0.05))
    assert pause_s(pace, machine) == pytest.approx(0.05 / REPAYMENT, abs=0.002)


def test_short_waits_in_a_row_add_up(pace: Pace, machine: Machine) -> None:
    for _ in range(2):
        assert pace.carefully(machine.takes(0.009))
    assert pause_s(pace, machine) == pytest.approx((0.018 - 0.009 / 30) / REPAYMENT, abs=0.002)


def test_short_waits_far_apart_do_not(pace: Pace, machine: Machine) -> None:
    for _ in range(100):
        assert pace.carefully(machine.takes(0.004))
        machine.now_s += 0.004 / REPAYMENT


def test_the_loop_keeps_its_share_whatever_the_store_does(pace: Pace, machine: Machine) -> None:
    began_s = machine.now_s
    for _ in range(20_000):
        if not pace.carefully(machine.takes(0.05)):
            machine.now_s += 0.02
    assert machine.calls * 0.05 <= (machine.now_s - began_s) * REPAYMENT * 1.1


def test_a_store_that_is_still_slow_in_threads_stays_there(pace: Pace, machine: Machine) -> None:
    pace.carefully(machine.takes(0.05))
    machine.now_s += 1.0
    pace.threaded_call(0.05)
    assert pause_s(pace, machine) == pytest.approx(0.05 / REPAYMENT, abs=0.002)


def test_a_slow_thread_is_enough(machine: Machine) -> None:
    pace = Pace(machine.clock, lambda: machine.waits)
    pace.threaded_call(0.05)
    assert pace.wary
    assert pause_s(pace, machine) == pytest.approx(0.05 / REPAYMENT, abs=0.002)


def test_waits_for_the_interpreter_lock_do_not_count(machine: Machine) -> None:
    pace = Pace(machine.clock, lambda: machine.waits)
    pace.threaded_call(SLOW_IN_THREAD_S)
    assert not pace.wary


def test_a_pause_never_shrinks_and_has_a_bound(pace: Pace, machine: Machine) -> None:
    pace.carefully(machine.takes(3600.0))
    pace.threaded_call(0.03)
    assert pause_s(pace, machine) == pytest.approx(LONGEST_PAUSE_S, abs=0.002)


def test_waits_of_this_thread_are_counted() -> None:
    waits = count_waits()
    before = waits()
    thread = threading.Thread(target=lambda: None)
    gate = threading.Event()
    gate.wait(0.001)  # a wait is what is counted here
    thread.start()
    thread.join()
    assert waits() > before


def test_where_waits_are_not_counted_every_slow_call_waited(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "resource", None)
    pace = Pace(machine.clock)
    pace.slow_call()
    assert pace.carefully(machine.takes(0.05, waiting=False))
    assert not pace.carefully(machine.takes(0.0))
