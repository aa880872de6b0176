"""READ and WRITE in all sizes, against a disk of 512-byte blocks in memory."""

import struct

import pytest

from pyiscsi_target.scsi import block, limits
from pyiscsi_target.scsi.logical_unit import DiskSettings, LogicalUnit
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Nexus, Result, Status, Task
from pyiscsi_target.storage.base import StorageFault
from tests.support.faulty_disk import make_faulty_disk
from tests.support.gated_disk import make_gated_disk, settle, start, task_for
from tests.support.memory_disk import (
    data_of,
    field_of,
    make_disk,
    make_nexus,
    run,
    sense_of,
    store_of,
)

BLOCK = 512
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
INVALID_FIELD = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)

READ = {6: 0x08, 10: 0x28, 12: 0xA8, 16: 0x88}
WRITE = {6: 0x0A, 10: 0x2A, 12: 0xAA, 16: 0x8A}


def build(opcodes: dict[int, int], size: int, lba: int, blocks: int, flags: int = 0) -> bytes:
    opcode = opcodes[size]
    if size == 6:
        return struct.pack(">IBB", opcode << 24 | lba, blocks & 0xFF, 0)
    if size == 10:
        return struct.pack(">BBIBHB", opcode, flags, lba, 0, blocks, 0)
    if size == 12:
        return struct.pack(">BBIIBB", opcode, flags, lba, blocks, 0, 0)
    return struct.pack(">BBQIBB", opcode, flags, lba, blocks, 0, 0)


