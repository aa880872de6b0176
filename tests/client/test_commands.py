"""CDBs, byte by byte."""

import pytest

from pyiscsi_target.client import commands


@pytest.mark.parametrize(
    ("cdb", "expected"),
    [
        (commands.test_unit_ready(), "00 00 00 00 00 00"),
        (commands.inquiry(255), "12 00 00 00ff 00"),
        (commands.inquiry(4096, 0x83), "12 01 83 1000 00"),
        (commands.inquiry(4, 0x00), "12 01 00 0004 00"),
        (commands.report_luns(16), "a0 00 00 000000 00000010 00 00"),
        (commands.read_capacity_16(32), "9e 10 0000000000000000 00000020 00 00"),
        (commands.read_16(0x1122334455667788, 9), "88 00 1122334455667788 00000009 00 00"),
        (commands.read_16(1, 2, fua=True), "88 08 0000000000000001 00000002 00 00"),
        (commands.write_16(3, 4), "8a 00 0000000000000003 00000004 00 00"),
        (commands.write_16(3, 4, fua=True), "8a 08 0000000000000003 00000004 00 00"),
        (commands.synchronize_cache_10(), "35 00 00000000 00 0000 00"),
        (commands.persistent_reserve_in(3, 8192), "5e 03 0000000000 2000 00"),
        (commands.persistent_reserve_out(4, 5, 24), "5f 04 05 0000 00000018 00"),
    ],
)
def test_cdbs(cdb: bytes, expected: str) -> None:
    assert cdb == bytes.fromhex(expected)
