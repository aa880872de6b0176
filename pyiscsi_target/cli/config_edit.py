"""Changing a config file as its owner would: comments, order and layout stay.

The file is replaced at once, and only by one that can be served.
"""

import os
import re
from collections.abc import Callable
from pathlib import Path

import tomlkit
from tomlkit import TOMLDocument
from tomlkit.items import Table

from ..server.config import ConfigError, load_config
from ..server.control import ControlError
from ..storage.durability import sync_directory

_UNITS = ("TiB", "GiB", "MiB", "KiB")


def edit_config(path: Path, edit: Callable[[TOMLDocument], None]) -> None:
    """Let `edit` change the document of the config at `path`. Raises ConfigError, OSError.

    What is not a config any more afterwards is not written.
    """
    document = tomlkit.parse(path.read_text(encoding="utf-8"))
    edit(document)
    target = path.resolve()
    temporary = path.with_name(f".{path.name}.tmp")  # there, relative paths mean the same
    try:
        with open(temporary, "w", encoding="utf-8", opener=_private) as file:
            temporary.chmod(target.stat().st_mode & 0o777)
            file.write(tomlkit.dumps(document))
            file.flush()
            os.fsync(file.fileno())
        load_config(temporary)
        temporary.replace(target)
        sync_directory(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


def _private(path: str, flags: int) -> int:
    """An opener of files that nobody else may read, for there are secrets in them."""
    return os.open(path, flags, 0o600)


def resized(path: Path, disk: str, size_bytes: int) -> None:
    """The disk has another size: so the config at `path` must say. Raises ControlError."""
    try:
        edit_config(path, lambda document: set_size(document, disk, size_bytes))
    except (ConfigError, OSError) as error:
        wanted = f"disks.{disk}.size must become {size_bytes}"
        raise ControlError(f"{path}: {wanted}, but cannot be written: {error}") from error


def exact_size(size_bytes: int) -> str | int:
    """The size in the largest unit of which it is a whole number."""
    for power, unit in zip((40, 30, 20, 10), _UNITS, strict=True):
        if size_bytes >= 1 << power and not size_bytes % (1 << power):
            return f"{size_bytes >> power} {unit}"
    return size_bytes


def set_size(document: TOMLDocument, disk: str, size_bytes: int) -> None:
    """The `size` of the disk, where it has one."""
    table = document["disks"][disk]
    if "size" in table:
        table["size"] = exact_size(size_bytes)


def add_disk(document: TOMLDocument, name: str, path: str, block_size: int) -> None:
    """A table for a disk that exists."""
    disks = document.setdefault("disks", tomlkit.table(is_super_table=True))
    table = tomlkit.table()
    table.add("path", path)
    if block_size != 512:
        table.add("block_size", block_size)
    disks[name] = table


def add_lun(document: TOMLDocument, target: str, lun: int, disk: str) -> None:
    """Serve the disk as this LUN of the target, which exists."""
    table = document["targets"][target]
    assert isinstance(table, Table)
    luns = table.setdefault("luns", tomlkit.inline_table())
    luns[str(lun)] = disk


def disk_name(image: Path) -> str:
    """A name for the disk in an image, made of that of the file."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", image.stem).strip("-._") or "disk"
