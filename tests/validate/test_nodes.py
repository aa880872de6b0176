"""Nexuses: they outlive their sessions, and hear unit attentions without stumbling over them."""

import pytest

from pyiscsi_target.client import ConnectionLost, Initiator, Portal
from pyiscsi_target.scsi.sense import Asc, ScsiError, SenseKey, encode_sense
from pyiscsi_target.scsi.task import Result, Status, Task
from pyiscsi_target.validate import nodes, requests
from pyiscsi_target.validate.model import Finding
from pyiscsi_target.validate.nodes import Nexus, isid_of
from tests.support.broken_target import Breaker
from tests.support.live import Live
from tests.support.server import TARGET

NAME = "iqn.2026-11.lab.example:node"
POWER_ON = Asc.POWER_ON_RESET_OR_BUS_DEVICE_RESET_OCCURRED
NEXUS_LOSS = Asc.I_T_NEXUS_LOSS_OCCURRED


@pytest.fixture
async def nexus(live: Live) -> Nexus:
    made = Nexus("node 1", Portal(*live.address()), TARGET, Initiator(NAME, isid_of(1, 1)), 20.0)
    await made.connect()
    return made


def test_each_path_has_an_isid_of_its_own() -> None:
    assert isid_of(1, 1) == b"\x80VAL\x01\x01"
    assert len({isid_of(node, path) for node in range(1, 9) for path in (1, 2, 200)}) == 24


async def test_attentions_are_heard_and_taken(live: Live, nexus: Nexus) -> None:
    assert (await nexus.send(requests.read_capacity_10())).good, "sent again after the attention"
    unit = live.app._units["disk"]
    unit.attentions.establish_for_others(Asc.MODE_PARAMETERS_CHANGED)
    assert await nexus.take_attentions() == [POWER_ON.value, Asc.MODE_PARAMETERS_CHANGED.value]
    assert await nexus.take_attentions() == []
    await nexus.log_out()


async def test_attentions_without_end(breaker: Breaker, nexus: Nexus) -> None:
    error = ScsiError(SenseKey.UNIT_ATTENTION, Asc.MODE_PARAMETERS_CHANGED)
    again = Result(Status.CHECK_CONDITION, sense=encode_sense(error, descriptor=False))
    breaker.instead(0x00, lambda task: again)
    with pytest.raises(Finding, match="one unit attention after another: 2Ah/01h"):
        await nexus.take_attentions()
    await nexus.log_out()


async def test_a_busy_target_is_asked_again(
    breaker: Breaker, nexus: Nexus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nodes, "_BUSY_PAUSE_S", 0)
    asked = []

    def busy(task: Task) -> Result | None:
        asked.append(task)
        return Result(Status.BUSY) if len(asked) < 4 else None

    breaker.instead(0x25, busy)
    await nexus.take_attentions()
    assert (await nexus.send(requests.read_capacity_10())).good
    assert len(asked) == 4
    breaker.instead(0x25, lambda task: Result(Status.BUSY))
    assert (await nexus.send(requests.read_capacity_10())).status == Status.BUSY
    await nexus.log_out()


async def test_a_nexus_comes_back(nexus: Nexus) -> None:
    await nexus.take_attentions()
    nexus.drop()
    assert not nexus.connected
    with pytest.raises(Finding, match="the session of node 1 ended by itself"):
        await nexus.send(requests.read_capacity_10())
    await nexus.connect()
    assert await nexus.take_attentions() == [NEXUS_LOSS.value], "the same nexus"
    await nexus.log_out()
    await nexus.log_out()
    nexus.drop()


async def test_a_disk_that_is_not_ready(breaker: Breaker, nexus: Nexus) -> None:
    breaker.answer(0x00, lambda *_: Result(Status.RESERVATION_CONFLICT))
    with pytest.raises(Finding, match="TEST UNIT READY by node 1: RESERVATION CONFLICT"):
        await nexus.take_attentions()
    await nexus.log_out()


async def test_a_portal_where_nobody_is(live: Live) -> None:
    nexus = Nexus("node 1", Portal("127.0.0.1", 1), TARGET, Initiator(NAME), 20.0)
    with pytest.raises(ConnectionLost):
        await nexus.connect()
    assert not nexus.connected
