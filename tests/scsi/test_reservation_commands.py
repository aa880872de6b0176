"""PERSISTENT RESERVE IN and OUT: their bytes, their errors, and the order of what a change does."""

import asyncio
from collections.abc import Sequence

import pytest

from pyiscsi_target.scsi import transport_ids
from pyiscsi_target.scsi.logical_unit import LogicalUnit
from pyiscsi_target.scsi.reservation_store import ReservationsNotSaved, ReservationStore
from pyiscsi_target.scsi.reservations import NOTHING, Reservation, ReservationType, State
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task, TaskAttribute
from tests.support.gated_disk import make_gated_disk, settle, start, task_for
from tests.support.memory_disk import (
    data_of,
    field_of,
    make_disk,
    make_nexus,
    run,
    sense_of,
)

NAMES = [f"iqn.2026-11.lab.example:{name}" for name in ("one", "two", "three")]
ONE, TWO, THREE = map(make_nexus, NAMES)
TWO_PATH_2 = make_nexus(NAMES[1], port=2)
KEY_1, KEY_2, KEY_3 = 0x4D736674_00000001, 0x22, 0x33
ALL_KEYS = {ONE.key: KEY_1, TWO.key: KEY_2, THREE.key: KEY_3}
WE_RO = ReservationType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY
WE_AR = ReservationType.WRITE_EXCLUSIVE_ALL_REGISTRANTS

