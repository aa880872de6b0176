"""Zeroes in buffers, and parts of several buffers. Must not know what the bytes are."""

from collections.abc import Sequence

from .base import Buffer

_ZEROES = bytes(64 * 1024)


def fill_zeroes(into: memoryview) -> None:
    """Fill the buffer with zeroes."""
    for start in range(0, len(into), len(_ZEROES)):
        part = into[start : start + len(_ZEROES)]
        part[:] = _ZEROES[: len(part)]


def all_zero(data: Sequence[Buffer]) -> bool:
    """Whether there is nothing but zeroes in the buffers."""
    for buffer in data:
        if buffer and (buffer[0] or buffer[-1]):
            return False
    return all(first_nonzero(memoryview(buffer)) is None for buffer in data)


def first_nonzero(view: memoryview) -> int | None:
    """Where the first byte is that is not zero."""
    for start in range(0, len(view), len(_ZEROES)):
        part = bytes(view[start : start + len(_ZEROES)])
        if part != _ZEROES[: len(part)]:
            return start + len(part) - len(part.lstrip(b"\0"))
    return None


def same(left: memoryview, right: memoryview) -> bool:
    """Whether two buffers of one length hold the same; views would compare element by element."""
    return all(
        bytes(left[start : start + len(_ZEROES)]) == bytes(right[start : start + len(_ZEROES)])
        for start in range(0, len(left), len(_ZEROES))
    )


def slice_buffers(data: Sequence[Buffer], start: int, length: int) -> list[Buffer]:
    """The `length` bytes from `start` on of the buffers one after the other, without copying."""
    found: list[Buffer] = []
    for buffer in data:
        if start < len(buffer):
            part = memoryview(buffer)[start : start + length]
            found.append(part)
            length -= len(part)
            if not length:
                break
        start = max(0, start - len(buffer))
    return found
