"""A number for each block of a disk, however large, in little memory."""

from array import array

UNKNOWN = 0  # the format has not loaded it yet

PAGE_SHIFT = 16  # 65536 blocks, 512 KiB of table
PAGE_MASK = (1 << PAGE_SHIFT) - 1
_GROUP_SHIFT = 13  # what is noticed to hold nothing but the filler


class BlockTable:
    """A number for each block, in pages that take memory only when something is put into them.

    Above 0: the place in the file of a block that may be read and written there as it is. 0
    (`UNKNOWN`): look first. Below 0: what the format likes.
    """

    __slots__ = ("_block_count", "_filler", "_shared", "_touched", "pages")

    def __init__(self, block_count: int, filler: int = UNKNOWN) -> None:
        self._filler = filler
        self._block_count = 0
        self._shared = array("q")
        self._touched = bytearray()
        self.pages: list[array[int]] = []
        self.resize(block_count)

    @property
    def filler(self) -> int:
        """What blocks hold that nothing was put in."""
        return self._filler

    @property
    def flat(self) -> "array[int] | None":
        """The one page of a small table, until `resize`."""
        return self.pages[0] if len(self.pages) == 1 else None

    def __len__(self) -> int:
        return self._block_count

    def __getitem__(self, block: int) -> int:
        return self.pages[block >> PAGE_SHIFT][block & PAGE_MASK]

    def __setitem__(self, block: int, value: int) -> None:
        page = self.pages[block >> PAGE_SHIFT]
        if page is self._shared:
            if value == self._filler:
                return
            page = self.pages[block >> PAGE_SHIFT] = array("q", self._shared)
        page[block & PAGE_MASK] = value
        self._touched[block >> _GROUP_SHIFT] = 1

    def filler_run(self, block: int) -> int:
        """How many blocks from `block` on are sure to hold the filler (0: look at them)."""
        if self._touched[block >> _GROUP_SHIFT]:
            return 0
        group = self._touched.find(1, block >> _GROUP_SHIFT)
        end = self._block_count if group < 0 else group << _GROUP_SHIFT
        return end - block

    def resize(self, block_count: int) -> None:
        """More or fewer blocks; new ones hold the filler."""
        old = min(self._block_count, block_count)
        values = [page if page is not self._shared else None for page in self.pages]
        page_count = -(-block_count >> PAGE_SHIFT) if block_count else 0
        length = block_count if page_count == 1 else 1 << PAGE_SHIFT
        self._shared = array("q", [self._filler]) * (length if page_count > 1 else 0)
        pages: list[array[int]] = []
        for number in range(page_count):
            page = values[number] if number < len(values) else None
            if page is None and page_count > 1:
                pages.append(self._shared)
                continue
            kept = (page or array("q"))[: max(0, old - (number << PAGE_SHIFT))]
            pages.append(kept + array("q", [self._filler]) * (length - len(kept)))
        self.pages[:] = pages
        self._touched += bytes(max(0, (-(-block_count >> _GROUP_SHIFT)) - len(self._touched)))
        self._block_count = block_count