REGISTER, RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, IGNORE, MOVE = range(8)
WRITE = "2a 00 00000000 00 0001"
TEST_UNIT_READY = "00"
REPLACE = 8
INVALID_PARAMETER = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST)
LENGTH_ERROR = (SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
SPEC_I_PT, ALL_TG_PT, APTPL = 0x08, 0x04, 0x01


def disk(
    state: State = NOTHING, *nexuses: Nexus, store: ReservationStore | None = None
) -> LogicalUnit:
    lu = make_disk(reservations=state, reservation_store=store)
    lu.target_ports = (1, 2)
    for nexus in nexuses:
        lu.attentions.attach(nexus)
    return lu


def held(kind: ReservationType = WE_RO) -> State:
    return State(ALL_KEYS, Reservation(kind, ONE.key if kind is not WE_AR else None), 7)


def in_cdb(action: int, allocation_length: int = 0x1000) -> bytes:
    return bytes((0x5E, action, 0, 0, 0, 0, 0)) + allocation_length.to_bytes(2) + b"\0"


def out_cdb(action: int, kind: int = 0, length: int = 24) -> bytes:
    return bytes((0x5F, action, kind, 0, 0)) + length.to_bytes(4) + b"\0"


def keys(key: int, action_key: int = 0, flags: int = 0) -> bytes:
    return key.to_bytes(8) + action_key.to_bytes(8) + bytes((0, 0, 0, 0, flags, 0, 0, 0))


def ask(lu: LogicalUnit, nexus: Nexus, action: int, parameters: bytes, kind: int = 0) -> Result:
    return run(lu, nexus, out_cdb(action, kind, len(parameters)), [parameters])


def listing(port_names: Sequence[str]) -> bytes:
    ids = b"".join(map(transport_ids.encode, port_names))
    return len(ids).to_bytes(4) + ids


# PERSISTENT RESERVE IN


def test_read_keys() -> None:
    lu = disk(State({**ALL_KEYS, TWO_PATH_2.key: KEY_2}, generation=7))
    expected = bytes.fromhex("00000007 00000020") + b"".join(
        key.to_bytes(8) for key in (KEY_1, KEY_2, KEY_3, KEY_2)
    )
    assert data_of(run(lu, TWO, in_cdb(0))) == expected
    assert data_of(run(disk(), TWO, in_cdb(0))) == bytes(8)


def test_read_reservation() -> None:
    assert data_of(run(disk(State(ALL_KEYS, generation=7)), TWO, in_cdb(1))).hex() == (
        "0000000700000000"
    )
    assert data_of(run(disk(held()), TWO, in_cdb(1))) == bytes.fromhex(
        "00000007 00000010 4d73667400000001 00000000 00 05 0000"
    )
    assert data_of(run(disk(held(WE_AR)), TWO, in_cdb(1))) == bytes.fromhex(
        "00000007 00000010 0000000000000000 00000000 00 07 0000"
    )


@pytest.mark.parametrize("aptpl", [False, True])
def test_report_capabilities(aptpl: bool) -> None:
    data = data_of(run(disk(State(aptpl=aptpl)), ONE, in_cdb(2)))
    assert data.hex() == "00089d" + ("b1" if aptpl else "b0") + "ea010000"


@pytest.mark.parametrize("kind", [WE_RO, WE_AR])
def test_read_full_status(kind: ReservationType) -> None:
    state = State({ONE.key: KEY_1, TWO_PATH_2.key: KEY_2}, held(kind).reservation, 7)
    data = data_of(run(disk(state), THREE, in_cdb(3)))
    holds = kind.to_bytes(1)
    first, second = (transport_ids.encode(nexus.initiator_port_name) for nexus in (ONE, TWO_PATH_2))
    body = KEY_1.to_bytes(8) + bytes(4) + b"\1" + holds + bytes.fromhex("00000000 0001")
    body += len(first).to_bytes(4) + first
    body += KEY_2.to_bytes(8) + bytes(4) + (b"\1" + holds if kind is WE_AR else bytes(2))
    body += bytes.fromhex("00000000 0002") + len(second).to_bytes(4) + second
    assert data == bytes.fromhex("00000007") + len(body).to_bytes(4) + body


@pytest.mark.parametrize("action", range(4))
def test_answers_are_cut_to_the_allocation_length(action: int) -> None:
    lu = disk(held())
    whole = data_of(run(lu, ONE, in_cdb(action)))
    for length in (0, 1, 7, 8, 9, len(whole) - 1, len(whole), len(whole) + 1):
        assert data_of(run(lu, ONE, in_cdb(action, length))) == whole[:length]


# PERSISTENT RESERVE OUT


def test_the_life_of_a_reservation() -> None:
    lu = disk()
    assert ask(lu, ONE, REGISTER, keys(0, KEY_1, APTPL)).status == Status.GOOD
    assert ask(lu, TWO, IGNORE, keys(0, KEY_2)).status == Status.GOOD
    assert ask(lu, ONE, RESERVE, keys(KEY_1), WE_RO).status == Status.GOOD
    assert lu.reservations == State(
        {ONE.key: KEY_1, TWO.key: KEY_2}, Reservation(WE_RO, ONE.key), 2, aptpl=False
    )
    assert ask(lu, TWO, PREEMPT, keys(KEY_2, KEY_1), WE_RO).status == Status.GOOD
    assert lu.reservations.is_holder(TWO.key)
    assert ask(lu, ONE, RELEASE, keys(KEY_1), WE_RO).status == Status.RESERVATION_CONFLICT
    assert ask(lu, TWO, RELEASE, keys(KEY_2), WE_RO).status == Status.GOOD
    assert ask(lu, TWO, CLEAR, keys(KEY_2)).status == Status.GOOD
    assert lu.reservations == State(generation=4)


def test_all_target_ports() -> None:
    lu = disk()
    ask(lu, TWO, REGISTER, keys(0, KEY_2, ALL_TG_PT))
    assert lu.reservations.registrations == {TWO.key: KEY_2, TWO_PATH_2.key: KEY_2}


def test_specified_initiator_ports() -> None:
    lu = disk()
    ports = listing([TWO.initiator_port_name, THREE.initiator_port_name, TWO.initiator_port_name])
    assert ask(lu, ONE, REGISTER, keys(0, KEY_1, SPEC_I_PT) + ports).status == Status.GOOD
    assert lu.reservations.registrations == dict.fromkeys(ALL_KEYS, KEY_1)


@pytest.mark.parametrize("known_by", ["session", "registration"])
def test_an_initiator_device_means_its_known_ports(known_by: str) -> None:
    lu = disk(State({(TWO.key[0], 3): KEY_2}) if known_by == "registration" else NOTHING)
    if known_by == "session":
        lu.attentions.attach(TWO)
    name = NAMES[1].encode().ljust(40, b"\0")
    device = b"\x05\0" + len(name).to_bytes(2) + name
    listed = len(device).to_bytes(4) + device
    result = ask(lu, ONE, REGISTER, keys(0, KEY_1, SPEC_I_PT | ALL_TG_PT) + listed)
    assert result.status == Status.GOOD
    assert {TWO.key, TWO_PATH_2.key} < set(lu.reservations.registrations)
    result = ask(disk(), ONE, REGISTER, keys(0, KEY_1, SPEC_I_PT) + listed)
    assert sense_of(result) == INVALID_PARAMETER
    assert field_of(result) == (32, 7, False)


def move(port: int, name: str, flags: int = 0, key: int = KEY_1, action_key: int = 0x77) -> bytes:
    head = key.to_bytes(8) + action_key.to_bytes(8) + bytes((0, flags)) + port.to_bytes(2)
    return head + listing([name])


def test_register_and_move() -> None:
    lu = disk(held())
    parameters = move(2, THREE.initiator_port_name, flags=0x03)
    assert ask(lu, ONE, MOVE, parameters).status == Status.GOOD
    destination = (THREE.initiator_port_name, 2)
    assert lu.reservations == State(
        {TWO.key: KEY_2, THREE.key: KEY_3, destination: 0x77},
        Reservation(WE_RO, destination),
        8,
        aptpl=True,
    )


@pytest.mark.parametrize("length", [0, 8, 23, 25, 1 << 15, 0xFFFF_FFFF])
@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, PREEMPT, PREEMPT_AND_ABORT, IGNORE])
def test_wrong_list_lengths(action: int, length: int) -> None:
    lu = disk(held())
    cdb = out_cdb(action, WE_RO, length)
    assert sense_of(run(lu, ONE, cdb, [bytes(32)])) == LENGTH_ERROR
    assert lu.reservations == held()


