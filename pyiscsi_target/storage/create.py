"""New images of every format and kind, by one description.

A parent is handed over open. This module must not know how images are found and opened.
"""

import os
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from .base import BackingStore, StorageError, StorageFault
from .chain import paths_between
from .faults import open_error
from .file_io import FileIo
from .image_file import ImageFile
from .new_file import new_file
from .vhd import FixedVhd
from .vhd_create import NewVhd, ParentOfNew, new_dynamic, new_fixed
from .vhd_disk import VhdDisk
from .vhd_format import DEFAULT_BLOCK_BYTES
from .vhdx import VhdxDisk
from .vhdx_create import Kind, NewDisk, ParentLink, create_vhdx

SECTOR_BYTES = 512


class ImageFormat(Enum):
    """How an image file says where the bytes of the disk are. The value is the usual suffix."""

    RAW = ".img"
    VHD = ".vhd"
    VHDX = ".vhdx"


_BY_SUFFIX = {
    ".vhd": ImageFormat.VHD,
    ".avhd": ImageFormat.VHD,
    ".vhdx": ImageFormat.VHDX,
    ".avhdx": ImageFormat.VHDX,
}


def format_of(path: Path) -> ImageFormat:
    """The format that a file of this name has; what it holds does not matter."""
    return _BY_SUFFIX.get(path.suffix.lower(), ImageFormat.RAW)


@dataclass(frozen=True, slots=True)
class NewImage:
    """What an image is to be. Block and sector sizes of 0: what is usual."""

    format: ImageFormat
    kind: Kind
    size_bytes: int
    block_bytes: int = 0
    sector_bytes: int = 0


def create_image(
    path: Path, image: NewImage, parent: BackingStore | None = None, *, overwrite: bool = False
) -> None:
    """Create the image at `path`, complete and on the medium, or nothing. Blocking.

    `parent` is the open parent of a differencing disk. Raises StorageError (INVALID where there can
    be no such image, or something is at `path`).
    """
    with new_file(path, overwrite=overwrite, suffix=image.format.value) as temporary:
        fill_new(temporary, path, image, parent)


def fill_new(file_path: Path, path: Path, image: NewImage, parent: BackingStore | None) -> None:
    """Make the empty file a new image that is to lie at `path`. Raises StorageError."""
    try:
        fd = os.open(file_path, os.O_RDWR | getattr(os, "O_BINARY", 0))
    except OSError as error:
        raise open_error(error, str(path)) from error
    file = FileIo(fd, str(path))
    try:
        _FILL[image.format](file, path, image, parent)
        file.flush_blocking()
    finally:
        file.close_blocking()


def _fill_raw(file: ImageFile, path: Path, image: NewImage, parent: BackingStore | None) -> None:
    if image.kind is Kind.DIFFERENCING or image.block_bytes:
        raise _impossible(path, "a raw image has neither a parent nor blocks")
    if image.size_bytes <= 0 or image.size_bytes % (image.sector_bytes or SECTOR_BYTES):
        raise _impossible(path, f"{image.size_bytes} bytes are not of whole sectors")
    file.set_size_blocking(image.size_bytes)
    if image.kind is Kind.FIXED:
        file.zero_blocking(0, image.size_bytes)


def _fill_vhd(file: ImageFile, path: Path, image: NewImage, parent: BackingStore | None) -> None:
    if image.sector_bytes not in (0, SECTOR_BYTES):
        raise _impossible(path, "a VHD has sectors of 512 bytes")
    record = _vhd_parent(path, parent) if image.kind is Kind.DIFFERENCING else None
    is_fixed = image.kind is Kind.FIXED
    if is_fixed and image.block_bytes:
        raise _impossible(path, "a fixed VHD has no blocks")
    try:
        new = (
            new_fixed(image.size_bytes)
            if is_fixed
            else new_dynamic(
                image.size_bytes, image.block_bytes or DEFAULT_BLOCK_BYTES, parent=record
            )
        )
    except StorageError as error:
        raise _impossible(path, str(error)) from None
    _put(file, new, allocate_bytes=image.size_bytes if is_fixed else 0)


def _put(file: ImageFile, new: NewVhd, *, allocate_bytes: int = 0) -> None:
    file.set_size_blocking(new.file_bytes)
    file.zero_blocking(0, allocate_bytes)
    for offset, data in new.pieces:
        file.write_blocking(offset, data)


def _vhd_parent(path: Path, parent: BackingStore | None) -> ParentOfNew:
    if not isinstance(parent, FixedVhd | VhdDisk):
        raise _impossible(path, "the parent of a VHD is a VHD")
    parent_path = Path(parent.file.name)
    paths = paths_between(path, parent_path)
    footer = parent.footer
    return ParentOfNew(parent_path.name, footer.unique_id, footer.time_stamp, paths)


def _fill_vhdx(file: ImageFile, path: Path, image: NewImage, parent: BackingStore | None) -> None:
    link, disk_id, sector_bytes = None, None, image.sector_bytes
    if image.kind is Kind.DIFFERENCING:
        if not isinstance(parent, VhdxDisk):
            raise _impossible(path, "the parent of a VHDX is a VHDX")
        paths = paths_between(path, Path(parent.file.name))
        link = ParentLink(parent.data_write_guid, paths)
        disk_id = parent.metadata.disk_id
        sector_bytes = sector_bytes or parent.capabilities.logical_block_bytes
    disk = NewDisk(
        image.size_bytes,
        image.kind,
        image.block_bytes,
        sector_bytes or SECTOR_BYTES,
        parent=link,
        disk_id=disk_id,
    )
    create_vhdx(file, disk)


_FILL = {
    ImageFormat.RAW: _fill_raw,
    ImageFormat.VHD: _fill_vhd,
    ImageFormat.VHDX: _fill_vhdx,
}


def _impossible(path: Path, why: str) -> StorageError:
    return StorageError(StorageFault.INVALID, f"{path}: {why}")
