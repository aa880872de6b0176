"""Unit attention conditions: per nexus, once each, in their precedence (SAM-6 clause 5.14)."""

import pytest

from pyiscsi_target.scsi.sense import Asc
from pyiscsi_target.scsi.unit_attention import UnitAttentions
from tests.support.memory_disk import make_nexus


def taken(attentions: UnitAttentions, nexus: object) -> list[Asc]:
    queue = []
    while (asc := attentions.take(nexus)) is not None:  # type: ignore[arg-type]
        queue.append(asc)
    return queue


def test_a_condition_is_reported_once_to_each_nexus() -> None:
    attentions = UnitAttentions()
    one, two, three = make_nexus("one"), make_nexus("two"), make_nexus("three")
    for nexus in (one, two, three):
        attentions.attach(nexus)
    attentions.establish_for_others(Asc.MODE_PARAMETERS_CHANGED, but=two)
    attentions.establish_for_others(Asc.MODE_PARAMETERS_CHANGED, but=two)
    assert taken(attentions, one) == [Asc.MODE_PARAMETERS_CHANGED]
    assert taken(attentions, one) == []
    assert taken(attentions, two) == []
    assert attentions.pending
    assert taken(attentions, three) == [Asc.MODE_PARAMETERS_CHANGED]
    assert not attentions.pending


@pytest.mark.parametrize(
    ("established", "reported"),
    [
        (
            [Asc.MODE_PARAMETERS_CHANGED, Asc.CAPACITY_DATA_HAS_CHANGED],
            [Asc.MODE_PARAMETERS_CHANGED, Asc.CAPACITY_DATA_HAS_CHANGED],
        ),
        (
            [Asc.CAPACITY_DATA_HAS_CHANGED, Asc.I_T_NEXUS_LOSS_OCCURRED],
            [Asc.I_T_NEXUS_LOSS_OCCURRED, Asc.CAPACITY_DATA_HAS_CHANGED],
        ),
        (
            [Asc.I_T_NEXUS_LOSS_OCCURRED, Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED],
            [Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED],
        ),
        (
            [Asc.POWER_ON_OCCURRED, Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED],
            [Asc.POWER_ON_OCCURRED],
        ),
        ([Asc.POWER_ON_OCCURRED, Asc.DEVICE_INTERNAL_RESET], [Asc.POWER_ON_OCCURRED]),
    ],
)
def test_precedence(established: list[Asc], reported: list[Asc]) -> None:
    attentions = UnitAttentions()
    nexus = make_nexus()
    attentions.attach(nexus)
    for asc in established:
        attentions.establish(nexus, asc)
    assert taken(attentions, nexus) == reported


def test_a_nexus_that_left_is_told_nothing() -> None:
    attentions = UnitAttentions()
    nexus = make_nexus()
    attentions.attach(nexus)
    attentions.establish(nexus, Asc.POWER_ON_OCCURRED)
    attentions.detach(nexus)
    attentions.establish(nexus, Asc.MODE_PARAMETERS_CHANGED)
    assert attentions.take(nexus) is None
    assert not attentions.pending


def test_clear_drops_just_that_condition() -> None:
    attentions = UnitAttentions()
    nexus = make_nexus()
    attentions.attach(nexus)
    attentions.establish(nexus, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    attentions.establish(nexus, Asc.MODE_PARAMETERS_CHANGED)
    attentions.clear(nexus, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert taken(attentions, nexus) == [Asc.MODE_PARAMETERS_CHANGED]
    attentions.establish(nexus, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    attentions.clear(nexus, Asc.REPORTED_LUNS_DATA_HAS_CHANGED)
    assert not attentions.pending
