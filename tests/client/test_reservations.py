"""Every persistent reservation call, to the server and byte by byte."""

import struct
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.client import (
    BadAnswer,
    CommandFailed,
    HeldReservation,
    Initiator,
    Portal,
    Reservations,
    ReservationType,
    Session,
    Status,
    reservations,
)
from tests.support.live import config_of, serving
from tests.support.server import TARGET

A, B = 0xA11CE, 0xB0B
WE, WE_RO = ReservationType.WRITE_EXCLUSIVE, ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
Nodes = tuple[Reservations, Reservations]


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Two nodes at one disk, their first unit attentions taken."""
    config = config_of(tmp_path)
    async with serving(config, tmp_path) as live:
        portal = Portal(*live.address())
        async with (
            Session.connect(portal, TARGET, Initiator(isid=b"\x80\0\0\0\0\1")) as first,
            Session.connect(portal, TARGET, Initiator(isid=b"\x80\0\0\0\0\2")) as second,
        ):
            await first.ready(0)
            await second.ready(0)
            yield Reservations(first, 0), Reservations(second, 0)


async def held_by(node: Reservations) -> tuple[int, int] | None:
    held = await node.read_reservation()
    return held and (held.key, held.type)


async def test_from_registration_to_release(nodes: Nodes) -> None:
    first, second = nodes
    assert await first.read_keys() == (0, [])
    assert await first.read_reservation() is None
    await first.register(1)
    await first.register(A, existing=1, aptpl=True)
    await second.register_and_ignore(B)
    assert await second.read_keys() == (3, [A, B])
    await first.reserve(A, WE_RO)
    assert await second.read_reservation() == HeldReservation(3, A, WE_RO)
    await first.release(A, WE_RO)
    assert await first.read_reservation() is None
    await first.register(0, existing=A)
    assert await second.session.ready(0) == [(0x2A, 0x04)]
    await second.register_and_ignore(0)
    assert await first.read_keys() == (5, [])


async def test_a_wrong_key_is_a_conflict(nodes: Nodes) -> None:
    first, _ = nodes
    await first.register(A)
    with pytest.raises(CommandFailed, match="PERSISTENT RESERVE OUT, RESERVE to LUN 0") as refused:
        await first.reserve(B, WE)
    assert refused.value.result.status == Status.RESERVATION_CONFLICT


@pytest.mark.parametrize("abort", [False, True])
async def test_preempt(nodes: Nodes, abort: bool) -> None:
    first, second = nodes
    await first.register(A)
    await second.register(B)
    await first.reserve(A, WE)
    await second.preempt(B, A, WE_RO, abort=abort)
    assert await first.session.ready(0) == [(0x2A, 0x05)]
    assert await held_by(first) == (B, WE_RO)
    assert (await first.read_keys())[1] == [B]


async def test_clear(nodes: Nodes) -> None:
    first, second = nodes
    await first.register(A)
    await second.register(B)
    await second.clear(B)
    assert await first.session.ready(0) == [(0x2A, 0x03)]
    assert (await first.read_keys())[1] == []


async def test_register_and_move(nodes: Nodes) -> None:
    first, second = nodes
    await first.register(A)
    await first.reserve(A, WE)
    port = second.session.initiator.transport_id
    await first.register_and_move(A, B, port, 1, unregister=True, aptpl=True)
    assert await held_by(second) == (B, WE)
    _, (entry,) = await second.read_full_status()
    assert entry.initiator_port == second.session.initiator.port_name
    assert (entry.key, entry.is_holder, entry.type, entry.scope) == (B, True, WE, 0)
    assert (entry.relative_target_port, entry.all_target_ports) == (1, False)


async def test_registering_others_along(nodes: Nodes) -> None:
    first, second = nodes
    port = second.session.initiator.transport_id
    await first.register(A, transport_ids=[port], all_target_ports=True)
    _, entries = await first.read_full_status()
    names = {entry.initiator_port for entry in entries}
    assert names == {node.session.initiator.port_name for node in nodes}
    assert {entry.key for entry in entries} == {A}


async def test_capabilities(nodes: Nodes) -> None:
    can = await nodes[0].report_capabilities()
    assert can.types == frozenset(ReservationType)
    assert can.persist_through_power_loss
    assert not can.persist_through_power_loss_activated
    assert can.compatible_reservation_handling
    assert can.specify_initiator_ports
    assert can.all_target_ports
    assert can.replace_lost_reservation
    await nodes[0].register(A, aptpl=True)
    assert (await nodes[0].report_capabilities()).persist_through_power_loss_activated


# Answers of other targets, and those that contradict themselves


class Answering:
    """Stands in for a session: the same data to every command, cut to what was asked for."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.asked: list[int] = []

    async def good(self, *_: object, read_length: int = 0, **__: object) -> bytes:
        self.asked.append(read_length)
        return self.data[:read_length]


