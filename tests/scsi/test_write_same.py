"""WRITE SAME: patterns, zeroes, unmapping, and its limits."""

import asyncio

import pytest

from pyiscsi_target.scsi import limits
from pyiscsi_target.scsi.logical_unit import DiskSettings
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Status
from pyiscsi_target.storage.base import Capabilities, StorageFault
from tests.support.faulty_disk import make_faulty_disk
from tests.support.gated_disk import make_gated_disk, settle, start, task_for
from tests.support.memory_disk import field_of, make_disk, make_nexus, run, sense_of, store_of

BLOCK = 512
BLOCKS = 2048
ANCHOR, UNMAP, NDOB = 0x10, 0x08, 0x01
ANCHORING = Capabilities(deallocate_granularity_bytes=4096, anchors=True)
NEXUS = make_nexus()
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
INVALID_FIELD = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
WRONG_LENGTH = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_COMMAND_INFORMATION_UNIT)
PATTERN = bytes(range(256)) * 2


def build(size: int, lba: int, blocks: int, flags: int = 0) -> str:
    if size == 10:
        return f"41{flags:02x}{lba:08x}00{blocks:04x}"
    return f"93{flags:02x}{lba:016x}{blocks:08x}"


@pytest.mark.parametrize("size", [10, 16])
@pytest.mark.parametrize("flags", [0, UNMAP])
def test_a_pattern_is_written_even_where_unmapping_is_asked_for(size: int, flags: int) -> None:
    lu, store = make_faulty_disk()
    result = run(lu, NEXUS, build(size, 5, 3, flags), [PATTERN[:9], PATTERN[9:]])
    assert result.status == Status.GOOD
    assert result.data_out_length == BLOCK
    assert store.content[4 * BLOCK : 9 * BLOCK] == bytes(BLOCK) + PATTERN * 3 + bytes(BLOCK)
    assert store.deallocated == store.zeroed == []
    assert lu.statistics.write_bytes == 3 * BLOCK


@pytest.mark.parametrize(
    ("size", "flags", "data", "deallocates"),
    [
        (10, 0, [bytes(BLOCK)], False),
        (16, 0, [bytes(BLOCK)], False),
        (16, NDOB, [], False),
        (10, UNMAP, [bytes(BLOCK)], True),
        (16, UNMAP, [bytes(BLOCK)], True),
        (16, UNMAP | NDOB, [], True),
    ],
)
def test_zeroes(size: int, flags: int, data: list[bytes], deallocates: bool) -> None:
    lu, store = make_faulty_disk()
    store.content[:] = b"\xff" * len(store.content)
    assert run(lu, NEXUS, build(size, 2, 4, flags), data).status == Status.GOOD
    assert store.content[: 7 * BLOCK] == b"\xff" * 2 * BLOCK + bytes(4 * BLOCK) + b"\xff" * BLOCK
    expected = [(2 * BLOCK, 4 * BLOCK)]
    assert store.deallocated == (expected if deallocates else [])
    assert store.zeroed == ([] if deallocates else expected)
    assert store.flushes == 0


@pytest.mark.parametrize("data", [[bytes(BLOCK)], [PATTERN]], ids=["zeroes", "pattern"])
def test_it_is_durable_without_a_write_cache(data: list[bytes]) -> None:
    lu, store = make_faulty_disk(DiskSettings(write_cache=False))
    run(lu, NEXUS, build(10, 0, 2), data)
    assert store.flushes == 1


@pytest.mark.parametrize("size", [10, 16])
def test_limits(size: int) -> None:
    lu = make_disk()
    for lba, blocks in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS, 0), (0xFFFF_FFFF, 0)):
        assert sense_of(run(lu, NEXUS, build(size, lba, blocks), [PATTERN])) == OUT_OF_RANGE
    assert store_of(lu).content == bytes(BLOCKS * BLOCK)


@pytest.mark.parametrize("size", [10, 16])
@pytest.mark.parametrize("lba", [0, 5, BLOCKS - 1])
def test_zero_blocks_reach_to_the_end_of_the_medium(size: int, lba: int) -> None:
    lu = make_disk()
    result = run(lu, NEXUS, build(size, lba, 0), [PATTERN])
    assert result.status == Status.GOOD
    assert result.data_out_length == BLOCK
    assert store_of(lu).content == bytes(lba * BLOCK) + PATTERN * (BLOCKS - lba)
    assert lu.statistics.write_bytes == (BLOCKS - lba) * BLOCK


@pytest.mark.parametrize("flags", [NDOB, NDOB | UNMAP])
def test_zero_blocks_without_data_clear_the_medium(flags: int) -> None:
    lu, store = make_faulty_disk()
    store.content[:] = b"\xff" * len(store.content)
    assert run(lu, NEXUS, build(16, 8, 0, flags)).status == Status.GOOD
    assert store.content == b"\xff" * 8 * BLOCK + bytes(len(store.content) - 8 * BLOCK)
    cleared = [(8 * BLOCK, len(store.content) - 8 * BLOCK)]
    assert (store.deallocated or store.zeroed) == cleared
    assert bool(store.deallocated) is bool(flags & UNMAP)


@pytest.mark.parametrize("size", [10, 16])
def test_the_end_of_the_medium_may_be_too_far(size: int) -> None:
    most = limits.MAXIMUM_WRITE_SAME_LENGTH_BYTES // BLOCK
    lu = make_disk(size_bytes=(most + 1) * BLOCK)
    result = run(lu, NEXUS, build(size, 0, 0), [PATTERN])
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == ({10: 7, 16: 10}[size], 7, True)
    assert run(lu, NEXUS, build(size, 1, 0), [bytes(BLOCK)]).status == Status.GOOD


