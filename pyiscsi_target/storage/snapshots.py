"""Snapshots of an image file: what it held at one moment, kept beside it under a name.

    data.vhdx            the disk as it goes on
    data@before.vhdx     the disk as it was when the snapshot `before` was taken

Of an image format that knows differencing, taking one makes today's file the snapshot and puts a
child of it in its place; restoring puts a new child there. Of a raw file both copy, sharing blocks
where the file system can. A snapshot is never written to, and its file's mode says so: that and its
name make it one.

Everything here blocks, and wants the image closed, its content flushed; what fails leaves it as it
was. Knows neither which snapshots a server has, nor what is under way on its disks.
"""

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .base import StorageError, StorageFault
from .clone import WRITABLE, clone_file, replacement_for
from .create import ImageFormat, format_of
from .create_child import ancestors, create_child
from .durability import sync_directory
from .faults import open_error
from .lock import locked
from .open import open_image

NAME_PATTERN = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
COPY_LIMIT_BYTES = 4 << 30  # of a raw file: commands wait while it is copied


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot: `taken_s` is its time since the epoch, `file_bytes` what its file takes.

    One whose deletion was cut short is not `whole`: it is of no use, and to be deleted again.
    """

    name: str
    path: Path
    taken_s: float
    file_bytes: int
    whole: bool


def snapshot_path(image: Path, name: str) -> Path:
    """Where the snapshot `name` of the image is. Raises StorageError (INVALID) for such a name."""
    if not re.fullmatch(NAME_PATTERN, name):
        message = f"{name!r} cannot name a snapshot; use letters, digits, '.', '_' and '-'"
        raise StorageError(StorageFault.INVALID, message)
    return image.with_name(f"{image.stem}@{name}{image.suffix}")


def list_snapshots(image: Path) -> list[Snapshot]:
    """All snapshots of the image, oldest first. Raises StorageError."""
    with mapped_errors(image.parent):
        found = [
            _describe(name, path)
            for name, path in _candidates(image).items()
            if _is_snapshot(image, path)
        ]
    return sorted(found, key=lambda snapshot: (snapshot.taken_s, snapshot.name))


def require_unused(image: Path, name: str) -> Path:
    """Where the snapshot `name` of the image would be. Raises StorageError (INVALID where something
    is there).
    """
    snapshot = snapshot_path(image, name)
    if os.path.lexists(snapshot) and not _is_unfinished(image, snapshot):
        what = "there is such a snapshot already"
        if not _is_snapshot(image, snapshot):
            what = "is there already, and is no snapshot"
        raise StorageError(StorageFault.INVALID, f"{snapshot}: {what}")
    return snapshot


def take_snapshot(image: Path, name: str) -> Snapshot:
    """Keep what the image holds now as the snapshot `name`. Raises StorageError (INVALID where it
    exists already, or where too much would have to be copied)."""
    with mapped_errors(image), locked(image, shared=True):
        snapshot = require_unused(image, name)
        drop_unfinished(image)
        if knows_differencing(image):
            _become_parent(image, snapshot)
        else:
            clone_file(image, snapshot, copy_limit_bytes=COPY_LIMIT_BYTES, read_only=True)
        return _describe(name, snapshot)


def settle(image: Path) -> None:
    """Repair an image that was not closed cleanly: a snapshot of it is never written to.

    Nobody may use it meanwhile. Raises StorageError.
    """
    if knows_differencing(image):
        open_image(image, read_only=False).close_blocking()  # replays its log, restores its footer


def knows_differencing(image: Path) -> bool:
    """Whether a snapshot of the image is its parent, not a copy."""
    return format_of(image) is not ImageFormat.RAW


def _become_parent(image: Path, snapshot: Path) -> None:
    """The file gets the snapshot's name too; then a child takes its first one over."""
    mode = stat.S_IMODE(image.stat().st_mode)
    if deletion_mark(snapshot).exists():
        deletion_mark(snapshot).unlink()
        sync_directory(image.parent)  # or the new snapshot might pass for a deleted one
    os.link(image, snapshot)
    try:
        _put_child(image, snapshot, mode)
    except BaseException:
        if _is_unfinished(image, snapshot):  # else it is the only name of what the child is made of
            snapshot.unlink()
        raise
    protect(snapshot)
    os.utime(snapshot)  # that is when it was taken


