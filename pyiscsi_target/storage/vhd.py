"""Open a VHD of any kind, with its parents, and repair its footers where they were torn.

VHD 1.0 as in `vhd_format`. What the kinds have in common is here; blocks are in `vhd_blocks`.
"""

import asyncio
import os
from collections.abc import Callable, Sequence
from contextlib import suppress

from . import vhd_locators
from .base import BackingStore, Buffer, Capabilities, StorageError, StorageFault
from .chain import ParentPaths
from .content import require_no_data
from .image_file import ImageFile
from .raw import RawStore
from .vhd_disk import VhdDisk
from .vhd_format import (
    ALIGNMENT_BYTES,
    FIXED_MAX_BYTES,
    FOOTER_BYTES,
    HEADER_BYTES,
    SECTOR,
    DiskType,
    Footer,
    Header,
    build_footer,
    header_with_parent,
    stamp_of,
)
from .vhd_image import Layout, read_layout
from .vhd_space import adopted, require_size, resized, stamped

FindParent = Callable[[ParentPaths], BackingStore]
CLOCK_SLACK_S = 2  # file systems round modification times


def open_vhd(
    file: ImageFile, *, find_parent: FindParent | None = None, punches: bool = True
) -> "FixedVhd | VhdDisk":
    """The disk in an open, locked file, which it owns from now on; writable if the file is.

    Blocking, for startup. `find_parent` opens the parent of a differencing disk, read-only;
    `punches` says whether the file takes holes. Raises StorageError (INVALID naming structure and
    offset, or what reading and the parent raise); the file is still the caller's then.
    """
    layout = read_layout(file.read_blocking, file.size_bytes, file.name)
    if not file.read_only:
        repair_footers(file, layout)
    parent = None
    if layout.footer.disk_type is DiskType.DIFFERENCING:
        parent = _open_parent(file, layout, find_parent)
    if layout.footer.disk_type is DiskType.FIXED:
        granularity = ALIGNMENT_BYTES if punches else 0
        return FixedVhd(file, layout, _capabilities(file, granularity))
    granularity = ALIGNMENT_BYTES if punches else layout.block_bytes
    return VhdDisk(file, layout, _capabilities(file, granularity), parent)


def _capabilities(file: ImageFile, granularity_bytes: int) -> Capabilities:
    return Capabilities(
        read_only=file.read_only,
        deallocate_granularity_bytes=granularity_bytes,
        anchors=file.anchors,
        physical_block_bytes=ALIGNMENT_BYTES,
        logical_block_bytes=SECTOR,
    )


