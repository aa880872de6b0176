"""UNMAP and GET LBA STATUS."""

import struct

import pytest

from pyiscsi_target.scsi import limits
from pyiscsi_target.scsi.logical_unit import DiskSettings
from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Status
from pyiscsi_target.storage.base import Capabilities, Extent, Provisioning, StorageFault
from tests.support.faulty_disk import make_faulty_disk
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
BLOCKS = 2048
ANCHOR = 0x01
ANCHORING = Capabilities(deallocate_granularity_bytes=4096, anchors=True)
NEXUS = make_nexus()
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)
LIST_LENGTH = (SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR)
BAD_LIST = (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_PARAMETER_LIST)


def unmap_list(*extents: tuple[int, int]) -> bytes:
    descriptors = b"".join(struct.pack(">QI4x", *extent) for extent in extents)
    return struct.pack(">HH4x", 6 + len(descriptors), len(descriptors)) + descriptors


def unmap_cdb(length: int, flags: int = 0) -> str:
    return f"42 {flags:02x} 00000000 00 {length:04x} 00"


def test_unmap() -> None:
    lu, store = make_faulty_disk()
    store.content[:] = b"\xff" * len(store.content)
    data = unmap_list((2, 3), (8, 0), (2047, 1))
    result = run(lu, NEXUS, unmap_cdb(len(data)), [data[:10], data[10:]])
    assert result.status == Status.GOOD
    assert result.data_out_length == len(data)
    assert store.deallocated == [(2 * BLOCK, 3 * BLOCK), (2047 * BLOCK, BLOCK)]
    assert store.flushes == 0


def test_unmap_anchors() -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    store.content[:] = b"\xff" * len(store.content)
    data = unmap_list((2, 3), (8, 0), (2047, 1))
    assert run(lu, NEXUS, unmap_cdb(len(data), ANCHOR), [data]).status == Status.GOOD
    assert store.anchored == [(2 * BLOCK, 3 * BLOCK), (2047 * BLOCK, BLOCK)]
    assert store.deallocated == []
    assert store.content[2 * BLOCK : 5 * BLOCK] == bytes(3 * BLOCK)


def test_what_is_anchored_can_be_aborted_in_parts() -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    store.size_bytes = 5 << 26
    lu.block_count = store.size_bytes // BLOCK
    data = unmap_list((0, lu.block_count))
    assert run(lu, NEXUS, unmap_cdb(len(data), ANCHOR), [data]).status == Status.GOOD
    assert store.anchored == [(0, 1 << 27), (1 << 27, 1 << 27), (1 << 28, 1 << 26)]


def test_anchor_is_reserved_where_the_medium_cannot() -> None:
    lu, store = make_faulty_disk()
    data = unmap_list((2, 3))
    result = run(lu, NEXUS, unmap_cdb(len(data), ANCHOR), [data])
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
    assert field_of(result) == (1, 0, True)
    assert store.deallocated == store.anchored == []


def test_no_space_to_anchor() -> None:
    lu, store = make_faulty_disk(capabilities=ANCHORING)
    store.fault = StorageFault.OUT_OF_SPACE
    data = unmap_list((0, 1))
    result = run(lu, NEXUS, unmap_cdb(len(data), ANCHOR), [data])
    assert sense_of(result) == (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)


def test_unmap_is_durable_without_a_write_cache() -> None:
    lu, store = make_faulty_disk(DiskSettings(write_cache=False))
    data = unmap_list((0, 1))
    run(lu, NEXUS, unmap_cdb(len(data)), [data])
    assert store.flushes == 1


def test_an_empty_list_unmaps_nothing() -> None:
    lu, store = make_faulty_disk()
    assert run(lu, NEXUS, unmap_cdb(0)).status == Status.GOOD
    assert run(lu, NEXUS, unmap_cdb(8), [unmap_list()]).status == Status.GOOD
    assert run(lu, NEXUS, unmap_cdb(24), [unmap_list((5, 0))]).status == Status.GOOD
    assert store.deallocated == []