@pytest.mark.parametrize("action", [REGISTER, MOVE])
@pytest.mark.parametrize("length", [0, 23, (32 << 10) + 1])
def test_wrong_list_lengths_of_what_may_be_longer(action: int, length: int) -> None:
    assert sense_of(run(disk(), ONE, out_cdb(action, 0, length), [bytes(length)])) == LENGTH_ERROR


PORTS = listing([TWO.initiator_port_name])


@pytest.mark.parametrize(
    ("action", "parameters"),
    [
        (REGISTER, keys(0, KEY_1) + bytes(4)),
        (REGISTER, keys(0, KEY_1, SPEC_I_PT)),
        (REGISTER, keys(0, KEY_1, SPEC_I_PT) + PORTS[:3]),
        (REGISTER, keys(0, KEY_1, SPEC_I_PT) + PORTS[:-4]),
        (REGISTER, keys(0, KEY_1, SPEC_I_PT) + PORTS + bytes(4)),
        (MOVE, move(1, TWO.initiator_port_name)[:-4]),
        (MOVE, move(1, TWO.initiator_port_name) + bytes(4)),
    ],
)
def test_lists_whose_lengths_contradict(action: int, parameters: bytes) -> None:
    lu = disk(held())
    assert sense_of(ask(lu, ONE, action, parameters)) == LENGTH_ERROR
    assert lu.reservations == held()


def test_less_data_than_announced() -> None:
    result = run(disk(), ONE, out_cdb(REGISTER), [keys(0, KEY_1)[:20]])
    assert sense_of(result) == LENGTH_ERROR


def test_transport_ids_that_are_cut() -> None:
    whole = transport_ids.encode(TWO.initiator_port_name)
    for rest in (whole[:2], whole[:-4]):
        ids = whole + rest
        listed = len(ids).to_bytes(4) + ids
        result = ask(disk(), ONE, REGISTER, keys(0, KEY_1, SPEC_I_PT) + listed)
        assert sense_of(result) == INVALID_PARAMETER


def test_two_destinations() -> None:
    parameters = move(1, TWO.initiator_port_name)[:20]
    parameters += listing([TWO.initiator_port_name, THREE.initiator_port_name])
    result = ask(disk(held()), ONE, MOVE, parameters)
    assert (sense_of(result), field_of(result)) == (INVALID_PARAMETER, (20, 7, False))


def test_a_device_of_two_ports_is_no_destination() -> None:
    other = Nexus(NAMES[1], f"{NAMES[1]},i,0x400001370001", "t", 1, {})
    lu = disk(held(), TWO, other)
    name = NAMES[1].encode().ljust(40, b"\0")
    device = b"\x05\0" + len(name).to_bytes(2) + name
    parameters = move(1, TWO.initiator_port_name)[:20] + len(device).to_bytes(4) + device
    result = ask(lu, ONE, MOVE, parameters)
    assert (sense_of(result), field_of(result)) == (INVALID_PARAMETER, (24, 7, False))


@pytest.mark.parametrize("action", [RESERVE, RELEASE, CLEAR, PREEMPT, IGNORE])
def test_only_register_may_specify_initiator_ports(action: int) -> None:
    result = ask(disk(held()), ONE, action, keys(KEY_1, KEY_2, SPEC_I_PT), WE_RO)
    assert (sense_of(result), field_of(result)) == (INVALID_PARAMETER, (20, 3, False))


