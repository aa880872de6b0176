"""COMPARE AND WRITE, ORWRITE and WRITE ATOMIC, alone and against what overlaps them."""

import struct

import pytest

from pyiscsi_target.scsi import limits
from pyiscsi_target.scsi.block import FUA
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Result, Status
from pyiscsi_target.storage.base import StorageFault
from tests.support.faulty_disk import make_faulty_disk
from tests.support.gated_disk import make_gated_disk, settle, start, task_for
from tests.support.memory_disk import field_of, make_disk, make_nexus, run, sense_of, store_of

BLOCK = 512
BLOCKS = 2048
NEXUS, OTHER = make_nexus("one"), make_nexus("two")
MISCOMPARE = (SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY_OPERATION)
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
INVALID_FIELD = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
WRONG_LENGTH = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
READ_ERROR = (SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR)
WRITE_FAULT = (SenseKey.MEDIUM_ERROR, Asc.PERIPHERAL_DEVICE_WRITE_FAULT)


def compare_and_write(lba: int, blocks: int, flags: int = 0) -> str:
    return struct.pack(">BBQ3xBxx", 0x89, flags, lba, blocks).hex()


def orwrite(lba: int, blocks: int, flags: int = 0) -> str:
    return struct.pack(">BBQIxx", 0x8B, flags, lba, blocks).hex()


def write_atomic(lba: int, blocks: int, flags: int = 0, boundary: int = 0) -> str:
    return struct.pack(">BBQHHxx", 0x9C, flags, lba, boundary, blocks).hex()


def write_16(lba: int, blocks: int) -> str:
    return struct.pack(">BBQIxx", 0x8A, 0, lba, blocks).hex()


def read_16(lba: int, blocks: int) -> str:
    return struct.pack(">BBQIxx", 0x88, 0, lba, blocks).hex()


BUILD = {"compare": compare_and_write, "or": orwrite, "atomic": write_atomic}


# COMPARE AND WRITE


def test_compare_and_write() -> None:
    lu = make_disk()
    old, new = b"\1" * 2 * BLOCK, b"\2" * 2 * BLOCK
    store_of(lu).content[3 * BLOCK : 5 * BLOCK] = old
    both = old + new
    result = run(lu, NEXUS, compare_and_write(3, 2), [both[:700], both[700:]])
    assert result.status == Status.GOOD
    assert result.data_out_length == 4 * BLOCK
    assert store_of(lu).content[2 * BLOCK : 6 * BLOCK] == bytes(BLOCK) + new + bytes(BLOCK)


@pytest.mark.parametrize("offset", [0, 511, 512, 1023])
def test_miscompare_tells_the_first_byte_that_differs(offset: int) -> None:
    lu = make_disk()
    before = bytes(store_of(lu).content)
    expected = bytearray(2 * BLOCK)
    expected[offset:] = b"\1" * (2 * BLOCK - offset)
    result = run(lu, NEXUS, compare_and_write(3, 2), [expected, b"\2" * 2 * BLOCK])
    assert sense_of(result) == MISCOMPARE
    assert result.sense[0] == 0xF0
    assert int.from_bytes(result.sense[3:7], "big") == offset
    assert store_of(lu).content == before


@pytest.mark.parametrize("blocks", [0, 1, 2, 3, 5])
def test_compare_and_write_needs_exactly_both_halves(blocks: int) -> None:
    lu = make_disk()
    result = run(lu, NEXUS, compare_and_write(0, blocks), [bytes(8 * BLOCK)])
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (13, 7, True)
    result = run(lu, NEXUS, compare_and_write(0, 4), [bytes(8 * BLOCK)])
    assert result.status == Status.GOOD


def test_maximum_compare_and_write_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAXIMUM_COMPARE_AND_WRITE_LENGTH", 2)
    lu = make_disk()
    result = run(lu, NEXUS, compare_and_write(0, 3), [bytes(6 * BLOCK)])
    assert field_of(result) == (13, 7, True)
    assert run(lu, NEXUS, compare_and_write(0, 2), [bytes(4 * BLOCK)]).status == Status.GOOD


def test_compare_and_write_of_nothing() -> None:
    result = run(make_disk(), NEXUS, compare_and_write(0, 0))
    assert result.status == Status.GOOD
    assert result.data_out_length == 0


