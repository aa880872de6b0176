"""Sector bitmaps of VHD blocks: one bit for each sector, the most significant bit first.

VHD 1.0, "Block Allocation Table and Data Blocks". Sectors are counted from the start of the block.
"""

from collections.abc import Iterator


def runs(bitmap: bytes | bytearray, first: int, end: int) -> Iterator[tuple[bool, int, int]]:
    """(whether the bits are set, first, end) of each run of equal bits of the sectors [first, end).

    Digits of a binary number are searched, not single bits, so that it is C which searches.
    """
    low = first // 8
    part = bitmap[low : -(-end // 8)]
    digits = f"{int.from_bytes(part):0{len(part) * 8}b}"
    position, stop = first - low * 8, end - low * 8
    while position < stop:
        is_set = digits[position] == "1"
        found = digits.find("0" if is_set else "1", position, stop)
        run_end = stop if found < 0 else found
        yield is_set, position + low * 8, run_end + low * 8
        position = run_end


def clear_runs(bitmap: bytes | bytearray, first: int, end: int) -> list[tuple[int, int]]:
    """The runs of sectors whose bits are not set."""
    return [(start, stop) for is_set, start, stop in runs(bitmap, first, end) if not is_set]


def set_run(bitmap: bytearray, first: int, end: int) -> None:
    """Set the bits of the sectors [first, end)."""
    low, high = first // 8, -(-end // 8)
    mask = ((1 << (end - first)) - 1) << (high * 8 - end)
    value = int.from_bytes(bitmap[low:high]) | mask
    bitmap[low:high] = value.to_bytes(high - low)
