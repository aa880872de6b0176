"""Files that are complete and on the medium under their name, or not there at all.

Must not know what goes into them.
"""

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .base import StorageError, StorageFault
from .durability import sync_directory
from .faults import open_error
from .lock import lock_image

_NO_LINKS = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK})


@contextmanager
def new_file(path: Path, *, overwrite: bool = False, suffix: str = ".tmp") -> Iterator[Path]:
    """An empty file beside `path`, which gets that name when the block ends without an exception.

    Where `path` is a symbolic link to a file, that file is meant. The new one's own name ends in
    `suffix`. Whoever fills it flushes and closes it. Nothing is left of
    it otherwise. With `overwrite` it replaces what is at `path`, at once, unless that is in use.
    Raises StorageError (INVALID where something is there, BUSY).
    """
    if overwrite and path.is_symlink():
        path = path.resolve()
    try:
        _require_place(path, overwrite)
        fd, name = tempfile.mkstemp(suffix, f".{path.name}.", path.parent)
        os.close(fd)
    except OSError as error:
        raise open_error(error, str(path)) from error
    temporary = Path(name)
    try:
        yield temporary
        _put_in_place(temporary, path, overwrite=overwrite)
    except OSError as error:
        raise open_error(error, str(path)) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def _require_place(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise _exists(path)
    if not path.is_file():
        raise StorageError(StorageFault.INVALID, f"{path}: is not a file, so not replaced")
    fd = os.open(path, os.O_RDWR | getattr(os, "O_CLOEXEC", 0))
    try:
        lock_image(fd, str(path), shared=False)
    finally:
        os.close(fd)


def _exists(path: Path) -> StorageError:
    return StorageError(
        StorageFault.INVALID, f"{path}: is there already, so not overwritten without --force"
    )


def _put_in_place(temporary: Path, path: Path, *, overwrite: bool) -> None:
    if overwrite:
        os.replace(temporary, path)
    else:
        try:
            os.link(temporary, path)  # unlike a rename it never replaces anything
        except FileExistsError:
            raise _exists(path) from None
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
            _require_place(path, overwrite=False)
            os.rename(temporary, path)
    sync_directory(path.parent)
