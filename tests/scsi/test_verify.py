"""VERIFY and WRITE AND VERIFY."""

import pytest

from pyiscsi_target.scsi import limits
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Result, Status
from pyiscsi_target.scsi.verify import first_difference
from pyiscsi_target.storage.base import StorageFault
from tests.support.faulty_disk import make_faulty_disk
from tests.support.memory_disk import field_of, make_disk, make_nexus, run, sense_of, store_of

BLOCK = 512
BLOCKS = 2048
MISCOMPARE = (SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY_OPERATION)
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
INVALID_FIELD = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
WRONG_LENGTH = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
NEXUS = make_nexus()

VERIFY = {10: 0x2F, 12: 0xAF, 16: 0x8F}
WRITE_AND_VERIFY = {10: 0x2E, 12: 0xAE, 16: 0x8E}
SIZES = [10, 12, 16]


def build(opcodes: dict[int, int], size: int, lba: int, blocks: int, flags: int = 0) -> str:
    head = f"{opcodes[size]:02x}{flags:02x}"
    if size == 10:
        return head + f"{lba:08x}00{blocks:04x}"
    if size == 12:
        return head + f"{lba:08x}{blocks:08x}"
    return head + f"{lba:016x}{blocks:08x}"


def bytchk(value: int) -> int:
    return value << 1


def information(result: Result) -> int:
    assert result.sense[0] == 0xF0
    return int.from_bytes(result.sense[3:7], "big")


@pytest.mark.parametrize("size", SIZES)
def test_medium_only_asks_for_no_data(size: int) -> None:
    lu, store = make_faulty_disk()
    for sent in ([], [b"\xff" * BLOCK]):
        result = run(lu, NEXUS, build(VERIFY, size, 3, 2, 0x10), sent)
        assert result.status == Status.GOOD
        assert result.data_out_length == 0
    store.read_fault = StorageFault.MEDIUM
    result = run(lu, NEXUS, build(VERIFY, size, 3, 2))
    assert sense_of(result) == (SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR)


@pytest.mark.parametrize("size", SIZES)
def test_compare_all(size: int) -> None:
    lu = make_disk()
    store_of(lu).content[: 4 * BLOCK] = bytes(range(256)) * 8
    data = bytes(range(256)) * 4
    result = run(lu, NEXUS, build(VERIFY, size, 1, 2, bytchk(1)), [data[:5], data[5:]])
    assert result.status == Status.GOOD
    assert result.data_out_length == 2 * BLOCK
    changed = bytearray(data)
    changed[BLOCK + 17] ^= 1
    result = run(lu, NEXUS, build(VERIFY, size, 1, 2, bytchk(1)), [changed])
    assert sense_of(result) == MISCOMPARE
    assert information(result) == 2
    assert lu.statistics.verify_commands == 2
    assert lu.statistics.verify_errors == 1


@pytest.mark.parametrize("size", SIZES)
def test_compare_one_block_with_all(size: int) -> None:
    lu = make_disk()
    store_of(lu).content[5 * BLOCK : 9 * BLOCK] = b"\x5a" * 4 * BLOCK
    command = build(VERIFY, size, 5, 4, bytchk(3))
    result = run(lu, NEXUS, command, [b"\x5a" * BLOCK])
    assert result.status == Status.GOOD
    assert result.data_out_length == BLOCK
    store_of(lu).content[7 * BLOCK] = 0
    result = run(lu, NEXUS, command, [b"\x5a" * BLOCK])
    assert sense_of(result) == MISCOMPARE
    assert information(result) == 7


