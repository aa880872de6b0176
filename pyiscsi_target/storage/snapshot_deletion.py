"""Snapshots forgotten, while everything that is made of them goes on to hold what it does.

A snapshot without children is removed. One with a child takes over what the child has of its own,
then what the child is known by, and then the child's name: there is one order for the image itself
and for snapshots in the middle of a chain.

    one <- two <- image      delete one:  one := one + two; then `one` is known as `two`; then it
                             gets the name of `two`
    two <- image

Cut short at any time, everything but the snapshot itself is as it was, and its deletion can be done
again. A mark beside it says so: it holds a mixture of two moments then. Everything here blocks.
"""

import asyncio
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from .base import StorageError, StorageFault
from .clone import allocated_bytes
from .create_child import is_child
from .durability import sync_directory, sync_file
from .lock import locked
from .merge import UnmergedError, merge_image
from .snapshots import (
    deletion_mark,
    drop_unfinished,
    existing_snapshot,
    knows_differencing,
    list_snapshots,
    mapped_errors,
    protect,
    snapshot_path,
)


def delete_snapshot(image: Path, name: str, *, merge_limit_bytes: int | None = None) -> None:
    """Forget the snapshot `name`; the image and the other snapshots go on to hold what they do.

    Where one of them is made of the snapshot, at most `merge_limit_bytes` are written. Raises
    StorageError (MISSING; INVALID where several are, or there is too much to merge). Wants the
    image closed, and a thread without an event loop.
    """
    snapshot = deletable_snapshot(image, name)
    with mapped_errors(image):
        with locked(image):  # or it may belong to a snapshot that is being taken
            drop_unfinished(image)
        children = _children(image, snapshot) if snapshot.exists() else []
        if len(children) > 1:
            raise _of_many_children(snapshot, children)
        if children:
            _merge_and_replace(children[0], snapshot, merge_limit_bytes)
        else:
            snapshot.unlink(missing_ok=True)
        sync_directory(snapshot.parent)
        deletion_mark(snapshot).unlink(missing_ok=True)  # only now: what is left is of no use
        sync_directory(snapshot.parent)


def deletable_snapshot(image: Path, name: str) -> Path:
    """Where the snapshot is, or was until its deletion was cut short. Raises StorageError
    (MISSING, naming those that there are).
    """
    snapshot = snapshot_path(image, name)
    return snapshot if deletion_mark(snapshot).exists() else existing_snapshot(image, name)


def _children(image: Path, snapshot: Path) -> list[Path]:
    """What is made of the snapshot, of the image and its other snapshots."""
    if not knows_differencing(image):
        return []
    others = [found.path for found in list_snapshots(image) if found.path != snapshot]
    return [child for child in (*others, image) if is_child(child, snapshot)]


def _of_many_children(snapshot: Path, children: Sequence[Path]) -> StorageError:
    names = ", ".join(child.name for child in children)
    message = (
        f"{snapshot}: {names} are made of it, and it can be merged with one of them only;"
        f" delete other snapshots among these first"
    )
    return StorageError(StorageFault.INVALID, message)


def _merge_and_replace(child: Path, snapshot: Path, limit_bytes: int | None) -> None:
    _check_limit(child, limit_bytes)
    status, mark = child.stat(), deletion_mark(snapshot)
    is_whole = not mark.exists()
    if is_whole:  # else the child may have been written to since
        mark.touch()
        os.utime(mark, ns=(status.st_atime_ns, status.st_mtime_ns))
    sync_directory(mark.parent)
    try:
        snapshot.chmod(stat.S_IMODE(status.st_mode) | stat.S_IWUSR)  # root alone needs none
        asyncio.run(merge_image(child, lambda done, total: None, adopts=True))
        _take_over(snapshot, stat.S_IMODE(status.st_mode), mark.stat().st_mtime_ns)
        snapshot.replace(child)
    except BaseException as error:
        protect(snapshot)
        if is_whole and isinstance(error, UnmergedError):
            mark.unlink()
        raise


def _check_limit(child: Path, limit_bytes: int | None) -> None:
    own_bytes = allocated_bytes(child)
    if limit_bytes is not None and own_bytes > limit_bytes:
        message = f"{child}: {own_bytes} bytes would have to be merged, while commands wait"
        raise StorageError(StorageFault.INVALID, f"{message}; do it while no server runs")


def _take_over(snapshot: Path, mode: int, taken_ns: int) -> None:
    """The child's permissions, and its time: that of a snapshot says when it was taken."""
    descriptor = os.open(snapshot, os.O_RDWR)
    try:
        os.utime(snapshot, ns=(taken_ns, taken_ns))
        snapshot.chmod(mode)
        sync_file(descriptor, whole=True)
    finally:
        os.close(descriptor)