def answered(data: bytes) -> Reservations:
    session: Any = Answering(data)
    return Reservations(session, 0)


async def test_a_long_list_is_asked_for_again() -> None:
    keys = list(range(1, 3001))
    node = answered(struct.pack(f">II{len(keys)}Q", 7, 8 * len(keys), *keys))
    assert await node.read_keys() == (7, keys)
    session: Any = node.session
    assert session.asked == [8192, 8 + 24000]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        struct.pack(">IIQ", 0, 16, 1),  # a length beyond what came
        struct.pack(">II7s", 0, 7, bytes(7)),  # no whole key, no whole descriptor
        struct.pack(">IIQ5xB2x", 0, 16, 1, 0x25)[:-1],
        struct.pack(">IIQ5xB2x", 0, 15, 1, 0x25),
    ],
)
async def test_what_contradicts_itself(data: bytes) -> None:
    node = answered(data)
    for read in (node.read_keys, node.read_reservation, node.read_full_status):
        with pytest.raises(BadAnswer):
            await read()


async def test_a_scope_that_there_is_not() -> None:
    node = answered(struct.pack(">IIQ5xB2x", 0, 16, 1, 0x25))
    with pytest.raises(BadAnswer, match="scope 2h"):
        await node.read_reservation()


async def test_capabilities_without_a_valid_mask() -> None:
    can = await answered(struct.pack(">HBBH2x", 8, 0x80, 0x30, 0xEA01)).report_capabilities()
    assert can.types is None
    assert can.replace_lost_reservation
    assert can.allow_commands == 3
    with pytest.raises(BadAnswer):
        await answered(bytes(5)).report_capabilities()


async def test_the_transport_id_of_another_protocol() -> None:
    fibre_channel = bytes(8) + bytes(range(8)) + bytes(8)
    body = struct.pack(">Q4xBB4xHI", 5, 0x03, 0x16, 2, 24) + fibre_channel
    node = answered(struct.pack(">II", 1, len(body)) + body)
    _, (entry,) = await node.read_full_status()
    assert entry.initiator_port is None
    assert entry.transport_id == fibre_channel
    assert (entry.all_target_ports, entry.scope, entry.type) == (True, 1, 6)


@given(st.binary(max_size=80))
def test_any_bytes_are_registrations_or_that_error(body: bytes) -> None:
    try:
        found = reservations._registrations(body)
    except BadAnswer:
        return
    assert sum(24 + len(entry.transport_id) for entry in found) == len(body)
    assert all(entry.initiator_port != "" for entry in found)


async def test_nothing_was_lost_that_could_be_replaced(nodes: Nodes) -> None:
    with pytest.raises(CommandFailed) as refused:
        await nodes[0].replace_lost(A, WE)
    assert refused.value.result.status == Status.CHECK_CONDITION


@pytest.mark.parametrize(
    ("call", "parameters"),
    [
        ({"key": 1}, "0000000000000000 0000000000000001 00000000 00 000000"),
        (
            {"key": 0, "existing": 2, "aptpl": True, "all_target_ports": True},
            "0000000000000002 0000000000000000 00000000 05 000000",
        ),
        (
            {"key": 1, "transport_ids": [b"abcd"]},
            "0000000000000000 0000000000000001 00000000 08 000000 00000004 61626364",
        ),
    ],
)
async def test_the_parameter_list(call: dict[str, Any], parameters: str) -> None:
    sent: list[bytes] = []

    class Recording:
        async def good(self, *_: object, data_out: bytes, **__: object) -> bytes:
            sent.append(data_out)
            return b""

    session: Any = Recording()
    await Reservations(session, 0).register(**call)
    assert sent == [bytes.fromhex(parameters)]
