"""Which space of a VHDX file is taken, and where there is some for a new block.

Space is given away only when it is sure to read as zeroes after any loss of power: behind the end
of the file, or freed, punched and flushed before. Must not know what it is for.
"""

import re
from collections.abc import Iterable, Iterator
from itertools import islice

from .base import StorageError
from .image_file import ImageFile
from .vhdx_format import MIB

GROWTH_BYTES_MAX = 256 * MIB
_GAPS_MAX = 1024  # cleaned at first need


class SpaceMap:
    """Which MiB of the file are taken, by blocks or anything else.

    Free space is `clean` when it is sure to read as zeroes after any loss of power, and only then
    given away. One byte for each MiB.
    """

    _USED, _CLEAN = 1, 2

    def __init__(self) -> None:
        self._map = bytearray()

    @property
    def end_bytes(self) -> int:
        """Where the last taken MiB ends."""
        return (self._map.rfind(self._USED) + 1) * MIB

    def _reach(self, end: int) -> None:
        self._map.extend(bytes(max(0, end - len(self._map))))

    def claim(self, start_bytes: int, length_bytes: int) -> bool:
        """Take the range (in whole MiB); False where some of it is taken already."""
        first, count = start_bytes // MIB, length_bytes // MIB
        self._reach(first + count)
        if self._map.find(self._USED, first, first + count) >= 0:
            return False
        self._map[first : first + count] = bytes((self._USED,)) * count
        return True

    def free(self, start_bytes: int, length_bytes: int, *, clean: bool) -> None:
        """The range is not taken any more."""
        first, count = start_bytes // MIB, length_bytes // MIB
        self._reach(first + count)
        self._map[first : first + count] = bytes((self._CLEAN if clean else 0,)) * count

    def take_clean(self, length_bytes: int) -> int | None:
        """Take the first clean range of this length; None where there is none."""
        count = length_bytes // MIB
        first = self._map.find(bytes((self._CLEAN,)) * count)
        if first < 0:
            return None
        self._map[first : first + count] = bytes((self._USED,)) * count
        return first * MIB

    def cut(self, end_bytes: int) -> None:
        """There is nothing behind this any more."""
        del self._map[-(-end_bytes // MIB) :]

    def gaps(self, end_bytes: int) -> Iterator[tuple[int, int]]:
        """(start, length) of ranges below `end_bytes` that are neither taken nor clean."""
        self._reach(-(-end_bytes // MIB))
        for match in re.finditer(rb"\x00+", self._map):
            length = min(match.end() * MIB, end_bytes) - match.start() * MIB
            if length > 0:
                yield match.start() * MIB, length


class Space:
    """The space of a file that is open for writing; one caller at a time takes some.

    The file grows by as much as it has grown before, so that small blocks do not cost a change of
    its size each. What is left of that is cut off at the end (`cut`).
    """

    def __init__(self, file: ImageFile, taken: SpaceMap, *, punches: bool) -> None:
        """`taken` knows all that the file's structures name; `punches`: the file takes holes."""
        self.punches = punches
        self._file = file
        self._map = taken
        self._punched: list[tuple[int, int]] = []  # and not flushed since
        self._looked_for_gaps = False
        self._grown_bytes = 0

    async def take(self, length_bytes: int) -> int:
        """Space that reads as zeroes, and will after any loss of power. Raises StorageError."""
        if not self._looked_for_gaps:
            self._looked_for_gaps = True
            await self.clean_gaps()
        place = self.take_clean(length_bytes)
        return await self._grow(length_bytes) if place is None else place

    def take_clean(self, length_bytes: int) -> int | None:
        """The first such space that the file has already; None where there is none."""
        return self._map.take_clean(length_bytes)

    async def _grow(self, length_bytes: int) -> int:
        place = -(-max(self._file.size_bytes, self._map.end_bytes) // MIB) * MIB
        more_bytes = max(0, min(self._grown_bytes, GROWTH_BYTES_MAX) - length_bytes)
        try:
            await self._file.set_size(place + length_bytes + more_bytes)
        except StorageError:
            more_bytes = 0  # there may be room for what is wanted
            await self._file.set_size(place + length_bytes)
        self._grown_bytes += length_bytes + more_bytes
        self._map.claim(place, length_bytes)
        self._map.free(place + length_bytes, more_bytes, clean=True)
        return place

    def give_back(self, place: int, length_bytes: int, *, clean: bool) -> None:
        """Nothing names or uses the space any more; `clean`: nothing was ever written to it."""
        self._map.free(place, length_bytes, clean=clean)

    async def release(self, places: Iterable[int], length_bytes: int) -> None:
        """Empty space that nothing names or uses, so that it can be taken after the next flush.

        Raises StorageError; what could not be emptied is not used again then.
        """
        failure: StorageError | None = None
        for place in places:
            try:
                await self._file.punch(place, length_bytes)
            except StorageError as error:
                self._map.free(place, length_bytes, clean=False)
                failure = error
            else:
                self._punched.append((place, length_bytes))
        if failure is not None:
            raise failure

    async def clean_gaps(self) -> None:
        """Space that nothing names may hold anything; punch it, so that it can be used one day."""
        if not self.punches:
            return
        for start, length in list(islice(self._map.gaps(self._file.size_bytes), _GAPS_MAX)):
            try:
                await self._file.punch(start, length)
            except StorageError:
                return
            self._punched.append((start, length // MIB * MIB))

    async def flush(self) -> None:
        """Flush the file: what was punched before is free then. Raises StorageError."""
        punched, self._punched = self._punched, []
        try:
            await self._file.flush()
        except BaseException:
            self._punched += punched
            raise
        for start, length in punched:
            self._map.free(start, length, clean=True)

    @property
    def unused_bytes(self) -> int:
        """How much of the file belongs to nothing, and is not known to be empty."""
        return sum(length for _, length in self._map.gaps(self._file.size_bytes))

    async def cut(self) -> None:
        """Let the file end where the last taken space does, on the medium.

        There must be no log, for a log says how long the file has to be ([MS-VHDX] section
        2.3.1.1). Raises StorageError.
        """
        end_bytes = self._map.end_bytes
        if end_bytes < self._file.size_bytes:
            self._map.cut(end_bytes)
            await self._file.set_size(end_bytes)
            await self._file.flush()