def _put_child(image: Path, parent: Path, mode: int) -> None:
    temporary = replacement_for(image)
    temporary.unlink(missing_ok=True)
    try:
        create_child(temporary, parent)
        temporary.chmod(mode)
        temporary.replace(image)
        sync_directory(image.parent)
    finally:
        temporary.unlink(missing_ok=True)


def restore_snapshot(image: Path, name: str) -> None:
    """Make the image hold what the snapshot `name` does; what it held is gone, the snapshot stays.

    Raises StorageError (MISSING where there is none, INVALID where it was not wholly deleted).
    """
    snapshot = existing_snapshot(image, name)
    if deletion_mark(snapshot).exists():
        message = f"{snapshot}: its deletion was cut short, so it is of no use; delete it again"
        raise StorageError(StorageFault.INVALID, message)
    with mapped_errors(image):
        mode = stat.S_IMODE(image.stat().st_mode if image.exists() else 0o600)
        drop_unfinished(image)
        if knows_differencing(image):
            _put_child(image, snapshot, mode)
        else:
            clone_file(snapshot, image)
            image.chmod(mode)


def deletion_mark(snapshot: Path) -> Path:
    """A file that is there while the snapshot may hold a mixture of two moments."""
    return snapshot.with_name(snapshot.name + ".deleting")


def existing_snapshot(image: Path, name: str) -> Path:
    """Where the snapshot is. Raises StorageError (MISSING, naming those that there are)."""
    snapshot = snapshot_path(image, name)
    known = {found.name: found.path for found in list_snapshots(image)}
    if name not in known:
        names = ", ".join(known) or "none"
        message = f"{snapshot}: no such snapshot of {image.name}; there are: {names}"
        raise StorageError(StorageFault.MISSING, message)
    return snapshot


def _is_unfinished(image: Path, snapshot: Path) -> bool:
    """A crash came between the snapshot's name and the child: it is the image itself."""
    try:
        return snapshot.samefile(image)
    except FileNotFoundError:
        return False


def _is_snapshot(image: Path, path: Path) -> bool:
    """Whether a file of such a name is a snapshot, and not one that somebody goes on writing.

    A crash may have come before its file was made read-only: then the image is made of it.
    """
    if _is_unfinished(image, path) or not path.is_file():
        return False
    if not path.stat().st_mode & WRITABLE or deletion_mark(path).exists():
        return True
    try:
        return knows_differencing(image) and any(map(path.samefile, ancestors(image)))
    except StorageError:  # of an image that cannot be opened
        return False


def drop_unfinished(image: Path) -> None:
    """Take away what a crash left of a snapshot that was never taken.

    It is a second name of the image, and would pass for a snapshot as soon as another file took the
    image's place. Raises StorageError.
    """
    if not knows_differencing(image):
        return
    with mapped_errors(image):
        names = [
            path
            for path in _candidates(image).values()
            if _is_unfinished(image, path) and not path.is_symlink()
        ]
        for path in names:
            path.unlink()
        if names:
            sync_directory(image.parent)


def _candidates(image: Path) -> dict[str, Path]:
    """What is named like a snapshot of the image, by the snapshot's name."""
    pattern = re.compile(re.escape(image.stem) + f"@({NAME_PATTERN})" + re.escape(image.suffix))
    return {
        match[1]: path for path in image.parent.iterdir() if (match := pattern.fullmatch(path.name))
    }


def _describe(name: str, path: Path) -> Snapshot:
    found = path.stat()
    file_bytes = getattr(found, "st_blocks", 0) * 512
    return Snapshot(name, path, found.st_mtime, file_bytes, not deletion_mark(path).exists())


def protect(snapshot: Path) -> None:
    """Nobody but root may write to it."""
    snapshot.chmod(stat.S_IMODE(snapshot.stat().st_mode) & ~WRITABLE)


@contextlib.contextmanager
def mapped_errors(image: Path) -> Iterator[None]:
    """What the operating system says as a StorageError, naming the file."""
    try:
        yield
    except OSError as error:
        name = error.filename2 or error.filename or image  # of two names the new one
        raise open_error(error, str(name)) from error