def test_compare_and_write_failures_tell_which_half_failed() -> None:
    lu, store = make_faulty_disk()
    store.read_fault = StorageFault.MEDIUM
    assert sense_of(run(lu, NEXUS, compare_and_write(0, 1), [bytes(2 * BLOCK)])) == READ_ERROR
    store.read_fault = None

    def fail_writes(offset_bytes: int, data: object) -> bool:
        store._raise(StorageFault.MEDIUM)
        return True

    store.write_now = fail_writes  # type: ignore[method-assign]
    assert sense_of(run(lu, NEXUS, compare_and_write(0, 1), [bytes(2 * BLOCK)])) == WRITE_FAULT
    assert (lu.statistics.read_errors, lu.statistics.write_errors) == (1, 1)


# ORWRITE and WRITE ATOMIC


def test_orwrite() -> None:
    lu = make_disk()
    store_of(lu).content[: 2 * BLOCK] = b"\xa5" * BLOCK + b"\x01" * BLOCK
    result = run(lu, NEXUS, orwrite(0, 2), [b"\x5a" * BLOCK, b"\x03" * BLOCK])
    assert result.status == Status.GOOD
    assert result.data_out_length == 2 * BLOCK
    assert store_of(lu).content[: 3 * BLOCK] == b"\xff" * BLOCK + b"\x03" * BLOCK + bytes(BLOCK)


def test_write_atomic() -> None:
    lu = make_disk()
    result = run(lu, NEXUS, write_atomic(BLOCKS - 2, 2), [b"\7" * 2 * BLOCK])
    assert result.status == Status.GOOD
    assert result.data_out_length == 2 * BLOCK
    assert store_of(lu).content[-3 * BLOCK :] == bytes(BLOCK) + b"\7" * 2 * BLOCK


def test_write_atomic_does_not_write_half() -> None:
    lu = make_disk()
    result = run(lu, NEXUS, write_atomic(0, 2), [b"\7" * (2 * BLOCK - 1)])
    assert sense_of(result) == WRONG_LENGTH
    assert not any(store_of(lu).content)


def test_maximum_atomic_transfer_length() -> None:
    lu = make_disk(size_bytes=8 << 20)
    most = limits.MAXIMUM_ATOMIC_TRANSFER_LENGTH_BYTES // BLOCK
    data = [b"\1" * (most + 1) * BLOCK]
    result = run(lu, NEXUS, write_atomic(0, most + 1), data)
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (12, 7, True)
    assert run(lu, NEXUS, write_atomic(0, most), data).status == Status.GOOD
    assert store_of(lu).content.count(1) == most * BLOCK


def test_atomic_boundaries_are_refused() -> None:
    result = run(make_disk(), NEXUS, write_atomic(0, 2, boundary=1), [bytes(2 * BLOCK)])
    assert field_of(result) == (11, 0, True)


# What all three share


@pytest.mark.parametrize("name", BUILD)
def test_range_and_flags(name: str) -> None:
    lu = make_disk()
    build = BUILD[name]
    for lba, blocks in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0), ((1 << 64) - 1, 1)):
        data = [bytes(2 * blocks * BLOCK)]
        assert sense_of(run(lu, NEXUS, build(lba, blocks), data)) == OUT_OF_RANGE
    assert run(lu, NEXUS, build(BLOCKS, 0)).status == Status.GOOD
    for protect in range(1, 8):
        result = run(lu, NEXUS, build(0, 1, protect << 5), [bytes(2 * BLOCK)])
        assert sense_of(result) == INVALID_FIELD


@pytest.mark.parametrize("name", BUILD)
def test_fua_is_durable(name: str) -> None:
    lu, store = make_faulty_disk()
    data = [bytes(BLOCK if name != "compare" else 2 * BLOCK)]
    assert run(lu, NEXUS, BUILD[name](1, 1), data).status == Status.GOOD
    assert store.durable_writes == []
    assert run(lu, NEXUS, BUILD[name](1, 1, FUA), data).status == Status.GOOD
    assert store.durable_writes == [BLOCK]


