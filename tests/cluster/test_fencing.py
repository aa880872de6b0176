"""One thousand seeded rounds of fencing, and servers with a fault in which they find it.

Never a write of the fenced node after the GOOD of the preempt: see `tests.support.fencing`.
"""

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from pyiscsi_target.client import Portal
from pyiscsi_target.scsi.logical_unit import LogicalUnit
from pyiscsi_target.scsi.ordering import TaskSet
from pyiscsi_target.scsi.task import Task
from tests.support.fencing import MoodyStore, Rounds, Violation
from tests.support.live import Live, config_of, serving
from tests.support.server import TARGET

SERIES = 10
ROUNDS_A_SERIES = 100


async def play(live: Live, seed: int, rounds: int, *, tas: bool = False) -> Rounds:
    source = random.Random(seed)
    unit = live.app._units["disk"]
    unit.store = store = MoodyStore(unit.store, source)
    unit.mode.task_aborted_status = tas
    series = await Rounds.begin(Portal(*live.address()), TARGET, store, source)
    try:
        for _ in range(rounds):
            await series.play()
    finally:
        await series.end()
        await store.idle()
        unit.store = store.inner
        await store._workers.close()
    return series


@pytest.mark.parametrize("seed", range(SERIES))
async def test_never_a_write_of_the_fenced_node_after_good(tmp_path: Path, seed: int) -> None:
    """Half of the series have TAS=1, where what is aborted is answered."""
    tas = bool(seed % 2)
    async with serving(config_of(tmp_path), tmp_path) as live:
        series = await play(live, seed, ROUNDS_A_SERIES, tas=tas)
    wanted = {"acknowledged", "cut off", "conflicts", "attentions", "after good"}
    wanted |= {"task aborted"} if tas else set()
    assert {name for name, count in series.seen.items() if count} >= wanted


# The rounds find what they are there to find: each fault on its own, within some rounds.


async def _ended_at_once(self: TaskSet, tasks: object) -> None:
    """GOOD does not wait for what was aborted, or had begun."""


def _nothing_forbidden(self: LogicalUnit) -> list[Task]:
    """A PREEMPT without AND ABORT does not wait for what had begun."""
    return []


def _gate_as_before(self: LogicalUnit) -> None:
    """A change of reservations does not reach the hot path's gate."""
    self._unhindered = None


def _checked_once(self: LogicalUnit, row: object, task: Task) -> None:
    """What passed the gates before its transfer, or passed them ever, passes them for good."""


FAULTS: list[tuple[type, str, Callable[..., object]]] = [
    (TaskSet, "ended", _ended_at_once),
    (LogicalUnit, "_forbidden_writes", _nothing_forbidden),
    (LogicalUnit, "_renew_unhindered", _gate_as_before),
    (LogicalUnit, "_pass_gates", _checked_once),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault[1])
async def test_the_rounds_find_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: tuple[type, str, Callable[..., object]]
) -> None:
    async with serving(config_of(tmp_path), tmp_path) as live:
        monkeypatch.setattr(*fault)
        with pytest.raises(Violation):
            await play(live, 1, ROUNDS_A_SERIES)
