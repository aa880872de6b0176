"""Putting extents together: adjacent ones in one state are one, and a block has one state."""

from collections.abc import Sequence

from .base import Extent, Provisioning

_STRENGTH = {Provisioning.ANCHORED: 0, Provisioning.DEALLOCATED: 1, Provisioning.MAPPED: 2}


def end_of(extent: Extent) -> int:
    """The offset behind the extent."""
    return extent.offset_bytes + extent.length_bytes


def append(found: list[Extent], extent: Extent) -> None:
    """Add what follows the last one, or make that one longer."""
    if found and found[-1].state is extent.state:
        last = found.pop()
        length = last.length_bytes + extent.length_bytes
        extent = Extent(last.offset_bytes, length, extent.state)
    found.append(extent)


def whole_blocks(extents: Sequence[Extent], block_bytes: int, end_bytes: int) -> list[Extent]:
    """The extents in whole blocks, for a file system's blocks may be smaller than the disk's.

    A block with any data is mapped, and anchored only if all of it is. One that is cut off by the
    end of the list is mapped: nobody knows its rest; but the disk may end so, at `end_bytes`. The
    first extent begins with a block.
    """
    end = end_of(extents[-1])
    rest = Extent(end, min(-end % block_bytes, end_bytes - end), Provisioning.MAPPED)
    found: list[Extent] = []
    for extent in (*extents, rest) if rest.length_bytes else extents:
        start = extent.offset_bytes // block_bytes * block_bytes
        if found and start < end_of(found[-1]):
            start = _settle_shared(found, extent, start)
        stop = min(-(-end_of(extent) // block_bytes) * block_bytes, end_bytes)
        if start < stop:
            append(found, Extent(start, stop - start, extent.state))
    return found


def _settle_shared(found: list[Extent], extent: Extent, start: int) -> int:
    """The last of `found` has taken the block at `start`, which is the extent's, too.

    Returns where the extent begins.
    """
    last = found[-1]
    if _STRENGTH[extent.state] <= _STRENGTH[last.state]:
        return end_of(last)
    found.pop()
    if last.offset_bytes < start:
        found.append(Extent(last.offset_bytes, start - last.offset_bytes, last.state))
    return start
