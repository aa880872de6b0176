"""The table of what outsiders may do: harmless commands only, and each is judged right."""

from collections.abc import AsyncIterator

import pytest

from pyiscsi_target.validate import gates, pr
from pyiscsi_target.validate.access import (
    ALLOWED,
    CONFLICTING,
    data_neutral_write,
    wrongly_accepted,
    wrongly_refused,
)
from pyiscsi_target.validate.rig import Rig
from tests.support.broken_target import Breaker, illegal_request
from tests.support.live import Live
from tests.support.validation import options_for


@pytest.fixture
async def rig(live: Live) -> AsyncIterator[Rig]:
    made = Rig(options_for(live))
    await gates.free_disk(made)
    yield made
    assert await made.clean_up() == []


async def test_under_a_reservation(rig: Rig) -> None:
    owner, outsider = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    assert await wrongly_accepted(rig, outsider.nexus) == []
    assert await wrongly_refused(rig, outsider.nexus) == []
    assert len(await wrongly_accepted(rig, owner.nexus)) == len(CONFLICTING)


async def test_without_a_reservation_nothing_changes(rig: Rig, live: Live) -> None:
    """All that might be accepted wrongly does nothing where it is accepted."""
    unit = live.app._units["disk"]
    mode, written = dict(unit.mode.current), unit.statistics.write_bytes
    assert len(await wrongly_accepted(rig, rig.first)) == len(CONFLICTING)
    assert unit.mode.current == mode
    assert unit.statistics.write_bytes == written
    data_out = [len(r.data_out) for access in CONFLICTING if (r := access.make(rig))]
    assert data_out == [0, 0, 8, 0], "the header of an empty UNMAP list is all"


async def test_nothing_allowed_takes_data(rig: Rig) -> None:
    made = [access.make(rig) for access in ALLOWED]
    assert all(request is not None and not request.data_out for request in made)


async def test_with_leave_to_write(live: Live) -> None:
    rig = Rig(options_for(live, allow_writes=True))
    await gates.free_disk(rig)
    assert rig.scratch_before is not None
    assert data_neutral_write(rig).data_out == rig.scratch_before[:512]
    await rig.clean_up()


async def test_a_full_disk_has_no_unmap(rig: Rig, breaker: Breaker) -> None:
    assert rig.disk is not None
    rig.disk = type(rig.disk)(512, 8192, thin=False, reads_zeroes=False)
    breaker.answer(0x42, illegal_request)
    owner, outsider = rig.nodes[:2]
    await pr.hold(owner.nexus, owner.key)
    assert await wrongly_accepted(rig, outsider.nexus) == []
