"""What is expected of persistent reservations is a Finding where it is not so."""

from collections.abc import AsyncIterator

import pytest

from pyiscsi_target.client import Initiator, Portal
from pyiscsi_target.scsi.task import Result
from pyiscsi_target.validate import pr
from pyiscsi_target.validate.model import Finding
from pyiscsi_target.validate.nodes import Nexus
from tests.support.broken_target import Breaker
from tests.support.live import Live
from tests.support.server import TARGET

KEY, OTHER = 0x11, 0x22


@pytest.fixture
async def nexus(live: Live) -> AsyncIterator[Nexus]:
    made = Nexus("node 1", Portal(*live.address()), TARGET, Initiator(), 20.0)
    await made.connect()
    yield made
    await made.log_out()


async def test_a_registration_and_its_end(nexus: Nexus) -> None:
    await pr.register(nexus, KEY)
    assert await pr.expect_keys(nexus, KEY) == 1
    await pr.reserve(nexus, KEY)
    await pr.expect_holder(nexus, KEY)
    await pr.release(nexus, KEY)
    await pr.expect_holder(nexus, None)
    await pr.clear(nexus, KEY)
    assert await pr.expect_keys(nexus) == 2


async def test_other_keys_than_expected(nexus: Nexus) -> None:
    await pr.register(nexus, KEY)
    with pytest.raises(Finding, match="READ KEYS by node 1: 0000000000000011h") as caught:
        await pr.expect_keys(nexus, KEY, KEY)
    assert caught.value.expected == "0000000000000011h, 0000000000000011h"


@pytest.mark.parametrize(
    ("expected", "seen"),
    [(OTHER, "key 0000000000000011h, type 5"), (None, "key 0000000000000011h, type 5")],
)
async def test_another_holder_than_expected(nexus: Nexus, expected: int | None, seen: str) -> None:
    await pr.hold(nexus, KEY)
    with pytest.raises(Finding, match=f"READ RESERVATION by node 1: {seen}"):
        await pr.expect_holder(nexus, expected)


async def test_no_holder_where_one_is_expected(nexus: Nexus) -> None:
    with pytest.raises(Finding, match="READ RESERVATION by node 1: no reservation") as caught:
        await pr.expect_holder(nexus, KEY)
    assert caught.value.expected == "key 0000000000000011h, type 5"


async def test_a_refusal_that_is_none(nexus: Nexus) -> None:
    await pr.register(nexus, KEY)
    with pytest.raises(Finding, match="RESERVE by node 1: GOOD") as caught:
        await pr.refused(nexus, "RESERVE", nexus.reservations.reserve(KEY, pr.WE_RO))
    assert caught.value.expected == "RESERVATION CONFLICT"
    await pr.refused(nexus, "RESERVE", nexus.reservations.reserve(OTHER, pr.WE_RO))


async def test_a_refusal_for_another_reason(nexus: Nexus, breaker: Breaker) -> None:
    breaker.answer(0x5F, lambda *_: Result(0x22))
    with pytest.raises(Finding, match="RESERVE by node 1: status 22h"):
        await pr.refused(nexus, "RESERVE", nexus.reservations.reserve(KEY, pr.WE_RO))


async def test_an_answer_without_sense(nexus: Nexus, breaker: Breaker) -> None:
    breaker.answer(0x5E, lambda *_: Result(data=b"\1"))
    with pytest.raises(Finding, match="READ KEYS by node 1: READ KEYS: 1 bytes"):
        await pr.read_keys(nexus)