def repair_footers(file: ImageFile, layout: Layout) -> None:
    """Write the footer or its copy, whichever is damaged, from the other. Raises StorageError.

    A footer at the end that was overwritten by blocks is that of a file which was growing when the
    power went.
    """
    footer = build_footer(layout.footer)
    if layout.footer_offset is None:
        last = file.size_bytes // SECTOR * SECTOR
        fits = file.size_bytes == last and last - FOOTER_BYTES >= layout.data_end_bytes
        offset = last - FOOTER_BYTES if fits else -(-file.size_bytes // SECTOR) * SECTOR
        file.write_blocking(offset, footer)
        file.flush_blocking()
        layout.footer_offset = offset
    if not layout.copy_intact:
        file.write_blocking(0, footer)
        file.flush_blocking()
        layout.copy_intact = True


class FixedVhd(RawStore):
    """A fixed disk: the bytes before the footer."""

    def __init__(self, file: ImageFile, layout: Layout, capabilities: Capabilities) -> None:
        size_bytes = layout.footer.size_bytes
        super().__init__(file, size_bytes, capabilities, SECTOR)
        self.footer = layout.footer
        self._footer_offset = layout.footer_offset or 0
        self._is_stamped = False
        self._merging = False  # the disk changes, but its children go on to fit
        self._stamping = asyncio.Lock()

    async def _stamp(self) -> None:
        """Before the first change: children made of this disk must not fit any more."""
        async with self._stamping:
            if not self._is_stamped:
                await self._put_footer(stamped(self.footer), self._footer_offset)
                self._is_stamped = True

    async def _put_footer(self, footer: Footer, offset: int) -> None:
        await self.file.write(offset, (build_footer(footer),))
        await self.file.flush()
        self.footer, self._footer_offset = footer, offset

    def write_now(self, offset_bytes: int, data: Sequence[Buffer]) -> bool:
        """See `BackingStore.write_now`."""
        return self._is_stamped and self.file.write_now(offset_bytes, data)

    async def write(
        self, offset_bytes: int, data: Sequence[Buffer], *, durable: bool = False
    ) -> None:
        """See `BackingStore.write`."""
        await self._stamp()
        await super().write(offset_bytes, data, durable=durable)

    async def deallocate(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.deallocate`."""
        await self._stamp()
        await super().deallocate(offset_bytes, length_bytes)

    async def write_zeroes(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.write_zeroes`."""
        await self._stamp()
        await super().write_zeroes(offset_bytes, length_bytes)

    async def anchor(self, offset_bytes: int, length_bytes: int) -> None:
        """See `BackingStore.anchor`."""
        await self._stamp()
        await super().anchor(offset_bytes, length_bytes)

    async def begin_merge(self) -> None:
        """Let the disk be written although children of it must go on to fit, until `stamp`."""
        self._require_writable()
        self._merging = self._is_stamped = True

    async def stamp(self) -> None:
        """Children made before do not fit any more, on the medium. Raises StorageError."""
        self._is_stamped = False
        await self._stamp()

    async def adopt(self, child: BackingStore) -> None:
        """Be known by what the child is, on the medium: its children fit this disk from now on."""
        assert isinstance(child, VhdDisk)
        async with self._stamping:
            await self._put_footer(adopted(self.footer, child.footer), self._footer_offset)

    async def resize(self, size_bytes: int) -> None:
        """See `BackingStore.resize`."""
        require_size(self.file.name, size_bytes, FIXED_MAX_BYTES)
        self._require_writable()
        await require_no_data(self, self.file.name, size_bytes, self.size_bytes)
        async with self._stamping:
            footer = self.footer if self._merging else stamped(self.footer)
            await self._move_footer(resized(footer, size_bytes))
            self._is_stamped = True
            self.size_bytes = size_bytes

    async def _move_footer(self, footer: Footer) -> None:
        """There is no copy, so the file ends with a whole footer at all times.

        It says the old size until nothing but zeroes is there where the disk grows. A write behind
        the end makes the file longer only together with what it writes.
        """
        in_the_way, new_offset = self._footer_offset + FOOTER_BYTES, footer.current_size
        if new_offset > self._footer_offset:
            await self._put_footer(self.footer, new_offset)
        if new_offset > self.size_bytes:
            length = min(in_the_way, new_offset) - self.size_bytes
            await self.file.zero(self.size_bytes, length)
            await self.file.flush()
        shrinks = new_offset < self._footer_offset
        if shrinks:  # the disk ends before it can show a footer
            await self._say_size(footer)
        await self._put_footer(footer, new_offset)
        if shrinks:
            await self.file.set_size(new_offset + FOOTER_BYTES)
            await self.file.flush()

    async def _say_size(self, footer: Footer) -> None:
        before = self.footer
        try:
            await self._put_footer(footer, self._footer_offset)
        except StorageError:
            with suppress(StorageError):
                await self._put_footer(before, self._footer_offset)
            raise
        self.size_bytes = footer.current_size

    def _require_writable(self) -> None:
        if self.capabilities.read_only:
            raise StorageError(StorageFault.READ_ONLY, f"{self.file.name}: opened read-only")


# Parents


def _open_parent(
    file: ImageFile, layout: Layout, find_parent: FindParent | None
) -> FixedVhd | VhdDisk:
    assert layout.header is not None
    paths = vhd_locators.decode(layout.locator_data, layout.header.parent_name)
    if find_parent is None:
        message = f"{file.name}: its parent {paths.name!r} is not looked for"
        raise StorageError(StorageFault.INVALID, message)
    parent = find_parent(paths)
    try:
        if not isinstance(parent, FixedVhd | VhdDisk):
            message = f"{file.name}: its parent is no VHD"
            raise StorageError(StorageFault.INVALID, message)
        if _is_merged(layout.footer, parent.footer):
            if not file.read_only:
                _record_parent(file, layout, parent.footer)
        else:
            _check_parent(file, layout.header, parent)
    except BaseException:
        parent.close_blocking()
        raise
    return parent


def _is_merged(footer: Footer, parent: Footer) -> bool:
    """Whether the parent is known by what the child is: it holds all that the child does.

    They were merged, and the child had no time to go; so the parent fits.
    """
    return (footer.unique_id, footer.time_stamp) == (parent.unique_id, parent.time_stamp)


def _record_parent(file: ImageFile, layout: Layout, parent: Footer) -> None:
    """Let the header say what the parent is known by, before the child is changed."""
    assert layout.header is not None
    header, offset = layout.header, layout.footer.data_offset
    if (header.parent_unique_id, header.parent_time_stamp) == (parent.unique_id, parent.time_stamp):
        return
    raw = file.read_blocking(offset, HEADER_BYTES)
    changed = header_with_parent(raw, parent.unique_id, parent.time_stamp)
    file.write_blocking(offset, changed[:SECTOR])  # the rest has not changed
    file.flush_blocking()


def _check_parent(file: ImageFile, header: Header, parent: FixedVhd | VhdDisk) -> None:
    """It must be the very disk that the child was made of (VHD 1.0, "Dynamic Disk Header Format":
    Parent Unique ID and Parent Time Stamp).
    """
    name, footer = parent.file.name, parent.footer
    if footer.unique_id != header.parent_unique_id:
        message = (
            f"{file.name}: its parent {name} is another disk: its unique id is"
            f" {footer.unique_id}, not {header.parent_unique_id}"
        )
        raise StorageError(StorageFault.INVALID, message)
    if not _is_of_time(header.parent_time_stamp, footer, name):
        message = (
            f"{file.name}: its parent {name} was changed after this child was made of it (its time"
            f" stamp is {footer.time_stamp}, not {header.parent_time_stamp}), so that their data"
            f" may not fit"
        )
        raise StorageError(StorageFault.INVALID, message)


def _is_of_time(stamp: int, footer: Footer, name: str) -> bool:
    """Tools record the time stamp of the parent's footer, or when its file was last modified.

    The latter is later than the former, unless the parent was changed after the child was made.
    """
    if stamp <= footer.time_stamp:
        return stamp == footer.time_stamp
    try:
        modified = stamp_of(os.stat(name).st_mtime)
    except (OSError, ValueError):
        return False
    return abs(modified - stamp) <= CLOCK_SLACK_S