async def test_compare_and_write_waits_for_an_overlapping_write_in_flight() -> None:
    lu, store = make_gated_disk()
    writing = start(lu.execute(task_for(NEXUS, write_16(0, 4), [b"\1" * 4 * BLOCK])))
    await settle()
    swap = [b"\1" * BLOCK + b"\2" * BLOCK]
    swapping = start(lu.execute(task_for(OTHER, compare_and_write(3, 1), swap)))
    await settle()
    assert store.log == [("write", 0)]
    store.gate.set()
    assert (await writing).status == Status.GOOD
    assert (await swapping).status == Status.GOOD
    assert store.content[: 5 * BLOCK] == b"\1" * 3 * BLOCK + b"\2" * BLOCK + bytes(BLOCK)


async def test_two_that_want_the_same_lock_do_not_both_get_it() -> None:
    lu, store = make_gated_disk()
    lock = [
        start(lu.execute(task_for(nexus, compare_and_write(7, 1), [bytes(BLOCK) + mark * BLOCK])))
        for nexus, mark in ((NEXUS, b"\1"), (OTHER, b"\2"))
    ]
    await settle()
    store.gate.set()
    first, second = [await pending for pending in lock]
    assert first.status == Status.GOOD
    assert sense_of(second) == MISCOMPARE
    assert store.content[7 * BLOCK : 8 * BLOCK] == b"\1" * BLOCK


@pytest.mark.parametrize("cdb", [read_16(2, 1), write_16(0, 3)], ids=["read", "write"])
@pytest.mark.parametrize("name", BUILD)
async def test_later_overlapping_commands_wait_for_it(name: str, cdb: str) -> None:
    lu, store = make_gated_disk()
    data = [bytes(2 * BLOCK), b"\3" * 2 * BLOCK] if name == "compare" else [b"\3" * 2 * BLOCK]
    exclusive = start(lu.execute(task_for(NEXUS, BUILD[name](1, 2), data)))
    await settle()
    begun = list(store.log)
    later = start(lu.execute(task_for(OTHER, cdb, [b"\4" * 3 * BLOCK])))
    elsewhere = start(lu.execute(task_for(OTHER, read_16(3, 1))))
    await settle()
    assert store.log == [*begun, ("read", 3 * BLOCK)]
    store.gate.set()
    assert (await exclusive).status == Status.GOOD
    result = await later
    assert result.status == Status.GOOD
    assert (await elsewhere).status == Status.GOOD
    if result.data is not None:
        assert bytes(result.data) == b"\3" * BLOCK
    else:
        assert store.content[: 4 * BLOCK] == b"\4" * 3 * BLOCK + bytes(BLOCK)


async def test_even_a_command_that_could_finish_at_once_waits_for_it() -> None:
    lu, store = make_gated_disk()
    store.slow_writes_only = True
    exclusive = start(lu.execute(task_for(NEXUS, write_atomic(0, 2), [b"\3" * 2 * BLOCK])))
    await settle()
    assert isinstance(lu.execute(task_for(OTHER, read_16(2, 1))), Result)
    overlapping = start(lu.execute(task_for(OTHER, read_16(1, 1))))
    await settle()
    assert not overlapping.done()
    store.gate.set()
    await exclusive
    assert bytes((await overlapping).data or b"") == b"\3" * BLOCK


async def test_ordinary_commands_run_side_by_side() -> None:
    lu, store = make_gated_disk()
    pending = [
        start(lu.execute(task_for(nexus, write_16(0, 2), [bytes(2 * BLOCK)])))
        for nexus in (NEXUS, OTHER)
    ]
    await settle()
    assert store.log == [("write", 0), ("write", 0)]
    store.gate.set()
    assert [(await result).status for result in pending] == [Status.GOOD, Status.GOOD]


async def test_an_exclusive_command_aborted_while_it_waits_does_nothing() -> None:
    lu, store = make_gated_disk()
    writing = start(lu.execute(task_for(NEXUS, write_16(0, 1), [b"\1" * BLOCK])))
    await settle()
    task = task_for(OTHER, write_atomic(0, 1), [b"\2" * BLOCK])
    waiting = start(lu.execute(task))
    behind = start(lu.execute(task_for(NEXUS, read_16(0, 1))))
    await settle()
    lu.abort([task])
    await waiting
    await settle()
    assert store.log == [("write", 0), ("read", 0)]
    store.gate.set()
    await writing
    await behind
    assert store.content[:BLOCK] == b"\1" * BLOCK
