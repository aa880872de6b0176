"""The numbers of the BAT."""

import pytest

from pyiscsi_target.storage.vhdx_bat import Geometry, placed, raw_entry
from pyiscsi_target.storage.vhdx_format import GIB, MIB, TIB, BlockState


@pytest.mark.parametrize(
    ("disk_bytes", "block_bytes", "sector_bytes", "ratio", "entries", "with_parent"),
    [
        (10 * GIB, 32 * MIB, 512, 128, 320 + 2, 387),
        (4 * GIB, MIB, 512, 4096, 4096, 4097),
        (4 * GIB + 512, MIB, 512, 4096, 4098, 2 * 4097),
        (GIB, 2 * MIB, 4096, 16384, 512, 16385),
        (64 * TIB, 32 * MIB, 512, 128, 2**21 + 2**14 - 1, 2**21 + 2**14),
        (64 * TIB, 256 * MIB, 4096, 128, 2**18 + 2**11 - 1, 2**18 + 2**11),
    ],
)
def test_geometry(
    disk_bytes: int,
    block_bytes: int,
    sector_bytes: int,
    ratio: int,
    entries: int,
    with_parent: int,
) -> None:
    geometry = Geometry(disk_bytes, block_bytes, sector_bytes, has_parent=False)
    assert geometry.chunk_ratio == ratio
    assert geometry.entry_count == entries
    child = Geometry(disk_bytes, block_bytes, sector_bytes, has_parent=True)
    assert child.entry_count == with_parent
    assert geometry.index(0) == 0
    assert geometry.index(geometry.block_count - 1) == entries - 1
    assert geometry.bitmap_index(0) == ratio


@pytest.mark.parametrize("state", list(BlockState))
@pytest.mark.parametrize("place", [MIB, 5 * MIB, 70 * TIB])
def test_entries_as_they_are_in_memory(state: BlockState, place: int) -> None:
    entry = place | state
    value = place if state is BlockState.FULLY_PRESENT else ~entry
    assert raw_entry(value) == entry
    assert placed(value) == (place, state)
