"""READ CAPACITY(10) and (16)."""

import pytest

from pyiscsi_target.scsi.logical_unit import DiskSettings
from pyiscsi_target.scsi.sense import Asc, SenseKey
from tests.support.memory_disk import data_of, make_disk, make_nexus, run, sense_of

READ_CAPACITY_10 = "25"


def read_capacity_16(allocation_length: int) -> str:
    return f"9e10 0000000000000000 {allocation_length:08x} 00 00"


@pytest.mark.parametrize(
    ("size_bytes", "block_size", "expected"),
    [
        (1 << 20, 512, "000007ff 00000200"),
        (1 << 20, 4096, "000000ff 00001000"),
        ((1 << 20) + 511, 512, "000007ff 00000200"),
        (1 << 41, 512, "ffffffff 00000200"),
        ((1 << 41) + 512, 512, "ffffffff 00000200"),
    ],
)
def test_ten(size_bytes: int, block_size: int, expected: str) -> None:
    lu = make_disk(DiskSettings(block_size=block_size), size_bytes=size_bytes)
    assert data_of(run(lu, make_nexus(), READ_CAPACITY_10)) == bytes.fromhex(expected)


@pytest.mark.parametrize(
    ("settings", "tail"),
    [
        (DiskSettings(), "00 00 c0 00"),
        (DiskSettings(thin=False), "00 00 00 00"),
        (DiskSettings(physical_block_size=4096), "00 03 c0 00"),
        (DiskSettings(block_size=4096, physical_block_size=4096), "00 00 c0 00"),
    ],
)
def test_sixteen(settings: DiskSettings, tail: str) -> None:
    lu = make_disk(settings, size_bytes=1 << 42)
    last_lba = (1 << 42) // settings.block_size - 1
    expected = last_lba.to_bytes(8, "big") + settings.block_size.to_bytes(4, "big")
    expected += bytes.fromhex(tail) + bytes(16)
    assert data_of(run(lu, make_nexus(), read_capacity_16(255))) == expected
    for length in (0, 8, 12, 15, 31):
        assert data_of(run(lu, make_nexus(), read_capacity_16(length))) == expected[:length]


def test_obsolete_lba_of_ten_is_refused() -> None:
    result = run(make_disk(), make_nexus(), "25 00 00000001")
    assert sense_of(result) == (SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB)
