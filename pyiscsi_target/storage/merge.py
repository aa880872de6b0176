"""A differencing disk put into its parent, which then holds what the child did.

Until all of it is there, the parent passes for unchanged: cut short at any time, the child on top
of it still shows the very same disk, and the merge can be done again. Must not know formats.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, runtime_checkable

from .base import StorageError, StorageFault
from .block_image import BlockImage, Source
from .content import CHUNK_BYTES, read_into
from .create_child import ancestors
from .open import open_image

Progress = Callable[[int, int], None]
"""Told up to which byte of the disk the work is done, and how many it has."""


@runtime_checkable
class Mergeable(Protocol):
    """What a disk can do besides being a `BackingStore`, if children can be put into it."""

    async def begin_merge(self) -> None:
        """Let the disk be written although children of it must go on to fit, until `stamp`."""

    async def stamp(self) -> None:
        """Children made before do not fit any more, on the medium."""


async def merge_image(path: Path, progress: Progress, *, stamps: bool = True) -> Path:
    """Open the differencing image at `path` and its parent, and merge it; the parent's path.

    The file at `path` stays, and without `stamps` still fits. Raises StorageError as
    `merge_into_parent` does.
    """
    found = ancestors(path)
    if not found:
        raise StorageError(StorageFault.INVALID, f"{path}: is not a differencing image")
    parent = open_image(found[0], read_only=False)
    try:
        child = open_image(path, read_only=False, parent=parent)
    except BaseException:
        await parent.close()
        raise
    try:
        assert isinstance(child, BlockImage)
        await merge_into_parent(child, progress, stamps=stamps)
    finally:
        await child.close()
    return found[0]


async def merge_into_parent(child: BlockImage, progress: Progress, *, stamps: bool = True) -> None:
    """Write all that the child has of its own into its open, writable parent, and flush.

    Nothing else may use either of them. Afterwards the child does not fit its parent any more, and
    is of no use; without `stamps` it fits until somebody writes to the parent. Raises StorageError
    (INVALID where they cannot be merged: nothing has changed).
    """
    parent = child.parent
    name = child.file.name
    if parent is None or not isinstance(parent, Mergeable):
        raise StorageError(StorageFault.INVALID, f"{name}: has no parent to be merged into")
    if parent.size_bytes != child.size_bytes:
        message = f"{name}: has {child.size_bytes} bytes, its parent {parent.size_bytes};"
        raise StorageError(StorageFault.INVALID, f"{message} make them equal, or convert the child")
    await parent.begin_merge()
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
    await parent.flush()
    if stamps:
        await parent.stamp()
    progress(child.size_bytes, child.size_bytes)
