"""What an open image is: format, kind, sizes, identity, parents, and what of it is allocated.

Reads nothing but what is open. Must not know how it is shown.
"""

from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from .base import BackingStore, Provisioning
from .create import SECTOR_BYTES, ImageFormat
from .image_file import ImageFile
from .raw import RawStore
from .vhd import FixedVhd
from .vhd_disk import VhdDisk
from .vhd_format import DiskType
from .vhdx import VhdxDisk
from .vhdx_create import Kind

_EXTENTS = 4096  # asked for at once


@dataclass(frozen=True, slots=True)
class ImageDescription:
    """`file_bytes` is the length of the file, `allocated_bytes` what it takes on the medium.

    `block_bytes` is 0 and `identity` None where the format has none; `identity` is what the disk is
    told apart by, a VHD's unique id or a VHDX's virtual disk id.
    """

    path: Path
    format: ImageFormat
    kind: Kind
    size_bytes: int
    sector_bytes: int
    block_bytes: int
    identity: UUID | None
    file_bytes: int
    allocated_bytes: int


def describe_chain(store: BackingStore) -> list[ImageDescription]:
    """The image, then its parent, and so on."""
    found: list[ImageDescription] = []
    one: BackingStore | None = store
    while one is not None:
        found.append(_describe(one))
        one = getattr(one, "parent", None)
    return found


def _describe(store: BackingStore) -> ImageDescription:
    file = _file_of(store)
    path = Path(file.name)
    status = path.stat()
    image_format, kind, identity = _what_it_is(store)
    allocated_bytes = status.st_blocks * 512 if hasattr(status, "st_blocks") else status.st_size
    if image_format is ImageFormat.RAW and allocated_bytes >= store.size_bytes:
        kind = Kind.FIXED  # nothing else tells
    return ImageDescription(
        path,
        image_format,
        kind,
        store.size_bytes,
        store.capabilities.logical_block_bytes or SECTOR_BYTES,
        getattr(store, "block_bytes", 0),
        identity,
        file.size_bytes,
        allocated_bytes,
    )


def _file_of(store: BackingStore) -> ImageFile:
    assert isinstance(store, RawStore | VhdDisk | VhdxDisk)
    return store.file


def _what_it_is(store: BackingStore) -> tuple[ImageFormat, Kind, UUID | None]:
    if isinstance(store, FixedVhd):
        return ImageFormat.VHD, Kind.FIXED, store.footer.unique_id
    if isinstance(store, VhdDisk):
        is_child = store.footer.disk_type is DiskType.DIFFERENCING
        kind = Kind.DIFFERENCING if is_child else Kind.DYNAMIC
        return ImageFormat.VHD, kind, store.footer.unique_id
    if isinstance(store, VhdxDisk):
        metadata = store.metadata
        kind = Kind.FIXED if metadata.leave_block_allocated else Kind.DYNAMIC
        return (
            ImageFormat.VHDX,
            Kind.DIFFERENCING if metadata.has_parent else kind,
            metadata.disk_id,
        )
    return ImageFormat.RAW, Kind.DYNAMIC, None


async def mapped_shares(store: BackingStore, parts: int) -> list[float]:
    """The disk cut into `parts` equal parts: how much of each takes space, from 0 to 1.

    That is what is mapped or anchored. Raises StorageError.
    """
    mapped = [0.0] * parts
    width = store.size_bytes / parts
    position = 0
    while position < store.size_bytes:
        extents = await store.extents(position, store.size_bytes - position, _EXTENTS)
        for extent in extents:
            position = extent.offset_bytes + extent.length_bytes
            if extent.state is not Provisioning.DEALLOCATED:
                _add(mapped, extent.offset_bytes / width, position / width)
    return [min(1.0, share) for share in mapped]


def _add(mapped: list[float], start: float, end: float) -> None:
    """Add the run, in parts from the start, to the parts that it touches."""
    first, last = int(start), min(int(end), len(mapped) - 1)
    for part in range(first, last + 1):
        mapped[part] += min(end, part + 1) - max(start, part)
