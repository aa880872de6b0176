"""PERSISTENT RESERVE IN and OUT of any bytes against one logical unit, by three nexuses.

Whatever arrives, the answer is one that the standard knows; a request that is not GOOD changes
nothing; the state stays one that can be stored, loaded and shown.
"""

import asyncio
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st

from pyiscsi_target.scsi import transport_ids
from pyiscsi_target.scsi.logical_unit import LogicalUnit
from pyiscsi_target.scsi.reservations import State
from pyiscsi_target.scsi.sense import Asc
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task
from pyiscsi_target.server import reservation_state
from tests.support.memory_disk import make_disk, make_nexus

NEXUSES = [
    make_nexus("iqn.2026-11.lab.example:one"),
    make_nexus("iqn.2026-11.lab.example:two"),
    make_nexus("iqn.2026-11.lab.example:two", port=2),
]
KEYS = st.sampled_from((0, 1, 2, 3, 0xFFFF_FFFF_FFFF_FFFF)).map(lambda key: key.to_bytes(8))
KNOWN = {Status.GOOD, Status.CHECK_CONDITION, Status.RESERVATION_CONFLICT}

port_names = st.sampled_from([nexus.initiator_port_name for nexus in NEXUSES]) | st.builds(
    "{},i,0x{}".format,
    st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=230),
    st.binary(min_size=6, max_size=6).map(bytes.hex),
)
# Of a port, of a device, and of whatever: what `encode` makes, its first byte and length bent
transport_id = st.one_of(
    port_names.map(transport_ids.encode),
    st.just(b"\x05\x00\x00\x1c" + b"iqn.2026-11.lab.example:two\0"),
    st.binary(max_size=40),
)


@st.composite
def bent(draw: st.DrawFn, whole: st.SearchStrategy[bytes]) -> bytes:
    """Bytes as they should be, or with a few changed, cut off or added."""
    data = bytearray(draw(whole))
    match draw(st.sampled_from(("whole", "whole", "changed", "cut", "longer"))):
        case "changed" if data:
            for _ in range(draw(st.integers(1, 4))):
                data[draw(st.integers(0, len(data) - 1))] = draw(st.integers(0, 255))
        case "cut":
            del data[draw(st.integers(0, len(data))) :]
        case "longer":
            data += draw(st.binary(max_size=12))
    return bytes(data)


@st.composite
def basic_list(draw: st.DrawFn) -> bytes:
    flags = draw(st.sampled_from((0, 0, 1, 4, 8, 9, 12, 13)))
    data = draw(KEYS) + draw(KEYS) + bytes((0, 0, 0, 0, flags, 0, 0, 0))
    if flags & 8:
        ids = b"".join(draw(st.lists(transport_id, max_size=3)))
        data += len(ids).to_bytes(4) + ids
    return data


@st.composite
def move_list(draw: st.DrawFn) -> bytes:
    destination = draw(transport_id)
    flags, port = draw(st.integers(0, 3)), draw(st.sampled_from((1, 2, 3, 0xFFFF)))
    head = draw(KEYS) + draw(KEYS) + bytes((0, flags)) + port.to_bytes(2)
    return head + len(destination).to_bytes(4) + destination


@st.composite
def out(draw: st.DrawFn) -> tuple[int, bytes, list[bytes]]:
    """A nexus, a CDB, and its data-out in pieces."""
    action = draw(st.integers(0, 9))
    data = draw(bent(move_list() if action == 7 else basic_list()))
    length = draw(st.sampled_from((len(data),) * 6 + (0, 23, 24, 25, len(data) + 1, 0xFFFF_FFFF)))
    kind = draw(st.sampled_from((1, 3, 5, 6, 7, 8, 0, 2, 4, 9, 0x15)))
    cdb = bytes((0x5F, action, kind, 0, 0)) + length.to_bytes(4) + bytes(7)
    cut = draw(st.integers(0, len(data)))
    pieces = [piece for piece in (data[:cut], data[cut:]) if piece]
    return draw(st.integers(0, 2)), cdb, pieces


class Memory:
    """Stores the bytes of a state's document and loads them again, to see that they are one."""

    def __init__(self) -> None:
        self.saved = 0

    async def save(self, name: str, state: State) -> None:
        self.saved += 1
        document = reservation_state._encode(state)
        assert reservation_state._decode(document) == state


def run(lu: LogicalUnit, nexus: Nexus, cdb: bytes, data_out: Sequence[bytes] = ()) -> Result:
    async def finish() -> Result:
        outcome = lu.execute(Task(nexus, 0, cdb, data_out))
        return outcome if isinstance(outcome, Result) else await outcome

    return asyncio.run(finish())


def check(lu: LogicalUnit) -> None:
    """What is true of every state."""
    state = lu.reservations
    assert 0 not in state.registrations.values()
    if state.reservation is not None:
        assert state.registrations
        if state.reservation.held_by_all:
            assert state.reservation.holder is None
        else:
            assert state.reservation.holder in state.registrations
    for action in range(4):
        whole = read(lu, action, 0xFFFF)
        length = int.from_bytes(whole[:2] if action == 2 else whole[4:8])
        assert len(whole) == (length if action == 2 else 8 + length)
        for shorter in (0, 3, 8, len(whole) - 1):
            assert read(lu, action, shorter) == whole[:shorter]


def read(lu: LogicalUnit, action: int, length: int) -> bytes:
    cdb = bytes((0x5E, action, 0, 0, 0, 0, 0)) + length.to_bytes(2) + bytes(7)
    result = run(lu, NEXUSES[0], cdb)
    assert result.status == Status.GOOD
    return bytes(result.data or b"")


@settings(max_examples=150, deadline=None)
@given(st.lists(out(), min_size=1, max_size=12))
def test_persistent_reserve_out_of_any_bytes(
    requests: list[tuple[int, bytes, list[bytes]]],
) -> None:
    store = Memory()
    lu = make_disk(reservation_store=store)
    lu.target_ports = (1, 2)
    for nexus in NEXUSES:
        lu.attentions.attach(nexus)
    for number, cdb, pieces in requests:
        before, saved = lu.reservations, store.saved
        result = run(lu, NEXUSES[number], cdb, pieces)
        lu.attentions.pending.clear()
        assert result.status in KNOWN
        if result.status == Status.CHECK_CONDITION:
            assert (result.sense[12], result.sense[13]) != Asc.INTERNAL_TARGET_FAILURE.value
        if result.status != Status.GOOD:
            assert lu.reservations == before
        assert (store.saved > saved) == (lu.reservations != before)
    check(lu)


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2),
    st.integers(0, 4) | st.integers(0, 255),
    st.just(bytes(5)) | st.binary(min_size=5, max_size=5),
    st.binary(min_size=2, max_size=2),
)
def test_persistent_reserve_in_of_any_bytes(
    number: int, action: int, reserved: bytes, length: bytes
) -> None:
    lu = make_disk()
    lu.target_ports = (1, 2)
    cdb = bytes((0x5E, action)) + reserved + length + bytes(7)
    result = run(lu, NEXUSES[number], cdb)
    if result.status == Status.GOOD:
        assert len(result.data or b"") <= int.from_bytes(cdb[7:9])
    else:
        assert result.status == Status.CHECK_CONDITION
        assert (result.sense[12], result.sense[13]) == Asc.INVALID_FIELD_IN_CDB.value
