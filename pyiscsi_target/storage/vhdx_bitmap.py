"""The sector bitmaps of a differencing VHDX file ([MS-VHDX] section 2.4): which sectors it has.

Holds those parts that were looked at, as they will be when the log has been applied. Must not know
when they are written.
"""

from array import array
from collections.abc import Iterator, Mapping

from .image_file import ImageFile
from .vhdx_bat import Geometry
from .vhdx_format import LOG_SECTOR_BYTES

_SECTORS_MAX = 4096  # 16 MiB of bitmaps in memory


class SectorBitmaps:
    """Bits of payload blocks; bit 0 of an integer is the first sector asked for.

    `places` has the place of each chunk's bitmap block, 0 where there is none.
    """

    def __init__(self, file: ImageFile, geometry: Geometry, places: "array[int]") -> None:
        self.places = places
        self._file = file
        self._ratio = geometry.chunk_ratio
        self._bytes = geometry.block_bitmap_bytes
        self._sectors: dict[int, bytearray] = {}

    def _place(self, block: int) -> int:
        chunk, within = divmod(block, self._ratio)
        return self.places[chunk] + within * self._bytes

    def _range(self, block: int, first: int, last: int) -> range:
        """Offsets in the file of the log sectors with bits [first, last) of the block."""
        place = self._place(block)
        start = (place + first // 8) // LOG_SECTOR_BYTES * LOG_SECTOR_BYTES
        return range(start, place + -(-last // 8), LOG_SECTOR_BYTES)

    def is_known(self, block: int, first: int, last: int) -> bool:
        """Whether these bits are in memory."""
        return all(offset in self._sectors for offset in self._range(block, first, last))

    async def load(self, block: int, first: int, last: int) -> None:
        """Bring the bits into memory. Raises StorageError."""
        for offset in self._range(block, first, last):
            if offset not in self._sectors:
                sector = bytearray(LOG_SECTOR_BYTES)
                await self._file.read(offset, memoryview(sector))
                self._sectors.setdefault(offset, sector)

    def bits(self, block: int, first: int, last: int) -> int:
        """The bits [first, last) of a block, which are in memory."""
        place, value, shift = self._place(block), 0, 0
        for at in range(first // 8, -(-last // 8)):
            sector, within = divmod(place + at, LOG_SECTOR_BYTES)
            value |= self._sectors[sector * LOG_SECTOR_BYTES][within] << shift
            shift += 8
        return value >> first % 8 & (1 << (last - first)) - 1

    def changed(self, block: int, first: int, last: int, bits: int) -> dict[int, bytes]:
        """The log sectors as they will be with other bits [first, last); see `store`."""
        place, start, end = self._place(block), first // 8, -(-last // 8)
        mask = (1 << (last - first)) - 1 << first % 8
        old = self.bits(block, start * 8, end * 8)
        new = (old & ~mask | bits << first % 8).to_bytes(end - start, "little")
        sectors = {
            offset: bytearray(self._sectors[offset]) for offset in self._range(block, first, last)
        }
        for at, byte in enumerate(new, place + start):
            sector, within = divmod(at, LOG_SECTOR_BYTES)
            sectors[sector * LOG_SECTOR_BYTES][within] = byte
        return {offset: bytes(sector) for offset, sector in sectors.items()}

    def store(self, sectors: Mapping[int, bytes]) -> None:
        """These sectors are in the log now."""
        self._sectors.update((offset, bytearray(sector)) for offset, sector in sectors.items())

    def forget(self) -> None:
        """Everything is in place in the file: too much of it need not be kept."""
        if len(self._sectors) > _SECTORS_MAX:
            self._sectors.clear()


def runs(bits: int, count: int) -> Iterator[tuple[int, bool]]:
    """(length, whether set) of the runs of equal bits among the first `count`."""
    while count:
        is_set = bool(bits & 1)
        odd = ~bits if is_set else bits
        length = (odd & -odd).bit_length() - 1 if odd else count
        length = min(length, count)
        yield length, is_set
        bits >>= length
        count -= length
