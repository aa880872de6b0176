"""Sector bitmaps: runs of bits, and bits in the right place of the file."""

import random
from array import array
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.storage.vhdx_bat import Geometry
from pyiscsi_target.storage.vhdx_bitmap import SectorBitmaps, runs
from pyiscsi_target.storage.vhdx_format import GIB, MIB
from tests.support.recording_file import RecordingFile


@given(st.lists(st.booleans(), max_size=80))
def test_runs(flags: list[bool]) -> None:
    bits = sum(flag << at for at, flag in enumerate(flags))
    found = list(runs(bits, len(flags)))
    assert [flag for length, flag in found for _ in range(length)] == flags
    assert all(first[1] != second[1] for first, second in pairwise(found))


async def test_bits_are_where_they_belong() -> None:
    """Least significant first, a MiB for each chunk (section 2.4)."""
    geometry = Geometry(8 * GIB, 2 * MIB, 512, has_parent=True)
    file = RecordingFile(random.Random(3).randbytes(4 * MIB))
    bitmaps = SectorBitmaps(file, geometry, array("Q", [MIB, 3 * MIB]))

    def in_file(sector: int) -> int:
        place = (MIB, 3 * MIB)[sector >> 23] + (sector & 0x7F_FFFF) // 8
        return file.content[place] >> sector % 8 & 1

    source = random.Random(4)
    for _ in range(60):
        block = source.randrange(geometry.block_count)
        first = source.randrange(4096)
        last = source.randrange(first + 1, 4097)
        if not bitmaps.is_known(block, first, last):
            await bitmaps.load(block, first, last)
        bits = bitmaps.bits(block, first, last)
        assert bits == sum(in_file(block * 4096 + at) << at - first for at in range(first, last))
        new = source.getrandbits(last - first)
        sectors = bitmaps.changed(block, first, last, new)
        assert bitmaps.bits(block, first, last) == bits
        bitmaps.store(sectors)
        for offset, data in sectors.items():
            file.write_blocking(offset, data)
        assert bitmaps.bits(block, first, last) == new