@pytest.mark.parametrize(
    ("data", "sense"),
    [
        (unmap_list((0, 1), (BLOCKS, 1)), OUT_OF_RANGE),
        (unmap_list((0, 1), (BLOCKS - 1, 2)), OUT_OF_RANGE),
        (unmap_list((0, 1), ((1 << 64) - 1, 1)), OUT_OF_RANGE),
        (unmap_list((0, 1))[:7], LIST_LENGTH),
        (unmap_list((0, 1))[:23], LIST_LENGTH),
        (unmap_list((0, 1), (4, 1))[:24], LIST_LENGTH),
        (struct.pack(">HH4x", 22, 32) + bytes(16), LIST_LENGTH),
        (struct.pack(">HH4x", 23, 16) + bytes(16), LIST_LENGTH),
        (unmap_list(*[(0, 1)] * 257), BAD_LIST),
    ],
    ids=["end", "straddles", "wraps", "header", "cut", "one of two", "blocks", "total", "many"],
)
def test_a_bad_list_unmaps_nothing(data: bytes, sense: tuple[SenseKey, Asc]) -> None:
    lu, store = make_faulty_disk()
    assert sense_of(run(lu, NEXUS, unmap_cdb(len(data)), [data])) == sense
    assert store.deallocated == []


def test_a_list_of_which_less_arrived_than_announced_is_refused() -> None:
    lu, store = make_faulty_disk()
    data = unmap_list((0, 1), (4, 1))
    assert sense_of(run(lu, NEXUS, unmap_cdb(len(data)), [data[:30]])) == LIST_LENGTH
    assert store.deallocated == []


def test_an_incomplete_last_descriptor_is_ignored() -> None:
    lu, store = make_faulty_disk()
    data = struct.pack(">HH4xQI4x8x", 30, 24, 3, 1)
    assert run(lu, NEXUS, unmap_cdb(len(data)), [data]).status == Status.GOOD
    assert store.deallocated == [(3 * BLOCK, BLOCK)]


def test_as_many_descriptors_as_announced() -> None:
    lu, store = make_faulty_disk()
    most = limits.MAXIMUM_UNMAP_BLOCK_DESCRIPTOR_COUNT
    data = unmap_list(*[(n, 1) for n in range(most)])
    assert run(lu, NEXUS, unmap_cdb(len(data)), [data]).status == Status.GOOD
    assert len(store.deallocated) == most


def test_more_blocks_than_announced() -> None:
    lu = make_disk(size_bytes=1 << 42)
    data = unmap_list((0, limits.MAXIMUM_UNMAP_LBA_COUNT), (0, 1))
    result = run(lu, NEXUS, unmap_cdb(len(data)), [data])
    assert sense_of(result) == BAD_LIST
    assert field_of(result) == (32, 7, False)


def test_unmap_failure() -> None:
    lu, store = make_faulty_disk()
    store.fault = StorageFault.OUT_OF_SPACE
    data = unmap_list((0, 1))
    result = run(lu, NEXUS, unmap_cdb(len(data)), [data])
    assert sense_of(result) == (SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED_WRITE_PROTECT)


def test_unmap_does_not_exist_without_provisioning_management() -> None:
    lu = make_disk(DiskSettings(thin=False))
    result = run(lu, NEXUS, unmap_cdb(0))
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_COMMAND_OPERATION_CODE)


# GET LBA STATUS

MAPPED, DEALLOCATED = Provisioning.MAPPED, Provisioning.DEALLOCATED
ANCHORED = Provisioning.ANCHORED


def status_cdb(lba: int, allocation_length: int) -> str:
    return f"9e12 {lba:016x} {allocation_length:08x} 00 00"


def descriptors(data: bytes) -> list[tuple[int, int, int]]:
    length = int.from_bytes(data[:4], "big")
    assert length + 4 == len(data)
    assert data[4:8] == bytes(4)
    return [(lba, blocks, state) for lba, blocks, state in struct.iter_unpack(">QIB3x", data[8:])]