def test_a_scope_that_does_not_exist() -> None:
    result = ask(disk(State(ALL_KEYS)), ONE, RESERVE, keys(KEY_1), 0x15)
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert field_of(result) == (2, 7, True)


def test_the_length_of_the_data_out_is_known_before_it_comes() -> None:
    lu = disk()
    assert lu.data_out_length(task_for(ONE, out_cdb(REGISTER, 0, 24).hex())) == 24
    assert lu.data_out_length(task_for(ONE, out_cdb(REGISTER, 0, 200).hex())) == 200


# What a change does, and in which order


class Store:
    """Waits at the gate, then fails if told to. Sees what was current meanwhile."""

    def __init__(self, failing: bool = False) -> None:
        self.gate = asyncio.Event()
        self.failing = failing
        self.saved: list[tuple[str, State]] = []

    async def save(self, name: str, state: State) -> None:
        self.saved.append((name, state))
        await self.gate.wait()
        if self.failing:
            raise ReservationsNotSaved("no space left")


def preempt(nexus: Nexus = TWO, attribute: TaskAttribute = TaskAttribute.SIMPLE) -> Task:
    return task_for(nexus, out_cdb(PREEMPT_AND_ABORT, WE_RO).hex(), [keys(KEY_2, KEY_1)], attribute)


async def test_nothing_is_seen_before_it_is_saved() -> None:
    store = Store()
    lu = disk(held(), ONE, TWO, THREE, store=store)
    pending = start(lu.execute(preempt()))
    await settle()
    [(name, after)] = store.saved
    assert name == lu.name
    assert lu.reservations == held()
    assert not lu.attentions.pending
    assert not pending.done()
    store.gate.set()
    assert (await pending).status == Status.GOOD
    assert lu.reservations == after
    assert lu.attentions.pending == {ONE: [Asc.REGISTRATIONS_PREEMPTED]}


