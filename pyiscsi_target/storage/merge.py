"""A differencing disk put into its parent, which then holds what the child did.

Until all of it is there, the parent passes for unchanged: cut short at any time, the child on top
of it still shows the very same disk, and the merge can be done again. Sizes follow likewise: a
smaller parent grows before it is written to, with zeroes, which the child has shown there before; a
larger one shrinks at the end, where the child has never looked. Must not know formats.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol, runtime_checkable

from .base import BackingStore, StorageError, StorageFault
from .block_image import BlockImage
from .block_layout import Source
from .content import CHUNK_BYTES, read_into
from .create_child import ancestors
from .open import open_image

Progress = Callable[[int, int], None]
"""Told up to which byte of the disk the work is done, and how many it has."""

_GIVEN_BACK_BYTES = 1 << 30  # at once


class UnmergedError(StorageError):
    """It could not even begin: parent and child are as they were."""


@runtime_checkable
class Mergeable(Protocol):
    """What a disk can do besides being a `BackingStore`, if children can be put into it."""

    async def begin_merge(self) -> None:
        """Let the disk be written although children of it must go on to fit, until `stamp`."""

    async def stamp(self) -> None:
        """Children made before do not fit any more, on the medium."""

    async def adopt(self, child: BackingStore) -> None:
        """Be known by what the child is, on the medium: its children fit this disk from now on.

        So does the child itself, for it holds the same; those made of this disk before do not.
        """


async def merge_image(path: Path, progress: Progress, *, adopts: bool = False) -> Path:
    """Open the differencing image at `path` and its parent, and merge it; the parent's path.

    The file at `path` stays. Raises StorageError as `merge_into_parent` does.
    """
    with _unmerged():
        found = ancestors(path)
        if not found:
            raise StorageError(StorageFault.INVALID, f"{path}: is not a differencing image")
        child = _open_pair(path, found[0])
    try:
        await merge_into_parent(child, progress, adopts=adopts)
    finally:
        await child.close()
    return found[0]


def _open_pair(path: Path, parent_path: Path) -> BlockImage:
    """The child, on its open, writable parent."""
    parent = open_image(parent_path, read_only=False)
    try:
        # The child of a snapshot may be one, which is not to be written.
        child = open_image(path, read_only=not os.access(path, os.W_OK), parent=parent)
    except BaseException:
        parent.close_blocking()
        raise
    assert isinstance(child, BlockImage)
    return child


async def merge_into_parent(child: BlockImage, progress: Progress, *, adopts: bool = False) -> None:
    """Write all that the child has of its own into its open, writable parent, and flush.

    Nothing else may use either of them. Afterwards the child does not fit its parent any more, and
    is of no use; if the parent `adopts` what the child is known by, its children do. Raises
    StorageError (`UnmergedError` where nothing has changed).
    """
    parent = child.parent
    with _unmerged():
        if parent is None or not isinstance(parent, Mergeable):
            message = f"{child.file.name}: has no parent to be merged into"
            raise StorageError(StorageFault.INVALID, message)
        await parent.begin_merge()
        if parent.size_bytes < child.size_bytes:
            await parent.resize(child.size_bytes)
    await _merge_content(child, parent, progress)
    if parent.size_bytes > child.size_bytes:
        await _shrink(parent, child.size_bytes)
    await parent.flush()
    await (parent.adopt(child) if adopts else parent.stamp())
    progress(child.size_bytes, child.size_bytes)


async def _merge_content(child: BlockImage, parent: BackingStore, progress: Progress) -> None:
    async for offset, length, source in child.own_runs(0, child.size_bytes):
        progress(offset, child.size_bytes)
        if source is Source.ZEROES:
            await parent.deallocate(offset, length)
            continue
        for start in range(offset, offset + length, CHUNK_BYTES):
            data = bytearray(min(CHUNK_BYTES, offset + length - start))
            await read_into(child, start, memoryview(data))
            if not parent.write_now(start, (data,)):
                await parent.write(start, (data,))


async def _shrink(disk: BackingStore, size_bytes: int) -> None:
    """Whatever is in what goes."""
    for start in range(size_bytes, disk.size_bytes, _GIVEN_BACK_BYTES):
        await disk.deallocate(start, min(_GIVEN_BACK_BYTES, disk.size_bytes - start))
    await disk.resize(size_bytes)


@contextmanager
def _unmerged() -> Iterator[None]:
    try:
        yield
    except StorageError as error:
        raise UnmergedError(error.fault, str(error), error.offset_bytes) from error
