"""From the `path` of a disk in the configuration to an open store.

    disks/data.img          a file; relative to the configuration file; created when missing
    disks/data.vhdx         an image (.vhd, .vhdx); its parents, if any, are opened read-only
    /dev/vg0/data           a block device
    ram:                    memory; its content dies with the process
    delay:50ms:PATH         PATH on a slow disk: every read and write first blocks for 50 ms
    error:1/100:PATH        PATH on a bad disk: every hundredth read or write fails

A file whose name begins like a scheme is reached as `./delay:x`. What a file holds is never guessed
from its content, which the initiators write: image formats go by their file name.
"""

import os
import re
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from .base import BackingStore, Capabilities, StorageError, StorageFault
from .block_device import discard_granularity_bytes, logical_block_bytes, physical_block_bytes
from .chain import Chain
from .create import NewImage, create_image, format_of
from .faults import open_error
from .file_io import FileIo
from .filters import DelayStore, ErrorStore, one_in
from .holes import can_anchor, can_punch, writes_elsewhere
from .lock import lock_image
from .overlay import OverlayStore
from .raw import RawStore
from .vhd import open_vhd
from .vhdx import open_vhdx
from .vhdx_create import Kind

RAM = "ram"
PREFERRED_BLOCK_BYTES = 4096  # file systems say more (128 KiB and above), disks do not

_O_BINARY: int = getattr(os, "O_BINARY", 0)
_O_CLOEXEC: int = getattr(os, "O_CLOEXEC", 0)


@dataclass(frozen=True, slots=True)
class DiskRequest:
    """What was asked of `open_store`, the same for every scheme."""

    size_bytes: int | None
    read_only: bool
    base: Path
    block_size: int
    kind: Kind = Kind.DYNAMIC
    discards: bool = False
    limit_bytes: int | None = None


def open_store(
    path: str,
    *,
    size_bytes: int | None,
    read_only: bool,
    base: Path,
    block_size: int,
    kind: Kind = Kind.DYNAMIC,
    discards: bool = False,
    limit_bytes: int | None = None,
) -> BackingStore:
    """Open the disk `path`, locked, and created with `size_bytes` when it is a missing file.

    A new file is an image of the format that its name says, and of this `kind`. `discards`: what is
    written is thrown away at the end, and the image, shared with others that do so, never changes.
    `limit_bytes`: the file of an image does not become longer than this.
    Synchronous, for startup. Relative paths start at `base`; of the directories above a new file
    only those below `base` are created. Where `size_bytes` is given it must be the size there is.
    Raises StorageError (MISSING, BUSY, INVALID, READ_ONLY, OUT_OF_SPACE, MEDIUM) naming the file.
    """
    try:
        request = DiskRequest(size_bytes, read_only, base, block_size, kind, discards, limit_bytes)
        return _open(path, request)
    except OSError as error:
        raise open_error(error, str(error.filename or path)) from error


def open_image(path: Path, *, read_only: bool, parent: BackingStore | None = None) -> BackingStore:
    """Open the image file `path` as it is, locked, with its parents. Blocking.

    An open `parent` is taken in place of what a differencing image says, and then belongs to it.
    Raises StorageError as `open_store` does, and creates nothing.
    """
    request = DiskRequest(None, read_only, path.parent, 512)
    try:
        return _open_existing(Chain(path), request, parent)
    except OSError as error:
        raise open_error(error, str(error.filename or path)) from error


def resolve_path(path: str, base: Path) -> str:
    """`path` with the name of its file made absolute, whatever its scheme."""
    scheme, argument, rest = _split(path)
    if scheme in _FILTERS:
        return f"{scheme}:{argument}:{resolve_path(rest, base)}"
    return path if scheme == RAM else str(base / Path(path).expanduser())


def image_path(path: str, base: Path) -> Path | None:
    """The file or block device in the disk `path`, whatever it wears; None for memory."""
    scheme, _, rest = _split(path)
    if scheme in _FILTERS:
        return image_path(rest, base)
    return None if scheme == RAM else base / Path(path).expanduser()


def is_volatile(path: str) -> bool:
    """Whether the content of the disk `path` dies with the process (so it needs a size)."""
    scheme, _, rest = _split(path)
    return scheme == RAM or (scheme in _FILTERS and is_volatile(rest))


def _split(path: str) -> tuple[str, str, str]:
    """(scheme, argument, path of the inner store); the scheme of a plain file is empty."""
    scheme, colon, rest = path.partition(":")
    if colon and scheme == RAM:
        return RAM, rest, ""
    if colon and scheme in _FILTERS:
        argument, _, inner = rest.partition(":")
        return scheme, argument, inner
    return "", "", path


