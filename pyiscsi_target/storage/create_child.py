"""Differencing images of images that lie in files."""

from pathlib import Path

from .base import StorageError
from .create import NewImage, fill_new, format_of
from .describe import describe_chain
from .new_file import new_file
from .open import open_image
from .vhdx_create import Kind


def create_child(
    path: Path,
    parent: Path,
    *,
    block_bytes: int = 0,
    size_bytes: int | None = None,
    overwrite: bool = False,
) -> None:
    """A new differencing image at `path`, of the format and, without others, the size and block
    size of `parent`; complete and on the medium, or nothing. Blocking. Raises StorageError.
    """
    disk = open_image(parent, read_only=True)
    try:
        image = NewImage(
            format_of(parent),
            Kind.DIFFERENCING,
            disk.size_bytes if size_bytes is None else size_bytes,
            block_bytes or getattr(disk, "block_bytes", 0),
        )
        with new_file(path, overwrite=overwrite, suffix=image.format.value) as temporary:
            fill_new(temporary, path, image, disk)
            _require_opens(temporary, path)
    finally:
        disk.close_blocking()


def _require_opens(temporary: Path, path: Path) -> None:
    """That it finds its parent, and that its chain is not too long."""
    try:
        open_image(temporary, read_only=True).close_blocking()
    except StorageError as error:
        message = str(error).replace(str(temporary), str(path))
        raise StorageError(error.fault, message) from error


def is_child(image: Path, parent: Path) -> bool:
    """Whether the image was made of `parent`, and still fits. Blocking. Raises StorageError."""
    return any(ancestor.samefile(parent) for ancestor in ancestors(image)[:1])


def descends_from(image: Path, ancestor: Path) -> bool:
    """Whether `ancestor` is the image's parent, or that one's, and so on. Blocking.

    Between the two there may be snapshots. Raises StorageError.
    """
    return any(found.samefile(ancestor) for found in ancestors(image))


def ancestors(image: Path) -> list[Path]:
    """The files below the image, its parent first; they fit. Blocking. Raises StorageError."""
    disk = open_image(image, read_only=True)
    try:
        return [link.path for link in describe_chain(disk)[1:]]
    finally:
        disk.close_blocking()