async def test_a_change_that_cannot_be_saved_did_not_happen(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = Store(failing=True)
    store.gate.set()
    lu = disk(held(), ONE, TWO, THREE, store=store)
    result = await start(lu.execute(preempt()))
    assert sense_of(result) == (SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE)
    assert lu.reservations == held()
    assert not lu.attentions.pending
    assert "no space left" in caplog.text
    store.failing = False
    assert (await start(lu.execute(preempt()))).status == Status.GOOD


async def test_changes_follow_one_another() -> None:
    store = Store()
    lu = disk(store=store)
    register = [
        start(lu.execute(task_for(nexus, out_cdb(REGISTER).hex(), [keys(0, key)])))
        for nexus, key in ((ONE, KEY_1), (TWO, KEY_2))
    ]
    await settle()
    assert len(store.saved) == 1
    store.gate.set()
    await asyncio.gather(*register)
    assert lu.reservations == State({ONE.key: KEY_1, TWO.key: KEY_2}, generation=2)
    assert store.saved[-1][1] == lu.reservations


async def test_what_changes_nothing_is_not_saved() -> None:
    store = Store()
    lu = disk(held(), store=store)
    task = task_for(ONE, out_cdb(RESERVE, WE_RO).hex(), [keys(KEY_1)])
    assert (await start(lu.execute(task))).status == Status.GOOD
    assert not store.saved


@pytest.mark.parametrize(
    ("action", "parameters", "told"),
    [
        (CLEAR, keys(KEY_1), dict.fromkeys((TWO, THREE), Asc.RESERVATIONS_PREEMPTED)),
        (RELEASE, keys(KEY_1), dict.fromkeys((TWO, THREE), Asc.RESERVATIONS_RELEASED)),
        (REGISTER, keys(KEY_1, 0), dict.fromkeys((TWO, THREE), Asc.RESERVATIONS_RELEASED)),
        (PREEMPT, keys(KEY_1, KEY_2), {TWO: Asc.REGISTRATIONS_PREEMPTED}),
    ],
)
def test_unit_attentions(action: int, parameters: bytes, told: dict[Nexus, Asc]) -> None:
    stranger = make_nexus("iqn.2026-11.lab.example:stranger")
    lu = disk(held(), ONE, TWO, THREE, stranger)
    assert ask(lu, ONE, action, parameters, WE_RO).status == Status.GOOD
    assert lu.attentions.pending == {nexus: [asc] for nexus, asc in told.items()}
    for nexus, asc in told.items():
        assert sense_of(run(lu, nexus, TEST_UNIT_READY)) == (SenseKey.UNIT_ATTENTION, asc)


async def test_preempt_and_abort_answers_when_the_tasks_have_ended() -> None:
    lu, medium = make_gated_disk(held())
    for nexus in (ONE, TWO, THREE):
        lu.attentions.attach(nexus)
    lu.prevented_by = {ONE, TWO}
    fenced, kept, transferring = (
        task_for(nexus, WRITE, [bytes(512)], tag=tag) for tag, nexus in enumerate((ONE, THREE, ONE))
    )
    lu.tasks.enter(transferring, executing=False)
    writing, other = start(lu.execute(fenced)), start(lu.execute(kept))
    await settle()
    pending = start(lu.execute(preempt(attribute=TaskAttribute.HEAD_OF_QUEUE)))
    await settle()
    assert (fenced.aborted, transferring.aborted, kept.aborted) == (True, True, False)
    assert transferring not in lu.tasks.unfinished
    assert lu.prevented_by == {TWO}
    assert not pending.done()
    medium.gate.set()
    assert (await pending).status == Status.GOOD
    assert writing.done()
    assert (await other).status == Status.GOOD
    assert not lu.tasks.unfinished


async def test_a_purge_is_saved_and_ends_the_tasks() -> None:
    """An operator's purge, of an initiator that is connected after all, is as a fence."""
    lu, medium = make_gated_disk(held())
    for nexus in (ONE, TWO):
        lu.attentions.attach(nexus)
    writing = start(lu.execute(task_for(ONE, WRITE, [bytes(512)])))
    await settle()
    purging = asyncio.create_task(lu.purge_registrations(NAMES[0]))
    await settle()
    assert not purging.done()
    medium.gate.set()
    assert await purging == 1
    assert writing.done()
    assert lu.reservations == State({TWO.key: KEY_2, THREE.key: KEY_3}, None, 8)
    assert lu.attentions.pending == {
        ONE: [Asc.REGISTRATIONS_PREEMPTED],
        TWO: [Asc.RESERVATIONS_RELEASED],
    }
    assert await lu.purge_registrations(NAMES[0]) == 0


async def test_a_purge_that_cannot_be_saved() -> None:
    store = Store(failing=True)
    store.gate.set()
    lu = disk(held(), ONE, store=store)
    with pytest.raises(ReservationsNotSaved):
        await lu.purge_registrations(NAMES[0])
    assert lu.reservations == held()
    assert not lu.attentions.pending


def test_lost_information_keeps_everybody_out_until_it_is_replaced() -> None:
    """SPC-4 clause 5.13.5.3.2: all commands but those of clause 5.13.5.2 end so."""
    lu = disk(State(lost=True))
    lost = (SenseKey.DATA_PROTECT, Asc.PERSISTENT_RESERVATION_INFORMATION_LOST)
    passing = set()
    for row in lu.commands:
        cdb = bytes((row.opcode, row.service_action or 0)).ljust(row.length, b"\0")
        result = run(lu, ONE, cdb)
        if result.status != Status.CHECK_CONDITION or sense_of(result) != lost:
            passing.add(row.name)
    assert passing == {
        "INQUIRY",
        "LOG SENSE",
        "PERSISTENT RESERVE OUT, REPLACE LOST RESERVATION",
        "REPORT LUNS",
        "REQUEST SENSE",
    }
    assert ask(lu, ONE, REPLACE, keys(0, KEY_1, APTPL), WE_RO).status == Status.GOOD
    assert lu.reservations == State({ONE.key: KEY_1}, Reservation(WE_RO, ONE.key), 0, True)
    assert run(lu, TWO, TEST_UNIT_READY).status == Status.GOOD
    assert run(lu, TWO, WRITE, [bytes(512)]).status == Status.RESERVATION_CONFLICT


def plain_preempt(attribute: TaskAttribute = TaskAttribute.SIMPLE) -> Task:
    return task_for(TWO, out_cdb(PREEMPT, WE_RO).hex(), [keys(KEY_2, KEY_1)], attribute)


async def test_plain_preempt_lets_what_has_begun_end_first() -> None:
    """It aborts nothing, and yet nothing of the preempted lands after its GOOD."""
    lu, medium = make_gated_disk(held())
    task = task_for(ONE, WRITE, [bytes(512)])
    writing = start(lu.execute(task))
    reading = start(lu.execute(task_for(ONE, "28 00 00000000 00 0001")))
    await settle()
    pending = start(lu.execute(plain_preempt()))
    await settle()
    assert not pending.done()
    assert not task.aborted
    assert run(lu, ONE, WRITE, [bytes(512)]).status == Status.RESERVATION_CONFLICT
    medium.gate.set()
    assert (await writing).status == Status.GOOD
    assert (await pending).status == Status.GOOD
    assert (await reading).status == Status.GOOD


async def test_plain_preempt_does_not_wait_for_those_who_may_go_on() -> None:
    lu, medium = make_gated_disk(held())
    working = [start(lu.execute(task_for(nexus, WRITE, [bytes(512)]))) for nexus in (TWO, THREE)]
    reading = start(lu.execute(task_for(ONE, "28 00 00000000 00 0001")))
    await settle()
    assert (await start(lu.execute(plain_preempt()))).status == Status.GOOD
    medium.gate.set()
    await asyncio.gather(*working, reading)


async def test_plain_preempt_does_not_wait_for_what_has_not_begun() -> None:
    """Neither for a write in transfer, nor for one that waits for its turn, even behind itself."""
    lu, medium = make_gated_disk(held())
    transferring = task_for(ONE, WRITE)
    lu.tasks.enter(transferring, executing=False)
    ordered = task_for(ONE, WRITE, [bytes(512)], TaskAttribute.ORDERED)
    waiting = [start(lu.execute(ordered))]
    store = Store()
    lu._reservation_store = store
    pending = start(lu.execute(plain_preempt(TaskAttribute.HEAD_OF_QUEUE)))
    await settle()
    behind = task_for(ONE, WRITE, [bytes(512)])
    waiting.append(start(lu.execute(behind)))
    store.gate.set()  # while that one has not even taken its first step
    assert (await pending).status == Status.GOOD
    lu.tasks.finish(transferring)
    for write in waiting:
        assert (await write).status == Status.RESERVATION_CONFLICT
    assert not medium.log


async def test_a_reserve_lets_the_writes_of_strangers_end_first() -> None:
    lu, medium = make_gated_disk(State({TWO.key: KEY_2}))
    writing = start(lu.execute(task_for(ONE, WRITE, [bytes(512)])))
    await settle()
    reserve = task_for(TWO, out_cdb(RESERVE, WE_RO).hex(), [keys(KEY_2)])
    pending = start(lu.execute(reserve))
    await settle()
    assert not pending.done()
    medium.gate.set()
    assert (await pending).status == Status.GOOD
    assert writing.done()


async def test_an_aborted_request_that_waits_is_not_carried_out() -> None:
    store = Store()
    lu = disk(held(), store=store)
    first = start(lu.execute(preempt()))
    second_task = task_for(ONE, out_cdb(CLEAR).hex(), [keys(KEY_1)])
    second = start(lu.execute(second_task))
    await settle()
    store.gate.set()
    assert (await first).status == Status.GOOD
    await second
    assert second_task.aborted
    assert lu.reservations.is_holder(TWO.key)


async def test_a_reserve_never_comes_between() -> None:
    store = Store()
    lu = disk(store=store)
    pending = start(lu.execute(task_for(ONE, out_cdb(REGISTER).hex(), [keys(0, KEY_1)])))
    await settle()
    busy = lu.execute(task_for(TWO, "16"))
    assert isinstance(busy, Result)
    assert busy.status == Status.BUSY
    store.gate.set()
    assert (await pending).status == Status.GOOD


async def test_a_reserve_that_came_before_wins() -> None:
    lu = disk()
    pending = lu.execute(task_for(ONE, out_cdb(REGISTER).hex(), [keys(0, KEY_1)]))
    run_now = lu.execute(task_for(TWO, "16"))
    assert isinstance(run_now, Result)
    assert run_now.status == Status.GOOD
    assert (await start(pending)).status == Status.RESERVATION_CONFLICT
    assert lu.reservations == NOTHING


def test_registrations_outlive_their_sessions_and_resets() -> None:
    lu = disk(held(), ONE, TWO)
    lu.detach(ONE)
    lu.reset(Asc.BUS_DEVICE_RESET_FUNCTION_OCCURRED)
    assert lu.reservations == held()
    again = make_nexus(NAMES[0])
    assert run(lu, again, WRITE, [bytes(512)]).status == Status.GOOD