def _open(path: str, request: DiskRequest) -> BackingStore:
    scheme, argument, rest = _split(path)
    if scheme == RAM:
        return _open_memory(path, argument, request)
    if scheme in _FILTERS:
        return _FILTERS[scheme](path, argument, rest, request)
    return _open_image(request.base / Path(path).expanduser(), request)


def _open_delayed(path: str, argument: str, rest: str, request: DiskRequest) -> BackingStore:
    match = re.fullmatch(r"(\d+)ms", argument)
    if match is None:
        raise _invalid(path, f"the delay {argument!r} is not like '50ms'")
    return DelayStore(_open(rest, request), int(match[1]) / 1000, path)


def _open_erring(path: str, argument: str, rest: str, request: DiskRequest) -> BackingStore:
    match = re.fullmatch(r"1/([1-9]\d*)", argument)
    if match is None:
        raise _invalid(path, f"the error rate {argument!r} is not like '1/100'")
    return ErrorStore(_open(rest, request), one_in(int(match[1])))


_FILTERS: dict[str, Callable[[str, str, str, DiskRequest], BackingStore]] = {
    "delay": _open_delayed,
    "error": _open_erring,
}


def _open_memory(path: str, argument: str, request: DiskRequest) -> BackingStore:
    if argument:
        raise _invalid(path, "nothing may follow 'ram:'")
    if request.size_bytes is None:
        raise _invalid(path, "a disk in memory needs a size")
    size_bytes = request.size_bytes
    _require_whole_blocks(path, size_bytes, request)
    memory = hasattr(os, "memfd_create")
    with _closed_on_error(_memory_file() if memory else _unlinked_file()) as fd:
        os.ftruncate(fd, size_bytes)
        capabilities = _file_capabilities(fd, size_bytes, request, volatile=True)
        io = FileIo(fd, path, read_only=request.read_only, memory=memory)
        return RawStore(io, size_bytes, capabilities, request.block_size)


def _memory_file() -> int:
    return os.memfd_create("pyiscsi-target-ram", os.MFD_CLOEXEC)


def _unlinked_file(directory: Path | None = None) -> int:
    with tempfile.TemporaryFile(prefix="pyiscsi-target-", dir=directory) as file:
        return os.dup(file.fileno())


def _open_image(image: Path, request: DiskRequest) -> BackingStore:
    if not image.exists():
        _create(image, request)
    opening = replace(request, read_only=True) if request.discards else request
    store = _open_existing(Chain(image), opening)
    try:
        _check_size(str(image), store, request)
        return _with_overlay(image, store) if request.discards else store
    except (OSError, StorageError):
        store.close_blocking()
        raise


def _with_overlay(image: Path, store: BackingStore) -> BackingStore:
    """Changes go into a file without a name, where the image has its space."""
    try:
        fd = _unlinked_file(image.parent)
    except OSError as error:
        raise open_error(error, f"changes to {image.name} in {image.parent}") from error
    with _closed_on_error(fd):
        anchors = can_anchor(fd, image.parent)
        return OverlayStore(store, FileIo(fd, f"changes to {image}", anchors=anchors))


def _open_existing(
    chain: Chain, request: DiskRequest, parent: BackingStore | None = None
) -> BackingStore:
    """The store for the image at the end of the chain, locked."""
    name = str(chain.path)
    with _closed_on_error(os.open(name, _open_flags(chain.path, request))) as fd:
        mode = os.fstat(fd).st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISBLK(mode)):
            raise _invalid(name, "neither a file nor a block device")
        lock_image(fd, name, shared=request.read_only)
        size_bytes = os.lseek(fd, 0, os.SEEK_END)
        opener = _FORMATS.get(chain.path.suffix.lower())
        if opener is None or stat.S_ISBLK(mode):
            return _wear(fd, name, size_bytes, stat.S_ISBLK(mode), request)
        # An image's own metadata is replaced now and then, which must not fail either.
        anchors = can_anchor(fd, chain.path.resolve().parent) and not writes_elsewhere(fd)
        io = FileIo(
            fd,
            name,
            read_only=request.read_only,
            anchors=anchors,
            limit_bytes=request.limit_bytes,
        )
        return opener(
            io,
            find_parent=lambda paths: parent or _open_parent(chain.to_parent(paths), request),
            punches=can_punch(fd, size_bytes),
        )


def _open_parent(chain: Chain, request: DiskRequest) -> BackingStore:
    """Shared, for many children may have it."""
    try:
        return _open_existing(chain, replace(request, read_only=True, size_bytes=None))
    except OSError as error:
        raise open_error(error, str(chain.path)) from error


_FORMATS: dict[str, Callable[..., BackingStore]] = {
    ".avhd": open_vhd,
    ".avhdx": open_vhdx,
    ".vhd": open_vhd,
    ".vhdx": open_vhdx,
}
"""By the suffix of the file's name; every other file is raw."""


