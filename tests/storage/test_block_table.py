"""Tables of blocks: small and in pages, growing and shrinking, against a list."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyiscsi_target.storage.block_table import PAGE_SHIFT, BlockTable

PAGE = 1 << PAGE_SHIFT
_counts = st.sampled_from([1, 5, 8192, PAGE - 1, PAGE, PAGE + 1, 3 * PAGE])


@given(
    filler=st.sampled_from([0, -1]),
    counts=st.lists(_counts, min_size=1, max_size=4),
    blocks=st.lists(st.tuples(st.integers(0, 3 * PAGE), st.integers(-9, 9)), max_size=6),
)
def test_against_a_list(filler: int, counts: list[int], blocks: list[tuple[int, int]]) -> None:
    table, model = BlockTable(counts[0], filler), [filler] * counts[0]
    for count in counts:
        table.resize(count)
        model = model[:count] + [filler] * (count - len(model))
        for block, value in blocks:
            table[block % count] = model[block % count] = value
    assert len(table) == len(model)
    assert (table.flat is not None) == (len(model) <= PAGE)
    for block in {0, len(model) - 1, *(block % len(model) for block, _ in blocks)}:
        assert table[block] == model[block]
        run = table.filler_run(block)
        assert set(model[block : block + run]) <= {filler}
    assert [value for page in table.pages for value in page][: len(model)] == model


def test_an_empty_table_is_one_run() -> None:
    table = BlockTable(10 * PAGE, -1)
    assert table.filler_run(5) == 10 * PAGE - 5
    table[PAGE] = 7
    assert table.filler_run(5) == PAGE - 5
    assert table.filler_run(PAGE) == 0
    assert table.filler_run(2 * PAGE) == 8 * PAGE


@pytest.mark.parametrize("blocks", [1 << 21, 1 << 26])
def test_the_table_of_a_large_disk_takes_little(blocks: int) -> None:
    tracemalloc.start()
    table = BlockTable(blocks)
    table[blocks // 2] = 5
    assert tracemalloc.get_traced_memory()[1] < 4 << 20
    tracemalloc.stop()
