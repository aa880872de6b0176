"""PRE-FETCH and SYNCHRONIZE CACHE."""

import pytest

from pyiscsi_target.scsi.sense import Asc, SenseKey
from pyiscsi_target.scsi.task import Status
from pyiscsi_target.storage.base import StorageFault
from tests.support.faulty_disk import make_faulty_disk
from tests.support.memory_disk import make_nexus, run, sense_of

BLOCKS = 2048
OUT_OF_RANGE = (SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_BLOCK_ADDRESS_OUT_OF_RANGE)


def extent(size: int, lba: int, blocks: int) -> str:
    if size == 10:
        return f"{lba:08x}00{blocks:04x}00"
    return f"{lba:016x}{blocks:08x}0000"


PREFETCH = {10: "34", 16: "90"}
SYNCHRONIZE = {10: "35", 16: "91"}


@pytest.mark.parametrize("flags", ["00", "02"], ids=["", "immediate"])
@pytest.mark.parametrize("size", [10, 16])
def test_prefetch_passes_the_range_on(size: int, flags: str) -> None:
    lu, store = make_faulty_disk()
    nexus = make_nexus()
    result = run(lu, nexus, PREFETCH[size] + flags + extent(size, 8, 4))
    assert result.status == Status.GOOD
    run(lu, nexus, PREFETCH[size] + flags + extent(size, 2040, 0))
    assert store.prefetched == [(8 * 512, 4 * 512), (2040 * 512, 8 * 512)]


@pytest.mark.parametrize("flags", ["00", "02"], ids=["", "immediate"])
@pytest.mark.parametrize("size", [10, 16])
def test_synchronize_cache_flushes(size: int, flags: str) -> None:
    lu, store = make_faulty_disk()
    for lba, blocks in ((0, 0), (5, 1), (BLOCKS, 0)):
        command = SYNCHRONIZE[size] + flags + extent(size, lba, blocks)
        assert run(lu, make_nexus(), command).status == Status.GOOD
    assert store.flushes == 3


@pytest.mark.parametrize("size", [10, 16])
@pytest.mark.parametrize("opcodes", [PREFETCH, SYNCHRONIZE], ids=["prefetch", "synchronize"])
def test_beyond_the_end(opcodes: dict[int, str], size: int) -> None:
    lu, store = make_faulty_disk()
    for lba, blocks in ((BLOCKS, 1), (BLOCKS - 1, 2), (BLOCKS + 1, 0)):
        result = run(lu, make_nexus(), opcodes[size] + "00" + extent(size, lba, blocks))
        assert sense_of(result) == OUT_OF_RANGE
    assert store.flushes == 0
    assert store.prefetched == []


def test_a_failed_flush_is_a_write_fault() -> None:
    lu, store = make_faulty_disk()
    store.flush_fault = StorageFault.MEDIUM
    result = run(lu, make_nexus(), "35 00 00000000 00 0000 00")
    assert sense_of(result) == (SenseKey.MEDIUM_ERROR, Asc.PERIPHERAL_DEVICE_WRITE_FAULT)
    assert lu.statistics.write_errors == 1
