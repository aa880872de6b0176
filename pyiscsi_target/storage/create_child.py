"""Differencing images of images that lie in files."""

from pathlib import Path

from .create import NewImage, create_image, format_of
from .describe import describe_chain
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
        create_image(path, image, disk, overwrite=overwrite)
    finally:
        disk.close_blocking()


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