def _open_flags(image: Path, request: DiskRequest) -> int:
    flags = os.O_RDONLY if request.read_only else os.O_RDWR
    if image.is_fifo():
        flags |= os.O_NONBLOCK  # it is refused, but opening it must not wait
    if image.is_block_device() and not request.read_only:
        flags |= os.O_EXCL  # Linux: fails while it is mounted, or in use under any other name
    return flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


def _wear(
    fd: int, name: str, size_bytes: int, is_block_device: bool, request: DiskRequest
) -> BackingStore:
    """The store for an open, locked raw image or block device."""
    if is_block_device:
        capabilities = _device_capabilities(fd, request)
        unit = capabilities.logical_block_bytes
    else:
        anchors = can_anchor(fd, Path(name).resolve().parent)
        capabilities = _file_capabilities(fd, size_bytes, request, anchors=anchors)
        unit = 1
    io = FileIo(
        fd,
        name,
        read_only=request.read_only,
        allocation_unit_bytes=unit,
        anchors=capabilities.anchors,
    )
    return RawStore(io, size_bytes, capabilities, request.block_size)


def _create(image: Path, request: DiskRequest) -> None:
    """A sparse file or an image that grows, complete and on the medium, or none."""
    name = str(image)
    if request.read_only or request.size_bytes is None:
        why = "it is read-only, so not created" if request.read_only else "a size would create it"
        raise StorageError(StorageFault.MISSING, f"{name}: no such file; {why}")
    if image.is_symlink():
        raise StorageError(StorageFault.MISSING, f"{name}: a symbolic link to nothing")
    _require_whole_blocks(name, request.size_bytes, request)
    make_directory(image.parent, request.base)
    image_format = format_of(image)
    # A VHDX says which sectors it has; of the others any will do, or 512 only.
    new = NewImage(image_format, request.kind, request.size_bytes, sector_bytes=request.block_size)
    create_image(image, new)


def make_directory(directory: Path, base: Path) -> None:
    """Make a directory for an image. Raises StorageError.

    Elsewhere than below the configuration file a missing directory is an unmounted disk.
    """
    if directory.is_dir():
        return
    if not directory.is_relative_to(base):
        message = f"{directory}: no such directory, and not below {base}, so not created"
        raise StorageError(StorageFault.MISSING, message)
    directory.mkdir(parents=True, exist_ok=True)


def _require_whole_blocks(name: str, size_bytes: int, request: DiskRequest) -> None:
    if size_bytes < request.block_size:
        raise _invalid(name, f"{size_bytes} bytes are less than a block of {request.block_size}")
    if size_bytes % request.block_size:
        raise _invalid(
            name, f"{size_bytes} bytes are not a multiple of the block size {request.block_size}"
        )


def _check_size(name: str, store: BackingStore, request: DiskRequest) -> None:
    """The disk must have the size that was asked for, and whole blocks."""
    wanted = request.size_bytes
    if wanted is not None and wanted != store.size_bytes:
        raise _invalid(
            name,
            f"has {store.size_bytes} bytes, but the configured size is {wanted} bytes;"
            f" leave the size out to serve what there is",
        )
    _require_whole_blocks(name, store.size_bytes, request)
    sector = store.capabilities.logical_block_bytes
    if Path(name).suffix.lower() in _FORMATS and sector != request.block_size:
        raise _invalid(
            name,
            f"a disk with sectors of {sector} bytes cannot be served with blocks of"
            f" {request.block_size}: set block_size = {sector}",
        )


def _file_capabilities(
    fd: int,
    size_bytes: int,
    request: DiskRequest,
    *,
    volatile: bool = False,
    anchors: bool = False,
) -> Capabilities:
    preferred = getattr(os.fstat(fd), "st_blksize", PREFERRED_BLOCK_BYTES)
    punches = can_punch(fd, size_bytes)
    return Capabilities(
        read_only=request.read_only,
        volatile=volatile,
        deallocate_granularity_bytes=max(preferred, request.block_size) if punches else 0,
        anchors=anchors and punches,
        physical_block_bytes=max(min(preferred, PREFERRED_BLOCK_BYTES), request.block_size),
        logical_block_bytes=request.block_size,
    )


def _device_capabilities(fd: int, request: DiskRequest) -> Capabilities:
    return Capabilities(
        read_only=request.read_only,
        deallocate_granularity_bytes=discard_granularity_bytes(fd),
        physical_block_bytes=max(physical_block_bytes(fd), request.block_size),
        logical_block_bytes=logical_block_bytes(fd),
    )


def _invalid(name: str, message: str) -> StorageError:
    return StorageError(StorageFault.INVALID, f"{name}: {message}")


@contextmanager
def _closed_on_error(fd: int) -> Iterator[int]:
    try:
        yield fd
    except BaseException:
        os.close(fd)
        raise