def mapped(*pieces: tuple[int, Provisioning]) -> list[Extent]:
    extents, offset = [], 0
    for length, state in pieces:
        extents.append(Extent(offset, length, state))
        offset += length
    return extents


def test_get_lba_status() -> None:
    lu = make_disk()
    store_of(lu).mapped = mapped((4096, MAPPED), (8192, DEALLOCATED), ((1 << 20) - 12288, MAPPED))
    everything = [(0, 8, 0), (8, 16, 1), (24, 2024, 0)]
    assert descriptors(data_of(run(lu, NEXUS, status_cdb(0, 1024)))) == everything
    assert descriptors(data_of(run(lu, NEXUS, status_cdb(0, 40)))) == everything[:2]
    assert descriptors(data_of(run(lu, NEXUS, status_cdb(0, 39)))) == everything[:1]
    assert descriptors(data_of(run(lu, NEXUS, status_cdb(8, 24)))) == everything[1:2]


def test_anchored_blocks_have_a_status_of_their_own() -> None:
    lu = make_disk(capabilities=ANCHORING)
    store_of(lu).mapped = mapped((4096, MAPPED), (8192, ANCHORED), ((1 << 20) - 12288, DEALLOCATED))
    data = data_of(run(lu, NEXUS, status_cdb(0, 1024)))
    assert descriptors(data) == [(0, 8, 0), (8, 16, 2), (24, 2024, 1)]


def test_a_block_is_anchored_only_as_a_whole() -> None:
    lu = make_disk(DiskSettings(block_size=4096), capabilities=ANCHORING)
    store_of(lu).mapped = mapped((512, DEALLOCATED), (8192, ANCHORED), ((1 << 20) - 8704, MAPPED))
    data = data_of(run(lu, NEXUS, status_cdb(0, 1024)))
    assert descriptors(data) == [(0, 1, 1), (1, 1, 2), (2, 254, 0)]


def test_a_short_allocation_length_truncates() -> None:
    data = data_of(run(make_disk(), NEXUS, status_cdb(0, 20)))
    assert len(data) == 20
    assert data[:4] == bytes.fromhex("00000014")
    assert data_of(run(make_disk(), NEXUS, status_cdb(0, 0))) == b""


def test_a_block_that_is_mapped_in_part_is_mapped() -> None:
    lu = make_disk(DiskSettings(block_size=4096))
    store_of(lu).mapped = mapped(
        (512, MAPPED), (8192, DEALLOCATED), (512, MAPPED), ((1 << 20) - 9216, DEALLOCATED)
    )
    data = data_of(run(lu, NEXUS, status_cdb(0, 1024)))
    assert descriptors(data) == [(0, 1, 0), (1, 1, 1), (2, 1, 0), (3, 253, 1)]


def test_the_last_block_is_the_last_that_has_a_status() -> None:
    lu = make_disk()
    data = data_of(run(lu, NEXUS, status_cdb(BLOCKS - 1, 24)))
    assert descriptors(data) == [(BLOCKS - 1, 1, 0)]
    for lba in (BLOCKS, BLOCKS + 1, 1 << 63, (1 << 64) - 1):
        assert sense_of(run(lu, NEXUS, status_cdb(lba, 24))) == OUT_OF_RANGE


def test_an_extent_too_long_for_its_count_ends_the_list() -> None:
    lu = make_disk(size_bytes=1 << 42)
    store_of(lu).mapped = mapped((1 << 41, DEALLOCATED), (1 << 41, MAPPED))
    data = data_of(run(lu, NEXUS, status_cdb(0, 1024)))
    assert descriptors(data) == [(0, 0xFFFFFFFF, 1)]


def test_all_is_mapped_without_provisioning_management() -> None:
    lu = make_disk(DiskSettings(thin=False))
    store_of(lu).mapped = mapped((4096, MAPPED), ((1 << 20) - 4096, DEALLOCATED))
    assert descriptors(data_of(run(lu, NEXUS, status_cdb(9, 1024)))) == [(9, BLOCKS - 9, 0)]
