"""PRE-FETCH and SYNCHRONIZE CACHE: the host's page cache, as SBC-4 clause 4.15 sees a cache."""

from typing import TYPE_CHECKING

from .block import decode_extent, flush, lba_out_of_range
from .task import Outcome, Result, Task

if TYPE_CHECKING:
    from .logical_unit import LogicalUnit


def _checked_extent(lu: "LogicalUnit", task: Task) -> tuple[int, int]:
    """LBA and blocks, zero blocks meaning "to the end" (SBC-4 clauses 5.14 and 5.37)."""
    lba, blocks = decode_extent(task.cdb)
    if lba + blocks > lu.block_count:
        raise lba_out_of_range()
    return lba, blocks or lu.block_count - lba


def prefetch(lu: "LogicalUnit", task: Task) -> Outcome:
    """PRE-FETCH(10) and (16); IMMED makes no difference, the store only passes on a hint.

    GOOD, not CONDITION MET: the host's page cache does not promise that all the blocks fit into it
    (SBC-4 clause 5.14).
    """
    lba, blocks = _checked_extent(lu, task)
    return _prefetch(lu, lba, blocks)


async def _prefetch(lu: "LogicalUnit", lba: int, blocks: int) -> Result:
    await lu.store.prefetch(lba * lu.block_size, blocks * lu.block_size)
    return Result()


def synchronize_cache(lu: "LogicalUnit", task: Task) -> Outcome:
    """SYNCHRONIZE CACHE(10) and (16): every completed write is on the medium before the status.

    The range is checked and then the whole cache is flushed, which SBC-4 clause 5.37 allows. With
    IMMED=1 the status could come before the flush; coming after it breaks no promise.
    """
    _checked_extent(lu, task)
    return _synchronize(lu)


async def _synchronize(lu: "LogicalUnit") -> Result:
    await flush(lu)
    return Result()