@pytest.mark.parametrize("mode", [0, 3])
def test_long_ranges_are_compared_to_their_end(mode: int) -> None:
    step = limits.OPTIMAL_TRANSFER_LENGTH_BYTES
    lu = make_disk(size_bytes=3 * step + BLOCK)
    blocks = lu.block_count
    data = [bytes(BLOCK)] if mode else []
    assert run(lu, NEXUS, build(VERIFY, 16, 0, blocks, bytchk(mode)), data).status == Status.GOOD
    assert lu.statistics.verify_bytes == 3 * step + BLOCK
    store_of(lu).content[-1] = 1
    result = run(lu, NEXUS, build(VERIFY, 16, 0, blocks, bytchk(3)), [bytes(BLOCK)])
    assert information(result) == blocks - 1


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("opcodes", [VERIFY, WRITE_AND_VERIFY], ids=["verify", "write"])
def test_refusals(opcodes: dict[int, int], size: int) -> None:
    lu = make_disk()
    for mode in (0, 1):
        for lba, blocks in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0)):
            data = [bytes(blocks * BLOCK)]
            result = run(lu, NEXUS, build(opcodes, size, lba, blocks, bytchk(mode)), data)
            assert sense_of(result) == OUT_OF_RANGE
        result = run(lu, NEXUS, build(opcodes, size, BLOCKS, 0, bytchk(mode)))
        assert result.status == Status.GOOD
    result = run(lu, NEXUS, build(opcodes, size, 0, 1, bytchk(2)), [bytes(BLOCK)])
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (1, 2, True)
    result = run(lu, NEXUS, build(opcodes, size, 0, 1, 0x20), [bytes(BLOCK)])
    assert field_of(result) == (1, 5, True)


@pytest.mark.parametrize("mode", [1, 3])
def test_verify_does_not_compare_with_data_that_did_not_arrive(mode: int) -> None:
    lu = make_disk()
    result = run(lu, NEXUS, build(VERIFY, 10, 0, 2, bytchk(mode)), [bytes(BLOCK - 1)])
    assert sense_of(result) == WRONG_LENGTH


@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("size", SIZES)
def test_write_and_verify(size: int, mode: int) -> None:
    lu, store = make_faulty_disk()
    data = bytes(range(256)) * 4
    command = build(WRITE_AND_VERIFY, size, 6, 2, bytchk(mode))
    result = run(lu, NEXUS, command, [data])
    assert result.status == Status.GOOD
    assert result.data_out_length == 2 * BLOCK
    assert store.content[6 * BLOCK : 8 * BLOCK] == data
    assert store.durable_writes == [6 * BLOCK]
    store.read_fault = StorageFault.MEDIUM
    result = run(lu, NEXUS, command, [data])
    assert sense_of(result) == (SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR)


def test_write_and_verify_sees_what_the_medium_made_of_it() -> None:
    lu, store = make_faulty_disk()

    async def bad_write(offset_bytes: int, data: object, *, durable: bool = False) -> None:
        store.content[offset_bytes + BLOCK] = 0xFF

    store.write = bad_write  # type: ignore[method-assign]
    command = build(WRITE_AND_VERIFY, 10, 6, 2, bytchk(1))
    result = run(lu, NEXUS, command, [bytes(2 * BLOCK)])
    assert sense_of(result) == MISCOMPARE
    assert information(result) == 7


def test_write_and_verify_writes_the_whole_blocks_that_arrived() -> None:
    lu, store = make_faulty_disk()
    command = build(WRITE_AND_VERIFY, 16, 0, 3, bytchk(1))
    result = run(lu, NEXUS, command, [b"\1" * (BLOCK + 9)])
    assert result.status == Status.GOOD
    assert result.data_out_length == 3 * BLOCK
    assert store.content[: 2 * BLOCK] == b"\1" * BLOCK + bytes(BLOCK)
    assert run(lu, NEXUS, command, []).status == Status.GOOD


@pytest.mark.parametrize("position", [0, 1, 511, 512, 700, 1022, 1023])
def test_first_difference(position: int) -> None:
    data = bytes(1024)
    other = bytearray(data)
    other[position:] = b"\1" * (1024 - position)
    assert first_difference(data, bytes(other)) == position
    other[position + 1 :] = bytes(1023 - position)
    assert first_difference(data, bytes(other)) == position
    assert first_difference(data, bytes(1024)) is None