def test_maximum_write_same_length() -> None:
    lu = make_disk(size_bytes=1 << 30)
    most = limits.MAXIMUM_WRITE_SAME_LENGTH_BYTES // BLOCK
    result = run(lu, NEXUS, build(16, 0, most + 1, NDOB))
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (10, 7, True)
    assert run(lu, NEXUS, build(16, 0, most, NDOB)).status == Status.GOOD


def test_a_long_pattern_is_written_to_its_end() -> None:
    step = limits.OPTIMAL_TRANSFER_LENGTH_BYTES // BLOCK
    lu = make_disk(size_bytes=(2 * step + 3) * BLOCK)
    assert run(lu, NEXUS, build(16, 1, 2 * step + 2), [PATTERN]).status == Status.GOOD
    assert store_of(lu).content == bytes(BLOCK) + PATTERN * (2 * step + 2)


@pytest.mark.parametrize("size", [10, 16])
@pytest.mark.parametrize("length", [0, BLOCK // 2, BLOCK - 1, BLOCK + 1, 2 * BLOCK])
def test_data_of_another_length_is_refused(size: int, length: int) -> None:
    lu = make_disk()
    result = run(lu, NEXUS, build(size, 0, 1, UNMAP), [b"\1" * length])
    assert sense_of(result) == WRONG_LENGTH
    assert store_of(lu).content[: 2 * BLOCK] == bytes(2 * BLOCK)


@pytest.mark.parametrize(
    ("size", "flags", "bit"),
    [
        (10, NDOB, 0),
        (10, ANCHOR | UNMAP, 4),
        (16, ANCHOR | UNMAP, 4),
        (10, 0x20, 5),
        (16, 0x80, 7),
        (16, 0x02, 1),
    ],
    ids=["NDOB(10)", "ANCHOR(10)", "ANCHOR(16)", "WRPROTECT(10)", "WRPROTECT(16)", "PBDATA"],
)
def test_flags_that_are_refused(size: int, flags: int, bit: int) -> None:
    result = run(make_disk(), NEXUS, build(size, 0, 1, flags), [PATTERN])
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (1, bit, True)


@pytest.mark.parametrize("size", [10, 16])
def test_anchor_lets_zeroes_keep_their_space(size: int) -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    store.content[:] = b"\xff" * len(store.content)
    result = run(lu, NEXUS, build(size, 8, 3, ANCHOR | UNMAP), [bytes(BLOCK)])
    assert result.status == Status.GOOD
    assert store.anchored == [(8 * BLOCK, 3 * BLOCK)]
    assert store.deallocated == store.zeroed == []
    assert store.content[7 * BLOCK : 12 * BLOCK] == b"\xff" * BLOCK + bytes(3 * BLOCK) + (
        b"\xff" * BLOCK
    )


def test_anchor_without_data() -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    assert run(lu, NEXUS, build(16, 8, 0, NDOB | ANCHOR | UNMAP)).status == Status.GOOD
    assert store.anchored == [(8 * BLOCK, len(store.content) - 8 * BLOCK)]


def test_other_data_is_written_with_anchor_too() -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    run(lu, NEXUS, build(16, 8, 2, ANCHOR | UNMAP), [PATTERN])
    assert store.anchored == []
    assert store.content[8 * BLOCK : 10 * BLOCK] == PATTERN * 2


@pytest.mark.parametrize("size", [10, 16])
def test_anchor_needs_unmap(size: int) -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    result = run(lu, NEXUS, build(size, 0, 1, ANCHOR), [bytes(BLOCK)])
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (1, 4, True)
    assert store.anchored == []


@pytest.mark.parametrize("size", [10, 16])
def test_no_space_to_anchor(size: int) -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    store.fault = StorageFault.OUT_OF_SPACE
    result = run(lu, NEXUS, build(size, 0, 1, ANCHOR | UNMAP), [bytes(BLOCK)])
    assert sense_of(result) == (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)


def test_a_thick_disk_on_a_medium_that_anchors_does_not() -> None:
    lu, _ = make_faulty_disk(DiskSettings(thin=False), ANCHORING)
    result = run(lu, NEXUS, build(16, 0, 1, ANCHOR | UNMAP), [bytes(BLOCK)])
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (1, 4, True)


def test_unmap_needs_provisioning_management() -> None:
    lu = make_disk(DiskSettings(thin=False))
    result = run(lu, NEXUS, build(16, 0, 1, UNMAP), [bytes(BLOCK)])
    assert sense_of(result) == INVALID_FIELD
    assert field_of(result) == (1, 3, True)
    assert run(lu, NEXUS, build(16, 0, 1), [bytes(BLOCK)]).status == Status.GOOD


async def test_an_aborted_one_stops_between_two_pieces() -> None:
    lu, store = make_gated_disk()
    step = limits.OPTIMAL_TRANSFER_LENGTH_BYTES
    store.content = bytearray(4 * step)
    store.size_bytes = len(store.content)
    await lu.resize(len(store.content))
    task = task_for(NEXUS, build(16, 0, 4 * step // BLOCK), [PATTERN])
    pending = start(lu.execute(task))
    await settle()
    assert store.log == [("write", 0)]
    lu.abort([task])
    store.gate.set()
    await asyncio.wait_for(pending, 10)
    assert store.log == [("write", 0)]
    assert not lu.tasks.unfinished
    assert not lu.ranges.conflicts(0, lu.block_count, True)