@pytest.fixture
def lu() -> LogicalUnit:
    disk = make_disk()
    content = store_of(disk).content
    content[:] = b"".join(bytes([n % 251]) * BLOCK for n in range(len(content) // BLOCK))
    return disk


@pytest.fixture
def nexus() -> Nexus:
    return make_nexus()


@pytest.mark.parametrize("size", [6, 10, 12, 16])
def test_read(lu: LogicalUnit, nexus: Nexus, size: int) -> None:
    data = data_of(run(lu, nexus, build(READ, size, 7, 3)))
    assert data == store_of(lu).content[7 * BLOCK : 10 * BLOCK]
    assert lu.statistics.read_commands == 1
    assert lu.statistics.read_bytes == 3 * BLOCK


@pytest.mark.parametrize("size", [6, 10, 12, 16])
def test_write(lu: LogicalUnit, nexus: Nexus, size: int) -> None:
    before = bytes(store_of(lu).content)
    data = bytes(range(256)) * 4
    result = run(lu, nexus, build(WRITE, size, 7, 2), [data[:100], memoryview(data)[100:]])
    assert result.status == Status.GOOD
    assert result.data_out_length == len(data)
    assert store_of(lu).content == before[: 7 * BLOCK] + data + before[9 * BLOCK :]
    assert lu.statistics.write_commands == 1
    assert lu.statistics.write_bytes == 2 * BLOCK


def test_six_byte_length_of_zero_is_256_blocks(lu: LogicalUnit, nexus: Nexus) -> None:
    assert len(data_of(run(lu, nexus, build(READ, 6, 0, 0)))) == 256 * BLOCK
    assert block.write_length_6(lu, build(WRITE, 6, 0, 0)) == 256 * BLOCK


def test_six_byte_lba_has_21_bits(nexus: Nexus) -> None:
    lu = make_disk(size_bytes=1 << 40)
    assert block.write_length_6(lu, build(WRITE, 6, 0x1FFFFF, 1)) == BLOCK


@pytest.mark.parametrize("size", [10, 12, 16])
@pytest.mark.parametrize("opcodes", [READ, WRITE], ids=["read", "write"])
def test_zero_blocks_are_fine_up_to_the_end(
    lu: LogicalUnit, nexus: Nexus, opcodes: dict[int, int], size: int
) -> None:
    for lba in (0, lu.block_count):
        result = run(lu, nexus, build(opcodes, size, lba, 0))
        assert result.status == Status.GOOD
        assert not result.data
    assert sense_of(run(lu, nexus, build(opcodes, size, lu.block_count + 1, 0))) == OUT_OF_RANGE


@pytest.mark.parametrize("size", [6, 10, 12, 16])
@pytest.mark.parametrize("opcodes", [READ, WRITE], ids=["read", "write"])
def test_beyond_the_end(lu: LogicalUnit, nexus: Nexus, opcodes: dict[int, int], size: int) -> None:
    before = bytes(store_of(lu).content)
    for lba, blocks in ((lu.block_count - 1, 2), (lu.block_count, 1), ((1 << 21) - 1, 1)):
        data = [bytes(blocks * BLOCK)] if opcodes is WRITE else []
        assert sense_of(run(lu, nexus, build(opcodes, size, lba, blocks), data)) == OUT_OF_RANGE
    assert store_of(lu).content == before
    assert lu.statistics.read_commands == lu.statistics.write_commands == 0


def test_the_last_lba_of_16_bytes_does_not_wrap(lu: LogicalUnit, nexus: Nexus) -> None:
    assert sense_of(run(lu, nexus, build(READ, 16, (1 << 64) - 1, 2))) == OUT_OF_RANGE


@pytest.mark.parametrize("block_size", [512, 4096])
def test_maximum_transfer_length(nexus: Nexus, block_size: int) -> None:
    lu = make_disk(DiskSettings(block_size=block_size), size_bytes=32 << 20)
    most = limits.MAXIMUM_TRANSFER_LENGTH_BYTES // block_size
    assert len(data_of(run(lu, nexus, build(READ, 10, 0, most)))) == 16 << 20
    result = run(lu, nexus, build(READ, 16, 0, most + 1))
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (10, 7, True)
    result = run(lu, nexus, build(WRITE, 12, 0, most + 1), [b""])
    assert field_of(result) == (6, 7, True)


@pytest.mark.parametrize("size", [10, 12, 16])
@pytest.mark.parametrize("opcodes", [READ, WRITE], ids=["read", "write"])
def test_protection_information_is_refused(
    lu: LogicalUnit, nexus: Nexus, opcodes: dict[int, int], size: int
) -> None:
    for protect in range(1, 8):
        result = run(lu, nexus, build(opcodes, size, 0, 1, protect << 5), [bytes(BLOCK)])
        assert sense_of(result) == INVALID_FIELD
        assert field_of(result) == (1, 4 + protect.bit_length(), True)


# Data-out that is not what the CDB asks for (RFC 7143 section 11.4.5)


@pytest.mark.parametrize(
    ("arrived", "written"),
    [(0, 0), (511, 0), (512, 1), (1000, 1), (1024, 2), (1536, 3), (1700, 3), (5000, 3)],
)
def test_only_whole_blocks_that_arrived_are_written(
    lu: LogicalUnit, nexus: Nexus, arrived: int, written: int
) -> None:
    before = bytes(store_of(lu).content)
    data = b"\xee" * arrived
    result = run(lu, nexus, build(WRITE, 10, 4, 3), [data[:700], data[700:]])
    assert result.status == Status.GOOD
    assert result.data_out_length == 3 * BLOCK
    end = (4 + written) * BLOCK
    assert store_of(lu).content == before[: 4 * BLOCK] + data[: written * BLOCK] + before[end:]


# Durability


@pytest.mark.parametrize("size", [10, 12, 16])
def test_fua_write_is_durable(nexus: Nexus, size: int) -> None:
    lu, store = make_faulty_disk()
    run(lu, nexus, build(WRITE, size, 0, 1), [bytes(BLOCK)])
    run(lu, nexus, build(WRITE, size, 1, 1, block.DPO), [bytes(BLOCK)])
    assert store.durable_writes == []
    run(lu, nexus, build(WRITE, size, 2, 1, block.FUA), [bytes(BLOCK)])
    assert store.durable_writes == [2 * BLOCK]


def test_every_write_is_durable_without_a_write_cache(nexus: Nexus) -> None:
    lu, store = make_faulty_disk(DiskSettings(write_cache=False))
    run(lu, nexus, build(WRITE, 6, 3, 1), [b"\1" * BLOCK])
    assert store.durable_writes == [3 * BLOCK]
    assert store.content[3 * BLOCK] == 1


def test_fua_read_flushes_first(lu: LogicalUnit, nexus: Nexus) -> None:
    data_of(run(lu, nexus, build(READ, 10, 0, 1)))
    assert store_of(lu).flushes == 0
    data = data_of(run(lu, nexus, build(READ, 10, 5, 1, block.FUA | block.DPO)))
    assert store_of(lu).flushes == 1
    assert data == store_of(lu).content[5 * BLOCK : 6 * BLOCK]


# Stores that cannot answer at once, or at all


async def test_a_read_that_would_block_does_not_use_the_transports_buffer() -> None:
    lu, store = make_gated_disk()
    store.content[:4] = b"cold"
    lent = memoryview(bytearray(4096))
    task = task_for(make_nexus(), "28 00 00000000 00 0001 00")
    task.allocate = lambda length: lent[:length]
    pending = start(lu.execute(task))
    await settle()
    store.gate.set()
    result = await pending
    assert bytes(result.data or b"")[:4] == b"cold"
    assert bytes(lent[:4]) == bytes(4)


async def test_a_write_that_would_block_takes_the_data_as_it_is_then() -> None:
    lu, store = make_gated_disk()
    receive_buffer = bytearray(b"a" * BLOCK)
    task = task_for(make_nexus(), "2a 00 00000000 00 0001 00", [memoryview(receive_buffer)])
    pending = start(lu.execute(task))
    task.data_out = [bytes(receive_buffer)]  # what the transport does before it goes on
    receive_buffer[:] = b"b" * BLOCK
    store.gate.set()
    assert (await pending).status == Status.GOOD
    assert store.content[:BLOCK] == b"a" * BLOCK


NOT_READY = (SenseKey.NOT_READY, Asc.LOGICAL_UNIT_NOT_READY_CAUSE_NOT_REPORTABLE)


@pytest.mark.parametrize("now", [True, False], ids=["now", "later"])
@pytest.mark.parametrize(
    ("fault", "on_read", "on_write"),
    [
        (
            StorageFault.MEDIUM,
            (SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR),
            (SenseKey.MEDIUM_ERROR, Asc.PERIPHERAL_DEVICE_WRITE_FAULT),
        ),
        (
            StorageFault.SHORT,
            (SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR),
            (SenseKey.MEDIUM_ERROR, Asc.PERIPHERAL_DEVICE_WRITE_FAULT),
        ),
        (
            StorageFault.OUT_OF_SPACE,
            None,
            (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT),
        ),
        (StorageFault.READ_ONLY, None, (SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED)),
        (StorageFault.GONE, NOT_READY, NOT_READY),
        (
            StorageFault.INVALID,
            (SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE),
            (SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE),
        ),
    ],
)
def test_storage_faults(
    nexus: Nexus,
    fault: StorageFault,
    on_read: tuple[SenseKey, Asc] | None,
    on_write: tuple[SenseKey, Asc],
    now: bool,
) -> None:
    lu, store = make_faulty_disk()
    store.now = now
    store.fault = fault
    store.fault_offset_bytes = 9 * BLOCK
    result = run(lu, nexus, build(WRITE, 10, 8, 2), [bytes(2 * BLOCK)])
    assert sense_of(result) == on_write
    assert_information_is_lba_9_of_a_medium_error(result)
    assert lu.statistics.write_errors == 1
    if on_read is not None:
        result = run(lu, nexus, build(READ, 10, 8, 2))
        assert sense_of(result) == on_read
        assert_information_is_lba_9_of_a_medium_error(result)
        assert lu.statistics.read_errors == 1
    store.fault = None
    assert data_of(run(lu, nexus, build(READ, 10, 8, 2))) == bytes(2 * BLOCK)


def assert_information_is_lba_9_of_a_medium_error(result: Result) -> None:
    valid = bool(result.sense[0] & 0x80)
    assert valid is (result.sense[2] == SenseKey.MEDIUM_ERROR)
    assert int.from_bytes(result.sense[3:7], "big") == (9 if valid else 0)


def test_an_error_somewhere_unknown_has_no_information(nexus: Nexus) -> None:
    lu, store = make_faulty_disk()
    store.fault = StorageFault.MEDIUM
    assert run(lu, nexus, build(READ, 10, 8, 2)).sense[0] == 0x70


def test_a_flush_that_fails_in_a_fua_read_is_a_write_fault(nexus: Nexus) -> None:
    lu, store = make_faulty_disk()
    store.flush_fault = StorageFault.MEDIUM
    result = run(lu, nexus, build(READ, 10, 0, 1, block.FUA))
    assert sense_of(result) == (SenseKey.MEDIUM_ERROR, Asc.PERIPHERAL_DEVICE_WRITE_FAULT)


@pytest.mark.parametrize("size", [6, 10, 12, 16])
def test_data_out_length(lu: LogicalUnit, nexus: Nexus, size: int) -> None:
    cdb = build(WRITE, size, 0, 5).ljust(16, b"\0")
    assert lu.data_out_length(Task(nexus, 0, cdb)) == 5 * BLOCK
