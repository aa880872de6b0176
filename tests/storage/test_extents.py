"""Extents in whole blocks: the strongest state of a block is the block's."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.storage.base import Extent, Provisioning
from pyiscsi_target.storage.extents import append, end_of, whole_blocks

MAPPED, DEALLOCATED, ANCHORED = (
    Provisioning.MAPPED,
    Provisioning.DEALLOCATED,
    Provisioning.ANCHORED,
)
BLOCK = 4
Pieces = list[tuple[int, Provisioning]]


def extents(pieces: Pieces) -> list[Extent]:
    found: list[Extent] = []
    offset = 0
    for length, state in pieces:
        append(found, Extent(offset, length, state))
        offset += length
    return found


@pytest.mark.parametrize(
    ("pieces", "expected"),
    [
        ([(4, ANCHORED), (8, MAPPED)], [(4, ANCHORED), (8, MAPPED)]),
        ([(5, MAPPED), (3, DEALLOCATED)], [(8, MAPPED)]),
        ([(5, DEALLOCATED), (3, MAPPED)], [(4, DEALLOCATED), (4, MAPPED)]),
        ([(5, ANCHORED), (3, DEALLOCATED)], [(4, ANCHORED), (4, DEALLOCATED)]),
        ([(5, DEALLOCATED), (3, ANCHORED)], [(8, DEALLOCATED)]),
        ([(1, ANCHORED), (1, DEALLOCATED), (6, MAPPED)], [(8, MAPPED)]),
        ([(1, MAPPED), (1, DEALLOCATED), (6, ANCHORED)], [(4, MAPPED), (4, ANCHORED)]),
        ([(4, MAPPED), (2, ANCHORED), (2, MAPPED)], [(8, MAPPED)]),
    ],
)
def test_a_block_has_one_state(pieces: Pieces, expected: Pieces) -> None:
    assert whole_blocks(extents(pieces), BLOCK, 99) == extents(expected)


@pytest.mark.parametrize("state", Provisioning)
def test_a_block_that_is_cut_off_is_mapped(state: Provisioning) -> None:
    assert whole_blocks([Extent(8, 6, state)], BLOCK, 99) == extents_at(8, (4, state), (4, MAPPED))
    assert whole_blocks([Extent(8, 2, state)], BLOCK, 99) == [Extent(8, 4, MAPPED)]


@pytest.mark.parametrize("state", Provisioning)
def test_a_disk_may_end_within_a_block(state: Provisioning) -> None:
    assert whole_blocks([Extent(8, 6, state)], BLOCK, 14) == [Extent(8, 6, state)]
    assert whole_blocks([Extent(8, 2, state)], BLOCK, 10) == [Extent(8, 2, state)]


def extents_at(offset: int, *pieces: tuple[int, Provisioning]) -> list[Extent]:
    found: list[Extent] = []
    for length, state in pieces:
        append(found, Extent(offset, length, state))
        offset += length
    return found


@given(st.lists(st.tuples(st.integers(1, 11), st.sampled_from(Provisioning)), min_size=1))
def test_as_each_block_by_itself(pieces: Pieces) -> None:
    units = [state for length, state in pieces for _ in range(length)]
    units += [MAPPED] * (-len(units) % BLOCK)
    expected = []
    for start in range(0, len(units), BLOCK):
        states = units[start : start + BLOCK]
        expected.append(
            MAPPED if MAPPED in states else DEALLOCATED if DEALLOCATED in states else ANCHORED
        )
    found = whole_blocks(extents(pieces), BLOCK, len(units))
    assert [extent.state for extent in found for _ in range(extent.length_bytes // BLOCK)] == (
        expected
    )
    assert end_of(found[-1]) == len(units)
    assert all(one.state is not following.state for one, following in pairwise(found))
